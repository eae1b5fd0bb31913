"""Rewinding: the conversation that led to a last message, written backward turn by turn.

Takes an engine and the messages at the end; gives transcripts. A transcript's ids, in model order,
are only ever appended to, and everything shown is made from them: a model does not always write
the byte pairs that an encoder would choose, so text could not be turned back into the same ids.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from backgpt.chat import Template
from backgpt.checks import whole
from backgpt.engine import Engine
from backgpt.generate import Text, pieces
from backgpt.language import Prompt
from backgpt.messages import Message, Role, other_role
from backgpt.order import ModelIds, joined
from backgpt.running import Job
from backgpt.sampling import Sampling
from backgpt.slices import finished

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
    return finished(
        going_back(
            engine,
            template,
            given,
            turns=turns,
            context=context,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
    )


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
    rewinding = Rewinding(
        template,
        given,
        turns=turns,
        context=context,
        block_size=engine.block_size,
        seed=seed,
    )
    while (prompt := rewinding.prompt) is not None:
        text = yield from spoken(
            pieces(
                engine,
                Job(
                    template.language,
                    prompt,
                    sampling=sampling,
                    max_new_tokens=max_new_tokens,
                    seed=rewinding.seed,
                ),
            ),
            role=rewinding.role,
            turn=rewinding.turn,
        )
        rewinding.take(text)
    return rewinding.transcript


class Rewinding:
    """A conversation that is being written backward: which message is next, and when it is over.

    `prompt` is that of the next message, None when there is none; `role` says it, as message
    number `turn`, drawn with `seed`. `take` its text, and the one before it is next.
    Raises UsageError as `rewind`, but for what does not fit the context.
    """

    def __init__(
        self,
        template: Template,
        given: Sequence[Message],
        *,
        turns: int,
        context: str,
        block_size: int,
        seed: int,
    ) -> None:
        whole("turns", turns, least=1)
        self.prompt: Prompt | None = template.before(given, context=context)
        self.turn = 0
        self.role = other_role(given[0].role)
        self._template, self._turns, self._block_size = template, turns, block_size
        self._n_given, self._first_seed = len(given), seed
        self._ids = self.prompt.ids
        self._logprob = 0.0
        self._reason: RewindReason = "turns"

    @property
    def seed(self) -> int:
        """What the next message is drawn with."""
        return self._first_seed + self.turn

    def take(self, text: Text) -> None:
        """Put the message that was written in front, unless it is not finished, and go on."""
        assert self.prompt is not None
        prompt, self.prompt = self.prompt, None
        if text.finish_reason == "length":
            self._reason = "length"
            return
        at_start = not len(text.ids)  # only there may a message end before it has begun
        stops = prompt.stops.at_once if at_start else prompt.stops.later
        self._ids = ModelIds(joined(self._ids, text.ids, stops))
        self._logprob += text.logprob
        self.turn += 1
        if at_start:
            self._reason = "stop"
        elif self.turn < self._turns and len(self._ids) > self._block_size:
            self._reason = "length"
        elif self.turn < self._turns:
            self.prompt = self._template.going_back(
                self._ids, speaker=self.role, may_start=self.role == "user"
            )
            self.role = other_role(self.role)

    @property
    def transcript(self) -> Transcript:
        """The conversation as far as it is written."""
        return Transcript(
            messages=tuple(self._template.messages(self._ids)),
            n_given=self._n_given,
            finish_reason=self._reason,
            logprob=self._logprob,
            seed=self._first_seed,
            ids=self._ids,
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
