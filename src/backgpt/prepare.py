"""The data job: sources of text -> one tokenizer -> shards; in parallel, resumable, deterministic.

Stages of `prepare`, each of which goes on from what an interrupted run left in `OUT/.work`:

1. fetch      what is not in the cache yet            -> the cache
2. tokenizer  learned from a sample of the stream     -> .work/tokenizer.json
3. encode     chunks of documents, in worker processes -> .work/part-000000.train.bin, .valid.bin
4. merge      parts to shards of bounded size         -> train-00000.bin, ..., dataset.json

A part is a shard: it is there whole or not at all, so the parts themselves are the journal. What is
in which part follows from the sources alone, never from the number of workers.
"""

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from backgpt.cores import count_threads
from backgpt.datasets import Source, Split, StreamedDocument, TextStream, find_source, sample
from backgpt.datasets.files import kind_of
from backgpt.datasets.hub import HUB_FILES
from backgpt.datasets.sources import BUILTIN, OFFICIAL_VALID
from backgpt.errors import BackgptError, ConfigError, DataError
from backgpt.files import held
from backgpt.parts import CHUNK_BYTES, SHARD_TOKENS, Progress, encode, merge, no_training_text
from backgpt.prepared import (
    DATASET_FILE,
    PrepareReport,
    SplitCounts,
    made_files,
    read_object,
    read_report,
    write_object,
    write_report,
)
from backgpt.shards import TOKENIZER_FILE, open_dataset
from backgpt.tokenizer import Tokenizer, check_vocab_size

FORMAT = 1
LONG_BYTES = 30_000  # of a document: some 8,000 ids
SAMPLE_BYTES = 64 << 20
"""Text that a tokenizer is trained on, at most."""

_WORK = ".work"
_JOB_FILE = "job.json"
_NOT_SAID = object()


def prepare(
    sources: Sequence[str],
    out: Path,
    *,
    vocab_size: int = 4096,
    tokenizer: Path | None = None,
    valid: Sequence[str] | None = None,
    valid_fraction: float = 0.01,
    field: str = "text",
    separator: str | None = None,
    workers: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    sample_bytes: int = SAMPLE_BYTES,
    shard_tokens: int = SHARD_TOKENS,
) -> PrepareReport:
    """Make a dataset folder at `out` from `sources`, or finish one that was interrupted.

    `tokenizer` is a tokenizer.json to use instead of training one with `vocab_size` ids. `valid`
    names the validation set; otherwise it is the one that comes with a source (TinyStories), and
    `valid_fraction` of the documents of all other sources, chosen by their hash. `field` and
    `separator` are as in `datasets.files`; `workers` is the number of processes (None: one
    per core). Raises ConfigError for settings out of range or an `out` that holds something else,
    DataError for sources that cannot be read, UsageError if another process is writing to `out`,
    BackgptError if writing or the hub fails.
    """
    _check_settings(sources, vocab_size, valid_fraction, workers)
    tell = progress or (lambda stage, done, total: None)
    given = Tokenizer.load(tokenizer) if tokenizer is not None else None
    inputs = _fetch(sources, valid, cache, tell)
    job = {
        "format": FORMAT,
        "sources": [_describe(*entry) for entry in inputs],
        "tokenizer": given.sha256 if given else None,
        "vocab_size": given.vocab_size if given else vocab_size,
        "valid_fraction": valid_fraction,
        "field": field,
        "separator": separator,
        "chunk_bytes": chunk_bytes,
        "sample_bytes": sample_bytes,
        "shard_tokens": shard_tokens,
    }

    def stream() -> TextStream:
        return TextStream(inputs, valid_fraction, field=field, separator=separator)

    def make(work: Path) -> PrepareReport:
        trained = given or _train_tokenizer(stream(), work, vocab_size, sample_bytes, tell)
        trained.save(work / TOKENIZER_FILE)
        read = stream()
        n_chunks = encode(
            read,
            work,
            trained,
            chunk_bytes=chunk_bytes,
            workers=workers or count_threads(),
            progress=tell,
        )
        counts = merge(work, out, n_chunks, trained, shard_tokens=shard_tokens, progress=tell)
        made = _report(out, trained, counts, read, wanted=vocab_size if given is None else 0)
        write_report(job, made)
        shutil.rmtree(work, ignore_errors=True)
        return made

    try:
        if _is_finished(out, job):
            shutil.rmtree(out / _WORK, ignore_errors=True)
            return read_report(out)
        with held(out), _forgotten_if_nothing_was_encoded(out):
            return make(_open_work(out, job))
    except OSError as error:
        raise BackgptError(
            f"cannot write to {out}: {error.strerror or error}; "
            "free space or permit it, then run again to go on"
        ) from None


# --- stage 1: fetch


def _fetch(
    sources: Sequence[str], valid: Sequence[str] | None, cache: Path | None, progress: Progress
) -> list[tuple[Source, Split | None]]:
    """Return the sources with their splits, validation sets first, their files at hand."""
    official = [OFFICIAL_VALID[spec] for spec in sources if spec in OFFICIAL_VALID]
    held_out = official if valid is None else list(valid)

    def find(spec: str) -> Source:
        return find_source(
            spec, cache=cache, on_bytes=lambda done, total: progress("fetch", done, total)
        )

    def split(spec: str) -> Split | None:
        return "train" if valid is not None or spec in OFFICIAL_VALID else None

    return [
        *((find(spec), cast(Split | None, "valid")) for spec in held_out),
        *((find(spec), split(spec)) for spec in sources),
    ]


# --- the work folder


def _is_finished(out: Path, job: dict[str, Any]) -> bool:
    """Return whether the dataset at `out` is all there and made by `job`.

    Raises ConfigError if there is something else, CorruptFileError for what was cut off.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: choose another --out")
    finished = read_object(out / DATASET_FILE)
    if finished is None:
        if out.exists() and any(out.iterdir()) and not (out / _WORK).exists():
            raise ConfigError(f"{out} is not empty and not a dataset: choose another --out")
        return False
    _refuse_other_job(out, finished.get("job"), job)
    if not all((out / name).exists() for name in made_files(finished, out)):
        return False
    open_dataset(out)
    return True


def _open_work(out: Path, job: dict[str, Any]) -> Path:
    """Return the work folder for `job` in `out`."""
    work = out / _WORK
    begun = read_object(work / _JOB_FILE)
    if begun != job:
        if any(work.glob("part-*.bin")):
            _refuse_other_job(out, begun, job)
        shutil.rmtree(work, ignore_errors=True)  # nothing in it that took long to make
        work.mkdir(parents=True)
        write_object(work / _JOB_FILE, job)
    return work


@contextmanager
def _forgotten_if_nothing_was_encoded(out: Path) -> Iterator[None]:
    """Leave no trace of a job that fails before it made anything worth going on from."""
    try:
        yield
    except BackgptError:
        work = out / _WORK
        if not any(work.glob("part-*.bin")):
            shutil.rmtree(work, ignore_errors=True)
            if out.is_dir() and not any(out.iterdir()):
                out.rmdir()
        raise


def _refuse_other_job(out: Path, old: Any, new: dict[str, Any]) -> None:
    if old == new:
        return
    old = old if isinstance(old, dict) else {}
    key = next(key for key in (*new, *old) if old.get(key, _NOT_SAID) != new.get(key, _NOT_SAID))
    what = "sources" if key == "sources" else f"{key} = {old.get(key)!r}, not {new.get(key)!r}"
    raise ConfigError(
        f"{out} was begun with other settings ({what}): remove it or choose another --out"
    )


def _describe(source: Source, split: Split | None) -> dict[str, Any]:
    """Return what tells that a source is still the same, without reading its files."""
    if source.spec == BUILTIN:
        from backgpt.corpus import stories

        texts = stories()
        files = [{"name": BUILTIN, "documents": len(texts), "characters": sum(map(len, texts))}]
    elif source.spec in HUB_FILES:
        files = [asdict(HUB_FILES[source.spec])]
    else:
        stats = [(path, _stat(path)) for path in source.files]
        files = [
            {"name": str(path), "bytes": found.st_size, "modified_ns": found.st_mtime_ns}
            for path, found in stats
        ]
    return {"source": source.spec, "split": split, "files": files}


def _stat(path: Path) -> os.stat_result:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; leave it out") from None
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path} is no plain file, and is read twice: copy it into one first")
    return found


# --- stage 2: tokenizer


def _train_tokenizer(
    stream: TextStream, work: Path, vocab_size: int, sample_bytes: int, progress: Progress
) -> Tokenizer:
    made = work / TOKENIZER_FILE
    if made.exists():
        return Tokenizer.load(made)
    total = sum(source.size_bytes for source, _ in stream.sources)

    def training_documents() -> Iterator[StreamedDocument]:
        reported = 0
        for document in stream:
            if stream.tally.file_bytes - reported >= CHUNK_BYTES:
                reported = stream.tally.file_bytes
                progress("sample", reported, total)
            if document.split == "train":
                yield document

    texts = sample(training_documents(), sample_bytes)
    progress("sample", total, total)
    if not texts:
        raise no_training_text()
    return Tokenizer.train(texts, vocab_size)


# --- settings, report


def _check_settings(
    sources: Sequence[str], vocab_size: int, valid_fraction: float, workers: int | None
) -> None:
    if not sources:
        raise ConfigError("no source of text: give a file, a folder, or the name of a dataset")
    check_vocab_size(vocab_size)
    if not 0 <= valid_fraction < 1:
        raise ConfigError(f"valid_fraction = {valid_fraction}: choose from 0 to below 1")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers = {workers}: at least one is needed")


def _report(
    out: Path,
    tokenizer: Tokenizer,
    counts: dict[Split, SplitCounts],
    stream: TextStream,
    *,
    wanted: int,
) -> PrepareReport:
    """Make the report; `wanted` is the size of vocabulary that was asked for."""
    notes = []
    if tokenizer.vocab_size < wanted:
        notes.append(
            f"The text is too small for {wanted} ids: the tokenizer has {tokenizer.vocab_size}."
        )
    if not counts["valid"].documents:
        notes.append(
            "No document fell into the validation split, without which a run knows neither its "
            "loss nor its best checkpoint: name texts with --valid, or give a larger "
            "--valid-fraction."
        )
    documents = sum(split.documents for split in counts.values())
    mean = sum(split.text_bytes for split in counts.values()) // max(documents, 1)
    files = (path for source, _ in stream.sources for path in source.files)
    if mean > LONG_BYTES and any(kind_of(path) == ".txt" for path in files):
        notes.append(
            f"A document has {mean:,} bytes in the mean, of which a model sees a piece at a time "
            "and few beginnings and endings: say with --separator what stands between texts "
            "(\\n\\n is an empty line)."
        )
    return PrepareReport(
        out=out,
        vocab_size=tokenizer.vocab_size,
        tokenizer_sha256=tokenizer.sha256,
        train=counts["train"],
        valid=counts["valid"],
        empty=stream.tally.empty,
        duplicates=stream.duplicates,
        also_in_valid=stream.also_in_valid,
        notes=tuple(notes),
    )
