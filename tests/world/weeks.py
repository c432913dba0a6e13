"""A seeded week of several governors, people, systems and faults; and the shortest list of faults that still breaks a law.

All that happens is drawn from the seed before anything runs, so that a week can be run again with some of it left out. Intervals are coarse
(a cycle in minutes), so that a week takes seconds; the cycles are the product's own, and every await is a place to come in between.
"""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

import agent.execution
import agent.governor
from actuators.base import ActuatorError, Trouble
from actuators.shape import Shape
from agent.cases import guardrails_of
from agent.store import Store, changes, control, fleet, recommendations, schema
from agent.store.control import Lead
from analyzers.prediction import Interval, Prediction
from tests.agent.records import advice
from tests.world.endpoint import SimulatedEndpoint, Traffic
from tests.world.faults import Death
from tests.world.laws import assert_lawful
from tests.world.together import Together, VirtualTimeLoop
from tests.world.world import START, Process, shape

DAY_S, WEEK_S = 86_400.0, 7 * 86_400.0
#: After the last fault: whatever is under way must end by itself within this.
QUIET_S = 8 * 3600.0
NAMES = ("chat", "search")
#: Seconds; those of the daemon are finer by about a hundred.
LEASE_S, LEAD_S, COLLECT_S, ACT_S, CALL_S = 3600.0, 900.0, 1800.0, 600.0, 9000.0
SETTINGS: Mapping[str, Any] = {
    "collect": {"interval_s": COLLECT_S, "window_s": COLLECT_S, "timeout_s": 5},
    "decide": {"interval_s": 3600, "act_interval_s": ACT_S},
}
ENDPOINT: Mapping[str, Any] = {
    "policy": {"max_replicas": 6, "engine": {"max_num_seqs": [8, 16, 32]}, "evidence_s": 14_400, "min_requests": 10,
               "cooldown_s": 3600, "expires_s": 21_600, "max_step_replicas": 2, "budget_per_month": 4000.0},
    "verify": {"warmup_s": 1800, "windows": 3, "deadline_s": 10_800, "load_tolerance": 0.5},
}  # fmt: skip
#: What may happen, and how often in a week on average.
KINDS: Mapping[str, float] = {
    "ask": 30, "depose": 4, "press": 10, "rollback": 2, "pause": 5, "thaw": 14, "edit": 4,
    "kill": 5, "die": 8, "outage": 4, "skew": 2, "refuse": 6, "slow_step": 5, "hang": 2, "unreadable": 3, "stuck": 2,
    "blind": 3, "slower": 4, "errors": 3, "tokens": 4,
}  # fmt: skip
FAULTS = frozenset(KINDS) - {"ask", "press", "thaw"}


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that somebody or something does, and the numbers that it is done with."""

    at: float
    """Seconds from the beginning of the week."""
    kind: str
    dice: tuple[float, ...]
    """Uniform in [0, 1)."""

    def __str__(self) -> str:
        return f"{self.at / 3600:.1f}h {self.kind} {' '.join(f'{d:.2f}' for d in self.dice[:3])}"


def drawn(seed: int, weeks: float = 1.0) -> list[Happening]:
    """All that happens, in order."""
    dice = random.Random(seed)
    found = []
    for kind, often in KINDS.items():
        at = dice.expovariate(often / WEEK_S)
        while at < weeks * WEEK_S:
            found.append(Happening(at, kind, tuple(dice.random() for _ in range(6))))
            at += dice.expovariate(often / WEEK_S)
    return sorted(found, key=lambda h: h.at)


@dataclass(frozen=True, slots=True)
class WeekResult:
    """What came of one run."""

    seed: int
    changes: int
    faults: int
    violation: str | None


def play(seed: int, happenings: Sequence[Happening], weeks: float = 1.0) -> WeekResult:
    """Run it on virtual time, and look whether every law held."""
    found: list[WeekResult] = []
    wrote: list[str] = []

    async def scenario(folder: Path) -> None:
        week = _Week(folder, seed, weeks)
        async with week.world:
            wrote.clear()
            violation = await week.run(happenings) or (wrote[0] if wrote else None)
            done = len(week.world.changes())
        found.append(WeekResult(seed, done, sum(h.kind in FAULTS for h in happenings), violation))

    with (
        tempfile.TemporaryDirectory(prefix="flyball-week-") as folder,
        _coarse(),
        _watched_leaders(wrote),
        asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(seed)) as runner,
    ):
        runner.run(scenario(Path(folder)))
    return found[0]


def shrunk(seed: int, happenings: Sequence[Happening], weeks: float = 1.0) -> list[Happening]:
    """The fewest of these that still break a law, one by one and by halves: Zeller's ddmin, without its complements of complements."""
    left, size = list(happenings), max(1, len(happenings) // 2)
    while size >= 1:
        at = 0
        while at < len(left):
            fewer = left[:at] + left[at + size :]
            if play(seed, fewer, weeks).violation is not None:
                left = fewer
            else:
                at += size
        size //= 2
    return left


@contextmanager
def _coarse() -> Iterator[None]:
    """The governor's lease as coarse as the week's other intervals."""
    with (
        mock.patch.object(agent.governor, "LEASE_S", LEASE_S),
        mock.patch.object(agent.governor, "LEAD_S", LEAD_S),
        mock.patch.object(agent.execution, "CALL_S", CALL_S),
    ):
        yield


@contextmanager
def _watched_leaders(wrote: list[str]) -> Iterator[None]:
    """The world's own look at every write of a leader: whoever holds the lease at its end must be who wrote."""
    real = control.leading

    @contextmanager
    def leading(store: Store, lead: Lead) -> Iterator[sa.Connection]:
        with real(store, lead) as db:
            yield db
            epoch = db.execute(sa.select(schema.leases.c.epoch).where(schema.leases.c.name == lead.lease)).scalar()
            if epoch != lead.epoch:
                wrote.append(f"a deposed leader wrote: {lead.holder} under epoch {lead.epoch}, when it was {epoch}")

    with mock.patch.object(control, "leading", leading):
        yield


class _Week:
    """The world of one week, and those who act in it."""

    def __init__(self, folder: Path, seed: int, weeks: float) -> None:
        until = START + weeks * WEEK_S + QUIET_S
        made = {
            name: SimulatedEndpoint(shape(2), Traffic(0.02, swing=0.2), until, seed=seed + i)
            for i, name in enumerate(NAMES)
        }
        self.world = Together(
            folder, endpoints=made, loops=("lead", "collect", "act"), settings=SETTINGS, endpoint=ENDPOINT
        )
        self._weeks = weeks
        self._started = 1
        self._tasks: set[asyncio.Task[None]] = set()
        self._old: list[str] = []
        """Buttons that were issued."""
        self.pauses: list[tuple[float, float]] = []

    async def run(self, happenings: Sequence[Happening]) -> str | None:
        """The first law that was broken; None: all held."""
        self.world.start("flyball-2")
        for happening in happenings:
            await self._until(happening.at)
            self._begin(getattr(self, f"_{happening.kind}")(happening.dice))
            self._keep_two()
        await self._until(self._weeks * WEEK_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._calm()
        await self.world.run(QUIET_S)
        try:
            self._assert_all()
        except AssertionError as broken:
            lines = [line for line in str(broken).splitlines() if line.strip()]
            return f"{_where(broken)}: {lines[0] if lines else 'it does not hold'}"
        return None

    def _assert_all(self) -> None:
        world = self.world
        assert_lawful(world)
        left = [c["id"] for c in world.changes() if c["finished_at"] is None]
        assert not left, f"never ended: {left}"
        for name, system in world.systems.items():
            assert all(1 <= (s.replicas or 0) <= 6 for s in system.left_by_us), f"{name}: outside its bounds"
            for at in system.executed_at:
                late = [begin for begin, end in self.pauses if begin + 120 < at < end]
                assert not late, f"{name}: a step was done while it was paused"
        for process in world.processes:
            for loop in process.governor.loops:
                error = loop.status.last_error or ""
                away = error.startswith(("OperationalError", "StoreError")) or not error
                assert away, f"the loop {loop.name} ended in {error}"
        for change in world.changes():
            if change["state"] == "failed":
                assert any(a["action"] == "freeze" for a in self._audit(change["endpoint"]))

    def _audit(self, subject: str) -> list[Mapping[str, Any]]:
        from agent.store import audit

        with self.world.store.read() as db:
            return [dict(row) for row in audit.entries(db, subject, limit=1000)]

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        async def lived() -> None:
            try:
                await work
            except Death as death:  # of the process that a person asked something of
                for process in [p for p in self._living() if p.faults is death.faults]:
                    await self.world.kill(process)

        task = asyncio.ensure_future(lived())
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            raise AssertionError("the world itself is wrong") from task.exception()

    async def _until(self, at: float) -> None:
        await asyncio.sleep(max(0.0, at - asyncio.get_running_loop().time()))

    def _living(self) -> list[Process]:
        return [p for p in self.world.processes if p.alive]

    def _one(self, die: float) -> Process | None:
        living = self._living()
        return living[int(die * len(living))] if living else None

    def _keep_two(self) -> None:
        """As systemd does: whoever died is started again, under another name."""
        while len(self._living()) < 2:
            self._started += 1
            self.world.start(f"flyball-{self._started + 1}")

    def _calm(self) -> None:
        """Every fault ends, and people let go on what is paused."""
        for system in self.world.systems.values():
            system.refuse, system.delay = lambda _token: None, lambda _token: 0.0
            system.never_done = system.hangs = system.unreadable = False
            system.collect_error = None
        for process in self._living():
            process.faults.database_away, process.faults.die_when = False, None
        self._keep_two()
        with self.world.store.write() as db:
            control.resume(db, now=self.world.clock.now(), by="ada")
        self.pauses = [(b, min(e, self.world.clock.now())) for b, e in self.pauses]

    # -- people --------------------------------------------------------------------------------------------------------

    async def _ask(self, dice: Sequence[float]) -> None:
        """A change is proposed, by a person or by Flyball, with a promise or none; mostly somebody approves it."""
        name, now = NAMES[int(dice[0] * 2)], self.world.clock.now()
        process = self._one(dice[1])
        if process is None:
            return
        watched = process.governor.watched[name]
        with suppress(ActuatorError, SQLAlchemyError, TimeoutError):
            live = await asyncio.wait_for(watched.actuator.live(), 60)
            count = (live.shape.replicas or 2) + (-2, -1, 1, 2, 0)[int(dice[2] * 5)]
            seqs = (8, 16, 32)[int(dice[3] * 3)] if dice[4] < 0.5 else live.shape.engine["max_num_seqs"]
            wanted = live.shape.with_(replicas=max(0, count), engine={"max_num_seqs": seqs})
            if wanted == live.shape:
                return
            plan = await watched.actuator.plan(live, wanted)
            row = self._row(name, live.shape, wanted, dice, now)
            row |= {"plan": plan.as_dict(), "plan_hash": plan.hash}
            with process.store.write() as db:
                recommendations.insert(db, row)
                row_now = recommendations.get(db, row["id"])
                assert row_now is not None
                self._old += process.governor.approvals.issue_tokens(db, row_now).values()
            await asyncio.sleep(dice[5] * 4 * 3600)
            if dice[1] < 0.85:
                self._approve(row["id"], plan.hash, dice)

    def _row(self, name: str, now_: Shape, wanted: Shape, dice: Sequence[float], now: float) -> dict[str, Any]:
        promise = Prediction(
            {"ttft_p95_s": Interval(0.05, 0.1 + dice[5], 0.2 + 2 * dice[5])}, 0.0, "simulation", {"ttft_p95_s": 0.1}
        )
        body = advice(name, before=now_, after=wanted)
        body = replace(body, proposed=replace(body.proposed, prediction=promise if dice[3] < 0.7 else None))
        by = "flyball" if dice[0] % 0.5 < 0.25 else "bob"
        return {
            "id": recommendations.new_id(),
            "endpoint": name,
            "fingerprint": f"{name}/{now}",
            "revision": 1,
            "state": "proposed",
            "state_reason": "",
            "state_by": by,
            "requested_by": by,
            "policy_hash": guardrails_of(self.world.settings, name).hash,
            "body": body.as_dict(),
            "saving_per_month": None,
            "created_at": now,
            "refreshed_at": now,
            "expires_at": now + 21_600.0,
            "snoozed_until": None,
            "decided_at": None,
        }

    def _approve(self, identity: str, plan_hash: str, dice: Sequence[float]) -> None:
        """At any door, sometimes twice, sometimes for a plan that nobody has shown."""
        process = self._one(dice[2])
        seen = plan_hash if dice[4] < 0.95 else "sha256:another"
        for _ in range(2 if dice[3] < 0.3 else 1):
            if process is not None:
                with suppress(SQLAlchemyError):
                    process.governor.approvals.decide(
                        identity, action="approve", actor="ada", channel="page", plan_hash=seen
                    )

    async def _press(self, dice: Sequence[float]) -> None:
        """Some button of some message, however old."""
        process = self._one(dice[0])
        if process is not None and self._old:
            with suppress(SQLAlchemyError):
                token = self._old[int(dice[1] * len(self._old))]
                action = ("approve", "reject", "snooze")[int(dice[2] * 3)]
                process.governor.approvals.redeem(token, action=action, actor="slack:U0ADA", allowed=dice[3] < 0.8)

    async def _rollback(self, dice: Sequence[float]) -> None:
        rows = self.world.changes()
        if rows:
            with self.world.store.write() as db:
                changes.request_rollback(
                    db, rows[-1 - int(dice[0] * min(3, len(rows)))]["id"], now=self.world.clock.now(), by="ada"
                )

    async def _pause(self, dice: Sequence[float]) -> None:
        """Mostly while something is being applied."""
        for _ in range(200 if dice[1] < 0.7 else 0):
            if any(c["state"] in ("applying", "rolling_back") for c in self.world.changes()):
                break
            await asyncio.sleep(ACT_S / 4)
        begin = self.world.clock.now()
        with self.world.store.write() as db:
            control.pause(db, now=begin, by="ada", reason="an incident")
        self.pauses.append((begin, math.inf))
        await asyncio.sleep(600 + dice[0] * 2 * 3600)
        with self.world.store.write() as db:
            control.resume(db, now=self.world.clock.now(), by="ada")
        self.pauses = [(b, min(e, self.world.clock.now())) for b, e in self.pauses]

    async def _thaw(self, dice: Sequence[float]) -> None:
        """A person has looked at what failed."""
        for name in NAMES:
            with self.world.store.write() as db:
                fleet.unfreeze(db, name, now=self.world.clock.now(), by="ada")

    async def _edit(self, dice: Sequence[float]) -> None:
        """Somebody changes an endpoint by hand, or a second controller does."""
        system = self.world.systems[NAMES[int(dice[0] * 2)]]
        system.change(shape(1 + int(dice[1] * 5), (8, 16, 32)[int(dice[2] * 3)]))

    # -- faults --------------------------------------------------------------------------------------------------------

    async def _kill(self, dice: Sequence[float]) -> None:
        process = self._one(dice[0])
        if process is not None:
            await self.world.kill(process)
            self._keep_two()

    async def _die(self, dice: Sequence[float]) -> None:
        """At the next commit or step, before or after it."""
        process = self._one(dice[0])
        if process is not None:
            moments = ("before a commit", "after a commit", "before a step", "after a step")
            process.faults.die_when = moments[int(dice[1] * 4)]

    async def _outage(self, dice: Sequence[float]) -> None:
        process = self._one(dice[0])
        if process is not None:
            process.faults.database_away = True
            await asyncio.sleep(60 + dice[1] * 2 * 3600)
            process.faults.database_away = False

    async def _skew(self, dice: Sequence[float]) -> None:
        """One host's clock is set; by less than what the laws' times may differ by."""
        process = self._one(dice[0])
        if process is not None:
            process.governor.clock.skew_s = (dice[1] - 0.5) * 2.0  # type: ignore[attr-defined]

    async def _system(self, dice: Sequence[float], begin: Callable[[Any], None], end: Callable[[Any], None]) -> None:
        system = self.world.systems[NAMES[int(dice[0] * 2)]]
        begin(system)
        await asyncio.sleep(300 + dice[1] * 3 * 3600)
        end(system)

    async def _refuse(self, dice: Sequence[float]) -> None:
        trouble = list(Trouble)[int(dice[2] * len(Trouble))]
        after = None if dice[3] < 0.5 else dice[3] * 2000
        error = ActuatorError("REFUSED", f"the world says {trouble}", trouble=trouble, retry_after_s=after)

        def begin(system: Any) -> None:
            system.refuse = lambda token: error if dice[4] < 0.7 or ":rollback:" in token else None

        await self._system(dice, begin, lambda system: setattr(system, "refuse", lambda _token: None))

    async def _slow_step(self, dice: Sequence[float]) -> None:
        """It answers after it was done, longer than a lease lasts or shorter."""
        await self._system(
            dice,
            lambda system: setattr(system, "delay", lambda _token: dice[2] * 1.5 * CALL_S),
            lambda system: setattr(system, "delay", lambda _token: 0.0),
        )

    async def _depose(self, dice: Sequence[float]) -> None:
        """The leader's step takes longer than its lease, and meanwhile its database is away: another one takes over and goes on."""
        leader = next((p for p in self._living() if p.governor.lead is not None), None)
        system = self.world.systems[NAMES[int(dice[0] * 2)]]
        if leader is None:
            return
        answers: list[ActuatorError | None] = [
            ActuatorError("STALE_PLAN", "409: it was done already", trouble=Trouble.DRIFT) if dice[2] < 0.7 else None
        ]
        delays = [2.2 * LEASE_S]
        system.refuse = lambda _token: answers.pop() if answers else None
        system.delay = lambda _token: delays.pop() if delays else 0.0
        for _ in range(100):
            if not answers:  # it has begun
                leader.faults.database_away = True
                await asyncio.sleep(1.8 * LEASE_S)
                leader.faults.database_away = False
                break
            await asyncio.sleep(300.0)
        system.refuse, system.delay = lambda _token: None, lambda _token: 0.0

    async def _flag(self, dice: Sequence[float], name: str) -> None:
        await self._system(dice, lambda s: setattr(s, name, True), lambda s: setattr(s, name, False))

    async def _hang(self, dice: Sequence[float]) -> None:
        await self._flag(dice, "hangs")

    async def _unreadable(self, dice: Sequence[float]) -> None:
        await self._flag(dice, "unreadable")

    async def _stuck(self, dice: Sequence[float]) -> None:
        await self._flag(dice, "never_done")

    async def _blind(self, dice: Sequence[float]) -> None:
        kind = ("down", "timeout", "http_5xx", "truncated")[int(dice[2] * 4)]
        await self._system(
            dice, lambda s: setattr(s, "collect_error", kind), lambda s: setattr(s, "collect_error", None)
        )

    async def _slower(self, dice: Sequence[float]) -> None:
        """The engine becomes slower on one count, which no prediction knows."""
        endpoint = self.world.systems[NAMES[int(dice[0] * 2)]].endpoint
        endpoint.slowdown = lambda s: 1.0 + 20.0 * dice[2] if s.replicas == 1 + int(dice[3] * 5) else 1.0

    async def _errors(self, dice: Sequence[float]) -> None:
        endpoint = self.world.systems[NAMES[int(dice[0] * 2)]].endpoint
        endpoint.error_share = lambda s: dice[2] * 0.5 if s.replicas == 1 + int(dice[3] * 5) else 0.0

    async def _tokens(self, dice: Sequence[float]) -> None:
        """Forged ones."""
        process = self._one(dice[0])
        if process is not None:
            with suppress(SQLAlchemyError):
                ruling = process.governor.approvals.redeem(
                    f"forged-{dice[1]}", action="approve", actor="slack:U0EVE", allowed=True
                )
                assert not ruling.accepted


def _where(error: AssertionError) -> str:
    frame, name = error.__traceback__, "a law"
    while frame is not None:
        if "/tests/world/" in frame.tb_frame.f_code.co_filename:
            name = frame.tb_frame.f_code.co_name.strip("_")
        frame = frame.tb_next
    return name
