"""Texts whose arrow of time is known: what a measurement of it has to find.

- `reversible`: a Markov chain that reads alike both ways. The gap is 0.
- `one-way`: a sum that is easy to compute and hard to undo. A small forward model learns it, a
  backward one does not, and the gap is above 0.

Each text is a line of made-up words, every one its own token, so that nothing but the order of
words differs between the directions. `flip_dataset` turns any dataset around, which must turn the
sign of the gap.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from backgpt.errors import BackgptError
from backgpt.files import write_whole
from backgpt.order import ReadingIds, flipped
from backgpt.shards import TOKENIZER_FILE, Dataset, Shard, open_dataset, write_shard

SYMBOLS = 12
LENGTHS = (8, 24)  # words of a reversible text
MODULUS = 3
CYCLE = 9  # odd, as the modulus is, so that the sums can be undone

RECORD = "flipped.json"  # of which dataset, and into what

_CONSONANTS, _VOWELS = "bdfgklmnprst", "aeo"


def reversible(seed: int) -> Iterator[str]:
    """Yield texts of a reversible Markov chain, without end.

    The chance of a step is proportional to a weight that is the same for the step back, and texts
    begin in the stationary distribution: a text is as likely as the same read from its end.
    """
    random = np.random.default_rng(seed)
    weights = random.exponential(size=(SYMBOLS, SYMBOLS)) ** 3
    weights = weights + weights.T
    totals = weights.sum(axis=1)
    begin = np.cumsum(totals / totals.sum())
    steps = np.cumsum(weights / totals[:, None], axis=1)
    while True:
        length = int(random.integers(LENGTHS[0], LENGTHS[1] + 1))
        symbols = [_drawn(begin, random)]
        while len(symbols) < length:
            symbols.append(_drawn(steps[symbols[-1]], random))
        yield " ".join(_word(symbol, 0) for symbol in symbols)


def one_way(seed: int) -> Iterator[str]:
    """Yield texts of random digits followed by the sums of neighbors on a circle, without end.

    A linear language whose matrix is sparse and whose inverse is not (Papadopoulos, Wenger and
    Hongler 2024, "Arrows of Time for Large Language Models"): each sum needs two digits, but the
    last digit needs all sums.
    """
    random = np.random.default_rng(seed)
    while True:
        digits = random.integers(0, MODULUS, CYCLE)
        sums = (digits + np.roll(digits, -1)) % MODULUS
        words = [_word(int(digit), 1) for digit in digits] + [_word(int(s), 2) for s in sums]
        yield " ".join(words)


CONTROLS: dict[str, Callable[[int], Iterator[str]]] = {
    "reversible": reversible,
    "one-way": one_way,
}
"""Name of a control -> its texts, given a seed."""


def _drawn(cumulated: npt.NDArray[np.float64], random: np.random.Generator) -> int:
    """Return a symbol, given the chance of it or one before it, (SYMBOLS,)."""
    return min(int(np.searchsorted(cumulated, random.random())), SYMBOLS - 1)  # the sum may round


def _word(symbol: int, vowel: int) -> str:
    return _CONSONANTS[symbol] + _VOWELS[vowel]


def flip_dataset(dataset: Dataset, out: Path) -> Dataset:
    """Write `dataset` read from its end to the folder `out`, unless it is there; return it.

    The ids of every document run the other way, and those of `<|start|>` and `<|end|>` change
    places: a forward model meets in it what a backward one meets in `dataset`, id by id. What is
    there of another dataset, or damaged, is written anew.
    """
    record = out / RECORD
    with suppress(BackgptError, OSError, ValueError):
        there = open_dataset(out)
        if json.loads(record.read_text()) == _record(dataset, there):
            return there
    out.mkdir(parents=True, exist_ok=True)
    for old in (record, *out.glob("*.bin")):
        old.unlink(missing_ok=True)
    tokenizer = dataset.tokenizer.with_markers_exchanged()
    tokenizer.save(out / TOKENIZER_FILE)
    for shard in (*dataset.train, *dataset.valid):
        write_shard(
            out / shard.path.name,
            _flipped_documents(shard),
            tokenizer_sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
        )
    made = open_dataset(out)
    write_whole(record, json.dumps(_record(dataset, made), indent=1).encode())
    return made


def _record(dataset: Dataset, flipped_one: Dataset) -> dict[str, list[str]]:
    """Return the digests of a dataset and of what it was flipped to."""
    datasets = {"source": dataset, "flipped": flipped_one}
    return {
        name: [one.tokenizer.sha256, *(shard.sha256 for shard in (*one.train, *one.valid))]
        for name, one in datasets.items()
    }


def _flipped_documents(shard: Shard) -> Iterator[tuple[ReadingIds, int]]:
    for ids, text_bytes in zip(shard.documents(), shard.document_bytes.tolist(), strict=True):
        yield flipped(ids), text_bytes
