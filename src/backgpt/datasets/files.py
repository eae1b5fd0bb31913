"""Local files as documents, read as a stream: plain text, JSON lines, Parquet.

Each reader takes a path and a `Tally` and yields documents; memory holds one document and one
block of the file, whatever the file's size. What cannot be read is a DataError that names the
place.
"""

import codecs
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from backgpt.datasets.records import Conversation, Document, Tally
from backgpt.errors import ConfigError, DataError, needs_extra
from backgpt.messages import ROLES, Message, Role, cleaned, take_turns

END_OF_TEXT = "<|endoftext|>"
MAX_DOCUMENT_BYTES = 16 << 20
"""A text longer than this is taken for many documents whose separator was not given."""

_BLOCK_BYTES = 1 << 20
_MAX_LINE_BYTES = 4 * MAX_DOCUMENT_BYTES  # a line of JSON escapes its text and has other fields
_BYTE_ORDER_MARK = "\ufeff"
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
KINDS = (".txt", ".jsonl", ".parquet")
_SPEAKERS: dict[str, Role] = {"human": "user", "gpt": "assistant"}
"""What ShareGPT calls those who speak."""


def kind_of(path: Path) -> str | None:
    """Return `.txt`, `.jsonl` or `.parquet`, looking through `.gz` and `.xz`, or None."""
    name = path.name.lower()
    packed = next((suffix for suffix in _OPENERS if name.endswith(suffix)), "")
    kind = Path(name.removesuffix(packed)).suffix
    return kind if kind in KINDS and not (packed and kind == ".parquet") else None


def read_file(path: Path, *, field: str, separator: str | None, tally: Tally) -> Iterator[Document]:
    """Yield the documents of the file at `path`, whose name says of what kind it is.

    `field` is where JSON lines and Parquet have the text; `separator` divides plain text (None:
    `<|endoftext|>` where it occurs). Raises DataError if the file cannot be read as that.
    """
    kind = kind_of(path)
    if kind == ".txt":
        return _read_text(path, separator=separator, tally=tally)
    if kind == ".jsonl":
        return _read_json_lines(path, field=field, tally=tally)
    if kind == ".parquet":
        return _read_parquet(path, field=field, tally=tally)
    raise DataError(f"cannot tell what {path} is: use {', '.join(KINDS)}, or .gz and .xz of them")


def read_conversations(path: Path, *, tally: Tally | None = None) -> Iterator[Conversation]:
    """Yield the conversations in JSON lines, of at least two messages that take turns.

    A line has `messages`, each with `role` and `content`; or, as ShareGPT has it, `conversations`,
    each with `from` and `value`; or `instruction` and `response` (Alpaca: `output`). Any may have a
    `context` (Alpaca: `input`), and what the system says first is one as well. Others are counted.
    Raises DataError, naming file and line, for a line that is none of these.
    """
    if kind_of(path) != ".jsonl":
        raise DataError(f"{path} holds no conversations: give JSON lines, as .jsonl, .gz or .xz")
    tally = tally if tally is not None else Tally()
    for record, origin in _records(path, tally):
        messages = [message for message in _messages(record, origin) if message.text]
        context = [_clean(_optional(record, name, origin), origin) for name in ("context", "input")]
        while messages and messages[0].role == "system":
            context.append(messages.pop(0).text)
        if len(messages) < 2:
            tally.empty += 1
        elif not take_turns(messages):
            tally.no_turns += 1
        else:
            yield Conversation(tuple(messages), "\n\n".join(filter(None, context)), origin)


def _messages(record: dict[str, Any], origin: str) -> Iterator[Message]:
    """Yield a record's messages, empty ones as well."""
    for name, role_name, text_name in (
        ("messages", "role", "content"),
        ("conversations", "from", "value"),
    ):
        turns = record.get(name)
        if turns is None:
            continue
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise DataError(
                f"{origin}: {name!r} is not a list of objects with {role_name} and {text_name}"
            )
        for turn in turns:
            role = turn.get(role_name)
            role = _SPEAKERS.get(role, role) if isinstance(role, str) else role
            if role not in ROLES:
                raise DataError(
                    f"{origin}: {role_name} = {turn.get(role_name)!r}: it must be one of "
                    f"{', '.join(ROLES)}"
                )
            yield Message(role, _clean(_text_field(turn, text_name, origin), origin))
        return
    answer = "output" if "output" in record and "response" not in record else "response"
    if not {"instruction", answer} <= record.keys():
        names = ", ".join(sorted(map(repr, record))) or "none"
        raise DataError(
            f"{origin}: no conversation; its fields are {names}: 'messages' is needed, or "
            "'instruction' and 'response'"
        )
    yield Message("user", _clean(_text_field(record, "instruction", origin), origin))
    yield Message("assistant", _clean(_text_field(record, answer, origin), origin))


def _optional(record: dict[str, Any], field: str, origin: str) -> str:
    return _text_field(record, field, origin) if field in record else ""


def document(text: str, origin: str, tally: Tally) -> Iterator[Document]:
    """Yield `text` cleaned as one document, or count it in `tally` if nothing is left of it."""
    if text := _clean(text, origin):
        yield Document(text=text, origin=origin)
    else:
        tally.empty += 1


def _clean(text: str, origin: str) -> str:
    text = cleaned(text)
    try:
        size = len(text) if text.isascii() else len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise DataError(
            f"{origin}: character {error.start} is half of a surrogate pair, which is not text: "
            "repair or remove it"
        ) from None
    if size > MAX_DOCUMENT_BYTES:
        raise _too_long(origin)
    return text


def _too_long(origin: str) -> DataError:
    return DataError(
        f"{origin}: a document of more than {MAX_DOCUMENT_BYTES >> 20} MiB: "
        "give the separator that stands between documents"
    )


def _read_text(path: Path, *, separator: str | None, tally: Tally) -> Iterator[Document]:
    if separator == "":
        raise ConfigError("separator = '': give the text that stands between documents")
    between = (separator or END_OF_TEXT).replace("\r\n", "\n")
    number, pending = 1, ""
    for block in _text_blocks(path, tally):
        pending = (pending + block).replace("\r\n", "\n")
        *complete, pending = pending.split(between)
        for text in complete:
            yield from document(text, f"{path}#{number}", tally)
            number += 1
        if len(pending) > MAX_DOCUMENT_BYTES:
            raise _too_long(f"{path}#{number}")
    if number == 1 or pending.strip():  # behind the last separator is no document
        yield from document(pending, f"{path}#{number}", tally)


def _text_blocks(path: Path, tally: Tally) -> Iterator[str]:
    """Yield a text file block by block, decoded, without a byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, at_start = 0, True
    with _open(path, tally) as file:
        while True:
            block = file.read(_BLOCK_BYTES)
            _refuse_binary(block, f"{path}", offset)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # The decoder has put the bytes it still held in front of the block.
                held = len(error.object) - len(block)
                raise _not_utf8(f"{path}", offset - held, error) from None
            offset += len(block)
            if text and at_start:
                text, at_start = text.removeprefix(_BYTE_ORDER_MARK), False
            yield text
            if not block:
                return


def _read_json_lines(path: Path, *, field: str, tally: Tally) -> Iterator[Document]:
    for record, origin in _records(path, tally):
        yield from document(_text_field(record, field, origin), origin, tally)


def _records(path: Path, tally: Tally) -> Iterator[tuple[dict[str, Any], str]]:
    offset = 0
    with _open(path, tally) as file:
        number = 0
        while line := file.readline(_MAX_LINE_BYTES):
            number += 1
            origin = f"{path}:{number}"
            if len(line) == _MAX_LINE_BYTES:
                raise DataError(f"{origin}: a line of more than {_MAX_LINE_BYTES >> 20} MiB")
            _refuse_binary(line, origin, offset)
            record = _parse(line, origin, offset)
            offset += len(line)
            if record is not None:
                yield record, origin


def _parse(line: bytes, origin: str, offset: int) -> dict[str, Any] | None:
    try:
        text = line.decode("utf-8").strip()
        if offset == 0:
            text = text.removeprefix(_BYTE_ORDER_MARK)
        record = json.loads(text) if text else None
    except UnicodeDecodeError as error:
        raise _not_utf8(origin, offset, error) from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{origin}: not JSON ({error}): one object per line is needed") from None
    except ValueError:  # what Python does not read as a whole number
        raise DataError(
            f"{origin}: a number of thousands of digits: put it in quotes, or leave it out"
        ) from None
    if record is not None and not isinstance(record, dict):
        raise DataError(f"{origin}: a {type(record).__name__} where a JSON object is needed")
    return record


def _text_field(record: dict[str, Any], field: str, origin: str) -> str:
    if field not in record:
        names = ", ".join(sorted(map(repr, record))) or "none"
        raise DataError(f"{origin}: no field {field!r}; it has {names}: name the one with the text")
    value = "" if record[field] is None else record[field]
    if not isinstance(value, str):
        told = json.dumps(value, default=repr)[:40]  # Parquet has bytes and dates as well
        raise DataError(f"{origin}: field {field!r} is {told}, not text")
    return value


def _read_parquet(path: Path, *, field: str, tally: Tally) -> Iterator[Document]:
    with needs_extra("parquet", "reading Parquet"):
        import pyarrow
        import pyarrow.parquet
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise DataError(
                    f"{path}: no column {field!r}; it has {', '.join(map(repr, names))}: "
                    "name the one with the text"
                )
            number = 0
            group_bytes = path.stat().st_size // max(1, file.num_row_groups)
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(1024, row_groups=[group], columns=[field]):
                    for value in batch.column(0).to_pylist():
                        number += 1
                        origin = f"{path}:{number}"
                        text = _text_field({field: value}, field, origin)
                        yield from document(text, origin, tally)
                tally.file_bytes += group_bytes
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path} as Parquet: {str(error).splitlines()[0]}") from None


@contextmanager
def _open(path: Path, tally: Tally) -> Iterator[IO[bytes]]:
    """Open `path`, unpacked if its name says it is packed; what is read counts in `tally`."""
    try:
        with path.open("rb") as raw:
            counted = cast(IO[bytes], _Counted(raw, tally))
            unpack = _OPENERS.get(path.suffix.lower())
            if unpack is None:
                yield counted
            else:
                with unpack(counted) as file:
                    yield file
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged or cut short: {error}; get it again") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


class _Counted:
    """A binary file that adds what is read from it to a tally."""

    def __init__(self, file: IO[bytes], tally: Tally) -> None:
        self._file = file
        self._tally = tally

    def read(self, size: int = -1) -> bytes:
        return self._count(self._file.read(size))

    def readline(self, size: int = -1) -> bytes:
        return self._count(self._file.readline(size))

    def _count(self, data: bytes) -> bytes:
        self._tally.file_bytes += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _refuse_binary(block: bytes, origin: str, offset: int) -> None:
    found = block.find(0)
    if found >= 0:
        raise DataError(
            f"{origin}: a NUL byte at offset {offset + found}, so this is no UTF-8 text: "
            "convert it or leave it out"
        )


def _not_utf8(origin: str, offset: int, error: UnicodeDecodeError) -> DataError:
    byte = error.object[error.start]
    return DataError(
        f"{origin}: not UTF-8: byte 0x{byte:02x} at offset {offset + error.start}; "
        "convert the file to UTF-8"
    )
