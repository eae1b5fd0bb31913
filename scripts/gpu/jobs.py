"""The stages of a plan as processes: tests, races and trainings.

Each is a command of its own, with a log in the state folder; nothing here imports torch.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from plan import GIVEN, PREPARED, Plan, Stage, State, speed

STOPPED = 128 + signal.SIGTERM
PATIENCE = 3  # times its seconds that a check or a race may take
PR_SET_PDEATHSIG = 1  # as <linux/prctl.h> has it
SAVING_SECONDS = 15  # after the end of a call, for all stages to save themselves, at most


class Clock:
    """How much of this call is left."""

    def __init__(self, minutes: float, reserve: float) -> None:
        self.began = time.monotonic()
        self.end = self.began + 60 * minutes - reserve

    def left(self) -> float:
        """Return the seconds until stages have to stop."""
        return self.end - time.monotonic()

    def stop(self) -> None:
        """Let the time be up now."""
        self.end = min(self.end, time.monotonic())

    def say(self, text: str) -> None:
        """Print a line with the seconds since the beginning."""
        print(f"[{time.monotonic() - self.began:5.0f} s] {text}", flush=True)


class Job:
    """A stage that is being done."""

    def __init__(self, stage: Stage, command: list[str], state: State) -> None:
        self.stage = stage
        self.began = time.monotonic()
        self.log = state.folder / f"{stage.name}.log"
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with self.log.open("ab" if stage.kind == "train" else "wb") as out:
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=out,
                cwd=state.folder / "code",
                env=environment,
                preexec_fn=_end_with_the_call,
            )

    def has_ended(self) -> bool:
        """Return whether the stage ended; a check or a race that hangs is ended."""
        longest = max(PATIENCE * self.stage.seconds, 60)
        if self.stage.kind != "train" and time.monotonic() - self.began > longest:
            self.process.kill()
        return self.process.poll() is not None

    def finish(self, state: State, clock: Clock) -> str:
        """Wait for the end, which is near; remember and say how it went."""
        try:
            code = self.process.wait(max(SAVING_SECONDS + clock.left(), 1))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = STOPPED
        outcome = "failed" if code else "done"
        outcome = "stopped" if code in (STOPPED, -signal.SIGTERM) else outcome
        if self.stage.kind == "check" and outcome == "failed" and only_compiled_failed(self.log):
            state.compile, outcome = "off", "done"
            clock.say("torch.compile does not work here: going on without it")
        spent = state.known(self.stage, "seconds", 0.0) + time.monotonic() - self.began
        state.note(self.stage, state=outcome, seconds=spent)
        if outcome == "failed" or self.stage.kind != "train":
            print(_tail(self.log), flush=True)
        clock.say(f"{self.stage.name}: {outcome}")
        return outcome


def _end_with_the_call() -> None:
    """Have Linux stop this process with SIGTERM when the one that started it is gone.

    Else it would go on for good, and its stage could not be begun in the next call.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def only_compiled_failed(log: Path) -> bool:
    """Return whether of all tests only some of what is compiled failed."""
    failed = [line for line in log.read_text().split("\n") if line.startswith(("FAILED", "ERROR"))]
    return bool(failed) and all("compiled" in line for line in failed)


def command_of(stage: Stage, plan: Plan, state: State) -> list[str]:
    """Return the command of a stage."""
    code = state.folder / "code"
    if stage.kind == "check":
        options = ["-q", "-rfE", "-p", "no:cacheprovider", "--override-ini", "addopts="]
        return [sys.executable, "-m", "pytest", *options, str(code / "tests" / "test_cuda.py")]
    if stage.kind == "speed":
        peers = [f"--peer={folder.name}={folder}" for folder in (state.folder / "peers").glob("*")]
        return [sys.executable, str(code / "benchmarks" / "training.py"), *peers, *stage.arguments]
    return _training(stage, plan, state)


def _training(stage: Stage, plan: Plan, state: State) -> list[str]:
    """Return the command of a training stage, its length fitted to the time it may take."""
    settings = {"compile": state.compile, **plan.settings, **stage.settings}
    if stage.fit:
        settings["epochs"] = _epochs(stage, plan, state)
    run, given = state.run(stage), state.given(stage)
    if not (run / "config.toml").is_file():
        before = next((other for other in plan.stages if other.name == stage.begins), None)
        init = state.folder / GIVEN / stage.name if given else before and state.model(before)
        state.note(stage, init=str(init or ""))
    length = "epochs" if "epochs" in settings else "max_steps"
    if given:  # all that is left of an earlier machine is its weights
        left = (1 - given["share"]) * settings[length]
        settings[length] = max(round(left), 1) if length == "max_steps" else left
    file = state.folder / f"{stage.name}.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    file.write_text("\n".join(lines) + "\n")
    init = state.known(stage, "init")
    command = [sys.executable, "-m", "backgpt", "train", "--config", str(file), "--out", str(run)]
    return [*command, *_data(stage, plan, state), *(["--init", init] if init else [])]


def _data(stage: Stage, plan: Plan, state: State) -> list[str]:
    """Return the options that say what a training stage is trained on."""
    spec = plan.data[stage.data]
    if "chat" not in spec:
        return ["--data", str(state.folder / PREPARED / stage.data)]
    return [
        part
        for option, key in (("--chat", "chat"), ("--chat-valid", "chat_valid"))
        for listed in spec[key]
        for file in (state.folder / "data").glob(f"{listed}*")
        for part in (option, str(file))
    ]


def _epochs(stage: Stage, plan: Plan, state: State) -> float:
    """Return how many epochs fit; once chosen, it stays so unless another budget is given."""
    budget = state.known(stage, "budget", stage.seconds)
    if state.known(stage, "fitted") != budget:
        epochs = budget * speed(plan, state) / _targets(stage, plan, state)
        epochs = round(min(max(epochs, 0.05), stage.most_epochs), 2)
        state.note(stage, epochs=epochs, fitted=budget)
    return float(state.known(stage, "epochs"))


def _targets(stage: Stage, plan: Plan, state: State) -> int:
    """Return how many targets an epoch of a stage has."""
    targets = 0
    for name, times in {stage.data: 1, **plan.more.get(stage.data, {})}.items():
        sizes = json.loads((state.folder / PREPARED / name / "dataset.json").read_text())["train"]
        targets += times * int(sizes["tokens"] + sizes["documents"])
    direction = {**plan.settings, **stage.settings}.get("direction")
    return (2 if direction == "both" else 1) * targets


def share_done(stage: Stage, plan: Plan, state: State) -> float:
    """Return how much of a stage is done, what its given weights had behind them included."""
    if state.known(stage, "state") == "done":
        return 1.0
    config = tomllib.loads((state.folder / f"{stage.name}.toml").read_text())
    if "max_steps" in config:
        share = last_step(stage, state) / config["max_steps"]
    else:
        tokens = max((r["tokens"] for r in state.metrics(stage) if "tokens" in r), default=0)
        share = tokens / (config["epochs"] * _targets(stage, plan, state))
    before = (state.given(stage) or {"share": 0.0})["share"]
    return float(min(before + (1 - before) * share, 1.0))


def last_step(stage: Stage, state: State) -> int:
    """Return the last step in a stage's metrics."""
    return max((record["step"] for record in state.metrics(stage)), default=0)


def _tail(log: Path, lines: int = 25) -> str:
    return "\n".join(log.read_text(errors="replace").strip().split("\n")[-lines:])
