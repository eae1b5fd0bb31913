"""What is measured of twins: figures with intervals, as they stand in a report's JSON.

`report_text` and `report_plot` render them. Gaps are backward less forward; a loss is in nats per
token, `bpb` in bits per byte.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator

from backgpt.card import Obedience, Statistics
from backgpt.config import Settings
from backgpt.errors import printable
from backgpt.hints import Kind
from backgpt.intervals import Estimate
from backgpt.model_folder import SeenData

Name = Annotated[str, AfterValidator(printable)]
"""Of a model or a file, which may hold what cannot be written."""

FIGURES = (
    "losses, gaps and surprise in nats per token, *_bpb in bits per byte, shares and gains of 1, "
    "speed in tokens per second; low and high are the bounds of intervals of 95 %"
)


class Made(Settings):
    """What another run of the same code has to have for the same figures.

    `engine` is that of the first model, and the numbers it computes in; `texts_sha256` is of the
    held-out texts as UTF-8, with a NUL between them. `figures` says what the others are in.
    """

    backgpt: str
    engine: str
    texts_sha256: str
    figures: str = FIGURES


class TwinLoss(Settings):
    """What twins lose on the same texts; intervals are over documents.

    `gaps` has one entry a pair of twins; with several, trained with different seeds,
    `gap_over_seeds` has the interval over those. `cut` texts were longer than the context;
    `gap_of_whole` is that of the others, if some were cut and two were not.
    """

    texts: int
    tokens: int
    cut: int
    backward: Estimate
    forward: Estimate
    gap: Estimate
    backward_bpb: Estimate
    forward_bpb: Estimate
    gap_bpb: Estimate
    gaps: tuple[float, ...]
    gap_over_seeds: Estimate | None = None
    gap_of_whole: Estimate | None = None


class ContextGap(Settings):
    """Losses and gap on some texts where no more than `context` ids can be seen."""

    context: int
    texts: int
    backward: float
    forward: float
    gap: Estimate
    gap_over_seeds: Estimate | None = None


class Twins(Settings):
    """How a pair of twins ended: losses in nats per token on all validation texts."""

    seed: int
    backward: float
    forward: float
    gap: float


class ArrowReport(Settings):
    """The arrow of time in one source of text, by small twins trained on it.

    At most `limit` validation texts, if that was given, are drawn by `seed`, which is not one of
    those that twins are trained with.
    """

    source: Name
    flipped: bool
    limit: int | None = None
    made: Made
    seed: int
    parameters: int
    context: int
    steps: int
    trained_tokens: int
    loss: TwinLoss
    twins: tuple[Twins, ...]
    by_context: tuple[ContextGap, ...]


class Fidelity(Settings):
    """How well given endings fit what was written toward them.

    `exact` is the share of texts that end with theirs, byte for byte. The rest are nats per token
    of an ending and its marker by the forward twin, the mean over endings: after what the model
    wrote, after what the author wrote, and after what another author wrote.
    """

    endings: int
    exact: float
    written: Estimate
    human: Estimate
    other: Estimate


class Reranked(Settings):
    """How often the true one of some beginnings was ranked first, by one method.

    `gain` is how much more often than by the backward model alone.
    """

    given: Literal["half", "sentence"]
    method: str
    texts: int
    candidates: int
    first: Estimate
    gain: Estimate


class Seams(Settings):
    """How surprising texts are behind their seams, to the forward twin, in nats per token.

    The first ids count, `bridge.ACROSS` of them: `opening` behind the given opening, `ending` from
    the given ending on, `both` the mean of the two.
    """

    opening: Estimate
    ending: Estimate
    both: Estimate


class Bridged(Settings):
    """Bridges from openings to endings of held-out texts, beside what people wrote between them.

    `baseline` is the forward twin going on from the opening, cut and joined at its best place;
    `human_cut` are people's own texts, cut and joined to their own openings as bridges are: part of
    how well a seam fits is that its place was chosen. `ratio` is surprise behind the seams over
    that of people, `ratio_cut` over that of people's texts cut so. `wins` is the share of bridges
    that fit the given texts better than the baseline's do: log p of the opening by the backward
    model and of the ending by its twin, given all else. `wins_whole` is the share likelier as a
    whole, by both models and per token.
    """

    texts: int
    candidates: int
    bridge: Seams
    baseline: Seams
    human: Seams
    human_cut: Seams
    ratio: Estimate
    ratio_cut: Estimate
    baseline_ratio: Estimate
    wins: Estimate
    wins_whole: Estimate
    mean_words: Mapping[str, float]


class Speed(Settings):
    """Tokens per second on the machine at hand: writing one text, eight together, and scoring."""

    one_stream: float
    eight_streams: float
    scored: float


class ReportCard(Settings):
    """What was measured of a backward model and its forward twin on held-out texts.

    At most `limit` texts, if that was given, were drawn by the seed. `context` is the most ids of a
    text that all models read at once. `unlike` says in what the models differ besides direction;
    `trained` what the model and its twin have seen, where it is known. `reranked` is empty and
    `bridged` is None if that was not asked for, or too few texts can be used for it, as `left_out`
    says. All but `speed` is the same when it is measured again.
    """

    model: Name
    twin: Name
    data: Name
    limit: int | None = None
    made: Made
    context: int
    unlike: tuple[str, ...] = ()
    trained: tuple[SeenData | None, SeenData | None] = (None, None)
    seed: int
    loss: TwinLoss
    by_context: tuple[ContextGap, ...]
    endings: int
    max_new_tokens: int | None
    generated: Statistics
    human: Statistics
    fidelity: Fidelity
    obedience: Mapping[Kind, Obedience]
    unasked: Mapping[Kind, Obedience]
    reranked: tuple[Reranked, ...]
    bridged: Bridged | None
    left_out: tuple[str, ...] = ()
    speed: Speed
