"""One Flyball: all of its parts over one set of settings, and the cycles that the daemon repeats and the simulated world steps."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import structlog

from agent import attest, bills
from agent.apply import LEASE, Applier
from agent.approvals import ApprovalOutcome, ApprovalService
from agent.clock import WallClock
from agent.exercise import Exercise
from agent.loops import Loop
from agent.mail import Mailer
from agent.metrics import Metrics
from agent.pushes import PushService
from agent.reflect import Reflector
from agent.reviews import Reviewer
from agent.settings import EndpointSettings, Settings
from agent.slack.receive import ClickReceiver
from agent.slack.send import Sender
from agent.slack.socket import SocketListener
from agent.spool import Spool
from agent.store import Store, control, windows
from agent.store.control import Lead, LostLease
from agent.tracing import Tracing
from agent.watch import WatchedEndpoint, Watcher
from agent.wiring import Environment, vocabulary_of, watched_of
from analyzers.shapes import shape_of
from collectors.clock import Clock
from collectors.http import Http

log = structlog.get_logger()

#: A leader that does not renew its lease for so long is taken to be dead, and another one leads within 15 seconds of its death.
LEASE_S = 9.0
#: Between two renewals of a leader, and between two looks of one who stands by.
LEAD_S = 2.0
HOUSEKEEPING_S = 60.0
#: Between two looks into repositories for merges.
REVIEW_S = 15.0
#: Between two looks for periods that are over, of which it is to be attested what was saved.
ATTEST_S = 300.0
#: Between two readings of vendors' cost reports: they change once a day, and are limited in rate.
BILLS_S = 6 * 3600.0
#: Seconds between two looks at what is to be mailed: a loop of its own, since a server may take half a minute for each answer.
POST_S = 60.0
#: Between two looks whether the connection to Slack stands.
SOCKET_S = 1.0
#: Telemetry that waits on disk for longer than this is a trouble that people must hear of.
UNSAVED_S = 60.0


class Governor:
    """The whole loop. Holds no thread and no timer: whoever owns it calls the cycles."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        clock: Clock,
        *,
        holder: str,
        http: Http,
        make_watched: Callable[[Settings, EndpointSettings, Environment], WatchedEndpoint] = watched_of,
        referred: frozenset[str] = frozenset(),
    ) -> None:
        """referred: what stood for references in the settings' file, and so may be secret wherever it is."""
        self.settings = settings
        self.referred = referred
        self.store = store
        self.clock = clock
        self.environment = Environment(http, clock)
        self.metrics = Metrics()
        self.holder = holder
        self.lead: Lead | None = None
        self._looked_at: float | None = None
        """When it asked for the lease last: monotonic seconds."""
        self._patient_until = -math.inf
        """Until when it takes nothing over, having stood still itself: monotonic seconds."""
        self.watched = {e.name: make_watched(settings, e, self.environment) for e in settings.endpoints}
        self.tracing = Tracing(settings.otlp)  # starts a thread, so after all that may fail
        self._made_at = clock.now()
        self.approvals = ApprovalService(settings, store, clock, self._ruled)
        self.receiver = ClickReceiver(settings, store, self.approvals, clock)
        self.sender = Sender(settings, store, self.approvals, http, clock, self.metrics)
        self.mailer = Mailer(settings, store, clock, self.metrics)
        self.spool = Spool(settings.state_dir / "spool")
        self.watcher = Watcher(self.watched, settings.collect, store, self.spool, clock, self.metrics)
        self.pushes = PushService(self.watched, self.watcher, store, settings.retention, clock, self.metrics)
        self.reflector = Reflector(settings, store, clock, self.metrics, self.tracing.tracer)
        self.applier = Applier(self.watched, self.watcher, settings, store, clock, self.metrics)
        self.reviewer = Reviewer(self.watched, store, self.approvals, clock, self.metrics)
        self.exercise = Exercise(settings, store, clock)
        make = self._loop
        self.loops = [
            make("lead", LEAD_S, self.take_lead),
            make("collect", settings.collect.interval_s, self.collect),
            make("decide", settings.decide.interval_s, self.decide),
            make("first", settings.collect.interval_s, self.decide_first),
            make("act", settings.decide.act_interval_s, self.act),
            make("notify", 1.0, self.notify),
            make("housekeeping", HOUSEKEEPING_S, self.keep_house),
            make("attest", ATTEST_S, self.attest),
            make("bills", BILLS_S, self.read_bills),
        ]
        self.socket: SocketListener | None = None
        if settings.slack is not None and settings.slack.app_token is not None:
            self.socket = SocketListener(
                settings.slack, self.receiver, self.sender.answer, http, clock, ca_file=settings.tls_ca_file
            )
            self.loops.append(make("slack", SOCKET_S, self.keep_socket))
        if settings.email is not None:
            self.loops.append(make("post", POST_S, self.post))
        if self.reviewer.wanted:
            self.loops.append(make("review", REVIEW_S, self.review))
        if self.exercise.wanted:
            self.loops.append(make("exercise", HOUSEKEEPING_S, self.exercise_references))

    def _loop(self, name: str, interval_s: float, cycle: Callable[[], Any]) -> Loop:
        return Loop(name, interval_s, cycle, self.clock, self.metrics)

    # -- cycles --------------------------------------------------------------------------------------------------------

    async def take_lead(self) -> Lead | None:
        """Take or renew the lease. Whoever does not lead stands by.

        Who stands by and finds that he stood still himself takes nothing over: the whole machine may have, and the leader with it.
        The leader is given two intervals to renew, and is dead if it has not by then.
        """
        now, last = self.clock.monotonic(), self._looked_at
        self._looked_at = now
        if last is not None and now - last > 2 * LEAD_S:
            self._patient_until = now + 2 * LEAD_S
        if self.lead is None and now < self._patient_until:
            return None

        def ask() -> Lead | None:
            with self.store.write() as db:
                lead = control.acquire(db, LEASE, self.holder, LEASE_S)
                if lead is not None:  # a sign of life for those who look into the database
                    control.put(db, "heartbeat", self._beats(), self.clock.now(), self.holder)
                return lead

        lead = await asyncio.to_thread(ask)
        if (lead is None) != (self.lead is None):
            log.info("leading" if lead is not None else "standing_by", holder=self.holder)
        self.lead = lead
        self.metrics.leading.set(self.lead is not None)
        return self.lead

    async def collect(self) -> None:
        if self.lead is not None:
            with self.tracing.tracer.start_as_current_span("collect"):
                await self.watcher.cycle()

    async def decide(self) -> None:
        if self.lead is not None:
            with self.tracing.tracer.start_as_current_span("decide"):
                await self._led(self._judging("decide", self.watched.values()))

    async def decide_first(self) -> None:
        """What was not judged yet does not wait for its turn: it is analyzed with each window, until there is enough of it."""
        if self.lead is None:
            return
        if new := await asyncio.to_thread(self.reflector.awaiting, list(self.watched.values())):
            with self.tracing.tracer.start_as_current_span("decide"):
                await self._led(self._judging("first", new))

    def _judging(self, loop: str, endpoints: Iterable[WatchedEndpoint]) -> Callable[[Lead], Awaitable[object]]:
        """A round of deciding, in which each endpoint that is done is a sign of life of its loop."""
        moved = next(each.moved for each in self.loops if each.name == loop)
        return partial(self.reflector.cycle_all, endpoints, moved=moved)

    async def act(self) -> None:
        if self.lead is not None:
            with self.tracing.tracer.start_as_current_span("act"):
                await self._led(self.applier.cycle)

    async def notify(self) -> None:
        await self._led(self.sender.cycle)

    async def post(self) -> None:
        await self._led(self.mailer.cycle)

    async def keep_socket(self) -> None:
        """The leader's connection to Slack, where clicks come over one."""
        assert self.socket is not None
        await self.socket.cycle(self.lead)

    async def review(self) -> None:
        """Show plans in repositories, and see what became of them."""
        await self._led(self.reviewer.cycle)

    async def exercise_references(self) -> None:
        await self._led(self.exercise.cycle)

    async def keep_house(self) -> None:
        """Roll windows up and age them out."""
        await self._led(lambda lead: asyncio.to_thread(self._keep_house, lead))

    async def attest(self) -> None:
        """What was saved in periods that are over."""
        moved = next(each.moved for each in self.loops if each.name == "attest")
        settings, store, clock = self.settings, self.store, self.clock
        await self._led(lambda lead: asyncio.to_thread(attest.cycle, store, settings, clock.now(), lead, moved))

    async def read_bills(self) -> None:
        """What vendors say that the days cost."""
        await self._led(partial(bills.cycle, self.store, self.settings, self.environment))

    async def _led(self, cycle: Callable[[Lead], Awaitable[object]]) -> None:
        """A cycle of the leader's. One who finds that he was deposed stands by."""
        lead = self.lead
        if lead is None:
            return
        try:
            await cycle(lead)
        except LostLease as error:
            log.warning("deposed", why=str(error))
            if self.lead == lead:
                self.lead = None

    def _keep_house(self, lead: Lead) -> None:
        now, keep, raw = self.clock.now(), self.settings.retention, self.settings.collect.window_s
        with control.leading(self.store, lead) as db:
            days = {raw: keep.raw_days, 300.0: keep.five_minutes_days, 3600.0: keep.hours_days}
            windows.age_out(db, now, {width: d * 86_400 for width, d in days.items()})
            self.pushes.trim(db, now)
        windows.roll_up(self.store, now, raw)

    def _beats(self) -> dict[str, dict[str, float | int | None]]:
        return {loop.name: {"last_ok_at": loop.status.last_ok_at, "errors": loop.status.errors} for loop in self.loops}

    # -- health --------------------------------------------------------------------------------------------------------

    def alive(self) -> dict[str, str]:
        """What is wrong: a loop that has not ended a cycle lately, or telemetry that does not reach the database. Empty: nothing is."""
        now = self.clock.now()
        wrong = {}
        for loop in self.loops:
            fresh = loop.status.last_ok_at is None and now - self._made_at <= 3 * loop.interval_s + 60
            if loop.status.last_error and loop.status.last_ok_at is None:
                wrong[loop.name] = loop.status.last_error
            elif not fresh and not loop.alive(now):
                wrong[loop.name] = loop.status.last_error or "has not ended a cycle lately"
        unsaved = self.watcher.unsaved
        if unsaved is not None and self.clock.monotonic() - unsaved.since > UNSAVED_S:
            wrong["telemetry"] = f"is not saved: {unsaved.why}"
        return wrong

    def ready(self) -> bool:
        """Whether the first cycles are through."""
        return all(loop.status.last_ok_at is not None for loop in self.loops if loop.name in ("lead", "collect", "act"))

    def _ruled(self, ruling: ApprovalOutcome, action: str, channel: str) -> None:
        self.metrics.rulings.labels(channel, action, ruling.code).inc()
        level = log.info if ruling.accepted else log.warning
        level("ruling", recommendation=ruling.recommendation_id, action=action, channel=channel, code=ruling.code)

    async def close(self) -> None:
        """Stop reading, keep what was read, give the lease up."""
        if self.socket is not None:
            await self.socket.close()
        await self.exercise.close()
        await self.applier.stop()
        await self.watcher.end()
        try:
            await asyncio.to_thread(self._give_up)
        finally:
            await self.environment.sessions.aclose()
            self.tracing.close()

    def _give_up(self) -> None:
        with self.store.write() as db:
            control.release(db, LEASE, self.holder)


async def propose(store: Store, settings: Settings, endpoint: str, changes: str, by: str, notes: list[str]) -> str:
    """A person's own wish as a recommendation, with or without a daemon; returns its id.

    ``changes`` to the live shape, as ``analyzers.shapes`` reads them; ``notes`` takes what was read by an old name.
    Raises ValueError where it breaks a guardrail or changes nothing, ActuatorError where no plan leads there.
    """
    clock = WallClock()
    http = Http(ca_file=settings.tls_ca_file, monotonic=clock.monotonic)
    try:
        governor = Governor(settings, store, clock, holder=by, http=http)
        watched = governor.watched[endpoint]
        live = await governor.watcher.look(watched)
        if live is None:
            raise ValueError(f"{endpoint}: its system does not say what is live; see `flyball check --live`")
        wanted = shape_of(changes, live.shape, vocabulary_of(settings, watched.settings), notes)
        return await governor.reflector.request(watched, wanted, by)
    finally:
        await http.aclose()


def last_due(schedule: str, timezone: str, now: float) -> float:
    """The last moment at or before ``now`` at which a weekly schedule such as ``mon 08:00`` was due; Unix seconds."""
    day, clock = schedule.split()
    hour, minute = (int(part) for part in clock.split(":"))
    local = datetime.fromtimestamp(now, ZoneInfo(timezone))
    weekday = ("mon", "tue", "wed", "thu", "fri", "sat", "sun").index(day)
    due = (local - timedelta(days=(local.weekday() - weekday) % 7)).replace(
        hour=hour, minute=minute, second=0, microsecond=0
    )
    if due > local:
        due -= timedelta(days=7)
    return due.timestamp()
