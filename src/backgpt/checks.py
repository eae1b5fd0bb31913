"""What a caller gives, checked: one line for what is of another type, or out of its range."""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from reprlib import repr as shown

from backgpt.errors import UsageError


def check_text(name: str, value: object) -> None:
    """Raise UsageError unless `value` is a text."""
    if not isinstance(value, str):
        raise UsageError(f"{name} = {shown(value)}: give one text")


def texts(name: str, values: Iterable[str]) -> tuple[str, ...]:
    """Return several texts. Raises UsageError if they are one, or are none."""
    if isinstance(values, str):
        raise UsageError(f"{name} = {shown(values)}: give a list of texts, as in [{shown(values)}]")
    if not isinstance(values, Iterable):
        raise UsageError(f"{name} = {shown(values)}: give a list of texts")
    found = tuple(values)
    for value in found:
        if not isinstance(value, str):
            raise UsageError(f"{name} has {shown(value)} in it: give texts alone")
    return found


def whole(name: str, value: int, *, least: int, most: int | None = None) -> int:
    """Return a whole number from `least` to `most`. Raises UsageError for what is none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UsageError(f"{name} = {shown(value)}: give a whole number")
    if value < least or (most is not None and value > most):
        in_range = f"{least} or more" if most is None else f"from {least} to {most}"
        raise UsageError(f"{name} = {value}: it must be {in_range}")
    return int(value)


def check_number(name: str, value: object) -> None:
    """Raise UsageError unless `value` is a number that is not infinite."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise UsageError(f"{name} = {shown(value)}: give a number")
