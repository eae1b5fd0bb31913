"""What a `tokenizer.json` from elsewhere says of itself: added spaces, bytes, markers of a text.

Takes the parsed file, or its text. Two kinds are known: byte-level BPE, as GPT-2, Qwen and Llama 3
have it, and pieces as SentencePiece makes them, with a sign for a space and pieces for single
bytes. Which control ids stand at the start and at the end of a document `with_markers` writes into
the template of its post-processor; it is only read here, never applied.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from backgpt.errors import CorruptFileError
from backgpt.order import AddedSpaces

TEMPLATE = "TemplateProcessing"
SPACE_SIGN = "\u2581"  # what SentencePiece writes for a space
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

Markers = tuple[int | None, int | None]
"""The control ids at the start and at the end of a document, None where there is none."""


def markers_of(content: dict[str, Any]) -> Markers:
    """Return what `with_markers` wrote. Raises CorruptFileError if it did not."""
    template = content.get("post_processor") or {}
    if template.get("type") != TEMPLATE:
        raise CorruptFileError(
            "the tokenizer has no control id <|start|>, nor says it how a text is marked: give "
            "one that 'backgpt prepare' or 'backgpt import' wrote"
        )
    try:
        ids = {token["id"]: token["ids"][0] for token in template["special_tokens"].values()}
        parts = [next(iter(part.items())) for part in template["single"]]
        text = [kind for kind, _ in parts].index("Sequence")
        start, end = (
            [ids[part["id"]] for _, part in side] for side in (parts[:text], parts[text + 1 :])
        )
    except (LookupError, ValueError):
        start, end = [-1], []
    if not {*start, *end} <= {*vocabulary(content).values()}:
        raise CorruptFileError(
            "the tokenizer marks a text with control ids that it has not: import the model again"
        )
    return start[-1] if start else None, end[0] if end else None


def with_markers(content: dict[str, Any], start: int | None, end: int | None) -> dict[str, Any]:
    """Return the content of a tokenizer with these control ids around a document."""
    names = {id_: name for name, id_ in vocabulary(content).items()}
    markers = {id_: names[id_] for id_ in (start, end) if id_ is not None}

    def part(kind: str, name: str, type_id: int = 0) -> dict[str, Any]:
        return {kind: {"id": name, "type_id": type_id}}

    single = [part("SpecialToken", markers[start])] if start is not None else []
    single += [part("Sequence", "A")]
    single += [part("SpecialToken", markers[end])] if end is not None else []
    template = {
        "type": TEMPLATE,
        "single": single,
        "pair": [part("Sequence", "A"), part("Sequence", "B", 1)],
        "special_tokens": {
            name: {"id": name, "ids": [id_], "tokens": [name]} for id_, name in markers.items()
        },
    }
    return {**content, "post_processor": template}


def vocabulary(content: dict[str, Any]) -> dict[str, int]:
    """Return the id of every token, added ones included."""
    vocab = content["model"]["vocab"]
    own = vocab if isinstance(vocab, dict) else {name: i for i, (name, _) in enumerate(vocab)}
    return {**own, **{token["content"]: token["id"] for token in content["added_tokens"]}}


def added_spaces(content: dict[str, Any]) -> AddedSpaces:
    """Return where a space is put in that decoding takes out again."""
    for step in _steps(content.get("decoder")):
        strips = step["type"] == "Strip" and step["content"] == " " and step["start"]
        metaspace = step["type"] == "Metaspace" and step.get("prepend_scheme") != "never"
        if strips or metaspace:
            return "text"
    return "none"


def is_byte_level(content: dict[str, Any]) -> bool:
    """Return whether tokens are written in GPT-2's stand-ins for bytes."""
    return any(step["type"] == "ByteLevel" for step in _steps(content.get("decoder")))


def unprefixed(json_text: str) -> str:
    """Return a tokenizer that puts no space in front of a text."""
    content = json.loads(json_text)
    for step in _steps(content.get("pre_tokenizer")):
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
    normalizer = content.get("normalizer") or {}
    if normalizer.get("type") == "Sequence":
        steps = [step for step in normalizer["normalizers"] if step["type"] != "Prepend"]
        content["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return json.dumps(content, ensure_ascii=False)


def bytes_of_piece(piece: str) -> bytes:
    """Return the bytes that a piece of SentencePiece stands for."""
    byte = BYTE_PIECE.fullmatch(piece)
    return bytes.fromhex(byte[1]) if byte else piece.replace(SPACE_SIGN, " ").encode()


def _steps(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yield the steps of a part of a tokenizer, whether it is one or a sequence of them."""
    if part is None:
        return
    for several in ("decoders", "pretokenizers", "normalizers"):
        if several in part:
            for step in part[several]:
                yield from _steps(step)
            return
    yield part
