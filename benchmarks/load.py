"""Many clients of one server, each over a connection of its own, and what they see of it.

Takes a server as a program that is started, and requests; gives when pieces of every stream came.
It counts events rather than reading them: the server under test needs the processors.
"""

import asyncio
import json
import os
import random
import re
import socket
import subprocess
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

SECONDS_TO_START, SECONDS_TO_ANSWER = 60.0, 180.0
MOST_ERRORS = 100  # then there is no server any more
EVERY, SAMPLE = 20, 16  # every 20th stream is kept, and 16 of them are asked for again
PIECE = re.compile(rb'"finish_reason": ?null')
LAST = re.compile(rb'"finish_reason": ?"')
TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')


@dataclass(frozen=True)
class Asked:
    """One request for a text that leads to an ending."""

    ending: str
    seed: int
    most_tokens: int


@dataclass(frozen=True)
class Program:
    """A server: how it is started on a port, and what it is sent to be asked for a text."""

    name: str
    command: Callable[[int], list[str]]
    body: Callable[[Asked], dict[str, Any]]
    can_check: bool = False
    """Whether the same request brings the same text again, and pieces go in front of each other."""


@dataclass(frozen=True)
class Served:
    """A server that runs; its log is for when it fails."""

    program: Program
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def address(self) -> str:
        """Its URL without a path."""
        return f"http://127.0.0.1:{self.port}"

    def memory(self, kind: str = "VmRSS") -> float:
        """Return the megabytes that it has now, or had at most (VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{kind}:\s+(\d+) kB", status)
        return int(found[1]) / 1024 if found else 0.0

    def cpu_seconds(self) -> float:
        """Return the seconds that it has used processors for."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def gauges(self) -> dict[str, float]:
        """Return the metrics without labels of a server of ours."""
        lines = httpx.get(f"{self.address}/metrics").text.splitlines()
        pairs = [line.split() for line in lines if not line.startswith("#") and "{" not in line]
        return {name: float(value) for name, value in pairs}

    async def write(self, asked: Asked, n: int = 1) -> list[str]:
        """Return the texts that a server of ours writes, not as a stream; none if it fails."""
        body = {**self.program.body(asked), "n": n}
        del body["stream_options"]
        async with httpx.AsyncClient(timeout=SECONDS_TO_ANSWER) as client:
            answer = await client.post(f"{self.address}/v1/completions", json=body)
        choices: list[dict[str, Any]] = answer.json().get("choices", [])
        return [choice["text"] for choice in choices]

    def request(self, asked: Asked) -> bytes:
        """Return a request for a stream as it goes over the wire."""
        given = {"stream_options": {}, **self.program.body(asked)}
        given["stream_options"] |= {"include_usage": True}
        body = json.dumps({**given, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return f"{head}Connection: close\r\n\r\n".encode() + body


class Stream(asyncio.Protocol):
    """One streamed answer on a connection of its own, which is left after `leave_after` pieces."""

    def __init__(self, load: "Load", asked: Asked, *, leave_after: int | None) -> None:
        self.asked = asked
        self.kept: list[bytes] = []
        self.pieces = self.tokens = 0
        self.left = False
        self.error = ""
        self.sent = time.perf_counter()
        self.first = self.last = self.waited = self.longest_gap = 0.0
        self.pace = (0.0, 0.0)
        self.done = asyncio.get_running_loop().create_future()
        self._load, self._leave_after = load, leave_after
        self._keeps = load.served.program.can_check and asked.seed % EVERY == 0
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._ended = self._complete = False

    async def run(self) -> None:
        """Ask, and wait until the connection has ended; note an error if there is one."""
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self, "127.0.0.1", self._load.served.port)
            await asyncio.wait_for(self.done, SECONDS_TO_ANSWER)
        except TimeoutError:
            self.error = f"not answered within {SECONDS_TO_ANSWER:.0f} s"
            if self._transport:
                self._transport.abort()
        except OSError as error:
            self.error = str(error)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._load.served.request(self.asked))

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            _, is_data, content = event.partition(b"data: ")
            if is_data:
                self._take(content, now)
        leave = self._leave_after is not None and self.pieces >= self._leave_after
        if leave and not self._ended and self._transport:
            self.left = True
            self._load.n_left += 1
            random.choice((self._transport.abort, self._transport.close))()

    def connection_lost(self, _: Exception | None) -> None:
        if not self._complete and not self.left and not self.error:
            self.error = f"cut off: {self._rest[-300:].decode(errors='replace')}"
        self._end(time.perf_counter())
        if not self.done.done():
            self.done.set_result(None)

    @property
    def rate(self) -> float:
        """Pieces per second, from the first to the last."""
        return (self.pieces - 1) / (self.last - self.first)

    @property
    def share(self) -> float:
        """How many pieces came for each that the streams beside it got on average."""
        return (self.pieces - 1) / (self.pace[1] - self.pace[0])

    def joined(self) -> str:
        """Return what the pieces of a stream that was kept join to, in front of each other."""
        return "".join(json.loads(one)["choices"][0]["text"] for one in reversed(self.kept))

    def _take(self, content: bytes, now: float) -> None:
        if PIECE.search(content):
            self._piece(now)
            if self._keeps:
                self.kept.append(content)
            return
        if found := TOKENS.search(content):
            self.tokens = int(found[1])
        if LAST.search(content):
            self._end(now)
        elif content.startswith(b"[DONE]"):
            self._complete = True
        elif not found:
            self.error = content[:300].decode(errors="replace")

    def _piece(self, now: float) -> None:
        load = self._load
        if not self.pieces:
            load.running += 1
            self.first, self.waited = now, load.since_place_was_free(self.sent, now)
        else:
            self.longest_gap = max(self.longest_gap, now - self.last)
        load.pieces += 1
        load.pace += 1 / load.running
        self.pace = (self.pace[0] if self.pieces else load.pace, load.pace)
        self.last = now
        self.pieces += 1

    def _end(self, now: float) -> None:
        if self._ended:
            return
        self._ended = True
        if self.pieces:
            self._load.running -= 1
        else:
            self._load.since_place_was_free(self.sent, now)
        self._load.free_place(now)


@dataclass(frozen=True)
class Moment:
    """How far a load was at a time; what memory the server had, what processors were used."""

    at: float
    pieces: int
    memory: float
    cpu: float
    own_cpu: float


@dataclass
class Load:
    """What many clients do to one server, and what came of it.

    `pace` is how many pieces a stream had got that always got the average of those running. `free`
    holds since when places are free; who waits longest gets the one that is free the longest.
    """

    served: Served
    places: int
    leaves_after: Callable[[], int | None] = lambda: None
    streams: list[Stream] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    checked: list[bool] = field(default_factory=list)
    running: int = 0
    pieces: int = 0
    pace: float = 0.0
    n_left: int = 0
    n_errors: int = 0

    def __post_init__(self) -> None:
        self.began = self.closed = time.perf_counter()
        self.free = deque([self.began] * self.places)
        self._to_check: list[Stream] = []
        self._over = False
        self._early = 0

    def since_place_was_free(self, sent: float, now: float) -> float:
        """Take the place that is free the longest; return for how long it waited for `sent`."""
        if self.free:
            return now - max(self.free.popleft(), sent)
        self._early += 1  # what says that a place is free comes by another connection, later
        return 0.0

    def free_place(self, now: float) -> None:
        """Note that a place is free, unless it was taken before that was said."""
        if self._early:
            self._early -= 1
        else:
            self.free.append(now)

    async def run(self, clients: int, requests: Iterator[Asked], seconds: float) -> None:
        """Let clients ask, each as soon as it was answered, for a time or until none is left.

        Then check a sample of the streams, while the others still ask: what is drawn may depend on
        how many are written at a time, as sums are rounded.
        """
        watching = asyncio.create_task(self._watch())
        asking = [asyncio.create_task(self._ask(requests)) for _ in range(clients)]
        await asyncio.wait(asking, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self.closed = time.perf_counter()
        kept = [one for one in self.streams if one.kept and one.done.done() and not one.error]
        self._to_check = random.sample(kept, min(SAMPLE, len(kept)))
        n_to_check = len(self._to_check)
        while len(self.checked) < n_to_check and not all(one.done() for one in asking):
            await asyncio.sleep(0.1)
        self._over = True
        await asyncio.gather(*asking)
        watching.cancel()

    def at(self, time_: float) -> Moment:
        """Return the moment that is next to a time."""
        return min(self.moments, key=lambda one: abs(one.at - time_))

    async def _ask(self, requests: Iterator[Asked]) -> None:
        for asked in requests:
            if self._over or self.n_errors >= MOST_ERRORS:
                return
            if self._to_check:
                await self._check(self._to_check.pop())
                continue
            stream = Stream(self, asked, leave_after=self.leaves_after())
            self.streams.append(stream)
            await stream.run()
            self.n_errors += bool(stream.error)

    async def _check(self, stream: Stream) -> None:
        """Ask for a stream's text again, at once, and note whether its pieces joined to it."""
        try:
            texts = await self.served.write(stream.asked)
        except httpx.HTTPError as error:
            texts = [f"none: {error}"]
        self.checked.append(texts == [stream.joined()])

    async def _watch(self) -> None:
        while True:
            memory, cpu = self.served.memory(), self.served.cpu_seconds()
            moment = Moment(time.perf_counter(), self.pieces, memory, cpu, time.process_time())
            self.moments.append(moment)
            await asyncio.sleep(0.5)


@asynccontextmanager
async def serving(program: Program, folder: Path) -> AsyncIterator[Served]:
    """Start a server on a free port of this machine, wait until it is well, stop it at the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    log = folder / f"{program.name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(program.command(port), stdout=file, stderr=file)
    served = Served(program, process, port, log)
    try:
        deadline = time.perf_counter() + SECONDS_TO_START
        while not _is_well(served):
            if process.poll() is not None or time.perf_counter() > deadline:
                raise SystemExit(f"{program.name} does not start: {log.read_text()[-2000:]}")
            await asyncio.sleep(0.1)
        yield served
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_well(served: Served) -> bool:
    try:
        return httpx.get(f"{served.address}/health").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
