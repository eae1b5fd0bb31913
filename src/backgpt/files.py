"""Files that are there whole or not at all, also after a power cut."""

import errno
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backgpt.errors import BackgptError, UsageError

TEMPORARY = ".tmp"
"""How the names of files and folders end that are not yet whole."""


def write_synced(path: Path, data: bytes) -> None:
    """Write `data` to `path` and wait until the disk has it. Raises OSError."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """Replace the contents of `path` by `data` in one step. Raises OSError."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write a file to; when the block ends well it is at `path`. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")  # nobody else's
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other processes that call this out of it (not on Windows).

    Raises UsageError if one is in it, BackgptError if the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        hold(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def hold(descriptor: int, path: Path) -> None:
    """Keep others away from `path` until its `descriptor` is closed (not on Windows).

    Raises UsageError if another holds it.
    """
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"another process is writing to {path}: let it end, or choose another --out"
        ) from None
    except OSError:  # a file system without locks
        pass


def cannot_write(path: Path, error: OSError) -> BackgptError:
    """Return what tells a user that `path` could not be written."""
    # numpy gives no number where it could not write all of an array.
    way_out = {errno.ENOSPC: "make room", None: "make room, or choose another place"}
    otherwise = "choose another place"
    return BackgptError(
        f"cannot write {path}: {error.strerror or error}; {way_out.get(error.errno, otherwise)}"
    )


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable (Windows cannot open folders, and needs no such step)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
