"""Several sources as one stream of distinct documents, each with its split.

Everything here follows from a document's SHA-256 alone, so the same text always lands in the same
split and the same sample, whatever stands around it. About 70 bytes per document are remembered.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Literal

from backgpt.datasets.records import Tally
from backgpt.datasets.sources import Source, read_source

Split = Literal["train", "valid"]

_HASH_RANGE = 1 << 64


@dataclass(frozen=True, slots=True)
class StreamedDocument:
    """A text that occurs in the stream for the first time."""

    text: str
    text_bytes: int
    """Its size in UTF-8."""
    split: Split
    sample_hash: int
    """Uniform in 0 .. 2**64 - 1 and independent of the split."""


@dataclass
class TextStream:
    """Reads sources in order, drops what was there before, and says which split a text is in.

    `sources` are pairs of a source and its split; None divides by hash, `valid_fraction` of the
    documents to validation. Sources wholly in `valid` have to come first: a later training
    document that is identical to one of theirs is dropped. The counts grow while the stream is
    read, so it is read once.
    """

    sources: Sequence[tuple[Source, Split | None]]
    valid_fraction: float
    field: str = "text"
    separator: str | None = None
    tally: Tally = dataclass_field(default_factory=Tally)
    duplicates: int = 0
    also_in_valid: int = 0

    def __iter__(self) -> Iterator[StreamedDocument]:
        seen: set[int] = set()
        held_out: set[int] = set()
        limit = int(self.valid_fraction * _HASH_RANGE)
        for source, fixed in self.sources:
            for found in read_source(
                source, field=self.field, separator=self.separator, tally=self.tally
            ):
                data = found.text.encode("utf-8")
                digest = hashlib.sha256(data).digest()
                key, split_hash, sample_hash = (
                    int.from_bytes(digest[start : start + 8], "little") for start in (0, 8, 16)
                )
                if fixed != "valid" and key in held_out:
                    self.also_in_valid += 1
                    continue
                if key in seen:
                    self.duplicates += 1
                    continue
                seen.add(key)
                if fixed == "valid":
                    held_out.add(key)
                split = fixed or ("valid" if split_hash < limit else "train")
                yield StreamedDocument(found.text, len(data), split, sample_hash)


def sample(documents: Iterable[StreamedDocument], budget_bytes: int) -> list[str]:
    """Return texts spread evenly over the stream, at most `budget_bytes` of them in UTF-8.

    One pass: documents whose hash is below a limit are kept, and the limit is halved whenever
    there are too many. A single document larger than the budget is left out.
    """
    limit, size = _HASH_RANGE, 0
    kept: list[StreamedDocument] = []
    for document in documents:
        if document.sample_hash >= limit:
            continue
        kept.append(document)
        size += document.text_bytes
        while size > budget_bytes:
            limit //= 2
            kept = [other for other in kept if other.sample_hash < limit]
            size = sum(other.text_bytes for other in kept)
    return [document.text for document in kept]
