"""Verse: lines that end with given words, each written backward from its last word.

Takes a model that runs backward and the words; gives the lines. The last line is written
first, at the end of the text; then the one above it, with all that is below it given:

    given                             written in front of it
    play                              They went back to the park to
    day\\nThey went back to … play     They had a fun

A model of stories knows no lines. A line is what it writes up to where an earlier sentence or line
would end, and of several such lines the best is kept: one that begins and ends well, is neither
short nor long, likely, and does not say again what is said below it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from backgpt.checks import texts, whole
from backgpt.errors import UsageError
from backgpt.generate import Text, collect
from backgpt.hints import words_of
from backgpt.language import Language, Prompt
from backgpt.order import ModelIds
from backgpt.rhymes import rhymes_of
from backgpt.running import Job, room_for
from backgpt.sampling import Sampling
from backgpt.score import Runner, sums_written

LINES_TRIED = 8
"""How many lines are written for one that is kept."""
LEAST_WORDS, MOST_WORDS = 4, 11
"""How many words a line should have in front of its last one."""
MOST_IDS = 24
"""How many ids are drawn for a line at most."""
REPEATING_COSTS = 1.5
"""Nats per token that a line loses if each of its words is said before; if half of them, half."""
CHOICE = 4
"""Rhymes are drawn from so many times as many."""
RAREST_RHYME = 1e-6
"""A model does not know a word if it ends texts with it less often than that."""

# What stands before the beginning of a sentence or line, and so ends one that is written leftward.
_EARLIER_END = (
    *(mark + quote + " " for mark in ".!?" for quote in ("", '"', "'", "”", "’")),
    "\n",
)
_OPENING_QUOTES = "\"'“‘"


@dataclass(frozen=True)
class Verse:
    """Lines in reading order, each ending with its word of `end_words`, byte for byte.

    `logprob` is the log-probability, in nats, of everything drawn for these lines, with what
    showed that one is over: the end of a sentence before it, or what was cut off.
    """

    lines: tuple[str, ...]
    end_words: tuple[str, ...]
    logprob: float
    seed: int

    @property
    def text(self) -> str:
        """The lines, with a line break between any two."""
        return "\n".join(self.lines)


def write_verse(
    runner: Runner,
    end_words: Sequence[str],
    *,
    candidates: int = LINES_TRIED,
    sampling: Sampling,
    seed: int = 0,
) -> Verse:
    """Write a line for each of `end_words`, the best of so many `candidates`, the last one first.

    A word stands in its line as it is given, with the punctuation that it has; nothing that the
    model writes is altered. If no candidate ends by itself, one is cut off between two words. A
    verse may be longer than the context: then the lines nearest to a new one are given to it.
    Raises UsageError for a forward model, no words, an empty one or one with a line break, or one
    that does not fit, before anything is written.
    """
    engine, language = runner.engine, runner.language
    _refuse_forward(language)
    whole("candidates", candidates, least=1)
    end_words = texts("end words", end_words)
    _check(end_words)
    for word in end_words:
        prompt = language.prompt(word, at_edge=True)
        room_for(engine, Job(language, prompt, sampling=sampling))

    lines: list[str] = []
    below = _Below(language, engine.block_size)
    logprob = 0.0
    for number in range(len(end_words)):
        word = end_words[-1 - number]
        prompt = below.prompt(word)
        found = collect(
            engine,
            Job(
                language,
                prompt,
                n=candidates,
                sampling=sampling,
                max_new_tokens=MOST_IDS,
                seed=seed + number,
                stop=_EARLIER_END,
            ),
        )
        line = max((_line(language, text, word) for text in found), key=_Line.merit)
        lines.insert(0, line.text)
        below.add(line.text)
        logprob += line.logprob
    return Verse(tuple(lines), tuple(end_words), logprob, seed)


def rhyming_words(runner: Runner, word: str, n: int, *, seed: int = 0) -> list[str]:
    """Return `word` and `n - 1` of its perfect rhymes, all different, drawn by `seed`.

    They are drawn from the ones that the model would end a text with most often, each as often as
    it would; a rhyme that the model does not know is never drawn. Raises UsageError for a forward
    model, a word that the pronouncing dictionary does not have, or one with fewer rhymes, and
    MissingExtraError without the dictionary.
    """
    _refuse_forward(runner.language)
    whole("n", n, least=1)
    rhymes = rhymes_of(word)
    probabilities = np.exp(_ending_logprobs(runner, rhymes))
    likeliest = np.argsort(-probabilities, kind="stable")[: CHOICE * n]
    known = likeliest[probabilities[likeliest] >= RAREST_RHYME]
    if len(known) < n - 1:
        advice = "ask for fewer or give another word" if len(known) else "give another word"
        raise UsageError(
            f"{n} words that rhyme with {word!r}: the model knows {len(known)} besides it, {advice}"
        )
    weights = probabilities[known] / probabilities[known].sum() if len(known) else None
    drawn = np.random.default_rng(seed).choice(known, n - 1, replace=False, p=weights)
    return [word, *(rhymes[int(place)] for place in drawn)]


class _Below:
    """The lines that stand below the next one, as far as they fit the context with it."""

    def __init__(self, language: Language, block_size: int) -> None:
        self._language, self._block_size = language, block_size
        self._lines: list[str] = []
        self._at_edge = True

    def add(self, line: str) -> None:
        """Put a line on top."""
        self._lines.insert(0, line)

    def prompt(self, end_word: str) -> Prompt:
        """Return the prompt for a line that ends with `end_word`; let go of lines that are far."""
        while True:
            text = "\n".join((end_word, *self._lines))
            prompt = self._language.prompt(text, at_edge=self._at_edge)
            if not self._lines or len(prompt.ids) + MOST_IDS <= self._block_size:
                return prompt
            self._lines.pop()
            self._at_edge = False


@dataclass(frozen=True)
class _Line:
    """One candidate: its text, how many of the things that make a line it has, and its price.

    `cost` is in nats per token.
    """

    text: str
    n_right: int
    cost: float
    logprob: float

    def merit(self) -> tuple[int, float]:
        """What the best candidate has most of; of equals the first is taken."""
        return self.n_right, -self.cost


def _line(language: Language, text: Text, end_word: str) -> _Line:
    """Judge what was written in front of a given text that begins with `end_word`."""
    written = text.text.removesuffix(text.given)
    if text.finish_reason == "length":
        written = _cut(language, text, written)
    line = written + end_word
    words = words_of(written.lower())
    right = (
        text.finish_reason == "stop",
        line.lstrip(_OPENING_QUOTES)[:1].isupper(),
        line.count('"') % 2 == 0 and line.count("“") == line.count("”"),
        LEAST_WORDS <= len(written.split()) <= MOST_WORDS,
        line not in text.given.split("\n"),
    )
    said = set(words_of(text.given.lower()))
    n_new = len(set(words) - said)
    repeated = (len(words) - n_new) / max(1, len(words))
    cost = -text.logprob / text.n_tokens + REPEATING_COSTS * repeated
    return _Line(line, sum(right), cost, text.logprob)


def _cut(language: Language, text: Text, written: str) -> str:
    """Return the last words that were written before the limit, whole ones and not too many."""
    words = list(re.finditer(r"\S+", written))
    # In the word unit a word that is not whole is not written.
    whole = language.by_word or not len(text.ids) or language.tokenizer.starts_group[text.ids[-1]]
    words = words[0 if whole else 1 :][-MOST_WORDS:]
    return written[words[0].start() :] if words else ""


def _ending_logprobs(runner: Runner, words: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return log p in nats, (len(words),), that a text ends with each word and a full stop."""
    language = runner.language
    given = language.prompt("", at_edge=True).ids
    ids = [language.tokenizer.encode_fragment(f"{word}.") for word in words]
    pairs = [(given, ModelIds(language.order.to_model(of_word))) for of_word in ids]
    return np.array(sums_written(runner, pairs), dtype=np.float64)


def _check(end_words: Sequence[str]) -> None:
    if not end_words:
        raise UsageError("there are no end words: give one for each line")
    for word in end_words:
        if not word.strip():
            raise UsageError(f"end words = {', '.join(end_words)!r}: one of them is empty")
        if "\n" in word or "\r" in word:
            raise UsageError(f"end word = {word!r}: it has a line break inside, give it as two")


def _refuse_forward(language: Language) -> None:
    if language.direction == "forward":
        raise UsageError("a forward model cannot begin with the end of a line: use a backward one")
