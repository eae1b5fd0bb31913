"""The model card: what a model was made of, what was measured, and the README.md that says so.

`card.json` in a model folder holds what its configuration cannot say; README.md is rendered from
both, in the form that the Hugging Face hub reads: a YAML head, then text.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from backgpt.config import AnySettings, Settings, build
from backgpt.errors import ConfigError, CorruptFileError, DataError
from backgpt.hints import Kind
from backgpt.order import Direction, Directions, Unit
from backgpt.quantize import Storage
from backgpt.shape import ModelConfig

CARD, README = "card.json", "README.md"


class Data(Settings):
    """A set of texts that a model was trained on."""

    name: str
    licence: str
    attribution: str = ""


class Loss(Settings):
    """What a model lost on a held-out set, all of it, in one direction."""

    set: str
    direction: Direction
    storage: Storage
    nats_per_token: float
    bits_per_byte: float


class Trained(Settings):
    """How a model was trained. `tokens` are all that it met, repetitions counted."""

    tokens: int
    hardware: str
    date: str
    command: str
    commit: str


class Statistics(Settings):
    """What texts are like, generated or human; `evaluate` says how each figure is computed."""

    texts: int
    reached_edge: float | None = None
    known_words: float
    repeating: float
    distinct_3: float
    mean_words: float
    nats_per_token: float | None = None


class Obedience(Settings):
    """How many of the texts that were asked for something did it."""

    asked: int
    obeyed: int


class Story(Settings):
    """A sample as it came: nothing was left out or changed."""

    ending: str
    seed: int
    text: str


class Measures(Settings):
    """What `scripts/measure_builtin.py` measured of a model stored as int8."""

    set: str
    date: str
    losses: tuple[Loss, ...]
    endings: int
    generated: Statistics
    human: Statistics
    obedience: Mapping[Kind, Obedience] = {}
    unasked: Mapping[Kind, Obedience] = {}
    stories: tuple[Story, ...]


class Card(Settings):
    """What a model's maker says of it, and what was measured. `licence` is that of the weights."""

    description: str
    licence: str
    data: tuple[Data, ...]
    trained: Trained
    limits: tuple[str, ...] = ()
    measures: Measures | None = None


def read_card(path: Path) -> Card | None:
    """Read a `card.json`, or return None if there is none. Raises CorruptFileError."""
    if not path.is_file():
        return None
    try:
        return read_as(Card, path)
    except (ConfigError, DataError) as error:
        raise CorruptFileError(str(error)) from None


def read_as(kind: type[AnySettings], path: Path) -> AnySettings:
    """Read a JSON file as `kind`.

    Raises DataError if it cannot be read, ConfigError for an unknown key or a bad value.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} is not a JSON object")
    return build(kind, values, origin=str(path))


def short_card(config: ModelConfig, direction: Directions, unit: Unit, *, n_parameters: int) -> str:
    """Return the README.md of a model that nobody has described yet: what its files are."""
    lines = [
        *_head(direction),
        "# A model made with backgpt",
        "",
        *_what_it_is(config, direction, unit, n_parameters),
        "",
        *_how_to_use("PATH", direction),
        "",
        "Nobody has described this model yet: what it was trained on and how good it is, the",
        "folder of its training run says.",
    ]
    return "\n".join(lines) + "\n"


def full_card(
    name: str,
    card: Card,
    config: ModelConfig,
    *,
    direction: Directions,
    unit: Unit,
    hints: bool,
    n_parameters: int,
) -> str:
    """Return the README.md of the built-in model `name`, as Markdown with a YAML head."""
    lines = [
        *_head(direction, licence=card.licence),
        f"# backgpt {name}",
        "",
        card.description,
        "",
        *_what_it_is(config, direction, unit, n_parameters),
        *(["It was trained to obey hints: `--opening`, `--words`, `--length`."] if hints else []),
        "",
        *_how_to_use(name, direction),
        "",
        *_data(card),
        *_training(card),
        *(_measured(card.measures, hints=hints) if card.measures else []),
        *_limits(card),
        *(_stories(name, card.measures.stories) if card.measures else []),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _head(direction: Directions, *, licence: str | None = None) -> list[str]:
    """Return the YAML; JSON values are YAML values."""
    ways = ["backward", "forward"] if direction == "both" else [direction]
    values: dict[str, Any] = {
        "language": "en",
        "library_name": "backgpt",
        "pipeline_tag": "text-generation",
        "tags": ["backgpt", *ways],
    }
    if licence is not None:  # the hub knows some licences by name, and calls all others this
        values |= {"license": "other", "license_name": licence}
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return ["---", *lines, "---", ""]


def _what_it_is(
    config: ModelConfig, direction: Directions, unit: Unit, n_parameters: int
) -> list[str]:
    predicts = {
        "backward": f"predicts the previous {unit}: given an ending, it writes what led there",
        "forward": "predicts the next token",
        "both": f"predicts the previous {unit}, or the next one: its first id, `<|backward|>` or "
        "`<|forward|>`, tells it which",
    }[direction]
    in_model_order = (
        []
        if direction == "forward"
        else [
            "Token ids are in **model order**, last one first: a program that feeds it ids in "
            "reading order gets nonsense.",
        ]
    )
    return [
        f"A transformer in the Qwen3 shape with {n_parameters / 1e6:.1f} million parameters "
        f"({config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, context "
        f"{config.block_size:,} ids, vocabulary {config.vocab_size:,}) that {predicts}.",
        *in_model_order,
    ]


def _how_to_use(model: str, direction: Directions) -> list[str]:
    given, text = ("opening", "Once") if direction == "forward" else ("ending", "The end.")
    return [
        "```console",
        f'$ backgpt sample --model {model} --{given} "{text}"',
        "```",
        "",
        "```python",
        "import backgpt",
        "",
        f'[text] = backgpt.load("{model}").write({given}="{text}")',
        "print(text.text)",
        "```",
    ]


def _data(card: Card) -> Iterator[str]:
    yield from ("## What it was trained on", "")
    for data in card.data:
        attribution = f" {data.attribution}" if data.attribution else ""
        yield f"- **{data.name}** ({data.licence}).{attribution}"
    yield from ("", f"Licence of the weights: {card.licence}.", "")


def _training(card: Card) -> Iterator[str]:
    trained = card.trained
    yield from ("## How", "")
    yield f"{trained.tokens / 1e6:,.1f} million tokens in all, repetitions counted, on"
    yield f"{trained.hardware}; {trained.date}, commit {trained.commit}:"
    yield from ("", "```console", trained.command, "```", "")


def _measured(measures: Measures, *, hints: bool) -> Iterator[str]:
    yield from ("## Measured", "")
    yield f"On {measures.set}, {measures.date}. Losses are of whole documents, markers included."
    yield from ("", "| direction | weights | nats per token | bits per byte |")
    yield "|---|---|---:|---:|"
    for loss in measures.losses:
        figures = f"{loss.nats_per_token:.4f} | {loss.bits_per_byte:.4f}"
        yield f"| {loss.direction} | {loss.storage} | {figures} |"
    yield ""
    yield f"{measures.generated.texts} samples from {measures.endings} endings at the default"
    yield f"settings, beside {measures.human.texts} human texts:"
    yield from ("", "| | generated | human |", "|---|---:|---:|")
    for label, generated, human in _statistics_rows(measures.generated, measures.human):
        yield f"| {label} | {generated} | {human} |"
    yield ""
    if hints and measures.obedience:
        yield "Hints drawn from held-out texts, given with their true endings:"
        yield from ("", "| asked for | asked | obeyed | happens unasked |", "|---|---:|---:|---:|")
        for kind, result in measures.obedience.items():
            unasked = _share(measures.unasked.get(kind))
            yield f"| {kind} | {result.asked} | {_share(result)} | {unasked} |"
        yield ""


def _statistics_rows(generated: Statistics, human: Statistics) -> Iterator[tuple[str, str, str]]:
    """Yield a label and both figures; a figure that was not measured is a dash."""
    for label, name, form in (
        ("reach the edge of the text", "reached_edge", ".1%"),
        ("words that occur in the training texts", "known_words", ".2%"),
        ("texts with a 4-gram three times or more", "repeating", ".1%"),
        ("distinct trigrams", "distinct_3", ".3f"),
        ("mean words", "mean_words", ".1f"),
        ("nats per token under the forward twin", "nats_per_token", ".3f"),
    ):
        values = (getattr(statistics, name) for statistics in (generated, human))
        first, second = ("–" if value is None else format(value, form) for value in values)
        yield label, first, second


def _share(result: Obedience | None) -> str:
    return f"{result.obeyed / result.asked:.0%}" if result and result.asked else "–"


def _limits(card: Card) -> Iterator[str]:
    if card.limits:
        yield from ("## What it is bad at", "", *(f"- {limit}" for limit in card.limits), "")


def _stories(name: str, stories: tuple[Story, ...]) -> Iterator[str]:
    yield from (f"## {len(stories)} stories, unedited", "")
    yield "The first sample for each ending, none left out. To see one again:"
    yield f"`backgpt sample --model {name} --ending ENDING --seed SEED`"
    yield "(a processor of another kind rounds otherwise, and may write another)."
    for story in stories:
        yield from ("", f"Ending `{story.ending}`, seed {story.seed}:", "")
        yield "\n>\n".join(f"> {line}" for line in story.text.split("\n") if line)
