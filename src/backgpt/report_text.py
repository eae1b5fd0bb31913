"""Reports as Markdown: what `report` holds, in tables."""

from collections.abc import Iterator, Sequence

from backgpt.bridge import ACROSS
from backgpt.card_text import share_of, statistics_rows
from backgpt.intervals import Estimate
from backgpt.model_folder import SeenData
from backgpt.report import ArrowReport, Bridged, ContextGap, Made, ReportCard, Reranked, TwinLoss

INTERVALS = (
    "Figures in brackets are intervals of 95 %: over documents (bootstrap; of shares Wilson's) "
    "unless they are said to be over seeds (Student's t). The bootstrap's are too narrow "
    "where documents are few: of 2 they hold the truth in half of all cases, of 3 in 75 %, of 5 "
    "in 91 %."
)

_METHODS = {
    "backward": "backward alone: log p(beginning \\| given), per token",
    "forward": "forward alone: log p(given \\| beginning)",
    "both": "both: forward + backward - log p(beginning)",
}
_GIVEN = {"half": "second half", "sentence": "last sentence"}


def render_card(card: ReportCard) -> str:
    """Return a report card as Markdown."""
    lines = [
        f"# Report card: {card.model}",
        "",
        f"Backward {card.model}, forward {card.twin}; {card.data}, {card.loss.texts:,} texts"
        f"{_drawn(card.loss, card.limit)}; context {card.context:,} tokens; seed {card.seed}. "
        f"{INTERVALS}",
        "",
        *_trained(card.trained),
        *_unlike(card.unlike),
        *_loss(card.loss),
        *_by_context(card.by_context, card.loss),
        *_written(card),
        *_obedience(card),
        *_reranked(card.reranked),
        *_bridged(card.bridged),
        *_left_out(card.left_out),
        "## Speed",
        "",
        f"On the machine at hand: {card.speed.one_stream:,.0f} tokens/s writing one text, "
        f"{card.speed.eight_streams:,.0f} writing eight together, "
        f"{card.speed.scored:,.0f} scoring.",
        "",
        _made(card.made),
    ]
    return "\n".join(lines) + "\n"


def render_arrow(report: ArrowReport) -> str:
    """Return what `arrow` measured as Markdown."""
    read = ", read from its end" if report.flipped else ""
    pairs = "1 pair" if len(report.twins) == 1 else f"{len(report.twins)} pairs"
    lines = [
        f"# The arrow of time: {report.source}{read}",
        "",
        f"{pairs} of twins, each of {report.parameters:,} parameters, with a context of "
        f"{report.context:,} tokens, trained for {report.steps:,} steps on "
        f"{report.trained_tokens:,} tokens; measured on {report.loss.texts:,} validation texts"
        f"{_drawn(report.loss, report.limit)}. {INTERVALS}",
        "",
        *_loss(report.loss),
        "| seed | backward | forward | gap |",
        "|---:|---:|---:|---:|",
        *(
            f"| {twins.seed} | {twins.backward:.4f} | {twins.forward:.4f} | {twins.gap:+.4f} |"
            for twins in report.twins
        ),
        "",
        *_by_context(report.by_context, report.loss),
        _made(report.made),
    ]
    return "\n".join(lines) + "\n"


def _made(made: Made) -> str:
    return (
        f"Made with backgpt {made.backgpt} and {made.engine}; the texts have the SHA-256 "
        f"`{made.texts_sha256[:12]}`."
    )


def _drawn(loss: TwinLoss, limit: int | None) -> str:
    """Return how the texts were chosen, where there may be more."""
    return ", drawn at random" if loss.texts == limit else ""


def _trained(trained: tuple[SeenData | None, SeenData | None]) -> Iterator[str]:
    known = [
        f"{way} {one.tokens:,} tokens of {one.data_sha256[:12]} in {one.steps:,} steps"
        for way, one in zip(("backward", "forward"), trained, strict=True)
        if one is not None
    ]
    if known:
        yield f"Trained, each in its last run, on: {'; '.join(known)}."
        yield ""


def _unlike(unlike: Sequence[str]) -> Iterator[str]:
    if unlike:
        yield f"**These are not twins**: they differ in {'; '.join(unlike)}."
        yield "What is called their gap is not that of direction alone."
        yield ""


def _loss(loss: TwinLoss) -> Iterator[str]:
    yield from ("## Loss", "")
    yield "| | nats per token | bits per byte |"
    yield "|---|---:|---:|"
    for name, nats, bits in (
        ("backward", loss.backward, loss.backward_bpb),
        ("forward", loss.forward, loss.forward_bpb),
    ):
        yield f"| {name} | {nats.show()} | {bits.show()} |"
    yield f"| gap, over documents | {loss.gap.show('+.4f')} | {loss.gap_bpb.show('+.4f')} |"
    if loss.gap_over_seeds is not None:
        seeds = f"gap, over {len(loss.gaps)} seeds"
        yield f"| {seeds} | {loss.gap_over_seeds.show('+.4f')} | |"
    yield ""
    if len(loss.gaps) > 1:
        yield f"The mean of {len(loss.gaps)} pairs of twins, trained with a seed each."
    yield (
        f"The gap is backward less forward: {loss.gap.value / loss.forward.value:+.2%} of the "
        "forward loss."
    )
    if loss.gap_over_seeds is None:
        yield "It is that of one pair: another seed may move it by more than its interval says."
    if loss.cut:
        yield f"{loss.cut:,} of {loss.texts:,} texts were longer than the context and cut."
    if loss.gap_of_whole is not None:
        yield f"The gap of the others is {loss.gap_of_whole.show('+.4f')}."
    yield ""


def _by_context(gaps: Sequence[ContextGap], of: TwinLoss) -> Iterator[str]:
    seeds = any(gap.gap_over_seeds is not None for gap in gaps)
    yield from ("## Gap by context", "")
    drawn = f", drawn from all {of.texts:,}" if gaps[0].texts < of.texts else ""
    yield f"{gaps[0].texts:,} texts{drawn}, cut into pieces of about equal length so"
    yield "that no more than so many tokens can be seen. What begins within a text is new to models"
    yield "that met whole ones."
    yield ""
    yield f"| context | backward | forward | gap |{' gap, over seeds |' if seeds else ''}"
    yield f"|---:|---:|---:|---:|{'---:|' if seeds else ''}"
    for gap in gaps:
        row = f"| {gap.context:,} | {gap.backward:.4f} | {gap.forward:.4f} "
        row += f"| {gap.gap.show('+.4f')} |"
        if seeds:
            row += f" {gap.gap_over_seeds.show('+.4f') if gap.gap_over_seeds else ''} |"
        yield row
    yield ""


def _written(card: ReportCard) -> Iterator[str]:
    yield from ("## What it writes", "")
    most = card.max_new_tokens
    settings = "the default settings" if most is None else f"most {most:,} new tokens"
    yield f"{card.generated.texts} texts toward {card.endings} endings, at {settings}, beside"
    yield f"{card.human.texts} of the held-out texts. Endings, which the model is given, are left"
    yield "out of both, but for the twin's nats:"
    yield from ("", "| | written | human |", "|---|---:|---:|")
    others = f"the other {card.loss.texts - card.human.texts:,} held-out texts"
    for label, generated, human in statistics_rows(card.generated, card.human, known_from=others):
        yield f"| {label} | {generated} | {human} |"
    fidelity = card.fidelity
    yield ""
    yield f"{fidelity.exact:.1%} end with the given ending, byte for byte. How surprising"
    yield f"{fidelity.endings} endings of held-out texts are to the forward twin, nats per token:"
    yield from ("", "| after what | |", "|---|---:|")
    yield f"| the model wrote | {fidelity.written.show('.3f')} |"
    yield f"| its own author wrote | {fidelity.human.show('.3f')} |"
    yield f"| another author wrote | {fidelity.other.show('.3f')} |"
    yield ""


def _obedience(card: ReportCard) -> Iterator[str]:
    if not card.obedience:
        return
    yield from ("## Hints", "")
    yield from ("| asked for | asked | obeyed | happens unasked |", "|---|---:|---:|---:|")
    for kind, result in card.obedience.items():
        unasked = share_of(card.unasked.get(kind))
        yield f"| {kind} | {result.asked} | {share_of(result)} | {unasked} |"
    yield ""


def _reranked(found: Sequence[Reranked]) -> Iterator[str]:
    if not found:
        return
    yield from ("## Ranking", "")
    yield f"Which of {found[0].candidates} first halves of texts is the true one, given the second"
    yield "half of a text or only its last sentence; the gain is over the backward model alone:"
    yield from ("", "| given | ranked by | texts | true one first | gain, points |")
    yield "|---|---|---:|---:|---:|"
    for one in found:
        gain = "" if one.method == "backward" else _times_100(one.gain).show("+.1f")
        row = f"| {_GIVEN[one.given]} | {_METHODS[one.method]} | {one.texts} "
        yield f"{row}| {percent(one.first)} | {gain} |"
    yield ""


def _bridged(bridged: Bridged | None) -> Iterator[str]:
    if bridged is None:
        return
    yield from ("## Bridges", "")
    yield f"From the first to the last sentence of {bridged.texts} held-out texts, the best of"
    yield f"{bridged.candidates}; the baseline is the forward twin going on from the opening, cut"
    yield "and joined where it fits best. A seam is chosen by that twin's own surprise, among other"
    yield "things; people's texts with the same choice, joined to their own openings, are `human,"
    yield "cut`. Surprise to the forward twin, nats per token, at the"
    yield f"first {ACROSS} tokens:"
    yield from ("", "| | behind the opening | in the ending | both | words |")
    yield "|---|---:|---:|---:|---:|"
    for name, seams in (
        ("bridge", bridged.bridge),
        ("baseline", bridged.baseline),
        ("human", bridged.human),
        ("human, cut", bridged.human_cut),
    ):
        figures = (seams.opening, seams.ending, seams.both)
        row = " | ".join(figure.show(".3f") for figure in figures)
        yield f"| {name} | {row} | {bridged.mean_words[name]:.0f} |"
    yield ""
    yield f"Surprise over that of people: bridge {percent(bridged.ratio)}, baseline"
    yield f"{percent(bridged.baseline_ratio)}; bridge over people's texts cut alike:"
    yield f"{percent(bridged.ratio_cut)}. In {percent(bridged.wins)} of the texts the bridge"
    yield "fits opening and ending better than the baseline (log p of the opening by the backward"
    yield "model and of the ending by its twin, given all else); as a whole, by both models and per"
    yield f"token, it is the likelier text in {percent(bridged.wins_whole)}."
    yield ""


def _left_out(left_out: Sequence[str]) -> Iterator[str]:
    if left_out:
        yield from ("## Left out", "", *(f"- {what}." for what in left_out), "")


def percent(estimate: Estimate) -> str:
    """Return a share with its interval: `97.5 % [94.0, 99.5]`."""
    return _times_100(estimate).show(".1f").replace(" ", " % ", 1)


def _times_100(estimate: Estimate) -> Estimate:
    return Estimate(**{name: 100 * value for name, value in estimate})
