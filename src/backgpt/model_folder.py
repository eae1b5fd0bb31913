"""A model on disk: a Hugging Face folder with this project's keys added to `config.json`.

Stored as int8, its weights have a file name that other programs do not take for theirs. Models from
elsewhere, which `convert` brings in, may be of another family than our own shape. Works on numpy
arrays; nothing here imports torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from backgpt.arrays import read_arrays, serialized
from backgpt.errors import CorruptFileError, DataError, UsageError
from backgpt.files import cannot_write, write_synced
from backgpt.language import Language
from backgpt.manifest import MANIFEST, read_json, verify, whole_folder, write_json
from backgpt.order import Directions, Unit
from backgpt.quantize import Arrays, Storage, check, count_parameters, dequantized, quantized
from backgpt.shape import ModelConfig, shape_from
from backgpt.tokenizer import PAD, Tokenizer

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
README = "README.md"
INT8_WEIGHTS = "model.int8.safetensors"
STATE = "state.json"  # of a checkpoint: where its run was
WEIGHTS_OF: dict[Storage, str] = {"float32": WEIGHTS, "int8": INT8_WEIGHTS}
"""The file with the weights, by how they are stored."""
LATEST, BEST = "latest", "best"
"""Files of a run folder that say which of its checkpoints is meant."""

Family = Literal["qwen3", "smolgpt", "transformers"]
"""Our own shape, which is Qwen3's; smolGPT's; or whatever the library transformers runs."""

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
class SeenData:
    """What a run has made of its model: steps, tokens, and the SHA-256 of the data these are from.

    What a model that it began from had seen before is not among it.
    """

    steps: int
    tokens: int
    data_sha256: str


@dataclass(frozen=True)
class ModelFolder:
    """What a model folder holds. `weights` maps Hugging Face names to float32 arrays.

    `hints` says that the model was trained to obey hints, `chat` that it was tuned on
    conversations, `storage` how the folder that it was read from keeps the weights. Read without
    `dequantize`, `weights` are as `quantize` has them. Of the family "transformers" they are not
    read: each array has its shape and is full of NaN. `path` is the folder it was read from,
    `trained` is there if that is a checkpoint.
    """

    config: ModelConfig
    direction: Directions
    unit: Unit
    tokenizer: Tokenizer
    weights: Arrays
    hints: bool = False
    chat: bool = False
    storage: Storage = "float32"
    family: Family = "qwen3"
    path: Path | None = None
    trained: SeenData | None = None

    @property
    def languages(self) -> list[Language]:
        """The languages this model was trained in, its main one first."""
        return Language.all_of(self.tokenizer, self.direction, self.unit)


def read_model(path: Path, *, dequantize: bool = True, with_weights: bool = True) -> ModelFolder:
    """Read the model at `path`: a model folder, a checkpoint, a run folder, or its `best` file.

    Without `dequantize`, weights that are stored as int8 stay rows and scales, checked; without
    `with_weights` there are none. Raises DataError if there is no model, UsageError for a
    direction, unit, storage or family this program does not know, CorruptFileError for damage.
    """
    folder = folder_of(path)
    if (folder / MANIFEST).is_file():
        verify(folder, only=None if with_weights else (CONFIG, TOKENIZER))
    return read_unverified(folder, dequantize=dequantize, with_weights=with_weights)


def read_unverified(
    folder: Path, *, dequantize: bool = True, with_weights: bool = True
) -> ModelFolder:
    """Do as `read_model` with a model folder that is verified, or has no manifest."""
    values = read_json(folder / CONFIG)
    values.setdefault("family", "qwen3")
    values.setdefault("storage", "float32")
    if values["family"] == "qwen3" and values.get("model_type") != "qwen3":
        raise UsageError(
            f"{folder / CONFIG}: model_type = {values.get('model_type')!r}; only 'qwen3' is read: "
            "import others with 'backgpt import'"
        )
    kinds: tuple[tuple[str, Any], ...] = (
        ("direction", Directions),
        ("unit", Unit),
        ("storage", Storage),
        ("family", Family),
    )
    for key, kind in kinds:
        known = get_args(kind)
        if values.get(key) not in known:
            hint = "" if key in values else "; import a folder from elsewhere with 'backgpt import'"
            raise UsageError(
                f"{folder / CONFIG}: {key} = {values.get(key)!r} is not known: "
                f"it must be {' or '.join(map(repr, known))}{hint}"
            )
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    if values.get("tokenizer_sha256") not in (None, tokenizer.sha256):
        raise CorruptFileError(
            f"{folder / TOKENIZER} is not the tokenizer this model was trained with: "
            "copy the folder again"
        )
    shape = shape_of(values, origin=str(folder / CONFIG))
    if tokenizer.vocab_size > shape.vocab_size:
        raise CorruptFileError(
            f"{folder / TOKENIZER} has {tokenizer.vocab_size} ids, the model {shape.vocab_size}: "
            "copy the folder again"
        )
    weights: Arrays = {}
    if with_weights and values["family"] == "transformers":
        weights = dict(_shapes_only(folder))
    elif with_weights:
        weights = _read_weights(folder, values["storage"], dequantize=dequantize)
    return ModelFolder(
        config=shape,
        direction=values["direction"],
        unit=values["unit"],
        tokenizer=tokenizer,
        weights=weights,
        hints=bool(values.get("hints", False)),
        chat=bool(values.get("chat", False)),
        storage=values["storage"],
        family=values["family"],
        path=folder,
        trained=_trained(folder),
    )


def _trained(folder: Path) -> SeenData | None:
    if not (folder / STATE).is_file():
        return None
    try:
        state = read_json(folder / STATE)
        return SeenData(int(state["step"]), int(state["tokens"]), str(state["data_sha256"]))
    except (CorruptFileError, KeyError, OverflowError, TypeError, ValueError):  # somebody else's
        return None


def shape_of(values: Mapping[str, Any], *, origin: str) -> ModelConfig:
    """Return the shape that a `config.json` describes, wherever it says how rotary turns.

    Raises CorruptFileError if a key is missing, ConfigError for a value that cannot be.
    """
    rotary, own = values.get("rope_parameters") or {}, values.get("shape") or {}
    if not (isinstance(rotary, dict) and isinstance(own, dict)):
        raise CorruptFileError(
            f"{origin}: rope_parameters and shape must be tables: copy the folder again"
        )
    values = {**rotary, **values, **own}
    missing = [name for name in HUGGING_FACE_NAMES.values() if name not in values]
    if missing:
        raise CorruptFileError(f"{origin} has no {missing[0]!r}: copy the folder again")
    shape = {ours: values[theirs] for ours, theirs in HUGGING_FACE_NAMES.items()}
    return shape_from(shape, origin=origin)


def write_model(model: ModelFolder, folder: Path, *, storage: Storage = "float32") -> None:
    """Write the files of a model folder into the existing, empty `folder`.

    `model` has float weights; raises UsageError if one is not finite and `storage` is "int8", and
    for the family "transformers", which is only copied.
    """
    if model.family == "transformers":
        raise UsageError(f"{model.path} runs in transformers: its weights are copied, not written")
    weights = quantized(model.weights) if storage == "int8" else model.weights
    write_synced(folder / WEIGHTS_OF[storage], serialized(weights))
    model.tokenizer.save(folder / TOKENIZER)
    for name, values in _json_files(model, storage).items():
        write_json(folder / name, values)
    write_synced(folder / README, card_of(model).encode())


def card_of(model: ModelFolder) -> str:
    """Return the README.md of a model that nobody has described yet."""
    from backgpt.card_text import short_card  # reads and checks more than running needs

    return short_card(
        model.config,
        model.direction,
        model.unit,
        chat=model.chat,
        n_parameters=count_parameters(model.weights),
    )


def save_model(
    model: ModelFolder,
    folder: Path,
    *,
    storage: Storage = "float32",
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a model folder with a manifest at `folder`, whole or not at all, over what was there.

    `files` are further ones to put in, by path, or ones to put in place of its own. Raises
    BackgptError if the disk is full or refuses.
    """
    try:
        with whole_folder(folder) as temporary:
            write_model(model, temporary, storage=storage)
            for name, data in (files or {}).items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                write_synced(temporary / name, data)
    except OSError as error:
        raise cannot_write(folder, error) from None


def folder_of(path: Path) -> Path:
    """Return the model folder that `path` means. Raises DataError if there is none."""
    if path.is_file() and path.name in (BEST, LATEST):
        folder = pointed(path.parent, path.name)
        if folder is None:
            raise DataError(f"{path} names no checkpoint that is there: give its run folder")
        return folder
    if not path.is_dir():
        raise DataError(f"there is no model at {path}: give a model folder or a run folder")
    if (path / CONFIG).is_file():
        return path
    folder = pointed(path, BEST) or pointed(path, LATEST)
    if folder is None:
        raise DataError(f"{path} holds no model ({CONFIG}) and no finished checkpoint")
    return folder


def pointed(run: Path, name: str) -> Path | None:
    """Return the checkpoint that the file `name` in the run folder names, or None."""
    try:
        folder = run / (run / name).read_text(encoding="utf-8").strip()
        return folder if (folder / CONFIG).is_file() and folder != run else None
    except (OSError, ValueError):  # it is not there, or damaged
        return None


def _json_files(model: ModelFolder, storage: Storage) -> dict[str, dict[str, Any]]:
    tokenizer, config = model.tokenizer, model.config
    start, end = (
        tokenizer.name_of(id_) if id_ is not None else None for id_ in tokenizer.marker_ids
    )
    forward = model.direction == "forward"
    stop, stop_id = (end if forward else start), tokenizer.marker_ids[1 if forward else 0]
    pads = {"pad_token_id": tokenizer.pad_id} if tokenizer.is_own else {}
    shape = {theirs: getattr(config, ours) for ours, theirs in HUGGING_FACE_NAMES.items()}
    own = {
        "direction": model.direction,
        "unit": model.unit,
        "hints": model.hints,
        "chat": model.chat,
        "storage": storage,
        "markers": {"start": start, "end": end},
        "tokenizer_sha256": tokenizer.sha256,
    }
    if model.family != "qwen3":
        return {CONFIG: {"model_type": model.family, "family": model.family, **shape, **own}}
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
        **pads,
    }
    return {
        CONFIG: {**fixed, **shape, **own},
        "generation_config.json": {"eos_token_id": stop_id, **pads},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.block_size,
            "eos_token": stop,
            **({"pad_token": PAD} if tokenizer.is_own else {}),
            "clean_up_tokenization_spaces": False,
        },
    }


def _read_weights(folder: Path, storage: Storage, *, dequantize: bool) -> Arrays:
    path = folder / WEIGHTS_OF[storage]
    weights = read_arrays(path)
    if storage == "float32":
        for name, array in weights.items():
            if not np.isfinite(array).all():
                raise CorruptFileError(f"{path}: {name} has a number that is not finite")
        return weights
    try:
        if dequantize:
            return dequantized(weights)
        check(weights)
    except CorruptFileError as error:
        raise CorruptFileError(f"{path}: {error}") from None
    return weights


def _shapes_only(folder: Path) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yield the name of every array and one of its shape that takes no memory, full of NaN."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118  (it is no dict)
                    shape = file.get_slice(name).get_shape()
                    yield name, np.broadcast_to(np.float32("nan"), shape)
        except (OSError, SafetensorError) as error:
            raise CorruptFileError(f"{path} is damaged: {error}") from None
