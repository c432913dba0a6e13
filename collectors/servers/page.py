"""Reads a model server's metrics page once. What its names mean is told by the server's own module."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from collectors.base import Scope, ScrapeTarget, SourceContext
from collectors.exposition import Exposition, MetricsPage
from collectors.http import check_clock
from collectors.pagesigns import told_apart
from collectors.window import CollectError, Histogram, Reading

_MAX_SERIES = 20_000


class ServerOptions(BaseModel):
    """Settings of a source that reads a model server's page."""

    model_config = ConfigDict(extra="forbid")

    url: str | None = Field(default=None, pattern=r"^https?://[^/\s?#]+$")
    """Scheme, host and port of the metrics where they are others than the endpoint's. Read once for the endpoint, however many replicas it
    has; its `api_key` is not sent there. Default: each target's own address."""
    path: str = Field(default="/metrics", pattern=r"^/")
    """Where the metrics are, under that address. Default: /metrics."""
    timeout_s: float = Field(default=5.0, gt=0, le=60)
    """Seconds for one page, connecting included. Default 5: a third of the usual interval between reads."""


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """What a page tells, in Flyball's words."""

    counters: Mapping[str, float]
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServerNames:
    """One kind of server."""

    source: str
    whose: str
    """``SGLang's``, as in a sentence."""
    wanted: Collection[str]
    """Full sample names."""
    read: Callable[[MetricsPage, str | None], ServerFigures]
    """Of a page and the endpoint's model. Raises CollectError."""


class ServerCollector:
    """One endpoint's servers of one kind. A restart shows by counters that fall."""

    interval_s: float | None = None
    settles_s = 0.0

    def __init__(self, context: SourceContext, options: ServerOptions, names: ServerNames) -> None:
        self._context = context
        self._options = options
        self._names = names
        self.source = names.source
        self.scope: Scope = "replica" if options.url is None else "endpoint"
        self.deadline_s: float | None = options.timeout_s + 1
        self._exposition = Exposition(names.wanted, max_series=_MAX_SERIES)

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        """One Reading. Raises CollectError; besides the kinds of ``Http``: not_metrics, foreign_page, model_not_found, truncated,
        too_large, invalid_value, clock_skew."""
        base, headers = (target.url, target.headers) if self._options.url is None else (self._options.url, {})
        answer = await self._context.http.get(
            base + self._options.path, headers=headers, timeout_s=self._options.timeout_s
        )
        now = self._context.clock.now()
        check_clock(answer, now)
        samples = self._exposition.parse(answer.body, answer.headers.get("content-type", ""))
        if not samples:
            raise CollectError("foreign_page", told_apart(samples.page, self._names.whose))
        found = self._names.read(samples, self._context.model)
        return [Reading(target.name, now, found.counters, found.histograms, found.gauges, facts=found.facts)]
