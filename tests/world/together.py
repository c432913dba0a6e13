"""Several governors at once, interleaving at every await: an event loop on virtual time, and a world whose processes run by themselves.

Time moves only when nobody has anything left to do at this moment, so a day takes seconds and no test waits. What would run in a
thread runs on the loop a few virtual milliseconds later: each await is a place where another governor may come in between, and the
same seed gives the same order.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from agent.loops import Loop
from tests.world.faults import Death
from tests.world.world import START, Process, SingleThreadLoop, World


class _Selector(selectors.SelectSelector):
    """Instead of waiting it lets virtual time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everybody waits for something that never comes")
        if not ready and timeout is not None and timeout > 0:
            self.now += timeout
        return ready


class VirtualTimeLoop(SingleThreadLoop):
    """See the module's docstring."""

    def __init__(self, seed: int) -> None:
        self._virtual = _Selector()
        self._random = random.Random(seed)
        super().__init__(self._virtual)
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._virtual.now

    def begin(self, call: Callable[[], None]) -> None:
        self.call_later(self._random.uniform(0.0, 0.02), call)


class LoopClock:
    """The loop's time as Unix seconds, as one host sees it."""

    def __init__(self, skew_s: float = 0.0) -> None:
        self.skew_s = skew_s

    def now(self) -> float:
        return START + self.monotonic() + self.skew_s

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    async def advance(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


class Together(World):
    """Processes that run by themselves. ``run`` and ``until_true`` let time pass."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, clock=LoopClock(), **options)
        self._running: dict[Process, list[asyncio.Task[None]]] = {}

    def start(self, holder: str, skew_s: float = 0.0) -> Process:
        process = super().start(holder, LoopClock(skew_s))
        stop = asyncio.Event()
        self._running[process] = [asyncio.create_task(self._live(process, loop, stop)) for loop in self._of(process)]
        return process

    async def _live(self, process: Process, loop: Loop, stop: asyncio.Event) -> None:
        try:
            await loop.run(stop)
        except Death:
            self.deaths += 1
            await self.kill(process)

    async def kill(self, process: Process) -> None:
        """At once, in the middle of whatever it does."""
        for task in self._running.pop(process, []):
            if task is not asyncio.current_task():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await process.end()

    async def until_true(self, reached: Callable[[], bool], limit_s: float) -> bool:
        end = self.clock.monotonic() + limit_s
        while not reached():
            if self.clock.monotonic() >= end:
                return False
            await asyncio.sleep(1.0)
        return True

    async def __aexit__(self, *error: object) -> None:
        for process in list(self._running):
            await self.kill(process)
        await super().__aexit__(*error)


def run_virtually(scenario: Callable[[], Coroutine[Any, Any, None]], seed: int = 0) -> None:
    """A test's coroutine, on virtual time."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(seed)) as runner:
        runner.run(scenario())
