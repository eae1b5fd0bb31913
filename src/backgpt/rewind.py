"""Rewinding: the conversation that led to a last message, written backward turn by turn.

Takes an engine and the messages at the end; gives transcripts. A transcript's ids, in model order,
are only ever appended to, and everything shown is made from them: a model does not always write
the byte pairs that an encoder would choose, so text could not be turned back into the same ids.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from backgpt.chat import Template
from backgpt.engine import Engine
from backgpt.errors import UsageError
from backgpt.generate import Text, pieces
from backgpt.messages import Message, Role
from backgpt.order import ModelIds
from backgpt.sampling import Sampling

RewindReason = Literal["stop", "turns", "length"]


class Piece(NamedTuple):
    """Some text to put in front of the message that `role` is saying.

    Messages are written last one first; `turn` numbers them from 0 as they are.
    """

    turn: int
    role: Role
    text: str


@dataclass(frozen=True)
class Transcript:
    """A conversation in reading order, its end given, the rest written.

    `ids`, (T,), are all ids in model order. `logprob` is the log-probability in nats of what was
    written. `finish_reason` is "stop" when the model reached the conversation's beginning, "turns"
    when it wrote as many messages as were asked for, and "length" when the next was too long.
    """

    messages: tuple[Message, ...]
    n_given: int
    finish_reason: RewindReason
    logprob: float
    seed: int
    ids: ModelIds = field(repr=False)


def rewind(
    engine: Engine,
    template: Template,
    given: Sequence[Message],
    *,
    turns: int,
    context: str = "",
    sampling: Sampling,
    max_new_tokens: int | None = None,
    seed: int = 0,
) -> Transcript:
    """Write up to `turns` messages that came before `given`, each of at most `max_new_tokens` ids.

    A message that is not finished is left out. Raises UsageError as `Template.before`, for no
    turns, and if what is given does not fit the context.
    """
    going = going_back(
        engine,
        template,
        given,
        turns=turns,
        context=context,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    while True:
        try:
            next(going)
        except StopIteration as end:
            transcript: Transcript = end.value
            return transcript


def going_back(
    engine: Engine,
    template: Template,
    given: Sequence[Message],
    *,
    turns: int,
    context: str,
    sampling: Sampling,
    max_new_tokens: int | None,
    seed: int,
) -> Generator[Piece, None, Transcript]:
    """Do as `rewind`, and yield what is written as it is; pieces of a message left out as well."""
    if turns < 1:
        raise UsageError(f"turns = {turns}: ask for at least 1")
    prompt = template.before(given, context=context)
    ids, speaker = prompt.ids, given[0].role
    reason: RewindReason = "turns"
    total = 0.0
    for turn in range(turns):
        speaker = "assistant" if speaker == "user" else "user"
        text = yield from spoken(
            pieces(
                engine,
                template.language,
                prompt,
                sampling=sampling,
                max_new_tokens=max_new_tokens,
                seed=seed + turn,
            ),
            role=speaker,
            turn=turn,
        )
        if text.finish_reason == "length":
            reason = "length"
            break
        at_start = not len(text.ids)  # only there may a message end before it has begun
        stops = prompt.stops.at_once if at_start else prompt.stops.later
        ids = ModelIds(np.concatenate((ids, text.ids, stops)))
        total += text.logprob
        if at_start:
            reason = "stop"
            break
        if len(ids) > engine.block_size:
            reason = "length"
            break
        prompt = template.going_back(ids, speaker=speaker, may_start=speaker == "user")
    return Transcript(
        messages=tuple(template.messages(ids)),
        n_given=len(given),
        finish_reason=reason,
        logprob=total,
        seed=seed,
        ids=ids,
    )


def spoken(
    written: Generator[str, None, Text], *, role: Role, turn: int
) -> Generator[Piece, None, Text]:
    """Yield a message's pieces, at least one if it is a message at all; return its text."""
    silent = True
    with closing(written):
        while True:
            try:
                piece = next(written)
            except StopIteration as end:
                text: Text = end.value
                break
            silent = False
            yield Piece(turn, role, piece)
    if silent and len(text.ids):
        yield Piece(turn, role, "")
    return text
