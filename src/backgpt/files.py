"""Files that are there whole or not at all, also after a power cut."""

import errno
import os
import secrets
from pathlib import Path

from backgpt.errors import BackgptError


def write_synced(path: Path, data: bytes) -> None:
    """Write `data` to `path` and wait until the disk has it. Raises OSError."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """Replace the contents of `path` by `data` in one step. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # nobody else's
    try:
        write_synced(temporary, data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def cannot_write(path: Path, error: OSError) -> BackgptError:
    """Return what tells a user that `path` could not be written."""
    way_out = "make room" if error.errno == errno.ENOSPC else "choose another place"
    return BackgptError(f"cannot write {path}: {error.strerror or error}; {way_out}")


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable (Windows cannot open folders, and needs no such step)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
