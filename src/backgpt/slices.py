"""Work that is done in slices, so that a server can do other things between two of them.

A generator that yields after each slice and returns what it came to.
"""

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Slices = Generator[None, None, T]


def finished(slices: Generator[object, None, T]) -> T:
    """Do all slices, one after the other; return what they came to."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            result: T = end.value
            return result
