"""Rows of conversations, and a run on them: what is given is read, what is written is learned."""

import json
from pathlib import Path

import numpy as np
import pytest

import backgpt
from backgpt.batches import IGNORE
from backgpt.config import TrainConfig, build
from backgpt.datasets import Conversation
from backgpt.dialogues import Dialogues
from backgpt.errors import ConfigError, DataError
from backgpt.language import Language
from backgpt.messages import Message
from backgpt.run_folder import read_metrics
from backgpt.tokenizer import Tokenizer
from backgpt.train import train

SHAPE = {"n_layer": 1, "n_head": 1, "n_embd": 64, "block_size": 128, "intermediate_size": 96}
PAIRS = [
    ("What is the capital of France?", "Paris."),
    ("Who is there?", "The dog."),
    ("Why is the sky blue?", "Because the air scatters blue light. " * 3),
]


class Notes:
    def __init__(self) -> None:
        self.notices: list[str] = []

    def started(self, *, first_step: int, max_steps: int) -> None: ...

    def stepped(self, record: object) -> None: ...

    def notice(self, text: str) -> None:
        self.notices.append(text)


def conversation(question: str, answer: str) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)), "", "here")


def dialogues(tokenizer: Tokenizer, *, block_size: int = 256) -> Dialogues:
    languages = Language.all_of(tokenizer, "both", "token")
    return Dialogues((conversation(*pair) for pair in PAIRS), languages, block_size=block_size)


def test_loss_falls_on_what_is_written_and_on_all_of_it(tokenizer: Tokenizer) -> None:
    rows = dialogues(tokenizer)
    assert len(rows) == 3 * len(PAIRS)  # asked and replied backward, replied forward
    batch = rows.batch(np.arange(len(rows)))
    for number in range(len(rows)):
        whole, length = rows.sequence(number), int(rows.lengths[number])
        scored = batch.targets[number] != IGNORE
        assert batch.targets[number][scored].tolist() == whole[-length:].tolist()
        assert scored.sum() == length
        assert batch.inputs[number][: len(whole) - 1].tolist() == whole[:-1].tolist()
        assert rows.widths[number] == len(whole) - 1
        assert np.flatnonzero(scored)[-1] == len(whole) - 2
    assert rows.n_targets == int((batch.targets != IGNORE).sum())
    assert rows.n_bytes == sum(len(question) + 2 * len(answer) for question, answer in PAIRS)


def test_rows_in_another_order_have_another_digest(tokenizer: Tokenizer) -> None:
    languages = Language.all_of(tokenizer, "both", "token")
    talks = [conversation(*pair) for pair in PAIRS]
    one, same, other = (
        Dialogues(given, languages, block_size=256).sha256 for given in (talks, talks, talks[::-1])
    )
    assert one == same != other


def test_rows_of_the_same_lengths_with_other_ids_have_another_digest(tokenizer: Tokenizer) -> None:
    languages = Language.all_of(tokenizer, "both", "token")
    one, other = (
        Dialogues([conversation("Who?", answer)], languages, block_size=256)
        for answer in ("cat dog", "dog cat")
    )
    assert one.widths.tolist() == other.widths.tolist()
    assert one.sha256 != other.sha256


def test_rows_that_do_not_fit_are_counted(tokenizer: Tokenizer) -> None:
    rows = dialogues(tokenizer, block_size=40)
    assert rows.shortened > 0
    assert rows.dropped > 0
    assert f"{rows.shortened} shortened" in rows.summary
    assert f"{rows.dropped} dropped" in rows.summary
    assert rows.batch(np.arange(len(rows))).inputs.shape[1] <= 40


def test_no_row_at_all_is_refused_with_the_reason(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"no conversation fits block_size = 4: 9 rows were too"):
        dialogues(tokenizer, block_size=4)
    with pytest.raises(DataError, match="no conversation to read"):
        Dialogues([], Language.all_of(tokenizer, "backward", "token"), block_size=64)


def written(path: Path, pairs: list[tuple[str, str]]) -> Path:
    lines = (json.dumps({"instruction": q, "response": a}) for q, a in pairs)
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def base(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("chat") / "base"
    settings = {"data": dataset_path, "out": out, "direction": "both", "max_steps": 1}
    train(build(TrainConfig, {**settings, **SHAPE}, origin="test"), report=Notes())
    return out


def chat_settings(base: Path, folder: Path, **changes: object) -> TrainConfig:
    settings = {
        "chat": (str(written(folder / "train.jsonl", PAIRS)),),
        "init": base,
        "out": folder / "chat",
        "direction": "both",
        "max_steps": 120,
        "batch_size": 4,
        "eval_every": 60,
        "compile": "off",
    }
    return build(TrainConfig, {**settings, **SHAPE, **changes}, origin="test")


@pytest.mark.slow
def test_a_tuned_chat_asks_the_question_that_it_learned(base: Path, tmp_path: Path) -> None:
    notes = Notes()
    config = chat_settings(base, tmp_path, chat_valid=(str(tmp_path / "train.jsonl"),))
    result = train(config, report=notes)
    assert result.valid_loss is not None
    assert result.valid_loss < 1.0
    assert any("9 rows of conversations" in notice for notice in notes.notices)
    model = backgpt.load(config.out)
    greedy = backgpt.Sampling(top_k=1, repetition_penalty=1.0, dry_multiplier=0.0)
    for question, answer in PAIRS[:2]:
        assert model.ask(answer, sampling=greedy)[0].text == question
        assert model.reply(question, sampling=greedy)[0].text == answer
        assert model.turned().reply(question, sampling=greedy)[0].text == answer
    [transcript] = model.rewind("Paris.", turns=4, sampling=greedy)
    assert transcript.finish_reason == "stop"
    assert [message.role for message in transcript.messages] == ["user", "assistant"]
    record = [record for record in read_metrics(config.out) if "valid_loss" in record][-1]
    assert {"backward_valid_loss", "forward_valid_loss", "valid_bpb"} <= set(record)
    assert PAIRS[0][0] in (config.out / "samples.md").read_text()


def test_an_interrupted_tuning_goes_on_to_the_same_weights(base: Path, tmp_path: Path) -> None:
    from backgpt.model_folder import read_model

    def weights(folder: str, *stops: int) -> dict[str, np.ndarray]:
        (tmp_path / folder).mkdir()
        for max_steps in stops:
            config = chat_settings(
                base, tmp_path / folder, max_steps=max_steps, decay_fraction=0.0, save_every=5
            )
            train(config, report=Notes())
        return dict(read_model(config.out).weights)

    whole, resumed = weights("whole", 10), weights("resumed", 5, 10)
    assert all((whole[name] == resumed[name]).all() for name in whole)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chat": ()}, "give either data"),
        ({"data": Path("data")}, "give either data"),
        ({"init": None}, "give the one to begin from as init"),
        ({"hints": 0.5}, "leave hints out"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(
    base: Path, tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        chat_settings(base, tmp_path, **changes)


def test_records_that_are_skipped_are_told_of_with_the_reason(base: Path, tmp_path: Path) -> None:
    config, notes = chat_settings(base, tmp_path, max_steps=1), Notes()
    alone, twice = [{"role": "user", "content": "x"}], [{"role": "user", "content": "x"}] * 2
    with (tmp_path / "train.jsonl").open("a") as file:
        file.writelines(f"\n{json.dumps({'messages': turns})}" for turns in (alone, twice, twice))
    train(config, report=notes)
    assert "1 records skipped, of fewer than two messages that say something" in notes.notices
    assert "2 records skipped, in which users and assistants do not take turns" in notes.notices


def test_files_without_conversations_stop_before_the_first_step(base: Path, tmp_path: Path) -> None:
    empty = written(tmp_path / "empty.jsonl", [("Silence?", " ")])
    config = chat_settings(base, tmp_path, chat=(str(empty),))
    with pytest.raises(DataError, match=r"empty\.jsonl holds no conversation"):
        train(config, report=Notes())
    assert not config.out.exists()
