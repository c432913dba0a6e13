"""A scale set on the stand-in for Azure in virtual time, with the product's own governor, source and system on it.

What the model servers on its machines tell of themselves is simulated: one engine's telemetry on as many replicas as there are machines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from actuators.shape import Shape
from agent.settings import EndpointSettings, Settings
from agent.watch import WatchedEndpoint
from agent.wiring import Environment, watched_of
from collectors.azure.discover_machines import AzureMachineSystem
from collectors.base import Scope, ScrapeTarget
from collectors.clock import Clock
from collectors.discovery import DiscoveryContext
from collectors.http import Http
from collectors.sessions import Sessions
from collectors.window import Reading
from tests.agent.slack import SLACK
from tests.fakes.azure import Cloud, FakeAzure
from tests.fakes.azure.cloud import SUBSCRIPTION
from tests.fakes.azure.compute import Machine, add_set
from tests.world.endpoint import SimulatedEndpoint, Traffic
from tests.world.wire import LOOPS, START, Snapshot, WireWorld

SIZE = "Standard_F8s_v2"
SETTINGS: dict[str, Any] = {
    "collect": {"interval_s": 10, "window_s": 20, "timeout_s": 5},
    "decide": {"interval_s": 60, "act_interval_s": 5},
    "sizes": {SIZE: {"usd_per_replica_hour": 0.388, "cpus": 8}},
    "slack": SLACK,
}
ENDPOINT: dict[str, Any] = {
    "mode": "approve",
    "objective": {"ttft_p95_s": 1.0, "itl_p95_s": 0.2, "error_rate": 0.02},
    "shape": {"engine": {"max_num_seqs": 16}},
    "policy": {
        "max_replicas": 6,
        "evidence_s": 300,
        "min_requests": 30,
        "stable_cycles": 1,
        "cooldown_s": 600,
        "expires_s": 3600,
    },
    "verify": {"warmup_s": 20, "windows": 3, "deadline_s": 600, "load_tolerance": 0.3},
}


class FleetTelemetry:
    """See ``collectors.base.Collector``. Simulated: what as many servers tell together as the set has machines."""

    source: ClassVar[str] = "vllm"
    interval_s: float | None = None
    deadline_s: float | None = None
    settles_s: float = 0.0
    scope: Scope = "replica"

    def __init__(self, fleet: Machine, endpoint: SimulatedEndpoint, clock: Clock) -> None:
        self._fleet = fleet
        self._endpoint = endpoint
        self._clock = clock

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        now = self._clock.now()
        served = Shape(replicas=len(self._fleet.applied), size=self._fleet.size, engine={"max_num_seqs": 16})
        if served != self._endpoint.shape:
            self._endpoint.become(served, now)
        return [self._endpoint.reading(target.name, now)]


class MachineWorld(WireWorld):
    """See ``WireWorld``."""

    name = "fleet"

    def __init__(
        self,
        folder: Path,
        *,
        rate: float = 3.0,
        slowdown: Callable[[Shape], float] = lambda _shape: 1.0,
        snapshot: Snapshot | None = None,
        loops: tuple[str, ...] = LOOPS,
    ) -> None:
        super().__init__(folder, snapshot=snapshot, loops=loops)
        self.cloud = Cloud(self.clock.now)
        self.cloud.scale_s, self.cloud.retry_after_s = 60.0, 15
        self.fleet = add_set(self.cloud, size=SIZE, count=2)
        self.azure = FakeAzure(self.cloud)
        first = Shape(replicas=2, size=SIZE, engine={"max_num_seqs": 16})
        self.engine = SimulatedEndpoint(first, Traffic(rate), until=START + 3600.0, slowdown=slowdown, seed=3)

    def open(self) -> None:
        self.azure.__enter__()

    def close(self) -> None:
        self.azure.__exit__()

    async def stated(self) -> Mapping[str, Any]:
        return {**SETTINGS, "endpoints": [{**await self.discovered(), **ENDPOINT}]}

    def make_watched(self, settings: Settings, endpoint: EndpointSettings, environment: Environment) -> WatchedEndpoint:
        watched = watched_of(settings, endpoint, environment)
        watched.collectors = {**watched.collectors, "vllm": FleetTelemetry(self.fleet, self.engine, self.clock)}
        return watched

    async def discovered(self) -> dict[str, Any]:
        """What ``flyball discover azure-vm`` writes, with the references to secrets replaced by what they stand for."""
        http = Http()
        account = {"credential": "token", "token": "arm-token", "metrics_token": "metrics-token", "arm_url": self.azure.url,
                   "metrics_url": self.azure.url, "subscription": SUBSCRIPTION, "prices": False}  # fmt: skip
        try:
            context = DiscoveryContext(http.call, self.clock, Sessions(), account)
            (found,) = [f async for f in AzureMachineSystem().discover(context)]
        finally:
            await http.aclose()
        reached = {**found.settings["actuator"]["options"], "token": "arm-token", "metrics_token": "metrics-token"}
        actuator = {"system": "azure-vm", "options": reached}
        return {**found.settings, "api_key": "key", "sources": {"vllm": {}, "azure-vm": reached}, "actuator": actuator}

    @property
    def written(self) -> list[str]:
        """What Azure was really made to do."""
        return [o.kind for o in self.cloud.operations.values()]
