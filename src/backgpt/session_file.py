"""A chat on disk: one JSON file with the ids of every conversation, and the messages they make.

version, model, tokenizer, direction, unit     what wrote it
mode, context, turns, sampling, seed, ...      settings for the next exchange
conversations: mode, context, ids, exchanges, messages
               ids in model order; messages in reading order, as in instruction files
"""

import json
from pathlib import Path
from typing import Literal

from backgpt.chat import Mode
from backgpt.config import Settings, read_as
from backgpt.errors import BackgptError, ConfigError, CorruptFileError, UsageError
from backgpt.files import cannot_write, write_whole
from backgpt.messages import Role
from backgpt.order import Unit


class SavedExchange(Settings):
    """One exchange: what the user said, where its ids begin, and how the answer was drawn.

    `logprob` is the log-probability in nats of what the model wrote.
    """

    text: str
    start: int
    seed: int
    logprob: float


class SavedMessage(Settings):
    """A message as instruction files have it."""

    role: Role
    content: str


class SavedTalk(Settings):
    """One conversation; `messages` follow from `ids`, which are in model order."""

    mode: Mode
    context: str
    ids: tuple[int, ...]
    exchanges: tuple[SavedExchange, ...]
    messages: tuple[SavedMessage, ...]


class SavedSampling(Settings):
    """The fields of `Sampling`. Chats of before there was a `dry_multiplier` go on without."""

    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    repetition_penalty: float
    dry_multiplier: float = 0.0


class SavedSession(Settings):
    """A whole chat."""

    version: Literal[1]
    model: str
    tokenizer: str
    direction: Literal["backward"]
    unit: Unit
    mode: Mode
    context: str
    turns: int
    sampling: SavedSampling
    max_new_tokens: int | None
    seed: int
    conversations: tuple[SavedTalk, ...]


def write_session(saved: SavedSession, path: Path, *, over: Path | None) -> None:
    """Write a chat to `path` whole or not at all, over the file `over`, its own, but nothing else.

    Raises UsageError if it cannot be there, BackgptError if the disk refuses.
    """
    _check_place(path, over)
    text = json.dumps(saved.model_dump(mode="json"), ensure_ascii=False)
    try:
        write_whole(path, f"{text}\n".encode())
    except OSError as error:
        raise cannot_write(path, error) from None


def read_session(path: Path) -> SavedSession:
    """Read what `write_session` wrote. Raises DataError or CorruptFileError, naming the file."""
    try:
        return read_as(SavedSession, path)
    except ConfigError as error:
        raise CorruptFileError(f"not a saved chat: {error}") from None


def _check_place(path: Path, over: Path | None) -> None:
    """Raise UsageError unless `path`, in a folder that is there, is free or the chat `over`."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a file, such as chat.json")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}: make it, or name another file")
    if path.exists():
        try:
            read_session(path)
        except BackgptError:
            raise UsageError(f"{path} is there and is no saved chat: name another file") from None
        if path.resolve() != over:
            raise UsageError(f"{path} is there and is another chat: name another file")
