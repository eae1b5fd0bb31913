"""Sampler steps, each on probabilities written by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backgpt.errors import UsageError
from backgpt.sampling import (
    Sampling,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    logprob_of,
    penalize,
    penalize_runs,
    pick,
    softmax,
)

P = np.array([0.1, 0.5, 0.05, 0.3, 0.05])
NO_IDS, APART = np.zeros(0, dtype=np.int64), np.ones(5, dtype=bool)


def test_top_k_keeps_the_k_likeliest_and_renormalizes() -> None:
    assert keep_top_k(P, 2) == pytest.approx([0, 0.625, 0, 0.375, 0])


def test_top_k_of_equals_keeps_the_smaller_id() -> None:
    assert np.flatnonzero(keep_top_k(P, 4)).tolist() == [0, 1, 2, 3]


def test_top_k_larger_than_the_vocabulary_keeps_all() -> None:
    assert keep_top_k(P, 100) == pytest.approx(P)


@pytest.mark.parametrize(
    ("p", "kept"),
    [(0.4, [1]), (0.5, [1]), (0.6, [1, 3]), (0.85, [0, 1, 3]), (1.0, [0, 1, 2, 3, 4])],
)
def test_top_p_keeps_the_fewest_that_reach_p(p: float, kept: list[int]) -> None:
    assert np.flatnonzero(keep_top_p(P, p)).tolist() == kept


def test_top_p_is_not_greedy() -> None:
    kept = keep_top_p(P, 0.8)
    assert kept == pytest.approx([0, 0.625, 0, 0.375, 0])


def test_min_p_is_relative_to_the_likeliest() -> None:
    assert np.flatnonzero(keep_min_p(P, 0.2)).tolist() == [0, 1, 3]
    assert np.flatnonzero(keep_min_p(P, 1.0)).tolist() == [1]


def test_repetition_penalty_divides_what_is_positive_and_multiplies_what_is_negative() -> None:
    ids = np.array([1, 0, 1])
    assert penalize(np.array([2.0, -2.0, 2.0]), ids, 2.0).tolist() == [1.0, -4.0, 2.0]


@pytest.mark.parametrize(
    ("text", "penalized"),
    [
        ("", {}),
        ("a", {}),
        ("abca", {}),  # one letter is alike: allowed
        ("abcab", {"c": 2}),
        ("abcabcab", {"c": 5}),  # the longest run counts, which overlaps itself
        ("xabcyabdab", {"c": 2, "d": 2}),
        ("aaaa", {"a": 3}),
    ],
)
def test_dry_penalizes_what_goes_on_with_a_run_by_its_length(
    text: str, penalized: dict[str, int]
) -> None:
    ids = np.array([ord(letter) - ord("a") for letter in text], dtype=np.int64)
    scores = np.linspace(-1, 1, 26)
    expected = scores.copy()
    for letter, n_alike in penalized.items():
        expected[ord(letter) - ord("a")] -= 0.5 * 1.75 ** (n_alike - 2)
    apart = np.ones(26, dtype=bool)
    assert penalize_runs(scores, ids, apart, 0.5) == pytest.approx(expected)
    assert penalize_runs(scores, ids, apart, 0.0) == pytest.approx(scores)
    assert penalize_runs(scores, ids, ~apart, 0.5) == pytest.approx(scores)


def test_a_run_however_long_is_only_unlikely() -> None:
    scores = np.array([0.0, -np.inf])
    ids, apart = np.zeros(2000, dtype=np.int64), np.ones(2, dtype=bool)
    assert -1e6 < penalize_runs(scores, ids, apart, 0.8)[0] < -1e4


def test_softmax_and_log_probabilities_agree_and_survive_large_logits() -> None:
    scores = np.array([1000.0, 1001.0, -np.inf])
    assert softmax(scores) == pytest.approx([1 / (1 + np.e), np.e / (1 + np.e), 0])
    logprobs = [logprob_of(id_, scores) for id_ in range(3)]
    assert np.exp(logprobs) == pytest.approx(softmax(scores))


@given(
    st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0, -np.inf]), min_size=2, max_size=40),
    st.sampled_from([None, 2, 3, 10]),
    st.sampled_from([0.3, 0.8, 0.95, 1.0]),
    st.sampled_from([0.0, 0.07, 0.4]),
    st.integers(0, 1000),
)
def test_a_draw_is_the_steps_one_after_the_other(
    logits: list[float], top_k: int | None, top_p: float, min_p: float, seed: int
) -> None:
    """`draw` takes shortcuts; the same steps without any must give the same id."""
    scores = np.array([1.0, *logits])
    probabilities = softmax(scores / 0.7)
    sorted_ids = sorted(range(len(scores)), key=lambda i: (-probabilities[i], i))
    kept = [i for i in sorted_ids if probabilities[i] > 0][: top_k or len(scores)]
    if top_p < 1:
        reached = np.cumsum(probabilities[kept]) / probabilities[kept].sum()
        kept = kept[: int(np.sum(reached < top_p - 1e-12)) + 1]
    kept = [i for i in kept if probabilities[i] >= min_p * probabilities.max() - 1e-12]
    expected = np.zeros_like(probabilities)
    expected[kept] = probabilities[kept]
    sampling = Sampling(temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p)
    apart = np.ones(len(scores), dtype=bool)
    drawn = draw(scores, sampling, np.random.default_rng(seed), text_ids=NO_IDS, apart=apart)
    assert drawn == pick(expected, np.random.default_rng(seed).random())


@pytest.mark.parametrize(
    ("uniform", "expected"), [(0.0, 0), (0.0999, 0), (0.1, 1), (0.59, 1), (0.61, 2), (0.9999, 4)]
)
def test_pick_inverts_the_cumulative_distribution(uniform: float, expected: int) -> None:
    assert pick(P, uniform) == expected


def test_pick_never_returns_an_impossible_id() -> None:
    probabilities = np.array([0.0, 0.3, 0.7, 0.0])
    assert pick(probabilities, 0.0) == 1
    assert pick(probabilities, np.nextafter(1.0, 0.0)) == 2


def test_draws_follow_the_distribution() -> None:
    random = np.random.default_rng(1)
    sampling = Sampling(temperature=1.0, min_p=0.0)
    drawn = [draw(np.log(P), sampling, random, text_ids=NO_IDS, apart=APART) for _ in range(20_000)]
    shares = np.bincount(drawn, minlength=5) / 20_000
    assert np.abs(shares - P).max() < 0.015


def test_temperature_sharpens_and_flattens() -> None:
    def share_of_likeliest(temperature: float) -> float:
        random = np.random.default_rng(1)
        sampling = Sampling(temperature=temperature, min_p=0.0)
        drawn = [
            draw(np.log(P), sampling, random, text_ids=NO_IDS, apart=APART) for _ in range(4000)
        ]
        return drawn.count(1) / 4000

    assert share_of_likeliest(0.5) > 0.6 > share_of_likeliest(1.0) > 0.4 > share_of_likeliest(3.0)


def test_top_k_1_takes_the_likeliest_without_a_random_number() -> None:
    random = np.random.default_rng(1)
    before = random.bit_generator.state
    assert draw(np.log(P), Sampling(top_k=1), random, text_ids=NO_IDS, apart=APART) == 1
    assert random.bit_generator.state == before


def test_a_tiny_temperature_takes_the_likeliest_and_nothing_forbidden() -> None:
    logits = np.array([-np.inf, 1.0, 2.0, 0.0, -np.inf])
    sampling = Sampling(temperature=1e-320)
    assert draw(logits, sampling, np.random.default_rng(1), text_ids=NO_IDS, apart=APART) == 2


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"dry_multiplier": -0.1},
        {"dry_multiplier": float("inf")},
    ],
)
def test_a_setting_outside_its_range_is_refused_with_its_value(setting: dict[str, float]) -> None:
    value = str(next(iter(setting.values())))
    with pytest.raises(UsageError, match=value.replace(".", r"\.")):
        Sampling(**setting)  # type: ignore[arg-type]
