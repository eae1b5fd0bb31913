"""How likely a model finds texts: log-probabilities, nats per token, bits per byte.

Both twins score the same ids of the same documents, one marker each, and so do their sums: each
is log P(document), which makes them comparable exactly.

A text longer than the context is scored in windows. It is cut at the same reading positions for
both, each id is a target once, and a window reads some of what stands on the side that the model
comes from. Cut at 2 and 5, with an overlap of 1 id:

    reading positions    0  1  2  3  4  5  6  7
    forward                (1  2)[3  4  5]            (given) [scored]
    backward                  [2  3  4](5  6)
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from backgpt.batches import Rows, cut_by_length, cut_document
from backgpt.checks import texts as checked_texts
from backgpt.checks import whole
from backgpt.engine import Engine
from backgpt.engine.beginnings import cut_by_beginning
from backgpt.errors import NO_NUMBERS, BackgptError, UsageError
from backgpt.language import Language, Row
from backgpt.order import ModelIds, ReadingIds, RightwardDecoder, joined
from backgpt.slices import Slices, finished
from backgpt.tokenizer import Tokenizer

SCORED_TOGETHER = 8192  # ids in one call of the engine, padding included
ROWS_TOGETHER = 256  # texts in one call that branch off one another


class Runner(Protocol):
    """What runs: an engine, and the language that says which way. An `api.Model` is one."""

    @property
    def engine(self) -> Engine:
        """What computes."""
        ...

    @property
    def language(self) -> Language:
        """What turns text into its ids and back."""
        ...


@dataclass(frozen=True)
class Score:
    """The log-probability of one text.

    `logprob` is its sum in nats over `n_tokens` targets: every id and the marker at the far edge.
    `token_logprobs`, (T + 2,) float32, lists them in reading order with the markers; the marker
    the model begins with is given, not predicted, and stands as 0. A text of more than
    `n_windows` = 1 was longer than the context and was scored in so many windows.
    """

    logprob: float
    n_tokens: int
    n_bytes: int
    n_windows: int
    token_logprobs: npt.NDArray[np.float32] = field(repr=False)

    @property
    def edge(self) -> float:
        """Log-probability, in nats, of the marker at the far edge: that the text ends there."""
        return float(self.token_logprobs[0] + self.token_logprobs[-1])

    @property
    def loss(self) -> float:
        """Nats per token."""
        return -self.logprob / self.n_tokens

    @property
    def bpb(self) -> float:
        """Bits per UTF-8 byte; not a number for an empty text."""
        return bits_per_byte(-self.logprob, self.n_bytes)


@dataclass(frozen=True)
class WordScore:
    """A word with the white space in front of it; `logprob` is the sum of its ids, in nats."""

    text: str
    logprob: float


def word_scores(
    tokenizer: Tokenizer, text: str, score: Score, *, ids: ReadingIds | None = None
) -> list[WordScore]:
    """Return what `score` says of each word of its `text`; the words join to the text.

    White space that no word follows is a word of its own. `ids` are the text's, if they are known.
    Raises UsageError if the score is that of another text.
    """
    decoder = RightwardDecoder(added=tokenizer.added_spaces)
    ids = tokenizer.encode(text) if ids is None else ids
    if len(score.token_logprobs) != len(ids) + 2:
        raise UsageError("the score is that of another text: give the text that was scored")
    pieces = [decoder.push(tokenizer.token_bytes[int(id_)]) for id_ in ids]
    words: list[tuple[str, float]] = []
    in_word = True
    for id_, piece, logprob in zip(ids, pieces, score.token_logprobs[1:-1].tolist(), strict=True):
        if not words or (in_word and tokenizer.starts_group[id_]):
            words.append((piece, logprob))
            in_word = bool(tokenizer.token_bytes[int(id_)].strip())
        else:
            words[-1] = (words[-1][0] + piece, words[-1][1] + logprob)
            in_word = in_word or bool(tokenizer.token_bytes[int(id_)].strip())
    return [WordScore(text, logprob) for text, logprob in words]


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Return nats over a text of `n_bytes` as bits per byte; NaN if there are no bytes."""
    return nats / math.log(2) / n_bytes if n_bytes else math.nan


@dataclass(frozen=True)
class Window:
    """What is scored at once: reading positions in a text with its markers.

    `given` is the context, at least one id, and `scored` the piece next to it: after it for a
    forward model, before it for a backward one.
    """

    given: slice
    scored: slice


def context_size(runner: Runner) -> int:
    """Return the most ids of a text that the model reads at once, markers included."""
    return runner.engine.block_size - len(runner.language.lead)


def score_texts(
    runner: Runner,
    texts: Sequence[str],
    *,
    overlap: int = 0,
    context: int | None = None,
) -> list[Score]:
    """Score whole documents, batched; the result does not depend on what stands beside them (in
    bfloat16 and on a GPU: beyond their rounding).

    Texts that are longer than the context, or than `context` ids, are cut into windows (see
    `windows`). Raises UsageError if `overlap`, in ids, is not from 0 to less than the context.
    """
    texts = checked_texts("texts", texts)
    ids = [runner.language.tokenizer.encode(text) for text in texts]
    sizes = [len(text.encode()) for text in texts]
    return score_ids(runner, ids, sizes, overlap=overlap, context=context)


def score_ids(
    runner: Runner,
    text_ids: Sequence[ReadingIds],
    sizes: Sequence[int],
    *,
    overlap: int = 0,
    context: int | None = None,
) -> list[Score]:
    """Do as `score_texts`, given the ids of each text, without markers, and its UTF-8 bytes."""
    return finished(
        score_in_slices(
            runner,
            text_ids,
            sizes,
            together=SCORED_TOGETHER,
            overlap=overlap,
            context=context,
        )
    )


def score_in_slices(
    runner: Runner,
    text_ids: Sequence[ReadingIds],
    sizes: Sequence[int],
    *,
    together: int,
    overlap: int = 0,
    context: int | None = None,
) -> Slices[list[Score]]:
    """Do as `score_ids`, in slices of about `together` ids."""
    longest = context_size(runner)
    if context is not None:
        longest = min(longest, whole("context", context, least=1))
    whole("overlap", overlap, least=0, most=longest - 1)

    language, order = runner.language, runner.language.order
    marked = [language.tokenizer.mark(ids) for ids in text_ids]
    cuts = [list(windows(ids, language, longest=longest, overlap=overlap)) for ids in marked]
    pieces = [(number, window) for number, of_text in enumerate(cuts) for window in of_text]
    given = [marked[number][window.given] for number, window in pieces]
    scored = [marked[number][window.scored] for number, window in pieces]
    lengths = np.array([len(ids) for ids in scored], dtype=np.int64)
    widths = lengths + np.array([len(ids) - 1 for ids in given], dtype=np.int64)

    def model_ids(index: int) -> ModelIds:
        parts = (order.to_model(ReadingIds(ids[index])) for ids in (given, scored))
        return ModelIds(joined(language.lead, *parts))

    by_text = [np.zeros(len(ids), dtype=np.float32) for ids in marked]
    batches = cut_by_length(np.arange(len(pieces)), widths, budget=together)
    for batch in _score_batches(runner.engine, batches, lengths, model_ids):
        for index, values in batch:
            _check_numbers(values)
            number, window = pieces[index]
            by_text[number][window.scored][order.permutation(scored[index])] = values
        yield
    return [
        Score(
            logprob=math.fsum(values.tolist()),  # the same whatever the order
            n_tokens=len(values) - 1,
            n_bytes=size,
            n_windows=len(of_text),
            token_logprobs=values,
        )
        for size, values, of_text in zip(sizes, by_text, cuts, strict=True)
    ]


def windows(
    marked: ReadingIds, language: Language, *, longest: int, overlap: int
) -> Iterator[Window]:
    """Yield the windows, of at most `longest + 1` ids, in which a text with its markers is scored.

    `marked`, (T,), is cut as in training; if it does not fit, into pieces of at most `longest -
    overlap` ids. Each is given the id at which it was cut off and up to `overlap` more, in the
    word unit only whole words of them.
    """
    fits = len(marked) - 1 <= longest
    cutter = language.cutter
    starts = np.append(np.flatnonzero(cutter.group_starts(marked)), len(marked))
    for first, last in cut_document(marked, cutter, block_size=longest - (0 if fits else overlap)):
        if language.direction == "backward":
            furthest = int(starts[np.searchsorted(starts, last + overlap + 1, side="right") - 1])
            yield Window(slice(last, max(furthest, last + 1)), slice(first, last))
        else:
            furthest = int(starts[np.searchsorted(starts, first - overlap)])
            yield Window(slice(min(furthest, first), first + 1), slice(first + 1, last + 1))


def score_written(engine: Engine, pairs: Sequence[Row]) -> list[npt.NDArray[np.float32]]:
    """Return log p in nats of each written id given all before it, (len(written),) each.

    A pair is what is given, at least one id, and what is written, both in model order. Raises
    UsageError if they are together more than `engine.block_size + 1` ids.
    """
    return finished(written_in_slices(engine, pairs, together=SCORED_TOGETHER))


def written_in_slices(
    engine: Engine, pairs: Sequence[Row], *, together: int
) -> Slices[list[npt.NDArray[np.float32]]]:
    """Do as `score_written`, in slices of about `together` ids."""
    lengths = np.array([len(written) for _, written in pairs], dtype=np.int64)
    wholes = [ModelIds(np.concatenate(pair)) for pair in pairs]
    if engine.shares_beginnings:
        batches = cut_by_beginning(wholes, budget=together, most=ROWS_TOGETHER)
    else:
        widths = np.array([len(whole) for whole in wholes], dtype=np.int64)
        batches = cut_by_length(np.arange(len(pairs)), widths, budget=together)
    found: list[npt.NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(pairs)
    for batch in _score_batches(engine, batches, lengths, wholes.__getitem__):
        for index, values in batch:
            _check_numbers(values)
            found[index] = values
        yield
    return found


def sums_written(runner: Runner, pairs: Sequence[Row]) -> list[float]:
    """Return log p in nats of all that is written in each pair together; see `score_written`."""
    return finished(sums_in_slices(runner, pairs, together=SCORED_TOGETHER))


def sums_in_slices(runner: Runner, pairs: Sequence[Row], *, together: int) -> Slices[list[float]]:
    """Do as `sums_written`, in slices of about `together` ids."""
    written = yield from written_in_slices(runner.engine, pairs, together=together)
    return [float(values.sum(dtype=np.float64)) for values in written]


def corpus_nats(engine: Engine, rows: Rows) -> float:
    """Return minus the log-probability, in nats, of all targets of `rows` together."""
    batches = cut_by_length(np.arange(len(rows.lengths)), rows.widths, budget=SCORED_TOGETHER)
    scored = _score_batches(engine, batches, rows.lengths, rows.sequence)
    return -math.fsum(
        float(values.sum(dtype=np.float64)) for batch in scored for _, values in batch
    )


def _check_numbers(values: npt.NDArray[np.float32]) -> None:
    """Raise BackgptError if a log-probability is not a number."""
    if not np.isfinite(values).all():
        raise BackgptError(NO_NUMBERS)


def _score_batches(
    engine: Engine,
    batches: Iterable[npt.NDArray[np.int64]],
    lengths: npt.NDArray[np.int64],
    sequence: Callable[[int], ModelIds],
) -> Iterator[list[tuple[int, npt.NDArray[np.float32]]]]:
    """Yield (index, log-probabilities) of each sequence; one call of the engine for each batch.

    Of each sequence the last ids are targets, as many as its place in `lengths` says.
    """
    for batch in batches:
        indices = [int(index) for index in batch]
        values = engine.score([sequence(index) for index in indices])
        yield [
            (index, of_sequence[len(of_sequence) - lengths[index] :])
            for index, of_sequence in zip(indices, values, strict=True)
        ]
