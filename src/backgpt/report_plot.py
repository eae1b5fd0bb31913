"""Reports as pictures. Needs matplotlib (extra `train` or `eval`)."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from backgpt.errors import needs_extra
from backgpt.intervals import Estimate
from backgpt.report import ArrowReport, ContextGap, ReportCard

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BACKWARD, FORWARD, GRAY = "#1f4e79", "#c8553d", "#8a8f98"


def check_plotting() -> None:
    """Raise MissingExtraError if there is no matplotlib."""
    with needs_extra("eval", "drawing a report"):
        import matplotlib  # noqa: F401


def plot_card(card: ReportCard) -> bytes:
    """Return a report card's picture as PNG."""
    figure, axes = _figure(2, 2, size=(11, 8))
    _losses_by_context(axes[0][0], card.by_context)
    _gap_by_context(axes[0][1], card.by_context)
    if card.reranked:
        ranked = [(f"{one.method},\n{one.given}", one.first) for one in card.reranked]
        _bars(axes[1][0], ranked, title="true beginning ranked first", colors=_by_method(ranked))
    if card.bridged is not None:
        bridged = card.bridged
        seams = [
            (name, figures.both)
            for name, figures in (
                ("human", bridged.human),
                ("human, cut", bridged.human_cut),
                ("bridge", bridged.bridge),
                ("baseline", bridged.baseline),
            )
        ]
        _bars(
            axes[1][1],
            seams,
            title="surprise behind the seams of bridges, nats per token",
            colors=[GRAY, GRAY, BACKWARD, FORWARD],
        )
    for left_out in (one for one in axes.flat if not one.has_data()):
        left_out.set_visible(False)
    figure.suptitle(f"{card.model} on {card.data}", parse_math=False)
    return _png(figure)


def plot_arrow(report: ArrowReport) -> bytes:
    """Return the picture of what `arrow` measured as PNG."""
    figure, axes = _figure(1, 3, size=(14, 4.2))
    _losses_by_context(axes[0][0], report.by_context)
    _gap_by_context(axes[0][1], report.by_context)
    last = axes[0][2]
    seeds = [str(twins.seed) for twins in report.twins]
    last.plot(seeds, [twins.gap for twins in report.twins], "o", color=BACKWARD)
    last.axhline(0, color="black", linewidth=0.8)
    last.axhspan(report.loss.gap.low, report.loss.gap.high, color=GRAY, alpha=0.25, linewidth=0)
    last.set(title="gap of each pair; band: over documents", xlabel="seed")
    title = f"{report.source}{', read from its end' if report.flipped else ''}"
    figure.suptitle(title, parse_math=False)
    return _png(figure)


def _losses_by_context(axes: "Axes", gaps: Sequence[ContextGap]) -> None:
    contexts = [gap.context for gap in gaps]
    axes.plot(contexts, [gap.backward for gap in gaps], "o-", color=BACKWARD, label="backward")
    axes.plot(contexts, [gap.forward for gap in gaps], "o-", color=FORWARD, label="forward")
    axes.set(title="loss, nats per token", xlabel="context, tokens")
    axes.legend(frameon=False)
    _log_axis(axes, contexts)


def _gap_by_context(axes: "Axes", gaps: Sequence[ContextGap]) -> None:
    contexts = [gap.context for gap in gaps]
    _errorbar(axes, contexts, [gap.gap for gap in gaps], color=BACKWARD, label="over documents")
    over_seeds = [(gap.context, gap.gap_over_seeds) for gap in gaps if gap.gap_over_seeds]
    if over_seeds:
        aside = (contexts[-1] / contexts[0]) ** 0.02  # of the axis, which is a logarithm's
        moved = [context * aside for context, _ in over_seeds]
        _errorbar(axes, moved, [seeds for _, seeds in over_seeds], color=GRAY, label="over seeds")
        axes.legend(frameon=False)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(title="gap: backward less forward, nats per token", xlabel="context, tokens")
    _log_axis(axes, contexts)


def _bars(
    axes: "Axes", found: Sequence[tuple[str, Estimate]], *, title: str, colors: Sequence[str]
) -> None:
    names, values = [name for name, _ in found], [estimate for _, estimate in found]
    axes.bar(names, [value.value for value in values], color=colors, width=0.65)
    places = list(range(len(values)))
    _errorbar(axes, places, values, color="black", line="none")
    axes.set(title=title)


def _by_method(ranked: Sequence[tuple[str, Estimate]]) -> list[str]:
    color = {"backward": BACKWARD, "forward": FORWARD, "both": GRAY}
    return [color[name.split(",")[0]] for name, _ in ranked]


def _errorbar(
    axes: "Axes",
    places: Sequence[float],
    values: Sequence[Estimate],
    *,
    color: str,
    label: str | None = None,
    line: str = "-",
) -> None:
    # A bootstrap's interval need not hold the figure, were it only for rounding.
    below = [max(value.value - value.low, 0) for value in values]
    above = [max(value.high - value.value, 0) for value in values]
    axes.errorbar(
        places,
        [value.value for value in values],
        yerr=[below, above],
        color=color,
        label=label,
        linestyle=line,
        marker="o" if line != "none" else None,
        capsize=3,
    )


def _log_axis(axes: "Axes", contexts: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [str(context) for context in contexts])
    axes.minorticks_off()


def _figure(rows: int, columns: int, *, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=130, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.grid(alpha=0.25)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
