"""`backgpt train`: train a model on a prepared dataset, or go on where a run stopped."""

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Option

from backgpt.cli.terminal import show
from backgpt.cli.training import LENGTHS, load_torch, overridden
from backgpt.errors import UsageError
from backgpt.shape import PRESETS

if TYPE_CHECKING:
    from backgpt.config import TrainConfig
    from backgpt.devices import Ranks

SET_BY_TORCHRUN = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LONGEST_WAIT = timedelta(hours=2)  # other ranks wait while the first one validates


def train(
    context: typer.Context,
    config: Annotated[
        Path | None, Option(help="A TOML file with any of these settings; flags win.")
    ] = None,
    data: Annotated[Path | None, Option(help="The dataset folder that prepare made.")] = None,
    chat: Annotated[
        list[str] | None,
        Option(help="Conversations to tune --init on: dolly, or .jsonl files; repeatable."),
    ] = None,
    chat_valid: Annotated[
        list[str] | None, Option(help="Conversations to validate on; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, Option(help="The run folder; resumed where it exists.  [default: runs/story]")
    ] = None,
    preset: Annotated[
        str | None, Option(help=f"One of {', '.join(PRESETS)}.  [default: nano]")
    ] = None,
    direction: Annotated[
        Literal["backward", "forward", "both"] | None,
        Option(
            help="Which token is predicted: the previous, the next, or, with both, the one that "
            "the first id of a row says.  [default: backward]"
        ),
    ] = None,
    unit: Annotated[
        Literal["token", "word"] | None,
        Option(help="What is reversed: tokens, or words.  [default: token]"),
    ] = None,
    hints: Annotated[
        float | None,
        Option(
            help="Share of texts before which hints (opening, words, length) are told, so that the "
            "model learns to obey them.  [default: 0]"
        ),
    ] = None,
    init: Annotated[
        str | None,
        Option(
            help="A model to begin from, whose shape is taken: a path, or a built-in model's name."
        ),
    ] = None,
    max_steps: Annotated[int | None, Option(help="Optimizer steps; or give --epochs.")] = None,
    epochs: Annotated[float | None, Option(help="Passes over the data; may be a fraction.")] = None,
    batch_size: Annotated[
        int | None, Option(help="Rows of block_size ids in a micro-batch.  [default: 32]")
    ] = None,
    grad_accum_steps: Annotated[
        int | None, Option(help="Micro-batches in a step, over all ranks.  [default: 1]")
    ] = None,
    n_layer: Annotated[int | None, Option(help="Layers.")] = None,
    n_head: Annotated[int | None, Option(help="Query heads, 64 wide each.")] = None,
    n_kv_head: Annotated[int | None, Option(help="Key and value heads.")] = None,
    n_embd: Annotated[int | None, Option(help="Width.")] = None,
    block_size: Annotated[int | None, Option(help="Context, in ids.")] = None,
    intermediate_size: Annotated[
        int | None, Option(help="Width of the feed-forward layer.")
    ] = None,
    dropout: Annotated[
        float | None, Option(help="Share of activations dropped.  [default: 0]")
    ] = None,
    optimizer: Annotated[
        Literal["muon", "adamw"] | None,
        Option(help="muon: for matrices, AdamW for the rest.  [default: muon]"),
    ] = None,
    lr: Annotated[float | None, Option(help="AdamW's learning rate.  [default: 0.003]")] = None,
    muon_lr: Annotated[float | None, Option(help="Muon's learning rate.  [default: 0.02]")] = None,
    min_lr: Annotated[
        float | None, Option(help="What lr falls to; muon_lr in proportion.  [default: 0]")
    ] = None,
    warmup_steps: Annotated[
        int | None, Option(help="Steps of rising learning rate.  [default: 20]")
    ] = None,
    decay_fraction: Annotated[
        float | None,
        Option(help="Share of the run, at its end, with falling learning rate.  [default: 0.5]"),
    ] = None,
    weight_decay: Annotated[
        float | None, Option(help="Decoupled weight decay.  [default: 0.1]")
    ] = None,
    beta1: Annotated[float | None, Option(help="AdamW's first moment.  [default: 0.9]")] = None,
    beta2: Annotated[float | None, Option(help="AdamW's second moment.  [default: 0.95]")] = None,
    grad_clip: Annotated[
        float | None, Option(help="Largest gradient norm; 0 is no limit.  [default: 1]")
    ] = None,
    seed: Annotated[
        int | None, Option(help="Of initial weights, order of data, dropout.  [default: 1]")
    ] = None,
    device: Annotated[
        str | None, Option(help="auto, cpu, cuda, cuda:1, ...  [default: auto]")
    ] = None,
    precision: Annotated[
        Literal["auto", "bf16", "fp32"] | None,
        Option(help="Of products; weights are fp32.  [default: auto]"),
    ] = None,
    compile: Annotated[
        Literal["auto", "on", "off"] | None,
        Option(help="torch.compile; auto: on a GPU, and in long runs.  [default: auto]"),
    ] = None,
    log_every: Annotated[
        int | None, Option(help="Steps between lines of progress.  [default: 10]")
    ] = None,
    eval_every: Annotated[
        int | None, Option(help="Steps between validations.  [default: 200]")
    ] = None,
    save_every: Annotated[
        int | None, Option(help="Steps between checkpoints.  [default: 200]")
    ] = None,
    keep_last: Annotated[
        int | None, Option(help="Checkpoints kept, besides the best.  [default: 3]")
    ] = None,
    sample_endings: Annotated[
        list[str] | None,
        Option(help="Texts to write from at each validation; repeatable. Two if none is given."),
    ] = None,
    tensorboard: Annotated[bool | None, Option(help="Write TensorBoard files as well.")] = None,
) -> None:
    """Train a model on a prepared dataset, or go on where the run folder stands.

    Give --max-steps or --epochs. Layers, heads, widths and context are the preset's unless given. A
    run that is gone on with keeps its settings, but for those that are given. Under torchrun the
    ranks share each step's micro-batches.
    """
    given = {k: v for k, v in context.params.items() if v not in (None, (), []) and k != "config"}
    settings = _resolve(given, config)
    load_torch()
    import torch

    from backgpt.cli.progress import TrainProgress
    from backgpt.train import train as job

    torch._logging.set_logs(inductor=logging.ERROR, dynamo=logging.ERROR)  # type: ignore[attr-defined]
    with _distributed(settings) as ranks, TrainProgress(shown=ranks.first) as progress:
        result = job(settings, report=progress, ranks=ranks)
    if ranks.first:
        loss = "" if result.valid_loss is None else f", validation loss {result.valid_loss:.4f}"
        bpb = "" if result.valid_bpb is None else f" ({result.valid_bpb:.4f} bits per byte)"
        show(f"{result.run}: {result.step:,} steps{loss}{bpb}")
        if result.best is not None and result.best[0] != result.step:
            step, least = result.best
            show(f"best: step {step:,}, {least:.4f}; --model {result.run} takes that one")


def _resolve(given: dict[str, Any], file: Path | None) -> "TrainConfig":
    """Combine the run folder's own settings, the TOML file and the flags, the last winning."""
    from backgpt.config import TrainConfig, build, read_toml
    from backgpt.run_folder import SETTINGS

    from_file = read_toml(file) if file else {}
    values = overridden(from_file, given)
    out = values.get("out", TrainConfig.model_fields["out"].default)
    resumed = Path(out) / SETTINGS if isinstance(out, str | Path) else None
    if resumed is not None and resumed.is_file():
        values = overridden(read_toml(resumed), values)
    if not from_file and not LENGTHS & values.keys():
        raise UsageError("say how long: --epochs 2.5 or --max-steps 1000")
    return build(TrainConfig, values, origin=str(file) if from_file else "settings")


@contextmanager
def _distributed(settings: "TrainConfig") -> "Iterator[Ranks]":
    """Join the other processes if torchrun started this one."""
    import torch
    import torch.distributed as dist

    from backgpt.devices import Ranks

    if "RANK" not in os.environ:
        yield Ranks()
        return
    missing = [name for name in SET_BY_TORCHRUN if not os.environ.get(name)]
    if missing:
        raise UsageError(f"RANK is set, {missing[0]} is not: start with torchrun, or unset RANK")
    on_cuda = settings.device != "cpu" and torch.cuda.is_available()
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=LONGEST_WAIT)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))
        dist.barrier()  # the first rank may still validate: nobody hangs up on it
    finally:
        gc.collect()  # what shares gradients refers to itself, and must be gone before its group
        dist.destroy_process_group()
