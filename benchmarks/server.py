"""Load a server with many streams at once, or leave it in mid-stream, and tell what comes of it.

    python benchmarks/server.py load --minutes 5
    python benchmarks/server.py disconnects
    python benchmarks/server.py load --minutes 1 --rounds 3 \\
        --peer llama-server=FILE --peer gguf=SITE_PACKAGES

`load` keeps 64 streams running and 256 waiting: 320 clients, each asks again when it was answered.
With the peer llama.cpp's server takes turns with ours, on the same model in q8_0, converted, with
the same prompts, ends and sampling; its vocabulary is made up. SITE_PACKAGES is where `gguf` can
be imported from. Prints a Markdown table and writes all figures to --json. Needs Linux (/proc).
In the table a spread is p50 / p95 / p99, and a rate among others p5 / p50 / p95.
"""

import argparse
import asyncio
import json
import platform
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from decode import Arrays, Task, gguf_file
from load import Asked, Load, Program, serving

from backgpt.builtin import DEFAULT, find
from backgpt.cores import count_cores
from backgpt.files import write_whole
from backgpt.language import Language
from backgpt.model_folder import ModelFolder, read_model
from backgpt.sampling import DRY_ALLOWED, DRY_BASE, Sampling

OURS, PEER = "backgpt", "llama.cpp"
SECONDS_TO_RELEASE = 30.0
SETTLING = 5.0  # seconds until all run that may; not counted
LEAST_PIECES = 32  # of a stream whose rate is compared: shorter ones are rounding
LEAST_TOKENS, MOST_TOKENS = 64, 200
NAMES = ("Tom", "Lily", "the little dog", "Anna", "the old man", "Ben", "the bear", "Sue")
ENDINGS = (
    "And {} was never sad again.",
    "Then {} went home and fell asleep.",
    '"I love you," said {}. They hugged and laughed together until the sun went down.',
    "From that day on, {} always shared the toys with all of the friends in the park.",
    "The end.",
    "Mom smiled at {} and gave everyone a big piece of cake. It was the best day ever.",
)
GAUGES = ("backgpt_samples_running", "backgpt_samples_in_flight", "backgpt_work_waiting")
ZERO = ("errors", "not joined to the text", *GAUGES)
PEER_PATHS = ("llama-server", "gguf")

Figures = dict[str, Any]


def requests(seed: int, most: int) -> Iterator[Asked]:
    """Yield up to `most` requests, none like another."""
    draw = random.Random(seed)
    for number in range(most):
        ending = draw.choice(ENDINGS).format(draw.choice(NAMES))
        yield Asked(ending, seed + number, draw.randint(LEAST_TOKENS, MOST_TOKENS))


async def load_turn(
    program: Program, folder: Path, options: argparse.Namespace, turn: int
) -> Figures:
    """Keep a server busy for a while; return what came of it."""
    async with serving(program, folder) as served:
        load = Load(served, options.running)
        asked = requests(turn * options.requests, options.requests)
        await load.run(options.running + options.waiting, asked, 60 * options.minutes)
        figures = figures_of(load)
        log = served.log.read_text(errors="replace")[-2000:]
    return {"server": program.name, "turn": turn, **figures, "log": log}


def figures_of(load: Load) -> Figures:
    """Return the figures of a load, of the time in which as many waited as may."""
    seconds = load.closed - load.began
    start = load.began + min(SETTLING, seconds / 5)
    finished = [one for one in load.streams if not one.error]
    steady = [one for one in finished if one.pieces and start <= one.first <= load.closed]
    long = [one for one in steady if one.last <= load.closed and one.pieces >= LEAST_PIECES]
    from_, to, fifth = load.at(start), load.at(load.closed), load.at(load.began + seconds / 5)
    tokens_per_piece = sum(one.tokens for one in finished) / max(1, sum(o.pieces for o in finished))
    passed = max(to.at - from_.at, 1e-9)
    shares = [one.share for one in long]
    return {
        "requests finished": len(finished),
        "errors": load.n_errors,
        "first errors": [one.error for one in load.streams if one.error][:5],
        "tokens/s": (to.pieces - from_.pieces) / passed * tokens_per_piece,
        "tokens per piece": tokens_per_piece,
        "pieces/s of one stream": spread([one.rate for one in long], 5, 50, 95),
        "first piece after a place was free, ms": spread([1000 * one.waited for one in steady]),
        "first piece after the request, ms": spread(
            [1000 * o.first - 1000 * o.sent for o in steady]
        ),
        "longest gap in a stream, ms": spread([1000 * one.longest_gap for one in long]),
        "streams compared": len(long),
        "fairness, max/min": max(shares) / min(shares) if long else 0.0,
        "fairness, p95/p5": percentile(shares, 95) / percentile(shares, 5) if long else 0.0,
        "memory after a fifth, at the end, at most, MB": [
            fifth.memory,
            load.moments[-1].memory,
            load.served.memory("VmHWM"),
        ],
        "processors used, server": (to.cpu - from_.cpu) / passed,
        "processors used, this program": (to.own_cpu - from_.own_cpu) / passed,
        "seconds": seconds,
        "streams checked": len(load.checked),
        "not joined to the text": load.checked.count(False),
    }


async def leave(program: Program, folder: Path, options: argparse.Namespace) -> Figures:
    """Leave a server in mid-stream many times; return what is left of it there."""
    draw = random.Random(1)
    async with serving(program, folder) as served:
        warm = Asked(ENDINGS[0], 0, LEAST_TOKENS)
        await asyncio.gather(*(served.write(warm, n=16) for _ in range(4)))
        before = served.memory()
        load = Load(served, options.running, leaves_after=lambda: draw.randint(0, 40))
        asked = requests(1, 20 * options.disconnects)
        enough = takewhile(lambda _: load.n_left < options.disconnects, asked)
        await load.run(2 * options.running, enough, 60 * options.minutes)
        over = time.perf_counter()
        gauges = served.gauges()
        while any(gauges[name] for name in GAUGES):
            if time.perf_counter() - over > SECONDS_TO_RELEASE:
                break
            await asyncio.sleep(0.01)
            gauges = served.gauges()
        released = time.perf_counter() - over
        texts = await served.write(warm)
        return {
            "server": program.name,
            "disconnects": load.n_left,
            "of them before the first piece": sum(o.left and not o.pieces for o in load.streams),
            "canceled, as the server counts": gauges["backgpt_canceled_total"],
            "finished before": sum(not one.left for one in load.streams),
            "errors": load.n_errors + gauges["backgpt_faults_total"],
            **{name: gauges[name] for name in GAUGES},
            "seconds until all was released": released,
            "requests answered afterwards": len(texts),
            "memory before and after, MB": [before, served.memory()],
            "seconds": over - load.began,
        }


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


def spread(values: list[float], *percents: float) -> list[float]:
    return [percentile(values, one) for one in percents or (50, 95, 99)] if values else []


# ---- who is measured ----------------------------------------------------------------------------


def ours(options: argparse.Namespace) -> Program:
    """`backgpt serve`, its pieces to be put in front as they come."""
    command = [sys.executable, "-m", "backgpt", "serve", "--model", options.model]
    command += ["--max-running", str(options.running), "--max-waiting", str(options.waiting)]
    command += ["--threads", str(options.threads)]

    def body(asked: Asked) -> dict[str, Any]:
        given = {"suffix": asked.ending, "seed": asked.seed, "max_tokens": asked.most_tokens}
        return {**given, "stream_options": {"order": "prepend"}}

    return Program(OURS, lambda port: [*command, "--port", str(port)], body, can_check=True)


@dataclass(frozen=True)
class Converting(Task):
    """The task of writing a model's own weights as GGUF."""

    model: ModelFolder

    def weights(self) -> Arrays:
        return dict(self.model.weights)


def llama_server(options: argparse.Namespace, peers: dict[str, str], folder: Path) -> Program:
    """llama.cpp's server with the same model: it is sent the ids that ours would read."""
    model = read_model(find(options.model))
    sites = {"llama_cpp": peers.get("gguf", "")}
    file = gguf_file(Converting(model.config, options.threads, sites, folder, model), "q8_0")
    language = Language.all_of(model.tokenizer, model.direction, model.unit)[0]
    [stop] = language.prompt("", at_edge=True).stops.later
    context = options.running * model.config.block_size
    numbers = {"-t": options.threads, "-tb": options.threads, "-np": options.running, "-c": context}
    numbers |= {"--threads-http": options.running + options.waiting + 8, "--cache-ram": 0}
    command = [peers["llama-server"], "-m", str(file), "-cb", "--no-webui", "-lv", "1"]
    command += [str(part) for pair in numbers.items() for part in pair]
    command += ["--override-kv", f"tokenizer.ggml.eos_token_id=int:{stop}"]
    command += ["--dry-sequence-breaker", "none"]
    command += options.peer_options.split()
    how = Sampling()
    sampling = {
        "samplers": ["penalties", "dry", "temperature", "min_p"],
        "temperature": how.temperature,
        "min_p": how.min_p,
        "repeat_penalty": how.repetition_penalty,
        "repeat_last_n": model.config.block_size,
        "dry_multiplier": how.dry_multiplier,
        "dry_base": DRY_BASE,
        "dry_allowed_length": DRY_ALLOWED,
        "dry_penalty_last_n": model.config.block_size,
    }

    def body(asked: Asked) -> dict[str, Any]:
        ids = language.prompt(asked.ending, at_edge=True).ids.tolist()
        return {"prompt": ids, "seed": asked.seed, "max_tokens": asked.most_tokens, **sampling}

    return Program(PEER, lambda port: [*command, "--host", "127.0.0.1", "--port", str(port)], body)


# ---- report -------------------------------------------------------------------------------------


def table(turns: list[Figures]) -> str:
    """Return the figures of all turns, one column each."""
    rows = [name for name in turns[0] if name not in ("server", "turn", "first errors", "log")]
    heads = [f"{turn['server']} {turn.get('turn', '')}".strip() for turn in turns]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(turns) + 1) + "|"]
    for row in rows:
        lines.append(f"| {row} | {' | '.join(_shown(turn.get(row, '')) for turn in turns)} |")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " / ".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
    return str(value)


def ratio(turns: list[Figures]) -> str:
    """Return how our tokens/s compare to the peer's, medians of all turns."""
    rates = {
        name: statistics.median(turn["tokens/s"] for turn in turns if turn["server"] == name)
        for name in (OURS, PEER)
    }
    return (
        f"{OURS} {rates[OURS]:,.0f} tokens/s, {PEER} {rates[PEER]:,.0f}: "
        f"{rates[OURS] / max(rates[PEER], 1e-9):.2f} times"
    )


def hardware() -> str:
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return models[0] if models else platform.machine()


async def measure(options: argparse.Namespace) -> list[Figures]:
    """Let all servers take their turns, one at a time."""
    peers = dict(peer.split("=", 1) for peer in options.peer)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.what == "disconnects":
            return [await leave(ours(options), folder, options)]
        programs = [ours(options)]
        if "llama-server" in peers:
            programs.append(llama_server(options, peers, folder))
        turns = []
        for turn in range(options.rounds):
            for program in programs:
                turns.append(await load_turn(program, folder, options, turn + 1))
                print(f"{program.name}, round {turn + 1} of {options.rounds}", file=sys.stderr)
        return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("load", "disconnects"))
    parser.add_argument("--model", default=DEFAULT, help="a built-in model or a model folder")
    parser.add_argument("--minutes", type=float, default=5.0, help="of one turn, at most")
    parser.add_argument("--requests", type=int, default=100_000, help="of one turn, at most")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--running", type=int, default=64)
    parser.add_argument("--waiting", type=int, default=256)
    parser.add_argument("--disconnects", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=count_cores())
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--peer-options", default="", help="more options for llama-server")
    parser.add_argument("--json", type=Path, help="the file for all figures")
    options = parser.parse_args()
    if unknown := {peer.partition("=")[0] for peer in options.peer} - set(PEER_PATHS):
        parser.error(f"--peer {', '.join(unknown)}: choose of {', '.join(PEER_PATHS)}")
    turns = asyncio.run(measure(options))
    shown = f"{options.running} running, {options.waiting} waiting, {options.threads} threads"
    print(f"{hardware()}; {options.model}; {shown}\n\n{table(turns)}")
    if len({turn["server"] for turn in turns}) > 1:
        print(f"\n{ratio(turns)}")
    if options.json:
        given = {name: str(value) for name, value in vars(options).items()}
        figures = {"hardware": hardware(), "options": given, "turns": turns}
        write_whole(options.json, json.dumps(figures, indent=1).encode())
    bad = [turn for turn in turns if any(turn.get(name) for name in ZERO)]
    if bad:
        raise SystemExit(f"not all of {ZERO} are 0: {[turn.get('first errors') for turn in bad]}")


if __name__ == "__main__":
    main()
