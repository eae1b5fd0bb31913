"""The decode thread: the only one that runs models, for all requests together.

A request gives parts to write, or work in slices, and gets a channel on which the thread says what
came of it. How much may be asked for at a time is bounded, and counted in samples.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from backgpt.server.channel import Channel, Part, Said
from backgpt.server.failures import BusyError, StoppingError, place_of
from backgpt.server.scheduler import Arrived, Scheduler, SliceTask, WriteTask
from backgpt.slices import Slices

IDLE_SECONDS = 1.0

log = logging.getLogger(__name__)


class DecodeThread:
    """Runs models on a thread of its own.

    At most `max_running` samples are written at a time and `max_waiting` more wait. `died` is
    called, from that thread, if it cannot go on.
    """

    def __init__(
        self,
        *,
        max_running: int = 64,
        max_waiting: int = 256,
        clock: Callable[[], float] = time.monotonic,
        died: Callable[[], None] = lambda: None,
    ) -> None:
        self.max_running, self.max_waiting = max_running, max_waiting
        self.scheduler = Scheduler(max_running=max_running)
        self.in_flight = 0
        """Samples that are asked for and not ended; only the event loop counts them."""
        self.stopped_in_peace = True
        """Whether the thread has not given up."""
        self._clock, self.died = clock, died
        self._beat = clock()
        self._thread: threading.Thread | None = None
        self._wake = threading.Condition()
        self._stopping = False
        self._arrived: list[Arrived] = []
        self._gone: list[Channel] = []

    def write(self, parts: Sequence[Part]) -> Channel:
        """Begin to write the parts of a request, in order. Raises BusyError if too many wait."""
        weight = sum(part.job.n for part in parts)
        small = [one for part in parts for one in part.split(self.max_running)]
        return self._admit(weight, lambda channel: [WriteTask(channel, part) for part in small])

    def work(self, work: Slices[Any], *, admitted: bool = False) -> Channel:
        """Begin work in slices: between two of them others get their turn.

        Raises BusyError if too many wait, unless it is what remains of a request that was
        `admitted`.
        """
        return self._admit(0 if admitted else 1, lambda channel: [SliceTask(channel, work)])

    @property
    def seconds_since_last_round(self) -> float:
        """How long ago the thread last began a round; it does so every second without work."""
        return self._clock() - self._beat

    @property
    def is_alive(self) -> bool:
        """Whether there is a thread."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def n_drawn(self) -> int:
        """How many ids were drawn."""
        return self.scheduler.n_drawn

    @property
    def n_waiting(self) -> int:
        """How many jobs and pieces of work wait."""
        return self.scheduler.n_waiting + len(self._arrived)

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Have the thread stop after this round; what is not finished fails."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def stop(self) -> None:
        """Stop the thread and wait for that."""
        self.ask_to_stop()
        if self._thread is not None:
            self._thread.join(timeout=10)

    async def close(self) -> None:
        """Stop, as all that writes is closed when the server ends."""
        self.stop()

    def _admit(self, weight: int, made: Callable[[Channel], Sequence[Arrived]]) -> Channel:
        """Hand what is `made` for a new channel to the thread. Raises BusyError if it is full."""
        most = self.max_running + self.max_waiting
        if weight and self.in_flight and self.in_flight + weight > most:
            raise BusyError
        channel = Channel(weight, self._cancel)
        with self._wake:
            if self._stopping:
                raise StoppingError
            self._arrived += made(channel)
            self._wake.notify()
        self.in_flight += weight
        return channel

    def _cancel(self, channel: Channel) -> None:
        with self._wake:
            self._gone.append(channel)
            self._wake.notify()

    def _tell(self, said: list[tuple[Channel, Said]]) -> None:
        """Put what was said into its channels, on the event loop."""
        for channel, one in said:
            if one is None:
                self.in_flight -= channel.weight
            channel.put(one)

    def _run(self) -> None:
        """Do rounds until told to stop; the thread."""
        try:
            while not self._stopping:
                self._beat = self._clock()
                self.scheduler.round(*self._news())
                self._deliver()
        except Exception as error:
            log.critical("the decode thread cannot go on: %s", place_of(error))
            self.stopped_in_peace = False
            self.died()
        finally:
            with self._wake:
                self._stopping = True
            late, _ = self._news()
            for channel in dict.fromkeys(one.channel for one in late):
                self.scheduler.said += [(channel, StoppingError()), (channel, None)]
            self.scheduler.end_all(StoppingError())
            self._deliver()

    def _news(self) -> tuple[list[Arrived], list[Channel]]:
        """Return what has arrived and who is gone; wait a little if there is nothing to do."""
        with self._wake:
            scheduler = self.scheduler
            if not (self._stopping or self._arrived or self._gone or scheduler.has_work):
                self._wake.wait(IDLE_SECONDS)
            arrived, self._arrived = self._arrived, []
            gone, self._gone = self._gone, []
        return arrived, gone

    def _deliver(self) -> None:
        """Hand what was said to the event loops that wait for it."""
        said, self.scheduler.said = self.scheduler.said, []
        for loop in {channel.loop for channel, _ in said}:
            mine = [one for one in said if one[0].loop is loop]
            try:
                loop.call_soon_threadsafe(self._tell, mine)
            except RuntimeError:  # the loop is closed: nobody listens
                log.debug("nobody listens")
