"""The stand-in for Azure in virtual time, with the product's own governor, source and system on it, over real HTTP.

Nothing is simulated between the governor and the wire. A governor that dies is replaced by one with another name, on the same database
and the same Azure.
"""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from agent.clock import VirtualClock
from agent.governor import Governor
from agent.loops import Loop
from agent.settings import Settings
from agent.store import Store, changes, fleet, recommendations
from collectors.azure.discover import AzureMlSystem
from collectors.discovery import DiscoveryContext
from collectors.http import Http, HttpAnswer
from collectors.sessions import Sessions
from tests.agent.slack import ADA, SLACK, form, payload, signed
from tests.fakes.azure import Cloud, FakeAzure, Law
from tests.fakes.azure.cloud import SUBSCRIPTION, Endpoint
from tests.world.faults import Death, Faults, FaultyStore

START = 1_700_000_400.0  # a whole minute
LOOPS = ("lead", "collect", "decide", "act")
F2S, F4S = "Standard_F2s_v2", "Standard_F4s_v2"
SETTINGS: dict[str, Any] = {
    "collect": {"interval_s": 60, "window_s": 60, "timeout_s": 20},
    "decide": {"interval_s": 300, "act_interval_s": 15},
    "sizes": {F2S: {"usd_per_replica_hour": 0.097, "cpus": 2}, F4S: {"usd_per_replica_hour": 0.194, "cpus": 4}},
    "slack": SLACK,
}
ENDPOINT: dict[str, Any] = {
    "mode": "approve",
    "objective": {"e2e_p95_s": 0.24, "error_rate": 0.02},
    "policy": {
        "min_replicas": 2,
        "max_replicas": 6,
        "sizes": [F2S, F4S],
        "evidence_s": 3600,
        "min_coverage": 0.7,
        "stable_cycles": 1,
        "cooldown_s": 600,
        "expires_s": 7200,
    },
    "verify": {"warmup_s": 60, "windows": 3, "deadline_s": 1800, "load_tolerance": 0.5},
}


def load(at: float) -> float:
    """Requests per second: a wave of half an hour between 16 and 64."""
    return 40.0 + 24.0 * math.sin(2 * math.pi * at / 1800.0)


class FaultyHttp(Http):
    """The real client, in which the process can die before and after each request."""

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self._faults = faults

    async def call(self, method: str, url: str, **options: Any) -> HttpAnswer:
        self._faults.instant("before a request")
        answer = await super().call(method, url, **options)
        self._faults.instant("after a request")
        return answer


class Process:
    """One Flyball."""

    def __init__(self, world: AzureWorld, holder: str) -> None:
        self.faults = Faults()
        self.store = FaultyStore(world.database, self.faults, world.clock.now)
        self.http = FaultyHttp(self.faults)
        self.governor = Governor(world.settings, self.store, world.clock, holder=holder, http=self.http)
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


class AzureWorld:
    """Use as ``async with AzureWorld(folder) as world``."""

    def __init__(
        self,
        folder: Path,
        *,
        law: Law | None = None,
        snapshot: Snapshot | None = None,
        loops: tuple[str, ...] = LOOPS,
    ) -> None:
        """``loops``: which of the governor's run."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.clock = VirtualClock(START)
        self.cloud = Cloud(self.clock.now)
        self.cloud.law = law or Law()
        self.cloud.rate = load
        self.cloud.create_s, self.cloud.delete_s, self.cloud.retry_after_s = 240.0, 60.0, 60
        self.endpoint: Endpoint = self.cloud.add("chat", F2S, 4)
        if snapshot is not None:
            self.clock.set(snapshot.now)
        self.azure = FakeAzure(self.cloud)
        self.database = f"sqlite:///{folder}/flyball.db"
        self.settings: Settings
        self.processes: list[Process] = []
        self.deaths = 0
        self._snapshot = snapshot
        self.loops = loops

    async def __aenter__(self) -> AzureWorld:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
        self.azure.__enter__()
        if self._snapshot is not None:
            shutil.copy(self._snapshot.database, self.folder / "flyball.db")
        self.settings = Settings(
            **{
                **SETTINGS,
                "database": self.database,
                "state_dir": self.folder / "state",
                "endpoints": [{**await self.discovered(), **ENDPOINT}],
            }
        )
        self.store = Store(self.database, now=self.clock.now)
        self.store.upgrade()
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.processes:
            await process.end()
        self.store.close()
        self.azure.__exit__()
        structlog.reset_defaults()

    async def discovered(self) -> dict[str, Any]:
        """What ``flyball discover azure-ml`` writes, with the references to secrets replaced by what they stand for."""
        http = Http()
        account = {"credential": "token", "token": "arm-token", "metrics_token": "metrics-token", "arm_url": self.azure.url,
                   "metrics_url": self.azure.url, "subscription": SUBSCRIPTION}  # fmt: skip
        try:
            context = DiscoveryContext(http.call, self.clock, Sessions(), account)
            (found,) = [f async for f in AzureMlSystem().discover(context)]
        finally:
            await http.aclose()
        secrets = {"token": "arm-token", "metrics_token": "metrics-token"}
        access = {**found.settings["actuator"]["options"], **secrets}
        return {
            **found.settings,
            "api_key": "primary-key",
            "sources": {"azure-monitor": access},
            "actuator": {
                "system": "azure-ml",
                "options": {**access, "smoke_test": {"input": [1]}, "hold_s": 60},
            },
        }

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
            row = fleet.get(db, "chat")
        assert row is not None
        return row

    def ended(self) -> bool:
        rows = self.changes()
        return bool(rows) and all(row["finished_at"] is not None for row in rows)

    @property
    def deployments(self) -> dict[str, tuple[str, int, int]]:
        """Size, count and percent of the traffic, by name."""
        return {n: (d.size, d.count, self.endpoint.traffic.get(n, 0)) for n, d in self.endpoint.deployments.items()}

    @property
    def written(self) -> list[str]:
        """What Azure was really made to do."""
        return [o.kind for o in self.cloud.operations.values()]


def run(scenario: Callable[[], Any]) -> None:
    asyncio.run(scenario())
