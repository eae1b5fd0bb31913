"""Progress on standard error: a bar with an ETA on a terminal, now and then a line otherwise."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from backgpt.cli.terminal import for_terminal, tell

SECONDS_BETWEEN_LINES = 10.0


class _Display:
    """A rich progress bar where it can be seen, and nothing where it cannot."""

    def __init__(self, *columns: ProgressColumn, shown: bool = True) -> None:
        console = Console(stderr=True, highlight=False)
        self.visible = console.is_terminal and shown
        self.bar = Progress(*columns, console=console, disable=not self.visible, transient=True)
        self._next_line = 0.0

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self.visible:
            self.bar.console.print(for_terminal(text, sys.stderr), markup=False)
        else:
            tell(text)

    def line_is_due(self) -> bool:
        """Return whether, without a bar, it is time for a line again."""
        now = time.monotonic()
        if self.visible or now < self._next_line:
            return False
        self._next_line = now + SECONDS_BETWEEN_LINES
        return True


class ByteProgress(_Display):
    """Progress of `prepare`: bytes done of each stage."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description:>10}"), BarColumn(), DownloadColumn(), _eta()
        )
        self._stages: dict[str, Any] = {}
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def update(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` bytes of `stage` are done."""
        if stage not in self._stages:
            self._stages[stage] = self.bar.add_task(stage, total=total or None)
        self.bar.update(self._stages[stage], completed=done, total=total or None)
        if self.line_is_due():
            task = self.bar.tasks[list(self._stages).index(stage)]
            left = f", {_duration(task.time_remaining)} left" if task.time_remaining else ""
            share = f" of {total / 1e6:,.0f}" if total else ""
            self.say(f"{stage}: {done / 1e6:,.0f}{share} MB{left}")


class TrainProgress(_Display):
    """Progress of `train`; implements `run.Reporter`."""

    def __init__(self, *, shown: bool = True) -> None:
        figures = TextColumn("{task.fields[figures]}")
        super().__init__(BarColumn(), MofNCompleteColumn(), figures, _eta(), shown=shown)
        self._task = self.bar.add_task("train", total=None, figures="")
        self._max_steps = 0
        self._first: tuple[int, float] = (0, 0.0)

    def started(self, *, first_step: int, max_steps: int) -> None:
        """Begin at `first_step`."""
        self._max_steps, self._first = max_steps, (first_step, time.monotonic())
        self.bar.reset(self._task, total=max_steps, completed=first_step, figures="")

    def stepped(self, record: Mapping[str, Any]) -> None:
        """Show a record of the metrics: the bar moves, validation and plain lines stay."""
        step = record["step"]
        if "valid_loss" in record:
            self.say(
                f"step {step:,}: validation {record['valid_loss']:.4f} nats per token, "
                f"{record['valid_bpb']:.4f} bits per byte"
            )
        elif "tokens_per_second" in record:
            figures = f"loss {record['loss']:.4f}, {record['tokens_per_second']:,} tokens/s"
            if "share_of_peak" in record:
                figures += f", {record['share_of_peak']:.1%} of peak"
            self.bar.update(self._task, completed=step, figures=figures)
            if self.line_is_due():
                place = f"step {step:,} of {self._max_steps:,}"
                self.say(f"{place}: {figures}, {self._left(step)} left")

    def notice(self, text: str) -> None:
        """Print what the user should know."""
        self.say(text)

    def _left(self, step: int) -> str:
        first_step, since = self._first
        per_step = (time.monotonic() - since) / max(step - first_step, 1)
        return _duration(per_step * (self._max_steps - step))


class LabelProgress(_Display):
    """Progress of `label`: texts done, and how much of all there is."""

    def __init__(self) -> None:
        super().__init__(TextColumn("{task.fields[figures]}"), BarColumn(), _eta())
        self._task = self.bar.add_task("label", total=None, figures="")
        self._first: tuple[int, float] | None = None

    def update(self, figures: str, done: int, total: int) -> None:
        """Show `figures`, and that `done` of `total`, in whatever unit, are done."""
        now = time.monotonic()
        first, since = self._first = self._first or (done, now)
        self.bar.update(self._task, completed=done, total=total, figures=figures)
        if self.line_is_due():
            left = (now - since) / (done - first) * (total - done) if done > first else None
            self.say(figures + (f", {_duration(left)} left" if left is not None else ""))


def _eta() -> TimeRemainingColumn:
    return TimeRemainingColumn(compact=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
