"""The checkpoints of a run: atomic, verified, resumable.

A checkpoint is a model folder plus the optimizer, the position, and a manifest with the size and
SHA-256 of every file, written last: a folder without a manifest that verifies does not count.
Works on numpy arrays; nothing here imports torch, and nothing is a pickle.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backgpt.arrays import read_arrays, serialized
from backgpt.errors import BackgptError
from backgpt.files import TEMPORARY, write_synced, write_whole
from backgpt.manifest import read_json, verify, whole_folder, write_json
from backgpt.model_folder import (
    BEST,
    LATEST,
    STATE,
    ModelFolder,
    pointed,
    read_unverified,
    write_model,
)
from backgpt.quantize import Arrays

OPTIMIZER = "optimizer.safetensors"
CHECKPOINTS, DAMAGED = "checkpoints", ".damaged"


@dataclass(frozen=True)
class Checkpoint:
    """A model folder at one step of a run, with all that is needed to go on from there."""

    model: ModelFolder
    step: int
    optimizer: Arrays
    state: Mapping[str, Any]


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` into the run folder `run`, whole or not at all; return its folder.

    Raises BackgptError if the disk is full or refuses; what was saved before stays as it is.
    """
    folder = run / CHECKPOINTS / f"step-{checkpoint.step}"
    try:
        with whole_folder(folder) as temporary:
            write_model(checkpoint.model, temporary)
            write_synced(temporary / OPTIMIZER, serialized(checkpoint.optimizer))
            write_json(temporary / STATE, {"step": checkpoint.step, **checkpoint.state})
        point(run, LATEST, folder)
    except OSError as error:
        raise BackgptError(
            f"cannot save step {checkpoint.step} to {folder}: {error.strerror}; "
            "earlier checkpoints are whole: make room and run the same command to go on"
        ) from None
    return folder


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a verified checkpoint folder. Raises CorruptFileError if it does not verify."""
    verify(folder)
    state = read_json(folder / STATE)
    return Checkpoint(
        model=read_unverified(folder),
        step=state.pop("step"),
        optimizer=read_arrays(folder / OPTIMIZER),
        state=state,
    )


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, newest step first, verified or not."""
    found = [
        folder
        for folder in (run / CHECKPOINTS).glob("step-*")
        if folder.name.removeprefix("step-").isdigit()
    ]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """Return the step that a checkpoint folder's name says."""
    return int(folder.name.removeprefix("step-"))


def thin(run: Path, *, keep_last: int) -> None:
    """Delete all checkpoints but the last `keep_last` and the one that `best` points to.

    What a killed save left behind is deleted as well.
    """
    best = pointed(run, BEST)
    for folder in checkpoints(run)[keep_last:]:
        if folder != best:
            shutil.rmtree(folder)
    for unfinished in (run / CHECKPOINTS).glob(f".step-*{TEMPORARY}"):
        shutil.rmtree(unfinished)


def set_aside(folder: Path) -> None:
    """Rename a damaged checkpoint, so that it is no longer one of the run's. Raises OSError."""
    aside = folder.with_name(folder.name + DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def point(run: Path, name: str, folder: Path) -> None:
    """Let the file `name` in the run folder say which checkpoint is meant."""
    write_whole(run / name, folder.relative_to(run).as_posix().encode() + b"\n")
