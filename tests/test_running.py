"""Running samples: what joins between steps is written as alone, what is canceled is gone."""

from typing import Any

import numpy as np
import pytest

from backgpt.api import Model
from backgpt.errors import UsageError
from backgpt.generate import collect
from backgpt.language import Language
from backgpt.order import Direction, Unit
from backgpt.running import Drawn, Job, Running, ids_apart
from backgpt.sampling import Sampling, logprob_of
from backgpt.tokenizer import Tokenizer
from tiny_models import Watched, tiny_model

WILD = Sampling(temperature=1.0)


@pytest.fixture
def model(tokenizer: Tokenizer) -> Model:
    """A model that never ends by itself."""
    return tiny_model(tokenizer, bias=-50.0)


def engine_of(model: Model) -> Watched:
    assert isinstance(model.engine, Watched)
    return model.engine


def job(model: Model, text: str = "The end.", **more: Any) -> Job:
    return Job(model.language, model.prompt(text), sampling=WILD, **more)


@pytest.mark.parametrize("n", [1, 3])
def test_samples_that_join_others_are_written_as_alone(model: Model, n: int) -> None:
    jobs = [job(model, text, seed=i, max_new_tokens=12 + i, n=n) for i, text in enumerate("abcd")]
    running = Running(model.engine)
    drawn: list[Drawn] = []
    numbers = []
    for one in jobs:
        numbers.append(running.add(one))
        for _ in range(3):
            drawn += running.step()
    drawn += running.steps()
    for one, of_job in zip(jobs, numbers, strict=True):
        alone = collect(model.engine, one)
        for number, text in zip(of_job, alone, strict=True):
            mine = [d for d in drawn if d.number == number]
            assert [d.id_ for d in mine] == text.ids.tolist()
            assert [d.is_last for d in mine] == [False] * (len(mine) - 1) + [True]
    assert not engine_of(model).rows


def test_a_canceled_sample_is_gone_at_once_and_the_others_go_on(model: Model) -> None:
    running = Running(model.engine)
    numbers = running.add(job(model, n=3))
    running.step()
    running.cancel([numbers[1], 99])
    assert len(running) == len(engine_of(model).rows) == 2
    assert {drawn.number for drawn in running.step()} == {numbers[0], numbers[2]}
    running.close()
    assert not engine_of(model).rows


def test_a_job_that_does_not_fit_takes_no_row(model: Model) -> None:
    running = Running(model.engine)
    with pytest.raises(UsageError, match="the model reads at most"):
        running.add(job(model, "word " * 400))
    assert not engine_of(model).rows
    assert not len(running)


def test_the_likeliest_ids_are_told_with_the_models_own_probabilities(model: Model) -> None:
    running = Running(model.engine)
    one = job(model, n_likeliest=5)
    rows, logits = model.engine.prefill(one.prompt.ids)
    model.engine.release(rows)
    running.add(one)
    [drawn] = running.step()
    running.close()
    assert len(drawn.likeliest) == 5
    logprobs = [logprob for _, logprob in drawn.likeliest]
    assert logprobs == sorted(logprobs, reverse=True)
    for id_, logprob in drawn.likeliest:
        assert logprob == pytest.approx(logprob_of(id_, logits.astype(float)))
        assert model.tokenizer.has_text[id_] or id_ in one.prompt.stops


@pytest.mark.parametrize(
    ("direction", "unit"), [("backward", "token"), ("backward", "word"), ("forward", "token")]
)
def test_a_word_that_was_begun_is_ended_whatever_was_said_before(
    tokenizer: Tokenizer, direction: Direction, unit: Unit
) -> None:
    """A name of many ids, said often, would lose more at each further id."""
    language = Language(tokenizer, direction, unit)

    def is_apart(id_: int, text: list[int]) -> bool:
        found = ids_apart(language, np.array(text, dtype=np.int64))
        return bool(np.broadcast_to(found, tokenizer.vocab_size)[id_])

    name = language.word_ids("Xiomara").tolist()
    assert len(name) > 3
    for place in range(1, len(name)):
        assert not is_apart(name[place], [*name * 3, *name[:place]]), place
    assert is_apart(name[0], name * 3)
