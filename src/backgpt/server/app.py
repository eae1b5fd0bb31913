"""The application: routes, errors in OpenAI's shape, the page, and the decode thread's life."""

import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from backgpt import __version__
from backgpt.errors import BackgptError
from backgpt.server import chat, completions, schema, scores
from backgpt.server.answers import ErrorBody, Health, ModelCard, ModelList
from backgpt.server.catalog import Catalog
from backgpt.server.decode import DecodeThread
from backgpt.server.failures import ApiError, CatchFaults, as_api_error, error_response
from backgpt.server.guard import Guard, Rules
from backgpt.server.metrics import CountRequests, Metrics
from backgpt.server.service import Service, TheService, Writes

PAGE = Path(__file__).parent / "page"
STUCK_SECONDS = 5.0
MOST_SHOWN = 40  # characters of a value that is refused
TITLE = "backgpt"
PLAIN_TEXT = "text/plain; version=0.0.4; charset=utf-8"
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody}
    for status in (400, 401, 403, 404, 408, 413, 415, 429, 500, 502, 503)
}


def create_app(
    catalog: Catalog,
    *,
    decoder: DecodeThread | None = None,
    writer: Writes | None = None,
    rules: Rules | None = None,
) -> FastAPI:
    """Return the application that serves `catalog`, to those that the `rules` let through.

    Its lifespan starts and stops the `decoder`. Without a `writer` that is what writes, too.
    """
    rules = rules or Rules()
    decoder = decoder or DecodeThread()
    writer = writer or decoder
    metrics = Metrics(decoder, writer)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        decoder.start()
        try:
            yield
        finally:
            decoder.stop()
            await writer.close()

    app = FastAPI(
        title=TITLE,
        version=__version__,
        description="Language models that predict the previous token, in OpenAI's shape.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=ERRORS,
    )
    app.state.service = Service(catalog, decoder, writer)
    for router in (completions.router, chat.router, scores.router):
        app.include_router(router)
    _add_watching(app, decoder, metrics)
    _add_page(app)
    _add_errors(app)
    app.openapi = lambda: _schema(app, with_key=rules.api_key is not None)  # type: ignore[method-assign]
    routes = frozenset(app.openapi()["paths"]) | {"/"}
    app.add_middleware(CatchFaults)
    app.add_middleware(Guard, rules=rules)
    app.add_middleware(CountRequests, metrics=metrics, routes=routes)
    return app


def _add_watching(app: FastAPI, decoder: DecodeThread, metrics: Metrics) -> None:
    @app.get("/v1/models", response_model=ModelList)
    async def models(service: TheService) -> ModelList:
        """List the models that are served."""
        return service.catalog.list()

    @app.get("/v1/models/{name:path}", response_model=ModelCard)
    async def one_model(name: str, service: TheService) -> ModelCard:
        """Say what one model is."""
        return service.catalog.card(name)

    @app.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def health(response: Response) -> Health:
        """Say whether the thread that runs the models moves."""
        seconds = decoder.seconds_since_last_round
        stuck = seconds > STUCK_SECONDS or not decoder.is_alive
        if stuck:
            response.status_code = 503
        return Health(status="stuck" if stuck else "ok", seconds_since_last_round=round(seconds, 3))

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Tell Prometheus what the server does."""
        return Response(metrics.text(), media_type=PLAIN_TEXT)


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        if not (PAGE / "index.html").is_file():
            raise ApiError(404, "this installation has no page: the API is at /v1/models")
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/static", _Static(directory=PAGE, check_dir=False))


class _Static(StaticFiles):
    """Files of the page, which a browser asks for anew: a new version must not meet an old one."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def _add_errors(app: FastAPI) -> None:
    """Tell all errors in OpenAI's shape, and none of the client's own words back."""

    def told(kind: type[Exception], make: Callable[[Any], ApiError]) -> None:
        async def tell(_: Request, error: Exception) -> Response:
            return error_response(make(error))

        app.add_exception_handler(kind, tell)

    told(BackgptError, as_api_error)
    told(RequestValidationError, _invalid)
    told(HTTPException, _refused)


def _refused(error: HTTPException) -> ApiError:
    """Return what the framework refuses: 400 is a body that it cannot decode, 404 no route."""
    reasons = {400: "the body is not JSON", 404: "there is nothing here: the API is under /v1/"}
    reason = reasons.get(error.status_code, str(error.detail))
    headers = None if error.headers is None else dict(error.headers)
    return ApiError(error.status_code, reason, headers=headers)


def _invalid(error: RequestValidationError) -> ApiError:
    """Return a 400 that says what is wrong with which field, the first of them."""
    first = _most_telling(error.errors())
    unknown = first["type"] == "extra_forbidden"
    *outer, last = first["loc"]
    known = [part for part in outer if isinstance(part, int) or part in schema.FIELDS]
    if unknown or isinstance(last, int) or last in schema.FIELDS:
        known.append(last)
    where = ".".join(map(str, known))
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not JSON")
    message = first["msg"].removeprefix("Value error, ").replace(" after validation", "")
    message = re.sub("^(Input|List|String) should", "it must", message)
    if not where:  # of the whole body
        is_rule = first["type"] == "value_error"
        return ApiError(400, message if is_rule else "the body is no JSON object: send one")
    if unknown:
        message = "this field is not known here: leave it out"
    elif where in schema.NOT_TAKEN:
        message = f"{schema.NOT_TAKEN[where]}: leave it out"
    param, value = where, first["input"]
    if not unknown and isinstance(value, int | float | str) and len(str(value)) <= MOST_SHOWN:
        where = f"{where} = {json.dumps(value)}"
    return ApiError(400, f"{where}: {message}", param=param)


def _most_telling(errors: Sequence[Any]) -> Any:
    """Return the error that says most of the first field.

    Where a field may be of several types, there is one for each: what is of one of them and wrong
    otherwise comes before what is of another type, the deeper one before the others, and in lists
    the one that comes later.
    """
    field = errors[0]["loc"][:2]
    same = [error for error in errors if error["loc"][:2] == field]

    def tells(error: Any) -> tuple[bool, int, list[int]]:
        numbers = [part for part in error["loc"] if isinstance(part, int)]
        return not error["type"].endswith("_type"), len(error["loc"]), numbers

    return max(same, key=tells)


def _schema(app: FastAPI, *, with_key: bool) -> dict[str, Any]:
    """Return the OpenAPI schema, made once: without the 422 that is never sent, with the key."""
    if not app.openapi_schema:
        made = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
        )
        for path in made["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):  # what 422 would have said
            made["components"]["schemas"].pop(name, None)
        if with_key:
            made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            made["security"] = [{"key": []}]
            made["paths"]["/health"]["get"]["security"] = []
        app.openapi_schema = made
    return app.openapi_schema
