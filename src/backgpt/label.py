"""The job of instruction back-translation: texts -> a file of instructions and responses.

Takes documents; appends to the file what `label_batch` makes of them, batch by batch, and keeps
beside it what is done, so that an interrupted job goes on where it was.
"""

import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from backgpt.api import Model
from backgpt.config import Settings, read_as
from backgpt.datasets.records import Document
from backgpt.errors import ConfigError, CorruptFileError, DataError, UsageError
from backgpt.files import cannot_write, hold, write_whole
from backgpt.label_batch import LabelSettings, Pair, judge_of, label_batch

STATE_SUFFIX = ".state"


class LabelState(Settings):
    """How far a job has come: texts read, and what became of them.

    `n_kept` pairs, in `n_bytes` of the file, were kept; `n_below` had no question that explains
    them by the threshold, `n_unasked` none that was finished; `n_too_long` do not fit.
    """

    settings: LabelSettings
    n_texts: int = 0
    n_kept: int = 0
    n_below: int = 0
    n_unasked: int = 0
    n_too_long: int = 0
    n_bytes: int = 0
    texts_sha256: str = ""
    """A digest of those texts, to see that they are still there: `_with_text` of each."""


def label(
    texts: Iterable[Document],
    out: Path,
    model: Model,
    settings: LabelSettings,
    *,
    twin: Model | None = None,
    limit: int | None = None,
    report: Callable[[LabelState], None] = lambda state: None,
) -> LabelState:
    """Label `texts` and append to `out`; go on if it was begun before, up to `limit` texts in all.

    A batch that `limit` cuts off has its questions asked in full, so that going on from there
    makes what an unbroken job makes. `report` is called after each batch. Raises UsageError for
    models that do not run the way they must, a changed setting, questions too long for the model,
    or an `out` of other origin or that another process is writing to; DataError if there is no
    text; CorruptFileError if `out` was altered.
    """
    judge = judge_of(model, twin, settings)
    most_new = model.engine.block_size // 2
    if settings.max_new_tokens > most_new:
        raise UsageError(
            f"max_new_tokens = {settings.max_new_tokens}: it must be at most {most_new}, so that "
            "texts fit beside their questions"
        )
    _check_place(out)
    state = _state_of(out, settings)
    done, rest = _rest(texts, state)
    size, most = settings.batch_size, sys.maxsize if limit is None else limit
    with _opened(out) as file:
        hold(file.fileno(), out)
        if _state_of(out, settings) != state:
            raise UsageError(f"another process wrote to {out} just now: run it again to go on")
        unfinished = _begin(file, out, state)
        while state.n_texts < most:
            batch = [*done, *islice(rest, size - len(done))]
            first = state.n_texts - len(done)
            to_do = range(len(done), min(len(batch), most - first))
            if not to_do:
                break
            found = label_batch(model, judge, batch, settings, first=first, to_do=to_do)
            lines = [_line(pair) for pair in found if isinstance(pair, Pair)]
            if not b"".join(lines).startswith(unfinished):
                raise _not_its_own(out, state)
            unfinished = b""
            file.truncate(state.n_bytes)
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
            state = state.model_copy(
                update={
                    "n_texts": state.n_texts + len(found),
                    "n_kept": state.n_kept + len(lines),
                    "n_below": state.n_below + found.count("below"),
                    "n_unasked": state.n_unasked + found.count("unasked"),
                    "n_too_long": state.n_too_long + found.count("too_long"),
                    "n_bytes": file.tell(),
                    "texts_sha256": reduce(
                        _with_text, (batch[number].text for number in to_do), state.texts_sha256
                    ),
                }
            )
            done = []
            _write_state(out, state)
            report(state)
        if unfinished:
            raise _not_its_own(out, state)
    return state


def _line(pair: Pair) -> bytes:
    return f"{json.dumps(vars(pair), ensure_ascii=False)}\n".encode()


def _check_place(out: Path) -> None:
    """Raise UsageError unless `out` names a file in a folder that is there."""
    if out.is_dir():
        raise UsageError(f"{out} is a folder: name a file, such as pairs.jsonl")
    if out.name == "-" or (out.exists() and not out.is_file()):
        raise UsageError(f"{out} is no file that can be gone on with: name one, as pairs.jsonl")
    if not out.parent.is_dir():
        raise UsageError(f"there is no folder {out.parent}: make it, or choose another --out")


def _state_of(out: Path, settings: LabelSettings) -> LabelState:
    """Return how far the job has come; anew before its first text. Raises as `label`."""
    file = out.with_name(out.name + STATE_SUFFIX)
    if not file.is_file():
        if out.exists() and out.stat().st_size:
            raise UsageError(f"{out} is there, and {file.name} is not: choose another --out")
        return LabelState(settings=settings)
    try:
        state = read_as(LabelState, file)
    except ConfigError as error:
        raise CorruptFileError(str(error)) from None
    if not state.n_texts:
        return LabelState(settings=settings)
    for key, value in settings:
        before = getattr(state.settings, key)
        if value != before:
            raise UsageError(
                f"{out} was begun {_with(key, before)}, not {_with(key, value)}: "
                "give the same to go on, or another --out to start anew"
            )
    return state


def _with(key: str, value: Any) -> str:
    return f"without {key}" if value is None else f"with {key} = {value!r}"


def _opened(out: Path) -> BinaryIO:
    try:
        return out.open("ab+")
    except OSError as error:
        raise cannot_write(out, error) from None


def _begin(file: BinaryIO, out: Path, state: LabelState) -> bytes:
    """Write the state of a job that is new; return what its open file holds beyond what is done.

    That is the beginning of the next batch, if the job was killed while it wrote it.
    """
    if not state.n_texts:
        _write_state(out, state)
    file.seek(0)
    n_kept = sum(1 for _ in islice(file, state.n_kept))
    if (n_kept, file.tell()) != (state.n_kept, state.n_bytes):
        raise CorruptFileError(f"{out} is not as it was left: start anew with another --out")
    return file.read()


def _not_its_own(out: Path, state: LabelState) -> CorruptFileError:
    return CorruptFileError(
        f"{out} goes on, after {state.n_kept:,} lines, with what this job did not write: "
        "take that out, or start anew with another --out"
    )


def _write_state(out: Path, state: LabelState) -> None:
    try:
        write_whole(out.with_name(out.name + STATE_SUFFIX), state.model_dump_json().encode())
    except OSError as error:
        raise cannot_write(out.with_name(out.name + STATE_SUFFIX), error) from None


def _rest(
    texts: Iterable[Document], state: LabelState
) -> tuple[list[Document], Iterator[Document]]:
    """Return the texts that are done of a batch that was cut off, and those still to do.

    The first text of a new job is already read. Raises UsageError if those that are done changed,
    DataError if there is none at all.
    """
    rest = iter(texts)
    if not state.n_texts:
        first = next(rest, None)
        if first is None:
            raise DataError(f"{state.settings.source} is empty: there is no text in it")
        return [], chain([first], rest)
    n_done = state.n_texts % state.settings.batch_size
    last: deque[Document] = deque(maxlen=n_done)
    digest = ""
    for document in islice(rest, state.n_texts):
        last.append(document)
        digest = _with_text(digest, document.text)
    if digest != state.texts_sha256:
        raise UsageError(
            f"the first {state.n_texts:,} texts are no longer those that were labeled: "
            "start anew with another --out"
        )
    return list(last), rest


def _with_text(digest: str, text: str) -> str:
    """Return the SHA-256 of a digest of some texts and the next one."""
    return hashlib.sha256(f"{digest}{text}".encode()).hexdigest()
