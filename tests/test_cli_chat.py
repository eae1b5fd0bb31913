"""The chat as a user meets it: a real terminal, pipes, and what is refused."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import backgpt
from backgpt.chat import Mode
from backgpt.cli.talking import talk
from backgpt.config import TrainConfig
from backgpt.messages import as_transcript
from backgpt.model_folder import read_model, save_model
from backgpt.sampling import Sampling
from backgpt.session import CUT_OFF, Session
from backgpt.train import train

pty = pytest.importorskip("pty")

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "60",
    "NO_COLOR": "1",
    "TERM": "xterm",
}
COMMAND = [sys.executable, "-m", "backgpt", "chat"]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Silent:
    def started(self, *, first_step: int, max_steps: int) -> None: ...
    def stepped(self, record: object) -> None: ...
    def notice(self, text: str) -> None: ...


@pytest.fixture(scope="module")
def run(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model that has seen next to nothing, with a context in which it can write for long."""
    folder = tmp_path_factory.mktemp("chat")
    out = folder / "run"
    shape = {"n_layer": 2, "n_head": 1, "n_embd": 64, "block_size": 4096, "intermediate_size": 96}
    settings = {"data": dataset_path, "out": out, "max_steps": 2, "batch_size": 1, "compile": "off"}
    train(TrainConfig.model_validate({**settings, **shape}), report=Silent())
    save_model(replace(read_model(out), chat=True), folder / "model")
    return folder / "model"


def in_a_pipe(*arguments: Any, text: str = "The dog.\n") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
        check=False,
    )


class Terminal:
    """A chat on a terminal of its own: what is typed, what is seen."""

    def __init__(self, *arguments: Any) -> None:
        self.pid, self.file = pty.fork()
        if not self.pid:
            # Where the tests run in the background Ctrl-C is ignored, and that is inherited.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            command = [*COMMAND, *map(str, arguments)]
            os.execve(command[0], command, ENVIRONMENT)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.file, text.encode())

    def until(self, wanted: str, *, within: float = 60.0) -> str:
        """Return what is seen up to `wanted`, which must come."""
        deadline = time.monotonic() + within
        while wanted not in (plain := ESCAPES.sub("", self.seen)):
            left = deadline - time.monotonic()
            assert left > 0, f"{wanted!r} did not come; seen: {plain!r}"
            if select.select([self.file], [], [], left)[0]:
                try:
                    self.seen += os.read(self.file, 65536).decode("utf-8", errors="replace")
                except OSError:  # the other side has closed
                    assert wanted in ESCAPES.sub("", self.seen), self.seen
        before, _, self.seen = plain.partition(wanted)
        return before

    def say(self, text: str, wanted: str = "you> ") -> str:
        """Type a line; return what is seen until the next prompt, without the line itself."""
        self.type(f"{text}\r")
        self.until(text)
        return self.until(wanted).strip()

    def interrupt_input(self) -> None:
        """Press Ctrl-C at the prompt, which is seen a moment before anything listens."""
        time.sleep(0.5)
        self.type("\x03")

    def exit_code(self, *, within: float = 60.0) -> int:
        """Wait for the end of the process."""
        deadline = time.monotonic() + within
        while select.select([self.file], [], [], max(deadline - time.monotonic(), 0))[0]:
            try:
                if not os.read(self.file, 65536):
                    break
            except OSError:
                break
        else:
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def terminal(run: Path) -> Iterator[Terminal]:
    opened = Terminal("--model", run, "--max-new-tokens=6", "--seed=4")
    yield opened
    os.close(opened.file)


def test_a_chat_on_a_terminal(terminal: Terminal, run: Path, tmp_path: Path) -> None:
    assert "you answer, it asks; seed 4" in terminal.until("you> ")
    session = Session(backgpt.load(run), max_new_tokens=6, seed=4)
    first = terminal.say("The dog.")
    list(session.say("The dog."))
    question = session.transcript[0].text
    assert flat(f"it asks: {escaped(question)}") in flat(first)

    terminal.say("/retry")
    list(session.retry())
    assert "seed 9" in terminal.say("/seed 9")
    session.seed = 9
    list(session.say("Because."))
    assert flat(escaped(session.transcript[0].text)) in flat(terminal.say("Because."))
    saved = tmp_path / "chat.json"
    assert terminal.say(f"/save {saved}").endswith("saved to " + str(saved))
    loaded = Session.load(saved, session.model)
    assert loaded.transcript == session.transcript
    assert loaded.name == str(run)

    assert "2 messages are left" in terminal.say("/undo")
    assert "temperature 0.5" in terminal.say("/temperature 0.5")
    assert "a new conversation" in terminal.say("/context It rained.")
    assert "what came before" in terminal.say("/mode rewind")
    assert "/undo" in terminal.say("/help")
    for line, reason in [
        ("/dance", "no command /dance"),
        ("/mode sideways", "mode = 'sideways'"),
        ("/seed x", "seed = 'x'"),
        ("/temperature hot", "temperature = 'hot'"),
        ("/temperature 0", "temperature = 0"),
        ("/save", "name of a file"),
        ("/save /no/such/folder/chat.json", "there is no folder /no/such/folder"),
        ("/undo now", "takes nothing"),
    ]:
        answer = terminal.say(line)
        assert reason in answer
        assert "\n" not in answer
    terminal.say("/quit", "\n")
    assert terminal.exit_code() == 0


def test_what_python_itself_refuses_does_not_end_a_chat(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = iter([f"/seed {'9' * 5000}", "/save ~no-such-user/chat.json", "/seed 7", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    talk(Session(backgpt.load(run), seed=4))
    _, digits, nobody, seed = capsys.readouterr().err.splitlines()
    assert digits == "seed = 999999999999… has 5,000 digits: give a number of fewer"
    assert nobody == "there is no folder ~no-such-user: make it, or name another file"
    assert seed == "seed 7"


def escaped(text: str) -> str:
    """Return what a terminal shows of a text with control characters."""
    controls = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
    return controls.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def flat(text: str) -> str:
    """Return text without white space and control characters, which a terminal moves."""
    return "".join(one for one in text if one.isprintable() and not one.isspace())


def test_ctrl_c_stops_a_message_and_at_the_prompt_drops_the_line() -> None:
    terminal = Terminal("--model=stories", "--seed=4")  # knows no end of a message: 1,024 ids
    terminal.until("you> ")
    terminal.type("The dog.\r")
    terminal.until("The dog.")
    terminal.until(".")  # of what it writes
    terminal.type("\x03")
    assert "Traceback" not in terminal.until("stopped; /retry tries again")
    terminal.until("you> ")
    assert "say something first" in terminal.say("/undo")
    terminal.type("half a line")
    terminal.interrupt_input()
    terminal.until("Ctrl-D ends the chat")
    terminal.until("you> ")
    assert "say something first" in terminal.say("/undo")
    terminal.type("\x04")
    assert terminal.exit_code() == 0
    os.close(terminal.file)


def test_ctrl_d_ends_and_history_brings_a_line_back(terminal: Terminal) -> None:
    pytest.importorskip("readline")
    terminal.until("you> ")
    terminal.say("/seed 77")
    terminal.type("\x1b[A\r")  # the arrow up
    assert "seed 77" in terminal.until("you> ").replace("/seed 77", "")
    terminal.type("\x04")
    assert terminal.exit_code() == 0


@pytest.mark.parametrize("mode", ["ask", "reply"])
def test_a_pipe_is_one_message_and_only_the_result_is_printed(run: Path, mode: str) -> None:
    options = ["--model", run, "--mode", mode, "--seed=2", "--max-new-tokens=8"]
    done = in_a_pipe(*options, "--context=It rained.", text="The dog.\nIt ran.\n")
    [text] = getattr(backgpt.load(run), mode)(
        "The dog.\nIt ran.", context="It rained.", seed=2, max_new_tokens=8
    )
    assert (done.returncode, done.stdout) == (0, text.text + "\n")
    cut_off = f"backgpt: {CUT_OFF.format('beginning')}\n"
    assert done.stderr == (cut_off if text.finish_reason == "length" else "")


@pytest.mark.parametrize("mode", ["ask", "rewind"])
def test_in_a_pipe_a_seed_that_was_drawn_is_told_and_writes_the_same_again(
    run: Path, mode: str
) -> None:
    options = ["--model", run, "--mode", mode, "--max-new-tokens=6", "-n", "2"]
    done = in_a_pipe(*options)
    *_, last = done.stderr.splitlines()
    found = re.fullmatch(r"backgpt: --seed (\d+) writes this again", last)
    assert found is not None
    again = in_a_pipe(*options, "--seed", found[1])
    assert again.stdout == done.stdout
    assert "writes this again" not in again.stderr


def test_a_rewound_conversation_is_a_transcript_with_roles(run: Path) -> None:
    done = in_a_pipe("--model", run, "--mode=rewind", "--max-new-tokens=6", "--seed=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("assistant: The dog.\n")
    assert "longer than max-new-tokens or the context allows: it is left out" in done.stderr


def test_json_has_candidates_their_log_probabilities_and_the_seed(run: Path) -> None:
    options = ["--model", run, "--json", "--max-new-tokens=6", "-n", "3"]
    sampling = ["--temperature=1.1", "--top-k=40", "--top-p=0.9", "--min-p=0.01"]
    record = json.loads(in_a_pipe(*options, *sampling).stdout)
    assert record["message"] == "The dog."
    assert record["mode"] == "ask"
    again = backgpt.load(run).ask(
        "The dog.",
        n=3,
        max_new_tokens=6,
        sampling=Sampling(temperature=1.1, top_k=40, top_p=0.9, min_p=0.01),
        seed=record["seed"],
    )
    assert [(one["text"], one["logprob"]) for one in record["candidates"]] == [
        (text.text, pytest.approx(text.logprob)) for text in again
    ]
    rewound = json.loads(in_a_pipe(*options, "--mode=rewind", "--turns=2", "--seed=5").stdout)
    assert rewound["seed"] == 5
    for candidate in rewound["candidates"]:
        assert candidate["messages"][-1] == {"role": "assistant", "content": "The dog."}
        assert set(candidate) == {"messages", "seed", "finish_reason", "logprob"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "text", "reason"),
    [
        ([], " \n", "standard input is empty: give a text"),
        (["--mode=reply"], " \n", "standard input is empty"),
        (["--mode=sideways"], "x", "sideways"),
        (["--turns=2"], "x", "--turns is for --mode rewind"),
        (["--mode=rewind", "--turns=0"], "x", "turns = 0"),
        (["--temperature=0"], "x", "temperature = 0"),
        (["--seed=-1"], "x", "seed = -1"),
        (["--num-samples=0"], "x", "n = 0"),
    ],
)
def test_a_bad_request_is_one_line_and_exit_code_2(
    run: Path, flags: list[str], text: str, reason: str
) -> None:
    done = in_a_pipe("--model", run, *flags, text=text)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def saved(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with two chats, as /save writes it."""
    session = Session(backgpt.load(run), name=str(run), max_new_tokens=6, seed=4)
    list(session.say("It rained."))
    session.context = "A dog."
    list(session.say("The dog."))
    path = tmp_path_factory.mktemp("saved") / "chat.json"
    session.save(path)
    return path


def test_a_saved_chat_is_shown_and_goes_on_where_it_was(
    run: Path, saved: Path, tmp_path: Path
) -> None:
    session = Session.load(saved, backgpt.load(run))
    terminal = Terminal("--load", saved, "--seed=8")
    shown = terminal.until("you> ")
    assert "ask: you answer, it asks; seed 8" in shown
    assert "the latest of 2 conversations" in shown
    assert flat(as_transcript(session.transcript)) in flat(shown)
    session.seed = 8
    list(session.say("Because."))
    assert flat(escaped(session.transcript[0].text)) in flat(terminal.say("Because."))
    terminal.say(f"/save {tmp_path / 'again.json'}")
    terminal.type("\x04")
    assert terminal.exit_code() == 0
    os.close(terminal.file)
    again = Session.load(tmp_path / "again.json", session.model)
    assert [talk.ids.tolist() for talk in again.talks] == [t.ids.tolist() for t in session.talks]
    assert again.name == str(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "mode"), [([], "ask"), (["--mode=rewind"], "rewind"), (["--mode=reply"], "reply")]
)
def test_in_a_pipe_a_saved_chat_goes_on_by_one_message(
    run: Path, saved: Path, flags: list[str], mode: Mode
) -> None:
    before = saved.read_bytes()
    session = Session.load(saved, backgpt.load(run))
    session.mode, session.sampling = mode, replace(session.sampling, temperature=1.5)
    list(session.say("Because."))
    done = in_a_pipe("--load", saved, *flags, "--temperature=1.5", text="Because.\n")
    shown = session.transcript
    told = {"ask": shown[0].text, "reply": shown[-1].text, "rewind": as_transcript(shown)}
    assert (done.returncode, done.stdout) == (0, told[mode] + "\n"), done.stderr
    assert saved.read_bytes() == before
    if mode == "ask":
        assert shown[2:] == Session.load(saved, session.model).transcript


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "code", "reason"),
    [
        (["--load={saved}.none"], 2, "cannot read"),
        (["--load={damaged}"], 2, "not valid JSON"),
        (["--load={cold}"], 1, "temperature = 0"),
        (["--load={saved}", "--model=backchat"], 2, "another tokenizer or unit: load its model, "),
        (["--load={lost}"], 2, "a chat with runs/lost, which is not here: name it with --model"),
        (["--load={saved}", "--json"], 2, "a pipe without --load"),
        (["--load={saved}", "--turns=2"], 2, "--turns is for --mode rewind: leave it out with ask"),
        (["--load={saved}", "--seed=-1"], 2, "seed = -1"),
    ],
)
def test_a_chat_that_cannot_be_gone_on_with_is_one_line(
    saved: Path, tmp_path: Path, flags: list[str], code: int, reason: str
) -> None:
    text = saved.read_text()
    files = {name: tmp_path / f"{name}.json" for name in ("damaged", "cold", "lost")}
    files["damaged"].write_text(text[:-20])
    files["cold"].write_text(text.replace('"temperature": 0.8', '"temperature": 0'))
    files["lost"].write_text(json.dumps({**json.loads(text), "model": "runs/lost"}))
    done = in_a_pipe(*(flag.format(saved=saved, **files) for flag in flags))
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_the_built_in_model_one_line_says_to_name_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from backgpt import builtin
    from backgpt.cli.chat import load_chat_model
    from backgpt.errors import UsageError

    monkeypatch.setattr(builtin, "MODELS", tmp_path)
    with pytest.raises(UsageError, match="no built-in model 'backchat' here: name one with --mod"):
        load_chat_model(None, "cpu")


def test_what_a_model_without_conversations_will_do_is_said(run: Path) -> None:
    done = in_a_pipe("--model", run.parent / "run", "--seed=1", "--max-new-tokens=4")
    told, cut_off = done.stderr.splitlines()
    assert "was never tuned on conversations" in told
    assert "its beginning is missing" in cut_off


def test_backchat_is_the_chat(run: Path) -> None:
    scripts = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert scripts["project"]["scripts"]["backchat"] == "backgpt.__main__:backchat"
    options = ["--model", str(run), "--seed=2", "--max-new-tokens=8"]
    done = subprocess.run(
        [sys.executable, "-c", "from backgpt.__main__ import backchat; backchat()", *options],
        input="The dog.",
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.stdout == in_a_pipe(*options).stdout != ""
