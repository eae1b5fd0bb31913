"""What a run begins with: its own last checkpoint, the model that is tuned, or neither."""

import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backgpt import __version__
from backgpt.builtin import find
from backgpt.checkpoint import Checkpoint, checkpoints, read_checkpoint, set_aside
from backgpt.config import TrainConfig
from backgpt.errors import ConfigError, CorruptFileError
from backgpt.model_folder import ModelFolder, read_model
from backgpt.quantize import Arrays
from backgpt.tokenizer import Tokenizer


def model_that_is_tuned(config: TrainConfig) -> ModelFolder | None:
    """Return the model that a run begins from, without weights: its own, if it has been saved.

    Raises DataError if there is none, ConfigError for one that cannot be trained.
    """
    if config.init is None:
        return None
    for folder in checkpoints(config.out):
        with suppress(CorruptFileError):
            return read_model(folder, with_weights=False)
    model = read_model(find(config.init), with_weights=False)
    if model.family != "qwen3":
        raise ConfigError(
            f"{config.init} is of the family {model.family!r}, which is only run: training begins "
            "from models in the Qwen3 shape"
        )
    return model


def weights_to_tune(config: TrainConfig, *, notice: Callable[[str], None]) -> Arrays:
    """Return the weights of the model that a run begins from."""
    model = read_model(find(config.init))
    for name, value in (("direction", model.direction), ("unit", model.unit)):
        wanted = getattr(config, name)
        if wanted != value:
            notice(f"{config.init} has {name} = {value}; this run trains it with {name} = {wanted}")
    return model.weights


def newest_checkpoint(
    run: Path, *, notice: Callable[[str], None], sets_aside: bool
) -> Checkpoint | None:
    """Read the newest checkpoint that verifies, with a warning for each that does not.

    With `sets_aside` those are renamed: if they stayed, they would count as newer than what is
    saved next.
    """
    for folder in checkpoints(run):
        try:
            return read_checkpoint(folder)
        except CorruptFileError as error:
            notice(f"skipping a damaged checkpoint: {error}")
            if sets_aside:
                set_aside(folder)
    return None


def check_goes_on(
    checkpoint: Checkpoint,
    run: Path,
    *,
    max_steps: int,
    tokenizer: Tokenizer,
    data: Mapping[str, Any],
) -> None:
    """Raise ConfigError if a run cannot go on from its checkpoint as it is asked to.

    `data` tells the data from other data; its checkpoint may be older than some of that.
    """
    if checkpoint.step > max_steps:
        raise ConfigError(
            f"{run} is at step {checkpoint.step:,}, beyond max_steps = {max_steps:,}: "
            "give more steps to go on, or another --out"
        )
    before = {key: checkpoint.state.get(key, value) for key, value in data.items()}
    if checkpoint.model.tokenizer.sha256 != tokenizer.sha256 or before != data:
        raise ConfigError(
            f"{run} was started on other data than it is given now: "
            "give that data to go on, or another --out to start anew"
        )


def record_of_start(step: int) -> dict[str, Any]:
    """Return when and with what a run is started at `step`."""
    return {
        "step": step,
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "backgpt": __version__,
        "python": platform.python_version(),
    }
