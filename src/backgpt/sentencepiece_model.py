"""SentencePiece's `.model` file as a `tokenizer.json`, for byte-pair models like smolGPT's.

The file is a protocol buffer; of its fields only a few are needed, which is less than a library:

    ModelProto      1 pieces (SentencePiece, repeated)   2 trainer (TrainerSpec)   3 normalizer
    SentencePiece   1 piece (text)   2 score (float)   3 type
    TrainerSpec     3 model type     35 byte fallback  40 unknown  41 first  42 last id, -1: none
    NormalizerSpec  2 table of characters   3 adds a space in front   4 removes extra spaces

https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from backgpt.errors import CorruptFileError, DataError
from backgpt.foreign_tokenizer import SPACE_SIGN

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
BYTE_PAIRS = 2  # among the types of model


@dataclass(frozen=True)
class Piece:
    """One token: its text, its score (the higher, the sooner it is put together), its type."""

    text: str
    score: float
    type: int


def read_sentencepiece(path: Path) -> tuple[dict[str, Any], int | None, int | None]:
    """Return the content of a `tokenizer.json`, and the ids of the first and the last marker.

    A model that was trained without a marker has None for it. It gives the same ids as the library
    for any text. Raises DataError if there is no file, or one that is not a byte-pair model as
    smolGPT trains them, CorruptFileError for a damaged one.
    """
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = [_piece(value) for number, value in fields if number == 1]
        trainer, normalizer = (dict(_fields(dict(fields).get(number, b""))) for number in (2, 3))
    except OSError as error:
        raise DataError(f"cannot read tokenizer {path}: {error.strerror}") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error):
        raise CorruptFileError(f"{path} is not a SentencePiece model, or damaged") from None
    if not pieces:
        raise CorruptFileError(f"{path} is not a SentencePiece model, or damaged")
    if trainer.get(3, 1) != BYTE_PAIRS or not trainer.get(35):
        raise DataError(f"{path} is not a byte-pair model with bytes to fall back on: no other is")
    if normalizer.get(2) or normalizer.get(5, 1) != 1:
        raise DataError(f"{path} changes characters before it encodes: only spaces may change")
    for number, piece in enumerate(pieces):
        if piece.type not in (NORMAL, UNKNOWN, CONTROL, BYTE):
            raise DataError(f"{path}: piece {number} ({piece.text!r}) is of a type not read here")

    def control_id(number: int, default: int) -> int | None:
        id_ = trainer.get(number, default)  # -1 is read as a number of 64 bits
        return id_ if isinstance(id_, int) and id_ < len(pieces) else None

    unknown = control_id(40, 0)
    tokenizer = _tokenizer(
        pieces,
        unknown=None if unknown is None else pieces[unknown].text,
        prepends=normalizer.get(3, 1) == 1,
        trims=normalizer.get(4, 1) == 1,
    )
    return json.loads(tokenizer.to_str()), control_id(41, 1), control_id(42, 2)


def _tokenizer(
    pieces: list[Piece], *, unknown: str | None, prepends: bool, trims: bool
) -> Tokenizer:
    vocab = {piece.text: id_ for id_, piece in enumerate(pieces)}
    if len(vocab) < len(pieces):
        raise CorruptFileError("the SentencePiece model has a piece twice")
    hf = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges(pieces),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[Any] = []
    if trims:
        steps += [
            normalizers.Replace(Regex(rf"\A +|[ {SPACE_SIGN}]+\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    steps += [normalizers.Prepend(SPACE_SIGN)] if prepends else []
    hf.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE_SIGN)])
    hf.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE_SIGN, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", left=1, right=0)] if prepends else []),
        ]
    )
    hf.add_special_tokens(
        [
            AddedToken(piece.text, special=True, normalized=False)
            for piece in pieces
            if piece.type in (UNKNOWN, CONTROL)
        ]
    )
    return hf


def _merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Return all pairs that make a piece, those first that SentencePiece puts together first."""
    known = {piece.text for piece in pieces if piece.type == NORMAL}
    in_order = sorted((p for p in pieces if p.type == NORMAL), key=lambda piece: -piece.score)
    return [
        (piece.text[:cut], piece.text[cut:])
        for piece in in_order
        for cut in range(1, len(piece.text))
        if piece.text[:cut] in known and piece.text[cut:] in known
    ]


def _piece(data: Any) -> Piece:
    fields = dict(_fields(data))
    return Piece(fields[1].decode(), fields.get(2, 0.0), fields.get(3, NORMAL))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the number and value of each field of a protocol buffer: int, float or bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield number, value
        elif kind == 2:
            size, place = _varint(data, place)
            if place + size > len(data):
                raise ValueError("a field is longer than the file")
            yield number, data[place : place + size]
            place += size
        elif kind in (1, 5):
            size, form = (8, "<d") if kind == 1 else (4, "<f")
            yield number, struct.unpack_from(form, data, place)[0]
            place += size
        else:
            raise ValueError(f"a field of kind {kind}")


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Return a whole number of variable length, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
