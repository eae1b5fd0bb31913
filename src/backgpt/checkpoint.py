"""The model folder on disk, and the checkpoints of a run: atomic, verified, resumable.

A model folder is a Hugging Face folder with this project's keys added to `config.json`. A
checkpoint is a model folder plus the optimizer, the position, and a manifest with the size and
SHA-256 of every file, written last: a folder without a manifest that verifies does not count.
Works on numpy arrays; nothing here imports torch, and nothing is a pickle.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from backgpt.config import ModelConfig, build
from backgpt.errors import BackgptError, CorruptFileError, DataError, UsageError
from backgpt.files import sync_folder, write_synced, write_whole
from backgpt.language import Language
from backgpt.order import Directions, Unit
from backgpt.tokenizer import END, PAD, START, Tokenizer

Arrays = Mapping[str, npt.NDArray[Any]]

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
OPTIMIZER, STATE, MANIFEST = "optimizer.safetensors", "state.json", "manifest.json"
CHECKPOINTS, LATEST, BEST = "checkpoints", "latest", "best"

HUGGING_FACE_NAMES = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "intermediate_size": "intermediate_size",
    "head_dim": "head_dim",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
}
"""The one table between our names and those in `config.json`."""


@dataclass(frozen=True)
class ModelFolder:
    """What a model folder holds. `weights` maps Hugging Face names to float32 arrays.

    `hints` says that the model was trained to obey hints.
    """

    config: ModelConfig
    direction: Directions
    unit: Unit
    tokenizer: Tokenizer
    weights: Arrays
    hints: bool = False

    @property
    def languages(self) -> list[Language]:
        """The languages this model was trained in, its main one first."""
        return Language.all_of(self.tokenizer, self.direction, self.unit)


@dataclass(frozen=True)
class Checkpoint:
    """A model folder at one step of a run, with all that is needed to go on from there."""

    model: ModelFolder
    step: int
    optimizer: Arrays
    state: Mapping[str, Any]


def read_model(path: Path) -> ModelFolder:
    """Read the model at `path`: a model folder, a checkpoint, a run folder, or its `best` file.

    Raises DataError if there is none, UsageError for a direction, unit or family this program
    does not know, CorruptFileError for damage.
    """
    folder = _resolve(path)
    if (folder / MANIFEST).is_file():
        verify(folder)
    values = _read_json(folder / CONFIG)
    if values.get("model_type") != "qwen3":
        raise UsageError(
            f"{folder / CONFIG}: model_type = {values.get('model_type')!r}; only 'qwen3' is read"
        )
    for key, known in (("direction", get_args(Directions)), ("unit", get_args(Unit))):
        if values.get(key) not in known:
            raise UsageError(
                f"{folder / CONFIG}: {key} = {values.get(key)!r} is not known: "
                f"it must be {' or '.join(map(repr, known))}"
            )
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    if values.get("tokenizer_sha256") not in (None, tokenizer.sha256):
        raise CorruptFileError(
            f"{folder / TOKENIZER} is not the tokenizer this model was trained with: "
            "copy the folder again"
        )
    if tokenizer.vocab_size > values.get("vocab_size", 0):
        raise CorruptFileError(
            f"{folder / TOKENIZER} has {tokenizer.vocab_size} ids, the model "
            f"{values.get('vocab_size')}: copy the folder again"
        )
    values = {**values.get("rope_parameters", {}), **values}
    missing = [name for name in HUGGING_FACE_NAMES.values() if name not in values]
    if missing:
        raise CorruptFileError(f"{folder / CONFIG} has no {missing[0]!r}: copy the folder again")
    shape = {ours: values[theirs] for ours, theirs in HUGGING_FACE_NAMES.items()}
    return ModelFolder(
        config=build(ModelConfig, shape, origin=str(folder / CONFIG)),
        direction=values["direction"],
        unit=values["unit"],
        tokenizer=tokenizer,
        weights=_read_arrays(folder / WEIGHTS),
        hints=bool(values.get("hints", False)),
    )


def write_model(model: ModelFolder, folder: Path) -> None:
    """Write the files of a model folder into the existing, empty `folder`."""
    write_synced(folder / WEIGHTS, _serialize(model.weights))
    model.tokenizer.save(folder / TOKENIZER)
    for name, values in _json_files(model).items():
        _write_json(folder / name, values)


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` into the run folder `run`, whole or not at all; return its folder.

    Raises BackgptError if the disk is full or refuses; what was saved before stays as it is.
    """
    folder = run / CHECKPOINTS / f"step-{checkpoint.step}"
    temporary = folder.with_name(folder.name + ".tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_model(checkpoint.model, temporary)
        write_synced(temporary / OPTIMIZER, _serialize(checkpoint.optimizer))
        _write_json(temporary / STATE, {"step": checkpoint.step, **checkpoint.state})
        manifest = {file.name: _fingerprint(file) for file in sorted(temporary.iterdir())}
        _write_json(temporary / MANIFEST, {"files": manifest})
        sync_folder(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
        sync_folder(folder.parent)
        point(run, LATEST, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise BackgptError(
            f"cannot save step {checkpoint.step} to {folder}: {error.strerror}; "
            "earlier checkpoints are whole: make room and run the same command to go on"
        ) from None
    return folder


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a verified checkpoint folder. Raises CorruptFileError if it does not verify."""
    verify(folder)
    state = _read_json(folder / STATE)
    return Checkpoint(
        model=read_model(folder),
        step=state.pop("step"),
        optimizer=_read_arrays(folder / OPTIMIZER),
        state=state,
    )


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, oldest step first, verified or not."""
    found = [
        folder
        for folder in (run / CHECKPOINTS).glob("step-*")
        if folder.name.removeprefix("step-").isdigit()
    ]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """Return the step that a checkpoint folder's name says."""
    return int(folder.name.removeprefix("step-"))


def thin(run: Path, *, keep_last: int) -> None:
    """Delete all checkpoints but the last `keep_last` and the one that `best` points to.

    What a killed save left behind is deleted as well.
    """
    best = pointed(run, BEST)
    for folder in checkpoints(run)[:-keep_last]:
        if folder != best:
            shutil.rmtree(folder)
    for unfinished in (run / CHECKPOINTS).glob("step-*.tmp"):
        shutil.rmtree(unfinished)


def point(run: Path, name: str, folder: Path) -> None:
    """Let the file `name` in the run folder say which checkpoint is meant."""
    write_whole(run / name, folder.relative_to(run).as_posix().encode() + b"\n")


def pointed(run: Path, name: str) -> Path | None:
    """Return the checkpoint that the file `name` in the run folder names, or None."""
    try:
        return run / (run / name).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def verify(folder: Path) -> None:
    """Compare every file of a checkpoint with its manifest.

    Raises CorruptFileError naming the first file that is missing, cut short or altered.
    """
    if not (folder / MANIFEST).is_file():
        raise CorruptFileError(f"{folder} has no {MANIFEST}: it was not written to its end")
    files = _read_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict):
        raise CorruptFileError(f"{folder / MANIFEST} is damaged")
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise CorruptFileError(f"{folder / name} is missing")
        if _fingerprint(folder / name) != expected:
            raise CorruptFileError(f"{folder / name} is damaged: it differs from {MANIFEST}")


def _resolve(path: Path) -> Path:
    """Find the model folder that `path` means."""
    if path.is_file() and path.name in (BEST, LATEST):
        path, name = path.parent, path.name
        return pointed(path, name) or path
    if not path.is_dir():
        raise DataError(f"there is no model at {path}: give a model folder or a run folder")
    if (path / CONFIG).is_file():
        return path
    folder = pointed(path, BEST) or pointed(path, LATEST)
    if folder is None:
        raise DataError(f"{path} holds no model ({CONFIG}) and no finished checkpoint")
    return folder


def _json_files(model: ModelFolder) -> dict[str, dict[str, Any]]:
    tokenizer, config = model.tokenizer, model.config
    stop = END if model.direction == "forward" else START
    stop_id = tokenizer.control_id(stop)
    shape = {theirs: getattr(config, ours) for ours, theirs in HUGGING_FACE_NAMES.items()}
    own = {
        "direction": model.direction,
        "unit": model.unit,
        "hints": model.hints,
        "markers": {"start": START, "end": END},
        "tokenizer_sha256": tokenizer.sha256,
    }
    fixed = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "eos_token_id": stop_id,
        "pad_token_id": tokenizer.pad_id,
    }
    return {
        CONFIG: {**fixed, **shape, **own},
        "generation_config.json": {"eos_token_id": stop_id, "pad_token_id": tokenizer.pad_id},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.block_size,
            "eos_token": stop,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
        },
    }


def _serialize(arrays: Arrays) -> bytes:
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return save(contiguous, metadata={"format": "pt"})


def _read_arrays(path: Path) -> Arrays:
    try:
        return load_file(path)
    except OSError as error:
        raise CorruptFileError(f"cannot read {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from None
    except TypeError as error:  # numpy has no bfloat16
        raise UsageError(
            f"{path} holds numbers of another type: {error}; save it as float32"
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CorruptFileError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise CorruptFileError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise CorruptFileError(f"{path} is not a JSON object")
    return values


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_synced(path, (json.dumps(values, indent=2) + "\n").encode())


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}
