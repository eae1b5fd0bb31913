"""Built-in models: found by name, shipped whole with their card, listed by `backgpt info`."""

import json
import os
import re
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import backgpt
from backgpt import builtin
from backgpt.builtin import describe, find, names
from backgpt.card import CARD, Card, read_card
from backgpt.cli import main
from backgpt.config import TrainConfig
from backgpt.errors import BackgptError, ConfigError, CorruptFileError, DataError, UsageError
from backgpt.generate import Text
from backgpt.manifest import verify
from backgpt.model import Transformer
from backgpt.model_folder import README, ModelFolder, read_model, save_model
from backgpt.order import ModelIds
from backgpt.shape import ModelConfig
from backgpt.tokenizer import Tokenizer
from backgpt.train import train
from tiny_folders import tiny_folder

SCRIPTS = Path(__file__).parent.parent / "scripts"
SHAPE = {"n_layer": 1, "n_head": 1, "n_embd": 64, "block_size": 128, "intermediate_size": 96}
needs_native = pytest.mark.skipif(
    not find_spec("backgpt.engine._native"), reason="no native engine here"
)
ABOUT: dict[str, Any] = {
    "description": "A model for tests.",
    "license": "CC0-1.0",
    "data": [{"name": "Tales", "license": "CC0-1.0", "attribution": "By nobody."}],
    "trained": {
        "tokens": 5_000_000,
        "hardware": "a test",
        "date": "2026-01-02",
        "command": "backgpt train",
        "commit": "abc",
    },
    "limits": ["It was never trained."],
}
STATISTICS = {
    "texts": 20,
    "reached_edge": 0.5,
    "known_words": 0.9,
    "repeating": 0.25,
    "distinct_3": 0.5,
    "mean_words": 30.0,
    "nats_per_token": None,
}
MEASURES: dict[str, Any] = {
    "set": "held-out tales",
    "date": "2026-01-02",
    "losses": [
        {
            "set": "held-out tales",
            "direction": direction,
            "storage": storage,
            "nats_per_token": loss,
            "bits_per_byte": loss / 2,
        }
        for direction, storage, loss in (
            *(("backward", "float32", 3.0), ("backward", "int8", 3.25)),
            *(("forward", "float32", 2.5), ("forward", "int8", 2.75)),
        )
    ],
    "endings": 4,
    "generated": STATISTICS,
    "human": STATISTICS,
    "obedience": {"words": {"asked": 8, "obeyed": 6}},
    "unasked": {"words": {"asked": 8, "obeyed": 1}},
    "stories": [{"ending": "The end.", "seed": 7, "text": "A tale.\nOf two lines. The end."}],
}


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> ModelFolder:
    """A model both ways, with hints, that was never trained."""
    config = ModelConfig(n_kv_head=1, vocab_size=tokenizer.vocab_size, **SHAPE)
    random = torch.Generator().manual_seed(1)
    weights = Transformer(config, generator=random).state_dict()
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    return ModelFolder(config, "both", "token", tokenizer, arrays, hints=True)


@pytest.fixture
def ship(model: ModelFolder, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that ships the model into a folder of models, through the script."""
    save_model(model, tmp_path / "run")
    script = runpy.run_path(str(SCRIPTS / "ship_model.py"))

    def shipped(
        name: str, about: dict[str, Any] = ABOUT, measures: dict[str, Any] = MEASURES
    ) -> Path:
        files = {"about": tmp_path / "about.json", "measures": tmp_path / "measures.json"}
        files["about"].write_text(json.dumps(about))
        files["measures"].write_text(json.dumps(measures))
        script["ship"](tmp_path / "run", name, models=tmp_path / "models", **files)
        return tmp_path / "models" / name

    return shipped


@pytest.fixture
def models(ship: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the built-in models `base` and `stories`, in the place of the package's."""
    ship("base")
    folder = ship("stories").parent
    monkeypatch.setattr(builtin, "MODELS", folder)
    return folder


def command(*arguments: object) -> int | str | None:
    """Run the command line in this process; return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code


def test_the_packages_own_models_are_whole() -> None:
    for name in names():
        verify(find(name))
        assert describe(name).card is not None


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "stories"])
def test_the_stories_in_a_card_are_what_the_model_writes_on_every_processor(name: str) -> None:
    card = describe(name).card
    assert card is not None
    assert card.measures is not None
    model = backgpt.load(name)
    for story in card.measures.stories:
        [text] = model.write(story.ending, seed=story.seed)
        assert text.text == story.text, story.seed


@needs_native
@pytest.mark.slow
def test_the_exchanges_in_a_card_are_what_the_model_writes_on_every_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)  # as for a script that is run
    card = describe("backchat").card
    assert card is not None
    assert card.chat_measures is not None
    written = runpy.run_path(str(SCRIPTS / "measure_chat.py"))["_shown"](backgpt.load("backchat"))
    assert tuple(written) == card.chat_measures.exchanges


def test_a_name_is_a_built_in_model_and_a_path_is_a_path(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "stories").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert names(models) == ["base", "stories"]
    assert find(models=models) == find("stories", models=models) == models / "stories"
    for path in ("./stories", Path("stories"), str(tmp_path / "here" / "stories")):
        assert find(path, models=models).resolve() == tmp_path / "here" / "stories"


def test_what_is_neither_names_the_built_in_models(models: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'storeis'.*base, stories"):
        find("storeis", models=models)
    with pytest.raises(DataError, match="no built-in model 'stories'"):
        find(models=tmp_path / "none")
    with pytest.raises(DataError) as error:
        find("storeis", models=tmp_path / "none")
    assert "built-in" not in str(error.value)


def test_half_written_folders_are_no_models(models: Path) -> None:
    (models / "base").rename(models / "base.tmp")
    (models / "empty").mkdir()
    assert names(models) == ["stories"]


def test_load_without_a_path_is_stories_and_runs_both_ways(models: Path) -> None:
    [text] = backgpt.load().write(ending="The end.", max_new_tokens=5, seed=1)
    [same] = backgpt.load(models / "stories").write(ending="The end.", max_new_tokens=5, seed=1)
    assert text.text == same.text
    assert backgpt.load("base", direction="forward").direction == "forward"


@pytest.mark.parametrize("option", [{"isa": "plain"}, {"dtype": "int8"}, {"threads": 1}])
def test_what_the_native_engine_takes_is_refused_for_torch(
    models: Path, option: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="for the native engine: leave them out"):
        backgpt.load(engine="torch", **option)


@needs_native
def test_without_a_gpu_the_device_auto_is_the_native_engine(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    native = type(backgpt.load().engine)
    assert type(backgpt.load(device="auto", threads=1).engine) is native
    assert type(backgpt.load(device="auto", engine="torch").engine) is not native
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    assert type(backgpt.load(device="auto").engine) is native


def test_with_a_gpu_the_device_auto_is_torch_on_it(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []

    def choose(name: str) -> torch.device:
        chosen.append(name)
        return torch.device("cpu")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("backgpt.devices.choose_device", choose)
    backgpt.load(device="auto")
    assert chosen == ["auto"]
    with pytest.raises(UsageError, match="for the native engine: leave them out"):
        backgpt.load(device="auto", threads=1)


@needs_native
def test_the_device_auto_takes_the_instruction_set_that_is_asked_for(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("BACKGPT_ISA", "abacus")
    assert command("sample", "--ending=x", "--device=auto") == 2
    assert "'abacus' is not to be had here" in capsys.readouterr().err


def test_sample_uses_stories_when_no_model_is_named(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("sample", "--ending", "The end.", "--max-new-tokens=5", "--seed=1") == 0
    text = capsys.readouterr().out
    assert text.endswith("The end.\n")
    folder = os.fspath(models / "stories")
    options = ("--ending", "The end.", "--max-new-tokens=5", "--seed=1")
    assert command("sample", "--model", folder, *options) == 0
    assert capsys.readouterr().out == text


def test_sample_tells_the_model_what_is_asked_and_json_whether_it_obeyed(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["sample", "--max-new-tokens=8", "--seed=1", "--json"]
    asked = ["--words", "cake, dog", "--length=short"]
    assert command(*options, "--ending", "The end.", *asked) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["asked"] == {"length": "short", "words": "cake dog"}
    assert set(record["obeyed"]) == {"length", "words"}
    assert record["text"].endswith("The end.")
    assert command(*options, *asked) == 0  # hints alone are enough
    assert json.loads(capsys.readouterr().out)["ending"] == ""
    assert command(*options, "--direction=forward", "--opening", "One day") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["text"].startswith("One day")
    assert "asked" not in record


def test_an_opening_alone_is_gone_on_from(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["sample", "--max-new-tokens=8", "--seed=1"]
    assert command(*options, "--opening", "My name is Anna and") == 0
    assert capsys.readouterr().out.startswith("My name is Anna and")
    assert command(*options, "--opening", "My name is Anna and", "--direction=backward") == 0
    out, err = capsys.readouterr()
    assert not out.startswith("My name is Anna and")
    assert err == "backgpt: not obeyed: opening; --best-of writes more and keeps what obeys most\n"


def test_what_was_not_obeyed_is_told_beside_the_texts(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["sample", "--ending=The end.", "--max-new-tokens=8", "--seed=1", "--length=long"]
    assert command(*options, "-n", "2", "--words=end") == 0
    assert "not obeyed: length by 2 of 2;" in capsys.readouterr().err
    assert command(*options, "--json") == 0
    assert capsys.readouterr().err == ""
    assert command(*options[:-1], "--length=short") == 0
    assert capsys.readouterr().err == ""
    assert command(*options, "--order=model") == 0
    told = capsys.readouterr().err
    assert re.search(r"not obeyed: length \(\d+ words; long is more than 180\);", told)
    for length, limits in (("medium", "131 to 180"), ("long", "more than 180")):
        assert command(*options[:-1], f"--length={length}") == 0
        assert f" words; {length} is {limits});" in capsys.readouterr().err
    assert command(*options[:-1], "--words=zebra,Snow Blue Sky,end") == 0
    assert "not obeyed: words (missing: zebra, Snow Blue Sky);" in capsys.readouterr().err


def test_where_nothing_was_written_sample_says_so_and_what_helps(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = Text("Once.", "Once.", "stop", -0.1, 1, 1, ModelIds(np.zeros(0, dtype=np.int64)))
    some = replace(empty, text="No. Once.", ids=ModelIds(np.array([300])))
    monkeypatch.setattr("backgpt.api.texts_of", lambda *_: iter([[empty, some]]))
    options = ["sample", "--ending=Once.", "-n", "2", "--seed=1"]
    assert command(*options) == 0
    told = capsys.readouterr().err
    assert "nothing was written for 1 of 2: to the model a text begins like this" in told
    assert "change its first words, or give a --length" in told
    assert command(*options, "--json") == 0
    assert capsys.readouterr().err == ""


def test_hints_change_what_sample_writes(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["sample", "--ending", "The end.", "--max-new-tokens=12", "--seed=1"]
    written = set()
    for hint in ([], ["--words=cake"], ["--length=long"], ["--opening=One day"]):
        assert command(*options, *hint) == 0
        written.add(capsys.readouterr().out)
    assert len(written) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model=nope"], ["'nope'", "base, stories"]),
        (["--words=,"], ["one of them is empty"]),
        (["--length=huge"], ["huge"]),
        (["--direction=up"], ["up"]),
    ],
)
def test_a_bad_request_is_one_line(
    models: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    assert command("sample", "--ending", "The end.", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err


def test_training_begins_from_a_built_in_model_by_its_name_and_resumes(
    models: Path, dataset_path: Path, tmp_path: Path
) -> None:
    class Silent:
        def started(self, *, first_step: int, max_steps: int) -> None: ...
        def stepped(self, record: object) -> None: ...
        def notice(self, text: str) -> None: ...

    def run(init: str | Path, name: str, lr: float = 1e-9) -> Path:
        settings = {**SHAPE, "data": dataset_path, "out": tmp_path / name, "max_steps": 1}
        rates = {"lr": lr, "muon_lr": lr, "compile": "off", "direction": "both", "batch_size": 2}
        config = TrainConfig.model_validate({**settings, **rates, "init": init})
        train(config, report=Silent())
        return tmp_path / name

    begun = read_model(run("base", "named"))
    stored = read_model(models / "base")
    for name, array in stored.weights.items():
        assert abs(begun.weights[name] - array).max() < 1e-5
    run("base", "named")  # the same run, resumed
    by_path = read_model(run(models / "base", "path"))
    run(models / "base", "path")
    for name, array in by_path.weights.items():
        assert (begun.weights[name] == array).all()
    with pytest.raises(DataError, match="bsae"):
        run("bsae", "other")


def test_a_shipped_model_is_int8_verified_and_has_its_card(
    ship: Callable[..., Path], model: ModelFolder
) -> None:
    folder = ship("stories")
    verify(folder)
    info = describe(folder)
    assert (info.storage, info.direction, info.hints) == ("int8", "both", True)
    assert info.n_parameters == sum(array.size for array in model.weights.values())
    assert info.size_bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert info.card == Card.model_validate({**ABOUT, "measures": MEASURES})


def test_the_card_says_what_it_was_made_of_and_shows_stories_as_they_came(
    ship: Callable[..., Path],
) -> None:
    text = (ship("stories") / README).read_text()
    head = text.split("---\n")[1]
    assert 'license_name: "cc0-1.0"' in head
    assert '"backward", "forward"' in head
    for words in (
        *("A model for tests.", "By nobody.", "It was never trained.", "backgpt train"),
        *("| backward | int8 | 3.2500 | 1.6250 |", "| words | 8 | 75% | 12% |", "| 25.0% |"),
        *("Ending `The end.`, seed 7", "> A tale.\n>\n> Of two lines. The end.", "model order"),
    ):
        assert words in text


@pytest.mark.parametrize(
    ("name", "about", "measures", "words"),
    [
        ("../up", ABOUT, MEASURES, "is no name"),
        ("x", {**ABOUT, "licens": "x"}, MEASURES, "unknown key 'licens'"),
        ("x", {k: v for k, v in ABOUT.items() if k != "data"}, MEASURES, "data is missing"),
        ("x", ABOUT, {**MEASURES, "losses": [{"set": "x"}]}, "losses.0.direction is missing"),
    ],
)
def test_a_bad_card_ships_nothing(
    ship: Callable[..., Path],
    tmp_path: Path,
    name: str,
    about: dict[str, Any],
    measures: dict[str, Any],
    words: str,
) -> None:
    with pytest.raises((BackgptError, ConfigError), match=words):
        ship(name, about, measures)
    assert not (tmp_path / "models").exists()


def test_shipping_again_replaces_the_model(ship: Callable[..., Path]) -> None:
    ship("stories", {**ABOUT, "description": "The first."})
    folder = ship("stories", {**ABOUT, "description": "The second."})
    verify(folder)
    card = read_card(folder / CARD)
    assert card is not None
    assert card.description == "The second."


def test_a_damaged_card_is_refused(tmp_path: Path) -> None:
    assert read_card(tmp_path / CARD) is None
    (tmp_path / CARD).write_text('{"description": ')
    with pytest.raises(CorruptFileError, match=CARD):
        read_card(tmp_path / CARD)
    (tmp_path / CARD).write_text('{"description": "x"}')
    with pytest.raises(CorruptFileError, match="is missing"):
        read_card(tmp_path / CARD)


def test_info_lists_the_built_in_models(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("info") == 0
    lines = capsys.readouterr().out.split("\n")
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("base: ")
    start = next(number for number, line in enumerate(lines) if line.startswith("stories: "))
    for value in ("MB", "both ways", "context 128"):
        assert value in lines[start]
    assert lines[start + 1].startswith("  loss     backward 3.250 (1.625), forward 2.750")
    assert lines[start + 2] == "  licence  CC0-1.0"
    assert lines[start + 3].startswith("  data ")
    assert "Tales" in lines[start + 3]


def test_info_of_one_model_by_name_or_path(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("base", models / "base"):
        assert command("info", name) == 0
        out = capsys.readouterr().out
        for words in ("weights as int8", "Tales (CC0-1.0) By nobody.", "never trained", "5.0M"):
            assert words in out
    assert command("info", "nope") == 2
    assert "base, stories" in capsys.readouterr().err


def test_info_as_json_is_one_object_a_line(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("info", "--json") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["name"] for record in records] == ["base", "stories"]
    assert records[0]["card"]["measures"]["losses"][1]["nats_per_token"] == 3.25
    assert records[0]["block_size"] == 128


def test_info_of_a_model_without_a_card_and_of_no_models(
    models: Path, model: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(model, models / "plain")
    assert command("info") == 0
    _, of_plain = capsys.readouterr().out.split("\nplain: ")
    assert "  loss     not measured\n" in of_plain
    assert command("info", "plain") == 0
    assert "weights as float32" in capsys.readouterr().out


def test_info_says_so_where_there_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(builtin, "MODELS", tmp_path)
    assert command("info") == 0
    assert "no built-in model" in capsys.readouterr().out
    assert command("info", "--json") == 0
    assert capsys.readouterr().out == ""


def test_info_loads_no_torch(models: Path) -> None:
    import subprocess

    program = (
        "import sys; from pathlib import Path; from backgpt import builtin; "
        f"builtin.MODELS = Path({str(models)!r})\nfrom backgpt.cli import main\n"
        "try: main(['info'])\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "stories" in done.stdout
    assert done.stdout.endswith("False\n")


def test_the_mean_of_two_models_is_the_first_with_other_weights(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = tiny_folder(tmp_path / "tuned", tokenizer, direction="both", hints=True)
    first = read_model(tuned)
    other = {name: np.full_like(array, 2.0) for name, array in first.weights.items()}
    save_model(replace(first, weights=other, hints=False), tmp_path / "base")
    average(tmp_path / "mean", f"{tuned}=0.75", f"{tmp_path / 'base'}=0.25")
    assert capsys.readouterr().out == (
        f"{tmp_path / 'mean'}: 0.75 {tuned} + 0.25 {tmp_path / 'base'}\n"
    )
    mean = read_model(tmp_path / "mean")
    assert (mean.hints, mean.direction) == (True, "both")
    for name, array in first.weights.items():
        assert mean.weights[name].dtype == np.float32
        np.testing.assert_allclose(mean.weights[name], 0.75 * array + 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (["{a}"], "'{a}' is not MODEL=SHARE, such as runs/stories=0.7"),
        (["{a}=x"], "'{a}=x' is not MODEL=SHARE, such as runs/stories=0.7"),
        (["{a}=0.7", "{b}=0.7"], "the shares add up to 1.4: let them add up to 1"),
        (["{a}=nan"], "the shares add up to nan: let them add up to 1"),
        (["{a}=0.5", "{a}=0.5"], "{a} is given twice: name each model once"),
        (
            ["{a}=0.5", "{c}=0.5"],
            "{c} runs forward by token, {a} backward by token: only models that run alike have a "
            "mean",
        ),
        (["{a}=0.5", "{b}=0.5"], "{b} has another shape or tokenizer than {a}"),
    ],
)
def test_what_has_no_mean_is_refused_in_one_line(
    tokenizer: Tokenizer, tmp_path: Path, models: list[str], said: str
) -> None:
    there = {"a": tiny_folder(tmp_path / "a", tokenizer)}
    there["b"] = tiny_folder(tmp_path / "b", tokenizer, intermediate_size=64)
    there["c"] = tiny_folder(tmp_path / "c", tokenizer, direction="forward")
    with pytest.raises(SystemExit) as ended:
        average(tmp_path / "mean", *(text.format(**there) for text in models))
    assert ended.value.code == "average_models: " + said.format(**there)
    assert not (tmp_path / "mean").exists()


def test_a_mean_is_not_written_over_what_is_there(tokenizer: Tokenizer, tmp_path: Path) -> None:
    run = tiny_folder(tmp_path / "run", tokenizer)
    before = {file: file.read_bytes() for file in run.iterdir()}
    with pytest.raises(SystemExit) as ended:
        average(run, f"{run}=1")
    assert ended.value.code == f"average_models: {run} is there already: name a folder to be made"
    assert {file: file.read_bytes() for file in run.iterdir()} == before


def average(*arguments: Path | str) -> None:
    """Run scripts/average_models.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["average_models.py", *map(str, arguments)])
        runpy.run_path(str(SCRIPTS / "average_models.py"), run_name="__main__")
