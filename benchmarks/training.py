"""Time one optimizer step of ours against a step of other projects, interleaved in one run.

    python benchmarks/training.py --peer smolgpt=PATH --peer nanogpt=PATH

PATH is a checkout of the peer: its model and its optimizer are imported from there and trained as
its own `train.py` does (compiled, its dropout), with bf16 autocast for all. Every contestant lives
in a process of its own and they take turns (A B C A B C ...), so that a busy machine is busy for
all of them. Also timed: the bf16 matrix products of one step alone, the floor for any step.
"""

import argparse
import gc
import importlib
import multiprocessing
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from backgpt import kernels
from backgpt.config import TrainConfig
from backgpt.model import Transformer
from backgpt.optim import build_optimizer, clip_gradients
from backgpt.shape import ModelConfig, preset

Times = dict[str, float]
"""Seconds by part of a step; `total` is always there."""
Step = Callable[[], Times]


@dataclass(frozen=True)
class Task:
    """What every contestant does: the size of the model and of the batch, and where."""

    shape: ModelConfig
    batch: int
    length: int
    device: str
    threads: int

    def tokens(self) -> int:
        return self.batch * self.length

    def data(self) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, (B, T) int64, the same for everyone."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, self.length + 1)
        ids = torch.randint(0, self.shape.vocab_size, shape, generator=generator)
        return ids[:, :-1].to(self.device), ids[:, 1:].contiguous().to(self.device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)

    def now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()


def ours(task: Task, optimizer_name: str, *, compiled: bool) -> Step:
    """One step of this project with its own defaults."""
    kernels.keep_freed_memory()
    model = Transformer(task.shape).to(task.device)
    if task.device == "cpu" and compiled:
        model.compile_regions()
    config = TrainConfig(data=Path("-"), max_steps=1, optimizer=optimizer_name)  # type: ignore[arg-type]
    optimizer = build_optimizer(model, config)
    inputs, targets = task.data()
    loss = torch.compile(model.loss) if task.device.startswith("cuda") else model.loss

    def step() -> Times:
        start = task.now()
        with task.autocast():
            total = loss(inputs, targets) / task.tokens()
        forward = task.now()
        torch.autograd.backward(total)
        backward = task.now()
        clip_gradients(model.parameters(), config.grad_clip)
        optimizer.step(1.0)
        optimizer.zero_grad()
        end = task.now()
        return {
            "forward": forward - start,
            "backward": backward - forward,
            "optimizer": end - backward,
            "total": end - start,
        }

    return step


def smolgpt(task: Task, path: str, *, compiled: bool, dropout: float | None) -> Step:
    """One step as in smolGPT's `train.py`."""
    sys.path.insert(0, path)
    config = importlib.import_module("config")
    shape = config.GPTConfig(
        block_size=task.shape.block_size,
        vocab_size=task.shape.vocab_size,
        n_layer=task.shape.n_layer,
        n_head=task.shape.n_head,
        n_embed=task.shape.n_embd,
    )
    if dropout is not None:
        shape.dropout = dropout
    training = config.TrainingConfig()
    model = importlib.import_module("model").GPT(shape).to(task.device)
    with redirect_stdout(StringIO()):
        optimizer = model.configure_optimizers(
            training.weight_decay,
            training.learning_rate,
            (training.beta1, training.beta2),
            task.device,
        )
    return _peer_step(task, model, optimizer, training.grad_clip, compiled=compiled)


def nanogpt(task: Task, path: str, *, compiled: bool, dropout: float | None) -> Step:
    """One step as in nanoGPT's `train.py`, with bf16 on the CPU too (as shipped: float32)."""
    sys.path.insert(0, path)
    module = importlib.import_module("model")
    shape = module.GPTConfig(
        block_size=task.shape.block_size,
        vocab_size=task.shape.vocab_size,
        n_layer=task.shape.n_layer,
        n_head=task.shape.n_head,
        n_embd=task.shape.n_embd,
        dropout=dropout or 0.0,
        bias=False,
    )
    with redirect_stdout(StringIO()):
        model = module.GPT(shape).to(task.device)
        optimizer = model.configure_optimizers(
            0.1, 6e-4, (0.9, 0.95), torch.device(task.device).type
        )
    return _peer_step(task, model, optimizer, 1.0, compiled=compiled)


def _peer_step(
    task: Task,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    grad_clip: float,
    *,
    compiled: bool,
) -> Step:
    inputs, targets = task.data()
    run = torch.compile(model) if compiled else model

    def step() -> Times:
        start = task.now()
        with task.autocast():
            _, loss = run(inputs, targets)
        forward = task.now()
        torch.autograd.backward(loss)
        backward = task.now()
        torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        end = task.now()
        return {
            "forward": forward - start,
            "backward": backward - forward,
            "optimizer": end - backward,
            "total": end - start,
        }

    return step


def matmul_floor(task: Task) -> Step:
    """Every bf16 matrix product of one forward and backward pass, into memory already there."""
    shape, rows = task.shape, task.tokens()
    q_width = shape.n_head * shape.head_dim
    kv_width = shape.n_kv_head * shape.head_dim
    ffn = shape.intermediate_size
    products = [
        (shape.n_embd, q_width + 2 * kv_width, shape.n_layer),
        (q_width, shape.n_embd, shape.n_layer),
        (shape.n_embd, 2 * ffn, shape.n_layer),
        (ffn, shape.n_embd, shape.n_layer),
        (shape.n_embd, shape.vocab_size, 1),
    ]
    random = partial(torch.randn, device=task.device, dtype=torch.bfloat16)
    linear = [
        (
            random(rows, inner),
            random(outer, inner),
            random(rows, outer),
            count,
        )
        for inner, outer, count in products
    ]
    heads = (task.batch * shape.n_head, task.length // 2, shape.head_dim)  # half: causal
    q = random(heads)
    k = random((heads[0], task.length, shape.head_dim))
    scores = random((*heads[:2], task.length))

    def step() -> Times:
        start = task.now()
        for x, weight, y, count in linear:
            for _ in range(count):
                torch.mm(x, weight.T, out=y)
                torch.mm(y, weight, out=x)
                torch.mm(y.T, x, out=weight)
        for _ in range(shape.n_layer):
            for _ in range(2):  # scores and their gradient
                torch.bmm(q, k.mT, out=scores)
            for _ in range(2):  # output, gradient of q
                torch.bmm(scores, k, out=q)
            for _ in range(2):  # gradients of k and v
                torch.bmm(scores.mT, q, out=k)
        return {"total": task.now() - start}

    return step


def prepare(name: str, task: Task, peers: dict[str, str]) -> Step:
    """Return the step of the contestant called `name`."""
    if name == "matmuls alone":
        return matmul_floor(task)
    project, _, variant = name.partition(" ")
    if project == "backgpt":
        optimizer = "adamw" if "adamw" in variant else "muon"
        return ours(task, optimizer, compiled="not compiled" not in variant)
    peer = {"smolgpt": smolgpt, "nanogpt": nanogpt}[project]
    dropout = 0.0 if "no dropout" in variant else None
    return peer(task, peers[project], compiled="compiled" in variant, dropout=dropout)


def contestants(peers: dict[str, str], *, all_variants: bool) -> list[str]:
    """Return who takes part; `all_variants` adds what the peers do not ship."""
    names = ["backgpt", "backgpt adamw"]
    names += ["backgpt not compiled"] if all_variants else []
    if "smolgpt" in peers:
        names += ["smolgpt compiled", "smolgpt"]
        names += ["smolgpt compiled, no dropout"] if all_variants else []
    if "nanogpt" in peers:
        names += ["nanogpt compiled"]
        names += ["nanogpt"] if all_variants else []
    return [*names, "matmuls alone"]


def serve(connection: Connection, name: str, task: Task, peers: dict[str, str]) -> None:
    """Run in a contestant's process: one step for each message, until None comes."""
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    try:
        step = prepare(name, task, peers)
        while connection.recv() is not None:
            gc.collect()
            connection.send(step())
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}".splitlines()[0])


def race(
    names: list[str], task: Task, peers: dict[str, str], *, rounds: int, warmup: int
) -> dict[str, list[Times]]:
    """Let all take turns for `rounds` rounds after `warmup` steps each, at least one.

    Returns their times, a record for each round.
    """
    context = multiprocessing.get_context("spawn")
    seats: dict[str, Connection] = {}
    for name in names:  # all get ready at the same time
        seats[name], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, name, task, peers), daemon=True).start()
        seats[name].send("step")
    for name in names:
        if isinstance(problem := seats[name].recv(), str):
            print(f"{name} cannot take part: {problem}", file=sys.stderr)
            del seats[name]
    for _ in range(warmup - 1):
        for name, seat in seats.items():
            assert not isinstance(times := _turn(seat), str), f"{name}: {times}"
    results: dict[str, list[Times]] = {name: [] for name in seats}
    for _ in range(rounds):
        for name, seat in seats.items():
            times = _turn(seat)
            assert not isinstance(times, str), f"{name}: {times}"
            results[name].append(times)
    for seat in seats.values():
        seat.send(None)
    return results


def _turn(seat: Connection) -> Times | str:
    seat.send("step")
    answer: Times | str = seat.recv()
    return answer


def report(results: dict[str, list[Times]], task: Task) -> str:
    """Return the medians as a Markdown table; ratios are of medians of the same rounds."""
    medians = {
        name: {part: statistics.median(t[part] for t in times) for part in times[0]}
        for name, times in results.items()
    }
    mine = medians["backgpt"]["total"]
    lines = [
        "| step of | tokens/s | backgpt is | forward s | backward s | optimizer s | all s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, parts in medians.items():
        totals = [times["total"] for times in results[name]]
        cells = [
            f"{parts[p]:.3f}" if p in parts else "" for p in ("forward", "backward", "optimizer")
        ]
        lines.append(
            f"| {name} | {task.tokens() / parts['total']:,.0f} | {parts['total'] / mine:.2f}x | "
            + " | ".join(cells)
            + f" | {parts['total']:.3f} ({min(totals):.3f}-{max(totals):.3f}) |"
        )
    return "\n".join(lines)


def describe(task: Task, rounds: int) -> str:
    """Return one line on hardware, software and size."""
    shape = task.shape
    hardware = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        models = [line for line in cpu_info.read_text().splitlines() if "model name" in line]
        hardware = models[0].partition(":")[2].strip() if models else hardware
    if task.device.startswith("cuda"):
        hardware = torch.cuda.get_device_name(task.device)
    return (
        f"{hardware}, {task.threads} threads, {task.device}, torch {torch.__version__}; "
        f"{shape.n_layer} layers, {shape.n_head} heads, width {shape.n_embd}, "
        f"ffn {shape.intermediate_size}, vocabulary {shape.vocab_size}; "
        f"batch {task.batch} x {task.length}, bf16, {rounds} interleaved rounds"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--preset", default="seed")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=512, help="ids in a row")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", help="contestants, separated by semicolons")
    parser.add_argument("--all", action="store_true", help="add variants the peers do not ship")
    options = parser.parse_args()
    peers = dict(peer.split("=", 1) for peer in options.peer)
    task = Task(
        preset(options.preset, options.vocab_size, block_size=options.length),
        options.batch,
        options.length,
        options.device,
        options.threads,
    )
    names = contestants(peers, all_variants=options.all)
    if options.only:
        names = options.only.split(";")
        if "backgpt" not in names:
            parser.error("--only has to name 'backgpt', which all others are compared with")
    results = race(names, task, peers, rounds=options.rounds, warmup=options.warmup)
    print(describe(task, options.rounds), end="\n\n")
    print(report(results, task))


if __name__ == "__main__":
    main()
