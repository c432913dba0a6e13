"""Which targets are read and missed while replicas come, go, and their system says nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from actuators.base import ActuatorError, LiveState
from actuators.shape import Shape
from agent.clock import VirtualClock
from agent.metrics import Metrics
from agent.settings import CollectSettings, EndpointSettings
from agent.spool import Spool
from agent.store import Store, windows
from agent.watch import WatchedEndpoint, Watcher
from collectors.base import Scope, ScrapeTarget
from collectors.window import CollectError, Reading, Window

INTERVAL_S, WINDOW_S = 15.0, 60.0


@dataclass
class System:
    """Says which replicas there are, or refuses to."""

    replicas: Mapping[str, str]
    silent: bool = False

    async def live(self) -> LiveState:
        if self.silent:
            raise ActuatorError("UNREACHABLE", "no answer")
        return LiveState(Shape(replicas=len(self.replicas)), "1", True, targets=self.replicas)


@dataclass
class Source:
    """Each target has served ten requests more at each reading."""

    clock: VirtualClock
    interval_s: float | None = None
    deadline_s: float | None = None
    settles_s: float = 0.0
    scope: Scope = "replica"
    down: set[str] = field(default_factory=set)
    served: dict[str, float] = field(default_factory=dict)

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        if target.name in self.down:
            raise CollectError("down", f"{target.name} is not there")
        self.served[target.name] = self.served.get(target.name, 0.0) + 10
        return [Reading(target.name, self.clock.now(), {"requests": self.served[target.name]})]


class World:
    """One endpoint that is watched on virtual time."""

    def __init__(self, folder: Path, replicas: Mapping[str, str]) -> None:
        self.clock = VirtualClock(start=1_800_000_000.0)
        self.store = Store(f"sqlite:///{folder}/flyball.db")
        self.store.upgrade()
        self.system, self.source = System(replicas), Source(self.clock)
        settings = EndpointSettings(name="chat", url="http://127.0.0.1:1")
        self.watched = WatchedEndpoint(settings, {"vllm": self.source}, self.system)  # type: ignore[arg-type, dict-item]
        collect = CollectSettings(interval_s=INTERVAL_S, window_s=WINDOW_S)
        spool = Spool(folder / "spool")
        self.watcher = Watcher({"chat": self.watched}, collect, self.store, spool, self.clock, Metrics())

    async def go_on(self, cycles: int) -> None:
        for _ in range(cycles):
            await self.watcher.cycle()
            self.clock.set(self.clock.now() + INTERVAL_S)

    def windows(self) -> list[Window]:
        self.store.close()
        with self.store.read() as db:
            return windows.load(db, "chat", "vllm", 0, self.clock.now() + 1, WINDOW_S)


def test_a_replica_that_was_taken_away_is_not_missed(tmp_path: Path) -> None:
    """It fails while it ends; but once its system says that it is gone, its failures lower nothing any more."""
    world = World(tmp_path, {"old": "http://127.0.0.1:2"})

    async def story() -> None:
        await world.go_on(8)
        world.source.down.add("old")
        await world.go_on(1)
        world.system.replicas = {"new": "http://127.0.0.1:3"}
        await world.go_on(16)

    asyncio.run(story())
    assert [w.coverage for w in world.windows()][-3:] == [1.0, 1.0, 1.0]
    assert {target for _, target in world.watched.health} == {"new"}


def test_replicas_are_read_on_while_their_system_says_nothing(tmp_path: Path) -> None:
    """Reading the one address instead would count what a replica did a second time."""
    world = World(tmp_path, {"one": "http://127.0.0.1:2", "two": "http://127.0.0.1:3"})

    async def story() -> None:
        await world.go_on(8)
        world.system.silent = True
        await world.go_on(8)
        world.system.silent = False
        await world.go_on(9)

    asyncio.run(story())
    assert world.watched.live is not None
    assert set(world.source.served) == {"one", "two"}
    seen = world.windows()
    assert [(w.coverage, w.count("requests")) for w in seen[1:]] == [(1.0, 80.0)] * (len(seen) - 1)


def test_a_target_that_hangs_takes_nothing_from_the_others(tmp_path: Path) -> None:
    """Its reading outlives the cycle; the others' windows are whole all the same."""
    world = World(tmp_path, {"good": "http://127.0.0.1:2"})

    async def story() -> None:
        for _ in range(12):
            begun = world.clock.now()
            cycle = asyncio.create_task(world.watcher.cycle())
            while not cycle.done():
                world.clock.set(world.clock.now() + 0.5)  # time passes while the cycle waits for somebody
                await asyncio.sleep(0)
            world.clock.set(begun + INTERVAL_S)

    asyncio.run(story())
    seen = world.windows()
    assert len(seen) >= 2
    assert [w.coverage for w in seen[1:]] == [1.0] * (len(seen) - 1)
