"""What sequences of ids have in common at their beginnings, so that it can be read once.

In alphabetical order those that begin alike stand together. The longest of them is read whole, and
each other one branches off where it first differs, or off one that branched there before:

    a b c d e f      read whole
    a b c x y        branches off it after 3
    a b c x z        branches off the second after 4
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from backgpt.order import IdArray

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Branch:
    """The sequence with number `index`; its first `shared` ids are those of number `parent`."""

    index: int
    parent: int
    shared: int

    @property
    def known(self) -> int:
        """How many of them need not be read again; after the last one another id is scored."""
        return max(self.shared - 1, 0)


def alphabetical(sequences: Sequence[IdArray]) -> tuple[Int64s, Int64s]:
    """Return the order of `sequences`, (n,), and in it how many ids each shares with the last.

    The first of them shares none. Ids are 0 or more.
    """
    keys = [np.asarray(ids).astype(">u4").tobytes() for ids in sequences]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
    shared = np.zeros(len(order), dtype=np.int64)
    for place in range(1, len(order)):
        shared[place] = _common(sequences[order[place - 1]], sequences[order[place]])
    return order, shared


def cut_by_beginning(sequences: Sequence[IdArray], *, budget: int, most: int) -> list[Int64s]:
    """Group `sequences` that begin alike into batches of at most `most`.

    In each there are at most `budget` ids, those counted once that several begin with; a longer
    sequence stands alone. Returns the numbers of the sequences of each batch.
    """
    order, shared = alphabetical(sequences)
    lengths = np.array([len(sequences[index]) for index in order], dtype=np.int64)
    starts: list[int] = []
    spent = 0
    for place, length in enumerate(lengths):
        new = length - shared[place]
        if not starts or spent + new > budget or place - starts[-1] == most:
            starts.append(place)
            new, spent = length, 0
        spent += new
    return np.split(order, starts[1:]) if starts else []


def branches(sequences: Sequence[IdArray], *, least: int) -> list[list[Branch]]:
    """Return all sequences in rounds: each branches off one of an earlier round.

    Those of the first round are their own parents: what they share with others is less than
    `least` ids, or it is others that branch off them.
    """
    order, shared = alphabetical(sequences)
    lengths = np.array([len(sequences[index]) for index in order], dtype=np.int64)
    rounds: list[list[Branch]] = []
    spans = [_Span(0, len(order), parent=-1, common=0, round=0)] if len(order) else []
    while spans:
        span = spans.pop()
        longest = span.first + int(np.argmax(lengths[span.first : span.last]))
        index = int(order[longest])
        if span.round == len(rounds):
            rounds.append([])
        parent = span.parent if span.common else index
        rounds[span.round].append(Branch(index, parent, span.common))
        for begin, end, common in _parts(shared, span.first, longest, span.last):
            if common < least:
                spans.append(_Span(begin, end, index, 0, span.round))
            else:
                spans.append(_Span(begin, end, index, common, span.round + 1))
    return rounds


class _Span(NamedTuple):
    """Neighbors, from `first` to before `last`, that share `common` ids with number `parent`.

    The longest of them is read in that `round`, and others branch off it.
    """

    first: int
    last: int
    parent: int
    common: int
    round: int


def _common(first: IdArray, second: IdArray) -> int:
    """Return how many ids two sequences begin with in common."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def _parts(shared: Int64s, first: int, one: int, last: int) -> Iterator[tuple[int, int, int]]:
    """Part the neighbors of `one` by how much they share with it.

    Yields where, from `first` to `last`, a part begins and ends, and how many ids that is: the
    least that any two neighbors between the part and `one` share.
    """
    while first < one:
        between = shared[first + 1 : one + 1]
        common = int(between.min())
        end = first + 1 + int(np.flatnonzero(between == common)[-1])
        yield first, end, common
        first = end
    while one + 1 < last:
        between = shared[one + 1 : last]
        begin = one + 1 + int(np.argmin(between))
        yield begin, last, int(shared[begin])
        last = begin
