"""Who may ask what, and how long it may take to: checked before anything else, in pure ASGI.

A page of another site must not reach a server on this machine: so the Host has to be one of ours
(DNS rebinding), an Origin has to be the same, nothing is allowed across origins, and a POST has to
be JSON, which no form can send. Behind a proxy the Host may be another than the browser's: then
its word for it that the origin is the same is taken, Sec-Fetch-Site, which no page can write.
"""

import asyncio
import hmac
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backgpt.server import LOOPBACK
from backgpt.server.failures import ApiError, StoppingError, error_response

WITHOUT_KEY = ("/", "/health")
STATIC = "/static/"
NOT_IN_A_HOST = "@/?#\\"
MOST_SHOWN = 80  # characters of a name that is refused
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Rules:
    """What is let through.

    `hosts` are the names and addresses the server is reached by; with `any_address` every IP
    address is one, for a server that is open to a network. Without `api_key` nobody needs one.
    """

    hosts: frozenset[str] = frozenset(LOOPBACK)
    any_address: bool = False
    api_key: str | None = None
    most_body_bytes: int = 1 << 20
    body_seconds: float = 30.0


class Guard:
    """Middleware that refuses what the rules do not let through, and sets the security headers."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
            await send(message)

        try:
            check(scope, self._rules)
            body = await _whole(receive, self._rules)
        except ApiError as error:
            await error_response(error)(scope, receive, with_headers)
            return
        if scope["method"] == "HEAD":  # whatever answers GET; servers send no body then
            scope = {**scope, "method": "GET"}
        await self._app(scope, _again(body, receive), with_headers)


def check(scope: Scope, rules: Rules) -> None:
    """Raise ApiError for a request that must not be."""
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if not _is_ours(host, rules):
        raise ApiError(
            403,
            f"host = {host[:MOST_SHOWN]!r} is no name of this server: start it with --allowed-host",
            code="host",
        )
    origin = headers.get("origin")
    same_site = headers.get("sec-fetch-site") == "same-origin"
    if origin is not None and not same_site and origin not in (f"http://{host}", f"https://{host}"):
        raise ApiError(
            403,
            f"requests from other origins are not taken: origin = {origin[:MOST_SHOWN]!r}, "
            f"host = {host[:MOST_SHOWN]!r}; a proxy has to pass on the Host, with its port",
            code="origin",
        )
    if rules.api_key is not None and not _is_open(scope["path"]):
        _check_key(headers.get("authorization", ""), rules.api_key)
    if scope["method"] == "POST":
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, "send the body as application/json", code="content_type")
        if headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
            raise ApiError(415, "send the body as it is, not compressed", code="content_encoding")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > rules.most_body_bytes:
        raise _too_large(rules.most_body_bytes)


async def _whole(receive: Receive, rules: Rules) -> bytes:
    """Return the body. Raises ApiError if it is too long or too slow, or one side leaves."""
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(rules.body_seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ApiError(400, "the body is not whole")  # nobody reads it
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > rules.most_body_bytes:
                    raise _too_large(rules.most_body_bytes)
    except TimeoutError:
        raise ApiError(
            408, f"the body was not whole after {rules.body_seconds:g} s: send it faster"
        ) from None
    except asyncio.CancelledError:  # by uvicorn alone, when its time to stop is over
        raise StoppingError from None
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that was read already, and then what comes after it."""
    message: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def give() -> Message:
        nonlocal message
        given, message = message, None
        return given or await receive()

    return give


def _is_ours(host: str, rules: Rules) -> bool:
    if any(character in host for character in NOT_IN_A_HOST):
        return False
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name in rules.hosts:
            return True
        return rules.any_address and bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _is_open(path: str) -> bool:
    """Return whether a path needs no key: health, and the page without what it does."""
    return path in WITHOUT_KEY or path.startswith(STATIC)


def _check_key(authorization: str, key: str) -> None:
    scheme, _, given = authorization.partition(" ")
    same = hmac.compare_digest(given.strip().encode("latin-1"), key.encode())
    if scheme.lower() != "bearer" or not same:
        raise ApiError(
            401,
            "this server needs its API key, as Authorization: Bearer",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most:,} bytes: send less", code="too_large")
