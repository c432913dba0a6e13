"""An application of Ray Serve: its proxies' requests and times, its replicas' load and queue, out of Ray's metrics of every node.

Owns the names and what they mean in Flyball's words. Each series is of one process (`WorkerId`), and stays for a while when that has gone: what
processes counted is added up here, so that a replica that comes or goes is no restart. Times are milliseconds, and the sum of a histogram is
one of the middles of its buckets (Ray observes nothing finer): a mean is no more exact than that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar
from urllib.parse import urlsplit

from pydantic import Field

from collectors.base import Scope, ScrapeTarget, SourceContext
from collectors.door import check_histogram, check_number
from collectors.exposition import Exposition, Labels, MetricsPage
from collectors.pagesigns import told_apart
from collectors.rayserve.client import DashboardSettings, RayServeError, ServeApplication, ServeDeployment, shared
from collectors.window import CollectError, Histogram, Reading

_REQUESTS = "ray_serve_num_http_requests_total"
_E2E = "ray_serve_http_request_latency_ms"
_PROCESSING = "ray_serve_deployment_processing_latency_ms"
_RUNNING = "ray_serve_replica_processing_queries"
_WAITING = "ray_serve_deployment_queued_queries"
_NAMES = {_REQUESTS, _RUNNING, _WAITING, *(n + p for n in (_E2E, _PROCESSING) for p in ("_bucket", "_sum", "_count"))}
_RAY = re.compile(rb"^ray_", re.MULTILINE)
_METRICS_PORT = 8080
#: Remembered of one sum. A process that is gone may be told for minutes.
_MOST_SERIES = 10_000


class Options(DashboardSettings):
    """Settings of the ``ray-serve`` source."""

    metrics: tuple[str, ...] = ()
    """The metrics of each node: `http://node:8080/metrics`, by Ray's `--metrics-export-port`. Default: port 8080 of the dashboard's host."""
    application: str | None = None
    """The application. Default: the endpoint's name."""
    deployment: str | None = None
    """The deployment whose replicas count. Default: the one that takes the requests."""
    timeout_s: float = Field(default=5.0, gt=0, le=60)
    """Seconds for one page. Default 5: a third of the usual interval between reads."""

    def pages(self) -> tuple[str, ...]:
        host = urlsplit(self.dashboard).hostname or "127.0.0.1"
        return self.metrics or (f"http://{f'[{host}]' if ':' in host else host}:{_METRICS_PORT}/metrics",)


class SeriesSum:
    """What several processes counted, though each of them counts for itself, comes and goes when it likes."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, ...], float] = {}
        self._total = 0.0

    def after(self, values: Mapping[tuple[str, ...], float]) -> float:
        """``values``: of each series now. One that was not there before counts whole, one that fell began anew."""
        for key, value in values.items():
            last = self._last.pop(key, 0.0)
            self._total += value - last if value >= last else value
            self._last[key] = value  # at the end: what went first is forgotten first
        while len(self._last) > max(_MOST_SERIES, len(values)):
            del self._last[next(iter(self._last))]
        return self._total


class RayServeCollector:
    """One endpoint's application."""

    source: ClassVar[str] = "ray-serve"
    interval_s: float | None = None
    settles_s = 0.0
    scope: Scope = "endpoint"

    def __init__(self, context: SourceContext) -> None:
        self._context = context
        self._options = Options.model_validate(dict(context.options))
        self.deadline_s: float | None = 2 * self._options.timeout_s + 1
        self._expositions = {page: Exposition(_NAMES, max_series=100_000) for page in self._options.pages()}
        self._sums: dict[str, SeriesSum] = {}

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        """One Reading. Raises CollectError; besides the kinds of ``Http`` and of the client: not_ray, not_metrics, no_application,
        truncated, too_large, invalid_value."""
        deployment = await self._deployment()
        series: list[tuple[str, Labels, float]] = []
        for url, exposition in self._expositions.items():
            answer = await self._context.http.get(url, timeout_s=self._options.timeout_s, max_bytes=64 << 20)
            page = exposition.parse(answer.body, answer.headers.get("content-type", ""))
            if not page and _RAY.search(page.page) is None:
                raise CollectError("not_ray", told_apart(page.page, "Ray's"))
            series += _of_application(page, deployment.application)
        now = self._context.clock.now()
        return [
            Reading(
                target.name,
                now,
                self._counters(series),
                self._times(series, deployment),
                _gauges(series, deployment),
                facts={"deployment": deployment.name, "status": deployment.status},
            )
        ]

    async def _deployment(self) -> ServeDeployment:
        state = await shared(self._context.sessions, self._options, self._context.http.call).state()
        return deployment_of(
            state.applications, self._options.application or self._context.endpoint, self._options.deployment
        )

    def _sum(self, name: str, values: Mapping[tuple[str, ...], float]) -> float:
        return self._sums.setdefault(name, SeriesSum()).after(values)

    def _counters(self, series: Sequence[tuple[str, Labels, float]]) -> dict[str, float]:
        """By status of the HTTP proxies. None before the first request: Ray tells nothing then."""
        by: dict[str, dict[tuple[str, ...], float]] = {}
        for name, labels, value in series:
            if name != _REQUESTS:
                continue
            key, status = _key(labels), labels.get("status_code", "")
            by.setdefault("requests", {})[key] = value
            for outcome in ("errors", "throttled", "rejected"):
                by.setdefault(outcome, {})
            outcome = {"4": "rejected", "5": "errors"}.get(status[:1], "")
            outcome = {"429": "throttled", "499": ""}.get(status, outcome)  # 499: the client went away
            if outcome:
                by[outcome][key] = value
        return {name: self._sum(name, values) for name, values in by.items()}

    def _times(self, series: Sequence[tuple[str, Labels, float]], deployment: ServeDeployment) -> dict[str, Histogram]:
        """``e2e_s`` as the proxies measure it, and ``processing_s`` within the replicas, their queue not included."""
        found = {}
        for name, theirs in (("e2e_s", _E2E), ("processing_s", _PROCESSING)):
            buckets: dict[float, dict[tuple[str, ...], float]] = {}
            sums: dict[tuple[str, ...], float] = {}
            for metric, labels, value in series:
                if theirs == _PROCESSING and labels.get("deployment") != deployment.name:
                    continue
                if metric == theirs + "_bucket":
                    buckets.setdefault(_edge(labels.get("le", "")), {})[_key(labels)] = value
                elif metric == theirs + "_sum":
                    sums[_key(labels)] = value
            edges = sorted(buckets)
            if len(edges) < 2 or edges[-1] != math.inf or not sums:
                continue
            counts = tuple(self._sum(f"{name} {edge}", buckets[edge]) for edge in edges)
            total = self._sum(f"{name} sum", sums) / 1000.0
            found[name] = Histogram(tuple(edge / 1000.0 for edge in edges[:-1]), counts, total)
            check_histogram(name, found[name])
        return found


def deployment_of(applications: Mapping[str, ServeApplication], name: str, deployment: str | None) -> ServeDeployment:
    """The deployment that is meant. Raises CollectError ``no_application``."""
    found = applications.get(name)
    if found is None:
        there = ", ".join(sorted(applications)) or "none"
        raise RayServeError("no_application", f"Ray Serve has no application {name!r}; there are: {there}")
    meant = deployment or found.ingress
    if meant is None or meant not in found.deployments:
        there = ", ".join(found.deployments) or f"none yet ({found.status} {found.message[:200]})"
        raise RayServeError("no_application", f"application {name}: say which deployment; there are: {there}")
    return found.deployments[meant]


def _of_application(page: MetricsPage, application: str) -> list[tuple[str, Labels, float]]:
    found = []
    for name, series in page.items():
        for labels, value in series:
            if labels.get("application") == application and not math.isnan(value):
                check_number(name, value)
                found.append((name, labels, value))
    return found


def _key(labels: Labels) -> tuple[str, ...]:
    """Which process's series it is, whatever else is written on it."""
    return (
        labels.get("WorkerId", ""), labels.get("NodeAddress", ""), labels.get("replica", ""), labels.get("method", ""),
        labels.get("route", ""), labels.get("status_code", ""), labels.get("error_code", ""),
    )  # fmt: skip


def _edge(text: str) -> float:
    """Raises CollectError."""
    try:
        return float(text)
    except ValueError as error:
        raise CollectError("invalid_value", f"a bucket's bound is {text[:40]!r}, which is no number") from error


def _gauges(series: Sequence[tuple[str, Labels, float]], deployment: ServeDeployment) -> dict[str, float]:
    """Of those replicas that run: the series of others are of before. Serve itself knows how many there are."""
    found = {"replicas": float(len(deployment.running))}
    running = [
        v
        for n, labels, v in series
        if n == _RUNNING and labels.get("deployment") == deployment.name and labels.get("replica") in deployment.running
    ]
    waiting = [v for n, labels, v in series if n == _WAITING and labels.get("deployment") == deployment.name]
    if running:
        found["running"] = sum(running)
    if waiting:
        found["waiting"] = sum(waiting)
    return found


def make(context: SourceContext) -> RayServeCollector:
    """The entry point. Raises pydantic's ValidationError on options that are not those of ``Options``."""
    return RayServeCollector(context)
