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

    home = Home(plan, state, given.out, clock, asked_for=given.bring)
    try:
        _do_stages(plan, state, clock, given, home)
        home.bring()
    finally:
        home.write_results()
        print(f"\n{table(plan, state)}")


def _do_stages(
    plan: Plan,
    state: State,
    clock: Clock,
    given: argparse.Namespace,
    home: "Home",
) -> None:
    """Do the stages, always the first of the plan that can begin; short ones some at a time.

    While one of them is compiled or validated, the others have the device. What a stage made goes
    home when the next has begun.
    """
    names = set(given.only or (stage.name for stage in plan.stages)) - set(given.skip)
    todo = [stage for stage in plan.stages if stage.name in names and not state.is_done(stage)]
    jobs: list[Job] = []
    may_bring = True  # what an earlier call made and did not bring home
    try:
        while clock.left() > 0:
            for job in [job for job in jobs if job.has_ended()]:
                jobs.remove(job)
                may_bring = True
                outcome = job.finish(state, clock)
                if job.stage.kind == "check" and outcome == "failed" and not given.anyway:
                    clock.say("stopping: look at the failures above, or give --anyway")
                    return
            waits = {stage.name: _waits_for(stage, plan, state) for stage in todo}
            stage = next((stage for stage in todo if not waits[stage.name]), None)
            late = clock.left() < plan.limits["least_seconds"]
            if stage is not None and not late and _is_room(stage, jobs, plan.limits["together"]):
                todo.remove(stage)
                clock.say(f"{stage.name} ...")
                jobs.append(Job(stage, command_of(stage, plan, state), state))
                continue
            if not jobs:
                for name, reason in waits.items():
                    clock.say(f"{name} waits: {reason or 'too little time is left'}")
                return
            if may_bring:
                _bring_beside(home, clock)
                may_bring = False
            time.sleep(0.1)
    finally:
        for job in jobs:
            job.process.terminate()
        for job in jobs:
            job.finish(state, clock)


def _bring_beside(home: "Home", clock: Clock) -> None:
    """Bring home what is done; no failure ends the stages that are being done meanwhile."""
    from backgpt.errors import BackgptError

    try:
        home.bring(only_done=True)
    except (BackgptError, OSError) as error:
        clock.say(f"not brought home yet: {error}")


def _is_room(stage: Stage, jobs: list[Job], most: float) -> bool:
    """Return whether a stage may begin beside those that are being done, `most` at once."""
    stages = [stage, *(job.stage for job in jobs)]
    return not jobs or (len(stages) <= most and all(stage.together for stage in stages))


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
    return ", ".join(state.missing(plan, stage.data))


class Home:
    """The folder that goes home: models whose stages are done as soon as they are, at the end all.

    They are those newer than what is home; where there is room for some only, the plan's first.
    """

    def __init__(
        self, plan: Plan, state: State, out: Path, clock: Clock, *, asked_for: str | None
    ) -> None:
        """Make the folder; `asked_for` is a model that goes home before all others, even again."""
        self._plan, self._state, self._out, self._clock = plan, state, out, clock
        self._asked_for = asked_for
        self._sizes: dict[str, int] = {}
        """Bytes of each model that is in the folder."""
        self._left_behind: set[str] = set()
        out.mkdir(parents=True, exist_ok=True)

    def bring(self, *, only_done: bool = False) -> None:
        """Write the models that fit into the folder, and say once of each other that it waits."""
        filled = 0.0
        for name, stage in self._best().items():
            mark = [stage.name, last_step(stage, self._state)]
            asked_for = name == self._asked_for and name not in self._sizes
            is_new = self._state.brought.get(name) != mark or asked_for
            is_new &= not only_done or self._state.known(stage, "state") == "done"
            size = self._sizes.get(name) or (_size(stage, self._state) if is_new else 0)
            if filled and size and filled + size > self._plan.limits["home_mib"] * MIB:
                self._leave_behind(name)
                continue
            if is_new:
                size = self._export(name, stage)
                self._state.brought[name] = mark
                self._state.save()
            filled += size

    def write_results(self) -> None:
        """Write what tells about all stages: small files, no data and no weights."""
        from weights import RESULTS

        with tarfile.open(self._out / RESULTS, "w:xz") as archive:
            for file in sorted(self._state.folder.rglob("*")):
                if _is_result(file.relative_to(self._state.folder)):
                    archive.add(file, arcname=str(file.relative_to(self._state.folder)))

    def _best(self) -> dict[str, Stage]:
        """Return the stage with the lowest loss for each name under which models ship."""
        state, best = self._state, dict[str, Stage]()
        for stage in (stage for stage in self._plan.stages if stage.ships and state.metrics(stage)):
            other = best.get(stage.ships)
            if state.model(stage) and (other is None or _loss(stage, state) < _loss(other, state)):
                best[stage.ships] = stage
        first = {name: best[name] for name in [self._asked_for] if name in best}
        return {**first, **best}

    def _export(self, name: str, stage: Stage) -> int:
        from weights import export

        state, limits = self._state, self._plan.limits
        model = state.model(stage)
        assert model is not None
        share = share_done(stage, self._plan, state)
        state.note(stage, step=last_step(stage, state), share=share)
        progress = {"stage": stage.name, **{k: state.known(stage, k) for k in ("step", "share")}}
        piece = int(limits["piece_mib"] * MIB)
        size = export(model, self._out, name=name, piece_bytes=piece, progress=progress)
        self._sizes[name] = size
        self._clock.say(f"{name}: {model} goes home, {size / MIB:.1f} MiB")
        if size > limits["home_mib"] * MIB:
            self._clock.say(f"{name} has more than {limits['home_mib']:.0f} MiB: not all may come")
        return size

    def _leave_behind(self, name: str) -> None:
        from weights import LIST

        if name in self._sizes:
            del self._sizes[name], self._state.brought[name]
            self._state.save()
            for file in [*self._out.glob(f"{name}.part-*"), self._out / f"{name}{LIST}"]:
                file.unlink()
        if name not in self._left_behind:
            self._clock.say(f"{name} is still to be brought home: call again, with --minutes 1")
            self._left_behind.add(name)


def _size(stage: Stage, state: State) -> float:
    """Return about how many bytes a model takes on its way home."""
    from backgpt.model_folder import read_model

    model = state.model(stage)
    assert model is not None
    shapes = read_model(model, with_weights=False).config.array_shapes().values()
    return 1.05 * sum(math.prod(shape) for shape in shapes)


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
