"""Training on a GPU: the same losses, gradients and runs as on a CPU, and one compiled graph.

`scripts/gpu_run.sh` runs this first on the machine. Without a GPU only what can be said of its
path on a CPU is tested.
"""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from backgpt import kernels
from backgpt.batches import IGNORE, Batch
from backgpt.checkpoint import checkpoints, read_checkpoint
from backgpt.config import TrainConfig, build
from backgpt.devices import autocast, compiler, on_device
from backgpt.engine.torch_engine import TorchEngine
from backgpt.errors import StoppedError
from backgpt.model import Transformer
from backgpt.optim import build_optimizer, clip_gradients, muon_update
from backgpt.run_folder import read_metrics
from backgpt.shape import ModelConfig, preset
from backgpt.train import train

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
SHAPES = [(24, 48), (17, 64), (9, 128), (64, 64), (2, 256), (33, 200), (3, 8)]
TINY = {
    "preset": "nano",
    "n_layer": 2,
    "n_head": 1,
    "n_embd": 64,
    "intermediate_size": 96,
    "block_size": 64,
    "batch_size": 16,
    "log_every": 1,
    "sample_endings": ["The end."],
    "max_steps": 12,
    "eval_every": 6,
    "save_every": 4,
}


class Notes:
    """A reporter that keeps what it is told; `at` maps a step to something to do there."""

    def __init__(self, at: Mapping[int, Callable[[], None]] | None = None) -> None:
        self.notices: list[str] = []
        self.at = at or {}

    def started(self, *, first_step: int, max_steps: int) -> None:
        self.first_step = first_step

    def stepped(self, record: Mapping[str, Any]) -> None:
        if "valid_loss" not in record and record["step"] in self.at:
            self.at[record["step"]]()

    def notice(self, text: str) -> None:
        self.notices.append(text)


def shape(n_layer: int = 2) -> ModelConfig:
    sizes = {"n_head": 2, "n_embd": 128, "block_size": 256, "intermediate_size": 96}
    return preset("nano", 512, n_layer=n_layer, **sizes)


def model(device: torch.device, config: ModelConfig | None = None) -> Transformer:
    made = Transformer(config or shape(), generator=torch.Generator().manual_seed(0))
    return made.to(device)


def batch(
    rows: int, width: int, device: torch.device, vocab_size: int = 512
) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng([rows, width])
    inputs, targets = random.integers(16, vocab_size, (2, rows, width))
    targets[:, -3:] = IGNORE
    made = Batch(inputs, targets).of_no_special_shape()
    return on_device(made.inputs, device), on_device(made.targets, device)


def loss_and_gradient(
    of: Transformer, loss: Callable[..., Tensor], inputs: Tensor, targets: Tensor, precision: str
) -> tuple[float, Tensor]:
    of.zero_grad()
    with autocast(precision, inputs.device)():
        total = loss(inputs, targets)
    torch.autograd.backward(total / inputs.numel())
    gradients = [p.grad.flatten() for p in of.parameters() if p.grad is not None]
    return total.item() / inputs.numel(), torch.cat(gradients).cpu()


def assert_near(found: tuple[float, Tensor], expected: tuple[float, Tensor], share: float) -> None:
    assert found[0] == pytest.approx(expected[0], rel=share)
    assert (found[1] - expected[1]).norm() < 10 * share * expected[1].norm()


@pytest.fixture
def gpu_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the path of a GPU on the CPU, with nothing compiled before."""
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(kernels, "_trains_on_cpu", lambda x: False)
    monkeypatch.setattr(kernels, "LOSS_CHUNK", kernels.LOGITS_LIMIT // 512)
    yield
    torch.compiler.reset()


def test_the_path_of_a_gpu_computes_what_that_of_a_cpu_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = model(CPU)
    given = batch(5, 40, CPU)
    expected = loss_and_gradient(one, one.loss, *given, "fp32")
    monkeypatch.setattr(kernels, "_trains_on_cpu", lambda x: False)
    assert_near(loss_and_gradient(one, one.loss, *given, "fp32"), expected, 1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("gpu_path")
def test_what_a_gpu_gets_is_one_graph_for_all_shapes() -> None:
    one = model(CPU, shape(n_layer=1))
    fast = torch.compile(one.loss, dynamic=True, fullgraph=True, backend="aot_eager")
    for rows, width in SHAPES:
        given = batch(rows, width, CPU)
        expected = loss_and_gradient(one, one.loss, *given, "bf16")
        assert_near(loss_and_gradient(one, fast, *given, "bf16"), expected, 1e-3)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("size", [(1, 8), (8, 8), (2, 8)])
def test_a_batch_of_a_special_shape_gets_a_row_that_counts_for_nothing(
    size: tuple[int, int],
) -> None:
    given = Batch(np.full(size, 20), np.full(size, 21))
    found = given.of_no_special_shape()
    rows, width = found.inputs.shape
    assert rows not in (1, width)
    assert (found.inputs[: size[0]] == given.inputs).all()
    assert (found.targets[: size[0]] == given.targets).all()
    assert (found.targets[size[0] :] == IGNORE).all()


@on_gpu
@pytest.mark.parametrize(("precision", "share"), [("fp32", 1e-3), ("bf16", 5e-3)])
def test_losses_and_gradients_are_those_of_a_cpu(precision: str, share: float) -> None:
    reference, here = model(CPU), model(CUDA)
    for rows, width in SHAPES:
        expected = loss_and_gradient(reference, reference.loss, *batch(rows, width, CPU), "fp32")
        found = loss_and_gradient(here, here.loss, *batch(rows, width, CUDA), precision)
        assert_near(found, expected, share)


@on_gpu
def test_scores_are_those_of_a_cpu() -> None:
    random = np.random.default_rng(0)
    rows = [random.integers(16, 512, length) for length in (3, 40, 200)]
    one, two = (TorchEngine(model(device), device=device) for device in (CPU, CUDA))
    for expected, found in zip(one.score(rows), two.score(rows), strict=True):
        assert np.allclose(expected, found, atol=5e-3)


@on_gpu
def test_muon_steps_as_on_a_cpu() -> None:
    moved = []
    for device in (CPU, CUDA):
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn((96, 64), generator=generator).to(device) for _ in range(3)]
        before = [weight.clone() for weight in weights]
        for weight in weights:
            weight.grad = torch.randn((96, 64), generator=generator).to(device)
        momenta = [torch.zeros_like(weight) for weight in weights]
        muon_update(weights, momenta, lr=0.02, weight_decay=0.1)
        moved.append([(w - b).cpu() for w, b in zip(weights, before, strict=True)])
    for one, two in zip(*moved, strict=True):
        assert (one - two).norm() < 0.05 * one.norm()


@on_gpu
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_stopped_run_goes_on_as_the_unbroken_one(
    dataset_path: Path, tmp_path: Path, optimizer: str
) -> None:
    def settings(name: str) -> TrainConfig:
        own = {"data": dataset_path, "out": tmp_path / name, "optimizer": optimizer}
        more = {"dropout": 0.1, "direction": "both", "hints": 0.5, "compile": "off"}
        return build(TrainConfig, {**TINY, **own, **more}, origin="test")

    train(settings("whole"), report=Notes())
    interrupt = Notes({5: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    with pytest.raises(StoppedError):
        train(settings("broken"), report=interrupt)
    resumed = Notes()
    train(settings("broken"), report=resumed)
    assert resumed.first_step in (5, 6)
    losses = [
        [r["loss"] for r in read_metrics(tmp_path / name) if "loss" in r]
        for name in ("whole", "broken")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)  # a GPU adds up in no fixed order
    assert losses[0][-1] < losses[0][0] - 0.1
    assert read_checkpoint(checkpoints(tmp_path / "broken")[0]).step == 12


@on_gpu
def test_compiled_losses_are_the_plain_ones_from_few_graphs() -> None:
    torch.compiler.reset()
    counters.clear()
    notices: list[str] = []
    here = model(CUDA)
    fast = compiler(notices.append)(here.loss)
    for rows, width in SHAPES:
        given = batch(rows, width, CUDA)
        expected = loss_and_gradient(here, here.loss, *given, "bf16")
        assert_near(loss_and_gradient(here, fast, *given, "bf16"), expected, 5e-3)
    assert not notices
    # One, and at most one each for what the compiler finds small and large.
    assert counters["stats"]["unique_graphs"] <= 3


@on_gpu
def test_a_compiled_run_lowers_the_loss(dataset_path: Path, tmp_path: Path) -> None:
    notes = Notes()
    own = {"data": dataset_path, "out": tmp_path / "run", "compile": "on", "dropout": 0.1}
    train(build(TrainConfig, {**TINY, **own}, origin="test"), report=notes)
    losses = [r["loss"] for r in read_metrics(tmp_path / "run") if "loss" in r]
    assert losses[-1] < losses[0] - 0.1
    assert not [notice for notice in notes.notices if "torch.compile" in notice]


@on_gpu
def test_compiled_steps_of_the_seed_shape_fit_at_64_rows_of_1024() -> None:
    here = model(CUDA, preset("seed", 4096))
    config = TrainConfig(data=Path("-"), max_steps=3)
    optimizer = build_optimizer(here, config)
    fast = compiler(lambda text: None)(here.loss)
    losses = []
    for rows, width in [(64, 1024), (300, 216), (120, 544), (64, 1024)]:
        loss, _ = loss_and_gradient(here, fast, *batch(rows, width, CUDA, 4096), "auto")
        clip_gradients(here.parameters(), 1.0)
        optimizer.step(0.1)
        losses.append(loss)
    assert losses == pytest.approx([np.log(4096)] * 4, rel=0.1)  # of ids drawn at random
    assert torch.cuda.max_memory_allocated() < 70e9
