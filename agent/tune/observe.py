"""The server's side of a load: its own metrics, read about once a second by the endpoint's collectors while the load is sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.watch import WatchedEndpoint
from collectors.clock import Clock
from collectors.receiver import ReceiverMember
from collectors.window import CollectError, Reading

_EVERY_S = 1.0
_GAUGES = ("running", "waiting", "kv_usage")
_COUNTERS = ("preemptions", "requests", "output_tokens")


class ServerReading:
    """What was read."""

    def __init__(self) -> None:
        self._gauges: dict[str, list[float]] = defaultdict(list)
        """By name, over all replicas: summed, but for the cache's use, of which the fullest counts."""
        self._counters: dict[tuple[str, str], tuple[float, float]] = {}
        """By target and name: first and last."""
        self.failures = 0

    def take(self, readings: list[Reading]) -> None:
        for name in _GAUGES:
            values = [r.gauges[name] for r in readings if name in r.gauges]
            if values:
                self._gauges[name].append(max(values) if name == "kv_usage" else sum(values))
        for reading in readings:
            for name in _COUNTERS:
                if name in reading.counters:
                    value = reading.counters[name]
                    first, _ = self._counters.get((reading.target, name), (value, value))
                    self._counters[reading.target, name] = (first, value)

    def summary(self) -> dict[str, float | None]:
        """None: the server does not tell."""
        out: dict[str, float | None] = {}
        for name in _GAUGES:
            values = self._gauges.get(name)
            out[f"{name}_mean"] = sum(values) / len(values) if values else None
            out[f"{name}_max"] = max(values) if values else None
        for name in _COUNTERS:
            grown = [last - first for (_, n), (first, last) in self._counters.items() if n == name]
            out[name] = sum(grown) if grown and min(grown) >= 0 else None
        return out


@asynccontextmanager
async def observing(watched: WatchedEndpoint, clock: Clock) -> AsyncIterator[ServerReading]:
    """Reads until the block ends; once more at its end. A source that cannot be read is counted and costs nothing else."""
    seen = ServerReading()
    task = asyncio.create_task(_read_on(watched, clock, seen))
    try:
        yield seen
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await _read(watched, seen)


async def _read_on(watched: WatchedEndpoint, clock: Clock, seen: ServerReading) -> None:
    while True:
        await _read(watched, seen)
        await clock.sleep(_EVERY_S)


async def _read(watched: WatchedEndpoint, seen: ServerReading) -> None:
    # One that only listens: a probe's own requests would be a load of their own.
    listening = (c for c in watched.collectors.values() if c.interval_s is None and not isinstance(c, ReceiverMember))
    collector = next(listening, None)
    if collector is None:
        return
    readings: list[Reading] = []
    for target in watched.targets():
        try:
            readings += [said for said in await collector.read(target) if isinstance(said, Reading)]
        except CollectError:
            seen.failures += 1
    seen.take(readings)
