"""`/v1/chat/completions`: you answer, it asks; or it rewinds, or replies.

The messages given are the end of a conversation in reading order, and what is written stands
before the first of them; only in the mode `reply` the last one is a question, and is answered.
"""

import secrets
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from backgpt.api import Model
from backgpt.chat import Template
from backgpt.generate import Text
from backgpt.language import Prompt
from backgpt.messages import Message, Role, as_transcript, other_role, take_turns
from backgpt.rewind import Rewinding, Transcript
from backgpt.running import Job, room_for
from backgpt.server.answers import Chat, ChatChoice, ChatDetails, SaidMessage, Usage
from backgpt.server.channel import Channel, Ended, Part, Tells, Wrote
from backgpt.server.failures import ApiError
from backgpt.server.prompts import check_length
from backgpt.server.schema import ChatRequest
from backgpt.server.service import TheService
from backgpt.server.streams import OR_A_STREAM, Chunk, Stream, as_chunk, while_connected

router = APIRouter()


@router.post("/v1/chat/completions", response_model=Chat, responses=OR_A_STREAM)
async def chat(asked: ChatRequest, request: Request, service: TheService) -> Chat | Response:
    """Write the message before those given, several of them, or an answer to the last."""
    name, model = service.catalog.for_chat(asked.model)
    answer = await run_in_threadpool(_Answer.to, asked, name, model)
    channel = service.writer.write(answer.parts())
    if asked.stream:
        return Stream(channel, answer.chunks(channel))
    try:
        return await while_connected(request.receive, answer.collected(channel))
    finally:
        channel.close()


@dataclass
class _Written:
    """What one choice has come to: its texts, the first one written first."""

    rewinding: Rewinding | None
    texts: list[Text] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        return sum(text.n_tokens for text in self.texts)


@dataclass
class _Answer:
    """The answer to one request: what is to be written for it, and how it is told."""

    asked: ChatRequest
    model_name: str
    model: Model
    prompt: Prompt
    role: Role
    """Who says what is written, at first."""
    seed: int
    choices: list[_Written]
    id_: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def to(cls, asked: ChatRequest, name: str, model: Model) -> "_Answer":
        """Return the answer to a request. Raises UsageError or ApiError if there is none."""
        if asked.max_tokens == 0:
            raise ApiError(400, "max_tokens = 0: ask for at least 1", param="max_tokens")
        template, seed = Template(model.language), asked.seed
        seed = secrets.randbits(32) if seed is None else seed
        context, messages = _conversation(asked)
        check_length(model, context, *(one.text for one in messages), param="messages")
        mode = asked.backgpt.mode
        role: Role
        rewindings: list[Rewinding | None] = [None] * asked.count
        if mode == "reply":
            prompt, role = template.reply(messages[-1].text, context=context), "assistant"
        elif mode == "ask":
            prompt, role = template.before(messages, context=context), "user"
        else:
            if asked.stops:
                raise ApiError(400, "stop does not go with the mode rewind", param="stop")
            turns = asked.backgpt.turns
            rewindings = [
                Rewinding(
                    template,
                    messages,
                    turns=turns,
                    context=context,
                    block_size=model.engine.block_size,
                    seed=seed + number * turns,
                )
                for number in range(asked.count)
            ]
            prompt, role = template.before(messages, context=context), other_role(messages[0].role)
        choices = [_Written(rewinding) for rewinding in rewindings]
        answer = cls(asked, name, model, prompt, role, seed, choices)
        room_for(model.engine, answer.parts()[0].job)
        return answer

    @property
    def live(self) -> bool:
        """Whether pieces are sent as they are written, not each choice when it is finished."""
        prepend = self.asked.order == "prepend"
        return bool(self.asked.stream) and (prepend or self.model.direction == "forward")

    def parts(self) -> list[Part]:
        """Return what is to be written: a conversation that is rewound is a part of its own."""
        engine = self.model.engine
        tells: Tells = "pieces" if self.live else "ends"
        if self.choices[0].rewinding is None:
            job = self._job(self.prompt, self.seed, n=self.asked.count)
            return [Part(engine, job, tells=tells)]
        return [
            Part(
                engine,
                self._job(self.prompt, written.rewinding.seed),
                first=number,
                after=partial(self._next, written.rewinding),
                tells=tells,
            )
            for number, written in enumerate(self.choices)
            if written.rewinding is not None
        ]

    def _job(self, prompt: Prompt, seed: int, *, n: int = 1) -> Job:
        asked = self.asked
        most = asked.max_completion_tokens
        return Job(
            self.model.language,
            prompt,
            n=n,
            sampling=asked.sampling,
            max_new_tokens=asked.max_tokens if most is None else most,
            seed=seed,
            stop=asked.stops,
        )

    def _next(self, rewinding: Rewinding, text: Text) -> Job | None:
        """Take a message of a conversation that is rewound; return the job for the one before."""
        rewinding.take(text)
        if rewinding.prompt is None:
            return None
        return self._job(rewinding.prompt, rewinding.seed)

    async def collected(self, channel: Channel) -> Chat:
        """Return all choices when they are written."""
        choices = []
        async for event in channel.events():
            if isinstance(event, Ended) and (choice := self._take(event)):
                choices.append(choice)
        return Chat(
            id=self.id_,
            created=self.created,
            model=self.model_name,
            choices=sorted(choices, key=lambda choice: choice.index),
            usage=self._usage,
        )

    async def chunks(self, channel: Channel) -> AsyncIterator[Chunk]:
        """Yield the chunks of a stream: live where the order allows it, else choice by choice.

        An empty one of each choice comes first.
        """
        of_first = {"turn": 0, "role": self.role} if self.live else None
        for index in range(self.asked.count):  # OpenAI's client wants to meet them in order
            yield self._chunk(index, {"role": "assistant", "content": ""}, ours=of_first)
        async for event in channel.events():
            if isinstance(event, Wrote):
                of_turn = {"turn": event.turn, "role": self._role(event.turn)}
                yield self._chunk(event.index, {"content": event.text}, ours=of_turn)
            elif isinstance(event, Ended) and (choice := self._take(event)):
                if not self.live:
                    yield self._chunk(event.index, {"content": choice.message.content})
                yield self._chunk(
                    event.index, {}, reason=choice.finish_reason, ours=as_chunk(choice.backgpt)
                )
        if self.asked.wants_usage:
            yield {**self._envelope(), "choices": [], "usage": as_chunk(self._usage)}

    def _take(self, ended: Ended) -> ChatChoice | None:
        """Take a finished message; return its choice if that is finished, too."""
        written = self.choices[ended.index]
        text = ended.drawing.result
        written.texts.append(text)
        if ended.more:
            return None
        found: Text | Transcript
        told: Sequence[Message]
        if written.rewinding is None:
            found, told, content = text, [Message(self.role, text.text)], text.text
        else:
            found = written.rewinding.transcript
            told = found.messages[: len(found.messages) - found.n_given]
            content = as_transcript(told)
        details = ChatDetails(
            seed=found.seed,
            logprob=found.logprob,
            n_tokens=written.n_tokens,
            role=self.role,
            messages=[SaidMessage(role=one.role, content=one.text) for one in told],
            finish_reason=found.finish_reason,
        )
        return ChatChoice(
            index=ended.index,
            message=SaidMessage(role="assistant", content=content),
            finish_reason="length" if details.finish_reason == "length" else "stop",
            backgpt=details,
        )

    def _role(self, turn: int) -> Role:
        return self.role if turn % 2 == 0 else other_role(self.role)

    def _chunk(
        self, index: int, delta: Chunk, *, reason: str | None = None, ours: Chunk | None = None
    ) -> Chunk:
        choice = {"index": index, "delta": delta, "finish_reason": reason}
        if ours:
            choice["backgpt"] = ours
        return {**self._envelope(), "choices": [choice]}

    def _envelope(self) -> Chunk:
        leftward = self.model.direction == "backward" and self.asked.order == "prepend"
        return {
            "id": self.id_,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model_name,
            "backgpt": {"order": "prepend" if leftward else "append"},
        }

    @property
    def _usage(self) -> Usage:
        return Usage.of(len(self.prompt.ids), sum(one.n_tokens for one in self.choices))


def _conversation(asked: ChatRequest) -> tuple[str, list[Message]]:
    """Return what a chat is about and its messages. Raises ApiError if they are none.

    A system message says what it is about. A client of ordinary chats sends a user's message, what
    the model said to it, and so on: in the mode `ask` the last one is the answer to ask about.
    """
    messages = [one.message for one in asked.messages]
    context = asked.backgpt.context
    if messages[0].role == "system" and not context:
        context, messages = messages[0].text, messages[1:]
    roles = [message.role for message in messages]
    mode = asked.backgpt.mode
    if not messages or "system" in roles:
        raise ApiError(
            400,
            "give at least one message of a user or an assistant, and a system message only "
            "in front of them, or a context",
            param="messages",
        )
    if mode == "reply" and roles != ["user"]:
        raise ApiError(400, "the mode reply takes one message, the user's", param="messages")
    if not take_turns(messages):
        raise ApiError(400, "users and assistants take turns: so must messages", param="messages")
    if mode == "ask" and roles[0] == "user":
        if roles[-1] != "user":
            raise ApiError(
                400,
                "in the mode ask the first message is an assistant's, the answer to what is asked, "
                "or the last one is a user's, the newest answer",
                param="messages",
            )
        return context, [Message("assistant", messages[-1].text)]
    return context, messages
