"""Instruction back-translation: what is kept, by which score, and how a job goes on."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backgpt.api import Model
from backgpt.chat import Template
from backgpt.cli import main
from backgpt.config import TrainConfig
from backgpt.datasets import Document, Tally, read_conversations
from backgpt.datasets.files import read_file
from backgpt.engine import Engine, FloatArray
from backgpt.engine.torch_engine import TorchEngine
from backgpt.errors import BackgptError, CorruptFileError, DataError, UsageError
from backgpt.generate import Text
from backgpt.label import LabelState, label
from backgpt.label_batch import ANY_QUESTION, LabelSettings
from backgpt.language import Language
from backgpt.model import Transformer
from backgpt.model_folder import read_model, save_model
from backgpt.order import Direction, IdArray, ModelIds
from backgpt.running import Job
from backgpt.shape import preset
from backgpt.tokenizer import SPECIAL_TOKENS, Tokenizer
from backgpt.train import train

SHAPE = {"n_layer": 1, "n_head": 1, "n_embd": 64, "block_size": 256, "intermediate_size": 96}


class Asker(TorchEngine):
    """Writes short nonsense, and finds a text likelier the more of its ids stand before it."""

    def prefill(self, ids: IdArray, copies: int = 1) -> tuple[list[int], FloatArray]:
        rows, logits = super().prefill(ids, copies)
        return rows, self._biased(logits)

    def step(self, rows: Sequence[int], ids: Sequence[int]) -> FloatArray:
        return self._biased(super().step(rows, ids))

    def score(self, sequences: Sequence[IdArray]) -> list[FloatArray]:
        self.scored = [*getattr(self, "scored", []), *(list(map(int, s)) for s in sequences)]
        return [
            np.array([float(id_ in ids[:place]) - 2 for place, id_ in enumerate(ids)][1:])
            for ids in (list(map(int, sequence)) for sequence in sequences)
        ]

    def _biased(self, logits: FloatArray) -> FloatArray:
        logits = logits.copy()
        logits[..., : len(SPECIAL_TOKENS)] += 3.5
        return logits


def model_of(
    tokenizer: Tokenizer, direction: Direction = "backward", *, told: bool = True
) -> Model:
    config = preset("nano", tokenizer.vocab_size, **SHAPE)
    engine = Asker(Transformer(config, generator=torch.Generator().manual_seed(3)))
    return Model(config, Language(tokenizer, direction, "token", told=told), engine)


def settings_of(**changes: Any) -> LabelSettings:
    given = {"model": "tiny", "source": "texts.jsonl", "score": "forward", "batch_size": 3}
    return LabelSettings.model_validate({**given, "max_new_tokens": 40, **changes})


def documents(texts: list[str], count: int = 10) -> list[Document]:
    return [
        Document(" ".join(text.split()[:25]), f"some/where/texts.jsonl:{number}")
        for number, text in enumerate(texts[:count], start=1)
    ]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def likelihood(model: Model, question: str, text: str) -> float:
    """Return nats per token of a text after a question, computed one by one."""
    template = Template(model.language)
    prompt = template.reply(question)
    answer = model.language.order.to_model(model.tokenizer.encode(text)).tolist()
    written = [*answer, *prompt.stops.later]
    [values] = model.engine.score([np.array([*prompt.ids, *written])])
    return float(np.mean(values[-len(written) :]))


@pytest.mark.parametrize("score", ["forward", "round-trip"])
def test_the_question_after_which_the_text_is_likeliest_is_kept(
    tokenizer: Tokenizer, texts: list[str], tmp_path: Path, score: str
) -> None:
    model = model_of(tokenizer)
    given = documents(texts)
    settings = settings_of(score=score, threshold=-100.0, seed=5)
    done = label(given, tmp_path / "out.jsonl", model, settings)
    judge = model.turned() if score == "forward" else model
    records = lines(tmp_path / "out.jsonl")
    assert done.n_kept == len(records) > 5
    for record in records:
        number = int(record["source"].removeprefix("texts.jsonl:")) - 1
        assert record["response"] == given[number].text
        assert record["seed"] == 5 + number
        asked = model.ask(record["response"], n=4, seed=record["seed"], max_new_tokens=40)
        finished = [text for text in asked if text.finish_reason == "stop" and text.text.strip()]
        questions = [text.text.strip() for text in finished]
        chances = {one: likelihood(judge, one, record["response"]) for one in questions}
        assert chances[record["instruction"]] == max(chances.values())
        logprob = max(t.logprob for t in finished if t.text.strip() == record["instruction"])
        assert record["logprob"] == pytest.approx(logprob, abs=1e-3)


def test_the_score_is_what_is_gained_over_another_texts_question(
    tokenizer: Tokenizer, texts: list[str], tmp_path: Path
) -> None:
    model = model_of(tokenizer)
    given = documents(texts, 2)
    settings = settings_of(threshold=-100.0, batch_size=2)
    label(given, tmp_path / "out.jsonl", model, settings)
    first, second = lines(tmp_path / "out.jsonl")
    others = [
        text.text.strip()
        for text in model.ask(second["response"], n=4, seed=second["seed"], max_new_tokens=40)
        if text.finish_reason == "stop" and text.text.strip()
    ]
    twin = model.turned()
    gain = likelihood(twin, first["instruction"], first["response"]) - likelihood(
        twin, others[0], first["response"]
    )
    assert first["score"] == pytest.approx(gain)
    label(given[:1], tmp_path / "alone.jsonl", model, settings)
    [alone] = lines(tmp_path / "alone.jsonl")
    gain = likelihood(twin, first["instruction"], first["response"]) - likelihood(
        twin, ANY_QUESTION, first["response"]
    )
    assert alone["score"] == pytest.approx(gain)


def test_a_question_is_not_compared_with_itself_where_others_are_asked_the_same(
    tokenizer: Tokenizer, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tokenizer)

    def ask_all_the_same(_: Engine, jobs: Sequence[Job]) -> list[list[Text]]:
        ids = ModelIds(np.array([20]))
        return [[Text("Who?", "", "stop", -1.0, 2, job.seed, ids)] * job.n for job in jobs]

    monkeypatch.setattr("backgpt.label_batch.collect_all", ask_all_the_same)
    label(
        documents(texts, 2),
        tmp_path / "out.jsonl",
        model,
        settings_of(threshold=-100.0, batch_size=2),
    )
    twin = model.turned()
    for record in lines(tmp_path / "out.jsonl"):
        gain = likelihood(twin, "Who?", record["response"]) - likelihood(
            twin, ANY_QUESTION, record["response"]
        )
        assert record["score"] == pytest.approx(gain)


def test_a_threshold_keeps_those_above_it_and_counts_the_others(
    tokenizer: Tokenizer, texts: list[str], tmp_path: Path
) -> None:
    model = model_of(tokenizer)
    found = {}
    for threshold in (-100.0, None, 0.02, 100.0):
        out = tmp_path / f"{threshold}.jsonl"
        done = label(documents(texts, 30), out, model, settings_of(threshold=threshold))
        found[threshold] = lines(out)
        assert done.n_kept == len(found[threshold])
        assert done.n_texts == 30 == done.n_kept + done.n_below + done.n_unasked + done.n_too_long
    everything = found[-100.0]
    assert found[None] == [record for record in everything if record["score"] >= 0]
    assert found[0.02] == [record for record in everything if record["score"] >= 0.02]
    assert len(everything) > len(found[0.02]) > 0
    assert found[100.0] == []


def test_the_result_is_an_ordinary_instruction_file(
    tokenizer: Tokenizer, texts: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    label(documents(texts), out, model_of(tokenizer), settings_of(score="none"))
    records = lines(out)
    assert {tuple(record) for record in records} == {
        ("instruction", "response", "score", "logprob", "seed", "source")
    }
    assert {record["score"] for record in records} == {None}
    talks = list(read_conversations(out))
    assert [[message.text for message in talk.messages] for talk in talks] == [
        [record["instruction"], record["response"]] for record in records
    ]


def test_too_long_a_text_and_one_without_a_question_are_counted(
    tokenizer: Tokenizer, texts: list[str], tmp_path: Path
) -> None:
    long = Document("word " * 400, "texts.jsonl:1")
    model = model_of(tokenizer)
    given = [long, *documents(texts, 3)]
    done = label(given, tmp_path / "out.jsonl", model, settings_of(score="none"))
    assert (done.n_too_long, done.n_texts) == (1, 4)
    done = label(given, tmp_path / "two.jsonl", model, settings_of(max_new_tokens=1, score="none"))
    assert (done.n_unasked, done.n_kept) == (3, 0)


class PulledError(Exception):
    """The plug was pulled."""


@pytest.mark.parametrize("stopped_after", [0, 1, 2])
@pytest.mark.parametrize("written", [0, 19, "a line"])
def test_an_interrupted_job_goes_on_to_the_same_result(
    tokenizer: Tokenizer, texts: list[str], tmp_path: Path, stopped_after: int, written: int | str
) -> None:
    """It may have been killed between writing pairs and saying so, or while writing them."""
    given, settings = documents(texts), settings_of()
    whole, halves = tmp_path / "whole.jsonl", tmp_path / "halves.jsonl"
    label(given, whole, model_of(tokenizer), settings)
    left = [stopped_after]

    def stop(state: LabelState) -> None:
        if state.n_texts >= 3 * left[0]:
            raise PulledError

    if stopped_after:
        with pytest.raises(PulledError):
            label(given, halves, model_of(tokenizer), settings, report=stop)
        assert len(lines(halves)) < len(lines(whole))
        tail = whole.read_bytes()[halves.stat().st_size :]
        with halves.open("ab") as file:
            file.write(tail[: tail.index(b"\n") + 1 if written == "a line" else int(written)])
    model = model_of(tokenizer)
    done = label(given, halves, model, settings)
    assert halves.read_bytes() == whole.read_bytes()
    assert done.n_texts == len(given)
    again = model_of(tokenizer)
    assert label(given, halves, again, settings) == done
    assert not hasattr(again.engine, "scored")  # nothing was left to do


@pytest.mark.parametrize("n_done", [0, 3, 10])
def test_lines_that_a_user_put_there_are_not_deleted(
    tokenizer: Tokenizer, texts: list[str], tmp_path: Path, n_done: int
) -> None:
    given, settings, out = documents(texts), settings_of(), tmp_path / "out.jsonl"

    def unreadable() -> Iterator[Document]:
        yield given[0]
        raise DataError("line 2 is no JSON")

    if n_done:
        label(given, out, model_of(tokenizer), settings, limit=n_done)
    else:
        with pytest.raises(DataError, match="no JSON"):
            label(unreadable(), out, model_of(tokenizer), settings)
    with out.open("ab") as file:
        file.write(b'{"instruction": "Mine?", "response": "Mine."}\n')
    before = out.read_bytes()
    for _ in range(2):
        with pytest.raises(CorruptFileError, match="with what this job did not write"):
            label(given, out, model_of(tokenizer), settings)
        assert out.read_bytes() == before


def test_two_jobs_do_not_write_one_file(
    tokenizer: Tokenizer, texts: list[str], tmp_path: Path
) -> None:
    given, settings, out = documents(texts), settings_of(), tmp_path / "out.jsonl"

    def refused(state: LabelState) -> None:
        with pytest.raises(UsageError, match=r"another process is writing to .*out\.jsonl: let it"):
            label(given, out, model_of(tokenizer), settings)

    done = label(given, out, model_of(tokenizer), settings, limit=6, report=refused)
    assert (done.n_texts, len(lines(out))) == (6, done.n_kept)

    def late() -> Iterator[Document]:  # read when the state is known, before the file is held
        label(given, out, model_of(tokenizer), settings)
        yield from given

    with pytest.raises(UsageError, match=r"another process wrote to .*out\.jsonl just now"):
        label(late(), out, model_of(tokenizer), settings)
    assert label(given, out, model_of(tokenizer), settings).n_texts == len(given)


def test_a_limit_stops_and_a_higher_one_goes_on(
    tokenizer: Tokenizer, texts: list[str], tmp_path: Path
) -> None:
    given, settings = documents(texts), settings_of()
    model = model_of(tokenizer)
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    label(given, whole, model, settings)
    for limit in (1, 2, 4, 6):  # in the middle of a batch of three, twice in the first
        assert label(given, parts, model, settings, limit=limit).n_texts == limit
    assert label(given, parts, model, settings, limit=2).n_texts == 6
    assert label(given, parts, model, settings, limit=100).n_texts == 10
    assert parts.read_bytes() == whole.read_bytes()


def test_changed_settings_texts_or_results_are_refused(
    tokenizer: Tokenizer, texts: list[str], tmp_path: Path
) -> None:
    given, settings, out = documents(texts), settings_of(), tmp_path / "out.jsonl"
    model = model_of(tokenizer)
    label(given, out, model, settings, limit=6)
    for key, value in (("candidates", 5), ("seed", 1), ("model", "other")):
        changed = settings.model_copy(update={key: value})
        with pytest.raises(UsageError, match=f"begun with {key} = .*, not with {key} = {value!r}"):
            label(given, out, model, changed)
    with pytest.raises(UsageError, match=r"begun without threshold, not with threshold = 0\.5:"):
        label(given, out, model, settings.model_copy(update={"threshold": 0.5}))
    with pytest.raises(UsageError, match="no longer those that were labeled"):
        label(given[1:], out, model, settings)
    with pytest.raises(UsageError, match="no longer those that were labeled"):
        label(given[:3], out, model, settings)
    with pytest.raises(UsageError, match="no longer those that were labeled"):
        label([replace(given[0], text="Other."), *given[1:]], out, model, settings)
    with pytest.raises(UsageError, match="max_new_tokens = 200: it must be at most"):
        label(given, tmp_path / "new.jsonl", model, settings_of(max_new_tokens=200))
    whole = out.read_bytes()
    assert len(whole) > 100
    for altered in (whole[:-5], whole.replace(b"instruction", b"Instruction"[:-1], 1), b""):
        out.write_bytes(altered)
        with pytest.raises(CorruptFileError, match="not as it was left"):
            label(given, out, model, settings)
        assert out.read_bytes() == altered
    other = tmp_path / "other.jsonl"
    other.write_text("{}\n")
    with pytest.raises(UsageError, match="choose another --out"):
        label(given, other, model, settings)


def test_an_out_that_names_no_file_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = model_of(tokenizer), documents(["The dog."])
    for folder in (Path("."), Path(""), tmp_path):
        with pytest.raises(UsageError, match=r"^- is no file that can be gone on with"):
            label(given, Path("-"), model, settings_of())
        with pytest.raises(UsageError, match=r"is a folder: name a file, such as pairs\.jsonl"):
            label(given, folder, model, settings_of())
    with pytest.raises(UsageError, match=r"there is no folder .*no: make it"):
        label(given, tmp_path / "no" / "out.jsonl", model, settings_of())

    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "out.jsonl").symlink_to(tmp_path / "no" / "where")
    with pytest.raises(BackgptError, match=r"cannot write .*out\.jsonl: No such file or directory"):
        label(given, tmp_path / "out.jsonl", model, settings_of())
    (tmp_path / "out.jsonl").unlink()
    monkeypatch.setattr("backgpt.label.write_whole", refuse)
    with pytest.raises(BackgptError, match=r"cannot write .*state: Permission denied; choose"):
        label(given, tmp_path / "out.jsonl", model, settings_of())


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("no.jsonl", None),
        ("empty.jsonl", b""),
        ("blank.jsonl", b'{"text": " "}\n'),
        ("latin.jsonl", b'{"text": "caf\xe9"}\n'),
        ("binary.jsonl", b"\0\1\2"),
        ("broken.jsonl", b'{"text": '),
        ("field.jsonl", b'{"story": "The dog."}\n'),
    ],
)
def test_a_source_without_a_first_text_is_refused_and_nothing_is_written(
    tokenizer: Tokenizer, tmp_path: Path, name: str, data: bytes | None
) -> None:
    source, out = tmp_path / name, tmp_path / "out.jsonl"
    if data is not None:
        source.write_bytes(data)
    texts = read_file(source, field="text", separator=None, tally=Tally())
    with pytest.raises(DataError, match=name):
        label(texts, out, model_of(tokenizer), settings_of(source=name))
    assert not [*tmp_path.glob("out.jsonl*")]


def test_a_job_that_got_nowhere_can_begin_anew_with_other_settings(
    tokenizer: Tokenizer, texts: list[str], tmp_path: Path
) -> None:
    def broken() -> Iterator[Document]:
        yield from documents(texts, 1)
        raise DataError("not UTF-8")

    out, model = tmp_path / "out.jsonl", model_of(tokenizer)
    with pytest.raises(DataError):
        label(broken(), out, model, settings_of(source="wrong.jsonl"))
    assert label(documents(texts, 3), out, model, settings_of()).n_texts == 3


def test_models_must_run_the_way_they_are_used(tokenizer: Tokenizer, tmp_path: Path) -> None:
    backward = model_of(tokenizer, told=False)
    forward = model_of(tokenizer, "forward", told=False)
    out = tmp_path / "out.jsonl"
    with pytest.raises(UsageError, match="runs forward: questions need"):
        label([], out, forward, settings_of())
    with pytest.raises(UsageError, match="load its twin"):
        label([], out, backward, settings_of())
    with pytest.raises(UsageError, match="twin must run forward"):
        label([], out, backward, settings_of(twin="x"), twin=backward)
    with pytest.raises(UsageError, match="threshold needs a score"):
        label([], out, backward, settings_of(score="none", threshold=1.0))
    assert not out.exists()
    given = documents(["The dog."])
    assert label(given, out, backward, settings_of(), twin=forward).n_texts == 1


def test_a_twin_is_what_scores(tokenizer: Tokenizer, texts: list[str], tmp_path: Path) -> None:
    model = model_of(tokenizer, told=False)
    twin = replace(model_of(tokenizer, "forward", told=False))
    label(documents(texts, 3), tmp_path / "out.jsonl", model, settings_of(), twin=twin)
    assert not hasattr(model.engine, "scored")
    engine = twin.engine
    assert isinstance(engine, Asker)
    assert {row[0] for row in engine.scored} == {tokenizer.start_id}


@pytest.fixture(scope="module")
def run(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("label") / "run"
    config = {"data": dataset_path, "out": out, "max_steps": 2, "batch_size": 2, "compile": "off"}

    class Silent:
        def started(self, *, first_step: int, max_steps: int) -> None: ...
        def stepped(self, record: object) -> None: ...
        def notice(self, text: str) -> None: ...

    settings = TrainConfig.model_validate({**config, **SHAPE, "direction": "both"})
    train(settings, report=Silent())
    save_model(replace(read_model(out), chat=True), out.parent / "model")
    return out.parent / "model"


def command(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "backgpt", "label", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        timeout=120,
        check=False,
    )


def test_a_text_file_is_split_at_a_separator_that_stays_the_same(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "texts.txt"
    source.write_text("The dog ran.\n***\nThe cat sat.")
    given = ["label", source, "--out", tmp_path / "out.jsonl", "--model", run, "--candidates=1"]
    for separator, code in ((r"\n***\n", 0), ("***", 2)):
        with pytest.raises(SystemExit) as ended:
            main([*map(str, given), "--max-new-tokens=9", f"--separator={separator}"])
        assert ended.value.code == code
    out, err = capsys.readouterr()
    assert " of 2; " in out
    assert r"begun with separator = '\n***\n', not with separator = '***'" in err


def test_a_twin_that_was_not_tuned_on_conversations_is_told_of(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "texts.txt"
    source.write_text("The dog ran.")
    given = ["label", source, "--model", run, "--candidates=1", "--max-new-tokens=9"]
    for name, twin in (("untuned", run.parent / "run"), ("tuned", run)):
        with pytest.raises(SystemExit) as ended:
            main([*map(str, given), f"--twin={twin}", f"--out={tmp_path / name}.jsonl"])
        assert ended.value.code == 0
        said = "was never tuned on conversations" in capsys.readouterr().err
        assert said == (name == "untuned")


@pytest.mark.slow
def test_the_command_labels_a_file_and_goes_on(run: Path, texts: list[str], tmp_path: Path) -> None:
    source, out = tmp_path / "texts.jsonl", tmp_path / "pairs.jsonl"
    some = [*(text[:100] for text in texts[:5]), "", texts[5][:100]]
    source.write_text("".join(json.dumps({"story": text}) + "\n" for text in some))
    options = [source, "--out", out, "--model", run, "--field=story", "--candidates=2"]
    options += ["--max-new-tokens=100", "--batch-size=2", "--threshold=-9"]
    done = command(*options, "--limit=2")
    assert done.returncode == 0, done.stderr
    assert " of 2; " in done.stdout
    assert "empty" not in done.stdout
    done = command(*options)
    assert done.stdout.startswith(f"{out}: ")
    assert " of 6; " in done.stdout
    assert done.stdout.endswith("; not counted: 1 empty\n")
    assert " read, " in done.stderr
    state = json.loads((tmp_path / "pairs.jsonl.state").read_text())
    assert state["settings"]["score"] == "forward"
    assert state["n_kept"] == len(lines(out))
    assert {record["source"].split(":")[0] for record in lines(out)} <= {"texts.jsonl"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--field=none"], "no field 'none'"),
        (["--candidates=0"], "candidates = 0"),
        (["--limit=0"], "limit = 0"),
        (["--score=none", "--threshold=1"], "a threshold needs a score"),
        (["--score=round-trip", "--twin=x"], "--twin is for --score forward"),
        (["--score=luck"], "luck"),
    ],
)
def test_a_bad_request_is_one_line_and_exit_code_2(
    run: Path, tmp_path: Path, flags: list[str], reason: str
) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_text('{"text": "The dog."}\n')
    done = command(source, "--out", tmp_path / "out.jsonl", "--model", run, *flags)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
