"""What the tests of the server share: a real one, and ways to ask it."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

import uvicorn

from backgpt.api import Model
from backgpt.server.app import create_app
from backgpt.server.catalog import Catalog, Served
from backgpt.server.decode import DecodeThread
from backgpt.server.guard import Rules

JSON = {"content-type": "application/json"}
CLIENT = httpx.Client(timeout=30)  # to make one takes longer than most requests


def catalog_of(model: Model, **others: Model) -> Catalog:
    """Return a catalog with `model` as "tiny", meant if none is named."""
    models = {"tiny": Served(model, "A tiny one."), **{n: Served(m) for n, m in others.items()}}
    return Catalog(models, completions="tiny", chat="tiny")


@contextlib.contextmanager
def serving(
    catalog: Catalog,
    *,
    decoder: DecodeThread | None = None,
    rules: Rules | None = None,
    writer: Any = None,
) -> Iterator[str]:
    """Run a real server on a free port of this machine; yield its address."""
    app = create_app(catalog, decoder=decoder, rules=rules, writer=writer)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


def until(true: Callable[[], object], *, within: float = 10.0) -> None:
    """Wait until something is true, which must be soon."""
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, "this did not come to be"
        time.sleep(0.005)


def post(address: str, path: str, **body: Any) -> httpx.Response:
    return CLIENT.post(address + path, json=body)


def chunks_of(address: str, path: str, **body: Any) -> list[dict[str, Any]]:
    """Return the chunks of a stream, which must end as one does."""
    with CLIENT.stream("POST", address + path, json={**body, "stream": True}) as stream:
        assert stream.status_code == 200, stream.read()
        assert stream.headers["content-type"].startswith("text/event-stream")
        content = stream.read().decode()
    lines = [line for line in content.split("\n") if line.startswith("data: ")]
    assert lines.pop() == "data: [DONE]", content[-2000:]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def joined(chunks: Sequence[dict[str, Any]], index: int = 0) -> str:
    """Return what the pieces of one choice join to, in the order each chunk says."""
    text = ""
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] == index:
                piece = choice["text"]
                text = piece + text if chunk["backgpt"]["order"] == "prepend" else text + piece
    return text
