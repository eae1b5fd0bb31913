"""The arrow of time of a source of text: small twins trained on it, with several seeds.

Takes a source; prepares it once, trains a backward and a forward model for each seed, alike but
for their direction, and scores the validation texts with both. The folder holds everything and is
gone on with when the same is asked again:

    OUT/data/               what `prepare` made; OUT/flipped/ the same, read from its end
    OUT/runs/backward-1/    a run of `train` for each direction and seed
    OUT/report.json, report.md, report.png
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from itertools import islice
from pathlib import Path
from typing import Any

from backgpt.api import Model, load
from backgpt.checkpoint import checkpoints, read_checkpoint
from backgpt.config import TrainConfig, build
from backgpt.controls import CONTROLS, flip_dataset
from backgpt.errors import ConfigError, DataError
from backgpt.files import write_whole
from backgpt.gap import TwinScores, gap_by_context, twin_loss
from backgpt.order import Direction
from backgpt.prepare import prepare
from backgpt.quantize import count_parameters
from backgpt.report import ArrowReport, Twins
from backgpt.run import Reporter
from backgpt.score import Score, score_ids
from backgpt.shards import Dataset, open_dataset
from backgpt.train import train

DATA, FLIPPED = "data", "flipped"
CONTROL_TEXTS, CONTROL_SEED = 20_000, 0
VALID_FRACTION = 0.02  # of the documents, where the source has no validation set
INTERVAL_SEED = 0  # of the bootstrap
DEFAULTS: dict[str, Any] = {
    "preset": "pico",
    "max_steps": 1000,
    "batch_size": 16,
    "eval_every": 500,
    "save_every": 500,
}
DIRECTIONS: tuple[Direction, ...] = ("backward", "forward")


@dataclass(frozen=True)
class ArrowJob:
    """What to measure: a source, with how many seeds, and how its twins are trained.

    `source` is one of `prepare`'s or a control (see `controls`). With `flip` every document is
    read from its end, its markers exchanged: the gap then has the other sign, exactly so where no
    document is longer than the context. `settings` are those of `TrainConfig`.
    """

    source: str
    out: Path
    seeds: Sequence[int] = (1, 2, 3)
    flip: bool = False
    vocab_size: int = 2048
    valid: Sequence[str] = ()
    field: str = "text"
    limit: int | None = None
    settings: Mapping[str, Any] = dataclass_field(default_factory=dict)


def arrow(
    job: ArrowJob,
    *,
    report: Reporter,
    on_prepare: Callable[[str, int, int], None] | None = None,
    workers: int | None = None,
) -> ArrowReport:
    """Train the twins of `job`, or what is missing of them, and return what was measured.

    Raises ConfigError, DataError or CorruptFileError if settings or source do not fit, and as
    `train`; StoppedError after saving when a signal asked for an end.
    """
    if not job.seeds or len(set(job.seeds)) < len(job.seeds):
        raise ConfigError(f"seeds = {list(job.seeds)}: give at least one, none twice")
    configs = {
        (direction, seed): _config(job, direction, seed)
        for seed in job.seeds
        for direction in DIRECTIONS
    }
    dataset = _dataset(job, on_prepare, workers)
    if not dataset.valid:
        raise DataError(f"{job.source} left no text to validate on: give more, or a valid source")
    for (direction, seed), config in configs.items():
        report.notice(f"training {direction}, seed {seed}")
        train(config, report=report)
    return _measure(job, configs, dataset)


def _dataset(
    job: ArrowJob, on_prepare: Callable[[str, int, int], None] | None, workers: int | None
) -> Dataset:
    """Return what the twins are trained on, prepared if it is not yet there."""
    spec, field_ = job.source, job.field
    if job.source in CONTROLS:
        field_ = "text"
        spec = str(_write_control(job.source, job.out))
    prepare(
        [spec],
        job.out / DATA,
        vocab_size=job.vocab_size,
        valid=job.valid or None,
        valid_fraction=VALID_FRACTION,
        field=field_,
        workers=workers,
        progress=on_prepare,
    )
    dataset = open_dataset(job.out / DATA)
    return flip_dataset(dataset, job.out / FLIPPED) if job.flip else dataset


def _write_control(name: str, out: Path) -> Path:
    """Write the texts of a control, unless they are there; return their file."""
    path = out / f"{name}.jsonl"
    if not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        texts = islice(CONTROLS[name](CONTROL_SEED), CONTROL_TEXTS)
        write_whole(path, "".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    return path


def _config(job: ArrowJob, direction: Direction, seed: int) -> TrainConfig:
    own: dict[str, Any] = {
        "data": job.out / (FLIPPED if job.flip else DATA),
        "out": job.out / "runs" / f"{'flipped-' if job.flip else ''}{direction}-{seed}",
        "direction": direction,
        "seed": seed,
    }
    for key in own:
        if key in job.settings:
            raise ConfigError(f"{key} is not for the twins: arrow sets it itself")
    return build(TrainConfig, {**DEFAULTS, **job.settings, **own}, origin="arrow")


def _measure(
    job: ArrowJob, configs: Mapping[tuple[Direction, int], TrainConfig], dataset: Dataset
) -> ArrowReport:
    """Score the validation texts with the last checkpoint of every twin."""
    documents = [ids for shard in dataset.valid for ids in shard.documents()][: job.limit]
    sizes = [int(size) for shard in dataset.valid for size in shard.document_bytes][: job.limit]
    folders = {key: checkpoints(config.out)[-1] for key, config in configs.items()}
    models = {key: load(folder) for key, folder in folders.items()}

    def scores(model: Model, context: int | None) -> list[Score]:
        return score_ids(model.engine, model.language, documents, sizes, context=context)

    def pairs(context: int | None = None) -> list[TwinScores]:
        return [
            TwinScores(
                backward=scores(models["backward", seed], context),
                forward=scores(models["forward", seed], context),
            )
            for seed in job.seeds
        ]

    whole = pairs()
    first = models["backward", job.seeds[0]]
    read = read_checkpoint(folders["backward", job.seeds[0]])
    loss = twin_loss(whole, seed=INTERVAL_SEED)
    return ArrowReport(
        source=job.source,
        flipped=job.flip,
        parameters=count_parameters(read.model.weights),
        context=first.config.block_size,
        steps=read.step,
        trained_tokens=read.state["tokens"],
        loss=loss,
        twins=tuple(
            Twins(seed=seed, backward=pair.backward_loss, forward=pair.forward_loss, gap=pair.gap)
            for seed, pair in zip(job.seeds, whole, strict=True)
        ),
        by_context=tuple(
            gap_by_context(pairs, longest=first.config.block_size, seed=INTERVAL_SEED)
        ),
    )
