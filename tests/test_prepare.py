"""The data job: the same bytes however it was run, no text in two splits, nothing half-written."""

import json
import lzma
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backgpt import parts
from backgpt.datasets import StreamedDocument, TextStream, find_source, sample
from backgpt.datasets.hub import HUB_FILES
from backgpt.datasets.sources import OFFICIAL_VALID
from backgpt.errors import BackgptError, ConfigError, CorruptFileError, DataError, UsageError
from backgpt.prepare import prepare
from backgpt.prepared import PrepareReport, peek
from backgpt.shards import Shard, open_dataset
from backgpt.tokenizer import Tokenizer

STORIES = [
    f"Once upon a time there was a cat number {n}.\n\nIt had {n % 7} friends. The end."
    for n in range(400)
]
SMALL = {"vocab_size": 300, "chunk_bytes": 2_000, "workers": 1}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(STORIES), encoding="utf-8")
    return path


def run(source: Path | str, out: Path, **changes: Any) -> PrepareReport:
    options: dict[str, Any] = {**SMALL, **changes}
    return prepare([str(source)], out, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def texts(out: Path, shards: tuple[Shard, ...]) -> list[str]:
    decode = Tokenizer.load(out / "tokenizer.json").decode
    return [decode(ids) for shard in shards for ids in shard.documents()]


def test_every_document_is_in_exactly_one_split_and_in_order(corpus: Path, tmp_path: Path) -> None:
    report = run(corpus, tmp_path / "out", valid_fraction=0.1)
    dataset = open_dataset(tmp_path / "out")
    train, valid = (texts(tmp_path / "out", shards) for shards in (dataset.train, dataset.valid))
    assert len(valid) in range(20, 61)
    assert train == [story for story in STORIES if story not in valid]
    assert valid == [story for story in STORIES if story in valid]
    assert (report.train.documents, report.valid.documents) == (len(train), len(valid))
    assert report.train.text_bytes == sum(len(text.encode()) for text in train)
    assert report.train.tokens == dataset.train[0].n_tokens
    lengths = [len(text.encode()) for text in train]
    assert dataset.train[0].document_bytes.tolist() == lengths


def test_a_finished_folder_holds_only_the_dataset(corpus: Path, tmp_path: Path) -> None:
    report = run(corpus, tmp_path / "out")
    names = {"dataset.json", "tokenizer.json", "train-00000.bin", "valid-00000.bin"}
    assert set(contents(tmp_path / "out")) == names
    about = json.loads((tmp_path / "out/dataset.json").read_text())
    assert about["train"]["tokens"] == report.train.tokens
    assert about["tokenizer_sha256"] == Tokenizer.load(tmp_path / "out/tokenizer.json").sha256


def test_the_number_of_workers_does_not_change_a_byte(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "one", workers=1)
    run(corpus, tmp_path / "three", workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_the_size_of_chunks_does_not_change_a_shard(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "small", chunk_bytes=700)
    run(corpus, tmp_path / "large", chunk_bytes=1 << 20)
    small, large = contents(tmp_path / "small"), contents(tmp_path / "large")
    for name in ("tokenizer.json", "train-00000.bin", "valid-00000.bin"):
        assert small[name] == large[name]


@pytest.mark.parametrize(("stage", "times"), [("sample", 1), ("encode", 5), ("merge", 2)])
def test_an_interrupted_run_continues_to_the_same_bytes(
    corpus: Path, tmp_path: Path, stage: str, times: int
) -> None:
    left = times

    def interrupt(at: str, done: int, total: int) -> None:
        nonlocal left
        left -= at == stage
        if left == 0:
            raise KeyboardInterrupt

    run(corpus, tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path / "out", progress=interrupt)
    with pytest.raises(DataError):
        open_dataset(tmp_path / "out")
    run(corpus, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


def test_a_dataset_can_be_opened_only_when_all_its_shards_are_there(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = Path.replace

    def refuse_the_last(path: Path, target: Path) -> Path:
        if target == tmp_path / "out/train-00000.bin":
            raise KeyboardInterrupt
        return move(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse_the_last)
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tmp_path / "out", shard_tokens=1_000)
    assert (tmp_path / "out/train-00003.bin").exists()
    with pytest.raises(DataError, match="let 'backgpt prepare' finish"):
        open_dataset(tmp_path / "out")
    run(corpus, tmp_path / "out", shard_tokens=1_000)
    run(corpus, tmp_path / "unbroken", shard_tokens=1_000)
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


def test_a_continued_run_encodes_only_what_is_missing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "merge":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path / "out", progress=interrupt)
    victim = tmp_path / "out/.work/part-000003.train.bin"
    victim.write_bytes(victim.read_bytes()[:-1])
    written: list[int] = []
    write = parts._write_parts

    def recorded(chunk: Any, *rest: Any) -> None:
        written.append(chunk.index)
        write(chunk, *rest)

    monkeypatch.setattr(parts, "_write_parts", recorded)
    run(corpus, tmp_path / "out")
    assert written == [3]
    assert open_dataset(tmp_path / "out").train


KILLED = """
import os, signal, sys
from pathlib import Path
from backgpt.prepare import prepare

def progress(stage, done, total):
    if stage == "encode" and done > total / 3:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    prepare([sys.argv[1]], Path(sys.argv[2]), vocab_size=300, chunk_bytes=2000, workers=2,
            progress=progress)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_a_killed_run_leaves_no_process_and_continues_to_the_same_bytes(
    corpus: Path, tmp_path: Path
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(corpus), str(tmp_path / "out")]
    # The workers share the pipe: it ends, and `run` returns, only when all of them are gone.
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "out/.work").glob("part-*.bin"))
    run(corpus, tmp_path / "out")
    run(corpus, tmp_path / "unbroken")
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


def test_a_finished_dataset_is_not_made_again(corpus: Path, tmp_path: Path) -> None:
    first = run(corpus, tmp_path / "out")
    before = contents(tmp_path / "out")
    again = run(corpus, tmp_path / "out")
    assert again.reused
    assert again.train == first.train
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["train-00000.bin", "valid-00000.bin", "tokenizer.json"])
def test_a_file_deleted_from_a_finished_dataset_is_made_again(
    corpus: Path, tmp_path: Path, name: str
) -> None:
    run(corpus, tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    assert not run(corpus, tmp_path / "out").reused
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    "damage", [{"train": 7}, {"notes": None}, {"train": {"shards": 1, "more": 2}}, {"job": None}]
)
def test_a_damaged_dataset_file_is_named(
    corpus: Path, tmp_path: Path, damage: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    run(corpus, out)
    about = json.loads((out / "dataset.json").read_text())
    about |= damage if "job" not in damage else {}
    kept = {key: value for key, value in about.items() if value is not None}
    (out / "dataset.json").write_text(json.dumps(kept) if "job" not in damage else "[" * 100_000)
    with pytest.raises(CorruptFileError, match=r"dataset.json is damaged: remove its folder"):
        run(corpus, out)


def test_a_shard_that_was_cut_off_is_not_already_prepared(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(corpus, out)
    shard = out / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(CorruptFileError, match=r"train-00000.bin has 1000 bytes"):
        run(corpus, out)


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_two_processes_do_not_prepare_one_folder(corpus: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def second(stage: str, done: int, total: int) -> None:
        if stage == "sample" and done == total:  # nothing is encoded yet
            for changes in ({}, {"vocab_size": 310}):
                with pytest.raises(UsageError, match="another process is writing to"):
                    run(corpus, tmp_path / "out", **changes)
                refused.append(stage)

    run(corpus, tmp_path / "out", progress=second)
    assert refused == ["sample", "sample"]
    assert open_dataset(tmp_path / "out").tokenizer.vocab_size == 300


def test_what_cannot_be_read_twice_or_at_all_is_told(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe.txt", tmp_path / "link.txt"
    link.symlink_to(tmp_path / "gone.txt")
    os.mkfifo(pipe)
    for source, told in (
        (str(pipe), "is no plain file, and is read twice: copy it into one first"),
        (str(tmp_path / "l*.txt"), r"cannot read .*link.txt: No such file.*; leave it out"),
        ("", "the source is empty: give a file"),
    ):
        with pytest.raises(DataError, match=told):
            run(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_other_settings_do_not_overwrite_a_dataset(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"vocab_size = 300, not 310.*choose another --out"):
        run(corpus, tmp_path / "out", vocab_size=310)
    corpus.write_text("Another story.")
    with pytest.raises(ConfigError, match=r"\(sources\)"):
        run(corpus, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_a_source_mended_after_an_error_is_simply_read(corpus: Path, tmp_path: Path) -> None:
    good = corpus.read_bytes()
    corpus.write_bytes(good + b"\xff")
    with pytest.raises(DataError, match=f"offset {len(good)}"):
        run(corpus, tmp_path / "out")
    corpus.write_bytes(good)
    assert not run(corpus, tmp_path / "out").reused


def test_a_folder_with_other_things_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not empty and not a dataset"):
        run(corpus, tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        run(corpus, corpus)
    assert set(contents(tmp_path)) == {"stories.txt"}


def test_identical_documents_are_kept_once_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [*STORIES[:50], " \n", *STORIES[:20], f"  {STORIES[0]}\r\n"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    report = run(path, tmp_path / "out", valid_fraction=0)
    assert (report.duplicates, report.empty, report.train.documents) == (21, 1, 50)


def test_a_given_validation_set_is_never_trained_on(corpus: Path, tmp_path: Path) -> None:
    valid = tmp_path / "valid.txt"
    valid.write_text(f"{STORIES[7]}<|endoftext|>Only here.<|endoftext|>{STORIES[9]}")
    report = run(corpus, tmp_path / "out", valid=[str(valid)], valid_fraction=0.5)
    dataset = open_dataset(tmp_path / "out")
    assert texts(tmp_path / "out", dataset.valid) == [STORIES[7], "Only here.", STORIES[9]]
    train = texts(tmp_path / "out", dataset.train)
    assert train == [story for n, story in enumerate(STORIES) if n not in (7, 9)]
    assert (report.also_in_valid, report.duplicates) == (2, 0)


def test_an_official_validation_set_comes_with_its_source(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = tmp_path / "valid.txt"
    valid.write_text("Only here.")
    monkeypatch.setitem(OFFICIAL_VALID, str(corpus), str(valid))
    report = run(corpus, tmp_path / "out", valid_fraction=0.5)
    assert (report.valid.documents, report.train.documents) == (1, len(STORIES))


def test_official_validation_sets_are_known_sources() -> None:
    for pair in OFFICIAL_VALID.items():
        assert set(pair) <= set(HUB_FILES)


def test_a_text_is_in_the_same_split_whatever_stands_around_it(
    corpus: Path, tmp_path: Path
) -> None:
    def split_of(path: Path) -> dict[str, str]:
        stream = TextStream([(find_source(str(path)), None)], valid_fraction=0.3)
        return {document.text: document.split for document in stream}

    other = tmp_path / "other.txt"
    other.write_text("<|endoftext|>".join(["New one.", *reversed(STORIES[::3])]))
    whole, some = split_of(corpus), split_of(other)
    assert {some[story] for story in STORIES[::3]} == {"train", "valid"}
    assert all(whole[story] == some[story] for story in STORIES[::3])


def test_a_larger_validation_split_contains_the_smaller_one(corpus: Path) -> None:
    def valid(fraction: float) -> set[str]:
        stream = TextStream([(find_source(str(corpus)), None)], fraction)
        return {document.text for document in stream if document.split == "valid"}

    assert valid(0.1) < valid(0.3)


def test_what_is_sampled_does_not_depend_on_the_split(corpus: Path) -> None:
    stream = TextStream([(find_source(str(corpus)), None)], valid_fraction=0.5)
    low = [document.sample_hash < 1 << 63 for document in stream if document.split == "train"]
    assert 0.35 < sum(low) / len(low) < 0.65


def test_a_sample_is_bounded_and_spread_over_the_stream() -> None:
    hashes = [n * 0x9E3779B97F4A7C15 % (1 << 64) for n in range(1000)]
    stream = [StreamedDocument(f"{n:010d}", 10, "train", value) for n, value in enumerate(hashes)]
    chosen = [int(text) for text in sample(stream, 2_000)]
    assert len(chosen) in range(80, 201)
    assert chosen == sorted(chosen)
    assert [sum(n // 250 == quarter for n in chosen) > 15 for quarter in range(4)] == [True] * 4
    assert sample(stream, 10_000) == [document.text for document in stream]


def test_the_tokenizer_is_trained_on_training_text_only(corpus: Path, tmp_path: Path) -> None:
    valid = tmp_path / "valid.txt"
    valid.write_text("zyzzyva zyzzyva zyzzyva zyzzyva " * 50)
    run(corpus, tmp_path / "with", valid=[str(valid)])
    run(corpus, tmp_path / "without", valid_fraction=0)
    names = ("with/tokenizer.json", "without/tokenizer.json")
    assert (tmp_path / names[0]).read_bytes() == (tmp_path / names[1]).read_bytes()


def test_shards_are_bounded_and_together_hold_the_same(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "one")
    report = run(corpus, tmp_path / "many", shard_tokens=1_000)
    one, many = open_dataset(tmp_path / "one"), open_dataset(tmp_path / "many")
    assert report.train.shards == len(many.train) > 3
    assert all(shard.n_tokens <= 1_000 for shard in many.train)
    assert min(shard.n_tokens for shard in many.train[:-1]) > 900
    assert [ids.tolist() for shard in many.train for ids in shard.documents()] == [
        ids.tolist() for shard in one.train for ids in shard.documents()
    ]


def test_a_document_longer_than_a_shard_gets_one_to_itself(corpus: Path, tmp_path: Path) -> None:
    corpus.write_text("<|endoftext|>".join(STORIES[:9]))
    report = run(corpus, tmp_path / "out", shard_tokens=1, valid_fraction=0)
    assert report.train.shards == report.train.documents == 9


def test_a_given_tokenizer_is_used_as_it_is(corpus: Path, tmp_path: Path) -> None:
    given = Tokenizer.train(["completely different words " * 9], 280)
    given.save(tmp_path / "tokenizer.json")
    report = run(corpus, tmp_path / "out", tokenizer=tmp_path / "tokenizer.json")
    assert (report.tokenizer_sha256, report.vocab_size) == (given.sha256, given.vocab_size)
    assert report.notes == ()
    assert open_dataset(tmp_path / "out").train[0].tokenizer_sha256 == given.sha256


def test_a_corpus_too_small_for_the_vocabulary_says_so(corpus: Path, tmp_path: Path) -> None:
    report = run(corpus, tmp_path / "out", vocab_size=4096)
    assert report.vocab_size < 4096
    assert report.notes[0].startswith("The text is too small for 4096 ids")


def test_an_empty_validation_split_says_so(corpus: Path, tmp_path: Path) -> None:
    report = run(corpus, tmp_path / "out", valid_fraction=0)
    assert open_dataset(tmp_path / "out").valid == ()
    assert any("--valid-fraction" in note for note in report.notes)


def test_no_training_text_is_an_error(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no document is left for training"):
        run(corpus, tmp_path / "out", valid=[str(corpus)])
    Tokenizer.train(STORIES, 280).save(tmp_path / "t.json")
    with pytest.raises(DataError, match="no document is left for training"):
        run(corpus, tmp_path / "out2", valid=[str(corpus)], tokenizer=tmp_path / "t.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 65_537}, "vocab_size = 65537"),
        ({"vocab_size": 10}, "vocab_size = 10"),
        ({"valid_fraction": 1.0}, r"valid_fraction = 1\.0"),
        ({"valid_fraction": -0.1}, r"valid_fraction = -0\.1"),
        ({"workers": 0}, "workers = 0"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_written(
    corpus: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(corpus, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_a_missing_source_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no"):
        run("nothing.txt", tmp_path / "out")
    with pytest.raises(ConfigError, match="no source"):
        prepare([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_in_one_line_and_the_run_continues(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(parts, "_copy", full)
        with pytest.raises(BackgptError, match=r"No space left on device.*run again"):
            run(corpus, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.bin"))
    assert run(corpus, tmp_path / "out").train.documents


def die(chunk: object) -> None:
    os._exit(9)


def test_a_worker_that_dies_is_told_in_one_line(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_work", die)
    with pytest.raises(BackgptError, match="a worker process ended early"):
        run(corpus, tmp_path / "out", workers=2)


def test_progress_only_grows_and_ends_at_the_total(corpus: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    run(corpus, tmp_path / "out", workers=2, progress=lambda *values: seen.append(values))
    for stage in ("sample", "encode", "merge"):
        done = [values[1] for values in seen if values[0] == stage]
        assert done == sorted(done)
        assert done[-1] == next(values[2] for values in seen if values[0] == stage)


def test_peek_shows_documents_in_both_orders(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "out")
    first, last = peek(tmp_path / "out", 2)
    assert first.text in STORIES
    assert last.text in STORIES
    assert "".join(first.reading).removeprefix(" ").replace("\n ", "\n") == first.text
    assert first.model == tuple(reversed(first.reading))
    assert len(peek(tmp_path / "out", 10_000)) == len(open_dataset(tmp_path / "out").train[0])


def test_the_builtin_corpus_can_be_prepared(tmp_path: Path) -> None:
    report = prepare(["builtin"], tmp_path / "out", vocab_size=400)
    assert report.train.documents > 10


def test_a_long_file_of_text_that_is_one_document_is_told(tmp_path: Path) -> None:
    novel, lines, packed = (tmp_path / f"novel{end}" for end in (".txt", ".jsonl", ".txt.xz"))
    text = "".join(f"He ran {n} miles.\n\n" for n in range(3_000))
    novel.write_text(text)
    packed.write_bytes(lzma.compress(text.encode()))
    lines.write_text(json.dumps({"text": text}) + "\n")
    for source, separator, is_told in (
        (novel, None, True),
        (novel, "\n\n", False),
        (packed, None, True),
        (lines, None, False),  # where nothing would be split
    ):
        out = tmp_path / f"out-{source.suffix}-{bool(separator)}"
        report = run(source, out, vocab_size=300, separator=separator)
        assert any("--separator" in note for note in report.notes) == is_told
