"""`backgpt score`: how likely a model finds texts, read backward, forward, or both ways."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    standard_input,
)
from backgpt.cli.terminal import show, tell
from backgpt.errors import UsageError

if TYPE_CHECKING:
    from backgpt.api import Model
    from backgpt.datasets import Document, Tally
    from backgpt.score import Score

TEXTS_TOGETHER = 256
CHARACTERS_TOGETHER = 1 << 20
"""Texts are scored when there are so many, or when they are so long."""

ORIGIN_WIDTH, TOKENS_WIDTH, WINDOWS_WIDTH, FIGURE_WIDTH, GAP_WIDTH = 32, 10, 7, 15, 7
BEFORE_FIGURES = ORIGIN_WIDTH + TOKENS_WIDTH + WINDOWS_WIDTH + 4


def score(
    file: Annotated[
        str,
        Argument(
            metavar="FILE",
            help="The texts: a file (.txt, .jsonl, also .xz, .gz; .parquet), a folder, a glob, "
            "builtin, tinystories, tinystories-valid or dolly; - reads one text from standard "
            "input.",
        ),
    ],
    model: Annotated[
        str | None,
        Option(help=f"What reads: {WHICH_MODEL}; stories if none is given."),
    ] = None,
    direction: Annotated[
        Literal["backward", "forward"] | None,
        Option(help="Only this way; a model trained both ways scores both if none is given."),
    ] = None,
    twin: Annotated[
        str | None,
        Option(
            help="A model that runs the other way and has the same tokenizer, to score with too; a "
            "model trained both ways is its own."
        ),
    ] = None,
    field: TextField = "text",
    separator: Separator = None,
    limit: Annotated[int | None, Option(help="Score only the first so many texts.")] = None,
    overlap: Annotated[
        int,
        Option(
            help="How many tokens more of context each window of a text has that is longer than "
            "the model reads at once. It lowers their loss: do not compare it with one without."
        ),
    ] = 0,
    tokens: Annotated[bool, Option("--tokens", help="Show every token of each text.")] = False,
    as_json: Annotated[
        bool, Option("--json", help="One JSON object a line for each text.")
    ] = False,
    engine: Engine = None,
    device: Device = "cpu",
    dtype: Annotated[
        Literal["float32", "bfloat16", "int8", "int4"] | None,
        Option(help="What the native engine computes in; int8 for models stored so, or float32."),
    ] = None,
    threads: Threads = None,
) -> None:
    """Say how likely texts are: log-probabilities in nats, and bits per byte.

    Each text counts as a whole document, so that what a backward and a forward model say of it
    compares exactly: both sum to its log-probability. A text that is longer than the model reads
    at once is scored in windows; every token is scored once. As in all files of texts, white space
    at the edges of each is left out, and line breaks of Windows are read as others.
    """
    check_limit(limit)
    if file == "-" and separator is not None:
        raise UsageError("standard input is one text: leave out --separator")
    from backgpt.datasets import Tally
    from backgpt.score import context_size

    tally = Tally()
    documents = _documents(file, field=field, separator=separator, tally=tally)
    models = _models(
        model, twin, direction, engine=engine, device=device, dtype=dtype, threads=threads
    )
    contexts = [context_size(one) for one in models]

    totals = _Totals()
    started = time.perf_counter()
    for batch in _batches(islice(documents, limit)):
        texts = [document.text for document in batch]
        scored = [one.score_all(texts, overlap=overlap) for one in models]
        if not as_json and not totals.n_texts:
            show(_row("text", "tokens", "windows", [one.direction for one in models], "gap"))
        for document, *scores in zip(batch, *scored, strict=True):
            totals.add(scores)
            if as_json:
                record = _record(document, models, scores, tokens=tokens)
                show(json.dumps(record, ensure_ascii=False, allow_nan=False))
            else:
                _print_text(document, models, scores, tokens=tokens)
    seconds = time.perf_counter() - started

    if not as_json:
        _print_totals(totals)
    for line in _summary(
        totals, models, seconds=seconds, contexts=contexts, overlap=overlap, tally=tally
    ):
        tell(line)


@dataclass
class _Totals:
    """What all texts come to; `nats` has a sum for each model."""

    n_texts: int = 0
    n_long: int = 0
    n_tokens: int = 0
    n_bytes: int = 0
    n_windows: int = 0
    nats: tuple[float, ...] = ()

    def add(self, scores: "list[Score]") -> None:
        """Count one text, scored by each model."""
        n_windows = _n_windows(scores)
        self.n_texts += 1
        self.n_long += n_windows > 1
        self.n_tokens += scores[0].n_tokens
        self.n_bytes += scores[0].n_bytes
        self.n_windows += n_windows
        before = self.nats or (0.0,) * len(scores)
        self.nats = tuple(nats - one.logprob for nats, one in zip(before, scores, strict=True))


def _documents(
    file: str, *, field: str, separator: str | None, tally: "Tally"
) -> "Iterator[Document]":
    """Return the texts; a file that is not there is refused at once, others when they are read."""
    from backgpt.datasets import find_source, read_source
    from backgpt.datasets.files import document

    if file == "-":
        return iter(list(document(standard_input(), "standard input", tally)))
    from backgpt.cli.progress import ByteProgress

    with ByteProgress() as progress:
        source = find_source(
            file, on_bytes=lambda done, total: progress.update("fetch", done, total)
        )
    return read_source(source, field=field, separator=separator, tally=tally)


def _models(
    model: str | None,
    twin: str | None,
    direction: Literal["backward", "forward"] | None,
    **settings: Any,
) -> "list[Model]":
    """Return what scores: a model for each direction, backward first."""
    from backgpt.api import check_twins

    loaded = open_model(model, direction=direction, **settings)
    models = [loaded]
    own_twin = loaded.language.told and direction is None
    if own_twin and twin is not None:
        raise UsageError(
            "this model runs both ways and is its own twin: leave out --twin, or say --direction"
        )
    if own_twin:
        models.append(loaded.turned())
    elif twin is not None:
        models.append(open_twin(loaded, twin, **settings))
        check_twins(*models)
    return sorted(models, key=lambda one: one.direction)


def _batches(documents: "Iterable[Document]") -> "Iterator[list[Document]]":
    """Yield the documents in lists that are worked on together."""
    batch: list[Document] = []
    n_characters = 0
    for document in documents:
        batch.append(document)
        n_characters += len(document.text)
        if len(batch) == TEXTS_TOGETHER or n_characters >= CHARACTERS_TOGETHER:
            yield batch
            batch, n_characters = [], 0
    if batch:
        yield batch


def _record(
    document: "Document", models: "list[Model]", scores: "list[Score]", *, tokens: bool
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "origin": document.origin,
        "n_tokens": scores[0].n_tokens,
        "n_bytes": scores[0].n_bytes,
        "n_windows": _n_windows(scores),
    }
    if tokens:
        record["tokens"] = _token_names(models[0], document.text)
    for model, found in zip(models, scores, strict=True):
        record[model.direction] = {
            "logprob": found.logprob,
            "nats_per_token": found.loss,
            "bits_per_byte": found.bpb,
        }
        if tokens:
            record[model.direction]["token_logprobs"] = _token_logprobs(model, found)
    return record


def _print_text(
    document: "Document", models: "list[Model]", scores: "list[Score]", *, tokens: bool
) -> None:
    """Print the row of one text, and with `tokens` one for each of its tokens."""
    counts = (scores[0].n_tokens, scores[0].n_bytes, _n_windows(scores))
    show(_figures_row(document.origin, *counts, [-found.logprob for found in scores]))
    if not tokens:
        return
    names = _token_names(models[0], document.text)
    columns = [_token_logprobs(model, found) for model, found in zip(models, scores, strict=True)]
    for name, *logprobs in zip(names, *columns, strict=True):
        cells = ["given" if value is None else f"{-value:z.3f}" for value in logprobs]
        figures = "".join(f"  {cell:>{FIGURE_WIDTH}}" for cell in cells)
        show(f"{'  ' + repr(name):<{BEFORE_FIGURES}}{figures}")
    show()


def _print_totals(totals: _Totals) -> None:
    counts = (totals.n_tokens, totals.n_bytes, totals.n_windows)
    show(_figures_row(f"{_texts(totals.n_texts)} in all", *counts, totals.nats))
    gap = "; gap: backward minus forward" if len(totals.nats) == 2 else ""
    show(f"\nnats per token (bits per byte){gap}")


def _figures_row(
    name: str, n_tokens: int, n_bytes: int, n_windows: int, nats: Sequence[float]
) -> str:
    """Return the row of a text, or of all, whose minus log-probabilities are `nats`."""
    from backgpt.score import bits_per_byte

    figures = [f"{one / n_tokens:z.3f} ({bits_per_byte(one, n_bytes):z.3f})" for one in nats]
    gap = f"{(nats[0] - nats[-1]) / n_tokens:+z.3f}"
    return _row(_shortened(name), f"{n_tokens:,}", f"{n_windows:,}", figures, gap)


def _row(name: str, tokens: str, windows: str, figures: list[Any], gap: str) -> str:
    """Return a line of the table; there is a gap where there are two figures."""
    cells = [f"{name:<{ORIGIN_WIDTH}}{tokens:>{TOKENS_WIDTH + 2}}{windows:>{WINDOWS_WIDTH + 2}}"]
    cells += [f"{figure:>{FIGURE_WIDTH}}" for figure in figures]
    cells += [f"{gap:>{GAP_WIDTH}}"] if len(figures) == 2 else []
    return "  ".join(cells)


def _shortened(origin: str) -> str:
    """Return as much of the end of a path as fits, if it can be from a folder on."""
    if len(origin) <= ORIGIN_WIDTH:
        return origin
    end = origin[-(ORIGIN_WIDTH - 1) :]
    return "…" + end[max(end.find("/"), 0) :]


def _summary(
    totals: _Totals,
    models: "list[Model]",
    *,
    seconds: float,
    contexts: list[int],
    overlap: int,
    tally: "Tally",
) -> Iterator[str]:
    """Yield what the user should know besides the figures."""
    from backgpt.report_card import unlike

    ways = " and ".join(model.direction for model in models)
    speed = totals.n_tokens * len(models) / seconds
    yield (
        f"{_texts(totals.n_texts)}, {totals.n_tokens:,} tokens, scored {ways}: "
        f"{speed:,.0f} tokens/s"
    )
    if tally.empty:
        yield f"left out: {tally.empty:,} empty"
    if totals.n_long:
        yield (
            f"longer than the {min(contexts):,} tokens that the model reads at once: "
            f"{_texts(totals.n_long)}, scored in windows"
            + (f" that overlap by {overlap:,} tokens" if overlap else "")
        )
    if len(models) == 2 and (differences := unlike((models[0], models[1]))):
        yield (
            f"these are not twins, their gap is not that of direction alone: they differ in "
            f"{'; '.join(differences)}"
        )
    if totals.n_long and len({*contexts}) + len({model.unit for model in models}) > 2:
        yield "the twins have different contexts or units: they cut those texts at other places"


def _token_names(model: "Model", text: str) -> list[str]:
    tokenizer = model.tokenizer
    return [tokenizer.name_of(id_) for id_ in tokenizer.mark(tokenizer.encode(text)).tolist()]


def _token_logprobs(model: "Model", score: "Score") -> list[float | None]:
    """Return the log-probabilities in reading order, None for the marker that is given."""
    values: list[float | None] = score.token_logprobs.tolist()
    values[-1 if model.direction == "backward" else 0] = None
    return values


def _texts(count: int) -> str:
    return f"{count:,} text" if count == 1 else f"{count:,} texts"


def _n_windows(scores: "list[Score]") -> int:
    return max(score.n_windows for score in scores)
