"""Ranking: the three ways to judge a text in two parts, each against its formula."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from backgpt import rank
from backgpt.api import Model
from backgpt.chat import Template
from backgpt.engine import FloatArray
from backgpt.errors import UsageError
from backgpt.generate import Text
from backgpt.hints import Hints
from backgpt.language import Language, Parts
from backgpt.messages import Message
from backgpt.order import Direction, IdArray, ModelIds, ReadingIds
from backgpt.rank import (
    Method,
    Ranked,
    best_first,
    best_of_texts,
    best_places,
    check_method,
    goodness,
    parts_of,
)
from backgpt.slices import finished
from backgpt.tokenizer import Tokenizer
from tiny_models import config_of, tiny_model

BEGINNINGS = [
    "One day, Tim ran home.",
    "Once upon a time there was a dog.",
    "",
    "The sun was hot.\n",
]
ENDING = "They were happy. The end."
WAYS: list[Direction] = ["backward", "forward"]


def log_p(model: Model, given: list[int], written: list[int]) -> float:
    """Return log p in nats of `written` behind the direction and `given`, in model order."""
    first = [model.tokenizer.control_id(f"<|{model.direction}|>"), *given]
    [values] = model.engine.score([np.array(first + written)])
    return float(values[len(values) - len(written) :].sum(dtype=np.float64))


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:
    return tiny_model(tokenizer)


@pytest.fixture(scope="module")
def candidates(tokenizer: Tokenizer) -> list[Parts]:
    """Texts with the same ending."""
    return [parts_of(tokenizer, before, ENDING) for before in BEGINNINGS]


def test_each_method_is_its_formula_for_a_backward_writer(
    model: Model, candidates: list[Parts]
) -> None:
    tokenizer, forward = model.tokenizer, model.turned()
    start, end = tokenizer.start_id, tokenizer.end_id
    order = model.language.order
    found: dict[Method, list[float]] = {
        method: goodness(candidates, method, writer=model, twin=forward)
        for method in ("backward", "forward", "both")
    }
    for place, (before, after) in enumerate(candidates):
        left, right = order.to_model(before).tolist(), order.to_model(after).tolist()
        own = log_p(model, [end, *right], [*left, start])
        reverse = log_p(forward, [start, *before.tolist()], [*after.tolist(), end])
        alone = log_p(forward, [start], before.tolist())
        assert found["backward"][place] == pytest.approx(own / (len(before) + 1), abs=1e-4)
        assert found["forward"][place] == pytest.approx(reverse, abs=1e-3)
        assert found["both"][place] == pytest.approx(reverse + own - alone, abs=1e-3)
    for values in found.values():
        assert len({round(value, 3) for value in values}) == len(candidates)


def test_each_method_is_its_formula_for_a_forward_writer(
    model: Model, tokenizer: Tokenizer
) -> None:
    forward = model.turned()
    start, end = tokenizer.start_id, tokenizer.end_id
    before, after = parts_of(tokenizer, "One day, Tim ran.", ENDING)
    order = model.language.order
    left, right = order.to_model(before).tolist(), order.to_model(after).tolist()
    own = log_p(forward, [start, *before.tolist()], [*after.tolist(), end])
    reverse = log_p(model, [end, *right], [*left, start])
    alone = log_p(model, [end], right)
    expected: dict[Method, float] = {
        "forward": own / (len(after) + 1),
        "backward": reverse,
        "both": reverse + own - alone,
    }
    for method, value in expected.items():
        [found] = goodness([(before, after)], method, writer=forward, twin=model)
        assert found == pytest.approx(value, abs=1e-3)


class Chain:
    """An engine of texts in which each id depends on the one before: exact in both directions.

    A forward model knows p(next | id); Bayes gives the very same distribution over whole texts to a
    backward one: p(previous | id) = visits(previous) p(id | previous) / visits(id).
    """

    block_size = 64
    shares_beginnings = False

    def __init__(self, tokenizer: Tokenizer, ids: Sequence[int], direction: Direction) -> None:
        self.vocab_size = tokenizer.vocab_size
        self.places = {tokenizer.start_id: 0, tokenizer.end_id: len(ids) + 1}
        self.places |= {id_: place for place, id_ in enumerate(ids, start=1)}
        size = len(self.places)
        following = np.random.default_rng(4).dirichlet(np.full(size - 1, 0.5), size)
        following = np.concatenate((np.zeros((size, 1)), following), axis=1)
        following[-1] = 0
        visits = np.linalg.inv(np.eye(size) - following)[0]
        self.table: npt.NDArray[np.float64] = (
            following if direction == "forward" else (following * visits[:, None] / visits).T
        )

    def score(self, sequences: Sequence[IdArray]) -> list[FloatArray]:
        found = []
        for ids in sequences:
            places = [self.places[int(id_)] for id_ in ids]
            values = np.log(self.table[places[:-1], places[1:]])
            found.append(values.astype(np.float32))
        return found


def chain_model(tokenizer: Tokenizer, ids: Sequence[int], direction: Direction) -> Model:
    language = Language(tokenizer, direction, "token")
    engine: Any = Chain(tokenizer, ids, direction)
    return Model(config_of(tokenizer), language, engine)


@pytest.mark.parametrize("writing", WAYS)
def test_where_twins_agree_both_is_twice_the_reverse_but_for_what_all_share(
    tokenizer: Tokenizer, writing: Direction
) -> None:
    random = np.random.default_rng(1)
    ids = [int(id_) for id_ in random.choice(np.flatnonzero(tokenizer.has_text), 5, replace=False)]
    models = {way: chain_model(tokenizer, ids, way) for way in WAYS}
    judge: Direction = "forward" if writing == "backward" else "backward"
    given = ReadingIds(np.array(random.choice(ids, 4)))
    texts: list[Parts] = []
    for size in (0, 1, 3, 6, 9):
        written = ReadingIds(np.array(random.choice(ids, size), dtype=np.int64))
        texts.append((written, given) if writing == "backward" else (given, written))
    # They are the same distribution: a whole text is as likely to the one as to the other.
    for before, after in texts:
        nothing = ReadingIds(np.array([], dtype=np.int64))
        rows = [
            models["backward"].language.row(_joined(before, after), nothing),
            models["forward"].language.row(nothing, _joined(before, after)),
        ]
        sums = [
            models[way].engine.score([np.concatenate(row)])[0].sum()
            for way, row in zip(WAYS, rows, strict=True)
        ]
        assert sums[0] == pytest.approx(sums[1], abs=1e-3)
    writer, twin = models[writing], models[judge]
    reverse = np.array(goodness(texts, judge, writer=writer, twin=twin))
    both = np.array(goodness(texts, "both", writer=writer, twin=twin))
    assert np.ptp(both - 2 * reverse) == pytest.approx(0, abs=1e-3)
    assert np.ptp(both) > 0.1


def _joined(before: ReadingIds, after: ReadingIds) -> ReadingIds:
    return ReadingIds(np.concatenate((before, after)).astype(np.int64))


def test_a_method_there_is_not_or_that_needs_a_twin_is_refused(
    model: Model, candidates: list[Parts]
) -> None:
    for method in ("forward", "both"):
        with pytest.raises(UsageError, match=f"rank by '{method}' takes .* give its twin"):
            goodness(candidates, method, writer=model, twin=None)
    with pytest.raises(UsageError, match="rank by 'sideways': choose one of backward, forward"):
        check_method("sideways", writer=model, twin=model.turned())  # type: ignore[arg-type]
    check_method("backward", writer=model, twin=None)
    check_method("forward", writer=model.turned(), twin=None)


@pytest.mark.parametrize(
    ("before", "after"),
    [("A b.", "C d."), ("A b. ", "C d."), ("A b.", " C d."), ("A b. ", " C d.")],
)
def test_one_space_between_the_parts_may_be_in_either_or_neither(
    tokenizer: Tokenizer, before: str, after: str
) -> None:
    parts = parts_of(tokenizer, before, after)
    assert _joined(*parts).tolist() == tokenizer.encode("A b. C d.").tolist()
    assert tokenizer.decode(_joined(*parts_of(tokenizer, "A\n", "B"))) == "A\nB"


def text_of(
    model: Model, written: str, *, given: str, reason: str = "stop", place: int = 0
) -> Text:
    """Return a text as if the model had written it."""
    language = model.language
    backward = model.direction == "backward"
    encode = model.tokenizer.encode if backward else model.tokenizer.encode_fragment
    return Text(
        text=f"{written} {given}" if backward else f"{given} {written}",
        given=given,
        finish_reason=reason,  # type: ignore[arg-type]
        logprob=-1.0,
        n_tokens=1,
        seed=place,
        ids=ModelIds(language.order.to_model(encode(written))),
    )


@pytest.mark.parametrize("direction", WAYS)
@pytest.mark.parametrize("method", ["backward", "forward", "both"])
def test_the_best_of_some_texts_has_the_greatest_score(
    tokenizer: Tokenizer, direction: Direction, method: Method
) -> None:
    writer = tiny_model(tokenizer, direction=direction)
    written = ["Tim ran home.", "The sun was hot.", "One day, a dog ran.", "He"]
    given = "They were happy."
    texts = [text_of(writer, one, given=given, place=n) for n, one in enumerate(written)]
    parts = [
        parts_of(tokenizer, one, given)
        if direction == "backward"
        else parts_of(tokenizer, given, one)
        for one in written
    ]
    scores = goodness(parts, method, writer=writer, twin=writer.turned())
    best = best_of_texts(texts, method, writer=writer, twin=writer.turned())
    assert best is texts[int(np.argmax(scores))]
    others = [text for text in texts if text is not best]
    scores.remove(max(scores))
    again = best_of_texts(others, method, writer=writer, twin=writer.turned())
    assert again is others[int(np.argmax(scores))]


def test_what_reached_its_edge_comes_before_what_was_cut(model: Model) -> None:
    cut = [text_of(model, one, given=ENDING, reason="length") for one in BEGINNINGS[:2]]
    whole = text_of(model, "x y z !", given=ENDING)
    for method in ("backward", "forward", "both"):
        found = best_of_texts([*cut, whole], method, writer=model, twin=model.turned())
        assert found is whole
        assert best_of_texts(cut, method, writer=model, twin=model.turned()) in cut


def test_what_obeys_more_hints_comes_first(model: Model) -> None:
    texts = [text_of(model, one, given=ENDING, place=n) for n, one in enumerate(BEGINNINGS)]
    asked: dict[str, Any] = {"writer": model, "twin": model.turned(), "together": 64}
    free = finished(best_places(texts, len(texts), "both", **asked))
    for word, obeys in (("tim", 0), ("dog", 1), ("hot", 3)):
        hints = Hints(words=(word,), length="short")
        found = finished(best_places(texts, len(texts), "both", hints=hints, **asked))
        assert found == [obeys, *(place for place in free if place != obeys)]
        assert (
            best_of_texts(texts, "both", writer=model, twin=model.turned(), hints=hints)
            is texts[obeys]
        )


def test_what_fills_the_context_is_not_judged(tokenizer: Tokenizer) -> None:
    writer = tiny_model(tokenizer, block_size=64)
    twin = writer.turned()
    room = 64 - 2  # a direction, and a marker in front; the one behind is not read
    n_given = len(tokenizer.encode_fragment(ENDING))
    sizes = (room - n_given - 1, room - n_given, room - n_given + 1)
    fits, just_fits, does_not = (
        text_of(writer, "a " * (size - 1) + "a", given=ENDING, place=n)
        for n, size in enumerate(sizes)
    )
    assert [len(text.ids) for text in (fits, just_fits, does_not)] == list(sizes)
    goodness([rank._parts_of_written(writer, just_fits)], "both", writer=writer, twin=twin)
    with pytest.raises(UsageError, match="do not fit"):
        goodness([rank._parts_of_written(writer, does_not)], "both", writer=writer, twin=twin)
    for method in ("backward", "forward", "both"):
        assert best_of_texts([does_not, just_fits], method, writer=writer, twin=twin) is just_fits
        assert best_of_texts([does_not] * 2, method, writer=writer, twin=twin) is does_not


def test_a_twin_with_a_shorter_context_judges_what_it_can(tokenizer: Tokenizer) -> None:
    writer = tiny_model(tokenizer, told=False)
    twin = tiny_model(tokenizer, told=False, direction="forward", block_size=32)
    texts = [text_of(writer, one, given=ENDING) for one in ("a " * 40, "Tim ran.")]
    assert best_of_texts(texts, "both", writer=writer, twin=twin) is texts[1]


def test_texts_with_hints_alone_can_be_ranked(model: Model) -> None:
    texts = [text_of(model, one, given="") for one in BEGINNINGS[:2]]
    assert best_of_texts(texts, "both", writer=model, twin=model.turned()) in texts
    [found] = model.write(words=["dog"], max_new_tokens=5, seed=1, best_of=3)
    assert found.given == ""


def test_the_best_comes_first_and_equals_as_they_were_given() -> None:
    found = best_first(["a", "b", "c", "d"], [-2.0, -1.0, -2.0, 0.5])
    assert found == [
        *(Ranked("d", 3, 0.5), Ranked("b", 1, -1.0), Ranked("a", 0, -2.0), Ranked("c", 2, -2.0))
    ]


def test_answers_are_ranked_by_how_well_they_explain_the_question(model: Model) -> None:
    untuned = replace(model, takes_chat=False)
    question, answers = "Who ran home?", ["The dog did.", "Nobody.", "Tim and the dog, one day."]
    tokenizer, order = model.tokenizer, model.language.order
    found = untuned.rank(question, answers)
    assert [one.text for one in found] == [answers[one.place] for one in found]
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        before, after = (order.to_model(tokenizer.encode(text)) for text in (question, one.text))
        given = [tokenizer.end_id, *after.tolist()]
        expected = log_p(untuned, given, [*before.tolist(), tokenizer.start_id])
        assert one.score == pytest.approx(expected, abs=1e-3)


def test_a_model_tuned_on_conversations_ranks_messages(model: Model) -> None:
    question, answers = "Who ran home?", ["The dog did.", "Nobody."]
    template = Template(model.language)
    order, encode = model.language.order, model.tokenizer.encode
    for one in model.rank(question, answers):
        prompt = template.before([Message("assistant", one.text)])
        tag = model.tokenizer.control_id("<|user|>")
        expected = log_p(
            model, prompt.ids[1:].tolist(), [*order.to_model(encode(question)).tolist(), tag]
        )
        assert one.score == pytest.approx(expected, abs=1e-3)
    scores = {one.text: one.score for one in model.rank(question, answers)}
    plain = {
        one.text: one.score for one in replace(model, takes_chat=False).rank(question, answers)
    }
    assert all(abs(scores[text] - plain[text]) > 1e-3 for text in answers)


def test_answers_that_cannot_be_ranked_are_refused(model: Model) -> None:
    for chat in (True, False):
        of_kind = replace(model, takes_chat=chat)
        with pytest.raises(UsageError, match="no answer to rank"):
            of_kind.rank("Who?", [])
        with pytest.raises(UsageError, match=r"answers = 'He\.': give a list"):
            of_kind.rank("Who?", "He.")
        with pytest.raises(UsageError, match=r"do not fit.*shorten"):
            of_kind.rank("Who?", ["He.", "a " * 300])
        with pytest.raises(UsageError, match="forward model cannot judge"):
            of_kind.turned().rank("Who?", ["He."])
        with pytest.raises(UsageError, match="the question is empty"):
            of_kind.rank(" ", ["He."])
        with pytest.raises(UsageError, match="answer 2 of 3 is empty"):
            of_kind.rank("Who?", ["He.", "\n", "She."])
