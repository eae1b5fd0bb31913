"""The one chat template: messages -> what is given and what is written, in model order.

A tag stands before its text in reading order, and so closes it for a backward model:

    reading order          <|start|> <|user|> question <|assistant|> answer <|end|>
    model order, backward  <|end|> answer <|assistant|> question <|user|> <|start|>

You answer, the model asks. What is asked of a model is a given part that it reads and a written
part, on which the loss falls in training:

    mode     given                                              written
    ask      <|end|> answer <|assistant|>                       question <|user|>
    rewind   <|end|> last message, its tag                      all before it, to <|start|>
    reply    <|hint|> <|question|> question <|end|>             answer <|assistant|>

`ask` is the first turn of `rewind`, and is trained as that. A forward twin is trained alike: given
`<|start|> <|user|> question <|assistant|>` it writes the answer, to `<|end|>`. What the messages
are about may stand in front of all as a hint, or be part of the question.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from backgpt.errors import UsageError
from backgpt.hints import Kind
from backgpt.language import Language, Prompt, Stops
from backgpt.messages import ROLES, Message, Role, bytes_of, cleaned, other_role
from backgpt.order import IdArray, ModelIds, ReadingIds, joined

if TYPE_CHECKING:
    from backgpt.datasets.records import Conversation

Mode = Literal["ask", "rewind", "reply"]
MODES: tuple[Mode, ...] = get_args(Mode)
HINT_CONTROLS = 2  # control ids that a hint begins with
LEAST_GIVEN = 16  # a given text shortened to fewer ids than this is not worth reading


@dataclass(frozen=True)
class Exchange:
    """One row: what is given and what is written, each (T,) in model order.

    `n_bytes` are the UTF-8 bytes of the messages that are written. `shortened` says that part of
    the given text was left out so that the row fits.
    """

    given: ModelIds
    written: ModelIds
    n_bytes: int
    shortened: bool


@dataclass(frozen=True)
class Template:
    """Turns messages into ids for one way of a model: prompts and training rows alike."""

    language: Language

    def tag(self, role: Role) -> int:
        """Return the control id that stands before what `role` says."""
        return self.language.tokenizer.control_id(f"<|{role}|>")

    def turns(self, messages: Sequence[Message]) -> ReadingIds:
        """Return messages in reading order, (T,) int64, each behind its tag, as `cleaned`."""
        encode = self.language.tokenizer.encode
        parts = ((np.array([self.tag(m.role)]), encode(cleaned(m.text))) for m in messages)
        return ReadingIds(joined(*chain.from_iterable(parts)))

    def before(self, messages: Sequence[Message], *, context: str = "") -> Prompt:
        """Return the prompt for the message before `messages`, the end of a conversation.

        With an answer alone this is `ask`: the user's message is written, and its tag ends it.
        Raises UsageError for a forward model, or no message.
        """
        if self.language.direction == "forward":
            raise UsageError("a forward model cannot write what came before: load it backward")
        if not messages or not messages[-1].text.strip():
            raise UsageError("there is no message to go back from: give the last one")
        ids = self._ids([*self.turns(messages), self._end_id], context)
        return self.going_back(ids, speaker=messages[0].role, may_start=False)

    def going_back(self, ids: ModelIds, *, speaker: Role, may_start: bool) -> Prompt:
        """Return the prompt for the message before what `speaker` says, of which `ids` are read.

        With `may_start` the conversation may have begun there.
        """
        at_once = (self._start_id,) if may_start else ()
        return _message_prompt(ids, Stops(at_once, later=(self.tag(other_role(speaker)),)))

    def reply(self, question: str, *, context: str = "") -> Prompt:
        """Return the prompt for an answer to `question`, for either twin."""
        if not question.strip():
            raise UsageError("the question is empty: give one")
        tag = self.tag("assistant")
        if self.language.direction == "forward":
            asked = self.turns([Message("user", question)])
            ids = self._ids([self._start_id, *asked, tag], context)
            return _message_prompt(ids, Stops((), later=(self._end_id,)))
        ids = self._ids([self._end_id], context, question)
        return _message_prompt(ids, Stops((), later=(tag,)))

    def written(self, prompt: Prompt, text: str) -> ModelIds:
        """Return the ids, (T,), of `text` as a whole message after `prompt`, its end included."""
        ids = self.language.order.to_model(self.language.tokenizer.encode(cleaned(text)))
        return ModelIds(joined(ids, prompt.stops.later))

    def messages(self, ids: ModelIds) -> list[Message]:
        """Return the messages that a backward model's `ids`, (T,), hold: read and written ones.

        They are complete from `<|end|>` on, or begin with the first id.
        """
        ends = np.flatnonzero(ids == self._end_id)
        reading = self.language.order.to_reading(ModelIds(ids[ends[0] + 1 :] if len(ends) else ids))
        tags, decode = {self.tag(role): role for role in ROLES}, self.language.tokenizer.decode
        starts = [place for place, id_ in enumerate(map(int, reading)) if id_ in tags]
        return [
            Message(tags[int(reading[first])], decode(ReadingIds(reading[first + 1 : stop])))
            for first, stop in pairwise([*starts, len(reading)])
        ]

    def exchanges(self, conversation: "Conversation", *, most: int) -> Iterator[Exchange | None]:
        """Yield the training rows of a conversation, each of at most `most` ids, None if too long.

        Every message but the one that is met first is written, behind the context as a hint. For
        a forward model there are the same rows with the context as part of the first message,
        which it reads, where all of that fits; a backward model would learn to write such
        contexts. Instead the first answer is also written as a reply. What a long conversation is
        cut into overlaps by one message, and is the same for both twins.
        """
        messages, context = conversation.messages, conversation.context
        for piece in self._pieces(messages, most):
            yield self._exchange(messages, piece, context, most)
        if context and self.language.direction == "forward":
            first = Message(messages[0].role, f"{messages[0].text}\n\n{context}")
            whole = (first, *messages[1:])
            for piece in self._pieces(whole, most):
                row = self._exchange(whole, piece, "", most)
                if row is not None and not row.shortened:  # or the question would be gone
                    yield row
        if conversation.begins_with_a_question and self.language.direction == "backward":
            answer = self.language.order.to_model(self.turns(messages[1:2]))
            end = ModelIds(np.array([self._end_id]))
            n_bytes, question = bytes_of(messages[1:2]), messages[0].text
            yield self._fitted(
                end, answer, n_bytes=n_bytes, most=most, context=context, question=question
            )

    def _pieces(self, messages: Sequence[Message], most: int) -> Iterator[range]:
        """Yield ranges of neighboring messages, two or more, of at most `most` ids if possible."""
        sizes = [len(self.turns([message])) for message in messages]
        markers = 2 + len(self.language.lead)
        first, last = 0, len(messages) - 1
        while first < last:
            stop = first + 1
            while stop < last and sum(sizes[first : stop + 2]) + markers <= most:
                stop += 1
            yield range(first, stop + 1)
            first = stop

    def _exchange(
        self, messages: Sequence[Message], piece: range, context: str, most: int
    ) -> Exchange | None:
        """Return the row that writes all messages of a piece but the one that is met first."""
        start = [self._start_id] if piece.start == 0 else []
        end = [self._end_id] if piece.stop == len(messages) else []
        reading = joined(start, self.turns(messages[piece.start : piece.stop]), end)
        whole = self.language.order.to_model(ReadingIds(reading))
        if self.language.direction == "backward":
            n_given = len(end) + len(self.turns(messages[piece.stop - 1 : piece.stop]))
            written = messages[piece.start : piece.stop - 1]
        else:  # with the tag of the message that is written first
            n_given = len(start) + len(self.turns(messages[piece.start : piece.start + 1])) + 1
            written = messages[piece.start + 1 : piece.stop]
        given, rest = ModelIds(whole[:n_given]), ModelIds(whole[n_given:])
        return self._fitted(given, rest, n_bytes=bytes_of(written), most=most, context=context)

    def _fitted(
        self,
        given: ModelIds,
        written: ModelIds,
        *,
        n_bytes: int,
        most: int,
        context: str,
        question: str | None = None,
    ) -> Exchange | None:
        """Return a row of at most `most` ids, or None.

        Too long a question or context is shortened or a context left out; then the given text is
        shortened at its far edge, the one that is met first, and loses the marker there.
        """
        space = most - len(self.language.lead) - len(given) - len(written)
        shortened = False
        hints: dict[Kind, IdArray] = {}
        wanted: tuple[tuple[Kind, str | None], ...] = (("question", question), ("context", context))
        for kind, text in wanted:
            if not text:
                continue
            whole = self.language.hint(kind, text)
            ids = self.language.hint(kind, text, most=max(space - HINT_CONTROLS, 0))
            if len(ids) < len(whole):
                shortened = True
                if len(ids) < HINT_CONTROLS + LEAST_GIVEN:
                    if kind == "question":
                        return None
                    continue
            hints[kind] = ids
            space -= len(ids)
        if space < 0:
            given, shortened = ModelIds(given[-space:]), True
            if len(given) < LEAST_GIVEN:
                return None
        in_order = [hints[kind] for kind in ("context", "question") if kind in hints]
        return Exchange(
            given=ModelIds(joined(self.language.lead, *in_order, given)),
            written=written,
            n_bytes=n_bytes,
            shortened=shortened,
        )

    def _ids(self, reading: Sequence[int], context: str, question: str = "") -> ModelIds:
        given: tuple[tuple[Kind, str], ...] = (("context", context), ("question", question))
        hints = [self.language.hint(kind, cleaned(text)) for kind, text in given if text.strip()]
        ids = self.language.order.to_model(ReadingIds(joined(reading)))
        return ModelIds(joined(self.language.lead, *hints, ids))

    @property
    def _start_id(self) -> int:
        return self.language.tokenizer.start_id

    @property
    def _end_id(self) -> int:
        return self.language.tokenizer.end_id


def _message_prompt(ids: ModelIds, stops: Stops) -> Prompt:
    """Return a prompt for a message: a text of its own, between two tags."""
    return Prompt(text="", ids=ids, n_first=len(ids), joins_on=True, stops=stops)
