"""How likely a model finds texts: log-probabilities, nats per token, bits per byte.

Both twins score the same ids of the same documents, one marker each, and so do their sums: each
is log P(document), which makes them comparable exactly.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from backgpt.batches import Rows, cut_by_length, cut_document
from backgpt.engine import Engine
from backgpt.language import Language
from backgpt.order import ModelIds, ReadingIds, RightwardDecoder
from backgpt.slices import Slices, finished
from backgpt.tokenizer import Tokenizer

SCORED_TOGETHER = 8192  # ids in one call of the engine, padding included


@dataclass(frozen=True)
class Score:
    """The log-probability of one text.

    `logprob` is its sum in nats over `n_tokens` targets: every id and the marker at the far edge.
    `token_logprobs`, (T + 2,) float32, lists them in reading order with the markers; the marker
    the model begins with is given, not predicted, and stands as 0. A text of more than
    `n_windows` = 1 was longer than the context and was scored in pieces.
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
    """
    decoder = RightwardDecoder()
    ids = tokenizer.encode(text) if ids is None else ids
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


def score_texts(engine: Engine, language: Language, texts: Sequence[str]) -> list[Score]:
    """Score whole documents, batched; the result does not depend on what stands beside them."""
    ids = [language.tokenizer.encode(text) for text in texts]
    return finished(score_in_slices(engine, language, texts, ids, together=SCORED_TOGETHER))


def score_in_slices(
    engine: Engine,
    language: Language,
    texts: Sequence[str],
    text_ids: Sequence[ReadingIds],
    *,
    together: int,
) -> Slices[list[Score]]:
    """Do as `score_texts`, with the ids of each text, in slices of about `together` ids."""
    order = language.order
    marked = [language.tokenizer.mark(ids) for ids in text_ids]
    longest = engine.block_size - len(language.lead)
    cuts = [list(cut_document(ids, order, block_size=longest)) for ids in marked]
    pieces = [
        (number, first, marked[number][first : last + 1])
        for number, windows in enumerate(cuts)
        for first, last in windows
    ]
    turns = [order.permutation(ids, last_apart=True) for _, _, ids in pieces]
    lengths = np.array([len(ids) - 1 for _, _, ids in pieces], dtype=np.int64)

    def model_ids(index: int) -> ModelIds:
        return ModelIds(np.concatenate((language.lead, pieces[index][2][turns[index]])))

    by_text = [np.zeros(len(ids), dtype=np.float32) for ids in marked]
    for scored in _score_batches(engine, lengths, model_ids, together=together):
        for index, values in scored:
            number, first, _ = pieces[index]
            by_text[number][first + turns[index][1:]] = values
        yield
    return [
        Score(
            logprob=float(values.sum(dtype=np.float64)),
            n_tokens=len(values) - 1,
            n_bytes=len(text.encode()),
            n_windows=len(windows),
            token_logprobs=values,
        )
        for text, values, windows in zip(texts, by_text, cuts, strict=True)
    ]


def score_written(
    engine: Engine, pairs: Sequence[tuple[ModelIds, ModelIds]]
) -> list[npt.NDArray[np.float32]]:
    """Return log p in nats of each written id given all before it, (len(written),) each.

    A pair is what is given, at least one id, and what is written, both in model order. Raises
    UsageError if they are together more than `engine.block_size + 1` ids.
    """
    lengths = np.array([len(written) for _, written in pairs], dtype=np.int64)
    widths = np.array([len(given) + len(written) for given, written in pairs], dtype=np.int64)
    found: list[npt.NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(pairs)

    def whole(index: int) -> ModelIds:
        return ModelIds(np.concatenate(pairs[index]))

    for index, values in _score_batched(engine, lengths, whole, widths=widths):
        found[index] = values
    return found


def corpus_nats(engine: Engine, rows: Rows) -> float:
    """Return minus the log-probability, in nats, of all targets of `rows` together."""
    scored = _score_batched(engine, rows.lengths, rows.sequence, widths=rows.widths)
    return -math.fsum(float(values.sum(dtype=np.float64)) for _, values in scored)


def _score_batched(
    engine: Engine,
    lengths: npt.NDArray[np.int64],
    sequence: Callable[[int], ModelIds],
    *,
    widths: npt.NDArray[np.int64] | None = None,
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield (index, log-probabilities) of sequences whose last ids are that many targets."""
    for scored in _score_batches(engine, lengths, sequence, widths=widths):
        yield from scored


def _score_batches(
    engine: Engine,
    lengths: npt.NDArray[np.int64],
    sequence: Callable[[int], ModelIds],
    *,
    widths: npt.NDArray[np.int64] | None = None,
    together: int = SCORED_TOGETHER,
) -> Iterator[list[tuple[int, npt.NDArray[np.float32]]]]:
    """Do as `_score_batched`, by calls of the engine, of `together` ids, padding included.

    Those of similar `widths` come together: all their ids, where most are not targets.
    """
    widths = lengths if widths is None else widths
    for batch in cut_by_length(np.arange(len(lengths)), widths, budget=together):
        indices = [int(index) for index in batch]
        values = engine.score([sequence(index) for index in indices])
        yield [
            (index, of_sequence[len(of_sequence) - lengths[index] :])
            for index, of_sequence in zip(indices, values, strict=True)
        ]
