"""`python -m backgpt`, which is also what torchrun starts; and what the commands call."""

import sys
from typing import NoReturn

from backgpt.errors import EXIT_INTERRUPTED, was_interrupted


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line, interruptible from the first import on."""
    try:
        from backgpt import cli
    except BaseException as error:
        if not was_interrupted(error):
            raise
        print("backgpt: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    cli.main(arguments)


def backchat() -> NoReturn:
    """Run `backgpt chat`."""
    main(["chat", *sys.argv[1:]])


if __name__ == "__main__":
    main()
