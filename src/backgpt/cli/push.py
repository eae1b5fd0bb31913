"""`backgpt push`: a model to the Hugging Face hub."""

from typing import Annotated

from typer import Argument, Option

from backgpt.cli.given import WHICH_MODEL
from backgpt.cli.terminal import show


def push(
    model: Annotated[
        str,
        Argument(metavar="MODEL", help=f"What to push: {WHICH_MODEL}."),
    ],
    name: Annotated[
        str,
        Argument(metavar="OWNER/NAME", help="What it is to be called on the hub."),
    ],
    private: Annotated[
        bool, Option("--private", help="Only you, or your organization, may see it.")
    ] = False,
    branch: Annotated[
        str | None, Option(help="The branch to push to, made if it is not there; main if none.")
    ] = None,
    message: Annotated[str | None, Option(help="The message of the commit.")] = None,
) -> None:
    """Upload a model to the Hugging Face hub, in one commit, and print its address.

    Then --model OWNER/NAME and backgpt.load("OWNER/NAME") stand for it everywhere. The folder is
    uploaded as it is; int8 weights, as those of the built-in models, only backgpt reads: for other
    programs push what 'backgpt export' makes with --to hf, or --to onnx. Log in with 'hf auth
    login', or set HF_TOKEN.
    """
    from backgpt import hub
    from backgpt.builtin import find

    show(hub.push(find(model), name, private=private, branch=branch, message=message))
