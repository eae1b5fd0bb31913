"""`backgpt chat`: you answer, it asks; on a terminal line by line, in a pipe once."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from backgpt.cli.given import WHICH_MODEL, open_model, sampling_from, standard_input
from backgpt.errors import UsageError

if TYPE_CHECKING:
    from backgpt.api import Model
    from backgpt.generate import Text
    from backgpt.messages import Message
    from backgpt.rewind import Transcript

CHAT_MODEL = "backchat"
DEFAULT_TURNS = 3
SEPARATOR = "\n---\n"


def chat(
    model: Annotated[
        str | None,
        Option(help=f"What asks: {WHICH_MODEL}; {CHAT_MODEL} if none is given."),
    ] = None,
    mode: Annotated[
        Literal["ask", "rewind", "reply"],
        Option(
            help="ask: you answer, it asks. rewind: it writes the conversation that led to your "
            "message. reply: it answers, last word first."
        ),
    ] = "ask",
    context: Annotated[str, Option(help="What the conversation is about.")] = "",
    turns: Annotated[
        int | None,
        Option(help=f"Most messages to write in the mode rewind; {DEFAULT_TURNS} if not given."),
    ] = None,
    num_samples: Annotated[
        int, Option("--num-samples", "-n", help="How many candidates, in a pipe.")
    ] = 1,
    max_new_tokens: Annotated[
        int | None, Option(help="Most tokens of a message; the context is the limit otherwise.")
    ] = None,
    temperature: Annotated[float | None, Option(help="Below 1 safer, above 1 wilder.")] = None,
    top_k: Annotated[int | None, Option(help="Draw from the k likeliest tokens only.")] = None,
    top_p: Annotated[float | None, Option(help="Draw from the likeliest that reach p.")] = None,
    min_p: Annotated[
        float | None, Option(help="Draw from those at least p times as likely as the likeliest.")
    ] = None,
    seed: Annotated[int | None, Option(help="The same seed writes the same messages.")] = None,
    as_json: Annotated[
        bool, Option("--json", help="In a pipe: one JSON object with the candidates.")
    ] = False,
    device: Annotated[str, Option(help="cpu, cuda, or auto.")] = "cpu",
) -> None:
    """Chat with a model that runs backward: you answer, it asks.

    On a terminal, type a message, or /help. In a pipe all of standard input is one message, and
    only the result is printed: echo "Paris." | backgpt chat
    """
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if on_terminal and (as_json or num_samples != 1):
        raise UsageError("--json and --num-samples are for a pipe: leave them out on a terminal")
    if turns is not None and mode != "rewind" and not on_terminal:
        raise UsageError(f"--turns is for --mode rewind: leave it out with {mode}")
    turns = DEFAULT_TURNS if turns is None else turns
    sampling = sampling_from(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    loaded = load_chat_model(model, device)
    settings: dict[str, Any] = {
        "context": context,
        "sampling": sampling,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    if on_terminal:
        from backgpt.cli.talking import talk
        from backgpt.session import Session

        talk(Session(loaded, name=model or CHAT_MODEL, mode=mode, turns=turns, **settings))
        return
    message = standard_input().strip()
    found: Sequence[Text] | Sequence[Transcript]
    if mode == "rewind":
        found = loaded.rewind(message, turns=turns, n=num_samples, **settings)
    else:
        found = {"ask": loaded.ask, "reply": loaded.reply}[mode](message, n=num_samples, **settings)
    if as_json:
        record = {"mode": mode, "message": message, "context": context, "seed": found[0].seed}
        record["candidates"] = [_candidate(one) for one in found]
        print(json.dumps(record, ensure_ascii=False))
    else:
        print(SEPARATOR.join(_shown(one) for one in found))


def load_chat_model(model: str | None, device: str) -> "Model":
    """Load `model`, or the built-in chat model if none is named. Raises UsageError without it.

    What a model that was never tuned on conversations will do is said on standard error.
    """
    from backgpt import builtin

    if model is None and CHAT_MODEL not in builtin.names():
        raise UsageError(f"there is no built-in model {CHAT_MODEL!r} here: name one with --model")
    loaded = open_model(model or CHAT_MODEL, engine=None, device=device)
    if not loaded.takes_chat:
        print(
            f"backgpt: {model} was never tuned on conversations, so it will write what it was "
            f"trained on; the built-in chat model is {CHAT_MODEL}",
            file=sys.stderr,
        )
    return loaded


def as_transcript(messages: "Sequence[Message]") -> str:
    """Return messages as text, each behind the name of who says it."""
    return "\n\n".join(f"{message.role}: {message.text}" for message in messages)


def _shown(found: "Text | Transcript") -> str:
    from backgpt.generate import Text

    return found.text if isinstance(found, Text) else as_transcript(found.messages)


def _candidate(found: "Text | Transcript") -> dict[str, Any]:
    from backgpt.generate import Text

    if isinstance(found, Text):
        written: dict[str, Any] = {"text": found.text, "n_tokens": found.n_tokens}
    else:
        messages = [{"role": one.role, "content": one.text} for one in found.messages]
        written = {"messages": messages, "seed": found.seed}
    return {**written, "finish_reason": found.finish_reason, "logprob": found.logprob}
