"""From a given opening to a given ending: a text that has both, byte for byte.

One model writes from its given text towards the other one and does not quite meet it: what it
wrote is cut between two words and the other text put in its place, where both models like it best.
A backward model writes from the ending (one that takes hints knows the opening); a forward model
does the same from the opening.

    written       Once there was a cat. |She ran to the park and saw a dog. | They played.
    the bridge    One day it rained.    |She ran to the park and saw a dog. | They played.
                  opening               seam                                  ending
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backgpt.generate import FinishReason, Text
from backgpt.language import Language
from backgpt.order import IdArray, ReadingIds, RightwardDecoder
from backgpt.score import Runner, sums_written

ACROSS = 10  # ids on the far side of a seam that are scored
CONSIDERED = 16  # places for a seam, of a text, that both models are asked about


@dataclass(frozen=True)
class Bridge:
    """A text from `opening` to `ending`; `middle` is all between them, white space included.

    The seam is where the middle meets the text that was put in its place: the opening if a
    backward model wrote the middle, otherwise the ending. `logprob`, in nats, is how well all goes
    together: log p of the text that was put there by the writer, and by the other model of the
    first ids behind it and of the other given text; bridges of the same texts compare by it.
    `seed` and `finish_reason` are those of the text that the middle was cut from.
    """

    opening: str
    middle: str
    ending: str
    logprob: float
    seed: int
    finish_reason: FinishReason

    @property
    def text(self) -> str:
        """The whole text."""
        return self.opening + self.middle + self.ending


def join(writer: Runner, reader: Runner, texts: Sequence[Text], far: str) -> list[Bridge]:
    """Join each of `texts`, that `writer` wrote from one given text, to the other one, `far`.

    `reader` runs the other way. Of the places between two words that the reader likes best, a text
    is cut at the one with the greatest sum of the writer's log p of `far` and its marker, and the
    reader's of the first ids behind the seam. Raises UsageError if a text does not fit.
    """
    cuttings = [_Cutting(writer.language, text, far) for text in texts]
    seams = [(number, place) for number, one in enumerate(cuttings) for place in one.places]
    read = [
        reader.language.row(*cuttings[number].around(place), to_the_edge=False)
        for number, place in seams
    ]
    liked: list[list[tuple[float, int]]] = [[] for _ in cuttings]
    for (number, place), logprob in zip(seams, sums_written(reader, read), strict=True):
        liked[number].append((logprob, place))
    best_liked = [sorted(places, key=lambda one: -one[0])[:CONSIDERED] for places in liked]
    considered = [(number, *one) for number, places in enumerate(best_liked) for one in places]
    written = [
        writer.language.row(*cuttings[number].at_far(place)) for number, _, place in considered
    ]
    best: list[tuple[float, int]] = [(-np.inf, 0)] * len(cuttings)
    for (number, across, place), logprob in zip(
        considered, sums_written(writer, written), strict=True
    ):
        best[number] = max(best[number], (across + logprob, place))
    given = [
        reader.language.row(*cutting.at_given(place))
        for cutting, (_, place) in zip(cuttings, best, strict=True)
    ]
    ends = sums_written(reader, given)
    return [
        cutting.bridge(place, logprob + end)
        for cutting, (logprob, place), end in zip(cuttings, best, ends, strict=True)
    ]


class _Cutting:
    """A written text, and what it would be if it were cut and the other text put in its place."""

    def __init__(self, language: Language, text: Text, far: str) -> None:
        tokenizer = language.tokenizer
        self._text, self._far = text, far
        self._leftward = language.direction == "backward"
        self._ids = language.order.to_reading(text.ids)
        self._bytes = [tokenizer.token_bytes[int(id_)] for id_ in self._ids]
        self._before = _lengths_before(self._bytes, after="" if self._leftward else text.given)
        opening, ending = (far, text.given) if self._leftward else (text.given, far)
        # The middle brings white space of its own, which has to be that of the opening's edge.
        self._edge = opening[len(opening.rstrip(" \n")) :] if opening.strip(" \n") else ""
        self._opening_ids = tokenizer.encode(opening.removesuffix(self._edge))
        self._ending_ids = tokenizer.encode_fragment(ending)
        self._opening, self._ending = opening, ending
        starts = np.flatnonzero(tokenizer.starts_group[self._ids])
        self.places = self._fitting([int(place) for place in starts])

    def at_far(self, place: int) -> tuple[ReadingIds, ReadingIds]:
        """Return the text that is cut at `place` in two parts that meet at the seam."""
        return self._after_opening(place) if self._leftward else self._before_ending(place)

    def at_given(self, place: int) -> tuple[ReadingIds, ReadingIds]:
        """Return the text that is cut at `place` in two parts that meet at the given text."""
        return self._before_ending(place) if self._leftward else self._after_opening(place)

    def around(self, place: int) -> tuple[ReadingIds, ReadingIds]:
        """Return the text that was put there and the first ids behind it, in reading order."""
        before, after = self.at_far(place)
        if self._leftward:
            return before, ReadingIds(after[:ACROSS])
        return ReadingIds(before[-ACROSS:]), after

    def bridge(self, place: int, logprob: float) -> Bridge:
        """Return the text that is cut at `place`."""
        return Bridge(
            opening=self._opening,
            middle=self._middle(place).removeprefix(self._edge),
            ending=self._ending,
            logprob=logprob,
            seed=self._text.seed,
            finish_reason=self._text.finish_reason,
        )

    def _after_opening(self, place: int) -> tuple[ReadingIds, ReadingIds]:
        return self._opening_ids, _joined(self._kept(place), self._ending_ids)

    def _before_ending(self, place: int) -> tuple[ReadingIds, ReadingIds]:
        return _joined(self._opening_ids, self._kept(place)), self._ending_ids

    def _kept(self, place: int) -> IdArray:
        return self._ids[place:] if self._leftward else self._ids[:place]

    def _fitting(self, starts: list[int]) -> list[int]:
        """Return the places, of all that begin a word, that leave a middle; at least one."""
        last = len(self._ids)
        if not self._leftward:
            return [place for place in starts if place] or [last]
        places = [p for p in starts if p < last and self._middle(p).startswith(self._edge)]
        return places or starts or [last]

    def _middle(self, place: int) -> str:
        """Return the text between opening and ending, with the white space at both edges."""
        text = self._text.text
        if not self._leftward:
            written = text[len(self._opening) :][: self._before[place]]
            joins_on = self._ending[:1] in (" ", "\n") or (self._opening + written).endswith("\n")
            return written if joins_on else written + " "
        kept = text[self._before[place] : len(text) - len(self._ending)]
        begins = self._bytes[place][:1] if place < len(self._bytes) else b" "
        return f" {kept}" if begins == b" " and kept[:1] != " " else kept


def _lengths_before(pieces: Sequence[bytes], *, after: str) -> list[int]:
    """Return how many characters stand before each of `pieces`, and before the end."""
    decoder = RightwardDecoder(after=after)
    lengths = [0]
    for piece in pieces:
        lengths.append(lengths[-1] + len(decoder.push(piece)))
    return lengths


def _joined(first: IdArray, second: IdArray) -> ReadingIds:
    return ReadingIds(np.concatenate((first, second)).astype(np.int64))
