"""`flyball run`: the governor on the wall clock, with pages, schedule, signals and systemd around it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import structlog
import uvicorn
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy.exc import SQLAlchemyError

from actuators.base import ActuatorError
from agent import systemd
from agent.check import check_file
from agent.clock import WallClock
from agent.configfile import BadSettings, Problem, SettingsFile, load
from agent.governor import Governor, last_due
from agent.plugins import PluginError
from agent.report import weekly
from agent.settings import Settings, WebSettings
from agent.store import Store, outbox
from agent.store.control import Lead
from agent.web.app import create_app
from agent.web.inbound import MAX_CONNECTIONS, BoundedProtocol, WholeBodies, allow_descriptors
from collectors.http import Http

log = structlog.get_logger()

WEEK_S = 7 * 86_400.0
#: SIGTERM must be obeyed within 10 s: tasks that do not end within the grace are cut off, and a thread that cannot be (one that waits
#: for a locked database, say) ends with the process. What was not acknowledged may be lost then; what was is not.
GRACE_S, CUT_OFF_S = 6.0, 9.0
#: How often a missed report is looked for: also by a daemon that takes the lead over.
CATCH_UP_S = 60.0


class CannotListen(Exception):
    """The pages' address is taken."""


class _Server(uvicorn.Server):
    """Leaves the signals to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Daemon:
    """Owns the process: opens the store, runs the governor, reloads it, ends it."""

    def __init__(self, loaded: SettingsFile) -> None:
        self._path = loaded.path
        self._clock = WallClock()
        self._store = Store(loaded.settings.database)
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self._loaded = loaded
        self._next: Governor | None = None
        self._reported: float | None = None
        """The end of the newest period whose report is there, or has nothing to report."""

    async def run(self) -> int:
        """Until SIGTERM or SIGINT. Returns the exit code."""
        self._store.upgrade()
        self._listen(asyncio.get_running_loop())
        watchdog = asyncio.create_task(self._watchdog(), name="watchdog")
        try:
            while not self._stop.is_set():
                governor, self._next = self._next or self._make(self._loaded), None
                await self._serve(governor, watchdog)
        finally:
            watchdog.cancel()
            self._store.close()
        log.info("stopped")
        return 0

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take signals in a thread of their own: the event loop may be held up by the very thing that shall end.

        SIGHUP takes new settings in; from a terminal that was closed, which is no terminal any more, it ends what was begun on it.
        """
        reading, writing = socket.socketpair()
        writing.setblocking(False)
        begun_on_terminal = os.isatty(0)
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)  # the number in the pipe is what counts

        def wait() -> None:
            with reading, writing:
                while reading.recv(1)[0] == signal.SIGHUP and not (begun_on_terminal and not os.isatty(0)):
                    loop.call_soon_threadsafe(self._reload.set)
                systemd.notify("STOPPING=1")
                loop.call_soon_threadsafe(self._stop.set)
                time.sleep(CUT_OFF_S)
                log.error("cut_off", task="the process")
                os._exit(1)

        threading.Thread(target=wait, name="signals", daemon=True).start()

    def _make(self, loaded: SettingsFile) -> Governor:
        """All parts for these settings; nothing runs yet. Raises PluginError, ActuatorError, or OSError on the certificates' file."""
        settings = loaded.settings
        http = Http(ca_file=settings.tls_ca_file, monotonic=self._clock.monotonic)
        return Governor(settings, self._store, self._clock, holder=self._holder, http=http, referred=loaded.resolved)

    async def _serve(self, governor: Governor, watchdog: asyncio.Task[None]) -> None:
        """Run under one set of settings until told to stop, or until new ones are accepted."""
        settings = governor.settings
        server = _Server(_uvicorn(governor))
        ended = asyncio.Event()
        await governor.loops[0].once()  # "lead"; where the database is away just now, the loop tries again
        scheduler = self._schedule(governor)
        tasks = [asyncio.create_task(loop.run(ended), name=loop.name) for loop in governor.loops]
        tasks.append(asyncio.create_task(server.serve(), name="web"))
        log.info("started", endpoints=len(settings.endpoints), page=f"http://{settings.web.host}:{settings.web.port}")
        systemd.notify("READY=1", f"STATUS=watching {len(settings.endpoints)} endpoints")
        try:
            await self._until_told([*tasks, watchdog])
        finally:
            scheduler.shutdown(wait=False)
            ended.set()
            server.should_exit = True
            await self._end(tasks)
            with contextlib.suppress(SQLAlchemyError):  # it goes without giving the lease up: the lease runs out
                await governor.close()
            await governor.environment.http.aclose()

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
                if await self._accept_new_settings():
                    return

    async def _accept_new_settings(self) -> bool:
        """Read the file again. A bad one is refused with its reasons, and the old settings go on."""
        systemd.notify("RELOADING=1", f"MONOTONIC_USEC={int(self._clock.monotonic() * 1e6)}")
        try:
            loaded, wrong = await asyncio.to_thread(_read_settings, self._path)  # thousands of endpoints take a while
            problems = [*map(str, wrong), *self._obstacles(loaded.settings)]
            governor = self._make(loaded) if not problems else None
        except BadSettings as error:
            problems, governor = [str(problem) for problem in error.problems], None
        except (PluginError, ActuatorError, OSError) as error:
            problems, governor = [str(error)], None
        if governor is None:
            for problem in problems:
                log.error("reload_refused", problem=problem)
            systemd.notify("READY=1", "STATUS=new settings refused, the old ones go on")
            return False
        self._loaded, self._next = loaded, governor
        log.info("reloaded", endpoints=len(loaded.settings.endpoints))
        return True

    def _obstacles(self, settings: Settings) -> list[str]:
        """What stands against these settings, right as they may be."""
        found = []
        if settings.database != self._loaded.settings.database:
            found.append("the database cannot be changed while running; restart Flyball")
        if (settings.web.host, settings.web.port) != (self._loaded.settings.web.host, self._loaded.settings.web.port):
            found += cannot_listen(settings.web)
        return found

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        _, late = await asyncio.wait(tasks, timeout=GRACE_S)
        for task in late:
            log.warning("cut_off", task=task.get_name())
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watchdog(self) -> None:
        """Feed systemd's watchdog as long as this process's event loop turns, between two sets of settings too.

        A peer that hangs, a full disk, a database that is away are trouble of their own, on /healthz: a restart mends none of them.
        """
        period = systemd.watchdog_s()
        while True:
            if period is not None:
                systemd.notify("WATCHDOG=1")
            await self._clock.sleep((period or 10.0) / 2)

    def _schedule(self, governor: Governor) -> AsyncIOScheduler:
        """The weekly report: in memory, coalesced; one that was missed while down is caught up from the database."""
        settings = governor.settings
        day, clock = settings.report.schedule.split()
        hour, minute = clock.split(":")
        scheduler = AsyncIOScheduler(timezone=settings.timezone)
        trigger = CronTrigger(day_of_week=day, hour=hour, minute=minute, timezone=settings.timezone)
        due = {"args": [governor], "coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        scheduler.add_job(self._report, trigger, id="report", **due)
        again = IntervalTrigger(seconds=CATCH_UP_S, timezone=settings.timezone)
        scheduler.add_job(self._report, id="catch-up-at-once", **due)
        scheduler.add_job(self._report, again, id="catch-up", **due)
        scheduler.start()
        return scheduler

    async def _report(self, governor: Governor) -> None:
        """Make the report that was due last, unless it is there, or nothing was watched yet by then."""
        settings = governor.settings
        end = last_due(settings.report.schedule, settings.timezone, self._clock.now())
        lead = governor.lead
        if lead is None or end == self._reported:
            return
        try:
            made = await asyncio.to_thread(self._make_report, settings, end, lead)
        except Exception:
            governor.metrics.cycle_errors.labels("report", "Exception").inc()
            log.exception("report_failed")
            return
        self._reported = end
        if made is not None:
            log.info("report_made", path=str(made))

    def _make_report(self, settings: Settings, end: float, lead: Lead) -> Path | None:
        with self._store.read() as db:
            if any(r["period_end"] == end for r in outbox.reports(db)):
                return None
        now = self._clock.now()
        return weekly(self._store, settings, start=end - WEEK_S, end=end, now=now, only_with_data=True, lead=lead)


def _read_settings(path: Path) -> tuple[SettingsFile, list[Problem]]:
    loaded = load(path)
    return loaded, check_file(loaded)


def cannot_listen(web: WebSettings) -> list[str]:
    """Why the pages' address cannot be listened on, and what to do. Empty: it can."""
    family = socket.AF_INET6 if ":" in web.host else socket.AF_INET
    try:
        socket.create_server((web.host, web.port), family=family).close()
    except OSError as error:
        do = "set web.port to a free one, or stop what listens there: another `flyball run`, perhaps"
        why = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror
        return [f"web: {web.host}:{web.port} cannot be listened on: {why}; {do}"]
    return []


def _uvicorn(governor: Governor) -> uvicorn.Config:
    web = governor.settings.web
    return uvicorn.Config(
        WholeBodies(create_app(governor)),
        http=BoundedProtocol,
        limit_concurrency=MAX_CONNECTIONS,
        host=web.host,
        port=web.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who forwards may write whatever he likes of where it came from
        timeout_graceful_shutdown=3,
        timeout_keep_alive=5,
    )


def run(path: Path) -> int:
    """Start the daemon with the settings at ``path``. Raises ``BadSettings``, ``CannotListen`` and ``StoreError``."""
    loaded = load(path)
    if taken := cannot_listen(loaded.settings.web):  # said before it leads: the one that runs goes on undisturbed
        raise CannotListen(taken[0])
    allow_descriptors()

    async def main() -> int:
        return await Daemon(loaded).run()

    return asyncio.run(main())
