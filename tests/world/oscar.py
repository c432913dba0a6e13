"""The stand-in for an OSCAR cluster in virtual time, with the product's own governor and system on it, over real HTTP.

What calls take is simulated: two seconds on an instance that is there, and a cold start before that where none is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from agent.settings import EndpointSettings, Settings
from agent.watch import WatchedEndpoint
from agent.wiring import Environment, actuator_of, catalogue_of
from collectors.base import Scope, ScrapeTarget
from collectors.discovery import DiscoveryContext
from collectors.http import Http
from collectors.oscar.discover import OscarSystem
from collectors.sessions import Sessions
from collectors.window import Reading
from tests.agent.slack import SLACK
from tests.fakes.oscar import PASSWORD, FakeOscar, definition
from tests.world.wire import LOOPS, Snapshot, WireWorld

COLD_S, IDLE_S = 20.0, 90.0
#: Calls a second: one in ten comes after so long that no instance is there any more.
RATE = 1 / 40
SETTINGS: dict[str, Any] = {
    "collect": {"interval_s": 60, "window_s": 300, "timeout_s": 5},
    "decide": {"interval_s": 300, "act_interval_s": 10},
    "slack": SLACK,
}
ENDPOINT: dict[str, Any] = {
    "mode": "approve",
    "objective": {"e2e_p95_s": 10.0, "error_rate": 0.02},
    "usd_per_replica_hour": 0.5,
    "policy": {
        "min_replicas": 0,
        "max_replicas": 4,
        "evidence_s": 3600,
        "min_requests": 30,
        "stable_cycles": 1,
        "cooldown_s": 600,
        "expires_s": 7200,
    },
    "verify": {"warmup_s": 60, "windows": 6, "deadline_s": 7200, "load_tolerance": 0.9},
}


class CallTelemetry:
    """See ``collectors.base.Collector``. Simulated: calls as they come, and what they meet under the service's present definition."""

    source: ClassVar[str] = "probe"
    interval_s: float | None = None
    deadline_s: float | None = None
    settles_s: float = 0.0
    scope: Scope = "endpoint"

    def __init__(self, oscar: FakeOscar, slowdown: Callable[[int], float]) -> None:
        self._oscar = oscar
        self._slowdown = slowdown
        self._rng = np.random.default_rng(3)
        self._next = oscar.now() + self._rng.exponential(1 / RATE)
        self._ended = 0.0
        self._requests = 0

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        now, found = self._oscar.now(), dict[str, list[float]]()
        least = self._oscar.services["chat"].body["synchronous"]["min_scale"]
        while self._next <= now:
            cold = COLD_S if least == 0 and self._next - self._ended > IDLE_S else 0.0
            runs = self._rng.lognormal(np.log(2.0), 0.2) * self._slowdown(least)
            self._ended = self._next + cold + runs
            told = {
                "e2e_s": cold + runs,
                "processing_s": runs,
                "queue_s": cold,
                **({"cold_start_s": cold} if cold else {}),
            }
            for name, value in told.items():
                found.setdefault(name, []).append(value)
            self._requests += 1
            self._next += self._rng.exponential(1 / RATE)
        counters = {"requests": float(self._requests), "errors": 0.0}
        samples = {name: tuple(values) for name, values in found.items()}
        return [Reading(target.name, now, counters, samples=samples)]


class OscarWorld(WireWorld):
    """See ``WireWorld``."""

    def __init__(
        self,
        folder: Path,
        *,
        slowdown: Callable[[int], float] = lambda _least: 1.0,
        snapshot: Snapshot | None = None,
        loops: tuple[str, ...] = LOOPS,
    ) -> None:
        super().__init__(folder, snapshot=snapshot, loops=loops)
        self.server = FakeOscar(starts_s=30.0, now=self.clock.now)
        self.server.add(definition("chat", synchronous={"min_scale": 0, "max_scale": 4}))
        self._telemetry = CallTelemetry(self.server, slowdown)

    def open(self) -> None:
        self.server.__enter__()

    def close(self) -> None:
        self.server.__exit__()

    async def stated(self) -> Mapping[str, Any]:
        return {**SETTINGS, "endpoints": [{**await self.discovered(), **ENDPOINT}]}

    def make_watched(self, settings: Settings, endpoint: EndpointSettings, environment: Environment) -> WatchedEndpoint:
        return WatchedEndpoint(
            endpoint,
            {"probe": self._telemetry},
            actuator_of(settings, endpoint, environment),
            catalogue_of(settings, endpoint),
        )

    async def discovered(self) -> dict[str, Any]:
        """What ``flyball discover oscar`` writes, with the reference to the password replaced by the password."""
        http, sessions = Http(), Sessions()
        stated = {"cluster": self.server.url, "password": PASSWORD}
        try:
            (found,) = [
                f async for f in OscarSystem().discover(DiscoveryContext(http.call, self.clock, sessions, stated))
            ]
        finally:
            await sessions.aclose()
            await http.aclose()
        options = {**found.settings["actuator"]["options"], "password": PASSWORD}
        actuator = {"system": "oscar", "options": options}
        return {**found.settings, "sources": {"probe": {}}, "actuator": actuator}

    # -- what is there -------------------------------------------------------------------------------------------------

    @property
    def least(self) -> int:
        count: int = self.server.services["chat"].body["synchronous"]["min_scale"]
        return count
