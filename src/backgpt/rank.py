"""Which text goes best with a given one: the likelihood of what is given, read from the other side.

A model that writes `before` from `after` likes what is likely in itself; its twin says how well the
candidate explains what was given. For a backward writer and its forward twin:

    backward    log p(before | after), per id                       the writer's own
    forward     log p(after | before)                               the reverse reward
    both        log p(after | before) + log p(before | after) - log p(before)

The last two terms of the third are, by Bayes, the writer's estimate of the second, but for a term
that all candidates share (noisy channel: Yee, Dauphin and Auli 2019; the other way round, a
backward model as the judge of a forward one: Varun et al. 2024, "Time-Reversal Provides
Unsupervised Feedback to LLMs").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from backgpt.errors import UsageError
from backgpt.generate import Text
from backgpt.language import Parts
from backgpt.order import ModelIds
from backgpt.score import Runner, context_size, sums_written
from backgpt.tokenizer import Tokenizer

Method = Literal["backward", "forward", "both"]


@dataclass(frozen=True)
class Ranked:
    """A candidate, its `place` among those given, and its score in nats: the greater the better."""

    text: str
    place: int
    score: float


def check_method(method: Method, *, writer: Runner, twin: Runner | None) -> None:
    """Raise UsageError for an unknown method, or one that needs a `twin` where there is none."""
    if method not in get_args(Method):
        raise UsageError(f"rank by {method!r}: choose one of {', '.join(get_args(Method))}")
    if twin is None and method != writer.language.direction:
        raise UsageError(
            f"to rank by {method!r} takes a model that runs the other way: give its twin, or rank "
            f"by {writer.language.direction!r}"
        )


def goodness(
    texts: Sequence[Parts], method: Method, *, writer: Runner, twin: Runner | None
) -> list[float]:
    """Return how well the parts of each text go together, in nats; the greater the better.

    Texts share the part that the `writer` is given. Raises UsageError as `check_method`, and for a
    text that does not fit.
    """
    check_method(method, writer=writer, twin=twin)
    if twin is None or method == writer.language.direction:
        rows = [writer.language.row(*parts) for parts in texts]
        own = sums_written(writer, rows)
        return [value / len(written) for value, (_, written) in zip(own, rows, strict=True)]
    reverse = sums_written(twin, [twin.language.row(*parts) for parts in texts])
    if method != "both":
        return reverse
    own = sums_written(writer, [writer.language.row(*parts) for parts in texts])
    alone = sums_written(twin, [_given_alone(twin, parts) for parts in texts])
    return [r + o - a for r, o, a in zip(reverse, own, alone, strict=True)]


def parts_of(tokenizer: Tokenizer, before: str, after: str) -> Parts:
    """Return the ids of a text in two parts. One space between them may be in either or neither."""
    return tokenizer.encode(before.removesuffix(" ")), tokenizer.encode_fragment(after)


def best_of_texts(
    texts: Sequence[Text], method: Method, *, writer: Runner, twin: Runner | None
) -> Text:
    """Return the best of `texts` that `writer` wrote from one given text.

    One that reached its edge comes before one that was cut; what fills the context is not judged,
    and if all do, the first is taken. Raises UsageError as `check_method`.
    """
    check_method(method, writer=writer, twin=twin)
    rows = [(text, _parts_of_written(writer, text)) for text in texts]
    runners = [writer] if twin is None else [writer, twin]
    # The marker that is written last is not read.
    room = min(context_size(one.engine, one.language) for one in runners) - 1
    fitting = [(text, parts) for text, parts in rows if sum(map(len, parts)) <= room]
    whole = [row for row in fitting if row[0].finish_reason == "stop"]
    judged = whole or fitting
    if not judged:
        return texts[0]
    scores = goodness([parts for _, parts in judged], method, writer=writer, twin=twin)
    return judged[int(np.argmax(scores))][0]


def _parts_of_written(writer: Runner, text: Text) -> Parts:
    tokenizer, written = writer.language.tokenizer, writer.language.order.to_reading(text.ids)
    if writer.language.direction == "backward":
        return written, tokenizer.encode_fragment(text.given)
    return tokenizer.encode(text.given), written


def best_first(texts: Sequence[str], scores: Sequence[float]) -> list[Ranked]:
    """Return the candidates with their scores, the best first; equals in the order given."""
    pairs = zip(texts, scores, strict=True)
    ranked = [Ranked(text, place, score) for place, (text, score) in enumerate(pairs)]
    return sorted(ranked, key=lambda one: -one.score)


def _given_alone(twin: Runner, parts: Parts) -> tuple[ModelIds, ModelIds]:
    """Return the row in which the twin meets, after its marker, the part that it is given."""
    given, _ = twin.language.row(*parts)
    first = len(twin.language.lead) + 1
    return ModelIds(given[:first]), ModelIds(np.asarray(given[first:]))
