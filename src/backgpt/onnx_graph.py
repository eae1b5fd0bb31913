"""The transformer as an ONNX graph, made by torch's own exporter from the code that runs here.

What a model has seen, which an engine keeps, is an input and an output of the graph. Shape letters
are those of `model`: B rows, T new ids, P ids before them, K key heads of size D, V ids.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import onnxscript  # noqa: F401  (what torch's exporter needs, and says so in many lines)
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backgpt.cache import Attend
from backgpt.model import Transformer

OPSET = 18


class WithPast(nn.Module):
    """A transformer that is given keys and values of all ids so far, and gives them back."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.inner = model

    def forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, T, V), and keys and values (B, K, P + T, D), layer by layer.

        `ids` and `positions` are (B, T), `mask` (B, P + T) is 0 for padding, `past` (B, K, P, D).
        """
        cos, sin = (
            F.embedding(positions, table)[:, :, None] for table in (self.inner.cos, self.inner.sin)
        )
        reading = Past(past, mask, n_new=ids.shape[1])
        hidden = self.inner.apply_layers(ids, cos, sin, reading.layer)
        return F.linear(hidden, self.inner.model.embed_tokens.weight), reading.present


class Past:
    """One call: how its layers attend to what is given, and what they add to it in `present`."""

    def __init__(self, past: Sequence[Tensor], mask: Tensor, *, n_new: int) -> None:
        self.past = past
        self.present: list[Tensor] = []
        n_before = past[0].shape[2]
        places = torch.arange(n_before + n_new)
        before = places <= n_before + torch.arange(n_new)[:, None]
        self.seen = before & mask.bool()[:, None, None]  # (B, 1, T, P + T)

    def layer(self, number: int) -> Attend:
        """Return how layer `number`, the next one, attends in this call."""
        return lambda q, k, v: self._attend(number, q, k, v)

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys = torch.cat((self.past[2 * layer], k), dim=2)
        values = torch.cat((self.past[2 * layer + 1], v), dim=2)
        self.present += keys, values
        return F.scaled_dot_product_attention(
            q, keys, values, attn_mask=self.seen, enable_gqa=q.shape[1] != k.shape[1]
        )


def onnx_graph(model: Transformer, metadata: Mapping[str, str]) -> bytes:
    """Return the serialized graph of `model`, float32, with `metadata` in it.

    Inputs and outputs are those of `WithPast`, named as optimum names them: `input_ids`,
    `position_ids`, `attention_mask`, `past_key_values.0.key`, ...; `logits`, `present.0.key`, ...
    """
    config = model.config
    kept = [f"{layer}.{kind}" for layer in range(config.n_layer) for kind in ("key", "value")]
    ids, positions = (torch.zeros((2, 3), dtype=torch.int64) for _ in range(2))
    mask = torch.ones((2, 7), dtype=torch.int64)
    past = [torch.zeros((2, config.n_kv_head, 4, config.head_dim)) for _ in kept]
    of_ids, of_past = {0: "batch", 1: "sequence"}, {0: "batch", 2: "past"}
    with _quiet():
        program = torch.onnx.export(
            WithPast(model).eval(),
            (ids, positions, mask, past),
            input_names=[
                *("input_ids", "position_ids", "attention_mask"),
                *(f"past_key_values.{name}" for name in kept),
            ],
            output_names=["logits", *(f"present.{name}" for name in kept)],
            dynamic_shapes=(of_ids, of_ids, {0: "batch", 1: "total"}, [of_past for _ in kept]),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output):
        part.ClearField("metadata_props")  # which line of Python made it, and where that lies
    for name in ("value_info", "initializer"):
        for part in getattr(proto.graph, name):
            part.ClearField("metadata_props")
    serialized: bytes = proto.SerializeToString()
    return serialized


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from telling what concerns only those who work on it."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
