"""`/v1/completions`: the text that leads to an ending, goes on from an opening, or joins both."""

import secrets
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from backgpt.api import Model
from backgpt.running import Job, room_for
from backgpt.server.answers import Completion, CompletionChoice, TokenLogprobs, Usage
from backgpt.server.channel import Channel, Ended, Part, Wrote
from backgpt.server.choices import Choices
from backgpt.server.failures import ApiError
from backgpt.server.prompts import given_texts
from backgpt.server.raw import complete_raw
from backgpt.server.schema import MOST_SAMPLES, CompletionRequest
from backgpt.server.service import Service, TheService
from backgpt.server.streams import OR_A_STREAM, Chunk, Stream, as_chunk, while_connected

MOST_CHOICES = 128
"""That are written for one request, over all its prompts."""

router = APIRouter()


@router.post("/v1/completions", response_model=Completion, responses=OR_A_STREAM)
async def complete(
    asked: CompletionRequest, request: Request, service: TheService
) -> Completion | Response:
    """Write what stands before an ending, after an opening, or between the two."""
    name, model = service.catalog.for_text(asked.model, asked.backgpt.direction)
    if asked.backgpt.raw is not None:
        return await complete_raw(
            asked, asked.backgpt.raw, name=name, model=model, request=request, service=service
        )
    answer = await run_in_threadpool(_Answer.to, asked, name, model)
    if asked.echo and asked.logprobs is not None:
        answer.choices.given_tokens = await service.work_out(request, answer.choices.score_given())
    if not answer.writes:
        return answer.completion(answer.choices.of_given(answer.seed))
    channel = service.writer.write(answer.parts())
    if asked.stream:
        return Stream(channel, answer.chunks(channel, service))
    try:
        return await while_connected(request.receive, answer.collected(channel, service))
    finally:
        channel.close()


@dataclass
class _Answer:
    """The answer to one request: what is to be written for it, and how it is sent."""

    choices: Choices
    model_name: str
    seed: int
    id_: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def to(cls, asked: CompletionRequest, name: str, model: Model) -> "_Answer":
        """Return the answer to a request. Raises UsageError or ApiError if there is none."""
        choices = Choices(asked, model, given_texts(asked, model))
        _refuse_what_cannot_be(asked, choices)
        seed = secrets.randbits(32) if asked.seed is None else asked.seed
        answer = cls(choices, name, seed)
        if answer.writes:
            for part in answer.parts():
                room_for(part.engine, part.job)
        return answer

    @property
    def asked(self) -> CompletionRequest:
        """The request."""
        return self.choices.asked

    @property
    def model(self) -> Model:
        """What writes."""
        return self.choices.model

    @property
    def writes(self) -> bool:
        """Whether anything is to be written."""
        return self.asked.max_tokens != 0 and not self.choices.given[0].whole

    @property
    def live(self) -> bool:
        """Whether pieces are sent as they are written, not each choice when it is finished."""
        if not self.asked.stream or self.choices.of_bridges or self.choices.ranked:
            return False
        leftward = self.model.direction == "backward"
        return self.asked.order == "prepend" or (not leftward and self.asked.logprobs is None)

    def parts(self) -> list[Part]:
        """Return what is to be written."""
        return [
            Part(
                self.model.engine,
                Job(
                    self.model.language,
                    one.prompt,
                    n=self.choices.n_written,
                    sampling=self.asked.sampling,
                    max_new_tokens=_least(self.asked.max_tokens, one.room),
                    seed=self.seed,
                    stop=self.asked.stops,
                    n_likeliest=self.asked.logprobs or 0,
                ),
                first=number * self.choices.n_written,
                tells="pieces" if self.live else "ends",
            )
            for number, one in enumerate(self.choices.given)
        ]

    async def collected(self, channel: Channel, service: Service) -> Completion:
        """Return all choices when they are written."""
        ended = [event async for event in channel.events() if isinstance(event, Ended)]
        drawings = [event.drawing for event in sorted(ended, key=lambda event: event.index)]
        if self.choices.of_bridges or self.choices.ranked:
            found = await service.finish(self.choices.best(drawings))
        else:
            found = [self.choices.of_text(*numbered) for numbered in enumerate(drawings)]
        return self.completion(found, sum(drawing.result.n_tokens for drawing in drawings))

    async def chunks(self, channel: Channel, service: Service) -> AsyncIterator[Chunk]:
        """Yield the chunks of a stream: live where that can be, else choice by choice."""
        chunks = (
            self._chunks_of_the_best(channel, service)
            if self.choices.of_bridges or self.choices.ranked
            else self._chunks_as_they_come(channel)
        )
        async for chunk in chunks:
            yield chunk

    async def _chunks_of_the_best(self, channel: Channel, service: Service) -> AsyncIterator[Chunk]:
        completion = await self.collected(channel, service)
        for choice in completion.choices:
            yield self._chunk(choice.index, choice.text, logprobs=choice.logprobs)
            yield self._chunk(choice.index, "", ended=choice)
        if self.asked.wants_usage:
            yield self._usage_chunk(completion.usage)

    async def _chunks_as_they_come(self, channel: Channel) -> AsyncIterator[Chunk]:
        n_written = 0
        if self.live and self.asked.echo:
            for index, number in enumerate(self.choices.numbers):
                yield self._chunk(index, self.choices.given[number].prompt.text)
        async for event in channel.events():
            if isinstance(event, Wrote):
                yield self._chunk(event.index, event.text)
            elif isinstance(event, Ended):
                choice = self.choices.of_text(event.index, event.drawing)
                n_written += choice.backgpt.n_tokens
                if not self.live:
                    yield self._chunk(choice.index, choice.text, logprobs=choice.logprobs)
                yield self._chunk(choice.index, "", ended=choice)
        if self.asked.wants_usage:
            yield self._usage_chunk(self._usage(n_written))

    def _chunk(
        self,
        index: int,
        text: str,
        *,
        logprobs: TokenLogprobs | None = None,
        ended: CompletionChoice | None = None,
    ) -> Chunk:
        choice: Chunk = {
            "index": index,
            "text": text,
            "finish_reason": ended.finish_reason if ended else None,
            "logprobs": as_chunk(logprobs) if logprobs else None,
        }
        if ended:
            choice["backgpt"] = as_chunk(ended.backgpt)
            if ended.token_ids is not None:
                choice["token_ids"] = ended.token_ids
        return {**self._envelope(), "choices": [choice]}

    def _usage_chunk(self, usage: Usage) -> Chunk:
        return {**self._envelope(), "choices": [], "usage": as_chunk(usage)}

    def _envelope(self) -> Chunk:
        leftward = self.model.direction == "backward" and self.asked.order == "prepend"
        return {
            "id": self.id_,
            "object": "text_completion",
            "created": self.created,
            "model": self.model_name,
            "backgpt": {"order": "prepend" if leftward else "append"},
        }

    def completion(self, choices: list[CompletionChoice], n_written: int = 0) -> Completion:
        """Return the whole answer; `n_written` ids were written for it."""
        return Completion(
            id=self.id_,
            created=self.created,
            model=self.model_name,
            choices=choices,
            usage=self._usage(n_written),
        )

    def _usage(self, n_written: int) -> Usage:
        return Usage.of(sum(len(one.prompt.ids) for one in self.choices.given), n_written)


def _refuse_what_cannot_be(asked: CompletionRequest, choices: Choices) -> None:
    """Raise ApiError for what does not go together."""
    given = choices.given
    if asked.count > MOST_SAMPLES:
        raise ApiError(400, f"n = {asked.count}: it must be at most {MOST_SAMPLES}", param="n")
    if asked.best_of is not None and asked.best_of < asked.count:
        raise ApiError(
            400,
            f"best_of = {asked.best_of}: it must be at least n = {asked.count}",
            param="best_of",
        )
    if len(given) * choices.n_written > MOST_CHOICES:
        name = "n" if asked.best_of is None else "best_of"
        raise ApiError(
            400,
            f"{len(given)} prompts with {name} = {choices.n_written}: ask for at most "
            f"{MOST_CHOICES} texts at a time",
            param=name,
        )
    if choices.ranked and (asked.stops or asked.backgpt.continues):
        raise ApiError(
            400,
            "ranking is for whole texts: leave out best_of, or stop and backgpt.continues",
            param="best_of",
        )
    if asked.max_tokens == 0 and (not asked.echo or asked.stream):
        raise ApiError(400, "max_tokens = 0 only goes with echo, unstreamed", param="max_tokens")
    if asked.max_tokens == 0 and choices.of_bridges:
        raise ApiError(400, "max_tokens = 0 does not go with a bridge", param="max_tokens")
    n_whole = sum(one.whole for one in given)
    if n_whole and (not asked.echo or asked.stream or n_whole < len(given)):
        raise ApiError(
            400,
            "a prompt with the marker at the far edge is a whole text: it is only scored, "
            "with echo, unstreamed, and beside others like it",
            param="prompt",
        )
    if asked.stream and asked.order == "prepend" and asked.logprobs is not None:
        raise ApiError(400, "logprobs do not go with the order prepend", param="logprobs")


def _least(*numbers: int | None) -> int | None:
    """Return the least of the numbers that there are."""
    return min((number for number in numbers if number is not None), default=None)
