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
from backgpt.order import ModelIds

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
    def loss(self) -> float:
        """Nats per token."""
        return -self.logprob / self.n_tokens

    @property
    def bpb(self) -> float:
        """Bits per UTF-8 byte; not a number for an empty text."""
        return bits_per_byte(-self.logprob, self.n_bytes)


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Return nats over a text of `n_bytes` as bits per byte; NaN if there are no bytes."""
    return nats / math.log(2) / n_bytes if n_bytes else math.nan


def score_texts(engine: Engine, language: Language, texts: Sequence[str]) -> list[Score]:
    """Score whole documents, batched; the result does not depend on what stands beside them."""
    order = language.order
    marked = [language.tokenizer.mark(language.tokenizer.encode(text)) for text in texts]
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
    for index, values in _score_batched(engine, lengths, model_ids):
        number, first, _ = pieces[index]
        by_text[number][first + turns[index][1:]] = values
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
    """Yield (index, log-probabilities) of sequences whose last ids are that many targets.

    Those of similar `widths` come together: all their ids, where most are not targets.
    """
    widths = lengths if widths is None else widths
    for batch in cut_by_length(np.arange(len(lengths)), widths, budget=SCORED_TOGETHER):
        values = engine.score([sequence(int(index)) for index in batch])
        for index, of_sequence in zip(map(int, batch), values, strict=True):
            yield index, of_sequence[len(of_sequence) - lengths[index] :]
