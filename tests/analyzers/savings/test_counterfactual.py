"""What a replay of the traffic that came tells of another shape, against an engine that is known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from actuators.shape import Shape
from analyzers.objective import Objective
from analyzers.savings import counterfactual
from analyzers.savings.counterfactual import Counterfactual, ReplayBasis, replayed
from analyzers.whatif import calibrate
from analyzers.whatif.calibrate import CalibratedEngine
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from collectors.window import Window
from tests.analyzers.whatif.reference_server import poisson
from tests.analyzers.whatif.reference_server import windows as served

MODEL = EngineModel(IterationCost(0.02, 2e-4, 5e-8, 6e-5, 0.0), EngineLimits(16, 4096, 200_000))
PRESENT = Shape(replicas=2, size="gpu", engine={"max_num_seqs": 16})
SCALED = Shape.from_dict(
    {"size": "gpu", "engine": {"max_num_seqs": 16}, "autoscaling": {"least": 1, "most": 4, "targets": {"running": 5}}}
)
T0 = 1_800_000_000.0
HOUR = 3600.0


@cache
def hours(count: int) -> tuple[Window, ...]:
    """A request and a half a second, from T0 on."""
    rows = served(MODEL, poisson(1.5, count * HOUR + 60, 3), replicas=2)
    return tuple(replace(w, start=T0 + w.start) for w in rows if w.start < count * HOUR)


@cache
def learned() -> CalibratedEngine:
    before, calibrate.REPLAYED = calibrate.REPLAYED, 1_000
    try:
        return calibrate.calibrate(hours(1), PRESENT, prior=None, hardware=None)
    finally:
        calibrate.REPLAYED = before


def told(shape: Shape, rows: tuple[Window, ...], **limits: float) -> Counterfactual:
    objective = Objective.from_mapping(limits or {"ttft_p95_s": 1.0})
    return replayed(shape, rows, (), ReplayBasis(learned(), PRESENT, objective, {}, {}, 60.0, 7))


def test_replicas_that_stay_are_there_all_the_time() -> None:
    got = told(PRESENT.with_(replicas=3), hours(1))
    assert got.replica_hours is not None
    assert (got.replica_hours.low, got.replica_hours.high) == (pytest.approx(3.0), pytest.approx(3.0))
    assert (got.replays, got.unknown, got.notes) == (16, (), ())


def test_as_many_requests_are_replayed_as_came() -> None:
    came = sum(w.count("requests") or 0.0 for w in hours(1))
    assert told(PRESENT, hours(1)).requests == pytest.approx(came, rel=0.01)


def test_more_replicas_never_miss_more() -> None:
    missed = []
    for replicas in (1, 2, 3):
        found = told(PRESENT.with_(replicas=replicas), hours(1), ttft_p95_s=0.4).missed_s
        assert found is not None
        missed.append(found.mid)
    assert missed[0] > missed[1] >= missed[2]


def test_an_autoscalers_replicas_lie_within_its_bounds_and_it_is_not_called_full() -> None:
    got = told(SCALED, hours(2))
    assert got.replica_hours is not None
    assert 2.0 <= got.replica_hours.low < got.replica_hours.high <= 8.0
    assert not any("all 4" in note for note in got.notes)


def test_the_same_input_has_the_same_answer() -> None:
    assert told(SCALED, hours(1)) == told(SCALED, hours(1))


def test_an_objective_that_no_replay_tells_is_not_known() -> None:
    got = told(PRESENT, hours(1), error_rate=0.01)
    assert got.missed_s is None
    assert got.unknown == ("no target of the objective is one that a replay tells",)


def test_hours_that_stand_for_others_widen_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = told(SCALED, hours(6))
    monkeypatch.setattr(counterfactual, "MOST_REQUESTS", 17_000)
    half = told(SCALED, hours(6))
    assert half.notes[0].startswith("50% of the time")
    assert whole.replica_hours is not None
    assert half.replica_hours is not None
    assert half.replica_hours.high - half.replica_hours.low > whole.replica_hours.high - whole.replica_hours.low
    assert half.replica_hours.low < whole.replica_hours.mid < half.replica_hours.high


def test_a_systematic_sample_has_the_error_of_its_neighbours_differences() -> None:
    rng = np.random.default_rng(1)
    drawn = [counterfactual._whole([1.0, 3.0, 1.0, 3.0], 0.5, rng) for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(16.0, abs=0.2)
    assert np.std(drawn) == pytest.approx(8 * np.sqrt(0.5 * 2.0 / 4), rel=0.05)
    assert counterfactual._whole([1.0, 3.0], 1.0, rng) == 4.0
