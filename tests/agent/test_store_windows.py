"""Windows in the database: exact there and back, merged upwards without loss, aged out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import SQLAlchemyError

from agent.store import Store, schema, windows
from agent.store.database import _alembic
from analyzers.money import Cost, Tariff, Unit
from collectors.metrics import names
from collectors.sketch import Sketch
from collectors.window import Gauge, Range, Window
from tests.agent.records import T0, window

LATE = T0 + 100_000.0


def everything() -> Window:
    rng = np.random.default_rng(7)
    return Window(
        endpoint="chat",
        source="vllm",
        start=T0,
        duration_s=60.0,
        coverage=0.1 + 0.2,  # no round number in binary
        targets=3,
        restarts=1,
        counts={name: 1.1 * (i + 1) for i, name in enumerate((*names("counter"), "billed_tokens"))},
        sketches={
            "ttft_s": Sketch.from_values(rng.lognormal(size=500)),
            "itl_s": Sketch.from_histogram((0.01, 0.1), (5.5, 3.25, 1.0), 4.0),
        },
        gauges={"running": Gauge(1 / 3, 7.0, 2.0), "gpu_power_w": Gauge(300.0, 310.0, 305.0)},
        errors={"timeout": 2},
        facts={"model": "tiny", "version": "0.9"},
        quantiles={"e2e_s": {0.95: Range(0.8, 1.2), 0.5: Range(0.3, 0.3)}},
        observed={"requests": 0.25},
    )


def test_a_window_comes_back_exactly(store: Store) -> None:
    saved = everything()
    with store.write() as db:
        assert windows.save(db, [saved], {"chat": Tariff.of({Unit.HOUR: 3.6})}) == 1
    with store.read() as db:
        (loaded,) = windows.load(db, "chat", "vllm", T0, T0 + 60, 60.0)
        cost = db.execute(sa.select(schema.windows.c.cost_usd)).scalar_one()
    assert {n: s.to_bytes() for n, s in loaded.sketches.items()} == {n: s.to_bytes() for n, s in saved.sketches.items()}
    for name in Window.__slots__:
        if name != "sketches":
            assert getattr(loaded, name) == getattr(saved, name), name
    assert cost == pytest.approx(0.06)


def test_unknown_stays_unknown(store: Store) -> None:
    gap = window(T0, coverage=0.0, errors={"timeout": 4})
    with store.write() as db:
        windows.save(db, [gap])
    with store.read() as db:
        (loaded,) = windows.load(db, "chat", "vllm", T0, T0 + 60, 60.0)
        row = db.execute(sa.select(schema.windows)).mappings().one()
    assert loaded == gap
    assert loaded.count("requests") is None
    assert [row[c] for c in ("requests", "ttft_p95_s", "running_mean", "cost_usd")] == [None] * 4


def test_plain_columns_say_what_the_sketch_says(store: Store) -> None:
    with store.write() as db:
        windows.save(db, [window(T0, ttft=tuple(i / 100 for i in range(1, 101)))])
    with store.read() as db:
        row = db.execute(sa.select(schema.windows)).mappings().one()
    assert row["ttft_p50_s"] == pytest.approx(0.50, rel=0.011)
    assert row["ttft_p95_s"] == pytest.approx(0.95, rel=0.011)
    assert (row["running_mean"], row["running_max"], row["requests"]) == (4.0, 5.0, 120.0)


def test_saving_again_changes_nothing(store: Store) -> None:
    first, second = window(T0), window(T0 + 60)
    with store.write() as db:
        assert windows.save(db, [first]) == 1
    with store.write() as db:
        assert windows.save(db, [window(T0, counts={"requests": 1.0}), second]) == 1
        assert windows.save(db, [first, second]) == 0
        assert windows.save(db, []) == 0
    with store.read() as db:
        assert [w.count("requests") for w in windows.load(db, "chat", "vllm", T0, T0 + 120, 60.0)] == [120.0, 120.0]


def test_a_fuller_window_replaces_its_row_and_a_poorer_one_does_not(store: Store) -> None:
    poor = window(T0, coverage=0.25, counts={"requests": 1.0})
    with store.write() as db:
        windows.save(db, [poor], {"chat": Tariff.of({Unit.HOUR: 1.0})})
        assert windows.save(db, [window(T0)], {"chat": Tariff.of({Unit.HOUR: 2.0})}) == 1
        assert windows.save(db, [poor], {"chat": Tariff.of({Unit.HOUR: 1.0})}) == 0
    with store.read() as db:
        assert windows.load(db, "chat", "vllm", T0, T0 + 60, 60.0) == [window(T0)]
        assert windows.spent(db, "chat", "vllm", T0, T0 + 60, 60.0).usd == pytest.approx(2.0 / 60)


def test_a_window_costs_what_its_tariff_says(store: Store) -> None:
    tokens = Tariff.of({Unit.INPUT_1K: 0.5, Unit.OUTPUT_1K: 2.0})
    told = window(T0, counts={"prompt_tokens": 4000.0, "output_tokens": 1000.0})
    seen = {
        "replicas": windows.entry_of(window(T0), Tariff.of({Unit.REPLICA_HOUR: 3.0}), 4),
        "nobody knows how many": windows.entry_of(window(T0), Tariff.of({Unit.REPLICA_HOUR: 3.0})),
        "tokens": windows.entry_of(told, tokens),
        "tokens in a part of it": windows.entry_of(replace(told, coverage=0.5), tokens),
        "no price": windows.entry_of(told, Tariff()),
    }
    assert {what: entry.cost_usd for what, entry in seen.items()} == {
        "replicas": pytest.approx(12.0 / 60),
        "nobody knows how many": None,
        "tokens": pytest.approx(4.0),
        "tokens in a part of it": None,
        "no price": None,
    }


@pytest.mark.parametrize("counts", [{"requests": math.inf}, {"throttled": math.nan}])
def test_a_number_that_no_page_can_show_is_refused_and_costs_only_its_window(
    counts: dict[str, float], store: Store
) -> None:
    rows = [
        windows.entry_of(window(T0 + 60 * i, counts=counts if i == 3 else None), Tariff.of({Unit.HOUR: 1.0}))
        for i in range(8)
    ]
    ((entry, reason),) = windows.each_saved(store, rows, windows.save_entries)
    assert entry is rows[3]
    assert reason.startswith("ValueError: window")
    with store.read() as db:
        assert len(windows.load(db, "chat", "vllm", T0, T0 + 480, 60.0)) == 7


@pytest.mark.real
@pytest.mark.parametrize(
    "bad",
    [
        replace(window(T0), targets=2**70),
        replace(window(T0), endpoint="\ud800"),
        replace(window(T0), gauges={"running": Gauge(1e308, math.inf, 1.0)}),
        replace(window(T0), source="a\x00b"),
    ],
    ids=["a huge number", "a lone surrogate", "an infinite gauge", "NUL"],
)
def test_what_a_database_never_takes_is_told_from_an_outage(
    bad: Window, postgresql: Any, postgresql_template: str
) -> None:
    """On PostgreSQL, which refuses most."""
    name = postgresql.create(postgresql_template)
    store = Store(postgresql.url(name))
    good = [windows.entry_of(window(T0 + 60 * i), Tariff()) for i in range(5)]
    refused = windows.each_saved(store, [*good[:2], windows.Entry(bad, None), *good[2:]], windows.save_entries)
    assert [entry.window for entry, _ in refused] == [bad]
    with store.read() as db:
        assert len(windows.load(db, "chat", "vllm", T0, T0 + 300, 60.0)) == 5
    store.close()
    postgresql.drop(name)


def test_an_outage_is_raised_and_no_window_is_given_up(store: Store) -> None:
    with store.write() as db:
        db.execute(sa.text("ALTER TABLE windows RENAME TO elsewhere"))
    with pytest.raises(SQLAlchemyError):
        windows.each_saved(store, [windows.entry_of(window(T0), Tariff())], windows.save_entries)


def test_only_whole_windows_of_one_kind_are_loaded(store: Store) -> None:
    others = [window(T0, endpoint="other"), window(T0, source="probe"), window(T0, duration_s=300.0)]
    with store.write() as db:
        windows.save(db, [window(T0 + 120), window(T0), window(T0 + 60), *others])
    with store.read() as db:
        found = windows.load(db, "chat", "vllm", T0 + 1, T0 + 180, 60.0)
        newest = windows.latest(db, "chat", 60.0, "vllm")
    assert [w.start for w in found] == [T0 + 60, T0 + 120]
    assert newest is not None
    assert newest.start == T0 + 120


def test_latest_passes_over_gaps(store: Store) -> None:
    with store.write() as db:
        windows.save(db, [window(T0), window(T0 + 60, coverage=0.0)])
        newest = windows.latest(db, "chat", 60.0, "vllm")
        assert newest is not None
        assert newest.start == T0
        assert windows.latest(db, "nobody", 60.0, "vllm") is None


def test_roll_up_adds_counts_merges_sketches_and_shows_gaps(store: Store) -> None:
    """One hour: 50 minutes are there, 5 of them are noticed gaps, 10 minutes nobody wrote anything."""
    minutes = [window(T0 + 60 * i, coverage=0.0 if i < 5 else 1.0, running=float(i)) for i in range(60) if i < 50]
    with store.write() as db:
        windows.save(db, minutes, {"chat": Tariff.of({Unit.HOUR: 2.0})})
    assert windows.roll_up(store, LATE, 60.0) == 10 + 1
    with store.read() as db:
        fives = windows.load(db, "chat", "vllm", T0, T0 + 3600, 300.0)
        (hour,) = windows.load(db, "chat", "vllm", T0, T0 + 3600, 3600.0)
        spent = [windows.spent(db, "chat", "vllm", T0, T0 + 3600, d).usd for d in (60.0, 300.0, 3600.0)]
    assert [w.coverage for w in fives] == [0.0] + [1.0] * 9
    assert [w.count("requests") for w in fives] == [None] + [600.0] * 9
    assert hour.coverage == pytest.approx(45 / 60)
    assert hour.count("requests") == 45 * 120
    assert hour.rate("requests") == pytest.approx(2.0)
    assert hour.sketches["ttft_s"].count == 45 * 4
    assert hour.gauges["running"] == Gauge(pytest.approx(sum(range(5, 50)) / 45), 50.0, 49.0)  # type: ignore[arg-type]
    assert spent == [pytest.approx(50 / 60 * 2.0)] * 3


def _save(store: Store, *rows: Window) -> None:
    with store.write() as db:
        windows.save(db, rows)


def _one(store: Store, duration_s: float) -> Window:
    with store.read() as db:
        (only,) = windows.load(db, "chat", "vllm", T0, T0 + duration_s, duration_s)
    return only


def test_roll_up_happens_once_and_goes_on_where_it_was(store: Store) -> None:
    _save(store, *(window(T0 + 60 * i) for i in range(10)))
    assert windows.roll_up(store, T0 + 600 + 120, 60.0) == 2
    assert windows.roll_up(store, T0 + 600 + 120, 60.0) == 0
    _save(store, *(window(T0 + 600 + 60 * i) for i in range(50)))
    assert windows.roll_up(store, T0 + 3600 + 120, 60.0) == 10 + 1
    assert _one(store, 3600.0).count("requests") == 7200.0


def test_what_comes_late_is_rolled_up_too_at_every_level(store: Store) -> None:
    """The spool of another host drains hours later; the spans that it belongs to were merged long ago."""
    _save(store, *(window(T0 + 60 * i) for i in range(180) if not 20 <= i < 30))
    windows.roll_up(store, LATE, 60.0)
    assert _one(store, 3600.0).count("requests") == 50 * 120
    _save(store, *(window(T0 + 60 * i) for i in range(20, 30)))
    assert windows.roll_up(store, LATE, 60.0) == 2 + 1
    assert _one(store, 3600.0).count("requests") == 7200.0
    assert windows.roll_up(store, LATE, 60.0) == 0


def test_what_is_damaged_in_the_store_does_not_block_the_others(store: Store) -> None:
    _save(store, *(window(T0 + 60 * i, endpoint=name) for i in range(5) for name in ("bad", "chat")))
    with store.write() as db:
        db.execute(sa.update(schema.windows).where(schema.windows.c.endpoint == "bad").values(sketches=b"\x00"))
    windows.roll_up(store, LATE, 60.0)
    assert _one(store, 300.0).count("requests") == 600.0
    assert windows.roll_up(store, LATE, 60.0) == 0


def test_a_span_is_not_merged_before_its_last_window_came_in(store: Store) -> None:
    _save(store, *(window(T0 + 60 * i) for i in range(4)))
    assert windows.roll_up(store, T0 + 300.5, 60.0) == 0
    _save(store, window(T0 + 240))
    assert windows.roll_up(store, T0 + 420.5, 60.0) == 1
    five = _one(store, 300.0)
    assert five.count("requests") == 600.0
    assert five.coverage == 1.0


def test_roll_up_skips_levels_that_are_no_coarser(store: Store) -> None:
    _save(store, window(T0, duration_s=600.0), window(T0 + 600, duration_s=600.0))
    assert windows.roll_up(store, LATE, 600.0) == 1
    assert _one(store, 3600.0)


def test_quantiles_that_came_as_numbers_merge_to_the_range_of_their_parts() -> None:
    parts = [
        replace(window(T0 + 60 * i), quantiles={"e2e_s": {0.95: Range(x, x)}}) for i, x in enumerate((0.8, 1.2, 0.9))
    ]
    assert windows.merge(parts, T0, 300.0).quantiles == {"e2e_s": {0.95: Range(0.8, 1.2)}}


def test_a_counter_that_some_windows_do_not_tell_was_observed_for_less_than_the_span() -> None:
    parts = [window(T0), window(T0 + 60, counts={"errors": 0.0}), replace(window(T0 + 120), observed={"requests": 0.5})]
    one = windows.merge(parts, T0, 180.0)
    assert one.coverage == 1.0
    assert one.coverage_of("requests") == pytest.approx(0.5)
    assert one.rate("requests") == pytest.approx(240 / 90)


def test_ageing_out_keeps_each_resolution_for_its_own_time(store: Store) -> None:
    with store.write() as db:
        windows.save(db, [window(T0), window(T0 + 600), window(T0, duration_s=300.0)])
        assert windows.age_out(db, T0 + 700, {60.0: 500.0, 300.0: 5000.0}) == 1
        left = db.execute(sa.select(schema.windows.c.start, schema.windows.c.duration_s)).all()
    assert sorted(map(tuple, left)) == [(T0, 300.0), (T0 + 600, 60.0)]


def test_money_of_gaps_is_spent_and_unknown_prices_stay_unknown(store: Store) -> None:
    with store.write() as db:
        windows.save(db, [window(T0), window(T0 + 60, coverage=0.0)], {"chat": Tariff.of({Unit.HOUR: 60.0})})
        windows.save(db, [window(T0, endpoint="free")], {"free": Tariff()})
        assert windows.spent(db, "chat", "vllm", T0, T0 + 120, 60.0).usd == pytest.approx(2.0)
        assert windows.spent(db, "free", "vllm", T0, T0 + 120, 60.0) == Cost(None, ("price",))


_parts = st.lists(
    st.tuples(
        st.just(0.0) | st.floats(1e-6, 1),
        st.floats(0, 1e6),
        st.lists(st.floats(1e-3, 1e3), max_size=5),
        st.floats(0, 100),
    ),
    min_size=1,
    max_size=5,
)


def _made(parts: list[tuple[float, float, list[float], float]]) -> list[Window]:
    return [
        window(T0 + 60 * i, coverage=c, counts={"requests": n}, ttft=tuple(values), running=g)
        for i, (c, n, values, g) in enumerate(parts)
    ]


@settings(deadline=None, max_examples=60)
@given(_parts)
def test_merging_loses_nothing(parts: list[tuple[float, float, list[float], float]]) -> None:
    rows = _made(parts)
    one = windows.merge(rows, T0, 300.0)
    known = [w for w in rows if w.coverage > 0]
    assert math.isclose(one.coverage, sum(w.coverage * 60 for w in rows) / 300, abs_tol=1e-12)
    assert (one.count("requests") or 0.0) == pytest.approx(sum(w.counts["requests"] for w in known))
    assert ("requests" in one.counts) == bool(known)
    samples = sum(s.count for w in known if (s := w.sketches.get("ttft_s")) is not None)
    assert (one.sketches["ttft_s"].count if "ttft_s" in one.sketches else 0) == samples
    if known:
        means = [w.gauges["running"].mean for w in known]
        assert min(means) - 1e-9 <= one.gauges["running"].mean <= max(means) + 1e-9
        assert one.gauges["running"].maximum == max(w.gauges["running"].maximum for w in known)


@settings(deadline=None, max_examples=60)
@given(_parts, st.integers(1, 4))
def test_merging_in_two_steps_is_merging_at_once(
    parts: list[tuple[float, float, list[float], float]], cut: int
) -> None:
    rows = _made(parts)
    at_once = windows.merge(rows, T0, 600.0)
    pieces = [p for p in (rows[:cut], rows[cut:]) if p]
    in_steps = windows.merge([windows.merge(p, T0 + 300 * i, 300.0) for i, p in enumerate(pieces)], T0, 600.0)
    assert in_steps.coverage == pytest.approx(at_once.coverage)
    assert in_steps.counts == pytest.approx(dict(at_once.counts))
    assert in_steps.sketches.keys() == at_once.sketches.keys()
    for name, sketch in at_once.sketches.items():
        assert in_steps.sketches[name].count == pytest.approx(sketch.count)
        assert in_steps.sketches[name].quantile(0.5) == sketch.quantile(0.5)
    for name, gauge in at_once.gauges.items():
        assert in_steps.gauges[name].mean == pytest.approx(gauge.mean)


@pytest.mark.parametrize("damaged", [b"\x00", b"\x00\x04\x00\x00\x00\x09ttft", b"\x00\x06\x00\x00\x00\x01ttft_s\xff"])
def test_damaged_sketches_are_refused(damaged: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        windows.unpack(damaged)


def test_windows_of_an_older_database_come_over_whole(empty_url: str) -> None:
    store = Store(empty_url)
    config = _alembic()
    with store.engine.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        old = [c for c in schema.windows.columns if c.name not in ("id", "more", "quantiles", "rolled")]
        for duration_s in (60.0, 3600.0):
            values = windows._row(window(T0, duration_s=duration_s), 1.0)
            connection.execute(
                sa.table("windows", *map(_bare, old)).insert().values({c.name: values[c.name] for c in old})
            )
    store.upgrade()
    with store.read() as db:
        for duration_s in (60.0, 3600.0):
            assert windows.load(db, "chat", "vllm", T0, T0 + 3600, duration_s) == [window(T0, duration_s=duration_s)]
    assert windows.roll_up(store, LATE, 60.0) == 2  # but the hour that is there observed more, and stays
    assert _one(store, 3600.0).count("requests") == 120.0
    store.close()


def _bare(column: sa.Column[Any]) -> sa.ColumnClause[Any]:
    return sa.column(column.name, column.type)
