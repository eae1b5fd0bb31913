"""`backgpt chat`: you answer, it asks; on a terminal line by line, in a pipe once."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from backgpt.cli.given import (
    WHICH_MODEL,
    Device,
    MinP,
    Temperature,
    TopK,
    TopP,
    open_model,
    sampling_from,
    standard_input,
    those_given,
)
from backgpt.cli.terminal import show, tell
from backgpt.cli.written import WRITES_AGAIN, print_texts
from backgpt.errors import UsageError
from backgpt.messages import as_transcript

if TYPE_CHECKING:
    from backgpt.api import Model
    from backgpt.generate import Text
    from backgpt.rewind import Transcript
    from backgpt.session import Session

CHAT_MODEL = "backchat"


def chat(
    model: Annotated[
        str | None,
        Option(help=f"What asks: {WHICH_MODEL}; {CHAT_MODEL} if none is given."),
    ] = None,
    load: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Go on with a chat that /save wrote: with its model and settings, but for those "
            "that are given.",
        ),
    ] = None,
    mode: Annotated[
        Literal["ask", "rewind", "reply"] | None,
        Option(
            help="ask: you answer, it asks. rewind: it writes the conversation that led to your "
            "message. reply: it answers, last word first. ask if none is given."
        ),
    ] = None,
    context: Annotated[str | None, Option(help="What the conversation is about.")] = None,
    turns: Annotated[
        int | None,
        Option(help="Most messages to write in the mode rewind; 3 if not given."),
    ] = None,
    num_samples: Annotated[
        int, Option("--num-samples", "-n", help="How many candidates, in a pipe.")
    ] = 1,
    max_new_tokens: Annotated[
        int | None, Option(help="Most tokens of a message; the context is the limit otherwise.")
    ] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Annotated[
        int | None, Option(help="The same seed writes the same messages; drawn if not given.")
    ] = None,
    as_json: Annotated[
        bool, Option("--json", help="In a pipe: one JSON object with the candidates.")
    ] = False,
    device: Device = "cpu",
) -> None:
    """Chat with a model that runs backward: you answer, it asks.

    On a terminal, type a message, or /help. In a pipe all of standard input is one message, and
    only the result is printed: echo "Paris." | backgpt chat
    """
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if (on_terminal or load is not None) and (as_json or num_samples != 1):
        raise UsageError("--json and --num-samples are for a pipe without --load: leave them out")
    settings = those_given(context=context, turns=turns, max_new_tokens=max_new_tokens, seed=seed)
    drawing = those_given(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    sampling = sampling_from(**drawing)
    if load is not None:
        session = _saved_session(load, model, device, drawing, those_given(mode=mode, **settings))
    elif on_terminal:
        from backgpt.session import Session

        settings |= {"name": model or CHAT_MODEL, "mode": mode or "ask", "sampling": sampling}
        session = Session(load_chat_model(model, device), **settings)
    else:
        _check_turns(turns, mode or "ask")
        settings |= {"n": num_samples, "sampling": sampling}
        _write_candidates(load_chat_model(model, device), mode or "ask", settings, as_json=as_json)
        return
    if on_terminal:
        from backgpt.cli.talking import talk

        talk(session)
    else:
        _check_turns(turns, session.mode)
        _say_once(session)


def load_chat_model(model: str | None, device: str) -> "Model":
    """Load `model`, or the built-in chat model if none is named. Raises UsageError without it.

    What a model that was never tuned on conversations will do is said on standard error.
    """
    from backgpt import builtin

    if model is None and CHAT_MODEL not in builtin.names():
        raise UsageError(f"there is no built-in model {CHAT_MODEL!r} here: name one with --model")
    loaded = open_model(model or CHAT_MODEL, engine=None, device=device)
    if not loaded.takes_chat:
        tell(
            f"backgpt: {model} was never tuned on conversations, so it will write what it was "
            f"trained on; the built-in chat model is {CHAT_MODEL}"
        )
    return loaded


def _check_turns(turns: int | None, mode: str) -> None:
    if turns is not None and mode != "rewind":
        raise UsageError(f"--turns is for --mode rewind: leave it out with {mode}")


def _saved_session(
    file: Path, model: str | None, device: str, drawing: dict[str, Any], settings: dict[str, Any]
) -> "Session":
    """Return the chat that was saved to `file`, with what is given in place of what was saved.

    A model that only the file names is not downloaded. Raises as `Session.load`, and UsageError.
    """
    from backgpt import builtin
    from backgpt.session import Session
    from backgpt.session_file import read_session

    name = model or read_session(file).model or CHAT_MODEL
    if model is None and name not in builtin.names() and not Path(name).exists():
        raise UsageError(f"{file} is a chat with {name}, which is not here: name it with --model")
    session = Session.load(file, load_chat_model(name, device))
    session.name = name
    session.sampling = replace(session.sampling, **drawing)
    for setting, value in settings.items():
        setattr(session, setting, value)
    return session


def _say_once(session: "Session") -> None:
    """Say what standard input holds, and print what is written; all else to standard error."""
    session.notice = lambda notice: tell(f"backgpt: {notice}")
    for _ in session.say(standard_input().strip()):
        pass
    messages = session.transcript
    if session.mode == "rewind":
        show(as_transcript(messages))
    else:
        show(messages[0 if session.mode == "ask" else -1].text)


def _write_candidates(
    model: "Model", mode: str, settings: dict[str, Any], *, as_json: bool
) -> None:
    """Write candidates for the message that standard input holds, and print only them.

    What its JSON says besides, that one was cut off and a seed that was drawn, goes to standard
    error.
    """
    ways: dict[str, Callable[..., Sequence[Text] | Sequence[Transcript]]] = {
        "ask": model.ask,
        "reply": model.reply,
        "rewind": model.rewind,
    }
    message = standard_input().strip()
    found = ways[mode](message, **settings)
    if not as_json:
        print_texts(({"text": _shown(one)} for one in found), as_json=False)
        if any(one.finish_reason == "length" for one in found):
            from backgpt.session import CUT_OFF, LEFT_OUT

            edge = "beginning" if model.direction == "backward" else "end"
            notice = LEFT_OUT if mode == "rewind" else CUT_OFF.format(edge)
            tell(f"backgpt: {notice}")
        if "seed" not in settings:
            tell(WRITES_AGAIN.format(found[0].seed))
        return
    context = settings.get("context", "")
    record = {"mode": mode, "message": message, "context": context, "seed": found[0].seed}
    record["candidates"] = [_candidate(one) for one in found]
    show(json.dumps(record, ensure_ascii=False))


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
