"""The settings of an endpoint's own autoscaler, found on whole days that are replayed under it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actuators.shape import Autoscaling, Shape
from analyzers.autoscaling.targets import tuned_targets
from analyzers.findings import analyze
from analyzers.forecast.days import days_of
from analyzers.forecast.forecast import forecast
from analyzers.forecast.history import STEP_S, LoadHistory
from analyzers.forecast.horizon import Horizon
from analyzers.kinds.base import Basis
from analyzers.kinds.engine.kind import EngineKind
from analyzers.objective import Objective
from analyzers.policy import Catalogue, Policy, most_replicas
from analyzers.prediction import AutoscaledDay, CannotPredict, LoadCourse, Prediction
from analyzers.recommend import Decision, recommend
from analyzers.whatif.traffic import on_course
from collectors.workload import Workload
from tests.analyzers.situations import Whole, hour, promise, situation
from tests.analyzers.test_decide_screening import calibrated

SHAPE = Shape(size="small", autoscaling=Autoscaling(1, 6, {"vllm_requests_in_flight": 4.0}))
TARGET = "vllm_requests_in_flight"


def day(shape: Shape, holds_up_to: float) -> AutoscaledDay:
    """Fewer replicas with a larger target, until it is late."""
    bounds = shape.autoscaling
    assert bounds is not None
    target = bounds.targets[TARGET]
    late = 0 if target <= holds_up_to else 3
    return AutoscaledDay(max(bounds.least, 12.0 / target), 0.999 if not late else 0.96, late)


@pytest.mark.parametrize(
    ("holds_up_to", "wanted"),
    [(8.5, 8.0), (4.5, None), (3.0, 2.8), (0.1, None), (20.0, 12.0), (1000.0, 12.0)],
)
def test_the_target_that_takes_the_fewest_replicas_and_holds_every_hour_is_found(
    holds_up_to: float, wanted: float | None
) -> None:
    """Beyond 12 one saves nothing, for one replica stays: the smallest of those that cost the same answers soonest."""
    found = tuned_targets(SHAPE, [1], lambda shape: day(shape, holds_up_to))
    got = None if found is None or found.shape.autoscaling is None else found.shape.autoscaling.targets[TARGET]
    assert got == wanted


def test_no_larger_target_is_tried_where_none_is_wanted() -> None:
    assert tuned_targets(SHAPE, [1], lambda shape: day(shape, 20.0), laxer=False) is None
    found = tuned_targets(SHAPE, [1], lambda shape: day(shape, 3.0), laxer=False)
    assert found is not None
    assert found.shape.autoscaling == Autoscaling(1, 6, {TARGET: 2.8})


@given(st.floats(0.5, 60.0), st.floats(0.5, 60.0))
def test_an_engine_that_carries_more_is_never_given_more_replicas(a: float, b: float) -> None:
    def mean(holds_up_to: float) -> float:
        found = tuned_targets(SHAPE, [1, 2], lambda shape: day(shape, holds_up_to))
        return day(SHAPE, holds_up_to).replicas_mean if found is None else found.day.replicas_mean

    if min(a, b) >= 4.0:  # below, the present one does not hold, and what does costs more
        assert mean(max(a, b)) <= mean(min(a, b)) + 1e-9


def test_a_least_count_is_raised_where_that_is_the_cheaper_way_to_hold_the_morning() -> None:
    def follow(shape: Shape) -> AutoscaledDay:
        bounds = shape.autoscaling
        assert bounds is not None
        held = bounds.least >= 2 or bounds.targets[TARGET] <= 1.0
        return AutoscaledDay(max(bounds.least, 12.0 / bounds.targets[TARGET]), 0.995, 0 if held else 1)

    found = tuned_targets(SHAPE, [1, 2, 3], follow)
    assert found is not None
    assert found.shape.autoscaling is not None
    assert found.shape.autoscaling.least == 2
    assert found.day.replicas_mean < follow(replace(SHAPE, autoscaling=Autoscaling(1, 6, {TARGET: 1.0}))).replicas_mean
    assert "1 hours a week" in found.why()


# -- a course of load -------------------------------------------------------------------------------------------------------------


def requests(n: int, rate: float, seed: int = 3) -> Workload:
    rng = np.random.default_rng(seed)
    arrival = np.sort(rng.random(n)) * n / rate
    return Workload(arrival, rng.integers(50, 300, n), rng.integers(20, 60, n), np.zeros(n, np.int64))


def test_a_course_has_each_steps_rate_and_the_same_requests_in_their_order() -> None:
    base = requests(2000, 5.0)
    got = on_course(base, 900.0, (1.0, 0.0, 2.0, 0.5))
    counts = np.histogram(got.arrival_s, bins=[0, 900, 1800, 2700, 3600])[0]
    assert counts[1] == 0
    assert counts[[0, 2, 3]] == pytest.approx(4500 * np.array([1.0, 2.0, 0.5]), rel=0.05)
    assert np.all(np.diff(got.arrival_s) >= 0)
    assert got.prompt_tokens.tolist() == np.resize(base.prompt_tokens, len(got)).tolist()


def test_a_course_without_load_or_of_more_than_is_replayed_is_refused() -> None:
    base = requests(2000, 5.0)
    with pytest.raises(CannotPredict, match="NO_TRAFFIC"):
        on_course(base, 900.0, (0.0, 0.0))
    with pytest.raises(CannotPredict, match="TOO_MUCH_TRAFFIC"):
        on_course(base, 900.0, (1e6,))


# -- the decision -----------------------------------------------------------------------------------------------------------------


def horizon() -> Horizon:
    end = 3 * 86_400.0
    at = np.arange(0.0, end, STEP_S) + STEP_S / 2
    rates = 8 * (1 + 0.8 * np.sin(2 * math.pi * at / 86_400))
    history = LoadHistory(0.0, {"requests": rates, "prompt_tokens": 100 * rates, "output_tokens": 50 * rates})
    found = forecast(history, growth=1.2)
    assert found is not None
    return Horizon(found, hour(requests=60 * 14.4), 1800.0, 3600.0, start_s=120.0, days=days_of(history, found, "UTC"))


def unseasonal() -> Horizon:
    """Two hours of a steady load were seen."""
    steady = np.full(8, 8.0)
    history = LoadHistory(0.0, {"requests": steady, "prompt_tokens": 100 * steady, "output_tokens": 50 * steady})
    found = forecast(history, growth=1.2)
    assert found is not None
    return Horizon(found, hour(requests=60 * 8.0), 1800.0, 3600.0, start_s=120.0)


def decide(
    holds_up_to: float, *, late: bool = False, policy: Policy | None = None, load: Horizon | None = None
) -> Decision:
    courses: list[LoadCourse] = []

    def follow(shape: Shape, course: LoadCourse) -> AutoscaledDay:
        courses.append(course)
        return day(shape, holds_up_to)

    def predict(shape: Shape, _factor: float) -> Prediction:
        return promise(0.3 if (most_replicas(shape) or 0) >= 2 else 0.5)

    seen = hour(ttft=[3.0] * 10, running=20.0) if late else hour(running=None)
    s = situation(seen, shape=SHAPE, policy=policy or Policy(), horizon=load or horizon(), per_hour=None)
    decision = recommend(s, analyze(s), Catalogue(prices={"small": 2.0}), Whole(predict, follow))
    for course in courses:
        assert course.duration_s in (86_400.0, 7200.0)
    return decision


def proposed(decision: Decision) -> Autoscaling:
    assert decision.recommendation is not None, [r.code for r in decision.hold]
    found = decision.recommendation.proposed.shape.autoscaling
    assert found is not None
    return found


def test_a_target_that_holds_with_fewer_replicas_is_proposed_with_what_it_saves() -> None:
    decision = decide(10.0)
    assert proposed(decision) == Autoscaling(1, 6, {TARGET: 10.0})
    advice = decision.recommendation
    assert advice is not None
    assert advice.direction == "shrink"
    assert [r.code for r in advice.reasons] == ["TARGETS_WOULD_DO"]
    # two replicas serve at $2 an hour; a day under the new target takes 1.2 replicas where it takes 3 now
    assert advice.saving_per_month == pytest.approx(4.0 * (1 - 1.2 / 3.0) * 730)
    assert advice.proposed.prediction is not None
    assert "the autoscaler is expected to run 1 replica" in " ".join(advice.proposed.prediction.notes)


def test_under_a_breach_that_an_autoscaler_makes_by_being_late_a_tighter_target_is_proposed() -> None:
    decision = decide(2.0, late=True)
    assert proposed(decision).targets == {TARGET: 2.0}
    advice = decision.recommendation
    assert advice is not None
    assert advice.direction == "grow"
    assert [r.code for r in advice.reasons][-1] == "TARGETS_WOULD_DO"


def test_under_a_breach_no_season_is_waited_for() -> None:
    """What was seen so far shows whether a tighter target would have held; a laxer one, which saves, needs a season."""
    decision = decide(2.0, late=True, load=unseasonal())
    assert proposed(decision).targets == {TARGET: 2.0}
    assert decision.recommendation is not None
    reason = decision.recommendation.reasons[-1]
    assert reason.code == "TARGETS_WOULD_DO"
    assert "two hours of the busiest load seen, and of 1.2 times it" in reason.text
    for quiet in (decide(10.0, load=unseasonal()), decide(10.0, late=True, load=unseasonal())):
        advice = quiet.recommendation
        found = None if advice is None else advice.proposed.shape.autoscaling
        assert found is None or found.targets == {TARGET: 4.0}


def test_no_target_is_touched_where_the_policy_says_so_or_the_present_one_is_best() -> None:
    for decision in (decide(10.0, policy=Policy(tune_autoscaler=False)), decide(4.5)):
        advice = decision.recommendation
        found = None if advice is None else advice.proposed.shape.autoscaling
        assert found is None or found.targets == {TARGET: 4.0}


# -- by replay --------------------------------------------------------------------------------------------------------------------


def test_a_day_is_replayed_under_the_autoscaler_of_the_shape() -> None:
    engine = calibrated(0.0, seed=1)
    basis = Basis(SHAPE, Objective.from_mapping({"ttft_p95_s": 1.0}), Catalogue(), {})
    work = on_course(requests(1500, 6.0), 900.0, (0.2, 0.5, 1.0, 1.5, 1.0, 0.3))

    def run(metric: str, target: float) -> AutoscaledDay:
        shape = replace(SHAPE, autoscaling=Autoscaling(1, 6, {metric: target}))
        return EngineKind().follow(shape, work, engine, basis, 60.0)

    tight, lax = run(TARGET, 1.0), run(TARGET, 12.0)
    assert tight.replicas_mean > lax.replicas_mean >= 1.0
    assert tight.within >= lax.within
    with pytest.raises(CannotPredict, match="UNREPLAYABLE_AUTOSCALER"):
        run("cpu", 0.7)
