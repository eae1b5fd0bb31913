"""Folders that are there whole or not at all."""

import json
import stat
from pathlib import Path

import pytest

from backgpt.errors import CorruptFileError
from backgpt.manifest import fingerprint, verify, whole_folder


def write(folder: Path, text: str) -> None:
    with whole_folder(folder) as inside:
        (inside / "deep").mkdir()
        (inside / "deep" / "file.txt").write_text(text)


def write_anew(folder: Path, *, stop: bool) -> None:
    with whole_folder(folder) as inside:
        (inside / "file.txt").write_text("two")
        if stop:
            raise KeyboardInterrupt


def test_a_folder_takes_the_place_of_another_and_leaves_nothing_beside(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    for text in ("one", "two"):
        write(folder, text)
        verify(folder)
        assert (folder / "deep" / "file.txt").read_text() == text
        assert list(folder.parent.iterdir()) == [folder]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("name", ["../beside", "a" * 5000, "\0", "deep"])
def test_a_manifest_speaks_of_files_in_its_folder_alone(tmp_path: Path, name: str) -> None:
    write(tmp_path / "model", "one")
    (tmp_path / "beside").write_text("two")
    listed = {"files": {name: fingerprint(tmp_path / "beside")}}
    (tmp_path / "model" / "manifest.json").write_text(json.dumps(listed))
    with pytest.raises(CorruptFileError, match="is missing"):
        verify(tmp_path / "model")


def test_folders_beside_it_are_left_alone_whatever_their_names(tmp_path: Path) -> None:
    for name in ("model.tmp", ".model.tmp", "model.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    write(tmp_path / "model", "one")
    write(tmp_path / "model", "two")
    assert len(list(tmp_path.glob("*/thesis.txt"))) == 3


@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_what_was_there_stays_if_anything_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder = tmp_path / "model"
    write(folder, "one")
    renamed = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(39, "Directory not empty")
        return renamed(path, target)

    if moment == "renaming":
        monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises((OSError, KeyboardInterrupt)):
        write_anew(folder, stop=moment == "writing")
    verify(folder)
    assert (folder / "deep" / "file.txt").read_text() == "one"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_is_not_taken_for_a_folder_to_replace(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file")
    with pytest.raises(OSError, match="model"):
        write(tmp_path / "model", "one")
    assert (tmp_path / "model").read_text() == "a file"
