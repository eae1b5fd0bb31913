"""What a model remembers: keys and values of ids already read, and how one call reads them.

Shape letters are those of `model`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from backgpt import kernels
from backgpt.errors import UsageError
from backgpt.shape import ModelConfig

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes q (B, H, T, D), k and v (B, K, T, D); gives what each query found, (B, H, T, D)."""


class Cache:
    """Keys and values of ids already read, for many rows of different lengths.

    `keys` and `values` are (n_layer, rows, n_kv_head, block_size, D); `lengths[row]` says how
    many positions of a row are filled. What lies beyond them is never read.
    """

    def __init__(
        self, config: ModelConfig, *, rows: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.n_layer, rows, config.n_kv_head, config.block_size, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = [0] * rows

    @property
    def rows(self) -> int:
        """How many rows there is room for."""
        return len(self.lengths)

    def grow(self, rows: int) -> None:
        """Make room for `rows` rows in all; the present ones keep their number and content."""
        added = rows - self.rows
        self.keys = _with_rows(self.keys, rows, longest=max(self.lengths))
        self.values = _with_rows(self.values, rows, longest=max(self.lengths))
        self.lengths += [0] * added

    def copy(self, source: int, rows: list[int]) -> None:
        """Make each of `rows` a copy of row `source`."""
        length = self.lengths[source]
        for row in rows:
            self.keys[:, row, :, :length] = self.keys[:, source, :, :length]
            self.values[:, row, :, :length] = self.values[:, source, :, :length]
            self.lengths[row] = length


class Reading:
    """One call of `extend`: which rows are extended, and where each new id stands.

    Every row gets the same number T of new ids; `positions` is (B, T) int64.
    """

    def __init__(self, cache: Cache, rows: list[int], count: int) -> None:
        self.cache = cache
        starts = [cache.lengths[row] for row in rows]
        self.end = max(starts) + count
        device = cache.keys.device
        self.positions = torch.tensor(starts, device=device)[:, None] + torch.arange(
            count, device=device
        )
        self.rows = torch.tensor(rows, device=device)
        self.from_scratch = max(starts) == 0
        seen = torch.arange(self.end, device=device) <= self.positions[:, :, None]
        self.mask = seen[:, None]  # (B, 1, T, end)
        consecutive = rows == list(range(rows[0], rows[0] + len(rows)))
        self._span = slice(rows[0], rows[0] + len(rows)) if consecutive else None

    def layer(self, number: int) -> Attend:
        """Return how layer `number` attends in this call."""
        return lambda q, k, v: self._attend(number, q, k, v)

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store new keys and values, (B, K, T, D); attend from (B, H, T, D) to all so far."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        where = (self.rows[:, None], slice(None), self.positions)
        keys[where] = k.transpose(1, 2)
        values[where] = v.transpose(1, 2)
        if self.from_scratch:
            return kernels.causal_attention(q, k, v)
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, self._read(keys), self._read(values), attn_mask=self.mask, enable_gqa=grouped
        )

    def _read(self, stored: Tensor) -> Tensor:
        if self._span is not None:
            return stored[self._span, :, : self.end]  # neighboring rows need no copy
        return stored[:, :, : self.end].index_select(0, self.rows)


def check_length(length: int, config: ModelConfig) -> None:
    """Raise UsageError for a row of more ids than a model reads."""
    if length > config.block_size:
        raise UsageError(
            f"a row of {length} ids is longer than block_size = {config.block_size}: shorten it"
        )


def _with_rows(stored: Tensor, rows: int, *, longest: int) -> Tensor:
    """Return a copy of (n_layer, rows, K, T, D) with room for more rows."""
    wider = stored.new_zeros((stored.shape[0], rows, *stored.shape[2:]))
    wider[:, : stored.shape[1], :, :longest] = stored[:, :, :, :longest]
    return wider
