"""An EC2 instance in virtual time: moto behind the strict layer, with the product's own governor and system on it.

What its model server tells is simulated: one engine's telemetry, while the instance runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from moto.ec2.models import ec2_backends

from actuators.shape import Shape
from agent.settings import EndpointSettings, Settings
from agent.watch import WatchedEndpoint
from agent.wiring import Environment, actuator_of, catalogue_of
from collectors.aws.discover import Ec2System
from collectors.base import Scope, ScrapeTarget
from collectors.discovery import DiscoveryContext
from collectors.http import Http
from collectors.sessions import Sessions
from collectors.window import CollectError, Reading
from tests.agent.slack import SLACK
from tests.fakes.aws import ACCOUNT, IDENTITY, REGION, FakeAws
from tests.world.endpoint import SimulatedEndpoint, Traffic
from tests.world.kubernetes import ENDPOINT
from tests.world.wire import LOOPS, START, WireWorld

SMALL, LARGE = "g4dn.xlarge", "g4dn.2xlarge"


class Ec2World(WireWorld):
    """See ``WireWorld``."""

    def __init__(self, folder: Path, *, no_capacity: set[str] | None = None, loops: tuple[str, ...] = LOOPS) -> None:
        super().__init__(folder, loops=loops)
        self.aws = FakeAws(stop_s=60.0, now=self.clock.now, no_capacity=no_capacity or set())
        self.engine = SimulatedEndpoint(_shape(SMALL), Traffic(3.0), until=START + 7200.0, seed=3)
        self._identity = mock.patch.dict("os.environ", IDENTITY)

    def open(self) -> None:
        self._identity.start()
        self.aws.__enter__()
        self.id = self.aws.instance(SMALL)

    def close(self) -> None:
        self.aws.__exit__()
        self._identity.stop()

    async def stated(self) -> Mapping[str, Any]:
        """What ``flyball discover ec2`` writes, with the objective and the policy."""
        http, sessions = Http(), Sessions()
        try:
            context = DiscoveryContext(http.call, self.clock, sessions, {"region": REGION, "aws_url": self.aws.url})
            (found,) = [f async for f in Ec2System().discover(context)]
        finally:
            await sessions.aclose()
            await http.aclose()
        policy = {**ENDPOINT["policy"], "max_replicas": 1, "sizes": [SMALL, LARGE]}
        entry = {**found.settings, **ENDPOINT, "sources": {"vllm": {}}, "policy": policy}
        return {
            "collect": {"interval_s": 10, "window_s": 20, "timeout_s": 5},
            "decide": {"interval_s": 60, "act_interval_s": 5},
            "sizes": {SMALL: {"usd_per_replica_hour": 0.526}, LARGE: {"usd_per_replica_hour": 0.752}},
            "slack": SLACK,
            "endpoints": [entry],
        }

    def make_watched(self, settings: Settings, endpoint: EndpointSettings, environment: Environment) -> WatchedEndpoint:
        telemetry = {"vllm": InstanceTelemetry(self.engine, self.clock.now, lambda: self.machine)}
        return WatchedEndpoint(
            endpoint, telemetry, actuator_of(settings, endpoint, environment), catalogue_of(settings, endpoint)
        )

    @property
    def machine(self) -> tuple[str, str]:
        """Type and state."""
        self.aws.settle()
        found = ec2_backends[ACCOUNT][REGION].get_instance(self.id)
        return found.instance_type, found._state.name

    @property
    def written(self) -> list[str]:
        return [action for _, action in self.aws.writes]


class InstanceTelemetry:
    """See ``collectors.base.Collector``. Simulated: what a model server on an instance of that type tells."""

    source: ClassVar[str] = "vllm"
    interval_s: float | None = None
    deadline_s: float | None = None
    settles_s: float = 0.0
    scope: Scope = "replica"

    def __init__(
        self, engine: SimulatedEndpoint, now: Callable[[], float], machine: Callable[[], tuple[str, str]]
    ) -> None:
        self._engine = engine
        self._now = now
        self._machine = machine

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        size, state = self._machine()
        if state != "running":
            raise CollectError("down", f"the instance is {state}")
        if _shape(size) != self._engine.shape:
            self._engine.become(_shape(size), self._now())
        return [self._engine.reading(target.name, self._now())]


def _shape(size: str) -> Shape:
    return Shape(replicas=1, size=size, engine={"max_num_seqs": 16})
