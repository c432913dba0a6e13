"""A world whose systems are at the other end of a wire: the product's own governor and system, over real HTTP, in virtual time.

A governor that dies is replaced by one with another name, on the same database and the same system.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import structlog

from agent.clock import VirtualClock
from agent.governor import Governor
from agent.loops import Loop
from agent.settings import EndpointSettings, Settings
from agent.store import Store, changes, fleet, recommendations
from agent.watch import WatchedEndpoint
from agent.wiring import Environment, watched_of
from collectors.http import Http, HttpAnswer
from tests.agent.slack import ADA, form, payload, signed
from tests.collectors.servers import TRUST
from tests.world.faults import Death, Faults, FaultyStore

START = 1_700_000_400.0  # a whole minute
LOOPS = ("lead", "collect", "decide", "act")


class FaultyHttp(Http):
    """The real client, in which the process can die before and after each request."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(tls=TRUST)
        self._faults = faults

    async def call(self, method: str, url: str, **options: Any) -> HttpAnswer:
        self._faults.instant("before a request")
        answer = await super().call(method, url, **options)
        self._faults.instant("after a request")
        return answer


class Process:
    """One Flyball."""

    def __init__(self, world: WireWorld, holder: str) -> None:
        self.faults = Faults()
        self.store = FaultyStore(world.database, self.faults, world.clock.now)
        self.http = FaultyHttp(self.faults)
        self.governor = Governor(
            world.settings, self.store, world.clock, holder=holder, http=self.http, make_watched=world.make_watched
        )
        self.due = {loop.name: world.clock.now() for loop in self.governor.loops if loop.name in world.loops}
        self.alive = True

    async def step(self, loop: Loop, now: float) -> None:
        self.due[loop.name] = now + loop.interval_s
        self.faults.during = loop.name
        try:
            await loop.once()
        except Death:
            await self.end()

    async def end(self) -> None:
        if self.alive:
            self.alive = False
            await self.governor.applier.stop()
            await self.governor.watcher.stop()
            await self.http.aclose()
            self.store.close()
            self.governor.tracing.close()


@dataclass(frozen=True)
class Snapshot:
    """A world before anything was changed in it."""

    database: Path
    now: float


class WireWorld:
    """Use as ``async with ...World(folder) as world``. What is at the other end, a subclass says: ``open``, ``close``, ``stated``."""

    #: The endpoint's name.
    name = "chat"

    def __init__(self, folder: Path, *, snapshot: Snapshot | None = None, loops: tuple[str, ...] = LOOPS) -> None:
        """``loops``: which of the governor's run."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.clock = VirtualClock(START if snapshot is None else snapshot.now)
        self.database = f"sqlite:///{folder}/flyball.db"
        self.settings: Settings
        self.processes: list[Process] = []
        self.deaths = 0
        self.loops = loops
        self._snapshot = snapshot

    def open(self) -> None:
        """Let the other end listen."""
        raise NotImplementedError

    def close(self) -> None:
        """Let it listen no more."""
        raise NotImplementedError

    async def stated(self) -> Mapping[str, Any]:
        """The settings, with an entry of what was discovered."""
        raise NotImplementedError

    def make_watched(self, settings: Settings, endpoint: EndpointSettings, environment: Environment) -> WatchedEndpoint:
        return watched_of(settings, endpoint, environment)

    async def __aenter__(self) -> Self:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
        self.open()
        if self._snapshot is not None:
            shutil.copy(self._snapshot.database, self.folder / "flyball.db")
        place = {"database": self.database, "state_dir": self.folder / "state"}
        self.settings = Settings(**{**await self.stated(), **place})
        self.store = Store(self.database, now=self.clock.now)
        self.store.upgrade()
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.processes:
            await process.end()
        self.store.close()
        self.close()
        structlog.reset_defaults()

    async def snapshot(self) -> Snapshot:
        for process in self.processes:
            await process.end()
        kept = self.folder / "snapshot.db"
        self.store.close()
        shutil.copy(self.folder / "flyball.db", kept)
        return Snapshot(kept, self.clock.now())

    # -- processes -----------------------------------------------------------------------------------------------------

    def start(self) -> Process:
        process = Process(self, f"flyball-{len(self.processes) + 1}")
        self.processes.append(process)
        return process

    @property
    def process(self) -> Process:
        return self.processes[-1]

    @property
    def governor(self) -> Governor:
        return self.process.governor

    async def until(self, reached: Callable[[], bool], limit_s: float) -> bool:
        """Step the living governor's loops, each when it is due. False when ``limit_s`` passed first."""
        end = self.clock.now() + limit_s
        while not reached():
            process = self.process
            at, loop = min(
                ((process.due[loop.name], loop) for loop in process.governor.loops if loop.name in self.loops),
                key=lambda turn: turn[0],
            )
            if at > end:
                return reached()
            await self.clock.advance(max(0.0, at - self.clock.now()))
            await process.step(loop, self.clock.now())
            if not process.alive:
                self.deaths += 1
                self.start()
        return True

    # -- people --------------------------------------------------------------------------------------------------------

    def click(self, identity: str, action: str = "approve") -> str:
        """A button in Slack, with Slack's signature: what came of it."""
        with self.store.write() as db:
            row = recommendations.get(db, identity)
            assert row is not None
            token = self.governor.approvals.issue_tokens(db, row)[action]
        body = form(payload(token, action, user=ADA))
        return self.governor.receiver.click(signed(body, at=self.clock.now()), body).ruling.code

    # -- what is there -------------------------------------------------------------------------------------------------

    def recommendations(self, *states: str) -> list[dict[str, Any]]:
        with self.store.read() as db:
            return recommendations.listed(db, states=states or None)

    def changes(self) -> list[dict[str, Any]]:
        with self.store.read() as db:
            return changes.listed(db)[::-1]

    def ledger(self, change: str) -> list[dict[str, Any]]:
        with self.store.read() as db:
            return changes.ledger(db, change_id=change)

    def known(self) -> Mapping[str, Any]:
        with self.store.read() as db:
            row = fleet.get(db, self.name)
        assert row is not None
        return row

    def ended(self) -> bool:
        rows = self.changes()
        return bool(rows) and all(row["finished_at"] is not None for row in rows)
