"""The little language that plots, pools and word tables are written in.

Takes the package's text files and a seeded random source; gives parsed sections and text in which
every `[a|b]` choice is made and every `{@pool}` is drawn. `{slot}` marks stay for `cast` to fill.
The format is told at the top of `plots_a.txt`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from random import Random
from typing import TypeVar

T = TypeVar("T")

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_POOL = re.compile(r"\{@(\w+)\}")
_HEADERS = ("cast:", "close:")


@dataclass(frozen=True)
class Step:
    """One moment of a plot: variants of the same event, or a paragraph break if there are none."""

    variants: tuple[str, ...]
    chance: float = 1.0


@dataclass(frozen=True)
class Plot:
    """A story's plan: which slots it binds, its steps in order, and the pools that may close it."""

    name: str
    cast: Mapping[str, str]
    closings: tuple[str, ...]
    steps: tuple[Step, ...]


def pick(rng: Random, items: Sequence[T]) -> T:
    """Return one of `items`.

    Uses only `rng.random()`: the one method whose sequence Python promises to keep for a seed.
    """
    return items[int(rng.random() * len(items))]


def read_sections(filename: str) -> dict[str, list[str]]:
    """Return section name -> stripped lines of a text file in this package, comments left out."""
    text = files(__package__).joinpath(filename).read_text(encoding="utf-8")
    sections: dict[str, list[str]] = {}
    lines: list[str] = []

    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("== "):
            lines = sections[line[3:]] = []
        elif not line.startswith("#"):
            lines.append(line)
    return sections


def read_lists(filename: str) -> dict[str, list[str]]:
    """Return section name -> entries: word tables and pools, where blank lines mean nothing."""
    return {name: [x for x in lines if x] for name, lines in read_sections(filename).items()}


def parse_plot(name: str, lines: Sequence[str]) -> Plot:
    """Return the plot written in `lines`: header lines, then blocks separated by blank lines."""
    headers = {h: x[len(h) :].split() for h in _HEADERS for x in lines if x.startswith(h)}
    body = "\n".join(x for x in lines if not x.startswith(_HEADERS))
    steps = []

    for block in re.split(r"\n{2,}", body.strip("\n")):
        marks: list[str] = []
        variants: list[str] = []
        for line in block.split("\n"):
            (marks if line in ("/", "/?", "?") else variants).append(line)
        if "/" in marks or "/?" in marks:
            steps.append(Step((), chance=1.0 if "/" in marks else 0.5))
        if variants:
            steps.append(Step(tuple(variants), chance=0.5 if "?" in marks else 1.0))

    cast = dict(entry.split("=", 1) for entry in headers["cast:"])
    return Plot(name, cast, tuple(headers["close:"]), tuple(steps))


def expand(template: str, pools: Mapping[str, Sequence[str]], rng: Random) -> str:
    """Return `template` with every pool drawn and every choice made, innermost first."""
    while match := _POOL.search(template) or _CHOICE.search(template):
        options = pools[match[1]] if match.re is _POOL else match[1].split("|")
        chosen = pick(rng, options)
        template = template[: match.start()] + chosen + template[match.end() :]
    return template
