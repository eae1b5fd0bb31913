"""Alternatives: whole words, exactly the likeliest, with their true probabilities."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from backgpt.alternatives import find_alternatives
from backgpt.api import Model
from backgpt.engine import FloatArray
from backgpt.errors import UsageError
from backgpt.language import Language
from backgpt.order import IdArray, Unit
from backgpt.slices import finished
from backgpt.tokenizer import Tokenizer
from tiny_models import BareRunner, Watched, tiny_model


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:
    return tiny_model(tokenizer, bias=0.0)


def log_softmax(logits: FloatArray) -> NDArray[np.float64]:
    scores = logits.astype(np.float64)
    return np.asarray(scores - scores.max() - np.log(np.exp(scores - scores.max()).sum()))


def test_words_of_one_id_have_the_probability_that_the_model_gives_it(model: Model) -> None:
    tokenizer, prompt = model.tokenizer, model.prompt(" ran home.")
    rows, logits = model.engine.prefill(prompt.ids)
    model.engine.release(rows)
    logprobs = log_softmax(logits)
    found = {one.text: one.logprob for one in model.alternatives(" ran home.", 50)}
    ids = [
        id_
        for id_ in range(tokenizer.vocab_size)
        if tokenizer.starts_group[id_] and tokenizer.token_bytes[id_].strip()
    ]
    for id_ in sorted(ids, key=lambda id_: -logprobs[id_])[:10]:
        text = tokenizer.token_bytes[id_].decode().removeprefix(" ")
        assert found[text] >= logprobs[id_] - 1e-9  # more where several ids make the same word
    assert found[""] == pytest.approx(logprobs[tokenizer.start_id])


@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize("ending", [" ran home.", "ran home.", "\nThe end.", ""])
def test_a_word_is_whole_and_its_probability_is_what_it_scores(
    tokenizer: Tokenizer, unit: Unit, ending: str
) -> None:
    model = tiny_model(tokenizer, unit=unit, bias=0.0)
    prompt = model.prompt(ending)
    found = model.alternatives(ending, 20)
    assert len(found) == len({(one.text, one.edge) for one in found}) > 10
    logprobs = [one.logprob for one in found]
    assert logprobs == sorted(logprobs, reverse=True)
    assert sum(one.probability for one in found) < 1
    for one in found:
        assert "<|" not in one.text
        assert one.edge or one.text.strip()
        assert len(one.text.split()) <= 1
        assert not one.text.startswith(" ")
        if not prompt.joins_on and one.text and not one.text.endswith("\n"):
            assert one.text.endswith(" ")


class Table:
    """An engine that gives ids the probabilities written down for the ids read after a prompt."""

    shares_beginnings = False

    def __init__(self, table: dict[tuple[int, ...], dict[int, float]], vocab_size: int) -> None:
        self.table, self.vocab_size, self.block_size = table, vocab_size, 64
        self.read: dict[int, tuple[int, ...]] = {}

    def prefill(self, ids: IdArray, copies: int = 1) -> tuple[list[int], FloatArray]:
        rows = [len(self.read) + i for i in range(copies)]
        self.read |= dict.fromkeys(rows, ())
        return rows, self._logits(())

    def step(self, rows: Sequence[int], ids: Sequence[int]) -> FloatArray:
        for row, id_ in zip(rows, ids, strict=True):
            self.read[row] = (*self.read[row], id_)
        return np.stack([self._logits(self.read[row]) for row in rows])

    def release(self, rows: Sequence[int]) -> None: ...

    def score(self, sequences: Sequence[IdArray]) -> list[FloatArray]:
        raise AssertionError("alternatives do not score")

    def _logits(self, read: tuple[int, ...]) -> FloatArray:
        row = np.full(self.vocab_size, -1000.0)
        for id_, probability in self.table.get(read, {}).items():
            row[id_] = np.log(probability)
        return row


@pytest.mark.parametrize("unit", ["token", "word"])
def test_words_of_several_ids_are_found_with_hand_computed_probabilities(
    tokenizer: Tokenizer, unit: Unit
) -> None:
    language = Language(tokenizer, "backward", unit)
    ids = language.order.to_model(tokenizer.encode("elephantine")).tolist()
    [short] = tokenizer.encode("the").tolist()
    start = tokenizer.start_id
    assert len(ids) > 2
    if unit == "token":  # a word is whole with the id that begins it
        table = {
            (): {ids[0]: 0.5, short: 0.3, start: 0.2},
            (ids[0],): {ids[1]: 0.9, short: 0.1},
            **{tuple(ids[:n]): {ids[n]: 1.0} for n in range(2, len(ids))},
        }
        expected = [("elephantine ", 0.45), ("the ", 0.3), ("", 0.2)]
    else:  # a word is whole where another one begins
        table = {
            (): {ids[0]: 0.5, short: 0.3, start: 0.2},
            (short,): {short: 0.6, start: 0.1, ids[1]: 0.3},
            (short, ids[1]): {short: 1.0},
            **{tuple(ids[:n]): {ids[n]: 1.0} for n in range(1, len(ids))},
            tuple(ids): {short: 0.9, start: 0.1},
        }
        expected = [("elephantine ", 0.5), ("the ", 0.21), ("", 0.2)]
    engine = Table(table, tokenizer.vocab_size)
    prompt = language.prompt("ran.", at_edge=True)
    found = finished(find_alternatives(BareRunner(engine, language), prompt, 3))
    assert [one.text for one in found] == [text for text, _ in expected]
    assert [one.probability for one in found] == pytest.approx([share for _, share in expected])
    assert [one.edge for one in found] == [text == "" for text, _ in expected]


def test_at_the_end_of_the_context_a_word_may_take_all_that_is_left(tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "backward", "token")
    ids = language.order.to_model(tokenizer.encode("elephantine")).tolist()
    table = {tuple(ids[:n]): {ids[n]: 1.0} for n in range(len(ids))}
    engine = Table(table, tokenizer.vocab_size)
    prompt = language.prompt("ran.", at_edge=True)
    found = {}
    for left in (len(ids), len(ids) - 1):
        engine.block_size = len(prompt.ids) + left - 1  # the last id is not read
        [one] = finished(find_alternatives(BareRunner(engine, language), prompt, 1))
        found[left] = one.text
    assert found == {len(ids): "elephantine ", len(ids) - 1: ""}


def test_the_likeliest_do_not_depend_on_how_many_are_asked_for(model: Model) -> None:
    for ending in ("ran home.", "The end.", "so they ate it all."):
        many = model.alternatives(ending, 30)
        for n in (1, 5):
            few = model.alternatives(ending, n)
            assert [one.text for one in many[:n]] == [one.text for one in few]


def test_text_put_in_front_is_read_as_the_model_would_have_written_it(model: Model) -> None:
    given = model.tokenizer.encode_fragment("ran home.").tolist()
    written = [one.text for one in model.alternatives("ran home.", 10) if not one.edge]
    assert written
    for text in written:
        ids = model.tokenizer.encode_fragment(text + "ran home.").tolist()
        assert ids[-len(given) :] == given


def test_the_search_is_done_in_slices_and_lets_go_of_all_rows(model: Model) -> None:
    engine = model.engine
    assert isinstance(engine, Watched)
    search = find_alternatives(model, model.prompt("ran home."), 50)
    next(search)
    assert not engine.rows  # so that others may run between two slices, and it may be closed
    assert finished(search)
    assert not engine.rows


def test_hints_change_what_is_likely(model: Model) -> None:
    plain = model.alternatives("ran home.", 10)
    assert plain != model.alternatives("ran home.", 10, words=["fox"])


def test_what_cannot_be_is_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="starts from an opening"):
        model.turned().alternatives("x")
    with pytest.raises(UsageError, match="n = 0"):
        model.alternatives("x", 0)
    with pytest.raises(UsageError, match="the model reads at most"):
        model.alternatives("word " * 400)
