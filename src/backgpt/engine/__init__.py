"""What generation and scoring ask of a model: read a prompt, make a step, score, let go.

The protocol speaks plain numpy arrays of ids in model order, so that an engine may be torch
(`torch_engine`), native code, or a table in a test. Nothing here imports torch.
"""

import threading
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from backgpt.errors import UsageError
from backgpt.order import IdArray

P = ParamSpec("P")
R = TypeVar("R")
E = TypeVar("E", bound="Locked")
FloatArray = npt.NDArray[np.floating[Any]]
Dtype = Literal["float32", "bfloat16", "int8", "int4"]
"""What an engine may compute products in."""


class Engine(Protocol):
    """A language model with memory: a row is one text in the making, named by a number.

    Rows of different lengths can be stepped together. A row that is released may be given out
    again. Several threads may call an engine, each with rows of its own; calls wait for each other.
    """

    @property
    def vocab_size(self) -> int:
        """How many ids there are: the length of every row of logits."""
        ...

    @property
    def block_size(self) -> int:
        """How many ids a row can hold, the prompt included."""
        ...

    @property
    def shares_beginnings(self) -> bool:
        """Whether `score` reads once what several sequences begin with; otherwise it pads."""
        ...

    def prefill(self, ids: IdArray, copies: int = 1) -> tuple[list[int], FloatArray]:
        """Read model-order `ids`, (T,), into `copies` new rows.

        Returns the rows and the float32 logits after the last id, (V,), which they share. Raises
        UsageError if `ids` is empty, holds an unknown id or is longer than `block_size`.
        """
        ...

    def step(self, rows: Sequence[int], ids: Sequence[int]) -> FloatArray:
        """Append one id to each of `rows`; return the logits after it, (len(rows), V) float32.

        Raises UsageError if a row is not in use, is named twice or already holds `block_size` ids.
        """
        ...

    def release(self, rows: Sequence[int]) -> None:
        """Free `rows` for other texts; this is also how a request is canceled.

        Releasing a row that is not in use does nothing, so cleaning up twice is safe.
        """
        ...

    def score(self, sequences: Sequence[IdArray]) -> list[FloatArray]:
        """Return log p in nats of every id after the first, (T-1,) float32 for each sequence.

        They are computed together: it is for the caller to group those of similar lengths, or
        those that begin alike.

        Raises UsageError if a sequence is empty or has more than `block_size + 1` ids.
        """
        ...


class Locked(Protocol):
    """An engine whose methods run one at a time."""

    lock: threading.RLock


def one_at_a_time(method: Callable[Concatenate[E, P], R]) -> Callable[Concatenate[E, P], R]:
    """Make a method of an engine wait until no other thread is in one."""

    @wraps(method)
    def waiting(self: E, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.lock:
            return method(self, *args, **kwargs)

    return waiting


def check_copies(copies: int) -> None:
    """Raise UsageError unless `prefill` is asked for a row."""
    if copies < 1:
        raise UsageError(f"cannot prefill {copies} rows: ask for at least 1")


def check_step(
    rows: Sequence[int],
    ids: Sequence[int],
    length_of: Callable[[int], int | None],
    *,
    block_size: int,
) -> None:
    """Raise UsageError unless each of `rows` can take one of `ids`.

    `length_of` says how many ids a row holds, or None of a row that is not in use.
    """
    if len(rows) != len(ids):
        raise UsageError(f"{len(rows)} rows were given {len(ids)} ids: give one id for each")
    if len(set(rows)) != len(rows):
        raise UsageError(f"rows {list(rows)} name one row twice: step each row once")
    for row in rows:
        length = length_of(row)
        if length is None:
            raise UsageError(f"row {row} is not in use: prefill a prompt first")
        if length >= block_size:
            raise UsageError(f"row {row} is full: block_size = {block_size}: end the text")


def checked_ids(ids: IdArray, *, vocab_size: int, longest: int) -> npt.NDArray[np.int64]:
    """Return `ids` as (T,) int64. Raises UsageError for what no engine can read."""
    array = np.asarray(ids)
    if array.ndim != 1 or array.size == 0:
        raise UsageError(f"ids of shape {array.shape} were given: give at least one id, 1-D")
    if array.dtype.kind not in "iu":
        raise UsageError(f"ids of type {array.dtype} were given: give integers")
    if array.size > longest:
        raise UsageError(f"{array.size} ids do not fit into {longest}: shorten the text")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise UsageError(f"id {wrong} is outside the vocabulary of {vocab_size}")
    return array.astype(np.int64)
