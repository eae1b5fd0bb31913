"""The likeliest words directly before a text: what else could stand there.

Takes what runs and a prompt; gives whole words, likeliest first. A word may be several ids, so
words are searched for from the likeliest beginning on: those that are found are certain when no
unfinished one is likelier.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from backgpt.checks import whole
from backgpt.engine import Engine, FloatArray
from backgpt.errors import UsageError
from backgpt.generate import Writer
from backgpt.language import Language, Prompt
from backgpt.running import Job, barred_ids, room_for
from backgpt.sampling import Sampling, likeliest
from backgpt.score import Runner
from backgpt.slices import Slices

EXPANDED_TOGETHER = 16  # unfinished words in one slice
MOST_SLICES = 8
MOST_IDS = 16  # of a word
LEAST_CONSIDERED = 64  # ids that may go on an unfinished word


@dataclass(frozen=True)
class Alternative:
    """A word that may stand directly before a text, as `text` to put in front of it.

    White space between the two is part of it; a space before the word is not, for a line break
    may take its place. With `edge` the text would begin with the word, or, if that is empty, as it
    is. `logprob` is in nats.
    """

    text: str
    logprob: float
    edge: bool = False

    @property
    def probability(self) -> float:
        """Its probability."""
        return float(np.exp(self.logprob))


@dataclass(frozen=True)
class _Word:
    """A word as far as it is found: its ids in model order, and whether it is whole."""

    logprob: float
    ids: tuple[int, ...] = ()
    whole: bool = False
    edge: bool = False


def find_alternatives(runner: Runner, prompt: Prompt, n: int) -> Slices[list[Alternative]]:
    """Search the `n` likeliest words before a prompt's text, slice by slice.

    Raises UsageError for a forward model, and a prompt that does not fit.
    """
    engine, language = runner.engine, runner.language
    if language.direction == "forward":
        raise UsageError("a forward model does not know what stands before: use a backward one")
    room = room_for(engine, Job(language, prompt, sampling=Sampling()))
    search = _Search(language, prompt, whole("n", n, least=1))
    rows, logits = engine.prefill(prompt.ids)
    engine.release(rows)
    search.go_on(_Word(0.0), logits)
    for _ in range(MOST_SLICES):
        words = search.promising(longest=min(room, MOST_IDS))
        if not words:
            break
        yield
        for word, row in zip(words, _read(engine, prompt, words), strict=True):
            search.go_on(word, row)
    return search.found()


class _Search:
    """Words that are found, and those that are not finished."""

    def __init__(self, language: Language, prompt: Prompt, n: int) -> None:
        self._language, self._prompt, self._n = language, prompt, n
        self._starts = language.tokenizer.starts_group
        self._has_letters = np.array(
            [bool(data.strip()) for data in language.tokenizer.token_bytes], dtype=np.bool_
        )
        self._barred = barred_ids(language, prompt)
        self._whole: list[_Word] = []
        self._unfinished: list[_Word] = []

    def promising(self, *, longest: int) -> list[_Word]:
        """Take out the unfinished words, of some, that are likelier than the last one wanted."""
        self._whole = _likeliest_words(self._whole)
        least = self._whole[self._n - 1].logprob if len(self._whole) >= self._n else -np.inf
        words = _likeliest_words(
            word for word in self._unfinished if word.logprob > least and len(word.ids) < longest
        )
        self._unfinished = words[EXPANDED_TOGETHER:]
        return words[:EXPANDED_TOGETHER]

    def go_on(self, word: _Word, logits: FloatArray) -> None:
        """Take what may follow an unfinished word, given (V,) logits after its last id."""
        barred = self._barred[1] if word.ids else self._barred[0]
        scores = logits[: len(barred)].astype(np.float64)
        allowed = scores + barred
        if self._language.by_word and word.ids:
            allowed = self._close(word, allowed, scores)
        for id_, logprob in likeliest(allowed, max(LEAST_CONSIDERED, 4 * self._n), scores):
            total = word.logprob + logprob
            if id_ in self._prompt.stops:
                self._whole.append(_Word(total, word.ids, whole=True, edge=True))
                continue
            ids = (*word.ids, id_)
            whole = self._starts[id_] and self._has_letters[list(ids)].any()
            grown = _Word(total, ids, whole=bool(whole) and not self._language.by_word)
            (self._whole if grown.whole else self._unfinished).append(grown)

    def found(self) -> list[Alternative]:
        """Return the words that are wanted; those that read alike are one."""
        logprobs: dict[tuple[str, bool], float] = {}
        for word in self._whole:
            key = (self._text(word), word.edge)
            logprobs[key] = np.logaddexp(logprobs.get(key, -np.inf), word.logprob)
        found = [Alternative(text, float(p), edge) for (text, edge), p in logprobs.items()]
        return sorted(found, key=lambda one: -one.logprob)[: self._n]

    def _close(
        self, word: _Word, allowed: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Take a word, in the word unit, as whole where another begins; return what else may be.

        There an id that begins a word says only that the one before it has ended. White space
        alone is none: the word in front of it goes on with it.
        """
        ends = self._starts & np.isfinite(allowed)
        if not self._has_letters[list(word.ids)].any():
            return allowed
        top = scores.max()
        share = np.exp(scores[ends] - top).sum() / np.exp(scores - top).sum()
        if share > 0:
            total = word.logprob + float(np.log(share))
            self._whole.append(_Word(total, word.ids, whole=True))
        return np.where(ends, -np.inf, allowed)

    def _text(self, word: _Word) -> str:
        writer = Writer(self._language, self._prompt)
        text = ""
        for id_ in word.ids:
            text = writer.push(id_) + text
        return writer.finish("stop") + text


def _read(engine: Engine, prompt: Prompt, words: Sequence[_Word]) -> list[FloatArray]:
    """Return the logits after the prompt and each word, (V,) each."""
    rows, _ = engine.prefill(prompt.ids, len(words))
    try:
        logits: list[FloatArray] = [np.zeros(0)] * len(words)
        for place in range(max(len(word.ids) for word in words)):
            going = [number for number, word in enumerate(words) if len(word.ids) > place]
            read = engine.step([rows[i] for i in going], [words[i].ids[place] for i in going])
            for number, row in zip(going, read, strict=True):
                logits[number] = row
        return logits
    finally:
        engine.release(rows)


def _likeliest_words(words: "Sequence[_Word] | Iterator[_Word]") -> list[_Word]:
    return sorted(words, key=lambda word: -word.logprob)
