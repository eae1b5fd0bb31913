"""`backgpt unreverse`: a filter from what another runtime wrote to text."""

import json
import sys
from typing import Annotated, Literal

from typer import Option

from backgpt.cli.given import WHICH_MODEL
from backgpt.cli.terminal import show
from backgpt.errors import DataError


def unreverse(
    model: Annotated[
        str | None,
        Option(
            help=f"The model that wrote it, for its tokenizer and order: {WHICH_MODEL}; stories if "
            "none is given."
        ),
    ] = None,
    direction: Annotated[
        Literal["backward", "forward"] | None,
        Option(
            help="Which way a model trained both ways wrote, if the ids do not begin with the one "
            "that says it; backward if none is given."
        ),
    ] = None,
    given: Annotated[
        str,
        Option(help="The ending it was given (forward: the opening), if the ids do not hold it."),
    ] = "",
    controls: Annotated[
        bool, Option("--controls", help="Keep control ids and hints, and show control ids by name.")
    ] = False,
    as_json: Annotated[
        bool, Option("--json", help="One JSON string a line, for texts of several lines.")
    ] = False,
) -> None:
    """Turn what another program wrote, in model order, into text.

    Reads lines from standard input, each a text: ids, a JSON array of ids or of token strings, or
    a JSON object with such an array as "tokens". Token strings are names (Ġend, as transformers
    has them) or pieces of text. Control ids are left out, and what they separate stands on
    lines of its own.

    $ echo "2 29 871 295 1" | backgpt unreverse  # prints: The end.

    $ echo '[".", "Ġcat", "ĠA"]' | backgpt unreverse --given "The end."  # A cat. The end.
    """
    from backgpt.unreverse import items_of, unreverser

    turned = unreverser(model, direction=direction)
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            items = items_of(line.decode("utf-8"))
            text = turned.text(items, given=given, controls=controls) if items else None
        except UnicodeDecodeError:
            raise DataError(f"standard input, line {number}: not UTF-8: convert it") from None
        except DataError as error:
            raise DataError(f"standard input, line {number}: {error}") from None
        if text is not None:
            told = json.dumps(text, ensure_ascii=False) if as_json else text
            show(told)
