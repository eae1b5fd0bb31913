"""The arrow of time: how much more a backward model loses than its forward twin on the same texts.

Both twins sum to log P(document) over the same ids, so the gap, backward less forward, is exact
for the models and texts at hand; its interval says how far another sample of texts would move it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from backgpt.intervals import Estimate, over_documents, over_seeds
from backgpt.report import ContextGap, TwinLoss
from backgpt.score import Score

FIRST_CONTEXT = 16  # ids; then twice as many each time


@dataclass(frozen=True)
class TwinScores:
    """What two twins say of the same texts, one score a text each."""

    backward: Sequence[Score]
    forward: Sequence[Score]

    @property
    def backward_loss(self) -> float:
        """Nats per token of the backward twin over all texts."""
        return _loss(self.backward)

    @property
    def forward_loss(self) -> float:
        """Nats per token of the forward twin over all texts."""
        return _loss(self.forward)

    @property
    def gap(self) -> float:
        """Backward less forward, in nats per token over all texts."""
        lost = [f.logprob - b.logprob for b, f in zip(self.backward, self.forward, strict=True)]
        return math.fsum(lost) / sum(score.n_tokens for score in self.forward)


def twin_loss(pairs: Sequence[TwinScores], *, seed: int) -> TwinLoss:
    """Return what twins lose on some texts: one pair, or one for each training seed.

    Of several pairs a text's loss is the mean; the intervals are over documents, drawn by `seed`,
    and the gap also has one over the pairs. Raises DataError for fewer than two texts.
    """
    first = pairs[0].backward
    tokens = [score.n_tokens for score in first]
    bits = [score.n_bytes * math.log(2) for score in first]
    backward = [_mean(-s.logprob for s in of_text) for of_text in _by_text(pairs, "backward")]
    forward = [_mean(-s.logprob for s in of_text) for of_text in _by_text(pairs, "forward")]
    gap = [b - f for b, f in zip(backward, forward, strict=True)]

    whole = [n for n, score in enumerate(first) if score.n_windows == 1]

    def ratio(amounts: Sequence[float], sizes: Sequence[float]) -> Estimate:
        return over_documents(amounts, sizes, seed=seed)

    return TwinLoss(
        texts=len(first),
        tokens=sum(tokens),
        cut=sum(score.n_windows > 1 for score in first),
        backward=ratio(backward, tokens),
        forward=ratio(forward, tokens),
        gap=ratio(gap, tokens),
        backward_bpb=ratio(backward, bits),
        forward_bpb=ratio(forward, bits),
        gap_bpb=ratio(gap, bits),
        gaps=tuple(pair.gap for pair in pairs),
        gap_over_seeds=over_seeds([pair.gap for pair in pairs]),
        gap_of_whole=ratio([gap[n] for n in whole], [tokens[n] for n in whole])
        if 1 < len(whole) < len(first)
        else None,
    )


def gap_by_context(
    score: Callable[[int], Sequence[TwinScores]], *, longest: int, seed: int
) -> Iterator[ContextGap]:
    """Yield the gap for 16, 32, 64, ... ids of context, up to `longest`.

    `score` scores texts cut into pieces of at most so many ids, in the token unit at the same
    places for both twins. Where a piece begins or ends within a text, models that were trained on
    whole ones meet something new.
    """
    for context in contexts(longest):
        loss = twin_loss(score(context), seed=seed)
        yield ContextGap(
            context=context,
            texts=loss.texts,
            backward=loss.backward.value,
            forward=loss.forward.value,
            gap=loss.gap,
            gap_over_seeds=loss.gap_over_seeds,
        )


def contexts(longest: int) -> list[int]:
    """Return the contexts, in ids, at which the gap is measured: powers of two and `longest`."""
    found = []
    context = FIRST_CONTEXT
    while context < longest:
        found.append(context)
        context *= 2
    return [*found, longest]


def _by_text(pairs: Sequence[TwinScores], side: str) -> Iterator[tuple[Score, ...]]:
    return zip(*(getattr(pair, side) for pair in pairs), strict=True)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)


def _loss(scores: Sequence[Score]) -> float:
    return -math.fsum(score.logprob for score in scores) / sum(s.n_tokens for s in scores)
