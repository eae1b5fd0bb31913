"""One training run: its data, model, optimizer and position, and what it saves and measures.

`train` holds the loop and calls the methods here in turn.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from backgpt import run_folder
from backgpt.ahead import Ahead
from backgpt.batches import Batch, TrainingBatches
from backgpt.checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    checkpoints,
    point,
    save_checkpoint,
    thin,
)
from backgpt.config import TrainConfig
from backgpt.devices import (
    Ranks,
    autocast,
    choose_device,
    compiler,
    described,
    flops_per_token,
    gradients_averaged,
    on_device,
    peak_flops,
    seeded,
    spread,
)
from backgpt.engine.torch_engine import TorchEngine
from backgpt.errors import TrainingError, needs_extra
from backgpt.files import cannot_write
from backgpt.generate import collect
from backgpt.model import Transformer
from backgpt.model_folder import BEST, ModelFolder
from backgpt.optim import build_optimizer
from backgpt.run_start import (
    check_goes_on,
    model_that_is_tuned,
    newest_checkpoint,
    record_of_start,
    weights_to_tune,
)
from backgpt.running import Job
from backgpt.sampling import Sampling
from backgpt.score import bits_per_byte, corpus_nats
from backgpt.training_data import open_training_data

SAMPLE_TOKENS = 200
HINT_STREAM = 1  # keeps the draws of hints apart from others of the same seed
STEPS_WORTH_COMPILING = 200
PROCESSES_BESIDE_A_GPU = 2


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
    """How a run ended; losses are nats per token on the whole validation split.

    `best` is the step with the least of them, the later of equal ones, and that loss.
    """

    run: Path
    step: int
    valid_loss: float | None
    valid_bpb: float | None
    best: tuple[int, float] | None = None


class Run:
    """The state of one run: data, model, optimizer, position, and what is not yet written."""

    def __init__(self, config: TrainConfig, report: Reporter, ranks: Ranks) -> None:
        self.config, self.report, self.ranks = config, report, ranks
        run_folder.check_same_run(config)
        self.data = open_training_data(config, init=model_that_is_tuned(config))
        self.tokenizer, self.shape = self.data.tokenizer, self.data.shape
        self.rows = self.data.rows
        self.batches = TrainingBatches(
            self.rows,
            batch_size=config.batch_size,
            block_size=self.shape.block_size,
            grad_accum_steps=config.grad_accum_steps,
            seed=config.seed,
        )
        self.max_steps = config.max_steps or self.batches.steps_in(config.epochs or 1)

        self._data = {"n_targets": self.rows.n_targets, "data_sha256": self.rows.sha256}
        self.device = choose_device(config.device, ranks)
        self.autocast = autocast(config.precision, self.device)
        generator = torch.Generator().manual_seed(config.seed)
        model = Transformer(self.shape, dropout=config.dropout, generator=generator)
        self.model = model.to(self.device)
        self.optimizer = build_optimizer(self.model, config)
        self.step_loss = self._wrapped_loss()
        self._ahead = Ahead(
            self._batches_of,
            last_step=self.max_steps,
            # A CPU is busy enough with the model.
            n_processes=PROCESSES_BESIDE_A_GPU if self.device.type == "cuda" else 0,
        )
        self.peak = peak_flops(self.device)
        self.board: Any = None
        self.tokens = 0
        self.waiting: list[tuple[int, Tensor, Tensor, float]] = []
        self.clock = (time.perf_counter(), 0)

    def resume(self) -> int:
        """Take up the newest checkpoint that verifies; return the step to go on with."""
        for note in self.data.notes:
            self._notice(note)
        checkpoint = newest_checkpoint(
            self.config.out, notice=self._notice, sets_aside=self.ranks.first
        )
        step = 0
        if checkpoint is None and self.config.init is not None:
            self.model.load_arrays(weights_to_tune(self.config, notice=self._notice))
        if checkpoint is not None:
            check_goes_on(
                checkpoint,
                self.config.out,
                max_steps=self.max_steps,
                tokenizer=self.tokenizer,
                data=self._data,
            )
            self.model.load_arrays(checkpoint.model.weights)
            self.optimizer.load_state_tensors(_tensors(checkpoint.optimizer))
            self.tokens = checkpoint.state["tokens"]
            self.clock = (time.perf_counter(), self.tokens)
            step = checkpoint.step
            self._notice(f"going on from step {step:,} in {self.config.out}")
        config, n_parameters = self.config, sum(p.numel() for p in self.model.parameters())
        ids = config.batch_size * config.grad_accum_steps * self.shape.block_size
        self._notice(
            f"{n_parameters / 1e6:.1f}M parameters on {self.device.type}: {self.max_steps:,} steps "
            f"of up to {ids:,} ids, the first of them slower"
        )
        n_ranks, dealt = self.ranks.world_size, config.grad_accum_steps
        if dealt % n_ranks:
            self._notice(
                f"grad_accum_steps = {dealt} micro-batches in a step are dealt to {n_ranks} "
                f"processes, some of which wait for others: a multiple of {n_ranks} keeps all busy"
            )
        if self.ranks.first:
            self.board = _board(self.config) if self.config.tensorboard else None
            run_folder.write_settings(self.config)
            about = {
                "parameters": n_parameters,
                "shape": asdict(self.shape),
                "tokenizer_sha256": self.tokenizer.sha256,
                **self._data,
                "sources": list(self.data.sources),
                "max_steps": self.max_steps,
            }
            start = record_of_start(step) | described(self.device, self.ranks)
            run_folder.add_start(config.out, about, start)
            run_folder.rewind(self.config.out, step)
        if step and self.evaluates_at(step) and step not in self._valid_losses():
            self.evaluate(step)  # it was stopped between saving and this
        if not step and config.init is not None and self.data.valid and self.ranks.first:
            loss = self._validate(TorchEngine(self.model, device=self.device))["valid_loss"]
            self._notice(f"{config.init} as it is: validation {loss:.4f} nats per token")
            self.model.train()
            self.clock = (time.perf_counter(), self.tokens)
        return step

    def close(self) -> None:
        """Let what makes steps ahead end."""
        self._ahead.close()

    def accumulate_gradients(self, step: int) -> Tensor:
        """Add up the gradients of this rank's share of a step; return its share of the loss.

        Gradients are those of the mean over all targets of the step, whatever the number of
        ranks or of micro-batches; the shares of all ranks add up to that mean.
        """
        n_targets, batches = self._ahead.of(step)
        total = torch.zeros((), device=self.device)
        with self._dropout_of(step):
            for number, batch in enumerate(batches, start=1):
                with gradients_averaged(self.step_loss, last=number == len(batches)):
                    # Ranks average their gradients, hence world_size.
                    total += self._backward(batch, scale=self.ranks.world_size / n_targets)
        self.tokens += n_targets
        return total / n_targets

    def _batches_of(self, step: int) -> tuple[int, list[Batch]]:
        """Return the targets of a step on all ranks, and this rank's micro-batches."""
        micro_batches = self.batches.step(step)
        n_targets = sum(int(self.rows.lengths[indices].sum()) for indices in micro_batches)
        mine = micro_batches[self.ranks.rank :: self.ranks.world_size]
        hint_seed = (self.config.seed, HINT_STREAM, step)
        return n_targets, [
            self.rows.batch(indices, hints=self.config.hints, seed=hint_seed)
            for indices in mine or [np.zeros(0, dtype=np.int64)]
        ]

    def _backward(self, batch: Batch, *, scale: float) -> Tensor:
        """Add the gradients of `scale` times the summed loss of one micro-batch; return the sum."""
        if self.device.type == "cuda":
            batch = batch.of_no_special_shape()
        inputs, targets = (
            on_device(batch.inputs, self.device),
            on_device(batch.targets, self.device),
        )
        try:
            with self.autocast():
                loss: Tensor = self.step_loss(inputs, targets)
            torch.autograd.backward(loss * scale)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            of_gpu = isinstance(error, torch.OutOfMemoryError)
            if not of_gpu and "allocate memory" not in str(error):  # as a CPU has it
                raise
            raise TrainingError(
                f"out of memory with batch_size = {self.config.batch_size}: lower it, and raise "
                f"grad_accum_steps = {self.config.grad_accum_steps} in proportion{self._anew()}"
            ) from None
        return loss.detach()

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
            raise self._diverged(f"the loss of step {step:,}")
        figures = zip(self.waiting, losses.tolist(), norms.tolist(), strict=True)
        records: list[dict[str, Any]] = [
            {"step": step, "loss": loss, "grad_norm": norm, "lr_scale": scale}
            for (step, _, _, scale), loss, norm in figures
        ]
        records[-1] |= {"epoch": self.batches.position(done - 1)[0], **self._speed()}
        self._write(records)
        self.waiting.clear()

    def save(self, done: int) -> None:
        """Save a checkpoint and delete the old ones that are not needed.

        Raises TrainingError, and saves nothing, if a weight is not a number.
        """
        if not self.ranks.first:
            return
        if not all(bool(torch.isfinite(weight).all()) for weight in self.model.parameters()):
            raise self._diverged(f"a weight after step {done:,}")
        model = ModelFolder(
            config=self.shape,
            direction=self.config.direction,
            unit=self.config.unit,
            tokenizer=self.tokenizer,
            weights=_arrays(self.model.state_dict()),
            hints=self.config.hints > 0,
            chat=bool(self.config.chat),
        )
        state = {"tokens": self.tokens, **self._data}
        optimizer = _arrays(self.optimizer.state_tensors())
        save_checkpoint(self.config.out, Checkpoint(model, done, optimizer, state))
        thin(self.config.out, keep_last=self.config.keep_last)

    def evaluate(self, done: int) -> None:
        """Score the whole validation split; write samples and the curve; say which is best.

        The record comes after all that a resumed run would not make up for.
        """
        if not self.ranks.first:
            return
        run = self.config.out
        engine = TorchEngine(self.model, device=self.device)
        saved = run / CHECKPOINTS / f"step-{done}"
        record = self._validate(engine) if self.data.valid else {}
        loss = record.get("valid_loss", -math.inf)  # without a split the newest is the best
        if not (loss < math.inf):
            raise self._diverged(f"the validation loss after step {done:,}")
        try:
            if loss <= min(self._valid_losses().values(), default=math.inf):
                point(run, BEST, saved)
            run_folder.add_samples(run, done, self._samples(engine, done))
        except OSError as error:
            raise cannot_write(run, error) from None
        if record:
            self._write([{"step": done, **record}])
        try:
            run_folder.plot(run, title=f"{run.name}, {self.config.direction}")
        except OSError as error:  # no reason to end a run
            self._notice(
                f"the loss curve was not drawn: {cannot_write(run / run_folder.CURVE, error)}"
            )
        self.model.train()
        self.clock = (time.perf_counter(), self.tokens)

    def _validate(self, engine: TorchEngine) -> dict[str, float]:
        """Return the loss and bits per byte over the validation split, of all ways together.

        With several ways, the loss of each stands beside.
        """
        losses: dict[str, float] = {}
        total_nats, total_targets = 0.0, 0
        for language, rows in self.data.valid:
            with self.autocast():
                nats = corpus_nats(engine, rows)
            losses[f"{language.direction}_valid_loss"] = nats / rows.n_targets
            total_nats, total_targets = total_nats + nats, total_targets + rows.n_targets
        together = {
            "valid_loss": total_nats / total_targets,
            "valid_bpb": bits_per_byte(total_nats, sum(self.data.valid_bytes)),
        }
        return {**together, **losses} if len(losses) > 1 else together

    def result(self) -> RunResult:
        """Return how the run ended."""
        evaluations = [r for r in run_folder.read_metrics(self.config.out) if "valid_loss" in r]
        last = evaluations[-1] if evaluations else {}
        best = min(self._valid_losses().items(), key=lambda one: (one[1], -one[0]), default=None)
        return RunResult(
            run=self.config.out,
            step=self.max_steps,
            valid_loss=last.get("valid_loss"),
            valid_bpb=last.get("valid_bpb"),
            best=best,
        )

    def evaluates_at(self, done: int) -> bool:
        """Return whether validation is due after `done` steps."""
        return done == self.max_steps or done % self.config.eval_every == 0

    def _valid_losses(self) -> dict[int, float]:
        records = run_folder.read_metrics(self.config.out)
        return {r["step"]: r["valid_loss"] for r in records if "valid_loss" in r}

    def _dropout_of(self, step: int) -> AbstractContextManager[None]:
        """Let what is dropped follow from (seed, step, rank), whatever was drawn before."""
        if not self.config.dropout:
            return nullcontext()
        seed = np.random.SeedSequence([self.config.seed, step, self.ranks.rank])
        return seeded(int(seed.generate_state(1)[0]), self.device)

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"{what} is not a number; {self.config.out} keeps what was saved before: "
            f"lower lr = {self.config.lr} or muon_lr = {self.config.muon_lr}{self._anew()}"
        )

    def _anew(self) -> str:
        """Return what else a setting takes that cannot be changed once there is a checkpoint."""
        return ", with another --out" if checkpoints(self.config.out) else ""

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
        return spread(self.model, loss, self.ranks, self.device)

    def _speed(self) -> dict[str, Any]:
        then, tokens = self.clock
        self.clock = (time.perf_counter(), self.tokens)
        per_second = (self.tokens - tokens) / (self.clock[0] - then)
        figures = {"tokens": self.tokens, "tokens_per_second": round(per_second)}
        if self.peak is None:
            return figures
        context = self.rows.n_targets / len(self.rows) / 2
        share = per_second * flops_per_token(self.shape, context) / self.peak
        return {**figures, "share_of_peak": round(share / self.ranks.world_size, 4)}

    def _samples(self, engine: TorchEngine, done: int) -> Iterator[str]:
        for number, prompt in enumerate(self.data.prompts):
            if len(prompt.ids) <= engine.block_size:
                [sample] = collect(
                    engine,
                    Job(
                        self.data.languages[0],
                        prompt,
                        sampling=Sampling(),
                        max_new_tokens=SAMPLE_TOKENS,
                        seed=done + number,
                    ),
                )
                yield sample.text

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


def _board(config: TrainConfig) -> Any:
    """Return what writes TensorBoard files into the run folder when it is first written to."""
    with needs_extra("tensorboard", "tensorboard = true"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(config.out / "tensorboard")


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def _tensors(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
