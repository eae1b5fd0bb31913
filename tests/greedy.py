"""What an engine writes if it always takes the likeliest id, and endings to write toward."""

from backgpt.engine import Engine
from backgpt.order import ModelIds

_NAMES = ("Lily", "Tom", "Max", "Sue", "Ben", "Anna", "Tim", "the cat", "the dog", "the bird")
_FORMS = ("{} went home.", "{} was happy.", "And {} said sorry.", "{} slept.", '"Yes," said {}.')
ENDINGS = [form.format(name).capitalize() for form in _FORMS for name in _NAMES]


def greedy(engine: Engine, prompt: ModelIds, stop: int, most: int) -> list[int]:
    """Return the likeliest ids after `prompt`, one by one, to the stop id."""
    rows, logits = engine.prefill(prompt)
    written: list[int] = []
    while len(written) < most and stop not in written:
        written.append(int(logits.reshape(-1).argmax()))
        logits = engine.step(rows, written[-1:])
    engine.release(rows)
    return written
