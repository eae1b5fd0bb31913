"""The README.md of a model folder, as the Hugging Face hub reads it: a YAML head, then text.

Rendered from the model's configuration and its card, if it has one.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from backgpt.card import Card, ChatMeasures, Measures, Obedience, ShownExchange, Statistics, Story
from backgpt.order import Directions, Unit
from backgpt.shape import ModelConfig

MODES_IN_WORDS = {
    "ask": "`ask`: the question, given the answer",
    "rewind": "`rewind`: all before the last message",
    "reply": "`reply`: the answer, given the question",
    "whole": "whole conversations",
}


def short_card(
    config: ModelConfig, direction: Directions, unit: Unit, *, chat: bool, n_parameters: int
) -> str:
    """Return the README.md of a model that nobody has described yet: what its files are."""
    chats = chat and direction != "forward"
    lines = [
        *_head(direction),
        "# A model made with backgpt",
        "",
        *_what_it_is(config, direction, unit, n_parameters),
        "",
        *(_how_to_chat("PATH") if chats else _how_to_use("PATH", direction)),
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
        *_head(direction, license=card.license),
        f"# backgpt {name}",
        "",
        card.description,
        "",
        *_what_it_is(config, direction, unit, n_parameters),
        *(["It was trained to obey hints: `--opening`, `--words`, `--length`."] if hints else []),
        "",
        *(_how_to_chat(name) if card.chat_measures else _how_to_use(name, direction)),
        "",
        *_data(card),
        *_training(card),
        *(_measured(card.measures, hints=hints) if card.measures else []),
        *(_measured_chat(card.chat_measures) if card.chat_measures else []),
        *_limits(card),
        *(_stories(name, card.measures.stories) if card.measures else []),
        *(_exchanges(name, card.chat_measures.exchanges) if card.chat_measures else []),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _head(direction: Directions, *, license: str | None = None) -> list[str]:
    """Return the YAML; JSON values are YAML values.

    Only the built-in models, which have a license, are known to be of English.
    """
    ways = ["backward", "forward"] if direction == "both" else [direction]
    values: dict[str, Any] = {
        **({} if license is None else {"language": "en"}),
        "library_name": "backgpt",
        "pipeline_tag": "text-generation",
        "tags": ["backgpt", *ways],
    }
    if license is not None:
        # The hub knows some licences by name, and calls all others by a word without spaces.
        slug = re.sub(r"[^a-z0-9.]+", "-", license.lower()).strip("-")
        values |= {"license": "other", "license_name": slug}
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


def _how_to_chat(model: str) -> list[str]:
    return [
        "You answer, it asks:",
        "",
        "```console",
        f'$ echo "Paris." | backgpt chat --model {model}',
        f"$ backgpt chat --model {model} --mode rewind",
        "```",
        "",
        "```python",
        "import backgpt",
        "",
        f'for question in backgpt.load("{model}").ask("Paris.", n=5):',
        "    print(question.text, question.logprob)",
        "```",
    ]


def _data(card: Card) -> Iterator[str]:
    yield from ("## What it was trained on", "")
    for data in card.data:
        attribution = f" {data.attribution}" if data.attribution else ""
        yield f"- **{data.name}** ({data.license}).{attribution}"
    yield from ("", f"Licence of the weights: {card.license}.", "")


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
    yield f"settings, beside {measures.human.texts} human texts; endings, which are given, are left"
    yield "out of both, but for the twin's nats:"
    yield from ("", "| | generated | human |", "|---|---:|---:|")
    rows = statistics_rows(measures.generated, measures.human, known_from="the training texts")
    for label, generated, human in rows:
        yield f"| {label} | {generated} | {human} |"
    yield ""
    if hints and measures.obedience:
        yield "Hints drawn from held-out texts, given with their true endings:"
        yield from ("", "| asked for | asked | obeyed | happens unasked |", "|---|---:|---:|---:|")
        for kind, result in measures.obedience.items():
            unasked = share_of(measures.unasked.get(kind))
            yield f"| {kind} | {result.asked} | {share_of(result)} | {unasked} |"
        yield ""


def statistics_rows(
    generated: Statistics, human: Statistics, *, known_from: str
) -> Iterator[tuple[str, str, str]]:
    """Yield a label and both figures; a figure that was not measured is a dash.

    `known_from` says which texts the known words were taken from.
    """
    for label, name, form in (
        ("reach the edge of the text", "reached_edge", ".1%"),
        (f"words that occur in {known_from}", "known_words", ".2%"),
        ("texts with a 4-gram three times or more", "repeating", ".1%"),
        ("distinct trigrams", "distinct_3", ".3f"),
        ("mean words", "mean_words", ".1f"),
        ("nats per token under the forward twin", "nats_per_token", ".3f"),
    ):
        values = (getattr(statistics, name) for statistics in (generated, human))
        first, second = ("–" if value is None else format(value, form) for value in values)
        yield label, first, second


def share_of(result: Obedience | None) -> str:
    return f"{result.obeyed / result.asked:.0%}" if result and result.asked else "–"


def _limits(card: Card) -> Iterator[str]:
    if card.limits:
        yield from ("## What it is bad at", "", *(f"- {limit}" for limit in card.limits), "")


def _stories(name: str, stories: tuple[Story, ...]) -> Iterator[str]:
    yield from (f"## {len(stories)} stories, unedited", "")
    yield "The first sample for each ending, none left out. To see one again:"
    yield f"`backgpt sample --model {name} --ending ENDING --seed SEED`"
    yield "(the engine in C++ writes it on every processor; torch rounds otherwise)."
    for story in stories:
        yield from ("", f"Ending `{story.ending}`, seed {story.seed}:", "")
        yield "\n>\n".join(f"> {line}" for line in story.text.split("\n") if line)


def _measured_chat(measures: ChatMeasures) -> Iterator[str]:
    yield from ("## Measured", "")
    yield f"On {measures.set}, {measures.date}, int8 weights. Losses are of what is written."
    yield from ("", "| what | direction | conversations | nats per token | bits per byte |")
    yield "|---|---|---:|---:|---:|"
    for loss in measures.losses:
        what = MODES_IN_WORDS[loss.what]
        figures = f"{loss.nats_per_token:.4f} | {loss.bits_per_byte:.4f}"
        yield f"| {what} | {loss.direction} | {loss.conversations} of {loss.of} | {figures} |"
    yield ""
    first = measures.retrieved[0]
    yield f"The right one of {first.candidates} questions for each of {first.answers} answers:"
    yield from ("", "| ranked by | first | in the first ten | mean rank |", "|---|---:|---:|---:|")
    for found in measures.retrieved:
        shares = f"{found.first:.1%} | {found.in_ten:.1%} | {found.mean_rank:.1f}"
        yield f"| {found.method} | {shares} |"
    asked, human, rewound = measures.asked, measures.human, measures.rewound
    yield from ("", f"Questions to {asked.answers} held-out answers, at the default settings:")
    yield from ("", "| | the model's | people's |", "|---|---:|---:|")
    for label, name, form in (
        ("end in `?` or begin as questions and instructions do", "asks", ".1%"),
        ("share a content word with the answer", "shares_a_word", ".1%"),
        ("make the answer likelier to the forward twin than a random question", "gains", ".1%"),
        ("nats gained so, mean", "mean_gain", ".1f"),
    ):
        values = (format(getattr(figures, name), form) for figures in (asked, human))
        yield f"| {label} | {' | '.join(values)} |"
    yield ""
    yield f"{rewound.conversations} conversations rewound by up to {rewound.turns} messages: in"
    yield f"{rewound.in_order:.0%} roles alternate in the right order, {rewound.to_the_start:.0%}"
    yield f"reached their start, {rewound.mean_messages:.1f} messages were written in the mean;"
    yield "probabilities after one that was read at once, as when it is loaded, and id by id, as"
    yield f"when it is written, differ by at most {rewound.difference:.2g} in int8 and"
    yield f"{rewound.difference_exact:.2g} in float32. A role or a marker leaked"
    yield from (f"into {measures.leaked} of {measures.outputs:,} outputs.", "")


def _exchanges(name: str, exchanges: tuple[ShownExchange, ...]) -> Iterator[str]:
    yield from (f"## {len(exchanges)} exchanges, unedited", "")
    yield "The first for each message, none left out. To see one again:"
    yield f"`echo MESSAGE | backgpt chat --model {name} --mode MODE --seed SEED`"
    yield "(the engine in C++ writes it on every processor; torch rounds otherwise)."
    for exchange in exchanges:
        yield from ("", f"`{exchange.mode}`, seed {exchange.seed}, given `{exchange.given}`:", "")
        yield "\n>\n".join(
            f"> **{said.role}:** " + said.text.replace("\n", "\n> ") for said in exchange.written
        )
