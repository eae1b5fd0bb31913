"""`backgpt arrow`: the arrow of time of a source of text."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from backgpt.cli.given import Separator, TextField, check_limit, those_given
from backgpt.cli.terminal import show, tell
from backgpt.cli.training import load_torch, overridden
from backgpt.errors import UsageError
from backgpt.shape import PRESETS


def arrow(
    source: Annotated[
        str,
        Argument(
            metavar="SOURCE",
            help="What prepare takes: builtin, tinystories, tinystories-valid, dolly, a file, "
            "folder or glob; or a control: reversible, one-way.",
        ),
    ],
    out: Annotated[
        Path | None, Option(help="The folder for everything; arrow/SOURCE if none is given.")
    ] = None,
    seeds: Annotated[int, Option(help="Pairs of twins to train, with seeds from 1 on.")] = 3,
    flip: Annotated[
        bool, Option("--flip", help="Read every text from its end: the gap must change its sign.")
    ] = False,
    valid: Annotated[
        list[str] | None, Option(help="A source to validate on, instead of a split by hash.")
    ] = None,
    field: TextField = "text",
    separator: Separator = None,
    vocab_size: Annotated[int, Option(help="Ids of the tokenizer to train.")] = 2048,
    limit: Annotated[
        int | None, Option(help="Measure on only so many of the validation texts, drawn by a seed.")
    ] = None,
    config: Annotated[
        Path | None, Option(help="A TOML file with settings of train for the twins; flags win.")
    ] = None,
    preset: Annotated[
        str | None, Option(help=f"One of {', '.join(PRESETS)}.  [default: pico]")
    ] = None,
    max_steps: Annotated[
        int | None, Option(help="Optimizer steps; or give --epochs.  [default: 1000]")
    ] = None,
    epochs: Annotated[float | None, Option(help="Passes over the data; may be a fraction.")] = None,
    batch_size: Annotated[
        int | None, Option(help="Rows of block_size ids in a micro-batch.  [default: 16]")
    ] = None,
    device: Annotated[
        str | None, Option(help="auto, cpu, cuda, cuda:1, ...  [default: auto]")
    ] = None,
    workers: Annotated[int | None, Option(help="Processes that prepare, a core each.")] = None,
) -> None:
    """Train small twins, and say which way a source is easier to predict.

    A pair is trained for each seed. The gap is what the backward twin loses more than the forward
    one, on the same validation texts, with an interval over documents and one over seeds. Stopped
    with Ctrl-C, the same command goes on.
    """
    if seeds < 1:
        raise UsageError(f"seeds = {seeds}: it must be 1 or more")
    check_limit(limit)
    load_torch()
    from backgpt.arrow import ArrowJob
    from backgpt.arrow import arrow as job
    from backgpt.cli.progress import TrainProgress
    from backgpt.config import read_toml
    from backgpt.files import write_whole
    from backgpt.report_plot import check_plotting, plot_arrow
    from backgpt.report_text import render_arrow

    check_plotting()
    flags = those_given(
        preset=preset, max_steps=max_steps, epochs=epochs, batch_size=batch_size, device=device
    )
    settings = overridden(read_toml(config) if config else {}, flags)
    name = Path(source).stem
    if out is None and (not name or set(name) & set("*?[")):
        raise UsageError(f"{source} is no name for a folder: say --out")
    folder = out or Path("arrow") / name
    asked = ArrowJob(
        source=source,
        out=folder,
        seeds=range(1, seeds + 1),
        flip=flip,
        vocab_size=vocab_size,
        valid=tuple(valid or ()),
        field=field,
        separator=separator,
        limit=limit,
        settings=settings,
    )
    with TrainProgress() as progress:
        report = job(asked, report=progress, workers=workers)
    name = "flipped" if flip else "report"
    text = render_arrow(report)
    write_whole(folder / f"{name}.md", text.encode())
    write_whole(folder / f"{name}.json", (report.model_dump_json(indent=2) + "\n").encode())
    write_whole(folder / f"{name}.png", plot_arrow(report))
    show(text, end="")
    tell(f"written to {folder}")
