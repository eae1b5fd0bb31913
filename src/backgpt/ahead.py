"""What the steps of a run need, made by other processes some steps ahead while a GPU computes.

Drawing hints and padding rows takes Python about as long as a GPU takes for a small step. A thread
that did it would keep the interpreter from the one that starts the GPU's kernels.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
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
        self._make = _Steps(make)
        self._last_step = last_step
        can_fork = "fork" in multiprocessing.get_all_start_methods()
        self._workers = WORKERS if device.type == "cuda" and can_fork else 0
        self._next: tuple[int, Iterator[Made]] | None = None

    def of(self, step: int) -> Made:
        """Return `make(step)`; quickest for the step after the last. Raises what `make` raises."""
        if not self._workers:
            return self._make[step]
        if self._next is None or self._next[0] != step:
            self._next = step, self._from(step)
        _, steps = self._next
        made = next(steps)
        self._next = step + 1, steps
        return made

    def close(self) -> None:
        """Let the processes end."""
        self._next = None

    def _from(self, step: int) -> Iterator[Made]:
        loader: Any = DataLoader(
            self._make,
            sampler=range(step, self._last_step),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self._workers,
            multiprocessing_context="fork",
            worker_init_fn=_leave_signals_to_the_run,
            generator=torch.Generator(),  # the global one belongs to the model
        )
        return iter(loader)


class _Steps(Dataset[Made]):
    def __init__(self, make: Callable[[int], Made]) -> None:
        self._make = make

    def __getitem__(self, step: int) -> Made:
        return self._make(step)


def _leave_signals_to_the_run(worker: int) -> None:
    """Let a worker live on when a whole group of processes is asked to end: the run will end it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(made: Made) -> Made:
    return made
