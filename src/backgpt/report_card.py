"""The report card: everything that is measured of a backward model and its forward twin.

Takes twins and held-out texts; gives a `report.ReportCard`. The same seed gives the same figures,
speed aside.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from backgpt import __version__
from backgpt.api import Model, check_twins
from backgpt.errors import DataError, UsageError
from backgpt.evaluate import (
    FIXED_ENDINGS,
    choose,
    draw_endings,
    last_sentence,
    measure_hints,
    share_that_reached_the_edge,
    statistics_of,
    vocabulary_of,
    with_endings_that_fit,
    write_samples,
)
from backgpt.evaluate_twins import (
    CANDIDATES,
    cuts_to_bridge,
    halves_of,
    measure_bridges,
    measure_fidelity,
    measure_reranking,
    measure_speed,
)
from backgpt.gap import TwinScores, gap_by_context, twin_loss
from backgpt.report import Made, ReportCard, Reranked
from backgpt.score import context_size, score_texts

LEAST_BRIDGED = 2  # as an interval takes


@dataclass(frozen=True)
class Extent:
    """How much is measured: numbers of texts. `candidates` are the bridges the best is taken of.

    Raises UsageError for a number that cannot be.
    """

    samples: int = 200
    endings: int = 40
    hinted: int = 200
    ranked: int = 200
    bridged: int = 50
    candidates: int = 4
    by_context: int = 500
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} = {value}: it must be {least} or more")
        for name, least in _LEAST_BUT_NONE.items():
            if 0 < getattr(self, name) < least:
                value = getattr(self, name)
                raise UsageError(f"{name} = {value}: it must be {least} or more, or 0 for none")
        if self.samples % self.endings:
            raise UsageError(
                f"samples = {self.samples}: it must be a multiple of endings = {self.endings}"
            )


_LEAST = {
    "samples": 1,
    "endings": len(FIXED_ENDINGS) + 2,  # an interval takes two from the texts
    "hinted": 0,
    "ranked": 0,
    "bridged": 0,
    "candidates": 1,
    "by_context": 2,
    "max_new_tokens": 1,
}
_LEAST_BUT_NONE = {"ranked": CANDIDATES, "bridged": LEAST_BRIDGED}


def report_card(
    pairs: Sequence[tuple[Model, Model]],
    texts: Sequence[str],
    *,
    names: tuple[str, str],
    data: str,
    extent: Extent,
    limit: int | None = None,
    seed: int,
    say: Callable[[str], None] = lambda text: None,
) -> ReportCard:
    """Measure the first of `pairs`, a backward and a forward model; all of them for the loss.

    The other pairs are the same models trained with other seeds. `limit` says that `texts` were
    drawn from more, if there are as many. `say` is told what is done.
    What makes them differ in more than direction or seed is told in the card. Raises UsageError
    if models do not fit each other, or were tuned on conversations; DataError if `texts` are too
    few.
    """
    _check_fit(pairs)
    model, twin = pairs[0]
    context = min(context_size(one) for pair in pairs for one in pair)
    if len(texts) <= extent.samples:
        counted = "1 text is" if len(texts) == 1 else f"{len(texts)} texts are"
        raise DataError(
            f"{counted} too few beside samples = {extent.samples}, which are compared with as many "
            "of them and those with the others: give more as --data, or fewer --samples"
        )
    written_toward = with_endings_that_fit(texts, model)
    endings = draw_endings(written_toward, extent.endings, seed=seed)
    halves = halves_of(model, twin, texts, extent.ranked, seed=seed + 2)
    cuts = cuts_to_bridge(model, twin, texts, extent.bridged, seed=seed)
    left_out = []
    for wanted, found, least, what in (
        (extent.ranked, halves, CANDIDATES, "ranked: cut in half and read"),
        (extent.bridged, cuts, LEAST_BRIDGED, "bridged: cut in three, within half of the context"),
    ):
        if len(found) < wanted:
            say(f"{len(found)} of {len(texts):,} texts can be {what}; {wanted} were asked for")
        if wanted and len(found) < least:
            left_out.append(f"{len(found)} texts can be {what}; it takes {least}")
            found.clear()

    say(f"scoring {len(texts):,} texts both ways")
    whole = [_scores(pair, texts, context) for pair in pairs]
    some = choose(texts, extent.by_context, seed=seed)
    most = max(score.n_tokens for score in whole[0].backward)
    say(f"scoring {len(some):,} with less context")
    by_context = tuple(
        gap_by_context(
            lambda context: [_scores(pair, some, context) for pair in pairs],
            longest=min(context, most),
            seed=seed,
        )
    )

    say(f"writing {extent.samples} texts")
    samples = list(
        write_samples(
            model,
            endings,
            each=extent.samples // extent.endings,
            seed=seed,
            max_new_tokens=extent.max_new_tokens,
        )
    )
    human = choose(texts, len(samples), seed=seed)
    vocabulary = vocabulary_of(set(texts) - set(human))
    obedience, unasked = measure_hints(
        model,
        written_toward,
        extent.hinted,
        seed=seed,
        max_new_tokens=extent.max_new_tokens,
        say=say,
    )
    reranked: tuple[Reranked, ...] = ()
    if halves:
        say("ranking beginnings")
        reranked = (
            *measure_reranking(model, twin, halves, given="half", seed=seed),
            *measure_reranking(model, twin, halves, given="sentence", seed=seed),
        )
    bridged = None
    if cuts:
        say(f"bridging {len(cuts)} texts")
        bridged = measure_bridges(model, twin, cuts, candidates=extent.candidates, seed=seed)
    return ReportCard(
        model=names[0],
        twin=names[1],
        data=data,
        limit=limit,
        made=made_of(model, texts),
        context=context,
        unlike=unlike(*pairs),
        trained=(model.trained, twin.trained),
        seed=seed,
        loss=twin_loss(whole, seed=seed),
        by_context=by_context,
        endings=len(endings),
        max_new_tokens=extent.max_new_tokens,
        generated=statistics_of(
            [sample.text.text for sample in samples],
            vocabulary,
            endings=[sample.ending for sample in samples],
            twin=twin,
            reached_edge=share_that_reached_the_edge(samples),
        ),
        human=statistics_of(
            human, vocabulary, endings=[last_sentence(text) for text in human], twin=twin
        ),
        fidelity=measure_fidelity(samples, texts, twin, seed=seed),
        obedience=obedience,
        unasked=unasked,
        reranked=reranked,
        bridged=bridged,
        left_out=tuple(left_out),
        speed=measure_speed(model, written_toward),
    )


def made_of(model: Model, texts: Sequence[str]) -> Made:
    """Return what the figures of `model`, and of others, on `texts` were made with."""
    return Made(
        backgpt=__version__,
        engine=repr(model.engine),
        texts_sha256=hashlib.sha256("\0".join(texts).encode()).hexdigest(),
    )


def _check_fit(pairs: Sequence[tuple[Model, Model]]) -> None:
    first = pairs[0][0]
    for backward, forward in pairs:
        for model in (backward, first):  # all tokenizers have to be the same
            check_twins(model, forward)
        if backward.takes_chat or forward.takes_chat:
            raise UsageError(
                "a model that was tuned on conversations does not write texts: give the one it was "
                "tuned from, or measure this one with scripts/measure_chat.py"
            )


def unlike(*pairs: tuple[Model, Model]) -> tuple[str, ...]:
    """Return in what models differ besides direction and seed: each trait and its values.

    What the two of a pair were trained on counts where it is known of both. It does not of chat
    models: their data is in model order, and what of it is scored depends on the direction.
    """
    of_all = [
        {**asdict(model.config), "unit": model.unit, "hints": model.takes_hints}
        for pair in pairs
        for model in pair
    ]
    of_each = [
        [
            {"training tokens": f"{one.tokens:,}", "training data": one.data_sha256[:12]}
            for one in (model.trained for model in pair if not model.takes_chat)
            if one is not None
        ]
        for pair in pairs
    ]
    told = [
        f"{name} = {', '.join(dict.fromkeys(str(of[name]) for of in traits))}"
        for traits in (of_all, *(known for known in of_each if len(known) == 2))
        for name in traits[0]
        if any(of[name] != traits[0][name] for of in traits)
    ]
    return tuple(dict.fromkeys(told))


def _scores(pair: tuple[Model, Model], texts: Sequence[str], context: int) -> TwinScores:
    """Score texts with twins that read as much of them at once."""
    backward, forward = (score_texts(model, texts, context=context) for model in pair)
    return TwinScores(backward, forward)
