"""`backgpt serve`: the page and the API, on this machine."""

import errno
import logging
import math
import os
import socket
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from typer import Option

from backgpt.cli.chat import CHAT_MODEL
from backgpt.cli.given import WHICH_MODEL, Device, Threads, open_model
from backgpt.cli.terminal import tell
from backgpt.errors import BackgptError, UsageError, needs_extra, printable
from backgpt.server import LOOPBACK

if TYPE_CHECKING:
    from fastapi import FastAPI

    from backgpt.server.catalog import Catalog
    from backgpt.server.decode import DecodeThread
    from backgpt.server.guard import Rules
    from backgpt.server.service import Writes

KEY_VARIABLE = "BACKGPT_API_KEY"
UPSTREAM_KEY_VARIABLE = "BACKGPT_UPSTREAM_API_KEY"
EVERYWHERE = ("0.0.0.0", "::")
SECONDS_TO_TELL = 3  # that streams have to say that they end
SECONDS_BETWEEN_FULL = 60
KEEP_ALIVE_SECONDS = 75  # longer than clients, so that no connection closes under a request


def serve(
    model: Annotated[
        list[str] | None,
        Option(
            help=f"What to serve: {WHICH_MODEL}; all built-in models if none is given. NAME=MODEL "
            "calls it NAME. Repeatable."
        ),
    ] = None,
    host: Annotated[str, Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Option(help="The port; 0 takes a free one.", min=0, max=65535)] = 8017,
    api_key_file: Annotated[
        Path | None,
        Option(help=f"A file with the key that clients must send; {KEY_VARIABLE} does the same."),
    ] = None,
    open_to_network: Annotated[
        bool,
        Option("--open-to-network", help="Listen beyond this machine without an API key."),
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        Option(help="Another name by which browsers reach this server. Repeatable."),
    ] = None,
    max_running: Annotated[int, Option(help="Most texts that are written at a time.", min=1)] = 64,
    max_waiting: Annotated[
        int, Option(help="Most texts that wait; beyond, clients are told to try again.", min=0)
    ] = 256,
    grace_seconds: Annotated[
        float,
        Option(help="Told to stop, it waits so long for what is being written.", min=0, max=3600),
    ] = 5.0,
    access_log: Annotated[
        bool, Option("--access-log", help="Log each request: no text, only what was answered.")
    ] = False,
    upstream: Annotated[
        str | None,
        Option(
            help="Write on another server, by its URL: one that serves the same model, such as "
            "vLLM; scores and alternatives are still computed here."
        ),
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Serve the page where text grows leftward, and an API in OpenAI's shape.

    It listens on this machine only, sends nothing anywhere, and logs no text. Ctrl-C, or SIGTERM,
    lets it finish what is being written; once more, and it stops at once.
    """
    key = _api_key(api_key_file)
    if host not in LOOPBACK and key is None and not open_to_network:
        raise UsageError(
            f"host = {host}: others could reach this server; give it an API key "
            f"(--api-key-file or {KEY_VARIABLE}), or say --open-to-network"
        )
    if upstream is not None:
        _check_url(upstream)
    with needs_extra("serve", "the server"):
        import uvicorn  # noqa: F401

        from backgpt.server.app import create_app
        from backgpt.server.decode import DecodeThread
        from backgpt.server.service import Writes
        from backgpt.server.upstream import Upstream

    catalog = _catalog(model, device, threads)
    listening = _listen(host, port)
    decoder = DecodeThread(max_running=max_running, max_waiting=max_waiting)
    writer: Writes = decoder
    if upstream is not None:
        writer = Upstream(
            upstream,
            catalog,
            max_in_flight=max_running + max_waiting,
            api_key=(os.environ.get(UPSTREAM_KEY_VARIABLE) or "").strip() or None,
        )
    rules = _rules(host, key, allowed_host)
    app = create_app(catalog, decoder=decoder, writer=writer, rules=rules)
    names = printable(catalog.names)
    tell(f"backgpt: serving {names} at {_url(listening)}")
    _set_up_logs(access=access_log)
    _run(app, decoder, writer, listening=listening, grace_seconds=grace_seconds)


def _run(
    app: "FastAPI",
    decoder: "DecodeThread",
    writer: "Writes",
    *,
    listening: socket.socket,
    grace_seconds: float,
) -> None:
    """Answer requests until told to end. Raises BackgptError if the models cannot be run."""
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            server_header=False,
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(grace_seconds) + SECONDS_TO_TELL,
        )
    )

    def fail_what_runs() -> None:
        for one in (decoder, writer):
            one.ask_to_stop()

    def stop(signal: int, frame: FrameType | None) -> None:
        """Let what runs end in its time; told a second time, have it fail at once."""
        again = server.should_exit
        if not again and (decoder.in_flight or writer.in_flight):  # print may be what it came upon
            os.write(2, f"backgpt: stopping, in at most {grace_seconds:g} s\n".encode())
        timer = threading.Timer(0.0 if again else grace_seconds, fail_what_runs)
        timer.daemon = True
        timer.start()
        uvicorn.Server.handle_exit(server, signal, frame)

    def died() -> None:
        server.should_exit = True

    server.handle_exit = stop  # type: ignore[assignment, method-assign]
    decoder.died = died
    server.run(sockets=[listening])
    if not decoder.stopped_in_peace:
        raise BackgptError("the models can no longer be run: start the server again")


def _set_up_logs(*, access: bool) -> None:
    logging.basicConfig(level=logging.WARNING, format="backgpt: %(message)s")
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # warns of clients that left
    logging.getLogger("asyncio").addFilter(_FullTold())
    if access:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)


class _FullTold(logging.Filter):
    """Tells in one line, once a minute, that a process may open no more connections.

    asyncio does so in a traceback for each that it would take, thousands of times a second, and
    in as many where the server has ended before it tries again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a record; one of connections is rewritten."""
        said = record.getMessage()
        if "_start_serving" in said and self._last > 0:
            return False
        if not said.startswith("socket.accept() out of system resource"):
            return True
        if record.created - self._last < SECONDS_BETWEEN_FULL:
            return False
        self._last = record.created
        error = record.exc_info[1] if record.exc_info else None
        reason = getattr(error, "strerror", "the system has no room")
        record.msg = (
            "no more connections can be taken: %s; raise ulimit -n, or put a proxy in front"
        )
        record.args, record.exc_info = (reason,), None
        return True


def _catalog(wanted: list[str] | None, device: str, threads: int | None) -> "Catalog":
    """Load the models that are wanted. Raises as `api.load`, and DataError if there is none."""
    from backgpt import builtin
    from backgpt.card import CARD, read_card
    from backgpt.model_folder import folder_of
    from backgpt.server.catalog import Catalog, Served

    models: dict[str, Served] = {}
    for one in wanted or builtin.names():
        name, separator, path = one.partition("=")
        if separator and not (name and path):
            raise UsageError(f"model = {one}: a name or a model is missing in NAME=MODEL")
        path = path if separator else name
        if not separator and path not in builtin.names():
            name = Path(path).resolve().name
        if name in models:
            raise UsageError(f"two models are called {name}: call one of them NAME=MODEL")
        loaded = open_model(path, engine=None, device=device, threads=threads)
        card = read_card(folder_of(builtin.find(path)) / CARD)
        models[name] = Served(loaded, card.description if card else "")
    if not models:
        raise UsageError("no built-in model is installed: name one with --model")
    first = next(iter(models))
    chat = next((name for name, one in models.items() if one.model.takes_chat), CHAT_MODEL)
    return Catalog(
        models,
        completions=builtin.DEFAULT if builtin.DEFAULT in models else first,
        chat=CHAT_MODEL if CHAT_MODEL in models else chat,
    )


def _api_key(file: Path | None) -> str | None:
    """Return the key that clients must send, if there is one."""
    if file is None:
        return os.environ.get(KEY_VARIABLE, "").strip() or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"the API key cannot be read from {file}: give another file") from None
    if not key:
        raise UsageError(f"{file} is empty: write the API key into it")
    return key


def _check_url(url: str) -> None:
    """Raise UsageError unless `url` is that of a server."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise UsageError(f"upstream = {url!r}: give a URL such as http://127.0.0.1:8000")


def _rules(host: str, key: str | None, allowed: list[str] | None) -> "Rules":
    from backgpt.server.guard import Rules

    names = {*LOOPBACK, *(name.lower() for name in allowed or ())}
    if host in EVERYWHERE:
        names.add(socket.gethostname().lower())
    else:
        names.add(host.lower())
    return Rules(hosts=frozenset(names), any_address=host in EVERYWHERE, api_key=key)


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound. Raises BackgptError if that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.getaddrinfo(host, port, family)
    except (OSError, UnicodeError):
        raise UsageError(f"host = {host!r} has no address: choose another --host") from None
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        wrong = "host" if error.errno == errno.EADDRNOTAVAIL else "port"
        raise BackgptError(
            f"cannot listen on {host}, port {port}: {reason}; choose another --{wrong}"
        ) from None


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
