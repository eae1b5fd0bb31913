"""Batches: every target once an epoch, alike for both twins and for any number of ranks."""

import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from backgpt.batches import IGNORE, TrainingBatches, Windows, cut_by_length, cut_document
from backgpt.errors import DataError
from backgpt.language import Language
from backgpt.order import Direction, ReadingIds
from backgpt.shards import Dataset, open_dataset, open_shard, write_shard
from backgpt.tokenizer import Tokenizer

BLOCK_SIZE = 64  # shorter than many of the stories


@pytest.fixture(scope="module")
def dataset(dataset_path: Path) -> Dataset:
    return open_dataset(dataset_path)


def windows(dataset: Dataset, direction: str, unit: str = "token") -> Windows:
    language = Language(dataset.tokenizer, direction, unit)  # type: ignore[arg-type]
    return Windows(dataset.train, [language], block_size=BLOCK_SIZE)


def batches(dataset: Dataset, *, batch_size: int = 8, accumulate: int = 2) -> TrainingBatches:
    return TrainingBatches(
        windows(dataset, "backward"),
        batch_size=batch_size,
        block_size=BLOCK_SIZE,
        grad_accum_steps=accumulate,
        seed=7,
    )


@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_every_id_of_every_document_is_a_target_exactly_once(
    dataset: Dataset, direction: str, unit: str
) -> None:
    found = windows(dataset, direction, unit)
    targets = Counter(int(id_) for index in range(len(found)) for id_ in found.sequence(index)[1:])
    documents = [ids for shard in dataset.train for ids in shard.documents()]
    expected = Counter(int(id_) for ids in documents for id_ in ids)
    marker = "start_id" if direction == "backward" else "end_id"
    expected[getattr(dataset.tokenizer, marker)] = len(documents)
    assert targets == expected
    assert found.n_targets == sum(expected.values())


@pytest.mark.parametrize("unit", ["token", "word"])
def test_both_twins_are_cut_at_the_same_places(dataset: Dataset, unit: str) -> None:
    backward, forward = (windows(dataset, way, unit) for way in ("backward", "forward"))
    assert len(backward) == len(forward) > sum(map(len, dataset.train))
    for index in range(len(backward)):
        there, back = backward.sequence(index).tolist(), forward.sequence(index).tolist()
        assert there == back[::-1] if unit == "token" else sorted(there) == sorted(back)


def test_a_row_reads_as_the_picture_says(dataset: Dataset) -> None:
    found = windows(dataset, "backward")
    index = int(np.argmin(found.lengths))
    batch = found.batch(np.array([index]))
    length = int(found.lengths[index])
    sequence = found.sequence(index).tolist()
    assert batch.inputs[0, :length].tolist() == sequence[:-1]
    assert batch.targets[0, :length].tolist() == sequence[1:]
    assert (batch.inputs[0, length:] == dataset.tokenizer.pad_id).all()
    assert (batch.targets[0, length:] == IGNORE).all()


def test_a_batch_of_nothing_has_no_target(dataset: Dataset) -> None:
    batch = windows(dataset, "backward").batch(np.zeros(0, dtype=np.int64))
    assert batch.inputs.shape[0] == 1
    assert (batch.targets == IGNORE).all()


def marked(length: int) -> ReadingIds:
    return ReadingIds(np.arange(length, dtype=np.int64) % 200 + 16)


@pytest.mark.parametrize("length", [2, 64, 65, 66, 129, 130, 1000])
def test_cuts_cover_a_document_and_share_one_id(tokenizer: Tokenizer, length: int) -> None:
    order = tokenizer.order("backward", "token")
    cuts = list(cut_document(marked(length), order, block_size=BLOCK_SIZE))
    assert cuts[0][0] == 0
    assert cuts[-1][1] == length - 1
    assert all(stop == first for (_, stop), (first, _) in pairwise(cuts))
    sizes = [stop - first for first, stop in cuts]
    assert max(sizes) <= BLOCK_SIZE
    assert len(cuts) == -(-(length - 1) // BLOCK_SIZE)
    assert max(sizes) - min(sizes) <= 1


def test_word_cuts_fall_where_words_begin(dataset: Dataset) -> None:
    tokenizer = dataset.tokenizer
    order = tokenizer.order("backward", "word")
    for ids in dataset.train[0].documents():
        document = tokenizer.mark(ids)
        for first, _ in cut_document(document, order, block_size=BLOCK_SIZE):
            assert tokenizer.starts_group[document[first]]


@pytest.mark.parametrize("block_size", [16, 40])
def test_word_cuts_leave_no_short_remainder_at_either_end(
    dataset: Dataset, block_size: int
) -> None:
    order = dataset.tokenizer.order("backward", "word")
    n_cut = 0
    for ids in dataset.train[0].documents():
        document = dataset.tokenizer.mark(ids)
        cuts = list(cut_document(document, order, block_size=block_size))
        sizes = [stop - first for first, stop in cuts]
        assert max(sizes) <= block_size
        fair = (len(document) - 1) / -(-(len(document) - 1) // block_size)
        words = np.diff(np.flatnonzero(order.group_starts(document)), append=len(document))
        if len(sizes) > 1:
            n_cut += 1
            assert min(sizes) > fair / 2 - max(words)
    assert n_cut > 5


def test_a_word_longer_than_the_context_is_cut(tokenizer: Tokenizer) -> None:
    order = tokenizer.order("backward", "word")
    inside = int(np.flatnonzero(~tokenizer.starts_group)[0])
    document = ReadingIds(np.full(200, inside, dtype=np.int64))
    cuts = list(cut_document(document, order, block_size=BLOCK_SIZE))
    assert cuts[-1][1] == 199
    assert max(stop - first for first, stop in cuts) <= BLOCK_SIZE


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_of_a_word_that_is_cut_the_shared_id_is_context_and_no_target_twice(
    tokenizer: Tokenizer, tmp_path: Path, direction: Direction
) -> None:
    inside = np.flatnonzero(~tokenizer.starts_group)
    ids = ReadingIds(np.resize(inside, 200).astype(np.uint16))
    path = tmp_path / "train-00000.bin"
    write_shard(
        path, [(ids, 200)], tokenizer_sha256=tokenizer.sha256, vocab_size=tokenizer.vocab_size
    )
    found = Windows(
        [open_shard(path)], [Language(tokenizer, direction, "word")], block_size=BLOCK_SIZE
    )
    marked = tokenizer.mark(ids)
    order = tokenizer.order("backward", "word")
    cuts = list(cut_document(marked, order, block_size=BLOCK_SIZE))
    assert len(cuts) == len(found) > 2
    rows = [found.sequence(index) for index in range(len(found))]
    near = [first if direction == "forward" else last for first, last in cuts]
    assert [int(row[0]) for row in rows] == [int(marked[place]) for place in near]
    targets = np.concatenate([row[1:] for row in rows])
    scored = marked[1:] if direction == "forward" else marked[:-1]
    assert sorted(targets.tolist()) == sorted(scored.tolist())


def test_batches_of_similar_lengths_come_in_no_order_of_length(dataset: Dataset) -> None:
    found, plan = windows(dataset, "backward"), batches(dataset, accumulate=1)
    longest = [
        int(found.widths[indices].max())
        for step in range(plan.steps_in(1))
        for indices in plan.step(step)
    ]
    rises = sum(one < other for one, other in pairwise(longest))
    falls = sum(one > other for one, other in pairwise(longest))
    assert min(rises, falls) > len(longest) / 5


def test_an_epoch_has_every_window_once_and_epochs_differ(dataset: Dataset) -> None:
    plan = batches(dataset)
    per_epoch = plan.steps_in(1)
    epochs = [
        [int(i) for n in range(per_epoch) for b in plan.step(e * per_epoch + n) for i in b]
        for e in range(2)
    ]
    assert sorted(epochs[0]) == list(range(len(windows(dataset, "backward"))))
    assert plan.position(per_epoch) == (1, 0)
    assert epochs[0] != epochs[1]


def test_a_step_is_the_same_whenever_and_by_whomever_it_is_asked_for(dataset: Dataset) -> None:
    last = batches(dataset).steps_in(2) - 1
    fresh, walked = batches(dataset), batches(dataset)
    for step in range(last):
        walked.step(step)
    assert [b.tolist() for b in fresh.step(last)] == [b.tolist() for b in walked.step(last)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_any_number_of_ranks_reads_the_same_windows_in_a_step(
    dataset: Dataset, world_size: int
) -> None:
    plan = batches(dataset, accumulate=4)
    for step in range(plan.steps_in(1)):
        everything = plan.step(step)
        dealt = [b for rank in range(world_size) for b in everything[rank::world_size]]
        assert Counter(map(tuple, dealt)) == Counter(map(tuple, everything))


def test_micro_batches_stay_within_their_budget(dataset: Dataset) -> None:
    found, plan = windows(dataset, "backward"), batches(dataset)
    for step in range(plan.steps_in(1)):
        for indices in plan.step(step):
            assert found.batch(indices).inputs.size <= 8 * BLOCK_SIZE


def test_little_is_padding_and_micro_batches_are_nearly_full(dataset: Dataset) -> None:
    found, plan = windows(dataset, "backward"), batches(dataset)
    sizes = [
        found.batch(indices).inputs.size
        for step in range(plan.steps_in(1))
        for indices in plan.step(step)
    ]
    assert found.n_targets / sum(sizes) > 0.9
    assert np.mean(sizes) > 0.9 * 8 * BLOCK_SIZE


def test_cutting_by_length_keeps_every_window_within_the_budget() -> None:
    lengths = np.random.default_rng(1).integers(1, 100, 500)
    groups = cut_by_length(np.arange(500), lengths, budget=400)
    assert sorted(int(i) for group in groups for i in group) == list(range(500))
    for group in groups:
        assert len(group) * (-(-lengths[group].max() // 8) * 8) <= 400


def test_no_batch_has_room_for_the_next_window() -> None:
    lengths = np.random.default_rng(1).integers(1, 100, 500)
    padded = -(-lengths // 8) * 8
    for group, following in pairwise(cut_by_length(np.arange(500), lengths, budget=400)):
        assert (len(group) + 1) * padded[following[0]] > 400


def test_a_window_longer_than_the_budget_stands_alone() -> None:
    groups = cut_by_length(np.arange(3), np.array([500, 10, 500]), budget=100)
    assert [group.tolist() for group in groups] == [[1], [0], [2]]


def test_fractions_of_an_epoch_are_steps(dataset: Dataset) -> None:
    plan = batches(dataset)
    whole = plan.steps_in(1)
    assert plan.steps_in(0.5) == round(whole / 2)
    assert plan.steps_in(1e-9) == 1
    assert plan.steps_in(2) >= 2 * whole - 1


def test_a_window_of_a_long_document_costs_no_more_than_its_own_ids(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path, ids = tmp_path / "long.bin", ReadingIds(np.full(200_000, 300, dtype=np.uint16))
    write_shard(path, [(ids, 1)], tokenizer_sha256=tokenizer.sha256, vocab_size=512)
    language = Language(tokenizer, "backward", "token")
    found = Windows([open_shard(path)], [language], block_size=BLOCK_SIZE)
    tracemalloc.start()
    try:
        for index in (0, len(found) // 2, len(found) - 1):
            found.sequence(index)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < len(ids)


def test_no_documents_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "empty.bin"
    write_shard(path, [], tokenizer_sha256=tokenizer.sha256, vocab_size=512)
    language = Language(tokenizer, "backward", "token")
    with pytest.raises(DataError, match="no document"):
        Windows([open_shard(path)], [language], block_size=BLOCK_SIZE)


def both_ways(dataset: Dataset, block_size: int = BLOCK_SIZE) -> Windows:
    languages = Language.all_of(dataset.tokenizer, "both", "token")
    return Windows(dataset.train, languages, block_size=block_size)


def test_both_ways_every_id_is_a_target_once_in_each_direction(dataset: Dataset) -> None:
    found = both_ways(dataset)
    tokenizer = dataset.tokenizer
    seen = {"<|backward|>": Counter[int](), "<|forward|>": Counter[int]()}
    names = {tokenizer.control_id(name): name for name in seen}
    for index in range(len(found)):
        row = found.batch(np.array([index]))
        name = names[int(row.inputs[0, 0])]  # what every row begins with
        seen[name].update(row.targets[row.targets != IGNORE].tolist())
    ids = Counter(
        int(id_)
        for shard in dataset.train
        for number in range(len(shard))
        for id_ in shard.document(number)
    )
    n_documents = sum(map(len, dataset.train))
    assert seen["<|backward|>"] == ids + Counter({tokenizer.start_id: n_documents})
    assert seen["<|forward|>"] == ids + Counter({tokenizer.end_id: n_documents})
    assert found.n_targets == sum(sum(counts.values()) for counts in seen.values())


def test_rows_with_a_direction_still_fit_the_context(dataset: Dataset) -> None:
    found = both_ways(dataset)
    assert max(len(found.sequence(index)) for index in range(len(found))) == BLOCK_SIZE + 1
    assert found.batch(np.arange(len(found))).inputs.shape[1] == BLOCK_SIZE


def test_hints_stand_first_are_true_and_are_not_scored(dataset: Dataset) -> None:
    found = both_ways(dataset, block_size=512)
    tokenizer = dataset.tokenizer
    hint, markers = tokenizer.control_id("<|hint|>"), {tokenizer.start_id, tokenizer.end_id}
    indices = np.arange(len(found))
    plain = found.batch(indices)
    hinted = found.batch(indices, hints=1.0, seed=(3,))
    with_hints = (hinted.inputs == hint).any(axis=1)
    assert 0.6 < with_hints.mean() < 1  # some draws give none
    for row in range(len(found)):
        ids, targets = hinted.inputs[row], hinted.targets[row]
        first_marker = next(i for i, id_ in enumerate(ids) if int(id_) in markers)
        assert (targets[:first_marker] == IGNORE).all()
        scored = targets[targets != IGNORE]
        assert scored.tolist() == plain.targets[row][plain.targets[row] != IGNORE].tolist()
        assert hint not in scored


def test_hints_follow_from_seed_and_window_alone(dataset: Dataset) -> None:
    found = both_ways(dataset, block_size=512)
    together = found.batch(np.arange(6), hints=1.0, seed=(3, 5)).inputs
    alone = [found.batch(np.array([i]), hints=1.0, seed=(3, 5)).inputs[0] for i in range(6)]
    for row, ids in zip(together, alone, strict=True):
        width = min(len(row), len(ids))
        assert row[:width].tolist() == ids[:width].tolist()
    other = found.batch(np.arange(6), hints=1.0, seed=(3, 6)).inputs
    assert other.shape != together.shape or (other != together).any()


def test_hints_that_do_not_fit_are_left_out(dataset: Dataset) -> None:
    longest = max(len(s.document(i)) for s in dataset.train for i in range(len(s)))
    tight = both_ways(dataset, block_size=longest + 2)  # direction, marker, and nothing to spare
    index = int(np.argmax(tight.lengths))
    hint = dataset.tokenizer.control_id("<|hint|>")
    for seed in range(20):
        assert hint not in tight.batch(np.array([index]), hints=1.0, seed=(seed,)).inputs


def test_hints_that_fit_to_the_last_id_are_given(dataset: Dataset) -> None:
    longest = max(len(s.document(i)) for s in dataset.train for i in range(len(s)))
    index = int(np.argmax(both_ways(dataset, block_size=longest + 2).lengths))
    hint = dataset.tokenizer.control_id("<|hint|>")

    def read(block_size: int) -> list[int]:
        found = both_ways(dataset, block_size=block_size)
        batch = found.batch(np.array([index]), hints=1.0, seed=(3,))
        last = int(np.flatnonzero(batch.targets[0] != IGNORE)[-1])
        return list(map(int, batch.inputs[0, : last + 1]))

    whole = read(longest + 500)
    assert hint in whole
    assert read(len(whole)) == whole
    assert hint not in read(len(whole) - 1)
