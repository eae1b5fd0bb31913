"""The transformer. It predicts the next id it will read, whatever the direction.

The shape is Qwen3's, and parameters carry Hugging Face's names, so that loading is a dictionary.

Shape letters: B rows of a batch, T positions in a row, C width of the residual stream (`n_embd`),
H heads (`n_head`), K heads of keys and values (`n_kv_head`), D width of a head, V size of the
vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backgpt import kernels
from backgpt.cache import Attend, Cache, Reading, check_length
from backgpt.shape import ModelConfig, check_shapes

INIT_STD = 0.02


class Fusible(nn.Module):
    """A module with regions that may be compiled; only training has shapes that recur enough."""

    def __init__(self) -> None:
        super().__init__()
        self.compiled: kernels.Regions | None = None

    @property
    def regions(self) -> kernels.Regions:
        """What lies between the matrix products, plain or compiled."""
        return self.compiled if self.compiled and self.training else kernels.PLAIN


class Norm(Fusible):
    """RMSNorm with a learned scale."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, stream: Tensor, added: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the stream with `added`, and the norm of that in `dtype`."""
        return self.regions.add_norm(stream, added, self.weight, self.eps, dtype)


class Attention(Fusible):
    """Causal attention with a norm on q and k, rotary positions and grouped key heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head
        self.head_dim = config.head_dim
        q_width, kv_width = self.n_head * self.head_dim, self.n_kv_head * self.head_dim
        self.q_proj = nn.Linear(config.n_embd, q_width, bias=False)
        self.k_proj = nn.Linear(config.n_embd, kv_width, bias=False)
        self.v_proj = nn.Linear(config.n_embd, kv_width, bias=False)
        self.o_proj = nn.Linear(q_width, config.n_embd, bias=False)
        self.q_norm = Norm(config.head_dim, config.norm_eps)
        self.k_norm = Norm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """Return what attention adds to the stream, (B, T, C), for the normed stream `x`."""
        joined = kernels.linear(x, self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        v_width = self.n_kv_head * self.head_dim
        q_and_k, v = torch.split(joined, [joined.shape[-1] - v_width, v_width], dim=-1)
        weight = torch.cat(
            (
                self.q_norm.weight.expand(self.n_head, -1),
                self.k_norm.weight.expand(self.n_kv_head, -1),
            )
        )
        turned = kernels.prepare_heads(
            q_and_k, weight, cos, sin, self.q_norm.eps, regions=self.regions
        )
        q, k = torch.split(turned.transpose(1, 2), [self.n_head, self.n_kv_head], dim=1)
        v = v.view(*v.shape[:2], self.n_kv_head, self.head_dim).transpose(1, 2)
        merged = attend(q, k, v).transpose(1, 2).flatten(2)
        return kernels.linear(merged, self.o_proj.weight)


class FeedForward(Fusible):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the feed-forward half adds to the stream, (B, T, C)."""
        joined = kernels.linear(x, self.gate_proj.weight, self.up_proj.weight)
        return kernels.linear(self.regions.swiglu(joined), self.down_proj.weight)


class Layer(nn.Module):
    """Attention and feed-forward, each on a normed copy of the stream it adds to."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = Norm(config.n_embd, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = Norm(config.n_embd, config.norm_eps)
        self.mlp = FeedForward(config)


class Decoder(nn.Module):
    """Holds the parameters under the names `model.*` that Hugging Face gives them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layer))
        self.norm = Norm(config.n_embd, config.norm_eps)


class Transformer(nn.Module):
    """A causal language model over ids in model order. Output and input embeddings are one.

    `dropout` falls on the embeddings and on what each half of a layer adds, in training only.
    `generator` makes the first weights repeatable; without it torch's own is used.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        config: ModelConfig,
        *,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.dropout = dropout
        self.model = Decoder(config)
        cos, sin = _rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.initialize(generator)

    def load_arrays(self, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over `weights`, named as in `state_dict`.

        Raises CorruptFileError if a name is missing or unknown, or a shape differs.
        """
        found = {name: array.shape for name, array in weights.items()}
        check_shapes(found, self.config.array_shapes())
        self.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the parameters are kept in."""
        return self.model.embed_tokens.weight.dtype

    def layers(self) -> Iterator[Layer]:
        """Give the layers in the order they are applied, with their type."""
        for layer in self.model.layers:
            assert isinstance(layer, Layer)
            yield layer

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew: normal, smaller where a projection adds to the stream (GPT-2)."""
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(1.0)
            else:
                adds = name.endswith(("o_proj.weight", "down_proj.weight"))
                parameter.normal_(0.0, residual_std if adds else INIT_STD, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (B, T, V) after each of `ids`, (B, T) int64.

        Raises UsageError if T is over `block_size`.
        """
        return F.linear(self.hidden(ids), self.model.embed_tokens.weight)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the SUM of -log p in nats over the targets that are not IGNORE, a scalar.

        `ids` and `targets` are (B, T) int64. Rows are padded on the right: a causal model needs
        no mask for that, as what stands right of an id cannot move it.
        """
        hidden = self.hidden(ids).flatten(0, 1)
        weight = self.model.embed_tokens.weight
        return kernels.cross_entropy_sum(hidden, weight, targets.flatten())

    def token_losses(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return -log p of each target in nats, (B, T) float32, 0 where it is IGNORE."""
        hidden = self.hidden(ids).flatten(0, 1)
        weight = self.model.embed_tokens.weight
        return kernels.plain_cross_entropy(hidden, weight, targets.flatten()).view(ids.shape)

    def hidden(self, ids: Tensor) -> Tensor:
        """Return the normed stream (B, T, C) from which logits are made, for `ids` (B, T)."""
        length = ids.shape[1]
        check_length(length, self.config)
        cos, sin = self.cos[:length, None], self.sin[:length, None]
        return self.apply_layers(ids, cos, sin, lambda layer: kernels.causal_attention)

    def extend(self, ids: Tensor, cache: Cache, rows: list[int]) -> Tensor:
        """Append `ids` (B, T) to the B `rows` of `cache`; return the logits after the last, (B, V).

        With T > 1 this is prefill, with T = 1 a step; rows may be at different lengths. Logits
        are float32. Raises UsageError, changing nothing, if a row would exceed `block_size`.
        """
        ids = ids.to(cache.keys.device)
        count = ids.shape[1]
        check_length(max(cache.lengths[row] for row in rows) + count, self.config)
        reading = Reading(cache, rows, count)
        cos, sin = self.cos[reading.positions, None], self.sin[reading.positions, None]
        hidden = self.apply_layers(ids, cos, sin, reading.layer)
        for row in rows:
            cache.lengths[row] += count
        return F.linear(hidden[:, -1], self.model.embed_tokens.weight).float()

    def compile_regions(self, compile_: kernels.Compile = torch.compile) -> None:
        """Have `compile_` fuse what lies between the products; values stay the same.

        For training on a CPU, where the products themselves are left to the library. The first
        step then takes some seconds longer; it needs a C++ compiler.
        """
        regions = kernels.compiled_regions(compile_)
        for module in self.modules():
            if isinstance(module, Fusible):
                module.compiled = regions

    def apply_layers(
        self, ids: Tensor, cos: Tensor, sin: Tensor, attention_of: Callable[[int], Attend]
    ) -> Tensor:
        """Return the normed stream (B, T, C); `attention_of(layer)` is how that layer attends.

        `cos` and `sin` are of the positions of `ids` (B, T), in the shape `norm_rotate` takes.
        """
        dtype = self._product_dtype()
        stream = self._drop(self.model.embed_tokens(ids))
        added = torch.zeros((), dtype=stream.dtype, device=stream.device)
        for number, layer in enumerate(self.layers()):
            stream, x = layer.input_layernorm(stream, added, dtype)
            added = self._drop(layer.self_attn(x, cos, sin, attention_of(number)))
            stream, x = layer.post_attention_layernorm(stream, added, dtype)
            added = self._drop(layer.mlp(x))
        normed: Tensor = self.model.norm(stream, added, dtype)[1]
        return normed

    def _product_dtype(self) -> torch.dtype:
        """Return what matrix products are computed in: autocast's dtype, or the parameters'."""
        kind = self.model.embed_tokens.weight.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype

    def _drop(self, x: Tensor) -> Tensor:
        return kernels.dropout(x, self.dropout) if self.dropout and self.training else x


def _rotary_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Return cos and sin of each position's angles, (block_size, D/2) float32 (RoFormer)."""
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(config.block_size).float(), config.rope_theta**-pairs)
    return angles.cos(), angles.sin()
