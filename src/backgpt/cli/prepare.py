"""`backgpt prepare`: sources of text to a tokenizer and shards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from backgpt.cli.given import WHICH_MODEL, Separator, TextField
from backgpt.cli.terminal import show
from backgpt.errors import UsageError

if TYPE_CHECKING:
    from backgpt.prepared import PrepareReport


def prepare(
    sources: Annotated[
        list[str] | None,
        Argument(
            metavar="SOURCE",
            help="builtin, tinystories, tinystories-valid, dolly, or files, folders and globs: "
            ".txt, .jsonl (also .xz, .gz), .parquet.",
        ),
    ] = None,
    out: Annotated[Path, Option(help="The dataset folder to make, or to finish.")] = Path("data"),
    vocab_size: Annotated[int, Option(help="Ids of the tokenizer to train.")] = 4096,
    tokenizer: Annotated[
        str | None,
        Option(
            help="A tokenizer.json to use instead of training one; or a model, to tune it later: "
            f"{WHICH_MODEL}."
        ),
    ] = None,
    valid: Annotated[
        list[str] | None, Option(help="A source to validate on, instead of a split by hash.")
    ] = None,
    valid_fraction: Annotated[
        float,
        Option(
            help="Share of documents held out, by the hash of each. Where documents are pieces of "
            "books, most books then are on both sides: hold some out with --valid."
        ),
    ] = 0.01,
    field: TextField = "text",
    separator: Separator = None,
    workers: Annotated[int | None, Option(help="Processes; one for each core otherwise.")] = None,
    cache: Annotated[
        Path | None,
        Option(
            help="Where downloads are kept; in ~/.cache/backgpt, or XDG_CACHE_HOME, if not given."
        ),
    ] = None,
    peek: Annotated[
        int, Option(metavar="N", help="Print N documents of the result, in both orders.")
    ] = 0,
) -> None:
    """Turn text into a dataset folder: a tokenizer and shards. Continues where it was stopped."""
    if not sources and not peek:
        raise UsageError("no source was given: try 'backgpt prepare builtin --out data/builtin'")
    from backgpt import prepare as job
    from backgpt import prepared
    from backgpt.cli.progress import ByteProgress

    if sources:
        with ByteProgress() as progress:
            report = job.prepare(
                sources,
                out,
                vocab_size=vocab_size,
                tokenizer=_tokenizer(tokenizer),
                valid=valid or None,
                valid_fraction=valid_fraction,
                field=field,
                separator=separator,
                workers=workers,
                cache=cache,
                progress=progress.update,
            )
        for line in _summary(report):
            show(line)
    for document in prepared.peek(out, peek) if peek else []:
        show("\nreading order: " + " ".join(map(repr, document.reading)))
        show("model order:   " + " ".join(map(repr, document.model)))
        show(document.text)


def _tokenizer(given: str | None) -> Path | None:
    """Return the path of a tokenizer that is given by its own, or by its model."""
    if given is None:
        return None
    if Path(given).is_file() or Path(given).suffix == ".json":
        return Path(given)
    from backgpt.builtin import find
    from backgpt.model_folder import TOKENIZER, folder_of

    return folder_of(find(given)) / TOKENIZER


def _summary(report: "PrepareReport") -> list[str]:
    found = "was already prepared" if report.reused else "prepared"
    lines = [f"{report.out} {found}: a vocabulary of {report.vocab_size:,} ids"]
    for name, split in (("training", report.train), ("validation", report.valid)):
        per_token = split.text_bytes / split.tokens if split.tokens else 0
        lines.append(
            f"{name}: {split.documents:,} document{'s' * (split.documents != 1)}, "
            f"{split.tokens:,} tokens, {_size(split.text_bytes)}, {per_token:.2f} bytes a token"
        )
    dropped = (
        (report.empty, "empty"),
        (report.duplicates, "seen before"),
        (report.also_in_valid, "also in the validation set"),
    )
    counts = [f"{count:,} {reason}" for count, reason in dropped if count]
    if counts:
        lines.append(f"left out: {', '.join(counts)}")
    return [*lines, *report.notes]


def _size(n_bytes: int) -> str:
    """Return a size in MB, or in bytes where that would be next to nothing."""
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 100_000 else f"{n_bytes:,} bytes"
