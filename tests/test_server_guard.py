"""Who may ask what: hosts, origins, content types, sizes, keys, and what every answer carries."""

import asyncio
import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from pydantic import ValidationError

from backgpt.server.guard import Guard, Rules
from backgpt.server.schema import ChatRequest, CompletionRequest, ScoreRequest
from backgpt.tokenizer import Tokenizer
from serving import CLIENT, JSON, catalog_of, serving
from tiny_models import tiny_model

PATH = "/v1/completions"
TRICKS = ("evil@localhost", "localhost/x", "localhost?x", "localhost#x", "x\\\\@localhost")
BODY = b'{"prompt": "x", "max_tokens": 1}'


@pytest.fixture(scope="module")
def address(tokenizer: Tokenizer) -> Iterator[str]:
    with serving(catalog_of(tiny_model(tokenizer))) as address:
        yield address


@pytest.fixture(scope="module")
def locked(tokenizer: Tokenizer) -> Iterator[str]:
    rules = Rules(hosts=frozenset({"127.0.0.1", "box"}), any_address=True, api_key="key é")
    with serving(catalog_of(tiny_model(tokenizer)), rules=rules) as address:
        yield address


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
@pytest.mark.parametrize("port", ["", ":8017"])
def test_the_names_of_this_machine_are_let_in(address: str, host: str, port: str) -> None:
    assert CLIENT.get(f"{address}/v1/models", headers={"host": host + port}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "10.0.0.1", "", "[::", *TRICKS]
)
@pytest.mark.parametrize("path", ["/", "/v1/models", "/health", "/static/style.css"])
def test_other_names_are_not(address: str, host: str, path: str) -> None:
    answer = CLIENT.get(address + path, headers={"host": host})
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert error["code"] == "host"
    assert error["message"].startswith(f"host = {host!r} is no name of this server")


def test_open_to_a_network_an_address_is_let_in_and_a_name_is_not(locked: str) -> None:
    for host, status in (("10.0.0.1:80", 200), ("box", 200), ("evil.example", 403)):
        assert CLIENT.get(f"{locked}/health", headers={"host": host}).status_code == status


def test_only_the_same_origin_is_let_in_and_no_other_is_ever_allowed(address: str) -> None:
    for origin in ("http://evil.example", "null", "http://localhost:1", address + "0"):
        for answer in (
            CLIENT.post(address + PATH, content=BODY, headers={**JSON, "origin": origin}),
            CLIENT.options(
                address + PATH, headers={"origin": origin, "access-control-request-method": "POST"}
            ),
        ):
            assert answer.status_code == 403
            assert not [name for name in answer.headers if name.startswith("access-control")]
    same = CLIENT.post(address + PATH, content=BODY, headers={**JSON, "origin": address})
    assert same.status_code == 200
    assert not [name for name in same.headers if name.startswith("access-control")]


def test_a_proxy_that_changes_the_host_is_told_of_or_vouched_for_by_the_browser(
    address: str,
) -> None:
    def status_of(site: str | None) -> tuple[int, str]:
        headers = {**JSON, "origin": "https://stories.example:8443"}
        if site is not None:
            headers["sec-fetch-site"] = site
        answer = CLIENT.post(address + PATH, content=BODY, headers=headers)
        return answer.status_code, answer.text

    assert status_of("same-origin")[0] == 200
    for site in (None, "same-site", "cross-site", "none", ""):
        status, said = status_of(site)
        assert status == 403
        assert "origin = 'https://stories.example:8443', host = '127.0.0.1:" in said
        assert "a proxy has to pass on the Host, with its port" in said


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"]
)
def test_a_post_has_to_be_json(address: str, kind: str) -> None:
    answer = CLIENT.post(address + PATH, content=BODY, headers={"content-type": kind})
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "content_type"


def test_a_body_has_to_be_sent_uncompressed(address: str) -> None:
    for coding, status in (("gzip", 415), ("identity", 200), ("", 200)):
        headers = {**JSON, "content-encoding": coding}
        body = gzip.compress(BODY) if coding == "gzip" else BODY
        answer = CLIENT.post(address + PATH, content=body, headers=headers)
        assert answer.status_code == status
        assert status == 200 or answer.json()["error"]["code"] == "content_encoding"


def test_json_with_a_character_set_is_json(address: str) -> None:
    kind = "application/json; charset=utf-8"
    answer = CLIENT.post(address + PATH, content=BODY, headers={"content-type": kind})
    assert answer.status_code == 200


def test_too_long_a_body_is_refused_whatever_it_says(address: str) -> None:
    large = b'{"prompt": "' + b"x" * (1 << 20) + b'"}'

    def parts() -> Iterator[bytes]:
        yield from (large[i : i + 65536] for i in range(0, len(large), 65536))

    content: Any
    for content in (large, parts()):
        answer = CLIENT.post(address + PATH, content=content, headers=JSON)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "too_large"


def test_a_body_may_have_all_the_bytes_that_are_allowed_and_not_one_more(
    tokenizer: Tokenizer,
) -> None:
    rules = Rules(most_body_bytes=len(BODY))
    with serving(catalog_of(tiny_model(tokenizer)), rules=rules) as address:
        for content, status in ((BODY, 200), (BODY + b" ", 413)):
            whole = CLIENT.post(address + PATH, content=content, headers=JSON)
            in_parts = CLIENT.post(address + PATH, content=iter([content]), headers=JSON)
            assert (whole.status_code, in_parts.status_code) == (status, status)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "x", "stop": "\\udc00"}',
        b'{"prompt": [1e3]}',
        b'{"prompt": [999999999999999999999]}',
        b'{"prompt": [[]]}',
        b'{"model": "\\u0000", "prompt": ["x", 5]}',
        b'{"prompt": "x", "backgpt": 5}',
    ],
)
def test_what_is_no_request_is_a_400_in_openais_shape(address: str, body: bytes) -> None:
    answer = CLIENT.post(address + PATH, content=body, headers=JSON)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "x", "stop": 5}, "stop"),
        ({"prompt": "x", "stop": [""]}, "stop.0"),
        ({"prompt": "x", "backgpt": {"words": [5]}}, "backgpt.words.0"),
        ({"prompt": "x", "sing": 5}, "sing"),
        ({"prompt": "x", "backgpt": {"sing": 5}}, "backgpt.sing"),
        ({"prompt": "x", "messages": []}, "messages"),
        ({"prompt": "x", "backgpt": {"seed": 5}}, "backgpt.seed"),
    ],
)
def test_the_field_that_is_wrong_is_called_by_its_name(
    address: str, body: dict[str, Any], param: str
) -> None:
    error = CLIENT.post(address + PATH, json=body).json()["error"]
    assert error["param"] == param
    assert re.match(rf"{re.escape(param)}( = .*)?: ", error["message"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is no JSON object: send one"),
        (b"[]", "the body is no JSON object: send one"),
        (b"{", "the body is not JSON"),
        (b'{"prompt": "\xff"}', "the body is not JSON"),
    ],
)
def test_a_body_that_is_no_object_is_told_of(address: str, body: bytes, message: str) -> None:
    answer = CLIENT.post(address + PATH, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


MANY = 50_000


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CompletionRequest, {"prompt": [None] * MANY}),
        (CompletionRequest, {"prompt": [[None] * MANY]}),
        (CompletionRequest, {"prompt": [[1], *[["x"]] * 63]}),
        (CompletionRequest, {"prompt": "x", "stop": [5] * 4}),
        (CompletionRequest, {"prompt": "x", "backgpt": {"words": [5] * MANY}}),
        (CompletionRequest, {"prompt": "x", "backgpt": {"raw": {"later": [None] * MANY}}}),
        (ChatRequest, {"messages": [5] * MANY}),
        (CompletionRequest, {f"field {number}": 1 for number in range(MANY)}),
        (ChatRequest, {"messages": [{f"field {number}": 1 for number in range(MANY)}]}),
        (ScoreRequest, {"input": [5] * 64}),
    ],
)
def test_a_large_request_that_is_wrong_is_not_a_thousand_errors(kind: Any, body: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert caught.value.error_count() <= 5


def test_null_says_nothing_not_even_in_a_field_that_is_not_known(address: str) -> None:
    body = {"prompt": "x", "max_tokens": 1, "functions": None, "backgpt": None, "n": None}
    assert CLIENT.post(address + PATH, json=body).status_code == 200


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/v1/models/tiny", "/metrics"])
def test_what_can_be_got_answers_head_as_well(address: str, path: str) -> None:
    answer = CLIENT.head(address + path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(("stopped", "status"), [(False, 408), (True, 503)])
def test_a_body_that_comes_too_slowly_is_given_up(stopped: bool, status: int) -> None:
    async def test() -> None:
        sent: list[Any] = []

        async def never() -> Any:
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers}
        guard = Guard(lambda *_: assert_never_run(), Rules(body_seconds=30 if stopped else 0.01))
        asked = asyncio.ensure_future(guard(scope, never, send))
        if stopped:
            await asyncio.sleep(0.01)
            asked.cancel()  # as uvicorn does with what is left
        await asked
        assert sent[0]["status"] == status

    asyncio.run(test())


async def assert_never_run() -> None:
    raise AssertionError("a request that is not whole must not be answered")


def test_a_body_that_is_broken_off_runs_nothing() -> None:
    ran: list[bool] = []

    async def app(*_: Any) -> None:
        ran.append(True)

    async def test() -> None:
        messages: list[Any] = [
            {"type": "http.request", "body": BODY, "more_body": True},
            {"type": "http.disconnect"},
        ]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(_: Any) -> None:
            pass

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers}
        await Guard(app, Rules())(scope, receive, send)

    asyncio.run(test())
    assert not ran


def test_unknown_paths_and_methods_are_told_in_openais_shape(address: str) -> None:
    for answer, status in (
        (CLIENT.get(address + "/v1/nothing"), 404),
        (CLIENT.post(address + "/completions", content=BODY, headers=JSON), 404),
        (CLIENT.get(address + PATH), 405),
        (CLIENT.get(address + "/docs"), 404),
        (CLIENT.get(address + "/static/nothing.js"), 404),
        (CLIENT.get(address + "/static/../app.py"), 404),
        (CLIENT.get(address + "/static/%2e%2e/app.py"), 404),
    ):
        assert answer.status_code == status
        message = answer.json()["error"]["message"]
        assert message
        assert ("the API is under /v1/" in message) == (status == 404)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/metrics", "/openapi.json"])
def test_without_the_key_nothing_is_done(locked: str, path: str) -> None:
    for given in ("", "Bearer wrong", "key", "key é", "Basic key é"):
        header: dict[str, Any] = {**JSON, "authorization": given.encode()}
        answer = CLIENT.request("POST" if path == PATH else "GET", locked + path, headers=header)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    key = {"authorization": "Bearer key é".encode()}
    method = {"content": BODY, "headers": {**JSON, **key}}
    answer = CLIENT.request("POST" if path == PATH else "GET", locked + path, **method)  # type: ignore[arg-type]
    assert answer.status_code == 200


def test_the_schema_tells_of_the_key_if_there_is_one(address: str, locked: str) -> None:
    key = {"authorization": "Bearer key é".encode()}
    schema = CLIENT.get(locked + "/openapi.json", headers=key).json()  # type: ignore[arg-type]
    [name] = schema["components"]["securitySchemes"]
    assert schema["security"] == [{name: []}]
    assert schema["paths"]["/health"]["get"]["security"] == []
    assert "security" not in CLIENT.get(address + "/openapi.json").json()


def test_health_and_the_page_need_no_key(locked: str) -> None:
    for path in ("/", "/health", "/static/style.css"):
        assert CLIENT.get(locked + path).status_code == 200


def test_every_answer_carries_the_security_headers(address: str) -> None:
    for answer in (
        CLIENT.get(address + "/"),
        CLIENT.get(address + "/static/style.css"),
        CLIENT.get(address + "/v1/models"),
        CLIENT.get(address + "/v1/models", headers={"host": "evil.example"}),
        CLIENT.post(address + PATH, content=b'{"prompt": "x", "stream": true}', headers=JSON),
    ):
        assert answer.headers["content-security-policy"] == (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers or answer.headers["server"] == "uvicorn"


def test_the_page_is_asked_for_anew(address: str) -> None:
    for path in ("/", "/static/style.css"):
        assert CLIENT.get(address + path).headers["cache-control"] == "no-cache"


def test_without_a_page_the_root_says_so(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backgpt.server.app.PAGE", tmp_path)
    with serving(catalog_of(tiny_model(tokenizer))) as address:
        answer = CLIENT.get(address + "/")
        assert answer.status_code == 404
        assert "no page" in answer.json()["error"]["message"]
