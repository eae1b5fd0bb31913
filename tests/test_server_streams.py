"""How a stream is sent: events as they come, comments in silence, and never two things at once."""

import asyncio
import selectors
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from backgpt.server.channel import Channel
from backgpt.server.streams import COMMENT, END, SECONDS_BETWEEN_COMMENTS, Chunk, Stream

T = TypeVar("T")


class Jumps(selectors.DefaultSelector):
    """Waits for nothing: it is later at once. Seconds are in quarters, which add up exactly."""

    now, rounds = 0.0, 0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        self.rounds += 1
        assert self.rounds < 10_000, "this goes round and round"
        return super().select(0)


class ClockThatJumps(asyncio.SelectorEventLoop):
    """An event loop that never sleeps."""

    def __init__(self) -> None:
        self.jumps = Jumps()
        super().__init__(self.jumps)

    def time(self) -> float:
        return self.jumps.now


def run(test: Coroutine[Any, Any, T]) -> T:
    """Run a test whose seconds take no time, however busy the machine is."""
    with asyncio.Runner(loop_factory=ClockThatJumps) as runner:
        return runner.run(test)


async def sent(chunks: AsyncIterator[Chunk], *, seconds_to_send: float = 0.0) -> list[bytes]:
    """Return the bodies that a stream sends, none of them while another is being sent."""
    bodies: list[bytes] = []
    sending = False

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        nonlocal sending
        assert not sending
        sending = True
        await asyncio.sleep(seconds_to_send)
        sending = False
        if message["type"] == "http.response.body":
            bodies.append(message["body"])
            assert message["more_body"] == bool(message["body"])

    await Stream(Channel(1, lambda _: None), chunks)({"type": "http"}, receive, send)
    assert bodies[0] == COMMENT
    assert bodies[-2:] == [END, b""]
    return bodies[1:-2]


def test_comments_come_in_silence_and_only_then() -> None:
    async def chunks() -> AsyncIterator[Chunk]:
        for number in range(6):
            await asyncio.sleep(0.75 * SECONDS_BETWEEN_COMMENTS)
            yield {"n": number}
        await asyncio.sleep(3.5 * SECONDS_BETWEEN_COMMENTS)
        yield {"n": "last"}

    bodies = run(sent(chunks()))
    assert COMMENT not in bodies[:6]
    assert bodies[6:] == [COMMENT] * 3 + [b'data: {"n": "last"}\n\n']


def test_nothing_is_sent_while_something_else_is() -> None:
    async def chunks() -> AsyncIterator[Chunk]:
        for number in range(20):
            await asyncio.sleep(1.25 * SECONDS_BETWEEN_COMMENTS)
            yield {"n": number}

    bodies = run(sent(chunks(), seconds_to_send=1.25 * SECONDS_BETWEEN_COMMENTS))
    assert COMMENT in bodies
    assert len([body for body in bodies if body != COMMENT]) == 20


def test_when_the_client_leaves_nothing_more_is_sent_and_nothing_goes_on() -> None:
    async def endless() -> AsyncIterator[Chunk]:
        while True:
            await asyncio.sleep(0.75 * SECONDS_BETWEEN_COMMENTS)
            yield {}
            await asyncio.sleep(3 * SECONDS_BETWEEN_COMMENTS)

    async def test() -> None:
        left = False
        closed: list[Channel] = []
        late: list[Any] = []

        async def receive() -> Any:
            nonlocal left
            await asyncio.sleep(9.5 * SECONDS_BETWEEN_COMMENTS)
            left = True
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if left:
                late.append(message)

        channel = Channel(1, closed.append)
        await asyncio.wait_for(Stream(channel, endless())({"type": "http"}, receive, send), 60)
        assert (closed, late) == ([channel], [])
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(test())


def test_an_event_costs_no_task_of_its_own() -> None:
    async def chunks() -> AsyncIterator[Chunk]:
        for number in range(200):
            yield {"n": number}

    async def test() -> int:
        count = 0

        def made(loop: Any, coroutine: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            return asyncio.Task(coroutine, loop=loop, **more)

        asyncio.get_running_loop().set_task_factory(made)
        assert len(await sent(chunks())) == 200
        return count

    assert run(test()) <= 5
