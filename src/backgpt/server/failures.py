"""What can go wrong between a client and the server, and how it is told: in OpenAI's shape."""

import logging
import traceback
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backgpt.errors import BackgptError, TooLongError

log = logging.getLogger(__name__)

TOO_LONG = "context_length_exceeded"
"""OpenAI's code for a text that the model cannot read."""

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "server_error",
}


class ApiError(BackgptError):
    """A request that is answered with an error: its status, and OpenAI's `param` and `code`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers


class BusyError(ApiError):
    """As many requests are waiting as may."""

    def __init__(self) -> None:
        super().__init__(
            429,
            "the server has as many requests as it can take: try again in a second",
            code="server_busy",
            headers={"Retry-After": "1"},
        )


class StoppingError(ApiError):
    """The server was told to stop, and this was not finished in time."""

    def __init__(self) -> None:
        super().__init__(503, "the server is stopping", code="stopping")


class FaultError(ApiError):
    """Something broke that is not the client's doing; what it was is in the server's log."""

    def __init__(self, message: str = "the server failed at this: try it again") -> None:
        super().__init__(500, message, code="fault")


def as_api_error(error: BackgptError) -> ApiError:
    """Return what a client is told: whatever a caller of the library can cause is a 400."""
    if isinstance(error, ApiError):
        return error
    return ApiError(400, str(error), code=TOO_LONG if isinstance(error, TooLongError) else None)


def error_body(error: ApiError) -> dict[str, Any]:
    """Return OpenAI's error object."""
    return {
        "error": {
            "message": str(error),
            "type": TYPES.get(error.status, "invalid_request_error"),
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(error: ApiError) -> JSONResponse:
    """Return the response that tells an error."""
    return JSONResponse(error_body(error), status_code=error.status, headers=error.headers)


def place_of(error: BaseException) -> str:
    """Return what an error is and where it came from, without what it says: that may be private."""
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{frame.name}:{frame.lineno}" for frame in frames)
    return f"{type(error).__name__} at {places}"


class CatchFaults:
    """Middleware that answers what nobody expected with a 500, and logs where it came from."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as error:
            log.error("a fault in a route: %s", place_of(error))
            if not started:
                await error_response(FaultError())(scope, receive, send)
