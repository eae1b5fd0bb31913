"""What a text should have: words, and a length.

Takes what is wanted and the ids as they are drawn; adds to logits. Small models that are told of it
(see `hints`) mostly forget it, and others were never taught to hear. A bias multiplies odds: what
is wanted comes true where the model likes it best, and what does not fit at all stays unlikely.

- Words are likelier than the model finds them until the text has them: a bias on the ids that a
  missing word goes on with, wherever it could stand but directly beside another that is wanted: it
  would draw all of them there. (Keyword bias as in Pascual et al. 2021, "A Plug-and-Play Method for
  Controlled Text Generation", without likenesses between words.)
- The text's edge is less likely while it is too short, and likelier as it gets too long, where a
  sentence ends there, or begins for a model that writes leftward.
"""

from abc import ABC, abstractmethod

from backgpt.hints import Length, occurs, range_of, straight, words_of
from backgpt.language import Language, Prompt
from backgpt.sampling import Floats
from backgpt.tokenizer import joins_left

BIAS, FIRST_OF_MANY, NEXT_WORD = 6.0, 4.0, 14.0
"""Nats that are added to the logit of an id. The second to the first drawn of a word of several,
which many other words may have, as nearly anything can stand before `ing`; the third where one word
that is to be followed by another is written. LOG.md has what others do."""
TOO_SHORT, TOO_LONG = -10.0, 12.0
"""Nats that are added to the logit of the edge. LOG.md has what others do."""
NEARLY = 60
"""Words before a text is too long; over them the bias grows from nothing."""

_OPENING, _CLOSING, _ENDS = tuple("\"'“‘«„"), "\"'”’»", tuple(".!?…。！？")

_Spelling = tuple[tuple[int, float], ...]
"""The ids of a word in model order, each with what is added to its logit."""


class Wanted(ABC):
    """What one sample is still to get. Copies share nothing that changes.

    Follows the text from one white space to the next: `_group` is what is known of the last word.
    """

    def __init__(self, language: Language, prompt: Prompt) -> None:
        self._bytes = language.tokenizer.token_bytes
        self._starts_group = language.tokenizer.starts_group
        self._ids_leftward = language.ids_leftward
        self._backward = language.direction == "backward"
        self._group = b""
        for id_ in prompt.ids[prompt.n_first :].tolist():
            self.take(id_)

    @abstractmethod
    def push(self, logits: Floats) -> Floats:
        """Return (V,) logits in which what is wanted is likelier."""

    def take(self, id_: int) -> None:
        """Take the id that was drawn."""
        data, starts = self._bytes[id_], bool(self._starts_group[id_])
        if self._ids_leftward:
            self._group = data + self._group
        if starts:
            self._end_group(_text(self._group))
            self._group = b""
        if not self._ids_leftward:
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
        nearest = 0 if language.direction == "backward" else -1
        self._neighbors = {word.split()[nearest] for word in prompt.words}
        self._last = ""  # the last word that is whole
        self._n_before = max(len(word.split()) for word in prompt.words) - 1
        self._before: tuple[str, ...] = ()  # words that several which follow each other may end in
        self._begun: list[tuple[_Spelling, int]] = []  # with how many of its ids are drawn
        self._beginnings = [one for spellings in self._missing.values() for one in spellings]
        super().__init__(language, prompt)
        # A word of the given text is whole; several may go on from it.
        self._begun = [(one, n) for one, n in self._begun if one[n][1] == NEXT_WORD]

    def push(self, logits: Floats) -> Floats:
        """Return (V,) logits in which what the missing words go on with is likelier."""
        if not self._missing:
            return logits
        added: dict[int, float] = {}
        for spelling, n_drawn in [*((one, 0) for one in self._beginnings), *self._begun]:
            id_, bias = spelling[n_drawn]
            added[id_] = max(added.get(id_, 0.0), bias)
        pushed = logits.copy()
        pushed[list(added)] += list(added.values())
        return pushed

    def take(self, id_: int) -> None:
        """Take the id that was drawn."""
        begun = [*self._begun, *((one, 0) for one in self._beginnings)]
        begun = [(one, n + 1) for one, n in begun if one[n][0] == id_]
        self._begun = [(one, n) for one, n in begun if n < len(one)]
        super().take(id_)
        self._beginnings = self._may_begin()

    def _may_begin(self) -> list[_Spelling]:
        """Return the spellings that may begin here, of words that are not just being written."""
        group = _text(self._group).lower()
        if self._ids_leftward and joins_left(group):
            return []
        whole = self._last if self._ids_leftward and not group.strip() else group
        if self._is_beside_wanted(whole.strip()):
            return []
        written = "".join(self._with_last(group))
        return [
            one
            for word, spellings in self._missing.items()
            if not occurs(word, written)
            for one in spellings
        ]

    def _is_beside_wanted(self, group: str) -> bool:
        """Return whether what stands beside the next word is a wanted one, with no mark between."""
        edge = group[:1] if self._backward else group[-1:]
        return edge.isalnum() and any(occurs(word, group) for word in self._neighbors)

    def _end_group(self, group: str) -> None:
        self._last = group.lower() if group.strip() else self._last
        last = self._with_last(group.lower())
        if self._before and not group.strip():  # more white space between two words
            if self._backward:
                self._before = ("".join(last[:2]), *last[2:])
            else:
                self._before = (*last[:-2], "".join(last[-2:]))
            return
        written = "".join(last)
        self._missing = {w: of for w, of in self._missing.items() if not occurs(w, written)}
        kept = len(last) - self._n_before
        self._before = last[: self._n_before] if self._backward else last[max(kept, 0) :]

    def _with_last(self, group: str) -> tuple[str, ...]:
        """Return a word and those next to it that may make several together, in reading order."""
        return (group, *self._before) if self._backward else (*self._before, group)


class WantedLength(Wanted):
    """How many words the text may have, and has."""

    def __init__(self, language: Language, prompt: Prompt, length: Length) -> None:
        self._least, self._most = range_of(length)
        self._edges = list(prompt.stops.later)
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


def _spellings(language: Language, word: str) -> tuple[_Spelling, ...]:
    """Return how a word is spelled: as it is and, unless that is a name, with a capital or without.

    A name is what has a capital, but not one word all in capitals. An apostrophe is straight, as in
    training.
    """
    word = straight(word)
    spelled = {word: None}
    if word == word.lower() or (word == word.upper() and not word.split()[1:]):
        spelled |= dict.fromkeys((word.lower(), word[:1].upper() + word[1:].lower()))
    same = [one for one in spelled if occurs(word, one.lower())]  # the capital of ß is SS
    return tuple(_spelling(language, one) for one in same)


def _spelling(language: Language, word: str) -> _Spelling:
    ids = language.word_ids(word).tolist()
    n_first = len(language.word_ids(word.split()[-1 if language.direction == "backward" else 0]))
    first = BIAS if n_first == 1 else FIRST_OF_MANY
    biases = [first, *[BIAS] * (n_first - 1), *[NEXT_WORD] * (len(ids) - n_first)]
    return tuple(zip(ids, biases, strict=True))


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
