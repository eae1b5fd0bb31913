"""`backgpt eval`: the report card of a backward model and its forward twin."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from backgpt.cli.given import (
    WHICH_MODEL,
    Device,
    Engine,
    Separator,
    TextField,
    Threads,
    check_limit,
    open_model,
    open_twin,
)
from backgpt.cli.terminal import show, tell
from backgpt.errors import UsageError

if TYPE_CHECKING:
    from backgpt.api import Model


def evaluate(
    models: Annotated[
        list[str],
        Argument(
            metavar="MODEL",
            help=f"The backward model: {WHICH_MODEL}; several if it was trained with several "
            "seeds.",
        ),
    ],
    data: Annotated[
        str, Option(help="Held-out texts: a file, a folder, a glob, or what prepare names.")
    ],
    twin: Annotated[
        list[str] | None,
        Option(
            help="The forward twin of each MODEL, in the same order; repeatable. A model trained "
            "both ways is its own."
        ),
    ] = None,
    out: Annotated[Path, Option(help="The folder for report.md, report.json and report.png.")] = (
        Path("report")
    ),
    field: TextField = "text",
    separator: Separator = None,
    limit: Annotated[int | None, Option(help="Use only so many texts, drawn by the seed.")] = None,
    samples: Annotated[int, Option(help="Texts to write.")] = 200,
    endings: Annotated[int, Option(help="Endings to write them toward.")] = 40,
    hinted: Annotated[int, Option(help="Texts to draw hints from; 0 is none.")] = 200,
    ranked: Annotated[int, Option(help="Most texts whose beginnings are ranked; 0 is none.")] = 200,
    bridged: Annotated[int, Option(help="Most texts to bridge; 0 is none.")] = 50,
    candidates: Annotated[int, Option(help="Bridges of each text the best is taken of.")] = 4,
    max_new_tokens: Annotated[
        int | None, Option(help="Most tokens of a text; the context is the limit otherwise.")
    ] = None,
    seed: Annotated[int, Option(help="The same seed gives the same figures.")] = 1,
    engine: Engine = None,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Measure a backward model and its forward twin: the report card.

    Losses and their gap with intervals, the gap by context, what it writes beside human texts,
    whether endings fit and hints are obeyed, how well the twins rank beginnings and bridge texts,
    and speed; as Markdown, JSON and a picture.
    """
    from backgpt.datasets import open_source
    from backgpt.evaluate import draw_some
    from backgpt.files import write_whole
    from backgpt.report_card import Extent, report_card
    from backgpt.report_plot import check_plotting, plot_card
    from backgpt.report_text import render_card

    if twin is not None and len(twin) != len(models):
        raise UsageError(f"{len(models)} models and {len(twin)} twins were given: give one each")
    for given in (models, twin or []):
        again = [name for number, name in enumerate(given) if name in given[:number]]
        if again:
            raise UsageError(f"{again[0]} is given twice: give models trained with other seeds")
    check_limit(limit)
    if seed < 0:
        raise UsageError(f"seed = {seed}: it must be 0 or more")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is not a folder: choose another --out")
    extent = Extent(
        samples=samples,
        endings=endings,
        hinted=hinted,
        ranked=ranked,
        bridged=bridged,
        candidates=candidates,
        max_new_tokens=max_new_tokens,
    )
    check_plotting()
    settings: dict[str, Any] = {"engine": engine, "device": device, "threads": threads}
    pairs: list[tuple[Model, Model]] = []
    for number, name in enumerate(models):
        model = open_model(name, direction="backward", **settings)
        if twin is None:
            if not model.language.told:
                raise UsageError(f"{name} only runs backward: give its forward twin with --twin")
            pairs.append((model, model.turned()))
        else:
            pairs.append((model, open_twin(model, twin[number], **settings)))
    documents = open_source(data, field=field, separator=separator)
    texts = draw_some((document.text for document in documents), limit, seed=seed)
    card = report_card(
        pairs,
        texts,
        names=(models[0], twin[0] if twin else f"{models[0]}, the other way"),
        data=Path(data).name,
        limit=limit,
        extent=extent,
        seed=seed,
        say=_say,
    )
    out.mkdir(parents=True, exist_ok=True)
    text = render_card(card)
    write_whole(out / "report.md", text.encode())
    write_whole(out / "report.json", (card.model_dump_json(indent=2) + "\n").encode())
    write_whole(out / "report.png", plot_card(card))
    show(text, end="")
    tell(f"written to {out}")


def _say(text: str) -> None:
    tell(f"{time.strftime('%H:%M:%S')} {text}")
