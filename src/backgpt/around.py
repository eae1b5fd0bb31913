"""A text around a given phrase: a backward model writes what led to it, a forward one the rest."""

from dataclasses import dataclass, replace

from backgpt.generate import Text, collect, collect_all
from backgpt.language import Language, Prompt
from backgpt.order import ModelIds, joined
from backgpt.running import Job
from backgpt.sampling import Sampling
from backgpt.score import Runner

TRIES = 4  # to reach the start of a text, before one is taken that does not


@dataclass(frozen=True)
class Surrounded:
    """A text with `phrase` in it, byte for byte, between what was written `before` and `after`.

    `complete` says that it has both a start and an end; otherwise the length limit cut it.
    """

    before: str
    phrase: str
    after: str
    complete: bool
    seed: int

    @property
    def text(self) -> str:
        """The whole text."""
        return self.before + self.phrase + self.after


def surround(
    backward: Runner,
    forward: Runner,
    phrase: str,
    *,
    n: int,
    sampling: Sampling,
    max_new_tokens: int | None = None,
    seed: int = 0,
) -> list[Surrounded]:
    """Write `n` texts around `phrase`: first to its left, then, having read that, to its right.

    Each side has at most `max_new_tokens` ids, and the left one at most half of the room. Raises
    UsageError if the phrase does not fit.
    """
    prompt = backward.language.prompt(phrase, at_edge=False)
    block_size = min(backward.engine.block_size, forward.engine.block_size)
    half = max((block_size - len(prompt.ids)) // 2, 1)
    tried = collect(
        backward.engine,
        Job(
            backward.language,
            prompt,
            n=n * TRIES,
            sampling=sampling,
            max_new_tokens=half if max_new_tokens is None else min(max_new_tokens, half),
            seed=seed,
        ),
    )
    lefts = [_first_complete(tried[number * TRIES :][:TRIES]) for number in range(n)]
    rights = collect_all(
        forward.engine,
        [
            Job(
                forward.language,
                _prompt_after(left, backward.language, forward.language),
                sampling=sampling,
                max_new_tokens=max_new_tokens,
                seed=seed + 1 + number,  # none that the left sides were drawn with
            )
            for number, left in enumerate(lefts)
        ],
    )
    return [
        Surrounded(
            before=left.text[: len(left.text) - len(phrase)],
            phrase=phrase,
            after=right.text[len(left.text) :],
            complete=left.finish_reason == right.finish_reason == "stop",
            seed=seed,
        )
        for left, [right] in zip(lefts, rights, strict=True)
    ]


def _prompt_after(left: Text, backward: Language, forward: Language) -> Prompt:
    """Return the prompt to go on from `left`, whose ids are read just as they were written."""
    prompt = forward.prompt(left.text, at_edge=left.finish_reason == "stop")
    written = backward.order.to_reading(left.ids)
    given = left.given[:-1] if prompt.begins_word else left.given
    phrase = backward.tokenizer.encode_fragment(given)
    return replace(prompt, ids=ModelIds(joined(prompt.ids[: prompt.n_first], written, phrase)))


def _first_complete(texts: list[Text]) -> Text:
    return next((text for text in texts if text.finish_reason == "stop"), texts[0])
