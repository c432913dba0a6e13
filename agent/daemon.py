"""`flyball run`: the governor on the wall clock, with pages, schedule, signals and systemd around it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import structlog
import uvicorn
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger

from agent import systemd
from agent.clock import WallClock
from agent.configfile import BadSettings, Loaded, load
from agent.governor import Governor, last_due
from agent.report import weekly
from agent.settings import Settings
from agent.store import Store, outbox
from agent.web.app import create_app
from collectors.http import Http

log = structlog.get_logger()

WEEK_S = 7 * 86_400.0
#: SIGTERM must be obeyed within 10 s: what does not end by then is cut off.
GRACE_S = 8.0


class _Server(uvicorn.Server):
    """Leaves the signals to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Daemon:
    """Owns the process: opens the store, runs the governor, reloads it, ends it."""

    def __init__(self, loaded: Loaded) -> None:
        self._path = loaded.path
        self._clock = WallClock()
        self._store = Store(loaded.settings.database)
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self._settings = loaded.settings

    async def run(self) -> int:
        """Until SIGTERM or SIGINT. Returns the exit code."""
        self._store.upgrade()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        try:
            while not self._stop.is_set():
                await self._serve(self._settings)
        finally:
            self._store.close()
        systemd.notify("STOPPING=1")
        log.info("stopped")
        return 0

    async def _serve(self, settings: Settings) -> None:
        """Run under one set of settings until told to stop, or until new ones are accepted."""
        http = Http(ca_file=settings.tls_ca_file, monotonic=self._clock.monotonic)
        governor = Governor(settings, self._store, self._clock, holder=self._holder, http=http)
        server = _Server(_uvicorn(governor))
        ended = asyncio.Event()
        scheduler = self._schedule(governor)
        await governor.take_lead()
        tasks = [asyncio.create_task(loop.run(ended), name=loop.name) for loop in governor.loops]
        tasks.append(asyncio.create_task(server.serve(), name="web"))
        tasks.append(asyncio.create_task(self._watchdog(governor, ended), name="watchdog"))
        log.info("started", endpoints=len(settings.endpoints), page=f"http://{settings.web.host}:{settings.web.port}")
        systemd.notify("READY=1", f"STATUS=watching {len(settings.endpoints)} endpoints")
        try:
            await self._until_told(tasks)
        finally:
            scheduler.shutdown(wait=False)
            ended.set()
            server.should_exit = True
            await self._end(tasks)
            await governor.close()
            await http.aclose()

    async def _until_told(self, tasks: list[asyncio.Task[None]]) -> None:
        """Wait for a signal; a task that ends by itself is an error of ours, and ends the daemon."""
        while not self._stop.is_set():
            waits = [asyncio.create_task(self._stop.wait()), asyncio.create_task(self._reload.wait())]
            done, _ = await asyncio.wait([*waits, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            dead = [t for t in tasks if t in done]
            if dead and not self._stop.is_set():
                self._stop.set()
                raise RuntimeError(f"the {dead[0].get_name()} task ended by itself") from dead[0].exception()
            if self._reload.is_set():
                self._reload.clear()
                if self._accept_new_settings():
                    return

    def _accept_new_settings(self) -> bool:
        """Read the file again. A bad one is refused with its reasons, and the old settings go on."""
        systemd.notify("RELOADING=1", f"MONOTONIC_USEC={int(self._clock.monotonic() * 1e6)}")
        try:
            settings = load(self._path).settings
        except BadSettings as error:
            for problem in error.problems:
                log.error("reload_refused", problem=str(problem))
            systemd.notify("READY=1", "STATUS=new settings refused, the old ones go on")
            return False
        if settings.database != self._settings.database:
            log.error("reload_refused", problem="the database cannot be changed while running; restart Flyball")
            systemd.notify("READY=1")
            return False
        self._settings = settings
        log.info("reloaded", endpoints=len(settings.endpoints))
        return True

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        _, late = await asyncio.wait(tasks, timeout=GRACE_S)
        for task in late:
            log.warning("cut_off", task=task.get_name())
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watchdog(self, governor: Governor, ended: asyncio.Event) -> None:
        """Feed systemd's watchdog as long as the loops run, and not a moment longer."""
        period = systemd.watchdog_s()
        while not ended.is_set():
            if period is not None and not governor.alive():
                systemd.notify("WATCHDOG=1")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), (period or 10.0) / 2)

    def _schedule(self, governor: Governor) -> AsyncIOScheduler:
        """The weekly report: in memory, coalesced; one that was missed while down is caught up from the database."""
        settings = governor.settings
        day, clock = settings.report.schedule.split()
        hour, minute = clock.split(":")
        scheduler = AsyncIOScheduler(timezone=settings.timezone)
        trigger = CronTrigger(day_of_week=day, hour=hour, minute=minute, timezone=settings.timezone)
        scheduler.add_job(
            self._report, trigger, args=[governor], coalesce=True, max_instances=1, misfire_grace_time=3600, id="report"
        )
        scheduler.add_job(self._report, args=[governor], misfire_grace_time=None, id="catch-up")
        scheduler.start()
        return scheduler

    async def _report(self, governor: Governor) -> None:
        """Make the report that was due last, unless it is there, or nothing was watched yet by then."""
        settings = governor.settings
        if governor.lead is None:
            return
        end = last_due(settings.report.schedule, settings.timezone, self._clock.now())
        try:
            made = await asyncio.to_thread(self._make_report, settings, end)
        except Exception:
            governor.metrics.cycle_errors.labels("report", "Exception").inc()
            log.exception("report_failed")
            return
        if made is not None:
            log.info("report_made", path=str(made))

    def _make_report(self, settings: Settings, end: float) -> Path | None:
        with self._store.read() as db:
            if any(r["period_end"] == end for r in outbox.reports(db)):
                return None
        return weekly(self._store, settings, start=end - WEEK_S, end=end, now=self._clock.now(), only_with_data=True)


def _uvicorn(governor: Governor) -> uvicorn.Config:
    web = governor.settings.web
    return uvicorn.Config(
        create_app(governor),
        host=web.host,
        port=web.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
        timeout_keep_alive=5,
    )


def run(path: Path) -> int:
    """Start the daemon with the settings at ``path``. Raises ``BadSettings`` and ``StoreError``."""
    loaded = load(path)

    async def main() -> int:
        return await Daemon(loaded).run()

    return asyncio.run(main())
