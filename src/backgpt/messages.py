"""What is said in a conversation: messages, each with the role of its speaker."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from backgpt.errors import DataError

Role = Literal["user", "assistant", "system"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks, and the text. Raises DataError for an unknown role."""

    role: Role
    text: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"role = {self.role!r}: it must be one of {', '.join(ROLES)}")


def other_role(role: Role) -> Role:
    """Return who speaks before and after `role`: users and assistants take turns."""
    return "assistant" if role == "user" else "user"


def cleaned(text: str) -> str:
    """Return a text as those are that are read from files, which models are trained on."""
    return text.replace("\r\n", "\n").strip()


def take_turns(messages: Sequence[Message]) -> bool:
    """Return whether users and assistants take turns in `messages`, and nobody else speaks."""
    roles = [message.role for message in messages]
    return "system" not in roles and all(one != other for one, other in pairwise(roles))


def bytes_of(messages: Sequence[Message]) -> int:
    """Return how many UTF-8 bytes the texts of `messages` have."""
    return sum(len(message.text.encode()) for message in messages)


def as_transcript(messages: Sequence[Message]) -> str:
    """Return messages as text, each behind the name of who says it."""
    return "\n\n".join(f"{message.role}: {message.text}" for message in messages)
