"""Folders that are there whole or not at all, and that can be verified.

A folder is written beside its place, with a manifest of the size and SHA-256 of every file as the
last one, and then renamed: what has no manifest that verifies was not finished, or was altered.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from backgpt.errors import BackgptError, CorruptFileError
from backgpt.files import TEMPORARY, sync_folder, write_synced

MANIFEST = "manifest.json"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write into; after the block it is at `folder`, with its manifest.

    It takes the place of what was there; if anything fails, that stays. A program that is killed
    leaves a hidden folder `.NAME.….tmp` beside it. Raises OSError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(
        prefix=f".{folder.name}.", suffix=TEMPORARY, dir=folder.parent, ignore_cleanup_errors=True
    ) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        yield new
        files = _by_name(new)
        write_json(
            new / MANIFEST, {"files": {name: fingerprint(file) for name, file in files.items()}}
        )
        for inner in (new, *(path for path in new.rglob("*") if path.is_dir())):
            sync_folder(inner)
        _put_in_place(new, folder, aside=Path(temporary) / "old")
        sync_folder(folder.parent)


def _put_in_place(new: Path, folder: Path, *, aside: Path) -> None:
    """Rename `new` to `folder`, what was there to `aside`; if that fails, it is back."""
    if not folder.is_dir():
        new.rename(folder)
        return
    folder.rename(aside)
    try:
        new.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise


def verify(folder: Path, *, only: Collection[str] | None = None) -> None:
    """Compare the files of a folder, every one or `only` some, with its manifest.

    Raises CorruptFileError naming the first file that is missing, cut short or altered.
    """
    if not (folder / MANIFEST).is_file():
        raise CorruptFileError(f"{folder} has no {MANIFEST}: it was not written to its end")
    files = read_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict):
        raise CorruptFileError(f"{folder / MANIFEST} is damaged")
    there = _by_name(folder)  # what else a manifest may name is not looked at
    for name, expected in files.items():
        if only is not None and name not in only:
            continue
        if name not in there:
            raise CorruptFileError(f"{folder / name} is missing")
        if fingerprint(there[name]) != expected:
            raise CorruptFileError(f"{folder / name} is damaged: it differs from {MANIFEST}")


def read_json(path: Path, *, failure: type[BackgptError] = CorruptFileError) -> dict[str, Any]:
    """Read a JSON object. Raises `failure`, naming the file, if there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise failure(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise failure(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise failure(f"{path} is not a JSON object")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object and wait until the disk has it. Raises OSError."""
    write_synced(path, (json.dumps(values, indent=2) + "\n").encode())


def files_in(folder: Path) -> list[Path]:
    """Return the files in a folder and in the folders in it, in the order of their paths."""
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _by_name(folder: Path) -> dict[str, Path]:
    return {file.relative_to(folder).as_posix(): file for file in files_in(folder)}


def fingerprint(path: Path) -> dict[str, Any]:
    """Return what a manifest says of a file: its size in bytes and its SHA-256. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}
