"""What stands between text and a model: its tokenizer, its order, and the ids it reads first.

Takes texts in reading order; gives prompts and documents in model order. A model trained both ways
is told by its first id which way to go, and a model trained with hints reads those next:

    <|backward|>  <|hint|> <|words|> cake dog  <|end|> .     sat   cat   The   <|start|>
    direction     hints                        document in model order
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from backgpt.hints import NO_HINTS, Hints, Kind, Length
from backgpt.order import (
    Direction,
    Directions,
    LeftwardDecoder,
    ModelIds,
    Order,
    ReadingIds,
    RightwardDecoder,
    Unit,
    joined,
    reversed_words,
)
from backgpt.tokenizer import Tokenizer, takes_no_space

Parts = tuple[ReadingIds, ReadingIds]
"""A text in two parts, in reading order."""
Row = tuple[ModelIds, ModelIds]
"""What a model is given and what it writes, (T,) each, in model order."""


@dataclass(frozen=True)
class Stops:
    """Control ids at which what is written may end: before any text, and after some."""

    at_once: tuple[int, ...]
    later: tuple[int, ...]

    def __contains__(self, id_: int) -> bool:
        return id_ in self.at_once or id_ in self.later


@dataclass(frozen=True)
class Prompt:
    """A given text in model order, and what may follow it.

    `text` is the given text that what is written joins; `ids`, (T,), all ids that are read, the
    text's own behind the first `n_first`. `joins_on` says that the text brings its own white space
    at the edge where the model writes. The space at the end of an opening is not among the ids:
    what is written `begins_word`, with that space. `words` are to occur, and do not yet; the whole
    text is to have that `length`.
    """

    text: str
    ids: ModelIds
    n_first: int
    joins_on: bool
    stops: Stops
    words: tuple[str, ...] = ()
    length: Length | None = None
    begins_word: bool = False


@dataclass(frozen=True)
class Language:
    """What turns text into a model's ids and back: a tokenizer and the order of one model.

    With `told` the model was trained both ways and reads its direction first.
    """

    tokenizer: Tokenizer
    direction: Direction
    unit: Unit
    told: bool = field(default=False, kw_only=True)

    @classmethod
    def all_of(cls, tokenizer: Tokenizer, directions: Directions, unit: Unit) -> "list[Language]":
        """Return the languages of a model trained for `directions`, its main one first."""
        ways: tuple[Direction, ...] = ("backward", "forward")
        return [
            cls(tokenizer, way, unit, told=directions == "both")
            for way in ways
            if directions in (way, "both")
        ]

    @property
    def order(self) -> Order:
        """How this model's ids run. Raises UsageError in the text unit, where they do not."""
        return self.tokenizer.order(self.direction, self.unit)

    @property
    def cutter(self) -> Order:
        """Where long texts may be cut, the same for both twins: in the word unit between words."""
        return self.tokenizer.order("backward", self.unit)

    @property
    def markers(self) -> tuple[int, int]:
        """The control ids this model begins with and stops at, in model order.

        Raises UsageError if one is missing, as in models from elsewhere.
        """
        start, end = self.tokenizer.start_id, self.tokenizer.end_id
        return (end, start) if self.direction == "backward" else (start, end)

    @property
    def ids_leftward(self) -> bool:
        """Whether each id stands to the left of the one before; in the word unit only words do."""
        return self.direction == "backward" and self.unit == "token"

    @property
    def by_word(self) -> bool:
        """Whether ids arrive in groups, each a whole word to put in front."""
        return self.direction == "backward" and self.unit != "token"

    @cached_property
    def lead(self) -> npt.NDArray[np.int64]:
        """(0,) or (1,) int64: what every row begins with, the id of the direction if `told`."""
        ids = [self.tokenizer.control_id(f"<|{self.direction}|>")] if self.told else []
        return np.array(ids, dtype=np.int64)

    def hint_ids(self, hints: Hints) -> npt.NDArray[np.int64]:
        """Return what a row begins with to give `hints`, (T,) int64; they are never scored."""
        parts = [self.hint(kind, text) for kind, text in hints.texts()]
        return joined((), *parts)

    def hint(self, kind: Kind, text: str, *, most: int | None = None) -> npt.NDArray[np.int64]:
        """Return one hint, (T,) int64; of a text of more than `most` ids the end is left out."""
        control = [self.tokenizer.control_id(token) for token in ("<|hint|>", f"<|{kind}|>")]
        ids = ReadingIds(self.tokenizer.encode(text)[:most])
        return joined(control, self.order.to_model(ids))

    def prompt(self, text: str, *, at_edge: bool, hints: Hints = NO_HINTS) -> Prompt:
        """Return the prompt for a given `text`: an ending, or an opening for a forward model.

        With `at_edge` the text stands at the very edge of the document (`<|end|>` after an
        ending); without, some text follows it. The model is told `hints`.
        """
        backward = self.direction == "backward"
        joins_on, begins_word = not text, False
        if self.unit == "text":
            ids = ModelIds(self.tokenizer.encode(reversed_words(text)))
        elif backward:
            ids = self.order.to_model(self.tokenizer.encode_fragment(text))
            joins_on = joins_on or takes_no_space(text)
        else:
            begins_word = self.tokenizer.added_spaces == "line" and text.endswith(" ")
            joins_on = joins_on or begins_word
            ids = self.order.to_model(self.tokenizer.encode(text[:-1] if begins_word else text))
        start, end = ((id_,) if id_ is not None else () for id_ in self.tokenizer.marker_ids)
        marker, edge = (end, start) if backward else (start, end)
        first = joined(self.lead, self.hint_ids(hints), marker if at_edge else ())
        return Prompt(
            text=text,
            ids=ModelIds(joined(first, ids)),
            n_first=len(first),
            joins_on=joins_on,
            begins_word=begins_word,
            stops=Stops(edge, edge),
        )

    def word_ids(self, word: str) -> ModelIds:
        """Return the ids, (T,), of a word as it stands behind a space, in model order."""
        spaced = f" {word}" if self.tokenizer.added_spaces == "none" else word
        ids = self.tokenizer.encode(spaced)
        return ModelIds(ids) if self.unit == "text" else self.order.to_model(ids)

    def decoder(self, prompt: Prompt) -> LeftwardDecoder | RightwardDecoder:
        """Return what turns the bytes that are written for a prompt into text that joins it."""
        added = self.tokenizer.added_spaces
        if self.direction == "backward":
            return LeftwardDecoder(before_line=not prompt.joins_on, added=added)
        # Some tokenizers leave a last space out: the model writes it again.
        left_out = added == "text" and prompt.text.endswith(" ") and not self.tokenizer.keeps_spaces
        after = "" if left_out or prompt.joins_on else prompt.text
        return RightwardDecoder(after=after, added=added)

    def row(self, before: ReadingIds, after: ReadingIds, *, to_the_edge: bool = True) -> Row:
        """Return what the model is given and what it writes of a text in two parts, (T,) each.

        A backward model is given `after`, which ends the text, and writes `before`, a forward one
        the other way; with `to_the_edge` the marker there is written as well.
        """
        backward = self.direction == "backward"
        given, written = (after, before) if backward else (before, after)
        to_model = self.order.to_model
        edge = self.markers[1:] if to_the_edge else ()
        first = joined(self.lead, self.markers[:1], to_model(given))
        return ModelIds(first), ModelIds(joined(to_model(written), edge))
