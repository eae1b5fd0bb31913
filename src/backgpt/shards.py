"""The token file: documents as reading-order ids, written once, memory-mapped and verified.

A shard holds no markers and no direction, so a forward and a backward model read the same file;
markers are put in when batches are made. `ShardWriter` and `write_shard` make one, `open_shard`
reads one, `open_dataset` reads the folder that `prepare` makes.

Format, version 1; everything little-endian, nothing compressed:

    offset  size     field
    0       8        magic  b"BACKGPT\\0"
    8       4        version            u32 = 1
    12      4        bytes per id       u32 = 2
    16      8        documents n        u64
    24      8        ids N              u64
    32      8        text bytes         u64   UTF-8 bytes of all documents' text
    40      32       tokenizer          SHA-256 of tokenizer.json
    72      32       checksum           SHA-256 of the payload, then the header with this field 0
    104     24       zero
    128     8(n+1)   offsets            u64   document i is ids[offsets[i]:offsets[i+1]]
    ...     4n       document bytes     u32   UTF-8 bytes of each document's text
    ...     2N       ids                u16   reading order, no markers
"""

import hashlib
import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from backgpt.errors import BackgptError, ConfigError, CorruptFileError, DataError
from backgpt.files import whole_file
from backgpt.order import ReadingIds
from backgpt.shape import MAX_VOCAB_SIZE
from backgpt.tokenizer import Tokenizer

MAGIC = b"BACKGPT\0"
VERSION = 1
BYTES_PER_ID = 2
HEADER = struct.Struct("<8sIIQQQ32s32s24x")
TOKENIZER_FILE = "tokenizer.json"

_CHECKSUM_FIELD = slice(72, 104)
_BLOCK_BYTES = 1 << 22
_DAMAGED = "delete it and run 'backgpt prepare' again"


class ShardWriter:
    """Write one shard at `path`, a document or a block of documents at a time.

    A context manager: the file appears at `path` when the block ends well and not at all when it
    does not. Ids go to a temporary file as they come; memory holds 12 bytes per document.
    Raises ConfigError if `vocab_size` does not fit into 16-bit ids.
    """

    def __init__(self, path: Path, *, tokenizer_sha256: str, vocab_size: int) -> None:
        if not 1 <= vocab_size <= MAX_VOCAB_SIZE:
            raise ConfigError(
                f"a vocabulary of {vocab_size} ids does not fit into a shard's 16-bit ids: "
                f"use at most {MAX_VOCAB_SIZE}"
            )
        self.path = path
        self.n_tokens = 0
        self._tokenizer = bytes.fromhex(tokenizer_sha256)
        self._vocab_size = vocab_size
        self._lengths: list[NDArray[np.uint64]] = []
        self._document_bytes: list[NDArray[np.uint32]] = []
        # Named by process, so that two runs into one folder cannot mix their bytes.
        self._ids_path = path.with_name(f"{path.name}.{os.getpid()}.ids.tmp")
        self._ids_file = self._ids_path.open("wb")

    def add(self, ids: ReadingIds, *, text_bytes: int) -> None:
        """Append one document: `(T,)` uint16 ids and the size of its text in UTF-8 bytes."""
        self.add_block(ids, lengths=np.array([len(ids)]), text_bytes=np.array([text_bytes]))

    def add_block(
        self, ids: ReadingIds, *, lengths: NDArray[Any], text_bytes: NDArray[Any]
    ) -> None:
        """Append documents whose ids follow each other in `ids`.

        `lengths` `(n,)` is the number of ids of each, `text_bytes` `(n,)` its UTF-8 bytes.
        Raises ConfigError for an id outside the vocabulary.
        """
        assert len(lengths) == len(text_bytes)
        assert int(lengths.sum()) == len(ids)
        if len(ids) and int(ids.max()) >= self._vocab_size:
            raise ConfigError(
                f"id {int(ids.max())} is outside the vocabulary of {self._vocab_size} ids: "
                "write the shard with the tokenizer that made the ids"
            )
        self._ids_file.write(np.ascontiguousarray(ids, dtype="<u2").data)
        self._lengths.append(lengths.astype(np.uint64))
        self._document_bytes.append(text_bytes.astype(np.uint32))
        self.n_tokens += len(ids)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._ids_file.close()
            if kind is None:
                self._finish()
        finally:
            self._ids_path.unlink(missing_ok=True)

    def _finish(self) -> None:
        lengths = np.concatenate([np.zeros(1, np.uint64), *self._lengths])
        offsets = np.cumsum(lengths, dtype=np.uint64).astype("<u8")
        document_bytes = np.concatenate([np.zeros(0, np.uint32), *self._document_bytes])
        text_bytes = int(document_bytes.sum(dtype=np.uint64))

        def header(checksum: bytes) -> bytes:
            return HEADER.pack(
                MAGIC,
                VERSION,
                BYTES_PER_ID,
                len(document_bytes),
                self.n_tokens,
                text_bytes,
                self._tokenizer,
                checksum,
            )

        with whole_file(self.path) as temporary:
            with temporary.open("wb") as file:
                file.write(header(bytes(32)))
                file.write(offsets.data)
                file.write(document_bytes.astype("<u4").data)
                with self._ids_path.open("rb") as ids_file:
                    shutil.copyfileobj(ids_file, file, _BLOCK_BYTES)
            with temporary.open("r+b") as finished:
                finished.seek(HEADER.size)
                digest = hashlib.file_digest(finished, "sha256")
                digest.update(header(bytes(32)))
                finished.seek(0)
                finished.write(header(digest.digest()))


def write_shard(
    path: Path,
    documents: Iterable[tuple[ReadingIds, int]],
    *,
    tokenizer_sha256: str,
    vocab_size: int,
) -> None:
    """Write pairs of (reading-order ids, UTF-8 bytes of the text) as one shard at `path`."""
    with ShardWriter(path, tokenizer_sha256=tokenizer_sha256, vocab_size=vocab_size) as writer:
        for ids, text_bytes in documents:
            writer.add(ids, text_bytes=text_bytes)


@dataclass(frozen=True, eq=False)
class Shard:
    """An open shard; the arrays are read-only views into the memory-mapped file."""

    path: Path
    sha256: str
    """The checksum in its header, which is of all that is in it."""
    tokenizer_sha256: str
    text_bytes: int
    """UTF-8 bytes of the text of all documents."""
    offsets: NDArray[np.uint64]
    """`(n_documents + 1,)`; document `i` is `ids[offsets[i]:offsets[i + 1]]`."""
    document_bytes: NDArray[np.uint32]
    """`(n_documents,)` UTF-8 bytes of each document's text."""
    ids: ReadingIds
    """`(N,)` uint16, reading order, all documents after each other, no markers."""

    def __len__(self) -> int:
        return len(self.document_bytes)

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    def document(self, index: int) -> ReadingIds:
        """Return document `index` as `(T,)` uint16 reading-order ids, without a copy.

        Raises IndexError outside `0 .. len(shard) - 1`.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of a shard with {len(self)}")
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        return cast(ReadingIds, self.ids[start:stop])

    def documents(self) -> Iterator[ReadingIds]:
        """Yield every document in the order of the file."""
        for index in range(len(self)):
            yield self.document(index)


def open_shard(path: Path, *, verify: bool = True) -> Shard:
    """Memory-map the shard at `path`.

    `verify` reads the file once and compares its checksum; without it only the header, the size
    and the offsets are checked. Raises DataError if there is no such file, CorruptFileError if it
    is damaged, cut short, or of a version this program does not know.
    """
    try:
        raw = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"there is no shard at {path}: run 'backgpt prepare' to make it") from None
    except OSError as error:
        raise BackgptError(f"cannot read shard {path}: {error.strerror}") from None
    except ValueError:  # numpy cannot map an empty file
        raise CorruptFileError(f"{path} is empty: {_DAMAGED}") from None
    if len(raw) < HEADER.size:
        raise CorruptFileError(f"{path} is cut short within its header: {_DAMAGED}")

    fields = HEADER.unpack(raw[: HEADER.size].tobytes())
    magic, version, id_bytes, n_documents, n_tokens, text_bytes, tokenizer, checksum = fields
    if magic != MAGIC:
        raise CorruptFileError(f"{path} is not a shard (its first bytes are {magic!r}): {_DAMAGED}")
    if version != VERSION or id_bytes != BYTES_PER_ID:
        raise CorruptFileError(
            f"{path} has shard version {version} with {id_bytes}-byte ids, this program reads "
            f"version {VERSION} with {BYTES_PER_ID}: {_DAMAGED}"
        )
    expected = HEADER.size + 8 * (n_documents + 1) + 4 * n_documents + BYTES_PER_ID * n_tokens
    if len(raw) != expected:
        raise CorruptFileError(
            f"{path} has {len(raw)} bytes where its header promises {expected}: {_DAMAGED}"
        )
    if verify:
        unsigned = raw[: HEADER.size].copy()
        unsigned[_CHECKSUM_FIELD] = 0
        digest = hashlib.sha256(raw[HEADER.size :].data)
        digest.update(unsigned.data)
        if digest.digest() != checksum:
            raise CorruptFileError(f"{path} is damaged (checksum differs): {_DAMAGED}")

    ids_start = HEADER.size + 8 * (n_documents + 1) + 4 * n_documents
    bytes_start = HEADER.size + 8 * (n_documents + 1)
    shard = Shard(
        path=path,
        sha256=checksum.hex(),
        tokenizer_sha256=tokenizer.hex(),
        text_bytes=text_bytes,
        offsets=raw[HEADER.size : bytes_start].view("<u8"),
        document_bytes=raw[bytes_start:ids_start].view("<u4"),
        ids=cast(ReadingIds, raw[ids_start:].view("<u2")),
    )
    _check_offsets(shard)
    return shard


@dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared folder: one tokenizer and the shards made with it."""

    tokenizer: Tokenizer
    train: tuple[Shard, ...]
    valid: tuple[Shard, ...]


def open_dataset(path: Path, *, verify: bool = True) -> Dataset:
    """Open the folder that `prepare` made: `tokenizer.json`, `train-*.bin`, `valid-*.bin`.

    Raises DataError if the folder, the tokenizer or the training shards are missing, or if a
    shard was made with another tokenizer; CorruptFileError as `open_shard`, and with `verify` for
    an id that the tokenizer has not.
    """
    if not path.is_dir():
        raise DataError(f"there is no dataset folder at {path}: run 'backgpt prepare' to make it")
    tokenizer_path = path / TOKENIZER_FILE
    if not tokenizer_path.is_file():
        raise DataError(f"{path} has no {TOKENIZER_FILE}: let 'backgpt prepare' finish there")
    if not (path / "train-00000.bin").is_file():
        raise DataError(f"{path} has no train-00000.bin: let 'backgpt prepare' finish there")
    tokenizer = Tokenizer.load(tokenizer_path)
    train, valid = (
        tuple(open_shard(file, verify=verify) for file in sorted(path.glob(f"{split}-*.bin")))
        for split in ("train", "valid")
    )
    for shard in (*train, *valid):
        if shard.tokenizer_sha256 != tokenizer.sha256:
            raise DataError(
                f"{shard.path} was made with tokenizer {shard.tokenizer_sha256[:12]}, but "
                f"{tokenizer_path} is {tokenizer.sha256[:12]}: prepare the dataset again"
            )
        largest = int(shard.ids.max()) if verify and shard.n_tokens else 0
        if largest >= tokenizer.vocab_size:
            raise CorruptFileError(
                f"{shard.path} has id {largest}, its tokenizer ids below {tokenizer.vocab_size}: "
                f"{_DAMAGED}"
            )
    return Dataset(tokenizer=tokenizer, train=train, valid=valid)


def _check_offsets(shard: Shard) -> None:
    offsets = shard.offsets
    monotone = bool(np.all(offsets[1:] >= offsets[:-1]))
    if not monotone or offsets[0] != 0 or offsets[-1] != shard.n_tokens:
        raise CorruptFileError(f"{shard.path} has document offsets out of order: {_DAMAGED}")
    if int(shard.document_bytes.sum(dtype=np.uint64)) != shard.text_bytes:
        raise CorruptFileError(f"{shard.path} has text sizes that do not add up: {_DAMAGED}")
