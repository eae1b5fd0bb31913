"""Shards -> (inputs, targets) in model order, at an exact position, for any number of ranks.

A row is one window of one document, its markers included, so nothing is read across documents and
attention needs no mask: rows of nearly equal length share a micro-batch, padding stands at the
right end, is never attended to and never scored. Every id of every document is a target exactly
once an epoch, for both twins (the marker a model begins with excepted).

    reading window        <|start|>  The   cat   sat   .   <|end|>
    inputs,  backward     <|end|>    .     sat   cat   The
    targets, backward     .          sat   cat   The   <|start|>

A model trained both ways has every window twice, once in each direction, told apart by a first
id; in training a whole document may stand behind hints (see `language`). Neither is ever scored.

Micro-batches of an epoch follow from (seed, epoch) alone; an optimizer step is the next
`grad_accum_steps` of them, dealt to the ranks in turn.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from backgpt.errors import DataError
from backgpt.hints import draw_hints
from backgpt.language import Language
from backgpt.order import IdArray, ModelIds, Order, ReadingIds, joined
from backgpt.shards import Shard

IGNORE = -100  # a target that is not scored: torch's own default
POOL = 64  # micro-batches' worth of windows that are sorted by length together
LENGTH_MULTIPLE = 8  # rows are padded to a multiple of this, which matrix units like

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """One micro-batch. `inputs` and `targets` are (B, T) int64; ignored targets are -100."""

    inputs: Int64s
    targets: Int64s

    def of_no_special_shape(self) -> "Batch":
        """Return this batch, with a row of padding more if it has one row or is a square.

        Compiled code takes sizes that are 1, or equal, for cases of their own: it would be
        compiled once more for them, or not fit any other shape.
        """
        rows, width = self.inputs.shape
        if rows not in (1, width):
            return self
        more = [(0, 1), (0, 0)]
        inputs = np.pad(self.inputs, more, constant_values=self.inputs[0, 0])
        return Batch(inputs, np.pad(self.targets, more, constant_values=IGNORE))


class Rows(Protocol):
    """What steps are made of: `Windows` of documents, or `dialogues.Dialogues`."""

    def __len__(self) -> int: ...

    @property
    def n_targets(self) -> int:
        """Targets in all rows."""
        ...

    @property
    def lengths(self) -> Int64s:
        """(R,) int64: targets of each row."""
        ...

    @property
    def widths(self) -> Int64s:
        """(R,) int64: ids that each row reads, hints aside."""
        ...

    @property
    def sha256(self) -> str:
        """A digest that other data does not have."""
        ...

    def sequence(self, index: int) -> ModelIds:
        """Return row `index` in model order, (T,): what is given, then its targets."""
        ...

    def batch(self, indices: Int64s, *, hints: float = 0.0, seed: Sequence[int] = ()) -> Batch:
        """Return the rows `indices`, padded on the right."""
        ...


class Windows:
    """All documents of some shards, with their markers, cut into windows that fit the context.

    A document longer than the context is cut at the same reading positions for both twins, into
    pieces of about equal length; neighbors share one id, which is context in one and target in
    the other. In the word unit cuts fall between words.
    """

    def __init__(
        self, shards: Sequence[Shard], languages: Sequence[Language], *, block_size: int
    ) -> None:
        """Index the windows of `shards` in each of `languages`, which share a tokenizer.

        With what comes first a window has at most `block_size + 1` ids. Raises DataError if there
        is no document in them.
        """
        self._shards = tuple(shards)
        self._languages = tuple(languages)
        self._block_size = block_size
        parts = [
            self._index(way, number)
            for way in range(len(self._languages))
            for number in range(len(self._shards))
        ]
        if not sum(map(len, parts)):
            raise DataError("there is no document to read: prepare more text")
        # Columns: language, shard, document, first and last reading position with the markers.
        self._table = np.concatenate(parts)
        leads = np.array([len(language.lead) for language in self._languages], dtype=np.int64)
        self.lengths: Int64s = self._table[:, 4] - self._table[:, 3]
        """(W,) int64: targets of each window."""
        self.widths: Int64s = self.lengths + leads[self._table[:, 0]]
        """(W,) int64: ids that each window reads, hints aside."""

    def __len__(self) -> int:
        return len(self._table)

    @property
    def n_targets(self) -> int:
        """Targets in all windows: ids of all documents, and one marker each."""
        return int(self.lengths.sum())

    @property
    def n_whole(self) -> int:
        """How many windows are all of a document."""
        alike = (self._table[1:, :3] == self._table[:-1, :3]).all(axis=1)
        pieces = np.append(alike, False) | np.append(False, alike)
        return len(self) - int(np.count_nonzero(pieces))

    @property
    def sha256(self) -> str:
        """A digest of the shards, in their order."""
        return hashlib.sha256(" ".join(shard.sha256 for shard in self._shards).encode()).hexdigest()

    def sequence(self, index: int) -> ModelIds:
        """Return window `index` in model order, (T,): what comes first, a context id, targets."""
        language, ids, _ = self._window(index)
        return ModelIds(joined(language.lead, ids))

    def batch(self, indices: Int64s, *, hints: float = 0.0, seed: Sequence[int] = ()) -> Batch:
        """Return the windows `indices`, one a row, padded on the right.

        The share `hints` of whole documents stand behind hints, drawn by `seed` and the window,
        where they fit. No indices give one row of padding, so that a rank without work can take
        part in a step.
        """
        rows = [self._row(int(index), hints, seed) for index in indices]
        pad_id = self._languages[0].tokenizer.pad_id
        return pad(rows, block_size=self._block_size, pad_id=pad_id)

    def _row(self, index: int, hints: float, seed: Sequence[int]) -> tuple[Int64s, Int64s]:
        """Return what a row is given, (T,): what comes first and a context id; and its targets."""
        language, ids, text_ids = self._window(index)
        first = language.lead
        if text_ids is not None and hints:
            random = np.random.default_rng([*seed, index])
            if random.random() < hints:
                drawn = draw_hints(language.tokenizer.decode(text_ids), random)
                hinted = joined(language.lead, language.hint_ids(drawn))
                fits = len(hinted) + len(ids) <= self._block_size + 1
                first = hinted if fits else first
        return joined(first, ids[:1]), np.asarray(ids[1:])

    def _window(self, index: int) -> tuple[Language, ModelIds, ReadingIds | None]:
        """Return a window's language, its ids, and the whole document's if it is all of one."""
        way, shard, document, first, last = self._table[index]
        language = self._languages[way]
        text_ids = self._shards[shard].document(int(document))
        tokenizer = language.tokenizer
        starts, ends = first == 0, last == len(text_ids) + 1
        ids = joined(  # of a long document, only this piece of it is touched
            [tokenizer.start_id] if starts else [],
            text_ids[max(first - 1, 0) : last],
            [tokenizer.end_id] if ends else [],
        )
        turned = ModelIds(ids[language.order.permutation(ids, last_apart=True)])
        return language, turned, text_ids if starts and ends else None

    def _index(self, way: int, number: int) -> Int64s:
        """Return the (W, 5) table of one shard in one language."""
        language, shard = self._languages[way], self._shards[number]
        longest = self._block_size - len(language.lead)
        last = np.diff(shard.offsets).astype(np.int64) + 1
        document = np.arange(len(last), dtype=np.int64)
        columns = (np.full_like(last, way), np.full_like(last, number), document)
        whole = np.stack([*columns, np.zeros_like(last), last], axis=1)
        long = np.flatnonzero(last > longest)
        if not len(long):
            return whole
        pieces: list[tuple[int, ...]] = []
        for index in map(int, long):
            marked = language.tokenizer.mark(shard.document(index))
            cuts = cut_document(marked, language.cutter, block_size=longest)
            pieces += [(way, number, index, first, stop) for first, stop in cuts]
        table = np.concatenate([np.delete(whole, long, axis=0), np.array(pieces, dtype=np.int64)])
        return table[np.lexsort((table[:, 3], table[:, 2]))]


class TrainingBatches:
    """The endless, exactly repeatable sequence of optimizer steps over some rows."""

    def __init__(
        self,
        windows: Rows,
        *,
        batch_size: int,
        block_size: int,
        grad_accum_steps: int,
        seed: int,
    ) -> None:
        """Plan micro-batches of at most `batch_size * block_size` ids, padding included."""
        self._windows = windows
        self._budget = batch_size * block_size
        self._accumulate = grad_accum_steps
        self._seed = seed
        self._plan = lru_cache(maxsize=2)(self._make_plan)
        self._steps_in_epoch = lru_cache(maxsize=None)(self._count_steps)

    def steps_in(self, epochs: float) -> int:
        """Return the number of steps in the first `epochs` epochs, at least one."""
        whole = int(epochs)
        steps = sum(self._steps_in_epoch(epoch) for epoch in range(whole))
        if epochs > whole:
            steps += round((epochs - whole) * self._steps_in_epoch(whole))
        return max(steps, 1)

    def position(self, step: int) -> tuple[int, int]:
        """Return (epoch, step within it) of the step number `step`, both from 0."""
        epoch = 0
        while step >= (steps := self._steps_in_epoch(epoch)):
            step -= steps
            epoch += 1
        return epoch, step

    def step(self, step: int) -> list[Int64s]:
        """Return the window indices of each micro-batch of step number `step`, for all ranks."""
        epoch, within = self.position(step)
        return self._plan(epoch)[within * self._accumulate : (within + 1) * self._accumulate]

    def _count_steps(self, epoch: int) -> int:
        return -(-len(self._plan(epoch)) // self._accumulate)

    def _make_plan(self, epoch: int) -> list[Int64s]:
        random = np.random.default_rng([self._seed, epoch])
        windows = random.permutation(len(self._windows))
        widths = self._windows.widths
        pool_of = np.cumsum(widths[windows]) // (POOL * self._budget)
        pools = np.split(windows, np.flatnonzero(np.diff(pool_of)) + 1)
        plan: list[Int64s] = []
        for pool in pools:
            batches = cut_by_length(pool, widths[pool], budget=self._budget)
            plan += [batches[i] for i in random.permutation(len(batches))]
        return plan


def pad(rows: Sequence[tuple[IdArray, IdArray]], *, block_size: int, pad_id: int) -> Batch:
    """Return rows of ids that are given and ids that are targets, padded on the right.

    What is given has at least one id; a row reads at most `block_size`. No rows give one row of
    padding.
    """
    widths = [len(given) + len(written) - 1 for given, written in rows]
    width = -(-max(widths, default=1) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    inputs = np.full((max(len(rows), 1), min(width, block_size)), pad_id, dtype=np.int64)
    targets = np.full_like(inputs, IGNORE)
    for row, (given, written) in enumerate(rows):
        start, stop = len(given) - 1, widths[row]
        inputs[row, : start + 1] = given
        inputs[row, start + 1 : stop] = written[:-1]
        targets[row, start:stop] = written
    return Batch(inputs, targets)


def cut_document(
    marked: ReadingIds, cutter: Order, *, block_size: int
) -> Iterator[tuple[int, int]]:
    """Yield the first and last position of each window of a document with its markers, (T,).

    Windows have at most `block_size + 1` ids and about equal lengths; each begins with the id
    that the one before ended with. Cuts fall where `cutter`, that of both twins, has a group
    begin; a word longer than the context is cut.
    """
    last = len(marked) - 1
    starts = np.flatnonzero(cutter.group_starts(marked))
    first = 0
    while first < last:
        left = -(-(last - first) // block_size)
        aim = first + (2 * (last - first) + left) // (2 * left)  # an equal share of what is left
        stop = aim if aim == last else _nearest(starts, aim, first + 1, first + block_size)
        yield first, stop
        first = stop


def _nearest(places: Int64s, aim: int, lowest: int, highest: int) -> int:
    """Return which of the sorted `places` from `lowest` to `highest` is next to `aim`, or `aim`."""
    middle = int(np.searchsorted(places, aim))
    around = places[max(middle - 1, 0) : middle + 1]
    allowed = around[(around >= lowest) & (around <= highest)]
    return int(allowed[np.argmin(np.abs(allowed - aim))]) if len(allowed) else aim


def cut_by_length(windows: Int64s, lengths: Int64s, *, budget: int) -> list[Int64s]:
    """Group windows of similar length into batches of at most `budget` ids, padding included.

    A window longer than the budget stands alone. Ties keep the order given.
    """
    by_length = np.argsort(lengths, kind="stable")
    windows = windows[by_length]
    padded = -(-lengths[by_length] // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    batches = []
    first = 0
    while first < len(windows):
        most = max(budget // int(padded[first]), 1)
        ids = padded[first : first + most] * np.arange(1, len(padded[first : first + most]) + 1)
        count = max(int(np.searchsorted(ids, budget, side="right")), 1)
        batches.append(windows[first : first + count])
        first += count
    return batches
