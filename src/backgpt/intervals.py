"""Figures with intervals: how far one could have been off by chance.

Two kinds, never mixed: over documents (another sample of texts, the same models) and over seeds
(models trained again, the same texts). All intervals are of 95 %.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from backgpt.config import Settings

RESAMPLES = 2000
SHARE = 0.95

_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom."""
_NORMAL = 1.960


class Estimate(Settings):
    """A figure and its interval of 95 %."""

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Return whether `value` is in the interval."""
        return self.low <= value <= self.high

    def show(self, form: str = ".4f") -> str:
        """Return the figure with its interval: `1.8960 [1.8813, 1.9101]`."""
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


def over_documents(
    amounts: Sequence[float], sizes: Sequence[float] | None = None, *, seed: int
) -> Estimate:
    """Return the sum of `amounts` over the sum of `sizes` (their mean, without sizes).

    One entry of each is a document's. The interval is the percentile bootstrap's (Efron 1979):
    documents are drawn anew with replacement, both their entries together.
    """
    numerators = np.asarray(amounts, dtype=np.float64)
    denominators = np.ones_like(numerators) if sizes is None else np.asarray(sizes, np.float64)
    value = math.fsum(numerators) / math.fsum(denominators)
    found = [
        float(counts @ numerators) / float(counts @ denominators)
        for counts in _resamples(len(numerators), seed)
        if counts @ denominators
    ]
    low, high = np.quantile(found, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return Estimate(value=value, low=float(low), high=float(high))


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """Return the mean of one value a seed, with Student's t interval; None for a single seed."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    deviation = float(np.std(np.asarray(values, dtype=np.float64), ddof=1))
    degrees = len(values) - 1
    quantile = _STUDENT[degrees - 1] if degrees <= len(_STUDENT) else _NORMAL
    half = quantile * deviation / math.sqrt(len(values))
    return Estimate(value=mean, low=mean - half, high=mean + half)


def _resamples(n: int, seed: int) -> npt.NDArray[np.float64]:
    """Return how often each of `n` documents is in each resample, (RESAMPLES, n)."""
    random = np.random.default_rng(seed)
    counts: npt.NDArray[np.float64] = random.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(
        np.float64
    )
    return counts
