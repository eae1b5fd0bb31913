"""`backgpt info`: the models that come with the package, or all about one model."""

import json
import shutil
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from typer import Argument, Option

from backgpt.cli.given import WHICH_MODEL
from backgpt.cli.terminal import show

if TYPE_CHECKING:
    from backgpt.builtin import ModelInfo

BYTES_IN_MB = 1e6
NAME_WIDTH = 9  # of what is said of a model in the list


class _Loss(NamedTuple):
    """A loss to show: what it is of, nats per token and bits per byte, on which texts."""

    what: str
    figure: str
    set: str


def info(
    model: Annotated[
        str | None,
        Argument(metavar="MODEL", help=f"Which one to describe: {WHICH_MODEL}."),
    ] = None,
    as_json: Annotated[
        bool, Option("--json", help="One JSON object a line for each model.")
    ] = False,
) -> None:
    """List the built-in models, or say what is known about one model."""
    from backgpt import builtin

    found = [builtin.describe(name) for name in ([model] if model else builtin.names())]
    if as_json:
        for one in found:
            show(json.dumps(_record(one), ensure_ascii=False))
    elif model:
        _print_details(found[0])
    elif found:
        _print_list(found)
    else:
        show("no built-in model is installed")


def _print_list(models: "list[ModelInfo]") -> None:
    for model in models:
        way = "both ways" if model.direction == "both" else model.direction
        show(
            f"{model.name}: {model.n_parameters / 1e6:.1f}M parameters, "
            f"{model.size_bytes / BYTES_IN_MB:.1f} MB, {way}, context {model.config.block_size:,}"
        )
        card = model.card
        losses = ", ".join(f"{loss.what} {loss.figure}" for loss in _losses(model))
        _print_wrapped("loss", losses or "not measured")
        _print_wrapped("licence", card.license if card else "not said")
        _print_wrapped("data", ", ".join(data.name for data in card.data) if card else "not said")
    show("\nloss: nats per token (bits per byte) on held-out texts; more: backgpt info NAME")


def _print_wrapped(name: str, value: str) -> None:
    """Print an indented line, as several where it is wider than the terminal."""
    width = max(shutil.get_terminal_size().columns, 2 * NAME_WIDTH)
    lines = textwrap.wrap(
        f"{name:<{NAME_WIDTH}}{value}",
        width - 2,
        subsequent_indent=" " * NAME_WIDTH,
        break_on_hyphens=False,
    )
    show(textwrap.indent("\n".join(lines), "  "))


def _print_details(model: "ModelInfo") -> None:
    config, card = model.config, model.card
    lines = [
        ("name", model.name),
        ("folder", str(model.folder)),
        ("parameters", f"{model.n_parameters:,}"),
        ("size", f"{model.size_bytes / BYTES_IN_MB:.1f} MB, weights as {model.storage}"),
        ("direction", f"{model.direction}, by {model.unit}"),
        ("hints", "opening, words, length" if model.hints else "none"),
        ("chat", "ask, rewind, reply" if model.chat else "no"),
        ("context", f"{config.block_size:,} ids of {config.vocab_size:,}"),
        ("shape", f"{config.n_layer} layers, {config.n_head} heads, width {config.n_embd}"),
    ]
    if card:
        trained = card.trained
        lines += [("description", card.description)]
        lines += [
            ("data", f"{data.name} ({data.license}) {data.attribution}") for data in card.data
        ]
        lines += [
            (
                "trained",
                f"{trained.tokens / 1e6:,.1f}M tokens on {trained.hardware}, {trained.date}",
            ),
            ("licence", card.license),
        ]
        lines += [("limit", limit) for limit in card.limits]
    lines += [("loss", f"{loss.what}, {loss.figure} on {loss.set}") for loss in _losses(model)]
    for key, value in lines:
        show(f"{key:<12} {value}".rstrip())


def _record(model: "ModelInfo") -> dict[str, Any]:
    return {
        "name": model.name,
        "folder": str(model.folder),
        "parameters": model.n_parameters,
        "size_bytes": model.size_bytes,
        "storage": model.storage,
        "direction": model.direction,
        "unit": model.unit,
        "hints": model.hints,
        "chat": model.chat,
        **asdict(model.config),
        "card": model.card.model_dump(mode="json") if model.card else None,
    }


def _losses(model: "ModelInfo") -> list[_Loss]:
    """Return the losses of the weights as they are stored, backward first.

    Those of a chat are of what it writes going backward, in each mode.
    """
    measures = model.card.measures if model.card else None
    found = [
        _Loss(loss.direction, _figure(loss.nats_per_token, loss.bits_per_byte), loss.set)
        for loss in (measures.losses if measures else ())
        if loss.storage == model.storage
    ]
    chat = model.card.chat_measures if model.card else None
    of_modes = [
        _Loss(loss.what, _figure(loss.nats_per_token, loss.bits_per_byte), chat.set)
        for loss in (chat.losses if chat else ())
        if chat and loss.direction == "backward" and loss.what != "whole"
    ]
    return sorted(found) + of_modes


def _figure(nats_per_token: float, bits_per_byte: float) -> str:
    return f"{nats_per_token:.3f} ({bits_per_byte:.3f})"
