"""The source ``docker``: a container's use of CPU and memory, as shares of what it may use. Beside the model's own metrics, and not instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from collectors.base import Scope, ScrapeTarget, SourceContext
from collectors.discovery import Support
from collectors.docker.client import DockerSettings, shared
from collectors.window import CollectError, Reading

SUPPORT = Support(
    title="a container of Docker",
    sees=("CPU and memory, of what the container may use", "restarts, and whether memory ran out"),
    changes=(),
    verified="real part",
    how="a real Docker Engine 20.10; its recorded statistics",
)


class Options(DockerSettings):
    """Settings of the source ``docker``."""

    container: str | None = None
    """The container. Default: the endpoint's name."""


class DockerCollector:
    """One endpoint's container."""

    source: ClassVar[str] = "docker"
    interval_s: float | None = None
    deadline_s: float | None = 10.0  # Docker takes two looks, a second apart
    settles_s = 0.0
    scope: Scope = "endpoint"

    def __init__(self, context: SourceContext) -> None:
        self._context = context
        self._options = Options.model_validate(dict(context.options))

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        """One Reading. Raises CollectError: denied, missing, unreachable, invalid."""
        own = DockerSettings(host=self._options.host)
        client = shared(self._context.sessions, own, self._context.http.call, self._context.clock)
        name = self._options.container or self._context.endpoint
        container = await client.container(name)
        if container is None:
            raise CollectError("missing", f"{self._options.host} has no container {name!r}")
        stats = await client.get(f"/containers/{quote(name, safe='')}/stats", stream="false")
        if not isinstance(stats, dict):
            raise CollectError("invalid", f"{self._options.host} told no statistics of {name!r}")
        state = container.get("State") or {}
        facts = {"restarts": str(container.get("RestartCount") or 0)}
        if state.get("OOMKilled"):
            facts["out_of_memory"] = "it was killed for want of memory"
        gauges = uses(stats, container.get("HostConfig") or {})
        return [Reading(target.name, self._context.clock.now(), gauges=gauges, facts=facts)]


def uses(stats: Mapping[str, Any], host: Mapping[str, Any]) -> dict[str, float]:
    """Shares, 0..1, as far as Docker tells: of a container that does not run it tells none."""
    found: dict[str, float] = {}
    now, before = stats.get("cpu_stats") or {}, stats.get("precpu_stats") or {}
    online = now.get("online_cpus") or len((now.get("cpu_usage") or {}).get("percpu_usage") or ())
    own = _more(now.get("cpu_usage"), before.get("cpu_usage"), "total_usage")
    whole = _more(now, before, "system_cpu_usage")
    if own is not None and whole and online:
        limit = (host.get("NanoCpus") or 0) / 1e9
        if not limit and (host.get("CpuQuota") or 0) > 0:
            limit = host["CpuQuota"] / (host.get("CpuPeriod") or 100_000)
        found["cpu_usage"] = own / whole * online / (limit or online)
    memory = stats.get("memory_stats") or {}
    inner = memory.get("stats") or {}
    used, limit_bytes = memory.get("usage"), memory.get("limit")
    if used is not None and limit_bytes:
        cache = inner.get("total_inactive_file", inner.get("inactive_file", 0))  # control groups of version 1, and 2
        found["memory_usage"] = max(0.0, used - cache) / limit_bytes
    return found


def _more(now: Any, before: Any, name: str) -> float | None:
    """What came since. None: it was not told twice."""
    then, earlier = ((side or {}).get(name) for side in (now, before))
    if not isinstance(then, int | float) or not isinstance(earlier, int | float) or not earlier:
        return None
    return max(0.0, float(then) - float(earlier))


def make(context: SourceContext) -> DockerCollector:
    """The entry point. Raises pydantic's ValidationError on options that are not those of ``Options``."""
    return DockerCollector(context)
