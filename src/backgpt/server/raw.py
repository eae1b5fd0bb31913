"""Ids in, ids out: what one server asks of another, in the shape that vLLM gives it.

The prompt is a list of ids in model order, control ids and all; what is drawn comes back in model
order as `token_ids` with `logprobs`. Turning ids into text is for who asked, and hints are in the
prompt already: words that should occur, and a length, are only made likelier.
"""

import time
import uuid
from collections.abc import AsyncIterator

import numpy as np
from fastapi import Request
from starlette.responses import JSONResponse, Response

from backgpt.api import Model
from backgpt.hints import Hints
from backgpt.language import Prompt, Stops
from backgpt.order import ModelIds
from backgpt.running import Drawn, Job, room_for
from backgpt.server.channel import Channel, Ended, Part, Wrote
from backgpt.server.failures import ApiError
from backgpt.server.prompts import check_length
from backgpt.server.schema import MOST_RAW, CompletionRequest, RawStops
from backgpt.server.service import Service
from backgpt.server.streams import Chunk, Stream, while_connected


async def complete_raw(
    asked: CompletionRequest,
    stops: RawStops,
    *,
    name: str,
    model: Model,
    request: Request,
    service: Service,
) -> Response:
    """Answer a raw completion. Raises ApiError or UsageError if it cannot be."""
    _refuse_what_has_no_meaning(asked)
    job = Job(
        model.language,
        _prompt(asked, stops, model),
        n=asked.count,
        sampling=asked.sampling,
        max_new_tokens=asked.max_tokens,
        seed=asked.seed or 0,
    )
    room_for(model.engine, job)
    channel = service.writer.write(
        [Part(model.engine, job, tells="ids" if asked.stream else "ends")]
    )
    envelope = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": name,
    }
    if asked.stream:
        return Stream(channel, _chunks(channel, envelope))
    try:
        choices = await while_connected(request.receive, _choices(channel))
    finally:
        channel.close()
    return JSONResponse({**envelope, "choices": choices, "usage": None})


async def _chunks(channel: Channel, envelope: Chunk) -> AsyncIterator[Chunk]:
    async for event in channel.events():
        if isinstance(event, Wrote) and event.drawn:
            yield {**envelope, "choices": [_choice(event.index, [event.drawn], None)]}
        elif isinstance(event, Ended):
            reason = event.drawing.result.finish_reason
            yield {**envelope, "choices": [_choice(event.index, [], reason)]}


async def _choices(channel: Channel) -> list[Chunk]:
    choices = [
        _choice(event.index, event.drawing.drawn, event.drawing.result.finish_reason)
        async for event in channel.events()
        if isinstance(event, Ended)
    ]
    return sorted(choices, key=lambda choice: int(choice["index"]))


def _choice(index: int, drawn: list[Drawn], reason: str | None) -> Chunk:
    return {
        "index": index,
        "text": "",
        "token_ids": [one.id_ for one in drawn],
        "logprobs": {
            "tokens": [f"token_id:{one.id_}" for one in drawn],
            "token_logprobs": [one.logprob for one in drawn],
        },
        "finish_reason": reason,
    }


def _refuse_what_has_no_meaning(asked: CompletionRequest) -> None:
    ours = asked.backgpt
    if asked.count > MOST_RAW:
        raise ApiError(400, f"n = {asked.count}: it must be at most {MOST_RAW}", param="n")
    given = {
        "stop": asked.stops,
        "logprobs": asked.logprobs is not None,
        "echo": asked.echo,
        "best_of": asked.best_of is not None,
        "stream_options.include_usage": asked.wants_usage,
        "stream_options.order": asked.order != "append",
        "backgpt.continues": ours.continues,
    }
    for name, value in given.items():
        if value:
            raise ApiError(400, f"{name} does not go with a raw prompt", param=name)


def _prompt(asked: CompletionRequest, stops: RawStops, model: Model) -> Prompt:
    ids = asked.prompt
    check_length(model, *asked.backgpt.words, param="backgpt.words")
    if not isinstance(ids, list) or not all(isinstance(id_, int) for id_ in ids) or asked.suffix:
        raise ApiError(400, "a raw prompt is one list of ids, without suffix", param="prompt")
    size, has_text = model.tokenizer.vocab_size, model.tokenizer.has_text
    if asked.backgpt.length and not stops.later:
        raise ApiError(400, "a length needs an id to stop at later", param="backgpt.length")
    array = np.array(ids, dtype=np.int64)
    stopping = np.array([*stops.at_once, *stops.later], dtype=np.int64)
    if max(array.max(), stopping.max(initial=0)) >= size or has_text[stopping].any():
        raise ApiError(400, "an id is unknown, or one to stop at is no control id", param="prompt")
    controls = np.flatnonzero(~has_text[array])
    return Prompt(
        text="",
        ids=ModelIds(array),
        n_first=int(controls[-1]) + 1 if len(controls) else 0,
        joins_on=True,
        stops=Stops(tuple(stops.at_once), tuple(stops.later)),
        begins_word=stops.begins_word,
        words=Hints(words=tuple(asked.backgpt.words)).each_word,
        length=asked.backgpt.length,
    )
