"""What a user gives to more than one command: standard input, ways to sample."""

import sys
from typing import TYPE_CHECKING

from backgpt.errors import DataError

if TYPE_CHECKING:
    from backgpt.sampling import Sampling


def standard_input() -> str:
    """Return all of standard input, without the line break a shell puts at its end."""
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 at byte {error.start}: convert it") from None


def sampling_from(**given: float | int | None) -> "Sampling":
    """Return the sampling of those options that were given."""
    from backgpt.sampling import Sampling

    return Sampling(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
