"""A model as ONNX, for ONNX Runtime, optimum and transformers.js, and so for a browser.

What is written is the folder of `export_hf` with a graph in it, where these programs look for one.
"""

from pathlib import Path

from backgpt.errors import UsageError, needs_extra
from backgpt.export import Source, check_free, export_hf, metadata_as_text

LARGEST = 2**31 - 2**22  # bytes: an ONNX file has 2 GiB, and the graph around the weights some KB


def export_onnx(source: Source, out: Path) -> None:
    """Write a folder as `export_hf` does, with the graph of `onnx_graph`, float32, in it.

    Raises MissingExtraError without torch or onnxscript, UsageError if the weights do not fit one
    ONNX file or something is at `out` that is not an export, BackgptError if the disk refuses.
    """
    check_free(out.absolute())
    size = sum(array.nbytes for array in source.model.weights.values())
    if size > LARGEST:
        raise UsageError(f"{source.name} has {size:,} bytes, an ONNX file 2 GiB: export to gguf")
    with needs_extra("onnx", "writing ONNX"):
        from backgpt.model import Transformer
        from backgpt.onnx_graph import onnx_graph

        model = Transformer(source.model.config)
        model.load_arrays(source.model.weights)
        graph = onnx_graph(model, metadata_as_text(source.model))  # torch imports onnxscript late
    export_hf(source, out, graph=graph)
