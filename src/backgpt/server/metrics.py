"""`/metrics`: what the server does, as Prometheus reads it. No text is ever part of it."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backgpt.server.decode import DecodeThread
from backgpt.server.service import Writes

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
OTHER = "other"


class _Counts(Collector):
    """What the decode thread and what writes count themselves."""

    def __init__(self, decoder: DecodeThread, writer: Writes) -> None:
        self._decoder, self._writer = decoder, writer

    def collect(self) -> list[CounterMetricFamily]:
        """Return the counts as they are now."""
        scheduler = self._decoder.scheduler
        counts = (
            ("backgpt_tokens_drawn", "Tokens written.", self._writer.n_drawn),
            ("backgpt_faults", "Faults while models ran.", scheduler.n_faults),
            ("backgpt_canceled", "Requests whose clients left.", scheduler.n_canceled),
        )
        return [CounterMetricFamily(name, text, value=value) for name, text, value in counts]


class Metrics:
    """The server's metrics, in a registry of their own."""

    def __init__(self, decoder: DecodeThread, writer: Writes) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Counts(decoder, writer))
        scheduler, both = decoder.scheduler, {decoder, writer}
        gauges = (
            ("backgpt_samples_running", "Samples being written.", lambda: scheduler.n_running),
            (
                "backgpt_samples_in_flight",
                "Asked for and not ended.",
                lambda: sum(one.in_flight for one in both),
            ),
            ("backgpt_work_waiting", "Jobs that wait to begin.", lambda: decoder.n_waiting),
            (
                "backgpt_seconds_since_last_round",
                "How long the decode thread has been in one round.",
                lambda: decoder.seconds_since_last_round,
            ),
        )
        for name, text, read in gauges:
            Gauge(name, text, registry=self.registry).set_function(read)
        self.requests = Counter(
            "backgpt_requests",
            "Answered requests.",
            ("route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "backgpt_request_seconds",
            "From the request to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """Return all of them in Prometheus's format."""
        return generate_latest(self.registry)


class CountRequests:
    """Middleware that counts answers and how long they took, by route."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: frozenset[str]) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        route = scope["path"] if scope["path"] in self._routes else OTHER

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            self._metrics.requests.labels(route, str(status or 500)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)
