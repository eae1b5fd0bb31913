"""The chat's report card: figures checked by hand, on rows that are checked by the template."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import backgpt
from backgpt.api import Model
from backgpt.card import ChatMeasures
from backgpt.chat import MODES, Template
from backgpt.config import read_as
from backgpt.datasets import Conversation
from backgpt.errors import DataError
from backgpt.messages import Message
from backgpt.model import Transformer
from backgpt.model_folder import ModelFolder, save_model
from backgpt.order import ModelIds, ReadingIds
from backgpt.rewind import Transcript
from backgpt.shape import ModelConfig
from backgpt.tokenizer import Tokenizer

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from evaluate_chat import (  # noqa: E402
    Pair,
    answer_row,
    ask_all,
    choose_pairs,
    difference_of_reading,
    in_order,
    leaks,
    measure_asked,
    measure_loss_of_mode,
    measure_rewound,
    measure_whole,
    pairs_of,
    question_row,
    ranks,
    reads_as_a_question,
    retrieved,
    score_matrix,
    without_prior,
)

PAIRS = [
    Pair(f"What did the {animal} do?", f"The {animal} ran home and slept.")
    for animal in ("dog", "cat", "fox", "bird")
]


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model both ways that was never trained."""
    config = ModelConfig(
        n_layer=1,
        n_head=1,
        n_kv_head=1,
        n_embd=64,
        block_size=256,
        intermediate_size=96,
        vocab_size=tokenizer.vocab_size,
    )
    weights = Transformer(config, generator=torch.Generator().manual_seed(1)).state_dict()
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    out = tmp_path_factory.mktemp("evaluate_chat") / "model"
    save_model(ModelFolder(config, "both", "token", tokenizer, arrays, chat=True), out)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return backgpt.load(folder)


def conversation(*texts: str, context: str = "") -> Conversation:
    messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    return Conversation(tuple(messages), context, "test")


def test_pairs_are_questions_with_one_answer_and_no_context() -> None:
    conversations = [
        conversation("Why?", "Because."),
        conversation("Who?", "She.", context="About her."),
        conversation("One?", "Two.", "Three?"),
    ]
    assert pairs_of(conversations) == [Pair("Why?", "Because.")]


def test_pairs_are_chosen_by_seed_among_those_that_fit(model: Model) -> None:
    pairs = [*PAIRS, Pair("Too long?", "word " * 300), Pair("why " * 200, "Yes.")]
    chosen = choose_pairs(model, pairs, 4, seed=1)
    assert sorted(pair.answer for pair in chosen) == sorted(pair.answer for pair in PAIRS)
    assert chosen == choose_pairs(model, pairs, 4, seed=1) != choose_pairs(model, pairs, 4, seed=2)
    with pytest.raises(DataError, match="4 of 6 pairs fit the context, not 5"):
        choose_pairs(model, pairs, 5, seed=1)


def test_a_question_row_is_the_row_that_ask_is_trained_on(model: Model) -> None:
    pair = PAIRS[0]
    given, written = question_row(model, pair)
    trained = next(
        Template(model.language).exchanges(conversation(pair.question, pair.answer), most=257)
    )
    assert trained is not None
    assert given.tolist() == trained.given.tolist()
    assert [*written.tolist(), model.tokenizer.start_id] == trained.written.tolist()


def test_an_answer_row_runs_each_models_own_way(model: Model) -> None:
    pair, control = PAIRS[0], model.tokenizer.control_id
    for way, last in ((model, control("<|assistant|>")), (model.turned(), control("<|end|>"))):
        _, written = answer_row(way, pair)
        assert written[-1] == last
        reading = way.language.order.to_reading(ModelIds(written[:-1]))
        assert model.tokenizer.decode(ReadingIds(reading)) == pair.answer


def test_losses_are_the_mean_over_what_is_written_and_rows_that_do_not_fit_are_counted(
    model: Model,
) -> None:
    conversations = [conversation("Why?", "It rained."), conversation("Why?", "word " * 300)]
    ask = measure_loss_of_mode(model, "ask", conversations)
    assert (ask.conversations, ask.of, ask.direction) == (1, 2, "backward")
    given, written = question_row(model, Pair("Why?", "It rained."))
    [values] = model.engine.score([np.concatenate((given, written))])
    expected = -float(values[-len(written) :].mean())
    assert ask.nats_per_token == pytest.approx(expected, rel=1e-5)
    n_bytes = len("Why?")  # without the space that begins every line inside the tokenizer
    assert ask.bits_per_byte == pytest.approx(
        expected * len(written) / np.log(2) / n_bytes, rel=1e-5
    )
    with pytest.raises(DataError, match="none of 1 conversations"):
        measure_loss_of_mode(model, "ask", conversations[1:])


def test_only_a_question_and_its_answer_are_asked_and_replied(model: Model) -> None:
    plain = conversation("Why?", "It rained.")
    told = replace(plain, messages=(Message("system", "Be kind."), *plain.messages))
    for mode in ("ask", "reply"):
        loss = measure_loss_of_mode(model, mode, [told, plain])
        assert (loss.conversations, loss.of) == (1, 2)
        alone = measure_loss_of_mode(model, mode, [plain])
        assert loss.nats_per_token == alone.nats_per_token


def test_rewinding_is_scored_to_the_start_and_whole_conversations_in_full(model: Model) -> None:
    two = [conversation("Why?", "It rained.")]
    count = len(model.tokenizer.encode("Why?"))

    def nats(loss: object, tokens: int) -> float:
        return loss.nats_per_token * tokens  # type: ignore[attr-defined, no-any-return]

    ask = measure_loss_of_mode(model, "ask", two)
    rewind = measure_loss_of_mode(model, "rewind", two)
    assert nats(rewind, count + 2) > nats(ask, count + 1)
    for way in (model, model.turned()):
        whole = measure_whole(way, two)
        ids = Template(way.language).turns(two[0].messages)
        assert whole.direction == way.direction
        assert whole.nats_per_token == pytest.approx(np.log(model.tokenizer.vocab_size), rel=0.3)
        assert nats(whole, len(ids) + 1) > nats(ask, count + 1)


def test_ranks_count_what_is_better_and_share_what_is_equal() -> None:
    scores = np.array([[3.0, 2.0, 1.0], [5.0, 5.0, 0.0], [9.0, 8.0, 1.0]])
    found = ranks(scores)
    assert found.tolist() == [1.0, 1.5, 3.0]
    figures = retrieved("x", found, candidates=3)
    assert figures.first == pytest.approx(1 / 3)
    assert figures.in_ten == 1
    assert figures.mean_rank == pytest.approx(5.5 / 3)


def test_without_its_prior_a_question_that_is_always_likely_wins_nothing() -> None:
    probabilities = np.array([[0.9, 0.02], [0.8, 0.10]])
    assert ranks(np.log(probabilities)).tolist() == [1.0, 2.0]
    fair = without_prior(np.log(probabilities))
    assert ranks(fair).tolist() == [1.0, 1.0]
    assert np.exp(fair).mean(axis=0) == pytest.approx([1.0, 1.0])


def test_a_matrix_has_each_answer_with_each_question(model: Model) -> None:
    scores = score_matrix(PAIRS, question_row, model)
    given, written = question_row(model, Pair(PAIRS[2].question, PAIRS[1].answer))
    [values] = model.engine.score([np.concatenate((given, written))])
    assert scores[1, 2] == pytest.approx(float(values[-len(written) :].sum()), abs=1e-3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Really?", True),
        ("List three animals", True),
        ("how it is", True),
        ("The dog ran.", False),
        ("", False),
        ("...", False),
    ],
)
def test_a_question_is_known_by_its_mark_or_its_first_word(text: str, expected: bool) -> None:
    assert reads_as_a_question(text) is expected


def test_asked_figures_and_the_gain_over_another_pairs_question(model: Model) -> None:
    twin = model.turned()
    questions = ["What did the dog do?", "The end", "fox fox", "Why?"]
    figures = measure_asked(questions, PAIRS, twin, seed=1)
    assert figures.asks == 0.5
    assert figures.shares_a_word == 0.0  # no word of four letters or more is shared
    assert measure_asked(["it slept"] * 4, PAIRS, twin, seed=1).shares_a_word == 1.0
    assert 0 <= figures.gains <= 1
    same = measure_asked([PAIRS[0].question] * 4, [PAIRS[0]] * 4, twin, seed=1)
    assert (same.gains, same.mean_gain) == (0.0, 0.0)


def test_many_are_asked_as_one_by_one(model: Model) -> None:
    answers = [pair.answer for pair in PAIRS]
    together = ask_all(model, answers, seed=5)
    for number, answer in enumerate(answers):
        [alone] = model.ask(answer, seed=5 + number, max_new_tokens=96)
        assert together[number].text == alone.text


def test_reading_at_once_and_id_by_id_give_the_same_probabilities(model: Model) -> None:
    transcripts = model.rewind("The dog.", turns=3, n=2, seed=1, max_new_tokens=8)
    for transcript in transcripts:
        assert difference_of_reading(model, transcript.ids) < 1e-5
    figures = measure_rewound(model, transcripts, turns=3)
    assert figures.in_order == 1.0
    assert figures.difference < 1e-5


def test_order_is_alternation_up_to_the_assistant(model: Model) -> None:
    [good] = model.rewind("The dog.", turns=1, seed=1, max_new_tokens=8)

    def with_roles(*roles: str) -> Transcript:
        messages = tuple(Message(role, "x") for role in roles)  # type: ignore[arg-type]
        return replace(good, messages=messages)

    assert in_order(with_roles("assistant", "user", "assistant"))
    assert not in_order(with_roles("user", "user", "assistant"))
    assert not in_order(with_roles("assistant", "user"))


def test_leaks_are_markers_and_roles_in_front_of_a_line() -> None:
    clean = ["A user: someone who uses.", "He is the assistant.", "a <| b |> c"]
    leaking = ["user: hello", "Yes.\nAssistant: no", "<|end|> The", "  System : x"]
    assert leaks([*clean, *leaking]) == leaking


@pytest.mark.parametrize(
    ("script", "module"), [("measure_chat", "bm25s"), ("check_smolgpt", "sentencepiece")]
)
def test_without_the_extra_dev_a_script_shows_its_help_and_says_what_it_needs(
    tmp_path: Path, script: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    options = {"measure_chat": ["--data=x", "--out=y"], "check_smolgpt": []}[script]
    for arguments, ends in ((["--help"], "^0$"), ([str(tmp_path), *options], "extra 'dev'")):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit, match=ends):
            runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--candidates=1"], "--candidates: from 2"),
        (["--rewound=0"], "--rewound and --turns: 1 or more"),
        (["--turns=0"], "--rewound and --turns: 1 or more"),
        (["--conversations=asked.jsonl"], "no conversation ends with a short message"),
    ],
)
def test_the_script_refuses_what_cannot_be_before_the_work(
    folder: Path,
    tmp_path: Path,
    options: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("bm25s")
    monkeypatch.chdir(tmp_path)
    lines = [{"instruction": one.question, "response": one.answer} for one in PAIRS]
    Path("valid.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = [{"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "No."}]
    Path("asked.jsonl").write_text(json.dumps({"messages": said}) + "\n")
    given = ["--data=valid.jsonl", "--out=out.json", "--answers=4", "--candidates=2", *options]
    monkeypatch.setattr(sys, "argv", ["measure_chat.py", str(folder), *given])
    with pytest.raises(SystemExit, match=words):
        runpy.run_path(str(SCRIPTS / "measure_chat.py"), run_name="__main__")
    assert "scoring" not in capsys.readouterr().err


def test_the_script_measures_and_the_card_shows_it(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("bm25s")
    data = tmp_path / "valid.jsonl"
    lines = [{"instruction": one.question, "response": one.answer} for one in PAIRS]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "measures.json"
    options = ["--answers=4", "--candidates=2", "--rewound=2", "--turns=2", "--outputs=12"]
    arguments = [str(folder), f"--data={data}", f"--out={out}", "--set=four rows", *options]
    monkeypatch.setattr(sys, "argv", ["measure_chat.py", *arguments])
    runpy.run_path(str(SCRIPTS / "measure_chat.py"), run_name="__main__")
    measures = read_as(ChatMeasures, out)
    assert [loss.what for loss in measures.losses] == [*MODES, "reply", "whole", "whole"]
    assert {one.method.split(",")[0] for one in measures.retrieved} >= {"backward", "BM25"}
    assert measures.outputs == 12
    assert len(measures.exchanges) == 10
    assert "BM25" in capsys.readouterr().out

    about = tmp_path / "about.json"
    trained = {"tokens": 1, "hardware": "x", "date": "x", "command": "x", "commit": "x"}
    card = {"description": "A chat.", "license": "MIT", "data": [], "trained": trained}
    about.write_text(json.dumps(card))
    models = tmp_path / "models"
    shipping = [str(folder), "chatty", f"--about={about}", f"--measures={out}"]
    monkeypatch.setattr(sys, "argv", ["ship_model.py", *shipping, f"--models={models}"])
    runpy.run_path(str(SCRIPTS / "ship_model.py"), run_name="__main__")
    text = (models / "chatty" / "README.md").read_text()
    assert "backgpt chat --model chatty" in text
    for line in ("| BM25 |", "`rewind`: all before the last message", "into 0 of 12 outputs"):
        assert line in " ".join(text.split())
    assert f"given `{measures.exchanges[0].given}`" in text
