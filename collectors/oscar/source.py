"""A service of OSCAR: its jobs, with what they waited and how long they ran, and the instances behind its address.

Owns the names and what they mean in Flyball's words. A job is a call and a pod of its own: what it waits is its cold start, and the queue before
it. A job is counted once, when it has ended, however long the cluster keeps it. Calls that are answered at once are told by nobody here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from collectors.base import Scope, ScrapeTarget, SourceContext
from collectors.oscar.client import OscarDeployment, OscarJob, OscarSettings, shared
from collectors.oscar.services import mode_of
from collectors.window import Reading

#: Ended jobs that are remembered: as long as the cluster lists them they must not count again.
_MOST_JOBS = 200_000
_DEADLINE_S = 45.0


class Options(OscarSettings):
    """Settings of the ``oscar`` source."""

    service: str | None = None
    """The service. Default: the endpoint's name."""


class OscarCollector:
    """One endpoint's service."""

    source: ClassVar[str] = "oscar"
    interval_s: float | None = None
    deadline_s: float | None = _DEADLINE_S
    settles_s = 0.0
    scope: Scope = "endpoint"

    def __init__(self, context: SourceContext) -> None:
        self._context = context
        self._options = Options.model_validate(dict(context.options))
        self._ended: dict[str, None] | None = None
        self._requests = 0
        self._errors = 0

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        """One Reading. Raises CollectError, of the client's kinds."""
        own = OscarSettings(**{name: getattr(self._options, name) for name in OscarSettings.model_fields})
        client = shared(self._context.sessions, own, self._context.http.call)
        name = self._options.service or self._context.endpoint
        mode = mode_of(await client.service(name))
        gauges = _instances(await client.deployment(name))
        counters: dict[str, float] = {}
        samples: dict[str, tuple[float, ...]] = {}
        if mode == "function":
            jobs = await client.jobs(name)
            new = self._new(jobs)
            counters = {"requests": float(self._requests), "errors": float(self._errors)}
            samples = _times(new, jobs)
            gauges |= {
                "running": float(sum(j.status == "Running" for j in jobs)),
                "waiting": float(sum(j.status in ("", "Pending") for j in jobs)),
            }
        facts = {"mode": "jobs" if mode == "function" else mode}
        return [Reading(target.name, self._context.clock.now(), counters, {}, gauges, facts=facts, samples=samples)]

    def _new(self, jobs: Sequence[OscarJob]) -> list[OscarJob]:
        """Those that have ended since the read before. At the first one nothing has: when they ended is not this moment."""
        over = [j for j in jobs if j.status in ("Succeeded", "Failed")]
        if self._ended is None:
            self._ended = dict.fromkeys(j.name for j in over)
            return []
        new = [j for j in over if j.name not in self._ended]
        self._ended |= dict.fromkeys(j.name for j in new)
        while len(self._ended) > max(_MOST_JOBS, len(over)):
            del self._ended[next(iter(self._ended))]
        self._requests += len(new)
        self._errors += sum(j.status == "Failed" for j in new)
        return new


def _times(jobs: Sequence[OscarJob], known: Sequence[OscarJob]) -> dict[str, tuple[float, ...]]:
    """``queue_s``: created to started; ``processing_s``: started to ended; ``e2e_s``: both; ``cold_start_s``: the wait of those before
    whom nobody waited, so that it was the start of their pod alone. Of those that succeeded. ``known``: all that the cluster keeps."""
    found: dict[str, list[float]] = {"queue_s": [], "processing_s": [], "e2e_s": [], "cold_start_s": []}
    for job in jobs:
        if job.status != "Succeeded" or job.created_at is None or job.started_at is None or job.finished_at is None:
            continue
        if job.created_at <= job.started_at <= job.finished_at:
            found["queue_s"].append(job.started_at - job.created_at)
            found["processing_s"].append(job.finished_at - job.started_at)
            found["e2e_s"].append(job.finished_at - job.created_at)
            if not any(_waited_before(other, job.created_at) for other in known if other.name != job.name):
                found["cold_start_s"].append(job.started_at - job.created_at)
    return {name: tuple(values) for name, values in found.items() if values}


def _waited_before(other: OscarJob, at: float) -> bool:
    return (
        other.created_at is not None and other.created_at <= at and (other.started_at is None or other.started_at > at)
    )


def _instances(deployment: OscarDeployment) -> dict[str, float]:
    """Where there is none, as only jobs run, nothing is known of replicas."""
    if deployment.state == "unavailable":
        return {}
    return {"replicas": float(max(0, deployment.instances - deployment.affected))}


def make(context: SourceContext) -> OscarCollector:
    """The entry point. Raises pydantic's ValidationError on options that are not those of ``Options``."""
    return OscarCollector(context)
