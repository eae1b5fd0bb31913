"""Prefill and decode as a generator, and the text that comes of it.

Takes an engine, a prompt in model order and a way to sample; yields ids as they are drawn, then
turns them into pieces of text that grow at the model's edge: leftward for a backward model.
The same loop serves one sample or many, streaming or not; an engine without torch fits as well.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from backgpt.engine import Engine, FloatArray
from backgpt.errors import UsageError
from backgpt.language import Language, Prompt, Stops
from backgpt.order import LeftwardDecoder, ModelIds, ReadingIds, RightwardDecoder
from backgpt.sampling import Sampling, draw, logprob_of

FinishReason = Literal["stop", "length"]
Row = npt.NDArray[np.float64]  # (V,)
Seed = tuple[int, int]


@dataclass(frozen=True)
class Text:
    """One finished sample.

    `text` is the whole text in reading order, `given` the part that was given, byte for byte.
    `ids` are the generated ids, (T,), in model order, without the marker that ended them;
    `logprob` is the log-probability, in nats, of everything drawn, that marker included.
    `finish_reason` is "stop" when the model reached the text's edge, "length" when it was cut.
    """

    text: str
    given: str
    finish_reason: FinishReason
    logprob: float
    n_tokens: int
    seed: int
    ids: ModelIds = field(repr=False)


def generate(
    engine: Engine,
    language: Language,
    prompt: Prompt,
    *,
    n: int = 1,
    sampling: Sampling,
    max_new_tokens: int | None = None,
    seed: int = 0,
) -> Iterator[tuple[int, int, float]]:
    """Yield (sample number, id, log-probability in nats) as ids are drawn, all samples in step.

    A sample ends with one of the prompt's stops, or after `max_new_tokens`, or where the context
    is full; no other control id is ever drawn. Sample number `i` depends on `seed` and `i`, not on
    how many run beside it. Closing the generator frees the engine's rows at once.
    Raises UsageError if the prompt is empty or leaves no room in the context.
    """
    return _in_step(
        engine, language, [prompt], [seed], n=n, sampling=sampling, max_new_tokens=max_new_tokens
    )


def _in_step(
    engine: Engine,
    language: Language,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    *,
    n: int,
    sampling: Sampling,
    max_new_tokens: int | None,
) -> Iterator[tuple[int, int, float]]:
    """Do as `generate` for `n` samples of each prompt; those of the first are numbered first."""
    rooms = [_room(engine, prompt, max_new_tokens) for prompt in prompts]
    samples: list[_Sample] = []
    rows: dict[int, int] = {}
    logits: Sequence[FloatArray] | FloatArray = []
    try:
        for prompt, room, seed in zip(prompts, rooms, seeds, strict=True):
            taken, prompt_logits = engine.prefill(prompt.ids, n)
            rows |= enumerate(taken, start=len(samples))
            barred = _barred(language, prompt.stops)
            samples += [_Sample(prompt, room, *barred, seed=(seed, i)) for i in range(n)]
            logits = [*logits, *[prompt_logits] * n]
        while rows:
            going: dict[int, int] = {}
            for number, row_logits in zip(rows, logits, strict=True):
                id_, logprob = samples[number].draw(row_logits, sampling)
                if samples[number].goes_on_after(id_):
                    going[number] = id_
                yield number, id_, logprob
            engine.release([rows.pop(number) for number in list(rows) if number not in going])
            if rows:
                logits = engine.step(list(rows.values()), list(going.values()))
    finally:
        engine.release(list(rows.values()))


class _Sample:
    """What one sample in the making draws from: its own randomness, room and allowed ids."""

    def __init__(
        self, prompt: Prompt, room: int, barred_at_first: Row, barred_later: Row, *, seed: Seed
    ) -> None:
        self._stops = prompt.stops
        self._room = room
        self._barred, self._barred_later = barred_at_first, barred_later
        self._random = np.random.default_rng(seed)
        self._seen = np.zeros(len(barred_later), dtype=np.bool_)
        self._seen[prompt.ids[prompt.n_first :]] = True

    def draw(self, logits: FloatArray, sampling: Sampling) -> tuple[int, float]:
        """Return the next id and its log-probability, given (V,) logits."""
        scores = logits[: len(self._barred)].astype(np.float64)
        id_ = draw(scores + self._barred, sampling, self._random, seen=self._seen)
        self._barred = self._barred_later
        self._seen[id_] = True
        self._room -= 1
        return id_, logprob_of(id_, scores)

    def goes_on_after(self, id_: int) -> bool:
        """Return whether another id may follow `id_`, the one just drawn."""
        return self._room > 0 and id_ not in self._stops


def pieces(
    engine: Engine,
    language: Language,
    prompt: Prompt,
    *,
    sampling: Sampling,
    max_new_tokens: int | None = None,
    seed: int = 0,
) -> Generator[str, None, Text]:
    """Yield one text piece by piece as it is written; return it whole.

    A backward model's pieces go in front of the text so far, a forward model's behind it: the
    prompt's text and all pieces so joined are the text. Closing the generator stops the
    computation. Raises as `generate`.
    """
    drawing = _Drawing(language, prompt, seed)
    for _, id_, logprob in generate(
        engine, language, prompt, sampling=sampling, max_new_tokens=max_new_tokens, seed=seed
    ):
        if piece := drawing.take(id_, logprob):
            yield piece
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
        self._decoder: LeftwardDecoder | RightwardDecoder = (
            LeftwardDecoder(before_line=not prompt.joins_on)
            if self._leftward
            else RightwardDecoder(after=prompt.text)
        )
        self._word: list[int] = []
        self._written = ""
        self.ids: list[int] = []

    @property
    def text(self) -> str:
        """The whole text as far as it is certain, in reading order."""
        return self._join(self._written, self._prompt.text)

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
        self._written = self._join(last, self._written)
        return self._join(last, piece)

    def _finish_word(self) -> str:
        self.ids += self._word
        word = b"".join(self._bytes[id_] for id_ in self._word)
        self._word = []
        return self._write(word)

    def _write(self, data: bytes) -> str:
        piece = self._decoder.push(data)
        self._written = self._join(piece, self._written)
        return piece

    def _join(self, new: str, old: str) -> str:
        return new + old if self._leftward else old + new


def collect(
    engine: Engine,
    language: Language,
    prompt: Prompt,
    *,
    n: int = 1,
    sampling: Sampling,
    max_new_tokens: int | None = None,
    seed: int = 0,
) -> list[Text]:
    """Generate `n` samples to their ends and return them. Raises as `generate`."""
    [texts] = collect_all(
        engine, language, [prompt], [seed], n=n, sampling=sampling, max_new_tokens=max_new_tokens
    )
    return texts


def collect_all(
    engine: Engine,
    language: Language,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    *,
    n: int = 1,
    sampling: Sampling,
    max_new_tokens: int | None = None,
) -> list[list[Text]]:
    """Do as `collect` for many prompts together, each with its own seed. Raises as `generate`."""
    drawings = [
        [_Drawing(language, prompt, seed) for _ in range(n)]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    for number, id_, logprob in _in_step(
        engine,
        language,
        prompts,
        seeds,
        n=n,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
    ):
        drawings[number // n][number % n].take(id_, logprob)
    for drawing in (drawing for of_prompt in drawings for drawing in of_prompt):
        drawing.finish()
    return [[drawing.result for drawing in of_prompt] for of_prompt in drawings]


class _Drawing:
    """One text in the making, from the ids that are drawn for it."""

    def __init__(self, language: Language, prompt: Prompt, seed: int) -> None:
        self._prompt, self._seed = prompt, seed
        self._writer = Writer(language, prompt)
        self._reason: FinishReason = "length"
        self._logprob = 0.0
        self._count = 0

    def take(self, id_: int, logprob: float) -> str:
        """Take the next id; return the piece of text that is now certain."""
        self._logprob += logprob
        self._count += 1
        if id_ not in self._prompt.stops:
            return self._writer.push(id_)
        self._reason = "stop"
        return ""

    def finish(self) -> str:
        """End the text; return its last piece."""
        return self._writer.finish(self._reason)

    @property
    def result(self) -> Text:
        """The text, once it is finished."""
        return Text(
            text=self._writer.text,
            given=self._prompt.text,
            finish_reason=self._reason,
            logprob=self._logprob,
            n_tokens=self._count,
            seed=self._seed,
            ids=ModelIds(np.array(self._writer.ids, dtype=np.int64)),
        )


def in_model_order(language: Language, prompt: Prompt, text: Text) -> str:
    """Return the text as the model wrote it: `end. The again. friends became They …`."""
    ids = np.concatenate((prompt.ids, text.ids))
    return language.tokenizer.decode(ReadingIds(ids))


def _room(engine: Engine, prompt: Prompt, max_new_tokens: int | None) -> int:
    if not len(prompt.ids):
        raise UsageError("there is nothing to go on from: give a text that is not empty")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UsageError(f"max-new-tokens = {max_new_tokens}: it must be 1 or more")
    room = engine.block_size + 1 - len(prompt.ids)
    if room < 1:
        raise UsageError(
            f"the given text is {len(prompt.ids)} ids long, the model reads at most "
            f"{engine.block_size}: give a shorter one"
        )
    return room if max_new_tokens is None else min(room, max_new_tokens)


def _barred(language: Language, stops: Stops) -> tuple[Row, Row]:
    """Return what is added to logits, (V,) 0 or -inf each, for the first id and for later ones.

    Ids with text are allowed, and the stops; in the word unit the first has to begin a word.
    """
    has_text = np.array([bool(data) for data in language.tokenizer.token_bytes])
    first = has_text & language.tokenizer.starts_group if language.by_word else has_text
    barred = []
    for allowed, ids in ((first, stops.at_once), (has_text, stops.later)):
        row = np.where(allowed, 0.0, -np.inf)
        row[list(ids)] = 0.0
        barred.append(row)
    return barred[0], barred[1]
