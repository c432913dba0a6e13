"""Monitoring, stepped on virtual time: sources that are read seldom, and replicas that go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from actuators.base import Live
from actuators.none import make as make_none
from actuators.shape import Shape
from agent.clock import VirtualClock
from agent.metrics import Metrics
from agent.settings import CollectSettings, EndpointSettings
from agent.spool import Spool
from agent.store import Store, windows
from agent.watch import Watched, Watcher
from collectors.base import Target
from collectors.window import CollectError, Reading
from tests.actuators.support import context

START = 1_700_000_400.0


class Counting:
    """A source whose counter grows by one each second, and that keeps when it was read."""

    source: ClassVar[str] = "counting"

    def __init__(self, clock: VirtualClock, interval_s: float | None) -> None:
        self.interval_s = interval_s
        self.reads: list[tuple[str, float]] = []
        self.down: set[str] = set()
        self._clock = clock

    async def read(self, target: Target) -> Sequence[Reading]:
        if target.name in self.down:
            raise CollectError("down", "nobody is there")
        self.reads.append((target.name, self._clock.now()))
        return [Reading(target.name, self._clock.now(), counters={"requests": self._clock.now() - START + 1000})]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(START)


def watching(clock: VirtualClock, tmp_path: Path, source: Counting) -> tuple[Watcher, Watched, Store]:
    endpoint = EndpointSettings(name="chat", url="http://127.0.0.1:9", sources={"counting": {}})
    watched = Watched(
        endpoint, {"counting": source}, make_none(context(tmp_path, "http://127.0.0.1:9", Shape(replicas=1), {}))
    )
    store = Store(f"sqlite:///{tmp_path}/flyball.db")
    store.upgrade()
    settings = CollectSettings(interval_s=15, window_s=60)
    spool = Spool(tmp_path / "spool")
    return Watcher({"chat": watched}, settings, store, spool, clock, Metrics()), watched, store


async def run(watcher: Watcher, watched: Watched, clock: VirtualClock, seconds: float) -> None:
    for _ in range(int(seconds / 15)):
        targets = watched.targets()
        for name, collector in watched.collectors.items():
            for target in targets:
                await watcher._read(watched, name, collector, target)
        await watcher.close_windows()
        await clock.advance(15)


def test_a_source_with_an_interval_of_its_own_is_read_so_often_and_loses_nothing(
    clock: VirtualClock, tmp_path: Path
) -> None:
    source = Counting(clock, 60.0)
    watcher, watched, store = watching(clock, tmp_path, source)
    asyncio.run(run(watcher, watched, clock, 600))
    gaps = [b[1] - a[1] for a, b in zip(source.reads, source.reads[1:], strict=False)]
    assert set(gaps) == {60.0}
    with store.read() as db:
        rows = windows.load(db, "chat", "counting", START, clock.now(), 60.0)
    whole = rows[1:]  # the first window begins with the first reading
    assert len(whole) >= 6
    assert all(w.coverage == pytest.approx(1.0) and w.count("requests") == pytest.approx(60.0) for w in whole)
    store.close()


def test_a_replica_that_is_taken_away_leaves_no_gap_and_no_trouble(clock: VirtualClock, tmp_path: Path) -> None:
    source = Counting(clock, None)
    watcher, watched, store = watching(clock, tmp_path, source)
    both = Live(Shape(replicas=2), "1", True, targets={"a": "http://127.0.0.1:1", "b": "http://127.0.0.1:2"})
    one = Live(Shape(replicas=1), "2", True, targets={"a": "http://127.0.0.1:1"})

    async def story() -> None:
        watched.saw(both)
        await run(watcher, watched, clock, 300)
        watched.saw(one)
        watched.left(["b"], clock.now())
        source.down.add("b")
        await run(watcher, watched, clock, 300)

    asyncio.run(story())
    assert {name for name, at in source.reads if at > START + 330} == {"a"}
    with store.read() as db:
        after = windows.load(db, "chat", "counting", START + 360, clock.now(), 60.0)
    assert after
    assert all(w.coverage == pytest.approx(1.0) and not w.errors for w in after)
    assert all(w.count("requests") == pytest.approx(60.0) for w in after)
    store.close()


def test_a_target_that_fails_is_asked_ever_more_seldom_and_its_windows_are_gaps(
    clock: VirtualClock, tmp_path: Path
) -> None:
    source = Counting(clock, None)
    source.down.add("http://127.0.0.1:9")
    watcher, watched, store = watching(clock, tmp_path, source)
    asyncio.run(run(watcher, watched, clock, 1800))
    health = watched.health["counting", "http://127.0.0.1:9"]
    assert health.failures == health.failures_in_a_row
    assert 8 <= health.failures <= 12  # 15, 30, 60, 120, 240, then every 300 s
    with store.read() as db:
        rows = windows.load(db, "chat", "counting", START, clock.now(), 60.0)
    assert rows
    assert all(w.coverage == 0 and w.count("requests") is None for w in rows)
    store.close()
