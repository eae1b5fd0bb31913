"""What two twins can do together: judge endings, rank beginnings, bridge; and how fast.

Takes a backward model, its forward twin and held-out texts; gives figures that `report` defines.
Everything but speed follows from a seed.
"""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from backgpt.api import Model
from backgpt.bridge import ACROSS, join
from backgpt.evaluate import Sample, choose, last_sentence
from backgpt.generate import Text
from backgpt.hints import words_of
from backgpt.intervals import Estimate, of_share, over_documents
from backgpt.order import ReadingIds
from backgpt.rank import Method, goodness, parts_of
from backgpt.report import Bridged, Fidelity, Reranked, Seams, Speed
from backgpt.score import context_size
from backgpt.slices import finished

CANDIDATES = 8  # beginnings that are ranked, one of them true
SPEED_TOKENS = 128
SPEED_TEXTS = 64

_SENTENCE_END = re.compile(r"[.!?][\"']?(?=\s)")

Given = Literal["half", "sentence"]


class Cut(NamedTuple):
    """A text in three parts; the middle has the white space at its edges."""

    opening: str
    middle: str
    ending: str


def cut_in_half(text: str) -> tuple[str, str] | None:
    """Cut a text between two sentences nearest its middle; None if it has just one."""
    places = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not places:
        return None
    place = min(places, key=lambda place: abs(place - len(text) / 2))
    return text[:place], text[place:]


def cut_in_three(text: str) -> Cut | None:
    """Cut a text into first sentence, middle, last sentence; None without anything between."""
    ending = last_sentence(text)
    first = _SENTENCE_END.search(text)
    rest = len(text) - len(ending)
    if first is None or not text[first.end() : rest].strip():
        return None
    return Cut(text[: first.end()], text[first.end() : rest], ending)


def measure_fidelity(
    samples: Sequence[Sample], texts: Sequence[str], twin: Model, *, seed: int
) -> Fidelity:
    """Return how well endings fit the `samples` written toward them, by the forward `twin`.

    Of the samples, the first for each ending that is the last sentence of one of `texts`. Of what
    stands before an ending, `twin` reads as much as fits, from its end. Raises DataError if there
    are fewer than two such endings.
    """
    authors = {last_sentence(text): text for text in texts}
    first: dict[str, Sample] = {}
    for sample in samples:
        if sample.ending in authors:
            first.setdefault(sample.ending, sample)
    endings = list(first)
    room = context_size(twin) - 1  # beside the marker that is read
    written = [first[ending].text.text.removesuffix(ending) for ending in endings]
    human = [authors[ending].removesuffix(ending) for ending in endings]
    others = [*human[1:], human[0]]

    def surprise(beginnings: Sequence[str]) -> Estimate:
        parts = [parts_of(twin.tokenizer, *pair) for pair in zip(beginnings, endings, strict=True)]
        read = [(ReadingIds(b[max(len(b) + len(e) - room, 0) :]), e) for b, e in parts]
        own = goodness(read, "forward", writer=twin, twin=None)
        return over_documents([-value for value in own], seed=seed)

    return Fidelity(
        endings=len(endings),
        exact=sum(s.text.text.endswith(s.ending) for s in samples) / len(samples),
        written=surprise(written),
        human=surprise(human),
        other=surprise(others),
    )


def halves_of(
    model: Model, twin: Model, texts: Sequence[str], n: int, *, seed: int
) -> list[tuple[str, str]]:
    """Return the halves of up to `n` of `texts`, drawn by `seed`.

    Texts of one sentence and those that do not fit are left out, and of several that begin alike,
    which nobody could tell apart, all but one.
    """
    longest = (min(model.engine.block_size, twin.engine.block_size) - 4) // 2
    encode = model.tokenizer.encode
    halves: dict[str, tuple[str, str]] = {}
    for text in choose(texts, len(texts), seed=seed):
        if len(halves) == n:
            break
        cut = cut_in_half(text)
        if cut is not None and max(len(encode(half)) for half in cut) <= longest:
            halves.setdefault(cut[0], cut)
    return list(halves.values())


def measure_reranking(
    model: Model, twin: Model, halves: Sequence[tuple[str, str]], *, given: Given, seed: int
) -> tuple[Reranked, ...]:
    """Return how often the true beginning of a text is ranked first among several, by each method.

    Beginnings are first `halves`; the others are those of other texts, drawn by `seed`. What is
    `given` is the second half of the text, or its last sentence.
    """
    random = np.random.default_rng([seed, 0])
    rows = []
    for number, (_, second) in enumerate(halves):
        others = random.choice(len(halves) - 1, CANDIDATES - 1, replace=False)
        after = second if given == "half" else last_sentence(second)
        for place in (number, *(int(other) + (int(other) >= number) for other in others)):
            rows.append(parts_of(model.tokenizer, halves[place][0], after))
    methods: tuple[Method, ...] = get_args(Method)
    first: dict[Method, list[bool]] = {}
    for method in methods:
        scores = np.reshape(goodness(rows, method, writer=model, twin=twin), (-1, CANDIDATES))
        first[method] = [own > max(others) for own, *others in scores.tolist()]

    def gain(method: Method) -> list[float]:
        pairs = zip(first[method], first["backward"], strict=True)
        return [float(found) - float(alone) for found, alone in pairs]

    return tuple(
        Reranked(
            given=given,
            method=method,
            texts=len(halves),
            candidates=CANDIDATES,
            first=of_share(first[method]),
            gain=over_documents(gain(method), seed=seed),
        )
        for method in methods
    )


def cuts_to_bridge(
    model: Model, twin: Model, texts: Sequence[str], n: int, *, seed: int
) -> list[Cut]:
    """Return up to `n` of `texts`, drawn by `seed`, cut where bridges are to begin and end.

    Texts with nothing in between, or longer than half of the context, are left out.
    """
    longest = min(model.engine.block_size, twin.engine.block_size) // 2
    cuts: list[Cut] = []
    for index in np.random.default_rng([seed, 1]).permutation(len(texts)):
        if len(cuts) == n:
            break
        cut = cut_in_three(texts[index])
        if cut is not None and len(model.tokenizer.encode(texts[index])) <= longest:
            cuts.append(cut)
    return cuts


def measure_bridges(
    model: Model, twin: Model, cuts: Sequence[Cut], *, candidates: int, seed: int
) -> Bridged:
    """Return what bridges from the openings to the endings of `cuts` are like.

    For each the best of `candidates` is taken, and so for the baseline, which `twin` writes.
    """
    found: dict[str, list[Cut]] = {"human": list(cuts), "bridge": [], "baseline": []}
    for number, cut in enumerate(cuts):
        for name, writer, other in (("bridge", model, twin), ("baseline", twin, model)):
            best = writer.bridge(
                cut.opening, cut.ending, n=candidates, twin=other, seed=seed + number
            )[0]
            found[name].append(Cut(best.opening, best.middle, best.ending))
    found["human, cut"] = [_cut_alike(model, twin, cut) for cut in cuts]
    surprise = {name: _surprise(twin, of) for name, of in found.items()}
    fit, likely = (
        {name: of(model, twin, found[name]) for name in ("bridge", "baseline")}
        for of in (_fit, _likely)
    )

    def ratio(name: str, over: str = "human") -> Estimate:
        both = ([sum(pair) for pair in surprise[of]] for of in (name, over))
        return over_documents(*both, seed=seed)

    def wins(values: Mapping[str, Sequence[float]]) -> Estimate:
        pairs = zip(values["bridge"], values["baseline"], strict=True)
        return of_share([bridge > other for bridge, other in pairs])

    return Bridged(
        texts=len(cuts),
        candidates=candidates,
        bridge=_seams(surprise["bridge"], seed),
        baseline=_seams(surprise["baseline"], seed),
        human=_seams(surprise["human"], seed),
        human_cut=_seams(surprise["human, cut"], seed),
        ratio=ratio("bridge"),
        ratio_cut=ratio("bridge", over="human, cut"),
        baseline_ratio=ratio("baseline"),
        wins=wins(fit),
        wins_whole=wins(likely),
        mean_words={name: _mean_words(of) for name, of in found.items()},
    )


def measure_speed(model: Model, texts: Sequence[str]) -> Speed:
    """Return tokens per second on this machine, after a first short text."""
    ending = last_sentence(texts[0])
    model.write(ending, max_new_tokens=8, seed=0)

    def written(n: int) -> float:
        started = time.perf_counter()
        made = model.write(ending, n=n, max_new_tokens=SPEED_TOKENS, seed=0)
        return sum(text.n_tokens for text in made) / (time.perf_counter() - started)

    one, eight = written(1), written(8)
    started = time.perf_counter()
    scores = model.score_all(texts[:SPEED_TEXTS])
    scored = sum(score.n_tokens for score in scores) / (time.perf_counter() - started)
    return Speed(one_stream=one, eight_streams=eight, scored=scored)


def _cut_alike(model: Model, twin: Model, cut: Cut) -> Cut:
    """Return a text joined to its own opening where a bridge would be, had `model` written it."""
    ids = model.tokenizer.encode("".join(cut))
    ids = ReadingIds(ids[: len(ids) - len(model.tokenizer.encode_fragment(cut.ending))])
    text = Text(
        text="".join(cut),
        given=cut.ending,
        finish_reason="stop",
        logprob=0.0,
        n_tokens=len(ids),
        seed=0,
        ids=model.language.order.to_model(ids),
    )
    [joined] = finished(join(model, twin, [text], cut.opening))
    return Cut(joined.opening, joined.middle, joined.ending)


def _surprise(twin: Model, cuts: Sequence[Cut]) -> list[tuple[float, float]]:
    """Return nats per token behind the opening and from the ending on, of each text."""
    encode = twin.tokenizer.encode
    found = []
    for cut, score in zip(cuts, twin.score_all(["".join(cut) for cut in cuts]), strict=True):
        values = score.token_logprobs[1:-1]
        behind = len(encode(cut.opening.rstrip(" \n")))
        ending = len(values) - len(twin.tokenizer.encode_fragment(cut.ending))
        seams = (values[place : place + ACROSS] for place in (behind, ending))
        opening, closing = (-float(ids.mean(dtype=np.float64)) for ids in seams)
        found.append((opening, closing))
    return found


def _fit(model: Model, twin: Model, cuts: Sequence[Cut]) -> list[float]:
    """Return log p in nats of each opening and ending, given all else of the text."""
    texts = ["".join(cut) for cut in cuts]
    encode, tokenizer = model.tokenizer.encode, model.tokenizer
    found = []
    for cut, b, f in zip(cuts, model.score_all(texts), twin.score_all(texts), strict=True):
        n_opening = len(encode(cut.opening.rstrip(" \n"))) + 1  # with the marker
        n_ending = len(tokenizer.encode_fragment(cut.ending)) + 1
        parts = (b.token_logprobs[:n_opening], f.token_logprobs[-n_ending:])
        found.append(sum(float(part.sum(dtype=np.float64)) for part in parts))
    return found


def _likely(model: Model, twin: Model, cuts: Sequence[Cut]) -> list[float]:
    """Return what both models say of each text together, in nats per token."""
    texts = ["".join(cut) for cut in cuts]
    scores = zip(model.score_all(texts), twin.score_all(texts), strict=True)
    return [(b.logprob + f.logprob) / b.n_tokens for b, f in scores]


def _seams(surprise: Sequence[tuple[float, float]], seed: int) -> Seams:
    opening, ending = (list(values) for values in zip(*surprise, strict=True))
    both = [sum(pair) / 2 for pair in surprise]
    return Seams(
        opening=over_documents(opening, seed=seed),
        ending=over_documents(ending, seed=seed),
        both=over_documents(both, seed=seed),
    )


def _mean_words(cuts: Sequence[Cut]) -> float:
    return sum(len(words_of("".join(cut))) for cut in cuts) / len(cuts)
