"""A real bare repository in virtual time, with the product's own governor and system on it. What main says is deployed at once.

What the model tells of itself is simulated: one engine's telemetry on as many replicas, and with those limits, as main has.
"""

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
from collectors.git.discover import GitSystem
from collectors.git.fields import FieldPath, value_of
from collectors.http import Http
from collectors.sessions import Sessions
from collectors.window import Reading
from tests.actuators.git_parts import CHAT, FIELDS, TeamRepository
from tests.world.endpoint import SimulatedEndpoint, Traffic
from tests.world.kubernetes import ENDPOINT
from tests.world.kubernetes import SETTINGS as CLUSTER
from tests.world.wire import START, Snapshot, WireWorld

SIZE = "g2-standard-8"
SETTINGS = {name: value for name, value in CLUSTER.items() if name != "slack"}
PEOPLE = [{"name": "ada", "git": "ada@example.org"}, {"name": "bob", "git": "bob@example.org"}]
#: Deciding is what takes time, and while a change is under way nothing is decided anyway.
CHANGING = ("lead", "collect", "act", "review")


class FileTelemetry:
    """See ``collectors.base.Collector``. Simulated, by what the deployed branch says."""

    source: ClassVar[str] = "vllm"
    interval_s: float | None = None
    deadline_s: float | None = None
    settles_s: float = 0.0
    scope: Scope = "replica"

    def __init__(self, team: TeamRepository, endpoint: SimulatedEndpoint, now: Callable[[], float]) -> None:
        self._team = team
        self._endpoint = endpoint
        self._now = now

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        served = shape_of(self._team.text())
        if served != self._endpoint.shape:
            self._endpoint.become(served, self._now())
        return [self._endpoint.reading(target.name, self._now())]


def shape_of(text: str) -> Shape:
    count, seqs = (value_of(text, FieldPath.parse(place)) for place in FIELDS.values())
    assert isinstance(count, int)
    return Shape(replicas=count, size=SIZE, engine={"max_num_seqs": seqs})


class GitWorld(WireWorld):
    """See ``WireWorld``. In the mode ``auto``, which approves no merge; ``ada`` may decide, ``bob`` may not."""

    def __init__(
        self,
        folder: Path,
        *,
        rate: float = 20.0,
        slowdown: Callable[[Shape], float] = lambda _shape: 1.0,
        mode: str = "auto",
        snapshot: tuple[Snapshot, TeamRepository] | None = None,
        loops: tuple[str, ...] = CHANGING,
    ) -> None:
        super().__init__(folder, snapshot=None if snapshot is None else snapshot[0], loops=loops)
        self.mode = mode
        text = CHAT.replace("replicas: 1 ", "replicas: 2 ").replace("--max-num-seqs=4", "--max-num-seqs=16")
        if snapshot is None:
            self.team = TeamRepository.make(folder / "team", {"deploy/chat.yaml": text})
        else:
            self.team = snapshot[1].copy(folder / "team")
        first = Shape(replicas=2, size=SIZE, engine={"max_num_seqs": 16})
        self.engine = SimulatedEndpoint(first, Traffic(rate), until=START + 7200.0, slowdown=slowdown, seed=3)

    def open(self) -> None:
        """A repository listens to nobody."""

    def close(self) -> None:
        """See ``open``."""

    async def stated(self) -> Mapping[str, Any]:
        found = await self.discovered()
        policy = {**ENDPOINT["policy"], "scheduled_steps_per_day": 0, "approvers": ["ada"]}
        entry = {**found, **ENDPOINT, "mode": self.mode, "policy": policy, "shape": {"size": SIZE}}
        return {**SETTINGS, "people": PEOPLE, "endpoints": [entry]}

    def make_watched(self, settings: Settings, endpoint: EndpointSettings, environment: Environment) -> WatchedEndpoint:
        telemetry = {"vllm": FileTelemetry(self.team, self.engine, self.clock.now)}
        return WatchedEndpoint(
            endpoint, telemetry, actuator_of(settings, endpoint, environment), catalogue_of(settings, endpoint)
        )

    async def discovered(self) -> dict[str, Any]:
        """What ``flyball discover git`` writes, with a deployment that takes half a minute."""
        http, sessions = Http(), Sessions()
        stated = {"repository": str(self.team.bare)}
        try:
            context = DiscoveryContext(http.call, self.clock, sessions, stated)
            (found,) = [each async for each in GitSystem().discover(context)]
        finally:
            await sessions.aclose()
            await http.aclose()
        options = {**found.settings["actuator"]["options"], "deploy_s": 30.0, "revert_s": 3600.0}
        return {**found.settings, "actuator": {"system": "git", "options": options}}

    @property
    def replicas(self) -> int | None:
        """As main has it."""
        return shape_of(self.team.text()).replicas
