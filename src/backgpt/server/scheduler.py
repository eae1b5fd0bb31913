"""What the decode thread does in a round: let go, begin, do a slice, and draw one id for all.

    a WriteTask     waits -> its samples are drawn for, in the batch of their engine -> ended
                      ^                            | a text that another turn follows
                      +----------------------------+
    a SliceTask     waits -> one slice -> waits behind the others -> ... -> done

So streams are served alike, prompts are read between steps up to a budget, and a request that was
canceled costs at most the rest of a round. A fault in a step fails all that its engine was doing
and all that wait for it, at once; what comes next begins afresh.
"""

import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from backgpt.engine import Engine
from backgpt.errors import BackgptError
from backgpt.generate import Drawing
from backgpt.running import Drawn, Running
from backgpt.server.channel import Channel, Done, Ended, Part, Said, Wrote
from backgpt.server.failures import FaultError, place_of
from backgpt.slices import Slices

IDS_READ_IN_A_ROUND = 512  # of prompts; a longer one is read alone
FAULTS_IN_A_ROW = 3

log = logging.getLogger(__name__)


@dataclass
class _Writing:
    """One choice that is being written."""

    channel: Channel
    part: Part
    index: int
    turn: int
    drawing: Drawing


@dataclass(frozen=True)
class WriteTask:
    """A job that is to begin."""

    channel: Channel
    part: Part
    turn: int = 0


@dataclass
class SliceTask:
    """Work that is done slice by slice."""

    channel: Channel
    work: Slices[Any]


@dataclass
class _EngineBatch:
    """What runs on one engine, by the numbers of its samples."""

    engine: Engine
    running: Running
    writings: dict[int, _Writing] = field(default_factory=dict)


Arrived = WriteTask | SliceTask
_Kind = Literal["write", "work"]


class Scheduler:
    """All that is being written and worked out, at most `max_running` samples at a time.

    `said` is what is to be told to channels since it was last taken.
    """

    def __init__(self, *, max_running: int) -> None:
        self.said: list[tuple[Channel, Said]] = []
        self.n_drawn = self.n_faults = self.n_canceled = 0
        self._max_running = max_running
        self._waiting: deque[WriteTask] = deque()
        self._slices: deque[SliceTask] = deque()
        self._batches: dict[int, _EngineBatch] = {}
        self._faults_in_a_row: Counter[_Kind] = Counter()

    @property
    def n_running(self) -> int:
        """How many samples are being written."""
        return sum(len(batch.running) for batch in list(self._batches.values()))

    @property
    def n_waiting(self) -> int:
        """How many jobs and pieces of work wait for their turn."""
        return len(self._waiting) + len(self._slices)

    @property
    def has_work(self) -> bool:
        """Whether another round would do something."""
        return bool(
            self._waiting or self._slices or any(batch.writings for batch in self._batches.values())
        )

    def round(self, arrived: Sequence[Arrived], gone: Sequence[Channel]) -> None:
        """Do one round, with what has arrived and without those who are gone.

        Raises what an engine raises that cannot be used any more.
        """
        self._waiting += [one for one in arrived if isinstance(one, WriteTask)]
        self._slices += [one for one in arrived if isinstance(one, SliceTask)]
        for channel in gone:
            self.n_canceled += not channel.ended
            self._end(channel)
        self._begin()
        self._do_slice()
        for batch in self._batches.values():
            self._step(batch)

    def end_all(self, error: BackgptError) -> None:
        """Fail all that is being done."""
        channels = [one.channel for one in self._waiting]
        channels += [one.channel for one in self._slices]
        for batch in self._batches.values():
            channels += [writing.channel for writing in batch.writings.values()]
            batch.writings.clear()
        for channel in channels:
            with suppress(Exception):
                self._end(channel, error)
        for batch in self._batches.values():
            with suppress(Exception):  # the engine may be what has failed
                batch.running.close()

    def _begin(self) -> None:
        """Begin waiting jobs: at least one if there is room, and no more ids than the budget."""
        n_read = 0
        while self._waiting:
            task = self._waiting[0]
            job = task.part.job
            n_read += len(job.prompt.ids)
            full = self.n_running + job.n > self._max_running
            if full or (n_read > IDS_READ_IN_A_ROUND and n_read > len(job.prompt.ids)):
                return
            self._waiting.popleft()
            with self._failing(task.channel, "write"):
                self._start(task)

    def _start(self, task: WriteTask) -> None:
        part, job = task.part, task.part.job
        batch = self._batch_of(part.engine)
        drawings = [Drawing(job) for _ in range(job.n)]
        for place, number in enumerate(batch.running.add(job)):
            batch.writings[number] = _Writing(
                task.channel, part, part.first + place, task.turn, drawings[place]
            )

    def _do_slice(self) -> None:
        if not self._slices:
            return
        task = self._slices.popleft()
        with self._failing(task.channel, "work"):
            try:
                next(task.work)
            except StopIteration as end:
                self._faults_in_a_row["work"] = 0
                self._say(task.channel, Done(end.value))
                self._end(task.channel)
            else:
                self._slices.append(task)

    def _step(self, batch: _EngineBatch) -> None:
        """Draw an id for every sample of an engine, and say what text it makes."""
        if not batch.writings:
            return
        try:
            step = batch.running.step()
        except Exception as error:
            self._fault(batch, error)
            return
        self.n_drawn += len(step)
        for drawn in step:
            writing = batch.writings.get(drawn.number)
            if writing is not None:  # its request may just have failed
                with self._failing(writing.channel):
                    self._take(batch, writing, drawn)

    def _take(self, batch: _EngineBatch, writing: _Writing, drawn: Drawn) -> None:
        """Say what text an id makes, and end the text if it is the last."""
        self._write(writing, writing.drawing.take(drawn), drawn)
        if drawn.is_last or writing.drawing.stopped:
            if len(writing.drawing.drawn) > 1:  # the first id needs no step
                self._faults_in_a_row["write"] = 0
            batch.running.cancel([drawn.number])
            del batch.writings[drawn.number]
            self._finish(writing)

    def _write(self, writing: _Writing, piece: str, drawn: Drawn | None = None) -> None:
        if writing.part.is_told(piece, drawn):
            self._say(writing.channel, Wrote(writing.index, piece, writing.turn, drawn))

    def _finish(self, writing: _Writing) -> None:
        """End a text; go on with what comes after it, in front of what waits."""
        self._write(writing, writing.drawing.finish())
        part = writing.part
        job = part.after(writing.drawing.result) if part.after else None
        ended = Ended(writing.index, writing.drawing, writing.turn, more=job is not None)
        self._say(writing.channel, ended)
        if job is not None:
            following = replace(part, job=job, first=writing.index)
            self._waiting.appendleft(WriteTask(writing.channel, following, writing.turn + 1))
            return
        writing.channel.unfinished -= 1
        if not writing.channel.unfinished:
            self._end(writing.channel)

    def _fault(self, batch: _EngineBatch, error: Exception) -> None:
        """Fail all that an engine does and all that wait for it. Raises if it will not let go."""
        log.error("a fault while writing: %s", place_of(error))
        self.n_faults += 1
        channels = [writing.channel for writing in batch.writings.values()]
        channels += [one.channel for one in self._waiting if one.part.engine is batch.engine]
        batch.writings.clear()
        for channel in channels:
            self._end(channel, FaultError())
        batch.running.close()
        self._count_fault("write", error)

    def _count_fault(self, kind: _Kind, error: Exception) -> None:
        """Count a fault of an engine. Raises it if there were too many, and none went well."""
        self._faults_in_a_row[kind] += 1
        if self._faults_in_a_row[kind] >= FAULTS_IN_A_ROW:
            raise error

    @contextmanager
    def _failing(self, channel: Channel, kind: _Kind | None = None) -> Iterator[None]:
        """Around what is done for one channel alone: a failure there is told to nobody else.

        With a `kind` an engine runs in it, and a fault counts as the engine's.
        """
        try:
            yield
        except BackgptError as error:
            self._end(channel, error)
        except Exception as error:
            log.error("a fault: %s", place_of(error))
            self.n_faults += 1
            self._end(channel, FaultError())
            if kind is not None:
                self._count_fault(kind, error)

    def _end(self, channel: Channel, error: BackgptError | None = None) -> None:
        """Say the last to a channel and let go of all that is done for it."""
        if channel.ended:
            return
        channel.ended = True
        try:
            self._let_go(channel)
        finally:  # whatever an engine raises, nobody must wait for ever
            if error is not None:
                self._say(channel, error)
            self._say(channel, None)

    def _let_go(self, channel: Channel) -> None:
        """Forget what is done for a channel. Raises what an engine raises."""
        self._waiting = deque(one for one in self._waiting if one.channel is not channel)
        for batch in self._batches.values():
            mine = [n for n, writing in batch.writings.items() if writing.channel is channel]
            for number in mine:
                del batch.writings[number]
            if mine:
                batch.running.cancel(mine)
        for task in [one for one in self._slices if one.channel is channel]:
            self._slices.remove(task)
            task.work.close()

    def _batch_of(self, engine: Engine) -> _EngineBatch:
        return self._batches.setdefault(id(engine), _EngineBatch(engine, Running(engine)))

    def _say(self, channel: Channel, event: Said) -> None:
        self.said.append((channel, event))
