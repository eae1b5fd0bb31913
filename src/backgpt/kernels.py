"""The costly operations of the transformer: what `model` computes, written to be fast.

What lies between matrix products is plain torch that `torch.compile` can fuse into one pass over
memory (`Regions`). The rest has gradients written by hand, beside the plain form they must equal:
`plain_...`, or the region itself. Shape letters are those of `model`; K counts the key heads.
"""

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backgpt.batches import IGNORE

LOSS_CHUNK = 1024  # rows whose logits exist at one time on a CPU
LOGITS_LIMIT = 2**29  # logits that exist at one time on a GPU: 1 GB of bfloat16
QUERY_BLOCK = 128  # queries that attend together; their scores are one temporary
SCORES_LIMIT = 4_200_000  # numbers in that temporary: 8 MB of bfloat16, which caches well


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide each row of `x`, (..., C), by its root mean square, in float32; keep its dtype."""
    rows = x.float()
    rows = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps)
    return (rows * weight).to(x.dtype)


def add_norm(
    stream: Tensor, added: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the stream (B, T, C) with `added`, and its norm in `dtype` for the next product."""
    stream = stream + added
    return stream, rms_norm(stream, weight, eps).to(dtype)


def norm_rotate(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Norm each head of (B, T, H*D) and turn it by its position; return (B, T, H, D).

    `weight` is (H, D). A head's pairs are (d, d + D/2) (RoFormer, as laid out in Llama). `cos`
    and `sin` are (T, 1, D/2), or (B, T, 1, D/2) where rows are at different positions.
    """
    heads = rms_norm(x.unflatten(-1, weight.shape).float(), weight, eps)
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)


def norm_rotate_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `norm_rotate` for `x` and `weight`, given that of its output."""
    first, second = gradient.float().chunk(2, dim=-1)
    turned_back = torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)
    heads = x.unflatten(-1, weight.shape).float()
    scale = torch.rsqrt(heads.square().mean(-1, keepdim=True) + eps)
    heads = heads * scale
    d_heads = turned_back * weight
    d_x = scale * (d_heads - heads * (d_heads * heads).mean(-1, keepdim=True))
    return d_x.to(x.dtype).flatten(-2), (turned_back * heads).sum((0, 1))


def swiglu(joined: Tensor) -> Tensor:
    """Return silu(gate) * up for gate and up side by side, (B, T, 2 * width)."""
    gate, up = joined.chunk(2, dim=-1)
    return F.silu(gate) * up


@dataclass(frozen=True)
class Regions:
    """What lies between the matrix products, so that a model can hold it plain or compiled."""

    add_norm: Callable[..., tuple[Tensor, Tensor]] = add_norm
    norm_rotate: Callable[..., Tensor] = norm_rotate
    norm_rotate_gradient: Callable[..., tuple[Tensor, Tensor]] = norm_rotate_gradient
    swiglu: Callable[..., Tensor] = swiglu


PLAIN = Regions()


Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


def compiled_regions(compile_: Compile) -> Regions:
    """Return the regions fused by `compile_`, such as `torch.compile`, when first called."""
    return Regions(*(compile_(getattr(PLAIN, region.name)) for region in fields(Regions)))


def prepare_heads(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, *, regions: Regions
) -> Tensor:
    """Return `norm_rotate` of its arguments, by way of `regions`."""
    if _trains_on_cpu(x):
        heads: Tensor = _NormRotate.apply(x, weight, cos, sin, eps, regions)  # type: ignore[no-untyped-call]
        return heads
    return regions.norm_rotate(x, weight, cos, sin, eps)


def dropout(x: Tensor, rate: float) -> Tensor:
    """Return `x` with each number zeroed with probability `rate`, the others scaled up.

    On a CPU, one draw of 64 bits decides on four numbers (torch's own draws one for each), so
    the rate is rounded to a multiple of 2**-16.
    """
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)
    dropped = min(round(rate * 2**16), 2**16 - 1)
    kept = (bits >= dropped - 2**15).to(x.dtype)
    return x * kept.mul_(2**16 / (2**16 - dropped))


def linear(x: Tensor, *weights: Tensor) -> Tensor:
    """Return x @ weight.T for each of `weights`, side by side: (B, T, C) to (B, T, sum of rows)."""
    if _trains_on_cpu(x):
        rows: Tensor = _JoinedLinear.apply(x.flatten(0, 1), *weights)  # type: ignore[no-untyped-call]
        return rows.view(*x.shape[:2], -1)
    if torch.is_grad_enabled() and len(weights) > 1:
        return F.linear(x, torch.cat(weights))  # joining weights moves less than joining results
    return plain_linear(x, *weights)


def plain_linear(x: Tensor, *weights: Tensor) -> Tensor:
    """The plain form of `linear`."""
    if len(weights) == 1:
        return F.linear(x, weights[0])
    return torch.cat([F.linear(x, weight) for weight in weights], dim=-1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from each (B, H, T, D) query to the (B, K, T, D) keys at its position and before."""
    if _trains_on_cpu(q):
        heads: Tensor = _BlockedAttention.apply(q, k, v)  # type: ignore[no-untyped-call]
        return heads
    return plain_attention(q, k, v)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The plain form of `causal_attention`; on a GPU it is the flash kernel."""
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
    )


def cross_entropy_sum(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of -log p in nats over the targets (N,) that are not IGNORE, a scalar.

    `hidden` is (N, C), `weight` (V, C). On a CPU logits exist for LOSS_CHUNK rows at a time. A GPU
    has room for all, and one product and no loop is what a compiler makes the most of.
    """
    if not _trains_on_cpu(hidden):
        return plain_cross_entropy(hidden, weight, targets).sum()
    kept = (targets != IGNORE).nonzero().squeeze(1)  # on a GPU, counting would cost more
    if len(kept) < len(targets):
        hidden, targets = hidden.index_select(0, kept), targets.index_select(0, kept)
    total: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return total


def plain_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return -log p of each target in nats, (N,) float32, 0 where it is IGNORE."""
    chunk = LOSS_CHUNK if hidden.device.type == "cpu" else max(LOGITS_LIMIT // len(weight), 1)
    if len(hidden) <= chunk:  # said outright, so that compiled code has a single case
        return _row_losses(hidden, weight, targets)
    pieces = zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True)
    return torch.cat([_row_losses(rows, weight, ids) for rows, ids in pieces])


def _row_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, weight).float()
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")


class _JoinedLinear(torch.autograd.Function):
    """One product for all weights. They are cast once, into the joined matrix they must form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        joined = torch.cat([weight.to(x.dtype) for weight in weights])
        ctx.save_for_backward(x, joined)
        ctx.rows = [len(weight) for weight in weights]
        ctx.weight_dtype = weights[0].dtype
        return x @ joined.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, joined = ctx.saved_tensors
        d_joined = (gradient.T @ x).to(ctx.weight_dtype)
        return gradient @ joined, *torch.split(d_joined, ctx.rows)


class _NormRotate(torch.autograd.Function):
    """`norm_rotate` with its gradient written out: compiled, 3.5 times as fast as derived."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, regions: Regions
    ) -> Tensor:
        ctx.save_for_backward(x, weight, cos, sin)
        ctx.eps, ctx.regions = eps, regions
        return regions.norm_rotate(x, weight, cos, sin, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous()
        d_x, d_weight = ctx.regions.norm_rotate_gradient(gradient, *ctx.saved_tensors, ctx.eps)
        return d_x, d_weight, None, None, None, None


class _BlockedAttention(torch.autograd.Function):
    """Attention whose gradient goes block by block of queries, each meeting its own keys only.

    Scores right of a block are never computed, and a block's scores stay in the cache. (The
    gradient of torch's own kernel takes more than twice as long on a CPU.)
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return plain_attention(q, k, v)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (gradient,) = gradients
        q, k, v = ctx.saved_tensors
        shared = q.shape[1] // k.shape[1]
        k_full, v_full = (_as_batch(_repeat(x, shared)) for x in (k, v))
        q_full, g_full = _as_batch(q), _as_batch(gradient)
        dq, dk, dv = torch.empty_like(q_full), torch.zeros_like(k_full), torch.zeros_like(v_full)
        heads = max(1, SCORES_LIMIT // (min(QUERY_BLOCK, q.shape[2]) * q.shape[2]))
        for first in range(0, len(q_full), heads):
            part = slice(first, first + heads)
            _attention_gradient(
                q_full[part], k_full[part], v_full[part], g_full[part], dq[part], dk[part], dv[part]
            )
        if shared > 1:
            dk, dv = (d.view(*k.shape[:2], shared, *k.shape[2:]).sum(2) for d in (dk, dv))
        return dq.view(q.shape), dk.view(k.shape), dv.view(v.shape)


def _attention_gradient(
    q: Tensor, k: Tensor, v: Tensor, gradient: Tensor, dq: Tensor, dk: Tensor, dv: Tensor
) -> None:
    """Write the gradients for (n, T, D) heads: `dq` is set, `dk` and `dv` are added to."""
    length, width = q.shape[1:]
    q = q * (1.0 / math.sqrt(width))
    later = torch.full((QUERY_BLOCK, QUERY_BLOCK), -torch.inf, dtype=q.dtype).triu(1)
    for start in range(0, length, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, length)
        queries, g = q[:, start:end], gradient[:, start:end]
        scores = torch.bmm(queries, k[:, :end].mT)
        scores[:, :, start:].add_(later[: end - start, : end - start])
        p = torch.softmax(scores, dim=-1)
        dv[:, :end].add_(torch.bmm(p.mT, g))
        dp = torch.bmm(g, v[:, :end].mT)
        ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
        dq[:, start:end] = torch.bmm(ds, k[:, :end])
        dk[:, :end].add_(torch.bmm(ds.mT, queries))
    dq *= 1.0 / math.sqrt(width)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The sum of -log p, with gradients made where the logits are, so that neither is kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        cast = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden_pieces = []
        d_weight = torch.zeros_like(weight)
        for rows, ids in zip(
            torch.split(hidden, LOSS_CHUNK), torch.split(targets, LOSS_CHUNK), strict=True
        ):
            scored = (ids != IGNORE)[:, None]
            ids = ids.clamp(min=0)[:, None]
            log_p = torch.log_softmax((rows @ cast.T).float(), dim=-1)
            total -= (log_p.gather(1, ids) * scored).sum()
            d_logits = log_p.exp_()
            d_logits.scatter_add_(1, ids, torch.full_like(ids, -1, dtype=d_logits.dtype))
            d_logits = d_logits.to(rows.dtype).mul_(scored)
            d_hidden_pieces.append(d_logits @ cast)
            d_weight += d_logits.T @ rows
        d_hidden = torch.cat(d_hidden_pieces) if d_hidden_pieces else torch.zeros_like(hidden)
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (scale,) = gradients
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * scale.to(d_hidden.dtype), d_weight * scale, None


def _trains_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled()


def _repeat(heads: Tensor, times: int) -> Tensor:
    """Return (B, K, T, D) with every head `times` times in a row."""
    return heads if times == 1 else heads.repeat_interleave(times, 1)


def _as_batch(heads: Tensor) -> Tensor:
    """Return (B, H, T, D) as contiguous (B * H, T, D)."""
    return heads.flatten(0, 1).contiguous()


def keep_freed_memory() -> bool:
    """Tell the C allocator of this process to keep freed memory; return whether it could.

    glibc gives blocks over 32 MB, and the top of the heap, back to the system when they are freed,
    and the next step pays a page fault for every 4 KB of them. Call it once before training on a
    CPU. It concerns the whole process, so no other library function calls it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    trim_threshold, mmap_threshold, most = -1, -3, 2**31 - 1
    return bool(mallopt(mmap_threshold, 2**30)) and bool(mallopt(trim_threshold, most))
