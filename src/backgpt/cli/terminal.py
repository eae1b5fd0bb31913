"""Texts on a terminal: what it would obey, such as a color or a move of the cursor, is escaped."""

import re
import sys
from typing import TextIO

_CONTROLS = re.compile(r"(?!\r?\n|\t)[\x00-\x1f\x7f-\x9f]")


def for_terminal(text: str, file: TextIO | None = None) -> str:
    """Return `text` as `file` (standard output) takes it: unchanged unless that is a terminal."""
    if not (file or sys.stdout).isatty():
        return text
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
