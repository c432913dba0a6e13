"""The two clocks: the wall, and virtual time for the simulated world. Both fit ``collectors.clock.Clock``."""

from __future__ import annotations

import asyncio
import heapq
import time


class WallClock:
    """The machine's time."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


class VirtualClock:
    """Time that moves only when it is told to: a simulated week takes seconds."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start
        self._start = start
        self._jumped = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = 0

    def now(self) -> float:
        return self._now + self._jumped

    def monotonic(self) -> float:
        return self._now - self._start

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._sleepers, (self._now + seconds, self._order, future))
        await future

    async def advance(self, seconds: float) -> None:
        """Move time on, waking each sleeper at its own moment, in order."""
        until = self._now + seconds
        while self._sleepers and self._sleepers[0][0] <= until:
            at, _, future = heapq.heappop(self._sleepers)
            self._now = max(self._now, at)
            if not future.done():
                future.set_result(None)
            for _ in range(3):  # let the woken task run to its next wait
                await asyncio.sleep(0)
        self._now = until

    def set(self, now: float) -> None:
        """Jump to a moment, without waking anybody on the way."""
        self._now = now - self._jumped

    def jump(self, seconds: float) -> None:
        """The machine's wall clock is set, forward or back; monotonic time goes on as if nothing had been."""
        self._jumped += seconds
