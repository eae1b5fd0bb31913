"""The arrow of time of a source of text: small twins trained on it, with several seeds.

Takes a source; prepares it once, trains a backward and a forward model for each seed, alike but
for their direction, and scores the validation texts with both. The folder holds everything and is
gone on with when the same is asked again:

    OUT/data/               what `prepare` made; OUT/flipped/ the same, read from its end
    OUT/runs/backward-1/    a run of `train` for each direction and seed
    OUT/report.json, report.md, report.png; flipped.json, ... of the texts read from their ends
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from backgpt.api import Model, load
from backgpt.checkpoint import checkpoints, read_checkpoint
from backgpt.config import TrainConfig, build, read_toml
from backgpt.controls import CONTROLS, flip_dataset
from backgpt.devices import choose_device
from backgpt.errors import ConfigError, DataError
from backgpt.evaluate import draw_some
from backgpt.files import write_whole
from backgpt.gap import TwinScores, gap_by_context, twin_loss
from backgpt.order import Direction, ReadingIds
from backgpt.prepare import prepare
from backgpt.quantize import count_parameters
from backgpt.report import ArrowReport, Twins
from backgpt.report_card import made_of
from backgpt.run import Reporter
from backgpt.run_folder import SETTINGS, check_same_run
from backgpt.score import Score, score_ids
from backgpt.shards import Dataset, open_dataset
from backgpt.train import train

DATA, FLIPPED = "data", "flipped"
CONTROL_TEXTS, CONTROL_SEED = 20_000, 0
VALID_FRACTION = 0.02  # of the documents, where the source has no validation set
SEED = 0  # of the bootstrap, and of texts that are drawn
BY_CONTEXT = 500  # texts, drawn by the seed, on which the gap by context is measured
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
    document is longer than the context. `settings` are those of `TrainConfig`. The gap is measured
    on `limit` of the validation texts, the same ones for all twins.
    """

    source: str
    out: Path
    seeds: Sequence[int] = (1, 2, 3)
    flip: bool = False
    vocab_size: int = 2048
    valid: Sequence[str] = ()
    field: str = "text"
    separator: str | None = None
    limit: int | None = None
    settings: Mapping[str, Any] = dataclass_field(default_factory=dict)


class _Text(NamedTuple):
    """The ids of a validation text, without markers, and its UTF-8 bytes."""

    ids: ReadingIds
    size: int


def arrow(job: ArrowJob, *, report: Reporter, workers: int | None = None) -> ArrowReport:
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
    for config in configs.values():
        _check(config, job)
    dataset = _dataset(job, report, workers)
    for (direction, seed), config in configs.items():
        report.notice(f"training {direction}, seed {seed}")
        train(config, report=report)
    return _measure(job, configs, dataset)


def _dataset(job: ArrowJob, report: Reporter, workers: int | None) -> Dataset:
    """Return what the twins are trained on, prepared if it is not yet there."""
    report.notice(f"preparing {job.source}")
    spec, field_ = job.source, job.field
    if job.source in CONTROLS:
        field_ = "text"
        spec = str(_write_control(job.source, job.out))
    made = prepare(
        [spec],
        job.out / DATA,
        vocab_size=job.vocab_size,
        valid=job.valid or None,
        valid_fraction=VALID_FRACTION,
        field=field_,
        separator=job.separator,
        workers=workers,
    )
    n_valid = len(range(made.valid.documents)[: job.limit])
    if n_valid < 2:
        counted = f"{n_valid} of {made.train.documents + made.valid.documents:,}"
        raise DataError(
            f"{job.source}: texts to validate on: {counted}; an interval takes at least 2: give "
            "more, a source to validate on, or the separator that stands between texts"
        )
    for note in made.notes:
        report.notice(note)
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
    values = {**DEFAULTS, **job.settings, **own}
    if "epochs" in job.settings and "max_steps" not in job.settings:
        del values["max_steps"]
    return build(TrainConfig, values, origin="arrow")


def _check(config: TrainConfig, job: ArrowJob) -> None:
    """Refuse what can be known to be wrong before anything is prepared.

    `train` goes on with another number of steps. Here that is refused, because the learning rate
    has followed the first one, and the twins would not be those that were asked for.
    """
    if job.flip and (config.unit != "token" or config.hints):
        raise ConfigError("flipped texts are for unit = token without hints: leave out both")
    config.shape(job.vocab_size)
    choose_device(config.device)
    check_same_run(config)
    file = config.out / SETTINGS
    before = build(TrainConfig, read_toml(file), origin=str(file)) if file.is_file() else config
    for key in ("max_steps", "epochs"):
        old, new = getattr(before, key), getattr(config, key)
        if old != new:
            raise ConfigError(
                f"{config.out} was started with {key} = {old}, not {new}: give the same settings "
                "to go on, or another --out to start anew"
            )


def _measure(
    job: ArrowJob, configs: Mapping[tuple[Direction, int], TrainConfig], dataset: Dataset
) -> ArrowReport:
    """Score the validation texts with the last checkpoint of every twin."""
    held_out = [
        _Text(ids, int(size))
        for shard in dataset.valid
        for ids, size in zip(shard.documents(), shard.document_bytes, strict=True)
    ]
    texts = draw_some(held_out, job.limit, seed=SEED)
    some = draw_some(texts, BY_CONTEXT, seed=SEED)
    folders = {key: checkpoints(config.out)[0] for key, config in configs.items()}
    models = {key: load(folder) for key, folder in folders.items()}

    def scores(model: Model, of: Sequence[_Text], context: int | None) -> list[Score]:
        ids, sizes = zip(*of, strict=True)
        return score_ids(model, ids, sizes, context=context)

    def pairs(of: Sequence[_Text], context: int | None = None) -> list[TwinScores]:
        return [
            TwinScores(
                backward=scores(models["backward", seed], of, context),
                forward=scores(models["forward", seed], of, context),
            )
            for seed in job.seeds
        ]

    whole = pairs(texts)
    most = max(score.n_tokens for score in whole[0].backward)
    first = models["backward", job.seeds[0]]
    read = read_checkpoint(folders["backward", job.seeds[0]])
    loss = twin_loss(whole, seed=SEED)
    return ArrowReport(
        source=job.source,
        flipped=job.flip,
        limit=job.limit,
        made=made_of(first, [first.tokenizer.decode(text.ids) for text in texts]),
        seed=SEED,
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
            gap_by_context(
                lambda context: pairs(some, context),
                longest=min(first.config.block_size, most),
                seed=SEED,
            )
        ),
    )
