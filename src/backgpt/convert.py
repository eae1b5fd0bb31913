"""Models from elsewhere, as model folders of this project: `backgpt import`.

Takes a checkpoint of smolGPT or of the original backgpt (`smolgpt_checkpoint`), or a Hugging Face
folder in the shape of Llama, Mistral, Qwen 2 or Qwen 3 (`foreign_folder`); writes a folder that
`api.load` opens, whole or not at all. Nothing in such files says which way a model runs, so the
caller says it. No code that comes with a model is run.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from backgpt.errors import CorruptFileError, DataError, UsageError
from backgpt.files import cannot_write
from backgpt.foreign_folder import copy_folder, read_folder
from backgpt.foreign_model import ForeignModel
from backgpt.foreign_tokenizer import vocabulary, with_markers
from backgpt.manifest import read_json
from backgpt.model_folder import CONFIG, README, Family, save_model
from backgpt.order import Direction, RightwardDecoder, Unit
from backgpt.quantize import count_parameters
from backgpt.smolgpt_checkpoint import CHECKPOINT, check_kind, read_smolgpt
from backgpt.tokenizer import END, PAD, START, Tokenizer

NO_MARKER = "none"
PROBES = ("The end.", "One day, a cat sat.\n\n  The dog (aged 7) ran.", "é 中 😀")


@dataclass(frozen=True)
class Imported:
    """What was written. `first` is what the model reads first, `stop` what it ends with."""

    out: Path
    family: Family
    direction: Direction
    unit: Unit
    n_parameters: int
    first: str | None
    stop: str | None


def import_model(
    source: Path,
    out: Path,
    *,
    direction: Direction | None = None,
    reversed_words: bool = False,
    tokenizer: Path | None = None,
    first: str | None = None,
    stop: str | None = None,
) -> Imported:
    """Write the model at `source` as a model folder at `out`, which must not be there yet.

    `direction` is which token it predicts; with `reversed_words` it is one of the original
    backgpt's, trained on texts whose words were reversed. `tokenizer` is a SentencePiece `.model`
    or a `tokenizer.json`, without it the one that lies beside. `first` names the control token
    that the model reads first and `stop` the one that it ends with, "none" for none; without them
    those of its tokenizer and configuration.

    Raises UsageError, DataError or CorruptFileError for what cannot be read or does not fit
    together, MissingExtraError without what reads it, BackgptError if `out` cannot be written.
    """
    if out.exists():
        raise UsageError(f"{out} is already there: choose another --out")
    _check_source(source)
    way = _direction(source, direction, reversed_words=reversed_words)
    unit: Unit = "text" if reversed_words else "token"
    if source.is_file() or (source / CHECKPOINT).is_file():
        model = read_smolgpt(source, tokenizer)
    elif (source / CONFIG).is_file():
        model = read_folder(source, tokenizer)
    else:
        raise DataError(f"{source} holds neither {CONFIG} nor {CHECKPOINT}: there is no model")
    made = _tokenizer(model, way, first=first, stop=stop)
    _check_fit(model, made)
    folder = model.as_folder(way, unit, made)
    card = _card(model, way, unit, name=out.absolute().name)
    try:
        if folder.family == "transformers":
            copy_folder(model, folder, out, card)
        else:
            save_model(folder, out, files={README: card})
    except OSError as error:
        raise cannot_write(out, error) from None
    start, end = (None if id_ is None else made.name_of(id_) for id_ in made.marker_ids)
    return Imported(
        out=out,
        family=folder.family,
        direction=way,
        unit=unit,
        n_parameters=count_parameters(folder.weights),
        first=end if way == "backward" else start,
        stop=start if way == "backward" else end,
    )


def _check_source(source: Path) -> None:
    """Raise DataError or UsageError for what is no model from elsewhere, whatever else is said."""
    if not source.exists():
        raise DataError(f"there is nothing at {source}: give a checkpoint or a folder")
    if source.is_file():
        check_kind(source)
    elif (source / CONFIG).is_file() and not (source / CHECKPOINT).is_file():
        direction = read_json(source / CONFIG).get("direction")
        if direction is not None:
            raise UsageError(f"{source} has a direction: it is backgpt's, load it as it is")


def _direction(source: Path, direction: Direction | None, *, reversed_words: bool) -> Direction:
    if reversed_words and direction == "forward":
        raise UsageError("a model of reversed words runs backward: leave out --direction")
    if reversed_words:
        return "backward"
    if direction is None:
        raise UsageError(
            f"{source} does not say which way it runs: give --direction backward if it predicts "
            "the previous token, --direction forward, or --reversed-words for a model of the "
            "original backgpt"
        )
    return direction


def _tokenizer(
    model: ForeignModel, direction: Direction, *, first: str | None, stop: str | None
) -> Tokenizer:
    """Return the model's tokenizer, with its markers in reading order."""
    ids = vocabulary(model.tokenizer)
    if {PAD, START, END} <= ids.keys():
        if first or stop:
            raise UsageError("the tokenizer is one of this project: leave out --first and --stop")
        return Tokenizer(json.dumps(model.tokenizer, ensure_ascii=False, indent=2))

    def marker(flag: str, name: str | None, default: int | None) -> int | None:
        if name is None:
            if default is not None and default not in ids.values():
                raise UsageError(
                    f"{model.tokenizer_path} has no token of id {default}, which the model "
                    f"{'reads first' if flag == 'first' else 'ends with'}: name one with "
                    f"--{flag}, or {NO_MARKER!r}"
                )
            return default
        if name == NO_MARKER:
            return None
        if name not in ids:
            raise UsageError(f"--{flag} {name}: {model.tokenizer_path} has no such token")
        return ids[name]

    reads = marker("first", first, model.first_id)
    ends = marker("stop", stop, model.stop_id)
    start, end = (ends, reads) if direction == "backward" else (reads, ends)
    content = with_markers(model.tokenizer, start, end)
    return Tokenizer(json.dumps(content, ensure_ascii=False))


def _check_fit(model: ForeignModel, tokenizer: Tokenizer) -> None:
    """Raise an error unless tokenizer and model fit, and its bytes are what it decodes to."""
    size, wanted = tokenizer.vocab_size, model.config.vocab_size
    if not wanted - model.padding <= size <= wanted:
        raise UsageError(
            f"{model.tokenizer_path} has {size:,} ids, the model {wanted:,}: give the tokenizer "
            "that it was trained with as --tokenizer"
        )
    for text in PROBES:
        ids, decoder = tokenizer.encode(text), RightwardDecoder(added=tokenizer.added_spaces)
        pieces = [decoder.push(tokenizer.token_bytes[int(id_)]) for id_ in ids]
        if "".join(pieces) + decoder.flush() != tokenizer.decode(ids):
            raise CorruptFileError(
                f"{model.tokenizer_path} is of a kind that is not read here: byte-level BPE and "
                "SentencePiece's are"
            )


def _card(model: ForeignModel, direction: Direction, unit: Unit, *, name: str) -> bytes:
    """Return the README.md of the folder: what it is, and what to know when using it."""
    given, text = ("opening", "Once") if direction == "forward" else ("ending", "The end.")
    runs = {
        "token": f"It predicts the {'previous' if direction == 'backward' else 'next'} token.",
        "word": "",
        "text": "It was trained on texts whose words were reversed (`text.split()`) before they "
        "were encoded, as the original backgpt was: it writes word by word, last one first. Line "
        "breaks and runs of spaces were lost in training and cannot come back; what is given "
        "stays as it is. It only writes: a loss of its would not be of text in reading order.",
    }[unit]
    tags = json.dumps(["backgpt", direction])
    lines = [
        "---",
        "library_name: backgpt",
        "pipeline_tag: text-generation",
        f"tags: {tags}",
        "---",
        "",
        f"# {name}, imported by backgpt",
        "",
        f"{model.description} {runs}",
        "",
        "```console",
        f'$ backgpt sample --model PATH --{given} "{text}"',
        "```",
        "",
        "What it was trained on, how good it is and what its licence says, those who made it know.",
    ]
    return ("\n".join(lines) + "\n").encode()
