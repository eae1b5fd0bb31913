"""The report card: what a model's texts are like, and whether it does as it is told.

Takes models and held-out texts; gives figures that `card` defines. Everything follows from a seed.
Words are those of `words_of`, whatever their case; an n-gram is n of them in a row within one text.
"""

import heapq
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TypeVar

import numpy as np

from backgpt.api import Model
from backgpt.card import Loss, Obedience, Statistics, Story
from backgpt.errors import DataError
from backgpt.generate import Text, collect_all
from backgpt.hints import NO_HINTS, Hints, Kind, draw_hints, words_of
from backgpt.quantize import Storage
from backgpt.running import Job
from backgpt.sampling import Sampling
from backgpt.score import bits_per_byte

FIXED_ENDINGS = (
    "The end.",
    "and they lived happily ever after.",
    "And that is why the moon is round.",
    "The dragon said sorry, and everyone laughed.",
)
"""Endings of every evaluation, beside those of held-out texts."""

HINTED: tuple[Kind, ...] = ("opening", "words", "length")
REPEATED = 3  # times that a 4-gram occurs in a text that counts as repeating
MOST_DRAWS = 1000  # of hints from one text until there are all kinds that are wanted

_BETWEEN_SENTENCES = re.compile(r"[.!?][\"']?\s+|\n\s*")


T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One generated text and the ending it was written toward."""

    ending: str
    text: Text


def measure_loss(model: Model, texts: Sequence[str], *, of: str, storage: Storage) -> Loss:
    """Return the loss over all of `texts`, a set called `of`, of a model stored as `storage`."""
    nats, n_tokens, n_bytes = _score(model, texts)
    return Loss(
        set=of,
        direction=model.direction,
        storage=storage,
        nats_per_token=nats / n_tokens,
        bits_per_byte=bits_per_byte(nats, n_bytes),
    )


def draw_endings(texts: Sequence[str], n: int, *, seed: int) -> list[str]:
    """Return `n` different endings: `FIXED_ENDINGS`, then last sentences of `texts`.

    Raises DataError if the texts do not have as many.
    """
    endings = dict.fromkeys(FIXED_ENDINGS[:n])
    for index in np.random.default_rng(seed).permutation(len(texts)):
        if len(endings) == n:
            break
        endings.setdefault(last_sentence(texts[index]))
    if len(endings) < n:
        raise DataError(f"{len(texts)} texts have {len(endings)} different endings, not {n}")
    return list(endings)


def last_sentence(text: str) -> str:
    """Return the last sentence of a text, with the whole of a quotation that ends in it."""
    line_start = text.rfind("\n") + 1
    starts = [0, line_start, *(match.end() for match in _BETWEEN_SENTENCES.finditer(text))]
    for start in sorted(starts, reverse=True):
        sentence = text[start:]
        if sentence.strip() and (start == line_start or sentence.count('"') % 2 == 0):
            return sentence
    return text


def with_endings_that_fit(texts: Sequence[str], model: Model) -> list[str]:
    """Return those of `texts` whose last sentence takes at most half of the model's context."""
    most = model.engine.block_size // 2
    return [text for text in texts if len(model.tokenizer.encode(last_sentence(text))) <= most]


def write_samples(
    model: Model, endings: Sequence[str], *, each: int, seed: int, max_new_tokens: int | None = None
) -> Iterator[Sample]:
    """Yield `each` samples for every ending, at the default settings.

    Those of the ending number i have the seed `seed` + i: the first of them is what that seed
    gives alone.
    """
    written = collect_all(
        model.engine,
        [
            Job(
                model.language,
                model.prompt(ending),
                n=each,
                sampling=Sampling(),
                max_new_tokens=max_new_tokens,
                seed=seed + number,
            )
            for number, ending in enumerate(endings)
        ],
    )
    for ending, texts in zip(endings, written, strict=True):
        for text in texts:
            yield Sample(ending, text)


def first_of_each(samples: Iterable[Sample], n: int) -> tuple[Story, ...]:
    """Return the first sample of each of the first `n` endings, as they came."""
    first: dict[str, Story] = {}
    for sample in samples:
        story = Story(ending=sample.ending, seed=sample.text.seed, text=sample.text.text)
        first.setdefault(sample.ending, story)
    return tuple(first.values())[:n]


def vocabulary_of(texts: Iterable[str]) -> frozenset[str]:
    """Return all words of `texts`, lower-cased."""
    return frozenset(word for text in texts for word in words_of(text.lower()))


def statistics_of(
    texts: Sequence[str],
    vocabulary: Collection[str],
    *,
    endings: Sequence[str] = (),
    twin: Model | None = None,
    reached_edge: float | None = None,
) -> Statistics:
    """Return what `texts` are like, but for their `endings`, which were given.

    Several texts have one given ending, texts by people each their own: counted in, it would make
    the one repeat what the other cannot. `known_words` is the share of all words that are in
    `vocabulary`, lower-cased; `repeating` the share of texts in which some 4-gram of words occurs
    three times or more; `distinct_3` the share of different ones among all trigrams of all texts
    together (Li et al. 2016), which falls with more texts: compare equal numbers.
    `nats_per_token` is the loss of `twin` on whole texts.
    """
    written = [
        text.removesuffix(ending) for text, ending in zip_longest(texts, endings, fillvalue="")
    ]
    words = [words_of(text.lower()) for text in written]
    n_words = sum(map(len, words))
    trigrams = [gram for of_text in words for gram in _ngrams(of_text, 3)]
    known = sum(word in vocabulary for of_text in words for word in of_text)
    nats, n_tokens, _ = _score(twin, texts) if twin else (None, 0, 0)
    return Statistics(
        texts=len(texts),
        reached_edge=reached_edge,
        known_words=known / max(n_words, 1),
        repeating=sum(map(repeats, written)) / max(len(texts), 1),
        distinct_3=len(set(trigrams)) / max(len(trigrams), 1),
        mean_words=n_words / max(len(texts), 1),
        nats_per_token=None if nats is None else nats / n_tokens,
    )


def repeats(text: str) -> bool:
    """Return whether some four words in a row occur three times or more."""
    counts = Counter(_ngrams(words_of(text.lower()), 4))
    return max(counts.values(), default=0) >= REPEATED


def share_that_reached_the_edge(samples: Collection[Sample]) -> float:
    """Return the share of samples that ended with the marker of the text's other edge."""
    reached = sum(sample.text.finish_reason == "stop" for sample in samples)
    return reached / max(len(samples), 1)


def drawn(
    text: str, kinds: Collection[Kind], random: np.random.Generator, *, ending: str = ""
) -> Hints | None:
    """Return hints of just these `kinds` that `text` obeys, or None if it has not got them.

    Words that are in the `ending`, which is given, are none of them.
    """
    given = words_of(ending.lower())
    for _ in range(MOST_DRAWS):
        hints = draw_hints(text, random)
        hints = replace(hints, words=tuple(word for word in hints.words if word not in given))
        if {kind for kind, _ in hints.texts()} >= set(kinds):
            return Hints(
                opening=hints.opening if "opening" in kinds else None,
                words=hints.words if "words" in kinds else (),
                length=hints.length if "length" in kinds else None,
            )
    return None


def measure_obedience(
    model: Model,
    texts: Sequence[str],
    *,
    kinds: Collection[Kind],
    seed: int,
    told: bool = True,
    max_new_tokens: int | None = None,
) -> dict[Kind, Obedience]:
    """Return how often the model does as hints of `kinds` say.

    For each of `texts` hints are drawn from it, and a text is written toward its own ending.
    Without `told` the model is not given the hints: the result is how often they come true anyway.
    """
    all_hints: list[Hints] = []
    jobs: list[Job] = []
    for number, text in enumerate(texts):
        ending = last_sentence(text)
        hints = drawn(text, kinds, np.random.default_rng([seed, number]), ending=ending)
        if hints is None:
            continue
        given = hints if told else NO_HINTS
        all_hints.append(hints)
        jobs.append(
            Job(
                model.language,
                model.prompt(ending, opening=given.opening, words=given.words, length=given.length),
                sampling=Sampling(),
                max_new_tokens=max_new_tokens,
                seed=seed + number,
            )
        )
    written = collect_all(model.engine, jobs)
    asked: Counter[Kind] = Counter()
    obeyed: Counter[Kind] = Counter()
    for hints, [text_written] in zip(all_hints, written, strict=True):
        for kind, did in hints.obeyed_by(text_written.text).items():
            asked[kind] += 1
            obeyed[kind] += did
    return {kind: Obedience(asked=asked[kind], obeyed=obeyed[kind]) for kind in asked}


def measure_hints(
    model: Model,
    texts: Sequence[str],
    n: int,
    *,
    seed: int,
    max_new_tokens: int | None,
    say: Callable[[str], None],
) -> tuple[Mapping[Kind, Obedience], Mapping[Kind, Obedience]]:
    """Return how often hints of all kinds are obeyed, and how often they come true unasked.

    They are drawn from `n` of `texts`. Nothing is measured of a model without hints.
    """
    if not model.takes_hints or not n:
        return {}, {}
    chosen = choose(texts, n, seed=seed + 1)
    found = []
    for told in (True, False):
        say(f"writing {len(chosen)} texts with hints {'given' if told else 'kept back'}")
        found.append(
            measure_obedience(
                model,
                chosen,
                kinds=HINTED,
                seed=seed,
                told=told,
                max_new_tokens=max_new_tokens,
            )
        )
    return found[0], found[1]


def choose(texts: Sequence[str], n: int, *, seed: int) -> list[str]:
    """Return `n` of `texts`, or all if there are fewer, chosen by `seed`."""
    indices = np.random.default_rng(seed).permutation(len(texts))[:n]
    return [texts[index] for index in indices]


def draw_some(texts: Iterable[T], n: int | None, *, seed: int) -> list[T]:
    """Return `n` of `texts` in their order, drawn by `seed`, or all if there are not more.

    They are read once, and `n` of them kept. Those of a smaller `n` are among those of a larger.
    """
    if n is None:
        return list(texts)
    random = np.random.default_rng([seed, 2])  # apart from what else is drawn by the seed
    drawn_by = ((random.random(), place, text) for place, text in enumerate(texts))
    return [text for _, _, text in sorted(heapq.nsmallest(n, drawn_by), key=lambda one: one[1])]


def _score(model: Model, texts: Sequence[str]) -> tuple[float, int, int]:
    """Return nats, tokens (one marker a text counts) and UTF-8 bytes of all texts together."""
    scores = model.score_all(texts)
    nats = -math.fsum(score.logprob for score in scores)
    return nats, sum(s.n_tokens for s in scores), sum(s.n_bytes for s in scores)


def _ngrams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    for first in range(len(words) - n + 1):
        yield tuple(words[first : first + n])
