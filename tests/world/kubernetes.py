"""The stand-in for a cluster in virtual time, with the product's own governor and system on it, over real HTTP.

What the pods tell of themselves is simulated: one engine's telemetry on as many replicas, and with those limits, as serve in the cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from actuators.commandline import engine_of
from actuators.shape import Shape
from agent.settings import EndpointSettings, Settings
from agent.watch import WatchedEndpoint
from agent.wiring import Environment, actuator_of, catalogue_of
from collectors.base import Scope, ScrapeTarget
from collectors.discovery import DiscoveryContext
from collectors.http import Http
from collectors.kubernetes.discover import KubernetesSystem
from collectors.sessions import Sessions
from collectors.window import CollectError, Reading
from tests.agent.slack import SLACK
from tests.fakes.kubernetes import Cluster, FakeKubernetes, manifest
from tests.world.endpoint import SimulatedEndpoint, Traffic
from tests.world.wire import LOOPS, START, Snapshot, WireWorld

SIZE = "g2-standard-8"
SETTINGS: dict[str, Any] = {
    "collect": {"interval_s": 10, "window_s": 20, "timeout_s": 5},
    "decide": {"interval_s": 60, "act_interval_s": 5},
    "sizes": {SIZE: {"usd_per_replica_hour": 1.0}},
    "slack": SLACK,
}
ENDPOINT: dict[str, Any] = {
    "mode": "approve",
    "objective": {"ttft_p95_s": 1.0, "itl_p95_s": 0.2, "error_rate": 0.02},
    "policy": {
        "min_replicas": 1,
        "max_replicas": 6,
        "evidence_s": 300,
        "min_requests": 30,
        "stable_cycles": 1,
        "cooldown_s": 600,
        "expires_s": 3600,
    },
    "verify": {"warmup_s": 20, "windows": 3, "deadline_s": 600, "load_tolerance": 0.3},
}


class PodTelemetry:
    """See ``collectors.base.Collector``. Simulated: what as many replicas tell as serve in the cluster, on their newest limits."""

    source: ClassVar[str] = "vllm"
    interval_s: float | None = None
    deadline_s: float | None = None
    settles_s: float = 0.0
    scope: Scope = "replica"

    def __init__(self, cluster: Cluster, endpoint: SimulatedEndpoint) -> None:
        self._cluster = cluster
        self._endpoint = endpoint

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        now = self._cluster.now()
        pods = [p for p in self._cluster.all("pods", "default") if p["status"].get("conditions")]
        if not pods:
            raise CollectError("unreachable", "no pod serves")
        newest = max(pods, key=lambda p: p["metadata"]["created_at"])
        served = Shape(replicas=len(pods), size=SIZE, engine=engine_of(newest["spec"]["containers"][0]))
        if served != self._endpoint.shape:
            self._endpoint.become(served, now)
        return [self._endpoint.reading(target.name, now)]


class KubernetesWorld(WireWorld):
    """See ``WireWorld``. ``autoscaler``: an HPA that sets the count. ``inference``: an InferenceService, in the Deployment's place."""

    def __init__(
        self,
        folder: Path,
        *,
        replicas: int = 2,
        rate: float = 3.0,
        slowdown: Callable[[Shape], float] = lambda _shape: 1.0,
        autoscaler: Mapping[str, Any] | None = None,
        inference: Mapping[str, Any] | None = None,
        mode: str = "approve",
        snapshot: Snapshot | None = None,
        loops: tuple[str, ...] = LOOPS,
    ) -> None:
        super().__init__(folder, snapshot=snapshot, loops=loops)
        self.mode = mode
        self.cluster = Cluster(self.clock.now, start_s=20.0)
        if inference is None:
            self.cluster.create("deployments", "default", manifest("chat", replicas, "--max-num-seqs", "16"))
        else:
            self.cluster.create("inferenceservices", "default", dict(inference))
        if autoscaler is not None:
            self.cluster.create("horizontalpodautoscalers", "default", dict(autoscaler))
        service = {"metadata": {"name": "chat"}, "spec": {"selector": {"app": "chat"}, "ports": [{"port": 8000}]}}
        self.cluster.create("services", "default", service)
        self.server = FakeKubernetes(self.cluster)
        first = Shape(replicas=replicas, size=SIZE, engine={"max_num_seqs": 16})
        self.engine = SimulatedEndpoint(first, Traffic(rate), until=START + 3600.0, slowdown=slowdown, seed=3)

    def open(self) -> None:
        self.server.__enter__()

    def close(self) -> None:
        self.server.__exit__()

    async def stated(self) -> Mapping[str, Any]:
        return {**SETTINGS, "endpoints": [{**await self.discovered(), **ENDPOINT, "mode": self.mode}]}

    def make_watched(self, settings: Settings, endpoint: EndpointSettings, environment: Environment) -> WatchedEndpoint:
        telemetry = {"vllm": PodTelemetry(self.cluster, self.engine)}
        return WatchedEndpoint(
            endpoint, telemetry, actuator_of(settings, endpoint, environment), catalogue_of(settings, endpoint)
        )

    async def discovered(self) -> dict[str, Any]:
        """What ``flyball discover kubernetes`` writes, with the reference to the token replaced by the token."""
        http, sessions = Http(), Sessions()
        stated = {"server": self.server.url, "token": "flyball-token"}
        try:
            (found,) = [
                f async for f in KubernetesSystem().discover(DiscoveryContext(http.call, self.clock, sessions, stated))
            ]
        finally:
            await sessions.aclose()
            await http.aclose()
        options = {**found.settings["actuator"]["options"], "token": "flyball-token", "pods": False}
        return {**found.settings, "actuator": {"system": "kubernetes", "options": options}}

    # -- what is there -------------------------------------------------------------------------------------------------

    @property
    def replicas(self) -> int:
        """As the API server has it."""
        count: int = self.cluster.get("deployments", "default", "chat")["spec"]["replicas"]
        return count

    @property
    def written(self) -> list[str]:
        """The last word of each path that was written, by Flyball alone."""
        assert {manager for _, _, manager in self.cluster.written} <= {"flyball"}
        return [path.rsplit("/", 1)[-1] for _, path, _ in self.cluster.written]
