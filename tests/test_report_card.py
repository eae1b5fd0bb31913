"""The report card: figures against others computed otherwise, the same again, and its text."""

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import backgpt
from backgpt import evaluate_twins, report_card
from backgpt.api import Model
from backgpt.bridge import Bridge
from backgpt.errors import DataError, UsageError
from backgpt.evaluate import (
    FIXED_ENDINGS,
    Sample,
    choose,
    last_sentence,
    statistics_of,
    vocabulary_of,
)
from backgpt.evaluate_twins import (
    CANDIDATES,
    Cut,
    cut_in_half,
    cut_in_three,
    cuts_to_bridge,
    halves_of,
    measure_bridges,
    measure_fidelity,
    measure_reranking,
)
from backgpt.gap import TwinScores, twin_loss
from backgpt.generate import Text
from backgpt.intervals import Estimate, of_share, over_documents
from backgpt.model_folder import SeenData
from backgpt.order import ModelIds
from backgpt.report import ArrowReport, ReportCard, Twins
from backgpt.report_card import Extent, unlike
from backgpt.report_plot import plot_arrow, plot_card
from backgpt.report_text import render_arrow, render_card
from backgpt.score import Score, score_texts
from backgpt.slices import Slices
from backgpt.tokenizer import Tokenizer
from tiny_models import tiny_model

SMALL = Extent(
    samples=12,
    endings=6,
    hinted=2,
    ranked=9,
    bridged=2,
    candidates=2,
    by_context=4,
    max_new_tokens=6,
)
TEXT = 'One day it rained. "No!" said Tim. He ran home. They all had tea.'
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:
    """A random model both ways that takes hints."""
    return replace(tiny_model(tokenizer), takes_chat=False)


@pytest.fixture(scope="module")
def some(texts: list[str]) -> list[str]:
    """Forty texts of four sentences that begin differently."""
    sentences = [re.findall(r"[^.]+\.", text.replace("\n", " ")) for text in texts]
    short = ["".join(of_text[:4]) for of_text in sentences if len(of_text) > 3]
    return list({(cut_in_half(text) or ("",))[0]: text for text in short}.values())[:40]


def measure(
    pairs: Sequence[tuple[Model, Model]],
    texts: Sequence[str],
    extent: Extent = SMALL,
    say: Callable[[str], None] = lambda _: None,
) -> ReportCard:
    return report_card.report_card(
        pairs, texts, names=("mine", "its twin"), data="some.jsonl", extent=extent, seed=3, say=say
    )


@pytest.fixture(scope="module")
def card(model: Model, some: list[str]) -> ReportCard:
    return measure([(model, model.turned())], some)


def test_a_card_tells_code_engine_and_texts(
    card: ReportCard, model: Model, some: list[str]
) -> None:
    assert card.made.backgpt == backgpt.__version__
    assert card.made.engine == repr(model.engine)
    texts = b"\0".join(text.encode() for text in some)
    assert card.made.texts_sha256 == hashlib.sha256(texts).hexdigest()
    assert f"backgpt {backgpt.__version__} and {card.made.engine}; " in render_card(card)
    assert card.made.texts_sha256[:12] in render_card(card)
    assert "nats per token" in card.made.figures
    assert "intervals of 95 %" in card.made.figures


@pytest.mark.slow
def test_measured_again_everything_but_speed_is_the_same(
    card: ReportCard, model: Model, some: list[str]
) -> None:
    again = measure([(model, model.turned())], some)
    assert again.model_copy(update={"speed": card.speed}) == card
    assert plot_card(again) == plot_card(card)
    assert all(value > 0 for _, value in card.speed)


def test_the_loss_is_that_of_all_texts(card: ReportCard, model: Model, some: list[str]) -> None:
    twins = TwinScores(model.score_all(some), model.turned().score_all(some))
    assert card.loss == twin_loss([twins], seed=3)
    assert (card.loss.texts, card.context) == (40, 255)
    assert card.loss.gap.value == pytest.approx(card.loss.backward.value - card.loss.forward.value)
    longest = max(score.n_tokens for score in twins.backward)
    contexts = [gap.context for gap in card.by_context]
    assert contexts == [16, 32, 64, *([longest] if longest <= 128 else [128, longest])]
    chosen = choose(some, 4, seed=3)
    last = card.by_context[-1]
    both = (one.score_all(chosen) for one in (model, model.turned()))
    assert (last.texts, last.gap) == (4, twin_loss([TwinScores(*both)], seed=3).gap)


def test_what_twins_differ_in_is_told(card: ReportCard, model: Model, some: list[str]) -> None:
    assert card.unlike == ()
    assert "not twins" not in render_card(card)
    other = tiny_model(model.tokenizer, direction="forward", hints=False, n_layer=1)
    found = measure([(model, replace(other, takes_chat=False))], some).unlike
    assert found == ("n_layer = 2, 1", "hints = True, False")
    told = render_card(card.model_copy(update={"unlike": found}))
    assert "**These are not twins**: they differ in n_layer = 2, 1; hints = True, False." in told


def test_what_twins_have_seen_is_told_and_compared(
    card: ReportCard, model: Model, some: list[str]
) -> None:
    assert "Trained" not in render_card(card)
    backward = replace(model, trained=SeenData(steps=40, tokens=36_708, data_sha256="ab" * 32))
    forward = replace(model.turned(), trained=SeenData(10, 9_111, "ab" * 32))
    found = measure([(backward, forward)], some, replace(SMALL, ranked=0, bridged=0))
    assert found.trained == (backward.trained, forward.trained)
    assert found.unlike == ("training tokens = 36,708, 9,111",)
    text = render_card(found)
    assert "on: backward 36,708 tokens of abababababab in 40 steps; forward 9,111" in text
    assert "## Ranking" not in text
    assert "## Bridges" not in text
    assert "## Left out" not in text
    assert plot_card(found).startswith(PNG)
    assert unlike((backward, model.turned())) == ()  # of one it is not known
    other = replace(forward, trained=SeenData(40, 36_708, "cd" * 32))
    data = "training data = abababababab, cdcdcdcdcdcd"
    assert unlike((backward, other)) == (data,)
    second = replace(backward, trained=SeenData(40, 36_901, "ab" * 32))  # as another seed has it
    assert unlike((backward, replace(other, trained=backward.trained)), (second, second)) == ()
    assert unlike((second, second), (backward, other)) == (data,)
    chats = [replace(one, takes_chat=True) for one in (backward, forward)]
    assert unlike((chats[0], chats[1])) == ()


def test_known_words_are_those_of_the_texts_that_are_not_compared(
    card: ReportCard, some: list[str]
) -> None:
    human = choose(some, 12, seed=3)
    others = vocabulary_of(text for text in some if text not in human)
    endings = [last_sentence(text) for text in human]
    expected = statistics_of(human, others, endings=endings)
    assert card.human.known_words == expected.known_words < 1
    assert card.human.mean_words == expected.mean_words
    assert (card.human.texts, card.generated.texts, card.endings) == (12, 12, 6)
    assert card.generated.reached_edge is not None
    assert card.human.nats_per_token is not None


def test_hints_are_asked_for_and_kept_back(card: ReportCard) -> None:
    assert set(card.obedience) == set(card.unasked) == {"opening", "words", "length"}
    assert card.obedience["words"].asked == card.unasked["words"].asked == 2


@pytest.mark.slow
def test_twins_with_different_contexts_are_cut_at_the_same_places(
    card: ReportCard, model: Model, tokenizer: Tokenizer, some: list[str], texts: list[str]
) -> None:
    """And a model that takes no hints is not asked to."""
    long = max(texts, key=len)
    plain = replace(model, takes_hints=False)
    twin = tiny_model(tokenizer, direction="forward", told=False, seed=9, block_size=200)
    twin = replace(twin, takes_chat=False)
    other = measure([(plain, twin)], [*some, long])
    assert other.context == 200
    both = [score_texts(one, [*some, long], context=200) for one in (plain, twin)]
    assert both[0][-1].n_windows == both[1][-1].n_windows > 1
    assert other.loss == twin_loss([TwinScores(*both)], seed=3)
    assert other.loss.cut == 1
    assert other.obedience == other.unasked == {}
    assert "## Hints" not in render_card(other)
    assert "## Hints" in render_card(card)


@pytest.mark.slow
def test_pairs_of_other_seeds_count_for_the_loss_and_its_interval(
    model: Model, tokenizer: Tokenizer, some: list[str]
) -> None:
    other = replace(tiny_model(tokenizer, seed=5), takes_chat=False)
    pairs = [(model, model.turned()), (other, other.turned())]
    card = measure(pairs, some)
    scores = [TwinScores(b.score_all(some), f.score_all(some)) for b, f in pairs]
    assert card.loss == twin_loss(scores, seed=3)
    assert len(card.loss.gaps) == 2
    assert card.loss.gap_over_seeds is not None
    assert all(gap.gap_over_seeds is not None for gap in card.by_context)
    text = render_card(card)
    assert "| gap, over documents |" in text
    assert "| gap, over 2 seeds |" in text
    assert "| gap, over seeds |" in text
    assert "mean of 2 pairs" in text
    plot_card(card)


def test_the_text_has_every_figure_and_says_what_it_is(card: ReportCard) -> None:
    text = render_card(card)
    for estimate in (card.loss.backward, card.loss.forward_bpb, card.loss.backward_bpb):
        assert f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]" in text
    gap = card.loss.gap
    assert f"| gap, over documents | {gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]" in text
    assert "over 1 seeds" not in text
    for one in card.by_context:
        assert f"| {one.context:,} | {one.backward:.4f} | {one.forward:.4f} |" in text
    assert (
        f"| words that occur in the other 28 held-out texts | {card.generated.known_words:.2%}"
        in (text)
    )
    assert "training texts" not in text
    assert "at most 6 new tokens" in text
    assert f"| the model wrote | {card.fidelity.written.value:.3f}" in text
    for ranked in card.reranked:
        first = ranked.first
        shares = f"{100 * first.value:.1f} % [{100 * first.low:.1f}, {100 * first.high:.1f}]"
        assert f"| {shares} |" in text
    assert f"{card.speed.scored:,.0f} scoring" in text
    assert plot_card(card).startswith(PNG)
    columns = [line.count("|") - line.count("\\|") for line in text.splitlines() if line[:1] == "|"]
    assert set(columns) <= {3, 4, 5, 6}


def test_an_arrow_is_rendered_with_each_pair_and_named_intervals(card: ReportCard) -> None:
    loss = card.loss
    report = ArrowReport(
        source="some texts",
        flipped=True,
        made=card.made,
        seed=0,
        parameters=1_234_567,
        context=256,
        steps=1000,
        trained_tokens=98_765,
        loss=loss,
        twins=(Twins(seed=7, backward=2.5, forward=2.25, gap=0.25),),
        by_context=card.by_context,
    )
    text = render_arrow(report)
    assert text.startswith("# The arrow of time: some texts, read from its end\n")
    assert "1 pair of twins, each of 1,234,567 parameters" in text
    assert "| 7 | 2.5000 | 2.2500 | +0.2500 |" in text
    assert "40 validation texts" in text
    assert "one pair: another seed may move it" in text
    assert text.endswith(f"the texts have the SHA-256 `{card.made.texts_sha256[:12]}`.\n")
    several = loss.model_copy(update={"gap_over_seeds": Estimate(value=0.2, low=0.1, high=0.3)})
    assert "one pair" not in render_arrow(report.model_copy(update={"loss": several}))
    assert plot_arrow(report) == plot_arrow(report)
    assert plot_arrow(report).startswith(PNG)


def test_names_of_all_kinds_are_drawn_and_written(card: ReportCard) -> None:
    """Between two dollar signs matplotlib would read mathematics, and fail at most of it."""
    values = {**dict(card), "model": "runs/US$1", "data": "inv\udcff_$.txt"}
    named = ReportCard.model_validate(values)
    assert plot_card(named).startswith(PNG)
    assert "inv\\udcff_$.txt" in render_card(named).encode().decode()
    assert ReportCard.model_validate_json(named.model_dump_json()) == named


def test_a_figure_outside_its_interval_is_drawn_too(card: ReportCard) -> None:
    """As rounding may have it, or a bootstrap of very few texts."""
    first = card.by_context[0]
    odd = first.gap.model_copy(update={"low": first.gap.value + 1e-9})
    moved = card.model_copy(update={"by_context": (first.model_copy(update={"gap": odd}),)})
    assert plot_card(moved).startswith(PNG)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"samples": 0}, "samples = 0"),
        ({"samples": 13}, "samples = 13: it must be a multiple of endings = 6"),
        ({"endings": 24}, "samples = 12: it must be a multiple of endings = 24"),
        ({"endings": 5}, "endings = 5: it must be 6 or more"),
        ({"hinted": -1}, "hinted = -1"),
        ({"ranked": CANDIDATES - 1}, "ranked = 7: it must be 8 or more, or 0 for none"),
        ({"bridged": 1}, "bridged = 1: it must be 2 or more, or 0 for none"),
        ({"ranked": -1}, "ranked = -1: it must be 0 or more"),
        ({"candidates": 0}, "candidates = 0"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
    ],
)
def test_an_extent_that_cannot_be_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(SMALL, **changed)
    assert len(FIXED_ENDINGS) == 4


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be scored or written."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(report_card, "score_texts", refuse)
    monkeypatch.setattr(Model, "write", refuse)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("n_texts", "changed", "message"),
    [
        (12, {}, "12 texts are too few beside samples = 12.*give more as --data, or fewer --samp"),
        (1, {}, "1 text is too few beside"),
        (40, {"samples": 38, "endings": 38}, r"different endings, not 38"),
    ],
)
def test_too_few_texts_are_refused_before_any_work(
    model: Model, some: list[str], n_texts: int, changed: dict[str, Any], message: str
) -> None:
    alike = [f"{text} The end." for text in some] if "endings" in changed else some
    with pytest.raises(DataError, match=message):
        measure([(model, model.turned())], alike[:n_texts], replace(SMALL, **changed))


def test_what_too_few_texts_can_be_used_for_is_left_out_and_said(
    model: Model, some: list[str]
) -> None:
    lines = [f"Number {number} had a dog." for number in range(30)]
    said: list[str] = []
    said_of_enough: list[str] = []
    extent = replace(SMALL, ranked=20, bridged=5)
    found = measure([(model, model.turned())], [*lines, *some[:4]], extent, say=said.append)
    enough = replace(extent, ranked=0, bridged=4)
    measure([(model, model.turned())], [*lines, *some[:4]], enough, say=said_of_enough.append)
    assert not [line for line in said_of_enough if "asked for" in line]
    assert said[:2] == [
        "4 of 34 texts can be ranked: cut in half and read; 20 were asked for",
        "4 of 34 texts can be bridged: cut in three, within half of the context; 5 were asked for",
    ]
    assert found.reranked == ()
    assert found.bridged is not None
    assert found.bridged.texts == 4
    assert "## Left out\n\n- 4 texts can be ranked: cut in half and read; it takes 8.\n" in (
        render_card(found)
    )
    none = measure([(model, model.turned())], [*lines, some[0]], extent)
    assert none.bridged is None
    assert len(none.left_out) == 2


@pytest.mark.usefixtures("no_work")
def test_models_that_do_not_fit_are_refused_before_any_work(
    model: Model, tokenizer: Tokenizer, some: list[str]
) -> None:
    other = Tokenizer.train(["Some quite other text. " * 20], tokenizer.vocab_size)
    stranger = replace(tiny_model(other), takes_chat=False)
    chatty = tiny_model(tokenizer)
    for pairs, message in (
        ([(model, model)], "both models run backward"),
        ([(model, stranger.turned())], "different tokenizers"),
        ([(model, model.turned()), (stranger, stranger.turned())], "different tokenizers"),
        ([(chatty, chatty.turned())], "tuned on conversations"),
    ):
        with pytest.raises(UsageError, match=message):
            measure(pairs, some)


# --- what twins do together


def test_texts_are_cut_between_sentences_nearest_the_middle() -> None:
    assert cut_in_half("Aa. Bb. Cc. Dd.") == ("Aa. Bb.", " Cc. Dd.")
    assert cut_in_half('He said "No!" and left. So it was, in the end.') == (
        'He said "No!" and left.',
        " So it was, in the end.",
    )
    assert cut_in_half("Only one.") is None


def test_texts_are_cut_into_opening_middle_and_ending() -> None:
    cut = cut_in_three(TEXT)
    assert cut == ("One day it rained.", ' "No!" said Tim. He ran home. ', "They all had tea.")
    assert "".join(cut or ()) == TEXT
    assert cut_in_three("Only. Two.") is None
    assert cut_in_three("None at all") is None


def test_what_is_bridged_and_ranked_fits_and_follows_the_seed(
    model: Model, some: list[str], texts: list[str]
) -> None:
    long = "\n".join(texts[:20])
    cuts = cuts_to_bridge(model, model.turned(), [*some, long], 30, seed=1)
    assert cuts == cuts_to_bridge(model, model.turned(), [*some, long], 30, seed=1)
    assert cuts != cuts_to_bridge(model, model.turned(), [*some, long], 30, seed=2)
    assert len({"".join(cut) for cut in cuts}) == 30
    assert all(len(model.tokenizer.encode("".join(cut))) <= 128 for cut in cuts)
    short = some[:10]
    first, second = cut_in_half(short[-1]) or ("", "")
    begins_alike = first + second.upper()
    given = [long, "One.", *short]
    halves = halves_of(model, model.turned(), given, 99, seed=1)
    assert {first + second for first, second in halves} == set(short)
    assert halves_of(model, model.turned(), given, 4, seed=1) == halves[:4]
    alike = halves_of(model, model.turned(), [*given, begins_alike], 99, seed=1)
    assert len(alike) == len(halves)


def ranking(
    model: Model, monkeypatch: pytest.MonkeyPatch, some: list[str], **options: Any
) -> tuple[Any, list[Any]]:
    """Rank with made-up scores; return what came of it and the rows that were scored."""
    asked: list[Any] = []

    def goodness(rows: Any, method: str, **models: Any) -> list[float]:
        asked.append(rows)
        scores = np.zeros((len(rows) // CANDIDATES, CANDIDATES))
        n_first = {"backward": 2, "forward": 5, "both": 10}[method]
        scores[:n_first, 0] = 1
        scores[n_first:, 0] = -1
        return scores.ravel().tolist()

    monkeypatch.setattr(evaluate_twins, "goodness", goodness)
    halves = halves_of(model, model.turned(), some[:10], 10, seed=1)
    return measure_reranking(model, model.turned(), halves, seed=4, **options), asked


def test_ranking_counts_the_true_one_and_what_is_gained(
    model: Model, monkeypatch: pytest.MonkeyPatch, some: list[str]
) -> None:
    found, _ = ranking(model, monkeypatch, some, given="half")
    assert [one.method for one in found] == ["backward", "forward", "both"]
    assert [one.first.value for one in found] == [0.2, 0.5, 1.0]
    assert found[1].first == of_share([True] * 5 + [False] * 5)
    assert [one.gain.value for one in found] == pytest.approx([0, 0.3, 0.8])
    assert found[1].gain == over_documents([0.0] * 2 + [1.0] * 3 + [0.0] * 5, seed=4)
    assert all((one.texts, one.candidates, one.given) == (10, 8, "half") for one in found)


@pytest.mark.parametrize("given", ["half", "sentence"])
def test_the_true_beginning_stands_first_among_seven_different_others(
    model: Model, monkeypatch: pytest.MonkeyPatch, some: list[str], given: str
) -> None:
    _, [rows, *_] = ranking(model, monkeypatch, some, given=given)
    decode = model.tokenizer.decode
    for number, text in enumerate(choose(some[:10], 10, seed=1)):  # in their order
        group = rows[number * CANDIDATES : (number + 1) * CANDIDATES]
        befores = [decode(before) for before, _ in group]
        first, second = cut_in_half(text) or ("", "")
        assert befores[0] == first
        assert len(set(befores)) == CANDIDATES
        after = second if given == "half" else last_sentence(text)
        assert {decode(ids).strip() for _, ids in group} == {after.strip()}


def sample(ending: str, written: str, *, exact: bool = True) -> Sample:
    text = f"{written} {ending}" if exact else f"{written} and nothing."
    ids = ModelIds(np.zeros(0, np.int64))
    return Sample(ending, Text(text, ending, "stop", 0.0, 0, 1, ids))


def test_endings_are_judged_after_what_was_written_and_by_the_first_sample(
    model: Model, some: list[str]
) -> None:
    twin = model.turned()
    texts = some[:3]
    endings = [last_sentence(text) for text in texts]
    samples = [
        sample(endings[0], "A dog ran."),
        sample(endings[0], "Not this."),
        sample("By.", "No."),
    ]
    samples += [sample(endings[1], "He was glad."), sample(endings[2], "Rain fell.", exact=False)]
    fidelity = measure_fidelity(samples, texts, twin, seed=1)
    assert fidelity.endings == 3
    assert fidelity.exact == 0.8

    def surprise(before: str, ending: str) -> float:
        """Score the whole text; of it the ids of the ending and the marker count."""
        n = len(model.tokenizer.encode_fragment(ending)) + 1
        logprobs = twin.score(f"{before.strip()} {ending}").token_logprobs
        return -float(logprobs[-n:].mean(dtype=np.float64))

    own = [text.removesuffix(ending) for text, ending in zip(texts, endings, strict=True)]
    for estimate, beginnings in (
        (fidelity.human, own),
        (fidelity.other, [own[1], own[2], own[0]]),
        (fidelity.written, ["A dog ran.", "He was glad.", "Rain fell. and nothing."]),
    ):
        expected = [surprise(*pair) for pair in zip(beginnings, endings, strict=True)]
        assert estimate.value == pytest.approx(np.mean(expected), rel=1e-4)


def test_endings_of_long_texts_are_judged_after_as_much_as_fits(
    tokenizer: Tokenizer, some: list[str]
) -> None:
    twin = tiny_model(tokenizer, direction="forward", told=False, block_size=64)
    endings = ["It was fun.", "They slept."]
    long, longer = ("so " * n + "he ran." for n in (100, 200))
    texts = [f"{long} {ending}" for ending in endings]
    fidelity = measure_fidelity([sample(e, longer) for e in endings], texts, twin, seed=1)
    assert fidelity.written.value == pytest.approx(fidelity.human.value)  # the same end is read
    shorter = measure_fidelity([sample(e, "he ran.") for e in endings], texts, twin, seed=1)
    assert shorter.written.value != pytest.approx(fidelity.human.value)


def test_fewer_than_two_endings_of_texts_are_refused(model: Model, some: list[str]) -> None:
    samples = [sample(last_sentence(some[0]), "Yes."), sample("The very end.", "No.")]
    with pytest.raises(DataError, match="at least two, not 1"):
        measure_fidelity(samples, some, model.turned(), seed=1)


def test_bridges_are_measured_at_their_seams(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place of an id in its text is its surprise, and for the other model a half of it."""
    human = [cut_in_three(text) for text in (TEXT, f"Once it was {TEXT}")]
    cuts = [cut for cut in human if cut is not None]
    middles = {"backward": " He sang.  ", "forward": " And then he sang all day long. "}
    cut_alike = " He ate. "

    def bridge(self: Model, opening: str, ending: str, **options: Any) -> list[Bridge]:
        assert options["twin"].direction != self.direction
        return [Bridge(opening, middles[self.direction], ending, 0.0, 1, "stop")]

    def join(writer: Model, reader: Model, texts: Sequence[Text], far: str) -> Slices[list[Bridge]]:
        yield from ()
        assert (writer.direction, reader.direction) == ("backward", "forward")
        [text] = texts
        n_given = len(encode(text.text)) - len(text.ids)
        written = writer.tokenizer.decode(writer.language.order.to_reading(text.ids))
        assert written.rstrip() + " " + text.given == text.text
        assert n_given == len(fragment(text.given))
        return [Bridge(far, cut_alike, text.given, 0.0, 1, "stop")]

    def score_all(self: Model, texts: Sequence[str], **options: Any) -> list[Score]:
        factor = 1.0 if self.direction == "forward" else 0.5
        found = []
        for text in texts:
            n = len(self.tokenizer.encode(text)) + 2
            values = -np.arange(n, dtype=np.float32) * factor
            found.append(Score(math.fsum(values.tolist()), n - 1, len(text), 1, values))
        return found

    monkeypatch.setattr(Model, "bridge", bridge)
    monkeypatch.setattr(Model, "score_all", score_all)
    monkeypatch.setattr(evaluate_twins, "join", join)
    encode, fragment = model.tokenizer.encode, model.tokenizer.encode_fragment
    found = measure_bridges(model, model.turned(), cuts, candidates=2, seed=1)

    def expected(cut: Cut) -> tuple[float, float]:
        n, end = len(encode("".join(cut))), len(fragment(cut.ending))
        behind = len(encode(cut.opening))
        first = np.arange(behind + 1, min(behind + 11, n + 1))
        last = np.arange(n - end + 1, min(n - end + 11, n + 1))
        return float(first.mean()), float(last.mean())

    made = {
        name: [cut._replace(middle=middles[way]) for cut in cuts]
        for name, way in (("bridge", "backward"), ("baseline", "forward"))
    }
    made["human, cut"] = [cut._replace(middle=cut_alike) for cut in cuts]
    both = {}
    for name, seams in (
        ("human", found.human),
        ("bridge", found.bridge),
        ("baseline", found.baseline),
        ("human, cut", found.human_cut),
    ):
        values = [expected(cut) for cut in made.get(name, cuts)]
        both[name] = sum(map(sum, values))
        assert seams.opening.value == pytest.approx(np.mean([first for first, _ in values]))
        assert seams.ending.value == pytest.approx(np.mean([last for _, last in values]))
        assert seams.both.value == pytest.approx(np.mean(values))
    assert found.ratio.value == pytest.approx(both["bridge"] / both["human"])
    assert found.ratio_cut.value == pytest.approx(both["bridge"] / both["human, cut"])
    assert found.baseline_ratio.value == pytest.approx(both["baseline"] / both["human"])
    assert found.wins == found.wins_whole == of_share([True, True])  # the shorter is likelier
    assert (found.texts, found.candidates) == (2, 2)
    assert found.mean_words["bridge"] == pytest.approx(found.mean_words["baseline"] - 5)
