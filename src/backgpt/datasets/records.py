"""The records that every source of text is turned into."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it came from, for instance `stories.jsonl:17`."""

    text: str
    origin: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A question, what it is about, and the answer; `context` may be empty."""

    instruction: str
    context: str
    response: str
    origin: str

    def as_text(self) -> str:
        """Return the conversation as a plain text: its parts with an empty line between."""
        return "\n\n".join(part for part in (self.instruction, self.context, self.response) if part)


@dataclass(slots=True)
class Tally:
    """What a reader has passed so far; it is updated while documents are read."""

    file_bytes: int = 0
    """Bytes of the files as they are on disk, compressed or not: the measure for progress."""
    empty: int = 0
    """Documents skipped because nothing but white space was in them."""
