"""One chat with a backward model: exchanges, each streamed, that can be retried, undone and saved.

You answer, it asks, and the conversation grows toward its beginning: what you say next stands in
front of what was said before, and its question is written to it alone. A conversation is one list
of ids in model order, to which exchanges append; everything shown is made from it, for a model does
not always write the byte pairs that an encoder would choose.

    ask     <|end|> your answer <|assistant|> its question <|user|> your next answer <|assistant|> …
    rewind  <|end|> your last message <|assistant|> what came before, message by message …
    reply   <|hint|> <|question|> your question <|end|> its answer <|assistant|>
"""

import secrets
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np

from backgpt.api import Model
from backgpt.chat import MODES, Mode, Template
from backgpt.errors import CorruptFileError, UsageError
from backgpt.generate import Text, pieces
from backgpt.language import Prompt
from backgpt.messages import Message, Role, cleaned
from backgpt.order import ModelIds, joined
from backgpt.rewind import Piece, going_back, spoken
from backgpt.running import Job
from backgpt.sampling import Sampling
from backgpt.session_file import (
    SavedExchange,
    SavedMessage,
    SavedSampling,
    SavedSession,
    SavedTalk,
    read_session,
    write_session,
)


@dataclass(frozen=True)
class Talk:
    """One conversation: its ids, (T,), in model order, and the exchanges they came from."""

    mode: Mode
    context: str
    ids: ModelIds = field(repr=False)
    said: tuple[SavedExchange, ...]


LONGER = "longer than max-new-tokens or the context allows"
LEFT_OUT = f"the message before is {LONGER}: it is left out"
CUT_OFF = f"the message is {LONGER}: its {{}} is missing"

Talks = tuple[Talk, ...]
_Writing = Generator[Piece, None, tuple[ModelIds, float]]


def _ignore(notice: str) -> None:
    """Tell nobody."""


class Session:
    """A chat with a backward model; all settings may be changed between exchanges.

    `begin`, or a change of `mode` or `context`, begins a new conversation, and so does every
    exchange in the modes `rewind` and `reply`. `notice` is called with what the user should know.
    """

    def __init__(
        self,
        model: Model,
        *,
        name: str = "",
        mode: Mode = "ask",
        context: str = "",
        turns: int = 3,
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        notice: Callable[[str], None] = _ignore,
    ) -> None:
        """Begin; without a `seed` one is drawn. Raises UsageError for a forward model."""
        if model.direction == "forward":
            raise UsageError("this chat runs backward: load a backward model")
        self.model, self.name = model, name
        self.context, self.turns = context, turns
        self.sampling = sampling or Sampling()
        self.max_new_tokens = max_new_tokens
        self.mode = mode
        self.seed = secrets.randbits(32) if seed is None else seed
        self.notice = notice
        self._template = Template(model.language)
        self._talks: Talks = ()
        self._begins = False  # a new conversation, whatever was said before
        self._is_new = False  # of which nothing was said since `begin`
        self._file: Path | None = None  # of this chat
        self._stopped: tuple[str, Talks, bool, int] | None = None

    @property
    def mode(self) -> Mode:
        """What is asked of the model. Raises UsageError if set to what is none of `MODES`."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        if mode not in MODES:
            raise UsageError(f"mode = {mode!r}: choose one of {', '.join(MODES)}")
        self._mode = mode

    @property
    def seed(self) -> int:
        """What the next exchange is drawn with. Raises UsageError if set below 0."""
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        if seed < 0:
            raise UsageError(f"seed = {seed}: it must be 0 or more")
        self._seed = seed

    @property
    def talks(self) -> Talks:
        """All conversations, the oldest first."""
        return self._talks

    @property
    def transcript(self) -> list[Message]:
        """The messages of the latest conversation in reading order, made from its ids.

        There are none yet of one that `begin` began.
        """
        return self.messages(self._talks[-1]) if self._talks and not self._begins else []

    def messages(self, talk: Talk) -> list[Message]:
        """Return the messages of a conversation in reading order, made from its ids."""
        messages = self._template.messages(talk.ids)
        if talk.mode != "reply":
            return messages
        hints = talk.ids[: self._end_place(talk.ids)]
        place = np.flatnonzero(hints == self.model.tokenizer.control_id("<|question|>"))[-1]
        question = self.model.language.order.to_reading(ModelIds(hints[place + 1 :]))
        return [Message("user", self.model.tokenizer.decode(question)), *messages]

    def begin(self, context: str = "") -> None:
        """Begin a new conversation, about `context`; those before it stay."""
        self.context, self._begins, self._stopped = context, True, None
        self._is_new = True

    def say(self, text: str) -> Generator[Piece, None, None]:
        """Say `text`; yield the pieces of what the model writes, each to be put in front.

        The conversation is as before until the last piece was taken: closing the generator, or
        interrupting it, drops what was written. Raises UsageError for an empty text or one that
        does not fit the context.
        """
        yield from self._exchange(text, self._talks, begins=self._begins)

    def retry(self) -> Generator[Piece, None, None]:
        """Say the last text again, in place of that exchange, with the next seed.

        A seed that was set since then is taken as it is. Raises UsageError if nothing was said in
        this conversation, or in another mode.
        """
        if self._stopped:
            text, before, begins, seed = self._stopped
        else:
            last, mode = self._last("retry"), self._talks[-1].mode
            if mode != self.mode:
                raise UsageError(f"the last text was said in the mode {mode}: change back to it")
            text, before, seed = last.text, _without_last(self._talks), last.seed
            begins = not last.start
        if self.seed == seed:
            self.seed += 1
        yield from self._exchange(text, before, begins=begins)

    def undo(self) -> None:
        """Drop the last exchange. Raises UsageError if there is none, or `begin` came after it."""
        self._begins = not self._last("undo").start
        self._talks, self._stopped = _without_last(self._talks), None

    def save(self, path: Path) -> None:
        """Write all conversations and settings to `path` as JSON, whole or not at all.

        Raises UsageError if something else is there than this chat, saved before or loaded from
        there; BackgptError if the disk refuses.
        """
        saved = SavedSession(
            version=1,
            model=self.name,
            tokenizer=self.model.tokenizer.sha256,
            direction="backward",
            unit=self.model.unit,
            mode=self.mode,
            context=self.context,
            turns=self.turns,
            sampling=SavedSampling(**asdict(self.sampling)),
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            conversations=tuple(
                SavedTalk(
                    mode=talk.mode,
                    context=talk.context,
                    ids=tuple(talk.ids.tolist()),
                    exchanges=talk.said,
                    messages=_saved_messages(self.messages(talk)),
                )
                for talk in self._talks
            ),
        )
        write_session(saved, path, over=self._file)
        self._file = path.resolve()

    @classmethod
    def load(cls, path: Path, model: Model, *, notice: Callable[[str], None] = _ignore) -> Self:
        """Return the session that was saved to `path`, to go on with `model`.

        Raises DataError if it cannot be read, CorruptFileError if it is not such a file, and
        UsageError if it was made with another tokenizer or unit.
        """
        saved = read_session(path)
        try:
            sampling = Sampling(**saved.sampling.model_dump())
        except UsageError as error:
            raise CorruptFileError(f"not a saved chat: {path}: {error}") from None
        session = cls(
            model,
            name=saved.model,
            mode=saved.mode,
            context=saved.context,
            turns=saved.turns,
            sampling=sampling,
            max_new_tokens=saved.max_new_tokens,
            seed=saved.seed,
            notice=notice,
        )
        if (saved.tokenizer, saved.unit) != (model.tokenizer.sha256, model.unit):
            its_model = f", {saved.model}" if saved.model else ""
            raise UsageError(
                f"{path} was made with another tokenizer or unit: load its model{its_model}"
            )
        session._file = path.resolve()
        session._talks = tuple(session._restored(talk, path) for talk in saved.conversations)
        return session

    def _exchange(self, text: str, before: Talks, *, begins: bool) -> Generator[Piece, None, None]:
        """Write what answers `text`, said after the conversations `before`; then remember both.

        It goes on with the last of them, if that is alike, unless it `begins` another.
        """
        seed, text = self.seed, cleaned(text)
        last = before[-1] if before else None
        alike = last and (last.mode, last.context) == (self.mode, self.context)
        goes_on = last if alike and self.mode == "ask" and not begins else None
        ways = {"ask": self._ask, "rewind": self._rewind, "reply": self._reply}
        try:
            ids, logprob = yield from ways[self.mode](text, goes_on, seed)
        except (GeneratorExit, KeyboardInterrupt):
            self._stopped = (text, before, begins, seed)
            raise
        said = SavedExchange(
            text=text, start=len(goes_on.ids) if goes_on else 0, seed=seed, logprob=logprob
        )
        if goes_on:
            talk = replace(goes_on, ids=ids, said=(*goes_on.said, said))
            before = before[:-1]
        else:
            talk = Talk(self.mode, self.context, ids, (said,))
        self._talks, self._begins, self._stopped = (*before, talk), False, None
        self._is_new = False

    def _ask(self, answer: str, talk: Talk | None, seed: int) -> _Writing:
        """Put the user's answer in front of the conversation and write the question to it.

        The answer alone is read: behind their own questions models ask less and less (LOG.md).
        """
        message = Message("assistant", answer)
        prompt = self._template.before([message], context=self.context)
        ids = prompt.ids
        if talk is not None:
            turn = self.model.language.order.to_model(self._template.turns([message]))
            ids = ModelIds(joined(talk.ids, turn))
        text = yield from self._message(prompt, "user", seed)
        return ModelIds(joined(ids, text.ids, prompt.stops.later)), text.logprob

    def _reply(self, question: str, _: Talk | None, seed: int) -> _Writing:
        """Write an answer to the user's question."""
        prompt = self._template.reply(question, context=self.context)
        text = yield from self._message(prompt, "assistant", seed)
        return ModelIds(joined(prompt.ids, text.ids, prompt.stops.later)), text.logprob

    def _rewind(self, message: str, _: Talk | None, seed: int) -> _Writing:
        """Write the messages that led to the user's, which is the last of a conversation."""
        done = yield from going_back(
            self.model.engine,
            self._template,
            [Message("assistant", message)],
            turns=self.turns,
            context=self.context,
            sampling=self.sampling,
            max_new_tokens=self.max_new_tokens,
            seed=seed,
        )
        if done.finish_reason == "length":
            self.notice(LEFT_OUT)
        return done.ids, done.logprob

    def _message(self, prompt: Prompt, role: Role, seed: int) -> Generator[Piece, None, Text]:
        """Write one message. Where its length is limited, it begins there."""
        text = yield from spoken(
            pieces(
                self.model.engine,
                Job(
                    self.model.language,
                    prompt,
                    sampling=self.sampling,
                    max_new_tokens=self.max_new_tokens,
                    seed=seed,
                ),
            ),
            role=role,
            turn=0,
        )
        if text.finish_reason == "length":
            self.notice(CUT_OFF.format("beginning"))
        return text

    def _end_place(self, ids: ModelIds) -> int:
        """Return where the conversation begins in its ids, behind direction and hints."""
        return int(np.flatnonzero(ids == self.model.tokenizer.end_id)[0])

    def _last(self, purpose: str) -> SavedExchange:
        if not self._talks or self._is_new:
            raise UsageError(f"there is nothing to {purpose}: say something first")
        return self._talks[-1].said[-1]

    def _restored(self, saved: SavedTalk, path: Path) -> Talk:
        """Return a saved conversation, checked. Raises CorruptFileError."""
        starts = [said.start for said in saved.exchanges]
        try:
            ids = ModelIds(np.array(saved.ids, dtype=np.int64))
            talk = Talk(saved.mode, saved.context, ids, saved.exchanges)
            whole = starts[:1] == [0] and sorted(set(starts)) == starts and starts[-1] < len(ids)
            whole = whole and min(ids) >= 0 and max(ids) < self.model.tokenizer.vocab_size
            whole = whole and _saved_messages(self.messages(talk)) == saved.messages
            whole = whole and all(
                _said_in(saved, number).strip() == said.text
                for number, said in enumerate(saved.exchanges)
            )
        except (IndexError, OverflowError):  # no marker where one must be, or no id at all
            whole = False
        if not whole:
            raise CorruptFileError(f"{path}: ids and messages do not agree: the file was altered")
        return talk


def _without_last(talks: Talks) -> Talks:
    """Return conversations without the last exchange."""
    *before, talk = talks
    *said, last = talk.said
    if not said:
        return tuple(before)
    return (*before, replace(talk, ids=ModelIds(talk.ids[: last.start]), said=tuple(said)))


def _said_in(saved: SavedTalk, number: int) -> str:
    """Return what the user said in an exchange, from the messages: the last one was said first."""
    return saved.messages[0 if saved.mode == "reply" else -1 - 2 * number].content


def _saved_messages(messages: Iterable[Message]) -> tuple[SavedMessage, ...]:
    return tuple(SavedMessage(role=message.role, content=message.text) for message in messages)
