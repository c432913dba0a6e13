"""Monitor: reads every source of every endpoint, closes windows, and gets them into the database or the spool.

One endpoint's trouble stays its own: each reading ends in a Reading or in a counted error with backoff, within its own deadline, and so
does each question to a system and each window. How long to wait is measured by the monotonic clock.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

from actuators.base import Actuator, ActuatorError, LiveState
from agent.metrics import Metrics
from agent.settings import CollectSettings, EndpointSettings
from agent.spool import Spool
from agent.store import Store, fleet, windows
from agent.store.windows import Entry
from analyzers.money import Tariff, Usage
from analyzers.policy import Catalogue, ptus_of
from collectors.base import NO_SERIES, Collector, FleetMember, ScrapeTarget
from collectors.builder import WindowBuilder
from collectors.clock import Clock
from collectors.receiver import Receiver, ReceiverMember
from collectors.text import clean
from collectors.window import CollectError, Reading, Span, Window

log = structlog.get_logger()
T = TypeVar("T")
HealthRow = dict[str, Any]
Source = Collector | FleetMember | ReceiverMember

#: Readings this close together have no gap between them, however short the interval: a busy machine stalls for seconds, and counters
#: lose nothing by it.
LEAST_GAP_S = 10.0
#: Empty windows that one closing writes at most, over all endpoints: after a clock that jumped, older ones are simply absent.
MAX_GAPS = 5_000
#: Systems that are asked what is live at the same time.
CONTROL_SEATS = 64
#: The kind of whatever a collector, an actuator or a window raises that it must not.
BUG = "bug"


@dataclass(slots=True)
class Health:
    """How one source of one endpoint fares."""

    last_ok_at: float | None = None
    last_error_at: float | None = None
    last_error: str | None = None
    failures: int = 0
    failures_in_a_row: int = 0
    wait_until: float = -math.inf
    """Monotonic seconds: not to be read before."""

    def failed(self, at: float, error: str) -> None:
        """Count it. ``at``: Unix seconds."""
        self.last_error_at, self.last_error = at, clean(error)
        self.failures += 1
        self.failures_in_a_row += 1

    def back_off(self, monotonic: float, interval_s: float, max_backoff_s: float) -> None:
        """Wait twice as long as the last time before the next try."""
        self.wait_until = monotonic + min(max_backoff_s, interval_s * 2.0 ** min(30, self.failures_in_a_row - 1))

    def succeeded(self, at: float) -> None:
        self.last_ok_at, self.failures_in_a_row = at, 0


@dataclass(slots=True)
class WatchedEndpoint:
    """One endpoint with its sources and its system."""

    settings: EndpointSettings
    collectors: Mapping[str, Source]
    actuator: Actuator
    catalogue: Catalogue = field(default_factory=Catalogue)
    tariff: Tariff = field(default_factory=Tariff)
    """What its shape is reserved at, as that was last seen. Without a price where none is known."""
    billed: Tariff = field(default_factory=Tariff)
    """What its use is billed by: that, and tokens."""
    reserved: float | None = None
    """Replicas, as they were last seen; None: not known."""
    ptus: float | None = None
    """Units of provisioned throughput, as they were last seen; None: it has none, or they are not known."""
    live: LiveState | None = None
    replicas: Mapping[str, str] = field(default_factory=dict)
    """Name to address, as the system last said: they are read on while it says nothing."""
    builders: dict[str, WindowBuilder] = field(default_factory=dict)
    health: dict[tuple[str, str], Health] = field(default_factory=dict)
    """By source and target."""
    unreadable: int = 0
    """How often in a row its system raised what it must not."""
    saved_until: float | None = None
    """The end of the newest window that was saved; None: none was yet."""
    begun: bool = False
    """Whether its system was given the time to say, for the first time, which replicas there are."""
    ask_at: float = -math.inf
    """Monotonic seconds: when the system is due to be asked what is live."""

    def complete(self, live: LiveState) -> LiveState:
        """What is live, with what the system does not know from the settings; what it does know always wins."""
        stated = self.settings.shape.shape()
        scaled = live.shape.autoscaling is not None  # then nobody states the count: it is what serves
        unknown = {
            name: getattr(stated, name)
            for name in (
                "size",
                "accelerator",
                "accelerator_count",
                "purchase",
                "tier",
                *(() if scaled else ("replicas",)),
            )
            if getattr(live.shape, name) is None and getattr(stated, name) is not None
        }
        shape = live.shape.with_(
            **unknown, engine={k: v for k, v in stated.engine.items() if k not in live.shape.engine}
        )
        if shape.accelerator is None:
            shape = self.catalogue.with_size(shape, shape.size)
        return replace(live, shape=shape)

    def saw(self, live: LiveState) -> None:
        """Take in what is live."""
        self.live = self.complete(live)
        shape = self.live.shape
        self.replicas = dict(live.targets)
        self.tariff, self.billed = self.catalogue.tariff(shape), self.catalogue.billed(shape)
        self.reserved, self.ptus = live.serving if shape.replicas is None else shape.replicas, ptus_of(shape)

    @property
    def price_per_hour(self) -> float | None:
        """US dollars of the whole endpoint, as it is now; None: unknown."""
        return self.tariff.cost(Usage(hours=1.0, replica_hours=self.reserved, ptu_hours=self.ptus)).usd

    def entry_of(self, window: Window) -> windows.Entry:
        """A window with what its time cost, by the prices and the replicas of now."""
        return windows.entry_of(window, self.billed, self.reserved, self.ptus)

    def targets(self) -> list[ScrapeTarget]:
        """Each replica where the system knows them, otherwise the one address."""
        key = self.settings.api_key
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        if self.replicas:
            return [ScrapeTarget(name, url, headers) for name, url in sorted(self.replicas.items())]
        return [ScrapeTarget(self.settings.url, self.settings.url, headers)]

    def targets_of(self, source: str) -> list[ScrapeTarget]:
        """What one source reads: each replica, or the endpoint as a whole."""
        if self.collectors[source].scope == "replica":
            return self.targets()
        name = self.settings.name
        return [replace(target, name=name, url=self.settings.url) for target in self.targets()[:1]]

    @property
    def lag_s(self) -> float:
        """How far behind the newest windows are by nature: the slowest source's interval, and how late its data may come."""
        return max((lag_of(collector) for collector in self.collectors.values()), default=0.0)

    @property
    def settles_s(self) -> float:
        """How late the latest of its sources may be: what lies nearer is not all there yet, and is no evidence."""
        return max((collector.settles_s for collector in self.collectors.values()), default=0.0)

    def left(self, names: Iterable[str], at: float) -> None:
        """These targets are no longer there, by intention: nobody misses them in the windows from now on."""
        for name in names:
            for builder in self.builders.values():
                builder.gone(name, at)
            for source in self.collectors:
                self.health.pop((source, name), None)

    def health_of(self, source: str, target: str) -> Health:
        return self.health.setdefault((source, target), Health())

    def health_rows(self, now: float, monotonic: float) -> list[HealthRow]:
        """One row a source: the worst of its targets, and the sum of their failures."""
        current = {source: {target.name for target in self.targets_of(source)} for source in self.collectors}
        by_source: dict[str, list[Health]] = {}
        for (source, target_name), health in self.health.items():
            if target_name in current[source]:
                by_source.setdefault(source, []).append(health)
        rows: list[HealthRow] = []
        for source, parts in by_source.items():
            worst = max(parts, key=lambda h: (h.failures_in_a_row, h.last_error_at or 0.0))
            waits = worst.wait_until - monotonic
            rows.append(
                {
                    "endpoint": self.settings.name,
                    "source": source,
                    "last_ok_at": min((h.last_ok_at for h in parts if h.last_ok_at is not None), default=None),
                    "last_error_at": worst.last_error_at,
                    "last_error": worst.last_error,
                    "failures": sum(h.failures for h in parts),
                    "failures_in_a_row": worst.failures_in_a_row,
                    "next_try_at": now + waits if waits > 0 else None,
                }
            )
        return rows


@dataclass(frozen=True, slots=True)
class StoreOutage:
    """Why telemetry does not reach the database, and since when by the monotonic clock."""

    since: float
    why: str


class Watcher:
    """The monitoring part of the loop."""

    unsaved: StoreOutage | None = None
    """None: what was read last is saved."""

    def __init__(
        self,
        watched: Mapping[str, WatchedEndpoint],
        settings: CollectSettings,
        store: Store,
        spool: Spool,
        clock: Clock,
        metrics: Metrics,
        concurrency: int = 256,
    ) -> None:
        self._watched = watched
        self._settings = settings
        self._store = store
        self._spool = spool
        self._clock = clock
        self._metrics = metrics
        self._seats = asyncio.Semaphore(concurrency)
        self._control = asyncio.Semaphore(CONTROL_SEATS)
        self._busy: dict[tuple[str, str, str], bool] = {}
        """Endpoint, source and target of every read that has not ended, and whether it was broken off: some do not even heed that."""
        self._asking: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading_fleets: set[int] = set()
        self._fleet_due: dict[int, float] = {}
        """Monotonic seconds."""
        self._heard: dict[tuple[str, str], float] = {}
        """Endpoint and source: when a pushed source said something last, in monotonic seconds; infinite where it may be silent."""
        self._reporting: set[tuple[str, str]] = set()
        """Endpoint and source of those that report also while nothing happens."""
        self._fleet_since: dict[int, float] = {}
        """Unix seconds: from when on the next read of a fleet is asked."""
        self._saving: asyncio.Task[None] | None = None
        self._stopped = False

    async def cycle(self) -> list[Window]:
        """Read everything that is due, close the windows that ended, and save them. Returns the windows.

        What does not answer within one interval goes on by itself; the others are not held up. Windows close by the time at which
        the readings began: whoever answered was read after their end, and lacks nothing in them, however long another one takes.
        """
        begun = self._clock.now()
        self._miss()
        duties = [duty for watched in self._watched.values() for duty in self._duties(watched)]
        self._tasks |= {asyncio.create_task(duty) for duty in (*duties, *self._fleet_reads())}
        done, _ = await asyncio.wait(self._tasks, timeout=self._settings.interval_s) if self._tasks else (set(), set())
        self._tasks -= done
        closed = await self.close_windows(begun)
        for task in done:
            self._over(task)
        return closed

    def _over(self, task: asyncio.Task[None]) -> None:
        """The last boundary: what no source and no system answers for is our own bug, and is counted as one."""
        error = task.exception()
        if isinstance(error, Exception):
            self._metrics.read_errors.labels("", "watch", BUG).inc()
            log.error("duty_failed", error=_said(error), exc_info=error)
        elif error is not None:
            raise error  # the end of the process

    async def stop(self) -> None:
        """End what still reads, and wait for what is being saved."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._stopped = True
        if self._saving is not None:
            await asyncio.wait({self._saving})

    async def end(self) -> None:
        """Stop, and save what was read, of a window that has only begun too: where another goes on with it, the larger part is kept."""
        await self.stop()
        await self.close_windows(self._clock.now() + self._settings.window_s)

    async def close_windows(self, until: float | None = None) -> list[Window]:
        """Close and save the windows that ended by ``until``, or by now."""
        now = self._clock.now() if until is None else until
        number = sum(len(watched.builders) for watched in self._watched.values())
        gaps = max(2, MAX_GAPS // max(1, number))
        closed = [
            window
            for watched in self._watched.values()
            for source, builder in watched.builders.items()
            for window in self._close(watched, source, builder, now, gaps)
        ]
        for window in closed:
            self._metrics.windows.labels(window.endpoint, window.source).inc()
            self._metrics.coverage.labels(window.endpoint, window.source).set(window.coverage)
        entries = [self._watched[window.endpoint].entry_of(window) for window in closed]
        monotonic = self._clock.monotonic()
        health = [row for watched in self._watched.values() for row in watched.health_rows(now, monotonic)]
        await self._keep(entries, health)
        return closed

    def _close(
        self, watched: WatchedEndpoint, source: str, builder: WindowBuilder, now: float, gaps: int
    ) -> list[Window]:
        """The windows of one builder. One that cannot be made is counted, and costs only itself."""
        closed: list[Window] = []
        if watched.live is not None and watched.live.serving is not None:
            builder.settle(watched.live.serving)
        # The reading after a window's end brings its last seconds: with a source that is read seldom, that comes late.
        for index in builder.ended(now - lag_of(watched.collectors[source]), gaps):
            try:
                closed.append(builder.close_window(index))
            except Exception as error:
                name = watched.settings.name
                self._metrics.read_errors.labels(name, source, BUG).inc()
                log.exception("window_lost", endpoint=name, source=source, error=_said(error))
                closed.append(builder.gap(index, BUG))
        return closed

    async def look(self, watched: WatchedEndpoint) -> LiveState | None:
        """Ask the system what is live; None, and a counted error, where it does not say."""
        name, before = watched.settings.name, {target.name for target in watched.targets()}
        limit_s = self._settings.timeout_s
        try:
            live = await _within(watched.actuator.live(), limit_s)
            watched.saw(live)
            watched.unreadable = 0
        except (ActuatorError, TimeoutError) as error:
            watched.live = None
            detail = str(error) or f"no answer within {limit_s:g} s"
            self._metrics.read_errors.labels(name, "system", getattr(error, "code", "timeout")).inc()
            log.warning("system_unreadable", endpoint=name, error=detail)
        except Exception as error:
            watched.live = None
            watched.unreadable += 1
            self._metrics.read_errors.labels(name, "system", BUG).inc()
            level = log.exception if watched.unreadable == 1 else log.warning
            level("system_unreadable", endpoint=name, error=_said(error))
        watched.left(before - {target.name for target in watched.targets()}, self._clock.now())
        return watched.live

    # -- what is due ---------------------------------------------------------------------------------------------------

    def _duties(self, watched: WatchedEndpoint) -> list[Coroutine[Any, Any, None]]:
        """What is due for one endpoint. Its sources do not wait for its system: the replicas last known are read meanwhile."""
        name = watched.settings.name
        if not watched.begun:
            return [self._begin(watched)] if name not in self._asking else []
        due = self._clock.monotonic() >= watched.ask_at and name not in self._asking
        return [*([self._ask(watched)] if due else []), *self._reads(watched)]

    async def _begin(self, watched: WatchedEndpoint) -> None:
        """An endpoint that was not seen before: only its system knows which replicas to read. It is waited for, but not for long."""
        ask = asyncio.create_task(self._ask(watched))
        self._tasks.add(ask)
        await asyncio.wait({ask}, timeout=self._settings.timeout_s)
        watched.begun = True
        await asyncio.gather(*self._reads(watched))

    async def _ask(self, watched: WatchedEndpoint) -> None:
        """At the system's own pace, and not all systems at once."""
        name = watched.settings.name
        self._asking.add(name)
        try:
            async with self._control:
                await self.look(watched)
        finally:
            self._asking.discard(name)
            watched.ask_at = self._clock.monotonic() + self._pause(watched.actuator.poll_s)

    def _pause(self, usual_s: float) -> float:
        """Seconds until something is due again that wants to be asked every ``usual_s``; cycles do not come on the second."""
        interval_s = self._settings.interval_s
        return usual_s - interval_s / 2 if usual_s > interval_s else 0.0

    def _reads(self, watched: WatchedEndpoint) -> list[Coroutine[Any, Any, None]]:
        now = self._clock.monotonic()
        return [
            self._read(watched, source, collector, target)
            for source, collector in watched.collectors.items()
            if not isinstance(collector, FleetMember | ReceiverMember)
            for target in watched.targets_of(source)
            if now >= watched.health_of(source, target.name).wait_until
        ]

    # -- reading -------------------------------------------------------------------------------------------------------

    async def _read(self, watched: WatchedEndpoint, source: str, collector: Collector, target: ScrapeTarget) -> None:
        """One read, whose every end is counted. It takes a seat until then, and its target is not read twice at once."""
        seat = (watched.settings.name, source, target.name)
        if seat in self._busy:
            if self._busy[seat]:
                self._failed(
                    watched, source, target.name, CollectError("timeout", "the read that was broken off goes on")
                )
            return
        self._busy[seat] = False
        started = self._clock.monotonic()
        limit_s = self._settings.timeout_s
        try:
            limit_s = collector.deadline_s or limit_s
            async with self._seats:
                readings = await _within(collector.read(target), limit_s, lambda: self._busy.pop(seat, None))
            if self._is_there(watched, source, target.name):
                for reading in readings:
                    self._take(watched, source, reading)
                self._succeeded(watched, source, target.name)
        except CollectError as error:
            self._failed(watched, source, target.name, error)
        except TimeoutError:
            if seat in self._busy:
                self._busy[seat] = True
            late = CollectError("timeout", f"no reading within {limit_s:g} s; it was broken off")
            self._failed(watched, source, target.name, late)
        except Exception as error:
            self._failed(watched, source, target.name, CollectError(BUG, _said(error)), error)
            self._busy.pop(seat, None)
        finally:
            self._metrics.read_seconds.labels(source).observe(self._clock.monotonic() - started)

    # -- reading many at once ------------------------------------------------------------------------------------------

    def _fleet_reads(self) -> list[Coroutine[Any, Any, None]]:
        """One read for each fleet that is due, of all its members."""
        fleets: dict[int, list[tuple[WatchedEndpoint, str, FleetMember]]] = {}
        for watched in self._watched.values():
            for source, collector in watched.collectors.items():
                if isinstance(collector, FleetMember):
                    fleets.setdefault(id(collector.fleet), []).append((watched, source, collector))
        now = self._clock.monotonic()
        return [
            self._read_fleet(members)
            for key, members in fleets.items()
            if key not in self._reading_fleets and now >= self._fleet_due.get(key, -math.inf)
        ]

    async def _read_fleet(self, members: Sequence[tuple[WatchedEndpoint, str, FleetMember]]) -> None:
        """One endpoint's trouble is counted on it alone; what nobody can read is counted on each."""
        fleet, source = members[0][2].fleet, members[0][1]
        by_name = {member.wanted.endpoint: (watched, source) for watched, source, member in members}
        silent, limit_s = set(by_name), fleet.deadline_s or self._settings.timeout_s
        key, started = id(fleet), self._clock.monotonic()
        self._reading_fleets.add(key)

        async def read() -> None:
            since = self._fleet_since.get(key)
            begun = self._clock.now()
            async for name, said in fleet.read_all([member.wanted for _, _, member in members], since):
                if name in by_name:
                    silent.discard(name)
                    self._take_from_fleet(*by_name[name], said)
            self._fleet_since[key] = begun

        trouble = CollectError("no_series", NO_SERIES)
        bug: Exception | None = None
        try:
            async with self._seats:
                await _within(read(), limit_s)
        except CollectError as error:
            trouble = error
        except TimeoutError:
            trouble = CollectError("timeout", f"no answer for the whole fleet within {limit_s:g} s; it was broken off")
        except Exception as error:
            trouble, bug = CollectError(BUG, _said(error)), error
        finally:
            self._reading_fleets.discard(key)
            usual_s = max(fleet.interval_s or 0.0, self._settings.interval_s)
            self._fleet_due[key] = self._clock.monotonic() + self._pause(usual_s)
            self._metrics.read_seconds.labels(source).observe(self._clock.monotonic() - started)
        for name in silent:
            watched, of = by_name[name]
            self._failed(watched, of, watched.settings.name, trouble, bug)

    def _take_from_fleet(self, watched: WatchedEndpoint, source: str, said: Reading | Span | CollectError) -> None:
        try:
            if isinstance(said, CollectError):
                raise said
            self._take(watched, source, said)
            self._succeeded(watched, source, watched.settings.name)
        except CollectError as error:
            self._failed(watched, source, watched.settings.name, error)
        except Exception as error:
            self._failed(watched, source, watched.settings.name, CollectError(BUG, _said(error)), error)

    # -- what is pushed ------------------------------------------------------------------------------------------------

    def take(self, endpoint: str, receiver: Receiver, said: Reading | Span) -> None:
        """What a sender told of an endpoint. Whatever is wrong with it is counted there, and does the sender no harm."""
        for watched, source in self._fed_by(receiver, endpoint):
            self._reporting.add((endpoint, source))
            self._heard[endpoint, source] = self._clock.monotonic()
            self._take_from_fleet(watched, source, said)

    def heard(self, endpoint: str, receiver: Receiver) -> None:
        """A sender told requests of an endpoint, which it only does while there are some: its silence means nothing."""
        for watched, source in self._fed_by(receiver, endpoint):
            if (endpoint, source) not in self._reporting:
                self._heard[endpoint, source] = math.inf
            self._succeeded(watched, source, endpoint)

    def _fed_by(self, receiver: Receiver, endpoint: str) -> list[tuple[WatchedEndpoint, str]]:
        watched = self._watched[endpoint]
        return [
            (watched, source)
            for source, member in watched.collectors.items()
            if isinstance(member, ReceiverMember) and member.receiver is receiver
        ]

    def _miss(self) -> None:
        """A pushed source that is silent for too long has failed, as one that cannot be read."""
        now = self._clock.monotonic()
        for name, watched in self._watched.items():
            for source, member in watched.collectors.items():
                if not isinstance(member, ReceiverMember):
                    continue
                last = self._heard.setdefault((name, source), now)
                if now - last > member.silent_s and now >= watched.health_of(source, name).wait_until:
                    paths = " or ".join(member.receiver.paths)
                    detail = f"nothing was pushed for {now - last:.0f} s; point its sender to {paths}"
                    self._failed(watched, source, name, CollectError("silent", detail))

    # -- what came of it -----------------------------------------------------------------------------------------------

    def _take(self, watched: WatchedEndpoint, source: str, said: Reading | Span) -> None:
        builder = self._builder(watched, source)
        if isinstance(said, Span):
            builder.span(said)
        else:
            builder.add(said)

    def _succeeded(self, watched: WatchedEndpoint, source: str, target: str) -> None:
        health = watched.health_of(source, target)
        health.succeeded(self._clock.now())
        health.wait_until = self._clock.monotonic() + self._pause(self._usual_s(watched, source))
        self._metrics.reads.labels(watched.settings.name, source).inc()

    def _failed(
        self, watched: WatchedEndpoint, source: str, target: str, error: CollectError, bug: Exception | None = None
    ) -> None:
        if not self._is_there(watched, source, target):
            return
        name, now, settings = watched.settings.name, self._clock.now(), self._settings
        health = watched.health_of(source, target)
        health.failed(now, str(error))
        health.back_off(self._clock.monotonic(), settings.interval_s, settings.max_backoff_s)
        self._builder(watched, source).failed(target, now, error.kind)
        self._metrics.read_errors.labels(name, source, error.kind).inc()
        seldom = health.failures_in_a_row in (1, 10, 100)
        level = log.warning if seldom else log.debug
        level(
            "read_failed", endpoint=name, source=source, target=target, kind=error.kind, error=error.detail,
            **({"exc_info": bug} if bug is not None and seldom else {}),
        )  # fmt: skip

    def _is_there(self, watched: WatchedEndpoint, source: str, target: str) -> bool:
        """Whether it was not taken away while it was being read."""
        return any(target == other.name for other in watched.targets_of(source))

    def _usual_s(self, watched: WatchedEndpoint, source: str) -> float:
        return max(watched.collectors[source].interval_s or 0.0, self._settings.interval_s)

    def _builder(self, watched: WatchedEndpoint, source: str) -> WindowBuilder:
        builder = watched.builders.get(source)
        if builder is None:
            max_gap_s = max(LEAST_GAP_S, 2.5 * self._usual_s(watched, source))
            builder = WindowBuilder(watched.settings.name, source, self._settings.window_s, max_gap_s=max_gap_s)
            watched.builders[source] = builder
        return builder

    # -- saving --------------------------------------------------------------------------------------------------------

    async def _keep(self, entries: Sequence[Entry], health: Sequence[HealthRow]) -> None:
        """Save on a thread, and wait for it, but not for a database that stands still: what comes meanwhile goes to the spool."""
        if self._saving is not None and not self._saving.done():
            await asyncio.to_thread(self._spooled, entries)
            return
        self._saving = asyncio.create_task(asyncio.to_thread(self._save, entries, health))
        await asyncio.wait({self._saving}, timeout=None if self._stopped else self._settings.interval_s)
        if self._saving.done():
            self._saving.result()

    def _save(self, entries: Sequence[Entry], health: Sequence[HealthRow]) -> None:
        """Into the database, oldest first, or onto the spool while it is away."""
        try:
            for batch in self._spool.batches():
                self._drain(batch)
            self._write(entries)
        except Exception as error:
            log.error("database_away", error=_said(error), windows=len(entries))
            self.unsaved = self.unsaved or StoreOutage(self._clock.monotonic(), _said(error))
            self._spooled(entries)
        else:
            self.unsaved = None
            self._save_health(health)
        self._metrics.spooled.set(self._spool.size())

    def _write(self, entries: Sequence[Entry]) -> None:
        """One that the database never takes is set aside, counted, and costs only itself."""
        for entry, reason in windows.each_saved(self._store, entries, windows.save_entries):
            log.error("window_refused", endpoint=entry.window.endpoint, source=entry.window.source, error=reason)
            self._metrics.dropped.labels("refused").inc()
            self._spool.keep_refused(entry, reason)
        for window in (entry.window for entry in entries):
            if (
                watched := self._watched.get(window.endpoint)
            ) is not None:  # a batch of the spool may be of one that is gone
                watched.saved_until = max(watched.saved_until or 0.0, window.end)

    def _save_health(self, health: Sequence[HealthRow]) -> None:
        try:
            refused = windows.each_saved(self._store, health, fleet.source_health)
        except SQLAlchemyError as error:  # the next cycle says it again
            log.error("database_away", error=_said(error), windows=0)
            return
        for row, reason in refused:
            log.error("health_refused", endpoint=row["endpoint"], source=row["source"], error=reason)

    def _spooled(self, entries: Sequence[Entry]) -> None:
        if entries and not self._spool.put(entries):
            self._metrics.dropped.labels("full").inc(len(entries))

    def _drain(self, path: Path) -> None:
        try:
            batch = self._spool.read(path)
        except ValueError as error:
            log.error("spool_damaged", batch=str(path), error=str(error))
            self._metrics.dropped.labels("damaged").inc()
            self._spool.set_aside(path)
            return
        self._write(batch.entries)
        if batch.damaged:
            log.error("spool_damaged", batch=str(path), windows=batch.damaged)
            self._metrics.dropped.labels("damaged").inc(batch.damaged)
            self._spool.set_aside(path)
        else:
            self._spool.remove(path)


async def _within(work: Coroutine[Any, Any, T], limit_s: float, ended: Callable[[], object] = lambda: None) -> T:
    """What ``work`` returns or raises; TimeoutError after ``limit_s``, whatever it does with being cancelled. ``ended`` is called
    when it is really over."""
    task = asyncio.ensure_future(work)

    def over(task: asyncio.Future[T]) -> None:
        ended()
        if not task.cancelled():
            task.exception()  # nobody waits for it any more

    task.add_done_callback(over)
    try:
        await asyncio.wait({task}, timeout=limit_s)
        task.cancel()
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task}, timeout=1.0)
        raise
    if not task.done():
        raise TimeoutError
    if task.cancelled():
        raise RuntimeError("it was cancelled from within")
    return task.result()


def lag_of(source: Source) -> float:
    """Seconds until what happened now is in a reading: its interval, and how late its data may come."""
    return (source.interval_s or 0.0) + source.settles_s


def _said(error: BaseException) -> str:
    """Its class and the first line of its text."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
