"""The gap of twins: by hand, its sign, and what goes into its intervals."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from backgpt.errors import DataError
from backgpt.gap import TwinScores, contexts, gap_by_context, twin_loss
from backgpt.intervals import over_documents
from backgpt.score import Score, score_texts
from backgpt.tokenizer import Tokenizer
from tiny_models import tiny_model

TOKENS, BYTES = (3, 5, 2), (10, 21, 8)
BACKWARD, FORWARD = (-6.0, -11.0, -5.0), (-5.0, -11.5, -3.0)


def scores(logprobs: Sequence[float], n_windows: int = 1) -> list[Score]:
    return [
        Score(logprob, n_tokens, n_bytes, n_windows, np.zeros(n_tokens + 1, np.float32))
        for logprob, n_tokens, n_bytes in zip(logprobs, TOKENS, BYTES, strict=True)
    ]


def pair(backward: Sequence[float] = BACKWARD, forward: Sequence[float] = FORWARD) -> TwinScores:
    return TwinScores(scores(backward), scores(forward))


def test_the_gap_is_backward_less_forward_per_token() -> None:
    twins = pair()
    assert twins.backward_loss == pytest.approx(22 / 10)
    assert twins.forward_loss == pytest.approx(19.5 / 10)
    assert twins.gap == pytest.approx(0.25)


def test_figures_of_one_pair_by_hand() -> None:
    loss = twin_loss([pair()], seed=3)
    assert (loss.texts, loss.tokens, loss.cut) == (3, 10, 0)
    assert loss.backward.value == pytest.approx(2.2)
    assert loss.forward.value == pytest.approx(1.95)
    assert loss.gap.value == pytest.approx(0.25)
    assert loss.backward_bpb.value == pytest.approx(22 / 39 / math.log(2))
    assert loss.forward_bpb.value == pytest.approx(19.5 / 39 / math.log(2))
    assert loss.gap_bpb.value == pytest.approx(2.5 / 39 / math.log(2))
    assert loss.gaps == (pair().gap,)
    assert loss.gap_over_seeds is None


def test_the_interval_of_the_gap_is_over_the_gaps_of_documents() -> None:
    loss = twin_loss([pair()], seed=3)
    assert loss.gap == over_documents([1.0, -0.5, 2.0], TOKENS, seed=3)
    assert loss.backward == over_documents([6.0, 11.0, 5.0], TOKENS, seed=3)


def test_of_several_pairs_each_text_counts_with_its_mean() -> None:
    other = pair([-8.0, -12.0, -4.0], [-7.0, -10.0, -4.0])
    loss = twin_loss([pair(), other], seed=1)
    assert loss.backward == over_documents([7.0, 11.5, 4.5], TOKENS, seed=1)
    assert loss.gap == over_documents([1.0, 0.75, 1.0], TOKENS, seed=1)
    assert loss.gaps == pytest.approx((0.25, 0.3))
    assert loss.gap_over_seeds is not None
    assert loss.gap_over_seeds.value == pytest.approx(loss.gap.value)
    assert loss.gap_over_seeds.high == pytest.approx(0.275 + 12.706 * 0.05 / 2)


def test_twins_that_change_places_give_exactly_the_mirror_image() -> None:
    one = twin_loss([pair(), pair(FORWARD, FORWARD)], seed=1)
    other = twin_loss([pair(FORWARD, BACKWARD), pair(FORWARD, FORWARD)], seed=1)
    assert one.gap.value == -other.gap.value != 0
    assert (one.gap.low, one.gap.high) == (-other.gap.high, -other.gap.low)
    assert one.gaps == tuple(-gap for gap in other.gaps)
    assert one.gap_over_seeds is not None
    assert other.gap_over_seeds is not None
    assert one.gap_over_seeds.low == -other.gap_over_seeds.high
    assert (one.backward, one.backward_bpb) == (other.forward, other.forward_bpb)


def test_texts_that_were_cut_are_counted() -> None:
    first = scores(BACKWARD)[0]
    long = [Score(s.logprob, s.n_tokens, s.n_bytes, 2, s.token_logprobs) for s in scores(FORWARD)]
    assert twin_loss([TwinScores([first, *long[1:]], scores(FORWARD))], seed=1).cut == 2


def test_texts_that_were_not_cut_have_a_gap_of_their_own() -> None:
    backward, forward = scores(BACKWARD), scores(FORWARD)
    last = backward[-1]
    cut = Score(last.logprob, last.n_tokens, last.n_bytes, 2, last.token_logprobs)
    found = twin_loss([TwinScores([*backward[:-1], cut], forward)], seed=1)
    whole = twin_loss([TwinScores(backward[:-1], forward[:-1])], seed=1)
    assert found.gap_of_whole == whole.gap != found.gap
    assert whole.gap_of_whole is None


def test_no_text_is_refused() -> None:
    with pytest.raises(DataError, match="at least two"):
        twin_loss([TwinScores([], [])], seed=1)


@pytest.mark.parametrize(
    ("longest", "expected"),
    [(511, [16, 32, 64, 128, 256, 511]), (64, [16, 32, 64]), (16, [16]), (9, [9])],
)
def test_contexts_double_up_to_the_longest(longest: int, expected: list[int]) -> None:
    assert contexts(longest) == expected


def test_each_context_has_the_gap_of_what_was_scored_with_it() -> None:
    asked = []

    def score(context: int) -> list[TwinScores]:
        asked.append(context)
        return [pair([value * context for value in BACKWARD])] * 2

    found = list(gap_by_context(score, longest=40, seed=7))
    assert asked == [one.context for one in found] == [16, 32, 40]
    for one in found:
        loss = twin_loss(score(one.context), seed=7)
        assert (one.texts, one.gap) == (3, loss.gap)
        assert (one.backward, one.forward) == (loss.backward.value, loss.forward.value)
        assert one.gap_over_seeds == loss.gap_over_seeds is not None


def test_with_less_context_both_twins_still_score_every_token(
    tokenizer: Tokenizer, texts: list[str]
) -> None:
    backward = tiny_model(tokenizer)
    twins = [backward, backward.turned()]

    def score(context: int) -> list[TwinScores]:
        of_each = (score_texts(m, texts[:6], context=context) for m in twins)
        return [TwinScores(*of_each)]

    found = list(gap_by_context(score, longest=100, seed=1))
    assert len({one.backward for one in found}) == len({one.forward for one in found}) == len(found)
    [pair] = score(16)
    for b, f, text in zip(pair.backward, pair.forward, texts, strict=False):
        assert b.n_tokens == f.n_tokens == len(tokenizer.encode(text)) + 1
        assert b.n_windows == f.n_windows == -(-b.n_tokens // 16)
