"""Public files, pinned by revision, size and SHA-256, downloaded once into a cache folder.

A download that breaks off goes on where it was, in this run or the next: what has arrived waits in
a `.part` file. A file gets its final name only after its SHA-256 has been compared.
"""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backgpt.errors import BackgptError, CorruptFileError

ENDPOINT = "https://huggingface.co"
TIMEOUT_SECONDS = 60.0
ATTEMPTS = 6  # in a row without a single new byte

_BLOCK_BYTES = 1 << 20
_MAX_WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class HubFile:
    """One file of a dataset on the Hugging Face hub; nothing else than these bytes is accepted."""

    repository: str
    revision: str
    name: str
    size_bytes: int
    sha256: str


_TINYSTORIES_REVISION = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"

HUB_FILES = {
    "tinystories": HubFile(
        repository="roneneldan/TinyStories",
        revision=_TINYSTORIES_REVISION,
        name="TinyStoriesV2-GPT4-train.txt",
        size_bytes=2_227_753_162,
        sha256="6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
    ),
    "tinystories-valid": HubFile(
        repository="roneneldan/TinyStories",
        revision=_TINYSTORIES_REVISION,
        name="TinyStoriesV2-GPT4-valid.txt",
        size_bytes=22_502_601,
        sha256="6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
    ),
    "dolly": HubFile(
        repository="databricks/databricks-dolly-15k",
        revision="bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a",
        name="databricks-dolly-15k.jsonl",
        size_bytes=13_085_339,
        sha256="2df9083338b4abd6bceb5635764dab5d833b393b55759dffb0959b6fcbf794ec",
    ),
}
"""Source name -> its file. TinyStories: CDLA-Sharing-1.0; Dolly: CC BY-SA 3.0."""


def default_cache() -> Path:
    """Return the folder for downloads: `backgpt` in XDG_CACHE_HOME or in `~/.cache`.

    Raises BackgptError if neither is known.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(named or Path.home() / ".cache") / "backgpt"
    except RuntimeError:
        raise BackgptError(
            "there is no home folder to keep downloads in: set XDG_CACHE_HOME"
        ) from None


def fetch(
    file: HubFile,
    cache: Path,
    *,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
    endpoint: str = ENDPOINT,
    wait_seconds: float = 1.0,
) -> Path:
    """Return the path of `file` in `cache`, downloading what is missing of it.

    `on_bytes` is called with (bytes so far, bytes in all). After a failure the next try waits
    `wait_seconds`, twice as long each time. Raises BackgptError if the hub refuses or stays out of
    reach, CorruptFileError if what arrived has another SHA-256.
    """
    target = cache / file.repository.replace("/", "--") / file.revision[:12] / file.name
    if target.is_file() and target.stat().st_size == file.size_bytes:
        return target  # it was verified before it got this name
    part = target.with_name(target.name + ".part")
    url = f"{endpoint}/datasets/{file.repository}/resolve/{file.revision}/{file.name}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _complete(part, url, file.size_bytes, on_bytes=on_bytes, wait_seconds=wait_seconds)
        _verify(part, url, file.sha256)
        part.replace(target)
    except OSError as error:
        raise BackgptError(f"cannot write {part}: {error.strerror}; free or change it") from None
    return target


def _complete(
    part: Path,
    url: str,
    size: int,
    *,
    on_bytes: Callable[[int, int], None],
    wait_seconds: float,
) -> None:
    failures = 0
    have = part.stat().st_size if part.exists() else 0
    while have != size:
        if have > size:
            part.unlink()
        reason = "the connection broke off"
        before = have if have < size else 0
        have = before
        try:
            for have in _append(part, url, before):
                on_bytes(have, size)
        except _UnreachableError as error:
            reason = str(error)
            have = part.stat().st_size if part.exists() else 0
        if have == size:
            return
        failures = 0 if have > before else failures + 1
        if failures >= ATTEMPTS:
            raise BackgptError(
                f"cannot download {url}: {reason}; try again later to go on from {have} bytes"
            )
        time.sleep(min(wait_seconds * 2**failures, _MAX_WAIT_SECONDS))


class _UnreachableError(Exception):
    """The network failed in a way that another try may mend."""


def _append(part: Path, url: str, start: int) -> Iterator[int]:
    """Ask for the file from byte `start` on; yield the size of `part` as it grows."""
    with _ask(url, start) as response:
        if response.status != http.client.PARTIAL_CONTENT:
            start = 0  # the server sends the whole file
        with part.open("r+b" if start else "wb") as out:
            out.seek(start)
            out.truncate()
            while block := _read(response):
                out.write(block)
                start += len(block)
                yield start
            out.flush()
            os.fsync(out.fileno())


def _ask(url: str, start: int) -> Any:
    headers = {"User-Agent": "backgpt", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        request = urllib.request.Request(url, headers=headers)
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"the server says {error.code} {error.reason}"
        if error.code == http.client.TOO_MANY_REQUESTS or error.code >= 500:
            raise _UnreachableError(reason) from None
        raise BackgptError(f"cannot download {url}: {reason}; check the address") from None
    except (OSError, http.client.HTTPException) as error:
        raise _UnreachableError(str(error)) from None


def _read(response: Any) -> bytes:
    try:
        block: bytes = response.read(_BLOCK_BYTES)
    except http.client.IncompleteRead as error:
        return error.partial
    except (OSError, http.client.HTTPException) as error:
        raise _UnreachableError(str(error)) from None
    return block


def _verify(part: Path, url: str, sha256: str) -> None:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        part.unlink()
        raise CorruptFileError(
            f"{url} arrived with SHA-256 {found[:12]} instead of {sha256[:12]}: "
            "it was removed, download it again"
        )
