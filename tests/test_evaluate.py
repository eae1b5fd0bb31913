"""The report card: figures against texts whose figures are known, and repeatable ones."""

import json
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import backgpt
from backgpt.api import Model
from backgpt.card import Measures
from backgpt.config import read_as
from backgpt.engine import Engine
from backgpt.errors import DataError
from backgpt.evaluate import (
    FIXED_ENDINGS,
    choose,
    draw_endings,
    draw_some,
    drawn,
    first_of_each,
    last_sentence,
    measure_hints,
    measure_loss,
    measure_obedience,
    repeats,
    share_that_reached_the_edge,
    statistics_of,
    vocabulary_of,
    with_endings_that_fit,
    write_samples,
)
from backgpt.generate import Text, collect_all
from backgpt.hints import Hints, words_of
from backgpt.language import Prompt
from backgpt.model import Transformer
from backgpt.model_folder import ModelFolder, save_model
from backgpt.running import Job
from backgpt.shape import ModelConfig
from backgpt.tokenizer import Tokenizer

SCRIPT = Path(__file__).parent.parent / "scripts" / "measure_builtin.py"


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model both ways, with hints, that was never trained."""
    config = ModelConfig(
        n_layer=1,
        n_head=1,
        n_kv_head=1,
        n_embd=64,
        block_size=512,
        intermediate_size=96,
        vocab_size=tokenizer.vocab_size,
    )
    random = torch.Generator().manual_seed(1)
    weights = Transformer(config, generator=random).state_dict()
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    out = tmp_path_factory.mktemp("evaluate") / "model"
    save_model(ModelFolder(config, "both", "token", tokenizer, arrays, hints=True), out)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return backgpt.load(folder)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One. Two! Three?", "Three?"),
        ('She ran. "Stop! Come back," he said.', '"Stop! Come back," he said.'),
        ('He said, "Go home." They went.', "They went."),
        ("First line.\nlast line", "last line"),
        ("No end at all", "No end at all"),
        ('One.\nA stray. Half" of it.', 'A stray. Half" of it.'),
    ],
)
def test_the_last_sentence_is_a_whole_one(text: str, sentence: str) -> None:
    assert last_sentence(text) == sentence
    assert text.endswith(sentence)


def test_endings_are_different_begin_with_the_fixed_and_follow_the_seed(texts: list[str]) -> None:
    endings = draw_endings(texts, 20, seed=3)
    assert len(set(endings)) == 20
    assert endings[:4] == list(FIXED_ENDINGS)
    for ending in endings[4:]:
        assert any(text.endswith(ending) for text in texts)
    assert endings == draw_endings(texts, 20, seed=3) != draw_endings(texts, 20, seed=4)
    with pytest.raises(DataError, match="different endings, not 9"):
        draw_endings(["One. The end."] * 30, 9, seed=1)


def test_an_ending_may_take_half_of_the_context(model: Model) -> None:
    def text(n_words: int) -> str:
        return "It rained. " + "so " * n_words + "it ended."

    most = model.engine.block_size // 2
    fits = [n for n in range(1, 2 * most) if with_endings_that_fit([text(n)], model)]
    assert fits == list(range(1, len(fits) + 1))
    sizes = [len(model.tokenizer.encode(last_sentence(text(n)))) for n in (fits[-1], fits[-1] + 1)]
    assert sizes[0] <= most < sizes[1]


def test_figures_of_texts_counted_by_hand() -> None:
    looping = "the big dog ran. the big dog ran. the big dog ran."
    plain = "A cat sat on the mat."
    figures = statistics_of([looping, plain], vocabulary_of(["The big dog ran", "a CAT"]))
    assert figures.texts == 2
    assert figures.known_words == pytest.approx((12 + 3) / 18)  # a, cat, the; not sat, on, mat
    assert figures.repeating == 0.5
    assert figures.mean_words == 9
    assert figures.distinct_3 == pytest.approx((4 + 4) / (10 + 4))
    assert figures.nats_per_token is None


@pytest.mark.parametrize(("times", "expected"), [(2, False), (3, True)])
def test_three_times_the_same_four_words_are_a_repetition(times: int, expected: bool) -> None:
    assert repeats("x ".join(["one two three FOUR, "] * times)) is expected
    assert not repeats("one two three " * 2)


def test_given_endings_are_not_counted() -> None:
    texts = ["a cat sat. they ran home.", "a dog lay. they ran home."]
    figures = statistics_of(texts, vocabulary_of(["a cat"]), endings=["they ran home."] * 2)
    assert (figures.mean_words, figures.known_words, figures.distinct_3) == (3, 0.5, 1)


def test_texts_of_no_words_have_figures_too() -> None:
    figures = statistics_of(["!!!", ""], frozenset())
    assert (figures.known_words, figures.distinct_3, figures.mean_words) == (0, 0, 0)


def test_the_twins_loss_is_that_of_all_texts_together(model: Model, texts: list[str]) -> None:
    scores = model.turned().score_all(texts[:5])
    expected = -sum(s.logprob for s in scores) / sum(s.n_tokens for s in scores)
    figures = statistics_of(texts[:5], frozenset(), twin=model.turned())
    loss = measure_loss(model.turned(), texts[:5], of="some", storage="float32")
    assert figures.nats_per_token == loss.nats_per_token == pytest.approx(expected)
    assert loss.direction == "forward"
    assert loss.bits_per_byte == pytest.approx(
        expected
        / np.log(2)
        * sum(s.n_tokens for s in scores)
        / sum(len(text.encode()) for text in texts[:5])
    )


def test_samples_follow_the_seed_and_the_first_is_what_the_seed_gives_alone(model: Model) -> None:
    def write(seed: int) -> list[str]:
        samples = write_samples(model, ["The end.", "Bye."], each=2, seed=seed, max_new_tokens=6)
        return [sample.text.text for sample in samples]

    assert write(1) == write(1) != write(2)
    samples = list(write_samples(model, ["The end.", "Bye."], each=2, seed=5, max_new_tokens=6))
    stories = first_of_each(samples, 2)
    assert [(story.ending, story.seed) for story in stories] == [("The end.", 5), ("Bye.", 6)]
    for story in stories:
        [alone] = model.write(story.ending, seed=story.seed, max_new_tokens=6)
        assert alone.text == story.text
    reached = [sample.text.finish_reason == "stop" for sample in samples]
    assert share_that_reached_the_edge(samples) == np.mean(reached)


def test_drawn_hints_are_of_the_wanted_kinds_and_the_text_obeys_them(texts: list[str]) -> None:
    random = np.random.default_rng(1)
    for text in texts[:20]:
        hints = drawn(text, ["opening", "words"], random)
        assert hints is not None
        assert {kind for kind, _ in hints.texts()} == {"opening", "words"}
        assert all(hints.obeyed_by(text).values())
        beside = drawn(text, ["words"], random, ending=last_sentence(text))
        assert beside is None or not {*beside.words} & {*words_of(last_sentence(text).lower())}
    assert drawn("A b c.", ["words"], random) is None  # no word that anyone would ask for


def test_obedience_is_counted_by_kind_and_unasked_hints_are_kept_back(
    texts: list[str], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, object]] = []
    seeds: list[list[int]] = []
    prompt = Model.prompt

    def asked(self: Model, ending: str, **options: object) -> Prompt:
        given.append({"ending": ending, **options})
        return prompt(self, ending, **options)  # type: ignore[arg-type]

    def written(engine: Engine, jobs: Sequence[Job]) -> list[list[Text]]:
        texts = collect_all(engine, jobs)
        seeds.append([text.seed for [text] in texts])
        return [
            [replace(text, text=f"{request['opening']} and so on.")]
            for [text], request in zip(texts, given, strict=True)
        ]

    monkeypatch.setattr(Model, "prompt", asked)
    monkeypatch.setattr("backgpt.evaluate.collect_all", written)
    options = {"kinds": ["opening", "words"], "seed": 1, "max_new_tokens": 3}
    result = measure_obedience(model, texts[:6], **options)  # type: ignore[arg-type]
    assert result["opening"].asked == result["opening"].obeyed == result["words"].asked == 6
    assert result["words"].obeyed < 6
    assert "length" not in result
    for request, text in zip(given, texts, strict=False):
        assert request["ending"] == last_sentence(text)
        assert Hints(opening=str(request["opening"])).obeyed_by(text)["opening"]
    given.clear()
    result = measure_obedience(model, texts[:6], told=False, **options)  # type: ignore[arg-type]
    assert result["opening"].asked == 6
    assert result["opening"].obeyed == 0
    assert all(not request["opening"] and not request["words"] for request in given)
    assert seeds == [[1, 2, 3, 4, 5, 6]] * 2


def test_hints_that_are_given_and_those_kept_back_are_not_mixed_up(
    texts: list[str], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(_: Model, chosen: list[str], *, told: bool, **__: object) -> tuple[Any, ...]:
        return told, chosen

    monkeypatch.setattr("backgpt.evaluate.measure_obedience", measured)
    hinted, said = replace(model, takes_hints=True), list[str]()
    found: Any = measure_hints(hinted, texts, 4, seed=1, max_new_tokens=3, say=said.append)
    chosen = choose(texts, 4, seed=2)
    assert found == ((True, chosen), (False, chosen))
    assert ["given" in line for line in said] == [True, False]


def test_chosen_texts_follow_the_seed(texts: list[str]) -> None:
    assert choose(texts, 5, seed=1) == choose(texts, 5, seed=1) != choose(texts, 5, seed=2)
    assert sorted(choose(texts, 10_000, seed=1)) == sorted(texts)
    assert vocabulary_of(["The CAT"]) == set(words_of("the cat"))


def test_texts_are_drawn_from_everywhere_in_their_order_and_fewer_are_among_more() -> None:
    ten, fifty = (draw_some(iter(range(1000)), n, seed=1) for n in (10, 50))
    assert ten == sorted(ten)
    assert len({*ten}) == 10
    assert {*ten} < {*fifty}
    assert ten == draw_some(range(1000), 10, seed=1) != draw_some(range(1000), 10, seed=2)
    places = [place for seed in range(200) for place in draw_some(range(40), 4, seed=seed)]
    assert np.bincount(places, minlength=40) == pytest.approx(20, abs=15)  # 20 each, by chance
    assert all(draw_some(range(7), n, seed=1) == list(range(7)) for n in (7, 8, None))


@pytest.fixture
def measure(
    folder: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Measures]:
    """Return a function that runs the script on a few texts and reads what it wrote."""
    for name, lines in (("valid", texts[:8]), ("train", texts[8:])):
        content = "".join(json.dumps({"text": text}) + "\n" for text in lines)
        (tmp_path / f"{name}.jsonl").write_text(content)

    def run(*options: str) -> Measures:
        out = tmp_path / "measures.json"
        arguments = ["--data", f"{tmp_path}/valid.jsonl", "--train", f"{tmp_path}/train.jsonl"]
        arguments += ["--out", str(out), "--max-new-tokens=6", "--samples=6", "--endings=3"]
        monkeypatch.setattr(sys, "argv", ["measure", str(folder), *arguments, *options])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return read_as(Measures, out)

    return run


def test_the_script_measures_everything_and_again_the_same(
    measure: Callable[..., Measures], capsys: pytest.CaptureFixture[str]
) -> None:
    first = measure("--hinted=3")
    assert [(loss.direction, loss.storage) for loss in first.losses] == [
        *(("backward", "float32"), ("forward", "float32")),
        *(("backward", "int8"), ("forward", "int8")),
    ]
    floats, int8 = first.losses[0].nats_per_token, first.losses[2].nats_per_token
    assert floats != int8
    assert int8 == pytest.approx(floats, rel=5e-3)
    assert (first.generated.texts, first.human.texts, first.endings) == (6, 6, 3)
    assert first.human.reached_edge is None
    assert set(first.obedience) == set(first.unasked) == {"opening", "words", "length"}
    assert len(first.stories) == 3
    out = capsys.readouterr().out
    for words in ("backward  int8", "known_words", "opening  obeyed"):
        assert words in out
    assert measure("--hinted=3") == first


def test_the_script_refuses_what_cannot_be(measure: Callable[..., Measures]) -> None:
    for number in (0, 2, 4):  # of three endings
        with pytest.raises(SystemExit, match="--samples: a multiple of the number of --endings"):
            measure(f"--samples={number}")
