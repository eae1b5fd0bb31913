"""Checkpoints of smolGPT, and of the original backgpt, which is a fork of it: `ckpt.pt`.

A dictionary that torch pickled, of which two entries are read: `model_args`, numbers, and `model`,
the arrays. It is read without running what a pickle may contain. The settings do not say whether
positions are learned: the table of positions does by being there.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from backgpt.errors import CorruptFileError, DataError, UsageError, needs_extra
from backgpt.foreign_model import ForeignModel, read_tokenizer
from backgpt.quantize import Arrays
from backgpt.shape import ModelConfig

CHECKPOINT = "ckpt.pt"
PREFIXES = ("_orig_mod.", "module.")  # put there by torch.compile and by distributed training
HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"
SIZES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embed": "n_embd",
    "block_size": "block_size",
    "vocab_size": "vocab_size",
}
"""Their name of a size -> ours."""
_CODE = re.compile(r"(?:Unsupported (?:global|class)|GLOBAL)\W+(?:GLOBAL\s+)?([\w.]+)")


def read_smolgpt(source: Path, tokenizer: Path | None) -> ForeignModel:
    """Read a checkpoint, or the `ckpt.pt` in a folder, with its SentencePiece model.

    Raises DataError or CorruptFileError, with one line, for what is not one, and UsageError if
    its weights are not floats.
    """
    path = source / CHECKPOINT if source.is_dir() else source
    content = _load(path)
    config = _config(path, content["model_args"])
    weights = _weights(path, content["model"])
    from backgpt.engine.smolgpt_engine import POSITIONS, SmolGpt

    try:
        SmolGpt(config, weights)
    except CorruptFileError as error:
        raise CorruptFileError(f"{path}: {error}") from None
    tokenizer = tokenizer or _tokenizer_beside(path)
    parsed, first, stop = read_tokenizer(tokenizer)
    positions = (
        "learned positions"
        if POSITIONS in weights
        else "no positions (its rotary turned by head, which changes nothing)"
    )
    return ForeignModel(
        path=path,
        family="smolgpt",
        config=config,
        weights=weights,
        tokenizer=parsed,
        tokenizer_path=tokenizer,
        first_id=first,
        stop_id=stop,
        description=f"A transformer as smolGPT trains it ({config.n_layer} layers, "
        f"{config.n_head} heads, width {config.n_embd}, context {config.block_size:,} ids) with "
        f"{positions}.",
    )


def _load(path: Path) -> dict[str, Any]:
    check_kind(path)
    with needs_extra("train", "reading a checkpoint of torch"):
        import torch
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # torch raises many kinds, for damage too
        code = _CODE.search(str(error))
        if code:
            raise DataError(
                f"{path} holds {code[1]}, which is code and is not run: save only numbers and "
                "arrays ('model_args' and 'model')"
            ) from None
        reason = re.split(r"\n|\. ", str(error).strip())[0][:120]
        raise CorruptFileError(
            f"{path} is not a checkpoint of torch, or damaged: {reason}; copy it again"
        ) from None
    for key in ("model_args", "model"):
        if not isinstance(content, dict) or not isinstance(content.get(key), Mapping):
            raise DataError(f"{path} has no {key!r}: it is not a checkpoint of smolGPT")
    found: dict[str, Any] = content
    return found


def check_kind(path: Path) -> None:
    """Raise DataError if the file begins as no checkpoint of torch does."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    if head == b"GGUF":
        raise DataError(f"{path} is a GGUF file: import the folder or checkpoint it was made from")
    if not head.startswith((b"PK", b"\x80")):  # a zip archive, or a pickle as torch < 1.6 wrote it
        raise DataError(f"{path} is not a checkpoint of torch, such as {CHECKPOINT}")


def _config(path: Path, arguments: Mapping[str, Any]) -> ModelConfig:
    sizes: dict[str, Any] = {ours: arguments.get(theirs) for theirs, ours in SIZES.items()}
    for theirs, ours in SIZES.items():
        if type(sizes[ours]) is not int or sizes[ours] < 1:
            raise DataError(f"{path}: {theirs} = {sizes[ours]!r} in model_args: it must be a size")
    width, n_head = sizes["n_embd"], sizes["n_head"]
    if width % n_head:
        raise DataError(f"{path}: n_embed = {width} is not a multiple of n_head = {n_head}")
    return ModelConfig(
        **sizes,
        n_kv_head=n_head,
        head_dim=width // n_head,
        intermediate_size=int(2 * (4 * width) / 3),
        norm_eps=float(np.finfo(np.float32).eps),
    )


def _weights(path: Path, tensors: Mapping[str, Any]) -> Arrays:
    import torch

    arrays = {}
    for full_name, tensor in tensors.items():
        name = full_name
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        if not isinstance(tensor, torch.Tensor):
            raise DataError(f"{path}: {name} is not an array: it is not a checkpoint of smolGPT")
        if tensor.ndim == 4:  # a causal mask that older ones keep
            continue
        if tensor.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            raise UsageError(f"{path}: {name} is {tensor.dtype}: only floats are read")
        arrays[name] = tensor.detach().float().numpy()
        if not np.isfinite(arrays[name]).all():
            raise CorruptFileError(f"{path}: {name} holds a value that is not a number")
    if HEAD in arrays and not np.array_equal(arrays[HEAD], arrays.get(EMBEDDING, ())):
        raise CorruptFileError(f"{path}: {HEAD} and {EMBEDDING} differ: smolGPT's are one")
    arrays.pop(HEAD, None)
    return arrays


def _tokenizer_beside(path: Path) -> Path:
    found = sorted(path.parent.glob("*.model"))
    if len(found) != 1:
        raise DataError(
            f"{len(found)} SentencePiece models lie beside {path}: give its own (tok4096.model) "
            "as --tokenizer"
        )
    return found[0]
