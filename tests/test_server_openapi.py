"""The OpenAPI schema, and what the server does with whatever fits it and whatever does not."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")
pytest.importorskip("schemathesis", reason="it makes the requests")

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from backgpt.tokenizer import Tokenizer
from serving import CLIENT, catalog_of, serving
from tiny_models import tiny_model

PATHS = {
    *("/health", "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions"),
    *("/v1/models/{name}", "/v1/score", "/v1/alternatives"),
}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def address(tokenizer: Tokenizer) -> Iterator[str]:
    model = tiny_model(tokenizer, block_size=64)
    with serving(catalog_of(model)) as address:
        yield address


def test_the_schema_tells_title_version_and_all_that_is_there(address: str) -> None:
    import backgpt

    schema = CLIENT.get(address + "/openapi.json").json()
    assert schema["info"]["title"] == "backgpt"
    assert schema["info"]["version"] == backgpt.__version__
    assert set(schema["paths"]) == PATHS
    for path in schema["paths"].values():
        for operation in path.values():
            assert "422" not in operation["responses"]
            for status in ("400", "502"):
                assert "ErrorBody" in str(operation["responses"][status])
    told = json.dumps(schema)
    for name in schema["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in told, f"nothing is a {name}"


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_generated_request_breaks_the_server(address: str, mode: GenerationMode) -> None:
    fuzz(address, mode, 10)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_generated_request_of_many_breaks_the_server(address: str, mode: GenerationMode) -> None:
    fuzz(address, mode, 500)


def fuzz(address: str, mode: GenerationMode, examples: int) -> None:
    """Send generated requests to all operations; none may be answered with a fault."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) == len(PATHS)
    for operation in operations:
        if not operation.body and mode is GenerationMode.NEGATIVE:
            continue  # there is nothing that could be wrong
        sent: list[tuple[Any, int]] = []
        _sender(operation, mode, examples, sent)()
        assert len(sent) >= (examples // 2 if operation.body else 1)
        if mode is GenerationMode.NEGATIVE:
            assert min(status for body, status in sent if not has_null(body)) >= 400


def has_null(value: Any) -> bool:
    """Return whether there is a null in what is sent, which says nothing and is no error."""
    if isinstance(value, dict | list):
        return any(map(has_null, value.values() if isinstance(value, dict) else value))
    return value is None


def _sender(
    operation: Any, mode: GenerationMode, examples: int, sent: list[tuple[Any, int]]
) -> Callable[[], None]:
    @settings(
        max_examples=examples,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        response = case.call(timeout=60)
        sent.append((case.body, response.status_code))
        assert response.status_code < 500
        case.validate_response(response, checks=CHECKS)

    return send
