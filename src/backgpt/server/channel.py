"""What goes between a request and what computes for it: parts to write, and a channel back."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from backgpt.engine import Engine
from backgpt.errors import BackgptError
from backgpt.generate import Drawing, Text
from backgpt.running import Drawn, Job
from backgpt.server.failures import FaultError

Tells = Literal["pieces", "ids", "ends"]
"""What is told of a text: its pieces as they are written, every id that is drawn as well, whether
or not it makes text, or nothing before it has ended."""


@dataclass(frozen=True)
class Part:
    """One job of a request, whose samples are its choices from number `first` on.

    `after` is called with each text that is finished, and may return the job that the same choice
    goes on with, of one sample.
    """

    engine: Engine
    job: Job
    first: int = 0
    after: Callable[[Text], Job | None] | None = None
    tells: Tells = "pieces"

    def is_told(self, piece: str, drawn: Drawn | None) -> bool:
        """Return whether a piece of text, perhaps an empty one, and the id it comes of are told."""
        if self.tells == "ends":
            return False
        return bool(piece) or (drawn is not None and self.tells == "ids")

    def split(self, most: int) -> "Iterator[Part]":
        """Yield parts of at most `most` samples each that together are this one."""
        done = self.first - self.job.first
        for job in self.job.split(most):
            yield replace(self, job=job, first=done + job.first)


@dataclass(frozen=True)
class Wrote:
    """A piece of a choice's text; a choice of several turns writes them one after the other.

    `drawn` is the id that it comes of, if there is one.
    """

    index: int
    text: str
    turn: int = 0
    drawn: Drawn | None = None


@dataclass(frozen=True)
class Ended:
    """A turn of a choice is finished; `more` if another follows."""

    index: int
    drawing: Drawing
    turn: int = 0
    more: bool = False


@dataclass(frozen=True)
class Done:
    """Work in slices is finished."""

    result: Any


Event = Wrote | Ended | Done
Said = Event | BackgptError | None
"""An event, or what ended a channel: an error, or None."""


class Channel:
    """What is said to one request, in order; made and read on its event loop.

    `weight` is how many samples it asked for, its part of what the server can take.
    """

    def __init__(self, weight: int, cancel: "Callable[[Channel], None]") -> None:
        self.loop = asyncio.get_running_loop()
        self.weight = weight
        self.unfinished = weight
        """How many choices are still to come; counted by who writes them."""
        self.ended = False
        """Whether nothing more will be said; set by who says it."""
        self._cancel = cancel
        self._queue: asyncio.Queue[Said] = asyncio.Queue()

    def put(self, event: Said) -> None:
        """Say something, from the event loop; None and errors are the last."""
        self._queue.put_nowait(event)

    def close(self) -> None:
        """Listen no more: what is still being computed for it is stopped."""
        self._cancel(self)

    async def events(self) -> AsyncIterator[Event]:
        """Yield what is said. Raises what failed."""
        while (event := await self._queue.get()) is not None:
            if isinstance(event, BackgptError):
                raise event
            yield event

    async def result(self) -> Any:
        """Return what work in slices came to. Raises what failed."""
        async for event in self.events():
            if isinstance(event, Done):
                return event.result
        raise FaultError("the server was stopped")
