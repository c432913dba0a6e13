"""The compiled engine is exact: every request's times are those of the plain simulator, over random traces and limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from analyzers.whatif.engine import ROUTERS, Replay, replay
from analyzers.whatif.fleet import ReplicaFleet
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from collectors.workload import Workload
from tests.analyzers.whatif.reference_simulator import Request, Result, simulate

pytestmark = pytest.mark.timeout(600)  # the first of them compiles, which on two busy cores takes a minute

SPEED = IterationCost(0.01, 1e-4, 1e-6, 2e-5, 1e-9)


def workload(
    *rows: tuple[float, int, int] | tuple[float, int, int, int], sessions: tuple[int, ...] | None = None
) -> Workload:
    full = [(*row, 0) if len(row) == 3 else row for row in rows]
    columns = list(zip(*full, strict=True))
    session = None if sessions is None else np.array(sessions, np.int64)
    return Workload(np.array(columns[0], float), *(np.array(c, np.int64) for c in columns[1:]), session=session)


@st.composite
def iterations(draw: st.DrawFn) -> IterationCost:
    """Either dyadic numbers, whose sums are exact, so that ties in time are real; or any numbers, where ties do not happen."""
    if draw(st.booleans()):
        parts = [draw(st.integers(1, 64)) / 64, *(draw(st.integers(0, 64)) / 2**k for k in (10, 16, 12, 20, 8))]
    else:
        scales = (0.05, 1e-3, 1e-5, 1e-3, 1e-6, 0.02, 0.05)
        parts = [draw(st.sampled_from((0.0, 0.137, 0.519, 0.973))) * s for s in scales]
        parts[0] += draw(st.floats(1e-4, 0.02))
        parts.append(draw(st.sampled_from((0.0103, 0.0625, 0.25, 0.8))))
    return IterationCost(*parts)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Workload, EngineModel]:
    n = draw(st.integers(1, 24))
    size = draw(st.sampled_from((1, 2, 4, 16)))
    seqs = draw(st.integers(1, 9))
    longest = draw(st.sampled_from((4, 30, 90)))
    tokens = draw(st.sampled_from((None, 1, 2, 4)))
    kv = None if tokens is None else max(size, tokens * longest + draw(st.integers(0, 40)))
    limits = EngineLimits(
        max_num_seqs=seqs,
        max_num_batched_tokens=seqs + draw(st.sampled_from((0, 1, 7, 40, 500))),
        kv_tokens=kv,
        block_size=size,
        max_model_len=draw(st.sampled_from((None, None, 2 * longest))),
    )
    accept = draw(st.sampled_from((1.0, 1.0, 1.0, 1.0, 1.25, 2.0, 2.37, 4.75)))
    model = EngineModel(draw(iterations()), limits, chunked_prefill=draw(st.booleans()), accept_length=accept)
    # Gaps of 0 are simultaneous arrivals; large ones leave the engine idle. Sixteenths meet the dyadic iterations' ends.
    gaps = draw(st.lists(st.sampled_from((0, 0, 1, 1, 2, 5, 16, 400)), min_size=n, max_size=n))
    step = draw(st.sampled_from((1 / 64, 1 / 16, 1.0)))
    prompts = draw(st.lists(st.integers(1, longest), min_size=n, max_size=n))
    outputs = draw(st.lists(st.one_of(st.integers(0, 2), st.integers(0, longest)), min_size=n, max_size=n))
    shares = draw(st.lists(st.sampled_from((0.0, 0.0, 0.5, 1.0)), min_size=n, max_size=n))
    prefix = [int(s * (p - 1)) for s, p in zip(shares, prompts, strict=True)]
    arrival = np.cumsum(np.array(gaps, float) * step)
    session = draw(st.none() | st.lists(st.integers(0, 3), min_size=n, max_size=n).map(lambda s: np.array(s, np.int64)))
    columns = (np.array(x, np.int64) for x in (prompts, outputs, prefix))
    return Workload(arrival, *columns, session=session), model


timeouts = st.one_of(st.none(), st.integers(1, 400).map(lambda n: n / 16), st.floats(0.01, 20.0))


def check(
    work: Workload,
    model: EngineModel,
    replicas: int = 1,
    router: str = "round_robin",
    timeout: float | None = None,
    fleet: ReplicaFleet | None = None,
    horizon: float | None = None,
) -> Replay:
    """Replays, and holds every number of it against the plain simulator."""
    plain = simulate(
        work, model, replicas, router, math.inf if timeout is None else timeout, fleet, horizon or math.inf
    )
    fast = replay(
        work,
        model,
        replicas=replicas,
        router=router,  # type: ignore[arg-type]
        timeout_s=timeout,
        fleet=fleet,
        horizon=horizon,
    )
    each = fast.per_request
    for name, marked in (("rejected", each.rejected), ("timed_out", each.timed_out), ("failed", each.failed)):
        assert marked.tolist() == [getattr(r, name) for r in plain.requests], name
        assert getattr(fast, name) == marked.sum()
    for name, ours in (("ttft", each.ttft_s), ("e2e", each.e2e_s), ("queue", each.queue_s)):
        theirs = np.array([getattr(r, name) for r in plain.requests])
        # A latency is a difference of two clock readings, so its rounding error goes with the clock, not with itself.
        assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12 * max(1.0, fast.simulated_s), err_msg=name)
    assert fast.completed == sum(r.e2e >= 0 for r in plain.requests)
    assert fast.preemptions == sum(s.preemptions for s in plain.servers)
    assert fast.replicas == tuple(plain.timeline)
    waited = (end for r in plain.requests for _, end in r.waits)
    simulated = max([*(s.now for s in plain.servers), *(r.arrival for r in plain.requests), *waited])
    if horizon is None and plain.requests and not any(left_waiting(r) for r in plain.requests):
        assert fast.completed + fast.rejected + fast.timed_out + fast.failed == fast.requests == len(work)
        assert fast.simulated_s == pytest.approx(simulated, rel=1e-9)
        check_areas(fast, plain)
    gaps = [gap for s in plain.servers for gap in s.gaps]
    assert fast.itl.count == len(gaps)
    if gaps:
        assert fast.itl.mean == pytest.approx(np.mean(gaps), rel=1e-9)
        at = sorted(gaps)[max(0, int(np.ceil(0.9 * len(gaps))) - 1)]
        assert fast.itl.quantile(0.9) == pytest.approx(at, rel=0.011, abs=1e-6)
    assert np.all(np.isfinite([*each.ttft_s, *each.e2e_s, *each.queue_s, fast.running_mean, fast.waiting_mean]))
    if model.limits.kv_tokens is None:
        assert fast.kv_usage_max is None
    else:
        blocks = model.limits.kv_tokens // model.limits.block_size
        assert fast.kv_usage_max == max((s.peak for s in plain.servers), default=0) / blocks
    return fast


def left_waiting(request: Request) -> bool:
    """Whether no replica ever came for it."""
    return request.end is None and not (request.rejected or request.timed_out or request.failed)


def check_areas(fast: Replay, plain: Result) -> None:
    """Means over time are areas over the simulated time."""
    span = fast.simulated_s or 1.0
    running = sum(batch * (end - start) for s in plain.servers for start, end, batch in s.iterations)
    waiting = sum(end - start for r in plain.requests for start, end in r.waits)
    assert fast.running_mean * span == pytest.approx(running, rel=1e-9, abs=1e-9)
    assert fast.waiting_mean * span == pytest.approx(waiting, rel=1e-9, abs=1e-9)
    ends = [min(s.left_at, fast.simulated_s) for s in plain.servers]
    provisioned = sum(max(0.0, end - s.since) for s, end in zip(plain.servers, ends, strict=True))
    assert fast.replica_s == pytest.approx(provisioned, rel=1e-9, abs=1e-9)


@settings(max_examples=400, deadline=None)
@given(cases(), timeouts)
def test_every_request_is_where_the_plain_simulator_has_it(
    case: tuple[Workload, EngineModel], timeout: float | None
) -> None:
    check(*case, timeout=timeout)


@settings(max_examples=250, deadline=None)
@given(cases(), st.integers(2, 4), st.sampled_from(ROUTERS), timeouts)
def test_replicas_behind_a_router_too(
    case: tuple[Workload, EngineModel], replicas: int, router: str, timeout: float | None
) -> None:
    check(*case, replicas, router, timeout)


@pytest.mark.parametrize("accept", [1.0, 2.37])
@pytest.mark.parametrize("router", ROUTERS)
def test_large_batches_too(router: str, accept: float) -> None:
    """Deep heaps, long queues, and clients that give up in the middle of both."""
    n, rng = 400, np.random.default_rng(11)
    lengths = (rng.integers(1, 60, n), rng.integers(0, 90, n), np.zeros(n, np.int64))
    work = Workload(np.cumsum(rng.exponential(0.005 / accept, n)), *lengths, session=rng.integers(0, 40, n))
    model = EngineModel(SPEED, EngineLimits(64, 256, kv_tokens=1600), accept_length=accept)
    out = check(work, model, 2, router, timeout=1.1 / accept)
    assert out.timed_out > 100
    assert out.preemptions > 0


@settings(max_examples=100, deadline=None)
@given(cases(), st.sampled_from(ROUTERS), timeouts, st.floats(0.05, 30.0))
def test_a_horizon_cuts_both_alike(
    case: tuple[Workload, EngineModel], router: str, timeout: float | None, horizon: float
) -> None:
    check(*case, 2, router, timeout, horizon=horizon)


def seconds(work: Workload, model: EngineModel, **kwargs: object) -> list[tuple[float, float]]:
    """(TTFT, end-to-end) of each request."""
    each = replay(work, model, **kwargs).per_request  # type: ignore[arg-type]
    return [(float(t), float(e)) for t, e in zip(each.ttft_s, each.e2e_s, strict=True)]


# Worked out by hand. 1 s an iteration, 0.25 a decoding sequence, 0.125 a prefill token: all sums are exact.
SIMPLE = IterationCost(1.0, 0.25, 0.0, 0.125)


def test_experts_are_read_as_they_are_touched_and_a_prefill_costs_by_itself() -> None:
    """A token reads half of the experts, two read three quarters; the second request's prefill comes with the first one's decode."""
    model = EngineModel(IterationCost(1.0, prefill_base_s=0.5, expert_read_s=1.0, expert_share=0.5), EngineLimits(8, 8))
    assert seconds(workload((0.0, 1, 3)), model) == [(2.0, 5.0)]
    assert seconds(workload((0.0, 1, 3), (1.0, 1, 2)), model) == [(2.0, 6.0), (3.25, 5.0)]


def test_by_hand_chunks_share_the_budget_with_decodes() -> None:
    # 0: chunks of 4 (A, whole) and 4 (B, half) use the 8 tokens: 1 + 8/8 = 2. A has its first token.
    # 2: A decodes, B's other 4: 1 + 0.25 + 0.5 = 1.75. A has its second, B its only one.
    # 3.75: A decodes: 1.25. It ends at 5.
    work = workload((0.0, 4, 3), (0.0, 8, 1))
    assert seconds(work, EngineModel(SIMPLE, EngineLimits(2, 8))) == [(2.0, 5.0), (3.75, 3.75)]


def test_by_hand_without_chunks_a_prompt_waits_for_the_whole_budget() -> None:
    # 0: A whole: 1.5; B's 8 do not fit into the 4 tokens left. 1.5, 2.75: A decodes, and B's 8 do not fit into 7. It ends at 4.
    # 4: B whole: 2.
    work = workload((0.0, 4, 3), (0.0, 8, 1))
    assert seconds(work, EngineModel(SIMPLE, EngineLimits(2, 8), chunked_prefill=False)) == [(1.5, 4.0), (6.0, 6.0)]


def test_by_hand_context_and_its_product_with_prefill() -> None:
    # Context 1/128 a token, product 1/1024: chunk 6 at 0: 3 * 6 = 18; chunk 4 after 6: (6 + 2) * 4 = 32: 2 + 50/1024.
    # Decodes read 10 + 1 and 10 + 2 tokens: 2 + 23/128.
    first = 2 + 50 / 1024
    model = EngineModel(IterationCost(1.0, 0.0, 1 / 128, 0.0, 1 / 1024), EngineLimits(1, 6))
    assert seconds(workload((0.0, 10, 3)), model) == [(first, first + 2 + 23 / 128)]


def test_by_hand_an_iteration_sees_who_arrived_by_its_start() -> None:
    # A runs 0 .. 2 (prefill, one decode). B, there at 1, is in A's second iteration; C, at 1.5, waits for the next, at 2.
    work = workload((0.0, 1, 2), (1.0, 1, 1), (1.5, 1, 1), (9.0, 1, 1))
    assert seconds(work, EngineModel(IterationCost(1.0), EngineLimits(8, 8))) == [(1, 2), (1, 1), (1.5, 1.5), (1, 1)]


def test_by_hand_a_slot_is_free_when_the_last_token_came() -> None:
    # One slot, 1 s an iteration: A 0 .. 3, B 3 .. 4, C 4 .. 6.
    work = workload((0.0, 1, 3), (0.0, 1, 1), (2.0, 1, 2))
    assert seconds(work, EngineModel(IterationCost(1.0), EngineLimits(1, 8))) == [(1, 3), (4, 4), (3, 4)]


def test_by_hand_the_latest_is_preempted_and_prefilled_again_with_its_tokens() -> None:
    # Three blocks of 2. 0: both prefill, a block each. 1: A decodes on 3 tokens, 2 blocks; B's second block is not there: B goes.
    # Its 3 tokens need 2 blocks, and 1 is free. 2: A on 4 tokens. 3: A on 5 tokens, 3 blocks; it ends at 4.
    # 4: B's 3 tokens: the prefill gives its second token at 5.
    model = EngineModel(IterationCost(1.0), EngineLimits(2, 8, kv_tokens=6, block_size=2))
    work = workload((0.0, 2, 4), (0.0, 2, 2))
    out = replay(work, model)
    assert seconds(work, model) == [(1, 4), (1, 5)]
    assert (out.preemptions, out.kv_usage_max) == (1, 1.0)
    assert out.itl.mean == (1 + 1 + 1 + 4) / 4


def test_by_hand_clients_give_up() -> None:
    # One slot. A has its tokens at 1, 2, 3 and B would start at 3.
    work, model = workload((0.0, 1, 3), (0.0, 1, 1)), EngineModel(IterationCost(1.0), EngineLimits(1, 8))
    # Timeout 3: A is in time, B has given up when the iteration would start.
    assert seconds(work, model, timeout_s=3.0) == [(1, 3), (-1, -1)]
    # Timeout 3.5: B is admitted at 3, and its token at 4 comes too late.
    out = replay(work, model, timeout_s=3.5)
    assert seconds(work, model, timeout_s=3.5) == [(1, 3), (-1, -1)]
    assert out.per_request.queue_s.tolist() == [0, 3]
    assert (out.completed, out.timed_out, out.simulated_s) == (1, 1, 4)
    # Timeout 2: A's third token would come too late, so A is taken out at 2, and B with it.
    out = replay(work, model, timeout_s=2.0)
    assert seconds(work, model, timeout_s=2.0) == [(1, -1), (-1, -1)]
    assert (out.completed, out.timed_out, out.simulated_s) == (0, 2, 2)


def test_by_hand_accepted_drafts() -> None:
    # 2.5 tokens an iteration: after the first token (at 1) 2, 5 and 7 more, the last where 8 are wanted: 3, 6, 8 tokens at 2, 3, 4.
    model = EngineModel(IterationCost(1.0, 0.0, 1 / 128), EngineLimits(1, 8), accept_length=2.5)
    out = replay(workload((0.0, 5, 8)), model)
    # They read 5 + 1, 5 + 3 and 5 + 6 tokens.
    assert out.per_request.e2e_s[0] == 4 + 25 / 128
    assert (out.itl.count, out.itl.mean) == (7, (3 + 25 / 128) / 7)
    gaps = [(1 + 6 / 128) / 2] * 2 + [(1 + 8 / 128) / 3] * 3 + [(1 + 11 / 128) / 2] * 2
    assert out.itl.quantile(0.3) == pytest.approx(sorted(gaps)[2], rel=0.011)
    assert out.itl.quantile(0.99) == pytest.approx(max(gaps), rel=0.011)


def test_by_hand_a_prefix_is_where_its_session_was_served() -> None:
    # 1 s a prefill token. Round robin gives session 7 replica 0, 1, 0: its first turn finds the prefix of 2 (nobody served it
    # before), the second has it only elsewhere, the third finds it.
    work = workload((0.0, 3, 1, 2), (10.0, 3, 1, 2), (20.0, 3, 1, 2), sessions=(7, 7, 7))
    model = EngineModel(IterationCost(0.0, per_prefill_token_s=1.0), EngineLimits(8, 8))
    assert seconds(work, model, replicas=2) == [(1, 1), (3, 3), (1, 1)]
    assert seconds(work, model, replicas=2, router="prefix_aware") == [(1, 1)] * 3
    assert seconds(work, model) == [(1, 1)] * 3


def test_by_hand_affinity_ends_where_the_load_is_out_of_balance() -> None:
    # All at once, and of one session: the first goes to replica 0, and so does each until that has 33 and the other none; then one
    # goes to replica 1, which is the session's last from then on, until it has 66 and the other 33; then back, to the end.
    n = 120
    work = workload(*((0.0, 1, 1) for _ in range(n)), sessions=(0,) * n)
    model = EngineModel(IterationCost(1.0), EngineLimits(1, 1))
    each = replay(work, model, replicas=2, router="prefix_aware").per_request
    # One at a time: the k-th at a replica ends after k seconds.
    assert each.e2e_s[:33].tolist() == list(range(1, 34))
    assert each.e2e_s[33:99].tolist() == list(range(1, 67))
    assert each.e2e_s[99:].tolist() == list(range(34, 34 + n - 99))


def test_goodput_counts_who_met_every_limit() -> None:
    # One slot: A ends at 3 (TTFT 1, gaps of 1), B at 4 (TTFT 4, no gap); the third is too large, and the fourth gives up at 5.
    work = workload((0.0, 1, 3), (0.0, 1, 1), (0.0, 1, 50), (1.0, 1, 9))
    out = replay(work, EngineModel(IterationCost(1.0), EngineLimits(1, 8, max_model_len=20)), timeout_s=4.0)
    assert (out.completed, out.rejected, out.timed_out, out.simulated_s) == (2, 1, 1, 5)
    for limits, good in (
        ({}, 2),
        ({"ttft_s": 1.0}, 1),
        ({"e2e_s": 4.0, "itl_s": 1.0}, 2),
        ({"tpot_s": 0.5}, 1),
        ({"itl_s": 0.5, "queue_s": 2.9}, 0),
        ({"queue_s": 3.0}, 2),
    ):
        assert out.goodput_per_s(limits) == good / 5
    with pytest.raises(ValueError, match="'ttft_p95'"):
        out.goodput_per_s({"ttft_p95": 1.0})
    with pytest.raises(ValueError, match="e2e_s must be"):
        out.goodput_per_s({"e2e_s": math.nan})


def test_a_static_fleet_is_paid_for_while_it_is_simulated() -> None:
    out = replay(workload((0.0, 1, 3), (0.0, 1, 1)), EngineModel(IterationCost(1.0), EngineLimits(1, 8)), replicas=3)
    assert (out.simulated_s, out.replica_s, out.replicas, out.replicas_max) == (3, 9, ((0.0, 3),), 3)


def test_one_request_alone_is_the_formula() -> None:
    model = EngineModel(SPEED, EngineLimits(8, 2048))
    out = replay(workload((5.0, 100, 3)), model)
    first = 0.01 + 2e-5 * 100 + 1e-9 * 50 * 100
    assert out.per_request.ttft_s[0] == pytest.approx(first)
    assert out.per_request.e2e_s[0] == pytest.approx(first + 2 * (0.01 + 1e-4) + 1e-6 * (101 + 102))
    assert out.tpot.mean == pytest.approx(0.01 + 1e-4 + 1e-6 * 101.5)
    assert out.running_mean * out.simulated_s == pytest.approx(out.busy_s)


def test_a_request_without_output_ends_with_its_prefill() -> None:
    none = replay(workload((0.0, 100, 0)), EngineModel(SPEED, EngineLimits(8, 2048))).per_request
    one = replay(workload((0.0, 100, 1)), EngineModel(SPEED, EngineLimits(8, 2048))).per_request
    assert none.ttft_s[0] == none.e2e_s[0] == one.e2e_s[0] > 0


def test_the_prefix_cache_saves_its_tokens() -> None:
    out = replay(workload((0.0, 100, 1, 60)), EngineModel(SPEED, EngineLimits(8, 2048)))
    assert out.ttft.mean == pytest.approx(0.01 + 2e-5 * 40 + 1e-9 * (60 + 20) * 40)


def test_the_cache_preempts_the_latest_and_everybody_still_ends() -> None:
    work = workload(*((0.001 * i, 30, 60) for i in range(6)))
    out = check(work, EngineModel(SPEED, EngineLimits(6, 512, kv_tokens=192, block_size=16)))
    assert out.preemptions > 0
    assert out.completed == 6
    assert out.kv_usage_max == 1.0


def test_what_cannot_fit_is_rejected_and_counted() -> None:
    work = workload((0.0, 100, 10), (0.0, 10, 10), (0.0, 5, 200))
    by_cache = replay(work, EngineModel(SPEED, EngineLimits(6, 512, kv_tokens=64)))
    by_length = replay(work, EngineModel(SPEED, EngineLimits(6, 512, max_model_len=64)))
    assert (by_cache.rejected, by_cache.completed) == (by_length.rejected, by_length.completed) == (2, 1)


def test_all_rejected_leaves_no_number_behind() -> None:
    out = replay(workload((3.0, 100, 10)), EngineModel(SPEED, EngineLimits(6, 512, max_model_len=64)))
    assert (out.completed, out.rejected, out.simulated_s) == (0, 1, 3.0)
    assert out.ttft.quantile(0.5) is None
    assert out.itl.quantile(0.5) is None
    assert out.ttft.mean is None
    assert out.running_mean == out.waiting_mean == 0


def test_the_horizon_ends_a_queue_that_grows() -> None:
    n = 4000
    work = workload(*((0.01 * i, 200, 100) for i in range(n)))
    model = EngineModel(SPEED, EngineLimits(4, 512, kv_tokens=1024))
    out = replay(work, model, horizon=20.0)
    each = out.per_request
    assert out.requests == 2000
    assert 0 < out.completed < out.requests
    assert int((each.e2e_s >= 0).sum()) == out.completed
    assert out.simulated_s == pytest.approx(20.0, rel=0.01)
    assert out.saturated
    assert not replay(
        workload(*((0.1 * i, 200, 100) for i in range(n))), EngineModel(SPEED, EngineLimits(512, 4096))
    ).saturated


@pytest.mark.parametrize("accept", [1.0, 2.4])
def test_cost_goes_with_requests_and_not_with_tokens(accept: float) -> None:
    """A billion tokens: iteration by iteration this would outlast the time limit of a test by far."""
    n = 1000
    model = EngineModel(SPEED, EngineLimits(512, 4096), accept_length=accept)
    out = replay(workload(*((float(i), 10, 1_000_000) for i in range(n))), model)
    assert out.completed == n
    assert out.itl.count == n * 999_999
    assert np.isfinite(out.e2e.mean or np.nan)


def test_more_drafts_than_tokens_end_it_in_one_iteration() -> None:
    out = replay(workload((0.0, 1, 9)), EngineModel(IterationCost(1.0), EngineLimits(1, 8), accept_length=1e300))
    assert (out.per_request.ttft_s[0], out.per_request.e2e_s[0], out.itl.mean) == (1, 2, 1 / 8)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"replicas": 0}, "replicas"),
        ({"router": "random"}, "router"),
        ({"horizon": 0.0}, "horizon"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"timeout_s": math.nan}, "timeout_s"),
        ({"replicas": 2, "fleet": ReplicaFleet(2, 0.0)}, "say it in the fleet"),
    ],
)
def test_bad_arguments_say_what_to_do(kwargs: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replay(workload((0.0, 1, 1)), EngineModel(SPEED, EngineLimits(1, 1)), **kwargs)  # type: ignore[arg-type]


def test_an_empty_workload_is_an_error() -> None:
    empty = np.array([], np.int64)
    with pytest.raises(ValueError, match="no requests"):
        replay(Workload(np.array([], float), empty, empty, empty), EngineModel(SPEED, EngineLimits(1, 1)))
