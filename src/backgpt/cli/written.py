"""What `backgpt sample` prints: texts of any kind, plain or as JSON."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from backgpt.cli.terminal import show, tell

if TYPE_CHECKING:
    from backgpt.api import Model
    from backgpt.around import Surrounded
    from backgpt.bridge import Bridge
    from backgpt.generate import Text
    from backgpt.hints import Hints
    from backgpt.verse import Verse

WRITES_AGAIN = "backgpt: --seed {} writes this again"  # told of a seed that was drawn
_BETWEEN = "---\n"  # two texts

Record = dict[str, Any]


class Printer:
    """Prints texts with a line between them, or records, one a line; each at once."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._is_first = True

    def show(self, record: Record) -> None:
        """Print the next one."""
        if self._as_json:
            text = json.dumps(record, ensure_ascii=False)
        else:
            text = record["text"] if self._is_first else _BETWEEN + record["text"]
        self._is_first = False
        show(text)


def print_texts(records: Iterable[Record], *, as_json: bool) -> None:
    """Print the texts of some records, or the records themselves, one a line."""
    printer = Printer(as_json=as_json)
    for record in records:
        printer.show(record)


def tell_what_was_not_obeyed(hints: "Hints", texts: Sequence[str]) -> None:
    """Say on standard error which hints some texts do not obey."""
    failed = Counter(
        kind for text in texts for kind, obeyed in hints.obeyed_by(text).items() if not obeyed
    )
    if not failed:
        return
    kinds = ", ".join(
        f"{kind}{_but(hints, kind, texts[0])}"
        if len(texts) == 1
        else f"{kind} by {count} of {len(texts)}"
        for kind, count in failed.items()
    )
    tell(f"backgpt: not obeyed: {kinds}; --best-of writes more and keeps what obeys most")


def tell_what_was_cut(texts: "Sequence[Text]", *, model: "Model") -> None:
    """Say on standard error how many texts were cut where the model reads no more."""
    count = sum(text.finish_reason == "length" for text in texts)
    if count:
        edge = "beginning" if model.direction == "backward" else "end"
        tell(
            f"backgpt: {count} of {len(texts)} cut before the {edge}: the model reads at most "
            f"{model.engine.block_size} ids"
        )


def tell_what_is_empty(count: int, n_texts: int, *, leftward: bool) -> None:
    """Say on standard error for how many texts the model wrote nothing, and what helps."""
    if count:
        begins, first = ("begins", "first") if leftward else ("ends", "last")
        tell(
            f"backgpt: nothing was written for {count} of {n_texts}: to the model a text {begins} "
            f"like this; change its {first} words, or give a --length that it does not have yet"
        )


def _but(hints: "Hints", kind: str, text: str) -> str:
    """Return what is wrong with a text that does not obey: which words it lacks, its length."""
    from backgpt.hints import range_of, words_of

    if kind == "words":
        return f" (missing: {', '.join(hints.missing_words(text))})"
    if kind == "length" and hints.length is not None:
        least, most = range_of(hints.length)
        if math.isinf(most):
            limits = f"more than {least - 1}"
        else:
            limits = f"{least} to {most}" if least else f"at most {most}"
        return f" ({len(words_of(text))} words; {hints.length} is {limits})"
    return ""


def record_of_text(model: "Model", text: "Text", hints: "Hints", speed: float | None) -> Record:
    """Return what is told of one text; `speed`, if it is known, is in tokens per second."""
    given = "ending" if model.direction == "backward" else "opening"
    return {
        "text": text.text,
        given: text.given,
        "finish_reason": text.finish_reason,
        "logprob": text.logprob,
        "n_tokens": text.n_tokens,
        **({} if speed is None else {"tokens_per_second": round(speed, 1)}),
        "seed": text.seed,
        **_obeyed(hints, text.text),
    }


def record_of_bridge(bridge: "Bridge", hints: "Hints") -> Record:
    """Return what is told of one bridge."""
    return {
        "text": bridge.text,
        "opening": bridge.opening,
        "middle": bridge.middle,
        "ending": bridge.ending,
        "finish_reason": bridge.finish_reason,
        "logprob": bridge.logprob,
        "seed": bridge.seed,
        **_obeyed(hints, bridge.text),
    }


def record_of_surrounded(found: "Surrounded") -> Record:
    """Return what is told of a text around a phrase."""
    return {
        "text": found.text,
        "before": found.before,
        "phrase": found.phrase,
        "after": found.after,
        "complete": found.complete,
        "seed": found.seed,
    }


def record_of_verse(verse: "Verse") -> Record:
    """Return what is told of a verse."""
    return {
        "text": verse.text,
        "lines": list(verse.lines),
        "end_words": list(verse.end_words),
        "logprob": verse.logprob,
        "seed": verse.seed,
    }


def _obeyed(hints: "Hints", text: str) -> Record:
    return {"asked": dict(hints.texts()), "obeyed": hints.obeyed_by(text)} if hints else {}
