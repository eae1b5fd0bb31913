"""What the steps of a run need, made by other processes some steps ahead while a GPU computes.

Drawing hints and padding rows takes Python about as long as a GPU takes for a small step. A thread
that did it would keep the interpreter from the one that starts the GPU's kernels.
"""

import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from ctypes import c_bool
from multiprocessing.sharedctypes import RawValue
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

WORKERS = 2

Made = TypeVar("Made")


class Ahead(Generic[Made]):
    """Calls `make` for step after step, up to `last_step`.

    On a GPU `WORKERS` processes do it, if the system can fork: they have all that `make` knows when
    the first step is asked for. On a CPU, which is busy enough with the model, it is done when a
    step is asked for.
    """

    def __init__(
        self, make: Callable[[int], Made], *, last_step: int, device: torch.device
    ) -> None:
        self._make = make
        self._last_step = last_step
        can_fork = "fork" in multiprocessing.get_all_start_methods()
        self._workers = WORKERS if device.type == "cuda" and can_fork else 0
        self._next: tuple[int, Iterator[Made | Exception]] | None = None
        self._may_end = RawValue(c_bool, False)
        # Also where nothing closes this: a process that waits for its workers would wait forever.
        self._let_end = weakref.finalize(self, setattr, self._may_end, "value", True)

    def of(self, step: int) -> Made:
        """Return `make(step)`; quickest for the step after the last. Raises what `make` raises."""
        if not self._workers:
            return self._make(step)
        if self._next is None or self._next[0] != step:
            self._next = step, self._from(step)
        made = next(self._next[1])
        self._next = step + 1, self._next[1]
        if isinstance(made, Exception):
            raise made
        return made

    def close(self) -> None:
        """Let the processes end. No step may be asked for after this."""
        self._let_end()
        self._next = None

    def _from(self, step: int) -> Iterator[Made | Exception]:
        loader: Any = DataLoader(
            _Steps(self._make),
            sampler=range(step, self._last_step),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self._workers,
            multiprocessing_context="fork",
            worker_init_fn=_HeedTheRunOnly(self._may_end),
            generator=torch.Generator(),  # the global one belongs to the model
        )
        return iter(loader)


class _Steps(Dataset[Made | Exception]):
    """Steps made; an error is handed over as it is, not as the text of a traceback."""

    def __init__(self, make: Callable[[int], Made]) -> None:
        self._make = make

    def __getitem__(self, step: int) -> Made | Exception:
        try:
            return self._make(step)
        except Exception as error:
            return error


class _HeedTheRunOnly:
    """Lets a worker live on when a whole group of processes is asked to end: the run will end it.

    The run, too, asks with SIGTERM when a worker does not hear otherwise that it is over.
    """

    def __init__(self, may_end: Any) -> None:
        self._may_end = may_end

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminated)

    def _terminated(self, number: int, frame: object) -> None:
        if self._may_end.value:
            os._exit(0)


def _as_it_is(made: Made) -> Made:
    return made
