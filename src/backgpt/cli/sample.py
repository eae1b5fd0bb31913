"""`backgpt sample`: write the text that leads to an ending."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Option

from backgpt.errors import DataError, UsageError

if TYPE_CHECKING:
    from backgpt.api import Model
    from backgpt.generate import Text
    from backgpt.sampling import Sampling

SEPARATOR = "\n---\n"


def sample(
    model: Annotated[Path, Option(help="Model folder, checkpoint, or run folder (its best).")],
    ending: Annotated[str | None, Option(help="The ending to write toward; - reads it.")] = None,
    opening: Annotated[
        str | None, Option(help="The text to go on from, for a forward model; - reads it.")
    ] = None,
    prompt: Annotated[
        str | None, Option(help="The given text, whichever way the model runs; - reads it.")
    ] = None,
    num_samples: Annotated[int, Option("--num-samples", "-n", help="How many texts.")] = 1,
    max_new_tokens: Annotated[
        int | None, Option(help="Most tokens to write; the context is the limit otherwise.")
    ] = None,
    temperature: Annotated[float | None, Option(help="Below 1 safer, above 1 wilder.")] = None,
    top_k: Annotated[int | None, Option(help="Draw from the k likeliest tokens only.")] = None,
    top_p: Annotated[float | None, Option(help="Draw from the likeliest that reach p.")] = None,
    min_p: Annotated[
        float | None, Option(help="Draw from those at least p times as likely as the likeliest.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, Option(help="Above 1: tokens already in the text become less likely.")
    ] = None,
    seed: Annotated[int | None, Option(help="The same seed writes the same texts.")] = None,
    continues: Annotated[
        bool, Option("--continues", help="More text follows the ending: it is not the very end.")
    ] = False,
    order: Annotated[
        Literal["reading", "model"],
        Option(help="'model' prints the text as the model wrote it, last token (or word) first."),
    ] = "reading",
    stream: Annotated[
        bool, Option("--stream", help="Show the text growing; a pipe gets the final text only.")
    ] = False,
    as_json: Annotated[
        bool, Option("--json", help="One JSON object a line for each text.")
    ] = False,
    device: Annotated[str, Option(help="cpu, cuda, or auto.")] = "cpu",
) -> None:
    """Write the text that leads to an ending, last word first.

    A backward model is given the ending (--ending, or --prompt as in the original), a forward
    model the opening (--opening, or --prompt).
    """
    if stream and (num_samples > 1 or as_json or order == "model"):
        raise UsageError("--stream shows one text: leave out --num-samples, --json and --order")
    if as_json and order == "model":
        raise UsageError("--json has the text in reading order: leave out --order")
    sampling = _sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    from backgpt.api import load

    loaded = load(model, device=device)
    if prompt is not None:
        if ending is not None or opening is not None:
            raise UsageError("--prompt stands for --ending or --opening: give one of them")
        ending, opening = (prompt, None) if loaded.direction == "backward" else (None, prompt)
    ending, opening = _read_dash(ending), _read_dash(opening)
    if stream and sys.stdout.isatty():
        pieces = loaded.stream(
            ending,
            opening=opening,
            continues=continues,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
        )
        _show_growing(pieces, ending or opening or "", leftward=loaded.direction == "backward")
        return
    started = time.perf_counter()
    texts = loaded.write(
        ending,
        opening=opening,
        n=num_samples,
        continues=continues,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        seed=seed,
    )
    if as_json:
        speed = sum(text.n_tokens for text in texts) / (time.perf_counter() - started)
        for text in texts:
            print(json.dumps(_record(loaded, text, speed), ensure_ascii=False))
        return
    if order == "reading":
        shown = [text.text for text in texts]
    else:
        shown = [loaded.as_written(text, continues=continues) for text in texts]
    print(SEPARATOR.join(shown))


def _sampling(**given: float | int | None) -> "Sampling":
    from backgpt.sampling import Sampling

    return Sampling(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def _read_dash(text: str | None) -> str | None:
    """Return standard input for "-", without the line break a shell puts at its end."""
    if text != "-":
        return text
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 at byte {error.start}: convert it") from None


def _record(model: "Model", text: "Text", speed: float) -> dict[str, object]:
    given = "ending" if model.direction == "backward" else "opening"
    return {
        "text": text.text,
        given: text.given,
        "finish_reason": text.finish_reason,
        "logprob": text.logprob,
        "n_tokens": text.n_tokens,
        "tokens_per_second": round(speed, 1),
        "seed": text.seed,
    }


def _show_growing(pieces: Iterator[str], text: str, *, leftward: bool) -> None:
    """Show the text as it grows. Leftward, lines fill from the end: what stands there stays."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text as Lines

    console = Console(highlight=False)
    with Live(console=console, vertical_overflow="crop") as live:
        for piece in pieces:
            text = piece + text if leftward else text + piece
            shown = "\n".join(lines_from_end(text, console.width)) if leftward else text
            live.update(Lines(shown, justify="right" if leftward else "left"))
        live.vertical_overflow = "visible"
        live.update(Lines(text))


def lines_from_end(text: str, width: int) -> list[str]:
    """Wrap `text` so that lines are full at the end of a paragraph and short at its beginning."""
    from rich.cells import cell_len

    lines: list[str] = []
    for paragraph in text.split("\n"):
        *words, line = paragraph.split(" ")
        first = len(lines)
        while words:
            word = words.pop()
            if cell_len(word) + 1 + cell_len(line) > width:
                lines.insert(first, line)
                line = word
            else:
                line = f"{word} {line}"
        lines.insert(first, line)
    return lines
