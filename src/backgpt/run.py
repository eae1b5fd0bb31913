"""One training run: its data, model, optimizer and position, and what it saves and measures.

`train` holds the loop and calls the methods here in turn.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from backgpt import run_folder
from backgpt.batches import TrainingBatches, Windows
from backgpt.checkpoint import (
    BEST,
    CHECKPOINTS,
    Checkpoint,
    ModelFolder,
    checkpoints,
    point,
    read_checkpoint,
    read_model,
    save_checkpoint,
    thin,
)
from backgpt.config import TrainConfig
from backgpt.devices import (
    Ranks,
    autocast,
    choose_device,
    compiler,
    flops_per_token,
    peak_flops,
)
from backgpt.engine.torch_engine import TorchEngine
from backgpt.errors import ConfigError, CorruptFileError, MissingExtraError, TrainingError
from backgpt.generate import Language, collect
from backgpt.model import Transformer
from backgpt.optim import build_optimizer
from backgpt.sampling import Sampling
from backgpt.score import bits_per_byte, corpus_nats
from backgpt.shards import Shard, open_dataset

SAMPLE_TOKENS = 200
STEPS_WORTH_COMPILING = 200


class Reporter(Protocol):
    """Where a run tells what it does: a progress bar, plain lines, or nothing."""

    def started(self, *, first_step: int, max_steps: int) -> None:
        """The loop is about to begin at `first_step`."""

    def stepped(self, record: Mapping[str, Any]) -> None:
        """A step's record, or an evaluation's, was written to the metrics."""

    def notice(self, text: str) -> None:
        """Something the user should know, once."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended; losses are nats per token on the whole validation split."""

    run: Path
    step: int
    valid_loss: float | None
    valid_bpb: float | None
    best_loss: float | None


class Run:
    """The state of one run: data, model, optimizer, position, and what is not yet written."""

    def __init__(self, config: TrainConfig, report: Reporter, ranks: Ranks) -> None:
        self.config, self.report, self.ranks = config, report, ranks
        dataset = open_dataset(config.data)
        self.tokenizer = dataset.tokenizer
        self.language = Language(self.tokenizer, config.direction, config.unit)
        self.shape = config.shape(self.tokenizer.vocab_size)
        self.windows = self._windows(dataset.train)
        self.valid_windows = self._windows(dataset.valid) if dataset.valid else None
        self.valid_bytes = sum(shard.text_bytes for shard in dataset.valid)
        self.batches = TrainingBatches(
            self.windows,
            batch_size=config.batch_size,
            block_size=self.shape.block_size,
            grad_accum_steps=config.grad_accum_steps,
            seed=config.seed,
        )
        self.max_steps = config.max_steps or self.batches.steps_in(config.epochs or 1)
        initial = self._initial_model()

        self.device = choose_device(config.device, ranks)
        self.autocast = autocast(config.precision, self.device)
        torch.manual_seed(config.seed)
        self.model = Transformer(self.shape, dropout=config.dropout).to(self.device)
        if initial is not None:
            self._load(initial)
        self.optimizer = build_optimizer(self.model, config)
        self.step_loss = self._wrapped_loss()
        self.peak = peak_flops(self.device)
        self.board: Any = None
        self.tokens = 0
        self.waiting: list[tuple[int, Tensor, Tensor, float]] = []
        self.clock = (time.perf_counter(), 0)

    def resume(self) -> int:
        """Take up the newest checkpoint that verifies; return the step to go on with."""
        run = self.config.out
        if self.ranks.first:
            run_folder.open_run(self.config)
            self.board = _board(self.config) if self.config.tensorboard else None
        for folder in reversed(checkpoints(run)):
            try:
                checkpoint = read_checkpoint(folder)
            except CorruptFileError as error:
                self._notice(f"skipping a damaged checkpoint: {error}")
                continue
            self._check_same_data(checkpoint)
            self._load(checkpoint.model)
            self.optimizer.load_state_tensors(_tensors(checkpoint.optimizer))
            self.tokens = checkpoint.state["tokens"]
            self.clock = (time.perf_counter(), self.tokens)
            if self.ranks.first:
                run_folder.rewind(run, checkpoint.step)
            self._notice(f"going on from step {checkpoint.step:,} in {run}")
            if self.evaluates_at(checkpoint.step) and checkpoint.step not in self._valid_losses():
                self.evaluate(checkpoint.step)  # it was stopped between saving and this
            return checkpoint.step
        return 0

    def accumulate_gradients(self, step: int) -> Tensor:
        """Add up the gradients of this rank's share of a step; return its share of the loss.

        Gradients are those of the mean over all targets of the step, whatever the number of
        ranks or of micro-batches; the shares of all ranks add up to that mean.
        """
        micro_batches = self.batches.step(step)
        n_targets = sum(int(self.windows.lengths[indices].sum()) for indices in micro_batches)
        rank, world_size = self.ranks.rank, self.ranks.world_size
        mine = micro_batches[rank::world_size] or [np.zeros(0, dtype=np.int64)]
        if self.config.dropout:
            seed = np.random.SeedSequence([self.config.seed, step, rank])
            torch.manual_seed(int(seed.generate_state(1)[0]))
        total = torch.zeros((), device=self.device)
        for number, indices in enumerate(mine, start=1):
            batch = self.windows.batch(indices)
            inputs = torch.from_numpy(batch.inputs).to(self.device, non_blocking=True)
            targets = torch.from_numpy(batch.targets).to(self.device, non_blocking=True)
            with self._synced(last=number == len(mine)):
                with self.autocast():
                    loss = self.step_loss(inputs, targets)
                (loss * (world_size / n_targets)).backward()  # ranks average their gradients
            total += loss.detach()
        self.tokens += n_targets
        return total / n_targets

    def remember(self, step: int, loss: Tensor, norm: Tensor, scale: float) -> None:
        """Keep a step's figures, on the device, until they are written."""
        self.waiting.append((step + 1, loss, norm, scale))

    def flush_metrics(self, done: int) -> None:
        """Write the steps since the last call. Raises TrainingError if a loss is not a number."""
        losses = torch.stack([loss for _, loss, _, _ in self.waiting])
        norms = torch.stack([norm for _, _, norm, _ in self.waiting])
        if self.ranks.world_size > 1:
            dist.all_reduce(losses)
        finite = torch.isfinite(losses) & torch.isfinite(norms)
        if not bool(finite.all()):
            step = self.waiting[int(torch.nonzero(~finite)[0])][0]
            raise TrainingError(
                f"the loss of step {step:,} is not a number; {self.config.out} keeps what was "
                f"saved before: lower lr = {self.config.lr} or muon_lr = {self.config.muon_lr}"
            )
        figures = zip(self.waiting, losses.tolist(), norms.tolist(), strict=True)
        records: list[dict[str, Any]] = [
            {"step": step, "loss": loss, "grad_norm": norm, "lr_scale": scale}
            for (step, _, _, scale), loss, norm in figures
        ]
        records[-1] |= {"epoch": self.batches.position(done - 1)[0], **self._speed()}
        self._write(records)
        self.waiting.clear()

    def save(self, done: int) -> None:
        """Save a checkpoint and delete the old ones that are not needed."""
        if not self.ranks.first:
            return
        model = ModelFolder(
            config=self.shape,
            direction=self.config.direction,
            unit=self.config.unit,
            tokenizer=self.tokenizer,
            weights=_arrays(self.model.state_dict()),
        )
        state = {"tokens": self.tokens, "n_targets": self.windows.n_targets}
        optimizer = _arrays(self.optimizer.state_tensors())
        save_checkpoint(self.config.out, Checkpoint(model, done, optimizer, state))
        thin(self.config.out, keep_last=self.config.keep_last)

    def evaluate(self, done: int) -> None:
        """Score the whole validation split; write samples and the curve; say which is best."""
        if not self.ranks.first:
            return
        run = self.config.out
        engine = TorchEngine(self.model, device=self.device)
        saved = run / CHECKPOINTS / f"step-{done}"
        if self.valid_windows is None:
            point(run, BEST, saved)
        else:
            with self.autocast():
                nats = corpus_nats(engine, self.valid_windows)
            loss = nats / self.valid_windows.n_targets
            bpb = bits_per_byte(nats, self.valid_bytes)
            self._write([{"step": done, "valid_loss": loss, "valid_bpb": bpb}])
            if loss <= min(self._valid_losses().values()):
                point(run, BEST, saved)
        run_folder.add_samples(run, done, self._samples(engine, done))
        run_folder.plot(run, title=f"{self.config.preset}, {self.config.direction}")
        self.model.train()
        self.clock = (time.perf_counter(), self.tokens)

    def result(self) -> RunResult:
        """Return how the run ended."""
        evaluations = [r for r in run_folder.read_metrics(self.config.out) if "valid_loss" in r]
        last = evaluations[-1] if evaluations else {}
        return RunResult(
            run=self.config.out,
            step=self.max_steps,
            valid_loss=last.get("valid_loss"),
            valid_bpb=last.get("valid_bpb"),
            best_loss=min((r["valid_loss"] for r in evaluations), default=None),
        )

    def evaluates_at(self, done: int) -> bool:
        """Return whether validation is due after `done` steps."""
        return done == self.max_steps or done % self.config.eval_every == 0

    def _valid_losses(self) -> dict[int, float]:
        records = run_folder.read_metrics(self.config.out)
        return {r["step"]: r["valid_loss"] for r in records if "valid_loss" in r}

    def _initial_model(self) -> ModelFolder | None:
        """Read the weights to begin with, and check that they fit."""
        if self.config.init is None:
            return None
        model = read_model(self.config.init)
        if model.tokenizer.sha256 != self.tokenizer.sha256:
            raise ConfigError(
                f"{self.config.init} has another tokenizer than {self.config.data}: prepare the "
                "data with that model's tokenizer.json (--tokenizer)"
            )
        for name, value in self.shape:
            if name != "block_size" and getattr(model.config, name) != value:
                raise ConfigError(
                    f"{self.config.init} has {name} = {getattr(model.config, name)}, this run "
                    f"{value}: give the preset and dimensions of the model you start from"
                )
        return model

    def _check_same_data(self, checkpoint: Checkpoint) -> None:
        known = checkpoint.model.tokenizer.sha256, checkpoint.state["n_targets"]
        if known != (self.tokenizer.sha256, self.windows.n_targets):
            raise ConfigError(
                f"{self.config.out} was started on other data than {self.config.data} holds: "
                "give that data to go on, or another --out to start anew"
            )

    def _load(self, model: ModelFolder) -> None:
        self.model.load_state_dict(_tensors(model.weights))

    def _windows(self, shards: tuple[Shard, ...]) -> Windows:
        block_size = self.shape.block_size
        return Windows(shards, self.tokenizer, self.language.order, block_size=block_size)

    def _wrapped_loss(self) -> nn.Module:
        """Return the module whose output is the summed loss: compiled, or on several ranks.

        A GPU gets the whole compiled; a CPU the regions between the products, and with "auto"
        only in runs long enough to gain back the seconds it takes.
        """
        on_cuda = self.device.type == "cuda"
        compile_ = compiler(self._notice)
        loss: Callable[[Tensor, Tensor], Tensor] = self.model.loss
        wanted = on_cuda or self.max_steps >= STEPS_WORTH_COMPILING
        if self.config.compile == "on" or (self.config.compile == "auto" and wanted):
            if on_cuda:
                loss = compile_(loss)
            else:
                self.model.compile_regions(compile_)
        step_loss: nn.Module = _StepLoss(self.model, loss)
        if self.ranks.world_size > 1:
            devices = [self.device.index] if on_cuda else None
            step_loss = DistributedDataParallel(step_loss, device_ids=devices)
        return step_loss

    def _synced(self, *, last: bool) -> AbstractContextManager[None]:
        """Average gradients over the ranks in the last micro-batch of a step only."""
        if isinstance(self.step_loss, DistributedDataParallel) and not last:
            no_sync: AbstractContextManager[None] = self.step_loss.no_sync()
            return no_sync
        return nullcontext()

    def _speed(self) -> dict[str, Any]:
        then, tokens = self.clock
        self.clock = (time.perf_counter(), self.tokens)
        per_second = (self.tokens - tokens) / (self.clock[0] - then)
        figures = {"tokens": self.tokens, "tokens_per_second": round(per_second)}
        if self.peak is None:
            return figures
        context = self.windows.n_targets / len(self.windows) / 2
        share = per_second * flops_per_token(self.shape, context) / self.peak
        return {**figures, "share_of_peak": round(share / self.ranks.world_size, 4)}

    def _samples(self, engine: TorchEngine, done: int) -> Iterator[str]:
        for ending in self.config.sample_endings:
            prompt = self.language.prompt(ending, at_edge=True)
            if len(prompt.ids) <= engine.block_size:
                sampling = Sampling()
                yield from (
                    sample.text
                    for sample in collect(
                        engine,
                        self.language,
                        prompt,
                        sampling=sampling,
                        max_new_tokens=SAMPLE_TOKENS,
                        seed=done,
                    )
                )

    def _write(self, records: list[dict[str, Any]]) -> None:
        if not self.ranks.first:
            return
        run_folder.add_metrics(self.config.out, records)
        for record in records:
            self.report.stepped(record)
            if self.board is not None:
                for name, value in record.items():
                    self.board.add_scalar(name, value, record["step"])

    def _notice(self, text: str) -> None:
        if self.ranks.first:
            self.report.notice(text)


class _StepLoss(nn.Module):
    """A model as the function that training calls: ids and targets to the summed loss."""

    def __init__(self, model: Transformer, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the summed loss in nats over the targets of (B, T) ids."""
        return self.loss(ids, targets)


def _board(config: TrainConfig) -> Any:
    """Return what writes TensorBoard files into the run folder when it is first written to."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise MissingExtraError("tensorboard = true", "tensorboard") from None
    return SummaryWriter(config.out / "tensorboard")


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def _tensors(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
