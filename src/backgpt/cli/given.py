"""What a user gives to more than one command: a model, options, standard input, ways to sample."""

import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from backgpt.cli.terminal import tell
from backgpt.errors import DataError, UsageError

if TYPE_CHECKING:
    from backgpt.api import Model
    from backgpt.engines import EngineName
    from backgpt.sampling import Sampling

WHICH_MODEL = (
    "a built-in model's name (see 'backgpt info'), a model folder, a checkpoint, a run folder (its "
    "best), or OWNER/NAME on the Hugging Face hub"
)
"""What a model may be, wherever one is asked for."""

Engine = Annotated[
    Literal["native", "torch"] | None,
    Option(help="What runs the model; native (C++, on the CPU) where it can be."),
]
Device = Annotated[str, Option(help="cpu, cuda, or auto.")]
Threads = Annotated[int | None, Option(help="Most threads of the native engine.")]
TextField = Annotated[str, Option(help="The field with the text, in .jsonl and .parquet.")]
Separator = Annotated[
    str | None,
    Option(
        help="Splits a .txt file into texts, which otherwise is one, or is split at "
        "<|endoftext|>; \\n is a line break.",
        callback=lambda given: given and given.replace("\\n", "\n"),
    ),
]
Temperature = Annotated[float | None, Option(help="Below 1 safer, above 1 wilder.  [default: 0.8]")]
TopK = Annotated[int | None, Option(help="Draw from the k likeliest tokens only.")]
TopP = Annotated[float | None, Option(help="Draw from the likeliest that reach p.  [default: 1]")]
MinP = Annotated[
    float | None,
    Option(help="Draw from those at least p times as likely as the likeliest.  [default: 0.05]"),
]

ISA = "BACKGPT_ISA"  # names the instruction set of the native engine; for tests


def open_model(
    path: str | None, *, engine: "EngineName | None", device: str, **settings: Any
) -> "Model":
    """Load a model as `api.load` does, and say on standard error if it will be slow."""
    from backgpt.api import load
    from backgpt.engines import TO_HAVE_NATIVE, runs_on_cpu

    on_cpu = engine != "torch" and runs_on_cpu(device)
    if engine is None and on_cpu and find_spec("backgpt.engine._native") is None:
        instead = ", so the model runs in torch, which is slower" if find_spec("torch") else ""
        tell(f"backgpt: this installation has no native engine{instead}: {TO_HAVE_NATIVE}")
    isa = os.environ.get(ISA) or None if on_cpu else None
    return load(path, engine=engine, device=device, isa=isa, **settings)


def check_limit(limit: int | None) -> None:
    """Raise UsageError unless `--limit`, if it is given, leaves a text."""
    if limit is not None and limit < 1:
        raise UsageError(f"limit = {limit}: it must be 1 or more")


def standard_input() -> str:
    """Return all of standard input, without the line break a shell puts at its end.

    A byte order mark is dropped and line ends become `\\n`, as in files. Raises DataError if it is
    empty or not UTF-8.
    """
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 at byte {error.start}: convert it") from None
    if not text.strip():
        raise DataError("standard input is empty: give a text")
    return text.removesuffix("\n")


def open_twin(model: "Model", twin: str, **settings: Any) -> "Model":
    """Load the model `twin`, as `open_model`, to run the other way than `model`."""
    other = "forward" if model.direction == "backward" else "backward"
    return open_model(twin, direction=other, **settings)


def those_given(**options: Any) -> dict[str, Any]:
    """Return those options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def sampling_from(**options: float | int | None) -> "Sampling":
    """Return the sampling of those options that were given."""
    from backgpt.sampling import Sampling

    return Sampling(**those_given(**options))
