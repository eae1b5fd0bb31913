"""`backgpt label`: find the question that each text answers, and write instruction files."""

from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from backgpt.cli.chat import CHAT_MODEL, load_chat_model
from backgpt.cli.given import WHICH_MODEL, Device, Separator, TextField, check_limit, open_model
from backgpt.cli.terminal import show, tell
from backgpt.errors import UsageError, printable


def label(
    file: Annotated[
        Path,
        Argument(metavar="FILE", help="The texts: .txt, .jsonl (also .xz, .gz), .parquet."),
    ],
    out: Annotated[Path, Option(help="The instruction file to write, or to go on with.")],
    model: Annotated[
        str | None,
        Option(help=f"The model that asks: {WHICH_MODEL}; {CHAT_MODEL} if none is given."),
    ] = None,
    field: TextField = "text",
    separator: Separator = None,
    candidates: Annotated[int, Option(help="How many questions to write for each text.")] = 4,
    score: Annotated[
        Literal["round-trip", "forward", "none"] | None,
        Option(
            help="How likely the text is after a question, to the model itself (round-trip) or to "
            "one that runs forward; none takes the likeliest question. forward if there is a "
            "--twin or the model runs both ways, round-trip otherwise."
        ),
    ] = None,
    twin: Annotated[
        str | None, Option(help="The forward model that scores; a model of both ways is its own.")
    ] = None,
    threshold: Annotated[
        float | None,
        Option(
            help="Keep a text if its question makes it likelier than another text's by so many "
            "nats per token; 0 if not given."
        ),
    ] = None,
    batch_size: Annotated[
        int,
        Option(
            help="Texts that are worked on together; each is compared with a question to another."
        ),
    ] = 8,
    max_new_tokens: Annotated[int, Option(help="Most tokens of a question.")] = 64,
    seed: Annotated[int, Option(help="The same seed writes the same questions.")] = 0,
    limit: Annotated[int | None, Option(help="Stop after so many texts.")] = None,
    device: Device = "cpu",
) -> None:
    """Find the question that each text answers: instruction back-translation.

    For each text candidates are written, and the one that explains the text best is kept if that
    is well enough. The result is an instruction file that any trainer reads. A job that was
    interrupted goes on when it is called again.
    """
    check_limit(limit)
    if file.is_dir():
        raise UsageError(f"{file} is a folder: give a file")
    if twin is not None and score not in (None, "forward"):
        raise UsageError(f"--twin is for --score forward: leave it out with {score}")
    from backgpt.cli.progress import LabelProgress
    from backgpt.config import build
    from backgpt.datasets import Tally
    from backgpt.datasets.files import read_file
    from backgpt.label import LabelState
    from backgpt.label import label as label_texts
    from backgpt.label_batch import LabelSettings

    loaded = load_chat_model(model, device)
    forward = open_model(twin, engine=None, device=device, direction="forward") if twin else None
    if forward is not None and not forward.takes_chat:
        tell(
            f"backgpt: {twin} was never tuned on conversations: its scores say little of questions"
        )
    own = "forward" if forward or loaded.language.told else "round-trip"
    given: dict[str, Any] = {
        "model": printable(model or CHAT_MODEL),
        "twin": twin and printable(twin),
        "source": printable(file.name),
        "field": field,
        "separator": separator,
        "candidates": candidates,
        "score": score or own,
        "threshold": threshold,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    settings = build(LabelSettings, given, origin="label")
    tally = Tally()
    with LabelProgress() as progress:

        def report(state: LabelState) -> None:
            figures = f"{state.n_texts:,} read, {state.n_kept:,} kept"
            if limit is not None:
                progress.update(figures, state.n_texts, limit)
            else:
                progress.update(figures, tally.file_bytes, file.stat().st_size)

        done = label_texts(
            read_file(file, field=field, separator=separator, tally=tally),
            out,
            loaded,
            settings,
            twin=forward,
            limit=limit,
            report=report,
        )
    show(
        f"{out}: kept {done.n_kept:,} of {done.n_texts:,}; {done.n_below:,} below the threshold, "
        f"{done.n_unasked:,} without a finished question, {done.n_too_long:,} too long beside "
        f"a question of {max_new_tokens:,} tokens"
        + (f"; not counted: {tally.empty:,} empty" if tally.empty else "")
    )
