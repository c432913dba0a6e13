"""The stand-in for a Nomad agent in virtual time, with the product's own governor and system on it, over real HTTP. Telemetry is simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from actuators.shape import Shape
from agent.settings import EndpointSettings, Settings
from agent.watch import WatchedEndpoint
from agent.wiring import Environment, actuator_of, catalogue_of
from collectors.base import Scope, ScrapeTarget
from collectors.discovery import DiscoveryContext
from collectors.http import Http
from collectors.nomad.discover import NomadSystem
from collectors.sessions import Sessions
from collectors.window import CollectError, Reading
from tests.fakes.nomad import FakeNomad, NomadCluster, service_job
from tests.world.endpoint import SimulatedEndpoint, Traffic
from tests.world.kubernetes import ENDPOINT, SETTINGS, SIZE
from tests.world.wire import LOOPS, START, Snapshot, WireWorld

TOKEN = "flyball-token"


class AllocationTelemetry:
    """See ``collectors.base.Collector``. Simulated: what as many replicas tell as allocations run."""

    source: ClassVar[str] = "vllm"
    interval_s: float | None = None
    deadline_s: float | None = None
    settles_s: float = 0.0
    scope: Scope = "endpoint"

    def __init__(self, cluster: NomadCluster, endpoint: SimulatedEndpoint) -> None:
        self._cluster = cluster
        self._endpoint = endpoint

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        now = self._cluster.now()
        running = [a for a in self._cluster.jobs["chat"].allocations if a.status == "running"]
        if not running:
            raise CollectError("unreachable", "no allocation runs")
        served = Shape(replicas=len(running), size=SIZE, engine={"max_num_seqs": 16})
        if served != self._endpoint.shape:
            self._endpoint.become(served, now)
        return [self._endpoint.reading(target.name, now)]


class NomadWorld(WireWorld):
    """See ``WireWorld``."""

    def __init__(
        self,
        folder: Path,
        *,
        replicas: int = 2,
        rate: float = 3.0,
        slowdown: Callable[[Shape], float] = lambda _shape: 1.0,
        mode: str = "approve",
        snapshot: Snapshot | None = None,
        loops: tuple[str, ...] = LOOPS,
    ) -> None:
        super().__init__(folder, snapshot=snapshot, loops=loops)
        self.mode = mode
        self.cluster = NomadCluster(self.clock.now, start_s=20.0, healthy_s=10.0)
        self.cluster.register(service_job(count=replicas))
        for allocation in self.cluster.jobs["chat"].allocations:  # they run for long
            allocation.due -= 1000.0
        self.cluster.settle()
        tokens = {TOKEN: {"list-jobs", "read-job", "scale-job", "submit-job"}}
        self.server = FakeNomad(self.cluster, tokens)
        first = Shape(replicas=replicas, size=SIZE, engine={"max_num_seqs": 16})
        self.engine = SimulatedEndpoint(first, Traffic(rate), until=START + 3600.0, slowdown=slowdown, seed=3)

    def open(self) -> None:
        self.server.__enter__()

    def close(self) -> None:
        self.server.__exit__()

    async def stated(self) -> Mapping[str, Any]:
        found = await self.discovered()
        shape = {"size": SIZE, "engine": {"max_num_seqs": 16}}
        return {**SETTINGS, "endpoints": [{**found, **ENDPOINT, "shape": shape, "mode": self.mode}]}

    def make_watched(self, settings: Settings, endpoint: EndpointSettings, environment: Environment) -> WatchedEndpoint:
        telemetry = {"vllm": AllocationTelemetry(self.cluster, self.engine)}
        return WatchedEndpoint(
            endpoint, telemetry, actuator_of(settings, endpoint, environment), catalogue_of(settings, endpoint)
        )

    async def discovered(self) -> dict[str, Any]:
        """What ``flyball discover nomad`` writes, with the reference to the token replaced by the token."""
        http, sessions = Http(), Sessions()
        stated = {"address": self.server.url, "token": TOKEN}
        try:
            (found,) = [
                f async for f in NomadSystem().discover(DiscoveryContext(http.call, self.clock, sessions, stated))
            ]
        finally:
            await sessions.aclose()
            await http.aclose()
        options = {**found.settings["actuator"]["options"], "token": TOKEN, "allocations": False}
        return {
            **found.settings,
            "sources": {"vllm": {}},
            "actuator": {"system": "nomad", "options": options},
        }

    # -- what is there -------------------------------------------------------------------------------------------------

    @property
    def replicas(self) -> int:
        count: int = self.cluster.jobs["chat"].body["TaskGroups"][0]["Count"]
        return count

    @property
    def written(self) -> list[str]:
        """The last word of each path that was written."""
        return [path.rsplit("/", 1)[-1] for _, path in self.server.writes]
