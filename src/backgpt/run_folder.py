"""What a training run writes down: settings, metrics, samples, the loss curve.

runs/<name>/config.toml     the settings, resolved; usable as input
            run.json        with what and where it was trained, each time it was started
            metrics.jsonl   one line a step, one more where validation ran
            samples.md      texts written while training
            loss.png        the curve
            checkpoints/    see `checkpoint`
"""

import json
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from backgpt.checkpoint import CHECKPOINTS, checkpoints
from backgpt.config import TrainConfig, build, read_toml, to_toml
from backgpt.errors import ConfigError, printable
from backgpt.files import TEMPORARY, cannot_write, write_whole
from backgpt.model_folder import BEST, LATEST

SETTINGS, METRICS, SAMPLES, CURVE = "config.toml", "metrics.jsonl", "samples.md", "loss.png"
RUN = "run.json"

KNOWN = frozenset(
    {SETTINGS, RUN, METRICS, SAMPLES, CURVE, CHECKPOINTS, BEST, LATEST, "tensorboard"}
)
"""What a run writes; before its first checkpoint it may have left some of that."""

CHANGEABLE = frozenset(
    {"out", "data", "max_steps", "epochs", "log_every", "eval_every", "save_every", "keep_last"}
    | {"sample_endings", "tensorboard", "device", "compile"}
)
"""Settings that may differ when a run is resumed; any other would make it another run."""

Record = Mapping[str, Any]

_SECTION = "\n## Step "  # begins what samples.md has of a step


def check_same_run(config: TrainConfig) -> None:
    """Check that the run folder of `config`, if there is one, was started alike.

    Raises ConfigError if a setting that matters differs, or if something else is in the way.
    """
    run, file = config.out, config.out / SETTINGS
    if run.exists() and not run.is_dir():
        raise ConfigError(f"{run} is not a folder: choose another --out")
    if not file.is_file():
        _check_no_other(run)
    elif checkpoints(run):  # before the first, nothing depends on the settings
        before = build(TrainConfig, read_toml(file), origin=str(file))
        for key, value in config:
            if key not in CHANGEABLE and value != getattr(before, key):
                raise ConfigError(
                    f"{run} was started with {key} = {getattr(before, key)!r}, not {value!r}: "
                    "give the same settings to go on, or another --out to start anew"
                )


def _check_no_other(run: Path) -> None:
    """Raise ConfigError if a folder without settings holds something else than a run begun."""
    names = sorted(path.name for path in run.iterdir()) if run.is_dir() else []
    for name in names:
        if name.removesuffix(TEMPORARY) not in KNOWN and not name.startswith("."):
            raise ConfigError(f"{run} holds {name} and is no run folder: choose another --out")


def write_settings(config: TrainConfig) -> None:
    """Make the run folder and write `config.toml`. Raises BackgptError if that cannot be."""
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        write_whole(config.out / SETTINGS, to_toml(config).encode())
    except OSError as error:
        raise cannot_write(config.out, error) from None


def add_start(run: Path, about: Record, start: Record) -> None:
    """Say in `run.json` what the run is `about`, and of one more `start` of it."""
    try:
        starts = list(json.loads((run / RUN).read_text(encoding="utf-8"))["starts"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        starts = []  # the first, or it was damaged
    content = json.dumps({**about, "starts": [*starts, start]}, indent=2) + "\n"
    write_whole(run / RUN, content.encode())


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the records of `metrics.jsonl`, up to the first line that is none."""
    try:
        lines = (run / METRICS).read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # power was cut while it was written
            break
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            break
        records.append(record)
    return records


def rewind(run: Path, step: int) -> None:
    """Forget what was written after `step`, from which the run is resumed.

    What was being written when the run was killed is deleted.
    """
    for unfinished in run.glob(f".*{TEMPORARY}"):
        if unfinished.is_file():
            unfinished.unlink()
    kept = [record for record in read_metrics(run) if record["step"] <= step]
    write_whole(run / METRICS, "".join(_line(record) for record in kept).encode())
    if (run / SAMPLES).is_file():
        write_whole(run / SAMPLES, _samples_until(run, step).encode())


def add_metrics(run: Path, records: Iterable[Record]) -> None:
    """Append records to `metrics.jsonl`. Raises BackgptError if that cannot be."""
    try:
        with (run / METRICS).open("a", encoding="utf-8") as file:
            file.writelines(map(_line, records))
    except OSError as error:
        raise cannot_write(run / METRICS, error) from None


def add_samples(run: Path, step: int, texts: Iterable[str]) -> None:
    """Write texts drawn at `step` into `samples.md`, over what it may have of that step already."""
    quoted = ("\n" + "".join(f"> {line}\n" for line in text.split("\n")) for text in texts)
    section = "".join((f"{_SECTION}{step:,}\n", *quoted))
    write_whole(run / SAMPLES, (_samples_until(run, step - 1) + section).encode())


def _samples_until(run: Path, step: int) -> str:
    """Return what `samples.md` has of the steps up to `step`, nothing if there is no such file."""
    try:
        text = (run / SAMPLES).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    head, *sections = text.split(_SECTION)
    steps = [section.split("\n", 1)[0].replace(",", "") for section in sections]
    kept = [
        section
        for section, drawn_at in zip(sections, steps, strict=True)
        if drawn_at.isdecimal() and int(drawn_at) <= step
    ]
    return _SECTION.join([head, *kept])


def plot(run: Path, *, title: str) -> None:
    """Draw `loss.png` from the metrics: every step, their running mean, the validation loss."""
    from matplotlib.figure import Figure

    records = read_metrics(run)
    train = [(r["step"], r["loss"]) for r in records if "loss" in r]
    valid = [(r["step"], r["valid_loss"]) for r in records if "valid_loss" in r]
    if not train:
        return
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    steps, losses = zip(*train, strict=True)
    means = _running_mean(losses)
    axes.plot(steps, losses, color="#9bb7d4", linewidth=0.6, alpha=0.8)
    axes.plot(steps, means, color="#1f4e79", linewidth=1.6, label="training")
    if valid:
        axes.plot(*zip(*valid, strict=True), "o-", color="#c8553d", ms=4, label="validation")
        step, loss = valid[-1]
        axes.annotate(
            f"{loss:.3f}",
            (step, loss),
            (6, 0),
            textcoords="offset points",
            va="center",
            color="#c8553d",
        )
    # The first steps may stand out above, but no validation may: where it rises is what to see.
    top = max(losses[0] * 0.6, means[-1] * 2, *(loss * 1.05 for _, loss in valid))
    axes.set(xlabel="step", ylabel="loss (nats per token)", ylim=(None, top))
    axes.set_title(printable(title), parse_math=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    picture = BytesIO()
    figure.savefig(picture, format="png")
    write_whole(run / CURVE, picture.getvalue())


def _running_mean(values: tuple[float, ...]) -> list[float]:
    """Return an exponential mean that starts unbiased (as Adam's moments do).

    It is one of about 33 values, of fewer where there are few: it would come too late there.
    """
    smoothing = min(0.97, max(0.0, 1 - 20 / len(values)))
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total = smoothing * total + (1 - smoothing) * value
        weight = smoothing * weight + (1 - smoothing)
        means.append(total / weight)
    return means


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"
