"""`/v1/completions`: the text that leads to an ending, or goes on from an opening."""

import secrets
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from backgpt.api import Model
from backgpt.running import Job, room_for
from backgpt.server.answers import (
    ChoiceDetails,
    Completion,
    CompletionChoice,
    Obeyed,
    TokenLogprobs,
    Usage,
)
from backgpt.server.channel import Channel, Ended, Part, Wrote
from backgpt.server.failures import ApiError
from backgpt.server.prompts import Given, given_texts
from backgpt.server.raw import complete_raw
from backgpt.server.schema import CompletionRequest
from backgpt.server.service import TheService
from backgpt.server.streams import OR_A_STREAM, Chunk, Stream, as_chunk, while_connected
from backgpt.server.tokens import Token, given_tokens, token_logprobs
from backgpt.slices import Slices

MOST_CHOICES = 128
"""Of one request, over all its prompts."""

router = APIRouter()


@router.post("/v1/completions", response_model=Completion, responses=OR_A_STREAM)
async def complete(
    asked: CompletionRequest, request: Request, service: TheService
) -> Completion | Response:
    """Write what stands before an ending, or after an opening."""
    name, model = service.catalog.for_text(asked.model, asked.backgpt.direction)
    if asked.backgpt.raw is not None:
        return await complete_raw(asked, asked.backgpt.raw, name, model, request, service)
    answer = await run_in_threadpool(_Answer.to, asked, name, model)
    if asked.echo and asked.logprobs is not None:
        answer.given_tokens = await service.work_out(request, answer.score_given())
    if not answer.writes:
        return answer.without_writing()
    channel = service.writer.write(answer.parts())
    if asked.stream:
        return Stream(channel, answer.chunks(channel))
    try:
        return await while_connected(request.receive, answer.collected(channel))
    finally:
        channel.close()


@dataclass
class _Answer:
    """The answer to one request: what is to be written for it, and how it is told.

    Of each of the `given` texts there are `asked.count` choices, one behind the other.
    """

    asked: CompletionRequest
    model_name: str
    model: Model
    given: list[Given]
    seed: int
    given_tokens: list[list[Token]] = field(default_factory=list)
    id_: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def to(cls, asked: CompletionRequest, name: str, model: Model) -> "_Answer":
        """Return the answer to a request. Raises UsageError or ApiError if there is none."""
        given = given_texts(asked, model)
        if len(given) * asked.count > MOST_CHOICES:
            raise ApiError(
                400,
                f"{len(given)} prompts with n = {asked.count}: ask for at most {MOST_CHOICES} "
                "texts at a time",
                param="n",
            )
        if asked.max_tokens == 0 and (not asked.echo or asked.stream):
            raise ApiError(
                400, "max_tokens = 0 only goes with echo, unstreamed", param="max_tokens"
            )
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
        seed = secrets.randbits(32) if asked.seed is None else asked.seed
        answer = cls(asked, name, model, given, seed)
        if answer.writes:
            for part in answer.parts():
                room_for(part.engine, part.job)
        return answer

    @property
    def writes(self) -> bool:
        """Whether anything is to be written."""
        return self.asked.max_tokens != 0 and not self.given[0].whole

    def parts(self) -> list[Part]:
        """Return what is to be written."""
        return [
            Part(
                self.model.engine,
                Job(
                    self.model.language,
                    one.prompt,
                    n=self.asked.count,
                    sampling=self.asked.sampling,
                    max_new_tokens=self.asked.max_tokens,
                    seed=self.seed,
                    stop=self.asked.stops,
                    n_likeliest=self.asked.logprobs or 0,
                ),
                first=number * self.asked.count,
                opening="" if self.asked.echo else one.opening,
            )
            for number, one in enumerate(self.given)
        ]

    def score_given(self) -> Slices[list[list[Token]]]:
        """Score the given texts, slice by slice."""
        tokens = yield from given_tokens(
            self.model.engine,
            [one.prompt for one in self.given],
            n_likeliest=self.asked.logprobs or 0,
        )
        return [
            of_text if one.marker is None else [Token(one.marker, None), *of_text]
            for one, of_text in zip(self.given, tokens, strict=True)
        ]

    def without_writing(self) -> Completion:
        """Return the given texts alone, scored if that was asked."""
        choices = [
            CompletionChoice(
                index=number,
                text=one.prompt.text,
                finish_reason="stop" if one.whole else "length",
                logprobs=self._logprobs(
                    self.given_tokens[number // self.asked.count], one.prompt.text, one.prompt.text
                ),
                backgpt=ChoiceDetails(seed=self.seed, logprob=0.0, n_tokens=0),
            )
            for number, one in enumerate(self.given[i] for i in self._numbers())
        ]
        return self._completion(choices)

    async def collected(self, channel: Channel) -> Completion:
        """Return all choices when they are written."""
        choices = [
            self._choice(event) async for event in channel.events() if isinstance(event, Ended)
        ]
        return self._completion(sorted(choices, key=lambda choice: choice.index))

    async def chunks(self, channel: Channel) -> AsyncIterator[Chunk]:
        """Yield the chunks of a stream: live where the order allows it, else choice by choice."""
        leftward = self.model.direction == "backward"
        prepend = self.asked.order == "prepend"
        live = prepend or (not leftward and self.asked.logprobs is None)
        n_written = 0
        if live and self.asked.echo:
            for number, i in enumerate(self._numbers()):
                yield self._chunk(number, self.given[i].prompt.text)
        async for event in channel.events():
            if isinstance(event, Wrote) and live:
                yield self._chunk(event.index, event.text)
            elif isinstance(event, Ended):
                choice = self._choice(event)
                n_written += choice.backgpt.n_tokens
                if not live:
                    yield self._chunk(choice.index, choice.text, logprobs=choice.logprobs)
                yield self._chunk(choice.index, "", ended=choice)
        if self.asked.wants_usage:
            yield {**self._envelope(), "choices": [], "usage": as_chunk(self._usage(n_written))}

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
        return {**self._envelope(), "choices": [choice]}

    def _envelope(self) -> Chunk:
        leftward = self.model.direction == "backward" and self.asked.order == "prepend"
        return {
            "id": self.id_,
            "object": "text_completion",
            "created": self.created,
            "model": self.model_name,
            "backgpt": {"order": "prepend" if leftward else "append"},
        }

    def _choice(self, ended: Ended) -> CompletionChoice:
        one, drawing = self.given[ended.index // self.asked.count], ended.drawing
        text = drawing.result
        edge = [drawn for drawn in drawing.drawn[-1:] if drawn.id_ in one.prompt.stops]
        written = [
            Token(drawn.id_, drawn.logprob, drawn.likeliest)
            for drawn in (*drawing.drawn[: len(text.ids)], *edge)
        ]
        if self.asked.echo:
            shown, uncut = text.text, drawing.whole
            given = self.given_tokens[ended.index // self.asked.count] if self.given_tokens else []
            tokens = [*given, *written]
        else:
            shown, uncut, tokens = drawing.written, drawing.uncut, written
        obeyed = None
        if one.hints:
            found = one.hints.obeyed_by(text.text)
            obeyed = Obeyed(**{str(kind): value for kind, value in found.items()})
            if one.opening and not self.asked.echo:
                obeyed.opening = drawing.opening_left_out
        return CompletionChoice(
            index=ended.index,
            text=shown,
            finish_reason=text.finish_reason,
            logprobs=self._logprobs(
                tokens, shown, uncut, after="" if self.asked.echo else text.given
            ),
            token_ids=text.ids.tolist() if self.asked.return_token_ids else None,
            backgpt=ChoiceDetails(
                seed=text.seed, logprob=text.logprob, n_tokens=text.n_tokens, obeyed=obeyed
            ),
        )

    def _logprobs(
        self, tokens: Sequence[Token], text: str, uncut: str, *, after: str = ""
    ) -> TokenLogprobs | None:
        if self.asked.logprobs is None:
            return None
        return token_logprobs(
            self.model.language,
            tokens,
            text,
            uncut=uncut,
            after=after if self.model.direction == "forward" else "",
            n_likeliest=self.asked.logprobs,
        )

    def _completion(self, choices: list[CompletionChoice]) -> Completion:
        n_written = sum(choice.backgpt.n_tokens for choice in choices)
        return Completion(
            id=self.id_,
            created=self.created,
            model=self.model_name,
            choices=choices,
            usage=self._usage(n_written),
        )

    def _usage(self, n_written: int) -> Usage:
        return Usage.of(sum(len(one.prompt.ids) for one in self.given), n_written)

    def _numbers(self) -> list[int]:
        """Return which given text each choice is of."""
        return [number for number in range(len(self.given)) for _ in range(self.asked.count)]
