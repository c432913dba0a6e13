"""Beside the reference: an engine that is 1.5 times as slow by construction is found to be so, by replays, within the interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actuators.shape import Shape
from analyzers.finding import Finding, Reason
from analyzers.kinds.base import Basis
from analyzers.kinds.registry import KINDS
from analyzers.objective import Objective
from analyzers.policy import Catalogue
from analyzers.prediction import CannotPredict, Interval
from analyzers.reference import (
    ENOUGH,
    CalibratedEndpoint,
    Ratio,
    ReferenceComparison,
    ReferenceUse,
    cause_of,
    compare,
    piece,
    slower,
    with_causes,
)
from analyzers.situation import Situation
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from collectors.window import Gauge, Window
from tests.analyzers.situations import hour, minute, situation
from tests.analyzers.whatif.reference_server import poisson, windows

LIMITS = EngineLimits(128, 4096, 200_000)
FAST = EngineModel(IterationCost(0.0085, 3e-5, 3e-8, 5e-5, 2e-9), LIMITS)
SLOW = EngineModel(FAST.iteration.scaled(1.5), LIMITS)
SHAPE = Shape(replicas=1, engine={"max_num_seqs": 128, "max_num_batched_tokens": 4096})
OBJECTIVE = Objective.from_mapping({"ttft_p95_s": 1.0, "itl_p95_s": 0.05})
#: Buckets that tell a rise of a fifth.
FINE = tuple(np.geomspace(1e-3, 100.0, 200))
TIMES = ("ttft_p50_s", "ttft_p95_s", "itl_p50_s", "itl_p95_s", "e2e_p50_s")


@cache
def seen(slow: bool, rate: float = 2.0) -> list[Window]:
    return windows(SLOW if slow else FAST, poisson(rate, 1800.0, 3 + slow))


@cache
def engine(slow: bool, per_replica_hour: float | None = 1.0) -> CalibratedEndpoint:
    kind = KINDS["engine"]
    basis = Basis(SHAPE, OBJECTIVE, Catalogue(), {})
    name = "chat" if slow else "gpu"
    return CalibratedEndpoint(name, kind, kind.calibrate(seen(slow), SHAPE, None), basis, per_replica_hour)


def of(rows: list[Window], per_hour: float | None = 2.0) -> Situation:
    return situation(rows, end=rows[-1].end, objective=OBJECTIVE, shape=SHAPE, per_hour=per_hour)


@cache
def beside() -> ReferenceComparison:
    return compare(engine(slow=True), engine(slow=False), of(seen(slow=True)), 1, 7)


def test_what_is_slower_and_dearer_by_construction_is_found_to_be_so() -> None:
    found = beside()
    for name in TIMES:
        ratio = found.ratios[name].ratio
        assert 1.5 in ratio, name
        assert ratio.mid == pytest.approx(1.5, rel=0.15), name
    assert found.ratios["usd_per_1k_tokens"].ratio.mid == pytest.approx(2.0)
    assert found.ratios["requests_per_s"].ratio.mid < 0.75
    assert found.text.startswith("costs 2 times gpu for the same traffic, and answers 0.6")
    assert found.missing == ()


def test_an_engine_beside_itself_is_neither_slower_nor_faster() -> None:
    found = compare(engine(slow=False), engine(slow=False), of(seen(slow=False)), 1, 7)
    for name, ratio in found.ratios.items():
        assert ratio.ratio.mid == pytest.approx(2.0 if name == "usd_per_1k_tokens" else 1.0), name
    assert slower(of(seen(slow=False)), found) is None


def test_a_small_part_of_the_references_capacity_costs_whole_replicas() -> None:
    """Eight replicas that one of the reference would carry: what they cost is a matter of their number, not of their speed."""
    found = compare(engine(slow=True), engine(slow=False), of(seen(slow=True), per_hour=16.0), 8, 7)
    assert found.reference_replicas is not None
    assert found.reference_replicas.mid == 1.0
    assert found.ratios["usd_per_1k_tokens"].ratio.mid == pytest.approx(16.0)


@pytest.mark.parametrize(
    ("own", "per_replica", "said"), [(None, 1.0, "the price of chat"), (2.0, None, "the price of gpu")]
)
def test_without_a_price_all_else_is_compared_and_what_lacks_is_said(
    own: float | None, per_replica: float | None, said: str
) -> None:
    found = compare(engine(slow=True), engine(False, per_replica), of(seen(slow=True), own), 1, 7)
    assert "usd_per_1k_tokens" not in found.ratios
    assert "ttft_p95_s" in found.ratios
    assert said in found.missing[0]
    assert found.text == f"answers {1 / found.ratios['e2e_p50_s'].ratio.mid:.2g} times as fast as gpu"


def test_a_plain_machine_is_compared_by_the_lengths_that_its_windows_tell() -> None:
    """It does not ask for them itself; without them the reference's engine cannot serve its requests."""
    kind, objective = KINDS["vm"], Objective.from_mapping({"e2e_p95_s": 30.0})
    rows = [replace(w, sketches={n: s for n, s in w.sketches.items() if n != "itl_s"}) for w in ramp(SLOW)]
    basis = Basis(SHAPE, objective, Catalogue(), {})
    machine = CalibratedEndpoint("chat", kind, kind.calibrate(rows, SHAPE, None), basis, 1.0)
    found = compare(machine, engine(slow=False), replace(of(rows), objective=objective), 1, 7)
    assert set(found.ratios) <= {"e2e_p50_s", "requests_per_s", "usd_per_1k_tokens"}
    assert found.ratios["e2e_p50_s"].ratio.mid > 1.0
    bare = [
        replace(w, counts={"requests": w.count("requests") or 0.0}, sketches={"e2e_s": w.sketches["e2e_s"]})
        for w in rows
    ]
    with pytest.raises(CannotPredict, match="a source that counts tokens is needed"):
        compare(machine, engine(slow=False), replace(of(bare), objective=objective), 1, 7)


def test_slower_than_the_reference_is_a_finding_with_its_cause() -> None:
    f = slower(of(seen(slow=True)), beside())
    assert f is not None
    assert (f.reason.code, f.kind, f.severity) == ("SLOWER_THAN_REFERENCE", "reference", "info")
    assert f.cause is not None
    assert f.cause.code == "OWN"
    assert f.reason.numbers["e2e_p50_s_low"] > 1.0


def test_a_large_number_of_requests_is_thinned_to_whole_windows_evenly() -> None:
    taken = piece(hour(requests=600.0))
    assert 1 <= len(taken) <= ENOUGH / 600 + 1
    assert piece(hour()[:5]) == hour()[:5]
    assert piece([minute(0, coverage=0.0)]) == []


# -- whose it is ---------------------------------------------------------------------------------------------------------------------


def rising(first: float, last: float, code: str = "ITL_RISING") -> Finding:
    s = of(seen(slow=True))
    return Finding("chat", "trend", "warning", Reason(code, "it rose", {"first": first, "last": last}), s.evidence)


def ramp(model: EngineModel) -> list[Window]:
    """A load that rises from one to seven requests a second in an hour."""
    rows: list[Window] = []
    for i in range(6):
        part = windows(model, poisson(1.0 + 1.2 * i, 660.0, i), edges=FINE)[:10]
        rows += [replace(w, start=600.0 * i + w.start) for w in part]
    return rows


def test_a_rise_that_the_traffic_makes_on_the_reference_too_is_the_traffics() -> None:
    rows = ramp(FAST)
    busy = engine(slow=False)
    busy = replace(busy, calibrated=busy.kind.calibrate(rows, SHAPE, None))
    first, last = (median(w.quantile("ttft_s", 0.5) or 0.0 for w in part) for part in (rows[:20], rows[-20:]))
    assert last > 1.2 * first
    cause = cause_of(rising(first, last, "TTFT_RISING"), of(rows), busy, beside(), frozenset(), 7)
    assert cause is not None
    assert cause.code == "TRAFFIC"


def test_a_rise_at_the_same_traffic_is_its_own_unless_the_reference_shows_it_as_well() -> None:
    s = of(seen(slow=True))
    own = cause_of(rising(0.01, 0.02), s, engine(slow=False), beside(), frozenset(), 7)
    both = cause_of(rising(0.01, 0.02), s, engine(slow=False), beside(), frozenset({"ITL_RISING"}), 7)
    assert own is not None
    assert both is not None
    assert (own.code, both.code) == ("OWN", "TRAFFIC_OR_MODEL")


@pytest.mark.parametrize(("limit", "code"), [(100.0, "OWN"), (0.001, "TRAFFIC")])
def test_a_breach_is_its_own_where_the_reference_would_meet_the_target(limit: float, code: str) -> None:
    s = replace(of(seen(slow=True)), objective=Objective.from_mapping({"ttft_p95_s": limit}))
    breach = Finding("chat", "breach", "warning", Reason("OBJECTIVE_BREACH_TTFT_P95_S", "missed"), s.evidence)
    (told, *_) = with_causes([breach], s, engine(slow=False), beside(), frozenset(), 7)
    assert told.cause is not None
    assert told.cause.code == code
    assert told.as_dict()["cause"]["text"] == told.cause.text


def test_what_the_reference_cannot_tell_has_no_cause() -> None:
    s = of(seen(slow=True))
    idle = Finding("chat", "idle", "info", Reason("LOW_OCCUPANCY", "idle"), s.evidence)
    assert cause_of(idle, s, engine(slow=False), beside(), frozenset(), 7) is None
    load = rising(1.0, 2.0, "LOAD_RISING")
    assert cause_of(load, s, engine(slow=False), beside(), frozenset(), 7) is None


# -- ratios and use --------------------------------------------------------------------------------------------------------------------

_ENDS = st.tuples(*[st.floats(1e-3, 1e3)] * 3).map(lambda v: Interval(*sorted(v)))


@given(_ENDS, _ENDS)
def test_a_ratio_holds_its_middle_and_is_no_surer_than_either_side(own: Interval, reference: Interval) -> None:
    ratio = Ratio(own, reference).ratio
    assert ratio.low <= ratio.mid * (1 + 1e-9)
    assert ratio.mid <= ratio.high * (1 + 1e-9)
    assert ratio.mid == pytest.approx(own.mid / reference.mid)
    widest = max(own.high / own.mid, reference.mid / reference.low)
    assert ratio.high / ratio.mid >= widest * (1 - 1e-9)


@pytest.mark.parametrize(
    ("each", "slots", "idle", "occupancy"),
    [
        ({"requests": 0.0, "running": 0.0}, 16.0, 1.0, 0.0),
        ({"requests": 60.0, "running": 4.0}, 16.0, 0.0, 0.25),
        ({"requests": 0.0, "running": 1.0}, None, 0.0, None),
        ({"requests": None}, 16.0, None, None),
    ],
)
def test_a_reference_that_idles_costs_money(
    each: Mapping[str, float | None], slots: float | None, idle: float | None, occupancy: float | None
) -> None:
    use = ReferenceUse.of(hour(**each), slots, 2.0)
    assert (use.idle_share, use.occupancy) == (idle, occupancy)
    assert use.usd_per_month == 1460.0
    assert use.idle_usd_per_month == (None if idle is None else 1460.0 * idle)
    assert ReferenceUse.of(hour(**each), slots, None).idle_usd_per_month is None


def test_its_accelerators_say_themselves_how_much_they_work() -> None:
    assert ReferenceUse.of(hour(), 16.0, 2.0).gpu_usage is None
    told = [replace(w, gauges={**w.gauges, "gpu_usage": Gauge(0.25, 0.5, 0.25)}) for w in hour()]
    assert ReferenceUse.of(told, 16.0, 2.0).gpu_usage == 0.25
