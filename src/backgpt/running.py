"""Samples in the making, all of one engine in step; more can join between two steps.

Takes jobs, each with a language, a prompt and a way to sample of its own; gives ids as they are
drawn. What is drawn for a sample depends on its job, its seed and its number in the job, never on
what runs beside it, as far as the engine's numbers do not: the native engine's do not at all but
in bfloat16, others' in their last bits. The one loop that generates, for one text or for all
requests of a server.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from reprlib import repr as shown
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from backgpt.checks import whole
from backgpt.engine import Engine, FloatArray
from backgpt.errors import TooLongError, UsageError
from backgpt.language import Language, Prompt
from backgpt.sampling import Floats, Sampling, draw, likeliest, logprob_of
from backgpt.wanted import Wanted, all_wanted

Likeliest = tuple[tuple[int, float], ...]
"""Ids with their log-probabilities in nats, the likeliest first."""


@dataclass(frozen=True)
class Job:
    """What to generate: `n` samples that go on from a prompt.

    Each ends with one of the prompt's stops, or after `max_new_tokens`, or where the context is
    full. `stop` are texts that end it as well, which is for who makes text of the ids to see.
    What a sample is drawn with depends on `seed` and its number, counted from `first`, alone.
    With `n_likeliest` so many of the likeliest ids are told of every id drawn.
    """

    language: Language = field(repr=False)
    prompt: Prompt = field(repr=False)
    n: int = field(default=1, kw_only=True)
    first: int = field(default=0, kw_only=True)
    sampling: Sampling = field(kw_only=True)
    max_new_tokens: int | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    stop: Sequence[str] = field(default=(), kw_only=True, repr=False)
    n_likeliest: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        """Raise UsageError for what is of another type, or out of its range."""
        whole("n", self.n, least=1)
        whole("seed", self.seed, least=0)
        if self.max_new_tokens is not None:
            whole("max-new-tokens", self.max_new_tokens, least=1)
        if not isinstance(self.sampling, Sampling):
            raise UsageError(f"sampling = {shown(self.sampling)}: give a Sampling")

    def split(self, most: int) -> "Iterator[Job]":
        """Yield jobs of at most `most` samples each that together write what this one does."""
        for done in range(0, self.n, most):
            yield replace(self, n=min(most, self.n - done), first=self.first + done)


class Drawn(NamedTuple):
    """One id of one sample, and its log-probability in nats; `is_last` if the sample ended."""

    number: int
    id_: int
    logprob: float
    is_last: bool
    likeliest: Likeliest = ()


class Running:
    """The samples that are being written on one engine.

    After an error all of them have to be closed: what was read is not known.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._samples: dict[int, _Sample] = {}
        self._count = 0

    def __len__(self) -> int:
        """How many samples are not finished."""
        return len(self._samples)

    def add(self, job: Job) -> range:
        """Read the job's prompt; return the numbers of its samples, which the next step draws for.

        Raises UsageError if the prompt is empty or leaves no room in the context.
        """
        room = room_for(self._engine, job)
        barred = barred_ids(job.language, job.prompt)
        wanted = all_wanted(job.language, job.prompt)
        rows, logits = self._engine.prefill(job.prompt.ids, job.n)
        numbers = range(self._count, self._count + job.n)
        for place, (number, row) in enumerate(zip(numbers, rows, strict=True)):
            own = [copy(one) for one in wanted]
            self._samples[number] = _Sample(
                job,
                job.first + place,
                row=row,
                logits=logits,
                room=room,
                barred=barred,
                wanted=own,
            )
        self._count = numbers.stop
        return numbers

    def step(self) -> list[Drawn]:
        """Draw the next id of every sample; let go of those that end with it."""
        reading = [sample for sample in self._samples.values() if sample.unread is not None]
        if reading:
            rows = [sample.row for sample in reading]
            logits = self._engine.step(rows, [sample.unread or 0 for sample in reading])
            for sample, row_logits in zip(reading, logits, strict=True):
                sample.logits = row_logits
        drawn = [sample.draw(number) for number, sample in self._samples.items()]
        self.cancel(one.number for one in drawn if one.is_last)
        return drawn

    def steps(self) -> Iterator[Drawn]:
        """Step until every sample is finished."""
        while self._samples:
            yield from self.step()

    def cancel(self, numbers: Iterable[int]) -> None:
        """Let go of samples at once; those that are finished are passed over."""
        gone = [self._samples.pop(number) for number in numbers if number in self._samples]
        self._engine.release([sample.row for sample in gone])

    def close(self) -> None:
        """Let go of all samples."""
        self.cancel(list(self._samples))


class _Sample:
    """What one sample draws from: its own randomness, room and allowed ids, and the last logits.

    `unread` is the id that was drawn and is still to be read by the engine.
    """

    def __init__(
        self,
        job: Job,
        place: int,
        *,
        row: int,
        logits: FloatArray,
        room: int,
        barred: tuple[Floats, Floats],
        wanted: Sequence[Wanted],
    ) -> None:
        self.row, self.logits = row, logits
        self.unread: int | None = None
        self._job, self._room = job, room
        self._barred, self._barred_later = barred
        self._random = np.random.default_rng((job.seed, place))
        given = job.prompt.ids[job.prompt.n_first :]
        self._text_ids = np.empty(len(given) + room, dtype=np.int64)
        self._text_ids[: len(given)] = given
        self._n_ids = len(given)
        self._wanted = wanted

    def draw(self, number: int) -> Drawn:
        """Draw the next id of the sample `number`."""
        scores = self.logits[: len(self._barred)].astype(np.float64)
        allowed = scores + self._barred
        pushed = allowed
        for wanted in self._wanted:
            pushed = wanted.push(pushed)
        text_ids = self._text_ids[: self._n_ids]
        id_ = self.unread = draw(
            pushed,
            self._job.sampling,
            self._random,
            text_ids=text_ids,
            apart=ids_apart(self._job.language, text_ids),
        )
        for wanted in self._wanted:
            wanted.take(id_)
        self._barred = self._barred_later
        self._text_ids[self._n_ids] = id_
        self._n_ids += 1
        self._room -= 1
        return Drawn(
            number,
            id_,
            logprob_of(id_, scores),
            is_last=self._room < 1 or id_ in self._job.prompt.stops,
            likeliest=likeliest(allowed, self._job.n_likeliest, scores),
        )


def room_for(engine: Engine, job: Job) -> int:
    """Return how many ids can be drawn for a job. Raises UsageError if it cannot be begun."""
    prompt, most = job.prompt, job.max_new_tokens
    if not len(prompt.ids):
        raise UsageError("there is nothing to go on from: give a text that is not empty")
    room = engine.block_size + 1 - len(prompt.ids)
    if room < 1:
        raise TooLongError(
            f"the given text is {len(prompt.ids)} ids long, the model reads at most "
            f"{engine.block_size}: give a shorter one"
        )
    return room if most is None else min(room, most)


def ids_apart(language: Language, text_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which ids, (V,) bool, do not go on inside the word that a text's last id is of.

    Leftward the last id alone says it, for all of them, (1,); rightward each of them for itself.
    """
    joins_left = language.tokenizer.joins_left
    return ~(joins_left[text_ids[-1:]] if language.ids_leftward else joins_left)


def barred_ids(language: Language, prompt: Prompt) -> tuple[Floats, Floats]:
    """Return what is added to logits, (V,) 0 or -inf each, for the first id and for later ones.

    Ids with text are allowed, and the stops; the first has to begin a word in the word unit, and
    behind the space that an opening ends with.
    """
    first = has_text = language.tokenizer.has_text
    if language.by_word or prompt.begins_word:
        first = has_text & language.tokenizer.starts_group
    barred = []
    for allowed, ids in ((first, prompt.stops.at_once), (has_text, prompt.stops.later)):
        row = np.where(allowed, 0.0, -np.inf)
        row[list(ids)] = 0.0
        barred.append(row)
    return barred[0], barred[1]
