"""Instruction back-translation: for each text the question it answers, kept if it explains it.

The method of Li et al. 2023, "Self-Alignment with Instruction Backtranslation", with a model made
for the way back: it writes candidate questions for a text, a judge says how much likelier the text
is after each than after a question that belongs to another text, and the best is kept if that is
enough. Takes documents; appends to a file of instructions and responses, batch by batch, and keeps
beside it what is done, so that an interrupted job goes on where it was.
"""

import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from pydantic import Field

from backgpt.api import Model
from backgpt.chat import Template
from backgpt.config import Settings, read_as
from backgpt.datasets.records import Document
from backgpt.engine import Engine
from backgpt.errors import ConfigError, CorruptFileError, DataError, UsageError, printable
from backgpt.files import cannot_write, hold, write_whole
from backgpt.generate import Text, collect_all
from backgpt.language import Row
from backgpt.messages import Message
from backgpt.sampling import Sampling
from backgpt.score import score_written

Way = Literal["round-trip", "forward", "none"]
STATE_SUFFIX = ".state"
ANY_QUESTION = "Write a text."  # what a text is compared with when there is no other in its batch


class LabelSettings(Settings):
    """What decides the result; a job can only go on with the same. Names say what was loaded.

    `threshold` is in nats per token: how much likelier a text must be after its question.
    """

    model: str
    twin: str | None = None
    source: str
    field: str = "text"
    separator: str | None = None
    candidates: int = Field(default=4, ge=1, le=1024)
    score: Way
    threshold: float | None = None
    batch_size: int = Field(default=8, ge=1, le=2**24)
    max_new_tokens: int = Field(default=64, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)


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


Outcome = Literal["below", "unasked", "too_long"]


@dataclass(frozen=True)
class Pair:
    """A text and its question. `score` is nats per token gained over another text's question.

    `logprob` is the log-probability in nats of the question, given the text. `Model.ask` with
    `seed` and as many candidates writes it again.
    """

    instruction: str
    response: str
    score: float | None
    logprob: float
    seed: int
    source: str


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
    judge = _judge(model, twin, settings)
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
            found = _label_batch(model, judge, batch, settings, first=first, to_do=to_do)
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


@dataclass(frozen=True)
class _Judge:
    """Says how likely a text is as the answer to a question, running either way."""

    engine: Engine
    template: Template

    def row(self, question: str, text: str) -> Row | None:
        """Return what is given and what is written, in model order, or None if it is too long."""
        prompt = self.template.reply(question)
        written = self.template.written(prompt, text)
        fits = len(prompt.ids) + len(written) <= self.engine.block_size + 1
        return (prompt.ids, written) if fits else None

    def scores(self, rows: Sequence[Row]) -> list[float]:
        """Return nats per token of what is written in each row."""
        return [float(values.mean()) for values in score_written(self.engine, rows)]


def _judge(model: Model, twin: Model | None, settings: LabelSettings) -> _Judge | None:
    if model.direction == "forward":
        raise UsageError(f"{settings.model} runs forward: questions need a backward model")
    if settings.score == "none":
        if settings.threshold is not None:
            raise UsageError("a threshold needs a score: choose round-trip or forward")
        return None
    if settings.score == "round-trip":
        return _Judge(model.engine, Template(model.language))
    twin = twin or model.turned()
    if twin.direction != "forward":
        raise UsageError(f"{settings.twin} runs backward: the twin must run forward")
    return _Judge(twin.engine, Template(twin.language))


def _label_batch(
    model: Model,
    judge: _Judge | None,
    batch: Sequence[Document],
    settings: LabelSettings,
    *,
    first: int,
    to_do: Sequence[int],
) -> list[Pair | Outcome]:
    """Return what becomes of the texts `to_do` of a batch, whose first is text number `first`."""
    asked = _ask(model, batch, settings, first=first)
    cases = [
        _case(batch[number], asked[number], [*asked[number + 1 :], *asked[:number]], judge)
        for number in to_do
    ]
    rows = [row for case in cases if isinstance(case, _Case) for row in case.rows]
    scores = iter(judge.scores(rows) if judge else ())
    return [
        case.decided(list(islice(scores, len(case.rows))), settings.threshold or 0.0)
        if isinstance(case, _Case)
        else case
        for case in cases
    ]


@dataclass(frozen=True)
class _Case:
    """A text, its questions, and the rows to score: one for each and the last to compare with."""

    document: Document
    questions: Sequence[Text]
    rows: Sequence[Row]

    def decided(self, scores: Sequence[float], threshold: float) -> Pair | Outcome:
        """Return the text with the question that explains it best, if it does by `threshold`."""
        if not scores:
            return self._pair(max(self.questions, key=lambda text: text.logprob), None)
        *values, base = scores
        best = int(np.argmax(values))
        gain = values[best] - base
        return self._pair(self.questions[best], gain) if gain >= threshold else "below"

    def _pair(self, question: Text, score: float | None) -> Pair:
        return Pair(
            instruction=question.text.strip(),
            response=self.document.text,
            score=score,
            logprob=question.logprob,
            seed=question.seed,
            source=printable(Path(self.document.origin).name),
        )


def _case(
    document: Document,
    questions: Sequence[Text] | None,
    others: Iterable[Sequence[Text] | None],
    judge: _Judge | None,
) -> _Case | Outcome:
    """Return what there is to decide about a text; `others` are questions for other texts."""
    if questions is None:
        return "too_long"
    if not questions:
        return "unasked"
    if judge is None:
        return _Case(document, questions, ())
    pairs = [(text, judge.row(text.text.strip(), document.text)) for text in questions]
    fitting = [(text, row) for text, row in pairs if row is not None]
    own = {text.text.strip() for text in questions}
    theirs = (text.text.strip() for texts in others for text in texts or ())
    compared = (
        judge.row(question, document.text)
        for question in (*theirs, ANY_QUESTION)
        if question not in own
    )
    other = next((row for row in compared if row is not None), None)
    if not fitting or other is None:
        return "too_long"
    return _Case(document, [text for text, _ in fitting], [*(row for _, row in fitting), other])


def _ask(
    model: Model, batch: Sequence[Document], settings: LabelSettings, *, first: int
) -> list[list[Text] | None]:
    """Return the different finished questions for each text, None if it is too long for one."""
    template = Template(model.language)
    prompts = [template.before([Message("assistant", document.text)]) for document in batch]
    most = model.engine.block_size + 1 - settings.max_new_tokens
    fitting = [number for number, prompt in enumerate(prompts) if len(prompt.ids) <= most]
    asked: list[list[Text] | None] = [None] * len(batch)
    written = collect_all(
        model.engine,
        model.language,
        [prompts[number] for number in fitting],
        [settings.seed + first + number for number in fitting],
        n=settings.candidates,
        sampling=Sampling(),
        max_new_tokens=settings.max_new_tokens,
    )
    for number, texts in zip(fitting, written, strict=True):
        questions: dict[str, Text] = {}
        for text in texts:
            question = text.text.strip()
            if text.finish_reason == "stop" and question:
                alike = questions.get(question, text)
                questions[question] = max(alike, text, key=lambda one: one.logprob)
        asked[number] = list(questions.values())
    return asked


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
