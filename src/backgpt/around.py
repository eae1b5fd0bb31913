"""A text around a given phrase: a backward model writes what led to it, a forward one the rest."""

from dataclasses import dataclass

from backgpt.generate import Text, collect, collect_all
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

    Each side has at most `max_new_tokens` ids; without, the left one leaves the right one half of
    the room. Raises UsageError if the phrase is empty or does not fit.
    """
    prompt = backward.language.prompt(phrase, at_edge=False)
    half = max((backward.engine.block_size - len(prompt.ids)) // 2, 1)
    tried = collect(
        backward.engine,
        backward.language,
        prompt,
        n=n * TRIES,
        sampling=sampling,
        max_new_tokens=half if max_new_tokens is None else max_new_tokens,
        seed=seed,
    )
    lefts = [_first_complete(tried[number * TRIES :][:TRIES]) for number in range(n)]
    rights = collect_all(
        forward.engine,
        forward.language,
        [
            forward.language.prompt(left.text, at_edge=left.finish_reason == "stop")
            for left in lefts
        ],
        [seed + number for number in range(n)],
        sampling=sampling,
        max_new_tokens=max_new_tokens,
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


def _first_complete(texts: list[Text]) -> Text:
    return next((text for text in texts if text.finish_reason == "stop"), texts[0])
