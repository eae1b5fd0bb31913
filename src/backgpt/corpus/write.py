"""Write the built-in corpus: `python -m backgpt.corpus.write PATH` rebuilds the shipped file.

Takes a seed and the package's word tables, pools and plots; gives distinct stories, always the
same ones. The last paragraph names the hero and what the story was about, because a model that
predicts the previous token learns the beginning from it.
"""

import hashlib
import lzma
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from backgpt.corpus import STORY_SEPARATOR
from backgpt.corpus.cast import Cast
from backgpt.corpus.grammar import Plot, expand, parse_plot, pick, read_lists, read_sections
from backgpt.files import write_whole

SEED = 20_240
STORY_COUNT = 2_600
PLOT_FILES = ("plots_a.txt", "plots_b.txt", "plots_c.txt")

_CLOSING_CHANCE = 0.85
_SECOND_CLOSING_CHANCE = 0.4
_LAST_POOLS = ("night", "dream", "hug", "friends", "happy")  # nothing may follow but "The end."
_THE_END_CHANCE = 0.35
_BREAK = "\n"


@dataclass(frozen=True)
class Library:
    """Everything stories are made from, parsed once."""

    tables: Mapping[str, Sequence[str]]
    pools: Mapping[str, Sequence[str]]
    plots: Sequence[Plot]


def load_library() -> Library:
    """Return the package's word tables, pools and plots."""
    plots = [
        parse_plot(name, lines)
        for filename in PLOT_FILES
        for name, lines in read_sections(filename).items()
    ]
    return Library(read_lists("words.txt"), read_lists("pools.txt"), plots)


def write_story(library: Library, plot: Plot, rng: Random) -> str:
    """Return one story that follows `plot`."""
    cast = Cast(plot.cast, library.tables, rng)
    parts: list[str] = []

    for step in plot.steps:
        if rng.random() >= step.chance:
            continue
        parts.append(pick(rng, step.variants) if step.variants else _BREAK)
    parts += _closing_lines(plot, library, rng)

    template = expand(" ".join(parts), library.pools, rng)
    return _tidy(cast.fill(template))


def write_stories(count: int = STORY_COUNT, *, seed: int = SEED) -> list[str]:
    """Return `count` distinct stories, every plot equally often, in shuffled order."""
    library = load_library()
    seen: set[str] = set()
    made: list[str] = []

    attempt = 0
    while len(made) < count:
        plot = library.plots[attempt % len(library.plots)]
        story = write_story(library, plot, Random(f"{seed}-{attempt}"))
        attempt += 1
        if story not in seen:
            seen.add(story)
            made.append(story)
    # Sorting by hash shuffles the same way in every version of Python.
    return sorted(made, key=lambda story: hashlib.sha256(story.encode()).digest())


def corpus_text() -> str:
    """Return the whole corpus as one text, stories separated by a blank line."""
    return STORY_SEPARATOR.join(write_stories(STORY_COUNT, seed=SEED)) + "\n"


def write_file(path: Path) -> int:
    """Write the compressed corpus to `path` and return its size in bytes."""
    packed = lzma.compress(corpus_text().encode("utf-8"), preset=9 | lzma.PRESET_EXTREME)
    write_whole(path, packed)
    return len(packed)


def _closing_lines(plot: Plot, library: Library, rng: Random) -> list[str]:
    """Return what may follow the plot's own last line, paragraph breaks included."""
    parts: list[str] = []
    if rng.random() < _CLOSING_CHANCE:
        first = pick(rng, plot.closings)
        parts += [pick(rng, ["", _BREAK]), pick(rng, library.pools[first])]
        last = [name for name in plot.closings if name in _LAST_POOLS]
        if first not in _LAST_POOLS and rng.random() < _SECOND_CLOSING_CHANCE:
            parts.append(pick(rng, library.pools[pick(rng, last)]))
    if rng.random() < _THE_END_CHANCE:
        parts += [pick(rng, ["", _BREAK]), "The end."]
    return parts


def _tidy(text: str) -> str:
    """Return `text` with single spaces, sentence capitals and the right article."""
    text = re.sub(r" +", " ", text)
    text = re.sub(r" ?\n ?", "\n", text).strip()
    text = re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)
    return re.sub(r"(^|\n|[.!?] )([a-z])", lambda m: m[1] + m[2].upper(), text)


def main(arguments: Sequence[str]) -> int:
    """Write the file named by the one argument; return the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m backgpt.corpus.write PATH\n")
        return 2
    size = write_file(Path(arguments[0]))
    sys.stderr.write(f"wrote {arguments[0]}: {STORY_COUNT} stories, {size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
