"""A prepared folder: what its `dataset.json` says of it, and a look at its documents."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backgpt.datasets import Split
from backgpt.errors import CorruptFileError
from backgpt.files import write_whole
from backgpt.shards import TOKENIZER_FILE, open_dataset

DATASET_FILE = "dataset.json"
SPLITS: tuple[Split, Split] = ("train", "valid")


@dataclass(frozen=True)
class SplitCounts:
    """How much is in the training or the validation shards."""

    documents: int
    tokens: int
    text_bytes: int
    shards: int


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` made, or found already made (`reused`)."""

    out: Path
    vocab_size: int
    tokenizer_sha256: str
    train: SplitCounts
    valid: SplitCounts
    empty: int
    duplicates: int
    also_in_valid: int
    """Training documents dropped because a given validation set has them."""
    notes: tuple[str, ...]
    """What the user should know, a sentence each."""
    reused: bool = False


@dataclass(frozen=True, eq=False)
class PeekedDocument:
    """A document as it lies in the shards and as a model meets it, markers left out."""

    text: str
    reading: tuple[str, ...]
    """The text of each id, in reading order."""
    model: tuple[str, ...]
    """The same in model order."""


def peek(out: Path, n: int) -> list[PeekedDocument]:
    """Return up to `n` training documents, spread over the first shard of the dataset at `out`."""
    dataset = open_dataset(out, verify=False)
    tokenizer, shard = dataset.tokenizer, dataset.train[0]
    order = tokenizer.order("backward", "token")

    def pieces(ids: Any) -> tuple[str, ...]:
        return tuple(tokenizer.token_bytes[i].decode("utf-8", errors="replace") for i in ids)

    count = min(n, len(shard))
    chosen = [shard.document(index * len(shard) // count) for index in range(count)]
    return [
        PeekedDocument(tokenizer.decode(ids), pieces(ids), pieces(order.to_model(ids)))
        for ids in chosen
    ]


def write_report(job: dict[str, Any], report: PrepareReport) -> None:
    """Write what a folder was made by and what is in it, for `read_report`. Raises OSError."""
    values = {key: value for key, value in asdict(report).items() if key not in ("out", "reused")}
    write_object(report.out / DATASET_FILE, {"job": job, **values})


def read_report(out: Path) -> PrepareReport:
    """Read what `write_report` wrote. Raises CorruptFileError."""
    values = read_object(out / DATASET_FILE) or {}
    try:
        values.pop("job")
        for split in SPLITS:
            values[split] = SplitCounts(**values[split])
        return PrepareReport(**{**values, "notes": tuple(values["notes"])}, out=out, reused=True)
    except (KeyError, TypeError):
        raise _damaged(out / DATASET_FILE) from None


def sources_of(folder: Path) -> tuple[str, ...]:
    """Return what a prepared folder was made of, as it was named; nothing if that is not known."""
    try:
        job = json.loads((folder / DATASET_FILE).read_text(encoding="utf-8"))["job"]
        return tuple(str(source["source"]) for source in job["sources"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ()


def shard_name(split: Split, number: int) -> str:
    """Return the file name of a finished shard."""
    return f"{split}-{number:05d}.bin"


def made_files(about: dict[str, Any], out: Path) -> Iterator[str]:
    """Yield the names of the files of a dataset, given what its own file says."""
    yield TOKENIZER_FILE
    for split in SPLITS:
        try:
            count = range(about[split]["shards"])
        except (KeyError, TypeError):
            raise _damaged(out / DATASET_FILE) from None
        for number in count:
            yield shard_name(split, number)


def _damaged(path: Path) -> CorruptFileError:
    return CorruptFileError(f"{path} is damaged: remove its folder and prepare again")


def write_object(path: Path, value: dict[str, Any]) -> None:
    """Write an object that `read_object` reads, whole or not at all. Raises OSError."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, text.encode("utf-8", "backslashreplace"))  # names of files may be no text


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the object in the file at `path`, or None if there is no such file.

    Raises CorruptFileError if it is none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _damaged(path)
    return value
