"""The documentation: examples that run, a current reference, links that lead somewhere."""

import re
import runpy
from dataclasses import asdict
from pathlib import Path

import pytest

import backgpt
from backgpt import arrow
from backgpt.config import TrainConfig, build
from backgpt.datasets.sources import NAMED_SOURCES
from backgpt.run import RunResult
from backgpt.train import train

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


class Silent:
    """A reporter that says nothing."""

    def started(self, *, first_step: int, max_steps: int) -> None: ...
    def stepped(self, record: object) -> None: ...
    def notice(self, text: str) -> None: ...


@pytest.fixture(scope="module")
def trained(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A small model where the README's example looks for one."""
    settings = {
        "data": dataset_path,
        "out": tmp_path_factory.mktemp("home") / "runs" / "first",
        "preset": "nano",
        "n_layer": 1,
        "n_head": 1,
        "n_embd": 64,
        "intermediate_size": 96,
        "block_size": 128,
        "batch_size": 4,
        "max_steps": 3,
    }
    return train(build(TrainConfig, settings, origin="test"), report=Silent())


def test_the_readme_s_story_is_what_the_model_writes() -> None:
    pytest.importorskip("backgpt.engine._native", reason="torch rounds otherwise")
    readme = (ROOT / "README.md").read_text()
    example = r'backgpt sample --ending "(.*)" --seed (\d+)\n```\n\n((?:>.*\n)+)'
    [(ending, seed, story)] = re.findall(example, readme)
    [text] = backgpt.load().write(ending, seed=int(seed))
    paragraphs = story.removeprefix("> ").rstrip().split("\n>\n> ")
    assert text.text.split("\n") == paragraphs


def test_the_readmes_python_example_runs(
    trained: RunResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (ROOT / "README.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(trained.run.parent.parent)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.count("The end.") >= 3
    assert "bits per byte" in printed


def test_the_chats_python_example_asks_and_shows_a_conversation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    [example] = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "backchat.md").read_text(), re.DOTALL
    )
    exec(compile(example, "backchat.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "assistant: See you tomorrow." in printed
    assert len(re.findall(r"^ *-\d+\.\d\d  \S", printed, re.MULTILINE)) == 5


def test_the_examples_of_the_python_page_print_what_it_shows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    examples = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", page, re.DOTALL)
    assert len(examples) == page.count("```python")
    session: dict[str, object] = {}  # one for all: later examples use what earlier ones made
    for example, shown in examples:
        exec(compile(example, "python.md", "exec"), session)
        printed = capsys.readouterr().out
        assert not shown or printed == shown, example


def test_the_command_line_reference_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "write_cli_reference.py"))
    assert script["reference"]() == (ROOT / "docs" / "cli.md").read_text(), (
        "run: python scripts/write_cli_reference.py"
    )


def test_the_reference_s_list_of_commands_has_whole_sentences() -> None:
    listed = re.findall(r"^\* `(\w+)`: (.*)", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE)
    assert {name for name, _ in listed} >= {"sample", "import"}
    assert [name for name, said in listed if not said.endswith(".") or said.endswith("...")] == []


def test_usage_names_arguments_in_capitals_and_dots_them_once() -> None:
    usages = re.findall(r"^\$ backgpt .*", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE)
    arguments = re.findall(r"[{[](\S+?)[}\]](?=[ .]|$)", "\n".join(usages), re.MULTILINE)
    assert {"SOURCE", "FILE", "MODEL", "OUT"} <= set(arguments)
    assert [one for one in arguments if not one.isupper() or "." in one] == []


def section_of(command: str) -> str:
    """Return what the reference says of a command."""
    reference = (ROOT / "docs" / "cli.md").read_text()
    [section] = re.findall(rf"^## `backgpt {command}`\n(.*?)(?=^## )", reference, re.M | re.S)
    return str(section)


def defaults_told(command: str) -> dict[str, str]:
    """Return the defaults that the reference tells of a command's options."""
    told = re.findall(
        r"^\* `(?:-n, )?--([\w-]+).*`: .*\[default: (.*)\]$", section_of(command), re.M
    )
    return {name.replace("-", "_"): default for name, default in told}


@pytest.mark.parametrize("command", ["prepare", "score", "arrow"])
def test_help_names_every_source_that_has_a_name(command: str) -> None:
    section = section_of(command)
    assert [name for name in NAMED_SOURCES if not re.search(rf"\b{name}(?!-)\b", section)] == []


def test_help_tells_the_defaults_of_all_training_settings_that_have_one() -> None:
    settings = TrainConfig(data=Path("data"), epochs=1.0).model_dump()
    in_words = {"data", "chat", "chat_valid", "epochs", "sample_endings", "tensorboard"}
    numbers = {name: f"{v:g}" if isinstance(v, float) else str(v) for name, v in settings.items()}
    expected = {
        name: numbers[name]
        for name, value in settings.items()
        if value is not None and name not in in_words
    }
    assert defaults_told("train") == expected


def test_help_tells_the_defaults_of_arrow_and_of_drawing() -> None:
    told = defaults_told("arrow")
    assert {key: told[key] for key in ("preset", "max_steps", "batch_size")} == {
        key: str(arrow.DEFAULTS[key]) for key in ("preset", "max_steps", "batch_size")
    }
    drawing = {
        name: f"{value:g}"
        for name, value in asdict(backgpt.Sampling()).items()
        if value is not None
    }
    assert drawing.items() <= defaults_told("sample").items()
    assert drawing.keys() & defaults_told("chat").keys() == {"temperature", "top_p", "min_p"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), target


def test_no_page_has_a_gap_to_be_filled() -> None:
    for page in PAGES:
        assert "@@" not in page.read_text(), page.name


def test_no_page_names_a_path_of_one_machine() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(work|root|home|tmp)/", page.read_text()), page.name
