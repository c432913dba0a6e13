"""Replicas that come and go: against the plain simulator, and by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzers.whatif.engine import ROUTERS, replay
from analyzers.whatif.fleet import ReplicaFleet
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from analyzers.whatif.scaling import ScalingInput
from collectors.workload import Workload
from tests.analyzers.whatif.test_whatif_engine import cases, check, timeouts, workload

pytestmark = pytest.mark.timeout(600)  # the first of them compiles, which on two busy cores takes a minute

ALONE = EngineModel(IterationCost(1.0), EngineLimits(1, 512))
"""One request at a time; each iteration takes 1 s, so a request for n tokens takes n."""


@dataclass(frozen=True)
class PerInFlight:
    """One replica for each ``share`` requests in flight; also one more where any waits."""

    interval_s: float
    share: float

    def __call__(self, seen: ScalingInput, state: Any) -> tuple[int, Any]:
        # The odd numbers keep rounding of the means from deciding.
        wanted = math.ceil(seen.in_flight / self.share - 0.0137) + (1 if seen.waiting > 0.2371 else 0)
        return wanted, (state or 0) + 1


@dataclass(frozen=True)
class Wants:
    """A fixed number from each tick on; the last for ever."""

    interval_s: float
    counts: tuple[int, ...]

    def __call__(self, seen: ScalingInput, state: Any) -> tuple[int, Any]:
        at = state or 0
        return self.counts[min(at, len(self.counts) - 1)], at + 1


times = st.one_of(st.integers(0, 200).map(lambda n: n / 16), st.floats(0.0, 12.0))


@st.composite
def fleets(draw: st.DrawFn, *, with_policy: bool) -> ReplicaFleet:
    most = draw(st.integers(1, 4))
    counts = st.integers(0, most)
    schedule = sorted(draw(st.lists(st.tuples(times, counts), max_size=5)), key=lambda pair: pair[0])
    failures = sorted(draw(st.lists(st.tuples(times, times), max_size=3)), key=lambda pair: pair[0])
    fleet = ReplicaFleet(
        replicas=draw(counts),
        cold_start_s=draw(st.one_of(st.just(0.0), times)),
        schedule=tuple(schedule),
        failures=tuple(failures),
        max_replicas=most,
    )
    if not with_policy:
        return fleet
    share = draw(st.sampled_from((0.613, 1.37, 4.19)))
    return replace(
        fleet,
        policy=PerInFlight(draw(st.sampled_from((0.25, 0.73, 3.0))), share),
        schedule=(),
        min_replicas=draw(st.integers(0, fleet.replicas)),
    )


@settings(max_examples=300, deadline=None)
@given(cases(), fleets(with_policy=False), st.sampled_from(ROUTERS), timeouts)
def test_a_schedule_and_failures(
    case: tuple[Workload, EngineModel], fleet: ReplicaFleet, router: str, timeout: float | None
) -> None:
    check(*case, router=router, timeout=timeout, fleet=fleet)


@settings(max_examples=200, deadline=None)
@given(cases(), fleets(with_policy=True), st.sampled_from(ROUTERS), timeouts)
def test_a_policy_is_told_the_same_and_does_the_same(
    case: tuple[Workload, EngineModel], fleet: ReplicaFleet, router: str, timeout: float | None
) -> None:
    told: list[ScalingInput] = []
    policy = fleet.policy
    assert policy is not None

    class Listening:
        interval_s = policy.interval_s

        def __call__(self, seen: ScalingInput, state: Any) -> tuple[int, Any]:
            told.append(seen)
            return policy(seen, state)

    work, model = case
    horizon = work.duration_s + 50.0
    check(work, model, router=router, timeout=timeout, fleet=replace(fleet, policy=Listening()), horizon=horizon)
    plain = told[: len(told) // 2]  # the plain simulator is asked first
    assert len(told) == 2 * len(plain)
    for theirs, ours in zip(plain, told[len(plain) :], strict=True):
        assert (ours.at_s, ours.ready, ours.starting) == (theirs.at_s, theirs.ready, theirs.starting)
        assert (ours.kv_usage is None) == (theirs.kv_usage is None)
        for name in ("arrivals_per_s", "running", "waiting", "kv_usage"):
            expected = getattr(theirs, name) or 0.0
            got = getattr(ours, name) or 0.0
            assert math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-9), (
                name,
                got,
                expected,
            )  # approx is slow, and this is asked often


def seconds(
    work: Workload, fleet: ReplicaFleet, model: EngineModel = ALONE, **kwargs: Any
) -> list[tuple[float, float]]:
    """(TTFT, end-to-end) of each request."""
    each = replay(work, model, fleet=fleet, **kwargs).per_request
    return [(float(t), float(e)) for t, e in zip(each.ttft_s, each.e2e_s, strict=True)]


def test_by_hand_the_router_holds_requests_until_a_replica_is_ready() -> None:
    # The first replica is wanted at 2 and ready at 5. A waits 5 s, B (at 4) 1 s and then for A, which ends at 7; C is not held.
    work = workload((0.0, 1, 2), (4.0, 1, 1), (20.0, 1, 1))
    fleet = ReplicaFleet(0, 3.0, schedule=((2.0, 1),))
    out = replay(work, ALONE, fleet=fleet)
    assert seconds(work, fleet) == [(6, 7), (4, 4), (1, 1)]
    assert out.per_request.queue_s.tolist() == [5, 3, 0]
    assert (out.replicas, out.replicas_max, out.replica_s) == (((0.0, 0), (5.0, 1)), 1, 21 - 2)
    # A: 5 at the router. B: 1 there, 2 at the replica.
    assert out.waiting_mean * out.simulated_s == 8


def test_by_hand_held_requests_are_dropped_when_their_clients_give_up() -> None:
    work = workload((0.0, 1, 1), (4.0, 1, 1))
    out = replay(work, ALONE, fleet=ReplicaFleet(0, 3.0, schedule=((2.0, 1),)), timeout_s=4.5)
    assert (out.completed, out.timed_out) == (1, 1)
    assert out.waiting_mean * out.simulated_s == 4.5 + 1


def test_by_hand_a_replica_drains_before_it_leaves() -> None:
    # Two replicas; A (5 tokens) on 0, B (3) on 1. At 2 one has to go: both have one request, so the younger: 1, which ends B at 3.
    # C (at 2.5) has only replica 0, after A: 5 .. 6.
    work = workload((0.0, 1, 5), (0.0, 1, 3), (2.5, 1, 1))
    fleet = ReplicaFleet(2, 1.0, schedule=((2.0, 1),))
    out = replay(work, ALONE, fleet=fleet)
    assert seconds(work, fleet) == [(1, 5), (1, 3), (3.5, 3.5)]
    assert (out.replicas, out.replica_s) == (((0.0, 2), (2.0, 1)), 6 + 3)


def test_by_hand_shrinking_cancels_who_is_still_starting() -> None:
    # Wanted 3 at 0, two start; wanted 2 at 4, the younger is cancelled; the other is ready at 10.
    work = workload((0.0, 1, 1), (12.0, 1, 1))
    out = replay(work, ALONE, fleet=ReplicaFleet(1, 10.0, schedule=((0.0, 3), (4.0, 2))))
    assert out.replicas == ((0.0, 1), (10.0, 2))
    assert out.replica_s == 13 + 13 + 4


def test_by_hand_a_failure_loses_what_the_oldest_holds() -> None:
    # A (3 tokens) and C on replica 0, B (5) on 1. At 2.5, replica 0 dies: A had 2 tokens, the third was on its way; C waited.
    # Its replacement begins at 3.5 and is ready at 5.5; D (at 4) has replica 1, after B; E (at 6; 4 mod 2) the older one: 1.
    work = workload((0.0, 1, 3), (0.0, 1, 5), (1.0, 1, 1), (4.0, 1, 1), (6.0, 1, 1))
    fleet = ReplicaFleet(2, 2.0, failures=((2.5, 1.0),))
    out = replay(work, ALONE, fleet=fleet)
    assert seconds(work, fleet) == [(1, -1), (1, 5), (-1, -1), (2, 2), (1, 1)]
    assert (out.completed, out.failed, out.simulated_s) == (3, 2, 7)
    assert out.replicas == ((0.0, 2), (2.5, 1), (5.5, 2))
    assert out.replica_s == 2.5 + 7 + 3.5
    assert out.running_mean * out.simulated_s == 2.5 + 5 + 1 + 1


def test_by_hand_with_the_last_replica_dead_the_router_holds() -> None:
    work = workload((0.0, 1, 9), (3.0, 1, 1))
    assert seconds(work, ReplicaFleet(1, 2.0, failures=((2.0, 1.0),))) == [(1, -1), (3, 3)]
    # Nobody is there to be hit at 3, and the replacement comes at 5 all the same.
    assert seconds(work, ReplicaFleet(1, 2.0, failures=((2.0, 1.0), (3.0, 1.0)))) == [(1, -1), (3, 3)]


def test_by_hand_a_new_replica_has_no_prefix() -> None:
    # 1 s a prefill token. The session's replica dies at 15; the one after it computes the whole prompt, once.
    work = workload((0.0, 3, 1, 2), (10.0, 3, 1, 2), (20.0, 3, 1, 2), (30.0, 3, 1, 2), sessions=(1, 1, 1, 1))
    model = EngineModel(IterationCost(0.0, per_prefill_token_s=1.0), EngineLimits(8, 8))
    fleet = ReplicaFleet(1, 0.0, failures=((15.0, 0.0),))
    for router in ROUTERS:
        assert seconds(work, fleet, model, router=router) == [(1, 1), (1, 1), (3, 3), (1, 1)]


def test_by_hand_a_policy_is_asked_at_its_interval() -> None:
    # Asked at 2 (says 2), at 4 (says 1), at 6 ...: the second replica starts at 2, is ready at 3, and is drained at 4.
    # Requests at 0, 1, .. of 1 token each: number 3 (at 3; 3 mod 2) runs on the second.
    told: list[ScalingInput] = []

    class Two(Wants):
        def __call__(self, seen: ScalingInput, state: Any) -> tuple[int, Any]:
            told.append(seen)
            return super().__call__(seen, state)

    work = workload(*((float(i), 1, 1) for i in range(6)))
    out = replay(work, ALONE, fleet=ReplicaFleet(1, 1.0, policy=Two(2.0, (2, 1))))
    assert out.replicas == ((0.0, 1), (3.0, 2), (4.0, 1))
    assert out.replica_s == 6 + 2
    assert told[0] == ScalingInput(2.0, 1, 0, 1.0, 1.0, 0.0, None)
    assert told[1] == ScalingInput(4.0, 2, 0, 1.0, 1.0, 0.0, None)
    assert len(told) == 2, "at 6 all is done"


def test_bounds_hold_a_policy() -> None:
    work = workload(*((float(i), 1, 1) for i in range(20)))
    out = replay(work, ALONE, fleet=ReplicaFleet(2, 0.0, policy=Wants(1.0, (99, -5)), min_replicas=1, max_replicas=4))
    assert out.replicas == ((0.0, 2), (1.0, 4), (2.0, 1))


def test_a_policy_that_never_brings_a_replica_does_not_hang() -> None:
    out = replay(workload((0.0, 1, 1)), ALONE, fleet=ReplicaFleet(0, 60.0, policy=Wants(15.0, (0,))))
    assert (out.requests, out.completed, out.timed_out) == (1, 0, 0)
    assert out.replica_s == 0
    # One that always starts a replica and always cancels it, too.
    out = replay(workload((0.0, 1, 1)), ALONE, fleet=ReplicaFleet(0, 60.0, policy=Wants(15.0, (1, 0) * 10_000)))
    assert out.completed == 0


def test_nobody_ever_comes() -> None:
    out = replay(workload((0.0, 1, 1), (1.0, 999, 1)), ALONE, fleet=ReplicaFleet(0, 0.0))
    assert (out.requests, out.completed, out.rejected, out.simulated_s) == (2, 0, 0, 1)
    out = replay(workload((0.0, 1, 1), (1.0, 1, 1)), ALONE, fleet=ReplicaFleet(0, 0.0), timeout_s=5.0)
    assert (out.timed_out, out.simulated_s, out.waiting_mean) == (2, 6, 10 / 6)


def test_rows_are_used_again() -> None:
    """A thousand replicas come and go one after the other, and the state does not grow with them."""
    schedule = tuple((10.0 * i, 1 + i % 2) for i in range(2000))
    work = workload(*((5.0 * i, 1, 1) for i in range(4000)))
    out = replay(work, ALONE, fleet=ReplicaFleet(1, 1.0, schedule=schedule))
    assert (out.completed, out.replicas_max) == (4000, 2)
    assert len(out.replicas) == 2000


def test_a_week_of_ticks_takes_seconds() -> None:
    """The loop in Python holds the ticks, not the requests."""
    n = 100_000
    rng = np.random.default_rng(7)
    work = Workload(np.sort(rng.random(n)) * 604_800, np.full(n, 300), np.full(n, 200), np.zeros(n, np.int64))
    model = EngineModel(IterationCost(0.01, 1e-4, 1e-7, 2e-5), EngineLimits(64, 2048, kv_tokens=100_000))
    out = replay(work, model, fleet=ReplicaFleet(1, 60.0, policy=PerInFlight(15.0, 0.213), min_replicas=1))
    assert out.completed == n
    assert out.replicas_max > 1


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"replicas": -1}, "replicas says -1"),
        ({"replicas": 1.5}, "must be whole"),
        ({"cold_start_s": -1.0}, "cold_start_s"),
        ({"cold_start_s": math.inf}, "cold_start_s"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas"),
        ({"schedule": ((5.0, 1), (3.0, 2))}, "times of schedule"),
        ({"schedule": ((5.0, 5000),)}, "schedule says 5000"),
        ({"failures": ((math.nan, 1.0),)}, "times of failures"),
        ({"failures": ((1.0, -1.0),)}, "down_s"),
        ({"policy": Wants(15.0, (1,)), "schedule": ((5.0, 1),)}, "not both"),
        ({"policy": Wants(0.0, (1,))}, "interval_s"),
    ],
)
def test_what_contradicts_itself_is_refused(kwargs: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ReplicaFleet(**{"replicas": 1, "cold_start_s": 1.0, **kwargs})
