"""smolGPT's transformer, as its checkpoints behave; `TorchEngine` runs it.

Parameters carry smolGPT's names. What differs from `model.Transformer`: positions are a learned
table, or there are none; one matrix makes q, k and v; no norm on q and k; biases where they were
trained. With its setting `use_rotary` smolGPT turned q and k by the number of their head instead
of their position, which leaves every product of the two as it was: to this model the order of what
it has read is told by nothing but the causal mask, and here nothing is turned.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backgpt import kernels
from backgpt.batches import IGNORE
from backgpt.cache import Attend, Cache, Reading, check_length
from backgpt.shape import ModelConfig, check_shapes

EMBEDDING, POSITIONS, LAST_NORM = (f"transformer.{name}.weight" for name in ("wte", "wpe", "ln_f"))


class SmolGpt(nn.Module):
    """A causal language model over ids in model order, for running only."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over `weights`. Raises CorruptFileError if one is missing or of another shape."""
        super().__init__()
        self.config = config
        wanted = shapes(
            config,
            positions=POSITIONS in weights,
            bias=any(name.endswith(".bias") for name in weights),
        )
        check_shapes({name: array.shape for name, array in weights.items()}, wanted)
        for name, array in weights.items():
            self.register_buffer(_attribute(name), torch.from_numpy(array).float())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the parameters are kept in."""
        return self._of(EMBEDDING).dtype

    def extend(self, ids: Tensor, cache: Cache, rows: list[int]) -> Tensor:
        """Append `ids` (B, T) to the B `rows` of `cache`; see `Transformer.extend`."""
        check_length(max(cache.lengths[row] for row in rows) + ids.shape[1], self.config)
        reading = Reading(cache, rows, ids.shape[1])
        ids = ids.to(cache.keys.device)
        hidden = self._apply_layers(ids, reading.positions, reading.layer)
        for row in rows:
            cache.lengths[row] += ids.shape[1]
        return F.linear(hidden[:, -1], self._of(EMBEDDING))

    def token_losses(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return -log p of each target in nats, (B, T) float32, 0 where it is IGNORE."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        hidden = self._apply_layers(ids, positions, lambda layer: kernels.causal_attention)
        logits = F.linear(hidden, self._of(EMBEDDING)).transpose(1, 2)
        return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")

    def _apply_layers(
        self, ids: Tensor, positions: Tensor, attention_of: Callable[[int], Attend]
    ) -> Tensor:
        """Return the normed stream (B, T, C)."""
        stream = F.embedding(ids, self._of(EMBEDDING))
        if hasattr(self, _attribute(POSITIONS)):
            stream = stream + F.embedding(positions, self._of(POSITIONS))
        for layer in range(self.config.n_layer):
            stream = stream + self._attend(layer, stream, attention_of(layer))
            stream = stream + self._feed_forward(layer, stream)
        return self._norm(LAST_NORM, stream)

    def _attend(self, layer: int, stream: Tensor, attend: Attend) -> Tensor:
        """Return what attention adds to the stream, (B, T, C)."""
        x = self._norm(_name(layer, "ln_1.weight"), stream)
        shape = (*x.shape[:2], 3, self.config.n_head, self.config.head_dim)
        q, k, v = self._linear(layer, "attn.c_attn", x).view(shape).permute(2, 0, 3, 1, 4)
        return self._linear(layer, "attn.c_proj", attend(q, k, v).transpose(1, 2).flatten(2))

    def _feed_forward(self, layer: int, stream: Tensor) -> Tensor:
        """Return what SwiGLU adds to the stream, (B, T, C)."""
        x = self._norm(_name(layer, "ln_2.weight"), stream)
        gated = F.silu(self._linear(layer, "ffd.w1", x)) * self._linear(layer, "ffd.w3", x)
        return self._linear(layer, "ffd.w2", gated)

    def _linear(self, layer: int, name: str, x: Tensor) -> Tensor:
        bias = _attribute(_name(layer, f"{name}.bias"))
        return F.linear(x, self._of(_name(layer, f"{name}.weight")), getattr(self, bias, None))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self._of(name), eps=self.config.norm_eps)

    def _of(self, name: str) -> Tensor:
        return self.get_buffer(_attribute(name))


def shapes(config: ModelConfig, *, positions: bool, bias: bool) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array by name: with a table of positions, and with biases."""
    width, feed = config.n_embd, config.intermediate_size
    of_layer: dict[str, tuple[int, ...]] = {
        "ln_1.weight": (width,),
        "attn.c_attn.weight": (3 * width, width),
        "attn.c_proj.weight": (width, width),
        "ln_2.weight": (width,),
        "ffd.w1.weight": (feed, width),
        "ffd.w2.weight": (width, feed),
        "ffd.w3.weight": (feed, width),
        **({"attn.c_attn.bias": (3 * width,), "attn.c_proj.bias": (width,)} if bias else {}),
    }
    layers = {
        _name(layer, name): shape
        for layer in range(config.n_layer)
        for name, shape in of_layer.items()
    }
    table = {POSITIONS: (config.block_size, width)} if positions else {}
    return {EMBEDDING: (config.vocab_size, width), **table, **layers, LAST_NORM: (width,)}


def _name(layer: int, name: str) -> str:
    return f"transformer.h.{layer}.{name}"


def _attribute(name: str) -> str:
    return name.replace(".", "_")
