"""Autoscaler policies: the published vectors, the rules one by one, and what must hold over any history."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzers.whatif.scaling import (
    GovernorPolicy,
    Hpa,
    Keda,
    Kpa,
    KpaState,
    MetricTarget,
    RateLimit,
    ScalingInput,
    ScalingPolicy,
)

RUNNING = MetricTarget("running", 10.0)


def seen(at: float = 0.0, ready: int = 4, starting: int = 0, **values: Any) -> ScalingInput:
    known = {"arrivals_per_s": 0.0, "running": 0.0, "waiting": 0.0, "kv_usage": None} | values
    return ScalingInput(at, ready, starting, **known)


def hpa(**more: Any) -> Hpa:
    """Without stabilisation and rate limits, to see a single decision."""
    bare: dict[str, Any] = {
        "targets": (RUNNING,),
        "most": 100,
        "down_window_s": 0.0,
        "up_limits": (),
        "down_limits": (),
    }
    return Hpa(**bare | more)


def follow(
    policy: ScalingPolicy, loads: Sequence[float], *, ready: int, cold: int = 0, metric: str = "running"
) -> list[int]:
    """Counts wanted while each load lasts one tick; what is asked for is ready ``cold`` ticks later, and what goes, goes at once."""
    state, wanted, pipeline = None, [], []
    for i, load in enumerate(loads):
        ready += sum(n for when, n in pipeline if when == i)
        pipeline = [(when, n) for when, n in pipeline if when > i]
        starting = sum(n for _, n in pipeline)
        n, state = policy(seen(i * policy.interval_s, ready, starting, **{metric: load}), state)
        if n > ready + starting:
            new = n - ready - starting
            pipeline.append((i + cold, new)) if cold else None
            ready += 0 if cold else new
        elif n < ready + starting:
            pipeline, ready = [], n
        wanted.append(n)
    return wanted


# ---------------------------------------------------------------------------------------------------------------- HPA


@pytest.mark.parametrize(
    ("running", "n"), [(60.0, 6), (42.0, 4), (20.0, 2), (44.0, 4), (44.5, 5), (35.9, 4), (30.0, 3)]
)
def test_hpa_by_the_ratio_and_within_tolerance(running: float, n: int) -> None:
    assert hpa()(seen(running=running), None)[0] == n


def test_hpa_does_not_round_up_the_crumbs_of_a_division() -> None:
    policy = hpa(targets=(MetricTarget("running", 0.7),))
    assert math.ceil(2.1 / 0.7) == 4  # what it must not answer
    assert policy(seen(ready=1, running=2.1), None)[0] == 3


@pytest.mark.parametrize(
    ("ready", "starting", "running", "n"),
    [
        (2, 2, 80.0, 8),  # r = 4; the starting ones at 0: again 2, still up
        (2, 2, 30.0, 4),  # r = 1.5; again 0.75: it changed sides, so it stays
        (2, 2, 43.0, 4),  # again 1.075: within tolerance
        (4, 2, 10.0, 3),  # r = 0.25; the starting ones at the whole target: 1 + 2 replicas' worth
        (4, 1, 35.0, 5),  # r = 0.875; again 0.9: within tolerance
        (0, 3, 0.0, 3),  # no ready one tells anything
    ],
)
def test_hpa_counts_replicas_in_their_cold_start(ready: int, starting: int, running: float, n: int) -> None:
    assert hpa()(seen(ready=ready, starting=starting, running=running), None)[0] == n


def test_hpa_takes_the_highest_of_several_targets_and_an_unknown_one_forbids_to_go_down() -> None:
    policy = hpa(targets=(RUNNING, MetricTarget("kv_usage", 0.5)))
    assert policy(seen(running=60.0, kv_usage=0.9), None)[0] == 8
    assert policy(seen(running=60.0, kv_usage=0.1), None)[0] == 6
    assert policy(seen(running=60.0), None)[0] == 6
    assert policy(seen(running=20.0), None)[0] == 4
    assert policy(seen(running=20.0, kv_usage=0.1), None)[0] == 2


def test_hpa_goes_down_only_after_the_window_and_up_at_once() -> None:
    policy = hpa(down_window_s=300.0)
    wanted = follow(policy, [80.0, *[20.0] * 30], ready=4)
    assert wanted[0] == 8
    assert wanted[1:20] == [8] * 19  # up to 285 s after it was last asked for
    assert wanted[20] == 2


def test_hpa_rate_limits_count_from_the_periods_start() -> None:
    up = hpa(up_limits=(RateLimit(60.0, pods=4), RateLimit(60.0, percent=50.0)))
    assert follow(up, [1000.0] * 6, ready=2) == [6, 6, 6, 6, 10, 10]
    assert follow(up, [1000.0] * 5, ready=20) == [30, 30, 30, 30, 45]
    down = hpa(down_limits=(RateLimit(60.0, percent=10.0),))
    assert follow(down, [1.0] * 5, ready=20) == [18, 18, 18, 18, 16]
    usual = Hpa((RUNNING,), most=100)
    assert follow(usual, [1000.0] * 4, ready=1) == [5, 10, 20, 40]


@pytest.mark.parametrize(
    "bad", [{"least": 5, "most": 4}, {"most": 0, "least": 0}, {"targets": ()}, {"interval_s": 0.0}]
)
def test_hpa_refuses_what_it_cannot_be(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|at least|above"):
        hpa(**bad)


def test_a_target_of_nothing_and_a_limit_of_two_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        MetricTarget("running", 0.0)
    with pytest.raises(ValueError, match="either"):
        RateLimit(60.0, pods=1, percent=5.0)
    with pytest.raises(ValueError, match="either"):
        RateLimit(60.0)


# --------------------------------------------------------------------------------------------------------------- KEDA


def test_keda_wakes_from_zero_at_a_poll_and_leaves_the_rest_to_the_hpa() -> None:
    policy = Keda(Hpa((MetricTarget("waiting", 5.0),), most=10))
    assert policy.interval_s == 15.0
    n, state = policy(seen(0.0, 0), None)
    assert n == 0
    n, state = policy(seen(15.0, 0, waiting=20.0), state)
    assert n == 0  # between two polls
    n, state = policy(seen(30.0, 0, waiting=20.0), state)
    assert n == 1
    n, _ = policy(seen(45.0, 0, 1, waiting=20.0), state)
    assert n == 4  # an external metric: no ready replica is needed to read it


def test_keda_goes_to_zero_after_the_cooldown_and_not_with_a_least() -> None:
    policy = Keda(Hpa((RUNNING,), most=10))
    loads = [20.0, *[0.0] * 45]
    wanted = follow(policy, loads, ready=2)
    first = wanted.index(0)
    assert first * 15.0 == 330.0  # the first poll for which more than 300 s have passed
    assert all(n >= 1 for n in wanted[:first])
    assert wanted[first:] == [0] * (len(loads) - first)
    assert min(follow(replace(policy, least=1), loads, ready=2)) == 1


def test_keda_activation_is_above_its_threshold() -> None:
    policy = Keda(Hpa((MetricTarget("waiting", 5.0),), most=10), activation=3.0)
    assert policy(seen(ready=0, waiting=3.0), None)[0] == 0
    assert policy(seen(ready=0, waiting=3.1), None)[0] == 1


def test_keda_with_an_unknown_metric_neither_wakes_nor_goes_to_sleep() -> None:
    policy = Keda(Hpa((MetricTarget("kv_usage", 0.5),), most=10))
    assert follow(policy, [0.0] * 60, ready=3) == [3] * 60
    assert policy(seen(ready=0), None)[0] == 0


# ---------------------------------------------------------------------------------------------------------------- KPA

CONCURRENCY = MetricTarget("in_flight", 10.0)


def test_kpa_starts_the_panic_of_the_published_vector() -> None:
    policy = Kpa(CONCURRENCY, most=100)
    values = tuple((float(t), 35.0) for t in range(-58, -4, 2))  # the stable target of 5 replicas at 7 each
    n, state = policy(seen(0.0, 5, running=75.0), KpaState(values))
    assert state.panic_s == 0.0  # ceil(75 / 7) = 11, and 11 / 5 = 2.2 is at least 2
    assert n == 11
    n, state = policy(seen(0.0, 5, running=62.0), KpaState(values))
    assert state.panic_s is None  # ceil(62 / 7) = 9: 1.8
    assert n == 6


def test_kpa_leaves_the_panic_after_a_whole_stable_window() -> None:
    policy = Kpa(CONCURRENCY, most=100, least=1)
    wanted = follow(policy, [7.0] * 40 + [77.0] * 5 + [7.0] * 60, ready=1)
    assert wanted[39:43] == [1, 5, 8, 11]  # 35 / 7, 58 / 7 and 77 / 7, as the burst fills the panic window
    assert wanted[43:71] == [11] * 28  # the threshold was last passed at tick 40: one replica, and then five were ready
    assert wanted[71:73] == [5, 2]  # more than 60 s later: halves at most
    assert wanted[-1] == 1


def test_kpa_goes_to_zero_after_an_idle_window_and_the_grace() -> None:
    policy = Kpa(CONCURRENCY, most=10)
    wanted = follow(policy, [7.0] * 5 + [0.0] * 60, ready=1)
    # The last traffic leaves the stable window 60 s after its tick at 8 s; then 30 s of grace.
    assert wanted.index(0) * policy.interval_s == 8.0 + 60.0 + 30.0
    assert policy(seen(200.0, 0, waiting=1.0), KpaState())[0] == 1


def test_kpa_halves_at_most() -> None:
    policy = Kpa(CONCURRENCY, most=100)
    assert policy(seen(ready=20, running=1.0), None)[0] == 10


def test_kpa_refuses_a_share_and_windows_the_wrong_way_round() -> None:
    with pytest.raises(ValueError, match="share"):
        Kpa(MetricTarget("kv_usage", 0.5), most=4)
    with pytest.raises(ValueError, match="panic_s"):
        Kpa(CONCURRENCY, most=4, panic_s=90.0)


# ----------------------------------------------------------------------------------------------------------- GovernorPolicy


def governor(**more: Any) -> GovernorPolicy:
    usual: dict[str, Any] = {
        "max_num_seqs": 10,
        "most": 20,
        "cold_start_s": 120.0,
        "running_target": 1.0,
        "kv_target": 0.8,
    }
    return GovernorPolicy(**{"step_up": 1.0, "step_down": 0.0, "cooldown_s": 600.0} | usual | more)


@pytest.mark.parametrize(
    ("values", "n"),
    [
        ({"running": 20.0, "waiting": 0.0, "kv_usage": 0.4}, 4),
        ({"running": 50.0, "waiting": 0.0, "kv_usage": 0.4}, 5),
        ({"running": 20.0, "waiting": 6.0, "kv_usage": 0.4}, 6),
        ({"running": 20.0, "waiting": 0.0, "kv_usage": 0.9}, 5),
        ({"running": 20.0, "waiting": 400.0, "kv_usage": 0.4}, 8),  # one go at most doubles
    ],
)
def test_governor_any_signal_may_grow(values: dict[str, float], n: int) -> None:
    assert governor()(seen(**values), None)[0] == n


def test_governor_counts_what_starts_as_supply() -> None:
    flood = {"running": 40.0, "waiting": 400.0, "kv_usage": 0.5}
    assert governor()(seen(ready=4, starting=4, **flood), None)[0] == 8
    assert governor()(seen(ready=4, starting=2, **flood), None)[0] == 8
    assert governor()(seen(ready=0, starting=1, waiting=50.0), None)[0] == 1


@pytest.mark.parametrize(
    "obstacle",
    [
        {"running": 25.0},  # 25 / 40 of the slots, and 0.83 of what 3 replicas have
        {"waiting": 2.5},
        {"kv_usage": 0.5},
        {"kv_usage": None},
        {"starting": 1},
    ],
)
def test_governor_shrinks_only_when_all_agree(obstacle: dict[str, Any]) -> None:
    quiet = {"running": 23.0, "waiting": 0.0, "kv_usage": 0.45}
    policy = governor()
    least = []
    for values in (quiet, quiet | obstacle):
        state, wanted = None, []
        for tick in range(60):
            n, state = policy(seen(tick * 15.0, **values), state)
            wanted.append(n)
        least.append(min(wanted))
    assert least == [3, 4 + obstacle.get("starting", 0)]


def test_governor_takes_one_after_a_calm_cooldown() -> None:
    wanted = follow(governor(kv_target=None), [45.0, *[1.0] * 130], ready=4)
    assert wanted[0] == 5
    falls = [i for i in range(1, len(wanted)) if wanted[i] < wanted[i - 1]]
    assert falls == [41, 81, 121]  # 600 s of agreement, which starts at tick 1; then 600 s since each change
    assert wanted[-1] == 2


@pytest.mark.parametrize(
    ("running", "to"),
    [(1.0, 5), (30.0, 5), (55.0, 7), (63.0, 8), (73.0, 10)],  # n of 10 for 1 to 80 % of 10 slots each, and half at most
)
def test_governor_goes_to_the_fewest_that_have_room_and_by_half_at_most(running: float, to: int) -> None:
    policy = governor(kv_target=None, step_down=0.5)
    wanted = follow(policy, [running] * 41, ready=10)
    assert wanted[-1] == to
    assert set(wanted[:-1]) == {10}


def test_governor_never_shrinks_the_last_and_needs_a_cooldown_beyond_the_cold_start() -> None:
    assert min(follow(governor(kv_target=None), [0.0] * 300, ready=3)) == 1
    with pytest.raises(ValueError, match="cold start"):
        governor(cooldown_s=120.0)
    with pytest.raises(ValueError, match="1 or more"):
        governor(least=0)
    with pytest.raises(ValueError, match="above 0"):
        governor(kv_target=0.0)


# --------------------------------------------------------------------------------------------------- over any history

MOST = 12
POLICIES: list[ScalingPolicy] = [
    Hpa((RUNNING,), most=MOST, least=2),
    Hpa((MetricTarget("kv_usage", 0.6), MetricTarget("arrivals_per_s", 3.0)), most=MOST),
    Keda(Hpa((MetricTarget("in_flight", 8.0),), most=MOST)),
    Kpa(CONCURRENCY, most=MOST),
    Kpa(MetricTarget("arrivals_per_s", 5.0), most=MOST, least=1),
    GovernorPolicy(max_num_seqs=16, most=MOST, cold_start_s=60.0, cooldown_s=90.0),
]
load = st.one_of(st.just(0.0), st.floats(0.0, 300.0), st.sampled_from((7.0, 70.0, 1e9)))
ticks = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 5), load, load, load, st.none() | st.floats(0.0, 1.0)), max_size=40
)


def history(rows: Sequence[tuple[int, int, float, float, float, float | None]], step: float) -> list[ScalingInput]:
    return [ScalingInput(i * step, *row) for i, row in enumerate(rows)]


def bounds(policy: Any) -> tuple[int, int]:
    return policy.least, policy.hpa.most if isinstance(policy, Keda) else policy.most


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
@given(rows=ticks)
def test_within_the_bounds_a_whole_number_and_the_same_again(policy: ScalingPolicy, rows: list[Any]) -> None:
    runs = []
    for _ in range(2):
        state, wanted = None, []
        for now in history(rows, policy.interval_s):
            n, state = policy(now, state)
            assert type(n) is int
            wanted.append(n)
        runs.append((wanted, state))
    assert runs[0] == runs[1]
    least, most = bounds(policy)
    assert all(least <= n <= most for n in runs[0][0])


@given(rows=ticks)
def test_an_unknown_metric_keeps_the_count(rows: list[Any]) -> None:
    policy = Hpa((MetricTarget("kv_usage", 0.6),), most=100, least=0)
    state = None
    for now in history(rows, 15.0):
        n, state = policy(replace(now, kv_usage=None), state)
        assert n == now.ready + now.starting


@given(loads=st.lists(st.floats(0.0, 200.0), min_size=1, max_size=60), window=st.sampled_from((0.0, 45.0, 300.0)))
def test_hpa_stabilises_by_the_maximum_over_the_window(loads: list[float], window: float) -> None:
    policy, plain = hpa(down_window_s=window), hpa()
    state, n, asked = None, 4, [(0.0, 4)]
    for i, value in enumerate(loads):
        at = i * 15.0
        now = seen(at, n, running=value)
        asked.append((at, plain(now, None)[0]))
        highest = max([asked[-1][1], *(r for when, r in asked if when > at - window)])
        wanted, state = policy(now, state)
        assert wanted == (asked[-1][1] if asked[-1][1] >= n else min(n, highest))
        n = max(1, wanted)


@given(rows=ticks)
def test_kpa_never_goes_down_in_panic(rows: list[Any]) -> None:
    policy = Kpa(CONCURRENCY, most=10_000)
    state, before = None, None
    for now in history(rows, policy.interval_s):
        n, state = policy(now, state)
        if state.panic_s is not None and before is not None:
            assert n >= before
        before = n if state.panic_s is not None else None


@given(rows=ticks)
def test_governor_never_shrinks_by_more_than_its_step_nor_while_anything_starts(rows: list[Any]) -> None:
    policy = GovernorPolicy(max_num_seqs=16, most=100, cold_start_s=20.0, cooldown_s=30.0, step_down=0.3)
    state = None
    for now in history(rows, policy.interval_s):
        n, state = policy(now, state)
        count = max(1, now.ready + now.starting)
        assert n >= count - (0 if now.starting or now.kv_usage is None else max(1, int(0.3 * count)))
