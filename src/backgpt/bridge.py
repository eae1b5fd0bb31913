"""From a given opening to a given ending: a text that has both, byte for byte.

One model writes from its given text towards the other one and does not quite meet it: what it
wrote is cut between two words and the other text put in its place, where both models like it best.
A backward model writes from the ending (one that takes hints knows the opening); a forward model
does the same from the opening.

    written       Once there was a cat. |She ran to the park and saw a dog. | They played.
    the bridge    One day it rained.    |She ran to the park and saw a dog. | They played.
                  opening               seam                                  ending
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from backgpt.checks import check_text
from backgpt.errors import TooLongError, UsageError
from backgpt.generate import FinishReason, Text, Writer
from backgpt.hints import NO_HINTS, Hints
from backgpt.language import Language, Parts, Row
from backgpt.order import ReadingIds, joined
from backgpt.score import SCORED_TOGETHER, Runner, context_size, sums_in_slices, written_in_slices
from backgpt.slices import Slices
from backgpt.tokenizer import WHITE_SPACE

BRIDGES_TRIED = 8
"""How many texts are written for one that is kept."""
ACROSS = 10  # ids behind a seam that are scored
AT_SEAM = 3  # how many times the first of them counts: each other one has that before it to go by
CONSIDERED = 16  # places for a seam, of a text, that both models are asked about
_OPEN_EDGE = re.compile(r"(?<!\S)[\"'“‘«]$")
_OPENED = frozenset(f" {mark}" for mark in "\"'“‘«")


@dataclass(frozen=True)
class Bridge:
    """A text from `opening` to `ending`; `middle` is all between them, white space included.

    The seam is where the middle meets the text that was put in its place: the opening if a
    backward model wrote the middle, otherwise the ending. `logprob`, in nats, is how well all goes
    together: log p of the text that was put there by the writer, and by the other model of the
    first ids behind it, the very first counted `AT_SEAM` times, and of the other given text;
    bridges of the same texts compare by it.
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


def check_given(opening: str, ending: str) -> None:
    """Raise UsageError if a text is empty, or no text."""
    for name, text in (("opening", opening), ("ending", ending)):
        check_text(name, text)
        if not text.strip():
            raise UsageError(f"the {name} is empty: give some words")


def room_for_middle(writer: Runner, reader: Runner, opening: str, ending: str) -> int:
    """Return how many ids a middle can have so that both models can be asked about the whole.

    Raises UsageError if it can have none.
    """
    tokenizer = writer.language.tokenizer
    given = len(tokenizer.encode(opening)) + len(tokenizer.encode_fragment(ending))
    # The marker that is written last is not read.
    most = min(context_size(writer), context_size(reader)) - 1
    if given >= most:
        raise TooLongError(
            f"the opening and the ending are {given} ids long, the models read at most {most} "
            "with what is between them: give shorter ones"
        )
    return most - given


def join(
    writer: Runner,
    reader: Runner,
    texts: Sequence[Text],
    far: str,
    hints: Hints = NO_HINTS,
    *,
    together: int = SCORED_TOGETHER,
) -> Slices[list[Bridge]]:
    """Join each of `texts`, that `writer` wrote from one given text, to the other one, `far`.

    `reader` runs the other way. Of the places between two words where most of `hints` are obeyed,
    and of those the ones that the reader likes best, a text is cut at the one with the greatest sum
    of the writer's log p of `far` and its marker, and the reader's of the first ids behind the
    seam. Slices are of about `together` ids. Raises UsageError if a text does not fit; one of at
    most `room_for_middle` ids does.
    """
    cuttings: list[_Cutting] = []
    for text in texts:
        cuttings.append(_Cutting(writer.language, text, far, hints))
        yield  # judging every place by hints takes a while
    seams = [_Seam(one, place) for one in cuttings for place in one.places]

    read, write = reader.language.row, writer.language.row
    across = [read(*seam.cutting.around(seam.place), to_the_edge=False) for seam in seams]
    likings = yield from _likings(reader, across, together)
    seams = _best_of_each_text(seams, likings, most=CONSIDERED)

    at_far = [write(*seam.cutting.at_far(seam.place)) for seam in seams]
    sums = yield from sums_in_slices(writer, at_far, together=together)
    seams = _best_of_each_text(seams, sums, most=1)

    at_given = [read(*seam.cutting.at_given(seam.place)) for seam in seams]
    sums = yield from sums_in_slices(reader, at_given, together=together)
    seams = _best_of_each_text(seams, sums, most=1)
    return [seam.cutting.bridge(seam.place, seam.logprob) for seam in seams]


def best_bridges(bridges: Sequence[Bridge], hints: Hints) -> list[int]:
    """Return which of `bridges` are best, best first: of those that obey most, the best joined."""

    def goodness(place: int) -> tuple[int, float]:
        bridge = bridges[place]
        return sum(hints.obeyed_by(bridge.text).values()), bridge.logprob

    return sorted(range(len(bridges)), key=goodness, reverse=True)


def _likings(reader: Runner, rows: Sequence[Row], together: int) -> Slices[list[float]]:
    """Return log p in nats of `ACROSS` ids that are as likely as the written ones of each row.

    There are fewer where the given text is near, and such a place would be liked for that alone.
    The first id counts as `AT_SEAM`.
    """
    scored = yield from written_in_slices(reader.engine, rows, together=together)
    return [
        float(ACROSS * values.mean(dtype=np.float64) + (AT_SEAM - 1) * values[0])
        for values in scored
    ]


@dataclass(frozen=True)
class _Seam:
    """A place where a text may be cut; `logprob`, in nats, is how well all goes together there."""

    cutting: "_Cutting"
    place: int
    logprob: float = 0.0


def _best_of_each_text(seams: Sequence[_Seam], gains: Sequence[float], *, most: int) -> list[_Seam]:
    """Return the `most` best seams of each text, when `gains` are added; texts in their order."""
    grown = [
        replace(seam, logprob=seam.logprob + gain) for seam, gain in zip(seams, gains, strict=True)
    ]
    best: list[_Seam] = []
    for _, of_text in groupby(grown, key=lambda seam: seam.cutting):
        by_goodness = sorted(of_text, key=lambda seam: (seam.logprob, seam.place), reverse=True)
        best += by_goodness[:most]
    return best


class _Cutting:
    """A written text, and what it would be if it were cut and the other text put in its place.

    `places`, at least one, are between two words, where most of `hints` are obeyed: before the id
    with that number in reading order.
    """

    def __init__(self, language: Language, text: Text, far: str, hints: Hints) -> None:
        self._language, self._text = language, text
        self._leftward = language.direction == "backward"
        self._opening, self._ending = (far, text.given) if self._leftward else (text.given, far)
        tokenizer = language.tokenizer
        # The space at the end of an opening is the one that the next word begins with.
        is_left = self._leftward or tokenizer.added_spaces == "line"
        opening = self._opening.removesuffix(" ") if is_left else self._opening
        self._opening_ids = tokenizer.encode(opening)
        self._ending_ids = tokenizer.encode_fragment(self._ending)
        self._ids = language.order.to_reading(text.ids)
        self.places = self._obeying_most(hints, self._between_words())

    def at_far(self, place: int) -> Parts:
        """Return the text that is cut at `place` in two parts that meet at the seam."""
        return self._after_opening(place) if self._leftward else self._before_ending(place)

    def at_given(self, place: int) -> Parts:
        """Return the text that is cut at `place` in two parts that meet at the given text."""
        return self._before_ending(place) if self._leftward else self._after_opening(place)

    def around(self, place: int) -> Parts:
        """Return the text that was put there and the first ids behind it, in reading order."""
        before, after = self.at_far(place)
        if self._leftward:
            return before, ReadingIds(after[:ACROSS])
        return ReadingIds(before[-ACROSS:]), after

    def bridge(self, place: int, logprob: float) -> Bridge:
        """Return the text that is cut at `place`."""
        return Bridge(
            opening=self._opening,
            middle=self._middle(place),
            ending=self._ending,
            logprob=logprob,
            seed=self._text.seed,
            finish_reason=self._text.finish_reason,
        )

    def _after_opening(self, place: int) -> Parts:
        return self._opening_ids, ReadingIds(joined(self._kept(place), self._ending_ids))

    def _before_ending(self, place: int) -> Parts:
        return ReadingIds(joined(self._opening_ids, self._kept(place))), self._ending_ids

    def _kept(self, place: int) -> ReadingIds:
        return ReadingIds(self._ids[place:] if self._leftward else self._ids[:place])

    def _between_words(self) -> list[int]:
        """Return the places that leave a middle, or the one that leaves none.

        White space that the other text has at its edge is all that stands at the seam. Behind a
        mark that opens a quotation is none where what was written has such a mark, too.
        """
        starts = np.flatnonzero(self._language.tokenizer.starts_group[self._ids])
        places, last = [int(place) for place in starts], len(self._ids)
        if self._leftward:
            if self._opening.endswith((" ", "\n")):
                places = [place for place in places if self._bytes(place).startswith(b" ")]
            elif self._language.ids_leftward and _OPEN_EDGE.search(self._opening):
                places = self._behind_opening_quotes() or places
            return places or [last]
        if self._text.finish_reason == "stop":  # otherwise the last word may not be whole
            places.append(last)
        places = [place for place in places if place]
        if self._ending.startswith((" ", "\n")):
            places = [p for p in places if self._bytes(p - 1)[-1] not in WHITE_SPACE]
        return places or [0]

    def _behind_opening_quotes(self) -> list[int]:
        starts = self._language.tokenizer.starts_group[self._ids]
        return [
            place
            for place in range(1, len(self._ids))
            if not starts[place] and self._bytes(place - 1).decode(errors="ignore") in _OPENED
        ]

    def _obeying_most(self, hints: Hints, places: list[int]) -> list[int]:
        """Return those of `places` where the whole text obeys most of `hints`."""
        if not hints:
            return places
        decode = self._language.tokenizer.decode
        wholes = (f"{self._opening} {decode(self._kept(one))} {self._ending}" for one in places)
        obeyed = [sum(hints.obeyed_by(whole).values()) for whole in wholes]
        most = max(obeyed)
        return [one for one, n in zip(places, obeyed, strict=True) if n == most]

    def _bytes(self, place: int) -> bytes:
        return self._language.tokenizer.token_bytes[int(self._ids[place])]

    def _middle(self, place: int) -> str:
        """Return all between the opening and the ending, the white space at both edges included."""
        kept = self._kept(place)
        if self._leftward:
            whole = self._written(kept, self._opening_ids)
            if whole.startswith(self._opening):
                return whole.removeprefix(self._opening)
        else:
            whole = self._written(kept, self._ending_ids)
            if whole.endswith(self._ending):
                return whole.removesuffix(self._ending)
        # White space of the two has become one, or the tokenizer loses some.
        middle = self._written(kept)
        before, after = (self._opening, middle) if self._leftward else (middle, self._ending)
        space = "" if before[-1:].isspace() or after[:1].isspace() else " "
        return space + middle if self._leftward else middle + space

    def _written(self, *parts: ReadingIds) -> str:
        """Return the text that these ids make next to the given one, as the model writes them."""
        language = self._language
        writer = Writer(language, language.prompt(self._text.given, at_edge=True))
        for ids in parts:
            for id_ in language.order.to_model(ids):
                writer.push(int(id_))
        writer.finish("stop")
        return writer.written
