"""The engine for other shapes: the library transformers runs the model, a text at a time.

Slow and plain: it is for models from elsewhere that our own engines cannot hold. No code that
comes with a model is ever run.
"""

import copy
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging as chatter

from backgpt.engine import FloatArray, check_copies, check_step, checked_ids, one_at_a_time
from backgpt.errors import CorruptFileError
from backgpt.order import IdArray


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from writing to standard error."""
    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity(logging.ERROR)
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()


class TransformersEngine:
    """Implements `engine.Engine`. Computes in `dtype`, without one in that of the weights."""

    shares_beginnings = False

    def __init__(
        self,
        folder: Path,
        *,
        vocab_size: int,
        block_size: int,
        device: str | torch.device = "cpu",
        dtype: str | None = None,
    ) -> None:
        """Load the model in `folder`. Raises CorruptFileError if it cannot be read."""
        self.vocab_size, self.block_size = vocab_size, block_size
        self._device = torch.device(device)
        try:
            with quiet():
                model: Any = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=dtype or "auto", local_files_only=True, trust_remote_code=False
                )
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise CorruptFileError(f"{folder} cannot be read by transformers: {reason}") from None
        self._model = model.to(self._device).eval()
        self._caches: dict[int, Any] = {}
        self.lock = threading.RLock()

    def __repr__(self) -> str:
        dtype = str(self._model.dtype).removeprefix("torch.")
        return f"TransformersEngine({dtype}, {self._device})"

    @one_at_a_time
    @torch.inference_mode()
    def prefill(self, ids: IdArray, copies: int = 1) -> tuple[list[int], FloatArray]:
        """Read model-order `ids`, (T,), into `copies` new rows; see `Engine.prefill`."""
        check_copies(copies)
        cache = DynamicCache(config=self._model.config)
        logits = self._read(self._checked(ids, longest=self.block_size), cache)
        rows: list[int] = []
        for _ in range(copies):
            row = next(
                number for number in range(len(self._caches) + 1) if number not in self._caches
            )
            self._caches[row] = copy.deepcopy(cache) if rows else cache
            rows.append(row)
        return rows, logits

    @one_at_a_time
    @torch.inference_mode()
    def step(self, rows: Sequence[int], ids: Sequence[int]) -> FloatArray:
        """Append one id to each of `rows`; see `Engine.step`."""
        check_step(rows, ids, self._length_of, block_size=self.block_size)
        if not rows:
            return np.zeros((0, self.vocab_size), dtype=np.float32)
        new = self._checked(np.asarray(ids), longest=len(ids))
        return np.stack(
            [self._read(id_[None], self._caches[row]) for row, id_ in zip(rows, new, strict=True)]
        )

    @one_at_a_time
    def release(self, rows: Sequence[int]) -> None:
        """Free `rows`; releasing a row that is not in use does nothing."""
        for row in rows:
            self._caches.pop(row, None)

    @one_at_a_time
    @torch.inference_mode()
    def score(self, sequences: Sequence[IdArray]) -> list[FloatArray]:
        """Return log p of every id after the first, (T-1,) float32 each; see `Engine.score`."""
        tensors = [self._checked(ids, longest=self.block_size + 1) for ids in sequences]
        return [self._score(ids) for ids in tensors]

    def _score(self, ids: Tensor) -> FloatArray:
        if len(ids) == 1:
            return np.zeros(0, dtype=np.float32)
        logits = self._model(ids[None, :-1], use_cache=False).logits[0]
        log_p = torch.log_softmax(logits.float(), dim=-1)
        found: FloatArray = log_p.gather(1, ids[1:, None])[:, 0].cpu().numpy()
        return found

    def _read(self, ids: Tensor, cache: Any) -> FloatArray:
        """Append `ids`, (T,), to a cache; return the logits after the last, (V,) float32."""
        output = self._model(ids[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: FloatArray = output.logits[0, -1].float().cpu().numpy()
        return logits

    def _length_of(self, row: int) -> int | None:
        return self._caches[row].get_seq_length() if row in self._caches else None

    def _checked(self, ids: IdArray, *, longest: int) -> Tensor:
        array = checked_ids(ids, vocab_size=self.vocab_size, longest=longest)
        return torch.from_numpy(array).to(self._device)
