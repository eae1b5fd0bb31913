"""The costly operations of the transformer, each twice: plainly, and fast for training on a CPU.

The plain functions say what is computed; a GPU and inference use them. Each `Fast...` class gives
the same values and gradients with fewer passes over memory: gradients written by hand, products
of one input joined, and temporaries kept small enough for the allocator to reuse (glibc returns
a block over 32 MB to the system at once, and touching it anew costs more than the product in it).
Shape letters are those of `model`; N is B * T, K the number of key heads, R a count of rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # a target that is not scored
LOSS_CHUNK = 512  # rows whose logits exist at one time
QUERY_BLOCK = 128  # queries that attend together: their scores are one small block


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide each row of `x`, (..., C), by its root mean square; in float32, given back as `x`."""
    rows = x.float()
    rows = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps)
    return (rows * weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (B, H, T, D) by its positions: the pairs are (d, d + D/2), as in Llama.

    `cos` and `sin` are (T, D/2), or (B, 1, T, D/2) where rows are at different positions.
    """
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from each (B, H, T, D) query to the (B, K, T, D) keys at its position and before."""
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
    )


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up."""
    return F.silu(gate) * up


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return -log p of each target in nats, (N,) float32, 0 where it is IGNORE.

    `hidden` is (N, C), `weight` (V, C). Float32 logits exist for LOSS_CHUNK rows at a time.
    """
    pieces = [
        F.cross_entropy(F.linear(rows, weight).float(), ids, ignore_index=IGNORE, reduction="none")
        for rows, ids in zip(hidden.split(LOSS_CHUNK), targets.split(LOSS_CHUNK), strict=True)
    ]
    return torch.cat(pieces)


def keep_freed_memory() -> bool:
    """Tell the C allocator of this process to keep freed memory; return whether it agreed.

    glibc gives blocks over 32 MB, and the top of the heap, back to the system when they are freed,
    and the next step pays a page fault for every 4 KB of them. Call it once before training on a
    CPU. It changes the whole process, so a library function never calls it.
    """
    return False
