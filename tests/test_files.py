"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from backgpt.files import whole_file, write_whole


def test_a_file_is_replaced_in_one_step_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, b"one")
    with whole_file(path) as temporary:
        temporary.write_bytes(b"two")
        assert path.read_bytes() == b"one"
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_stops_it_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, b"one")

    def stop() -> None:
        with whole_file(path) as temporary:
            temporary.write_bytes(b"tw")
            raise error

    with pytest.raises(error):
        stop()
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_called_as_temporary_ones_are_stay(tmp_path: Path) -> None:
    beside = [tmp_path / name for name in ("a.gguf.tmp", ".a.gguf.tmp")]
    for one in beside:
        one.write_text("mine")
    write_whole(tmp_path / "a.gguf", b"new")
    assert [one.read_text() for one in beside] == ["mine"] * 2
