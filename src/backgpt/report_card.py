"""The report card: everything that is measured of a backward model and its forward twin.

Takes twins and held-out texts; gives a `report.ReportCard`. The same seed gives the same figures,
speed aside.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from backgpt.api import Model, check_twins
from backgpt.card import Obedience
from backgpt.evaluate import (
    choose,
    draw_endings,
    measure_obedience,
    share_that_reached_the_edge,
    statistics_of,
    vocabulary_of,
    write_samples,
)
from backgpt.evaluate_twins import (
    measure_bridges,
    measure_fidelity,
    measure_reranking,
    measure_speed,
)
from backgpt.gap import TwinScores, gap_by_context, twin_loss
from backgpt.hints import Kind
from backgpt.report import ReportCard
from backgpt.score import score_texts

KINDS: tuple[Kind, ...] = ("opening", "words", "length")


@dataclass(frozen=True)
class Extent:
    """How much is measured: numbers of texts. `candidates` are the bridges the best is taken of."""

    samples: int = 200
    endings: int = 40
    hinted: int = 200
    ranked: int = 200
    bridged: int = 50
    candidates: int = 4
    by_context: int = 500
    max_new_tokens: int | None = None


def report_card(
    pairs: Sequence[tuple[Model, Model]],
    texts: Sequence[str],
    *,
    names: tuple[str, str],
    data: str,
    extent: Extent,
    seed: int,
    say: Callable[[str], None] = lambda text: None,
) -> ReportCard:
    """Measure the first of `pairs`, a backward and a forward model; all of them for the loss.

    The other pairs are the same models trained with other seeds. `say` is told what is done.
    Raises UsageError if twins do not fit each other, DataError if `texts` are too few.
    """
    for backward, forward in pairs:
        check_twins(backward, forward)
    model, twin = pairs[0]
    longest = min(model.engine.block_size, twin.engine.block_size)

    say(f"scoring {len(texts):,} texts both ways")
    whole = [_scores(pair, texts) for pair in pairs]
    some = choose(texts, extent.by_context, seed=seed)
    most = max(len(model.tokenizer.encode(text)) for text in some) + 1
    say(f"scoring {len(some):,} with less context")
    by_context = tuple(
        gap_by_context(
            lambda context: [_scores(pair, some, context) for pair in pairs],
            longest=min(longest, most),
            seed=seed,
        )
    )

    say(f"writing {extent.samples} texts")
    endings = draw_endings(texts, extent.endings, seed=seed)
    each = extent.samples // extent.endings
    longest_sample = extent.max_new_tokens
    samples = list(
        write_samples(model, endings, each=each, seed=seed, max_new_tokens=longest_sample)
    )
    human = choose(texts, len(samples), seed=seed)
    vocabulary = vocabulary_of(set(texts) - set(human))
    obedience = {
        told: _obedience(model, texts, extent, seed=seed, told=told, say=say)
        for told in (True, False)
    }
    say("ranking beginnings")
    ranked = choose(texts, extent.ranked, seed=seed + 2)
    reranked = (
        *measure_reranking(model, twin, ranked, given="half", seed=seed),
        *measure_reranking(model, twin, ranked, given="sentence", seed=seed),
    )
    say(f"bridging {extent.bridged} texts")
    bridged = measure_bridges(
        model, twin, texts, n=extent.bridged, candidates=extent.candidates, seed=seed
    )
    return ReportCard(
        model=names[0],
        twin=names[1],
        data=data,
        context=longest,
        seed=seed,
        loss=twin_loss(whole, seed=seed),
        by_context=by_context,
        endings=len(endings),
        generated=statistics_of(
            [sample.text.text for sample in samples],
            vocabulary,
            twin=twin,
            reached_edge=share_that_reached_the_edge(samples),
        ),
        human=statistics_of(human, vocabulary, twin=twin),
        fidelity=measure_fidelity(samples, texts, twin, seed=seed),
        obedience=obedience[True],
        unasked=obedience[False],
        reranked=reranked,
        bridged=bridged,
        speed=measure_speed(model, texts),
    )


def _scores(
    pair: tuple[Model, Model], texts: Sequence[str], context: int | None = None
) -> TwinScores:
    backward, forward = (
        score_texts(model.engine, model.language, texts, context=context) for model in pair
    )
    return TwinScores(backward, forward)


def _obedience(
    model: Model,
    texts: Sequence[str],
    extent: Extent,
    *,
    seed: int,
    told: bool,
    say: Callable[[str], None],
) -> Mapping[Kind, Obedience]:
    """Return how often hints are obeyed, or come true unasked; nothing without hints."""
    if not model.takes_hints or not extent.hinted:
        return {}
    chosen = choose(texts, extent.hinted, seed=seed + 1)
    say(f"writing {len(chosen)} texts with hints {'given' if told else 'kept back'}")
    return measure_obedience(
        model,
        chosen,
        kinds=KINDS,
        seed=seed,
        told=told,
        max_new_tokens=extent.max_new_tokens,
    )
