"""A world to run governors in: simulated endpoints, one database, virtual time, and people who approve.

The cycles are the product's own, stepped at their intervals as the daemon would; what is coarser than the daemon's defaults is stated
in ``SETTINGS``. A governor that dies is replaced by one with another name, as systemd would start it again.
"""

from __future__ import annotations

import asyncio
import copy
import shutil
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog

from actuators.shape import Shape
from agent.approvals import ApprovalOutcome
from agent.cases import guardrails_of
from agent.clock import VirtualClock
from agent.governor import Governor
from agent.loops import Loop
from agent.settings import EndpointSettings, Settings
from agent.store import Store, changes, fleet, recommendations, schema
from agent.watch import WatchedEndpoint
from agent.wiring import Environment, catalogue_of
from analyzers.whatif import calibrate
from collectors.clock import Clock
from collectors.http import Http, HttpAnswer
from tests.collectors.servers import TRUST
from tests.world.endpoint import SimulatedEndpoint, Traffic
from tests.world.faults import Death, Faults, FaultyStore
from tests.world.system import SimulatedActuator, SimulatedCollector, SimulatedSystem

_T = TypeVar("_T")

START = 1_700_000_400.0  # a Tuesday, 22:20 UTC, on a whole window
NAME = "chat"
#: Requests in one evaluation of a calibration: this world's engine is of the model's own kind, and a few tell it.
REPLAYED = 2_000
SETTINGS: dict[str, Any] = {
    "collect": {"interval_s": 10, "window_s": 20, "timeout_s": 5},
    "decide": {"interval_s": 60, "act_interval_s": 10},
    "sizes": {"vm-small": {"usd_per_replica_hour": 1.0}},
}
ENDPOINT: dict[str, Any] = {
    "name": NAME,
    "url": "http://sim.invalid",
    "mode": "approve",
    "objective": {"ttft_p95_s": 1.0, "itl_p95_s": 0.2, "error_rate": 0.02},
    "shape": {"size": "vm-small"},
    "policy": {
        "max_replicas": 6,
        "engine": {"max_num_seqs": [8, 16, 32]},
        "evidence_s": 300,
        "min_requests": 30,
        "stable_cycles": 1,
        "cooldown_s": 600,
        "expires_s": 3600,
    },
    "verify": {"warmup_s": 20, "windows": 3, "deadline_s": 300, "load_tolerance": 0.3},
}


def shape(replicas: int, seqs: int = 16) -> Shape:
    return Shape(replicas=replicas, size="vm-small", engine={"max_num_seqs": seqs})


def endpoint_settings(**changed: Any) -> dict[str, Any]:
    """``ENDPOINT`` with fields replaced; policy and verify are merged."""
    merged = {name: {**ENDPOINT[name], **changed.get(name, {})} for name in ("policy", "verify")}
    return {**ENDPOINT, **changed, **merged}


class CountingHttp(Http):
    """The real client, which counts what is sent. Nothing in the simulated world answers HTTP."""

    def __init__(self) -> None:
        super().__init__(tls=TRUST)
        self.sent: list[tuple[str, str]] = []

    async def request(self, method: str, url: str, **options: Any) -> HttpAnswer:
        self.sent.append((method, url))
        return await super().request(method, url, **options)

    async def call(self, method: str, url: str, **options: Any) -> HttpAnswer:
        self.sent.append((method, url))
        return await super().call(method, url, **options)


class Process:
    """One Flyball: its governor, its own view of the database, its faults, and when each loop is due."""

    def __init__(self, world: World, holder: str, clock: Clock) -> None:
        self.faults = Faults()
        self.store = FaultyStore(world.url, self.faults, world.clock.now)
        self.http = CountingHttp()
        self.governor = Governor(
            world.settings, self.store, clock, holder=holder, http=self.http, make_watched=self._watched(world)
        )
        self.due: dict[str, float] = {loop.name: world.clock.now() for loop in self.governor.loops}
        self.alive = True

    def _watched(self, world: World) -> Callable[[Settings, EndpointSettings, Environment], WatchedEndpoint]:
        def make(settings: Settings, endpoint: EndpointSettings, _environment: Environment) -> WatchedEndpoint:
            system = world.systems[endpoint.name]
            return WatchedEndpoint(
                endpoint,
                {"vllm": SimulatedCollector(system)},
                SimulatedActuator(endpoint.name, system, self.faults),
                catalogue_of(settings, endpoint),
            )

        return make

    async def step(self, loop: Loop, now: float) -> None:
        """One cycle; death ends the process where it happens."""
        self.due[loop.name] = now + loop.interval_s
        self.faults.during = loop.name
        try:
            await loop.once()
        except Death:
            await self.end()

    async def end(self) -> None:
        """Gone, without a word to anybody."""
        if self.alive:
            self.alive = False
            await self.governor.applier.stop()
            await self.governor.watcher.stop()
            await self.http.aclose()
            self.store.close()
            self.governor.tracing.close()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A world between two instants, with no process alive: many futures may begin from it."""

    database: Path
    systems: Mapping[str, SimulatedSystem]
    now: float


class World:
    """Use as ``async with World(tmp_path) as world``."""

    def __init__(
        self,
        folder: Path,
        *,
        endpoints: Mapping[str, SimulatedEndpoint] | None = None,
        replicas: int = 2,
        rate: float = 3.0,
        duration_s: float = 7200.0,
        settings: Mapping[str, Any] | None = None,
        endpoint: Mapping[str, Any] | None = None,
        snapshot: Snapshot | None = None,
        loops: tuple[str, ...] = ("lead", "collect", "decide", "act"),
        revive: bool = True,
        clock: Any = None,
    ) -> None:
        """``snapshot``: where to begin, instead of from nothing. ``loops``: which cycles run; the others a test calls itself."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.clock = clock or VirtualClock(START if snapshot is None else snapshot.now)
        self.until = START + duration_s
        if snapshot is None:
            made = endpoints or {NAME: SimulatedEndpoint(shape(replicas), Traffic(rate), until=self.until, seed=3)}
            self.systems = {name: SimulatedSystem(e, self.clock) for name, e in made.items()}
        else:
            self.systems = copy.deepcopy(dict(snapshot.systems))
            for system in self.systems.values():
                system.clock = self.clock
        self.url = f"sqlite:///{folder}/flyball.db"
        stated = [endpoint_settings(**{**(endpoint or {}), "name": name}) for name in self.systems]
        self.settings = Settings(
            **{
                **SETTINGS,
                "database": self.url,
                "state_dir": folder / "state",
                "endpoints": stated,
                **(settings or {}),
            }
        )
        self._snapshot = snapshot
        self._loops = loops
        self._revive = revive
        self.processes: list[Process] = []
        self.deaths = 0

    async def __aenter__(self) -> World:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
        self._replayed, calibrate.REPLAYED = calibrate.REPLAYED, REPLAYED
        if self._snapshot is not None:
            shutil.copy(self._snapshot.database, self.folder / "flyball.db")
        self.store = Store(self.url, now=self.clock.now)
        self.store.upgrade()
        self.start("flyball-1")
        return self

    async def __aexit__(self, *_error: object) -> None:
        for process in self.processes:
            await process.end()
        self.store.close()
        calibrate.REPLAYED = self._replayed
        structlog.reset_defaults()

    async def snapshot(self) -> Snapshot:
        """End every process, and keep what the world is then."""
        for process in self.processes:
            await process.end()
        self.store.close()  # the last connection folds the write-ahead log into the file
        kept = self.folder / "snapshot.db"
        shutil.copy(self.folder / "flyball.db", kept)
        return Snapshot(kept, copy.deepcopy(self.systems), self.clock.now())

    # -- processes -----------------------------------------------------------------------------------------------------

    def start(self, holder: str, clock: Clock | None = None) -> Process:
        process = Process(self, holder, clock or self.clock)
        self.processes.append(process)
        return process

    @property
    def process(self) -> Process:
        """The newest one."""
        return self.processes[-1]

    @property
    def governor(self) -> Governor:
        return self.process.governor

    @property
    def system(self) -> SimulatedSystem:
        return self.systems[NAME]

    async def run(self, seconds: float) -> None:
        """Step every living governor's loops, each when it is due."""
        await self.until_true(lambda: False, seconds)

    async def until_true(self, reached: Callable[[], bool], limit_s: float) -> bool:
        """Run until ``reached``, asked after each cycle. False when ``limit_s`` passed first."""
        end = self.clock.now() + limit_s
        while not reached():
            turns = [(p.due[loop.name], p, loop) for p in self._living() for loop in self._of(p)]
            at, process, loop = min(turns, key=lambda turn: turn[0])
            if at > end:
                await self.clock.advance(end - self.clock.now())
                return reached()
            await self.clock.advance(max(0.0, at - self.clock.now()))
            await process.step(loop, self.clock.now())
            if not process.alive:
                self.deaths += 1
                if self._revive:
                    self.start(f"flyball-{len(self.processes) + 1}")
        return True

    def _living(self) -> list[Process]:
        return [p for p in self.processes if p.alive]

    def _of(self, process: Process) -> list[Loop]:
        return [loop for loop in process.governor.loops if loop.name in self._loops]

    # -- people --------------------------------------------------------------------------------------------------------

    async def ask(self, name: str = NAME, by: str = "ada", **changed: Any) -> str:
        """A person asks for a change; returns the recommendation's id."""
        watched = self.governor.watched[name]
        live = await self.governor.watcher.look(watched)
        assert live is not None
        return await self.governor.reflector.request(watched, live.shape.with_(**changed), by)

    def approve(self, identity: str, plan_hash: str | None = None) -> ApprovalOutcome:
        seen = self.recommendation(identity)["plan_hash"] if plan_hash is None else plan_hash
        return self.governor.approvals.decide(identity, action="approve", actor="ada", channel="cli", plan_hash=seen)

    async def ask_and_approve(self, name: str = NAME, **changed: Any) -> str:
        identity = await self.ask(name, **changed)
        assert self.approve(identity).accepted
        return identity

    def under_todays_policy(self, name: str = NAME) -> None:
        """As if all had been proposed and approved under the settings of today: what else they forbid is found out."""
        policy = guardrails_of(self.settings, name).hash
        with self.store.write() as db:
            for table in (schema.recommendations, schema.approvals):
                db.execute(sa.update(table).values(policy_hash=policy))

    # -- what is there -------------------------------------------------------------------------------------------------

    def recommendation(self, identity: str) -> dict[str, Any]:
        with self.store.read() as db:
            row = recommendations.get(db, identity)
        assert row is not None
        return row

    def recommendations(self, *states: str) -> list[dict[str, Any]]:
        with self.store.read() as db:
            return recommendations.listed(db, states=states or None)

    def changes(self, name: str | None = None) -> list[dict[str, Any]]:
        """Oldest first."""
        with self.store.read() as db:
            return changes.listed(db, endpoint=name)[::-1]

    def journal(self, change: str) -> list[dict[str, Any]]:
        with self.store.read() as db:
            return changes.journal(db, change)

    def ledger(self, change: str) -> list[dict[str, Any]]:
        with self.store.read() as db:
            return changes.ledger(db, change_id=change)

    def known(self, name: str = NAME) -> dict[str, Any]:
        with self.store.read() as db:
            row = fleet.get(db, name)
        assert row is not None
        return row

    def ended(self) -> bool:
        """Whether there was a change, and none is under way."""
        rows = self.changes()
        return bool(rows) and all(row["finished_at"] is not None for row in rows)


class SingleThreadLoop(asyncio.SelectorEventLoop):
    """What would run in a thread runs on the loop, a turn later: with virtual time, handing over costs more than the work."""

    def run_in_executor(self, executor: Any, func: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:  # type: ignore[override]
        future: asyncio.Future[_T] = self.create_future()

        def call() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except BaseException as error:  # a death too ends where it is awaited
                future.set_exception(error)
            else:
                future.set_result(result)

        self.begin(call)
        return future

    def begin(self, call: Callable[[], None]) -> None:
        self.call_soon(call)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """A test's coroutine, on a loop of its own."""
    with asyncio.Runner(loop_factory=SingleThreadLoop) as runner:
        runner.run(scenario())
