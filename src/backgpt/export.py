"""A model written for other programs: as a folder that `transformers` loads, or see `export_gguf`.

Takes any model that `api.load` takes; int8 rows become float32. An export is there whole or not at
all, says in its metadata how its ids run, and takes the place of nothing but an older export.
"""

import json
import os
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from backgpt import __version__
from backgpt.builtin import DEFAULT, find
from backgpt.card import CARD, Card, read_card
from backgpt.errors import CorruptFileError, UsageError, printable
from backgpt.export_chat import CHAT_TEMPLATE, chat_template
from backgpt.export_text import readme
from backgpt.manifest import MANIFEST, read_json
from backgpt.model_folder import (
    README,
    TOKENIZER,
    WEIGHTS,
    ModelFolder,
    folder_of,
    read_model,
    save_model,
)
from backgpt.shape import check_shapes
from backgpt.tokenizer import END, START

EXPORT = "export.json"
"""The file that says that a folder is an export, and of what."""
ONNX = "onnx/model.onnx"
"""Where programs that run ONNX graphs look for one in a model folder."""


@dataclass(frozen=True)
class Source:
    """A model to be exported, with float32 weights.

    `tokens` are the names of all ids in their order, as `tokenizer.json` has them; `merges` are
    its byte pairs, the first one learned first. `card` is None where nobody wrote one.
    """

    name: str
    model: ModelFolder
    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]
    card: Card | None


def read_source(model: str | PathLike[str] | None = None) -> Source:
    """Read a built-in model by its name, or a model folder, checkpoint or run folder.

    Raises as `read_model`, UsageError if the tokenizer or the shape is not of this project, and
    CorruptFileError if a weight is missing or not a number.
    """
    path = find(model)
    folder = folder_of(path)
    read = read_model(folder)
    content = read_json(folder / TOKENIZER)
    ids = {token["content"]: token["id"] for token in content["added_tokens"]}
    as_it_is = "" if read.family == "smolgpt" else "; transformers loads the folder as it is"
    if not {START, END} <= set(ids):
        raise UsageError(
            f"{folder} has a tokenizer of another project: only our own is exported{as_it_is}"
        )
    if read.family != "qwen3":
        raise UsageError(
            f"{folder} is of the family {read.family!r}: only our own shape is exported{as_it_is}"
        )
    ids |= content["model"]["vocab"]
    _check_weights(read, folder)
    weights = {
        name: np.asarray(array, dtype=np.float32, order="C") for name, array in read.weights.items()
    }
    pairs = (
        pair.split(" ") if isinstance(pair, str) else pair for pair in content["model"]["merges"]
    )
    return Source(
        name=_name_of(DEFAULT if model is None else model),
        model=replace(read, weights=weights),
        tokens=tuple(sorted(ids, key=lambda token: ids[token])),
        merges=tuple((left, right) for left, right in pairs),
        card=read_card(folder / CARD),
    )


def metadata(model: ModelFolder) -> dict[str, str | bool]:
    """Return what every exported file says of how its ids run, by key."""
    return {
        "backgpt.version": __version__,
        "backgpt.direction": model.direction,
        "backgpt.unit": model.unit,
        "backgpt.start_token": START,
        "backgpt.end_token": END,
        "backgpt.tokenizer_sha256": model.tokenizer.sha256,
        "backgpt.hints": model.hints,
        "backgpt.chat": model.chat,
    }


def metadata_as_text(model: ModelFolder) -> dict[str, str]:
    """Return the same for formats whose metadata is text: true and false are JSON's."""
    return {key: json.dumps(value).strip('"') for key, value in metadata(model).items()}


def export_hf(source: Source, out: Path, *, graph: bytes | None = None) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load as it is.

    `graph` is an ONNX graph of the model, to be put in as well. Raises UsageError if something is
    at `out` that is not an export, BackgptError if the disk is full or refuses.
    """
    out = out.absolute()
    check_free(out)
    model = source.model
    kind = "hf" if graph is None else "onnx"
    said = {"format": kind, "model": source.name, **metadata(model)}
    files = {
        WEIGHTS: save(dict(model.weights), metadata={"format": "pt", **metadata_as_text(model)}),
        README: readme(source.name, model, source.card, onnx=graph is not None).encode(),
        EXPORT: (json.dumps(said, indent=2) + "\n").encode(),
    }
    if model.chat:
        files[CHAT_TEMPLATE] = chat_template(model.direction).encode()
    if graph is not None:
        files[ONNX] = graph
    if source.card:
        files[CARD] = (source.card.model_dump_json(indent=2) + "\n").encode()
    save_model(model, out, files=files)


def _name_of(model: str | PathLike[str]) -> str:
    """Return the last part of a path, or of a name on the hub without its revision."""
    if Path(model).exists():
        return printable(Path(model).absolute().name)
    return str(model).partition("@")[0].rpartition("/")[2]


def _check_weights(model: ModelFolder, folder: Path) -> None:
    """Raise CorruptFileError unless all weights are there, in shape, and numbers."""
    found = {name: array.shape for name, array in model.weights.items()}
    check_shapes(found, model.config.array_shapes(), origin=str(folder))
    for name, array in model.weights.items():
        if not np.isfinite(array).all():
            raise CorruptFileError(f"{folder}: {name} holds what is not a number: train it anew")


def check_free(out: Path) -> None:
    """Raise UsageError unless `out` is not there, is empty, or holds an export and nothing else."""
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise UsageError(f"{out} is a file: name a folder to be made")
    entries = {entry.relative_to(out).as_posix(): entry for entry in out.rglob("*")}
    if not entries:
        return
    if not entries.keys() >= {EXPORT, MANIFEST}:
        raise UsageError(f"{out} holds something that is not an export: name another folder")
    try:
        files = {MANIFEST, *read_json(out / MANIFEST).get("files", {})}
    except CorruptFileError as error:
        raise UsageError(f"{error}: name another folder") from None
    folders = {parent.as_posix() for name in files for parent in Path(name).parents}
    for name, entry in sorted(entries.items()):
        is_folder = entry.is_dir() and not entry.is_symlink()
        if name not in (folders if is_folder else files):
            raise UsageError(f"{out} holds {name}, which is not of an export: name another folder")
