"""Write docs/cli.md from the commands themselves; a test checks that it is up to date."""

from pathlib import Path

import typer
from typer.cli import get_docs_for_click
from typer.core import TyperGroup

from backgpt.cli import app
from backgpt.config import TrainConfig, to_toml

TARGET = Path(__file__).parent.parent / "docs" / "cli.md"


def reference() -> str:
    """Return the reference as Markdown."""
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    for one in command.commands.values():  # else the list cuts each after 45 characters
        one.short_help = " ".join((one.help or "").split("\n\n")[0].split())
    context = typer.Context(command, info_name="backgpt")
    text = get_docs_for_click(obj=command, ctx=context, name="backgpt", title="The command line")
    return f"{text.strip()}\n\n{_defaults()}"


def _defaults() -> str:
    settings = to_toml(TrainConfig(data=Path("data"), epochs=1.0))
    return (
        "## The settings of a run and their defaults\n\n"
        "`backgpt train --config FILE` reads these, and a run folder's `config.toml` is one. "
        "`data`, and either\n`epochs` or `max_steps`, have no default. The dimensions "
        "(`n_layer`, `n_head`, `n_kv_head`, `n_embd`,\n`block_size`, `intermediate_size`) "
        "come from the preset unless given; `init` is a model to begin from, whose shape is "
        "taken.\n\n"
        f"```toml\n{settings}```\n"
    )


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
