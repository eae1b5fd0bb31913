"""Gathering the texts of a base model: what is read, which share of it, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "base_corpus.py"
FILES = {
    "tinystories": ("train", "train_recased"),
    "stories": ("simplestories", "picturebooks", "fairytales", "gutenberg_tales"),
    "prose": ("simplewiki", "learner_english", "children_books", "fiction_easy"),
    "dolly": ("train",),
    "chat": ("oasst1_en_messages",),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two hundred texts in each file, and held-out ones that nothing may read."""
    for folder, names in FILES.items():
        (tmp_path / "data" / folder).mkdir(parents=True)
        for name in (*names, "valid"):
            lines = [json.dumps({"text": f"{folder} {name} {i}"}) + "\n" for i in range(200)]
            (tmp_path / "data" / folder / f"{name}.jsonl").write_text("".join(lines))
    return tmp_path / "data"


def gathered(data: Path, *shares: str) -> tuple[list[str], str, int]:
    """Return the texts that the script writes, what it says, and its exit code."""
    out = data.parent / "base.jsonl"
    options = [part for share in shares for part in ("--share", share)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(data), str(out), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = out.read_text().splitlines() if out.is_file() else []
    return [json.loads(line)["text"] for line in lines], done.stderr, done.returncode


def test_everything_but_what_is_held_out_is_read(data: Path) -> None:
    texts, said, _ = gathered(data)
    assert len(texts) == 200 * 12
    assert not any("valid" in text for text in texts)
    assert "prose/simplewiki.jsonl: 200 texts" in said


def test_a_files_share_wins_over_its_folders_and_a_text_is_in_or_out_by_itself(
    data: Path,
) -> None:
    everything, *_ = gathered(data)
    some, *_ = gathered(data, "prose=0", "prose/simplewiki=0.3", "chat=0.5")
    of_wiki = [text for text in some if text.startswith("prose")]
    assert all("simplewiki" in text for text in of_wiki)
    assert 30 < len(of_wiki) < 90
    assert [text for text in everything if text in set(some)] == some
    more, *_ = gathered(data, "prose/simplewiki=0.6")
    assert set(of_wiki) < set(more)


@pytest.mark.parametrize("share", ["prose/nothing=1", "poems=1", "prose=2", "prose"])
def test_an_unknown_or_impossible_share_is_refused(data: Path, share: str) -> None:
    texts, said, code = gathered(data, share)
    assert (texts, code) == ([], 2)
    assert f"--share {share}" in said
