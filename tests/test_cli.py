"""The command line as a user meets it: exit codes, one line on stderr, the product on stdout."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rich.live import Live

import backgpt
from backgpt import run_folder
from backgpt.api import Model
from backgpt.bridge import BRIDGES_TRIED, Bridge
from backgpt.checkpoint import checkpoints
from backgpt.cli import main
from backgpt.cli.growing import lines_from_end, show_growing
from backgpt.cli.written import Printer
from backgpt.config import TrainConfig, to_toml
from backgpt.run import RunResult
from backgpt.shape import PRESETS
from backgpt.shards import open_dataset
from backgpt.verse import LINES_TRIED, Verse

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1"}
TRAIN = [
    *("--preset=nano", "--n-layer=2", "--n-head=1", "--n-embd=64", "--intermediate-size=96"),
    *("--block-size=64", "--batch-size=4"),
]


def backgpt_command(*arguments: Any, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "backgpt", *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
        check=False,
    )


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Assert one clear line on stderr with `words`, nothing on stdout, and the exit code."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    *_, line = done.stderr.strip().split("\n")
    assert line.startswith("backgpt: "), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in line


@pytest.fixture(scope="module")
def run(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained for a few steps through the command line."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    done = backgpt_command("train", *TRAIN, "--data", dataset_path, "--out", out, "--max-steps=8")
    assert done.returncode == 0, done.stderr
    assert re.search(r"8 steps, validation loss \d\.\d+ \(\d\.\d+ bits per byte\)", done.stdout)
    return out


def test_help_names_every_command() -> None:
    done = backgpt_command("--help")
    assert done.returncode == 0
    for command in ("prepare", "train", "sample"):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)


def test_version_is_the_packages() -> None:
    assert backgpt_command("--version").stdout.strip() == backgpt.__version__


def test_every_training_setting_is_a_flag_and_every_flag_a_setting() -> None:
    import inspect

    from backgpt.cli.train import train
    from backgpt.config import TrainConfig

    flags = set(inspect.signature(train).parameters) - {"context", "config"}
    assert flags == set(TrainConfig.model_fields)


def test_the_ending_stands_at_the_end_of_standard_output(run: Path) -> None:
    ending = "and they  lived\nhappily, ever after…"
    done = backgpt_command(
        "sample", "--model", run, "--ending", ending, "--max-new-tokens=12", "--seed=1"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(ending + "\n")
    assert len(done.stdout) > len(ending) + 5
    assert done.stderr == ""


@pytest.mark.slow
def test_prompt_is_the_same_flag_and_a_seed_repeats(run: Path) -> None:
    options = ["sample", "--model", run, "--max-new-tokens=12", "--seed=1"]
    first = backgpt_command(*options, "--ending", "The end.")
    second = backgpt_command(*options, "--prompt", "The end.")
    from_pipe = backgpt_command(*options, "--prompt", "-", text="The end.\n")
    other = backgpt_command(*options[:-1], "--seed=2", "--ending", "The end.")
    assert first.stdout == second.stdout == from_pipe.stdout != other.stdout


def test_json_has_what_a_program_needs(run: Path) -> None:
    done = backgpt_command(
        *("sample", "--model", run, "--ending", "The end.", "--max-new-tokens=6"),
        *("--num-samples=3", "--json", "--temperature=1.2", "--top-k=50", "--top-p=0.9"),
        *("--min-p=0.01", "--repetition-penalty=1.1", "--dry-multiplier=0.8"),
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == 3
    for record in records:
        assert set(record) == {
            *("text", "ending", "finish_reason", "logprob", "n_tokens"),
            *("tokens_per_second", "seed"),
        }
        assert record["text"].endswith("The end.")
        assert record["finish_reason"] in ("stop", "length")
        assert record["logprob"] < 0


def test_a_stream_into_a_pipe_is_the_plain_final_text(run: Path) -> None:
    options = ["sample", "--model", run, "--ending", "The end.", "--max-new-tokens=9", "--seed=3"]
    assert backgpt_command(*options, "--stream").stdout == backgpt_command(*options).stdout


def test_model_order_prints_the_ending_first(run: Path) -> None:
    done = backgpt_command(
        *("sample", "--model", run, "--ending", "The end.", "--max-new-tokens=9"),
        *("--order", "model"),
    )
    assert done.stdout.startswith(". end The")


def test_a_text_to_stop_at_ends_what_is_written_and_is_no_part_of_it(run: Path) -> None:
    options = ["sample", "--model", run, "--ending", "The end.", "--seed=1", "--max-new-tokens=30"]
    whole = backgpt_command(*options).stdout
    written = whole.removesuffix("The end.\n")
    middle = written[len(written) // 2 :][:3]
    done = backgpt_command(*options, "--stop", middle, "--stop", "never, never")
    assert done.stdout == whole[written.rindex(middle) + len(middle) :] != whole
    assert_refused(backgpt_command(*options, "--stop="), 2, "stop")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_what_goes_into_a_pipe_is_utf_8_whatever_the_locale(run: Path, encoding: str) -> None:
    def done(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "backgpt", "sample", "--model", str(run), *flags],
            capture_output=True,
            encoding="utf-8",
            env={**ENVIRONMENT, "PYTHONIOENCODING": encoding},
            check=False,
        )

    written = done("--ending", "中 The end.", "--max-new-tokens=3")
    assert written.returncode == 0, written.stderr
    assert written.stdout.endswith("中 The end.\n")
    assert "中" in done("--ending=x", "--device=中").stderr


@pytest.mark.parametrize(
    ("on_a_terminal", "wanted"),
    [(True, "é ? ?\n".encode("cp1252")), (False, "é 中 \\udcff\n".encode())],
)
def test_no_text_is_too_much_for_an_output(
    monkeypatch: pytest.MonkeyPatch, on_a_terminal: bool, wanted: bytes
) -> None:
    class Output(io.TextIOWrapper):
        def isatty(self) -> bool:
            return on_a_terminal

    for name in ("stdout", "stderr"):
        written = io.BytesIO()
        output = Output(written, encoding="cp1252", newline="\n")
        monkeypatch.setattr(sys, name, output)
        with pytest.raises(SystemExit):
            main(["--version"])
        print("é 中 \udcff", file=output, flush=True)
        assert written.getvalue().endswith(wanted)


def test_a_terminal_obeys_no_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Output(io.StringIO):
        def isatty(self) -> bool:
            return on_a_terminal

    evil = "a\tb\r\nc \x1b[31md\x07\x9b2J\r中👩\u200d👧\n"
    for on_a_terminal, wanted in (
        (True, "a\tb\r\nc \\x1b[31md\\x07\\x9b2J\\r中👩\u200d👧\n"),
        (False, evil),
    ):
        output = Output(newline="")
        monkeypatch.setattr(sys, "stdout", output)
        Printer(as_json=False).show({"text": evil})
        assert output.getvalue() == f"{wanted}\n"
        assert show_growing(iter([evil]), leftward=True) == evil
        assert output.getvalue().endswith(f"{wanted}\n")
        assert ("\x1b[31m" in output.getvalue()) is not on_a_terminal


def test_a_terminal_obeys_no_name_of_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Output(io.StringIO):
        def isatty(self) -> bool:
            return True

    file = tmp_path / "e\x1b[31mvil.txt"
    file.write_text("The end.")
    told, data = Output(), tmp_path / "\x1b[2Jdata"
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, told)
    for command in (["score"], ["prepare", "--workers=1", f"--out={data}"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, str(file)])
        assert ended.value.code == 0
    assert "e\\x1b[31mvil.txt" in told.getvalue()
    assert "\\x1b[2Jdata prepared" in told.getvalue()
    assert "\x1b[31m" not in told.getvalue()
    assert "\x1b[2J" not in told.getvalue()


def test_an_output_that_a_caller_has_put_in_place_is_written_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert output.getvalue() == f"{backgpt.__version__}\n"


def test_a_text_that_has_grown_has_no_line_breaks_but_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    pieces = ["to the park and saw a dog.\n\nThey played. ", "Once there was a cat who ran "]
    for leftward in (True, False):
        text = "".join(pieces[::-1] if leftward else pieces)
        shown = show_growing(iter(pieces), leftward=leftward, label="user: ")
        assert shown == text
        assert capsys.readouterr().out == f"user: {text}\n"


def test_what_has_grown_is_not_lost_by_an_interruption_and_nothing_high_is_drawn_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pieces() -> Iterator[str]:
        yield "They played. "
        yield "Once there was a cat. "
        raise KeyboardInterrupt

    drawn: list[str] = []
    monkeypatch.setattr(Live, "update", lambda self, lines: drawn.append(str(lines)))
    with pytest.raises(KeyboardInterrupt):
        show_growing(pieces(), "The end.", leftward=True)
    assert capsys.readouterr().out == "Once there was a cat. They played. The end.\n"
    assert drawn[-2:] == ["Once there was a cat. They played. The end.", ""]


def test_the_tokenizer_of_a_model_is_used_to_tune_it_later(run: Path, tmp_path: Path) -> None:
    source, file = tmp_path / "mine.txt", tmp_path / "tokenizer"
    source.write_text("He ran.\n\nShe sang.\n")
    tokenizer = backgpt.load(run).tokenizer
    tokenizer.save(file)
    command = ("prepare", source, "--separator=\\n\\n", "--tokenizer")
    for given in (run, file):
        out = tmp_path / f"of-{given.name}"
        done = backgpt_command(*command, given, "--out", out)
        assert done.returncode == 0, done.stderr
        assert "training: 2 documents" in done.stdout
        assert open_dataset(out).tokenizer.sha256 == tokenizer.sha256
    done = backgpt_command(*command, "none", "--out", tmp_path / "other")
    assert_refused(done, 2, "there is no model 'none'")
    assert not (tmp_path / "other").exists()


def test_a_seed_that_was_drawn_is_told_and_writes_the_same_again(run: Path) -> None:
    command = ("sample", "--model", run, "--ending=The end.", "--max-new-tokens=9", "-n", "2")
    done = backgpt_command(*command)
    found = re.fullmatch(r"backgpt: --seed (\d+) writes this again\n", done.stderr)
    assert found is not None
    again = backgpt_command(*command, "--seed", found[1])
    assert (again.stdout, again.stderr) == (done.stdout, "")
    assert backgpt_command(*command, "--json").stderr == ""


def test_a_text_that_found_no_beginning_is_told(run: Path) -> None:
    command = ("sample", "--model", run, "--ending=The end.", "--seed=1")
    record = json.loads(backgpt_command(*command, "--json").stdout)
    assert record["finish_reason"] == "length"
    assert "backgpt: 1 of 1 cut before the beginning: the model reads at most" in (
        backgpt_command(*command).stderr
    )
    assert backgpt_command(*command, "--max-new-tokens=3").stderr == ""


def test_many_samples_are_set_apart(run: Path) -> None:
    done = backgpt_command(
        "sample", "--model", run, "--ending", "The end.", "--max-new-tokens=5", "-n", "3"
    )
    assert len(done.stdout.split("\n---\n")) == 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--temperature=0"], ["temperature = 0", "top-k = 1"]),
        (["--temperature=-1"], ["temperature = -1"]),
        (["--top-p=0"], ["top-p = 0"]),
        (["--top-p=1.5"], ["top-p = 1.5"]),
        (["--top-k=0"], ["top-k = 0"]),
        (["--max-new-tokens=0"], ["max-new-tokens = 0"]),
        (["--num-samples=0"], ["n = 0"]),
        (["--seed=-1"], ["seed = -1"]),
        (["--opening=Once"], ["only runs backward", "twin"]),
        (["--prompt=x"], ["--prompt stands for"]),
        (["--device=quantum"], ["quantum"]),
        (["--order=sideways"], ["sideways"]),
        (["--stream", "--json"], ["--stream"]),
        (["--json", "--order=model"], ["--order"]),
        (["--stop=x", "--order=model"], ["--stop", "--order"]),
        (["--endin=x"], ["--endin"]),
    ],
)
def test_a_bad_request_to_sample_is_one_line_and_exit_code_2(
    run: Path, flags: list[str], words: list[str]
) -> None:
    done = backgpt_command("sample", "--model", run, "--ending", "The end.", *flags)
    assert_refused(done, 2, *words)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--ending=x", "--opening=Once", "--twin={run}"], ["does not run forward"]),
        (
            ["--ending=x", "--opening=Once", "--twin=stories"],
            ["different tokenizers", "same prepared data"],
        ),
        (["--ending=x", "--opening="], ["the opening is empty"]),
        (["--ending=x", "--opening=-"], ["standard input is empty"]),
        (["--ending=x", "--opening=x", "--prompt=x"], ["--prompt cannot be had with a bridge"]),
        (
            ["--ending=x", "--opening=x", "--stop=x", "--continues"],
            ["--continues, --stop cannot be had"],
        ),
        (["--ending=x", "--opening=x", "--order=model"], ["--order cannot be had with a bridge"]),
        (["--ending=x", "--opening=x", "--stream"], ["--stream cannot be had with a bridge"]),
        (
            ["--ending=x", "--opening=x", "--best-of=2", "--rank=both"],
            ["--rank cannot be had with a bridge"],
        ),
        (["--ending=x", "--opening=x", "--best-of=-1", "--num-samples=-1"], ["n = -1"]),
        (["--ending=x", "--best-of=0"], ["best-of = 0"]),
        (["--ending=x", "--best-of=2", "--stream"], ["--stream"]),
        (["--ending=x", "--best-of=2", "--rank=forward"], ["rank by 'forward'", "give its twin"]),
        (["--ending=x", "--best-of=2", "--rank=sideways"], ["sideways"]),
        (["--ending=x", "--best-of=2", "--continues"], ["ranking is for whole texts"]),
        (["--ending=x", "--best-of=2", "--stop=x"], ["ranking is for whole texts"]),
        (["--ending=x", "--rank=backward"], ["--rank and --twin", "--best-of"]),
        (["--ending=x", "--twin=stories"], ["--rank and --twin", "--best-of"]),
        (["--ending=x", "--best-of=1", "--rank=backward"], ["--best-of: give it as well, 2 or"]),
        (["--ending=x", "--around=x"], ["--ending, --around exclude each other"]),
        (["--ending=x", "--end-words=x"], ["--ending, --end-words exclude each other"]),
        (["--ending=x", "--lines=3"], ["--lines", "give --rhyme"]),
        (["--around="], ["the phrase is empty"]),
        (["--around=x"], ["only runs backward", "give its twin"]),
        (["--around=x", "--best-of=2"], ["--best-of cannot be had with --around"]),
        (["--around=x", "--words="], ["--words cannot be had with --around"]),
        (["--around=x", "--prompt="], ["--prompt cannot be had with --around"]),
        (["--around=x", "--rhyme=x"], ["--around, --rhyme exclude each other"]),
        (["--around=x", "--stream"], ["--stream cannot be had with --around"]),
        (["--end-words=a,,b"], ["one of them is empty"]),
        (["--end-words=a", "--length=short"], ["--length cannot be had with verse"]),
        (["--end-words=a", "--max-new-tokens=0"], ["--max-new-tokens cannot be had with verse"]),
        (["--end-words=a", "--twin=stories"], ["--twin cannot be had with verse"]),
        (["--end-words=a", "--lines=2"], ["--lines", "give --rhyme"]),
        (["--rhyme=x", "--lines=0"], ["lines = 0"]),
        (["--opening=-", "--ending=-"], ["- reads standard input: give it once"]),
        (["--end-words=a\udcff"], ["not UTF-8 at character 1, byte 0xff", "convert it"]),
        (["--rhyme=a\udcff"], ["a\\udcff", "the pronouncing dictionary"]),
    ],
)
def test_a_bad_request_for_another_kind_of_text_is_one_line_and_exit_code_2(
    run: Path,
    flags: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    with pytest.raises(SystemExit) as ended:  # in this process, which is faster
        main(["sample", "--model", str(run), *(flag.format(run=run) for flag in flags)])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    *_, line = err.splitlines()
    assert line.startswith("backgpt: ")
    assert "Traceback" not in err
    assert all(word in line for word in words), line


# What takes both directions is tried with a built-in model, which has them.
BOTH_WAYS = ("sample", "--seed=1", "--max-new-tokens=20")


def test_a_bridge_has_both_texts_byte_for_byte() -> None:
    opening, ending = "Once  there\twas a fox, ", "\n and that\nwas  all…"
    options = [*BOTH_WAYS, "--best-of=2", "--opening", opening, "--ending", ending]
    done = backgpt_command(*options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(opening)
    assert done.stdout.endswith(ending + "\n")
    assert len(done.stdout) > len(opening + ending) + 10
    assert done.stderr == ""
    [record] = map(json.loads, backgpt_command(*options, "--json").stdout.splitlines())
    assert set(record) == {
        *("text", "opening", "middle", "ending", "finish_reason", "logprob", "seed")
    }
    assert record["text"] + "\n" == done.stdout
    assert record["text"] == opening + record["middle"] + ending
    assert (record["opening"], record["ending"], record["seed"]) == (opening, ending, 1)


def test_what_a_bridge_does_not_obey_is_told() -> None:
    options = [*BOTH_WAYS, "--best-of=2", "--opening=One day,", "--ending=ran.", "--length=long"]
    done = backgpt_command(*options)
    assert re.search(r"not obeyed: length \(\d+ words; long is more than 180\);", done.stderr)
    [record] = map(json.loads, backgpt_command(*options, "--json").stdout.splitlines())
    assert record["asked"] == {"length": "long"}
    assert record["obeyed"] == {"length": False}


def test_of_more_bridges_the_best_are_shown_and_either_way_can_write_them() -> None:
    options = [*BOTH_WAYS, "--opening=Once there was a fox.", "--ending=-", "--json"]
    shown = {}
    for direction in ("backward", "forward"):
        done = backgpt_command(
            *options, "--direction", direction, "--num-samples=2", "--best-of=2", text="The end.\n"
        )
        records = [json.loads(line) for line in done.stdout.splitlines()]
        assert [record["ending"] for record in records] == ["The end."] * 2
        assert records[0]["logprob"] >= records[1]["logprob"]
        shown[direction] = [record["middle"] for record in records]
    assert not set(shown["backward"]) & set(shown["forward"])


def test_as_many_bridges_and_lines_are_tried_as_from_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[int] = []

    def bridge(_: Model, opening: str, ending: str, n: int, **__: object) -> list[Bridge]:
        tried.append(n)
        return []

    def verse(*_: object, candidates: int, **__: object) -> list[Verse]:
        tried.append(candidates)
        return []

    monkeypatch.setattr(Model, "bridge", bridge)
    monkeypatch.setattr(Model, "verse", verse)
    for asked in (("--opening=One day", "--ending=The end.", "-n2"), ("--end-words=day", "-n2")):
        with pytest.raises(SystemExit) as ended:
            main(["sample", "--seed=1", *asked])
        assert ended.value.code == 0
    assert tried == [2 * BRIDGES_TRIED, LINES_TRIED]


def test_a_text_around_a_phrase_has_it_byte_for_byte() -> None:
    phrase = "saw  a dög, "
    done = backgpt_command(*BOTH_WAYS, "--around=-", "--num-samples=2", "--json", text=phrase)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == 2
    for record in records:
        assert set(record) == {"text", "before", "phrase", "after", "complete", "seed"}
        assert record["text"] == record["before"] + phrase + record["after"]
        assert record["before"]
        assert record["after"]
    plain = backgpt_command(*BOTH_WAYS, "--around", phrase, "--num-samples=2").stdout
    assert plain == "\n---\n".join(record["text"] for record in records) + "\n"


@pytest.mark.slow
def test_the_best_of_several_texts_is_one_of_them_and_who_ranks_matters() -> None:
    options = [*BOTH_WAYS, "--ending=The end.", "--json"]
    # Each of the two has its number, and so its randomness, from the texts that it is the best of.
    first_eight = backgpt_command(*options, "--num-samples=8").stdout.splitlines()
    written = [json.loads(line)["text"] for line in first_eight]
    chosen = {}
    for method in ("backward", "forward", None):
        rank = ["--rank", method] if method else []
        done = backgpt_command(*options, "--num-samples=2", "--best-of=4", *rank)
        records = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(records) == 2
        assert "tokens_per_second" not in records[0]
        for number, record in enumerate(records):
            assert record["text"] in written[4 * number :][:4]
        chosen[method] = [record["text"] for record in records]
    assert chosen["backward"] != chosen["forward"]


@pytest.mark.slow
def test_a_twin_runs_against_the_way_an_opening_is_gone_on_from() -> None:
    best_of = ("--best-of=2", "--twin=stories", "--max-new-tokens=9", "--seed=1", "--json")
    done = backgpt_command("sample", "--opening=Once upon a time", *best_of)
    assert json.loads(done.stdout)["text"].startswith("Once upon a time")


def test_verse_has_a_line_for_each_word() -> None:
    done = backgpt_command("sample", "--end-words=night, light", "--seed=1", "--best-of=2")
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["night", "light"]
    done = backgpt_command(
        *("sample", "--end-words=day", "--seed=1", "--best-of=2", "--num-samples=2", "--json")
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    for record in records:
        assert set(record) == {"text", "lines", "end_words", "logprob", "seed"}
        assert record["lines"] == [record["text"]]
        assert record["text"].endswith(record["end_words"][0])
    assert records[0]["text"] != records[1]["text"]


def test_no_ending_and_too_long_an_ending_are_refused(run: Path) -> None:
    assert_refused(backgpt_command("sample", "--model", run), 2, '--ending "The end."')
    assert_refused(backgpt_command("sample", "--model", run, "--ending= \n"), 2, "is blank")
    assert_refused(backgpt_command("sample", "--model", run, "--ending="), 2, "'' is blank")
    long = backgpt_command("sample", "--model", run, "--ending", "and then " * 100)
    assert_refused(long, 2, "reads at most 64", "shorter")


def test_an_ending_from_a_pipe_that_is_not_utf_8_is_refused(run: Path) -> None:
    command = [sys.executable, "-m", "backgpt", "sample", "--model", str(run), "--ending", "-"]
    done = subprocess.run(command, input=b"ab\xffc", capture_output=True, check=False)
    assert done.returncode == 2
    assert b"byte 2" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["sample", "--length=huge"],
            "Invalid value for '--length': 'huge' is not one of 'short', 'medium', 'long': "
            "see 'backgpt sample --help'",
        ),
        (
            ["sample", "--ending"],
            "Option '--ending' requires an argument: see 'backgpt sample --help'",
        ),
        (["--nope"], "No such option: --nope: see 'backgpt --help'"),
        (["dance"], "No such command 'dance': see 'backgpt --help'"),
        (
            ["sample", "The end."],
            "Got unexpected extra argument(s) (The end.): "
            "try 'backgpt sample --ending \"The end.\"'",
        ),
        (
            ["info", "a", "b"],
            "Got unexpected extra argument(s) (b): see 'backgpt info --help'",
        ),
        (["train"], "say how long: --epochs 2.5 or --max-steps 1000"),
    ],
)
def test_a_bad_option_is_answered_by_what_to_do(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert capsys.readouterr().err == f"backgpt: {message}\n"


def test_an_interrupt_while_it_is_still_being_imported_is_no_traceback() -> None:
    program = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from backgpt.__main__ import main\nmain(['info'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "backgpt: interrupted\n")


@pytest.mark.parametrize("kept", ["as its cause", "in its message"])
def test_an_interrupt_that_a_library_put_an_error_around_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kept: str
) -> None:
    """Python does while a class is made, pydantic while a schema is, in its message alone."""

    def interrupted(*_: object, **__: object) -> None:
        if kept == "in its message":
            raise ValueError("KeyboardInterrupt:")
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("Error calling __set_name__") from error

    monkeypatch.setattr("backgpt.api.load", interrupted)
    with pytest.raises(SystemExit, match="130"):
        main(["sample", "--ending", "The end."])
    assert capsys.readouterr().err == "backgpt: interrupted\n"


def test_a_message_is_one_line_whatever_is_in_a_name(tmp_path: Path) -> None:
    odd = tmp_path / "a\nb\x1b[31m.txt"
    odd.write_bytes(b"\xff")
    assert_refused(backgpt_command("score", odd), 2, r"a\nb\x1b[31m.txt")


def test_out_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("backgpt.api.load", full)
    with pytest.raises(SystemExit) as stopped:
        main(["sample", "--ending", "The end."])
    assert stopped.value.code == 1


def test_rank_without_the_rest_of_torchrun_is_refused(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "RANK", "0")
    out = tmp_path / "run"
    done = backgpt_command("train", "--data", str(dataset_path), "--max-steps=1", f"--out={out}")
    assert_refused(done, 2, "RANK is set, WORLD_SIZE is not: start with torchrun, or unset RANK")
    assert not out.exists()


@pytest.mark.skipif(os.name != "posix", reason="needs a shell that closes files")
def test_what_a_shell_closed_is_nothing_to_read_and_nowhere_to_write() -> None:
    for arguments, code, told in (
        ("--version >&-", 0, ""),
        ("--version 2>&-", 0, ""),
        ("bogus 2>&-", 2, ""),
        ("chat <&-", 2, "backgpt: standard input is empty"),
    ):
        command = f"{shlex.quote(sys.executable)} -m backgpt {arguments}"
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (code, bool(told)), done.stderr
        assert done.stderr.startswith(told)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_standard_output_is_said(unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "backgpt", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    assert done.stderr == "backgpt: standard output or a file: No space left on device\n"


def test_missing_data_is_named() -> None:
    assert_refused(backgpt_command("train", "--max-steps=5"), 2, "give either data")


def test_no_command_shows_the_help() -> None:
    assert backgpt_command().stdout == backgpt_command("--help").stdout


def test_no_model_there_is_refused(tmp_path: Path) -> None:
    done = backgpt_command("sample", "--model", tmp_path / "none", "--ending", "x")
    assert_refused(done, 2, "none")


def test_an_unknown_direction_in_the_model_is_refused(run: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(checkpoints(run)[0], folder)
    (folder / "manifest.json").unlink()
    config = (folder / "config.json").read_text().replace('"backward"', '"sideways"')
    (folder / "config.json").write_text(config)
    done = backgpt_command("sample", "--model", folder, "--ending", "x")
    assert_refused(done, 2, "sideways", "direction")


def test_a_flipped_weight_is_refused(run: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(checkpoints(run)[0], folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    done = backgpt_command("sample", "--model", folder, "--ending", "x")
    assert_refused(done, 1, "model.safetensors", "damaged")


def test_prepare_says_what_it_made_and_peeks_in_both_orders(tmp_path: Path) -> None:
    source = tmp_path / "two.txt"
    source.write_text("The cat sat. The cat ran." * 20 + "<|endoftext|>" + "A dog sat. " * 30)
    out, valid = tmp_path / "data", tmp_path / "one.txt"
    valid.write_text("A cow ran.")
    done = backgpt_command(
        "prepare", source, "--out", out, "--vocab-size=300", f"--valid={valid}", "--peek=1"
    )
    assert done.returncode == 0, done.stderr
    assert "training: 2 documents, " in done.stdout
    assert ", 829 bytes, " in done.stdout
    assert "validation: 1 document, " in done.stdout
    assert "reading order: ' The'" in done.stdout
    assert "model order:   '.'" in done.stdout
    again = backgpt_command("prepare", source, "--out", out, "--vocab-size=300", f"--valid={valid}")
    assert "already prepared" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("missing.txt", None, 2, ["missing.txt"]),
        ("empty.txt", b"", 2, ["empty.txt"]),
        ("binary.txt", b"ab\x00cd", 2, ["binary.txt"]),
        ("latin.txt", b"caf\xe9 au lait", 2, ["latin.txt", "offset 3"]),
        ("bad.jsonl", b'{"text": "x"}\n{oops\n', 2, ["bad.jsonl:2"]),
        ("field.jsonl", b'{"story": "x"}\n', 2, ["field.jsonl:1", "text"]),
    ],
)
def test_a_source_that_cannot_be_read_is_named_and_nothing_is_written(
    tmp_path: Path, name: str, content: bytes | None, code: int, words: list[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = backgpt_command("prepare", tmp_path / name, "--out", tmp_path / "data")
    assert_refused(done, code, *words)
    assert not (tmp_path / "data").exists()


def test_an_empty_separator_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b c")
    done = backgpt_command(
        "prepare", tmp_path / "a.txt", "--out", tmp_path / "data", "--separator="
    )
    assert_refused(done, 2, "separator = ''")
    assert not (tmp_path / "data").exists()


def test_a_vocabulary_larger_than_uint16_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b c")
    done = backgpt_command(
        "prepare", tmp_path / "a.txt", "--out", tmp_path / "data", "--vocab-size=70000"
    )
    assert_refused(done, 2, "70000", "65536")


def test_no_source_is_refused() -> None:
    assert_refused(backgpt_command("prepare"), 2, "no source")


def test_an_unknown_key_in_toml_names_the_closest(tmp_path: Path, dataset_path: Path) -> None:
    (tmp_path / "run.toml").write_text("max_step = 3\n")
    done = backgpt_command(
        "train", "--config", tmp_path / "run.toml", "--data", dataset_path, "--out", tmp_path / "r"
    )
    assert_refused(done, 2, "unknown key 'max_step'", "'max_steps'", "run.toml")
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--direction=sideways"], ["sideways"]),
        (["--lr=-1"], ["lr = -1"]),
        (["--epochs=1"], ["max_steps or epochs"]),
        (["--preset=huge"], ["huge"]),
        (["--lr=fast"], ["--lr", "number"]),
    ],
)
def test_a_bad_training_setting_is_one_line_and_nothing_is_written(
    tmp_path: Path, dataset_path: Path, flags: list[str], words: list[str]
) -> None:
    out = tmp_path / "r"
    done = backgpt_command("train", "--data", dataset_path, "--out", out, "--max-steps=2", *flags)
    assert_refused(done, 2, *words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("in_file", "flag", "resolved"),
    [
        ("epochs = 3.0", "--max-steps=2", "max_steps = 2"),
        ("max_steps = 3", "--epochs=0.5", "epochs = 0.5"),
        ("epochs = 3.0\nmax_steps = 3", "--max-steps=2", "max_steps = 2"),
    ],
)
def test_a_length_on_the_command_line_wins_over_that_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_file: str, flag: str, resolved: str
) -> None:
    asked = []

    def job(settings: TrainConfig, **_: object) -> RunResult:
        asked.append(to_toml(settings).splitlines())
        return RunResult(tmp_path, 0, None, None)

    monkeypatch.setattr("backgpt.train.train", job)
    (tmp_path / "run.toml").write_text(f"{in_file}\nlr = 0.5\n")
    with pytest.raises(SystemExit) as ended:
        main(["train", "--config", str(tmp_path / "run.toml"), "--data=x", "--out=y", flag])
    assert ended.value.code == 0
    [settings] = asked
    lengths = [line for line in settings if line.startswith(("max_steps", "epochs"))]
    assert (lengths, "lr = 0.5" in settings) == ([resolved], True)


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ((50, 3.5), "run: 100 steps, validation loss 4.0000\nbest: step 50, 3.5000; "),
        ((100, 4.0), "run: 100 steps, validation loss 4.0000\n"),
        (None, "run: 100 steps, validation loss 4.0000\n"),
    ],
)
def test_train_says_which_step_a_run_folder_stands_for_if_it_is_not_the_last(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    best: tuple[int, float] | None,
    said: str,
) -> None:
    ended_so = RunResult(Path("run"), 100, 4.0, None, best)
    monkeypatch.setattr("backgpt.train.train", lambda _, **__: ended_so)
    with pytest.raises(SystemExit):
        main(["train", "--data=x", "--out=run", "--max-steps=100"])
    rest = "--model run takes that one\n" if "best" in said else ""
    assert capsys.readouterr().out == said + rest


def test_a_run_folder_of_the_wrong_type_in_a_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text("out = 5\nmax_steps = 3\n")
    with pytest.raises(SystemExit) as ended:
        main(["train", "--config", str(tmp_path / "run.toml"), "--data=x"])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "out = 5" in line


@pytest.mark.parametrize("command", ["train", "arrow"])
def test_help_names_all_presets(command: str) -> None:
    told = " ".join(backgpt_command(command, "--help").stdout.split())
    assert f"One of {', '.join(PRESETS)}." in told


@pytest.mark.slow
@pytest.mark.parametrize("change", ["flip", "cut", "tokenizer"])
def test_damaged_data_is_refused_before_the_run_begins(
    tmp_path: Path, dataset_path: Path, change: str
) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(dataset_path, data)
    shard = data / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    if change == "flip":
        content[-10] ^= 1
        shard.write_bytes(content)
    elif change == "cut":
        shard.write_bytes(content[:-10])
    else:
        tokenizer = (data / "tokenizer.json").read_text()
        (data / "tokenizer.json").write_text(tokenizer + "\n")
    done = backgpt_command("train", "--data", data, "--out", tmp_path / "r", "--max-steps=2")
    assert_refused(done, 2 if change == "tokenizer" else 1, str(data))
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_exits_and_the_same_command_goes_on(
    tmp_path: Path, dataset_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "r"
    arguments = ["train", *TRAIN, "--data", dataset_path, "--out", out, "--log-every=1"]
    command = [sys.executable, "-m", "backgpt", *map(str, arguments)]
    command += ["--max-steps=100000", "--compile=off"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    deadline = time.monotonic() + 60
    while not run_folder.read_metrics(out) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    stopped = re.search(r"stopped at step ([\d,]+) and saved it", errors)
    assert stopped
    step = int(stopped[1].replace(",", ""))
    assert checkpoints(out)[0].name == f"step-{step}"
    done = backgpt_command(*arguments, f"--max-steps={step + 2}")
    assert done.returncode == 0, done.stderr
    assert f"going on from step {step:,}" in done.stderr


@pytest.mark.slow
def test_a_resumed_run_needs_no_other_flag_than_its_folder(run: Path) -> None:
    done = backgpt_command("train", "--out", run)
    assert done.returncode == 0, done.stderr
    assert "8 steps" in done.stdout


def run_without(modules: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command where `modules` cannot be imported."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({modules!r}))\n"
        f"from backgpt.cli import main; main({arguments!r})"
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )


def test_training_without_torch_names_the_extra(dataset_path: Path) -> None:
    done = run_without(("torch",), "train", "--data", str(dataset_path), "--max-steps", "1")
    assert_refused(done, 2, "pip install 'backgpt[train]'", "'.[train]'")


def test_a_device_that_is_none_is_named_before_an_extra_is_asked_for() -> None:
    done = run_without(("torch",), "sample", "--ending=x", "--device=gpu")
    assert_refused(done, 2, "device = 'gpu' cannot be used here: try 'cpu' or 'auto'")
    done = run_without(("torch",), "sample", "--ending=x", "--device=cuda:1")
    assert_refused(done, 2, "needs the extra 'train'")


@pytest.mark.slow
def test_sampling_needs_torch_only_without_the_native_engine(run: Path) -> None:
    sample = ("sample", "--model", str(run), "--ending", "x", "--max-new-tokens", "5")
    native = "backgpt.engine._native"
    neither = run_without(("torch", native), *sample)
    assert_refused(neither, 2, "pip install 'backgpt[train]'")
    assert "runs in torch" not in neither.stderr
    assert_refused(run_without((native,), *sample, "--engine", "native"), 2, "C++ compiler")
    in_torch = run_without((native,), *sample)
    assert in_torch.returncode == 0
    notice, _ = in_torch.stderr.splitlines()
    assert "no native engine, so the model runs in torch" in notice
    if find_spec(native):
        assert run_without(("torch",), *sample).returncode == 0


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("aa bb cc dd", ["aa bb", "cc dd"]),
        ("aa bb cc", ["aa", "bb cc"]),
        ("aa\nbb cc dd\n", ["aa", "bb", "cc dd", ""]),
        ("longer-than-wide x", ["longer-than-wide", "x"]),
        ("", [""]),
    ],
)
def test_lines_fill_from_the_end(text: str, lines: list[str]) -> None:
    assert lines_from_end(text, 5) == lines


def test_what_was_shown_stays_where_it_is_while_text_grows_leftward() -> None:
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "the",
        "lazy",
        "dog",
        "and",
        "runs",
        "home",
    ]
    for start in range(1, len(words)):
        shorter = lines_from_end(" ".join(words[start:]), 20)
        longer = lines_from_end(" ".join(words[start - 1 :]), 20)
        assert longer[len(longer) - len(shorter) + 1 :] == shorter[1:]
        assert longer[-len(shorter)].endswith(shorter[0])


@pytest.mark.skipif(not find_spec("backgpt.engine._native"), reason="no native engine here")
def test_the_instruction_set_can_be_forced_and_a_wrong_one_is_named(run: Path) -> None:
    sample = [sys.executable, "-m", "backgpt", "sample", "--model", str(run), "--ending", "x"]
    for isa, code in (("plain", 0), ("abacus", 2)):
        done = subprocess.run(
            [*sample, "--max-new-tokens", "5"],
            capture_output=True,
            text=True,
            check=False,
            env={**ENVIRONMENT, "BACKGPT_ISA": isa},
        )
        assert done.returncode == code
    assert "'abacus' is not to be had here: choose" in done.stderr


def test_settings_of_the_native_engine_are_refused_for_torch(run: Path) -> None:
    sample = ("sample", "--model", run, "--ending", "x", "--engine", "torch")
    assert_refused(backgpt_command(*sample, "--dtype", "int8"), 2, "for the native engine")
    assert_refused(
        backgpt_command("sample", "--model", run, "--ending=x", "--engine=native", "--device=cuda"),
        2,
        "runs on the CPU, not on cuda",
    )


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("backgpt.engine._native"), reason="no native engine here")
def test_both_engines_write_the_same_text(run: Path) -> None:
    sample = ("sample", "--model", run, "--ending", "The end.", "--seed=3", "--max-new-tokens=40")
    native, other = (backgpt_command(*sample, f"--engine={e}").stdout for e in ("native", "torch"))
    assert native == other
