"""The engine in C++: models on a CPU, without torch. Its sources are in `native/`.

Takes weights as arrays, float or int8 rows with scales; gives numpy arrays. Importing it raises
ImportError where the package was installed without a compiler.
"""

import atexit
import heapq
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from backgpt.checks import whole
from backgpt.cores import count_cores
from backgpt.engine import (
    Dtype,
    FloatArray,
    _native,
    check_copies,
    check_step,
    checked_ids,
    one_at_a_time,
)
from backgpt.engine.beginnings import branches
from backgpt.errors import CorruptFileError, UsageError
from backgpt.order import IdArray
from backgpt.quantize import SCALE, Arrays
from backgpt.shape import EMBEDDING, ModelConfig, check_shapes

Ids = npt.NDArray[np.int32]

HEAD = "lm_head.weight"
LEAST_SHARED = 8  # ids that sequences begin with in common, for one to branch off another


def instruction_sets() -> list[str]:
    """Return the names of what this processor can run, fastest first; the last is plain C++."""
    return _native.instruction_sets()


_ENGINES: "weakref.WeakSet[NativeEngine]" = weakref.WeakSet()


@atexit.register
def _let_none_run() -> None:
    """Keep threads out of engines: one that comes back from there while Python ends would abort.

    Who wants in from now on waits at another lock: a thread that is hardly ever out of the first
    one would leave it to nobody else for a long time.
    """
    for engine in _ENGINES:
        closed = threading.RLock()
        closed.acquire()
        before, engine.lock = engine.lock, closed
        before.acquire()


if hasattr(os, "register_at_fork"):  # a forked process has no other threads, but locks they held
    os.register_at_fork(after_in_child=_ENGINES.clear)


class NativeEngine:
    """Implements `engine.Engine` on a CPU.

    `weights` maps Hugging Face names to arrays; a matrix is float, (rows, columns), or int8 with
    `name_scale`, (rows,) float32, so that w = q * scale. Without `lm_head.weight` the embeddings
    are one. `dtype` is what products are computed in: int8 rows are taken as they are or rounded
    from floats (by row), int4 is rounded in groups of 32. Keys and values are kept in bfloat16,
    except with float32. `threads` is at most, and by default, `count_cores()`; `isa` is one
    of `instruction_sets()`, by default the first.

    Raises CorruptFileError if an array is missing, unknown or has another shape; UsageError for
    an unknown dtype or instruction set.
    """

    shares_beginnings = True

    def __init__(
        self,
        config: ModelConfig,
        weights: Arrays,
        *,
        dtype: Dtype = "float32",
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        self.vocab_size = config.vocab_size
        self.block_size = config.block_size
        self.dtype = _one_of("dtype", dtype, list(get_args(Dtype)))
        self.isa = _one_of("instruction set", isa, instruction_sets())
        if threads is not None:
            whole("threads", threads, least=1)
        self.threads = min(threads or count_cores(), count_cores())
        self._model = _native.Model(
            asdict(config),
            _fitting(config, weights),
            dtype=self.dtype,
            isa=self.isa,
            threads=self.threads,
        )
        self._used: set[int] = set()
        self.lock = threading.RLock()
        self._free: list[int] = []
        self._n_rows = 0
        _ENGINES.add(self)

    def __repr__(self) -> str:
        return f"NativeEngine({self.dtype})"

    @property
    def weight_bytes(self) -> int:
        """How many bytes of weights one token passes over."""
        return self._model.weight_bytes

    @property
    @one_at_a_time
    def cache_bytes(self) -> int:
        """How many bytes keys and values hold now; it grows with what was read at one time."""
        return self._model.cache_bytes

    @one_at_a_time
    def prefill(self, ids: IdArray, copies: int = 1) -> tuple[list[int], FloatArray]:
        """Read model-order `ids`, (T,), into `copies` new rows; see `Engine.prefill`."""
        check_copies(copies)
        array = self._checked(ids, longest=self.block_size)
        rows = [self._take() for _ in range(copies)]
        try:
            # A call for each block: between two of them Python can be interrupted.
            for start in range(0, len(array), _native.MOST_TOKENS):
                block = array[start : start + _native.MOST_TOKENS]
                last = start + len(block) == len(array)
                logits = self._model.read(np.full_like(block, rows[0]), block, int(last))
            for row in rows[1:]:
                self._model.copy(rows[0], row, len(array))
        except BaseException:
            self._give_back(rows)
            raise
        return rows, logits[0]

    @one_at_a_time
    def step(self, rows: Sequence[int], ids: Sequence[int]) -> FloatArray:
        """Append one id to each of `rows`; see `Engine.step`."""
        check_step(rows, ids, self._length_of, block_size=self.block_size)
        if not rows:
            return np.zeros((0, self.vocab_size), dtype=np.float32)
        array = self._checked(np.asarray(ids), longest=len(ids))
        row_array = np.asarray(rows, dtype=np.int32)
        blocks = []
        for start in range(0, len(array), _native.MOST_TOKENS):
            part = slice(start, start + _native.MOST_TOKENS)
            blocks.append(self._model.read(row_array[part], array[part], len(array[part])))
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    @one_at_a_time
    def release(self, rows: Sequence[int]) -> None:
        """Free `rows`; releasing a row that is not in use does nothing."""
        self._give_back(rows)

    @one_at_a_time
    def score(self, sequences: Sequence[IdArray]) -> list[FloatArray]:
        """Return log p of every id after the first, (T-1,) float32 each; see `Engine.score`."""
        arrays = [self._checked(ids, longest=self.block_size + 1) for ids in sequences]
        found = [np.zeros(len(ids) - 1, dtype=np.float32) for ids in arrays]
        rows = [self._take() for _ in arrays]
        try:
            for together in branches(arrays, least=LEAST_SHARED):
                for one in together:
                    if one.known:
                        self._model.copy(rows[one.parent], rows[one.index], one.known)
                        found[one.index][: one.known] = found[one.parent][: one.known]
                self._score_on(
                    [rows[one.index] for one in together],
                    [arrays[one.index][one.known :] for one in together],
                    [found[one.index][one.known :] for one in together],
                )
        finally:
            self._give_back(rows)
        return found

    def _score_on(
        self, rows: Sequence[int], sequences: Sequence[Ids], found: Sequence[FloatArray]
    ) -> None:
        """Extend `rows` by the ids of `sequences`; set log p of each that another stands before."""
        row_of = np.repeat(np.array(rows, np.int32), [len(ids) - 1 for ids in sequences])
        inputs = np.concatenate([ids[:-1] for ids in sequences])
        targets = np.concatenate([ids[1:] for ids in sequences])
        scores: list[float] = []
        for start in range(0, len(inputs), _native.MOST_TOKENS):
            part = slice(start, start + _native.MOST_TOKENS)
            scores += self._model.score(row_of[part], inputs[part], targets[part])
        ends = np.cumsum([len(values) for values in found])
        for values, scored in zip(found, np.split(np.asarray(scores), ends[:-1]), strict=True):
            values[:] = scored

    def _length_of(self, row: int) -> int | None:
        return self._model.length(row) if row in self._used else None

    def _checked(self, ids: IdArray, *, longest: int) -> Ids:
        """Return `ids` as (T,) int32, refusing what the model cannot read."""
        array = checked_ids(ids, vocab_size=self.vocab_size, longest=longest)
        return array.astype(np.int32)

    def _give_back(self, rows: Sequence[int]) -> None:
        for row in rows:
            if row in self._used:  # interrupted here, it is still in use, or lost, not used twice
                self._model.release(row)
                self._used.discard(row)
                heapq.heappush(self._free, row)

    def _take(self) -> int:
        """Take the lowest free row."""
        if self._free:
            row = heapq.heappop(self._free)
        else:
            row = self._n_rows
            self._n_rows += 1
        self._used.add(row)
        return row


def _one_of(what: str, value: str | None, known: list[str]) -> str:
    if value is not None and value not in known:
        raise UsageError(f"{what} {value!r} is not to be had here: choose {', '.join(known)}")
    return known[0] if value is None else value


def _fitting(config: ModelConfig, weights: Arrays) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays as the extension takes them: contiguous float32, or int8 with scales."""
    wanted = config.array_shapes()
    if HEAD in weights:
        wanted[HEAD] = wanted[EMBEDDING]
    rows = {name for name, array in weights.items() if array.dtype == np.int8 and array.ndim == 2}
    wanted |= {name + SCALE: wanted[name][:1] for name in rows & wanted.keys()}
    check_shapes({name: array.shape for name, array in weights.items()}, wanted)
    for name, array in weights.items():
        if name not in rows and array.dtype.kind != "f":
            raise CorruptFileError(f"{name} is {array.dtype}, not float32 or int8 rows")
    return {
        name: np.ascontiguousarray(array, dtype=np.int8 if name in rows else np.float32)
        for name, array in weights.items()
    }
