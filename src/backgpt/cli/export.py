"""`backgpt export`: a model for other programs."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from backgpt.cli.given import WHICH_MODEL
from backgpt.cli.terminal import tell
from backgpt.errors import UsageError


def export(
    model: Annotated[
        str,
        Argument(metavar="MODEL", help=f"What to export: {WHICH_MODEL}."),
    ],
    out: Annotated[Path, Argument(metavar="OUT", help="The folder to make, or the file.")],
    to: Annotated[
        Literal["hf", "gguf", "onnx"],
        Option(
            help="hf: a folder for transformers and what loads its folders; gguf: a file for "
            "llama.cpp and what is built on it; onnx: the hf folder with a graph for ONNX Runtime, "
            "optimum and transformers.js in it."
        ),
    ],
    dtype: Annotated[
        Literal["f32", "f16", "q8_0"] | None,
        Option(help="How a gguf file keeps its matrices; f32 if not given, as in a folder."),
    ] = None,
) -> None:
    """Write a model so that other programs run it, as OUT.

    It still reads ids in model order, the last one first, which a folder's README explains.
    'backgpt unreverse' turns what such a program writes into text.
    """
    if to != "gguf" and dtype not in (None, "f32"):
        raise UsageError(
            f"dtype = {dtype}: what --to {to} writes is float32, so leave it out, or --to gguf"
        )
    from backgpt.export import export_hf, read_source
    from backgpt.manifest import files_in

    source = read_source(model)
    if to == "gguf":
        from backgpt.export_gguf import export_gguf

        export_gguf(source, out, dtype=dtype or "f32")
    elif to == "onnx":
        from backgpt.export_onnx import export_onnx

        export_onnx(source, out)
    else:
        export_hf(source, out)
    size = sum(file.stat().st_size for file in (files_in(out) if out.is_dir() else [out]))
    order = "reading order" if source.model.direction == "forward" else "model order"
    tell(f"written to {out}: {size / 1e6:.1f} MB; its ids are in {order}")
