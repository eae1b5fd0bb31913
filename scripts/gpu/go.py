"""On the machine: do the next stages until the time is up, and leave what goes home in a folder.

    python scripts/gpu/go.py go CALL_FOLDER --out HOME --minutes 9
    python scripts/gpu/go.py status STATE_FOLDER

What a call brings is taken into the state folder, and all work happens there. A stage that is not
done when the time is up saves itself (SIGTERM) and goes on exactly there in the next call; on a
fresh machine it begins from the weights that were brought home, if they are sent along.
"""

import argparse
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

from jobs import Clock, Job, command_of, last_step, share_done
from plan import (
    GIVEN,
    PLAN,
    PREPARED,
    RUNS,
    Plan,
    Stage,
    State,
    copy_code,
    read_plan,
    table,
    valid_loss,
)

MIB = 1 << 20


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("command", choices=("go", "status"))
    parser.add_argument("folder", type=Path, help="what was sent; for status, the state")
    parser.add_argument("--out", type=Path, help="where to put what goes home")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call, all in all")
    parser.add_argument("--state", type=Path, default=Path.home() / "backgpt-gpu")
    parser.add_argument("--only", action="append", help="do only this stage; repeatable")
    parser.add_argument("--skip", action="append", default=[], help="leave this stage out")
    parser.add_argument("--seconds", action="append", default=[], metavar="STAGE=S")
    parser.add_argument("--bring", metavar="NAME", help="bring this model, such as base")
    parser.add_argument("--anyway", action="store_true", help="train though the tests fail")
    given = parser.parse_args()
    if not (given.folder / PLAN).is_file():
        sys.exit(f"there is no {given.folder / PLAN}: give a folder that pack or unpack made")
    if given.command == "status":
        print(table(read_plan(given.folder / PLAN), State(given.folder)))
        return
    if given.out is None:
        parser.error("go needs --out FOLDER, for what goes home")
    _go(given)


def _go(given: argparse.Namespace) -> None:
    state_folder = given.state.resolve()
    take_in(given.folder, state_folder)
    plan, state = read_plan(state_folder / PLAN), State(state_folder)
    clock = Clock(given.minutes, plan.limits["reserve_seconds"])
    signal.signal(signal.SIGTERM, lambda *_: clock.stop())  # what is trained goes home all the same
    sys.path[:0] = _paths(state_folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(_paths(state_folder))
    clock.say(f"Python {platform.python_version()}, {_hardware()}")
    for wish in given.seconds:
        name, _, seconds = wish.partition("=")
        state.stages.setdefault(name, {})["budget"] = float(seconds)

    _do_stages(plan, state, clock, given)
    try:
        _bring_home(plan, state, given, clock)
    finally:
        print(f"\n{table(plan, state)}")


def _do_stages(
    plan: Plan,
    state: State,
    clock: Clock,
    given: argparse.Namespace,
) -> None:
    """Do the stages, always the first of the plan that can begin; short ones two at a time.

    While one of two is compiled or validated, the other has the device.
    """
    names = set(given.only or (stage.name for stage in plan.stages)) - set(given.skip)
    todo = [stage for stage in plan.stages if stage.name in names and not state.is_done(stage)]
    jobs: list[Job] = []
    try:
        while clock.left() > 0:
            for job in [job for job in jobs if job.has_ended()]:
                jobs.remove(job)
                outcome = job.finish(state, clock)
                if job.stage.kind == "check" and outcome == "failed" and not given.anyway:
                    clock.say("stopping: look at the failures above, or give --anyway")
                    return
            waits = {stage.name: _waits_for(stage, plan, state) for stage in todo}
            stage = next((stage for stage in todo if not waits[stage.name]), None)
            late = clock.left() < plan.limits["least_seconds"]
            if stage is not None and not late and _is_room(stage, jobs):
                todo.remove(stage)
                clock.say(f"{stage.name} ...")
                jobs.append(Job(stage, command_of(stage, plan, state), state))
                continue
            if not jobs:
                for name, reason in waits.items():
                    clock.say(f"{name} waits: {reason or 'too little time is left'}")
                return
            time.sleep(0.1)
    finally:
        for job in jobs:
            job.process.terminate()
        for job in jobs:
            job.finish(state, clock)


def _is_room(stage: Stage, jobs: list[Job]) -> bool:
    """Return whether a stage may begin beside those that are being done."""
    return not jobs or (stage.together and len(jobs) == 1 and jobs[0].stage.together)


def take_in(call: Path, state: Path) -> None:
    """Take what a call brought into the state folder; code and plan replace what was there.

    Where it brought no code, that of this script's checkout is taken. Wheels are unpacked, which is
    all that installing these is.
    """
    if not (call / "code").is_dir():
        copy_code(state / "code")
    for name in ("code", "peers"):
        if (call / name).is_dir():
            shutil.rmtree(state / name, ignore_errors=True)
            shutil.copytree(call / name, state / name)
    for name in ("data", PREPARED, GIVEN):
        if (call / name).is_dir():
            shutil.copytree(call / name, state / name, dirs_exist_ok=True)
    for name in (PLAN, "tokenizer.json"):
        shutil.copyfile(call / name, state / name)
    for wheel in sorted(call.glob("wheels/*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(state / "site")


def _waits_for(stage: Stage, plan: Plan, state: State) -> str:
    """Return why a stage cannot begin now, or nothing."""
    if stage.kind != "train":
        return ""
    before = next((other for other in plan.stages if other.name == stage.begins), None)
    if before is not None and not state.is_done(before) and not state.run(stage).exists():
        return f"{before.name} comes before it"
    missing = state.missing(plan, stage.data)
    return f"{', '.join(missing)} did not come yet" if missing else ""


def _bring_home(plan: Plan, state: State, given: argparse.Namespace, clock: Clock) -> None:
    """Write the models that fit into the folder that goes home, and what tells about all stages.

    They are those newer than what is home, in the order of the plan, or the one asked for.
    """
    from weights import RESULTS

    given.out.mkdir(parents=True, exist_ok=True)
    waiting: dict[str, Stage] = {}
    for stage in (stage for stage in plan.stages if stage.ships and state.metrics(stage)):
        best = waiting.get(stage.ships)
        if state.model(stage) and (best is None or _loss(stage, state) < _loss(best, state)):
            waiting[stage.ships] = stage
    marks = {name: [stage.name, last_step(stage, state)] for name, stage in waiting.items()}
    new = [name for name in waiting if state.brought.get(name) != marks[name]]
    new = [given.bring] if given.bring in waiting else new
    room = plan.limits["home_mib"] * MIB
    try:
        for number, name in enumerate(new):
            if number and room < _size(waiting[name], state):
                clock.say(f"{name} is still to be brought home: call again, with --minutes 1")
                continue
            room -= _export(name, waiting[name], plan, state, given.out, clock)
            state.brought[name] = marks[name]
    finally:  # whatever happens to the weights, what was measured goes home
        state.save()
        with tarfile.open(given.out / RESULTS, "w:xz") as archive:
            for file in sorted(state.folder.rglob("*")):
                if _is_result(file.relative_to(state.folder)):
                    archive.add(file, arcname=str(file.relative_to(state.folder)))


def _size(stage: Stage, state: State) -> float:
    """Return about how many bytes a model takes on its way home."""
    from backgpt.model_folder import read_model

    model = state.model(stage)
    assert model is not None
    shapes = read_model(model, with_weights=False).config.array_shapes().values()
    return 1.05 * sum(math.prod(shape) for shape in shapes)


def _export(name: str, stage: Stage, plan: Plan, state: State, out: Path, clock: Clock) -> int:
    from weights import export

    model = state.model(stage)
    assert model is not None
    state.note(stage, step=last_step(stage, state), share=share_done(stage, plan, state))
    progress = {"stage": stage.name, **{k: state.known(stage, k) for k in ("step", "share")}}
    piece = int(plan.limits["piece_mib"] * MIB)
    size = export(model, out, name=name, piece_bytes=piece, progress=progress)
    clock.say(f"{name}: {model} goes home, {size / MIB:.1f} MiB")
    if size > plan.limits["home_mib"] * MIB:
        clock.say(f"{name} has more than {plan.limits['home_mib']:.0f} MiB: not all may come")
    return size


def _is_result(name: Path) -> bool:
    """Return whether a file of the state tells what was done: small ones, no data, no weights."""
    if name.parts[0] == RUNS:
        return name.name in ("metrics.jsonl", "config.toml", "samples.md", "loss.png")
    return (len(name.parts) == 1 and name.suffix in (".log", ".toml")) or name.name == "state.json"


def _loss(stage: Stage, state: State) -> float:
    loss = valid_loss(state.metrics(stage))
    return float("inf") if loss is None else loss


def _paths(state: Path) -> list[str]:
    return [str(state / "code" / "src"), str(state / "site")]


def _hardware() -> str:
    command = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total",
        "--format=csv,noheader",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"no GPU, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
