"""What becomes of an endpoint is noticed once, Flyball's own doing is not, and an upgraded engine is judged within minutes."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import NoOpTracer

from actuators.base import LiveState
from actuators.shape import Shape
from agent import views
from agent.apply import LEASE
from agent.clock import VirtualClock
from agent.events import BEFORE_S, _between_changes, known, note
from agent.metrics import Metrics
from agent.reflect import Reflector
from agent.settings import Settings
from agent.store import Store, changes, control, events, fleet, windows
from agent.wiring import Environment, watched_of
from analyzers.situation import Situation
from benchmarks.guard import served
from collectors.http import Http
from collectors.sessions import Sessions
from collectors.window import Window
from tests.agent.records import T0, change_row, plan, shape_row
from tests.analyzers.situations import minute, situation

SHAPE = Shape(replicas=1, engine={"max_num_seqs": 128})
LIVE = LiveState(SHAPE, "v1", ready=True)
OLD = {"model": "m", "engine_version": "0.9", "num_gpu_blocks": "10"}
NEW = {**OLD, "engine_version": "0.10", "num_gpu_blocks": "12"}


def seen(*facts: Mapping[str, str]) -> Situation:
    return situation([replace(minute(i), start=T0 + 60 * i, facts=f) for i, f in enumerate(facts)])


def noted(store: Store, s: Situation, live: LiveState = LIVE, price: float | None = 2.0, now: float = T0 + 600) -> None:
    with store.write() as db:
        note(db, "chat", live, price, s, now)
        fleet.saw_shape(
            db, "chat", shape_row(now, shape=live.shape.as_dict(), shape_version=live.version, price_per_hour=price)
        )


def told(store: Store) -> list[tuple[str, float, str]]:
    with store.read() as db:
        return [(e["kind"], e["at"], e["text"]) for e in events.listed(db, "chat", 0.0)]


def test_another_engine_is_one_event_from_its_first_window_on(store: Store) -> None:
    noted(store, seen(OLD, OLD))
    assert told(store) == [], "how it is when it is first seen is no change"
    both = {**OLD, "engine_version": "0.10, 0.9"}
    noted(store, seen(OLD, both, both))
    assert told(store) == [], "replicas that differ are on their way"
    noted(store, seen(OLD, both, NEW, NEW))
    noted(store, seen(NEW, NEW, NEW))
    assert told(store) == [("engine", T0 + 120, "engine_version 0.9 → 0.10")]


def test_what_a_source_tells_for_the_first_time_is_no_change(store: Store) -> None:
    noted(store, seen({"model": "m"}))
    noted(store, seen({"model": "m", "engine_version": "0.9"}))
    noted(store, seen(OLD))
    assert told(store) == []


def test_a_deployment_of_somebody_else_and_a_price_are_events(store: Store) -> None:
    noted(store, seen(OLD))
    noted(store, seen(OLD), price=3.0, now=T0 + 700)
    other = replace(LIVE, version="v2", shape=SHAPE.with_(engine={"max_num_seqs": 64}))
    noted(store, seen(OLD), other, price=4.0, now=T0 + 800)
    assert told(store) == [
        ("price", T0 + 700, "the price became $3.00 an hour, from $2.00"),
        ("deploy", T0 + 800, "somebody else deployed: max_num_seqs 128 → 64"),
    ]


def test_what_flyball_does_itself_is_no_event(store: Store) -> None:
    noted(store, seen(OLD))
    with store.write() as db:
        changes.start(db, change_row("cccc0001", now=T0 + 30))
    noted(store, seen(OLD, NEW), replace(LIVE, version="v2"))
    assert told(store) == []


# -- the guard over a daemon's own analyses -----------------------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path, sqlite_template: Path) -> Any:
    shutil.copy(sqlite_template, tmp_path / "flyball.db")
    return House(tmp_path)


class House:
    """``chat`` before and after its engine was upgraded."""

    def __init__(self, folder: Path) -> None:
        policy = {"evidence_s": 1800, "min_requests": 10}
        chat = {"name": "chat", "url": "http://127.0.0.1:1", "objective": {"ttft_p95_s": 5.0}, "policy": policy}
        self.settings = Settings.model_validate({"endpoints": [chat], "state_dir": folder})
        self.store = Store(f"sqlite:///{folder / 'flyball.db'}")
        self.clock = VirtualClock(T0)
        environment = Environment(Http(monotonic=self.clock.monotonic), self.clock, Sessions())
        self.watched = watched_of(self.settings, self.settings.endpoint("chat"), environment)
        self.watched.saw(LIVE)
        self.reflector = Reflector(self.settings, self.store, self.clock, Metrics(), NoOpTracer())
        with self.store.write() as db:
            lead = control.acquire(db, LEASE, "here", 1e9)
        assert lead is not None
        self.lead = lead

    def serve(self, rows: list[Window], facts: Mapping[str, str]) -> None:
        """These minutes from now on, and an analysis after them."""
        start = self.clock.now()
        placed = [replace(w, start=start + 60 * i, facts=facts) for i, w in enumerate(rows)]
        with self.store.write() as db:
            windows.save(db, placed)
        asyncio.run(self.clock.advance(60 * len(rows)))
        asyncio.run(self.reflector.cycle_all([self.watched], self.lead))

    def codes(self) -> list[str]:
        view = views.endpoint(self.store, self.settings, "chat", self.clock.now())
        return [f["code"] for f in view["endpoint"]["findings"]]


def test_an_upgrade_that_makes_it_slower_is_found_within_minutes(house: House) -> None:
    house.serve(served(1.0, 40, 1), OLD)
    house.serve(served(1.3, 1, 1, 40), NEW)
    assert "ENGINE_REGRESSED" not in house.codes()
    after = served(1.3, 20, 1, 40)
    for i in range(1, 6):
        house.serve(after[i : i + 1], NEW)
    assert "ENGINE_REGRESSED" in house.codes()
    with house.store.read() as db:
        (row,) = [f for f in fleet.findings(db, "chat") if f["code"] == "ENGINE_REGRESSED"]
    assert "since engine_version 0.9 → 0.10" in row["body"]["text"]


def test_an_upgrade_that_changes_nothing_is_an_event_and_no_finding(house: House) -> None:
    house.serve(served(1.0, 40, 2), OLD)
    for i in range(0, 20, 5):
        house.serve(served(1.0, 20, 2, 40)[i : i + 5], NEW)
    assert not {"ENGINE_REGRESSED", "ENGINE_IMPROVED"} & set(house.codes())
    assert [kind for kind, _, _ in told(house.store)] == ["engine"]


def test_what_flyball_changes_afterwards_is_not_laid_to_the_upgrade(house: House) -> None:
    """Its own change of the engine ends what is compared; replicas alone do not, since the load is that of one."""
    house.serve(served(1.0, 40, 3), OLD)
    house.serve(served(1.0, 10, 3, 40), NEW)
    with house.store.write() as db:
        replicas, engine = plan(), plan(before=SHAPE, after=SHAPE.with_(engine={"max_num_seqs": 8}))
        for i, steps in enumerate((replicas, engine)):
            row = change_row(f"cccc000{i}", now=house.clock.now() + i, plan=steps.as_dict())
            changes.start(db, row)
            changes.move(db, row["id"], from_states=["applying"], to="succeeded", now=house.clock.now() + i, reason="",
                         applied_at=house.clock.now() + i, finished_at=house.clock.now() + i)  # fmt: skip
    changed_at = house.clock.now()
    house.serve(served(1.4, 20, 3, 50), NEW)
    assert "ENGINE_REGRESSED" not in house.codes()
    with house.store.read() as db:
        at = events.listed(db, "chat", 0.0)[0]["at"]
        settings = house.settings.endpoint("chat")
        assert _between_changes(db, settings, at, house.clock.now()) == (at - BEFORE_S, changed_at + 1)
        (mine, other) = known(db, "chat", changed_at)
    assert mine.text == "Flyball's change cccc0000: replicas 2 → 1"
    assert "max_num_seqs 128 → 8" in other.text
