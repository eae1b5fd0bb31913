"""The engine that runs a `Transformer` in torch: training machines, GPUs, and the reference.

Takes and gives numpy arrays; a row of the engine is a row of the model's cache. A model that does
what `Runnable` says runs as well.
"""

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from backgpt.batches import IGNORE
from backgpt.cache import Cache
from backgpt.engine import FloatArray, check_copies, check_step, checked_ids, one_at_a_time
from backgpt.order import IdArray
from backgpt.shape import ModelConfig


class Runnable(Protocol):
    """What the engine asks of a module; see `model.Transformer`."""

    config: ModelConfig

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the parameters are kept in."""
        ...

    def extend(self, ids: Tensor, cache: Cache, rows: list[int]) -> Tensor:
        """Append `ids` (B, T) to the B `rows` of `cache`; return the logits after the last."""
        ...

    def token_losses(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return -log p of each target in nats, (B, T) float32, 0 where it is IGNORE."""
        ...

    def to(self, device: Any) -> Any:
        """Move it to a device."""
        ...

    def eval(self) -> Any:
        """Switch off what is for training only."""
        ...


class TorchEngine:
    """Implements `engine.Engine`. Computes in the model's own dtype; gives float32."""

    shares_beginnings = False

    def __init__(self, model: Runnable, *, device: str | torch.device = "cpu") -> None:
        model.to(device)
        model.eval()
        self.model = model
        self.device = torch.device(device)
        self.vocab_size = model.config.vocab_size
        self.block_size = model.config.block_size
        self._cache = Cache(model.config, rows=1, device=self.device, dtype=model.dtype)
        self._free: list[int] = [0]
        self.lock = threading.RLock()

    def __repr__(self) -> str:
        return f"TorchEngine({str(self.model.dtype).removeprefix('torch.')}, {self.device})"

    @one_at_a_time
    @torch.inference_mode()
    def prefill(self, ids: IdArray, copies: int = 1) -> tuple[list[int], FloatArray]:
        """Read model-order `ids`, (T,), into `copies` new rows; see `Engine.prefill`."""
        check_copies(copies)
        batch = self._checked(ids)[None]
        rows = self._take(copies)
        try:
            logits = self.model.extend(batch, self._cache, rows[:1])
        except BaseException:
            self.release(rows)
            raise
        self._cache.copy(rows[0], rows[1:])
        return rows, logits[0].cpu().numpy()

    @one_at_a_time
    @torch.inference_mode()
    def step(self, rows: Sequence[int], ids: Sequence[int]) -> FloatArray:
        """Append one id to each of `rows`; see `Engine.step`."""
        check_step(rows, ids, self._length_of, block_size=self.block_size)
        if not rows:
            return np.zeros((0, self.vocab_size), dtype=np.float32)
        batch = self._checked(np.asarray(ids), longest=len(ids))[:, None]
        return self.model.extend(batch, self._cache, list(rows)).cpu().numpy()

    @one_at_a_time
    def release(self, rows: Sequence[int]) -> None:
        """Free `rows`; releasing a row that is not in use does nothing."""
        for row in rows:
            if 0 <= row < self._cache.rows and row not in self._free:
                self._cache.lengths[row] = 0
                self._free.append(row)

    @one_at_a_time
    @torch.inference_mode()
    def score(self, sequences: Sequence[IdArray]) -> list[FloatArray]:
        """Return log p of every id after the first, (T-1,) float32 each; see `Engine.score`."""
        tensors = [self._checked(ids, longest=self.block_size + 1) for ids in sequences]
        length = max((len(ids) - 1 for ids in tensors), default=0)
        if not length:
            return [np.zeros(0, dtype=np.float32) for _ in tensors]
        inputs = torch.zeros((len(tensors), length), dtype=torch.int64)
        targets = torch.full((len(tensors), length), IGNORE)
        for row, ids in enumerate(tensors):
            inputs[row, : len(ids) - 1] = ids[:-1]
            targets[row, : len(ids) - 1] = ids[1:]
        losses = self.model.token_losses(inputs.to(self.device), targets.to(self.device))
        values = losses.cpu().numpy()
        return [-row[: len(ids) - 1] for row, ids in zip(values, tensors, strict=True)]

    def _length_of(self, row: int) -> int | None:
        in_use = 0 <= row < self._cache.rows and row not in self._free
        return self._cache.lengths[row] if in_use else None

    def _checked(self, ids: IdArray, *, longest: int | None = None) -> Tensor:
        """Return `ids` as (T,) int64 on the host, refusing what the model cannot read."""
        longest = self.block_size if longest is None else longest
        return torch.from_numpy(checked_ids(ids, vocab_size=self.vocab_size, longest=longest))

    def _take(self, count: int) -> list[int]:
        """Take `count` free rows, lowest first; the cache grows when there are too few."""
        while len(self._free) < count:
            old = self._cache.rows
            self._cache.grow(2 * old)
            self._free.extend(range(old, 2 * old))
        self._free.sort()
        taken, self._free = self._free[:count], self._free[count:]
        return taken
