"""Windows in the database: exact there and back, merged upwards without loss, aged out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.store import Store, schema, windows
from analyzers.money import Cost
from collectors.sketch import Sketch
from collectors.window import COUNTERS, Gauge, Window
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
        counts={name: 1.1 * (i + 1) for i, name in enumerate(COUNTERS)},
        sketches={
            "ttft_s": Sketch.from_values(rng.lognormal(size=500)),
            "itl_s": Sketch.from_histogram((0.01, 0.1), (5.5, 3.25, 1.0), 4.0),
        },
        gauges={"running": Gauge(1 / 3, 7.0, 2.0), "gpu_power_w": Gauge(300.0, 310.0, 305.0)},
        errors={"timeout": 2},
        facts={"model": "tiny", "version": "0.9"},
    )


def test_a_window_comes_back_exactly(store: Store) -> None:
    saved = everything()
    with store.write() as db:
        assert windows.save(db, [saved], {"chat": 3.6}) == 1
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
        windows.save(db, minutes, {"chat": 2.0})
        assert windows.roll_up(db, LATE, 60.0) == 10 + 1
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


def test_roll_up_happens_once_and_goes_on_where_it_was(store: Store) -> None:
    with store.write() as db:
        windows.save(db, [window(T0 + 60 * i) for i in range(10)])
        assert windows.roll_up(db, T0 + 600 + 120, 60.0) == 2
        assert windows.roll_up(db, T0 + 600 + 120, 60.0) == 0
        windows.save(db, [window(T0 + 600 + 60 * i) for i in range(50)])
        assert windows.roll_up(db, T0 + 3600 + 120, 60.0) == 10 + 1
        (hour,) = windows.load(db, "chat", "vllm", T0, T0 + 3600, 3600.0)
    assert hour.count("requests") == 7200.0


def test_a_span_is_not_merged_before_its_last_window_came_in(store: Store) -> None:
    """The last minute of a span is saved some seconds after it ended: merging at once would lose it for good."""
    with store.write() as db:
        windows.save(db, [window(T0 + 60 * i) for i in range(4)])
        assert windows.roll_up(db, T0 + 300.5, 60.0) == 0
        windows.save(db, [window(T0 + 240)])
        assert windows.roll_up(db, T0 + 420.5, 60.0) == 1
        (five,) = windows.load(db, "chat", "vllm", T0, T0 + 300, 300.0)
    assert five.count("requests") == 600.0
    assert five.coverage == 1.0


def test_roll_up_skips_levels_that_are_no_coarser(store: Store) -> None:
    with store.write() as db:
        windows.save(db, [window(T0, duration_s=600.0), window(T0 + 600, duration_s=600.0)])
        assert windows.roll_up(db, LATE, 600.0) == 1
        assert len(windows.load(db, "chat", "vllm", T0, T0 + 3600, 3600.0)) == 1


def test_ageing_out_keeps_each_resolution_for_its_own_time(store: Store) -> None:
    with store.write() as db:
        windows.save(db, [window(T0), window(T0 + 600), window(T0, duration_s=300.0)])
        assert windows.age_out(db, T0 + 700, {60.0: 500.0, 300.0: 5000.0}) == 1
        left = db.execute(sa.select(schema.windows.c.start, schema.windows.c.duration_s)).all()
    assert sorted(map(tuple, left)) == [(T0, 300.0), (T0 + 600, 60.0)]


def test_money_of_gaps_is_spent_and_unknown_prices_stay_unknown(store: Store) -> None:
    with store.write() as db:
        windows.save(db, [window(T0), window(T0 + 60, coverage=0.0)], {"chat": 60.0})
        windows.save(db, [window(T0, endpoint="free")], {"free": None})
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
