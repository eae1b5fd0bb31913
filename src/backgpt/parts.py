"""The two heavy stages of `prepare`: documents -> parts in worker processes -> shards.

A chunk is a few megabytes of consecutive documents; its parts are two small shards, one per
split. They are written whole or not at all, so those that are there need not be made again. What
is in which part follows from the stream alone, never from the number of workers.
"""

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_connection
from pathlib import Path

import numpy as np

from backgpt.datasets import Split, StreamedDocument, TextStream
from backgpt.errors import BackgptError, CorruptFileError, DataError
from backgpt.order import ReadingIds
from backgpt.prepared import SPLITS, SplitCounts, shard_name
from backgpt.shards import TOKENIZER_FILE, ShardWriter, open_shard
from backgpt.tokenizer import Tokenizer

CHUNK_BYTES = 4 << 20
"""Text per worker task."""
SHARD_TOKENS = 100_000_000

_BATCH_BYTES = 1 << 19  # text encoded at once: encodings take about 25 times as much memory

Progress = Callable[[str, int, int], None]
"""Called with (stage, bytes done, bytes in all)."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Consecutive documents of the stream: one worker task, one pair of parts."""

    index: int
    documents: tuple[StreamedDocument, ...]
    file_bytes: int
    """How far the files had been read when the chunk was full."""


def _chunks(stream: TextStream, chunk_bytes: int) -> Iterator[_Chunk]:
    index, size = 0, 0
    documents: list[StreamedDocument] = []
    for document in stream:
        documents.append(document)
        size += document.text_bytes
        if size >= chunk_bytes:
            yield _Chunk(index, tuple(documents), stream.tally.file_bytes)
            index, size, documents = index + 1, 0, []
    if documents:
        yield _Chunk(index, tuple(documents), stream.tally.file_bytes)


def encode(
    stream: TextStream,
    work: Path,
    tokenizer: Tokenizer,
    *,
    chunk_bytes: int,
    workers: int,
    progress: Progress,
) -> int:
    """Write the parts that are not there yet; return how many chunks the stream has."""
    total = sum(source.size_bytes for source, _ in stream.sources)
    n_chunks = 0

    def missing() -> Iterator[_Chunk]:
        nonlocal n_chunks
        for chunk in _chunks(stream, chunk_bytes):
            n_chunks += 1
            if _is_written(work, chunk.index, tokenizer):
                progress("encode", chunk.file_bytes, total)
            else:
                yield chunk

    if workers == 1 or total <= 2 * chunk_bytes:  # processes take a second to start
        for chunk in missing():
            _write_parts(chunk, work, tokenizer)
            progress("encode", chunk.file_bytes, total)
    else:
        _encode_in_processes(missing(), work, workers, lambda done: progress("encode", done, total))
    return n_chunks


def _encode_in_processes(
    chunks: Iterator[_Chunk], work: Path, workers: int, on_bytes: Callable[[int], None]
) -> None:
    """Encode `chunks` with a bounded number of them waiting, so that memory is bounded too."""
    pending: set[Future[int]] = set()
    furthest = 0

    def collect(most: int) -> None:
        nonlocal pending, furthest
        while len(pending) > most:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            furthest = max(furthest, *(future.result() for future in done))
            on_bytes(furthest)

    pool = ProcessPoolExecutor(
        max_workers=workers,
        mp_context=multiprocessing.get_context("spawn"),  # a fork would copy tokenizer threads
        initializer=_start_worker,
        initargs=(work,),
    )
    try:
        for chunk in chunks:
            pending.add(pool.submit(_work, chunk))
            collect(most=2 * workers)
        collect(most=0)
    except BrokenProcessPool:
        raise BackgptError(
            "a worker process ended early (too little memory, or a script that calls prepare "
            "outside `if __name__ == '__main__':`): run again to go on, with workers = 1"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass
class _WorkerState:
    work: Path
    tokenizer: Tokenizer


_worker: _WorkerState | None = None  # set once in each worker process, never in the parent


def _start_worker(work: Path) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool in order
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core per process, and this is ours
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = _WorkerState(work, Tokenizer.load(work / TOKENIZER_FILE))


def _end_with_parent() -> None:
    """End this worker when its parent is gone, which a killed parent cannot ask for."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_connection([parent.sentinel])
    os._exit(1)


def _work(chunk: _Chunk) -> int:
    assert _worker is not None
    _write_parts(chunk, _worker.work, _worker.tokenizer)
    return chunk.file_bytes


def _part(work: Path, index: int, split: Split) -> Path:
    return work / f"part-{index:06d}.{split}.bin"


def _is_written(work: Path, index: int, tokenizer: Tokenizer) -> bool:
    try:
        parts = [open_shard(_part(work, index, split)) for split in SPLITS]
    except (DataError, CorruptFileError):
        return False
    return all(part.tokenizer_sha256 == tokenizer.sha256 for part in parts)


def _write_parts(chunk: _Chunk, work: Path, tokenizer: Tokenizer) -> None:
    for split in SPLITS:
        documents = [document for document in chunk.documents if document.split == split]
        with ShardWriter(
            _part(work, chunk.index, split),
            tokenizer_sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
        ) as writer:
            for batch in _batches(documents):
                encoded = tokenizer.encode_batch([document.text for document in batch])
                writer.add_block(
                    ReadingIds(np.concatenate(encoded)),
                    lengths=np.array([len(ids) for ids in encoded]),
                    text_bytes=np.array([document.text_bytes for document in batch]),
                )


def _batches(documents: Sequence[StreamedDocument]) -> Iterator[list[StreamedDocument]]:
    batch: list[StreamedDocument] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += document.text_bytes
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def merge(
    work: Path,
    out: Path,
    n_chunks: int,
    tokenizer: Tokenizer,
    *,
    shard_tokens: int,
    progress: Progress,
) -> dict[Split, SplitCounts]:
    """Make the final files of the parts; `train-00000.bin` appears last, when all others are."""
    parts = {split: [_part(work, i, split) for i in range(n_chunks)] for split in SPLITS}
    total = sum(path.stat().st_size for paths in parts.values() for path in paths)
    merged: dict[Split, list[Path]] = {"train": [], "valid": []}
    counts: dict[Split, SplitCounts] = {}
    done = 0
    for split in SPLITS:
        documents, tokens, text_bytes = 0, 0, 0
        for number, pieces in enumerate(_plan(parts[split], shard_tokens)):
            path = work / shard_name(split, number)
            with ShardWriter(
                path, tokenizer_sha256=tokenizer.sha256, vocab_size=tokenizer.vocab_size
            ) as writer:
                for piece in pieces:
                    _copy(piece, writer)
                    done += 2 * piece.tokens
                    progress("merge", min(done, total), total)
            merged[split].append(path)
            documents += sum(piece.stop - piece.start for piece in pieces)
            tokens += sum(piece.tokens for piece in pieces)
            text_bytes += open_shard(path, verify=False).text_bytes
        counts[split] = SplitCounts(documents, tokens, text_bytes, len(merged[split]))
    if not merged["train"]:
        raise no_training_text()

    shutil.copyfile(work / TOKENIZER_FILE, work / "copy.json")
    (work / "copy.json").replace(out / TOKENIZER_FILE)
    for path in (*merged["valid"], *merged["train"][1:], merged["train"][0]):
        path.replace(out / path.name)
    progress("merge", total, total)
    return counts


@dataclass(frozen=True, slots=True)
class _Piece:
    """Documents `start` to `stop` of one part."""

    part: Path
    start: int
    stop: int
    tokens: int


def _plan(parts: Sequence[Path], shard_tokens: int) -> list[list[_Piece]]:
    """Divide the documents of `parts`, in order, into shards of at most `shard_tokens` ids.

    A document is never divided: one that is longer than that gets a shard to itself.
    """
    shards: list[list[_Piece]] = []
    room = 0
    for path in parts:
        part = open_shard(path, verify=False)
        offsets = part.offsets.astype(np.int64)
        start = 0
        while start < len(part):
            fits = int(np.searchsorted(offsets, offsets[start] + room, side="right")) - 1
            if not shards or fits == start:
                shards.append([])
                room = max(shard_tokens, int(offsets[start + 1] - offsets[start]))
                continue
            tokens = int(offsets[fits] - offsets[start])
            shards[-1].append(_Piece(path, start, fits, tokens))
            room -= tokens
            start = fits
    return shards


def _copy(piece: _Piece, writer: ShardWriter) -> None:
    part = open_shard(piece.part)
    offsets = part.offsets[piece.start : piece.stop + 1]
    writer.add_block(
        ReadingIds(part.ids[int(offsets[0]) : int(offsets[-1])]),
        lengths=np.diff(offsets),
        text_bytes=part.document_bytes[piece.start : piece.stop],
    )


def no_training_text() -> DataError:
    return DataError(
        "no document is left for training: give more text, a smaller valid_fraction, "
        "or another validation set"
    )
