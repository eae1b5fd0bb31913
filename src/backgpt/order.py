"""The one place that reverses: reading order <-> model order, and text that grows at an edge.

A model reads ids left to right and does not know which way the text runs. Ids are put into model
order once on the way in and back into reading order once on the way out; both are permutations
of ids, so nothing can be lost. The text decoders turn the bytes of ids, as they are generated,
into pieces of text whose join is always the decoded text.

    reading order            <|start|>  The   cat   sat   .   <|end|>
    model order, backward    <|end|>    .     sat   cat   The  <|start|>
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NewType

import numpy as np
import numpy.typing as npt

from backgpt.errors import UsageError

Direction = Literal["backward", "forward"]
Directions = Literal["backward", "forward", "both"]
"""What a model can be trained for; with "both" its first id tells it which way to go."""
Unit = Literal["token", "word", "text"]
"""What is reversed: ids one by one, or whole words of them; or the words of the text itself, before
it is encoded, as the original backgpt did it: such a model writes, and does nothing else."""
AddedSpaces = Literal["line", "text", "none"]
"""Where a tokenizer puts in a space that no text has: before every line, as this project's do,
before the text, as SentencePiece's do, or nowhere."""

IdArray = npt.NDArray[np.integer[Any]]
ReadingIds = NewType("ReadingIds", IdArray)
"""Ids as a reader meets them, 1-D."""
ModelIds = NewType("ModelIds", IdArray)
"""Ids as the model meets them, 1-D. A different type, so that mypy refuses to reverse twice."""

CONTINUATION_BYTES = range(0x80, 0xC0)  # UTF-8: not the first byte of a character


def joined(*parts: Sequence[int] | IdArray) -> npt.NDArray[np.int64]:
    """Return ids one after the other, (T,) int64."""
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])


@dataclass(frozen=True)
class Order:
    """How one model's ids run.

    `starts_group` is a (V,) bool array: whether an id begins a word (its bytes begin with white
    space, or it is a control id). It is needed for the word unit only.
    """

    direction: Direction
    unit: Unit
    starts_group: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.unit == "text":
            raise UsageError(
                "this model reverses the words of a text before it is encoded, so that its ids "
                "have no reading order: it only writes"
            )

    def to_model(self, ids: ReadingIds) -> ModelIds:
        """Return reading-order `ids`, (T,), in model order, (T,).

        In the word unit this is its own inverse when `ids` begins with an id that starts a group,
        as every encoded text and every document with its markers does.
        """
        return ModelIds(ids[self.permutation(ids)])

    def to_reading(self, ids: ModelIds) -> ReadingIds:
        """Return model-order `ids`, (T,), in reading order, (T,): the inverse of `to_model`."""
        return ReadingIds(ids[self.permutation(ids)])

    def permutation(self, ids: IdArray, *, last_apart: bool = False) -> npt.NDArray[np.intp]:
        """Return (T,) positions such that `ids[positions]` is in the other order.

        `last_apart` is for reading-order windows, whose last id the next window begins with: it
        is a unit of its own even if a word was cut there.
        """
        positions = np.arange(len(ids))
        if self.direction == "forward":
            return positions
        if self.unit == "token":
            return positions[::-1]
        starts = self.group_starts(ids)
        starts[-1:] |= last_apart
        group = np.cumsum(starts, dtype=np.int64)
        return np.argsort(group[-1:] - group, kind="stable")

    def group_starts(self, ids: IdArray) -> npt.NDArray[np.bool_]:
        """Return a (T,) bool array: where a unit that must stay together begins.

        Every id is a unit of its own, except backward in words.
        """
        if self.direction == "forward" or self.unit == "token":
            return np.ones(len(ids), dtype=np.bool_)
        starts = self.starts_group[ids]
        starts[:1] = True
        return starts


def flipped(ids: ReadingIds) -> ReadingIds:
    """Return the ids of a document, (T,), as they stand in the same document read from its end."""
    return ReadingIds(ids[::-1])


def reversed_words(text: str) -> str:
    """Return the words of `text`, last one first, with single spaces: line breaks are lost."""
    return " ".join(text.split()[::-1])


class LeftwardDecoder:
    """Turns the bytes of units that arrive last one first into text to put in front.

    The tokenizer begins every line with a space that is not in the text. So a leftmost space is
    undecided until more is known: a line break or the start of the text swallows it, anything
    else makes it real. It is held back until then, as are the trailing bytes of a character whose
    first byte is still to come. The pieces, each put in front of the ones before, then `flush`,
    always join to the decoded text. Other tokenizers than this project's have other `added` spaces.
    """

    def __init__(self, *, before_line: bool = False, added: AddedSpaces = "line") -> None:
        """Start at the end of a text, or, with `before_line`, in front of an encoded line."""
        self._added = added
        self._held = " " if before_line and added != "none" else ""
        self._pending = b""

    def push(self, unit: bytes) -> str:
        """Take the bytes of the next unit to the left; return the text that is now certain."""
        data = unit + self._pending
        split = 0
        while split < len(data) and data[split] in CONTINUATION_BYTES:
            split += 1
        self._pending = data[:split]
        return self._release(data[split:])

    def flush(self) -> str:
        """End at the left edge: return what is left, broken characters as U+FFFD."""
        text = self._release(self._pending)
        self._pending = b""
        self._held = ""
        return text

    def _release(self, data: bytes) -> str:
        if not data:
            return ""
        text = data.decode("utf-8", errors="replace") + self._held
        if self._added == "none":
            return text
        if self._added == "line":
            text = text.replace("\n ", "\n")
        self._held = " " if text.startswith(" ") else ""
        return text.removeprefix(" ")


class RightwardDecoder:
    """The same for a forward model: bytes arrive first one first, pieces go behind."""

    def __init__(self, *, after: str = "", added: AddedSpaces = "line") -> None:
        """Start behind the text `after`, or at the start of a text."""
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._lines = added == "line"
        self._swallow_space = added != "none" and (
            not after or (self._lines and after.endswith("\n"))
        )

    def push(self, unit: bytes) -> str:
        """Take the bytes of the next unit to the right; return the text that is now certain."""
        return self._release(self._utf8.decode(unit))

    def flush(self) -> str:
        """End at the right edge: return what is left, broken characters as U+FFFD."""
        return self._release(self._utf8.decode(b"", final=True))

    def _release(self, text: str) -> str:
        if not text:
            return ""
        line_break_follows = text.endswith("\n")
        if self._swallow_space:
            text = text.removeprefix(" ")
        self._swallow_space = self._lines and line_break_follows
        return text.replace("\n ", "\n") if self._lines else text
