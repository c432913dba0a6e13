"""A job of Nomad: how many of its allocations run, wait and failed, and what of their CPU and memory they use.

Owns the names of Nomad's telemetry and what they mean in Flyball's words. Two traps of it: the series of allocations that have ended linger, and
each node has a series for each of its states of before, frozen; both are left out. It tells nothing of requests: those come from the engine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from collectors.base import Scope, ScrapeTarget, SourceContext
from collectors.door import check_number
from collectors.exposition import Exposition, MetricsPage
from collectors.nomad.client import JobAllocation, NomadClient, NomadError, NomadSettings, shared
from collectors.pagesigns import told_apart
from collectors.window import CollectError, Reading

_ALLOCATION = "nomad_client_allocs_"
_HOST = "nomad_client_host_"
_BLOCKED = "nomad_nomad_blocked_evals_total_blocked"
_OF_ALLOCATION = ("cpu_total_ticks", "cpu_allocated", "memory_usage", "memory_rss", "memory_allocated")
_OF_HOST = ("cpu_idle", "memory_available", "memory_total")
_NAMES = {*(_ALLOCATION + n for n in _OF_ALLOCATION), *(_HOST + n for n in _OF_HOST), _BLOCKED}
_NOMAD = re.compile(rb"^nomad_", re.MULTILINE)
_Usage = Mapping[str, Mapping[str, float]]


class Options(NomadSettings):
    """Settings of the ``nomad`` source."""

    job: str | None = None
    """The job. Default: the endpoint's name."""
    group: str | None = None
    """The group that serves. Default: the job's only one."""
    agents: tuple[str, ...] = ()
    """HTTP addresses of the clients that the job runs on: each tells of its own allocations alone. Default: `address`."""
    timeout_s: float = Field(default=5.0, gt=0, le=60)
    """Seconds for one agent's page. Default 5: a third of the usual interval between reads."""


class NomadCollector:
    """One endpoint's job."""

    source: ClassVar[str] = "nomad"
    interval_s: float | None = None
    settles_s = 0.0
    scope: Scope = "endpoint"

    def __init__(self, context: SourceContext) -> None:
        self._context = context
        self._options = Options.model_validate(dict(context.options))
        self.deadline_s: float | None = 2 * self._options.timeout_s + 1
        agents = self._options.agents or (self._options.address,)
        self._expositions = {agent: Exposition(_NAMES, max_series=200_000) for agent in agents}

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        """One Reading. Raises CollectError; besides the kinds of the client: not_nomad, no_prometheus, no_group, invalid_value."""
        own = NomadSettings(**{name: getattr(self._options, name) for name in NomadSettings.model_fields})
        client = shared(self._context.sessions, own, self._context.http.call)
        job = self._options.job or self._context.endpoint
        counts = _counts(job, await client.summary(job), self._options.group)
        running = [a for a in await client.allocations(job) if a.running and self._options.group in (None, a.group)]
        pages = [await self._page(client, agent, exposition) for agent, exposition in self._expositions.items()]
        gauges = {**counts, **_usage(pages, running), **_hosts(pages)}
        versions = {str(a.job_version) for a in running}
        facts = {"job_version": "+".join(sorted(versions))} if versions else {}
        return [Reading(target.name, self._context.clock.now(), gauges=gauges, facts=facts)]

    async def _page(self, client: NomadClient, agent: str, exposition: Exposition) -> MetricsPage:
        try:
            answer = await client.metrics(agent, self._options.timeout_s)
        except NomadError as error:
            if "Prometheus is not enabled" not in error.detail:
                raise
            text = f"{agent} keeps no Prometheus metrics: set telemetry {{ prometheus_metrics = true, publish_allocation_metrics = true }}"
            raise NomadError("no_prometheus", text) from error
        page = exposition.parse(answer.body, answer.headers.get("content-type", ""))
        if not page and _NOMAD.search(page.page) is None:
            raise CollectError("not_nomad", told_apart(page.page, "Nomad's"))
        return page


def _counts(job: str, summary: Mapping[str, Mapping[str, int]], group: str | None) -> dict[str, float]:
    """Raises NomadError ``no_group``."""
    if group is not None and group not in summary:
        raise NomadError("no_group", f"job {job} has no group {group!r}; there are: {', '.join(summary) or 'none'}")
    of = [states for name, states in summary.items() if group in (None, name)]
    names = {"Running": "replicas", "Starting": "replicas_starting", "Queued": "replicas_unplaced"}
    return {ours: float(sum(s.get(theirs, 0) for s in of)) for theirs, ours in names.items() if of}


def _usage(pages: Sequence[MetricsPage], running: Sequence[JobAllocation]) -> dict[str, float]:
    """Of the running allocations that an agent tells of: MHz of those that they were given, bytes of those."""
    ids = {a.id for a in running}
    by: dict[str, dict[str, float]] = {}
    for page in pages:
        for name in _OF_ALLOCATION:
            for labels, value in page.get(_ALLOCATION + name, ()):
                if labels.get("alloc_id") in ids and not math.isnan(value):
                    check_number(_ALLOCATION + name, value)
                    each = by.setdefault(labels["alloc_id"], {})
                    each[name] = each.get(name, 0.0) + value  # its tasks
    found = {}
    for ours, used, given in (
        ("cpu_usage", ("cpu_total_ticks",), "cpu_allocated"),
        ("memory_usage", ("memory_usage", "memory_rss"), "memory_allocated"),
    ):
        shares = [share for of in by.values() if (share := _share(of, used, given)) is not None]
        if shares:
            found[ours] = sum(shares) / len(shares)
    return found


def _share(of: Mapping[str, float], used: Sequence[str], given: str) -> float | None:
    """May be more than 1: what a task was given of the CPU is no limit. Of memory, 0 is said by a driver that cannot measure it."""
    told = [of[name] for name in used if name in of and (of[name] or name == "cpu_total_ticks")]
    value = told[0] if told else None
    whole = of.get(given)
    return None if value is None or not whole else value / whole


def _hosts(pages: Sequence[MetricsPage]) -> dict[str, float]:
    """Of the nodes as they are: the series of a node's state of before stays as it was."""
    values: dict[str, list[float]] = {}
    for page in pages:
        for name in _OF_HOST:
            for labels, value in page.get(_HOST + name, ()):
                if labels.get("node_status") == "ready" and not math.isnan(value):
                    check_number(_HOST + name, value)
                    values.setdefault(name, []).append(value)
    found = {}
    if values.get("cpu_idle"):
        found["host_cpu_usage"] = max(0.0, 1.0 - sum(values["cpu_idle"]) / len(values["cpu_idle"]) / 100.0)
    total = sum(values.get("memory_total", ()))
    if total and "memory_available" in values:
        found["host_memory_usage"] = max(0.0, 1.0 - sum(values["memory_available"]) / total)
    blocked = [v for page in pages for _, v in page.get(_BLOCKED, ()) if not math.isnan(v)]
    return found | ({"blocked_evaluations": max(blocked)} if blocked else {})


def make(context: SourceContext) -> NomadCollector:
    """The entry point. Raises pydantic's ValidationError on options that are not those of ``Options``."""
    return NomadCollector(context)
