"""The records that every source of text is turned into."""

from dataclasses import dataclass

from backgpt.messages import Message


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it came from, for instance `stories.jsonl:17`."""

    text: str
    origin: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in reading order, and what they are about; `context` may be empty."""

    messages: tuple[Message, ...]
    context: str
    origin: str

    @property
    def begins_with_a_question(self) -> bool:
        """Whether a user speaks first and an assistant answers."""
        return [message.role for message in self.messages[:2]] == ["user", "assistant"]

    def as_text(self) -> str:
        """Return the conversation as a plain text, the context after the first message."""
        first, *others = (message.text for message in self.messages)
        return "\n\n".join(part for part in (first, self.context, *others) if part)


@dataclass(slots=True)
class Tally:
    """What a reader has passed so far; it is updated while documents are read."""

    file_bytes: int = 0
    """Bytes of the files as they are on disk, compressed or not: the measure for progress."""
    empty: int = 0
    """Documents skipped because nothing but white space was in them, and conversations of less
    than two messages."""
    no_turns: int = 0
    """Conversations skipped because users and assistants do not take turns in them."""
