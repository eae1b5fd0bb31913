"""What all routes work with: the models, the thread that runs them, and where texts are written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, TypeVar

from fastapi import Depends, Request

from backgpt.server.catalog import Catalog
from backgpt.server.channel import Channel, Part
from backgpt.server.decode import DecodeThread
from backgpt.server.streams import while_connected
from backgpt.slices import Slices

T = TypeVar("T")


class Writes(Protocol):
    """What writes texts: the decode thread, or another server."""

    in_flight: int
    """Samples that are asked for and not ended."""

    @property
    def n_drawn(self) -> int:
        """How many ids were drawn since the server began."""
        ...

    def write(self, parts: Sequence[Part]) -> Channel:
        """Begin to write the parts of a request. Raises ApiError if that cannot be."""
        ...

    def ask_to_stop(self) -> None:
        """Have what is not finished fail; from any thread."""
        ...

    async def close(self) -> None:
        """Let go of everything, when the server ends."""
        ...


@dataclass(frozen=True)
class Service:
    """Models by name, the thread that scores, and what writes."""

    catalog: Catalog
    decoder: DecodeThread
    writer: Writes

    async def work_out(self, request: Request, slices: Slices[T]) -> T:
        """Return what work in slices comes to, unless the client leaves. Raises what it raises."""
        return await while_connected(request.receive, self._worked_out(slices))

    async def finish(self, slices: Slices[T]) -> T:
        """Do the work in slices that remains of a request that has been written for.

        Return what it comes to; it is stopped if the caller is. Raises likewise.
        """
        return await self._worked_out(slices, admitted=True)

    async def _worked_out(self, slices: Slices[T], *, admitted: bool = False) -> T:
        channel = self.decoder.work(slices, admitted=admitted)
        try:
            result: T = await channel.result()
            return result
        finally:
            channel.close()


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(_service)]
