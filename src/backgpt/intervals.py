"""Figures with intervals: how far one could have been off by chance.

Two kinds, never mixed: over documents (another sample of texts, the same models) and over seeds
(models trained again, the same texts). All intervals are of 95 %.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from backgpt.config import Settings
from backgpt.errors import DataError

RESAMPLES = 1999  # with one more, a fortieth of them is a whole number

_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom."""
_NORMAL = 1.960
_DRAWN_TOGETHER = 1 << 20  # documents, which bounds memory


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

    One entry of each is a document's; sizes are above 0. The interval is the percentile
    bootstrap's (Efron 1979): documents are drawn anew with replacement, both their entries
    together. With all amounts negated it is exactly the mirror image. Its percentiles are expanded
    (see `_outside`); of fewer than 5 documents it is too narrow all the same: of 2 it holds the
    truth in half of all cases. Raises DataError for fewer than two.
    """
    n = len(amounts)
    if n < 2:
        raise DataError(f"an interval over documents takes at least two, not {n}: give more texts")
    numerators = np.asarray(amounts, dtype=np.float64)
    denominators = np.ones(n) if sizes is None else np.asarray(sizes, dtype=np.float64)
    ratios = [
        numerators[drawn].sum(axis=1) / denominators[drawn].sum(axis=1)
        for drawn in _resamples(n, seed)
    ]
    found = np.sort(np.concatenate(ratios))
    outside = _outside(n)
    return Estimate(
        value=math.fsum(numerators) / math.fsum(denominators),
        low=float(found[outside - 1]),
        high=float(found[-outside]),
    )


def of_share(came_true: Sequence[bool]) -> Estimate:
    """Return the share of documents for which something came true.

    The interval is Wilson's (1927), which, unlike a bootstrap's, has a width where all or none
    did. Raises DataError if there is no document.
    """
    n = len(came_true)
    if not n:
        raise DataError("there is no text to take a share of: give some")
    share, square = sum(came_true) / n, _NORMAL**2 / n
    center = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    high = min(center + half, 1.0)  # whatever rounding says
    return Estimate(value=share, low=center - half, high=high)


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """Return the mean of one value a seed, with Student's t interval; None for a single seed."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    deviation = float(np.std(np.asarray(values, dtype=np.float64), ddof=1))
    half = _student(len(values) - 1) * deviation / math.sqrt(len(values))
    return Estimate(value=mean, low=mean - half, high=mean + half)


def _student(degrees: int) -> float:
    """Return the two-sided 95 % quantile of Student's t: of the table or, beyond, as a series."""
    if degrees <= len(_STUDENT):
        return _STUDENT[degrees - 1]
    z = _NORMAL
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def _outside(n: int) -> int:
    """Return how many resamples are on either side of an interval, its bound included.

    A fortieth of them, if documents are many. Of few, resamples vary less than samples do, as if
    the spread were known: fewer are left outside (Hesterberg 2015, "What Teachers Should Know
    about the Bootstrap", expanded percentiles).
    """
    expanded = math.sqrt(n / (n - 1)) * _student(n - 1)
    share = math.erfc(expanded / math.sqrt(2)) / 2
    return max(round(share * (RESAMPLES + 1)), 1)


def _resamples(n: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield which of `n` documents are in each resample, (R, n), some resamples at a time."""
    random = np.random.default_rng(seed)
    together = max(_DRAWN_TOGETHER // n, 1)
    for first in range(0, RESAMPLES, together):
        yield random.integers(n, size=(min(together, RESAMPLES - first), n))
