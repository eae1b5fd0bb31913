"""Writing on another server: order, streams and the page are ours, only ids come from there.

Asks any OpenAI-compatible completions server that takes ids as the prompt and returns ids
(`token_ids`, as vLLM does when told `return_token_ids`) or strings token by token. The prompt is in
model order, control ids and all. A server of ours is asked in its own way, which says exactly
where a text may end; others get stop ids and a bias against the rest of the control ids.
"""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

import httpx

from backgpt.errors import BackgptError
from backgpt.generate import Drawing
from backgpt.running import Drawn, Job, room_for
from backgpt.server.catalog import Catalog
from backgpt.server.channel import Channel, Ended, Part, Wrote
from backgpt.server.failures import (
    ApiError,
    BusyError,
    FaultError,
    StoppingError,
    log,
    place_of,
)

SECONDS = httpx.Timeout(60.0, connect=5.0, pool=None)
LIMITS = httpx.Limits(
    max_connections=None,
    max_keepalive_connections=20,
    keepalive_expiry=2.0,  # seconds, less than servers keep a connection: uvicorn's default is 5
)
MOST_LINE_BYTES = 1 << 20  # of a stream, which tells a few ids a line
NEVER = -100.0  # OpenAI's bias for an id that must not come
OURS = "backgpt"


class Upstream:
    """Writes texts on the server at `url`; up to `max_in_flight` samples at a time."""

    def __init__(
        self,
        url: str,
        catalog: Catalog,
        *,
        max_in_flight: int,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.in_flight = self.n_drawn = 0
        self._catalog, self._max_in_flight = catalog, max_in_flight
        self._url = url.rstrip("/").removesuffix("/v1")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._client = httpx.AsyncClient(
            timeout=SECONDS, limits=LIMITS, headers=headers, transport=transport
        )
        self._tasks: dict[Channel, asyncio.Task[None]] = {}
        self._served: dict[str, str] = {}

    def write(self, parts: Sequence[Part]) -> Channel:
        """Begin to write the parts of a request. Raises ApiError if that cannot be."""
        if parts[0].job.language.by_word:
            raise ApiError(400, "models that write by words cannot be run upstream", param="model")
        if parts[0].job.n_likeliest:
            raise ApiError(
                400,
                "no alternatives are told of what is written upstream: 0 at most",
                param="logprobs",
            )
        weight = sum(part.job.n for part in parts)
        if self.in_flight and self.in_flight + weight > self._max_in_flight:
            raise BusyError
        self.in_flight += weight
        channel = Channel(weight, self._cancel)
        self._tasks[channel] = asyncio.create_task(self._write_all(channel, parts))
        return channel

    def ask_to_stop(self) -> None:
        """Have what is not finished fail; from any thread."""
        for channel, task in list(self._tasks.items()):
            channel.loop.call_soon_threadsafe(task.cancel)

    async def close(self) -> None:
        """Stop what is being written, and let go of the connections."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    def _cancel(self, channel: Channel) -> None:
        if task := self._tasks.get(channel):
            task.cancel()

    async def _write_all(self, channel: Channel, parts: Sequence[Part]) -> None:
        error: BackgptError | None = StoppingError()  # for who still listens if it is canceled
        try:
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(self._write(channel, part))
            error = None
        except* httpx.HTTPError as errors:
            log.error("upstream: %s", place_of(errors.exceptions[0]))
            error = _bad_gateway("cannot be reached")
        except* BackgptError as errors:
            [error, *_] = (one for one in errors.exceptions if isinstance(one, BackgptError))
        except* Exception as errors:
            log.error("upstream: %s", place_of(errors.exceptions[0]))
            error = FaultError()
        finally:
            del self._tasks[channel]
            self.in_flight -= channel.weight
            channel.put(error)
            channel.put(None)

    async def _write(self, channel: Channel, part: Part) -> None:
        """Write one part, turn after turn."""
        turn = 0
        following: Job | None = part.job
        while following is not None:
            job, following = following, None
            drawings = [Drawing(job) for _ in range(job.n)]
            unfinished = set(range(job.n))
            async with aclosing(self._drawn(part, job)) as drawing_on:
                async for number, drawn, ended in drawing_on:
                    if number not in unfinished:
                        continue
                    drawing, index = drawings[number], part.first + number
                    if drawn is not None:
                        self.n_drawn += 1
                        piece = drawing.take(drawn)
                        if part.is_told(piece, drawn):
                            channel.put(Wrote(index, piece, turn, drawn))
                    if ended or drawing.stopped:
                        unfinished.remove(number)
                        piece = drawing.finish()
                        if part.is_told(piece, None):
                            channel.put(Wrote(index, piece, turn))
                        following = part.after(drawing.result) if part.after else None
                        channel.put(Ended(index, drawing, turn, more=following is not None))
                    if not unfinished:
                        break
            if unfinished:
                raise _bad_gateway("ended its answer too early")
            turn += 1

    async def _drawn(
        self, part: Part, job: Job
    ) -> AsyncGenerator[tuple[int, Drawn | None, bool], None]:
        """Yield (sample, id drawn, whether the sample ends with it) as they come."""
        body, id_of = await self._body(part, job), _IdOf(job)
        async with self._client.stream(
            "POST", f"{self._url}/v1/completions", json=body
        ) as response:
            if response.status_code == BusyError().status:
                raise BusyError
            if response.status_code == httpx.codes.NOT_FOUND:
                self._served = {}  # it may serve other models by now
            if response.status_code != httpx.codes.OK:
                raise _bad_gateway(f"answered {response.status_code}")
            async for chunk in _chunks(response):
                for choice in chunk.get("choices") or ():
                    with _reading():
                        number, reason = int(choice["index"]), choice.get("finish_reason")
                        ids = id_of.each(choice)
                    at_end = False
                    for id_, logprob in ids:
                        at_end = id_ in job.prompt.stops
                        yield number, Drawn(number, id_, logprob, is_last=at_end), at_end
                        if at_end:
                            break
                    if reason and not at_end:
                        marker = id_of.marker(choice) if reason == "stop" else None
                        last = None if marker is None else Drawn(number, marker, 0.0, is_last=True)
                        yield number, last, True

    async def _body(self, part: Part, job: Job) -> dict[str, Any]:
        """Return what to send, in the words of the server that is asked."""
        sampling, stops = job.sampling, job.prompt.stops
        model, owner = await self._model(part)
        body: dict[str, Any] = {
            "model": model,
            "prompt": job.prompt.ids.tolist(),
            "n": job.n,
            "max_tokens": room_for(part.engine, job),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "dry_multiplier": sampling.dry_multiplier,
            "seed": job.seed,
            "stream": True,
        }
        if sampling.top_k is not None:
            body["top_k"] = sampling.top_k
        if owner == OURS:
            raw = {
                "at_once": list(stops.at_once),
                "later": list(stops.later),
                "begins_word": job.prompt.begins_word,
            }
            wanted = {"words": list(job.prompt.words), "length": job.prompt.length}
            ours = {"raw": raw, "direction": job.language.direction, **wanted}
            return {**body, "backgpt": ours}
        tokenizer = job.language.tokenizer
        # It counts the last id, which is never read, as well.
        most = max(1, part.engine.block_size - len(job.prompt.ids))
        controls = [id_ for id_ in range(tokenizer.vocab_size) if not tokenizer.has_text[id_]]
        return {
            **body,
            "max_tokens": min(body["max_tokens"], most),
            "logprobs": 1,
            "return_token_ids": True,
            "add_special_tokens": False,
            "skip_special_tokens": False,
            "min_tokens": 0 if stops.at_once else 1,
            "stop_token_ids": sorted({*stops.at_once, *stops.later}),
            "logit_bias": {str(id_): NEVER for id_ in controls if id_ not in stops},
        }

    async def _model(self, part: Part) -> tuple[str, str]:
        """Return the upstream's name of a model, and who it says owns it."""
        name = self._catalog.name_of(part.engine)
        if name not in self._served and len(self._served) != 1:  # or others since it was asked
            response = await self._client.get(f"{self._url}/v1/models")
            if response.status_code != httpx.codes.OK:
                raise _bad_gateway(f"answered {response.status_code} when asked for its models")
            with _reading():
                self._served = {
                    str(one["id"]): str(one.get("owned_by")) for one in response.json()["data"]
                }
        if name not in self._served and len(self._served) == 1:
            [name] = self._served
        if name not in self._served:
            raise _bad_gateway(f"has no model {name}: it has {', '.join(self._served)}")
        return name, self._served[name]


class _IdOf:
    """Reads ids out of what a server says of a choice."""

    def __init__(self, job: Job) -> None:
        self._tokenizer, self._stops = job.language.tokenizer, job.prompt.stops
        self._by_name: dict[str, int] = {}

    def each(self, choice: dict[str, Any]) -> list[tuple[int, float]]:
        """Return the ids of a chunk with their log-probabilities, 0 where none are told.

        Raises ApiError for what is no id of the model, or a control id that ends nothing; other
        errors for what is not in the shape of an answer.
        """
        told = choice.get("logprobs") or {}
        ids = choice.get("token_ids")
        if ids is None:
            ids = [self._from_name(name) for name in told.get("tokens") or ()]
            if not ids and choice.get("text"):
                raise _bad_gateway("tells neither token_ids nor logprobs.tokens")
        logprobs = told.get("token_logprobs") or [0.0] * len(ids)
        size, has_text = self._tokenizer.vocab_size, self._tokenizer.has_text
        for id_ in ids:
            if not 0 <= id_ < size or not (has_text[id_] or id_ in self._stops):
                raise _bad_gateway(f"wrote id {id_}, which has no place in a text")
        found = [(int(id_), float(p or 0.0)) for id_, p in zip(ids, logprobs, strict=True)]
        if not all(math.isfinite(logprob) for _, logprob in found):
            raise ValueError("a log-probability is no number")
        return found

    def marker(self, choice: dict[str, Any]) -> int:
        """Return the id that ended a choice, where the server leaves it out of the ids."""
        reason = choice.get("stop_reason")
        if isinstance(reason, int) and reason in self._stops:
            return reason
        return (*self._stops.later, *self._stops.at_once)[0]

    def _from_name(self, name: str) -> int:
        if name.startswith("token_id:"):
            return int(name.removeprefix("token_id:"))
        if not self._by_name:
            names = [self._tokenizer.name_of(id_) for id_ in range(self._tokenizer.vocab_size)]
            self._by_name = {name: id_ for id_, name in enumerate(names) if "\ufffd" not in name}
        if name not in self._by_name:
            raise _bad_gateway("wrote a part of a character, and told no token_ids")
        return self._by_name[name]


async def _chunks(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON objects of a stream of events. Raises ApiError for an error among them."""
    rest = b""
    async for data in response.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > MOST_LINE_BYTES:
            raise _bad_gateway("answered a line that does not end")
        for line in lines:
            content = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or content == b"[DONE]":
                continue
            with _reading():
                chunk = json.loads(content)
                choices = chunk.get("choices")
            if not isinstance(choices, list | None):
                raise _bad_gateway("answered what cannot be read")
            if "error" in chunk:
                raise _bad_gateway("failed while it wrote")
            yield chunk


@contextmanager
def _reading() -> Iterator[None]:
    """Around what reads an answer: what its shape does not allow is the other server's fault."""
    try:
        yield
    except (
        ValueError,
        ArithmeticError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        log.error("upstream: %s", place_of(error))
        raise _bad_gateway("answered what cannot be read") from None


def _bad_gateway(what: str) -> ApiError:
    return ApiError(502, f"the upstream server {what}", code="upstream")
