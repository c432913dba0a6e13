"""Attested savings: figures that can be checked by head, a chain that shows what was touched, and the same figures again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from actuators.shape import Operation, Plan, Shape
from agent import attest
from agent.settings import Settings
from agent.store import Store, changes, control, fleet, prices, savings, schema, windows
from agent.store.control import Lead
from analyzers.money import Tariff, Unit
from analyzers.whatif import calibrate
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from collectors.window import Window
from tests.agent.records import T0, change_row, shape_row
from tests.analyzers.whatif.reference_server import poisson
from tests.analyzers.whatif.reference_server import windows as served

HOUR = 3600.0
#: One replica answers about two and a half requests a second of 600 + 200 tokens.
MODEL = EngineModel(IterationCost(0.02, 2e-4, 5e-8, 6e-5, 0.0), EngineLimits(16, 4096, 200_000))
SMALL, LARGE = (Shape(replicas=n, size="gpu", engine={"max_num_seqs": 16}) for n in (1, 2))
NOW = T0 + HOUR + attest.SETTLES_S


@pytest.fixture(autouse=True)
def _quick_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fitted is of the model's own kind, and a few requests tell it."""
    monkeypatch.setattr(calibrate, "REPLAYED", 1_000)


def settings(**other: Any) -> Settings:
    endpoint = {"name": "chat", "url": "http://127.0.0.1:1", "objective": {"ttft_p95_s": 1.0, "error_rate": 0.01}}
    return Settings.model_validate(
        {
            "endpoints": [endpoint],
            "sizes": {"gpu": {"usd_per_replica_hour": 3.0}},
            "savings": {"period_s": HOUR},
            **other,
        }
    )


def hour(rate: float, replicas: int, start: float = T0) -> list[Window]:
    return [
        replace(w, start=start + w.start)
        for w in served(MODEL, poisson(rate, HOUR + 60, 3), replicas=replicas)
        if w.start < HOUR
    ]


def plan(before: Shape, after: Shape) -> Plan:
    step = Operation("scale", {}, 60.0, "scale")
    return Plan("chat", "none", before, after, "v1", (step,), restarts=False, downtime_s=0.0, way_back="back")


def change(
    db: sa.Connection, identity: str, before: Shape, after: Shape, at: float, state: str = "succeeded", **more: Any
) -> None:
    row = change_row(identity, now=at - 60, plan=plan(before, after).as_dict(), **more)
    assert changes.start(db, row)
    changes.move(db, identity, from_states=["applying"], to=state, now=at, reason="x", applied_at=at, finished_at=at)


def keep(db: sa.Connection, rows: Sequence[Window], usd_per_hour: float | None, live: Shape) -> None:
    tariff = Tariff.of({Unit.HOUR: usd_per_hour})
    windows.save(db, rows, {"chat": tariff})
    fleet.saw_shape(db, "chat", shape_row(NOW, shape=live.as_dict()))


def attested(store: Store, chosen: Settings, now: float = NOW) -> list[dict[str, Any]]:
    with store.write() as db:
        lead = control.acquire(db, "leader", "me", 1e9)
    assert lead is not None
    attest.cycle(store, chosen, now, lead)
    with store.read() as db:
        return [attest.view(row) for row in savings.listed(db)]


@pytest.fixture
def shrunk(store: Store) -> Store:
    """Since T0 one replica serves what two did: an hour at 1 request a second."""
    with store.write() as db:
        keep(db, hour(1.0, 1), 3.0, SMALL)
        change(db, "c1", LARGE, SMALL, T0)
    return store


def test_a_smaller_shape_saved_what_the_larger_one_would_have_cost_more(shrunk: Store) -> None:
    (row,) = attested(shrunk, settings())
    assert (row["change_id"], row["changes"]) == ("c1", ["c1"])
    assert row["spent_usd"] == pytest.approx(3.0)
    assert row["would_cost_usd"] == pytest.approx({"low": 6.0, "mid": 6.0, "high": 6.0})
    assert row["saved_usd"] == pytest.approx({"low": 3.0, "mid": 3.0, "high": 3.0})
    assert (row["missed_s"], row["would_miss_s"]["high"]) == (0.0, 0.0)
    assert row["hours_unknown"] == 0.0
    assert row["unknown"] == []
    assert row["given_up_label"] == LARGE.label()
    assert row["requests"] == pytest.approx(HOUR, rel=0.1)


def test_growth_has_a_negative_saving_and_says_what_it_bought(store: Store) -> None:
    with store.write() as db:
        keep(db, hour(3.0, 2), 6.0, LARGE)
        change(db, "c1", SMALL, LARGE, T0)
    (row,) = attested(store, settings())
    assert row["saved_usd"]["mid"] == pytest.approx(-3.0)
    assert row["missed_s"] < HOUR / 10
    assert row["would_miss_s"]["low"] > HOUR / 2, "one replica does not carry three requests a second"


def test_a_period_is_attested_once(shrunk: Store) -> None:
    attested(shrunk, settings())
    assert len(attested(shrunk, settings(), NOW + 60)) == 1


def test_nothing_is_attested_before_its_time_or_while_a_change_is_under_way(shrunk: Store) -> None:
    assert attested(shrunk, settings(), NOW - 1) == []
    with shrunk.write() as db:
        changes.start(db, change_row("c2", now=T0 + HOUR))
    assert attested(shrunk, settings()) == []


def test_an_unknown_price_is_no_saving_of_nothing(store: Store) -> None:
    with store.write() as db:
        keep(db, hour(1.0, 1), None, SMALL)
        change(db, "c1", LARGE, SMALL, T0)
    (row,) = attested(store, settings(sizes={}))
    assert (row["spent_usd"], row["would_cost_usd"], row["saved_usd"]) == (None, None, None)
    assert row["hours_unknown"] == pytest.approx(1.0)
    assert row["unknown"]
    assert attest.summed(savings_of(store))["lacking"] == ["chat"]


def savings_of(store: Store) -> list[savings.Row]:
    with store.read() as db:
        return savings.listed(db)


def test_hours_that_nobody_saw_are_told_and_are_no_money(store: Store) -> None:
    with store.write() as db:
        keep(db, hour(1.0, 1)[:30], 3.0, SMALL)
        change(db, "c1", LARGE, SMALL, T0)
    (row,) = attested(store, settings())
    assert row["saved_usd"]["mid"] == pytest.approx(1.5)
    assert (row["hours_compared"], row["hours_unknown"]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert row["missed_unknown_s"] == pytest.approx(HOUR / 2)


def test_the_price_of_then_counts(shrunk: Store) -> None:
    """It was 3 dollars, and became 4 in the middle of the hour."""
    with shrunk.write() as db:
        prices.note(db, {("size:gpu", Unit.REPLICA_HOUR): 3.0}, T0 - HOUR)
        prices.note(db, {("size:gpu", Unit.REPLICA_HOUR): 4.0}, T0 + HOUR / 2)
    (row,) = attested(shrunk, settings(sizes={"gpu": {"usd_per_replica_hour": 4.0}}))
    assert row["would_cost_usd"]["mid"] == pytest.approx(2 * (1.5 + 2.0))


def test_night_and_day_count_against_the_shape_before_the_first_change(store: Store) -> None:
    """Two, one by night, two again: the night saved, and the morning costs nothing of it."""
    with store.write() as db:
        keep(db, hour(1.0, 1), 3.0, LARGE)
        windows.save(db, hour(1.0, 2, T0 + HOUR), {"chat": Tariff.of({Unit.HOUR: 6.0})})
        change(db, "c1", LARGE, SMALL, T0)
        change(db, "c2", SMALL, LARGE, T0 + HOUR)
    night, day = attested(store, settings(), NOW + HOUR)
    assert (night["saved_usd"]["mid"], day["saved_usd"]["mid"]) == (pytest.approx(3.0), pytest.approx(0.0))
    assert day["changes"] == ["c1", "c2"]
    assert attest.summed(savings_of(store))["saved_usd"]["mid"] == pytest.approx(3.0)


def test_rolled_back_changes_and_those_before_a_persons_deployment_do_not_count(store: Store) -> None:
    three = LARGE.with_(replicas=3)
    rows = []
    with store.write() as db:
        change(db, "a", three, LARGE, T0)
        change(db, "b", LARGE, SMALL, T0 + 100, state="rolled_back")
        change(db, "c", LARGE, SMALL, T0 + 200)
        rows.append([c["id"] for c in attest.standing(changes.listed(db, endpoint="chat")[::-1])])
        change(db, "d", SMALL, three, T0 + 300, purpose="deploy")
        rows.append([c["id"] for c in attest.standing(changes.listed(db, endpoint="chat")[::-1])])
        change(db, "e", three, LARGE, T0 + 400)
        change(db, "f", SMALL, LARGE, T0 + 500)  # somebody else had made it one
        rows.append([c["id"] for c in attest.standing(changes.listed(db, endpoint="chat")[::-1])])
    assert rows == [["a", "c"], [], ["f"]]


def test_a_schedules_steps_are_flyballs_own_and_only_those_of_the_period_are_named(store: Store) -> None:
    with store.write() as db:
        keep(db, hour(1.0, 1), 3.0, SMALL)
        change(db, "a", LARGE, LARGE.with_(replicas=2), T0 - 3 * HOUR)
        for i, (before, after) in enumerate(((LARGE, SMALL), (SMALL, LARGE), (LARGE, SMALL))):
            change(db, f"step{i}", before, after, T0 - 2 * HOUR + i * HOUR, purpose="schedule")
    row = attested(store, settings())[-1]
    assert (row["change_id"], row["changes"]) == ("a", ["a", "step1", "step2"])
    assert row["saved_usd"]["mid"] == pytest.approx(3.0)


def test_what_somebody_else_changed_since_is_not_ours(shrunk: Store) -> None:
    with shrunk.write() as db:
        fleet.saw_shape(db, "chat", shape_row(NOW, shape=LARGE.with_(replicas=5).as_dict()))
    (row,) = attested(shrunk, settings())
    assert (row["saved_usd"], row["would_cost_usd"], row["would_miss_s"]) == (None, None, None)
    assert "somebody else" in row["unknown"][-1]


def test_what_was_live_before_the_change_says_nothing_of_somebody_else(shrunk: Store) -> None:
    with shrunk.write() as db:
        fleet.saw_shape(db, "chat", shape_row(T0 - 30, shape=LARGE.as_dict()))
    (row,) = attested(shrunk, settings())
    assert row["saved_usd"]["mid"] == pytest.approx(3.0)


def test_an_autoscaler_that_cannot_be_replayed_says_so(store: Store) -> None:
    by_cpu = Shape.from_dict({"size": "gpu", "autoscaling": {"least": 1, "most": 4, "targets": {"cpu": 0.7}}})
    with store.write() as db:
        keep(db, hour(1.0, 1), 3.0, SMALL)
        change(db, "c1", by_cpu, SMALL, T0)
    (row,) = attested(store, settings())
    assert (row["saved_usd"], row["spent_usd"]) == (None, pytest.approx(3.0))
    assert any("targets of cpu" in why for why in row["unknown"])


def test_an_autoscalers_replicas_have_an_interval(store: Store) -> None:
    scaled = Shape.from_dict(
        {"size": "gpu", "engine": {"max_num_seqs": 16}, "autoscaling": {"least": 1, "most": 4, "targets": {"vllm:num_requests_running": 5}}}
    )  # fmt: skip
    with store.write() as db:
        keep(db, hour(2.0, 2), 6.0, LARGE)
        change(db, "c1", scaled, LARGE, T0)
    (row,) = attested(store, settings())
    cost = row["would_cost_usd"]
    assert 3.0 <= cost["low"] < cost["high"] <= 12.0
    assert row["replays"] == 16


# -- the chain ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_hours(shrunk: Store) -> Store:
    with shrunk.write() as db:
        windows.save(db, hour(1.0, 1, T0 + HOUR), {"chat": Tariff.of({Unit.HOUR: 3.0})})
    attested(shrunk, settings(), NOW + HOUR)
    return shrunk


def test_the_figures_come_out_of_the_database_again(two_hours: Store) -> None:
    rows = savings_of(two_hours)
    assert [attest.recomputed(two_hours, settings(), row)[0] for row in rows] == [True, True]
    with two_hours.write() as db:
        windows.age_out(db, NOW, {60.0: HOUR / 2})
    assert attest.recomputed(two_hours, settings(), rows[0])[0] is None


def test_the_price_of_later_changes_nothing_that_was_attested(two_hours: Store) -> None:
    with two_hours.write() as db:
        prices.note(db, {("size:gpu", Unit.REPLICA_HOUR): 9.0}, NOW + 2 * HOUR)
    dearer = settings(sizes={"gpu": {"usd_per_replica_hour": 9.0}})
    assert attest.recomputed(two_hours, dearer, savings_of(two_hours)[0]) == (True, "the same figures again")


def test_a_row_that_was_touched_breaks_the_chain(two_hours: Store) -> None:
    with two_hours.read() as db:
        assert (savings.altered(db), savings.missing(db)) == (None, [])
    first, second = savings_of(two_hours)
    for values in (
        {"saved_usd": 99.0},
        {"body": first["body"].replace('"seed":7', '"seed":8')},
        {"hash": "0" * 64},
        {"attested_at": 1.0},
    ):
        with two_hours.engine.connect() as db, db.begin() as undone:
            assert db.execute(
                sa.update(schema.savings).where(schema.savings.c.id == first["id"]).values(**values)
            ).rowcount
            assert savings.altered(db) in (first["id"], second["id"])
            undone.rollback()


def test_rows_that_were_cut_off_are_missed_by_the_audit(two_hours: Store) -> None:
    _, second = savings_of(two_hours)
    with two_hours.write() as db:
        db.execute(sa.delete(schema.savings).where(schema.savings.c.id == second["id"]))
        assert savings.altered(db) is None
        assert savings.missing(db) == [second["hash"]]


def test_a_forged_row_with_a_whole_chain_does_not_come_out_again(two_hours: Store) -> None:
    first, _ = savings_of(two_hours)
    body = json.loads(first["body"])
    body["saved_usd"] = {"low": 30.0, "mid": 30.0, "high": 30.0}
    forged: Any = {**first, "body": json.dumps(body)}
    assert attest.recomputed(two_hours, settings(), forged) == (False, "saved_usd come out otherwise")


def test_a_deposed_leader_attests_nothing(shrunk: Store) -> None:
    with shrunk.write() as db:
        control.acquire(db, "leader", "other", 1e9)
    with pytest.raises(control.LostLease):
        attest.cycle(shrunk, settings(), NOW, Lead("leader", "me", 0))
    assert savings_of(shrunk) == []
