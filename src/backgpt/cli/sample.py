"""`backgpt sample`: write the text that leads to an ending."""

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from backgpt.cli.given import open_model, sampling_from, standard_input
from backgpt.cli.growing import show_growing
from backgpt.errors import UsageError

if TYPE_CHECKING:
    from backgpt.api import Model
    from backgpt.generate import Text
    from backgpt.hints import Hints, Length

SEPARATOR = "\n---\n"


def sample(
    model: Annotated[
        str | None,
        Option(
            help="A built-in model's name (see 'backgpt info'), a model folder, a checkpoint, or a "
            "run folder (its best); stories if none is given."
        ),
    ] = None,
    ending: Annotated[str | None, Option(help="The ending to write toward; - reads it.")] = None,
    opening: Annotated[
        str | None,
        Option(
            help="For a forward model the text to go on from; for a backward model with hints how "
            "the text should begin; - reads it."
        ),
    ] = None,
    words: Annotated[
        str | None, Option(help="Words that should occur, with commas between: cake,dog.")
    ] = None,
    length: Annotated[
        Literal["short", "medium", "long"] | None, Option(help="How long the text should be.")
    ] = None,
    prompt: Annotated[
        str | None, Option(help="The given text, whichever way the model runs; - reads it.")
    ] = None,
    direction: Annotated[
        Literal["backward", "forward"] | None,
        Option(help="Which way a model trained both ways runs; backward if none is given."),
    ] = None,
    num_samples: Annotated[int, Option("--num-samples", "-n", help="How many texts.")] = 1,
    max_new_tokens: Annotated[
        int | None, Option(help="Most tokens to write; the context is the limit otherwise.")
    ] = None,
    stop: Annotated[
        list[str] | None,
        Option(help="A text at which writing ends, and which is no part of it; repeatable."),
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
    engine: Annotated[
        Literal["native", "torch"] | None,
        Option(help="What runs the model; native (C++, on the CPU) where it can be."),
    ] = None,
    device: Annotated[str, Option(help="cpu, cuda, or auto.")] = "cpu",
    dtype: Annotated[
        Literal["float32", "bfloat16", "int8", "int4"] | None,
        Option(help="What the native engine computes in; int8 for models stored so, or float32."),
    ] = None,
    threads: Annotated[int | None, Option(help="Most threads of the native engine.")] = None,
) -> None:
    """Write the text that leads to an ending, last word first.

    A backward model is given the ending (--ending, or --prompt as in the original), a forward
    model the opening (--opening, or --prompt). A model trained with hints can also be told how the
    text should begin, which words should occur, and how long it should be.
    """
    if stream and (num_samples > 1 or as_json or order == "model"):
        raise UsageError("--stream shows one text: leave out --num-samples, --json and --order")
    if as_json and order == "model":
        raise UsageError("--json has the text in reading order: leave out --order")
    sampling = sampling_from(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    loaded = open_model(
        model, direction=direction, engine=engine, device=device, dtype=dtype, threads=threads
    )
    if prompt is not None:
        if ending is not None or opening is not None:
            raise UsageError("--prompt stands for --ending or --opening: give one of them")
        ending, opening = (prompt, None) if loaded.direction == "backward" else (None, prompt)
    ending, opening = _read_dash(ending), _read_dash(opening)
    request: dict[str, Any] = {
        "ending": ending,
        "opening": opening,
        "words": _split(words),
        "length": length,
        "continues": continues,
        "max_new_tokens": max_new_tokens,
        "sampling": sampling,
        "seed": seed,
        "stop": stop or (),
    }
    leftward = loaded.direction == "backward"
    if stream and sys.stdout.isatty():
        given = (ending if leftward else opening) or ""
        show_growing(loaded.stream(**request), given, leftward=leftward)
        return
    started = time.perf_counter()
    texts = loaded.write(**request, n=num_samples)
    if as_json:
        speed = sum(text.n_tokens for text in texts) / (time.perf_counter() - started)
        hints = _hints(loaded, opening, request["words"], length)
        for text in texts:
            print(json.dumps(_record(loaded, text, hints, speed), ensure_ascii=False))
        return
    if order == "reading":
        shown = [text.text for text in texts]
    else:
        shown = [loaded.as_written(text, continues=continues) for text in texts]
    print(SEPARATOR.join(shown))


def _read_dash(text: str | None) -> str | None:
    """Return standard input for "-", without the line break a shell puts at its end."""
    return standard_input() if text == "-" else text


def _split(words: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",")) if words is not None else ()


def _hints(
    model: "Model", opening: str | None, words: tuple[str, ...], length: "Length | None"
) -> "Hints":
    """Return what was asked for; a forward model's opening is given, not asked for."""
    from backgpt.hints import Hints

    return Hints(opening if model.direction == "backward" else None, words, length)


def _record(model: "Model", text: "Text", hints: "Hints", speed: float) -> dict[str, object]:
    given = "ending" if model.direction == "backward" else "opening"
    asked = {"asked": dict(hints.texts()), "obeyed": hints.obeyed_by(text.text)} if hints else {}
    return {
        "text": text.text,
        given: text.given,
        "finish_reason": text.finish_reason,
        "logprob": text.logprob,
        "n_tokens": text.n_tokens,
        "tokens_per_second": round(speed, 1),
        "seed": text.seed,
        **asked,
    }
