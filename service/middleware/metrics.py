"""Metrics for Prometheus.

Requests are counted when they are answered. Jobs and trials are read from the database at each scrape.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.jobs.job_store import Jobs

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""The labels of methods. A caller may send any text as a method; all others have the label "other"."""
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """The metrics of one application."""

    def __init__(self, jobs: Jobs, data: Path) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("vitfit_requests", "Number of answered requests.", labels, registry=self.registry)
        self.seconds = Histogram(
            "vitfit_request_seconds",
            "Seconds from the request to the start of the answer.",
            ("method", "route"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_Stored(jobs, data))


class _Stored(Collector):
    def __init__(self, jobs: Jobs, data: Path) -> None:
        self._jobs, self._data = jobs, data

    def collect(self) -> Iterator[GaugeMetricFamily]:
        by_status, trials = self._jobs.totals()
        jobs = GaugeMetricFamily("vitfit_jobs", "Number of jobs by status.", labels=["status"])
        for status, count in by_status.items():
            jobs.add_metric([status], count)
        yield jobs
        yield GaugeMetricFamily("vitfit_trials", "Number of finished trials.", value=trials)
        yield GaugeMetricFamily(
            "vitfit_disk_free_bytes",
            "Free bytes on the disk of the data folder.",
            value=shutil.disk_usage(self._data).free,
        )


class Measured:
    """ASGI middleware that counts and times requests.

    The labels are the route, not the requested path, and one of `METHODS`, so that callers cannot create an unlimited
    number of labels.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in METHODS else "other"
                self._metrics.requests.labels(method, route, str(message["status"])).inc()
                self._metrics.seconds.labels(method, route).observe(time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, counted)
