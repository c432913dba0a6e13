"""The edge of each loop: runs a cycle again and again, and is the one place that survives an unexpected error, counted and visible."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from agent.metrics import Metrics
from collectors.clock import Clock

log = structlog.get_logger()


@dataclass(slots=True)
class LoopStatus:
    """How a loop fares."""

    last_ok_at: float | None = None
    moved_at: float | None = None
    """When a part of the cycle that is under way was last done."""
    last_error: str | None = None
    errors: int = 0


class Loop:
    """One duty, at an interval. Late cycles are not made up for: the next one starts at once."""

    def __init__(
        self, name: str, interval_s: float, cycle: Callable[[], Awaitable[object]], clock: Clock, metrics: Metrics
    ) -> None:
        self.name = name
        self.interval_s = interval_s
        self.status = LoopStatus()
        self._cycle = cycle
        self._clock = clock
        self._metrics = metrics
        self._number = 0

    async def once(self) -> bool:
        """One cycle. False when it ended in an error that nobody foresaw."""
        started = self._clock.monotonic()
        self._number += 1
        structlog.contextvars.bind_contextvars(loop=self.name, cycle=self._number)
        try:
            await self._cycle()
        except Exception as error:
            self.status.errors += 1
            self.status.last_error = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self._metrics.cycle_errors.labels(self.name, type(error).__name__).inc()
            log.exception("cycle_failed")
            return False
        finally:
            self._metrics.cycle_seconds.labels(self.name).observe(self._clock.monotonic() - started)
            structlog.contextvars.unbind_contextvars("loop", "cycle")
        self.status.last_ok_at = self._clock.now()
        self._metrics.cycle_last.labels(self.name).set(self.status.last_ok_at)
        return True

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop`` is set."""
        next_at = self._clock.monotonic()
        while not stop.is_set():
            await self.once()
            next_at = max(next_at + self.interval_s, self._clock.monotonic())
            await _either(stop, next_at - self._clock.monotonic())

    def moved(self) -> None:
        """A part of this cycle is done: where there are many, or the host is starved, it is slow and not dead."""
        self.status.moved_at = self._clock.now()

    def alive(self, now: float) -> bool:
        """Whether a cycle, or a part of one, ended well within the last few intervals."""
        patience = 3 * self.interval_s + 60
        signs = [at for at in (self.status.last_ok_at, self.status.moved_at) if at is not None]
        return bool(signs) and now - max(signs) <= patience


async def _either(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), max(0.0, seconds))
    except TimeoutError:
        return
