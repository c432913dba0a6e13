"""Clocks for tests: one that is set by hand, and the machine's."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass


@dataclass
class SetClock:
    """Stands still until a test moves it."""

    time: float = 1_800_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await asyncio.sleep(0)


class MachineClock:
    """For tests that measure a real server."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
