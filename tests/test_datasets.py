"""Sources of text: what is read is exactly what is there, and what cannot be read says where."""

import gzip
import hashlib
import json
import lzma
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from backgpt.datasets import (
    Conversation,
    Tally,
    files,
    find_source,
    hub,
    open_source,
    read_conversations,
    read_source,
    sources,
)
from backgpt.datasets.files import read_file
from backgpt.datasets.hub import HubFile, default_cache, fetch
from backgpt.errors import (
    BackgptError,
    ConfigError,
    CorruptFileError,
    DataError,
    MissingExtraError,
)
from backgpt.messages import Message

STORIES = ["One day\nthere was a cat.\n\nThe end.", "Ünï — 猫 🐈", "Third."]


def texts(path: Path | str, **options: Any) -> list[str]:
    return [document.text for document in read_source(find_source(str(path)), **options)]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def json_lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


@pytest.fixture(params=[1 << 20, 1, 2, 3, 7], ids=lambda size: f"block={size}")
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a test with blocks so small that everything lies across two of them."""
    size: int = request.param
    monkeypatch.setattr(files, "_BLOCK_BYTES", size)
    return size


# --- plain text


@pytest.mark.usefixtures("block_bytes")
def test_a_text_file_is_divided_at_end_of_text_marks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n<|endoftext|>\n".join(STORIES) + "\n<|endoftext|>\n")
    assert texts(path) == STORIES


@pytest.mark.usefixtures("block_bytes")
def test_a_text_file_without_marks_is_one_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "  \n" + STORIES[0] + "\n\n")
    assert texts(path) == [STORIES[0]]


@pytest.mark.usefixtures("block_bytes")
def test_a_given_separator_divides_and_nothing_else_does(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one<|endoftext|>one\n\n\ntwo\n\nstill two")
    assert texts(path, separator="\n\n\n") == ["one<|endoftext|>one", "two\n\nstill two"]


@pytest.mark.usefixtures("block_bytes")
def test_windows_line_ends_and_a_byte_order_mark_leave_no_trace(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeffone\r\n\r\ntwo\rstill two\r\n")
    assert texts(path) == ["one\n\ntwo\rstill two"]
    for separator in ("\n\n", "\r\n\r\n"):
        assert texts(path, separator=separator) == ["one", "two\rstill two"]


def test_the_offset_of_an_invalid_byte_is_exact(tmp_path: Path, block_bytes: int) -> None:
    for good in (b"abc", "abä🐈c".encode(), b"\xef\xbb\xbfabc", b""):
        path = write(tmp_path / "a.txt", good + b"\xff rest")
        with pytest.raises(DataError, match=f"byte 0xff at offset {len(good)};"):
            texts(path)


@pytest.mark.usefixtures("block_bytes")
def test_a_character_cut_off_at_the_end_of_the_file_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"abc" + "🐈".encode()[:3])
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8: byte 0xf0 at offset 3"):
        texts(path)


@pytest.mark.usefixtures("block_bytes")
def test_a_binary_file_is_refused_with_the_offset(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"abcdefghij\0klm")
    with pytest.raises(DataError, match="NUL byte at offset 10"):
        texts(path)


def test_a_document_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BLOCK_BYTES", 64)
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 100)
    path = write(tmp_path / "a.txt", "x" * 10_000)
    tally = Tally()
    with pytest.raises(DataError, match=r"#1: a document of more than .* give the separator"):
        list(read_source(find_source(str(path)), tally=tally))
    assert tally.file_bytes <= 192


def test_an_empty_separator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="separator = ''"):
        texts(write(tmp_path / "a.txt", "a"), separator="")


def test_documents_of_white_space_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a<|endoftext|> \n <|endoftext|>b<|endoftext|>\n")
    tally = Tally()
    found = [document.text for document in read_source(find_source(str(path)), tally=tally)]
    assert (found, tally.empty) == (["a", "b"], 1)
    assert tally.file_bytes == path.stat().st_size


def test_a_source_without_any_text_is_refused(tmp_path: Path) -> None:
    for content in ("", " \n\n"):
        with pytest.raises(DataError, match="there is no text in it"):
            texts(write(tmp_path / "a.txt", content))


# --- JSON lines, Parquet


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.xz"])
def test_json_lines_packed_or_not_give_their_texts(tmp_path: Path, name: str) -> None:
    content = json_lines([{"text": text, "n": 1} for text in STORIES])
    packed = {".gz": gzip.compress(content), ".xz": lzma.compress(content)}
    path = write(tmp_path / name, packed.get(name[-3:], content))
    assert texts(path) == STORIES
    assert [document.origin for document in open_source(str(path))][2] == f"{path}:3"


def test_a_packed_text_file_is_unpacked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt.gz", gzip.compress(b"one<|endoftext|>two"))
    assert texts(path) == ["one", "two"]


def test_another_field_can_hold_the_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json_lines([{"story": "A cat."}]))
    assert texts(path, field="story") == ["A cat."]
    with pytest.raises(DataError, match=r"a\.jsonl:1: no field 'text'; it has 'story'"):
        texts(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "not JSON"),
        (b'["text"]', "a list where a JSON object is needed"),
        (b'{"text": 5}', "field 'text' is 5, not text"),
        (b'{"text": "\xff"}', "byte 0xff at offset 28"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
        (b'{"text": "a\0b"}', "a NUL byte at offset 29"),
        pytest.param(b'{"text": "a", "id": %s}' % (b"9" * 5000), "thousands of digits", id="long"),
        pytest.param(b"[" * 100_000, "not JSON", id="deep"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "good"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=r"a\.jsonl:3: .*" + re.escape(reason)):
        texts(path)


def test_windows_line_ends_inside_and_between_records_are_normalized(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a\\r\\n\\r\\nb"}\r\n{"text": "c"}')
    assert texts(path) == ["a\n\nb", "c"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.xz"])
def test_a_packed_file_cut_short_is_refused(tmp_path: Path, name: str) -> None:
    pack = gzip.compress if name.endswith("gz") else lzma.compress
    packed = pack(json_lines([{"text": f"story {n}"} for n in range(1000)]))
    for content in (packed[:-20], b"no archive at all"):
        with pytest.raises(DataError, match="damaged or cut short"):
            texts(write(tmp_path / name, content))


def test_parquet_columns_are_read_by_row_group(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"story": [*STORIES, None, " "], "n": [1, 2, 3, 4, 5]})
    parquet.write_table(table, path, row_group_size=2)
    tally = Tally()
    found = list(read_source(find_source(str(path)), field="story", tally=tally))
    assert [document.text for document in found] == STORIES
    assert tally.empty == 2
    with pytest.raises(DataError, match="no column 'text'; it has 'story', 'n'"):
        texts(path)
    with pytest.raises(DataError, match=r"a\.parquet:1: field 'n' is 1, not text"):
        texts(path, field="n")
    with pytest.raises(DataError, match="as Parquet"):
        texts(write(tmp_path / "b.parquet", b"not parquet"))


def test_without_a_home_the_variable_for_downloads_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("~nobody-at-all").expanduser())
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(BackgptError, match="set XDG_CACHE_HOME"):
        default_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "backgpt"


@pytest.mark.parametrize(("value", "told"), [(b"\xff", r"xff"), (date(2026, 1, 2), "date")])
def test_what_parquet_has_and_json_has_not_is_told(
    tmp_path: Path, value: object, told: str
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [value]}), path)
    with pytest.raises(DataError, match=rf"field 'text' is .*{told}.*, not text"):
        texts(path)


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"backgpt\[parquet\]"):
        texts(write(tmp_path / "a.parquet", b"PAR1"))


# --- finding sources


def test_folders_are_read_recursively_in_the_order_of_their_paths(tmp_path: Path) -> None:
    write(tmp_path / "b/2.txt", "three")
    write(tmp_path / "a.txt", "one")
    write(tmp_path / "b/1.jsonl", '{"text": "two"}')
    write(tmp_path / ".hidden/x.txt", "hidden")
    write(tmp_path / "image.png", b"\0")
    assert texts(tmp_path) == ["one", "two", "three"]
    assert texts(tmp_path / "b" / "*.txt") == ["three"]
    assert texts(f"{tmp_path}/**/*.txt") == ["one", "three"]


def test_what_cannot_be_found_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*nothing\.txt.*tinystories, .*dolly"):
        texts(tmp_path / "nothing.txt")
    with pytest.raises(DataError, match="there is no"):
        texts(tmp_path / "*.txt")
    with pytest.raises(DataError, match=r"there is no '~no-such-user/a\.txt'"):
        texts("~no-such-user/a.txt")
    with pytest.raises(DataError, match=r"holds no \.txt, \.jsonl, \.parquet file"):
        texts(tmp_path)
    with pytest.raises(DataError, match=r"cannot tell what .*a\.docx is"):
        texts(write(tmp_path / "a.docx", "text"))


def test_the_builtin_corpus_is_a_source() -> None:
    first = next(open_source("builtin"))
    assert first.origin == "builtin:1"
    assert first.text == first.text.strip() != ""


def test_conversations_keep_their_parts_and_render_as_paragraphs(tmp_path: Path) -> None:
    records = [
        {"instruction": "Who?\r\n", "context": " A cat. ", "response": "It.", "category": "qa"},
        {"instruction": "Why?", "response": "So."},
    ]
    path = write(tmp_path / "a.jsonl", json_lines(records))
    one, two = read_conversations(path)
    messages = (Message("user", "Who?"), Message("assistant", "It."))
    assert one == Conversation(messages, "A cat.", f"{path}:1")
    assert one.as_text() == "Who?\n\nA cat.\n\nIt."
    assert two.as_text() == "Why?\n\nSo."
    with pytest.raises(DataError, match=r":1: no conversation; its fields are 'response'"):
        list(read_conversations(write(tmp_path / "b.jsonl", '{"response": "x"}')))


def test_conversations_of_many_messages_keep_roles_and_order(tmp_path: Path) -> None:
    turns = [("user", "Hi"), ("assistant", " "), ("assistant", "Hello"), ("user", "Bye")]
    records = [
        {"messages": [{"role": role, "content": text} for role, text in turns]},
        {"instruction": "Silence?", "response": " "},
        {"messages": []},
    ]
    tally = Tally()
    [found] = read_conversations(write(tmp_path / "a.jsonl", json_lines(records)), tally=tally)
    assert [(message.role, message.text) for message in found.messages] == [
        *(("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))
    ]
    assert (tally.empty, tally.no_turns) == (2, 0)


TALK = (Message("user", "Who?"), Message("assistant", "It."))
SHARED = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "It."}]


@pytest.mark.parametrize(
    ("record", "context"),
    [
        ({"instruction": "Who?", "response": "It.", "context": None}, ""),
        ({"instruction": "Who?", "output": "It.", "input": "A cat."}, "A cat."),
        ({"instruction": "Who?", "response": "It.", "output": "I."}, ""),
        ({"instruction": "Who?", "response": "It.", "context": "A.", "input": "B."}, "A.\n\nB."),
        ({"messages": [("system", "Be kind."), *TALK]}, "Be kind."),
        ({"messages": [("system", "Be kind."), *TALK], "context": "A cat."}, "A cat.\n\nBe kind."),
        ({"messages": [*TALK, ("assistant", None)]}, ""),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Who?"},
                    {"from": "gpt", "value": "It."},
                ]
            },
            "",
        ),
        ({"conversations": None, "messages": TALK}, ""),
    ],
)
def test_other_shapes_of_conversations_are_read_and_what_a_system_says_is_a_context(
    tmp_path: Path, record: dict[str, Any], context: str
) -> None:
    if "messages" in record:
        turns = [
            (one.role, one.text) if isinstance(one, Message) else one for one in record["messages"]
        ]
        record = {**record, "messages": [{"role": r, "content": text} for r, text in turns]}
    path = write(tmp_path / "a.jsonl", json_lines([record]))
    assert list(read_conversations(path)) == [Conversation(TALK, context, f"{path}:1")]


@pytest.mark.parametrize(
    "roles", [("user", "user"), ("user", "assistant", "assistant"), ("user", "system", "assistant")]
)
def test_conversations_without_turns_are_counted(tmp_path: Path, roles: tuple[str, ...]) -> None:
    turns = [{"role": role, "content": "x"} for role in roles]
    path = write(tmp_path / "a.jsonl", json_lines([{"messages": turns}]))
    tally = Tally()
    assert not list(read_conversations(path, tally=tally))
    assert (tally.empty, tally.no_turns) == (0, 1)


def test_conversations_in_a_file_of_another_kind_are_refused(tmp_path: Path) -> None:
    for name in ("a.txt", "a.parquet", "a.json"):
        with pytest.raises(DataError, match="holds no conversations: give JSON lines"):
            list(read_conversations(write(tmp_path / name, "x")))


def test_null_is_an_empty_text_as_it_is_in_parquet(tmp_path: Path) -> None:
    path, tally = write(tmp_path / "a.jsonl", json_lines([{"text": None}, {"text": "A."}])), Tally()
    found = read_file(path, field="text", separator=None, tally=tally)
    assert [document.text for document in found] == ["A."]
    assert tally.empty == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"messages": "hi"}', "not a list"),
        ('{"messages": [{"role": "prompter", "content": "x"}]}', "role = 'prompter'"),
        ('{"messages": [{"role": ["user"], "content": "x"}]}', r"role = \['user'\]"),
        ('{"messages": [{"role": "user"}]}', "no field 'content'"),
    ],
)
def test_messages_of_another_shape_are_refused(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        list(read_conversations(write(tmp_path / "a.jsonl", line)))


# --- the hub, played by a server that breaks off


@dataclass
class Hub:
    """A hub with one file; `script` says per request what goes wrong."""

    content: bytes
    script: list[str] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    endpoint: str = ""

    def file(self, **changes: Any) -> HubFile:
        values = {
            "repository": "some/set",
            "revision": "0123456789abcdef",
            "name": "data.jsonl",
            "size_bytes": len(self.content),
            "sha256": hashlib.sha256(self.content).hexdigest(),
        }
        return HubFile(**{**values, **changes})


@pytest.fixture
def stub() -> Iterator[Hub]:
    made = Hub(content=bytes(range(256)) * 400)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fault = made.script.pop(0) if made.script else "none"
            wanted = self.headers.get("Range")
            made.requests.append((self.path, wanted))
            if fault.isdigit():
                self.send_error(int(fault))
                return
            start = 0
            if wanted and fault != "no ranges":
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            body = made.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if fault == "break" else body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_that_breaks_off_goes_on_where_it_was(stub: Hub, tmp_path: Path) -> None:
    stub.script = ["break", "503", "break", "break"]
    seen: list[tuple[int, int]] = []
    path = fetch(
        stub.file(),
        tmp_path,
        endpoint=stub.endpoint,
        wait_seconds=0,
        on_bytes=lambda done, total: seen.append((done, total)),
    )
    assert path.read_bytes() == stub.content
    size = len(stub.content)
    starts = [wanted for _, wanted in stub.requests]
    assert starts == [None, *(f"bytes={size - size // 2**n}-" for n in (1, 1, 2, 3))]
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)
    assert stub.requests[0][0] == "/datasets/some/set/resolve/0123456789abcdef/data.jsonl"


def test_a_later_run_goes_on_with_what_an_earlier_one_left(stub: Hub, tmp_path: Path) -> None:
    stub.script = ["break", "404"]
    with pytest.raises(BackgptError, match="404"):
        fetch(stub.file(), tmp_path, endpoint=stub.endpoint, wait_seconds=0)
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".part"]
    assert fetch(stub.file(), tmp_path, endpoint=stub.endpoint).read_bytes() == stub.content
    assert stub.requests[-1][1] == f"bytes={len(stub.content) // 2}-"


def test_a_server_without_ranges_sends_the_file_from_the_start(stub: Hub, tmp_path: Path) -> None:
    stub.script = ["break", "no ranges"]
    path = fetch(stub.file(), tmp_path, endpoint=stub.endpoint, wait_seconds=0)
    assert path.read_bytes() == stub.content
    assert len(stub.requests) == 2


def test_a_file_in_the_cache_is_not_asked_for_again(stub: Hub, tmp_path: Path) -> None:
    first = fetch(stub.file(), tmp_path, endpoint=stub.endpoint)
    assert fetch(stub.file(), tmp_path, endpoint=stub.endpoint) == first
    assert len(stub.requests) == 1


def test_a_file_with_another_hash_is_refused_and_removed(stub: Hub, tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match="instead of 000000000000"):
        fetch(stub.file(sha256="0" * 64), tmp_path, endpoint=stub.endpoint)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_part_that_is_too_long_is_started_anew(stub: Hub, tmp_path: Path) -> None:
    path = fetch(stub.file(), tmp_path, endpoint=stub.endpoint)
    path.rename(path.with_name(path.name + ".part"))
    stub.content = stub.content[:1000]
    again = fetch(stub.file(), tmp_path, endpoint=stub.endpoint, wait_seconds=0)
    assert again.read_bytes() == stub.content


def test_a_server_that_never_answers_is_given_up(stub: Hub, tmp_path: Path) -> None:
    stub.script = ["500"] * 100
    with pytest.raises(BackgptError, match=r"500 .*; try again later to go on from 0 bytes"):
        fetch(stub.file(), tmp_path, endpoint=stub.endpoint, wait_seconds=0)
    assert len(stub.requests) == hub.ATTEMPTS


def test_dolly_is_downloaded_and_rendered(
    stub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.content = json_lines([{"instruction": "Who?", "context": "", "response": "It."}])
    monkeypatch.setitem(hub.HUB_FILES, "dolly", stub.file())
    monkeypatch.setattr(sources, "fetch", partial(fetch, endpoint=stub.endpoint))
    source = find_source("dolly", cache=tmp_path)
    assert [document.text for document in read_source(source)] == ["Who?\n\nIt."]


def test_the_pinned_files_are_whole_hashes_of_whole_revisions() -> None:
    for file in hub.HUB_FILES.values():
        assert len(bytes.fromhex(file.sha256)) == 32
        assert len(bytes.fromhex(file.revision)) == 20
