"""Training: exact resume, ranks, signals, failures, and a loss that falls."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from backgpt import run as run_module
from backgpt.ahead import Ahead
from backgpt.checkpoint import checkpoints, read_checkpoint, save_checkpoint
from backgpt.config import TrainConfig, build, read_toml
from backgpt.devices import Ranks
from backgpt.errors import (
    BackgptError,
    ConfigError,
    DataError,
    StoppedError,
    TrainingError,
    UsageError,
)
from backgpt.files import held, whole_file, write_whole
from backgpt.model_folder import BEST, LATEST, pointed, read_model
from backgpt.prepare import prepare
from backgpt.prepared import sources_of
from backgpt.run import Run
from backgpt.run_folder import add_metrics, check_same_run, plot, read_metrics, write_settings
from backgpt.train import train
from tiny_models import network_of

TINY = {
    "preset": "nano",
    "n_layer": 2,
    "n_head": 1,
    "n_embd": 64,
    "intermediate_size": 96,
    "block_size": 64,
    "batch_size": 4,
    "log_every": 1,
    "precision": "fp32",
    "sample_endings": ["The end."],
}


LEARNING = {"max_steps": 60, "eval_every": 60, "batch_size": 16, "warmup_steps": 5}


class Notes:
    """A reporter that keeps what it is told; `at` maps a step to something to do there."""

    def __init__(self, at: Mapping[int, Any] | None = None) -> None:
        self.notices: list[str] = []
        self.at = at or {}

    def started(self, *, first_step: int, max_steps: int) -> None:
        self.first_step = first_step

    def stepped(self, record: Mapping[str, Any]) -> None:
        if "valid_loss" not in record and record["step"] in self.at:
            self.at[record["step"]]()

    def notice(self, text: str) -> None:
        self.notices.append(text)


def settings(data: Path, out: Path, **values: Any) -> TrainConfig:
    given = {**TINY, "data": data, "out": out, "max_steps": 6, "eval_every": 3, "save_every": 2}
    return build(TrainConfig, given | values, origin="test")


def weights_of(run: Path) -> dict[str, Any]:
    return dict(read_checkpoint(checkpoints(run)[0]).model.weights)


def assert_same_run(a: Path, b: Path) -> None:
    """Assert that two runs have the same weights, optimizer, losses and samples, bit for bit."""
    one, two = (read_checkpoint(checkpoints(run)[0]) for run in (a, b))
    assert one.step == two.step
    for mine, theirs in ((one.model.weights, two.model.weights), (one.optimizer, two.optimizer)):
        assert mine.keys() == theirs.keys()
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)

    def without_speed(run: Path) -> list[dict[str, Any]]:
        return [
            {k: v for k, v in record.items() if k != "tokens_per_second"}
            for record in read_metrics(run)
        ]

    assert without_speed(a) == without_speed(b)
    assert (a / "samples.md").read_text() == (b / "samples.md").read_text()


@pytest.fixture(scope="module")
def finished(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    train(settings(dataset_path, out), report=Notes())
    return out


def test_a_run_folder_has_everything_it_promises(finished: Path, dataset_path: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        *("best", "checkpoints", "config.toml", "latest", "loss.png", "metrics.jsonl"),
        *("run.json", "samples.md"),
    ]
    again = build(TrainConfig, read_toml(finished / "config.toml"), origin="test")
    assert again == settings(dataset_path, finished)
    records = read_metrics(finished)
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if "valid_loss" in r] == [3, 6]
    assert records[0]["loss"] == pytest.approx(np.log(512), abs=0.5)
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "The end." in (finished / "samples.md").read_text()
    assert pointed(finished, LATEST) == checkpoints(finished)[0]


def test_a_run_says_what_it_was_trained_on_with_what_and_how_often_it_was_started(
    dataset_path: Path, tmp_path: Path
) -> None:
    first, second = (settings(dataset_path, tmp_path / "run", max_steps=n) for n in (2, 3))
    for config in (first, second):
        train(config, report=Notes())
    told = json.loads((tmp_path / "run/run.json").read_text())
    model = read_checkpoint(checkpoints(tmp_path / "run")[0]).model
    assert told["parameters"] == sum(array.size for array in model.weights.values())
    assert told["shape"]["n_layer"] == model.config.n_layer
    assert told["tokenizer_sha256"] == model.tokenizer.sha256
    assert told["sources"] == list(sources_of(dataset_path)) != []
    assert told["max_steps"] == 3
    assert [start["step"] for start in told["starts"]] == [0, 2]
    for start in told["starts"]:
        assert start["torch"] == torch.__version__
        assert start["threads"] == torch.get_num_threads()
        assert start["device"] == "cpu"
    (tmp_path / "run/run.json").write_text("{")
    train(settings(dataset_path, tmp_path / "run", max_steps=4), report=Notes())
    told = json.loads((tmp_path / "run/run.json").read_text())
    assert [start["step"] for start in told["starts"]] == [3]


def test_hints_that_no_document_gets_are_told_of(dataset_path: Path, tmp_path: Path) -> None:
    notes = Notes()
    train(settings(dataset_path, tmp_path / "run", hints=0.5, block_size=8), report=notes)
    assert "no document fits into 8 ids: none gets hints" in notes.notices


@pytest.mark.parametrize(("grad_accum_steps", "told"), [(1, True), (3, True), (4, False)])
def test_processes_that_have_nothing_to_do_are_told_of(
    dataset_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    grad_accum_steps: int,
    told: bool,
) -> None:
    monkeypatch.setattr(run_module, "spread", lambda model, *rest: model)
    config = settings(dataset_path, tmp_path / "run", grad_accum_steps=grad_accum_steps)
    notes = Notes()
    with closing(Run(config, notes, Ranks(0, world_size=2))) as run:
        run.resume()
    waiting = f"grad_accum_steps = {grad_accum_steps} micro-batches in a step are dealt to 2 pro"
    assert any(notice.startswith(waiting) for notice in notes.notices) == told


def test_a_checkpoint_is_a_folder_that_transformers_loads(finished: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from backgpt import load

    folder = checkpoints(finished)[0]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = load(folder, engine="torch")
    assert type(theirs).__name__ == "Qwen3ForCausalLM"

    ids = torch.randint(16, 512, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(ids).logits
        found = network_of(ours)(ids)
    assert torch.allclose(found, expected, atol=1e-4)
    text = 'One day.\n"Hi!" she said.'
    assert (
        their_tokenizer.encode(text, add_special_tokens=False)
        == ours.tokenizer.encode(text).tolist()
    )
    assert theirs.generation_config.eos_token_id == ours.tokenizer.start_id


def test_validation_is_in_nats_per_token_and_bits_per_byte(
    finished: Path, dataset_path: Path
) -> None:
    from backgpt import load
    from backgpt.shards import open_dataset

    dataset = open_dataset(dataset_path)
    texts = [dataset.tokenizer.decode(ids) for shard in dataset.valid for ids in shard.documents()]
    scores = load(finished / LATEST).score_all(texts)
    last = [r for r in read_metrics(finished) if "valid_loss" in r][-1]
    nats = -sum(score.logprob for score in scores)
    assert nats / sum(score.n_tokens for score in scores) == pytest.approx(last["valid_loss"], 1e-5)
    n_bytes = sum(len(text.encode()) for text in texts)
    assert nats / np.log(2) / n_bytes == pytest.approx(last["valid_bpb"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("stop_at", [2, 3, 4])
def test_a_resumed_run_is_the_unbroken_run_bit_for_bit(
    dataset_path: Path, tmp_path: Path, optimizer: str, stop_at: int
) -> None:
    options = {"optimizer": optimizer, "dropout": 0.1, "grad_accum_steps": 2}
    train(settings(dataset_path, tmp_path / "whole", **options), report=Notes())
    broken = settings(dataset_path, tmp_path / "broken", **options)
    interrupt = Notes({stop_at: lambda: os.kill(os.getpid(), signal.SIGINT)})
    with pytest.raises(StoppedError) as stopped:
        train(broken, report=interrupt)
    assert stopped.value.exit_code == 130
    resumed = Notes()
    train(broken, report=resumed)
    assert resumed.first_step in (stop_at, stop_at + 1)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_run_killed_in_mid_step_goes_on_from_its_last_checkpoint(
    dataset_path: Path, tmp_path: Path
) -> None:
    class KilledError(Exception):
        pass

    def kill() -> None:
        raise KilledError

    config = settings(dataset_path, tmp_path / "killed")
    with pytest.raises(KilledError):
        train(config, report=Notes({5: kill}))
    train(config, report=Notes())
    train(settings(dataset_path, tmp_path / "whole"), report=Notes())
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_finished_run_is_not_trained_again(finished: Path, dataset_path: Path) -> None:
    before = (finished / "metrics.jsonl").read_text()
    result = train(settings(dataset_path, finished), report=Notes())
    assert (finished / "metrics.jsonl").read_text() == before
    assert (
        result.valid_loss
        == [r for r in read_metrics(finished) if "valid_loss" in r][-1]["valid_loss"]
    )


def test_a_result_names_the_best_step_whether_or_not_it_is_the_last(
    finished: Path, dataset_path: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    [third, sixth] = [r for r in read_metrics(run) if "valid_loss" in r]
    result = train(settings(dataset_path, run), report=Notes())
    assert result.best == (6, sixth["valid_loss"])
    assert pointed(run, BEST) == run / "checkpoints" / "step-6"

    metrics = (run / "metrics.jsonl").read_text()
    for loss, step in ((sixth["valid_loss"], 6), (0.5, 3)):
        changed = metrics.replace(str(third["valid_loss"]), str(loss))
        (run / "metrics.jsonl").write_text(changed)
        assert train(settings(dataset_path, run), report=Notes()).best == (step, loss)


def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    finished: Path, dataset_path: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    newest = checkpoints(run)[0] / "model.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    notes = Notes()
    train(settings(dataset_path, run), report=notes)
    assert any("damaged" in text and "step-6" in text for text in notes.notices)
    assert notes.first_step == 4
    assert_same_run(finished, run)
    assert [path.name for path in (run / "checkpoints").glob("*.damaged")] == ["step-6.damaged"]


def test_what_is_saved_after_a_damaged_checkpoint_stays(
    finished: Path, dataset_path: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for folder in checkpoints(run)[:2]:
        (folder / "model.safetensors").write_bytes(b"")
    train(settings(dataset_path, run, save_every=1, keep_last=1, max_steps=5), report=Notes())
    assert pointed(run, LATEST) == run / "checkpoints" / "step-5" == checkpoints(run)[0]
    assert read_checkpoint(checkpoints(run)[0]).step == 5


def test_accumulating_small_micro_batches_equals_one_large(
    dataset_path: Path, tmp_path: Path
) -> None:
    """The windows of a step differ with the budget, so one step is computed both ways."""
    run = Run(settings(dataset_path, tmp_path / "run"), Notes(), Ranks())
    windows = np.arange(12)

    def gradients(parts: int) -> list[torch.Tensor]:
        run.batches.step = lambda step: np.array_split(windows, parts)  # type: ignore[method-assign]
        run.accumulate_gradients(0)
        found = [p.grad.clone() for p in run.model.parameters() if p.grad is not None]
        run.optimizer.zero_grad()
        return found

    for one, many in zip(gradients(1), gradients(5), strict=True):
        assert torch.allclose(one, many, rtol=1e-4, atol=1e-7)


def test_backward_and_forward_twins_read_the_same_windows_in_the_same_order(
    dataset_path: Path, tmp_path: Path
) -> None:
    runs = [
        Run(settings(dataset_path, tmp_path, direction=d), Notes(), Ranks())
        for d in ("backward", "forward")
    ]
    for step in range(5):
        one, two = (run.batches.step(step) for run in runs)
        assert [b.tolist() for b in one] == [b.tolist() for b in two]
        for indices in one:
            for index in map(int, indices):
                backward, forward = (run.rows.sequence(index) for run in runs)
                assert backward.tolist() == forward.tolist()[::-1]


def test_a_loss_that_is_not_a_number_stops_the_run_and_is_not_saved(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(dataset_path, tmp_path / "run", save_every=1)
    original = Run.accumulate_gradients

    def broken(self: Run, step: int) -> torch.Tensor:
        loss = original(self, step)
        return loss * float("nan") if step == 3 else loss

    monkeypatch.setattr(Run, "accumulate_gradients", broken)
    with pytest.raises(TrainingError, match="step 4 is not a number"):
        train(config, report=Notes())
    assert pointed(config.out, LATEST) == config.out / "checkpoints" / "step-3"
    assert [r["step"] for r in read_metrics(config.out) if "loss" in r] == [1, 2, 3]


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(dataset_path, tmp_path / "run")
    original = save_checkpoint

    def full(run: Path, checkpoint: Any) -> Path:
        if checkpoint.step == 4:
            raise BackgptError("cannot save step 4: No space left on device")
        return original(run, checkpoint)

    monkeypatch.setattr(run_module, "save_checkpoint", full)
    with pytest.raises(BackgptError, match="No space left"):
        train(config, report=Notes())
    assert read_checkpoint(checkpoints(config.out)[0]).step == 3


@pytest.mark.parametrize("name", [BEST, "samples.md"])
def test_a_disk_that_is_full_after_a_checkpoint_is_told_of_with_the_run_and_gone_on_from(
    finished: Path, dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = settings(dataset_path, tmp_path / "run")

    def full(path: Path, data: bytes) -> None:
        if path.name == name:
            raise OSError(28, "No space left on device")
        write_whole(path, data)

    with monkeypatch.context() as patched:
        for module in ("checkpoint", "run_folder"):
            patched.setattr(f"backgpt.{module}.write_whole", full)
        with pytest.raises(BackgptError, match=r"cannot write .*run: No space left.*make room"):
            train(config, report=Notes())
    train(config, report=Notes())
    assert_same_run(finished, config.out)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is full")
def test_a_disk_that_is_full_for_metrics_names_them(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(BackgptError, match=r"cannot write .*metrics\.jsonl: No space .*make room"):
        add_metrics(tmp_path, [{"step": 1}])


def test_other_settings_are_refused_and_nothing_is_touched(
    finished: Path, dataset_path: Path
) -> None:
    before = (finished / "config.toml").read_text()
    with pytest.raises(ConfigError, match=r"started with lr = 0\.003, not 0\.1"):
        train(settings(dataset_path, finished, lr=0.1), report=Notes())
    assert (finished / "config.toml").read_text() == before


@pytest.mark.parametrize("which", [slice(50), slice(None, None, -1)], ids=["fewer", "reversed"])
def test_other_data_is_refused(
    finished: Path, dataset_path: Path, tmp_path: Path, texts: list[str], which: slice
) -> None:
    source = tmp_path / "other.txt"
    source.write_text("<|endoftext|>".join(texts[which]), encoding="utf-8")
    prepare(
        [str(source)],
        tmp_path / "other",
        tokenizer=dataset_path / "tokenizer.json",
        valid_fraction=0.1,
        workers=1,
    )
    before = {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match="other data"):
        train(settings(tmp_path / "other", finished), report=Notes())
    assert before == {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}


def test_training_begins_from_given_weights(
    finished: Path, dataset_path: Path, tmp_path: Path
) -> None:
    config = settings(dataset_path, tmp_path / "tuned", init=finished / LATEST, direction="forward")
    notes = Notes()
    run = Run(config, notes, Ranks())
    run.resume()
    given = weights_of(finished)
    assert given.keys() == run.model.state_dict().keys()
    for name, tensor in run.model.state_dict().items():
        assert np.array_equal(tensor.numpy(), given[name])
    says = f"{config.init} has direction = backward; this run trains it with direction = forward"
    assert says in notes.notices


def test_tuning_tells_what_the_model_loses_before_it(
    finished: Path, dataset_path: Path, tmp_path: Path
) -> None:
    config = settings(dataset_path, tmp_path / "tuned", init=finished / LATEST, max_steps=1)
    notes = Notes()
    train(config, report=notes)
    [*_, last] = [r["valid_loss"] for r in read_metrics(finished) if "valid_loss" in r]
    told = f"{config.init} as it is: validation {last:.4f} nats per token"
    assert told in notes.notices
    [trained] = [r["valid_loss"] for r in read_metrics(config.out) if "valid_loss" in r]
    assert trained != last
    train(config, report=notes)  # it is finished, and begins with nothing
    assert notes.notices.count(told) == 1


@pytest.mark.slow
def test_a_tuned_run_goes_on_when_what_it_began_from_is_gone(
    finished: Path, dataset_path: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoints(finished)[0], tmp_path / "base")
    config = settings(dataset_path, tmp_path / "tuned", init=tmp_path / "base", max_steps=2)
    train(config, report=Notes())
    shutil.rmtree(tmp_path / "base")
    notes = Notes()
    train(settings(dataset_path, tmp_path / "tuned", init=tmp_path / "base"), report=notes)
    assert notes.first_step == 2


@pytest.mark.parametrize("block_size", [5, 60, 100])
def test_a_context_that_is_no_multiple_of_8_trains(
    dataset_path: Path, tmp_path: Path, block_size: int
) -> None:
    config = settings(dataset_path, tmp_path, block_size=block_size, max_steps=3, sample_endings=[])
    train(config, report=Notes())


def test_weights_that_are_no_numbers_are_never_saved(dataset_path: Path, tmp_path: Path) -> None:
    config = settings(dataset_path, tmp_path / "run", optimizer="adamw", lr=1e39, save_every=1)
    with pytest.raises(TrainingError, match="is not a number"):
        train(config, report=Notes())
    assert checkpoints(config.out) == []


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_anew(
    dataset_path: Path, tmp_path: Path
) -> None:
    config = settings(dataset_path, tmp_path / "killed")
    config.out.mkdir()
    (config.out / "metrics.jsonl").write_text('{"step": 1, "loss": 6.0}\n{"step": 2, "lo')
    (config.out / "samples.md").write_text("\n## Step 2\n> a\n\n## Step \0\0")
    train(config, report=Notes())
    train(settings(dataset_path, tmp_path / "whole"), report=Notes())
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_what_a_killed_run_was_writing_is_deleted_when_it_goes_on(
    dataset_path: Path, tmp_path: Path
) -> None:
    unended: list[Any] = []

    def die() -> None:
        writing = whole_file(tmp_path / "run" / "metrics.jsonl")
        writing.__enter__().write_text("half of")  # SIGKILL has nothing leave a block
        unended.append(writing)
        raise KeyboardInterrupt

    config = settings(dataset_path, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(config, report=Notes({2: die}))
    assert list((tmp_path / "run").glob(".metrics.jsonl.*.tmp"))
    train(config, report=Notes())
    assert not list((tmp_path / "run").glob(".*"))


def test_a_run_that_dies_while_it_tells_its_loss_loses_neither_best_nor_samples(
    dataset_path: Path, finished: Path, tmp_path: Path
) -> None:
    class ClosedPipe(Notes):
        def stepped(self, record: Mapping[str, Any]) -> None:
            if record["step"] == 6 and "valid_loss" in record:
                raise BrokenPipeError

    config = settings(dataset_path, tmp_path / "broken")
    with pytest.raises(BrokenPipeError):
        train(config, report=ClosedPipe())
    train(config, report=Notes())
    assert_same_run(finished, config.out)
    for name in (BEST, LATEST):
        assert pointed(config.out, name) == config.out / "checkpoints" / "step-6"
        assert pointed(finished, name) == finished / "checkpoints" / "step-6"


def test_a_finished_run_without_validation_stays_as_it_is(texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "stories.txt").write_text("<|endoftext|>".join(texts), encoding="utf-8")
    data = tmp_path / "data"
    prepare([str(tmp_path / "stories.txt")], data, vocab_size=512, valid_fraction=0, workers=1)
    config = settings(
        data, tmp_path / "run", max_steps=2, direction="forward", sample_endings=["A.", "B."]
    )
    train(config, report=Notes())
    samples = (config.out / "samples.md").read_text()
    train(config, report=Notes())
    assert (config.out / "samples.md").read_text() == samples
    assert pointed(config.out, BEST) == checkpoints(config.out)[0]
    first, second = samples.removeprefix("\n## Step 2\n\n").split("\n\n")
    assert first != second


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_two_processes_do_not_train_in_one_folder(dataset_path: Path, tmp_path: Path) -> None:
    config = settings(dataset_path, tmp_path / "run", max_steps=1)
    with held(config.out), pytest.raises(UsageError, match=r"another process is writing to .*run"):
        train(config, report=Notes())
    assert not checkpoints(config.out)
    train(config, report=Notes())
    assert checkpoints(config.out)


def test_settings_are_free_until_there_is_a_checkpoint(dataset_path: Path, tmp_path: Path) -> None:
    first = settings(dataset_path, tmp_path / "run", lr=0.1)
    first.out.mkdir()
    write_settings(first)  # as a run leaves it that fails in its first steps
    train(settings(dataset_path, first.out), report=Notes())
    assert "lr = 0.003" in (first.out / "config.toml").read_text()


def test_a_name_that_reads_as_a_formula_is_the_title_of_a_picture(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 6.0}\n{"step": 2, "loss": 5.0}\n')
    for title in (r"$\frac{$, backward", "inv\udcff, backward"):
        plot(tmp_path, title=title)
        assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "loss.png").unlink()


def test_a_curve_shows_a_validation_loss_that_rises_beside_the_losses_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small text learned by heart in a few steps: training falls fast, validation rises."""
    falling = [{"step": step, "loss": 6.0 * 0.97**step} for step in range(1, 101)]
    rising = [{"step": step, "valid_loss": 4.0 + step / 200} for step in (25, 50, 75, 100)]
    add_metrics(tmp_path, [*falling, *rising])
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    plot(tmp_path, title="run, backward")
    [axes] = drawn[0].axes
    assert axes.get_ylim()[1] > 4.5
    mean = next(line for line in axes.get_lines() if line.get_label() == "training")
    assert float(np.asarray(mean.get_ydata())[-1]) == pytest.approx(6.0 * 0.97**100, rel=0.2)


def test_a_curve_that_cannot_be_drawn_does_not_end_the_run(
    dataset_path: Path, tmp_path: Path
) -> None:
    config, notes = settings(dataset_path, tmp_path / "run"), Notes()
    (config.out / "loss.png" / "in the way").mkdir(parents=True)
    result = train(config, report=notes)
    assert result.step == 6
    assert any("the loss curve was not drawn: cannot write" in note for note in notes.notices)


def test_out_of_memory_on_a_cpu_says_what_to_lower(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> torch.Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr("backgpt.kernels.cross_entropy_sum", full)
    with pytest.raises(TrainingError, match=r"out of memory with batch_size = \d+: lower it"):
        train(settings(dataset_path, tmp_path / "run"), report=Notes())


def test_a_metrics_line_that_was_not_written_whole_ends_what_is_known(tmp_path: Path) -> None:
    good, later = b'{"step": 1, "loss": 6.0}\n', b'{"step": 3, "loss": 5.0}\n'
    odd = (b'"x"\n', b'{"loss": 1}\n', b'{"step": "2"}\n', b"[" * 100_000 + b"\n")
    for bad in (b"\0\0\0\n", b'{"step": 2, "lo\n', b"\xff\n", *odd):
        (tmp_path / "metrics.jsonl").write_bytes(good + bad + later)
        assert [record["step"] for record in read_metrics(tmp_path)] == [1]


def test_a_run_beyond_the_steps_asked_for_is_refused(finished: Path, dataset_path: Path) -> None:
    before = (finished / "config.toml").read_text()
    with pytest.raises(ConfigError, match="beyond max_steps = 3"):
        train(settings(dataset_path, finished, max_steps=3), report=Notes())
    assert (finished / "config.toml").read_text() == before


def test_a_file_where_the_run_folder_should_be_is_refused(
    dataset_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ConfigError, match="not a folder"):
        train(settings(dataset_path, tmp_path / "run"), report=Notes())


def test_a_forward_run_samples_whole_texts_and_not_from_endings(
    dataset_path: Path, tmp_path: Path
) -> None:
    config = settings(dataset_path, tmp_path / "run", direction="forward", max_steps=1)
    train(config, report=Notes())
    assert "> The end." not in (config.out / "samples.md").read_text()


@pytest.mark.slow
def test_a_compiled_run_resumes_bit_for_bit(dataset_path: Path, tmp_path: Path) -> None:
    options = {"compile": "on", "precision": "auto", "max_steps": 12, "eval_every": 4}
    train(settings(dataset_path, tmp_path / "whole", **options), report=Notes())
    broken = settings(dataset_path, tmp_path / "broken", **options)
    with pytest.raises(StoppedError):
        train(broken, report=Notes({5: lambda: os.kill(os.getpid(), signal.SIGINT)}))
    torch.compiler.reset()
    train(broken, report=Notes())
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_signal_is_answered_at_once_and_one_time(dataset_path: Path, tmp_path: Path) -> None:
    class Told(Notes):
        told = threading.Event()

        def notice(self, text: str) -> None:
            super().notice(text)
            if text.startswith("stopping"):
                self.told.set()

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert notes.told.wait(timeout=20)  # while the step is not done
        os.kill(os.getpid(), signal.SIGTERM)

    notes = Told({3: interrupt})
    with pytest.raises(StoppedError):
        train(settings(dataset_path, tmp_path / "run", log_every=1), report=notes)
    assert notes.notices[1:] == ["stopping after this step; again to stop now"]
    assert notes.notices[0].startswith("0.1M parameters on cpu: 6 steps of up to ")


def test_a_folder_of_something_else_is_not_trained_into(dataset_path: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("")
    for out, name in ((dataset_path, "dataset.json"), (thesis, "chapter.tex")):
        before = sorted(out.iterdir())
        with pytest.raises(ConfigError, match=f"holds {name} and is no run folder: choose another"):
            train(settings(dataset_path, out), report=Notes())
        assert sorted(out.iterdir()) == before


@pytest.mark.parametrize(
    "names", [(), ("metrics.jsonl", "samples.md", "config.toml.tmp", "checkpoints", ".DS_Store")]
)
def test_an_empty_folder_and_what_a_killed_run_left_are_trained_into(
    dataset_path: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for name in names:
        (out / name).mkdir() if name == "checkpoints" else (out / name).write_text("")
    check_same_run(settings(dataset_path, out))


def test_weights_of_another_shape_are_refused(
    finished: Path, dataset_path: Path, tmp_path: Path
) -> None:
    config = settings(dataset_path, tmp_path / "tuned", init=finished, n_layer=3)
    with pytest.raises(ConfigError, match="n_layer = 2, this run 3"):
        train(config, report=Notes())
    assert not config.out.exists()


def test_missing_data_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = settings(tmp_path / "nothing", tmp_path / "run")
    with pytest.raises(DataError, match="nothing"):
        train(config, report=Notes())
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("direction", "unit"),
    [
        ("backward", "token"),
        pytest.param("forward", "word", marks=pytest.mark.slow),
        pytest.param("backward", "word", marks=pytest.mark.slow),
        pytest.param("forward", "token", marks=pytest.mark.slow),
    ],
)
def test_the_loss_falls_in_both_directions_and_units(
    dataset_path: Path, tmp_path: Path, direction: str, unit: str
) -> None:
    config = settings(dataset_path, tmp_path / "run", direction=direction, unit=unit, **LEARNING)
    result = train(config, report=Notes())
    assert result.valid_loss is not None
    assert result.valid_loss < np.log(512) - 1.5
    model = read_model(config.out)
    assert (model.direction, model.unit) == (direction, unit)


@pytest.mark.slow
def test_shuffled_targets_do_not_train(dataset_path: Path, tmp_path: Path) -> None:
    """The control of the test above: the fall comes from the order of ids."""
    losses = {}
    for name, shuffle in (("true", False), ("shuffled", True)):
        run = Run(settings(dataset_path, tmp_path / name, **LEARNING), Notes(), Ranks())
        if shuffle:
            original = run.rows.batch
            random = np.random.default_rng(1)

            def shuffled(
                indices: Any, original: Any = original, random: Any = random, **settings: Any
            ) -> Any:
                batch = original(indices, **settings)
                for row in batch.targets:
                    row[:] = random.permutation(row)
                return batch

            run.rows.batch = shuffled  # type: ignore[method-assign]
        for step in range(60):
            loss = run.accumulate_gradients(step)
            run.optimizer.step(1.0)
            run.optimizer.zero_grad()
        losses[name] = float(loss)
    assert losses["true"] < losses["shuffled"] - 0.5


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def torchrun(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    where = [f"--master-port={free_port()}", "--master-addr=127.0.0.1", "--nnodes=1"]
    return subprocess.run(
        [sys.executable, *launcher, *where, "-m", "backgpt", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_two_ranks_train_like_one_and_resume_bit_for_bit(
    dataset_path: Path, tmp_path: Path
) -> None:
    flags = [
        *("--preset=nano", "--n-layer=2", "--n-head=1", "--n-embd=64", "--intermediate-size=96"),
        *("--block-size=64", "--batch-size=4", "--grad-accum-steps=3", "--precision=fp32"),
        *("--log-every=1", "--save-every=2", "--eval-every=3", "--device=cpu"),
        f"--data={dataset_path}",
    ]
    whole, broken, alone = (tmp_path / name for name in ("whole", "broken", "alone"))
    for out, steps, ranks in ((whole, 6, 2), (broken, 4, 2), (broken, 6, 2), (alone, 6, 1)):
        done = torchrun(
            ranks, "train", *flags, f"--max-steps={steps}", f"--out={out}", "--decay-fraction=0"
        )
        assert done.returncode == 0, done.stderr
    for name, array in weights_of(whole).items():
        assert np.array_equal(array, weights_of(broken)[name])
    losses = {run: [r["loss"] for r in read_metrics(run) if "loss" in r] for run in (whole, alone)}
    assert losses[whole] == pytest.approx(losses[alone], rel=1e-4)


def test_tensorboard_files_have_the_metrics(dataset_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = settings(dataset_path, tmp_path / "run", tensorboard=True, max_steps=3)
    train(config, report=Notes())
    events = EventAccumulator(str(config.out / "tensorboard"))
    events.Reload()
    assert {"loss", "grad_norm", "valid_loss"} <= set(events.Tags()["scalars"])
    written = [event.value for event in events.Scalars("loss")]
    assert written == pytest.approx([r["loss"] for r in read_metrics(config.out) if "loss" in r])


def test_steps_made_ahead_are_those_that_are_asked_for() -> None:
    def make(step: int) -> tuple[int, int]:
        return step, os.getpid()

    with closing(Ahead(make, last_step=12, n_processes=2)) as ahead:
        made = [ahead.of(step) for step in (4, 5, 6, 9, 10, 11)]
    assert [step for step, _ in made] == [4, 5, 6, 9, 10, 11]
    assert os.getpid() not in {process for _, process in made}
    assert len({process for _, process in made}) == 4  # two, and two anew for step 9
    assert not any(map(is_alive, {process for _, process in made}))
    assert Ahead(make, last_step=12, n_processes=0).of(4) == (4, os.getpid())


def test_an_error_ahead_is_raised_where_its_step_is_asked_for() -> None:
    def make(step: int) -> int:
        if step == 1:
            raise ValueError("bad step")
        return step

    with closing(Ahead(make, last_step=4, n_processes=2)) as ahead:
        assert ahead.of(0) == 0
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^bad step$"):
                ahead.of(1)
        assert [ahead.of(2), ahead.of(3)] == [2, 3]


def test_a_step_whose_process_was_killed_is_made_all_the_same() -> None:
    def make(step: int) -> tuple[int, int]:
        return step, os.getpid()

    with closing(Ahead(make, last_step=99, n_processes=2)) as ahead:
        os.kill(ahead.of(0)[1], signal.SIGKILL)
        assert [ahead.of(step)[0] for step in range(1, 99)] == [*range(1, 99)]


BESIDE = """
import os, signal, sys
from backgpt.ahead import Ahead

run, asked_to_end = os.getpid(), (signal.SIGINT, signal.SIGTERM)
for number in asked_to_end:
    signal.signal(number, lambda number, frame: os.getpid() == run or os._exit(1))
os.setpgid(0, 0)
ahead = Ahead(lambda step: (os.getpid(), bytes(9_999_999)), last_step=999, n_processes=2)
made_by = [ahead.of(0)[0]]
for number in asked_to_end:
    os.killpg(0, number)
made_by += [ahead.of(step)[0] for step in (1, 2, 3)]
print(*made_by, flush=True)
ahead.itself = ahead  # what an exit finds still there
if sys.argv[1:]:
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(3)
"""


@pytest.mark.parametrize("dies", [False, True])
def test_processes_beside_a_run_heed_no_signal_and_end_with_it_however_it_ends(dies: bool) -> None:
    command = [sys.executable, "-c", BESIDE, *(["dies"] if dies else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.returncode) == ("", -signal.SIGKILL if dies else 3)
    one, other, *again = map(int, done.stdout.split())
    assert again == [one, other]
    deadline = time.monotonic() + 20
    while (is_alive(one) or is_alive(other)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(one)
    assert not is_alive(other)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")  # nobody may wait for it where a test is the first process
    return not (stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_run_whose_steps_are_made_ahead_is_the_same(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"max_steps": 6, "dropout": 0.1, "direction": "both", "hints": 0.5}

    def losses(name: str) -> list[float]:
        train(settings(dataset_path, tmp_path / name, **values), report=Notes())
        return [record["loss"] for record in read_metrics(tmp_path / name) if "loss" in record]

    here = losses("here")
    made = []

    def ahead(make: Any, *, last_step: int, n_processes: int) -> Ahead[Any]:
        assert n_processes == 0
        made.append(Ahead(make, last_step=last_step, n_processes=2))
        return made[-1]

    monkeypatch.setattr(run_module, "Ahead", ahead)
    assert losses("ahead") == here
    assert made
