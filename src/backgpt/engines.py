"""Which engine runs a model: native where it can be, or torch, or what its family asks for."""

import re
from importlib.util import find_spec
from typing import Literal

from backgpt.engine import Dtype, Engine
from backgpt.errors import UsageError, needs_extra
from backgpt.model_folder import ModelFolder
from backgpt.quantize import dequantized

EngineName = Literal["native", "torch"]
TO_HAVE_NATIVE = (
    "install a C++ compiler, and then backgpt again, built anew: "
    "pip install --force-reinstall --no-deps --no-cache-dir backgpt (in a clone: .)"
)
DEVICES = re.compile(r"auto|cpu|(cuda|mps|xpu)(:\d+)?")


def open_engine(
    folder: ModelFolder,
    wanted: EngineName | None,
    device: str,
    *,
    dtype: Dtype | None,
    threads: int | None,
    isa: str | None,
) -> Engine:
    """Return an engine that runs the model in `folder`; see `api.load`.

    Raises UsageError for what does not fit together, MissingExtraError without an engine.
    """
    # Said without torch, where that is not installed.
    if not (isinstance(device, str) and DEVICES.fullmatch(device)):
        raise UsageError(f"device = {device!r} cannot be used here: try 'cpu' or 'auto'")
    if folder.family != "qwen3":
        if threads is not None or isa is not None:
            raise UsageError("threads and isa are for the native engine: leave them out")
        return _engine_of_family(folder, wanted, device, dtype=dtype)
    if wanted is None and runs_on_cpu(device):
        device = "cpu"
    if wanted != "torch" and (wanted or device == "cpu"):
        made = _native_engine(folder, wanted, device, dtype=dtype, threads=threads, isa=isa)
        if made is not None:
            return made
    if dtype is not None or threads is not None or isa is not None:
        raise UsageError("dtype, threads and isa are for the native engine: leave them out")
    return _torch_engine(folder, device)


def runs_on_cpu(device: str) -> bool:
    """Return whether `device` is the CPU; "auto" is, unless torch is installed and sees a GPU."""
    if device != "auto":
        return device == "cpu"
    if find_spec("torch") is None:
        return True
    import torch

    return not torch.cuda.is_available()


def _native_engine(
    folder: ModelFolder,
    wanted: EngineName | None,
    device: str,
    *,
    dtype: Dtype | None,
    threads: int | None,
    isa: str | None,
) -> Engine | None:
    """Return the native engine, or None if it is not there and need not be."""
    if wanted not in (None, "native"):
        raise UsageError(f"engine = {wanted!r}: it must be 'native' or 'torch'")
    if device != "cpu":
        raise UsageError(f"the native engine runs on the CPU, not on {device}: use engine 'torch'")
    try:
        from backgpt.engine.native_engine import NativeEngine
    except ImportError:
        if wanted is None:
            return None
        raise UsageError(
            f"this installation has no native engine: {TO_HAVE_NATIVE}, or use engine 'torch'"
        ) from None
    stored: Dtype = "int8" if folder.storage == "int8" else "float32"
    return NativeEngine(
        folder.config, folder.weights, dtype=dtype or stored, threads=threads, isa=isa
    )


def _engine_of_family(
    folder: ModelFolder,
    wanted: EngineName | None,
    device: str,
    *,
    dtype: Dtype | None,
) -> Engine:
    """Return the engine for a model that is not of our own shape; all of them are torch."""
    if wanted not in (None, "torch"):
        raise UsageError(
            f"engine = {wanted!r}: it runs models in the Qwen3 shape, this one is of the family "
            f"{folder.family!r}: leave it out"
        )
    if dtype not in (None, "float32", "bfloat16"):
        raise UsageError(f"dtype = {dtype!r} is for the native engine: leave it out")
    if folder.family == "transformers":
        assert folder.path is not None  # it was read from there
        with needs_extra("hf", "a model that runs in transformers"):
            from backgpt.devices import choose_device
            from backgpt.engine.transformers_engine import TransformersEngine
        return TransformersEngine(
            folder.path,
            vocab_size=folder.config.vocab_size,
            block_size=folder.config.block_size,
            device=choose_device(device),
            dtype=dtype,
        )
    with needs_extra("train", "a smolGPT model"):
        from backgpt.devices import choose_device
        from backgpt.engine.smolgpt_engine import SmolGpt
        from backgpt.engine.torch_engine import TorchEngine
    if dtype == "bfloat16":
        raise UsageError("a smolGPT model runs in float32: leave dtype out")
    return TorchEngine(SmolGpt(folder.config, folder.weights), device=choose_device(device))


def _torch_engine(folder: ModelFolder, device: str) -> Engine:
    with needs_extra("train", "running a model without the native engine"):
        from backgpt.devices import choose_device
        from backgpt.engine.torch_engine import TorchEngine
        from backgpt.model import Transformer

    model = Transformer(folder.config)
    model.load_arrays(dequantized(folder.weights) if folder.storage == "int8" else folder.weights)
    return TorchEngine(model, device=choose_device(device))
