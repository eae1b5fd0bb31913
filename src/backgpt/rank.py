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
from itertools import groupby
from typing import Literal, get_args

import numpy as np

from backgpt.chat import Template
from backgpt.checks import check_text
from backgpt.checks import texts as checked_texts
from backgpt.errors import UsageError
from backgpt.generate import Text
from backgpt.hints import NO_HINTS, Hints
from backgpt.language import Parts, Row
from backgpt.messages import Message
from backgpt.order import ModelIds
from backgpt.score import SCORED_TOGETHER, Runner, context_size, sums_in_slices, sums_written
from backgpt.slices import Slices, finished
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
    return finished(_goodness(texts, method, writer, twin, SCORED_TOGETHER))


def _goodness(
    texts: Sequence[Parts], method: Method, writer: Runner, twin: Runner | None, together: int
) -> Slices[list[float]]:
    """Do as `goodness`, in slices of about `together` ids."""
    check_method(method, writer=writer, twin=twin)
    if twin is None or method == writer.language.direction:
        rows = [writer.language.row(*parts) for parts in texts]
        own = yield from sums_in_slices(writer, rows, together=together)
        return [value / len(written) for value, (_, written) in zip(own, rows, strict=True)]
    there = [twin.language.row(*parts) for parts in texts]
    reverse = yield from sums_in_slices(twin, there, together=together)
    if method != "both":
        return reverse
    here = [writer.language.row(*parts) for parts in texts]
    own = yield from sums_in_slices(writer, here, together=together)
    given = [_given_alone(twin, parts) for parts in texts]
    alone = yield from sums_in_slices(twin, given, together=together)
    return [r + o - a for r, o, a in zip(reverse, own, alone, strict=True)]


def parts_of(tokenizer: Tokenizer, before: str, after: str) -> Parts:
    """Return the ids of a text in two parts. One space between them may be in either or neither."""
    return tokenizer.encode(before.removesuffix(" ")), tokenizer.encode_fragment(after)


def rank_answers(
    runner: Runner, question: str, answers: Sequence[str], *, in_chat: bool
) -> list[Ranked]:
    """Return `answers` with log p(question | answer) in nats, the best first.

    They are messages if it is `in_chat`, otherwise the two parts of a text. Raises UsageError as
    `api.Model.rank`.
    """
    language = runner.language
    if language.direction == "forward":
        raise UsageError("a forward model cannot judge what came before: load it backward")
    check_text("question", question)
    answers = checked_texts("answers", answers)
    if not answers:
        raise UsageError("there is no answer to rank: give some")
    if not question.strip():
        raise UsageError("the question is empty: give one")
    for number, answer in enumerate(answers, start=1):
        if not answer.strip():
            raise UsageError(f"answer {number} of {len(answers)} is empty: leave it out")
    if in_chat:
        template = Template(language)
        prompts = [template.before([Message("assistant", answer)]) for answer in answers]
        rows = [(prompt.ids, template.written(prompt, question)) for prompt in prompts]
    else:
        parts = [parts_of(language.tokenizer, question, answer) for answer in answers]
        rows = [language.row(*of_text) for of_text in parts]
    return best_first(answers, sums_written(runner, rows))


def best_first(texts: Sequence[str], scores: Sequence[float]) -> list[Ranked]:
    """Return the candidates with their scores, the best first; equals in the order given."""
    pairs = zip(texts, scores, strict=True)
    ranked = [Ranked(text, place, score) for place, (text, score) in enumerate(pairs)]
    return sorted(ranked, key=lambda one: -one.score)


def best_of_texts(
    texts: Sequence[Text],
    method: Method,
    *,
    writer: Runner,
    twin: Runner | None,
    hints: Hints = NO_HINTS,
) -> Text:
    """Return the best of `texts` that `writer` wrote from one given text; see `best_places`."""
    places = best_places(
        texts, 1, method, writer=writer, twin=twin, hints=hints, together=SCORED_TOGETHER
    )
    return texts[finished(places)[0]]


def best_places(
    texts: Sequence[Text],
    n: int,
    method: Method,
    *,
    writer: Runner,
    twin: Runner | None,
    hints: Hints = NO_HINTS,
    together: int,
) -> Slices[list[int]]:
    """Return which `n` of `texts`, that `writer` wrote from one given text, are best, best first.

    One that reached its edge comes before one that was cut, and of these one that obeys more of the
    `hints`; what fills the context is not judged, and comes last. Slices are of about `together`
    ids. Raises UsageError as `check_method`.
    """
    check_method(method, writer=writer, twin=twin)
    parts = [_parts_of_written(writer, text) for text in texts]
    runners = [writer] if twin is None else [writer, twin]
    # The marker that is written last is not read.
    room = min(context_size(one) for one in runners) - 1
    fitting = [place for place, of_text in enumerate(parts) if sum(map(len, of_text)) <= room]

    def class_of(place: int) -> tuple[bool, int]:
        text = texts[place]
        return text.finish_reason != "stop", -sum(hints.obeyed_by(text.text).values())

    best: list[int] = []
    for _, equals in groupby(sorted(fitting, key=class_of), key=class_of):
        places = list(equals)
        if len(best) < n:
            judged = [parts[place] for place in places]
            scores = yield from _goodness(judged, method, writer, twin, together)
            best += [places[i] for i in np.argsort(-np.array(scores), kind="stable")]
    return [*best, *(place for place in range(len(texts)) if place not in fitting)][:n]


def _parts_of_written(writer: Runner, text: Text) -> Parts:
    tokenizer, written = writer.language.tokenizer, writer.language.order.to_reading(text.ids)
    if writer.language.direction == "backward":
        return written, tokenizer.encode_fragment(text.given)
    return tokenizer.encode(text.given.removesuffix(" ")), written


def _given_alone(twin: Runner, parts: Parts) -> Row:
    """Return the row in which the twin meets, after its marker, the part that it is given."""
    given, _ = twin.language.row(*parts)
    first = len(twin.language.lead) + 1
    return ModelIds(given[:first]), ModelIds(np.asarray(given[first:]))
