"""The page in Chromium: before a stand-in whose answers are written out, and the real server."""

import json
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import backgpt

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the tests of the page need playwright"
)
expect = sync_api.expect

PAGE = Path(backgpt.__file__).parent / "server" / "page"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync", "--no-first-run"]
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
XSS = '<img src=x onerror="hacked=1"></script><script>hacked=1</script>\'"><svg/onload=hacked=1>'
SHEETS = "#desk .sheet:not(#editor)"
WORDS = f"{SHEETS} .word"
PATIENCE_MS = 30_000  # for a machine that is busy with other things
GATE_SECONDS = 30.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]


@dataclass
class Answer:
    """One answer of the stand-in: JSON, or, with `events`, a stream.

    An event that is a `threading.Event` is waited for; None breaks the connection. `after` is
    waited for before anything is sent.
    """

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    events: list[Any] | None = None
    after: threading.Event | None = None


class Scripted(ThreadingHTTPServer):
    """A server whose answers are written out, one list for each path; the last one stays."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.client_left = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error."""

    def bodies(self, path: str) -> list[Any]:
        return [body for wanted, _, body in self.requests if wanted == path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        if self.path in self.server.answers:
            self.send(self.next_answer())
            return
        file = PAGE / (self.path.removeprefix("/static/") if self.path != "/" else "index.html")
        if not file.is_file():
            self.send(Answer(status=404))
            return
        self.send_bytes(
            file.read_bytes(), TYPES[file.suffix], headers={"Cache-Control": "max-age=60"}
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), body))
        self.send(self.next_answer())

    def next_answer(self) -> Answer:
        answers = self.server.answers[self.path]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def send(self, answer: Answer) -> None:
        if answer.after:
            answer.after.wait(GATE_SECONDS)
        if answer.events is None:
            data = json.dumps(answer.body).encode()
            with suppress(OSError):
                self.send_bytes(data, "application/json", answer.status, answer.headers)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        for event in answer.events:
            if event is None:
                return
            if isinstance(event, threading.Event):
                event.wait(GATE_SECONDS)
                continue
            data = f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
            try:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()
            except OSError:
                self.server.client_left.set()
                return
        with suppress(OSError):
            self.wfile.write(b"0\r\n\r\n")

    def send_bytes(
        self, data: bytes, type_: str, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        sent = {"Content-Type": type_, "Content-Length": str(len(data)), **(headers or {})}
        for name, value in {**sent, "Content-Security-Policy": CONTENT_SECURITY_POLICY}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def models(*, hints: bool = True, chat: bool = True, name: str = "tiny") -> Answer:
    abilities = {"directions": ["backward", "forward"], "hints": hints, "chat": chat}
    return Answer({"object": "list", "data": [{"id": name, "backgpt": abilities}]})


def written(
    *pieces: str,
    finish: str = "stop",
    index: int = 0,
    obeyed: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Return the events of a story in the order in which it is written."""
    chunks: list[Any] = [{"index": index, "text": piece, "finish_reason": None} for piece in pieces]
    last = {"index": index, "text": "", "finish_reason": finish, "backgpt": {"obeyed": obeyed}}
    return [{"choices": [chunk]} for chunk in [*chunks, last]]


def story(*pieces: str, finish: str = "stop", obeyed: Mapping[str, Any] | None = None) -> Answer:
    return Answer(events=[*written(*pieces, finish=finish, obeyed=obeyed), "[DONE]"])


def said(*pieces: str, turn: int = 0, role: str = "user", index: int = 0) -> list[Any]:
    """Return the events of one message."""
    where = {"turn": turn, "role": role}
    deltas: list[Any] = [{"content": piece} for piece in pieces]
    if turn == 0:
        deltas.insert(0, {"role": "assistant", "content": ""})
    return [{"choices": [{"index": index, "delta": delta, "backgpt": where}]} for delta in deltas]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        context = launched.new_context(
            viewport={"width": 1000, "height": 1000}, reduced_motion="reduce"
        )
        context.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        yield context
        launched.close()


@pytest.fixture(scope="module")
def stand_in() -> Iterator[Scripted]:
    scripted = Scripted()
    thread = threading.Thread(target=partial(scripted.serve_forever, poll_interval=0.02))
    thread.start()
    yield scripted
    scripted.shutdown()
    thread.join()
    scripted.server_close()


@pytest.fixture
def server(stand_in: Scripted) -> Scripted:
    stand_in.answers = {"/v1/models": [models()]}
    stand_in.requests = []
    stand_in.client_left.clear()
    return stand_in


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open an address, after a script; at the end none may have failed, and no policy be broken."""
    problems: list[str] = []
    pages = []

    def note(message: Any) -> None:
        # The browser itself logs every answer of 400 and above and every broken connection.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            problems.append(message.text)

    def go(address: str, first: str = "") -> Any:
        page = browser.new_page()
        page.add_init_script(first)
        pages.append(page)
        page.on("console", note)
        page.on("pageerror", lambda error: problems.append(str(error)))
        with page.expect_response("**/v1/models"):
            page.goto(address)
        return page

    yield go
    browser.set_offline(False)
    for page in pages:
        page.close()
    assert problems == []


def sheet_text(page: Any, number: int = 0) -> str:
    text: str = page.locator(f"{SHEETS} .lines").nth(number).text_content()
    return text


def write(page: Any, ending: str | None = None) -> None:
    """Press Write and wait until it is done."""
    if ending is not None:
        page.fill("#ending", ending)
    page.click("#write")
    settled(page)


def settled(page: Any) -> None:
    page.locator("#write").wait_for()


def choose(page: Any, field_name: str, value: str) -> None:
    page.locator(f"#settings [name={field_name}][value='{value}']").check(force=True)


def test_pieces_join_to_the_text_whatever_they_are(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    pieces = [" the", "\n", "ce 👩‍👩‍👧", "On", "\n\n", "שלום עולם", "  two  spaces ", "\u2028x"]
    server.answers["/v1/completions"] = [story(*pieces)]
    page = visit(server.address)
    write(page, " end.\n")
    assert sheet_text(page) == "".join(reversed(pieces)) + " end.\n"
    [body] = server.bodies("/v1/completions")
    assert body["suffix"] == " end.\n"
    assert body["stream_options"] == {"order": "prepend"}


def test_what_stands_on_the_sheet_stays_where_it_is(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    gate = threading.Event()
    words = [f"word{number} " for number in range(60)]
    events = written(*words)
    server.answers["/v1/completions"] = [
        Answer(events=[*events[:30], gate, *events[30:], "[DONE]"])
    ]
    page = visit(server.address)
    page.fill("#ending", "the end.")
    page.click("#write")
    expect(page.locator(WORDS)).to_have_count(32)
    lines = page.locator(f"{SHEETS} .line")
    before = [lines.nth(number).bounding_box() for number in range(1, lines.count())]
    gate.set()
    settled(page)
    count = lines.count()
    after = [lines.nth(number).bounding_box() for number in range(count - len(before), count)]
    assert len(before) > 2
    assert count > len(before) + 2
    assert after == before
    assert page.locator(f"{SHEETS} .line").last.text_content().endswith("the end.")


def test_of_several_beginnings_one_is_kept_and_undo_brings_the_others_back(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    events = [event for i in range(3) for event in written(" fox.", f"A{i}", index=i)]
    server.answers["/v1/completions"] = [Answer(events=[*events, "[DONE]"])]
    page = visit(server.address)
    choose(page, "n", "3")
    write(page, " The end.")
    assert [sheet_text(page, i) for i in range(3)] == [f"A{i} fox. The end." for i in range(3)]
    page.get_by_role("button", name="Keep this one").nth(1).click()
    expect(page.locator(SHEETS)).to_have_count(1)
    assert sheet_text(page) == "A1 fox. The end."
    page.keyboard.press("Control+z")
    expect(page.locator(SHEETS)).to_have_count(3)
    page.keyboard.press("Control+Shift+z")
    expect(page.locator(SHEETS)).to_have_count(1)
    assert sheet_text(page) == "A1 fox. The end."


def test_everything_before_a_word_is_written_again(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [story(" red fox.", "A"), story("B tiny ")]
    server.answers["/v1/alternatives"] = [Answer({"data": []})]
    page = visit(server.address)
    write(page, " The end.")
    page.locator(WORDS, has_text="fox.").click()
    page.get_by_role("button", name="Write everything before it again").click()
    settled(page)
    assert server.bodies("/v1/completions")[1]["suffix"] == "fox. The end."
    assert sheet_text(page) == "B tiny fox. The end."
    assert page.locator(f"{WORDS}.given").all_text_contents() == ["The", "end."]
    page.click("#undo")
    assert sheet_text(page) == "A red fox. The end."
    page.click("#redo")
    assert sheet_text(page) == "B tiny fox. The end."


ALTERNATIVES = [
    {"text": " red", "logprob": -1.0, "probability": 0.37},
    {"text": " tiny", "logprob": -2.0, "probability": 0.14},
    {"text": "", "logprob": -8.0, "probability": 0.0003, "edge": True},
]


def test_another_word_is_taken_by_keyboard_and_the_menu_gives_the_focus_back(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [story(" red  fox.", "A"), story("Two ")]
    server.answers["/v1/alternatives"] = [Answer({"data": ALTERNATIVES})]
    page = visit(server.address)
    write(page, " The end.")
    page.locator(WORDS).first.focus()
    page.keyboard.press("ArrowRight")
    menu = page.locator("#menu")
    word = page.locator(WORDS, has_text="red")
    for close in ("Escape", None):
        page.keyboard.press("Enter")
        expect(menu.locator("li button")).to_have_count(3)
        if close:
            page.keyboard.press(close)
            expect(menu).to_be_hidden()
            expect(word).to_be_focused()
    assert server.bodies("/v1/alternatives")[0]["suffix"] == "  fox. The end."
    rows = [" ".join(row.split()) for row in menu.locator("li").all_inner_texts()]
    assert rows == ["red 37.0 %", "tiny 14.0 %", "the text begins here < 0.1 %"]
    expect(menu.locator("[aria-current]")).to_have_text(re.compile("red"))
    expect(page.get_by_role("button", name="Write everything before it again")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    settled(page)
    assert server.bodies("/v1/completions")[1]["suffix"] == "tiny  fox. The end."
    assert sheet_text(page) == "Two tiny  fox. The end."


def test_a_text_can_begin_at_a_word_and_with_a_word_of_ones_own(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [story(" red fox.", "A"), story("One ")]
    server.answers["/v1/alternatives"] = [Answer({"data": ALTERNATIVES})]
    page = visit(server.address)
    write(page, " The end.")
    page.locator(WORDS, has_text="red").click()
    page.get_by_role("button", name="the text begins here").click()
    assert sheet_text(page) == "fox. The end."
    page.locator(WORDS, has_text="The").click()
    page.fill("#menu-word", " Their ")
    page.keyboard.press("Enter")
    settled(page)
    assert server.bodies("/v1/completions")[1]["suffix"] == "Their end."
    assert sheet_text(page) == "One Their end."


def test_an_edited_ending_can_be_undone(server: Scripted, visit: Callable[[str], Any]) -> None:
    server.answers["/v1/completions"] = [story("A fox.")]
    page = visit(server.address)
    write(page, " The end.")
    page.click("#edit")
    page.fill("#ending", " No end.")
    page.keyboard.press("Escape")
    assert sheet_text(page) == "A fox. No end."
    page.keyboard.press("Control+z")
    assert sheet_text(page) == "A fox. The end."
    page.click("#undo")
    expect(page.locator("#ending")).to_have_value(" The end.")
    page.fill("#ending", "typed and not yet written")
    page.click("#undo")
    page.click("#redo")
    expect(page.locator("#ending")).to_have_value("typed and not yet written")


def saved(page: Any, kind: str, folder: Path) -> str:
    """Press a button to save and return what the file holds."""
    with page.expect_download() as download:
        page.click(f"#save-{kind}")
    download.value.save_as(folder / kind)
    return (folder / kind).read_text(encoding="utf-8")


def test_settings_are_asked_of_the_server_and_saved(
    server: Scripted, visit: Callable[[str], Any], tmp_path: Path
) -> None:
    server.answers["/v1/completions"] = [story(", a fox.")]
    page = visit(server.address)
    choose(page, "length", "short")
    page.click("#more summary")
    settings = {"opening": "One day", "words": "cake, Snow White,", "seed": "7"}
    settings["max_tokens"] = "50"
    for name, value in settings.items():
        page.fill(f"#settings [name={name}]", value)
    page.locator("#settings [name=temperature]").fill("1.25")
    write(page, " The end.")
    [body] = server.bodies("/v1/completions")
    assert body == {
        "model": "tiny",
        "suffix": " The end.",
        "prompt": "One day",
        "n": 1,
        "temperature": 1.25,
        "seed": 7,
        "max_tokens": 50,
        "backgpt": {"words": ["cake", "Snow White"], "length": "short"},
        "stream": True,
        "stream_options": {"order": "prepend"},
    }
    expect(page.locator("#status")).to_have_text("6 words · seed 7")
    assert saved(page, "text", tmp_path) == "One day, a fox. The end."
    record = json.loads(saved(page, "json", tmp_path))
    assert record["text"] == "One day, a fox. The end."
    assert record["seed"] == 7
    assert record["steps"][0]["backgpt"] == {"words": ["cake", "Snow White"], "length": "short"}


def test_a_model_without_hints_still_gets_words_and_a_length(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/models"] = [models(hints=False)]
    server.answers["/v1/completions"] = [story("A fox.")]
    page = visit(server.address)
    page.click("#more summary")
    page.fill("#settings [name=words]", "cake, rain")
    choose(page, "length", "short")
    write(page, " The end.")
    asked = server.bodies("/v1/completions")[0]["backgpt"]
    assert asked == {"words": ["cake", "rain"], "length": "short"}
    server.answers["/v1/alternatives"] = [Answer({"data": ALTERNATIVES})]
    page.locator(WORDS).first.click()
    expect(page.locator("#menu-list button")).to_have_count(len(ALTERNATIVES))
    assert "backgpt" not in server.bodies("/v1/alternatives")[0]


def test_the_opening_of_a_bridge_stands_in_front(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [story(" fox\n\ncame  home.", finish="length")]
    page = visit(server.address)
    page.click("#more summary")
    page.fill("#settings [name=opening]", "One day, a")
    write(page, " The end.")
    assert sheet_text(page) == "One day, a fox\n\ncame  home. The end."
    assert server.bodies("/v1/completions")[0]["prompt"] == "One day, a"
    expect(page.get_by_role("button", name="Go on")).to_be_hidden()


def test_a_model_that_runs_one_way_is_not_given_an_opening(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    one_way = {"directions": ["backward"], "hints": True, "chat": False}
    data = [*models().body["data"], {"id": "one-way", "backgpt": one_way}]
    server.answers["/v1/models"] = [Answer({"object": "list", "data": data})]
    server.answers["/v1/completions"] = [story("A fox.")]
    page = visit(server.address)
    page.click("#more summary")
    page.fill("#settings [name=opening]", "One day, a")
    page.select_option("#settings [name=model]", "one-way")
    expect(page.locator("#settings [name=opening]")).to_be_hidden()
    expect(page.locator("#settings [name=words]")).to_be_visible()
    write(page, " The end.")
    assert "prompt" not in server.bodies("/v1/completions")[0]


def test_a_broken_connection_leaves_what_came(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    gate = threading.Event()
    broken = Answer(events=[*written(" fox.", "red")[:2], gate, None])
    server.answers["/v1/completions"] = [broken, story("A ")]
    page = visit(server.address)
    page.fill("#ending", " The end.")
    page.click("#write")
    expect(page.locator(WORDS, has_text="red")).to_be_visible()
    gate.set()
    settled(page)
    assert sheet_text(page) == "red fox. The end."
    expect(page.get_by_role("alert")).to_have_text(re.compile("connection broke"))
    page.get_by_role("button", name="Go on").click()
    settled(page)
    assert server.bodies("/v1/completions")[1]["suffix"] == "red fox. The end."
    assert sheet_text(page) == "A red fox. The end."
    expect(page.get_by_role("alert")).to_be_hidden()


def test_stop_keeps_what_came_and_leaves_the_server(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    many = [event for event in written(*["more "] * 500) for _ in range(40)]
    gate = threading.Event()
    answer = Answer(events=[*written("red fox.")[:1], gate, *many])
    server.answers["/v1/completions"] = [answer]
    page = visit(server.address)
    page.fill("#ending", " The end.")
    page.keyboard.press("Control+Enter")
    expect(page.locator(WORDS, has_text="red")).to_be_visible()
    expect(page.locator("#stop")).to_be_focused()
    page.keyboard.press("Enter")
    settled(page)
    expect(page.locator("#write")).to_be_focused()
    assert sheet_text(page) == "red fox. The end."
    gate.set()
    assert server.client_left.wait(GATE_SECONDS)


def test_escape_stops_what_is_written_in_the_open_view(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    gate = threading.Event()
    server.answers["/v1/completions"] = [Answer(events=[*written("red fox.")[:1], gate])]
    server.answers["/v1/chat/completions"] = [Answer(events=[*said("are you?"), gate])]
    page = visit(server.address)
    write_button, stop = page.locator("#write"), page.locator("#stop")
    page.fill("#ending", " The end.")
    page.keyboard.press("Control+Enter")
    expect(page.locator(WORDS, has_text="red")).to_be_visible()
    page.get_by_role("link", name="BackChat").click()
    page.fill("#message", "A fox.")
    page.click("#chat-send")
    expect(page.locator("#exchanges .lines").first).to_have_text("are you?")
    page.keyboard.press("Escape")
    expect(page.locator("#chat-send")).to_be_visible()
    expect(page.locator("#exchanges .lines")).to_have_text(["are you?", "A fox."])
    page.get_by_role("link", name="Story").click()
    expect(stop).to_be_visible()
    page.locator("#settings [name=temperature]").focus()
    page.keyboard.press("Escape")
    expect(write_button).to_be_visible()
    assert sheet_text(page) == "red fox. The end."
    page.click("#undo")
    expect(page.locator("#ending")).to_have_value(" The end.")
    gate.set()


def test_escape_that_closes_a_dialog_or_a_menu_does_not_stop_the_writing(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    gate = threading.Event()
    going_on = Answer(events=[*written("red fox.")[:1], gate, *written(), "[DONE]"])
    server.answers["/v1/completions"] = [Answer({}, 401), going_on]
    page = visit(server.address)
    page.fill("#ending", " The end.")
    page.click("#write")
    expect(page.locator("#key-dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert")).to_have_text(re.compile("asks for an API key"))
    page.click("#write")
    expect(page.locator(WORDS, has_text="red")).to_be_visible()
    menu = page.locator("#menu")
    menu.evaluate("(menu) => menu.showPopover()")
    page.keyboard.press("Escape")
    expect(menu).to_be_hidden()
    expect(page.locator("#stop")).to_be_visible()
    gate.set()
    settled(page)
    expect(page.locator("#go-on")).to_be_hidden()  # it came to its beginning


def test_words_come_at_a_pace_and_stop_keeps_those_that_were_seen(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    words = [f"word{number} " for number in range(400)]
    server.answers["/v1/completions"] = [story(*words)]
    page = visit(server.address)
    page.emulate_media(reduced_motion="no-preference")
    page.fill("#ending", "The end.")
    page.click("#write")
    page.locator(WORDS).nth(4).wait_for()
    page.click("#stop")
    settled(page)
    seen = sheet_text(page).removesuffix("The end.").split()
    assert 3 <= len(seen) < 400
    assert seen == [word.strip() for word in reversed(words[: len(seen)])]
    expect(page.locator("#go-on")).to_be_visible()


def test_an_error_is_one_line_and_nothing_typed_is_lost(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    page = visit(server.address)
    page.fill("#ending", "Mine, all mine.")
    for answer, line in [
        (Answer({"error": {"message": "n = 99: ask for fewer"}}, 400), "n = 99: ask for fewer"),
        (Answer({}, 429, {"Retry-After": "3"}), "The server is busy: try again in 3 s."),
        (Answer({}, 503), "The server is not ready: try again in a moment."),
        (Answer(events=[{"error": {"message": "it broke"}}]), "it broke"),
    ]:
        server.answers["/v1/completions"] = [answer]
        write(page)
        expect(page.get_by_role("alert")).to_have_text(line)
        expect(page.locator("#ending")).to_have_value("Mine, all mine.")


def test_without_a_network_the_line_says_so(server: Scripted, visit: Callable[[str], Any]) -> None:
    page = visit(server.address)
    page.context.set_offline(True)
    write(page, "Mine, all mine.")
    expect(page.get_by_role("alert")).to_have_text(re.compile("cannot be reached"))
    expect(page.locator("#ending")).to_have_value("Mine, all mine.")


def test_what_is_typed_survives_a_reload(server: Scripted, visit: Callable[[str], Any]) -> None:
    page = visit(server.address)
    page.fill("#ending", "Mine, all mine.")
    page.reload()
    expect(page.locator("#ending")).to_have_value("Mine, all mine.")


def test_a_key_is_asked_for_once_and_sent(server: Scripted, visit: Callable[[str], Any]) -> None:
    server.answers["/v1/completions"] = [Answer({}, 401), story("A fox.")]
    page = visit(server.address)
    page.fill("#ending", " The end.")
    page.click("#write")
    page.fill("#key", "secret")
    page.keyboard.press("Enter")
    settled(page)
    assert sheet_text(page) == "A fox. The end."
    assert server.requests[-1][1]["Authorization"] == "Bearer secret"
    write(page)
    expect(page.locator("#key-dialog")).to_be_hidden()
    assert server.requests[-1][1]["Authorization"] == "Bearer secret"


def test_backchat_asks_what_you_answer_and_goes_on_above(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    both = [*said(" are you?", "Who", index=0), *said(" is it?", "What", index=1)]
    server.answers["/v1/chat/completions"] = [
        Answer(events=[*both, "[DONE]"]),
        Answer(events=[*said("Why?"), "[DONE]"]),
    ]
    page = visit(server.address + "#/backchat")
    page.click("#say summary")
    page.select_option("#say [name=n]", "2")
    page.fill("#message", "A fox.")
    page.click("#chat-send")
    page.get_by_role("button", name="Keep this one").first.click()
    page.select_option("#say [name=n]", "1")
    page.fill("#message", "So.")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#chat-send")).to_be_visible()
    lines = page.locator("#exchanges .lines").all_text_contents()
    assert lines == ["Why?", "So.", "Who are you?", "A fox."]
    body = server.bodies("/v1/chat/completions")[1]
    assert body["backgpt"] == {"mode": "ask"}
    assert body["messages"] == [{"role": "assistant", "content": "So."}]


def test_a_conversation_is_rewound_turn_by_turn_and_a_reply_stands_below(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    turns = [*said("Hello?"), *said("No.", turn=1, role="assistant"), *said("Yes?", turn=2)]
    rewound = [  # the third was not finished, so it is left out
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Hello?"},
    ]
    last = {"index": 0, "delta": {}, "finish_reason": "stop", "backgpt": {"messages": rewound}}
    server.answers["/v1/chat/completions"] = [
        Answer(events=[*turns, {"choices": [last]}, "[DONE]"]),
        Answer(events=[*said("Because.", role="assistant"), "[DONE]"]),
    ]
    page = visit(server.address + "#/backchat")
    for mode, text in (("rewind", "Bye."), ("reply", "Why?")):
        page.locator(f"#say [value={mode}]").check(force=True)
        page.fill("#message", text)
        page.click("#chat-send")
        expect(page.locator("#message")).to_have_value("")
    lines = page.locator("#exchanges .lines").all_text_contents()
    assert lines == ["Why?", "Because.", "No.", "Hello?", "Bye."]
    bodies = server.bodies("/v1/chat/completions")
    assert [body["backgpt"] for body in bodies] == [
        {"mode": "rewind", "turns": 3},
        {"mode": "reply"},
    ]


def test_an_answer_that_fails_stays_in_its_field(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/chat/completions"] = [Answer({"error": {"message": "too long"}}, 400)]
    server.answers["/v1/chat/completions"].append(Answer(events=["[DONE]"]))
    page = visit(server.address + "#/backchat")
    page.fill("#message", "A fox.")
    for line in ("too long", re.compile("No message came")):
        page.click("#chat-send")
        expect(page.get_by_role("alert")).to_have_text(line)
        expect(page.locator("#message")).to_have_value("A fox.")


def test_without_a_chat_model_one_line_says_so(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/models"] = [models(chat=False)]
    page = visit(server.address + "#/backchat")
    expect(page.locator("#no-chat")).to_have_text(re.compile("no chat model"))
    expect(page.locator("#say")).to_be_hidden()


def total(nats: float) -> dict[str, float]:
    return {"logprob": -nats, "nats_per_token": nats / 4, "bits_per_byte": 0.5, "edge": -0.5}


def test_both_ways_shows_the_numbers_of_every_word_and_the_totals(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    spans = [
        {"text": "A", "backward": -5.0, "forward": -1.25},
        {"text": "\n fox.", "backward": -2.0, "forward": None},
    ]
    found = {"index": 0, "spans": spans, "backward": total(8), "forward": total(4)}
    server.answers["/v1/score"] = [Answer({"data": [found]})]
    page = visit(server.address + "#/both-ways")
    page.fill("#text-both", "A\n fox.")
    page.click("#read-both")
    page.locator("#surprise .word").first.focus()
    expect(page.get_by_role("status")).to_have_text("“A”: backward 5.00, forward 1.25 nats")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#readout")).to_have_text("“fox.”: backward 2.00, forward unknown nats")
    assert page.locator("#surprise p").all_text_contents() == ["A", " fox."]
    rows = page.locator("#totals tr").all_inner_texts()
    assert [row.split() for row in rows] == [
        ["backward", "2.000", "0.500", "8.0", "0.50"],
        ["forward", "1.000", "0.500", "4.0", "0.50"],
    ]
    expect(page.locator("#verdict")).to_have_text(re.compile("surprised backward than forward"))


def test_nothing_that_is_typed_or_answered_becomes_html(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    alternatives = [{"text": XSS, "logprob": -1.0, "probability": 0.4}]
    score = {"spans": [{"text": XSS, "backward": -1.0}], "backward": total(8)}
    server.answers |= {
        "/v1/models": [models(name=XSS)],
        "/v1/completions": [story(XSS), Answer({"error": {"message": XSS}}, 400)],
        "/v1/alternatives": [Answer({"data": alternatives})],
        "/v1/chat/completions": [Answer(events=[*said(XSS, role=XSS), "[DONE]"])],
        "/v1/score": [Answer({"data": [score]})],
    }
    page = visit(server.address)
    scripts = page.locator("script, img, svg").count()
    page.click("#more summary")
    for name in ("opening", "words"):
        page.fill(f"#settings [name={name}]", XSS)
    write(page, XSS)
    assert sheet_text(page) == XSS * 3
    page.locator(WORDS).first.click()
    expect(page.locator("#menu .alternative")).to_have_text(XSS)
    page.fill("#menu-word", XSS)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text(XSS)
    page.goto(server.address + "#/backchat")
    page.fill("#message", XSS)
    page.click("#chat-send")
    expect(page.locator("#exchanges .lines")).to_have_text([XSS, XSS])
    page.goto(server.address + "#/both-ways")
    page.fill("#text-both", XSS)
    page.click("#read-both")
    expect(page.locator("#surprise")).to_have_text(XSS)
    assert page.evaluate("() => typeof hacked") == "undefined"
    assert page.locator("script, img, svg").count() == scripts


def test_the_arrow_keys_go_from_word_to_word(server: Scripted, visit: Callable[[str], Any]) -> None:
    server.answers["/v1/completions"] = [story("One two.\nThree four.\n")]
    page = visit(server.address)
    write(page, "Five.")
    reached = []
    page.locator(WORDS).first.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft", "Home", "End"):
        page.keyboard.press(key)
        reached.append(page.evaluate("() => document.activeElement.textContent"))
    assert reached == ["two.", "four.", "Five.", "four.", "One", "Five."]
    assert page.locator(f"{SHEETS} .lines [tabindex]").count() == 1


def test_the_link_to_skip_the_head_leads_to_what_is_shown(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [story("One fox. ")]
    page = visit(server.address)
    focused = page.locator(":focus")
    for view, id_ in (("Story", "ending"), ("BackChat", "message"), ("Both ways", "text-both")):
        page.get_by_role("link", name=view).click()
        expect(page.locator("h1:focus")).to_have_text(view)  # once it is shown; not the link
        page.locator("#skip").press("Enter")
        expect(focused).to_have_attribute("id", id_)
    page.get_by_role("link", name="Story").click()
    expect(page.locator("h1:focus")).to_have_text("Story")
    write(page)
    page.locator("#skip").press("Enter")
    expect(focused).to_have_text("One")


def test_views_have_addresses_and_fit_a_phone(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [story("Donaudampfschifffahrt" * 9, " and a fox. ")]
    page = visit(server.address)
    page.set_viewport_size({"width": 360, "height": 740})
    write(page)
    for link, view in (("BackChat", "backchat"), ("Both ways", "both-ways"), ("Story", "story")):
        page.get_by_role("link", name=link).click()
        expect(page.locator(f"#{view}")).to_be_visible()
        assert page.url.endswith(f"#/{view}")
        # Lines are wrapped in the frame in which the view appears, and not before it.
        page.wait_for_function("() => document.documentElement.scrollWidth === 360", timeout=5_000)


def test_who_listens_hears_that_it_writes_and_how_much_came(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    gate = threading.Event()
    server.answers["/v1/completions"] = [Answer(events=[gate, *written("A fox."), "[DONE]"])]
    page = visit(server.address)
    page.fill("#ending", " The end.")
    page.click("#write")
    expect(page.locator("[aria-live=polite]")).to_have_text("writing")
    gate.set()
    expect(page.locator("[aria-live=polite]")).to_have_text("done, 4 words")


def test_a_copied_text_has_no_line_breaks_of_the_sheet(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    text = "One  day there was a fox. " * 12 + "\n"
    server.answers["/v1/completions"] = [story(text)]
    page = visit(server.address)
    write(page, "The end.")
    copied = page.evaluate(
        """() => {
          const lines = document.querySelector("#desk .sheet:not(#editor) .lines");
          getSelection().selectAllChildren(lines);
          const event = new ClipboardEvent("copy", {
            clipboardData: new DataTransfer(), bubbles: true, cancelable: true,
          });
          lines.dispatchEvent(event);
          return event.clipboardData.getData("text/plain");
        }"""
    )
    assert copied == text + "The end."


def test_a_copied_conversation_has_no_line_breaks_of_the_page(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    question, answer = "Was it  so? " * 20 + "Was it?", "It was so. " * 20 + "\nIt was."
    server.answers["/v1/chat/completions"] = [Answer(events=[*said(question), "[DONE]"])]
    page = visit(server.address + "#/backchat")
    page.fill("#message", answer)
    page.click("#chat-send")
    page.locator("#chat-send").wait_for()
    copied = page.evaluate(
        """() => {
          const clipboardData = new DataTransfer();
          const copy = () => document.dispatchEvent(
            new ClipboardEvent("copy", { clipboardData, cancelable: true }),
          );
          getSelection().selectAllChildren(document.querySelector("#exchanges article"));
          copy();
          return clipboardData.getData("text/plain");
        }"""
    )
    lines = [line for line in copied.split("\n") if line]
    assert lines[:5] == ["it asks", question, "you", *answer.split("\n")]


def test_only_a_candidate_of_the_newest_exchange_is_kept_and_none_while_writing(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    gate = threading.Event()
    both = [*said("Yes.", role="assistant"), *said("No.", role="assistant", index=1)]
    server.answers["/v1/chat/completions"] = [
        Answer(events=[*both, "[DONE]"]),
        Answer(events=[*said("It is."), gate, "[DONE]"]),
        Answer(events=[*said("Why?"), "[DONE]"]),
    ]
    page = visit(server.address + "#/backchat")
    keep = page.get_by_role("button", name="Keep this one")
    page.click("#say summary")
    page.locator("#say [value=reply]").check(force=True)
    for number, text in (("2", "Is it?"), ("1", "Is it so?")):
        page.select_option("#say [name=n]", number)
        page.fill("#message", text)
        page.click("#chat-send")
        page.locator("#exchanges .lines", has_text=text).wait_for()
        if number == "2":
            expect(keep).to_have_count(2)
    expect(page.locator("#exchanges .lines", has_text="It is.")).to_be_visible()
    expect(keep).to_have_count(0)
    gate.set()
    page.locator("#chat-send").wait_for()
    expect(keep).to_have_count(0)
    lines = page.locator("#exchanges .lines").all_text_contents()
    assert lines == ["Is it so?", "It is.", "Is it?", "Yes.", "No."]


def test_an_answer_that_makes_no_sense_does_not_block_the_page(
    server: Scripted, browser: Any
) -> None:
    server.answers["/v1/completions"] = [Answer(events=written("x", index=5)), story("A fox.")]
    server.answers["/v1/chat/completions"] = [
        Answer(events=said("x", index=5)),
        Answer(events=[*said("Why?"), "[DONE]"]),
    ]
    page = browser.new_page()
    page.goto(server.address)
    write(page, " The end.")
    expect(page.get_by_role("alert")).to_have_text(re.compile("try again"))
    write(page)
    assert sheet_text(page) == "A fox. The end."
    page.goto(server.address + "#/backchat")
    page.fill("#message", "A fox.")
    page.click("#chat-send")
    expect(page.get_by_role("alert")).to_have_text(re.compile("try again"))
    page.click("#chat-send")
    expect(page.locator("#exchanges .lines")).to_have_text(["Why?", "A fox."])
    page.close()


def test_any_word_of_a_long_story_has_alternatives_and_can_be_written_before(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    words = [f"{chr(97 + number // 26)}{chr(97 + number % 26)}x " for number in range(400)]
    server.answers["/v1/completions"] = [story(*reversed(words)), story("New ")]
    server.answers["/v1/alternatives"] = [Answer({"data": ALTERNATIVES})]
    page = visit(server.address)
    choose(page, "length", "long")
    write(page, "The end.")
    page.locator(WORDS, has_text="ajx").click()
    expect(page.locator("#menu li button")).to_have_count(3)
    [asked] = server.bodies("/v1/alternatives")
    most = int(512 * 0.3)
    assert asked["suffix"].split() == [word.strip() for word in words[10 : 10 + most]]
    assert asked["backgpt"] == {"continues": True}
    page.click("#menu-rewrite")
    settled(page)
    body = server.bodies("/v1/completions")[1]
    assert body["suffix"].split() == [word.strip() for word in words[9 : 9 + most]]
    assert body["backgpt"] == {"continues": True}
    assert sheet_text(page) == "New " + "".join(words[9:]) + "The end."
    expect(page.get_by_role("alert")).to_have_text(re.compile("cannot heed an opening, a length"))


def test_an_opening_without_an_ending_is_refused_in_one_line(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    page = visit(server.address)
    set_up(page, opening="One day", words="cake")
    page.fill("#ending", "")
    page.click("#write")
    expect(page.get_by_role("alert")).to_have_text(re.compile("An opening needs an ending"))
    assert server.requests == []


@pytest.mark.parametrize("denied", ["get() { throw new DOMException('no') }", "value: FULL"])
def test_where_the_browser_keeps_nothing_the_page_works_until_it_goes(
    server: Scripted, visit: Callable[..., Any], denied: str
) -> None:
    full = "{ getItem: () => null, setItem() { throw new DOMException('full') } }"
    script = f"Object.defineProperty(window, 'sessionStorage', {{ {denied} }})"
    server.answers["/v1/models"] = [Answer({}, status=401), models()]
    server.answers["/v1/completions"] = [story(" fox.", "A")]
    page = visit(server.address, script.replace("FULL", full))
    page.fill("#key", "open-sesame")
    page.keyboard.press("Enter")
    expect(page.locator("#key-dialog")).to_be_hidden()
    write(page, " The end.")
    assert sheet_text(page) == "A fox. The end."
    assert server.requests[-1][1]["Authorization"] == "Bearer open-sesame"
    page.evaluate("() => dispatchEvent(new PageTransitionEvent('pagehide'))")


def test_a_text_that_is_not_shown_for_a_while_is_not_placed_anew(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [story(" fox.", "A")]
    page = visit(server.address)
    write(page, " The end.")
    word = page.locator(WORDS).first.element_handle()
    for view in ("backchat", "story"):
        page.evaluate("view => { location.hash = `#/${view}` }", view)
        page.evaluate("() => new Promise((seen) => setTimeout(seen, 100))")
    assert page.evaluate("word => word.isConnected", word)


def test_story_chat_and_chosen_model_survive_a_reload(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    both = [*models().body["data"], *models(name="other").body["data"]]
    server.answers["/v1/models"] = [Answer({"object": "list", "data": both})]
    server.answers["/v1/completions"] = [story(" fox.", "A")]
    server.answers["/v1/chat/completions"] = [Answer(events=[*said("Who?"), "[DONE]"])]
    page = visit(server.address)
    page.click("#more summary")
    page.select_option("#settings [name=model]", "other")
    write(page, " The end.")
    page.get_by_role("link", name="BackChat").click()
    page.fill("#message", "A fox.")
    page.click("#chat-send")
    expect(page.locator("#exchanges .lines")).to_have_text(["Who?", "A fox."])
    page.reload()
    expect(page.locator("#exchanges .lines")).to_have_text(["Who?", "A fox."])
    page.get_by_role("link", name="Story").click()
    assert sheet_text(page) == "A fox. The end."
    assert page.locator(f"{WORDS}.given").all_text_contents() == ["The", "end."]
    expect(page.locator("#settings [name=model]")).to_have_value("other")
    page.click("#edit")
    page.fill("#ending", " No end.")
    page.reload()
    expect(page.locator("#ending")).to_have_value(" No end.")
    write(page)
    assert server.bodies("/v1/completions")[1]["model"] == "other"
    assert sheet_text(page) == "A fox. No end."


def test_an_ended_conversation_can_be_brought_back(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/chat/completions"] = [Answer(events=[*said("Who?"), "[DONE]"])]
    page = visit(server.address + "#/backchat")
    lines = page.locator("#exchanges .lines")
    page.fill("#message", "A fox.")
    page.click("#chat-send")
    page.click("#new-chat")
    expect(lines).to_have_count(0)
    page.click("#last-chat")
    expect(lines).to_have_text(["Who?", "A fox."])
    expect(page.locator("#last-chat")).to_be_hidden()


def test_the_models_are_asked_for_until_the_server_is_there(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/models"] = [Answer({}, 503), Answer({}, 503), models()]
    page = visit(server.address)
    expect(page.locator("#settings [name=model]")).to_have_value("tiny")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_another_server_in_the_same_place_is_asked_for_its_models(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [Answer({}, 503), story("A fox.")]
    page = visit(server.address + "#/backchat")
    expect(page.locator("#settings [name=model]")).to_have_value("tiny")
    server.answers["/v1/models"] = [models(name="new", chat=False)]
    page.get_by_role("link", name="Story").click()
    write(page, " The end.")
    expect(page.locator("#settings [name=model]")).to_have_value("tiny")
    write(page)
    expect(page.locator("#settings [name=model]")).to_have_value("new")
    page.get_by_role("link", name="BackChat").click()
    expect(page.locator("#no-chat")).to_be_visible()


def test_a_key_given_later_brings_the_models_and_a_refused_one_is_told(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    page = visit(server.address)
    server.answers["/v1/models"] = [Answer({}, 401), models(name="guarded")]
    server.answers["/v1/completions"] = [Answer({}, 401), Answer({}, 401), story("A fox.")]
    page.reload()
    page.click("#key-cancel")
    expect(page.get_by_role("alert")).to_have_text(re.compile("asks for an API key"))
    expect(page.locator("#settings option[value=guarded]")).to_have_count(0)
    page.fill("#ending", " The end.")
    page.click("#write")
    refused = page.locator("#key-refused")
    expect(page.locator("#key-dialog")).to_be_visible()
    expect(refused).to_be_hidden()
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    expect(refused).to_be_visible()
    expect(page.locator("#key")).to_have_accessible_description(re.compile("not accepted"))
    page.fill("#key", "right")
    page.keyboard.press("Enter")
    settled(page)
    assert sheet_text(page) == "A fox. The end."
    expect(page.locator("#settings [name=model]")).to_have_value("guarded")


def fill_hidden(page: Any, field: str, value: str) -> None:
    """Fill in a field that may be folded away, and leave it so."""
    page.locator(field).evaluate("(field, value) => { field.value = value; }", value)


def test_backchat_tells_of_a_field_that_is_folded_away_and_holds_no_number(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/chat/completions"] = [Answer(events=[*said("Who?"), "[DONE]"])]
    page = visit(server.address + "#/backchat")
    page.locator("#say [value=rewind]").check(force=True)
    for name, value, right, line in [
        ("turns", "50", "", "Messages to write: give a whole number from 1 to 20, or nothing."),
        ("temperature", "5", "0.77", "Temperature: give a number from 0 to 2, or nothing."),
        ("seed", "12 000", "", "Seed: give a whole number from 0 up, or nothing."),
        ("seed", "9" * 20, "7", f"Seed: give a whole number from 0 to {2**53 - 1}, or nothing."),
    ]:
        page.fill("#message", "Bye.")
        page.locator("#say details").evaluate("(more) => { more.open = false; }")
        fill_hidden(page, f"#say [name={name}]", value)
        page.click("#chat-send")
        expect(page.get_by_role("alert")).to_have_text(line)
        expect(page.locator(f"#say [name={name}]")).to_be_focused()
        assert server.requests == []
        fill_hidden(page, f"#say [name={name}]", right)
    page.click("#chat-send")
    page.locator("#exchanges .lines", has_text="Who?").wait_for()
    [body] = server.bodies("/v1/chat/completions")
    assert body["temperature"] == 0.77
    assert body["seed"] == 7
    assert body["backgpt"] == {"mode": "rewind"}


def test_what_backchat_does_not_need_does_not_hold_it_up(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/chat/completions"] = [Answer(events=[*said("Who?"), "[DONE]"])]
    page = visit(server.address + "#/backchat")
    fill_hidden(page, "#say [name=turns]", "50")
    fill_hidden(page, "#say [name=temperature]", "")
    page.fill("#message", "A fox.")
    page.click("#chat-send")
    expect(page.locator("#exchanges .lines")).to_have_text(["Who?", "A fox."])
    [body] = server.bodies("/v1/chat/completions")
    assert "temperature" not in body
    assert body["backgpt"] == {"mode": "ask"}


LINES = """() => [...document.querySelectorAll("#desk .sheet:not(#editor) .line")].map((line) => {
  const { x, y, width } = (line.lastElementChild ?? line).getBoundingClientRect();
  return [line.textContent, line.style.wordSpacing, line.className, x, y, width];
})"""


def test_a_text_shown_at_once_has_the_lines_of_one_that_was_written_word_by_word(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    words = [f"{'word' * (number % 5 + 1)}{number} " for number in range(400)]
    words[50:100] = [*"abc", "  two  spaces ", "\n", "long" * 40, " שלום ", "עולם\n\n"] * 5
    server.answers["/v1/completions"] = [story(*words)]
    page = visit(server.address)
    write(page, "the end.")
    grown = page.evaluate(LINES)
    assert len(grown) > 60
    page.reload()
    page.locator(WORDS).first.wait_for()
    assert page.evaluate(LINES) == grown


COUNT_STEPS = """async (count) => {
  const { LeftwardText } = await import("/static/leftward.js");
  const root = document.createElement("div");
  document.body.append(root);
  const shown = new LeftwardText(root);
  let [placed, seen] = [0, 0];
  for (const name of ["append", "prepend"]) {
    const plain = Element.prototype[name];
    Element.prototype[name] = function (...nodes) {
      const words = nodes.filter((node) => node.className === "unit").length;
      placed += words;
      if (this.closest("[dir=auto]")) seen += words;
      plain.apply(this, nodes);
    };
  }
  shown.set("There was once a little fox. ".repeat(count / 6));
  return { placed, seen, lines: root.querySelectorAll(".line").length };
}"""


def test_a_long_text_takes_steps_in_proportion_to_its_length(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    page = visit(server.address)
    for count in (600, 2400):
        steps = page.evaluate(COUNT_STEPS, count)
        page.reload()
        assert steps["lines"] > count / 40
        assert steps["placed"] <= 2 * count + 1  # into the one line, and from there into its own
        assert steps["seen"] == 0  # at each the browser would look for the text's direction


def test_a_key_that_no_header_can_hold_is_refused_and_not_kept(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [Answer({}, 401), story("A fox.")]
    page = visit(server.address)
    page.fill("#ending", " The end.")
    page.click("#write")
    for key in ("ключ", "geheim é", "two words"):
        page.fill("#key", key)
        page.keyboard.press("Enter")
        expect(page.locator("#key-refused")).to_be_visible()
        assert page.evaluate("() => sessionStorage.getItem('backgpt.key')") is None
    page.fill("#key", "right")
    page.keyboard.press("Enter")
    settled(page)
    assert sheet_text(page) == "A fox. The end."


def test_a_problem_is_seen_wherever_the_page_is_scrolled_to(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [
        story("A fox. " * 300),
        Answer({"error": {"message": "ask for less"}}, 400),
    ]
    page = visit(server.address)
    page.set_viewport_size({"width": 360, "height": 740})
    write(page, " The end.")
    page.evaluate("() => scrollTo(0, 800)")
    page.click("#write")
    line = page.get_by_role("alert")
    expect(line).to_have_text("ask for less")
    assert page.evaluate("() => scrollY") > 100  # the sheet holds less than before
    expect(line).to_be_in_viewport(ratio=1)
    page.click("#problem-close")
    expect(line).to_be_hidden()
    set_up(page, seed="abc")
    page.evaluate("() => scrollTo(0, document.body.scrollHeight)")
    page.click("#write")
    expect(line).to_be_in_viewport(ratio=1)
    seed = page.locator("#settings [name=seed]")
    expect(seed).to_be_focused()
    expect(seed).to_be_in_viewport(ratio=1)
    box, field = page.locator("#problem").bounding_box(), seed.bounding_box()
    assert box["y"] + box["height"] <= field["y"]


def test_a_word_has_alternatives_whatever_stands_in_the_fields_for_numbers(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [story("A red fox.")]
    server.answers["/v1/alternatives"] = [Answer({"data": ALTERNATIVES})]
    page = visit(server.address)
    choose(page, "length", "short")
    write(page, " The end.")
    set_up(page, seed="12a", max_tokens="many")
    page.locator(WORDS, has_text="red").click()
    expect(page.locator("#menu li button")).to_have_count(3)
    expect(page.get_by_role("alert")).to_be_hidden()
    assert server.bodies("/v1/alternatives") == [
        {"model": "tiny", "suffix": " fox. The end.", "n": 10, "backgpt": {"length": "short"}}
    ]


def test_what_a_text_lacks_of_the_words_and_the_length_asked_for_is_told(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    missed = {"words": False, "length": False, "missing": ["cake", "rain"], "n_words": 122}
    far = {"words": False, "length": False, "missing": ["rain"], "n_words": 1}
    near = {"words": True, "length": True, "missing": [], "n_words": 200}
    both = written("One.", index=0, obeyed=near)
    both += written("Two.", index=1, obeyed=missed)
    server.answers["/v1/completions"] = [
        story("A fox.", obeyed=missed),
        story("Red ", finish="length", obeyed=far),
        story("Big ", obeyed=near),
        Answer(events=[*both, "[DONE]"]),
    ]
    page = visit(server.address)
    choose(page, "length", "long")
    set_up(page, words="cake, rain", seed="7")
    status = page.locator("#status")
    write(page, " The end.")
    expect(status).to_have_text("122 words, not long · missing: cake, rain · seed 7")
    announcement = page.locator("[aria-live=polite]")
    expect(announcement).to_have_text("done, 122 words, not long, missing: cake, rain")
    write(page)
    expect(status).to_have_text("1 word, not long so far · missing so far: rain · seed 7")
    page.click("#go-on")
    settled(page)
    expect(status).to_have_text("4 words · seed 7")
    choose(page, "n", "2")
    write(page)
    feet = page.locator(f"{SHEETS} .foot span")
    expect(feet).to_have_text(["3 words", "122 words, not long · missing: cake, rain"])


def test_where_the_model_writes_nothing_the_page_says_so_and_what_to_do(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    one_of_two = [*written(index=0), *written("A fox. ", index=1)]
    server.answers["/v1/completions"] = [
        story(),
        Answer(events=[*one_of_two, "[DONE]"]),
        story("A fox. "),
        story(),
    ]
    server.answers["/v1/alternatives"] = [Answer({"data": [{"text": "", "edge": True}]})]
    page = visit(server.address)
    line, status = page.locator("#problem-line"), page.locator("#status")
    write(page, "Once there was a fox.")
    expect(line).to_contain_text("Nothing was written")
    expect(line).to_contain_text("Change its first words, or choose a Length")
    expect(status).to_contain_text("nothing was written · 5 words")
    choose(page, "n", "2")
    write(page)
    expect(line).to_be_empty()
    feet = page.locator(f"{SHEETS} .foot span")
    assert feet.all_text_contents() == ["nothing was written · 5 words", "7 words"]
    choose(page, "n", "1")
    write(page)
    page.locator(WORDS, has_text="fox.").first.click()
    page.click("#menu-rewrite")
    expect(line).to_contain_text("Nothing was written")
    page.locator(WORDS, has_text="there").click()
    page.locator("#menu-list button").click()
    expect(page.locator(WORDS).first).to_have_text("was")
    expect(status).not_to_contain_text("nothing")  # it was the reader who let it begin there


def test_what_is_chosen_and_every_mark_is_seen_where_the_reader_sets_all_colors(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    spans = [{"text": "A", "backward": -5.0, "forward": -1.25}]
    found = {"index": 0, "spans": spans, "backward": total(8), "forward": total(4)}
    server.answers["/v1/score"] = [Answer({"data": [found]})]
    page = visit(server.address)
    page.emulate_media(forced_colors="active")
    views = page.get_by_role("navigation").get_by_role("link")
    borders = "(element) => getComputedStyle(element).borderBottomStyle"
    for elements in (page.locator("#settings [name=n] + span"), views):
        assert [one.evaluate(borders) for one in elements.all()].count("solid") == 1
    views.nth(2).click()
    page.click("#read-both")
    keys = page.locator(".legend .key")
    assert keys.nth(0).screenshot() != keys.nth(1).screenshot()
    word = page.locator("#surprise .word")
    shown = word.screenshot()
    word.evaluate("(word) => { word.style.background = 'none'; }")
    assert word.screenshot() != shown


def test_an_old_answer_does_not_replace_a_newer_one_both_ways(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    gate = threading.Event()
    old, new = (
        {"index": 0, "spans": [{"text": text, "backward": -5.0}], "backward": total(8)}
        for text in ("Old.", "New.")
    )
    server.answers["/v1/score"] = [Answer({"data": [old]}, after=gate), Answer({"data": [new]})]
    page = visit(server.address + "#/both-ways")
    page.click("#read-both")
    expect(page.locator("#both-status")).to_have_text("reading")
    with page.expect_event("requestfailed"):  # it is given up
        page.fill("#text-both", "New.")
    expect(page.locator("#both-status")).to_be_empty()
    page.click("#read-both")
    expect(page.locator("#surprise")).to_have_text("New.")
    gate.set()
    page.click("#read-both")
    expect(page.locator("#both-status")).to_be_empty()
    expect(page.locator("#surprise")).to_have_text("New.")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_numbers_of_another_text_or_model_do_not_stay(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    both = [*models().body["data"], *models(name="other").body["data"]]
    server.answers["/v1/models"] = [Answer({"object": "list", "data": both})]
    found = {"index": 0, "spans": [{"text": "A.", "backward": -5.0}], "backward": total(8)}
    server.answers["/v1/score"] = [Answer({"data": [found]})]
    page = visit(server.address + "#/both-ways")
    for change in (
        partial(page.fill, "#text-both", "Another."),
        partial(page.select_option, "#measure [name=model]", "other"),
    ):
        page.click("#read-both")
        expect(page.locator("#measured")).to_be_visible()
        change()
        expect(page.locator("#measured")).to_be_hidden()


def test_the_menu_closes_by_its_button_and_when_tab_leaves_it_but_not_at_a_press_on_it(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [story("A red fox.")]
    server.answers["/v1/alternatives"] = [Answer({"data": ALTERNATIVES})]
    page = visit(server.address)
    write(page, " The end.")
    menu, word = page.locator("#menu"), page.locator(WORDS, has_text="red")
    word.click()
    menu.get_by_role("button", name="Close").click()
    expect(menu).to_be_hidden()
    expect(word).to_be_focused()
    page.keyboard.press("Enter")
    expect(menu.locator("li button")).to_have_count(3)
    page.locator("#menu-title").click()
    page.locator("#menu-list-title").click()
    expect(menu).to_be_visible()
    page.get_by_role("button", name="Take it").focus()
    page.keyboard.press("Tab")
    expect(menu).to_be_hidden()


def test_one_line_says_that_words_can_be_pressed_until_one_was(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    gate = threading.Event()
    server.answers["/v1/completions"] = [
        Answer(events=[*written("red fox."), gate, "[DONE]"]),
        story("A "),
    ]
    server.answers["/v1/alternatives"] = [Answer({"data": []})]
    page = visit(server.address)
    tip = page.get_by_text("Press a word")
    expect(tip).to_be_hidden()
    page.fill("#ending", " The end.")
    page.click("#write")
    page.locator(WORDS, has_text="red").wait_for()
    expect(tip).to_be_hidden()
    gate.set()
    expect(tip).to_be_visible()
    page.locator(WORDS, has_text="red").click()
    page.click("#menu-rewrite")
    settled(page)
    expect(tip).to_be_hidden()
    page.reload()
    page.locator(WORDS).first.wait_for()
    expect(tip).to_be_hidden()


def test_each_question_is_asked_for_its_answer_alone(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/chat/completions"] = [Answer(events=[*said("Why?"), "[DONE]"])]
    page = visit(server.address + "#/backchat")
    for answer, context in (("One.", ""), ("Two.", "A fox."), ("Three.", "A fox.")):
        fill_hidden(page, "#say [name=context]", context)
        page.fill("#message", answer)
        page.click("#chat-send")
        expect(page.locator("#message")).to_have_value("")
    expect(page.locator("#exchanges .lines")).to_have_count(6)
    told = [
        [message["content"] for message in body["messages"]]
        for body in server.bodies("/v1/chat/completions")
    ]
    assert told == [["One."], ["Two."], ["Three."]]


def test_an_answer_that_is_refused_for_its_length_stays_in_the_field(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    line = "the given text is 635 ids long, the model reads at most 512: give a shorter one"
    refused = Answer({"error": {"message": line, "code": "context_length_exceeded"}}, 400)
    asked = Answer(events=[*said("Why?"), "[DONE]"])
    server.answers["/v1/chat/completions"] = [asked, refused]
    page = visit(server.address + "#/backchat")
    page.fill("#message", "One.")
    page.click("#chat-send")
    expect(page.locator("#message")).to_have_value("")
    page.fill("#message", "Two.")
    page.click("#chat-send")
    expect(page.get_by_role("alert")).to_have_text(line)
    expect(page.locator("#message")).to_have_value("Two.")
    expect(page.locator("#exchanges .lines")).to_have_text(["Why?", "One."])
    page.click("#new-chat")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_keys_undo_and_redo_wherever_nothing_is_typed_and_the_focus_is_not_lost(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [story("A fox."), story("A dog.")]
    page = visit(server.address)
    write(page, " The end.")
    write(page)
    for place in ("#settings [name=n]:checked", "#settings [name=temperature]", "#write"):
        page.locator(place).focus()
        page.keyboard.press("Control+z")
        assert sheet_text(page) == "A fox. The end."
        expect(page.locator(place)).to_be_focused()
        page.keyboard.press("Control+y")
        assert sheet_text(page) == "A dog. The end."
    page.locator(WORDS).first.focus()
    page.keyboard.press("Control+z")
    assert sheet_text(page) == "A fox. The end."
    expect(page.locator("#write")).to_be_focused()
    set_up(page, seed="7")
    page.keyboard.press("Control+z")
    assert sheet_text(page) == "A fox. The end."


def test_steps_can_be_undone_and_redone_after_a_reload(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [story("A fox."), story("A dog."), story("A cat.")]
    page = visit(server.address)
    for ending in (" The end.", None, None):
        write(page, ending)
    page.click("#undo")
    page.reload()
    page.locator(WORDS).first.wait_for()
    texts = [sheet_text(page)]
    for way in ("undo", "redo", "redo"):
        page.click(f"#{way}")
        texts.append(sheet_text(page))
    assert texts == [f"A {animal}. The end." for animal in ("dog", "fox", "dog", "cat")]
    expect(page.locator("#redo")).to_be_disabled()


def test_of_the_steps_that_are_kept_the_nearest_are_chosen(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    kept = visit(server.address).evaluate(
        """async () => {
          const { History } = await import("/static/history.js");
          const long = "x".repeat(50);
          const [past, future] = [[long, "a", "b"], [long, "d"]];
          const history = new History({ past, current: "c", future });
          return [history.nearest(1000), history.nearest(60), history.nearest(1)];
        }"""
    )
    long = "x" * 50
    assert kept == [
        {"past": [long, "a", "b"], "current": "c", "future": [long, "d"]},
        {"past": ["a", "b"], "current": "c", "future": []},
        {"past": [], "current": "c", "future": []},
    ]


def test_a_long_text_without_white_space_is_given_by_its_first_characters(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [story("A fox. ")]
    server.answers["/v1/alternatives"] = [Answer({"data": []})]
    page = visit(server.address)
    ending = "彼らは幸せに暮らしました。" * 60
    write(page, ending)
    [body] = server.bodies("/v1/completions")
    assert ending.startswith(body["suffix"])
    assert 200 < len(body["suffix"].encode()) <= 512 * 0.6
    assert body["backgpt"] == {"continues": True}
    assert sheet_text(page) == "A fox. " + ending


@pytest.mark.parametrize(
    "line", ["THE OLD FOX WALKED HOME. ", "On 12/03/2024 he paid 45,678.90. ", "f(x) { y = [1]; } "]
)
def test_capitals_digits_and_signs_are_counted_as_ids_of_their_own(
    server: Scripted, visit: Callable[[str], Any], line: str
) -> None:
    server.answers["/v1/completions"] = [story("A fox. ")]
    page = visit(server.address)
    write(page, line * 60)
    suffix = server.bodies("/v1/completions")[0]["suffix"]
    n_costly = len(re.sub("[a-z ]", "", suffix))
    assert 100 < n_costly + 0.4 * (len(suffix) - n_costly) <= 512 * 0.6


def test_it_is_told_how_much_of_a_long_text_is_read(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    gate, words = threading.Event(), ["one", "two"] * 2500
    server.answers["/v1/completions"] = [
        Answer(events=[gate, *written("A fox ", finish="length"), "[DONE]"]),
        story("Once "),
        Answer(events=[*written("A "), *written("The ", index=1), "[DONE]"]),
        story("A fox. "),
        story("A fox. "),
    ]
    page = visit(server.address)
    set_up(page, seed="7")
    most = int(512 * 0.3)
    read = f"it reads only the first {most} words of"
    status = page.locator("#status")
    page.fill("#ending", " ".join(words))
    page.click("#write")
    expect(status).to_have_text(f"writing · {read} the ending")
    gate.set()
    settled(page)
    assert server.bodies("/v1/completions")[0]["suffix"].split() == words[:most]
    expect(status).to_have_text(f"5002 words · seed 7 · {read} the ending")
    announcement = page.locator("[aria-live=polite]")
    expect(announcement).to_have_text(f"done, 5002 words, {read} the ending")
    page.click("#go-on")
    settled(page)
    assert server.bodies("/v1/completions")[1]["suffix"].split()[:3] == ["A", "fox", "one"]
    expect(status).to_have_text(f"5003 words · seed 7 · {read} what follows")
    page.reload()
    expect(status).to_have_text(f"5003 words · seed 7 · {read} what follows")
    choose(page, "n", "2")
    write(page)
    expect(status).to_have_text(f"2 beginnings · seed 7 · {read} the ending")
    choose(page, "n", "1")
    page.click("#edit")
    write(page, "彼らは幸せに暮らしました。" * 60)
    count = len(server.bodies("/v1/completions")[3]["suffix"])
    read = f"it reads only the first {count} characters of the ending"
    expect(status).to_have_text(f"3 words · seed 7 · {read}")
    page.click("#edit")
    write(page, "The end.")
    expect(status).to_have_text("4 words · seed 7")


def test_the_open_view_can_be_printed(server: Scripted, visit: Callable[[str], Any]) -> None:
    found = {"index": 0, "spans": [{"text": "A.", "backward": -5.0}], "backward": total(8)}
    server.answers["/v1/score"] = [Answer({"data": [found]})]
    server.answers["/v1/completions"] = [story("A fox.")]
    server.answers["/v1/chat/completions"] = [Answer(events=[*said("Who?"), "[DONE]"])]
    page = visit(server.address)
    write(page, " The end.")

    def printed() -> str:
        page.emulate_media(media="print")
        text: str = page.locator("body").inner_text()
        page.emulate_media(media="screen")
        return " ".join(text.split())

    assert printed() == "A fox. The end."
    page.get_by_role("link", name="BackChat").click()
    page.fill("#message", "A fox.")
    page.click("#chat-send")
    page.locator("#exchanges .lines", has_text="Who?").wait_for()
    assert printed() == "it asks Who? you A fox."
    page.get_by_role("link", name="Both ways").click()
    page.fill("#text-both", "A.")
    page.click("#read-both")
    expect(page.locator("#measured")).to_be_visible()
    text = printed()
    assert "A. nats per token bits per byte" in text
    assert "more surprised" in text
    assert "Read it both ways" not in text


def test_the_line_that_a_candidate_must_be_kept_goes_when_one_was(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    both = [*said("Who?", index=0), *said("What?", index=1)]
    server.answers["/v1/chat/completions"] = [Answer(events=[*both, "[DONE]"])]
    page = visit(server.address + "#/backchat")
    fill_hidden(page, "#say [name=n]", "2")
    page.fill("#message", "A fox.")
    page.click("#chat-send")
    expect(page.get_by_role("button", name="Keep this one")).to_have_count(2)
    page.fill("#message", "So.")
    page.click("#chat-send")
    expect(page.get_by_role("alert")).to_have_text(re.compile("Keep one of the candidates"))
    page.get_by_role("button", name="Keep this one").first.click()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_what_is_being_written_is_seen_after_a_long_ending(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    gate = threading.Event()
    events = written(*[f"word{number} " for number in range(200)])
    server.answers["/v1/completions"] = [Answer(events=[*events[:150], gate, *events[150:]])]
    page = visit(server.address)
    page.fill("#ending", "ending " * 1000)
    page.keyboard.press("Control+End")
    page.keyboard.press("Control+Enter")
    expect(page.locator(WORDS, has_text="word149")).to_be_in_viewport()
    gate.set()
    settled(page)
    expect(page.locator(WORDS, has_text="word199")).to_be_in_viewport()


@pytest.mark.parametrize("mode", ["ask", "rewind", "reply"])
def test_what_backchat_is_writing_is_seen_in_a_low_window(
    server: Scripted, visit: Callable[[str], Any], mode: str
) -> None:
    gate = threading.Event()
    role = "assistant" if mode == "reply" else "user"
    server.answers["/v1/chat/completions"] = [
        Answer(events=[*said(" two", " one", role=role), gate, "[DONE]"])
    ]
    page = visit(server.address + "#/backchat")
    page.set_viewport_size({"width": 360, "height": 480})
    page.locator(f"#say [value={mode}]").check(force=True)
    page.click("#say summary")
    page.evaluate("scrollTo(0, 0)")
    page.fill("#message", "A fox.")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#exchanges .growing .word", has_text="one")).to_be_in_viewport()
    gate.set()
    page.locator("#chat-send").wait_for()
    expect(page.locator("#exchanges .word", has_text="one")).to_be_in_viewport()


def test_the_focus_and_the_caret_are_never_behind_the_bar(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [story(*["many words and lines "] * 150)]
    page = visit(server.address)
    write(page, "The end.")
    hidden = """() => {
      const { bottom } = document.activeElement.getBoundingClientRect();
      return bottom > document.querySelector("#story > .bar").getBoundingClientRect().top;
    }"""
    page.locator(WORDS).first.focus()
    for size in ((1280, 800), (390, 844)):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.locator(WORDS).first.focus()
        behind = 0
        for _ in range(40):
            page.keyboard.press("ArrowDown")
            behind += page.evaluate(hidden)
        assert behind == 0, size


def test_editing_is_left_by_its_button_and_undo_takes_nothing_else_back(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    events = [event for i in range(3) for event in written(" fox.", f"A{i}", index=i)]
    server.answers["/v1/completions"] = [Answer(events=[*events, "[DONE]"])]
    page = visit(server.address)
    expect(page.locator("#edit")).to_be_hidden()  # nothing is lost by leaving
    choose(page, "n", "3")
    write(page, " The end.")
    page.click("#edit")
    page.click("#undo")
    expect(page.locator(SHEETS)).to_have_count(3)
    page.click("#edit")
    expect(page.locator("#edit")).to_have_text("Done")
    page.click("#edit")
    expect(page.locator(SHEETS)).to_have_count(3)
    expect(page.locator("#edit")).to_have_text("Edit the ending")
    expect(page.locator("#edit")).to_be_focused()


def test_what_is_being_written_survives_a_reload(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    gate = threading.Event()
    server.answers["/v1/completions"] = [
        story(" The fox"),
        Answer(events=[*written(" red", "A small", finish="length")[:2], gate]),
    ]
    server.answers["/v1/chat/completions"] = [Answer(events=[*said("Who?")[:2], gate])]
    page = visit(server.address)
    write(page, " ran.")
    page.click("#write")
    expect(page.locator(WORDS)).to_have_count(4)
    page.reload()
    assert sheet_text(page) == "A small red ran."
    expect(page.locator("#go-on")).to_be_visible()
    page.click("#undo")
    assert sheet_text(page) == " The fox ran."
    page.get_by_role("link", name="BackChat").click()
    page.fill("#message", "A fox.")
    page.click("#chat-send")
    expect(page.locator("#exchanges .lines").first).to_have_text("Who?")
    page.reload()
    expect(page.locator("#exchanges .lines")).to_have_text(["Who?", "A fox."])
    gate.set()


def test_an_opening_is_not_put_in_front_of_a_part_of_itself(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [story(" was here.", finish="length"), story("Again a ")]
    server.answers["/v1/alternatives"] = [Answer({"data": []})]
    page = visit(server.address)
    page.click("#more summary")
    page.fill("#settings [name=opening]", "One day, a fox")
    write(page, " The end.")
    for word, opening in (("fox", None), ("was", "One day, a fox")):
        page.locator(WORDS, has_text=word).first.click()
        page.click("#menu-rewrite")
        settled(page)
        assert server.bodies("/v1/completions")[-1].get("prompt") == opening
        page.click("#undo")


def test_text_does_not_run_off_the_paper(server: Scripted, visit: Callable[[str], Any]) -> None:
    server.answers["/v1/completions"] = [story(*["word\tand\t\ttab "] * 60)]
    page = visit(server.address)
    over = """() => Math.max(...[...document.querySelectorAll("#desk .line")].map((line) =>
      line.scrollWidth - line.clientWidth))"""
    write(page, "The\t\tend.")
    assert page.evaluate(over) <= 1
    sheet = "* { letter-spacing: 0.12em !important; word-spacing: 0.16em !important }"
    page.evaluate(
        """(text) => {
          const sheet = new CSSStyleSheet();
          sheet.replaceSync(text);
          document.adoptedStyleSheets = [sheet];
        }""",
        sheet,
    )
    page.set_viewport_size({"width": 900, "height": 800})
    page.wait_for_timeout(400)  # the lines are placed anew, and their spaces widen
    assert page.evaluate(over) <= 1


def test_another_width_keeps_the_place_and_closes_the_menu(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [story(*[f"word{number} " for number in range(60)])]
    server.answers["/v1/alternatives"] = [Answer({"data": []})]
    page = visit(server.address)
    write(page, "The end.")
    page.locator(WORDS).first.focus()
    for _ in range(29):
        page.keyboard.press("ArrowRight")
    for width in (800, 1100):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(200)  # until the lines are placed anew
        expect(page.locator(":focus")).to_have_text("word30")
    page.keyboard.press("Enter")
    expect(page.locator("#menu")).to_be_visible()
    page.set_viewport_size({"width": 1100, "height": 500})  # as when a keyboard comes up
    expect(page.locator("#menu")).to_be_visible()
    page.set_viewport_size({"width": 900, "height": 800})
    expect(page.locator("#menu")).to_be_hidden()


def test_every_field_has_a_name_and_copying_is_answered(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [story("A fox.")]
    page = visit(server.address)
    expect(page.get_by_role("slider", name="Temperature")).to_be_visible()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    write(page, " The end.")
    page.click("#copy-text")
    expect(page.locator("#status")).to_have_text("text copied")
    assert page.evaluate("navigator.clipboard.readText()") == "A fox. The end."


def test_an_answer_that_begins_a_conversation_needs_no_candidate_kept(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    both = [*said("So.", index=0), *said("No.", index=1)]
    server.answers["/v1/chat/completions"] = [Answer(events=[*both, "[DONE]"])]
    page = visit(server.address + "#/backchat")
    fill_hidden(page, "#say [name=n]", "2")
    page.locator("#say [value=reply]").check(force=True)
    page.fill("#message", "Why?")
    page.click("#chat-send")
    expect(page.get_by_role("button", name="Keep this one")).to_have_count(2)
    page.locator("#say [value=ask]").check(force=True)
    page.fill("#message", "A fox.")
    page.click("#chat-send")
    expect(page.locator("#message")).to_have_value("")
    assert server.bodies("/v1/chat/completions")[1]["messages"] == [
        {"role": "assistant", "content": "A fox."}
    ]


def test_a_broken_chat_names_the_button_that_is_there(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    gate = threading.Event()
    server.answers["/v1/chat/completions"] = [
        Answer(events=[None]),
        Answer(events=[*said("are you?"), gate, None]),
    ]
    page = visit(server.address + "#/backchat")
    alert, again = page.get_by_role("alert"), page.get_by_role("button", name="Write it again")
    page.fill("#message", "A fox.")
    page.click("#chat-send")
    expect(alert).to_have_text("The connection broke before anything came: try again.")
    expect(again).to_be_hidden()
    page.click("#chat-send")
    page.locator("#exchanges .lines", has_text="are you?").wait_for()
    gate.set()
    expect(alert).to_have_text("The connection broke. What came stays; write it again.")
    expect(again).to_be_visible()
    expect(page.locator("#exchanges .lines")).to_have_text(["are you?", "A fox."])


def test_the_record_of_a_story_tells_of_changes_by_hand(
    server: Scripted, visit: Callable[[str], Any], tmp_path: Path
) -> None:
    server.answers["/v1/completions"] = [
        story("A red fox.", obeyed={"length": False, "words": None})
    ]
    server.answers["/v1/alternatives"] = [Answer({"data": ALTERNATIVES})]
    page = visit(server.address)
    choose(page, "length", "short")
    set_up(page, seed="7")
    write(page, " The end.")
    page.click("#edit")
    page.fill("#ending", " No end.")
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("5 words · seed 7 · changed by hand")
    page.locator(WORDS, has_text="red").click()
    page.get_by_role("button", name="the text begins here").click()
    record = json.loads(saved(page, "json", tmp_path))
    assert record["text"] == "fox. No end."
    assert record["seed"] == 7
    asked, *changes = record["steps"]
    assert asked["suffix"] == " The end."
    assert changes == [
        {"by_hand": "the ending was edited", "text": "A red fox. No end."},
        {"by_hand": "what stood before was taken away", "text": "fox. No end."},
    ]


RING = """(focused) => {
  const { outlineOffset, outlineWidth } = getComputedStyle(focused);
  return [outlineOffset, outlineWidth].map(parseFloat);
}"""
BAR = ("undo", "status", "edit", "write")


def test_the_ring_of_a_field_does_not_go_through_its_label(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    page = visit(server.address)
    set_up(page, seed="7")
    seed = page.locator("#settings [name=seed]")
    label, field = seed.locator("xpath=../span").bounding_box(), seed.bounding_box()
    offset, width = seed.evaluate(RING)
    letters_end = label["y"] + label["height"] * 0.85  # the line is half as high again as they
    assert field["y"] - offset - width >= letters_end


def test_the_head_of_the_menu_does_not_cover_the_ring_of_a_button_below_it(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [story("A red fox. ")]
    server.answers["/v1/alternatives"] = [Answer({"data": ALTERNATIVES})]
    page = visit(server.address)
    page.set_viewport_size({"width": 1280, "height": 900})
    write(page, "The end.")
    page.locator(WORDS).first.focus()
    page.keyboard.press("Enter")
    button = page.locator("#menu-rewrite")
    expect(button).to_be_focused()
    expect(page.locator("#menu li button")).to_have_count(3)
    head = page.locator(".menu-head")

    def covered() -> float:
        offset, width = page.locator(":focus").evaluate(RING)
        top = page.locator(":focus").bounding_box()["y"] - offset - width
        box = head.bounding_box()
        return float(box["y"] + box["height"] - top)

    assert covered() <= 0
    page.set_viewport_size({"width": 1280, "height": 350})  # the menu is higher
    page.focus("#menu-own button")
    for _ in range(5):
        page.keyboard.press("ArrowUp")
        assert covered() <= 0
    expect(button).to_be_focused()


def test_on_a_phone_the_status_has_a_line_and_the_buttons_another(
    server: Scripted, visit: Callable[[str], Any]
) -> None:
    server.answers["/v1/completions"] = [story("word " * 118)]
    page = visit(server.address)
    set_up(page, seed="3229949227")
    for width in (390, 360):
        page.set_viewport_size({"width": width, "height": 844})
        write(page, "The end.")
        status = page.locator("#status")
        expect(status).to_have_text("120 words · seed 3229949227")
        height = status.evaluate("(line) => parseFloat(getComputedStyle(line).lineHeight)")
        boxes = {name: page.locator(f"#{name}").bounding_box() for name in BAR}
        middle = {name: box["y"] + box["height"] / 2 for name, box in boxes.items()}
        assert boxes["status"]["height"] == pytest.approx(height, abs=1)
        assert middle["status"] == pytest.approx(middle["undo"], abs=1)
        assert middle["edit"] == pytest.approx(middle["write"], abs=1)
        page.click("#undo")
        expect(status).to_be_empty()
        boxes = {name: page.locator(f"#{name}").bounding_box() for name in ("undo", "write")}
        assert boxes["undo"]["y"] == boxes["write"]["y"]


@pytest.fixture(scope="module")
def model() -> backgpt.Model:
    return backgpt.load("stories", threads=1)


@pytest.fixture(scope="module")
def real_address(model: backgpt.Model) -> Iterator[str]:
    """The server itself, with the built-in model, on a free port."""
    uvicorn = pytest.importorskip("uvicorn", reason="the server needs the extra serve")
    from backgpt.server.app import create_app
    from backgpt.server.catalog import Catalog, Served

    # It was never tuned on conversations, so that what it says is nonsense; but it is the same.
    served = Served(replace(model, takes_chat=True), "")
    catalog = Catalog({"stories": served}, completions="stories", chat="stories")
    listening = socket.create_server(("127.0.0.1", 0))
    settings = uvicorn.Config(create_app(catalog), log_level="warning", access_log=False)
    running = uvicorn.Server(settings)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    running.should_exit = True
    thread.join()


ENDING = "and they lived happily ever after."


def set_up(page: Any, **values: str) -> None:
    """Fill in settings that are folded away."""
    page.click("#more summary")
    for name, value in values.items():
        page.fill(f"#settings [name={name}]", value)


def test_the_page_writes_what_the_model_writes(
    real_address: str, visit: Callable[[str], Any], model: backgpt.Model
) -> None:
    page = visit(real_address)
    set_up(page, seed="3", max_tokens="60")
    choose(page, "n", "3")
    write(page, ENDING)
    texts = model.write(ending=ENDING, n=3, max_new_tokens=60, seed=3)
    assert [sheet_text(page, i) for i in range(3)] == [text.text for text in texts]


def test_the_page_writes_again_from_a_word_and_takes_the_models_alternatives(
    real_address: str, visit: Callable[[str], Any], model: backgpt.Model
) -> None:
    page = visit(real_address)
    set_up(page, seed="3", max_tokens="20")
    write(page, ENDING)
    word = page.locator(WORDS, has_text="lived")
    word.click()
    page.click("#menu-rewrite")
    settled(page)
    [again] = model.write(ending="lived happily ever after.", max_new_tokens=20, seed=3)
    assert sheet_text(page) == again.text
    word.click()
    expect(page.locator("#menu li button")).to_have_count(10)
    rest = " happily ever after."
    likeliest = [one.text.strip() for one in model.alternatives(rest, n=10)]
    assert page.locator("#menu li .alternative").all_text_contents() == likeliest
    page.locator("#menu li button").nth(1).click()
    settled(page)
    [taken] = model.write(ending=likeliest[1] + rest, max_new_tokens=20, seed=3)
    assert sheet_text(page) == taken.text


def test_the_page_reads_both_ways_as_the_model_scores(
    real_address: str, visit: Callable[[str], Any], model: backgpt.Model
) -> None:
    page = visit(real_address + "#/both-ways")
    text = page.locator("#text-both").input_value()
    page.click("#read-both")
    expect(page.locator("#surprise")).to_have_text(text)
    shown = [row.split()[:3] for row in page.locator("#totals tr").all_inner_texts()]
    assert shown == [
        [way.direction, f"{score.loss:.3f}", f"{score.bpb:.3f}"]
        for way in (model, model.turned())
        for score in [way.score(text)]
    ]


def test_the_page_asks_what_the_model_asks(
    real_address: str, visit: Callable[[str], Any], model: backgpt.Model
) -> None:
    page = visit(real_address + "#/backchat")
    page.click("#say summary")
    page.fill("#say [name=seed]", "5")
    answer = " ".join(["A red fox ran."] * 91)  # it leaves room for a short question only
    page.fill("#message", answer)
    page.click("#chat-send")
    page.locator("#chat-send").wait_for()
    [question] = model.ask(answer, seed=5)
    lines = page.locator("#exchanges .lines")
    assert lines.all_text_contents() == [question.text, answer]


def test_no_file_of_the_page_sets_html_or_is_long() -> None:
    files = [file for file in PAGE.iterdir() if file.suffix in (".js", ".html")]
    assert len(files) > 10
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"(inner|outer)HTML|insertAdjacentHTML|document\.write|eval\(", text)
        assert not re.search(r"\s(style|on\w+)=\"|<script>|<style|https?://(?!www\.w3)", text), file
        assert text.count("\n") < 300, file
