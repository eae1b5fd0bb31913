"""Time bridges with the built-in model: seams whose beginnings are read once, or each anew.

    python benchmarks/bridge.py [--rounds 9] [--candidates 8]

Both ways take turns, must find the same bridges, and are timed in seconds of the processor, which
other jobs disturb least.
"""

import argparse
import statistics
import time

import backgpt
from backgpt.engine import native_engine
from backgpt.engine.native_engine import NativeEngine

OPENING = "Once there was a little fox who lived in the woods. Every day she looked for a friend."
ENDING = "And so the fox and the bear were best friends forever. The end."
WAYS = {"each anew": (False, 1 << 30), "read once": (True, native_engine.LEAST_SHARED)}
"""Whether callers group what begins alike, and how much must be alike to be read once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--candidates", type=int, default=8)
    given = parser.parse_args()
    model = backgpt.load("stories")
    assert isinstance(model.engine, NativeEngine), "this compares ways of the native engine"
    spent: dict[str, list[float]] = {way: [] for way in (*WAYS, "writing alone")}
    for seed in range(-1, given.rounds):
        found = {}
        for way, (NativeEngine.shares_beginnings, native_engine.LEAST_SHARED) in WAYS.items():
            start = time.process_time()
            found[way] = model.bridge(OPENING, ENDING, seed=seed + 1, n=given.candidates)
            spent[way].append(time.process_time() - start)
        start = time.process_time()
        model.write(ENDING, seed=seed + 1, n=given.candidates)
        spent["writing alone"].append(time.process_time() - start)
        assert found["read once"] == found["each anew"]
    for way, seconds in spent.items():
        times = sorted(seconds[1:])  # the first round warms up
        print(f"{way:14} {statistics.median(times):5.2f} s ({times[0]:.2f}-{times[-1]:.2f})")


if __name__ == "__main__":
    main()
