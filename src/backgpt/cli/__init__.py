"""The command line: parse, call one function, print.

Standard output is the product, standard error everything else; in a pipe or a file both are UTF-8.
A failure is one line there and an exit code: 2 for a request that cannot be, 1 for one that failed,
130 and 143 for signals.
"""

import io
import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from backgpt import __version__
from backgpt.cli.arrow import arrow
from backgpt.cli.chat import chat
from backgpt.cli.eval import evaluate
from backgpt.cli.export import export
from backgpt.cli.import_ import import_
from backgpt.cli.info import info
from backgpt.cli.label import label
from backgpt.cli.prepare import prepare
from backgpt.cli.push import push
from backgpt.cli.sample import sample
from backgpt.cli.score import score
from backgpt.cli.serve import serve
from backgpt.cli.terminal import show, tell
from backgpt.cli.train import train
from backgpt.cli.unreverse import unreverse
from backgpt.errors import EXIT_FAILURE, EXIT_INTERRUPTED, BackgptError, printable, was_interrupted

UNEXPECTED = "Got unexpected extra argument(s) "
EXPECTED = {"sample": "--ending", "train": "--data", "serve": "--model"}
"""The option that a text without one was probably meant for."""

app = typer.Typer(
    name="backgpt",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command()(prepare)
app.command()(train)
app.command()(sample)
app.command()(chat)
app.command()(label)
app.command()(serve)
app.command()(score)
app.command("eval")(evaluate)
app.command()(arrow)
app.command()(export)
app.command()(unreverse)
app.command("import")(import_)
app.command()(push)
app.command()(info)


def _show_version(value: bool) -> None:
    if value:
        show(__version__)
        raise typer.Exit


@app.callback()
def backgpt(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Language models that predict the previous token.

    You give the ending, it finds the beginning.
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    _open_what_is_closed()
    _write_any_text()
    try:
        given = sys.argv[1:] if arguments is None else arguments
        code = app(given or ["--help"], standalone_mode=False)
        sys.stdout.flush()
    except BackgptError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        _let_go_of_output()
        sys.exit(EXIT_FAILURE)
    except MemoryError:
        _fail("out of memory: ask for less at a time, or take a smaller model", EXIT_FAILURE)
    except OSError as error:
        place = error.filename or "standard output or a file"
        _fail(f"{place}: {error.strerror or error}", EXIT_FAILURE)
    except Exception as error:
        if was_interrupted(error):
            _fail("interrupted", EXIT_INTERRUPTED)
        usage = _parser_error(error, given)
        if usage is None:
            raise
        _fail(*usage)
    if code == EXIT_INTERRUPTED:  # the parser caught it
        _fail("interrupted", EXIT_INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _open_what_is_closed() -> None:
    """Put the null device where a shell closed standard input or an output (`>&-`)."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _write_any_text() -> None:
    """Make both outputs take any text: as UTF-8, or on a terminal with "?" for what it lacks.

    Line ends stay the system's. What stands in for an output in a test stays as it is.
    """
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if stream.isatty():
            stream.reconfigure(errors="replace")
        else:
            # What is not text, in names of files, is escaped as JSON has it.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _parser_error(error: Any, given: list[str]) -> tuple[str, int] | None:
    """Return message and exit code of an error that the option parser raised, or None."""
    if not hasattr(error, "format_message") or not hasattr(error, "exit_code"):
        return None
    context = getattr(error, "ctx", None)
    if context is not None:
        command = context.info_name if context.parent else ""
    else:  # an option without its value: the parser says only that
        command = next((name for name in given[:1] if not name.startswith("-")), "")
    message = " ".join(error.format_message().split()).replace("Value error, ", "", 1)
    extra = message.removeprefix(UNEXPECTED)
    if extra != message and command in EXPECTED:
        what_to_do = f"try 'backgpt {command} {EXPECTED[command]} \"{extra[1:-1]}\"'"
    else:
        what_to_do = f"see '{' '.join(filter(None, ('backgpt', command)))} --help'"
    return f"{message.removesuffix('.')}: {what_to_do}", int(error.exit_code)


def _fail(message: str, code: int) -> NoReturn:
    tell(f"backgpt: {printable(message)}")
    _let_go_of_output()
    sys.exit(code)


def _let_go_of_output() -> None:
    """Write what standard output still holds, or drop it: ending, Python would fail at it again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
