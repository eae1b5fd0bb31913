"""A chat on disk: one JSON file with the ids of every conversation, and the messages they make.

version, model, tokenizer, direction, unit     what wrote it
mode, context, turns, sampling, seed, ...      settings for the next exchange
conversations: mode, context, ids, exchanges, messages
               ids in model order; messages in reading order, as in instruction files
"""

import json
from pathlib import Path
from typing import Literal

from backgpt.card import read_as
from backgpt.chat import Mode
from backgpt.config import Settings
from backgpt.errors import ConfigError, CorruptFileError
from backgpt.files import write_whole
from backgpt.messages import Role
from backgpt.order import Unit


class Said(Settings):
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
    exchanges: tuple[Said, ...]
    messages: tuple[SavedMessage, ...]


class SavedSampling(Settings):
    """The fields of `Sampling`."""

    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    repetition_penalty: float


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


def write_session(saved: SavedSession, path: Path) -> None:
    """Write a chat to `path` whole or not at all. Raises OSError."""
    text = json.dumps(saved.model_dump(mode="json"), ensure_ascii=False)
    write_whole(path, f"{text}\n".encode())


def read_session(path: Path) -> SavedSession:
    """Read what `write_session` wrote. Raises DataError or CorruptFileError, naming the file."""
    try:
        return read_as(SavedSession, path)
    except ConfigError as error:
        raise CorruptFileError(f"not a saved chat: {error}") from None
