"""The ids of a job as pieces of text, and as a text.

`running` draws the ids; here they become pieces of text that grow at the model's edge, leftward for
a backward model. One sample or many, streaming or not: all go through `Drawing`.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Literal

import numpy as np

from backgpt.engine import Engine
from backgpt.language import Language, Prompt
from backgpt.order import ModelIds, ReadingIds, joined
from backgpt.running import Drawn, Job, Running, room_for
from backgpt.stop_strings import StopStrings

FinishReason = Literal["stop", "length"]
MOST_AT_ONCE = 128
"""How many texts are written side by side: more are no faster, and their keys need memory."""


@dataclass(frozen=True)
class Text:
    """One finished sample.

    `text` is the whole text in reading order, `given` the part that was given, byte for byte.
    `ids` are the generated ids, (T,), in model order, without the marker that ended them;
    `logprob` is the log-probability, in nats, of everything drawn, that marker included.
    `finish_reason` is "stop" when the model reached the text's edge or a stop string, "length" when
    it was cut. A text that a stop string ended is less than its ids are.
    """

    text: str
    given: str
    finish_reason: FinishReason
    logprob: float
    n_tokens: int
    seed: int
    ids: ModelIds = field(repr=False)


def pieces(engine: Engine, job: Job) -> Generator[str, None, Text]:
    """Yield the text of a job of one sample piece by piece as it is written; return it whole.

    A backward model's pieces go in front of the text so far, a forward model's behind it: the
    prompt's text and all pieces so joined are the text. Closing the generator stops the
    computation.
    Raises UsageError if the prompt is empty or leaves no room in the context.
    """
    drawing = Drawing(job)
    with closing(Running(engine)) as running:
        running.add(job)
        for drawn in running.steps():
            if piece := drawing.take(drawn):
                yield piece
            if drawing.stopped:
                break
    if piece := drawing.finish():
        yield piece
    return drawing.result


class Writer:
    """Turns the ids of one sample, as they are drawn, into pieces of text at the growing edge."""

    def __init__(self, language: Language, prompt: Prompt) -> None:
        self._language = language
        self._prompt = prompt
        self._bytes = language.tokenizer.token_bytes
        self._leftward = language.direction == "backward"
        self._decoder = language.decoder(prompt)
        self._word: list[int] = []
        self.written = ""
        """The text as far as it is certain, without what was given."""
        self.ids: list[int] = []

    @property
    def text(self) -> str:
        """The whole text as far as it is certain, in reading order."""
        return self.join(self.written, self._prompt.text)

    def push(self, id_: int) -> str:
        """Take the next id; return the piece of text that is now certain, perhaps none.

        In the word unit a piece is a whole word, which is complete when the next one begins.
        """
        if not self._language.by_word:
            self.ids.append(id_)
            return self._write(self._bytes[id_])
        piece = ""
        if self._word and self._language.tokenizer.starts_group[id_]:
            piece = self._finish_word()
        self._word.append(id_)
        return piece

    def finish(self, reason: FinishReason) -> str:
        """End the text; return its last piece. A word cut off by the length limit is dropped."""
        piece = self._finish_word() if self._word and reason == "stop" else ""
        last = self._decoder.flush()
        self.written = self.join(last, self.written)
        return self.join(last, piece)

    def _finish_word(self) -> str:
        self.ids += self._word
        word = b"".join(self._bytes[id_] for id_ in self._word)
        self._word = []
        return self._write(word)

    def _write(self, data: bytes) -> str:
        piece = self._decoder.push(data)
        self.written = self.join(piece, self.written)
        return piece

    def join(self, new: str, old: str) -> str:
        """Return a piece of text joined to what was written before it."""
        return new + old if self._leftward else old + new


def collect(engine: Engine, job: Job) -> list[Text]:
    """Generate the samples of a job to their ends and return them.

    Raises UsageError if the prompt is empty or leaves no room in the context.
    """
    [texts] = collect_all(engine, [job])
    return texts


def collect_all(engine: Engine, jobs: Sequence[Job]) -> list[list[Text]]:
    """Do as `collect` for many jobs together; return the texts of each. Raises as `collect`."""
    texts = chain.from_iterable(texts_of(engine, jobs))
    return [list(islice(texts, job.n)) for job in jobs]


def texts_of(engine: Engine, jobs: Sequence[Job]) -> Generator[list[Text], None, None]:
    """Yield the texts of `jobs` in their order: lists of those that are written side by side.

    Closing the generator stops the computation. Raises as `collect`, before anything is read.
    """
    for job in jobs:
        room_for(engine, job)
    together: list[Job] = []
    for part in chain.from_iterable(job.split(MOST_AT_ONCE) for job in jobs):
        if sum(job.n for job in (*together, part)) > MOST_AT_ONCE:
            yield _side_by_side(engine, together)
            together = []
        together.append(part)
    yield _side_by_side(engine, together)


def _side_by_side(engine: Engine, jobs: Sequence[Job]) -> list[Text]:
    drawings: list[Drawing] = []
    with closing(Running(engine)) as running:
        for job in jobs:
            drawings += [Drawing(job) for _ in running.add(job)]
        for drawn in running.steps():
            drawing = drawings[drawn.number]
            drawing.take(drawn)
            if drawing.stopped:
                running.cancel([drawn.number])
    for drawing in drawings:
        drawing.finish()
    return [drawing.result for drawing in drawings]


class Drawing:
    """One text in the making, from the ids that are drawn for it.

    With one of the job's `stop` strings it is `stopped`: nothing more is to be drawn.
    `written` is what the pieces join to.
    """

    def __init__(self, job: Job) -> None:
        self._prompt, self._seed = job.prompt, job.seed
        self._writer = Writer(job.language, job.prompt)
        self._stops = StopStrings(job.stop, leftward=job.language.direction == "backward")
        self._reason: FinishReason = "length"
        self.written = ""
        self.drawn: list[Drawn] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._stops.stopped

    @property
    def whole(self) -> str:
        """The whole text, with what a stop string took back."""
        return self._writer.text

    @property
    def uncut(self) -> str:
        """What was written, with what a stop string took back."""
        return self._writer.written

    def take(self, drawn: Drawn) -> str:
        """Take the next id; return the piece of text that is now certain."""
        self.drawn.append(drawn)
        if drawn.id_ not in self._prompt.stops:
            return self._pass_on(self._stops.push(self._writer.push(drawn.id_)))
        self._reason = "stop"
        return ""

    def finish(self) -> str:
        """End the text; return its last piece."""
        piece = self._stops.push(self._writer.finish(self._reason))
        if self.stopped:
            self._reason = "stop"
            return self._pass_on(piece)
        return self._pass_on(self._writer.join(self._stops.finish(), piece))

    @property
    def result(self) -> Text:
        """The text, once it is finished."""
        whole = self._writer.text
        if self.stopped:
            whole = self._writer.join(self.written, self._prompt.text)
        return Text(
            text=whole,
            given=self._prompt.text,
            finish_reason=self._reason,
            logprob=sum(drawn.logprob for drawn in self.drawn),
            n_tokens=len(self.drawn),
            seed=self._seed,
            ids=ModelIds(np.array(self._writer.ids, dtype=np.int64)),
        )

    def _pass_on(self, piece: str) -> str:
        self.written = self._writer.join(piece, self.written)
        return piece


def in_model_order(language: Language, prompt: Prompt, text: Text) -> str:
    """Return the text as the model wrote it: `end. The again. friends became They …`."""
    return language.tokenizer.decode(ReadingIds(joined(prompt.ids, text.ids)))
