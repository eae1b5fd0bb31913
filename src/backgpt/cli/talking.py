"""The chat on a terminal: a prompt with history, commands, and text that grows leftward."""

import os
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import cast

from backgpt.chat import Mode
from backgpt.cli.growing import show_growing
from backgpt.cli.terminal import show, tell
from backgpt.errors import BackgptError, UsageError
from backgpt.messages import as_transcript
from backgpt.rewind import Piece
from backgpt.session import Session

PROMPT = "you> "
HELP = """\
/mode ask|rewind|reply  what is asked of the model
/retry                  the same again, with the next seed
/undo                   drop the last exchange
/save FILE              write the chat to a JSON file
/seed N                 draw with this seed from now on
/temperature T          below 1 safer, above 1 wilder
/context TEXT           begin a new conversation, about this or about nothing
//TEXT                  say a text that begins with /
/help                   this list
/quit                   the end, as Ctrl-D; Ctrl-C stops a message, or drops the line"""
WRITES = {"ask": "it asks", "reply": "it answers"}
"""What its messages are called in a mode where it has one role."""
DOES = {
    "ask": "you answer, it asks",
    "rewind": "you say how it ends, it writes what came before",
    "reply": "you ask, it answers, last word first",
}


def talk(session: Session) -> None:
    """Chat until the user ends it; first show the conversation that a saved session goes on with.

    Messages go to standard output, all else to standard error.
    """
    with suppress(ImportError):
        import readline  # noqa: F401  # from here on `input` has history and line editing

    chat = _Chat(session)
    tell(f"{session.mode}: {DOES[session.mode]}; seed {session.seed}; /help lists the commands")
    if len(session.talks) > 1:
        tell(f"the latest of {len(session.talks)} conversations:")
    if session.talks:
        show(as_transcript(session.transcript))
    while not chat.ended:
        try:
            line = input(PROMPT).strip()
        except EOFError:
            show()
            return
        except KeyboardInterrupt:  # as in a shell: it drops the line, not the chat
            tell("\nCtrl-D ends the chat")
            continue
        except UnicodeDecodeError:
            tell("this is not UTF-8: type it again")
            continue
        try:
            chat.take(line)
        except BackgptError as error:
            tell(str(error))
        except OSError as error:
            tell(f"{error.filename or 'file'}: {error.strerror or error}")


class _Chat:
    """What each line that is typed does to a session."""

    def __init__(self, session: Session) -> None:
        self.ended = False
        self._session = session
        self._notices: list[str] = []
        session.notice = self._notices.append
        self._commands: dict[str, Callable[[str], None]] = {
            "/mode": self._mode,
            "/retry": self._retry,
            "/undo": self._undo,
            "/save": self._save,
            "/seed": self._seed,
            "/temperature": self._temperature,
            "/context": self._context,
            "/help": lambda _: show(HELP),
            "/quit": self._quit,
        }
        self._without_argument = {"/retry", "/undo", "/help", "/quit"}

    def take(self, line: str) -> None:
        """Do what a line says. Raises BackgptError or OSError if that cannot be done."""
        if not line.startswith("/") or line.startswith("//"):
            if line:
                self._show(self._session.say(line.removeprefix("/")))
            return
        name, argument = (*line.split(maxsplit=1), "")[:2]
        command = self._commands.get(name)
        if command is None:
            raise UsageError(f"there is no command {name}: /help lists those there are")
        if argument and name in self._without_argument:
            raise UsageError(f"{name} takes nothing: leave out {argument.strip()!r}")
        command(argument.strip())

    def _show(self, pieces: Generator[Piece, None, None]) -> None:
        """Show messages as they grow; Ctrl-C stops them."""
        n_shown = 0
        try:
            with closing(pieces):
                for (_, role), message in groupby(pieces, lambda piece: (piece.turn, piece.role)):
                    texts = (piece.text for piece in message)
                    label = WRITES.get(self._session.mode, role)
                    show_growing(texts, leftward=True, label=f"{label}: ")
                    n_shown += 1
        except KeyboardInterrupt:
            tell("stopped; /retry tries again")
            return
        if self._session.mode == "rewind" and n_shown > 1:
            show(f"\n{as_transcript(self._session.transcript)}")
        while self._notices:
            tell(self._notices.pop(0))

    def _retry(self, _: str) -> None:
        self._show(self._session.retry())

    def _undo(self, _: str) -> None:
        self._session.undo()
        tell(f"{len(self._session.transcript)} messages are left of this conversation")

    def _mode(self, mode: str) -> None:
        self._session.mode = cast(Mode, mode)
        tell(f"{mode}: {DOES[mode]}")

    def _save(self, file: str) -> None:
        if not file:
            raise UsageError("/save needs the name of a file")
        self._session.save(Path(os.path.expanduser(file)))  # leaves `~nobody` as it is
        tell(f"saved to {file}")

    def _seed(self, seed: str) -> None:
        if not seed.isascii() or not seed.isdigit():
            raise UsageError(f"seed = {seed!r}: give a whole number, 0 or more")
        try:
            self._session.seed = int(seed)
        except ValueError:
            raise UsageError(
                f"seed = {seed[:12]}… has {len(seed):,} digits: give a number of fewer"
            ) from None
        tell(f"seed {self._session.seed}")

    def _temperature(self, temperature: str) -> None:
        try:
            value = float(temperature)
        except ValueError:
            raise UsageError(f"temperature = {temperature!r}: give a number") from None
        self._session.sampling = replace(self._session.sampling, temperature=value)
        tell(f"temperature {value:g}")

    def _context(self, context: str) -> None:
        self._session.begin(context)
        tell("a new conversation begins" + (", with this context" if context else ""))

    def _quit(self, _: str) -> None:
        self.ended = True
