"""The one training loop, for pretraining and tuning alike.

Takes settings and a prepared dataset; gives a run folder with checkpoints, metrics, samples and a
curve. Everything random follows from (seed, step, rank), the data position from the step alone,
so a resumed run is the unbroken one, bit for bit on a CPU with as many threads.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from queue import SimpleQueue
from threading import Thread
from types import FrameType

from backgpt.config import TrainConfig
from backgpt.devices import ALONE, Ranks, any_rank
from backgpt.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, StoppedError
from backgpt.files import held
from backgpt.optim import clip_gradients, schedule
from backgpt.run import Reporter, Run, RunResult


def train(config: TrainConfig, *, report: Reporter, ranks: Ranks = ALONE) -> RunResult:
    """Run, or resume, the training that `config` describes, and return how it ended.

    Raises ConfigError, DataError or CorruptFileError before anything is written if the settings
    or the data do not fit; UsageError if another process trains there; TrainingError if the loss
    stops being a number; StoppedError after saving when SIGINT or SIGTERM asked for an end.
    """
    run = Run(config, report, ranks)
    with held(config.out) if ranks.first else nullcontext(), closing(run):
        return _train(run)


def _train(run: Run) -> RunResult:
    config, report, ranks = run.config, run.report, run.ranks
    first_step = run.resume()
    if ranks.first:
        report.started(first_step=first_step, max_steps=run.max_steps)

    with _catch_signals(report.notice if ranks.first else None) as signals:
        for step in range(first_step, run.max_steps):
            scale = schedule(
                step,
                max_steps=run.max_steps,
                warmup_steps=config.warmup_steps,
                decay_fraction=config.decay_fraction,
                min_scale=config.min_lr / config.lr,
            )
            loss = run.accumulate_gradients(step)
            norm = clip_gradients(run.model.parameters(), config.grad_clip)
            run.optimizer.step(scale)
            run.optimizer.zero_grad()
            run.remember(step, loss, norm, scale)

            done = step + 1
            evaluating = run.evaluates_at(done)
            logging = evaluating or done % config.log_every == 0
            # Several ranks wait for each other to agree: not at every step.
            agreeing = logging or ranks.world_size == 1
            stopping = agreeing and any_rank(bool(signals), ranks, run.device)
            saving = stopping or evaluating or done % config.save_every == 0
            if saving or logging:
                run.flush_metrics(done)
            if saving:
                run.save(done)
            if evaluating and not stopping:
                run.evaluate(done)
            if stopping:
                raise StoppedError(
                    f"stopped at step {done:,} and saved it: run the same command to go on",
                    signals[0] if signals else EXIT_TERMINATED,
                )
    return run.result()


@contextmanager
def _catch_signals(tell: Callable[[str], None] | None) -> Iterator[list[int]]:
    """Collect the exit codes of SIGINT and SIGTERM instead of dying; a second SIGINT interrupts.

    The first is answered at once through `tell`, on a thread: a handler that prints may find itself
    in the middle of a print.
    """
    codes = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}
    received: list[int] = []
    answers: SimpleQueue[str] = SimpleQueue()  # what a handler may put into at any time

    def answer() -> None:
        while text := answers.get():
            if tell is not None:
                tell(text)

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not received:
            again = "; again to stop now" if number == signal.SIGINT else ""
            answers.put(f"stopping after this step{again}")
        received.append(codes[signal.Signals(number)])

    try:
        before = {number: signal.signal(number, note) for number in codes}
    except ValueError:  # not the main thread: whoever owns it decides
        yield received
        return
    thread = Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        answers.put("")
        thread.join()
