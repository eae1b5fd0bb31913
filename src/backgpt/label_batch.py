"""Instruction back-translation: for each text the question it answers, kept if it explains it.

The method of Li et al. 2023, "Self-Alignment with Instruction Backtranslation", with a model made
for the way back: it writes candidate questions for a text, a judge says how much likelier the text
is after each than after a question that belongs to another text, and the best is kept if that is
enough. Takes and gives one batch; the job that does all of them is `label`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from backgpt.api import Model
from backgpt.chat import Template
from backgpt.config import Settings
from backgpt.datasets.records import Document
from backgpt.engine import Engine
from backgpt.errors import UsageError, printable
from backgpt.generate import Text, collect_all
from backgpt.language import Row
from backgpt.messages import Message
from backgpt.running import Job
from backgpt.sampling import Sampling
from backgpt.score import score_written

Way = Literal["round-trip", "forward", "none"]
Outcome = Literal["below", "unasked", "too_long"]
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


@dataclass(frozen=True)
class Judge:
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


def judge_of(model: Model, twin: Model | None, settings: LabelSettings) -> Judge | None:
    """Return what scores by `settings`, if anything. Raises UsageError as `label.label`."""
    if model.direction == "forward":
        raise UsageError(f"{settings.model} runs forward: questions need a backward model")
    if settings.score == "none":
        if settings.threshold is not None:
            raise UsageError("a threshold needs a score: choose round-trip or forward")
        return None
    if settings.score == "round-trip":
        return Judge(model.engine, Template(model.language))
    twin = twin or model.turned()
    if twin.direction != "forward":
        raise UsageError(f"{settings.twin} runs backward: the twin must run forward")
    return Judge(twin.engine, Template(twin.language))


def label_batch(
    model: Model,
    judge: Judge | None,
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
    judge: Judge | None,
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
        [
            Job(
                model.language,
                prompts[number],
                n=settings.candidates,
                sampling=Sampling(),
                max_new_tokens=settings.max_new_tokens,
                seed=settings.seed + first + number,
            )
            for number in fitting
        ],
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
