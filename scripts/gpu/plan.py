"""What `gpu_run.sh` does, as data: the stages of a plan file, the code they need, how far they are.

A plan is TOML (stages.toml, toy.toml). The state is a folder: state.json, prepared data, and one
run folder of `backgpt train` for each stage, from whose files everything else is read.
"""

import json
import shutil
import statistics
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import archive

RUNS, PREPARED, GIVEN, PLAN = "runs", "prepared", "given", "plan.toml"
ROOT = Path(__file__).resolve().parents[2]
CODE = ("src", "scripts", "tests", "benchmarks", "pyproject.toml")
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "models", "*.so", "*.egg-info")
PROGRESS = "progress.json"  # in a folder of weights: which stage and step they are of


@dataclass(frozen=True)
class Stage:
    """One stage. `kind` is "train", "check" (tests) or "speed" (a race against other projects).

    `seconds` is how long it should take; with `fit` its epochs are what fits into them, at most
    `most_epochs`; with `together` it may be done beside another such. It begins from the model of
    the stage `begins`, if that is given; of all stages with the same `ships`, the one with the
    lowest loss goes home under that name.
    """

    name: str
    seconds: float
    kind: str = "train"
    data: str = ""
    begins: str = ""
    ships: str = ""
    fit: bool = False
    together: bool = False
    most_epochs: float = 100.0
    settings: dict[str, Any] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """A plan file: its stages, the files of each dataset, and the limits of the machine.

    A dataset has `train` and `valid`, texts that are tokenized at home, or `chat` and `chat_valid`.
    `more` says of a dataset how many times all of another stands in it besides.
    """

    stages: list[Stage]
    data: dict[str, dict[str, list[str]]]
    more: dict[str, dict[str, int]]
    settings: dict[str, Any]
    limits: dict[str, float]
    wheels: list[str]

    def files(self, name: str) -> list[str]:
        """Return the files that a dataset is made of."""
        return [file for files in self.data[name].values() for file in files]


def copy_code(target: Path) -> None:
    """Copy what the stages need of this checkout to `target`, over what was there.

    Where that is this checkout itself, nothing is done.
    """
    if target.resolve() == ROOT:
        return
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, temporary / name, ignore=_LEFT_OUT)
        else:
            shutil.copyfile(ROOT / name, temporary / name)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def read_plan(path: Path) -> Plan:
    """Read the plan file at `path`."""
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    stages = [Stage(**stage) for stage in values["stage"]]
    names = {stage.name for stage in stages}
    assert len(names) == len(stages), f"{path}: two stages have one name"
    for stage in stages:
        assert stage.begins in names | {""}, f"{path}: {stage.name} begins from nothing known"
        assert stage.data in values["data"] or stage.kind != "train", f"{path}: {stage.name}"
    data, settings, more = values["data"], values["settings"], values.get("more", {})
    for name in (name for repeated, others in more.items() for name in (repeated, *others)):
        assert "train" in data.get(name, {}), f"{path}: [more] has {name}, which has no shards"
    return Plan(stages, data, more, settings, values["limits"], values["wheels"])


class State:
    """The folder that survives from call to call, and what is known about each stage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / "state.json"
        known = json.loads(file.read_text()) if file.is_file() else {}
        self.stages: dict[str, dict[str, Any]] = known.get("stages", {})
        self.brought: dict[str, list[Any]] = known.get("brought", {})
        self.compile: str = known.get("compile", "auto")
        self._damaged: set[str] = set()
        """Datasets whose pieces could not be unpacked, which is not tried twice in a call."""

    def save(self) -> None:
        """Write state.json, whole or not at all: a call may be killed at any moment."""
        values = {"stages": self.stages, "brought": self.brought, "compile": self.compile}
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / "state.json.tmp"
        temporary.write_text(json.dumps(values, indent=1) + "\n")
        temporary.replace(self.folder / "state.json")

    def note(self, stage: Stage, **values: Any) -> None:
        """Remember something about a stage, at once."""
        self.stages.setdefault(stage.name, {}).update(values)
        self.save()

    def known(self, stage: Stage, name: str, default: Any = None) -> Any:
        """Return what was remembered about a stage."""
        return self.stages.get(stage.name, {}).get(name, default)

    def run(self, stage: Stage) -> Path:
        """Return the run folder of a stage."""
        return self.folder / RUNS / stage.name

    def metrics(self, stage: Stage) -> list[dict[str, Any]]:
        """Return the records of a stage's metrics, none if it has not begun."""
        file = self.run(stage) / "metrics.jsonl"
        lines = file.read_text().split("\n")[:-1] if file.is_file() else []
        return [json.loads(line) for line in lines]

    def missing(self, plan: Plan, name: str) -> list[str]:
        """Return what a dataset lacks; if that is nothing, it is unpacked."""
        if "chat" not in plan.data[name]:
            prepared, others = self.folder / PREPARED, plan.more.get(name, {})
            lacking = [what for part in (name, *others) if (what := self._lacking(part))]
            if not lacking:
                times = {prepared / other: times for other, times in others.items()}
                _repeat(times, prepared / name)
            return lacking
        data = self.folder / "data"
        files = [file for file in plan.files(name) if not list(data.glob(f"{file}*"))]
        return [f"{file} did not come yet" for file in files]

    def _lacking(self, part: str) -> str:
        """Return what a dataset in pieces lacks, nothing if it is unpacked now."""
        if part not in self._damaged:
            try:
                there = archive.unpack(self.folder / PREPARED, part)
                return "" if there else f"a piece of {part} did not come yet"
            except archive.DAMAGED:
                self._damaged.add(part)
        return f"a piece of {part} is damaged: send it again"

    def given(self, stage: Stage) -> dict[str, Any] | None:
        """Return how far a stage's weights that were brought along are, or None without any."""
        file = self.folder / GIVEN / stage.name / PROGRESS
        return json.loads(file.read_text()) if file.is_file() else None

    def model(self, stage: Stage) -> Path | None:
        """Return the path of a stage's model, its best if it is done; None if there is none."""
        run = self.run(stage)
        done = self.known(stage, "state") == "done"
        for file in (run / "best", run / "latest") if done else (run / "latest",):
            if file.is_file():
                return file
        folder = self.folder / GIVEN / stage.name
        return folder if folder.is_dir() else None

    def is_done(self, stage: Stage) -> bool:
        """Return whether a stage needs nothing more, here or because its weights were given."""
        given = self.given(stage)
        if stage.kind == "speed" and self.known(stage, "state") == "failed":
            return True  # once is enough
        finished = given is not None and given["share"] >= 1 and not self.run(stage).exists()
        return finished or self.known(stage, "state") == "done"


def _repeat(times: dict[Path, int], dataset: Path) -> None:
    """Let training shards of other datasets stand so many times among those of `dataset`."""
    links = {
        dataset / f"{shard.stem}-{other.name}-{number}.bin": shard
        for other, n in times.items()
        for number in range(n)
        for shard in other.glob("train-*.bin")
    }
    for shard in dataset.glob("train-*.bin"):
        if shard.is_symlink() and shard not in links:
            shard.unlink()  # another plan's
    for link, shard in links.items():
        if not link.exists():
            link.symlink_to(shard)


def speed(plan: Plan, state: State) -> float:
    """Return the tokens a second of the fastest stage that ships so far, or the plan's guess.

    Only the fastest had the device for itself; stages that only warm up are of a few steps.
    """
    shipping = [state.metrics(stage) for stage in plan.stages if stage.ships]
    seen = [tps for records in shipping if (tps := _speed_of(records)) is not None]
    return max(seen, default=plan.limits["tokens_per_second"])


def table(plan: Plan, state: State) -> str:
    """Return what was done and what is left as a Markdown table and a line."""
    head = ("stage", "state", "M tokens", "tokens/s", "of peak", "train", "valid", "backward")
    lines = ["| " + " | ".join((*head, "forward", "bits/byte", "s")) + " |", "|---" * 11 + "|"]
    lines += ["| " + " | ".join(_row(stage, state)) + " |" for stage in plan.stages]
    left = [stage for stage in plan.stages if not state.is_done(stage)]
    seconds = sum(stage.seconds - state.known(stage, "seconds", 0.0) for stage in left)
    names = ", ".join(stage.name for stage in left) or "nothing"
    return "\n".join([*lines, "", f"Left to do: {names} (about {max(seconds, 0):.0f} s)."])


def valid_loss(records: list[dict[str, Any]]) -> float | None:
    """Return the lowest validation loss among a stage's records."""
    return min((r["valid_loss"] for r in records if "valid_loss" in r), default=None)


def _row(stage: Stage, state: State) -> list[str]:
    records = state.metrics(stage)
    losses = [r["loss"] for r in records if "loss" in r][-50:]
    best = min((r for r in records if "valid_loss" in r), key=_by_loss, default={})
    shares = [r["share_of_peak"] for r in records if "share_of_peak" in r]
    tokens = max((r["tokens"] for r in records if "tokens" in r), default=0)
    tps = _speed_of(records)
    direction = stage.settings.get("direction", "backward")
    ways = {f"{direction}_valid_loss": best.get("valid_loss"), **best}
    doing = "given" if state.given(stage) and not records else state.known(stage, "state", "")
    return [
        stage.name,
        doing or "to do",
        f"{tokens / 1e6:,.1f}" if tokens else "",
        f"{tps:,.0f}" if tps else "",
        f"{statistics.median(shares):.1%}" if shares else "",
        f"{sum(losses) / len(losses):.4f}" if losses else "",
        _loss(best.get("valid_loss")),
        _loss(ways.get("backward_valid_loss")),
        _loss(ways.get("forward_valid_loss")),
        _loss(best.get("valid_bpb")),
        f"{state.known(stage, 'seconds', 0.0):.0f}",
    ]


def _by_loss(record: dict[str, Any]) -> float:
    return float(record["valid_loss"])


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _speed_of(records: list[dict[str, Any]]) -> float | None:
    """Return the median speed; the first record, which compiling slows down, left out."""
    speeds = [r["tokens_per_second"] for r in records if "tokens_per_second" in r]
    return statistics.median(speeds[1:] or speeds) if speeds else None
