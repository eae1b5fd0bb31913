"""Streams of server-sent events, and answers that wait: both end when the client leaves.

In the order "append" a client that knows nothing of leftward text puts pieces behind each other,
so it gets none before a text is finished, and comments meanwhile; in "prepend" it gets pieces live.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from backgpt.errors import BackgptError
from backgpt.server.channel import Channel
from backgpt.server.failures import ApiError, as_api_error, error_body

SECONDS_BETWEEN_COMMENTS = 2.0
COMMENT = b": writing\n\n"
END = b"data: [DONE]\n\n"
CLIENT_LEFT = 499  # as nginx has it; nobody reads it

OR_A_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
"""What OpenAPI says of a route that may stream its answer."""

T = TypeVar("T")
Chunk = dict[str, Any]


class Stream(Response):
    """Sends chunks as they come, then `[DONE]`; closes the channel they come from in any case."""

    media_type = "text/event-stream"

    def __init__(self, channel: Channel, chunks: AsyncIterator[Chunk]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._channel, self._events = channel, _events(chunks)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send(send))
        except ApiError as error:
            if error.status != CLIENT_LEFT:
                raise
        finally:
            self._channel.close()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        body: dict[str, Any] = {"type": "http.response.body", "more_body": True}
        await send({**body, "body": COMMENT})
        sending, clock = asyncio.Lock(), asyncio.get_running_loop().time
        last = clock()

        async def comment() -> None:
            """Say that the server is there, whenever it has said nothing for a while."""
            nonlocal last
            while True:
                await asyncio.sleep(max(0.0, last + SECONDS_BETWEEN_COMMENTS - clock()))
                async with sending:
                    if clock() - last >= SECONDS_BETWEEN_COMMENTS:
                        await send({**body, "body": COMMENT})
                        last = clock()

        commenting = asyncio.create_task(comment())
        try:
            async for event in self._events:
                async with sending:
                    await send({**body, "body": event})
                    last = clock()
            async with sending:  # so that no comment is half sent, and none is the last
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                commenting.cancel()
        finally:
            commenting.cancel()
            await asyncio.gather(commenting, return_exceptions=True)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` comes to; cancel it if the client leaves, and raise ApiError."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(CLIENT_LEFT, "the client left")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def as_chunk(body: BaseModel) -> Chunk:
    """Return a body as it is sent in a stream."""
    return body.model_dump(mode="json")


async def _events(chunks: AsyncIterator[Chunk]) -> AsyncIterator[bytes]:
    """Yield events as bytes; an error is the last one, and says that it is one."""
    try:
        async for chunk in chunks:
            yield _event(chunk)
    except BackgptError as error:
        yield _event(error_body(as_api_error(error)))
        return
    yield END


def _event(chunk: Chunk) -> bytes:
    """Return one event. Escapes keep separators of other scripts, where some clients cut, out."""
    return f"data: {json.dumps(chunk, allow_nan=False)}\n\n".encode()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
