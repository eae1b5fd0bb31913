"""What can go wrong, as exceptions a caller can catch.

Every error that a user can cause derives from `BackgptError`, carries one line that says what
happened, the value and what to do, and knows the exit code that the command line ends with.
"""

from collections.abc import Iterator
from contextlib import contextmanager

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


NO_NUMBERS = "the model gives what is not a number: its weights are damaged, get them anew"


def printable(text: str) -> str:
    """Return `text` on one line: what a terminal cannot show, or would obey, is escaped."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


class BackgptError(Exception):
    """A failure with a one-line reason: a damaged file, a full disk, a run that diverged."""

    exit_code = EXIT_FAILURE


class UsageError(BackgptError):
    """The caller asked for something that cannot be: a bad setting, a missing or unfit file."""

    exit_code = EXIT_USAGE


class TooLongError(UsageError):
    """A text is longer than the model can read."""


class ConfigError(UsageError):
    """A setting is unknown, of the wrong type, or outside its range."""


class DataError(UsageError):
    """A source of text cannot be read as what it was said to be."""


class MissingExtraError(UsageError):
    """A feature needs an optional dependency, `module`, that is not installed."""

    def __init__(self, feature: str, extra: str, module: str) -> None:
        super().__init__(
            f"{feature} needs the extra '{extra}', of which {module} is missing: "
            f"pip install 'backgpt[{extra}]' "
            f"(in a clone: pip install -c constraints.txt '.[{extra}]')"
        )


@contextmanager
def needs_extra(extra: str, feature: str) -> Iterator[None]:
    """Import here what `extra` brings. Raises MissingExtraError if it is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(feature, extra, error.name or str(error)) from None


class CorruptFileError(BackgptError):
    """A file that this project wrote is truncated, altered, or of an unknown version."""


class TrainingError(BackgptError):
    """A training run cannot go on, for instance because the loss is not a number."""


class StoppedError(BackgptError):
    """A run was asked to stop, and saved first; the exit code says by which signal."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def was_interrupted(error: BaseException) -> bool:
    """Return whether Ctrl-C is behind an error: some libraries put another one around it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt) or "KeyboardInterrupt" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
