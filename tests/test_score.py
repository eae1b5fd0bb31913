"""Scoring: exact, batched as one by one, and alike for what both twins must agree on."""

import math
import re
from itertools import pairwise

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from backgpt.batches import cut_document
from backgpt.engine.torch_engine import TorchEngine
from backgpt.errors import UsageError
from backgpt.language import Language
from backgpt.model import Transformer
from backgpt.order import Direction, ModelIds, ReadingIds, Unit
from backgpt.sampling import logprob_of
from backgpt.score import (
    Window,
    bits_per_byte,
    context_size,
    score_in_slices,
    score_texts,
    score_written,
    windows,
    word_scores,
)
from backgpt.shape import ModelConfig
from backgpt.slices import finished
from backgpt.tokenizer import Tokenizer
from tiny_models import BareRunner

DIRECTIONS: tuple[Direction, ...] = ("backward", "forward")
LONG = "Once there was a fox who ran to the big tree.\nHe sat, and he looked. " * 8
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
    [score] = score_texts(BareRunner(engine, language), ["The end."])
    ids = language.order.to_model(tokenizer.mark(tokenizer.encode("The end.")))
    with torch.no_grad():
        assert isinstance(engine.model, Transformer)
        logits = engine.model(torch.from_numpy(ids)[None])[0].numpy().astype(np.float64)
    expected = sum(logprob_of(id_, row) for row, id_ in zip(logits[:-1], ids[1:], strict=True))
    assert score.logprob == pytest.approx(expected, abs=1e-4)
    assert score.n_tokens == len(ids) - 1


@pytest.mark.parametrize("unit", ["token", "word"])
def test_token_log_probabilities_stand_in_reading_order(
    engine: TorchEngine, tokenizer: Tokenizer, unit: Unit
) -> None:
    language = Language(tokenizer, "backward", unit)
    [score] = score_texts(BareRunner(engine, language), ["The end."])
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
    together = score_texts(BareRunner(engine, language), TEXTS)
    for text, score in zip(TEXTS, together, strict=True):
        [alone] = score_texts(BareRunner(engine, language), [text])
        assert score.logprob == pytest.approx(alone.logprob, abs=1e-4)


def test_a_text_longer_than_the_context_is_scored_in_windows_and_says_so(
    engine: TorchEngine, tokenizer: Tokenizer
) -> None:
    backward, forward = (
        score_texts(BareRunner(engine, Language(tokenizer, direction, "token")), ["word " * 60])[0]
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
    [score] = score_texts(BareRunner(engine, Language(tokenizer, "backward", unit)), [text])
    assert score.n_windows > 1
    assert np.count_nonzero(score.token_logprobs) == len(tokenizer.encode(text)) + 1


def cuts_of(window: Window) -> tuple[int, int]:
    """Return the first and last reading position of a piece, the ids it shares included."""
    first = min(window.scored.start, window.given.stop - 1)
    return first, max(window.scored.stop - 1, window.given.start)


@pytest.mark.parametrize("overlap", [0, 1, 20, 46])
@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_windows_score_every_id_once_behind_the_context_that_was_asked_for(
    tokenizer: Tokenizer, texts: list[str], direction: Direction, unit: Unit, overlap: int
) -> None:
    language, longest = Language(tokenizer, direction, unit), 47
    backward = tokenizer.order("backward", unit)
    for text in [*texts[:6], "", "中" * 60]:
        marked = tokenizer.mark(tokenizer.encode(text))
        found = list(windows(marked, language, longest=longest, overlap=overlap))
        scored = [position for one in found for position in range(len(marked))[one.scored]]
        first = 0 if direction == "backward" else 1
        assert scored == list(range(first, first + len(marked) - 1))
        starts = {*np.flatnonzero(backward.group_starts(marked)).tolist(), len(marked)}
        for one in found:
            given = range(len(marked))[one.given]
            assert 1 <= len(given) <= overlap + 1
            assert len(given) + len(marked[one.scored]) <= longest + 1
            if direction == "backward":
                assert given.start == one.scored.stop
                there_is = len(marked) - given.start
                assert given.stop in starts or len(given) == 1
            else:
                assert given.stop == one.scored.start
                there_is = given.stop
                assert given.start in starts or len(given) == 1
            if unit == "token":
                assert len(given) == min(overlap + 1, there_is)


@pytest.mark.parametrize("overlap", [0, 20])
@pytest.mark.parametrize("unit", ["token", "word"])
def test_the_twins_are_cut_at_the_same_reading_positions(
    tokenizer: Tokenizer, texts: list[str], unit: Unit, overlap: int
) -> None:
    for text in [*texts[:6], "", "中" * 60]:
        marked = tokenizer.mark(tokenizer.encode(text))
        backward, forward = (
            [
                cuts_of(window)
                for window in windows(
                    marked, Language(tokenizer, way, unit), longest=47, overlap=overlap
                )
            ]
            for way in DIRECTIONS
        )
        assert backward == forward
        assert all(last == first for (_, last), (first, _) in pairwise(backward))


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_a_window_is_scored_as_the_engine_scores_its_context_and_piece(
    engine: TorchEngine, tokenizer: Tokenizer, direction: Direction, unit: Unit, told: bool
) -> None:
    language, overlap = Language(tokenizer, direction, unit, told=told), 20
    longest = context_size(BareRunner(engine, language))
    assert longest == 48 - told
    marked = tokenizer.mark(tokenizer.encode(LONG))
    starts = tokenizer.order("backward", unit).group_starts(marked)
    cuts = list(
        cut_document(marked, tokenizer.order("backward", unit), block_size=longest - overlap)
    )
    expected = np.zeros(len(marked), dtype=np.float32)
    for first, last in cuts:
        if direction == "backward":
            stop = min(last + overlap + 1, len(marked))
            while stop < len(marked) and not starts[stop]:
                stop -= 1
            start = first
        else:
            start, stop = max(first - overlap, 0), last + 1
            while not starts[start]:
                start += 1
        read = ReadingIds(marked[start:stop])
        [values] = engine.score([np.concatenate((language.lead, language.order.to_model(read)))])
        places = start + language.order.permutation(read)
        expected[places[first - last :]] = values[first - last :]
    [score] = score_texts(BareRunner(engine, language), [LONG], overlap=overlap)
    assert score.n_windows == len(cuts) > 3
    np.testing.assert_allclose(score.token_logprobs, expected, atol=1e-4)
    assert np.count_nonzero(score.token_logprobs) == score.n_tokens == len(marked) - 1


@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_without_overlap_windows_are_those_of_training(
    engine: TorchEngine, tokenizer: Tokenizer, direction: Direction, unit: Unit
) -> None:
    language = Language(tokenizer, direction, unit)
    marked = tokenizer.mark(tokenizer.encode(LONG))
    expected = np.zeros(len(marked), dtype=np.float32)
    for first, last in cut_document(marked, language.cutter, block_size=48):
        ids = marked[first : last + 1]
        places = language.order.permutation(ids, last_apart=True)
        [expected[first + places[1:]]] = engine.score([ids[places]])
    for scores in (
        score_texts(BareRunner(engine, language), [LONG]),
        score_texts(BareRunner(engine, language), [LONG], overlap=0),
    ):
        np.testing.assert_allclose(scores[0].token_logprobs, expected, atol=1e-5)


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_an_overlap_changes_only_texts_that_do_not_fit(
    engine: TorchEngine, tokenizer: Tokenizer, direction: Direction
) -> None:
    language = Language(tokenizer, direction, "token")
    just_fits = tokenizer.decode(ReadingIds(tokenizer.encode(LONG)[:47]))
    assert len(tokenizer.encode(just_fits)) == 47
    texts = [*TEXTS[:4], just_fits, LONG]
    plain = score_texts(BareRunner(engine, language), texts)
    overlapping = score_texts(BareRunner(engine, language), texts, overlap=24)
    for one, other in zip(plain[:-1], overlapping[:-1], strict=True):
        assert one.n_windows == other.n_windows == 1
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    assert plain[-1].n_windows < overlapping[-1].n_windows
    assert abs(plain[-1].logprob - overlapping[-1].logprob) > 0.1
    assert plain[-1].n_tokens == overlapping[-1].n_tokens


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_a_window_sees_as_much_context_as_it_overlaps(
    engine: TorchEngine, tokenizer: Tokenizer, direction: Direction
) -> None:
    language, overlap = Language(tokenizer, direction, "token"), 10
    ids = np.random.default_rng(1).integers(16, tokenizer.vocab_size, 100)
    marked = tokenizer.mark(ReadingIds(ids))
    cut = list(windows(marked, language, longest=48, overlap=overlap))[1]
    inside, outside = (
        (cut.given.stop - 1, cut.given.stop)
        if direction == "backward"
        else (cut.given.start, cut.given.start - 1)
    )

    def scored(changed: int | None) -> list[float]:
        others = ids.copy()
        if changed is not None:
            others[changed - 1] = 16 + (others[changed - 1] - 15) % (tokenizer.vocab_size - 16)
        [score] = finished(
            score_in_slices(
                BareRunner(engine, language),
                [ReadingIds(others)],
                [0],
                together=999,
                overlap=overlap,
            )
        )
        values: list[float] = score.token_logprobs[cut.scored].tolist()
        return values

    assert scored(outside) == pytest.approx(scored(None), abs=1e-5)
    assert scored(inside) != pytest.approx(scored(None), abs=1e-3)


@pytest.mark.parametrize("overlap", [-1, 47, 1000])
def test_an_overlap_that_cannot_be_is_refused(
    engine: TorchEngine, tokenizer: Tokenizer, overlap: int
) -> None:
    language = Language(tokenizer, "backward", "token", told=True)
    with pytest.raises(
        UsageError, match=re.escape(f"overlap = {overlap}: it must be from 0 to 46")
    ):
        score_texts(BareRunner(engine, language), ["The end."], overlap=overlap)
    [score] = score_texts(BareRunner(engine, language), [LONG], overlap=46)  # a window for each id
    assert score.n_windows == score.n_tokens


def test_a_more_likely_text_scores_higher(engine: TorchEngine, tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "backward", "token")
    one, other = score_texts(BareRunner(engine, language), ["The end.", "The eend."])
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
        [score] = score_texts(BareRunner(engine, Language(tokenizer, direction, "token")), [text])
        words = word_scores(tokenizer, text, score)
        assert "".join(word.text for word in words) == text
        assert sum(word.logprob for word in words) + score.edge == pytest.approx(
            score.logprob, abs=1e-3
        )


def test_a_word_stands_with_the_white_space_in_front_of_it(
    engine: TorchEngine, tokenizer: Tokenizer
) -> None:
    text = "Once there\n\n was  a fox.\n"
    [score] = score_texts(BareRunner(engine, Language(tokenizer, "backward", "token")), [text])
    found = [word.text for word in word_scores(tokenizer, text, score)]
    assert found == ["Once", " there", "\n\n was", "  a", " fox.", "\n"]
    with pytest.raises(UsageError, match="the score is that of another text"):
        word_scores(tokenizer, text + "It ran.", score)


def test_one_text_is_no_list_of_texts(engine: TorchEngine, tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match=r"texts = 'The end\.': give a list"):
        score_texts(BareRunner(engine, Language(tokenizer, "backward", "token")), "The end.")
