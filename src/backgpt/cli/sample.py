"""`backgpt sample`: write the text that leads to an ending, and other things between two texts."""

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from backgpt.cli.given import open_model, sampling_from, standard_input
from backgpt.cli.growing import show_growing
from backgpt.cli.written import (
    print_texts,
    record_of_bridge,
    record_of_surrounded,
    record_of_text,
    record_of_verse,
)
from backgpt.errors import UsageError

if TYPE_CHECKING:
    from backgpt.api import Model
    from backgpt.hints import Hints, Length

BEST_OF = 8  # bridges, or lines of verse, that are written for one that is kept
LINES = 4  # that rhyme

Kind = Literal["text", "bridge", "around", "verse"]


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
            help="For a forward model the text to go on from. With --ending a bridge is written, "
            "from the one to the other; - reads it."
        ),
    ] = None,
    around: Annotated[
        str | None, Option(help="A phrase to write around, to its left and to its right; - reads.")
    ] = None,
    end_words: Annotated[
        str | None,
        Option(help="Write lines that end with these words, with commas between: night,light."),
    ] = None,
    rhyme: Annotated[
        str | None, Option(help="Write --lines lines that rhyme with this word (extra 'rhyme').")
    ] = None,
    lines: Annotated[
        int | None, Option(help="How many lines --rhyme writes; 4 if none is given.")
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
    twin: Annotated[
        str | None,
        Option(help="A model that runs the other way; one trained both ways is its own."),
    ] = None,
    num_samples: Annotated[int, Option("--num-samples", "-n", help="How many texts.")] = 1,
    best_of: Annotated[
        int | None,
        Option(help="Write so many for each text and keep the best; 8 for bridges and lines."),
    ] = None,
    rank: Annotated[
        Literal["backward", "forward", "both"] | None,
        Option(help="Who says which is best; the way that the model does not run if not given."),
    ] = None,
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
    model the opening (--opening, or --prompt). With an opening and an ending a bridge is written
    from the one to the other, with --around what stands to both sides of a phrase, with
    --end-words or --rhyme verse. A model trained with hints can also be told which words should
    occur and how long the text should be.
    """
    kind = _kind(ending=ending, opening=opening, around=around, end_words=end_words, rhyme=rhyme)
    if num_samples < 1:
        raise UsageError(f"n = {num_samples}: ask for at least 1 text")
    if best_of is not None and best_of < 1:
        raise UsageError(f"best-of = {best_of}: it must be 1 or more")
    if lines is not None and lines < 1:
        raise UsageError(f"lines = {lines}: it must be 1 or more")
    if kind != "text":
        _refuse(
            kind,
            prompt=prompt,
            order=order if order == "model" else None,
            continues=continues or None,
            stop=stop,
            rank=rank,
            stream=stream or None,
        )
    if stream and (num_samples > 1 or best_of or as_json or order == "model"):
        raise UsageError(
            "--stream shows one text from one given: leave out --num-samples, --best-of, --json "
            "and --order"
        )
    if as_json and order == "model":
        raise UsageError("--json has the text in reading order: leave out --order")
    if kind in ("around", "verse"):
        _refuse(kind, words=words, length=length)
    if kind == "verse":
        _refuse(kind, max_new_tokens=max_new_tokens, twin=twin)
    if kind == "around":
        _refuse(kind, best_of=best_of)
    if lines is not None and rhyme is None:
        raise UsageError("--lines says how many lines rhyme: give --rhyme, or leave it out")
    if kind == "text" and best_of is None and (rank is not None or twin is not None):
        raise UsageError("--rank and --twin choose among the texts of --best-of: give it as well")
    sampling = sampling_from(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    settings: dict[str, Any] = {
        "engine": engine,
        "device": device,
        "dtype": dtype,
        "threads": threads,
    }
    loaded = open_model(model, direction=direction, **settings)
    other = _open_twin(loaded, twin, settings)
    if prompt is not None:
        if ending is not None or opening is not None:
            raise UsageError("--prompt stands for --ending or --opening: give one of them")
        ending, opening = (prompt, None) if loaded.direction == "backward" else (None, prompt)
    ending, opening, around = _read_dashes(ending, opening, around)
    common: dict[str, Any] = {"sampling": sampling, "seed": seed}
    if kind == "bridge":
        bridges = loaded.bridge(
            opening or "",
            ending or "",
            num_samples * (best_of or BEST_OF),
            twin=other,
            words=_split(words),
            length=length,
            max_new_tokens=max_new_tokens,
            **common,
        )
        print_texts(map(record_of_bridge, bridges[:num_samples]), as_json=as_json)
        return
    if kind == "around":
        found = loaded.surround(
            around or "", num_samples, twin=other, max_new_tokens=max_new_tokens, **common
        )
        print_texts(map(record_of_surrounded, found), as_json=as_json)
        return
    if kind == "verse":
        given = list(_split(end_words))
        if rhyme is not None:
            given = loaded.rhyming_words(rhyme, LINES if lines is None else lines, seed=seed)
        verses = loaded.verse(given, n=num_samples, candidates=best_of or BEST_OF, **common)
        print_texts(map(record_of_verse, verses), as_json=as_json)
        return

    request: dict[str, Any] = {
        "ending": ending,
        "opening": opening,
        "words": _split(words),
        "length": length,
        "continues": continues,
        "max_new_tokens": max_new_tokens,
        "stop": stop or (),
        **common,
    }
    leftward = loaded.direction == "backward"
    if stream and sys.stdout.isatty():
        start = (ending if leftward else opening) or ""
        show_growing(loaded.stream(**request), start, leftward=leftward)
        return
    started = time.perf_counter()
    texts = loaded.write(**request, n=num_samples, best_of=best_of or 1, rank_by=rank, twin=other)
    if order == "model":
        shown = [loaded.as_written(text, continues=continues) for text in texts]
        print_texts(({"text": text} for text in shown), as_json=False)
        return
    n_written = sum(text.n_tokens for text in texts)
    speed = n_written / (time.perf_counter() - started) if best_of is None else None
    hints = _hints(loaded, opening, request["words"], length)
    records = (record_of_text(loaded, text, hints, speed) for text in texts)
    print_texts(records, as_json=as_json)


def _kind(**given: str | None) -> Kind:
    """Return what is to be written; raise UsageError for what excludes each other."""
    kinds: dict[str, Kind] = {
        "around": "around",
        "end_words": "verse",
        "rhyme": "verse",
    }
    named = [name for name, value in given.items() if value is not None]
    special = [name for name in named if name in kinds]
    if special and len(named) > 1:
        raise UsageError(f"{_flags(named)} exclude each other: give one of them")
    if special:
        return kinds[special[0]]
    return "bridge" if {"opening", "ending"} <= set(named) else "text"


def _refuse(kind: Kind, **given: Any) -> None:
    """Raise UsageError for options that do not go with a kind of text."""
    named = [name for name, value in given.items() if value is not None]
    if named:
        what = {"bridge": "a bridge", "around": "--around", "verse": "verse"}[kind]
        raise UsageError(f"{_flags(named)} cannot be had with {what}: leave it out")


def _flags(names: Iterable[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


def _open_twin(model: "Model", twin: str | None, settings: dict[str, Any]) -> "Model | None":
    """Load the model that runs the other way, if one is given."""
    if twin is None:
        return None
    other = "forward" if model.direction == "backward" else "backward"
    return open_model(twin, direction=other, **settings)


def _read_dashes(*texts: str | None) -> list[str | None]:
    """Return the texts, standard input for a "-", which can be read only once."""
    if texts.count("-") > 1:
        raise UsageError("- reads standard input: give it once")
    return [standard_input() if text == "-" else text for text in texts]


def _split(words: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",")) if words is not None else ()


def _hints(
    model: "Model", opening: str | None, words: tuple[str, ...], length: "Length | None"
) -> "Hints":
    """Return what was asked for; a forward model's opening is given, not asked for."""
    from backgpt.hints import Hints

    return Hints(opening if model.direction == "backward" else None, words, length)
