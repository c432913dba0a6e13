"""Monitor: reads every source of every endpoint, closes windows, and gets them into the database or the spool.

One endpoint's trouble stays its own: each reading ends in a Reading or in a counted error with backoff, within its own deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from actuators.base import Actuator, ActuatorError, Live
from agent.metrics import Metrics
from agent.settings import CollectSettings, EndpointSettings
from agent.spool import Spool
from agent.store import Store, fleet, windows
from analyzers.policy import Catalogue
from collectors.base import Collector, Target
from collectors.builder import WindowBuilder
from collectors.clock import Clock
from collectors.window import CollectError, Reading, Window

log = structlog.get_logger()

#: Readings this close together have no gap between them, however short the interval: a busy machine stalls for seconds, and counters
#: lose nothing by it.
LEAST_GAP_S = 10.0


@dataclass(slots=True)
class Health:
    """How one source of one endpoint fares."""

    last_ok_at: float | None = None
    last_error_at: float | None = None
    last_error: str | None = None
    failures: int = 0
    failures_in_a_row: int = 0
    next_try_at: float = 0.0

    def failed(self, at: float, error: str, interval_s: float, max_backoff_s: float) -> None:
        """Count it, and wait twice as long as the last time before the next try."""
        self.last_error_at, self.last_error = at, error
        self.failures += 1
        self.failures_in_a_row += 1
        self.next_try_at = at + min(max_backoff_s, interval_s * 2.0 ** min(30, self.failures_in_a_row - 1))

    def succeeded(self, at: float, pause_s: float) -> None:
        """``pause_s``: before it need be read again."""
        self.last_ok_at, self.failures_in_a_row, self.next_try_at = at, 0, at + pause_s


@dataclass(slots=True)
class Watched:
    """One endpoint with its sources and its system."""

    settings: EndpointSettings
    collectors: Mapping[str, Collector]
    actuator: Actuator
    catalogue: Catalogue = field(default_factory=Catalogue)
    price_per_hour: float | None = None
    """US dollars of the whole endpoint, as it is now; None: unknown."""
    live: Live | None = None
    replicas: Mapping[str, str] = field(default_factory=dict)
    """Name to address, as the system last said: they are read on while it says nothing."""
    builders: dict[str, WindowBuilder] = field(default_factory=dict)
    health: dict[tuple[str, str], Health] = field(default_factory=dict)
    """By source and target."""

    def saw(self, live: Live) -> None:
        """Take in what is live. What the system does not know is filled in from the settings; what it does know always wins."""
        stated = self.settings.shape.shape()
        unknown = {
            name: getattr(stated, name)
            for name in ("replicas", "size", "accelerator", "accelerator_count")
            if getattr(live.shape, name) is None and getattr(stated, name) is not None
        }
        shape = live.shape.with_(
            **unknown, engine={k: v for k, v in stated.engine.items() if k not in live.shape.engine}
        )
        if shape.accelerator is None:
            shape = self.catalogue.with_size(shape, shape.size)
        self.live = replace(live, shape=shape)
        self.replicas = dict(live.targets)
        self.price_per_hour = self.catalogue.per_hour(shape)

    def targets(self) -> list[Target]:
        """Each replica where the system knows them, otherwise the one address."""
        key = self.settings.api_key
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        if self.replicas:
            return [Target(name, url, headers) for name, url in sorted(self.replicas.items())]
        return [Target(self.settings.url, self.settings.url, headers)]

    def left(self, names: Iterable[str], at: float) -> None:
        """These targets are no longer there, by intention: nobody misses them in the windows from now on."""
        for name in names:
            for builder in self.builders.values():
                builder.gone(name, at)
            for source in self.collectors:
                self.health.pop((source, name), None)


class Watcher:
    """The monitoring part of the loop."""

    def __init__(
        self,
        watched: Mapping[str, Watched],
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
        self._busy: set[tuple[str, str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def cycle(self) -> list[Window]:
        """Read everything that is due, close the windows that ended, and save them. Returns the windows.

        What does not answer within one interval goes on by itself; the others are not held up. Windows close by the time at which
        the readings began: whoever answered was read after their end, and lacks nothing in them, however long another one takes.
        """
        begun = self._clock.now()
        tasks = {asyncio.create_task(self._endpoint(w)) for w in self._watched.values()}
        self._tasks |= tasks
        done, _ = await asyncio.wait(self._tasks, timeout=self._settings.interval_s) if self._tasks else (set(), set())
        self._tasks -= done
        closed = await self.close_windows(begun)
        for task in done:
            task.result()  # a bug in our own code is the loop's to count, not to swallow; the others' windows are safe by now
        return closed

    async def stop(self) -> None:
        """End what still reads."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def close_windows(self, until: float | None = None) -> list[Window]:
        """Close and save the windows that ended by ``until``, or by now."""
        now = self._clock.now() if until is None else until
        closed: list[Window] = []
        for watched in self._watched.values():
            for source, builder in watched.builders.items():
                # The reading after a window's end brings its last seconds: with a source that is read seldom, that comes late.
                closed += builder.close(now - (watched.collectors[source].interval_s or 0.0))
        for window in closed:
            self._metrics.windows.labels(window.endpoint, window.source).inc()
            self._metrics.coverage.labels(window.endpoint, window.source).set(window.coverage)
        await asyncio.to_thread(self._save, closed)
        return closed

    async def look(self, watched: Watched) -> Live | None:
        """Ask the system what is live; None, and a counted error, where it does not say."""
        name, before = watched.settings.name, {target.name for target in watched.targets()}
        try:
            watched.saw(await asyncio.wait_for(watched.actuator.live(), self._settings.timeout_s))
        except (ActuatorError, TimeoutError) as error:
            detail = str(error) or "no answer in time"
            self._metrics.read_errors.labels(name, "system", getattr(error, "code", "timeout")).inc()
            log.warning("system_unreadable", endpoint=name, error=detail)
            watched.live = None
        watched.left(before - {target.name for target in watched.targets()}, self._clock.now())
        return watched.live

    async def _endpoint(self, watched: Watched) -> None:
        await self.look(watched)
        reads = [
            self._read(watched, source, collector, target)
            for source, collector in watched.collectors.items()
            for target in watched.targets()
        ]
        await asyncio.gather(*reads)

    async def _read(self, watched: Watched, source: str, collector: Collector, target: Target) -> None:
        name = watched.settings.name
        health = watched.health.setdefault((source, target.name), Health())
        seat = (name, source, target.name)
        if self._clock.now() < health.next_try_at or seat in self._busy:
            return
        builder = watched.builders.get(source)
        usual_s = max(collector.interval_s or 0.0, self._settings.interval_s)
        if builder is None:
            builder = watched.builders[source] = WindowBuilder(
                name, source, self._settings.window_s, max_gap_s=max(LEAST_GAP_S, 2.5 * usual_s)
            )
        self._busy.add(seat)
        started = self._clock.monotonic()
        try:
            async with self._seats:
                readings = await collector.read(target)
            self._took(builder, health, readings, usual_s)
            self._metrics.reads.labels(name, source).inc()
        except CollectError as error:
            now = self._clock.now()
            if target.name not in {t.name for t in watched.targets()}:
                return  # it was taken away while it was being read
            health.failed(now, str(error), self._settings.interval_s, self._settings.max_backoff_s)
            builder.failed(target.name, now, error.kind)
            self._metrics.read_errors.labels(name, source, error.kind).inc()
            level = log.warning if health.failures_in_a_row in (1, 10, 100) else log.debug
            level("read_failed", endpoint=name, source=source, target=target.name, kind=error.kind, error=error.detail)
        finally:
            self._busy.discard(seat)
            self._metrics.read_seconds.labels(source).observe(self._clock.monotonic() - started)

    def _took(self, builder: WindowBuilder, health: Health, readings: Sequence[Reading], usual_s: float) -> None:
        for reading in readings:
            builder.add(reading)
        seldom = usual_s > self._settings.interval_s
        health.succeeded(self._clock.now(), usual_s - self._settings.interval_s / 2 if seldom else 0.0)

    def _save(self, closed: Sequence[Window]) -> None:
        """Into the database, oldest first, or onto the spool while it is away."""
        now = self._clock.now()
        prices = {name: w.price_per_hour for name, w in self._watched.items()}
        try:
            self._drain(prices)
            with self._store.write() as db:
                windows.save(db, closed, prices)
                fleet.source_health(db, self._health_rows())
        except SQLAlchemyError as error:
            log.error("database_away", error=str(error).splitlines()[0], windows=len(closed), at=now)
            if closed and not self._spool.put(closed):
                self._metrics.dropped.inc(len(closed))
        self._metrics.spooled.set(self._spool.size())

    def _drain(self, prices: Mapping[str, float | None]) -> None:
        for batch in self._spool.batches():
            try:
                waiting = self._spool.read(batch)
            except ValueError as error:
                log.error("spool_damaged", batch=str(batch), error=str(error))
                self._spool.set_aside(batch)
                continue
            with self._store.write() as db:
                windows.save(db, waiting, prices)
            self._spool.remove(batch)

    def _health_rows(self) -> list[dict[str, Any]]:
        """One row a source: the worst of its targets, and the sum of their failures."""
        rows: list[dict[str, Any]] = []
        for name, watched in self._watched.items():
            current = {target.name for target in watched.targets()}
            by_source: dict[str, list[Health]] = {}
            for (source, target_name), health in watched.health.items():
                if target_name in current or len(watched.collectors) == 0:
                    by_source.setdefault(source, []).append(health)
            for source, parts in by_source.items():
                worst = max(parts, key=lambda h: (h.failures_in_a_row, h.last_error_at or 0.0))
                rows.append(
                    {
                        "endpoint": name,
                        "source": source,
                        "last_ok_at": min((h.last_ok_at for h in parts if h.last_ok_at is not None), default=None),
                        "last_error_at": worst.last_error_at,
                        "last_error": worst.last_error,
                        "failures": sum(h.failures for h in parts),
                        "failures_in_a_row": worst.failures_in_a_row,
                        "next_try_at": worst.next_try_at or None,
                    }
                )
        return rows
