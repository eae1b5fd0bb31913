"""Prefill and decode as a generator, and the text that comes of it.

Takes an engine, a prompt in model order and a way to sample; yields ids as they are drawn, then
turns them into pieces of text that grow at the model's edge: leftward for a backward model.
The same loop serves one sample or many, streaming or not; an engine without torch fits as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from backgpt.engine import Engine
from backgpt.errors import UsageError
from backgpt.language import Language, Prompt
from backgpt.order import LeftwardDecoder, ModelIds, ReadingIds, RightwardDecoder
from backgpt.sampling import Sampling, draw, logprob_of

FinishReason = Literal["stop", "length"]


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

    A sample ends with the marker of the text's edge, or after `max_new_tokens`, or where the
    context is full. Sample number `i` depends on `seed` and `i`, not on how many run beside it.
    Closing the generator frees the engine's rows at once.
    Raises UsageError if the prompt is empty or leaves no room in the context.
    """
    room = _room(engine, prompt, max_new_tokens)
    stop = language.markers[1]
    allowed = _allowed(language)
    first = allowed & language.tokenizer.starts_group if language.by_word else allowed
    # Added to the logits of the first id, and of later ones: what is not allowed is impossible.
    barred_first, barred = (np.where(usable, 0.0, -np.inf) for usable in (first, allowed))
    randoms = [np.random.default_rng([seed, number]) for number in range(n)]
    seen = np.zeros((n, len(allowed)), dtype=np.bool_)
    seen[:, prompt.ids] = True

    rows, prompt_logits = engine.prefill(prompt.ids, n)
    logits = np.repeat(prompt_logits[None], n, axis=0)
    running = list(range(n))
    try:
        for position in range(room):
            going: dict[int, int] = {}
            for number, row_logits in zip(running, logits, strict=True):
                scores = row_logits[: len(allowed)].astype(np.float64)
                usable = scores + (barred if position else barred_first)
                id_ = draw(usable, sampling, randoms[number], seen=seen[number])
                seen[number, id_] = True
                if id_ != stop:
                    going[number] = id_
                yield number, id_, logprob_of(id_, scores)
            engine.release([rows[number] for number in running if number not in going])
            running = list(going)
            if not running or position + 1 == room:
                return
            logits = engine.step([rows[number] for number in running], list(going.values()))
    finally:
        engine.release([rows[number] for number in running])


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
    writers = [Writer(language, prompt) for _ in range(n)]
    logprobs, counts = [0.0] * n, [0] * n
    reasons: list[FinishReason] = ["length"] * n
    for number, id_, logprob in generate(
        engine, language, prompt, n=n, sampling=sampling, max_new_tokens=max_new_tokens, seed=seed
    ):
        logprobs[number] += logprob
        counts[number] += 1
        if id_ == language.markers[1]:
            reasons[number] = "stop"
        else:
            writers[number].push(id_)
    for writer, reason in zip(writers, reasons, strict=True):
        writer.finish(reason)
    return [
        Text(
            text=writer.text,
            given=prompt.text,
            finish_reason=reason,
            logprob=logprob,
            n_tokens=count,
            seed=seed,
            ids=ModelIds(np.array(writer.ids, dtype=np.int64)),
        )
        for writer, reason, logprob, count in zip(writers, reasons, logprobs, counts, strict=True)
    ]


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


def _allowed(language: Language) -> npt.NDArray[np.bool_]:
    """(V,) bool: ids with text, and the marker to stop at; no other control id is ever written."""
    allowed = np.array([bool(data) for data in language.tokenizer.token_bytes])
    allowed[language.markers[1]] = True
    return allowed
