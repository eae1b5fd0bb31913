"""What a text should have: words, and a length.

Takes what is wanted and the ids as they are drawn; adds to logits. Small models that are told of it
(see `hints`) mostly forget it, and others were never taught to hear. A bias multiplies odds: what
is wanted comes true where the model likes it best, and what does not fit at all stays unlikely.

- Words are likelier than the model finds them until the text has them: a bias on the ids that a
  missing word goes on with, wherever it could stand. (Keyword bias as in Pascual et al. 2021, "A
  Plug-and-Play Method for Controlled Text Generation", without likenesses between words.)
- The text's edge is less likely while it is too short, and likelier as it gets too long, where a
  sentence ends there, or begins for a model that writes leftward.
"""

from abc import ABC, abstractmethod

from backgpt.hints import Length, occurs, range_of, words_of
from backgpt.language import Language, Prompt
from backgpt.sampling import Floats
from backgpt.tokenizer import joins_left

BIAS, FIRST_OF_MANY = 6.0, 4.0
"""Nats that are added to the logit of an id; the latter to the first drawn of several, which many
other words may have, as nearly anything can stand before `ing`. LOG.md has what others do."""
TOO_SHORT, TOO_LONG = -10.0, 12.0
"""Nats that are added to the logit of the edge. LOG.md has what others do."""
NEARLY = 60
"""Words before a text is too long; over them the bias grows from nothing."""

_OPENING, _CLOSING, _ENDS = tuple("\"'“‘«„"), "\"'”’»", tuple(".!?…。！？")

_Ids = tuple[int, ...]


class Wanted(ABC):
    """What one sample is still to get. Copies share nothing that changes.

    Follows the text from one white space to the next: `_group` is what is known of the last word.
    """

    def __init__(self, language: Language, prompt: Prompt) -> None:
        self._bytes = language.tokenizer.token_bytes
        self._starts_group = language.tokenizer.starts_group
        self._leftward = language.leftward
        self._group = b""
        for id_ in prompt.ids[prompt.n_first :].tolist():
            self._follow(id_)

    @abstractmethod
    def push(self, logits: Floats) -> Floats:
        """Return (V,) logits in which what is wanted is likelier."""

    def take(self, id_: int) -> None:
        """Take the id that was drawn."""
        self._follow(id_)

    def _follow(self, id_: int) -> None:
        data, starts = self._bytes[id_], bool(self._starts_group[id_])
        if self._leftward:
            self._group = data + self._group
        if starts:
            self._end_group(_text(self._group))
            self._group = b""
        if not self._leftward:
            self._group += data

    @abstractmethod
    def _end_group(self, group: str) -> None:
        """Take a word, and what is joined to it, that is whole now."""


def all_wanted(language: Language, prompt: Prompt) -> list[Wanted]:
    """Return what the text that begins with `prompt` is to get."""
    wanted: list[Wanted] = []
    if prompt.words:
        wanted.append(WantedWords(language, prompt))
    if prompt.length is not None:
        wanted.append(WantedLength(language, prompt, prompt.length))
    return wanted


class WantedWords(Wanted):
    """The words that are missing, and how far the text has come with them."""

    def __init__(self, language: Language, prompt: Prompt) -> None:
        self._missing = {word: _spellings(language, word) for word in prompt.words}
        super().__init__(language, prompt)
        self._begun: list[tuple[_Ids, int]] = []  # with how many of its ids are drawn
        self._beginnings = self._may_begin()

    def push(self, logits: Floats) -> Floats:
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
        begun = [(ids, n + 1) for ids, n in self._begun if ids[n] == id_]
        begun += [(ids, 1) for ids in self._beginnings if ids[0] == id_]
        self._begun = [(ids, n) for ids, n in begun if n < len(ids)]
        self._follow(id_)
        self._beginnings = self._may_begin()

    def _may_begin(self) -> list[_Ids]:
        """Return the spellings that may begin here, of words that are not just being written."""
        group = _text(self._group).lower()
        if self._leftward and joins_left(group):
            return []
        return [
            ids
            for word, spellings in self._missing.items()
            if not occurs(word, group)
            for ids in spellings
        ]

    def _end_group(self, group: str) -> None:
        lowered = group.lower()
        self._missing = {w: ids for w, ids in self._missing.items() if not occurs(w, lowered)}


class WantedLength(Wanted):
    """How many words the text may have, and has."""

    def __init__(self, language: Language, prompt: Prompt, length: Length) -> None:
        self._least, self._most = range_of(length)
        self._edges = list(prompt.stops.later)
        self._backward = language.direction == "backward"
        self._n_words, self._n_quotes, self._last = 0, 0, ""
        super().__init__(language, prompt)

    def push(self, logits: Floats) -> Floats:
        """Return (V,) logits in which the edge is likelier, or less likely."""
        n_words = self._n_words + len(words_of(_text(self._group)))
        too_long = min(1.0, 1 - (self._most - n_words) / NEARLY)
        if n_words < self._least:
            added = TOO_SHORT
        elif too_long > 0 and self._may_end():
            added = TOO_LONG * too_long
        else:
            return logits
        pushed = logits.copy()
        pushed[self._edges] += added
        return pushed

    def _may_end(self) -> bool:
        """Return whether the growing edge looks like that of a text, and is in no quotation."""
        group = _text(self._group)
        if (self._n_quotes + group.count('"')) % 2:
            return False
        if not self._backward:
            return group.rstrip().rstrip(_CLOSING).endswith(_ENDS)
        first = (group or self._last).lstrip()[:1]
        return first.startswith(_OPENING) or (first.isalpha() and not first.islower())

    def _end_group(self, group: str) -> None:
        self._n_words += len(words_of(group))
        self._n_quotes += group.count('"')
        self._last = group


def _spellings(language: Language, word: str) -> tuple[_Ids, ...]:
    """Return the ids, in model order, of a word as it is, in lower case and with a capital."""
    spelled = dict.fromkeys((word, word.lower(), word[:1].upper() + word[1:].lower()))
    same = [one for one in spelled if occurs(word, one.lower())]  # the capital of ß is SS
    return tuple(tuple(language.word_ids(one).tolist()) for one in same)


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
