"""Autoscalers on a fleet: each rule as its documents have it, what a bound bounds, and what is called a flap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzers.autoscaling.case import Action, FleetCase, case_of, fewest_static, in_time, play_static
from analyzers.autoscaling.clairvoyant import bound, clairvoyant
from analyzers.autoscaling.rayserve import RayServe
from analyzers.autoscaling.rules import RULES
from analyzers.autoscaling.scorecard import Scorecard, _flaps, by_halves, manifest_of
from analyzers.objective import Objective
from analyzers.prediction import CannotPredict
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from analyzers.whatif.scaling import ScalingInput
from collectors.workload import Workload

MODEL = EngineModel(IterationCost(0.025, 0.0001, 2e-7, 0.0001), EngineLimits(16, 2048, 40_000))


def work(rates: Sequence[float], step_s: float = 600.0, seed: int = 1) -> Workload:
    """So many requests a second, step by step."""
    rng = np.random.default_rng(seed)
    parts = [k * step_s + np.sort(rng.random(rng.poisson(rate * step_s))) * step_s for k, rate in enumerate(rates)]
    arrival = np.concatenate(parts)
    n = arrival.size
    return Workload(arrival, np.full(n, 180), np.full(n, 40), np.zeros(n, np.int64))


def case(rates: Sequence[float], **more: object) -> FleetCase:
    objective = Objective.from_mapping({"ttft_p95_s": 1.0})
    return case_of("day", work(rates), 600.0 * len(rates), MODEL, objective, replicas=2, most=6, **more)


def seen(at_s: float, in_flight: float, ready: int = 2) -> ScalingInput:
    return ScalingInput(at_s, ready, 0, 0.0, in_flight, 0.0, None)


def test_ray_serve_waits_30_s_to_grow_and_600_to_shrink() -> None:
    """Beside Ray's own code it made the same 3,600 decisions of random loads; here the rules that this comes from."""
    policy = RayServe(target=2.0, most=8)
    wanted, state = policy(seen(10.0, 9.0), None)
    assert wanted == 2
    wanted, state = policy(seen(20.0, 9.0), state)
    wanted, state = policy(seen(30.0, 9.0), state)
    assert wanted == 2
    wanted, state = policy(seen(40.0, 9.0), state)
    assert wanted == 5  # ceil(9 / 2), 30 s after it was first wanted
    for at in range(50, 680, 10):
        wanted, state = policy(seen(float(at), 3.0, ready=5), state)
    assert wanted == 2  # ceil(3 / 2), 600 s after the mean of its look-back fell
    interrupted = policy(seen(10.0, 9.0), None)[1]
    interrupted = policy(seen(20.0, 4.0), interrupted)[1]
    assert policy(seen(30.0, 1.0), interrupted)[0] == 2


def test_no_policy_is_below_the_bound_and_the_clairvoyant_is_the_nearest() -> None:
    day = case([3.0] * 12 + [20.0] * 12 + [3.0] * 12)
    found, least = clairvoyant(day, 0.95), bound(day, 0.95)
    assert in_time(day, found).mean() >= 0.95
    assert least <= found.replica_s
    assert found.replica_s < 1.3 * least
    constant = fewest_static(day, 0.95)
    assert constant is not None
    assert found.replica_s < constant * day.duration_s
    assert in_time(day, play_static(day, constant)).mean() >= 0.95
    assert in_time(day, play_static(day, constant - 1)).mean() < 0.95


@given(st.floats(1.0, 12.0), st.floats(1.05, 2.0))
@settings(max_examples=8, deadline=None)
def test_more_traffic_never_needs_less(rate: float, times: float) -> None:
    assert bound(case([rate * times] * 6), 0.95) >= 0.98 * bound(case([rate] * 6), 0.95)


def test_a_request_that_alone_misses_is_met_by_nobody() -> None:
    day = case([1.0])
    hopeless = case_of("day", day.work, day.duration_s, MODEL, Objective.from_mapping({"ttft_p95_s": 0.001}))
    assert fewest_static(hopeless, 0.95, most=8) is None
    with pytest.raises(CannotPredict, match="no target"):
        case_of("day", day.work, 600.0, MODEL, Objective.from_mapping({"error_rate": 0.01}))


def test_limits_are_the_objectives_less_what_lies_before_the_engine() -> None:
    objective = Objective.from_mapping({"ttft_p95_s": 1.0, "e2e_p99_s": 5.0, "itl_p50_s": 0.1})
    made = case_of("day", work([1.0]), 600.0, MODEL, objective, overhead_s=0.2)
    assert (made.ttft_s, made.itl_s, made.e2e_s, made.quantile) == (0.8, 0.1, 4.8, 0.99)


def test_a_move_that_is_taken_back_at_once_is_a_flap() -> None:
    actions = [Action(0.0, 1, 2), Action(300.0, 2, 1), Action(4000.0, 1, 2), Action(4100.0, 2, 3), Action(9000.0, 3, 2)]
    assert _flaps(actions, 900.0) == 1


def test_a_score_counts_cost_above_the_clairvoyants_and_the_minutes_missed() -> None:
    days = [case([14.0] * 6, usd_per_replica_hour=2.0)] * 2
    card = Scorecard(days)
    learned, reported = by_halves(2)
    one = card.score("one", lambda case: case.replicas, reported)
    needed = card.needed(1)[0]
    assert one.usd == pytest.approx(2.0 * 2 * 1.0, rel=0.01)  # two replicas, an hour, two dollars
    assert one.wasted_usd == pytest.approx(one.usd - 2.0 * needed / 3600)
    assert (learned, reported) == ([0], [1])
    short = Scorecard([case([14.0] * 6)] * 2)
    short._needed = card._needed
    poor = short.score("one", lambda c: RULES["hpa-queue"].policy(c, {"target": 1000.0}), [1])
    assert poor.minutes_missed > 10
    assert poor.within < 0.95


@pytest.mark.parametrize("rule", list(RULES))
def test_the_search_finds_what_is_no_worse_and_says_how_to_set_it(rule: str) -> None:
    card = Scorecard([case([4.0, 6.0, 8.0, 6.0]), case([4.0, 6.0, 8.0, 6.0])], within=0.9)
    found = card.tuned(rule, [0], [1])
    on_learned = card.score("", lambda c: RULES[rule].policy(c, found.settings), [0])
    documented = card.score("", lambda c: RULES[rule].policy(c, RULES[rule].documented), [0])
    assert found.settings in RULES[rule].tried
    assert on_learned.within >= 0.95, "half of what may be late"
    if documented.within >= 0.95:
        assert on_learned.usd <= documented.usd + 1e-9
    manifest = manifest_of(rule, "chat", card.cases[0], found.settings)
    assert "chat" in str(manifest)
    assert "6" in str(manifest)  # the most replicas


def test_one_day_is_too_few_to_learn_and_to_report() -> None:
    with pytest.raises(ValueError, match="two days"):
        by_halves(1)
