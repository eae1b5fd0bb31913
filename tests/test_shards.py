"""The token file: what is written is read, and a damaged file never is."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backgpt.errors import ConfigError, CorruptFileError, DataError
from backgpt.order import ReadingIds
from backgpt.shards import ShardWriter, open_dataset, open_shard, write_shard
from backgpt.tokenizer import Tokenizer

HASH = "ab" * 32
DOCUMENTS = [[5, 6, 7], [], [8], [9, 10, 11, 12]]


def reading(ids: list[int]) -> ReadingIds:
    return cast(ReadingIds, np.array(ids, dtype=np.uint16))


def make(path: Path, documents: list[list[int]], *, tokenizer_sha256: str = HASH) -> Path:
    pairs = [(reading(ids), 3 * len(ids)) for ids in documents]
    write_shard(path, pairs, tokenizer_sha256=tokenizer_sha256, vocab_size=4096)
    return path


@pytest.fixture
def shard_path(tmp_path: Path) -> Path:
    return make(tmp_path / "train-00000.bin", DOCUMENTS)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4095), max_size=20), max_size=10))
def test_every_document_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]]
) -> None:
    path = make(tmp_path_factory.mktemp("shard") / "a.bin", documents)
    shard = open_shard(path)
    assert [ids.tolist() for ids in shard.documents()] == documents
    assert len(shard) == len(documents)
    assert shard.n_tokens == sum(map(len, documents))
    assert shard.document_bytes.tolist() == [3 * len(ids) for ids in documents]
    assert shard.text_bytes == 3 * shard.n_tokens
    assert shard.tokenizer_sha256 == HASH
    assert shard.ids.dtype == np.uint16


def test_a_block_of_documents_gives_the_same_bytes_as_one_by_one(tmp_path: Path) -> None:
    one_by_one = make(tmp_path / "one.bin", DOCUMENTS)
    with ShardWriter(tmp_path / "block.bin", tokenizer_sha256=HASH, vocab_size=4096) as writer:
        lengths = np.array([len(ids) for ids in DOCUMENTS])
        ids = reading([value for ids in DOCUMENTS for value in ids])
        writer.add_block(ids, lengths=lengths, text_bytes=3 * lengths)
    assert (tmp_path / "block.bin").read_bytes() == one_by_one.read_bytes()


def test_the_header_is_where_the_format_says(shard_path: Path) -> None:
    raw = shard_path.read_bytes()
    assert raw[:8] == b"BACKGPT\0"
    assert np.frombuffer(raw[8:16], "<u4").tolist() == [1, 2]
    assert np.frombuffer(raw[16:40], "<u8").tolist() == [4, 8, 24]
    assert raw[40:72].hex() == HASH
    assert np.frombuffer(raw[128:168], "<u8").tolist() == [0, 3, 3, 4, 8]
    assert np.frombuffer(raw[184:], "<u2").tolist() == [5, 6, 7, 8, 9, 10, 11, 12]


def test_every_flipped_bit_is_found(shard_path: Path) -> None:
    good = shard_path.read_bytes()
    for index in range(len(good)):
        bad = bytearray(good)
        bad[index] ^= 1 << (index % 8)
        shard_path.write_bytes(bad)
        with pytest.raises(CorruptFileError, match=r"train-00000\.bin"):
            open_shard(shard_path)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 150, -1])
def test_a_shard_cut_short_is_found_even_without_reading_it_all(
    shard_path: Path, size: int
) -> None:
    shard_path.write_bytes(shard_path.read_bytes()[:size])
    with pytest.raises(CorruptFileError, match="run 'backgpt prepare' again"):
        open_shard(shard_path, verify=False)


def test_bytes_appended_to_a_shard_are_found(shard_path: Path) -> None:
    shard_path.write_bytes(shard_path.read_bytes() + b"\0")
    with pytest.raises(CorruptFileError, match="header promises"):
        open_shard(shard_path)


def test_an_unknown_version_is_refused_by_its_number(shard_path: Path) -> None:
    raw = bytearray(shard_path.read_bytes())
    raw[8] = 9
    shard_path.write_bytes(raw)
    with pytest.raises(CorruptFileError, match="shard version 9"):
        open_shard(shard_path)


def test_offsets_out_of_order_are_found_without_the_checksum(shard_path: Path) -> None:
    raw = bytearray(shard_path.read_bytes())
    raw[136] = 7  # the end of document 0, behind the end of document 1
    shard_path.write_bytes(raw)
    with pytest.raises(CorruptFileError, match="offsets out of order"):
        open_shard(shard_path, verify=False)


def test_a_failing_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    def documents() -> Iterator[tuple[ReadingIds, int]]:
        yield reading([1, 2]), 2
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "a.bin", documents(), tokenizer_sha256=HASH, vocab_size=4096)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_writer_leaves_the_shard_before_it_in_place(shard_path: Path) -> None:
    good = shard_path.read_bytes()
    with pytest.raises(ConfigError):
        make(shard_path, [[1], [4096]])
    assert shard_path.read_bytes() == good


def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="id 4096 is outside the vocabulary of 4096 ids"):
        make(tmp_path / "a.bin", [[4095, 4096]])


def test_a_vocabulary_too_large_for_16_bits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="65537 ids"):
        write_shard(tmp_path / "a.bin", [], tokenizer_sha256=HASH, vocab_size=65_537)


def test_a_missing_shard_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no shard"):
        open_shard(tmp_path / "none.bin")


def test_a_document_outside_the_shard_is_an_index_error(shard_path: Path) -> None:
    shard = open_shard(shard_path)
    for index in (-1, 4):
        with pytest.raises(IndexError):
            shard.document(index)


def test_the_arrays_cannot_be_written_to(shard_path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        open_shard(shard_path).ids[0] = 1


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["Once upon a time there was a cat. The end."] * 4, 300)


def test_a_dataset_opens_with_its_tokenizer_and_both_splits(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    for name in ("train-00001", "train-00000", "valid-00000"):
        make(tmp_path / f"{name}.bin", DOCUMENTS, tokenizer_sha256=tokenizer.sha256)
    dataset = open_dataset(tmp_path)
    assert [shard.path.name for shard in dataset.train] == ["train-00000.bin", "train-00001.bin"]
    assert [shard.path.name for shard in dataset.valid] == ["valid-00000.bin"]
    assert dataset.tokenizer.sha256 == tokenizer.sha256


def test_a_shard_of_another_tokenizer_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    make(tmp_path / "train-00000.bin", DOCUMENTS)
    with pytest.raises(DataError, match="made with tokenizer abababababab"):
        open_dataset(tmp_path)


def test_an_id_that_the_tokenizer_has_not_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    documents = [[5, tokenizer.vocab_size]]
    make(tmp_path / "train-00000.bin", documents, tokenizer_sha256=tokenizer.sha256)
    with pytest.raises(CorruptFileError, match=f"has id {tokenizer.vocab_size}"):
        open_dataset(tmp_path)


def test_a_dataset_folder_that_lacks_something_says_what(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    with pytest.raises(DataError, match="no dataset folder"):
        open_dataset(tmp_path / "none")
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        open_dataset(tmp_path)
    tokenizer.save(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match=r"no train-00000\.bin"):
        open_dataset(tmp_path)
