"""`backgpt score` as a user meets it: tables, JSON lines, both twins, and what is refused."""

import gzip
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import backgpt
from backgpt.cli import main
from backgpt.model import Transformer
from backgpt.model_folder import ModelFolder, save_model
from backgpt.order import Directions, Unit
from backgpt.shape import ModelConfig
from backgpt.tokenizer import Tokenizer

BLOCK_SIZE = 64


def save_random_model(
    out: Path,
    tokenizer: Tokenizer,
    direction: Directions,
    *,
    seed: int = 1,
    unit: Unit = "token",
    block_size: int = BLOCK_SIZE,
    last_norm: float | None = None,
) -> None:
    config = ModelConfig(
        n_layer=1,
        n_head=1,
        n_kv_head=1,
        n_embd=64,
        block_size=block_size,
        intermediate_size=96,
        vocab_size=tokenizer.vocab_size,
    )
    weights = Transformer(config, generator=torch.Generator().manual_seed(seed)).state_dict()
    arrays = {name: tensor.numpy() * np.float32(3) for name, tensor in weights.items()}
    if last_norm is not None:
        arrays["model.norm.weight"][:] = last_norm
    save_model(ModelFolder(config, direction, unit, tokenizer, arrays), out)


@pytest.fixture(scope="module")
def models(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models that were never trained, by direction, and some that do not fit them."""
    folder = tmp_path_factory.mktemp("models")
    save_random_model(folder / "both", tokenizer, "both")
    save_random_model(folder / "backward", tokenizer, "backward")
    save_random_model(folder / "forward", tokenizer, "forward", seed=2)
    save_random_model(folder / "short", tokenizer, "forward", block_size=32)
    save_random_model(folder / "diverged", tokenizer, "both", last_norm=3e38)
    other = Tokenizer.train(["Some quite other text. " * 20], tokenizer.vocab_size)
    save_random_model(folder / "other", other, "forward")
    return folder


@pytest.fixture(scope="module")
def file(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few stories, most of them longer than the context, and a short text."""
    path = tmp_path_factory.mktemp("texts") / "stories.jsonl"
    lines = [json.dumps({"text": text}) for text in [*texts[:5], "  ", "The end."]]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


class Done:
    """What a command came to."""

    def __init__(self, code: Any, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def records(self) -> list[dict[str, Any]]:
        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is not JSON")

        return [json.loads(line, parse_constant=refuse) for line in self.out.splitlines()]


@pytest.fixture
def score(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs `backgpt score` in this process."""

    def run(*arguments: Any, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as exit_info:
            main(["score", *map(str, arguments)])
        printed = capsys.readouterr()
        return Done(exit_info.value.code, printed.out, printed.err)

    return run


def assert_refused(done: Done, *words: str) -> None:
    """Assert one clear line on stderr with `words`, nothing on stdout, and exit code 2."""
    assert (done.code, done.out) == (2, ""), done.err
    [line] = done.err.splitlines()
    assert line.startswith("backgpt: ")
    for word in words:
        assert word in line


def test_json_has_what_the_model_itself_says_of_each_text_both_ways(
    score: Any, models: Path, file: Path, texts: list[str]
) -> None:
    done = score(file, "--model", models / "both", "--json")
    assert done.code == 0, done.err
    backward = backgpt.load(models / "both")
    assert [record["origin"] for record in done.records] == [
        f"{file}:{n}" for n in (1, 2, 3, 4, 5, 7)
    ]
    for model in (backward, backward.turned()):
        expected = model.score_all([*texts[:5], "The end."])
        for record, one in zip(done.records, expected, strict=True):
            assert set(record) == {
                *("origin", "n_tokens", "n_bytes", "n_windows", "backward", "forward")
            }
            assert record["n_tokens"] == one.n_tokens
            assert record["n_bytes"] == one.n_bytes
            assert record["n_windows"] == one.n_windows
            figures = record[model.direction]
            assert figures["logprob"] == pytest.approx(one.logprob, rel=1e-5)
            assert figures["nats_per_token"] == pytest.approx(one.loss, rel=1e-5)
            assert figures["bits_per_byte"] == pytest.approx(one.bpb, rel=1e-5)


def test_texts_together_score_as_one_by_one(
    score: Any, models: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (file, "--model", models / "both", "--json", "--tokens")
    together = score(*command).records
    monkeypatch.setattr(sys.modules["backgpt.cli.score"], "TEXTS_TOGETHER", 1)
    for one, other in zip(score(*command).records, together, strict=True):
        for way in ("backward", "forward"):
            assert one[way].pop("token_logprobs") == pytest.approx(
                other[way].pop("token_logprobs"), abs=1e-4
            )
            assert one.pop(way) == pytest.approx(other.pop(way), rel=1e-5)
        assert one == other


def test_the_tables_last_row_is_the_sum_over_all_texts(
    score: Any, models: Path, file: Path
) -> None:
    records = score(file, "--model", models / "both", "--json").records
    done = score(file, "--model", models / "both")
    header, *rows, total, empty, legend = done.out.splitlines()
    assert header.split() == ["text", "tokens", "windows", "backward", "forward", "gap"]
    assert len(rows) == len(records) == 6
    assert rows[-1].split()[0].endswith("/stories.jsonl:7")
    n_tokens = sum(record["n_tokens"] for record in records)
    n_bytes = sum(record["n_bytes"] for record in records)
    losses = []
    for way in ("backward", "forward"):
        nats = -sum(record[way]["logprob"] for record in records)
        losses.append(nats / n_tokens)
        assert f"{nats / n_tokens:.3f} ({nats / math.log(2) / n_bytes:.3f})" in total
    assert total.startswith("6 texts in all")
    assert f" {n_tokens:,} " in total
    assert total.endswith(f"{losses[0] - losses[1]:+z.3f}")
    assert not empty
    assert legend == "nats per token (bits per byte); gap: backward minus forward"
    assert len({len(line) for line in (header, *rows, total)}) == 1


def test_the_summary_names_speed_empty_texts_and_windows_on_standard_error(
    score: Any, models: Path, file: Path
) -> None:
    done = score(file, "--model", models / "both", "--overlap=7")
    n_long = sum(
        record["n_windows"] > 1
        for record in score(file, "--model", models / "both", "--json").records
    )
    speed, empty, notice = done.err.splitlines()
    assert speed.startswith("6 texts, ")
    assert "scored backward and forward" in speed
    assert speed.endswith(" tokens/s")
    assert empty == "left out: 1 empty"
    assert notice == (
        f"longer than the {BLOCK_SIZE - 1} tokens that the model reads at once: {n_long} texts, "
        "scored in windows that overlap by 7 tokens"
    )


def test_the_overlap_changes_only_long_texts(score: Any, models: Path, file: Path) -> None:
    command = (file, "--model", models / "both", "--json")
    without, some = (score(*command, f"--overlap={n}").records for n in (0, 31))
    assert without == score(*command).records
    for one, other in zip(without, some, strict=True):
        for way in ("backward", "forward"):
            same = one[way]["logprob"] == pytest.approx(other[way]["logprob"], rel=1e-5)
            assert same == (one["n_windows"] == 1)


def test_tokens_stand_in_reading_order_with_their_markers(
    score: Any, models: Path, tokenizer: Tokenizer
) -> None:
    text = "Once there was a fox.\nThe end."
    command = ("-", "--model", models / "both", "--tokens")
    [record] = score(*command, "--json", stdin=text.encode() + b"\n").records
    assert record["tokens"][0] == "<|start|>"
    assert record["tokens"][-1] == "<|end|>"
    assert "".join(record["tokens"][1:-1]) == " Once there was a fox.\n The end."
    for way, given in (("backward", -1), ("forward", 0)):
        logprobs = record[way]["token_logprobs"]
        assert len(logprobs) == len(record["tokens"]) == record["n_tokens"] + 1
        assert logprobs.pop(given) is None
        assert sum(logprobs) == pytest.approx(record[way]["logprob"], abs=1e-3)

    lines = score(*command, stdin=text.encode()).out.splitlines()
    [first] = [line.split() for line in lines if "'<|start|>'" in line]
    [last] = [line.split() for line in lines if "'<|end|>'" in line]
    [line_break] = [line.split() for line in lines if "'\\n'" in line]
    index = record["tokens"].index("\n")
    assert first == ["'<|start|>'", f"{-record['backward']['token_logprobs'][0]:.3f}", "given"]
    assert last == ["'<|end|>'", "given", f"{-record['forward']['token_logprobs'][-1]:.3f}"]
    assert line_break[1] == f"{-record['backward']['token_logprobs'][index]:.3f}"


def test_standard_input_has_the_line_ends_of_files(score: Any, models: Path) -> None:
    command = ("-", "--model", models / "both", "--json")
    [one] = score(*command, stdin=b"One.\nTwo.\n").records
    [other] = score(*command, stdin=b"\xef\xbb\xbfOne.\r\nTwo.\r\n").records
    assert other == one


def test_standard_input_is_one_text(score: Any, models: Path) -> None:
    [record] = score(
        "-", "--model", models / "both", "--json", stdin=b"One.\n\nTwo.<|endoftext|>Three.\n"
    ).records
    assert record["origin"] == "standard input"
    assert record["n_bytes"] == len(b"One.\n\nTwo.<|endoftext|>Three.")


def test_a_direction_alone_has_one_column_and_no_gap(score: Any, models: Path, file: Path) -> None:
    both = score(file, "--model", models / "both", "--json").records
    for way in ("backward", "forward"):
        only = score(file, "--model", models / "both", "--direction", way, "--json").records
        assert [record[way] for record in only] == [record[way] for record in both]
        assert all(not {"backward", "forward"} - {way} & set(record) for record in only)
    done = score(file, "--model", models / "forward")
    assert done.out.splitlines()[0].split() == ["text", "tokens", "windows", "forward"]
    assert done.out.splitlines()[-1] == "nats per token (bits per byte)"


@pytest.mark.parametrize(("model", "twin"), [("backward", "forward"), ("forward", "backward")])
def test_twins_of_one_direction_each_are_told_apart_backward_first(
    score: Any, models: Path, file: Path, model: str, twin: str
) -> None:
    command = ("--model", models / model, "--twin", models / twin)
    records = score(file, *command, "--json").records
    for way in ("backward", "forward"):
        alone = score(file, "--model", models / way, "--json").records
        assert [record[way] for record in records] == [record[way] for record in alone]
    header = score(file, *command).out.splitlines()[0]
    assert header.split()[3:] == ["backward", "forward", "gap"]


def test_twins_that_cut_texts_at_other_places_are_told(
    score: Any, models: Path, file: Path
) -> None:
    done = score(file, "--model", models / "backward", "--twin", models / "short")
    assert "different contexts" in done.err.splitlines()[-1]
    assert "scored in windows\n" in done.err
    assert "these are not twins, " in done.err
    assert "they differ in block_size = 64, 32\n" in done.err
    done = score(file, "--model", models / "backward", "--twin", models / "forward")
    assert "not twins" not in done.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model=both", "--twin=forward"], ["its own twin", "--twin", "--direction"]),
        (["--model=backward", "--twin=backward"], ["backward", "backward model", "forward"]),
        (["--model=forward", "--twin=forward"], ["forward model", "backward"]),
        (["--model=backward", "--twin=other"], ["different tokenizers", "same prepared data"]),
        (["--model=backward", "--twin=none"], ["none"]),
        (["--model=backward", "--direction=forward"], ["backward model", "forward"]),
        (["--model=both", "--limit=0"], ["limit = 0"]),
        (["--model=both", "--overlap=-1"], ["overlap = -1", "from 0 to 62"]),
        (["--model=both", "--overlap=63"], ["overlap = 63", "from 0 to 62"]),
        (["--model=both", "--field=story"], ["stories.jsonl:1", "'story'"]),
        (["--model=both", "--direction=sideways"], ["sideways"]),
        (["--model=both", "--engine=torch", "--threads=1"], ["native engine"]),
    ],
)
def test_a_bad_request_is_one_line(
    score: Any,
    models: Path,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(models)
    flags = [flag.replace("--model=", "--model=./") for flag in flags]
    assert_refused(score(file, *flags), *words)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.txt", None, ["missing.txt"]),
        ("empty.txt", b"", ["empty.txt", "empty"]),
        ("blank.jsonl", b'{"text": " "}\n', ["blank.jsonl", "empty"]),
        ("latin.txt", b"caf\xe9 au lait", ["latin.txt", "offset 3"]),
        ("bad.jsonl", b"{oops\n", ["bad.jsonl:1"]),
        ("table.csv", b"a,b", ["table.csv"]),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    score: Any, models: Path, tmp_path: Path, name: str, content: bytes | None, words: list[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert_refused(score(tmp_path / name, "--model", models / "both"), *words)


def test_standard_input_that_is_no_text_is_refused(score: Any, models: Path) -> None:
    model = ("--model", models / "both")
    assert_refused(score("-", *model, stdin=b" \n"), "standard input is empty")
    assert_refused(score("-", *model, stdin=b"ab\xffc"), "not UTF-8 at byte 2")
    assert_refused(score("-", *model, "--separator=x", stdin=b"a"), "--separator")


def test_texts_are_printed_while_others_are_still_to_be_read(
    score: Any, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "half.jsonl"
    path.write_text('{"text": "One."}\n{"text": "Two."}\n{"text": "Three."}\n{oops\n')
    monkeypatch.setattr(sys.modules["backgpt.cli.score"], "TEXTS_TOGETHER", 2)
    command = (path, "--model", models / "both", "--json")
    broken = score(*command)
    assert broken.code == 2
    assert "half.jsonl:4" in broken.err
    assert len(broken.records) == 2
    assert len(score(*command, "--limit=3").records) == 3


def test_packed_files_folders_and_separators_are_read(
    score: Any, models: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("One.\n--\nTwo.\n--\nThree.")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "Four."}\n'))
    command = ("--model", models / "both", "--json")
    origins = [record["origin"] for record in score(tmp_path, *command).records]
    assert origins == [f"{tmp_path / 'a.txt'}#1", f"{tmp_path / 'b.jsonl.gz'}:1"]
    split = score(tmp_path / "a.txt", *command, "--separator=\\n--\\n").records
    assert [record["n_bytes"] for record in split] == [4, 4, 6]


def test_a_model_that_gives_what_is_not_a_number_is_one_line(
    score: Any, models: Path, file: Path
) -> None:
    done = score(file, "--model", models / "diverged", "--json", "--limit=1")
    assert (done.code, done.records) == (1, [])
    assert done.err == (
        "backgpt: the model gives what is not a number: its weights are damaged, get them anew\n"
    )


def test_the_built_in_model_scores_its_own_kind_of_text_well_in_a_process_of_its_own() -> None:
    text = "Once upon a time, there was a little girl named Lily. She liked to play in the park."
    command = [sys.executable, "-m", "backgpt", "score", "-", "--json"]
    likely, unlikely = (
        subprocess.run(command, input=given, capture_output=True, text=True, check=True)
        for given in (text, " ".join(sorted(text.split())))
    )
    for way in ("backward", "forward"):
        assert json.loads(likely.stdout)[way]["bits_per_byte"] < 1
        assert json.loads(unlikely.stdout)[way]["bits_per_byte"] > 2
    assert likely.stderr.startswith("1 text, ")
