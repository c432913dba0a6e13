"""A backend of HAProxy: requests by outcome, sessions, queues, servers in rotation, and the time that requests took in the mean.

Owns what the statistics mean in Flyball's words. HAProxy tells no distribution: its times are means of about the last thousand requests, in
whole milliseconds, and a mean is no quantile. How much time was spent in requests follows from them (``TimeSpent``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from collectors.base import Scope, ScrapeTarget, SourceContext
from collectors.door import check_number
from collectors.haproxy.client import ADDRESS, NAME, shared
from collectors.haproxy.statistics import CLASSES, SAMPLES, StatisticsPage, StatisticsReader, StatisticsRow
from collectors.metrics import tagged
from collectors.window import CollectError, Reading

#: CSV's name to ours, of a backend. What is not in the table of metrics is kept under its own name.
_COUNTERS = {"connection_errors": "econ", "retries": "wretr", "redispatches": "wredis"}
_MEANS = {"e2e_mean_s": "ttime", "first_byte_mean_s": "rtime", "queue_mean_s": "qtime", "connect_mean_s": "ctime"}
#: Servers that are told apart.
_MOST_SERVERS = 200


class Options(BaseModel):
    """Settings of the ``haproxy`` source."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    socket: str | None = Field(default=None, pattern=rf"^(?:{ADDRESS.pattern})$")
    """The stats socket, of any level: a path on this host, or host:port. Default: none, and `url` is read."""
    url: str | None = Field(default=None, pattern=r"^https?://\S+$")
    """HAProxy's Prometheus exporter, or its statistics page with `;csv` behind it. Default: without a socket, `/metrics` under the
    endpoint's address."""
    backend: str | None = Field(default=None, pattern=rf"^{NAME.pattern}$")
    """The backend, or the `listen` section. Default: the endpoint's name; where there is just one backend with servers, that one."""
    timeout_s: float = Field(default=5.0, gt=0, le=60)
    """Seconds for one reading by `url`. Default 5: a third of the usual interval between reads."""


class TimeSpent:
    """Seconds spent in requests, cumulative, out of a mean that slides over the last ones.

    HAProxy keeps a sum S that loses a 512th with each request and gains that request's time; the mean is S over the smaller of 512 and the
    requests so far (freq_ctr.h, ``swrate_add``, ``swrate_avg``; its manual says 1,024, as older ones still weigh in). So between two readings
    with n requests the sum gained S' - S (1 - 1/512)^n, which is their mean time, later ones a little heavier, times 512 (1 - (1 - 1/512)^n).
    Whole milliseconds leave an error of half a second at most, which the next reading takes back: it does not add up.
    """

    def __init__(self) -> None:
        self._sum_ms: float | None = None
        self._requests = 0.0
        self._spent_ms = 0.0
        self._told_ms = 0.0

    def after(self, requests: float, mean_ms: float) -> float:
        """Seconds up to a reading of so many requests in all. A count that fell is a restart, and begins anew."""
        now_ms = mean_ms * min(SAMPLES, requests)
        if self._sum_ms is None or requests < self._requests:
            self._spent_ms = self._told_ms = mean_ms * requests
        else:
            n = requests - self._requests
            kept = (1.0 - 1.0 / SAMPLES) ** n
            if n > 0:
                self._spent_ms += (now_ms - self._sum_ms * kept) * n / (SAMPLES * (1.0 - kept))
            self._told_ms = max(
                self._told_ms, self._spent_ms
            )  # rounding may take a little back: a counter does not fall
        self._sum_ms, self._requests = now_ms, requests
        return self._told_ms / 1000.0


class HAProxyCollector:
    """One endpoint's backend."""

    source: ClassVar[str] = "haproxy"
    interval_s: float | None = None
    settles_s = 0.0
    scope: Scope = "endpoint"

    def __init__(self, context: SourceContext) -> None:
        self._context = context
        self._options = Options.model_validate(dict(context.options))
        self.deadline_s: float | None = max(self._options.timeout_s, 10.0) + 1
        self._reader = StatisticsReader()
        self._spent = TimeSpent()

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        """One Reading. Raises CollectError; besides the kinds of ``Http`` and of the client: not_haproxy, not_metrics, no_backend,
        truncated, too_large, invalid_value."""
        page, version = await self._page(target)
        now = self._context.clock.now()
        backend, servers = self._mine(page)
        facts = {f"server {s.server}": s.text("status") for s in servers[:_MOST_SERVERS] if s.text("status")}
        if version is not None:
            facts["haproxy_version"] = version
        return [
            Reading(
                target.name,
                now,
                self._counters(backend),
                gauges=_gauges(backend, servers),
                started_at=page.started_at,
                facts=facts,
            )
        ]

    async def _page(self, target: ScrapeTarget) -> tuple[StatisticsPage, str | None]:
        """What it tells, and its version where that is told."""
        options = self._options
        if options.socket is not None:
            client = shared(self._context.sessions, options.socket)
            about = await client.information()
            started = about.get("Start_time_sec", "")
            at = float(started) if started.isascii() and started.isdigit() else None
            return StatisticsPage(await client.statistics(), at), about.get("Version")
        url = options.url or target.url + "/metrics"
        headers = target.headers if options.url is None else {}
        answer = await self._context.http.get(url, headers=headers, timeout_s=options.timeout_s)
        return self._reader.read(answer.body, answer.headers.get("content-type", "")), None

    def _mine(self, page: StatisticsPage) -> tuple[StatisticsRow, list[StatisticsRow]]:
        """The backend's own row, and those of its servers."""
        rows = [row for row in page.rows if row.server != "FRONTEND"]
        with_servers = {row.proxy for row in rows if not row.is_backend}
        named = self._options.backend or self._context.endpoint
        if named not in with_servers and self._options.backend is None and len(with_servers) == 1:
            (named,) = with_servers
        backend = next((row for row in rows if row.is_backend and row.proxy == named), None)
        if backend is None:
            there = ", ".join(sorted(with_servers)) or "none with a server"
            raise CollectError("no_backend", f"HAProxy has no backend {named!r}; there are: {there}. Set `backend`")
        return backend, [row for row in rows if row.proxy == named and not row.is_backend]

    def _counters(self, backend: StatisticsRow) -> dict[str, float]:
        """429 is one of 4xx here: neither `throttled` nor `rejected` can be told. Errors are those that clients got, HAProxy's own too."""
        found = {name: value for name, theirs in _COUNTERS.items() if (value := backend.number(theirs)) is not None}
        answered = [backend.number(f"hrsp_{each}") for each in CLASSES]
        requests = None if None in answered else sum(value for value in answered if value is not None)
        if requests is not None:
            found["requests"] = requests
            for name, each in (("errors", "5xx"), ("responses_4xx", "4xx")):
                found[name] = backend.number(f"hrsp_{each}") or 0.0
            mean = backend.number("ttime")
            if mean is not None and requests > 0:
                found["e2e_total_s"] = self._spent.after(requests, mean)
        for name, value in found.items():
            check_number(name, value)
        return found


def _gauges(backend: StatisticsRow, servers: Sequence[StatisticsRow]) -> dict[str, float]:
    """Of now: sessions and queue of the whole, and of each server under its name: ``running@a``."""
    queued = [value for row in (backend, *servers) if (value := row.number("qcur")) is not None]
    whole = {
        "running": backend.number("scur"),
        "waiting": sum(queued) if queued else None,
        "replicas": backend.number("act"),
    }
    found = {name: value for name, value in whole.items() if value is not None}
    if backend.number("ttime"):  # 0 where nothing came yet
        means = {name: backend.number(theirs) for name, theirs in _MEANS.items()}
        found |= {name: ms / 1000.0 for name, ms in means.items() if ms is not None}
    for server in servers[:_MOST_SERVERS]:
        for name, theirs in (("running", "scur"), ("waiting", "qcur")):
            value = server.number(theirs)
            if value is not None:
                found[tagged(name, server.server)] = value
    for name, value in found.items():
        check_number(name, value)
    return found


def make(context: SourceContext) -> HAProxyCollector:
    """The entry point. Raises pydantic's ValidationError on options that are not those of ``Options``."""
    return HAProxyCollector(context)
