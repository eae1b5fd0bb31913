"""What another program's runtime wrote, as text: ids or token strings in model order -> text.

    [2, 29, 871, 295, 1]                          ->  The end.
    ["<|end|>", ".", "Ġend", "ĠThe", "<|start|>"]  ->  The end.

What the model was told before its text, hints and direction, is no text and is left out, as are
control ids. `normalized` is for the way in, to runtimes that do not normalize.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from os import PathLike
from typing import Any

import numpy as np

from backgpt.builtin import find
from backgpt.errors import DataError, UsageError
from backgpt.language import Language
from backgpt.manifest import read_json
from backgpt.model_folder import TOKENIZER, folder_of, read_model
from backgpt.order import Direction, ModelIds, Order
from backgpt.tokenizer import SPECIAL_TOKENS, START, WHITE_SPACE

Items = list[int] | list[str]

MOST_DIGITS = 20
"""What a number may have: no id has more, and Python does not read thousands of them."""


@dataclass(frozen=True)
class Piece:
    """What one id stands for: bytes of text, or the name of a control id."""

    data: bytes
    control: str = ""


@dataclass(frozen=True)
class Unreverser:
    """Turns what one model wrote into text.

    `languages` are those it was trained in, the one meant by default first; `ids` maps the names
    of all tokens, with a stand-in for each byte such as `Ġ` for a space, to their ids.
    """

    languages: Sequence[Language]
    ids: Mapping[str, int]

    def text(self, items: Items, *, given: str = "", controls: bool = False) -> str:
        """Return the text of ids or token strings in model order, (T,), in reading order.

        `given` is a text that they lead to, or go on from, and that is not among them. Parts that
        control ids separate stand on lines of their own; with `controls` all ids are kept and
        control ids shown by name. Raises DataError for an id that the model does not have and for
        half of a surrogate pair.
        """
        pieces = self._pieces(items)
        language = self._language(pieces)
        if not controls:
            pieces = _of_the_text(pieces, language)
        reading = _in_reading_order(pieces, language)
        tokenizer, backward = language.tokenizer, language.direction == "backward"
        encode = tokenizer.encode_fragment if backward else tokenizer.encode
        if not backward and reading and reading[0].data.startswith(b" "):
            given = given.removesuffix(" ")  # the word that was written brings it
        joined = [Piece(tokenizer.token_bytes[id_]) for id_ in encode(given)]
        reading = reading + joined if backward else joined + reading
        parts = [
            "".join(piece.control for piece in part) if is_control else _decoded(part)
            for is_control, part in groupby(reading, key=lambda piece: bool(piece.control))
            if controls or not is_control
        ]
        return ("" if controls else "\n").join(parts)

    def _pieces(self, items: Items) -> list[Piece]:
        """Return what each item stands for. Strings are names if the model has all of them."""
        tokenizer = self.languages[0].tokenizer
        known = [self.ids.get(item) if isinstance(item, str) else item for item in items]
        if None in known:
            return [_piece_of_text(str(item)) for item in items]
        pieces = []
        for id_ in known:
            if id_ is None or not 0 <= id_ < tokenizer.vocab_size:
                raise DataError(
                    f"the model has no id {id_}, only 0 to {tokenizer.vocab_size - 1}: "
                    "name the model that wrote it"
                )
            data = tokenizer.token_bytes[id_]
            pieces.append(Piece(data, "" if data else tokenizer.name_of(id_)))
        return pieces

    def _language(self, pieces: list[Piece]) -> Language:
        """Return the language that the first piece names, or the one meant by default."""
        first = pieces[0].control if pieces else ""
        named = [one for one in self.languages if one.told and first == f"<|{one.direction}|>"]
        return named[0] if named else self.languages[0]


def unreverser(
    model: str | PathLike[str] | None = None, *, direction: Direction | None = None
) -> Unreverser:
    """Return what turns the ids of `model` into text; of one trained both ways, of `direction`.

    Raises as `read_model`, and UsageError if the model does not run that way.
    """
    folder = folder_of(find(model))
    read = read_model(folder, with_weights=False)
    languages = sorted(read.languages, key=lambda one: one.direction != direction)
    if direction is not None and languages[0].direction != direction:
        raise UsageError(f"{model} is a {read.direction} model: it does not run {direction}")
    content = read_json(folder / TOKENIZER)
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    if START not in added:
        raise UsageError(f"{folder} has a tokenizer of another project: only our own is known")
    return Unreverser(languages, {**content["model"]["vocab"], **added})


def items_of(line: str) -> Items:
    """Return the ids or token strings of one line of input.

    It is a JSON array, a JSON object with one as `tokens`, as llama.cpp's server answers, or ids
    with white space between them. Raises DataError for anything else.
    """
    if not line.lstrip().startswith(("[", "{")):
        words = line.split()
        wrong = [word for word in words if not re.fullmatch(r"[0-9]+", word)]
        if wrong:
            raise DataError(f"{wrong[0]!r} is not an id: give ids, or a JSON array")
        return [_whole_number(word) for word in words]
    try:
        found: Any = json.loads(line, parse_int=_whole_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}") from None
    if isinstance(found, dict):
        found = found.get("tokens")
    if not isinstance(found, list):
        raise DataError("the JSON object has no array 'tokens'")
    for kind in (int, str):
        if all(type(item) is kind for item in found):
            return found
    raise DataError("the array must hold ids, or token strings, and nothing else")


def normalized(text: str) -> str:
    """Return `text` as the tokenizer splits it: with a space in front of every line.

    A runtime that normalizes nothing, such as llama.cpp, gives the ids of `Tokenizer.encode` for
    it. A text that begins with a line break has no first line to put a space in front of.
    """
    lines = re.sub(r"\n(?=[^\n])", "\n ", text)
    return lines if not text or text.startswith("\n") else f" {lines}"


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise DataError(f"{digits[:12]}… has {len(digits):,} digits: no id has, leave it out")
    return int(digits)


def _piece_of_text(item: str) -> Piece:
    """Return the piece of a token string that is no name, but for those of control ids."""
    if item in SPECIAL_TOKENS:
        return Piece(b"", item)
    try:
        return Piece(item.encode())
    except UnicodeEncodeError:
        raise DataError(
            f"{item!r} has half of a surrogate pair, which is no text: leave it out"
        ) from None


def _of_the_text(pieces: list[Piece], language: Language) -> list[Piece]:
    """Return the pieces behind the marker that the text begins with, up to the one it ends with."""
    name = language.tokenizer.name_of
    begin, stop = map(name, language.markers)
    names = [piece.control for piece in pieces]
    first = names.index(begin) + 1 if begin in names else 0
    last = names.index(stop, first) if stop in names[first:] else len(names)
    return pieces[first:last]


def _in_reading_order(pieces: list[Piece], language: Language) -> list[Piece]:
    starts = [bool(piece.control) or piece.data[:1] in _WHITE_SPACE for piece in pieces]
    order = Order(language.direction, language.unit, np.array(starts, dtype=np.bool_))
    places = order.to_reading(ModelIds(np.arange(len(pieces))))
    return [pieces[place] for place in places]


_WHITE_SPACE = {bytes([byte]) for byte in WHITE_SPACE}


def _decoded(part: Iterator[Piece]) -> str:
    """Return the text of pieces in reading order; broken characters are U+FFFD."""
    text = b"".join(piece.data for piece in part).decode("utf-8", errors="replace")
    return text.replace("\n ", "\n").removeprefix(" ")
