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
    sys.argv[0] = "backgpt"  # so that the usage it tells is that of a command there is
    main(["chat", *sys.argv[1:]])


if __name__ == "__main__":
    main()
