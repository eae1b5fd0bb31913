"""What the steps of a run need, made by other processes some steps ahead while a GPU computes.

Drawing hints and padding rows takes Python about as long as a GPU takes for a small step. A thread
that did it would keep the interpreter from the one that starts the GPU's kernels.
"""

import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from typing import Generic, NoReturn, TypeVar

Made = TypeVar("Made")


class Ahead(Generic[Made]):
    """Calls `make` for step after step, up to `last_step`, in `n_processes`, or here with none.

    The processes are forked when the first step is asked for, and have all that `make` knows then.
    Each waits for its step to be fetched; it ends when nobody can fetch it any more, however the
    run ended. Signals are for the run alone, also those to a whole group of processes.
    """

    def __init__(self, make: Callable[[int], Made], *, last_step: int, n_processes: int) -> None:
        self._make = make
        self._last_step = last_step
        self._n_processes = n_processes if hasattr(os, "fork") else 0
        self._processes: list[int] = []
        self._pipes: list[Connection[None, Made]] = []  # of each process, the next step's first
        self._next: int | None = None

    def of(self, step: int) -> Made:
        """Return `make(step)`; quickest for the step after the last. Raises what `make` raises."""
        if not self._n_processes:
            return self._make(step)
        if step != self._next:
            self._begin(step)
        pipe = self._pipes.pop(0)
        self._pipes.append(pipe)
        self._next = step + 1
        try:
            return pipe.recv()
        except (EOFError, OSError):  # it failed, as it will here, or was killed
            self.close()
            return self._make(step)

    def close(self) -> None:
        """End the processes. Steps can still be asked for: others will make them."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            with suppress(ChildProcessError):  # somebody else has waited for it
                if os.waitpid(process, os.WNOHANG) == (0, 0):
                    os.kill(process, signal.SIGKILL)
                    os.waitpid(process, 0)
        self._pipes, self._processes, self._next = [], [], None

    def _begin(self, first: int) -> None:
        self.close()
        for number in range(self._n_processes):
            fetching, sending = Pipe(duplex=False)
            self._pipes.append(fetching)
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            try:
                process = os.fork()
                if not process:
                    self._work(range(first + number, self._last_step, self._n_processes), sending)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            sending.close()
            self._processes.append(process)

    def _work(self, steps: Iterable[int], sending: "Connection[Made, None]") -> NoReturn:
        """Be one of the processes, with its signals blocked, and end like one that was killed."""
        try:
            for pipe in self._pipes:  # or sending would go on when the run has ended
                pipe.close()
            for step in steps:
                sending.send(self._make(step))
        finally:
            os._exit(0)
