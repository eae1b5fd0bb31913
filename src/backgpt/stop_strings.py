"""Text at a growing edge that may still be taken back.

A stop string ends a text and is no part of it, so what could be the part of one that is already
written is held back until it is known. A backward model writes its stop string from its end:

    stop "\\n\\n"     …lost.\\n\\nThen she   ->   Then she      (the text begins right behind it)
"""

from collections.abc import Sequence

from backgpt.checks import texts
from backgpt.errors import UsageError


class StopStrings:
    """Passes on the pieces of a text as far as they are certain.

    `leftward` pieces go in front of the ones before. Once a stop string is there, `stopped` is true
    and nothing more is passed on.
    """

    def __init__(self, stop: Sequence[str], *, leftward: bool) -> None:
        """Begin. Raises UsageError for an empty stop string, or what is no list of texts."""
        self._stop, self._leftward = texts("stop", stop), leftward
        if not all(self._stop):
            raise UsageError("a text to stop at is empty: leave it out")
        self.stopped = False
        self._held = ""

    def push(self, piece: str) -> str:
        """Take the next piece; return what is now certain, perhaps nothing."""
        if not self._stop or not piece:
            return piece
        if self.stopped:
            return ""
        text = piece + self._held if self._leftward else self._held + piece
        if (kept := self._before_stop(text)) is not None:
            self._held, self.stopped = "", True
            return kept
        n_held = max(self._overlap(text, wanted) for wanted in self._stop)
        edge = n_held if self._leftward else len(text) - n_held
        left, right = text[:edge], text[edge:]
        self._held, certain = (left, right) if self._leftward else (right, left)
        return certain

    def finish(self) -> str:
        """End the text at its edge; return what was held back."""
        held, self._held = self._held, ""
        return held

    def _before_stop(self, text: str) -> str | None:
        """Return what was written before the first stop string, None if there is none."""
        found = [stop for stop in self._stop if stop in text]
        if not found:
            return None
        if self._leftward:
            return text[max(text.rindex(stop) + len(stop) for stop in found) :]
        return text[: min(text.index(stop) for stop in found)]

    def _overlap(self, text: str, wanted: str) -> int:
        """Return how many characters at the edge of `text` may be a part of `wanted`."""
        for size in range(min(len(text), len(wanted)), 0, -1):
            if self._leftward and text[:size] == wanted[-size:]:
                return size
            if not self._leftward and text[-size:] == wanted[:size]:
                return size
        return 0
