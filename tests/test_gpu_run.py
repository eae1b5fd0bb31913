"""The GPU run at toy size on a CPU: packed, stopped by its time limit, gone on with, unpacked."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backgpt import load
from backgpt.batches import Windows
from backgpt.config import TrainConfig, build
from backgpt.language import Language
from backgpt.model_folder import read_model
from backgpt.quantize import count_parameters
from backgpt.run_folder import read_metrics
from backgpt.shards import open_dataset
from backgpt.tokenizer import Tokenizer
from tiny_folders import tiny_folder

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS / "gpu"))

import archive  # noqa: E402
import go as go_script  # noqa: E402
import jobs as jobs_script  # noqa: E402
import pack as pack_script  # noqa: E402
import weights as weights_script  # noqa: E402
from plan import Stage, State, read_plan, speed, table  # noqa: E402

TOY = SCRIPTS / "gpu" / "toy.toml"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}


def command(script: Path, *arguments: Any, code: int = 0) -> str:
    done = subprocess.run(
        ["bash", str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A folder laid out like the one the plan names, with a few stories in each file."""
    folder = tmp_path_factory.mktemp("gpu") / "data"
    plan = read_plan(TOY)
    files = [name for spec in plan.data.values() for part in spec.values() for name in part]
    for number, name in enumerate(dict.fromkeys(files)):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        said = {"instruction": "Tell me a story.", "response": "Here it is."}
        lines = [json.dumps({"text": text, **said}) + "\n" for text in texts[number::8]]
        file.write_text("".join(lines))
    return folder


def pack(data: Path, out: Path, tokenizer: Path, *options: str) -> str:
    flags = ["--plan", TOY, "--tokenizer", tokenizer, "--no-wheels", *options]
    return command(SCRIPTS / "gpu_run.sh", "pack", data, out, *flags)


def shorten(file: Path, stage: str, factor: float) -> None:
    """Let a stage be shorter than it was to be when it began."""
    known = json.loads(file.read_text())
    known["stages"][stage]["epochs"] *= factor
    file.write_text(json.dumps(known))


@pytest.mark.slow
def test_the_whole_run_at_toy_size(data: Path, dataset_path: Path, tmp_path: Path) -> None:
    calls, home, state = tmp_path / "calls", tmp_path / "home", tmp_path / "state"
    pack(data, calls, dataset_path / "tokenizer.json")

    def go(call: int, *options: Any) -> str:
        script = calls / f"call-{call}" / "code" / "scripts" / "gpu_run.sh"
        given = (calls / f"call-{call}", "--out", home, "--state", state, *options)
        return command(script, "go", *given)

    said = go(1)
    assert "scratch: done" in said
    assert "did not come yet" in said  # the other half of the base corpus

    said = go(2, "--minutes", 0.6, "--seconds", "base=9999", "--only", "base")
    assert "base: stopped" in said  # in time, by what little there was of it
    known = json.loads((state / "state.json").read_text())["stages"]["base"]
    stopped_at, share = known["step"], known["share"]
    assert stopped_at > 0
    assert 0 < share < 0.5

    shorten(state / "state.json", "base", share * (stopped_at + 2) / stopped_at)
    said = go(2)
    assert "base: done" in said
    assert "Left to do: nothing" in said
    steps = [r["step"] for r in read_metrics(state / "runs" / "base") if "loss" in r]
    assert steps == list(range(1, steps[-1] + 1))
    assert steps[-1] > stopped_at

    for name in ("stories", "backchat"):
        assert f"{name} is still to be brought home" in said
    roomy = TOY.read_text().replace("home_mib = 0.1", "home_mib = 64")
    (calls / "call-2" / "plan.toml").write_text(roomy)
    said = go(2, "--minutes", "0.1")
    assert "goes home" in said
    assert all(f"{name}: " in said for name in ("stories", "backchat"))
    assert "still to be brought home" not in said
    pieces = list(home.glob("*.part-*"))
    assert len(pieces) > 1
    assert max(file.stat().st_size for file in pieces) <= 0.1 * 2**20
    command(SCRIPTS / "gpu_run.sh", "unpack", tmp_path / "models", *home.iterdir())
    model = load(tmp_path / "models" / "stories")
    assert model.score("Once upon a time. The end.").loss < 10
    assert read_model(tmp_path / "models" / "base").direction == "both"
    assert read_model(tmp_path / "models" / "backchat").chat
    assert "Left to do: nothing" in command(SCRIPTS / "gpu_run.sh", "status", tmp_path / "models")

    for file in home.glob("stories.part-0"):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    said = command(SCRIPTS / "gpu_run.sh", "unpack", tmp_path / "again", *home.iterdir(), code=1)
    assert "is damaged" in said


@pytest.mark.slow
def test_a_fresh_machine_goes_on_from_the_weights_that_came_home(
    data: Path, dataset_path: Path, tmp_path: Path
) -> None:
    calls, state = tmp_path / "calls", tmp_path / "state"
    pack(data, calls, dataset_path / "tokenizer.json", "--calls", "1")
    script = calls / "call-1" / "code" / "scripts" / "gpu_run.sh"
    go = ("go", calls / "call-1", "--out", tmp_path / "home", "--seconds", "base=2")
    command(script, *go, "--state", state, "--only", "base")
    command(SCRIPTS / "gpu_run.sh", "unpack", tmp_path / "models", *(tmp_path / "home").iterdir())

    progress = tmp_path / "models" / "base" / "progress.json"
    given = json.loads(progress.read_text())
    assert given["share"] == 1
    progress.write_text(json.dumps({**given, "share": 0.5}))
    brought = tmp_path / "models" / "base"
    (brought / "manifest.json").unlink()
    pack(data, calls, dataset_path / "tokenizer.json", "--calls", "1", "--weights", str(brought))
    fresh = tmp_path / "fresh"
    said = command(script, *go, "--state", fresh, "--only", "base")
    assert "base: done" in said
    config = (fresh / "runs" / "base" / "config.toml").read_text()
    assert "given/base" in config
    first = [r["loss"] for r in read_metrics(fresh / "runs" / "base") if "loss" in r]
    start = [r["loss"] for r in read_metrics(state / "runs" / "base") if "loss" in r]
    assert len(first) <= len(start)
    assert first[0] < start[0] - 0.5

    pack(
        data, calls, dataset_path / "tokenizer.json", "--calls", "2", "--weights", f"base={brought}"
    )
    assert not (calls / "call-2" / "given").exists(), "only the first call brings weights"
    fresh = tmp_path / "another"
    said = command(script, *go, "--state", fresh, "--only", "base", "--only", "tuned")
    assert "| base | given |" in said
    assert "tuned: done" in said
    assert "given/base" in (fresh / "runs" / "tuned" / "config.toml").read_text()


def test_weights_of_a_stage_that_the_plan_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no stage 'bass'"):
        pack_script.weights_of(read_plan(TOY), f"bass={tmp_path}")
    with pytest.raises(SystemExit, match=f"give STAGE={tmp_path} for one that is done"):
        pack_script.weights_of(read_plan(TOY), str(tmp_path))


def test_beside_the_checkout_the_code_is_taken_from_there(
    data: Path, dataset_path: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.toml"  # with room for the built-in weights, which stay where they are
    plan.write_text(TOY.read_text().replace("call_mib = 64", "call_mib = 640"))
    flags = ("--beside-checkout", "--plan", str(plan))
    pack(data, tmp_path / "calls", dataset_path / "tokenizer.json", *flags)
    call, state = tmp_path / "calls" / "call-1", tmp_path / "state"
    assert not (call / "code").exists()
    command(
        SCRIPTS / "gpu_run.sh", "go", call, "--out", tmp_path / "home", "--state", state, "--only=-"
    )
    assert (state / "code" / "src" / "backgpt" / "train.py").is_file()
    assert (state / "code" / "tests" / "test_cuda.py").is_file()
    assert not (state / "code" / "src" / "backgpt" / "models").exists()
    there = state / "code" / "scripts" / "gpu_run.sh"
    command(there, "go", call, "--out", tmp_path / "home", "--state", state, "--only=-")
    assert there.is_file()


def test_a_call_that_is_too_large_is_refused(
    data: Path, dataset_path: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(TOY.read_text().replace("call_mib = 64", "call_mib = 0.1"))
    flags = ["--tokenizer", dataset_path / "tokenizer.json", "--no-wheels", "--plan", plan]
    said = command(SCRIPTS / "gpu_run.sh", "pack", data, tmp_path / "calls", *flags, code=1)
    assert "over 0 MiB a call" in said


@pytest.mark.parametrize("filled", [[0, 0], [50, 10], [0, 500], [30, 0, 0]])
def test_a_dataset_in_pieces_is_there_when_the_last_has_come(
    tmp_path: Path, filled: list[int]
) -> None:
    dataset, there = tmp_path / "base", tmp_path / "there"
    dataset.mkdir()
    there.mkdir()
    (dataset / "train-00000.bin").write_bytes(os.urandom(300))
    archive.pack(dataset, tmp_path / "base.tar.xz")
    sizes = list(filled)
    pieces = archive.cut(tmp_path / "base.tar.xz", "base", sizes)
    assert sum(sizes) == sum(filled) + (tmp_path / "base.tar.xz").stat().st_size
    assert max(sizes[call] for call, _ in pieces.values()) <= min(sizes) + len(filled)
    for name, (_, content) in sorted(pieces.items(), reverse=True):
        assert not archive.unpack(there, "base")
        (there / name).write_bytes(content)
    assert archive.unpack(there, "base")
    unpacked = (there / "base" / "train-00000.bin").read_bytes()
    assert unpacked == (dataset / "train-00000.bin").read_bytes()
    (there / name).unlink()
    assert archive.unpack(there, "base")  # once unpacked it stays


@pytest.mark.parametrize("whole", [0.5, 1.0])
def test_stages_wait_for_a_dataset_that_came_damaged(tmp_path: Path, whole: float) -> None:
    plan, home, there = read_plan(TOY), tmp_path / "home", tmp_path / "prepared"
    for folder in (home / "stories", there):
        folder.mkdir(parents=True)
    (home / "stories" / "train-00000.bin").write_bytes(os.urandom(300))
    archive.pack(home / "stories", home / "stories.tar.xz")
    pieces = archive.cut(home / "stories.tar.xz", "stories", [0])
    [(name, (_, content))] = pieces.items()
    altered = content[:200] + bytes([content[200] ^ 1]) + content[201:]
    (there / name).write_bytes(altered[: int(whole * len(altered))])
    state = State(tmp_path)
    for _ in range(2):
        assert state.missing(plan, "stories") == ["a piece of stories is damaged: send it again"]
    (there / name).write_bytes(content)
    assert not State(tmp_path).missing(plan, "stories")  # the next call, which brought it again


def test_a_dataset_has_another_in_it_as_often_as_the_plan_says(
    dataset_path: Path, tmp_path: Path
) -> None:
    plan, state = read_plan(TOY), State(tmp_path)
    base = next(stage for stage in plan.stages if stage.name == "base")
    assert state.missing(plan, "base") == [
        "a piece of base did not come yet",
        "a piece of stories did not come yet",
    ]
    for name in ("base", "stories"):
        shutil.copytree(dataset_path, tmp_path / "prepared" / name)
    before = open_dataset(tmp_path / "prepared" / "base")
    for _ in range(2):
        assert not state.missing(plan, "base")
    after = open_dataset(tmp_path / "prepared" / "base")
    n_targets = sum(shard.n_tokens + len(shard) for shard in before.train)
    assert len(after.train) == 3 * len(before.train)
    assert len(after.valid) == len(before.valid)
    assert jobs_script._targets(base, plan, state) == 2 * 3 * n_targets
    languages = Language.all_of(after.tokenizer, "both", "token")
    assert Windows(after.train, languages, block_size=64).n_targets == 2 * 3 * n_targets
    for more, times in ({"base": {"stories": 1}}, 2), ({}, 1):  # the plan of a later call
        assert not state.missing(replace(plan, more=more), "base")
        shards = open_dataset(tmp_path / "prepared" / "base").train
        assert len(shards) == times * len(before.train)


def test_every_stage_of_the_real_plan_has_settings_that_exist() -> None:
    plan = read_plan(SCRIPTS / "gpu" / "stages.toml")
    for stage in plan.stages:
        if stage.kind == "train":
            length = {"epochs": 1.0} if stage.fit else {}
            spec = plan.data[stage.data]
            data = {**spec, "init": "-"} if "chat" in spec else {"data": Path("-")}
            build(TrainConfig, {**plan.settings, **stage.settings, **length, **data}, origin="-")
    needed = {stage.ships or stage.name: stage.seconds for stage in reversed(plan.stages)}
    compared = {name for name in needed if name.startswith(("scratch", "compare"))}
    assert sum(s for name, s in needed.items() if name not in compared) < 15 * 60


def test_weights_come_home_as_they_are_shipped(
    data: Path, dataset_path: Path, tmp_path: Path
) -> None:
    from backgpt.train import train

    values = {**read_plan(TOY).settings, "data": dataset_path, "out": tmp_path / "run"}
    config = build(TrainConfig, {**values, "max_steps": 3}, origin="test")

    class Silent:
        def started(self, *, first_step: int, max_steps: int) -> None: ...
        def stepped(self, record: object) -> None: ...
        def notice(self, text: str) -> None: ...

    train(config, report=Silent())
    (tmp_path / "home").mkdir()
    progress = {"stage": "toy", "step": 3, "share": 1.0}
    weights_script.export(
        config.out, tmp_path / "home", name="toy", piece_bytes=50_000, progress=progress
    )
    [folder] = weights_script.unpack(list((tmp_path / "home").iterdir()), tmp_path / "models")
    before, after = read_model(config.out).weights, read_model(folder).weights
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert after[name].dtype == array.dtype
        assert abs(after[name] - array).max() <= abs(array).max() / 127 / 2 * 1.01


def test_how_much_of_the_way_home_a_model_takes_is_known_before(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = tiny_folder(tmp_path / "model", tokenizer)
    state: Any = SimpleNamespace(model=lambda stage: folder)
    stage: Any = None
    n_parameters = count_parameters(read_model(folder).weights)
    assert 1 < go_script._size(stage, state) / n_parameters < 1.1


def test_a_model_goes_home_when_its_stage_is_done_and_the_plan_s_first_have_the_room(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = TOY.read_text().replace("home_mib = 0.1", "home_mib = 0.5")  # room for two, not three
    (tmp_path / "plan.toml").write_text(toy)
    plan, state = read_plan(tmp_path / "plan.toml"), State(tmp_path / "state")
    clock = jobs_script.Clock(minutes=9, reserve=30)

    def begin(name: str, step: int) -> Stage:
        [stage] = [stage for stage in plan.stages if stage.name == name]
        if not (state.folder / "given" / name).is_dir():
            tiny_folder(state.folder / "given" / name, tokenizer)
        state.run(stage).mkdir(parents=True, exist_ok=True)
        (state.run(stage) / "metrics.jsonl").write_text(json.dumps({"step": step}) + "\n")
        (state.folder / f"{name}.toml").write_text("max_steps = 8\n")
        return stage

    def call(out: str) -> go_script.Home:
        return go_script.Home(plan, state, tmp_path / out, clock, asked_for=None)

    def there(out: str) -> set[str]:
        return {file.name.partition(".")[0] for file in (tmp_path / out).iterdir()}

    home = call("first")
    state.note(begin("base", 9), state="done")
    home.bring(only_done=True)
    assert there("first") == {"base"}
    tuned = begin("tuned", 3)
    state.note(begin("chat", 4), state="done")
    home.bring(only_done=True)
    assert there("first") == {"base", "backchat"}
    assert "still" not in capsys.readouterr().out
    state.note(tuned, state="stopped")
    home.bring()
    assert there("first") == {"base", "stories"}
    assert "backchat is still to be brought home" in capsys.readouterr().out
    assert state.known(tuned, "share") == 3 / 8

    state = State(tmp_path / "state")  # as the next call finds it
    home = call("second")
    home.bring(only_done=True)
    assert there("second") == {"backchat"}
    state.note(begin("tuned", 8), state="done")
    home.bring()
    assert there("second") == {"backchat", "stories"}
    home.write_results()
    assert (tmp_path / "second" / "results.tar.xz").is_file()

    for number, only_done in enumerate(([False], [True, False], [True, True, False])):
        again = go_script.Home(plan, state, tmp_path / f"{number}", clock, asked_for="base")
        for only in only_done:
            again.bring(only_done=only)
        assert there(f"{number}") == {"base"}

    state.brought.clear()
    asked = go_script.Home(plan, state, tmp_path / "asked", clock, asked_for="backchat")
    asked.bring(only_done=True)
    asked.bring()
    assert there("asked") == {"backchat", "base"}  # before what the plan has first


def test_what_is_known_of_the_stages_outlives_a_write_that_was_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [stage, *_] = read_plan(TOY).stages
    State(tmp_path).note(stage, state="done")

    def cut_short(file: Path, text: str) -> None:
        file.write_bytes(text.encode()[:5])
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", cut_short)
        with pytest.raises(OSError, match="full"):
            State(tmp_path).note(stage, state="stopped")
    assert State(tmp_path).is_done(stage)


def test_only_what_ships_tells_how_fast_training_is(tmp_path: Path) -> None:
    plan, state = read_plan(TOY), State(tmp_path)
    for stage, seen in zip(plan.stages, (9_999_999, 30_000), strict=False):
        state.run(stage).mkdir(parents=True)
        record = json.dumps({"step": 1, "tokens_per_second": seen})
        (state.run(stage) / "metrics.jsonl").write_text(record + "\n")
        assert speed(plan, state) == (30_000 if stage.ships else 20_000)


def test_the_time_of_a_call_can_be_ended() -> None:
    clock = jobs_script.Clock(minutes=9, reserve=30)
    assert clock.left() > 500
    clock.stop()
    assert clock.left() <= 0


def test_what_does_not_stop_is_killed_soon_after_the_end_of_a_call(tmp_path: Path) -> None:
    state, clock = State(tmp_path), jobs_script.Clock(minutes=0, reserve=20)
    (tmp_path / "code").mkdir()
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    [stage, *_] = read_plan(TOY).stages
    jobs = [jobs_script.Job(stage, [sys.executable, "-c", deaf], state) for _ in range(2)]
    began = time.monotonic()
    for job in jobs:
        job.finish(state, clock)
    assert time.monotonic() - began < 20


@pytest.mark.skipif(sys.platform != "linux", reason="other systems let it go on")
def test_a_stage_is_stopped_when_the_call_is_killed(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    stage = "print('begun', flush=True)\ntry: time.sleep(60)\nfinally: print('saved', flush=True)"
    heeds = "signal.signal(signal.SIGTERM, lambda *_: sys.exit())"
    stage = f"import signal, sys, time\n{heeds}\n{stage}"
    call = (
        "import os, signal, sys, time; from pathlib import Path; import jobs, plan\n"
        f"state = plan.State(Path({str(tmp_path)!r}))\n"
        f"jobs.Job(plan.Stage('base', 1), [sys.executable, '-c', {stage!r}], state)\n"
        "while 'begun' not in Path(state.folder / 'base.log').read_text(): time.sleep(0.01)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    paths = {**ENVIRONMENT, "PYTHONPATH": str(SCRIPTS / "gpu")}
    done = subprocess.run([sys.executable, "-c", call], env=paths, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    for _ in range(500):
        if "saved" in (tmp_path / "base.log").read_text():
            break
        time.sleep(0.02)
    assert (tmp_path / "base.log").read_text().split() == ["begun", "saved"]


@pytest.mark.parametrize("what", [("status",), ("go", "--out", "home")])
def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path, what: tuple[str, ...]) -> None:
    name, *options = what
    said = command(SCRIPTS / "gpu_run.sh", name, tmp_path / "no", *options, code=1)
    assert said == (
        f"there is no {tmp_path / 'no' / 'plan.toml'}: give a folder that pack or unpack made\n"
    )


def test_the_table_says_what_is_left(tmp_path: Path) -> None:
    plan, state = read_plan(TOY), State(tmp_path)
    state.note(plan.stages[0], state="done", seconds=3.0)
    run = state.run(plan.stages[0])
    run.mkdir(parents=True)
    records = [
        {"step": 1, "loss": 3.0, "tokens": 50, "tokens_per_second": 10, "share_of_peak": 0.1},
        {"step": 2, "loss": 2.0, "tokens": 100, "tokens_per_second": 40, "share_of_peak": 0.4},
        {"step": 2, "valid_loss": 2.5, "valid_bpb": 0.9},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    lines = table(plan, state).split("\n")
    assert lines[2].startswith("| scratch | done | 0.0 | 40 | 25.0% | 2.5000 | 2.5000 | 2.5000 |")
    assert lines[-1].startswith("Left to do: base, tuned, chat (about")


@pytest.mark.parametrize(
    ("failures", "only"),
    [
        (["test_compiled_losses", "test_scores"], False),
        (["test_compiled_losses[a]", "test_a_compiled_run"], True),
        ([], False),
    ],
)
def test_only_a_failure_of_what_is_compiled_is_gone_on_from(
    tmp_path: Path, failures: list[str], only: bool
) -> None:
    log = tmp_path / "check.log"
    log.write_text("".join(f"FAILED tests/test_cuda.py::{name} - error\n" for name in failures))
    assert jobs_script.only_compiled_failed(log) == only


def test_only_short_stages_are_done_together() -> None:
    def job(together: bool) -> Any:
        return SimpleNamespace(stage=Stage("a", 1, together=together))

    short, long = Stage("b", 1, together=True), Stage("c", 1)
    assert go_script._is_room(long, [], 2)
    assert go_script._is_room(short, [job(True)], 2)
    assert not go_script._is_room(short, [job(False)], 2)
    assert not go_script._is_room(long, [job(True)], 2)
    assert not go_script._is_room(short, [job(True), job(True)], 2)
    assert go_script._is_room(short, [job(True), job(True)], 3)
    assert not go_script._is_room(short, [job(True), job(False)], 3)


def test_the_script_names_nothing_outside_its_arguments() -> None:
    for file in (SCRIPTS / "gpu").iterdir():
        if file.is_file():
            assert "../" not in file.read_text()
    assert shutil.which("bash")
