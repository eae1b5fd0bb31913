"""Lines on the two outputs: what a terminal would obey, such as a color, is escaped there.

Nothing else in `cli` prints, so that nothing can forget it.
"""

import re
import sys
from typing import TextIO

_CONTROLS = re.compile(r"(?!\r?\n|\t)[\x00-\x1f\x7f-\x9f]")


def show(text: str = "", *, end: str = "\n") -> None:
    """Print some of the product, to standard output."""
    print(for_terminal(text), end=end, flush=True)


def tell(text: str) -> None:
    """Print anything else, to standard error."""
    print(for_terminal(text, sys.stderr), file=sys.stderr, flush=True)


def for_terminal(text: str, file: TextIO | None = None) -> str:
    """Return `text` as `file` (standard output) takes it: unchanged unless that is a terminal."""
    if not (file or sys.stdout).isatty():
        return text
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
