"""Reflecting on many endpoints: what one raises or how long it hangs costs the others nothing, and nothing is thought twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats  # noqa: F401  here, and not in the time that an analysis has
import sqlalchemy as sa
from opentelemetry.trace import NoOpTracer

from actuators.base import LiveState
from actuators.none import ReadOnlyActuator
from actuators.shape import Plan, Shape
from agent import reflect
from agent.apply import LEASE
from agent.clock import VirtualClock
from agent.metrics import Metrics
from agent.reflect import Reflector
from agent.settings import Settings
from agent.store import Store, control, fleet, recommendations, schema, windows
from agent.store.control import Lead
from agent.watch import WatchedEndpoint
from agent.wiring import Environment, watched_of
from analyzers.hardware import ACCELERATORS
from analyzers.money import Tariff, Unit
from analyzers.policy import Catalogue
from analyzers.whatif import calibrate as calibration
from analyzers.whatif.calibrate import calibrate
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from collectors.http import Http
from collectors.sessions import Sessions
from collectors.window import Gauge, Window
from tests.agent.records import T0, change_row
from tests.analyzers.whatif import reference_server
from tests.world.world import World
from tests.world.world import run as simulate

SHAPE = Shape(replicas=2, size="small", accelerator="L4", accelerator_count=1, engine={"max_num_seqs": 64})
LIVE = LiveState(SHAPE, "v1", ready=True)
MODEL = EngineModel(IterationCost(0.006, 4e-5, 3e-8, 2.8e-5, 2e-9), EngineLimits(64, 2048, 400_000))


@pytest.fixture(autouse=True)
def _quick_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fitted does not matter here."""
    monkeypatch.setattr(calibration, "REPLAYED", 2_000)


class Prices(Mapping[str, float | None]):
    """A price list whose reading does what it is told: the analysis of its endpoint meets it on the way."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self.asked = 0

    def __getitem__(self, name: str) -> float:
        self.asked += 1
        self._act()
        return 1.0

    def __iter__(self) -> Iterator[str]:
        return iter(("small",))

    def __len__(self) -> int:
        return 1


class Planner(ReadOnlyActuator):
    """Plans what is asked, or hangs."""

    def __init__(self) -> None:
        self.hangs = False
        self.meanwhile: Callable[[], None] | None = None

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        if self.meanwhile is not None:
            self.meanwhile()
        if self.hangs:
            await asyncio.Event().wait()
        return Plan("e", "none", live.shape, wanted, live.version, (), False, 0.0, "none needed")


class House:
    """A store with an hour of telemetry of some endpoints, and the reflecting part of the loop over them."""

    def __init__(self, folder: Path, names: list[str], policy: Mapping[str, object] | None = None) -> None:
        self.settings = Settings.model_validate(
            {
                "state_dir": folder,
                "endpoints": [
                    {
                        "name": name,
                        "url": "http://127.0.0.1:1",
                        "objective": {"ttft_p95_s": 5.0},
                        "usd_per_replica_hour": 1.0,
                        "policy": {"stable_cycles": 1, "evidence_s": 600, **(policy or {})},
                    }
                    for name in names
                ],
            }
        )
        self.store = Store(f"sqlite:///{folder / 'flyball.db'}")
        self.store.upgrade()
        self.clock = VirtualClock(T0 + 600)
        self.metrics = Metrics()
        seen = reference_server.windows(MODEL, reference_server.poisson(0.5, 700.0, 1, prompt=100.0, output=50.0))[:10]
        with self.store.write() as db:
            for name in names:
                windows.save(db, [_of(name, w, T0 + i * 60) for i, w in enumerate(seen)])
        self.watched = {e.name: self._watched(e.name) for e in self.settings.endpoints}
        self.reflector = self.another()
        self.lead = self.leads("here")

    def leads(self, holder: str) -> Lead:
        """Whoever led before is deposed."""
        with self.store.write() as db:
            db.execute(sa.update(schema.leases).values(expires_at=0.0))
            lead = control.acquire(db, LEASE, holder, 1e9)
        assert lead is not None
        return lead

    def depose(self) -> None:
        self.leads("there")

    def another(self) -> Reflector:
        """As after a restart."""
        return Reflector(self.settings, self.store, self.clock, self.metrics, NoOpTracer())

    def _watched(self, name: str) -> WatchedEndpoint:
        catalogue = Catalogue(prices={"small": 1.0}, hardware=dict(ACCELERATORS))
        environment = Environment(Http(monotonic=self.clock.monotonic), self.clock, Sessions())
        watched = watched_of(self.settings, self.settings.endpoint(name), environment)
        watched.actuator, watched.catalogue = Planner(), catalogue
        watched.live = LIVE
        watched.tariff = Tariff.of({Unit.HOUR: 2.0})
        return watched

    def prices(self, name: str, act: Callable[[], None]) -> Prices:
        found = Prices(act)
        self.watched[name].catalogue = Catalogue(prices=found, hardware=ACCELERATORS)
        return found

    def calibrate(self) -> None:
        """Leave a calibration of each, as an earlier daemon would have."""
        seen = self.reflector._evidence(self.watched[min(self.watched)], LIVE, self.clock.now())
        found = calibrate(seen.situation.windows, SHAPE, prior=None, hardware=ACCELERATORS["L4"])
        with self.store.write() as db:
            for name in self.watched:
                fleet.keep_calibration(db, name, key=found.key, now=T0, body=found.as_dict())

    def cycle(self) -> int:
        """How many of them were analyzed."""
        done: list[None] = []
        asyncio.run(self.reflector.cycle_all(self.watched.values(), self.lead, moved=lambda: done.append(None)))
        return len(done)

    def decided(self) -> set[str]:
        with self.store.read() as db:
            return {name for name in self.watched if fleet.get(db, name) is not None}

    def errors(self, name: str, error: str) -> float:
        return (
            self.metrics.registry.get_sample_value("flyball_analysis_errors_total", {"endpoint": name, "error": error})
            or 0.0
        )


def _of(name: str, w: Window, start: float) -> Window:
    return replace(w, endpoint=name, start=start)


@pytest.mark.parametrize("seed", range(3))
def test_a_raise_or_a_hang_in_any_of_them_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(reflect, "ANALYSIS_S", 3.0)
    rng, names = np.random.default_rng(seed), [f"e{i}" for i in range(7)]
    house, release = House(tmp_path, names), threading.Event()
    house.calibrate()

    def broken() -> None:
        raise RuntimeError("a bug in a plugin")

    bad = {str(name): str(rng.choice(["raises", "hangs"])) for name in rng.choice(names, 3, replace=False)}
    for name, what in bad.items():
        house.prices(name, broken if what == "raises" else lambda: release.wait(60) and None)
    try:
        assert house.cycle() == len(names) - len(bad)
        assert house.decided() == set(names) - set(bad)
        for name, what in bad.items():
            assert house.errors(name, "RuntimeError" if what == "raises" else "TimeoutError") == 1
        asyncio.run(house.clock.advance(60))
        house.cycle()  # one that still hangs is not begun again
        for name, what in bad.items():
            assert house.errors(name, "RuntimeError" if what == "raises" else "TimeoutError") == 2
    finally:
        release.set()


def test_a_plan_that_never_comes_leaves_advice_without_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflect, "PLAN_S", 0.2)
    house = House(tmp_path, ["a", "b"])
    planner = house.watched["a"].actuator
    assert isinstance(planner, Planner)
    planner.hangs = True
    house.cycle()
    with house.store.read() as db:
        rows = {row["endpoint"]: row for row in recommendations.listed(db)}
    assert rows["a"]["plan_hash"] == ""
    assert rows["b"]["plan_hash"] != ""


def test_the_same_evidence_is_thought_about_once(tmp_path: Path) -> None:
    house = House(tmp_path, ["a"], {"stable_cycles": 2})
    table = house.prices("a", lambda: None)
    house.cycle()
    asked = table.asked
    assert asked > 0
    house.cycle()
    assert table.asked == asked
    with house.store.read() as db:
        assert not recommendations.listed(db)  # the same evidence once more is no second cycle with the same advice


def test_a_calibration_outlives_a_restart_and_is_made_again_once_it_is_old(tmp_path: Path) -> None:
    house = House(tmp_path, ["a"])

    def fitted() -> list[float]:
        with house.store.read() as db:
            row = fleet.calibration(db, "a")
        return [] if row is None else [row["fitted_at"]]

    house.cycle()
    first = fitted()
    assert first == [T0 + 600]
    house.reflector = house.another()
    house.cycle()
    assert fitted() == first
    asyncio.run(house.clock.advance(reflect.REFIT_S))
    with house.store.write() as db:
        seen = windows.load(db, "a", "vllm", T0, T0 + 600, 60.0)
        windows.save(db, [_of("a", w, w.start + reflect.REFIT_S) for w in seen])
    house.cycle()
    assert fitted() == [T0 + 600 + reflect.REFIT_S]


def test_evidence_is_read_while_another_writes(tmp_path: Path) -> None:
    house = House(tmp_path, ["a"])
    with house.store.write() as db:
        fleet.saw_shape(db, "other", {"shape": {}, "shape_version": "", "ready": True, "detail": "", "seen_at": T0})
        found = house.reflector._evidence(house.watched["a"], LIVE, house.clock.now())
    assert len(found.situation.windows) == 10


def test_a_deposed_leader_keeps_nothing_of_what_it_thought(tmp_path: Path) -> None:
    house = House(tmp_path, ["a"])
    house.prices("a", house.depose)  # in the middle of the analysis
    house.cycle()
    with house.store.read() as db:
        assert not recommendations.listed(db)
        assert db.execute(sa.select(schema.findings)).all() == []
    assert house.decided() == set()
    house.reflector, house.lead = house.another(), house.leads("here")
    house.prices("a", lambda: None)
    house.cycle()
    with house.store.read() as db:
        assert [row["endpoint"] for row in recommendations.listed(db)] == ["a"]
    assert house.decided() == {"a"}


def test_a_leader_deposed_before_the_plan_is_there_gives_no_advice(tmp_path: Path) -> None:
    house = House(tmp_path, ["a"])
    planner = house.watched["a"].actuator
    assert isinstance(planner, Planner)
    planner.meanwhile = house.depose
    house.cycle()
    with house.store.read() as db:
        assert not recommendations.listed(db)
    planner.meanwhile, house.reflector, house.lead = None, house.another(), house.leads("here")
    house.cycle()
    with house.store.read() as db:
        assert len(recommendations.listed(db)) == 1


# -- how an endpoint stands ----------------------------------------------------------------------------------------------


def test_how_each_stands_and_why_is_kept_for_whoever_asks(tmp_path: Path) -> None:
    house = House(tmp_path, ["a"], {"stable_cycles": 3})
    house.cycle()
    with house.store.read() as db:
        row = fleet.get(db, "a")
    assert row is not None
    decision = row["decision"]
    assert decision is not None
    assert (decision["at"], decision["state"]) == (T0 + 600, "too_large")
    assert decision["text"] == "proposed: replicas 2 → 1; seen in 1 of the 3 analyses in a row that it takes"
    assert [r["code"] for r in decision["reasons"]] == ["HELD_BACK"]


def test_within_five_minutes_there_is_a_provisional_result_that_says_until_when(tmp_path: Path) -> None:
    """Ten minutes of an hour were seen: a smaller shape waits until 48 of them were, counted from the first reading."""
    house = House(tmp_path, ["a"], {"evidence_s": 3600})
    house.cycle()
    with house.store.read() as db:
        row = fleet.get(db, "a")
        assert not recommendations.listed(db)
        assert [f["code"] for f in fleet.findings(db, "a") if f["kind"] == "insufficient_data"] == []
    assert row is not None
    decision = row["decision"]
    assert decision is not None
    assert decision["state"] == "gathering"
    assert "10 min of 1 h were seen" in decision["text"]
    assert "so far 1 x small" in decision["text"]
    (reason,) = decision["reasons"]
    assert reason["numbers"]["whole_at"] == T0 + 0.8 * 3600


def test_before_anything_was_read_it_says_of_which_source(tmp_path: Path) -> None:
    house = House(tmp_path, ["a"])
    with house.store.write() as db:
        db.execute(sa.delete(schema.windows))
    house.cycle()
    with house.store.read() as db:
        row = fleet.get(db, "a")
    assert row is not None
    assert row["decision"] is not None
    assert (row["decision"]["state"], row["decision"]["text"]) == (
        "not_known",
        "nothing was read from vllm in the last 10 min",
    )


def test_what_was_before_the_first_reading_lacks_nothing(tmp_path: Path) -> None:
    """It was first read late in a window: three windows on, all of it since then was observed."""
    house = House(tmp_path, ["a"], {"evidence_s": 3600, "min_requests": 1})
    house.clock = VirtualClock(T0 + 180)
    house.reflector = house.another()
    with house.store.write() as db:
        db.execute(sa.update(schema.windows).where(schema.windows.c.start == T0).values(coverage=0.2))
    house.cycle()
    with house.store.read() as db:
        row = fleet.get(db, "a")
    assert row is not None
    assert row["decision"] is not None
    assert row["decision"]["state"] == "gathering"
    assert row["decision"]["reasons"][0]["numbers"]["seen_s"] == 180 - 0.8 * 60


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(("after_s", "lacks"), [(1.0, False), (29.0, False), (31.0, True)])
def test_a_window_that_is_about_to_be_closed_lacks_nothing(
    tmp_path: Path, after_s: float, lacks: bool, begun: bool
) -> None:
    """Of three windows two are there, and the analysis comes ``after_s`` seconds after the third one's end; ``begun``: a part of the
    third is there, from before a restart."""
    house = House(tmp_path, ["a"], {"evidence_s": 3600, "min_requests": 1})
    house.clock = VirtualClock(T0 + 180 + after_s)
    house.reflector = house.another()
    with house.store.write() as db:
        last = schema.windows.c.start >= T0 + 120
        db.execute(
            sa.update(schema.windows).where(last).values(coverage=0.1)
            if begun
            else sa.delete(schema.windows).where(last)
        )
    house.cycle()
    with house.store.read() as db:
        codes = {f["code"] for f in fleet.findings(db, "a")}
    assert ("LOW_COVERAGE" in codes) == lacks


def test_a_gap_is_no_first_reading(tmp_path: Path) -> None:
    """Of an endpoint that is known for long, what was not seen lacks."""
    house = House(tmp_path, ["a"], {"evidence_s": 3600})
    with house.store.write() as db:
        old = windows.load(db, "a", "vllm", T0, T0 + 60, 60.0)
        windows.save(db, [_of("a", w, T0 - 86_400) for w in old])
    house.cycle()
    with house.store.read() as db:
        row = fleet.get(db, "a")
    assert row is not None
    assert row["decision"] is not None
    assert [r["code"] for r in row["decision"]["reasons"]] == ["LOW_COVERAGE"]


def test_an_endpoint_at_rest_for_days_gets_a_proposal(tmp_path: Path) -> None:
    house = House(tmp_path, ["a"])
    calm = {"running": Gauge(0.0, 0.0, 0.0), "waiting": Gauge(0.0, 0.0, 0.0)}
    with house.store.write() as db:
        for start, width, n in ((T0 + 600 - 48 * 3600, 3600.0, 47), (T0 + 600, 60.0, 10)):
            begun = start // width * width
            quiet = [
                Window("a", "vllm", begun + i * width, width, 1.0, 2, 0, {"requests": 0.0}, {}, calm) for i in range(n)
            ]
            windows.save(db, quiet)
    asyncio.run(house.clock.advance(600))
    house.cycle()
    with house.store.read() as db:
        (row,) = recommendations.listed(db)
    assert [r["code"] for r in row["body"]["reasons"]] == ["LITTLE_TRAFFIC"]
    assert row["body"]["proposed"]["shape"]["replicas"] == 1


# -- what is open, and what is under way ----------------------------------------------------------------------------------


def test_figures_that_move_are_told_once_in_the_span_that_they_are_taken_over(tmp_path: Path) -> None:
    """A new revision is a new message, and the same evidence is in most of the next analyses."""
    house = House(tmp_path, ["a"])
    house.cycle()
    revisions = []
    for minute in range(1, 21):
        longer = reference_server.windows(MODEL, reference_server.poisson(0.5, 700.0, 1, prompt=100.0, output=100.0))
        with house.store.write() as db:
            windows.save(db, [_of("a", longer[minute % 10], T0 + 540 + minute * 60)])
        asyncio.run(house.clock.advance(60))
        house.cycle()
        with house.store.read() as db:
            (row,) = recommendations.listed(db, states=recommendations.OPEN)
        revisions.append(row["revision"])
    assert revisions[:9] == [1] * 9
    assert 2 <= revisions[-1] <= 3


@pytest.mark.parametrize(("state", "changing"), [("applying", True), ("rolling_back", True), ("verifying", False)])
def test_what_is_seen_while_a_change_is_applied_is_of_two_shapes(tmp_path: Path, state: str, changing: bool) -> None:
    house = House(tmp_path, ["a"])
    with house.store.write() as db:
        db.execute(sa.insert(schema.changes).values(**change_row("c1", "a", state=state)))
    seen = house.reflector._evidence(house.watched["a"], LIVE, house.clock.now())
    assert seen.situation.changing is changing


def test_what_was_not_judged_yet_is_analyzed_with_each_window_until_there_is_enough(tmp_path: Path) -> None:
    house = House(tmp_path, ["a"], {"evidence_s": 3600})
    watched, seen = house.watched["a"], 0
    with house.store.write() as db:
        rows = windows.load(db, "a", "vllm", T0, T0 + 600, 60.0)
        db.execute(sa.delete(schema.windows))
    house.clock = VirtualClock(T0)
    house.reflector = house.another()
    assert house.reflector.awaiting([watched]) == []  # there is nothing yet, and that is no finding
    with house.store.write() as db:
        windows.save(db, rows[:1])
    watched.live = None
    assert house.reflector.awaiting([watched]) == []  # nobody knows its shape
    watched.live = LIVE
    assert house.reflector.awaiting([watched]) == [watched]  # as after a restart: what is stored already may be enough
    for row in rows:
        house.cycle()
        assert house.reflector.awaiting([watched]) == []  # there is no more to look at
        asyncio.run(house.clock.advance(60))
        with house.store.write() as db:
            windows.save(db, [row])
        watched.saved_until, seen = row.end, seen + 1
        if not house.reflector.awaiting([watched]):
            break
    with house.store.read() as db:
        known = fleet.get(db, "a")
    assert known is not None
    assert known["decision"] is not None
    assert known["decision"]["state"] == "gathering"
    assert "of 1 h were seen" in known["decision"]["text"]
    assert 2 <= seen <= 6


def test_each_round_of_deciding_is_alive_by_the_endpoints_that_get_done(tmp_path: Path) -> None:
    """Of both loops: the round over all, and the one over those that were not judged yet."""

    async def scenario() -> None:
        async with World(tmp_path, loops=("lead", "collect")) as world:
            await world.run(60)
            loops = {loop.name: loop for loop in world.governor.loops}
            for name in ("first", "decide"):
                assert loops[name].status.moved_at is None
                await loops[name].once()
                assert loops[name].status.moved_at == world.clock.now()

    simulate(scenario)
