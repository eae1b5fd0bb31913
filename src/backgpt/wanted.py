"""Words that a text should have: until it has them, they are likelier than the model finds them.

Takes the words that are missing and the ids as they are drawn; adds to logits. Small models that
are told of words (see `hints`) mostly forget them, and others were never taught to hear. A bias on
the ids that a missing word goes on with, wherever it could stand, multiplies odds: it comes true
where the model likes it best, and what does not fit at all stays unlikely. (Keyword bias as in
Pascual et al. 2021, "A Plug-and-Play Method for Controlled Text Generation", without likenesses
between words.)
"""

import numpy as np
import numpy.typing as npt

from backgpt.hints import occurs
from backgpt.language import Language, Prompt
from backgpt.tokenizer import joins_left

BIAS, FIRST_OF_MANY = 6.0, 4.0
"""Nats that are added to the logit of an id; the latter to the first drawn of several, which many
other words may have, as nearly anything can stand before `ing`. LOG.md has what others do."""

_Ids = tuple[int, ...]


class WantedWords:
    """The words that one sample has still to get, and how far it has come with them.

    Copies share nothing that changes.
    """

    def __init__(self, language: Language, prompt: Prompt) -> None:
        self._missing = {word: _spellings(language, word) for word in prompt.words}
        if not self._missing:
            return
        self._bytes = language.tokenizer.token_bytes
        self._starts_group = language.tokenizer.starts_group
        self._leftward = language.leftward
        # Of the text from one white space to the next, as far as it is known.
        whole = language.by_word and language.unit != "text"  # words
        self._group = b"" if whole else self._unfinished(prompt.ids.tolist())
        self._begun: list[tuple[_Ids, int]] = []  # with how many of its ids are drawn
        self._beginnings = self._may_begin()

    def push(self, logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return (V,) logits in which what the missing words go on with is likelier."""
        if not self._missing:
            return logits
        added: dict[int, float] = {}
        for ids in self._beginnings:
            added[ids[0]] = max(added.get(ids[0], 0.0), BIAS if len(ids) == 1 else FIRST_OF_MANY)
        added |= {ids[n_drawn]: BIAS for ids, n_drawn in self._begun}
        pushed = logits.copy()
        pushed[list(added)] += list(added.values())
        return pushed

    def take(self, id_: int) -> None:
        """Take the id that was drawn."""
        if not self._missing:
            return
        begun = [(ids, n + 1) for ids, n in self._begun if ids[n] == id_]
        begun += [(ids, 1) for ids in self._beginnings if ids[0] == id_]
        self._begun = [(ids, n) for ids, n in begun if n < len(ids)]
        data, starts = self._bytes[id_], bool(self._starts_group[id_])
        if self._leftward:
            self._group = data + self._group
        if starts:
            self._end_group()
        if not self._leftward:
            self._group += data
        self._beginnings = self._may_begin()

    def _may_begin(self) -> list[_Ids]:
        """Return the spellings that may begin here, of words that are not just being written."""
        group = _lowered(self._group)
        if self._leftward and joins_left(group):
            return []
        return [
            ids
            for word, spellings in self._missing.items()
            if not occurs(word, group)
            for ids in spellings
        ]

    def _end_group(self) -> None:
        group, self._group = _lowered(self._group), b""
        self._missing = {w: ids for w, ids in self._missing.items() if not occurs(w, group)}

    def _unfinished(self, ids: list[int]) -> bytes:
        """Return what a given text has of the group that is gone on with."""
        if self._leftward:
            return b"" if self._starts_group[ids[-1]] else self._bytes[ids[-1]]
        start = max((place for place, id_ in enumerate(ids) if self._starts_group[id_]), default=0)
        return b"".join(self._bytes[id_] for id_ in ids[start:])


def _spellings(language: Language, word: str) -> tuple[_Ids, ...]:
    """Return the ids, in model order, of a word as it is, in lower case and with a capital."""
    spelled = dict.fromkeys((word, word.lower(), word[:1].upper() + word[1:].lower()))
    same = [one for one in spelled if occurs(word, one.lower())]  # the capital of ß is SS
    return tuple(tuple(language.word_ids(one).tolist()) for one in same)


def _lowered(data: bytes) -> str:
    return data.decode("utf-8", errors="replace").lower()
