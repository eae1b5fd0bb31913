"""Intervals: against tables, closed forms, and data whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backgpt.errors import DataError
from backgpt.intervals import (
    RESAMPLES,
    Estimate,
    _outside,
    _resamples,
    of_share,
    over_documents,
    over_seeds,
)
from backgpt.report_text import INTERVALS

AMOUNTS = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=6)


def test_the_figure_is_a_ratio_of_sums_not_a_mean_of_ratios() -> None:
    assert over_documents([1.0, 9.0], [1, 3], seed=1).value == 2.5
    assert over_documents([1.0, 9.0], seed=1).value == 5.0


def test_of_two_documents_the_bounds_are_their_own_ratios() -> None:
    estimate = over_documents([1.0, 9.0], [1, 3], seed=1)  # each alone in a quarter of resamples
    assert (estimate.low, estimate.high) == (1.0, 3.0)


def test_a_large_document_counts_for_more_in_the_interval_as_in_the_figure() -> None:
    small, large = ([10.0] * 20, [1] * 20), ([1000.0] * 20, [1000] * 20)
    estimate = over_documents(small[0] + large[0], small[1] + large[1], seed=1)
    assert estimate.value == pytest.approx(20_200 / 20_020)
    assert 1 < estimate.low < estimate.value < estimate.high < 1.05


def test_alike_documents_leave_no_doubt() -> None:
    estimate = over_documents([2.0, 6.0, 4.0], [1, 3, 2], seed=1)
    assert (estimate.value, estimate.low, estimate.high) == (2.0, 2.0, 2.0)


def test_the_mean_of_many_has_the_interval_of_the_normal_distribution() -> None:
    values = np.random.default_rng(5).normal(3, 2, 400)
    estimate = over_documents(values.tolist(), seed=2)
    half = 1.96 * values.std() / 20
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.02)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.02)


def test_intervals_over_documents_hold_the_truth_in_95_percent_of_cases() -> None:
    """Amounts follow sizes closely, so that drawing them apart would make intervals too wide."""
    random = np.random.default_rng(11)
    held = 0
    for number in range(200):
        sizes = random.lognormal(3, 0.8, 50)
        amounts = sizes * 1.7 + np.sqrt(sizes) * random.normal(size=50)
        held += over_documents(amounts.tolist(), sizes.tolist(), seed=number).holds(1.7)
    assert 0.91 <= held / 200 <= 0.985


@pytest.mark.parametrize(("n", "held"), [(2, 0.50), (3, 0.75), (5, 0.91), (10, 0.94), (20, 0.94)])
def test_intervals_over_less_than_ten_documents_are_as_much_too_narrow_as_reports_say(
    n: int, held: float
) -> None:
    random = np.random.default_rng(12)
    sizes = random.lognormal(5, 0.6, (600, n))
    amounts = sizes * random.normal(0.1, 0.1, (600, n))
    found = [
        over_documents(*pair, seed=number).holds(0.1)
        for number, pair in enumerate(zip(amounts.tolist(), sizes.tolist(), strict=True))
    ]
    assert np.mean(found) == pytest.approx(held, abs=0.025)
    share = "half" if n == 2 else f"{100 * held:.0f} %"
    assert (f"of {n} " in INTERVALS and share in INTERVALS) == (n < 10)


def test_percentiles_are_expanded_where_documents_are_few_and_nowhere_else() -> None:
    """Hesterberg's table of them: 0.0086 of 10, 0.0159 of 20, 0.0240 of 200, and so on."""
    few = {n: _outside(n) for n in (2, 4, 5, 10, 20, 200)}
    assert few == {2: 1, 4: 1, 5: 2, 10: 17, 20: 32, 200: 48}  # of 2,000
    assert _outside(1000) == _outside(10**6) == 50


@given(AMOUNTS, st.integers(0, 99))
@settings(max_examples=20)
def test_negated_amounts_give_exactly_the_mirror_image(amounts: list[float], seed: int) -> None:
    sizes = list(range(1, len(amounts) + 1))
    one = over_documents(amounts, sizes, seed=seed)
    other = over_documents([-amount for amount in amounts], sizes, seed=seed)
    assert (other.value, other.low, other.high) == (-one.value, -one.high, -one.low)


def test_many_documents_have_the_interval_of_few_that_stand_for_them() -> None:
    """Resamples of many come in several blocks: all of them have to be there."""
    values = np.random.default_rng(3).normal(size=3000)
    estimate = over_documents(values.tolist(), seed=4)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.08)
    assert sum(len(drawn) for drawn in _resamples(3000, 4)) == RESAMPLES


def test_documents_are_drawn_by_the_seed() -> None:
    values = np.random.default_rng(1).normal(size=20).tolist()
    assert over_documents(values, seed=1) == over_documents(values, seed=1)
    assert over_documents(values, seed=1) != over_documents(values, seed=2)


@pytest.mark.parametrize("amounts", [[], [1.0]])
def test_fewer_than_two_documents_have_no_interval(amounts: list[float]) -> None:
    with pytest.raises(DataError, match=f"at least two, not {len(amounts)}"):
        over_documents(amounts, seed=1)


def test_the_interval_of_a_share_is_wilsons() -> None:
    estimate = of_share([True] * 8 + [False] * 2)
    assert estimate.value == 0.8
    assert estimate.low == pytest.approx(0.4902, abs=1e-4)
    assert estimate.high == pytest.approx(0.9433, abs=1e-4)


@pytest.mark.parametrize("n", [1, 6, 19, 50])
def test_a_share_of_all_or_none_still_has_doubt(n: int) -> None:
    everything, nothing = of_share([True] * n), of_share([False] * n)
    assert everything.value == 1
    assert 1 - 1e-12 < everything.high <= 1
    assert everything.low == pytest.approx(n / (n + 1.96**2))
    assert (nothing.value, nothing.low) == (0.0, 0.0)
    assert nothing.high == pytest.approx(1 - everything.low)
    with pytest.raises(DataError, match="no text"):
        of_share([])


def test_intervals_of_shares_hold_the_truth_in_95_percent_of_cases() -> None:
    n = 40
    estimates = [of_share([True] * k + [False] * (n - k)) for k in range(n + 1)]
    shares = np.linspace(0.05, 0.95, 91)
    coverage = [
        sum(
            math.comb(n, k) * share**k * (1 - share) ** (n - k)
            for k, estimate in enumerate(estimates)
            if estimate.holds(share)
        )
        for share in shares
    ]
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.01)


def within(quantile: float, degrees: int) -> float:
    """Return how much of Student's t is from -quantile to quantile, integrated numerically."""
    x = np.linspace(-quantile, quantile, 200_001)
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2))
    density = scale / math.sqrt(degrees * math.pi) * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
    return float(((density[1:] + density[:-1]) / 2).sum() * (x[1] - x[0]))


def quantile_of(n_seeds: int) -> float:
    values = np.random.default_rng(n_seeds).normal(size=n_seeds)
    estimate = over_seeds(values.tolist())
    assert estimate is not None
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.high - estimate.value == pytest.approx(estimate.value - estimate.low)
    return float((estimate.high - estimate.value) * math.sqrt(n_seeds) / values.std(ddof=1))


@pytest.mark.parametrize("n_seeds", [*range(2, 34), 50, 1000])
def test_the_interval_over_seeds_is_students(n_seeds: int) -> None:
    assert within(quantile_of(n_seeds), n_seeds - 1) == pytest.approx(0.95, abs=1e-4)


def test_seeds_by_hand_and_a_single_one_has_no_interval() -> None:
    estimate = over_seeds([1.0, 2.0, 3.0])
    assert estimate is not None
    assert estimate.value == 2.0
    assert estimate.high == pytest.approx(2 + 4.303 / math.sqrt(3))
    assert over_seeds([1.0]) is over_seeds([]) is None


def test_an_estimate_holds_its_bounds_and_is_shown_with_them() -> None:
    estimate = Estimate(value=1.0, low=0.5, high=2.0)
    assert estimate.holds(0.5)
    assert estimate.holds(2.0)
    assert not estimate.holds(0.49)
    assert not estimate.holds(2.01)
    assert estimate.show("+.2f") == "+1.00 [+0.50, +2.00]"
