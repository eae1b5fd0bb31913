"""What begins alike is laid out so that each common beginning is read once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from backgpt.engine.beginnings import Branch, alphabetical, branches, cut_by_beginning

SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), max_size=20)


def arrays(sequences: list[list[int]]) -> list[np.ndarray]:
    return [np.array(ids, dtype=np.int64) for ids in sequences]


def read(sequences: list[list[int]], rounds: list[list[Branch]]) -> int:
    """How many ids are read in all, those in common once."""
    return sum(len(sequences[one.index]) - one.shared for round_ in rounds for one in round_)


def distinct(sequences: list[list[int]]) -> int:
    return len({tuple(ids[:end]) for ids in sequences for end in range(1, len(ids) + 1)})


@given(SEQUENCES)
def test_alphabetical_order_knows_what_neighbors_share(sequences: list[list[int]]) -> None:
    order, shared = alphabetical(arrays(sequences))
    in_order = [sequences[index] for index in order]
    assert in_order == sorted(sequences)
    for before, after, common in zip(in_order, in_order[1:], shared[1:], strict=False):
        assert before[:common] == after[:common]
        assert before[common : common + 1] != after[common : common + 1] or before == after


def test_ids_beyond_a_byte_are_ordered_by_their_value() -> None:
    order, _ = alphabetical(arrays([[256], [1], [70000], [255]]))
    assert order.tolist() == [1, 3, 0, 2]


@given(SEQUENCES, st.integers(1, 5))
def test_each_branches_off_one_of_an_earlier_round(sequences: list[list[int]], least: int) -> None:
    rounds = branches(arrays(sequences), least=least)
    assert sorted(one.index for round_ in rounds for one in round_) == list(range(len(sequences)))
    earlier: set[int] = set()
    for number, round_ in enumerate(rounds):
        for one in round_:
            assert one.shared >= least if number else (one.parent, one.shared) == (one.index, 0)
            assert number == 0 or one.parent in earlier
            ids, parent = sequences[one.index], sequences[one.parent]
            assert ids[: one.shared] == parent[: one.shared]
        earlier |= {one.index for one in round_}


@given(SEQUENCES)
def test_no_common_beginning_is_read_twice(sequences: list[list[int]]) -> None:
    assert read(sequences, branches(arrays(sequences), least=1)) == distinct(sequences)


def test_texts_cut_at_many_places_take_two_rounds() -> None:
    written = list(range(10, 60))
    sequences = [[*written[:place], 1, 2, 3] for place in range(5, 50, 5)]
    rounds = branches(arrays(sequences), least=1)
    assert [len(round_) for round_ in rounds] == [1, len(sequences) - 1]


@given(SEQUENCES, st.integers(1, 30), st.integers(1, 6))
def test_batches_hold_what_they_may(sequences: list[list[int]], budget: int, most: int) -> None:
    batches = cut_by_beginning(arrays(sequences), budget=budget, most=most)
    assert sorted(int(index) for batch in batches for index in batch) == list(range(len(sequences)))
    for batch in batches:
        members = [sequences[index] for index in batch]
        assert members == sorted(members)
        assert 1 <= len(batch) <= most
        assert len(batch) == 1 or distinct(members) <= budget
