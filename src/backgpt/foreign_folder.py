"""Hugging Face folders from elsewhere, in the shape of Llama, Mistral, Qwen 2 or Qwen 3.

What fits our own shape (Qwen 3 with one embedding, plain rotary, no biases) becomes one of our
models, which every engine runs and training goes on from. Others are copied as they are and run
in the library transformers. Weights are safetensors only; no code of a folder is run.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from backgpt.errors import CorruptFileError, DataError, UsageError, needs_extra
from backgpt.files import write_synced
from backgpt.foreign_model import ForeignModel, read_tokenizer
from backgpt.manifest import read_json, whole_folder, write_json
from backgpt.model_folder import (
    CONFIG,
    HUGGING_FACE_NAMES,
    README,
    TOKENIZER,
    WEIGHTS,
    ModelFolder,
    shape_of,
)
from backgpt.quantize import Arrays
from backgpt.shape import EMBEDDING, ModelConfig, check_shapes

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
INDEX = "model.safetensors.index.json"
FLOATS = ("F32", "F16", "BF16")
HEAD = "lm_head.weight"
MOST_PADDING = 1024
"""Embeddings are made up to a round number; a tokenizer that lacks more ids is another one's."""
ALSO_COPIED = ("generation_config.json", "tokenizer_config.json")

Shapes = dict[str, tuple[int, ...]]


def read_folder(source: Path, tokenizer: Path | None) -> ForeignModel:
    """Read the model in `source`. Raises UsageError, DataError or CorruptFileError, in one line."""
    values = read_json(source / CONFIG)
    _check_config(source, values)
    files = _weight_files(source)
    found = _shapes(files)
    if tokenizer is None:
        here = [source / name for name in (TOKENIZER, "tokenizer.model")]
        tokenizer = next((path for path in here if path.is_file()), here[0])
    content, first, stop = read_tokenizer(tokenizer)
    named = values.get("eos_token_id")
    named = named[0] if isinstance(named, list) and named else named
    family, kind = values["model_type"], f"`{values['model_type']}`"
    config = _config(source, values)
    fits = family == "qwen3" and _is_plain(values, found)
    if fits:
        weights = _read(files, found)
        _check_shapes(source, {k: v.shape for k, v in weights.items()}, config.array_shapes())
    else:
        _check_shapes(source, found, _their_shapes(source))
        for _ in _floats(files):  # which sees to it that they are numbers
            pass
        weights = {name: np.broadcast_to(np.float32("nan"), s) for name, s in found.items()}
    return ForeignModel(
        path=source,
        family="qwen3" if fits else "transformers",
        config=config,
        weights=weights,
        tokenizer=content,
        tokenizer_path=tokenizer,
        first_id=first,
        stop_id=named if isinstance(named, int) else stop,
        description=f"A model from elsewhere, of the type {kind}.",
        padding=MOST_PADDING,
    )


def copy_folder(model: ForeignModel, folder: ModelFolder, out: Path, card: bytes) -> None:
    """Write a folder for transformers to run: the weights as they are, and our keys.

    Raises OSError.
    """
    source, tokenizer = model.path, folder.tokenizer
    values = read_json(source / CONFIG)
    values.pop("auto_map", None)  # names code of the folder, which stays behind
    start, end = (None if i is None else tokenizer.name_of(i) for i in tokenizer.marker_ids)
    values |= {
        "family": folder.family,
        "direction": folder.direction,
        "unit": folder.unit,
        "markers": {"start": start, "end": end},
        "tokenizer_sha256": tokenizer.sha256,
        "shape": {
            theirs: getattr(folder.config, ours) for ours, theirs in HUGGING_FACE_NAMES.items()
        },
    }
    also = [source / name for name in (INDEX, *ALSO_COPIED)]
    with whole_folder(out) as temporary:
        for path in (*_weight_files(source), *also):
            if path.is_file():
                shutil.copyfile(path, temporary / path.name)
        tokenizer.save(temporary / TOKENIZER)
        write_json(temporary / CONFIG, values)
        write_synced(temporary / README, card)


def _check_config(source: Path, values: dict[str, Any]) -> None:
    path = source / CONFIG
    if values.get("model_type") not in FAMILIES:
        raise UsageError(
            f"{path}: model_type = {values.get('model_type')!r}: {', '.join(FAMILIES)} are read"
        )
    if values.get("quantization_config") is not None:
        raise UsageError(f"{path}: the weights are quantized: give the ones they were made from")
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(values.get(key) or {}, dict):
            raise CorruptFileError(f"{path}: {key} must be a table: copy the folder again")


def _config(source: Path, values: dict[str, Any]) -> ModelConfig:
    """Return the shape; what a configuration may leave out is what transformers takes it for."""
    heads, width = values.get("num_attention_heads"), values.get("hidden_size")
    if not (isinstance(heads, int) and isinstance(width, int) and heads > 0):
        raise CorruptFileError(f"{source / CONFIG} has no 'hidden_size' and 'num_attention_heads'")
    left_out = {
        "num_key_value_heads": heads,
        "head_dim": 128 if values["model_type"] == "qwen3" else width // heads,
        "rope_theta": 10_000.0,
        "rms_norm_eps": 1e-6,
    }
    given = {key: value for key, value in values.items() if value is not None and key != "shape"}
    return shape_of(
        {**left_out, **(given.get("rope_parameters") or {}), **given}, origin=str(source / CONFIG)
    )


def _is_plain(values: dict[str, Any], found: Shapes) -> bool:
    """Return whether a Qwen 3 is as our own models are."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    return (
        (bool(values.get("tie_word_embeddings")) or HEAD not in found)
        and not values.get("attention_bias")
        and not values.get("use_sliding_window")
        and values.get("hidden_act", "silu") == "silu"
        and rope.get("rope_type", rope.get("type", "default")) == "default"
    )


def _weight_files(source: Path) -> list[Path]:
    """Return the files with weights. Raises DataError if they are not safetensors."""
    if (source / INDEX).is_file():
        names = read_json(source / INDEX).get("weight_map")
        if not isinstance(names, dict) or any(Path(str(n)).name != n for n in names.values()):
            raise CorruptFileError(f"{source / INDEX} is damaged: copy the folder again")
        files = sorted({source / name for name in names.values()})
    else:
        files = [source / WEIGHTS]
    for path in files:
        if not path.is_file():
            raise DataError(
                f"there is no {path}: only safetensors are read, other weights may contain code"
            )
    return files


def _shapes(files: list[Path]) -> Shapes:
    """Return the shape of every array. Raises UsageError for numbers of another type."""
    found = {}
    for path in files:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                if part.get_dtype() not in FLOATS:
                    raise UsageError(
                        f"{path}: {name} holds {part.get_dtype()}: only float32, float16 and "
                        "bfloat16 are read"
                    )
                found[name] = tuple(part.get_shape())
    return found


def _read(files: list[Path], found: Shapes) -> Arrays:
    """Return the weights of one of our models as float32."""
    weights = dict(_floats(files))
    if EMBEDDING in found:
        weights.pop(HEAD, None)  # it is the embedding once more
    return weights


def _floats(files: list[Path]) -> Iterator[tuple[str, Any]]:
    with needs_extra("train", "reading these weights"):
        import torch  # numpy has no bfloat16
    for path in files:
        with _opened(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                array = file.get_tensor(name).to(torch.float32).numpy()
                if not np.isfinite(array).all():
                    raise CorruptFileError(f"{path}: {name} holds a value that is not a number")
                yield name, array


def _opened(path: Path, *, framework: str = "np") -> Any:
    try:
        return safe_open(path, framework=framework)
    except (OSError, SafetensorError) as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from None


def _their_shapes(source: Path) -> Shapes:
    """Return the shapes that transformers wants, which fills in at random what is missing."""
    with needs_extra("hf", "a model that runs in transformers"):
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from backgpt.engine.transformers_engine import quiet
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(
                source, local_files_only=True, trust_remote_code=False
            )
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # what a configuration can be wrong in has no end
        reason = str(error).strip().partition("\n")[0]
        raise CorruptFileError(
            f"{source / CONFIG}: transformers cannot read it: {reason}"
        ) from None
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop(HEAD, None)
    return shapes


def _check_shapes(source: Path, found: Shapes, wanted: Shapes) -> None:
    """Raise CorruptFileError as `check_shapes` does, but for what old files have too many."""
    ignored = {name for name in found if name.endswith("rotary_emb.inv_freq")}
    ignored |= {HEAD} - wanted.keys()
    kept = {name: shape for name, shape in found.items() if name not in ignored}
    check_shapes(kept, wanted, origin=str(source))
