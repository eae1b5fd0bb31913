"""A prepared dataset on its way: one archive, cut into pieces that lie in several calls.

Token ids compress a little better than their text, and nothing is left to do there but to unpack.
"""

import io
import lzma
import math
import shutil
import tarfile
from pathlib import Path

PIECES = ".tar.xz."  # NAME.tar.xz.1-of-2, NAME.tar.xz.2-of-2
DAMAGED = (lzma.LZMAError, tarfile.TarError, EOFError)  # what unpacking such pieces raises


def pack(dataset: Path, archive: Path) -> None:
    """Write the files of `dataset` into `archive`, whole or not at all."""
    temporary = archive.with_name(archive.name + ".tmp")
    with lzma.open(temporary, "wb", preset=9) as out, tarfile.open(fileobj=out, mode="w") as tar:
        for file in sorted(dataset.iterdir()):
            if file.is_file():
                tar.add(file, arcname=f"{dataset.name}/{file.name}")
    temporary.rename(archive)


def cut(archive: Path, name: str, filled: list[int]) -> dict[str, tuple[int, bytes]]:
    """Return the pieces of an archive by name: the number of a call, and what goes into it.

    The calls hold `filled` bytes already and become as even as they can; `filled` is updated.
    """
    data = archive.read_bytes()
    level = math.ceil((sum(filled) + len(data)) / len(filled))
    pieces, start = [], 0
    for call, size in enumerate(filled):
        last = call == len(filled) - 1
        stop = len(data) if last else min(start + max(level - size, 0), len(data))
        if stop > start:
            pieces.append((call, data[start:stop]))
            filled[call] += stop - start
        start = stop
    return {
        f"{name}{PIECES}{number}-of-{len(pieces)}": piece
        for number, piece in enumerate(pieces, start=1)
    }


def unpack(folder: Path, name: str) -> bool:
    """Unpack the dataset `name` beside its pieces in `folder`; return whether it is there.

    Raises one of DAMAGED if the pieces are.
    """
    target = folder / name
    if target.is_dir():
        return True
    pieces = sorted(folder.glob(f"{name}{PIECES}*"), key=_number)
    if not pieces or len(pieces) < int(pieces[0].name.rpartition("-of-")[2]):
        return False
    temporary = folder / f"{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    data = io.BytesIO(b"".join(piece.read_bytes() for piece in pieces))
    with tarfile.open(fileobj=data, mode="r:xz") as tar:
        tar.extractall(temporary, filter="data")
    (temporary / name).rename(target)
    temporary.rmdir()
    return True


def _number(piece: Path) -> int:
    return int(piece.name.rpartition(PIECES)[2].partition("-of-")[0])
