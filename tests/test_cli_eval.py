"""`backgpt eval` and `backgpt arrow` as a user meets them."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from backgpt import arrow as arrow_module
from backgpt.cli import main
from backgpt.config import TrainConfig, read_as
from backgpt.evaluate import draw_some
from backgpt.model import Transformer
from backgpt.model_folder import ModelFolder, save_model
from backgpt.order import Directions
from backgpt.report import ArrowReport, ReportCard
from backgpt.tokenizer import Tokenizer
from tiny_models import config_of

SMALL = [
    *("--samples=6", "--endings=6", "--hinted=1", "--ranked=8", "--bridged=2", "--candidates=1"),
    *("--max-new-tokens=4", "--threads=1"),
]
SHAPE = """
n_layer = 1
n_head = 1
n_embd = 64
block_size = 40
intermediate_size = 96
batch_size = 8
compile = "off"
sample_endings = []
"""


class Done(NamedTuple):
    """What a command came to."""

    code: Any
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Return a function that runs `backgpt` in this process."""

    def run(*arguments: Any) -> Done:
        with pytest.raises(SystemExit) as exit_info:
            main([str(argument) for argument in arguments])
        return Done(exit_info.value.code, *capsys.readouterr())

    return run


def assert_refused(done: Done, words: str) -> None:
    """Assert exit code 2, nothing on stdout, and one clear line at the end of stderr."""
    assert (done.code, done.out) == (2, ""), done.err
    line = done.err.splitlines()[-1]
    assert line.startswith("backgpt: ")
    assert words in line


def save_random_model(
    out: Path, tokenizer: Tokenizer, direction: Directions, *, seed: int = 1, chat: bool = False
) -> None:
    config = config_of(tokenizer)
    weights = Transformer(config, generator=torch.Generator().manual_seed(seed)).state_dict()
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    model = ModelFolder(config, direction, "token", tokenizer, arrays, hints=True, chat=chat)
    save_model(model, out)


@pytest.fixture(scope="module")
def models(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models that were never trained, by direction, and some that do not fit them."""
    folder = tmp_path_factory.mktemp("models")
    save_random_model(folder / "both", tokenizer, "both")
    save_random_model(folder / "backward", tokenizer, "backward")
    save_random_model(folder / "forward", tokenizer, "forward", seed=2)
    save_random_model(folder / "chat", tokenizer, "both", chat=True)
    other = Tokenizer.train(["Some quite other text. " * 20], tokenizer.vocab_size)
    save_random_model(folder / "other", other, "forward")
    return folder


@pytest.fixture(scope="module")
def data(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty texts of four sentences."""
    sentences = [re.findall(r"[^.]+\.", text.replace("\n", " ")) for text in texts]
    short = ["".join(of_text[:4]) for of_text in sentences if len(of_text) > 3][:30]
    path = tmp_path_factory.mktemp("texts") / "held_out.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in short))
    return path


@pytest.mark.slow
def test_a_card_is_written_printed_and_the_same_again(
    command: Callable[..., Done], models: Path, data: Path, tmp_path: Path
) -> None:
    twins = (models / "backward", "--twin", models / "forward")
    done = command("eval", *twins, "--data", data, "--out", tmp_path / "one", *SMALL)
    assert done.code == 0, done.err
    assert done.out == (tmp_path / "one/report.md").read_text()
    assert (
        f"Backward {models / 'backward'}, forward {models / 'forward'}; held_out.jsonl" in done.out
    )
    assert done.err.endswith(f"written to {tmp_path / 'one'}\n")
    assert "NativeEngine(float32)" in done.out or "TorchEngine(float32, cpu)" in done.out
    command("eval", *twins, "--data", data, "--out", tmp_path / "two", *SMALL)
    first, second = (
        read_as(ReportCard, tmp_path / name / "report.json") for name in ("one", "two")
    )
    assert first == second.model_copy(update={"speed": first.speed})
    pictures = [(tmp_path / name / "report.png").read_bytes() for name in ("one", "two")]
    assert pictures[0] == pictures[1]
    assert [path.name for path in sorted((tmp_path / "one").iterdir())] == [
        *("report.json", "report.md", "report.png")
    ]


def test_texts_in_one_file_are_divided_at_separators(
    command: Callable[..., Done], models: Path, data: Path, tmp_path: Path
) -> None:
    texts = [json.loads(line)["text"] for line in data.read_text().splitlines()]
    path = tmp_path / "all.txt"
    path.write_text("\n\n".join(texts))
    asked = ("eval", models / "both", "--data", path, "--out", tmp_path / "out", *SMALL)
    assert_refused(command(*asked), "1 text is too few")
    assert command(*asked, r"--separator=\n\n", "--ranked=0", "--bridged=0").code == 0
    assert read_as(ReportCard, tmp_path / "out/report.json").loss.texts == len(texts)


def test_a_model_that_runs_both_ways_is_its_own_twin_and_a_limit_holds(
    command: Callable[..., Done], models: Path, data: Path, tmp_path: Path
) -> None:
    arguments = (models / "both", "--data", data, "--limit", 20, "--out", tmp_path, *SMALL)
    done = command("eval", *arguments)
    assert done.code == 0, done.err
    card = read_as(ReportCard, tmp_path / "report.json")
    assert (card.loss.texts, card.limit) == (20, 20)
    assert "held_out.jsonl, 20 texts, drawn at random; context" in done.out
    assert "\n20 texts, cut into pieces" in done.out
    texts = [json.loads(line)["text"] for line in data.read_text().splitlines()]
    drawn = "\0".join(draw_some(texts, 20, seed=card.seed)).encode()
    assert card.made.texts_sha256 == hashlib.sha256(drawn).hexdigest()
    assert card.twin == f"{models / 'both'}, the other way"
    assert len(card.loss.gaps) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["backward"], "backward only runs backward: give its forward twin with --twin"),
        (["backward", "--twin=other"], "different tokenizers"),
        (["backward", "--twin=backward"], "is a backward model: it does not run forward"),
        (["forward", "--twin=forward"], "is a forward model: it does not run backward"),
        (["chat"], "tuned on conversations"),
        (["both", "both", "--twin=forward"], "2 models and 1 twins were given"),
        (["both", "--samples=7"], "samples = 7: it must be a multiple of endings = 6"),
        (["both", "--samples=0"], "samples = 0: it must be 1 or more"),
        (["both", "--endings=12"], "samples = 6: it must be a multiple of endings = 12"),
        (["both", "--endings=3"], "endings = 3: it must be 6 or more"),
        (["both", "--ranked=7"], "ranked = 7: it must be 8 or more"),
        (["both", "--samples=30"], "30 texts are too few beside samples = 30"),
        (["both", "--limit=0"], "limit = 0"),
        (["both", "--limit=1"], "1 text is too few"),
        (["both", "--seed=-1"], "seed = -1"),
        (["both", "--max-new-tokens=0"], "max_new_tokens = 0"),
        (["both", "--out=both/config.json"], "is not a folder"),
        (["both", "--data=nowhere.txt"], "there is no 'nowhere.txt'"),
        (["nobody"], "there is no model 'nobody'"),
        (["both", "both"], "both is given twice: give models trained with other seeds"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line_before_any_work(
    command: Callable[..., Done],
    models: Path,
    data: Path,
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(models)
    done = command("eval", "--data", data, *SMALL, *arguments)
    assert_refused(done, words)
    assert len(done.err.splitlines()) == 1
    assert not (models / "report").exists()


@pytest.fixture
def source(texts: list[str], tmp_path: Path) -> Path:
    """A file of short sentences, and settings of a tiny model beside it."""
    lines = sorted({line for text in texts for line in re.split(r"\. |\n", text) if len(line) < 60})
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (tmp_path / "tiny.toml").write_text(SHAPE)
    return path


@pytest.mark.slow
def test_an_arrow_is_measured_and_the_same_again_and_flipped_the_opposite(
    command: Callable[..., Done], source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = ["arrow", source, "--config", tmp_path / "tiny.toml", "--out", out, "--seeds=2"]
    asked += ["--max-steps=6", "--vocab-size=400", "--workers=1"]
    done = command(*asked)
    assert done.code == 0, done.err
    assert done.out == (out / "report.md").read_text()
    assert "training forward, seed 2" in done.err
    written = {path.name: path.read_bytes() for path in out.glob("report.*")}
    assert set(written) == {"report.json", "report.md", "report.png"}

    again = command(*asked)
    assert again.out == done.out
    assert {path.name: path.read_bytes() for path in out.glob("report.*")} == written
    assert again.err.count("going on from step 6") == 4

    assert_refused(command(*asked, "--max-steps=9"), "max_steps = 6, not 9")
    flipped = command(*asked, "--flip")
    assert "# The arrow of time: " in flipped.out
    assert "read from its end" in flipped.out
    straight, turned = (
        read_as(ArrowReport, out / f"{name}.json") for name in ("report", "flipped")
    )
    assert straight.loss.gap.value == -turned.loss.gap.value != 0
    assert {path.name: path.read_bytes() for path in out.glob("report.*")} == written


def test_settings_of_the_file_stand_unless_a_flag_is_given(
    command: Callable[..., Done], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[TrainConfig] = []

    def train(config: TrainConfig, **options: Any) -> None:
        configs.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(arrow_module, "train", train)
    file = tmp_path / "tiny.toml"
    file.write_text(f'{SHAPE}device = "cpu"\nlr = 0.125\n')
    asked = ["arrow", source, "--config", file, "--out", tmp_path / "out", "--vocab-size=400"]
    assert command(*asked, "--epochs=0.5", "--batch-size=4", "--workers=1").code == 130
    [config] = configs
    assert (config.device, config.lr, config.batch_size) == ("cpu", 0.125, 4)
    assert (config.epochs, config.max_steps, config.preset) == (0.5, None, "pico")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reversible", "--seeds=0"], "seeds = 0: it must be 1 or more"),
        (["reversible", "--limit=0"], "limit = 0"),
        (["reversible", "--preset=huge"], "unknown preset 'huge'"),
        (["reversible", "--config=data.toml"], "data is not for the twins"),
        (["reversible", "--config=none.toml"], "cannot read settings file none.toml"),
        (["reversible", "--max-steps=3", "--epochs=1"], "either max_steps or epochs"),
        (["*.txt"], "say --out"),
        (["nothing"], "there is no 'nothing'"),
    ],
)
def test_an_arrow_that_cannot_be_is_refused_in_one_line(
    command: Callable[..., Done],
    tmp_path: Path,
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.toml").write_text('data = "elsewhere"\n')
    assert_refused(command("arrow", *arguments), words)
    assert not Path("arrow").exists()


def test_a_source_without_validation_texts_is_refused_before_training(
    command: Callable[..., Done], tmp_path: Path
) -> None:
    (tmp_path / "one.txt").write_text("There is only this text. " * 20)
    done = command("arrow", tmp_path / "one.txt", "--out", tmp_path / "out", "--vocab-size=280")
    assert_refused(done, "texts to validate on: 0 of 1;")
    assert not (tmp_path / "out/runs").exists()


def test_an_arrow_tells_what_preparing_found_and_divides_a_file_at_separators(
    command: Callable[..., Done], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    (tmp_path / "lines.txt").write_text("\n***\n".join(texts))
    monkeypatch.setattr(arrow_module, "train", no_training)
    done = command(
        *("arrow", tmp_path / "lines.txt", r"--separator=\n***\n", "--vocab-size=60000"),
        *("--out", tmp_path / "out", "--workers=1", "--device=cpu"),
    )
    assert "The text is too small for 60000 ids" in done.err
    assert done.code == 130  # as it was about to train


def no_training(config: TrainConfig, **options: Any) -> None:
    raise KeyboardInterrupt
