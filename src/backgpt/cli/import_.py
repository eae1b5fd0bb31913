"""`backgpt import`: a model from elsewhere becomes a model folder of this project."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from backgpt.cli.terminal import show


def import_(
    source: Annotated[
        Path,
        Argument(
            metavar="SOURCE",
            help="A checkpoint of smolGPT or of the original backgpt (ckpt.pt), or a Hugging Face "
            "folder in the shape of Llama, Mistral, Qwen 2 or Qwen 3.",
        ),
    ],
    out: Annotated[Path, Option(help="The model folder to write; it must not be there yet.")],
    direction: Annotated[
        Literal["backward", "forward"] | None,
        Option(help="Which token the model predicts: the previous or the next one."),
    ] = None,
    reversed_words: Annotated[
        bool,
        Option(
            "--reversed-words",
            help="It was trained on texts whose words were reversed, as the original backgpt.",
        ),
    ] = False,
    tokenizer: Annotated[
        Path | None,
        Option(
            help="Its tokenizer: tok4096.model or another of SentencePiece's, or tokenizer.json; "
            "if none is given the one that lies beside the model."
        ),
    ] = None,
    first: Annotated[
        str | None,
        Option(
            help="The control token that the model reads first, or none; otherwise what its "
            "tokenizer puts in front of a text."
        ),
    ] = None,
    stop: Annotated[
        str | None,
        Option(
            help="The control token that it ends a text with, or none; otherwise what its "
            "configuration says."
        ),
    ] = None,
) -> None:
    """Make a model from elsewhere one that the other commands load.

    Nothing in such a model says which way it runs: say --direction, or --reversed-words. A pickle
    is read without running the code that it may contain; a folder's own code is never run.
    """
    from backgpt.convert import import_model

    made = import_model(
        source,
        out,
        direction=direction,
        reversed_words=reversed_words,
        tokenizer=tokenizer,
        first=first,
        stop=stop,
    )
    runs = {
        "qwen3": "our own engines run it, and training can go on from it",
        "smolgpt": "torch runs it (extra 'train')",
        "transformers": "transformers runs it (extra 'hf')",
    }[made.family]
    unit = "of reversed words" if made.unit == "text" else "by token"
    show(
        f"{made.out}: a {made.direction} model {unit}, {made.n_parameters:,} parameters; it reads "
        f"{made.first or 'no marker'} first and ends with {made.stop or 'none'}; {runs}"
    )
