"""Names of sources -> their files -> documents.

A source is one of the named ones, or the path of a file or folder, or a glob. To read a local
file that is called like a named source, write `./dolly`.
"""

import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from backgpt.datasets.files import KINDS, document, kind_of, read_conversations, read_file
from backgpt.datasets.hub import HUB_FILES, default_cache, fetch
from backgpt.datasets.records import Document, Tally
from backgpt.errors import DataError

BUILTIN = "builtin"
NAMED_SOURCES = (BUILTIN, *HUB_FILES)
OFFICIAL_VALID = {"tinystories": "tinystories-valid"}
"""Source name -> the name of the validation set its authors publish with it."""


@dataclass(frozen=True)
class Source:
    """A source whose files are at hand; `files` is empty for the built-in corpus."""

    spec: str
    files: tuple[Path, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the files as they are on disk."""
        return sum(path.stat().st_size for path in self.files)


def find_source(
    spec: str,
    *,
    cache: Path | None = None,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> Source:
    """Return the source that `spec` names, downloading what is not yet in `cache`.

    Folders are searched recursively, hidden files left out; files are sorted by path. Raises
    DataError if there is nothing, BackgptError as `fetch`.
    """
    if not spec:
        known = ", ".join(NAMED_SOURCES)
        raise DataError(f"the source is empty: give a file, a folder, a glob, or one of {known}")
    if spec == "-":
        raise DataError("texts are read twice, so not from a pipe: write them into a file first")
    if spec == BUILTIN:
        return Source(spec=spec, files=())
    if spec in HUB_FILES:
        folder = cache if cache is not None else default_cache()
        path = fetch(HUB_FILES[spec], folder, on_bytes=on_bytes)
        return Source(spec=spec, files=(path,))

    path = Path(os.path.expanduser(spec))  # leaves `~nobody` as it is
    if path.exists():
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
    if not found:
        raise DataError(
            f"there is no {spec!r}: give a file, a folder, a glob, or one of "
            f"{', '.join(NAMED_SOURCES)}"
        )
    files = sorted({file for entry in found for file in _files_under(entry)})
    if not files:
        raise DataError(f"{spec} holds no {', '.join(KINDS)} file: give another folder")
    return Source(spec=spec, files=tuple(files))


def read_source(
    source: Source,
    *,
    field: str = "text",
    separator: str | None = None,
    tally: Tally | None = None,
) -> Iterator[Document]:
    """Yield the documents of `source`; `tally`, if given, is kept up to date meanwhile.

    Raises DataError as `read_file`, or at the end if there was no text at all.
    """
    tally = tally if tally is not None else Tally()
    nothing = True
    for found in _documents(source, field=field, separator=separator, tally=tally):
        nothing = False
        yield found
    if nothing:
        raise DataError(f"{source.spec} is empty: there is no text in it")


def open_source(
    spec: str, *, field: str = "text", separator: str | None = None
) -> Iterator[Document]:
    """Yield the documents of the source that `spec` names; see `find_source`, `read_source`."""
    return read_source(find_source(spec), field=field, separator=separator)


def _documents(
    source: Source, *, field: str, separator: str | None, tally: Tally
) -> Iterator[Document]:
    if source.spec == BUILTIN:
        from backgpt.corpus import stories

        for number, text in enumerate(stories(), start=1):
            yield from document(text, f"{BUILTIN}:{number}", tally)
    elif source.spec == "dolly":
        for conversation in read_conversations(source.files[0], tally=tally):
            yield from document(conversation.as_text(), conversation.origin, tally)
    else:
        for path in source.files:
            yield from read_file(path, field=field, separator=separator, tally=tally)


def _files_under(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for file in path.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.is_file() and not hidden and kind_of(file):
            yield file
