"""What people import: a model trained both ways, with hints, through its public face."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import backgpt
from backgpt import Message, Sampling
from backgpt.api import Model, check_twins, load
from backgpt.chat import Template
from backgpt.config import TrainConfig
from backgpt.errors import BackgptError, UsageError
from backgpt.generate import collect
from backgpt.order import Direction
from backgpt.running import Job
from backgpt.tokenizer import Tokenizer
from backgpt.train import train
from tiny_models import tiny_model

USER = Message("user", "And of Japan?")


class Silent:
    def started(self, *, first_step: int, max_steps: int) -> None: ...

    def stepped(self, record: object) -> None: ...

    def notice(self, text: str) -> None: ...


def trained(dataset_path: Path, out: Path, **settings: object) -> Path:
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 256, "intermediate_size": 96}
    config = {"data": dataset_path, "out": out, "max_steps": 40, "batch_size": 4, "compile": "off"}
    train(TrainConfig.model_validate({**config, **shape, **settings}), report=Silent())
    return out


@pytest.fixture(scope="module")
def run(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("api") / "run"
    return trained(dataset_path, out, direction="both", hints=0.5)


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return backgpt.load(run)


def test_a_model_trained_both_ways_runs_backward_unless_told(run: Path, model: Model) -> None:
    assert model.direction == "backward"
    assert backgpt.load(run, direction="forward").direction == "forward"
    [text] = model.write(ending="The end.", max_new_tokens=20, seed=1)
    assert text.text.endswith("The end.")
    [text] = model.turned().write(opening="Once upon a time", max_new_tokens=20, seed=1)
    assert text.text.startswith("Once upon a time")


def test_its_two_directions_score_differently_and_turning_twice_changes_nothing(
    model: Model, texts: list[str]
) -> None:
    backward, forward = model.score(texts[0]), model.turned().score(texts[0])
    again = model.turned().turned().score(texts[0])
    assert backward.n_tokens == forward.n_tokens
    assert backward.logprob == again.logprob != forward.logprob


def test_scores_over_the_validation_split_are_those_that_training_wrote(
    run: Path, model: Model, dataset_path: Path
) -> None:
    from backgpt.run_folder import read_metrics
    from backgpt.shards import open_dataset

    dataset = open_dataset(dataset_path)
    documents = [
        dataset.tokenizer.decode(shard.document(number))
        for shard in dataset.valid
        for number in range(len(shard))
    ]
    metrics = [record for record in read_metrics(run) if "valid_loss" in record][-1]
    losses = {}
    for way in (model, model.turned()):
        scores = way.score_all(documents)
        losses[way.direction] = -sum(s.logprob for s in scores) / sum(s.n_tokens for s in scores)
        assert losses[way.direction] == pytest.approx(
            metrics[f"{way.direction}_valid_loss"], rel=0.01
        )  # training validates in bf16
    assert np.mean(list(losses.values())) == pytest.approx(metrics["valid_loss"], rel=0.01)


def test_hints_change_what_is_written_and_are_not_in_the_text(model: Model) -> None:
    plain = model.write(ending="The end.", max_new_tokens=30, seed=5)
    hinted = model.write(
        ending="The end.",
        opening="One day",
        words=["dog"],
        length="short",
        max_new_tokens=30,
        seed=5,
    )
    assert plain[0].text != hinted[0].text
    assert hinted[0].text.endswith("The end.")
    assert model.as_written(hinted[0]).startswith(". end The")  # no hint


def test_hints_alone_are_enough(model: Model) -> None:
    [text] = model.write(words=["dog"], max_new_tokens=10, seed=1)
    assert text.given == ""


def test_streamed_pieces_with_hints_join_to_the_written_text(model: Model) -> None:
    asked = {"ending": "The end.", "opening": "One day", "words": ["dog"], "seed": 3}
    [text] = model.write(**asked, max_new_tokens=40)  # type: ignore[arg-type]
    joined = "The end."
    for piece in model.stream(**asked, max_new_tokens=40):  # type: ignore[arg-type]
        joined = piece + joined
    assert joined == text.text


def test_a_model_that_does_not_run_that_way_says_so(dataset_path: Path, tmp_path: Path) -> None:
    run = trained(dataset_path, tmp_path / "run", max_steps=1)
    model = backgpt.load(run)
    with pytest.raises(UsageError, match="starts from an ending, not an opening"):
        model.write(ending="The end.", opening="One day")
    with pytest.raises(UsageError, match="only runs backward"):
        model.turned()
    with pytest.raises(UsageError, match="does not run forward"):
        backgpt.load(run, direction="forward")


def test_the_best_of_several_texts_is_one_of_them(model: Model) -> None:
    asked = {"ending": "The end.", "max_new_tokens": 12, "seed": 5}
    written = [text.text for text in model.write(**asked, n=6)]  # type: ignore[arg-type]
    chosen = {}
    for method in ("backward", "forward", "both", None):
        texts = model.write(**asked, n=2, best_of=3, rank_by=method)  # type: ignore[arg-type]
        assert [text.text in written[3 * n :][:3] for n, text in enumerate(texts)] == [True, True]
        chosen[method] = [text.text for text in texts]
    assert chosen[None] == chosen["forward"]
    assert len({tuple(texts) for texts in chosen.values()}) > 1


@pytest.mark.parametrize("best_of", [1, 3])
def test_texts_are_told_of_as_soon_as_they_are_finished(
    model: Model, monkeypatch: pytest.MonkeyPatch, best_of: int
) -> None:
    monkeypatch.setattr("backgpt.generate.MOST_AT_ONCE", 4)
    told: list[list[str]] = []
    texts = model.write(
        "The end.",
        n=6,
        best_of=best_of,
        max_new_tokens=8,
        seed=1,
        report=lambda some: told.append([text.text for text in some]),
    )
    assert [len(some) for some in told] == ([4, 2] if best_of == 1 else [1] * 6)
    assert [text for some in told for text in some] == [text.text for text in texts]


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_twins_in_two_files_rank_as_one_model_does(model: Model, direction: Direction) -> None:
    way = model if direction == "backward" else model.turned()
    given = {"ending" if direction == "backward" else "opening": "The end."}
    asked = {**given, "n": 2, "best_of": 4, "max_new_tokens": 12, "seed": 5}
    untwinned = [text.text for text in way.write(**asked)]  # type: ignore[arg-type]
    twinned = way.write(**asked, twin=way.turned())  # type: ignore[arg-type]
    assert [text.text for text in twinned] == untwinned


def test_a_model_of_one_direction_ranks_by_itself_or_with_its_twin(tokenizer: Tokenizer) -> None:
    alone = tiny_model(tokenizer, told=False)
    twin = tiny_model(tokenizer, told=False, direction="forward", seed=4)
    asked = {"ending": "The end.", "n": 3, "best_of": 4, "max_new_tokens": 12, "seed": 5}

    def texts(**more: object) -> list[str]:
        return [text.text for text in alone.write(**asked, **more)]  # type: ignore[arg-type]

    assert texts() == texts(rank_by="backward") != texts(twin=twin)
    assert (
        texts(twin=twin) == texts(twin=twin, rank_by="forward") != texts(twin=twin, rank_by="both")
    )


def test_texts_that_cannot_be_ranked_so_are_refused_before_any_is_written(
    tokenizer: Tokenizer,
) -> None:
    alone = tiny_model(tokenizer, told=False)
    other = Tokenizer.train(["Another text."] * 3, 300)
    for options, words in (
        ({"best_of": 0}, "best_of = 0"),
        ({"rank_by": "forward"}, "rank by 'forward' takes"),
        ({"rank_by": "both"}, "rank by 'both' takes"),
        ({"rank_by": "sideways"}, "rank by 'sideways': choose one of"),
        ({"twin": alone}, "both models run backward"),
        ({"twin": tiny_model(tokenizer)}, "both models run backward"),
        ({"twin": tiny_model(other, direction="forward")}, "different tokenizers"),
        ({"continues": True}, "ranking is for whole texts"),
        ({"stop": ["x"]}, "ranking is for whole texts"),
        ({"best_of": 1, "rank_by": "backward"}, "choose among the texts of best_of: give it"),
        ({"best_of": 1, "twin": alone}, "choose among the texts of best_of: give it"),
    ):
        with pytest.raises(UsageError, match=words):
            alone.write("The end.", **{"best_of": 2, **options})  # type: ignore[arg-type]
    assert alone.engine.n_steps == 0  # type: ignore[attr-defined]


def test_twins_run_against_each_other_with_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    backward = tiny_model(tokenizer, told=False)
    forward = tiny_model(tokenizer, told=False, direction="forward", seed=4)
    check_twins(backward, forward)
    check_twins(forward, backward)
    other = tiny_model(Tokenizer.train(["Another text."] * 3, 300), direction="forward")
    for model, twin, words in (
        (backward, backward, "both models run backward: give one that runs the other way"),
        (forward, forward, "both models run forward"),
        (backward, other, "different tokenizers, so that they do not compare"),
    ):
        with pytest.raises(UsageError, match=words):
            check_twins(model, twin)
        with pytest.raises(UsageError, match=words):
            model.bridge("One day.", "The end.", twin=twin)
        with pytest.raises(UsageError, match=words):
            model.surround("the dog", twin=twin)


def test_hints_and_continues_exclude_each_other(model: Model) -> None:
    with pytest.raises(UsageError, match="hints are for whole texts"):
        model.write(ending="The end.", words=["dog"], continues=True)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"words": "cake"}, "words = 'cake': give a list of texts, as in ['cake']"),
        ({"words": ["cake", 5]}, "words has 5 in it: give texts alone"),
        ({"stop": "x"}, "stop = 'x': give a list of texts, as in ['x']"),
        ({"stop": 5}, "stop = 5: give a list of texts"),
        ({"ending": ["The end."]}, "ending = ['The end.']: give one text"),
        ({"n": 1.5}, "n = 1.5: give a whole number"),
        ({"n": True}, "n = True: give a whole number"),
        ({"n": 0}, "n = 0: it must be 1 or more"),
        ({"best_of": "2"}, "best_of = '2': give a whole number"),
        ({"max_new_tokens": "3"}, "max-new-tokens = '3': give a whole number"),
        ({"max_new_tokens": 0}, "max-new-tokens = 0: it must be 1 or more"),
        ({"seed": -1}, "seed = -1: it must be 0 or more"),
        ({"sampling": {"top_k": 1}}, "sampling = {'top_k': 1}: give a Sampling"),
        ({"length": 5}, "length = 5: choose one of short, medium, long"),
        ({"best_of": 2, "twin": "stories"}, "twin = 'stories': give a model, as load returns it"),
    ],
)
def test_what_is_of_another_type_or_out_of_range_is_one_line(
    model: Model, asked: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(reason)}"):
        model.write(**({"ending": "The end."} | asked))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda model: model.score(5), "text = 5: give one text"),
        (lambda model: model.score_all("x"), "texts = 'x': give a list of texts"),
        (lambda model: model.word_scores(5, model.score("x")), "text = 5: give one text"),
        (lambda model: model.bridge(5, "x"), "opening = 5: give one text"),
        (lambda model: model.surround(None), "phrase = None: give one text"),
        (lambda model: model.verse("night"), "end words = 'night': give a list of texts"),
        (lambda model: model.rank("x", "y"), "answers = 'y': give a list of texts"),
        (lambda model: model.alternatives("x", n=1.5), "n = 1.5: give a whole number"),
        (lambda model: model.ask(5), "5 is no message: give a text, or a list of Message"),
        (lambda model: model.ask([]), "there is no message to go back from"),
        (lambda model: model.ask([USER]), "the first message is what is asked for"),
        (lambda model: model.rewind([USER, USER]), "users and assistants take turns"),
        (lambda model: model.rewind("x", turns=0), "turns = 0: it must be 1 or more"),
        (lambda model: model.reply("x", context=5), "context = 5: give one text"),
        (lambda model: model.rewind("x", role="system"), "users and assistants take turns"),
        (lambda _: load(5), "model = 5: give a name or a path"),  # type: ignore[arg-type]
        (lambda _: load(direction="up"), "direction = 'up': choose backward or forward"),  # type: ignore[arg-type]
        (lambda _: load(device=5), "device = 5 cannot be used here"),  # type: ignore[arg-type]
        (lambda _: Sampling(top_k=1.5), "top-k = 1.5: give a whole number"),  # type: ignore[arg-type]
        (lambda _: Sampling(temperature=float("inf")), "temperature = inf: give a number"),
        (lambda _: Sampling(min_p="0"), "min-p = '0': give a number"),  # type: ignore[arg-type]
    ],
)
def test_so_it_is_whatever_is_called(
    model: Model, call: Callable[[Any], object], reason: str
) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(reason)}"):
        call(model)


def test_a_stream_that_cannot_be_is_refused_before_its_first_piece(model: Model) -> None:
    for ending in (None, "word " * 400):
        with pytest.raises(UsageError):
            model.stream(ending)


def test_a_model_that_gives_what_is_not_a_number_is_one_line(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = np.full(512, np.nan, dtype=np.float32)
    monkeypatch.setattr(model.engine, "prefill", lambda ids, copies=1: ([0], nan))
    monkeypatch.setattr(model.engine, "release", lambda rows: None)
    monkeypatch.setattr(model.engine, "score", lambda rows: [nan[: len(ids) - 1] for ids in rows])
    for call in (lambda: model.write("The end."), lambda: model.score("The end.")):
        with pytest.raises(BackgptError, match="what is not a number: its weights are damaged"):
            call()


def test_numbers_of_numpy_are_numbers(model: Model) -> None:
    numbers: dict[str, Any] = {"n": np.int64(2), "max_new_tokens": np.int32(9), "seed": np.uint8(1)}
    settings: dict[str, Any] = {"temperature": np.float32(0.5), "top_k": np.int64(3)}
    texts = model.write("The end.", **numbers, sampling=Sampling(**settings))
    expected = model.write(
        "The end.", n=2, max_new_tokens=9, seed=1, sampling=Sampling(temperature=0.5, top_k=3)
    )
    assert [text.text for text in texts] == [text.text for text in expected]


def test_a_conversation_goes_back_from_all_of_its_messages(model: Model) -> None:
    talk = [Message("assistant", "Paris."), USER]
    template = Template(model.language)
    [asked] = model.ask(talk, max_new_tokens=5, seed=2)
    prompt = template.before(talk)
    [expected] = collect(
        model.engine, Job(model.language, prompt, sampling=Sampling(), max_new_tokens=5, seed=2)
    )
    assert asked.ids.tolist() == expected.ids.tolist()
    [transcript] = model.rewind(talk, turns=1, max_new_tokens=5, seed=2)
    assert transcript.messages[-2:] == tuple(talk)
    assert transcript.n_given == 2
