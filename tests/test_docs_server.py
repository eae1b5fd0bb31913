"""docs/server.md: what it says the server answers is what it answers."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")
pytest.importorskip("backgpt.engine._native", reason="other engines differ in the last digits")

import backgpt
from backgpt.builtin import names
from backgpt.server.catalog import Catalog, Served
from serving import CLIENT, post, serving

PAGE = Path(__file__).parent.parent / "docs" / "server.md"
CALL = re.compile(
    r"^\$ curl -sN? http://127\.0\.0\.1:8017(?P<path>\S+) -H '[^']*'(?: \\\n *| )"
    r"-d '(?P<body>[^']*)'\n(?P<answer>.*?)\n(?=```|\$ )",
    re.MULTILINE | re.DOTALL,
)
CALLS = [
    pytest.param(*call.groups(), id=f"{call['path']} {number}")
    for number, call in enumerate(CALL.finditer(PAGE.read_text(encoding="utf-8")))
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    models = {name: Served(backgpt.load(name)) for name in names()}
    with serving(Catalog(models, completions="stories", chat="backchat")) as address:
        yield address


def test_all_examples_are_found() -> None:
    assert len(CALLS) == PAGE.read_text(encoding="utf-8").count("$ curl")


@pytest.mark.parametrize(("path", "body", "told"), CALLS)
def test_the_server_answers_as_the_page_says(address: str, path: str, body: str, told: str) -> None:
    answer = CLIENT.post(address + path, content=body, headers={"content-type": "application/json"})
    pattern = re.escape(told.strip()).replace("…", ".*?")
    pattern = re.sub(r'"created":\d+', r'"created":\\d+', pattern)
    assert re.fullmatch(pattern, answer.text.strip(), re.DOTALL), answer.text


def test_openais_client_is_answered_as_the_page_says(address: str) -> None:
    asked = {"model": "stories", "prompt": "", "suffix": "The end.", "seed": 24, "max_tokens": 40}
    text = post(address, "/v1/completions", **asked).json()["choices"][0]["text"] + "The end."
    assert "".join(f"> {line}\n" for line in text.split("\n")) in PAGE.read_text(encoding="utf-8")
