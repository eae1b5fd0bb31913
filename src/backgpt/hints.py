"""Hints: what a model can be told about a text before it writes it.

A hint is a kind and a text. Given by a user, it asks for something; in training it is drawn from
the document itself, so that obeying it is simply predicting well.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from backgpt.errors import UsageError

Kind = Literal["opening", "words", "length", "question", "context"]
Length = Literal["short", "medium", "long"]

LENGTHS: tuple[Length, ...] = get_args(Length)
LENGTH_LIMITS = (130, 180)
"""Words up to which a text is short and medium; of TinyStories 30, 50 and 20 % are each."""
MOST_WORDS = 4
MOST_ASKED = 16  # words; a text that has more of them is another text
OPENING_WORDS = (2, 12)

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_LEAST_LETTERS = 4
_FREQUENT = frozenset(
    {"that", "this", "they", "them", "their", "there", "then", "than", "these", "those", "here"}
    | {"with", "were", "from", "have", "been", "will", "would", "could", "wasn't", "didn't", "it's"}
    | {"what", "when", "where", "while", "your", "into", "about", "some", "very", "just", "more"}
    | {"said", "because", "upon", "after", "before", "other", "himself", "herself"}
)
_PROBABILITY: dict[Kind, float] = {"opening": 0.4, "words": 0.5, "length": 0.4}


@dataclass(frozen=True)
class Hints:
    """What is asked of a text: how it begins, words it must hold, how long it is.

    Of `words` one may be several that follow each other, such as a name. Raises UsageError for a
    length that is none of `LENGTHS`, an empty opening or word, or more than 16 words in all.
    """

    opening: str | None = None
    words: tuple[str, ...] = ()
    length: Length | None = None

    def __post_init__(self) -> None:
        if self.length is not None and self.length not in LENGTHS:
            raise UsageError(f"length = {self.length!r}: choose one of {', '.join(LENGTHS)}")
        if self.opening is not None and not self.opening.strip():
            raise UsageError("the opening is empty: give some words, or leave it out")
        if any(not word.strip() for word in self.words):
            raise UsageError(f"words = {', '.join(self.words)!r}: one of them is empty")
        count = len(" ".join(self.each_word).split())
        if count > MOST_ASKED:
            raise UsageError(f"{count} words: ask for at most {MOST_ASKED}")

    def __bool__(self) -> bool:
        return self != NO_HINTS

    def texts(self) -> Iterator[tuple[Kind, str]]:
        """Yield each hint's kind and text, in the order in which a model reads them."""
        if self.length is not None:
            yield "length", self.length
        if self.words:
            yield "words", straight(" ".join(self.each_word).lower())
        if self.opening is not None:
            yield "opening", self.opening

    def obeyed_by(self, text: str) -> dict[Kind, bool]:
        """Return for each hint that is given whether `text` does as it says.

        A word counts whatever its case, and only as a whole word, as does the last one of an
        opening.
        """
        obeyed: dict[Kind, bool] = {}
        if self.length is not None:
            obeyed["length"] = length_of(text) == self.length
        if self.words:
            obeyed["words"] = not self.missing_words(text)
        if self.opening is not None:
            rest = text.removeprefix(self.opening)
            goes_on = self.opening[-1].isalnum() and rest[:1].isalnum()
            obeyed["opening"] = text.startswith(self.opening) and not goes_on
        return obeyed

    def missing_words(self, text: str) -> tuple[str, ...]:
        """Return those of the words, as they were given, that do not occur in `text`."""
        lowered = text.lower()
        return tuple(word for word in self.each_word if not occurs(word, lowered))

    @property
    def each_word(self) -> tuple[str, ...]:
        """The words, each once, with one space between several that follow each other."""
        return tuple(dict.fromkeys(" ".join(word.split()) for word in self.words))


NO_HINTS = Hints()


def words_of(text: str) -> list[str]:
    """Return the words of a text: runs of letters, with an apostrophe inside."""
    return _WORD.findall(text)


def length_of(text: str) -> Length:
    """Return the length class of a text, by its number of words."""
    count = len(words_of(text))
    return LENGTHS[sum(count > limit for limit in LENGTH_LIMITS)]


def range_of(length: Length) -> tuple[int, float]:
    """Return the least and the most words of a text of that length class."""
    place = LENGTHS.index(length)
    return (0, *(n + 1 for n in LENGTH_LIMITS))[place], (*LENGTH_LIMITS, float("inf"))[place]


def content_words(text: str) -> set[str]:
    """Return the words of a text, lower-cased, but for those that are short or frequent."""
    found = {word for word in words_of(text.lower()) if len(word) >= _LEAST_LETTERS}
    return found - _FREQUENT


def draw_hints(text: str, random: np.random.Generator) -> Hints:
    """Return hints that `text` obeys, drawn from it: perhaps one, perhaps several, perhaps none.

    The words are lower-cased and in any order, none so short or frequent that nobody would ask
    for it; the opening ends between two words.
    """
    wanted = {kind: random.random() < share for kind, share in _PROBABILITY.items()}
    opening, words = None, ()
    if wanted["opening"]:
        count = int(random.integers(OPENING_WORDS[0], OPENING_WORDS[1] + 1))
        match = re.match(rf"\S+(?: \S+){{0,{count - 1}}}", text)
        opening = match.group() if match else None
    if wanted["words"]:
        choice = sorted(content_words(text))
        count = min(int(random.integers(1, MOST_WORDS + 1)), len(choice))
        words = tuple(choice[i] for i in random.choice(len(choice), count, replace=False))
    length = length_of(text) if wanted["length"] else None
    return Hints(opening=opening, words=words, length=length)


def occurs(word: str, lowered: str) -> bool:
    """Return whether a word, whatever its case, occurs as a whole in a text in lower case.

    What is not one word of letters, such as `r2d2`, `3` or several words that follow each other,
    must have no letter or digit joined on; the white space between several may be any. Its
    apostrophe may be straight in the text.
    """
    word = word.lower()
    if word != straight(word) and occurs(straight(word), lowered):
        return True
    parts = word.split()
    if any(part not in lowered for part in parts):
        return False
    if _WORD.fullmatch(word):
        return word in words_of(lowered)
    before, after = r"(?:(?<!\w)|(?!\w))", r"(?:(?!\w)|(?<!\w))"  # nothing joins on a mark
    return re.search(before + r"\s+".join(map(re.escape, parts)) + after, lowered) is not None


def straight(text: str) -> str:
    """Return a text with the apostrophes of a typewriter, where a phone writes curved ones."""
    return text.replace("’", "'")
