"""From logits to one id: each step a pure function on one row of plain arrays.

Order of the steps: repetition penalty, DRY, temperature, top-k, top-p, min-p, draw. All works
in float64 on (V,) arrays, so that a sample does not depend on the engine's batch.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from backgpt.checks import check_number, whole
from backgpt.errors import NO_NUMBERS, BackgptError, UsageError

Floats = npt.NDArray[np.float64]

DRY_BASE, DRY_ALLOWED = 1.75, 2
DRY_LONGEST = 20  # a run this long is as unlikely as can be


@dataclass(frozen=True)
class Sampling:
    """How the next id is drawn. `top_k = 1` always takes the likeliest, after the penalties.

    Small models left alone go round in circles. A light penalty on the ids that the text already
    has and a heavy one on going on with what it already says keep them out (LOG.md has figures).
    A `repetition_penalty` of 1 is none, and so is a `dry_multiplier` of 0.
    Raises UsageError for a value outside its range.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.05
    repetition_penalty: float = 1.1
    dry_multiplier: float = 0.8

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "dry_multiplier"):
            check_number(name.replace("_", "-"), getattr(self, name))
        if not self.temperature > 0:
            raise UsageError(
                f"temperature = {self.temperature}: it must be above 0; "
                "to take the likeliest id every time, use top-k = 1"
            )
        if self.top_k is not None:
            whole("top-k", self.top_k, least=1)
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p = {self.top_p}: it must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min-p = {self.min_p}: it must be from 0 to 1")
        if not self.repetition_penalty > 0:
            raise UsageError(
                f"repetition-penalty = {self.repetition_penalty}: it must be above 0; 1 is none"
            )
        if not self.dry_multiplier >= 0:
            raise UsageError(
                f"dry-multiplier = {self.dry_multiplier}: it must be 0 or more; 0 is none"
            )


def draw(
    logits: npt.NDArray[np.floating],
    sampling: Sampling,
    random: np.random.Generator,
    *,
    text_ids: npt.NDArray[np.int64],
    apart: npt.NDArray[np.bool_],
) -> int:
    """Draw one id from (V,) `logits`. Raises BackgptError if one of them is not a number.

    `text_ids`, (T,), are those the text has so far; `apart`, (V,) bool, are the ids
    that do not go on inside a word; (1,) says it of all.
    """
    scores = penalize(logits.astype(np.float64), text_ids, sampling.repetition_penalty)
    scores = penalize_runs(scores, text_ids, apart, sampling.dry_multiplier)
    top = scores.max()
    if math.isnan(top):
        raise BackgptError(NO_NUMBERS)
    if sampling.top_k == 1:
        return int(np.argmax(scores))
    ids = np.arange(len(scores))
    if sampling.min_p > 0 and sampling.top_p == 1:
        # Dropping the unlikely first gives the same draw, and little is left to compute with.
        ids = np.flatnonzero(scores >= top + sampling.temperature * math.log(sampling.min_p))
    with np.errstate(over="ignore"):  # at a tiny temperature all but the likeliest vanish
        probabilities = softmax((scores[ids] - top) / sampling.temperature)
    if sampling.top_k is not None:
        probabilities = keep_top_k(probabilities, sampling.top_k)
    if sampling.top_p < 1:
        probabilities = keep_top_p(probabilities, sampling.top_p)
    if sampling.min_p > 0:
        probabilities = keep_min_p(probabilities, sampling.min_p)
    return int(ids[pick(probabilities, random.random())])


def penalize(scores: Floats, text_ids: npt.NDArray[np.int64], penalty: float) -> Floats:
    """Make ids less likely that the text already has: CTRL's penalty (Keskar et al. 2019)."""
    if penalty == 1:
        return scores
    penalized, of_text = scores.copy(), scores[text_ids]
    penalized[text_ids] = np.where(of_text > 0, of_text / penalty, of_text * penalty)
    return penalized


def penalize_runs(
    scores: Floats,
    text_ids: npt.NDArray[np.int64],
    apart: npt.NDArray[np.bool_],
    multiplier: float,
) -> Floats:
    """Make ids less likely that would go on with what the text already says: DRY (p-e-w 2024).

    An id that stands in the text behind the same n ids that the text now ends with, 2 or more,
    loses `multiplier` * 1.75 ** (n - 2), unless it goes on inside a word: a name that was begun is
    ended. Other than in other versions, line breaks and quotes do not interrupt what is alike.
    """
    ends = np.flatnonzero(text_ids[:-1] == text_ids[-1:])  # where the same may have been said
    if multiplier == 0 or not len(ends) or not apart.any():
        return scores
    n_alike = np.zeros(len(scores), dtype=np.int64)
    for n in range(1, DRY_LONGEST + 1):
        if not len(ends):
            break
        n_alike[text_ids[ends + 1]] = n
        ends = ends[ends >= n]
        ends = ends[text_ids[ends - n] == text_ids[-1 - n]]
    ids = np.flatnonzero((n_alike >= DRY_ALLOWED) & apart)
    if not len(ids):
        return scores
    penalized = scores.copy()
    penalized[ids] -= multiplier * DRY_BASE ** (n_alike[ids] - float(DRY_ALLOWED))
    return penalized


def softmax(scores: Floats) -> Floats:
    """Return probabilities; minus infinity becomes exactly 0."""
    weights: Floats = np.exp(scores - scores.max())
    probabilities: Floats = weights / weights.sum()
    return probabilities


def logprob_of(id_: int, scores: Floats) -> float:
    """Return the log-probability in nats of one id: its value in the log-softmax of (V,) scores."""
    top = scores.max()
    return float(scores[id_] - top - np.log(np.exp(scores - top).sum()))


def likeliest(allowed: Floats, n: int, scores: Floats) -> tuple[tuple[int, float], ...]:
    """Return the `n` likeliest of ids whose (V,) `allowed` is above minus infinity.

    Each comes with its log-probability in nats, its value in the log-softmax of (V,) `scores`.
    """
    if not n:
        return ()
    n = min(n, int(np.count_nonzero(allowed > -np.inf)))
    ids = _likeliest_first(allowed, np.partition(allowed, -n)[-n])[:n]
    top = scores.max()
    logprobs = scores[ids] - top - np.log(np.exp(scores - top).sum())
    return tuple(zip(ids.tolist(), logprobs.tolist(), strict=True))


def keep_top_k(probabilities: Floats, k: int) -> Floats:
    """Keep the `k` likeliest ids; of equals at the edge, those with the smaller id."""
    if k >= np.count_nonzero(probabilities):
        return probabilities
    least = np.partition(probabilities, -k)[-k]
    return _only(probabilities, _likeliest_first(probabilities, least)[:k])


def keep_top_p(probabilities: Floats, p: float) -> Floats:
    """Keep the fewest likeliest ids that together reach `p` (Holtzman et al. 2019)."""
    total = probabilities.sum()
    # All ids below this together are less than the part that is dropped: no need to sort them.
    likeliest = _likeliest_first(probabilities, total * (1 - p) / len(probabilities))
    reached = np.cumsum(probabilities[likeliest])
    count = int(np.searchsorted(reached, p * total)) + 1
    return _only(probabilities, likeliest[:count])


def keep_min_p(probabilities: Floats, p: float) -> Floats:
    """Keep ids at least `p` times as likely as the likeliest (Nguyen et al. 2024)."""
    return _only(probabilities, np.flatnonzero(probabilities >= p * probabilities.max()))


def pick(probabilities: Floats, uniform: float) -> int:
    """Return the id at which the cumulative probability passes `uniform`, from [0, 1)."""
    cumulative = np.cumsum(probabilities)
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return min(index, int(np.flatnonzero(probabilities)[-1]))


def _likeliest_first(probabilities: Floats, least: float) -> npt.NDArray[np.intp]:
    """Return the ids of probabilities from `least` up; of equals the smaller id first."""
    ids = np.flatnonzero(probabilities >= least)
    return ids[np.argsort(-probabilities[ids], kind="stable")]


def _only(probabilities: Floats, keep: npt.NDArray[np.intp]) -> Floats:
    kept = np.zeros_like(probabilities)
    kept[keep] = probabilities[keep]
    kept /= kept.sum()
    return kept
