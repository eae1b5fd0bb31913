"""The models that come with the package, by name, and what is known about any model.

A built-in model is a model folder in `backgpt/models`, called as the folder is. A name stands for
it wherever a model is asked for; to mean a local folder of that name, write `./stories`. What is
neither, and is written `owner/name`, is a model on the Hugging Face hub.
"""

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from reprlib import repr as shown
from typing import TYPE_CHECKING

from backgpt.checkpoint import OPTIMIZER
from backgpt.errors import DataError
from backgpt.manifest import files_in
from backgpt.model_folder import CONFIG, folder_of, read_model
from backgpt.order import Directions, Unit
from backgpt.quantize import Storage, count_parameters

if TYPE_CHECKING:
    from backgpt.card import Card
from backgpt.shape import ModelConfig

MODELS = Path(__file__).parent / "models"
DEFAULT = "stories"
"""The model that is meant when none is named."""

NAME = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(frozen=True)
class ModelInfo:
    """What is known about a model without running it. `card` is None where nobody wrote one."""

    name: str
    folder: Path
    config: ModelConfig
    direction: Directions
    unit: Unit
    hints: bool
    chat: bool
    storage: Storage
    n_parameters: int
    size_bytes: int
    card: "Card | None"


def names(models: Path | None = None) -> list[str]:
    """Return the names of the built-in models, in `models` if that is given, sorted."""
    return sorted(
        config.parent.name
        for config in (models or MODELS).glob(f"*/{CONFIG}")
        if NAME.fullmatch(config.parent.name)
    )


def find(model: str | PathLike[str] | None = None, *, models: Path | None = None) -> Path:
    """Return the path of `model`: a built-in model's name, or a path; None is the default model.

    A name is looked for in `models` if that is given. Only a str can be a name: a Path is a path.
    A str `owner/name` or `owner/name@revision` that is no path here is downloaded from the Hugging
    Face hub, see `hub.download`. Raises DataError, with the names there are, if it is none of them.
    """
    if not isinstance(model, str | PathLike | None):
        raise DataError(f"model = {shown(model)}: give a name or a path")
    known = names(models)
    if model is None:
        model = DEFAULT
        if model not in known:
            raise DataError(f"there is no built-in model {model!r} here: name a model")
    if model in known:
        return (models or MODELS) / model
    if not str(model):
        raise DataError("the model is empty: name one, or leave it out")
    path = Path(model)
    if not path.exists():
        from backgpt.hub import download, is_name

        if isinstance(model, str) and is_name(model):
            return download(model)
        or_name = f" or one of the built-in models: {', '.join(known)}" if known else ""
        raise DataError(
            f"there is no model {str(model)!r}: give a model folder, a run folder{or_name}"
        )
    return path


def describe(model: str | PathLike[str] | None = None, *, models: Path | None = None) -> ModelInfo:
    """Return what is known about `model`, verified. Raises as `find` and `read_model`."""
    from backgpt.card import CARD, read_card

    folder = folder_of(find(model, models=models))
    read = read_model(folder, dequantize=False)
    return ModelInfo(
        name=str(model) if model is not None else DEFAULT,
        folder=folder,
        config=read.config,
        direction=read.direction,
        unit=read.unit,
        hints=read.hints,
        chat=read.chat,
        storage=read.storage,
        n_parameters=count_parameters(read.weights),
        size_bytes=sum(file.stat().st_size for file in files_in(folder) if file.name != OPTIMIZER),
        card=read_card(folder / CARD),
    )
