"""The arrow of time: what is trained once, what is refused, and the controls that it passes."""

import json
import math
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import backgpt
from backgpt import arrow as arrow_module
from backgpt.arrow import ArrowJob, arrow
from backgpt.cli import main
from backgpt.errors import ConfigError, DataError, StoppedError, UsageError
from backgpt.evaluate import draw_some
from backgpt.gap import TwinScores, twin_loss
from backgpt.report import ArrowReport
from backgpt.report_card import made_of
from backgpt.run_folder import read_metrics
from backgpt.score import score_ids
from backgpt.shards import open_dataset

TINY: dict[str, Any] = dict(
    n_layer=1,
    n_head=1,
    n_embd=64,
    block_size=40,
    intermediate_size=96,
    max_steps=12,
    batch_size=8,
    compile="off",
    precision="fp32",
    sample_endings=[],
)


class Quiet:
    """A reporter that keeps what it is told, and may act at a step."""

    def __init__(self, on_step: Callable[[], None] = lambda: None) -> None:
        self.notices: list[str] = []
        self.steps: list[tuple[int, int]] = []
        self.on_step = on_step

    def started(self, *, first_step: int, max_steps: int) -> None:
        self.steps.append((first_step, max_steps))

    def stepped(self, record: Mapping[str, Any]) -> None:
        self.on_step()

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_module, "CONTROL_TEXTS", 500)


@pytest.fixture(scope="module")
def lines(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of stories that fit the context."""
    path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    sentences = {line for text in texts for line in text.replace("\n", " ").split(". ")}
    short = sorted(line for line in sentences if 10 < len(line) < 60)
    assert len(short) > 200
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in short))
    return path


def job(out: Path, source: str | Path = "one-way", **changed: Any) -> ArrowJob:
    settings = {**TINY, **changed.pop("settings", {})}
    return ArrowJob(
        str(source), out, **{"seeds": (1, 2), "vocab_size": 400, "settings": settings, **changed}
    )


def run(asked: ArrowJob, reporter: Quiet | None = None) -> ArrowReport:
    return arrow(asked, report=reporter or Quiet(), workers=1)


@pytest.fixture(scope="module")
def measured(lines: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ArrowReport]:
    """A folder with twins of two seeds, trained for a few steps, and the report."""
    out = tmp_path_factory.mktemp("arrow") / "lines"
    return out, run(job(out, lines))


def test_the_report_has_what_the_runs_themselves_lost(measured: tuple[Path, ArrowReport]) -> None:
    out, report = measured
    assert [twins.seed for twins in report.twins] == [1, 2]
    assert (report.steps, report.context, report.flipped) == (12, 40, False)
    for twins in report.twins:
        for way, loss in (("backward", twins.backward), ("forward", twins.forward)):
            records = read_metrics(out / "runs" / f"{way}-{twins.seed}")
            assert loss == pytest.approx(records[-1]["valid_loss"], rel=1e-5)
        assert twins.gap == pytest.approx(twins.backward - twins.forward)
        assert twins.gap != 0
    assert report.loss.gaps == tuple(twins.gap for twins in report.twins)
    assert report.loss.gap.value == pytest.approx(sum(report.loss.gaps) / 2)
    assert report.trained_tokens == read_metrics(out / "runs/backward-1")[-2]["tokens"]


def test_the_intervals_are_those_of_the_validation_texts(
    measured: tuple[Path, ArrowReport],
) -> None:
    out, report = measured
    dataset = open_dataset(out / "data")
    [shard] = dataset.valid
    documents, sizes = list(shard.documents()), shard.document_bytes.tolist()
    pairs = []
    for seed in (1, 2):
        both = (backgpt.load(out / f"runs/{way}-{seed}") for way in ("backward", "forward"))
        scored = (score_ids(one, documents, sizes) for one in both)
        pairs.append(TwinScores(*scored))
    assert report.loss == twin_loss(pairs, seed=report.seed)
    texts = [dataset.tokenizer.decode(ids) for ids in documents]
    assert report.made == made_of(backgpt.load(out / "runs/backward-1"), texts)
    assert report.loss.texts == len(documents) > 2
    longest = max(map(len, documents)) + 1
    assert 32 < longest <= TINY["block_size"]  # nothing is cut: see the flipped texts
    assert [gap.context for gap in report.by_context] == [16, 32, longest]
    assert report.by_context[-1].gap == report.loss.gap


def test_run_again_nothing_is_trained_and_the_report_is_the_same(
    measured: tuple[Path, ArrowReport], lines: Path
) -> None:
    out, report = measured
    files = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/checkpoints/*/*")}
    reporter = Quiet()
    assert run(job(out, lines), reporter) == report
    assert reporter.steps == [(12, 12)] * 4
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/checkpoints/*/*")} == files


@pytest.mark.slow
def test_more_seeds_are_trained_beside_those_there_are(
    measured: tuple[Path, ArrowReport], lines: Path
) -> None:
    out, report = measured
    reporter = Quiet()
    more = run(job(out, lines, seeds=(1, 2, 3)), reporter)
    assert [first for first, _ in reporter.steps] == [12] * 4 + [0] * 2
    assert more.twins[:2] == report.twins
    assert more.loss.gap_over_seeds is not None
    one = run(job(out, lines, seeds=[2]))
    assert one.twins == report.twins[1:]
    assert one.loss.gap_over_seeds is None


def test_a_limit_draws_validation_texts_from_all_of_the_file(
    measured: tuple[Path, ArrowReport], lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, report = measured
    some = run(job(out, lines, limit=3))
    assert (some.loss.texts, some.limit) == (3, 3)
    documents = list(open_dataset(out / "data").valid[0].documents())
    drawn = draw_some(documents, 3, seed=arrow_module.SEED)
    assert some.loss.tokens == sum(len(ids) + 1 for ids in drawn)
    assert some.loss.tokens != sum(len(ids) + 1 for ids in documents[:3])
    assert run(job(out, lines, limit=len(documents))).loss == report.loss

    monkeypatch.setattr(arrow_module, "BY_CONTEXT", 3)
    by_context = run(job(out, lines)).by_context[-1]
    assert by_context.texts == 3
    assert by_context.gap == some.loss.gap
    with pytest.raises(DataError, match="texts to validate on: 1 of "):
        run(job(out, lines, limit=1))


@pytest.mark.slow
def test_flipped_texts_change_the_sign_of_the_gap_exactly(
    measured: tuple[Path, ArrowReport], lines: Path
) -> None:
    out, straight = measured
    turned = run(job(out, lines, flip=True))
    assert turned.flipped
    for mine, its in zip(straight.twins, turned.twins, strict=True):
        assert (mine.backward, mine.forward) == (its.forward, its.backward)
        assert mine.gap == -its.gap != 0
    here, there = straight.loss, turned.loss
    assert here.gap.value == -there.gap.value
    assert (here.gap.low, here.gap.high) == (-there.gap.high, -there.gap.low)
    assert here.gap_bpb.low == -there.gap_bpb.high
    assert (here.backward, here.forward_bpb) == (there.forward, there.backward_bpb)
    assert here.gap_over_seeds is not None
    assert there.gap_over_seeds is not None
    assert here.gap_over_seeds.low == -there.gap_over_seeds.high
    assert straight.by_context[-1].gap.value == -turned.by_context[-1].gap.value


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_report(
    measured: tuple[Path, ArrowReport], lines: Path, tmp_path: Path
) -> None:
    _, report = measured
    once = iter([signal.SIGINT])

    def stop_once() -> None:
        for number in once:
            signal.raise_signal(number)

    stopping = Quiet(on_step=stop_once)
    with pytest.raises(StoppedError, match="run the same command to go on"):
        run(job(tmp_path, lines, settings={"log_every": 5}), stopping)
    [(first, _)] = stopping.steps
    assert first == 0
    assert not (tmp_path / "runs/forward-1").exists()
    reporter = Quiet()
    assert run(job(tmp_path, lines), reporter) == report
    assert 0 < reporter.steps[0][0] < 12
    assert [first for first, _ in reporter.steps[1:]] == [0, 0, 0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"settings": {"max_steps": 20}}, "max_steps = 12, not 20"),
        ({"settings": {"max_steps": 8}}, "max_steps = 12, not 8"),
        ({"settings": {"lr": 0.5}}, "lr = 0.003, not 0.5"),
        ({"settings": {"n_layer": 2}}, "n_layer = 1, not 2"),
        ({"vocab_size": 401}, "vocab_size = 400, not 401"),
        ({"source": "one-way"}, "begun with other settings"),
        ({"settings": {"data": "elsewhere"}}, "data is not for the twins"),
        ({"settings": {"direction": "both"}}, "direction is not for the twins"),
    ],
)
def test_changed_settings_are_refused(
    measured: tuple[Path, ArrowReport], lines: Path, changed: dict[str, Any], message: str
) -> None:
    out, _ = measured
    reporter = Quiet()
    with pytest.raises(ConfigError, match=message):
        run(job(out, **{"source": lines, **changed}), reporter)
    assert not reporter.steps


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": ()}, "give at least one"),
        ({"seeds": (1, 1)}, "none twice"),
        ({"settings": {"preset": "huge"}}, "unknown preset 'huge'"),
        ({"settings": {"block_size": 0}}, "block_size = 0"),
        ({"settings": {"nonsense": 1}}, "unknown key 'nonsense'"),
        ({"settings": {"max_steps": 5, "epochs": 1.0}}, "either max_steps or epochs"),
        ({"settings": {"device": "teapot"}}, "device = 'teapot' cannot be used"),
        ({"flip": True, "settings": {"unit": "word"}}, "unit = token"),
        ({"flip": True, "settings": {"hints": 0.5}}, "without hints"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(job(tmp_path / "out", **changed))
    assert not (tmp_path / "out").exists()


def test_a_source_without_validation_texts_is_refused_before_training(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("There is only this text. " * 20)
    reporter = Quiet()
    with pytest.raises(DataError, match=r"one\.txt: texts to validate on: 0 of 1;.* separator"):
        run(job(tmp_path / "out", path, vocab_size=280), reporter)
    assert not reporter.steps


def test_a_length_in_epochs_takes_the_place_of_the_default_steps(tmp_path: Path) -> None:
    settings = {key: value for key, value in TINY.items() if key != "max_steps"}
    asked = ArrowJob(
        "one-way", tmp_path, seeds=[4], vocab_size=400, settings={**settings, "epochs": 0.1}
    )
    reporter = Quiet()
    report = run(asked, reporter)
    assert reporter.steps == [(0, report.steps)] * 2
    assert 1 < report.steps < 20


def test_a_length_on_the_command_line_wins_over_that_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ArrowJob] = []

    def stop(job: ArrowJob, **_: object) -> ArrowReport:
        asked.append(job)
        raise UsageError("that will do")

    monkeypatch.setattr(arrow_module, "arrow", stop)
    (tmp_path / "run.toml").write_text("epochs = 3.0\nlr = 0.5\n")
    config = ("--config", str(tmp_path / "run.toml"))
    with pytest.raises(SystemExit):
        main(["arrow", "one-way", *config, "--max-steps=2", f"--out={tmp_path}"])
    assert [job.settings for job in asked] == [{"lr": 0.5, "max_steps": 2}]


def learned(
    source: str, out: Path, *, seeds: tuple[int, ...] = (1, 2), **settings: Any
) -> ArrowReport:
    changed = {"batch_size": 16, "eval_every": 1000, "save_every": 1000, **settings}
    return run(ArrowJob(source, out, seeds=seeds, settings={**TINY, **changed}))


@pytest.mark.slow
def test_a_reversible_source_has_a_gap_whose_interval_holds_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow_module, "CONTROL_TEXTS", 2500)
    report = learned("reversible", tmp_path, max_steps=50)
    assert report.loss.forward.value < 2.1  # of ln 12 = 2.48: it has learned something
    assert report.loss.gap_over_seeds is not None
    assert report.loss.gap_over_seeds.holds(0)
    assert report.loss.gap.holds(0)
    assert report.loss.gap.high - report.loss.gap.low < 0.05


@pytest.mark.slow
def test_a_one_way_source_has_a_gap_clearly_apart_from_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow_module, "CONTROL_TEXTS", 4000)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 128, "intermediate_size": 256, "block_size": 32}
    report = learned("one-way", tmp_path, seeds=(1, 2, 3), max_steps=120, **shape)
    ideal = 9 / 19 * math.log(3)  # nine of nineteen tokens are any of three, the others follow
    assert report.loss.forward.value == pytest.approx(ideal, abs=0.01)
    assert report.loss.gap_over_seeds is not None
    assert report.loss.gap_over_seeds.low > 0
    assert report.loss.gap.low > 0.04
