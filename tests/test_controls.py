"""Texts whose arrow of time is known: verified by counting, and by decoding them back."""

import shutil
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from backgpt.batches import Windows
from backgpt.controls import CONTROLS, CYCLE, LENGTHS, MODULUS, SYMBOLS, flip_dataset
from backgpt.language import Language
from backgpt.shards import Dataset, open_dataset
from backgpt.tokenizer import Tokenizer

N_TEXTS = 20_000


@pytest.fixture(scope="module")
def chains() -> list[list[int]]:
    """Texts of the reversible chain as symbols."""
    texts = [text.split(" ") for text in islice(CONTROLS["reversible"](3), N_TEXTS)]
    symbols = {word: number for number, word in enumerate(sorted({w for t in texts for w in t}))}
    assert len(symbols) == SYMBOLS
    return [[symbols[word] for word in text] for text in texts]


def steps_of(chains: list[list[int]]) -> np.ndarray:
    counts = np.zeros((SYMBOLS, SYMBOLS))
    for chain in chains:
        np.add.at(counts, (chain[:-1], chain[1:]), 1)
    return counts


def farthest(one: np.ndarray, other: np.ndarray) -> float:
    """Return the greatest difference of two counts of the same events, in standard deviations."""
    return float((np.abs(one - other) / np.sqrt(np.maximum(one + other, 1))).max())


def test_a_step_is_as_frequent_as_the_step_back(chains: list[list[int]]) -> None:
    counts = steps_of(chains)
    assert farthest(counts, counts.T) < 4.5


def test_the_first_word_the_last_and_those_between_have_one_distribution(
    chains: list[list[int]],
) -> None:
    first, sixth, last = (
        np.bincount([chain[place] for chain in chains], minlength=SYMBOLS) for place in (0, 5, -1)
    )
    assert farthest(first, last) < 4.5
    assert farthest(first, sixth) < 4.5


def test_the_same_counts_tell_a_chain_that_is_not_reversible() -> None:
    random = np.random.default_rng(1)
    around = [np.cumsum(random.choice([1, 1, 2], 16)) % SYMBOLS for _ in range(1000)]
    counts = steps_of([chain.tolist() for chain in around])
    assert farthest(counts, counts.T) > 20


def test_words_say_much_about_their_neighbors(chains: list[list[int]]) -> None:
    joint = steps_of(chains) / steps_of(chains).sum()
    apart = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    seen = joint > 0
    assert (joint[seen] * np.log(joint[seen] / apart[seen])).sum() > 0.2


def test_lengths_are_drawn_from_all_that_there_are(chains: list[list[int]]) -> None:
    assert {len(chain) for chain in chains} == set(range(LENGTHS[0], LENGTHS[1] + 1))


def test_sums_are_of_the_neighbors_and_digits_are_uniform() -> None:
    texts = [text.split(" ") for text in islice(CONTROLS["one-way"](3), 5000)]
    names = sorted({word for text in texts for word in text[:CYCLE]})
    sum_names = sorted({word for text in texts for word in text[CYCLE:]})
    assert len(names) == len(sum_names) == MODULUS
    assert not set(names) & set(sum_names)
    digits = np.array([[names.index(word) for word in text[:CYCLE]] for text in texts])
    sums = np.array([[sum_names.index(word) for word in text[CYCLE:]] for text in texts])
    assert digits.shape == sums.shape == (5000, CYCLE)
    for place in range(CYCLE):
        expected = (digits[:, place] + digits[:, (place + 1) % CYCLE]) % MODULUS
        assert (sums[:, place] == expected).all()
    counts = np.stack([np.bincount(column, minlength=MODULUS) for column in digits.T])
    assert np.abs(counts / 5000 - 1 / MODULUS).max() < 0.03
    together = np.zeros((MODULUS, MODULUS))
    np.add.at(together, (digits[:, 0], digits[:, 1]), 1)
    assert np.abs(together / 5000 - 1 / MODULUS**2).max() < 0.02


def test_digits_follow_from_all_sums_together_and_from_no_fewer() -> None:
    every = np.stack(np.meshgrid(*[np.arange(MODULUS)] * CYCLE), axis=-1).reshape(-1, CYCLE)
    sums = (every + np.roll(every, -1, axis=1)) % MODULUS
    assert len(np.unique(sums, axis=0)) == len(every)
    # Without one of them, the last digit may be any, equally often.
    key = sums[:, 1:] @ MODULUS ** np.arange(CYCLE - 1)
    pairs = np.unique(np.stack([key, every[:, -1]], axis=1), axis=0)
    assert len(pairs) == len(every) == MODULUS * len(np.unique(key))


@pytest.mark.parametrize("name", CONTROLS)
def test_texts_follow_the_seed_and_every_word_is_a_token(name: str) -> None:
    texts = list(islice(CONTROLS[name](5), 300))
    assert texts == list(islice(CONTROLS[name](5), 300)) != list(islice(CONTROLS[name](6), 300))
    tokenizer = Tokenizer.train(texts, 2048)
    for text in texts:
        assert len(tokenizer.encode(text)) == len(text.split(" "))


@pytest.fixture
def dataset(dataset_path: Path) -> Dataset:
    return open_dataset(dataset_path)


def test_a_flipped_dataset_has_the_same_documents_from_their_ends(
    dataset: Dataset, tmp_path: Path
) -> None:
    other = flip_dataset(dataset, tmp_path / "flipped")
    assert (other.tokenizer.start_id, other.tokenizer.end_id) == (
        dataset.tokenizer.end_id,
        dataset.tokenizer.start_id,
    )
    for mine, its in (
        *zip(dataset.train, other.train, strict=True),
        *zip(dataset.valid, other.valid, strict=True),
    ):
        assert mine.document_bytes.tolist() == its.document_bytes.tolist()
        for one, two in zip(mine.documents(), its.documents(), strict=True):
            assert one.tolist() == two.tolist()[::-1]


def test_flipped_twice_the_ids_are_those_of_the_dataset(dataset: Dataset, tmp_path: Path) -> None:
    twice = flip_dataset(flip_dataset(dataset, tmp_path / "once"), tmp_path / "twice")
    assert twice.tokenizer.start_id == dataset.tokenizer.start_id
    for mine, its in zip(dataset.train, twice.train, strict=True):
        assert (mine.ids == its.ids).all()


def test_forward_rows_of_a_flipped_dataset_are_the_backward_rows_of_the_dataset(
    dataset: Dataset, tmp_path: Path
) -> None:
    other = flip_dataset(dataset, tmp_path / "flipped")
    for here, there in (("backward", "forward"), ("forward", "backward")):
        mine = Language(dataset.tokenizer, here, "token")  # type: ignore[arg-type]
        its = Language(other.tokenizer, there, "token")  # type: ignore[arg-type]
        rows = Windows(dataset.train, [mine], block_size=2048)
        turned = Windows(other.train, [its], block_size=2048)
        assert len(rows) == len(turned) > 50
        for index in range(len(rows)):
            assert rows.sequence(index).tolist() == turned.sequence(index).tolist()


def test_what_is_flipped_already_is_taken_and_not_written_again(
    dataset: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "flipped"
    flip_dataset(dataset, out)
    before = {path: path.stat().st_ino for path in out.iterdir()}
    flip_dataset(dataset, out)
    assert {path: path.stat().st_ino for path in out.iterdir()} == before
    (out / "train-00000.bin").write_bytes(b"damaged")
    flip_dataset(dataset, out)
    assert open_dataset(out).train[0].ids.tolist() != []


def test_what_was_flipped_of_another_dataset_is_written_anew(
    dataset: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "flipped"
    flip_dataset(dataset, out)
    original = [path.read_bytes() for path in sorted(out.iterdir())]
    for older, newer in pairwise(("valid-00000.bin", "train-00000.bin", "train-00001.bin")):
        shutil.copy(out / older, out / newer)
    other = flip_dataset(dataset, out)
    assert [path.read_bytes() for path in sorted(out.iterdir())] == original
    assert len(other.train) == len(dataset.train)
