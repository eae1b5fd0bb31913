"""Scoring: exact, batched as one by one, and alike for what both twins must agree on."""

import math

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from backgpt.engine.torch_engine import TorchEngine
from backgpt.language import Language
from backgpt.model import Transformer
from backgpt.order import Direction, ModelIds, Unit
from backgpt.sampling import logprob_of
from backgpt.score import bits_per_byte, score_texts, score_written, word_scores
from backgpt.shape import ModelConfig
from backgpt.tokenizer import Tokenizer

TEXTS = ["The end.", "Once there was a fox.\nIt ran.", "", "é 😀", "word " * 60]


@pytest.fixture(scope="module")
def engine(tokenizer: Tokenizer) -> TorchEngine:
    config = ModelConfig(
        n_layer=2,
        n_head=2,
        n_kv_head=1,
        n_embd=32,
        vocab_size=tokenizer.vocab_size,
        block_size=48,
        intermediate_size=64,
        head_dim=16,
    )
    torch.manual_seed(0)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # far from uniform, so that order matters
    return TorchEngine(model)


@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_a_score_is_the_sum_of_the_models_own_log_probabilities(
    engine: TorchEngine, tokenizer: Tokenizer, direction: Direction, unit: Unit
) -> None:
    language = Language(tokenizer, direction, unit)
    [score] = score_texts(engine, language, ["The end."])
    ids = language.order.to_model(tokenizer.mark(tokenizer.encode("The end.")))
    with torch.no_grad():
        logits = engine.model(torch.from_numpy(ids)[None])[0].numpy().astype(np.float64)
    expected = sum(logprob_of(id_, row) for row, id_ in zip(logits[:-1], ids[1:], strict=True))
    assert score.logprob == pytest.approx(expected, abs=1e-4)
    assert score.n_tokens == len(ids) - 1


@pytest.mark.parametrize("unit", ["token", "word"])
def test_token_log_probabilities_stand_in_reading_order(
    engine: TorchEngine, tokenizer: Tokenizer, unit: Unit
) -> None:
    language = Language(tokenizer, "backward", unit)
    [score] = score_texts(engine, language, ["The end."])
    ids = tokenizer.mark(tokenizer.encode("The end."))
    model = language.order.to_model(ids)
    [values] = engine.score([model])
    by_position = dict(zip(language.order.permutation(ids)[1:], values, strict=True))
    assert score.token_logprobs[-1] == 0
    assert [by_position[i] for i in range(len(ids) - 1)] == pytest.approx(
        score.token_logprobs[:-1].tolist()
    )


def test_batched_is_one_by_one(engine: TorchEngine, tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "backward", "token")
    together = score_texts(engine, language, TEXTS)
    for text, score in zip(TEXTS, together, strict=True):
        [alone] = score_texts(engine, language, [text])
        assert score.logprob == pytest.approx(alone.logprob, abs=1e-4)


def test_a_text_longer_than_the_context_is_scored_in_windows_and_says_so(
    engine: TorchEngine, tokenizer: Tokenizer
) -> None:
    backward, forward = (
        score_texts(engine, Language(tokenizer, direction, "token"), ["word " * 60])[0]
        for direction in ("backward", "forward")
    )
    n_ids = len(tokenizer.encode("word " * 60))
    for score in (backward, forward):
        assert score.n_windows == -(-(n_ids + 1) // engine.block_size) > 1
        assert score.n_tokens == n_ids + 1
        assert np.count_nonzero(score.token_logprobs) == n_ids + 1


@pytest.mark.parametrize("unit", ["token", "word"])
def test_every_id_of_a_text_without_white_space_is_scored_once(
    engine: TorchEngine, tokenizer: Tokenizer, unit: Unit
) -> None:
    text = "中" * 60
    [score] = score_texts(engine, Language(tokenizer, "backward", unit), [text])
    assert score.n_windows > 1
    assert np.count_nonzero(score.token_logprobs) == len(tokenizer.encode(text)) + 1


def test_a_more_likely_text_scores_higher(engine: TorchEngine, tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "backward", "token")
    one, other = score_texts(engine, language, ["The end.", "The eend."])
    assert one.logprob != other.logprob
    assert one.loss == pytest.approx(-one.logprob / one.n_tokens)


def test_bits_per_byte_is_nats_over_ln_2_over_bytes() -> None:
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2.0)
    assert math.isnan(bits_per_byte(1.0, 0))


def test_what_is_written_is_scored_given_what_stands_before(
    engine: TorchEngine, tokenizer: Tokenizer
) -> None:
    language = Language(tokenizer, "backward", "token")
    whole = [language.order.to_model(tokenizer.mark(tokenizer.encode(text))) for text in TEXTS[:2]]
    pairs = [
        (ModelIds(ids[:first]), ModelIds(ids[first:]))
        for ids in whole
        for first in (1, 3, len(ids) - 1, len(ids))
    ]
    for (given, written), values in zip(pairs, score_written(engine, pairs), strict=True):
        [expected] = engine.score([np.concatenate((given, written))])
        assert len(values) == len(written)
        np.testing.assert_allclose(values, expected[len(given) - 1 :], atol=1e-5)
    assert score_written(engine, []) == []


@hypothesis.settings(max_examples=50)
@hypothesis.given(st.one_of(st.text(max_size=30), st.text(" \n.a\u0301😀字", max_size=30)))
def test_the_scores_of_words_join_to_the_text_and_sum_to_its_score(
    engine: TorchEngine, tokenizer: Tokenizer, text: str
) -> None:
    for direction in ("backward", "forward"):
        [score] = score_texts(engine, Language(tokenizer, direction, "token"), [text])
        words = word_scores(tokenizer, text, score)
        assert "".join(word.text for word in words) == text
        assert sum(word.logprob for word in words) + score.edge == pytest.approx(
            score.logprob, abs=1e-3
        )


def test_a_word_stands_with_the_white_space_in_front_of_it(
    engine: TorchEngine, tokenizer: Tokenizer
) -> None:
    text = "Once there\n\n was  a fox.\n"
    [score] = score_texts(engine, Language(tokenizer, "backward", "token"), [text])
    found = [word.text for word in word_scores(tokenizer, text, score)]
    assert found == ["Once", " there", "\n\n was", "  a", " fox.", "\n"]
