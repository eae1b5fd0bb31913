"""How a stream is sent: events as they come, comments in silence, and never two things at once."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from backgpt.server import streams
from backgpt.server.channel import Channel
from backgpt.server.streams import COMMENT, END, Chunk, Stream


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


def test_comments_come_in_silence_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "SECONDS_BETWEEN_COMMENTS", 0.1)

    async def chunks() -> AsyncIterator[Chunk]:
        for number in range(6):
            await asyncio.sleep(0.03)
            yield {"n": number}
        await asyncio.sleep(0.35)
        yield {"n": "last"}

    bodies = asyncio.run(sent(chunks()))
    assert COMMENT not in bodies[:6]
    assert 2 <= bodies.count(COMMENT) <= 3
    assert bodies[-1] == b'data: {"n": "last"}\n\n'


def test_nothing_is_sent_while_something_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "SECONDS_BETWEEN_COMMENTS", 0.003)

    async def chunks() -> AsyncIterator[Chunk]:
        for number in range(20):
            await asyncio.sleep(0.004)
            yield {"n": number}

    bodies = asyncio.run(sent(chunks(), seconds_to_send=0.004))
    assert COMMENT in bodies
    assert len([body for body in bodies if body != COMMENT]) == 20


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

    assert asyncio.run(test()) <= 5
