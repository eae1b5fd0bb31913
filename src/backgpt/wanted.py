"""Words that a text should have: until it has them, they are likelier than the model finds them.

Takes the words that are missing and the ids as they are drawn; adds to logits. Small models that
are told of words (see `hints`) mostly forget them. A bias on the ids that a missing word goes on
with, wherever it could stand, multiplies odds: it comes true where the model likes it best, and
what does not fit at all stays unlikely. (Keyword bias as in Pascual et al. 2021, "A Plug-and-Play
Method for Controlled Text Generation", without likenesses between words.)
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from backgpt.hints import occurs
from backgpt.language import Language, Prompt

BIAS = 6.0
"""Nats that are added to the logit of an id; LOG.md says what other values do."""

_Ids = tuple[int, ...]


class WantedWords:
    """The words that one sample has still to get, and how far it has come with them.

    The first id drawn of a word of k gets a k-th of the bias: many other words may have it, as
    nearly anything can stand before `ing`. The others get all of it.
    """

    def __init__(self, language: Language, prompt: Prompt) -> None:
        self._missing = {word: _spellings(language, word) for word in prompt.words}
        if not self._missing:
            return
        self._bytes = language.tokenizer.token_bytes
        self._starts_group = language.tokenizer.starts_group
        self._leftward = language.direction == "backward" and not language.by_word
        self._group = b""  # what is drawn of the text from one white space to the next
        self._may_begin = self._is_edge(int(prompt.ids[-1]))
        self._begun: list[tuple[_Ids, int]] = []  # with how many of its ids are drawn

    def push(self, logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return (V,) logits in which what the missing words go on with is likelier."""
        if not self._missing:
            return logits
        added: dict[int, float] = {}
        for ids in self._beginnings():
            added[ids[0]] = max(added.get(ids[0], 0.0), BIAS / len(ids))
        added |= {ids[n_drawn]: BIAS for ids, n_drawn in self._begun}
        pushed = logits.copy()
        pushed[list(added)] += list(added.values())
        return pushed

    def take(self, id_: int) -> None:
        """Take the id that was drawn."""
        if not self._missing:
            return
        begun = [(ids, n + 1) for ids, n in self._begun if ids[n] == id_]
        begun += [(ids, 1) for ids in self._beginnings() if ids[0] == id_]
        self._begun = [(ids, n) for ids, n in begun if n < len(ids)]
        data, starts = self._bytes[id_], bool(self._starts_group[id_])
        if self._leftward:
            self._group = data + self._group
        if starts:
            self._end_group()
        if not self._leftward:
            self._group += data
        self._may_begin = self._is_edge(id_)

    def _beginnings(self) -> Iterator[_Ids]:
        """Yield the spellings that may begin here, of words that are not just being written."""
        if self._may_begin:
            group = _lowered(self._group)
            for word, spellings in self._missing.items():
                if not occurs(word, group):
                    yield from spellings

    def _end_group(self) -> None:
        group, self._group = _lowered(self._group), b""
        self._missing = {w: ids for w, ids in self._missing.items() if not occurs(w, group)}

    def _is_edge(self, id_: int) -> bool:
        """Return whether a word can end to the left of an id; to the right one can always begin."""
        first = self._bytes[id_].decode("utf-8", errors="replace")[:1]
        return not self._leftward or not (first.isalnum() or first in ("'", "\ufffd"))


def _spellings(language: Language, word: str) -> tuple[_Ids, ...]:
    """Return the ids, in model order, of a word as it is, in lower case and with a capital."""
    spelled = dict.fromkeys((word, word.lower(), word[:1].upper() + word[1:].lower()))
    return tuple(tuple(language.word_ids(one).tolist()) for one in spelled)


def _lowered(data: bytes) -> str:
    return data.decode("utf-8", errors="replace").lower()
