"""`backgpt sample`: write the text that leads to an ending, and other things between two texts."""

import secrets
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from backgpt.cli.given import (
    WHICH_MODEL,
    Device,
    Engine,
    MinP,
    Temperature,
    Threads,
    TopK,
    TopP,
    open_model,
    open_twin,
    sampling_from,
)
from backgpt.cli.growing import show_growing
from backgpt.cli.sample_options import SampleOptions, split_words
from backgpt.cli.terminal import tell
from backgpt.cli.written import (
    WRITES_AGAIN,
    Printer,
    print_texts,
    record_of_bridge,
    record_of_surrounded,
    record_of_text,
    record_of_verse,
    tell_what_is_empty,
    tell_what_was_cut,
    tell_what_was_not_obeyed,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backgpt.api import Model
    from backgpt.generate import Text
    from backgpt.hints import Hints, Length
    from backgpt.sampling import Sampling

LINES = 4  # that rhyme


def sample(
    model: Annotated[
        str | None,
        Option(help=f"What writes: {WHICH_MODEL}; stories if none is given."),
    ] = None,
    ending: Annotated[
        str | None, Option(help="The ending to write toward; - reads it from standard input.")
    ] = None,
    opening: Annotated[
        str | None,
        Option(
            help="The text to go on from, running forward. With --ending a bridge is written, "
            "from the one to the other; - reads it from standard input."
        ),
    ] = None,
    around: Annotated[
        str | None,
        Option(
            help="A phrase to write around, to its left and to its right; - reads it from "
            "standard input."
        ),
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
        str | None, Option(help="Words that should occur, with commas between: cake,Snow White.")
    ] = None,
    length: Annotated[
        Literal["short", "medium", "long"] | None,
        Option(help="How long the text should be: up to 130 words, up to 180, or more."),
    ] = None,
    prompt: Annotated[
        str | None,
        Option(
            help="The given text, whichever way the model runs; - reads it from standard input."
        ),
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
        Option(
            help="Which direction judges what is best; the one that the model does not run in if "
            "not given."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, Option(help="Most tokens to write; the context is the limit otherwise.")
    ] = None,
    stop: Annotated[
        list[str] | None,
        Option(help="A text at which writing ends, and which is no part of it; repeatable."),
    ] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Annotated[
        float | None,
        Option(help="Above 1: tokens already in the text become less likely.  [default: 1.1]"),
    ] = None,
    dry_multiplier: Annotated[
        float | None,
        Option(
            help="Above 0: going on with what the text already says becomes less likely (DRY).  "
            "[default: 0.8]"
        ),
    ] = None,
    seed: Annotated[
        int | None, Option(help="The same seed writes the same texts; drawn if not given.")
    ] = None,
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
    engine: Engine = None,
    device: Device = "cpu",
    dtype: Annotated[
        Literal["float32", "bfloat16", "int8", "int4"] | None,
        Option(
            help="What the native engine computes in; int8 for models stored so, or float32. With "
            "bfloat16 a text may depend on the processor and on what is written beside it."
        ),
    ] = None,
    threads: Threads = None,
) -> None:
    """Write the text that leads to an ending, last word first.

    Give an --ending to write toward, an --opening to go on from, or both: then a bridge is written
    from the one to the other. --around writes what stands to both sides of a phrase, --end-words
    and --rhyme write verse.

    --words are made likelier until they occur, and a text is made to end where it has its --length.
    A model trained with hints is told both as well.

    A model trained both ways runs forward from an opening alone. --prompt, as in the original, is
    the ending for a backward model and the opening for a forward one.
    """
    asked = SampleOptions(
        ending=ending,
        opening=opening,
        around=around,
        end_words=end_words,
        rhyme=rhyme,
        lines=lines,
        words=words,
        length=length,
        prompt=prompt,
        twin=twin,
        num_samples=num_samples,
        best_of=best_of,
        rank=rank,
        max_new_tokens=max_new_tokens,
        stop=stop,
        seed=seed,
        continues=continues,
        order=order,
        stream=stream,
        as_json=as_json,
    )
    kind = asked.kind()
    asked.check(kind)
    sampling = sampling_from(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        dry_multiplier=dry_multiplier,
    )
    settings: dict[str, Any] = {
        "engine": engine,
        "device": device,
        "dtype": dtype,
        "threads": threads,
    }
    loaded = open_model(model, direction=direction, **settings)
    asked = asked.read(loaded)
    if kind == "text" and asked.ending is None and asked.opening is not None and direction is None:
        loaded = _going_on(loaded)
    other = None if twin is None else open_twin(loaded, twin, **settings)
    write = {"text": _text, "bridge": _bridge, "around": _around, "verse": _verse}[kind]
    if asked.seed is not None:
        write(loaded, other, asked, sampling)
        return
    drawn = secrets.randbits(32)
    told = WRITES_AGAIN.format(drawn)
    try:
        write(loaded, other, replace(asked, seed=drawn), sampling)
    except KeyboardInterrupt:
        tell(told)
        raise
    if not as_json:  # which has that of each text
        tell(told)


def _going_on(model: "Model") -> "Model":
    """Return the model running forward, if it can: it goes on from an opening, word for word."""
    return model.turned() if model.direction == "backward" and model.language.told else model


def _text(model: "Model", twin: "Model | None", asked: SampleOptions, sampling: "Sampling") -> None:
    """Write texts from what is given, or show one growing on a terminal."""
    request: dict[str, Any] = {
        "ending": asked.ending,
        "opening": asked.opening,
        "words": asked.wanted_words,
        "length": asked.length,
        "continues": asked.continues,
        "max_new_tokens": asked.max_new_tokens,
        "stop": asked.stop or (),
        "sampling": sampling,
        "seed": asked.seed,
    }
    hints = _hints(model, asked.opening, asked.wanted_words, asked.length)
    leftward = model.direction == "backward"
    if asked.stream and sys.stdout.isatty():
        start = (asked.ending if leftward else asked.opening) or ""
        shown = show_growing(model.stream(**request), start, leftward=leftward)
        tell_what_was_not_obeyed(hints, [shown])
        tell_what_is_empty(int(shown == start and not asked.stop), 1, leftward=leftward)
        return
    printer = Printer(as_json=asked.as_json)
    started = time.perf_counter()

    def show(texts: "Sequence[Text]") -> None:
        nonlocal started
        seconds, started = time.perf_counter() - started, time.perf_counter()
        n_written = sum(text.n_tokens for text in texts)
        speed = n_written / seconds if asked.best_of is None else None
        for text in texts:
            if asked.order == "model":
                printer.show({"text": model.as_written(text, continues=asked.continues)})
            else:
                printer.show(record_of_text(model, text, hints, speed))

    texts = model.write(
        **request,
        n=asked.num_samples,
        best_of=asked.best_of or 1,
        rank_by=asked.rank,
        twin=twin,
        report=show,
    )
    if not asked.as_json:
        tell_what_was_not_obeyed(hints, [text.text for text in texts])
        n_empty = sum(text.finish_reason == "stop" and not len(text.ids) for text in texts)
        tell_what_is_empty(n_empty, len(texts), leftward=leftward)
        if asked.max_new_tokens is None:
            tell_what_was_cut(texts, model=model)


def _bridge(
    model: "Model", twin: "Model | None", asked: SampleOptions, sampling: "Sampling"
) -> None:
    """Write the best bridges from the opening to the ending."""
    from backgpt.bridge import BRIDGES_TRIED

    bridges = model.bridge(
        asked.opening or "",
        asked.ending or "",
        asked.num_samples * (asked.best_of or BRIDGES_TRIED),
        twin=twin,
        words=asked.wanted_words,
        length=asked.length,
        max_new_tokens=asked.max_new_tokens,
        sampling=sampling,
        seed=asked.seed,
    )
    best = bridges[: asked.num_samples]
    hints = _hints(model, None, asked.wanted_words, asked.length)
    print_texts((record_of_bridge(one, hints) for one in best), as_json=asked.as_json)
    if not asked.as_json:
        tell_what_was_not_obeyed(hints, [one.text for one in best])


def _around(
    model: "Model", twin: "Model | None", asked: SampleOptions, sampling: "Sampling"
) -> None:
    """Write to both sides of a phrase."""
    found = model.surround(
        asked.around or "",
        asked.num_samples,
        twin=twin,
        max_new_tokens=asked.max_new_tokens,
        sampling=sampling,
        seed=asked.seed,
    )
    print_texts(map(record_of_surrounded, found), as_json=asked.as_json)


def _verse(
    model: "Model", twin: "Model | None", asked: SampleOptions, sampling: "Sampling"
) -> None:
    """Write lines that end with the given words, or with words that rhyme."""
    from backgpt.verse import LINES_TRIED

    last_words = list(split_words(asked.end_words))
    if asked.rhyme is not None:
        n_lines = LINES if asked.lines is None else asked.lines
        last_words = model.rhyming_words(asked.rhyme, n_lines, seed=asked.seed)
    verses = model.verse(
        last_words,
        n=asked.num_samples,
        candidates=asked.best_of or LINES_TRIED,
        sampling=sampling,
        seed=asked.seed,
    )
    print_texts(map(record_of_verse, verses), as_json=asked.as_json)


def _hints(
    model: "Model", opening: str | None, words: tuple[str, ...], length: "Length | None"
) -> "Hints":
    """Return what was asked for; a forward model's opening is given, not asked for."""
    from backgpt.hints import Hints

    return Hints(opening if model.direction == "backward" else None, words, length)
