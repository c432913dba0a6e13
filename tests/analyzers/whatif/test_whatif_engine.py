"""The compiled engine is exact: every request's times are those of the plain simulator, over random traces and limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from analyzers.whatif.engine import Replay, replay
from analyzers.whatif.model import EngineModel, Iteration, Limits
from collectors.workload import Workload
from tests.analyzers.whatif.reference_simulator import simulate

SPEED = Iteration(0.01, 1e-4, 1e-6, 2e-5, 1e-9)


def workload(*rows: tuple[float, int, int] | tuple[float, int, int, int]) -> Workload:
    full = [(*row, 0) if len(row) == 3 else row for row in rows]
    columns = list(zip(*full, strict=True))
    return Workload(np.array(columns[0], float), *(np.array(c, np.int64) for c in columns[1:]))


@st.composite
def iterations(draw: st.DrawFn) -> Iteration:
    """Either dyadic numbers, whose sums are exact, so that ties in time are real; or any numbers, where ties do not happen."""
    if draw(st.booleans()):
        parts = [draw(st.integers(1, 64)) / 64, *(draw(st.integers(0, 64)) / 2**k for k in (10, 16, 12, 20))]
    else:
        scales = (0.05, 1e-3, 1e-5, 1e-3, 1e-6)
        parts = [draw(st.sampled_from((0.0, 0.137, 0.519, 0.973))) * s for s in scales]
        parts[0] += draw(st.floats(1e-4, 0.02))
    return Iteration(*parts)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Workload, EngineModel]:
    n = draw(st.integers(1, 24))
    size = draw(st.sampled_from((1, 2, 4, 16)))
    seqs = draw(st.integers(1, 9))
    longest = draw(st.sampled_from((4, 30, 90)))
    tokens = draw(st.sampled_from((None, 1, 2, 4)))
    kv = None if tokens is None else max(size, tokens * longest + draw(st.integers(0, 40)))
    limits = Limits(
        max_num_seqs=seqs,
        max_num_batched_tokens=seqs + draw(st.sampled_from((0, 1, 7, 40, 500))),
        kv_tokens=kv,
        block_size=size,
        max_model_len=draw(st.sampled_from((None, None, 2 * longest))),
    )
    model = EngineModel(draw(iterations()), limits, chunked_prefill=draw(st.booleans()))
    # Gaps of 0 are simultaneous arrivals; large ones leave the engine idle. Sixteenths meet the dyadic iterations' ends.
    gaps = draw(st.lists(st.sampled_from((0, 0, 1, 1, 2, 5, 16, 400)), min_size=n, max_size=n))
    step = draw(st.sampled_from((1 / 64, 1 / 16, 1.0)))
    prompts = draw(st.lists(st.integers(1, longest), min_size=n, max_size=n))
    outputs = draw(st.lists(st.one_of(st.integers(0, 2), st.integers(0, longest)), min_size=n, max_size=n))
    shares = draw(st.lists(st.sampled_from((0.0, 0.0, 0.5, 1.0)), min_size=n, max_size=n))
    prefix = [int(s * (p - 1)) for s, p in zip(shares, prompts, strict=True)]
    arrival = np.cumsum(np.array(gaps, float) * step)
    return Workload(arrival, *(np.array(x, np.int64) for x in (prompts, outputs, prefix))), model


def check(work: Workload, model: EngineModel, replicas: int = 1, router: str = "round_robin") -> Replay:
    plain = simulate(work, model, replicas, router)
    fast = replay(work, model, replicas=replicas, router=router, per_request=True)  # type: ignore[arg-type]
    each = fast.per_request
    assert each is not None
    assert each.rejected.tolist() == [r.rejected for r in plain.requests]
    for name, ours in (("ttft", each.ttft_s), ("e2e", each.e2e_s), ("queue", each.queue_s)):
        theirs = np.array([getattr(r, name) for r in plain.requests])
        # A latency is a difference of two clock readings, so its rounding error goes with the clock, not with itself.
        assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12 * max(1.0, fast.simulated_s), err_msg=name)
    assert fast.completed == sum(len(s.completed_at) for s in plain.servers)
    assert fast.completed + fast.rejected == fast.requests == len(work)
    assert fast.preemptions == sum(s.preemptions for s in plain.servers)
    span = fast.simulated_s or 1.0
    assert fast.running_mean * span == pytest.approx(sum(s.running_integral for s in plain.servers), rel=1e-9, abs=1e-9)
    assert fast.waiting_mean * span == pytest.approx(sum(s.waiting_integral for s in plain.servers), rel=1e-9, abs=1e-9)
    gaps = [gap for s in plain.servers for gap in s.gaps]
    assert fast.itl.count == len(gaps)
    if gaps:
        assert fast.itl.mean == pytest.approx(np.mean(gaps), rel=1e-9)
        at = sorted(gaps)[max(0, int(np.ceil(0.9 * len(gaps))) - 1)]
        assert fast.itl.quantile(0.9) == pytest.approx(at, rel=0.011, abs=1e-6)
    if model.limits.kv_tokens is None:
        assert fast.kv_usage_max is None
    else:
        blocks = model.limits.kv_tokens // model.limits.block_size
        assert fast.kv_usage_max == max(s.peak for s in plain.servers) / blocks
    return fast


@settings(max_examples=400, deadline=None)
@given(cases())
def test_every_request_is_where_the_plain_simulator_has_it(case: tuple[Workload, EngineModel]) -> None:
    check(*case)


@settings(max_examples=150, deadline=None)
@given(cases(), st.integers(2, 4), st.sampled_from(("round_robin", "least_outstanding")))
def test_replicas_behind_a_router_too(case: tuple[Workload, EngineModel], replicas: int, router: str) -> None:
    check(*case, replicas, router)


def test_one_request_alone_is_the_formula() -> None:
    model = EngineModel(SPEED, Limits(8, 2048))
    out = replay(workload((5.0, 100, 3)), model, per_request=True)
    assert out.per_request is not None
    first = 0.01 + 2e-5 * 100 + 1e-9 * 50 * 100
    assert out.per_request.ttft_s[0] == pytest.approx(first)
    assert out.per_request.e2e_s[0] == pytest.approx(first + 2 * (0.01 + 1e-4) + 1e-6 * (101 + 102))
    assert out.tpot.mean == pytest.approx(0.01 + 1e-4 + 1e-6 * 101.5)
    assert out.running_mean * out.simulated_s == pytest.approx(out.busy_s)


def test_a_request_without_output_ends_with_its_prefill() -> None:
    none = replay(workload((0.0, 100, 0)), EngineModel(SPEED, Limits(8, 2048)), per_request=True).per_request
    one = replay(workload((0.0, 100, 1)), EngineModel(SPEED, Limits(8, 2048)), per_request=True).per_request
    assert none is not None
    assert one is not None
    assert none.ttft_s[0] == none.e2e_s[0] == one.e2e_s[0] > 0


def test_the_prefix_cache_saves_its_tokens() -> None:
    out = replay(workload((0.0, 100, 1, 60)), EngineModel(SPEED, Limits(8, 2048)))
    assert out.ttft.mean == pytest.approx(0.01 + 2e-5 * 40 + 1e-9 * (60 + 20) * 40)


def test_the_cache_preempts_the_latest_and_everybody_still_ends() -> None:
    work = workload(*((0.001 * i, 30, 60) for i in range(6)))
    out = check(work, EngineModel(SPEED, Limits(6, 512, kv_tokens=192, block_size=16)))
    assert out.preemptions > 0
    assert out.completed == 6
    assert out.kv_usage_max == 1.0


def test_what_cannot_fit_is_rejected_and_counted() -> None:
    work = workload((0.0, 100, 10), (0.0, 10, 10), (0.0, 5, 200))
    by_cache = replay(work, EngineModel(SPEED, Limits(6, 512, kv_tokens=64)))
    by_length = replay(work, EngineModel(SPEED, Limits(6, 512, max_model_len=64)))
    assert (by_cache.rejected, by_cache.completed) == (by_length.rejected, by_length.completed) == (2, 1)


def test_all_rejected_leaves_no_number_behind() -> None:
    out = replay(workload((3.0, 100, 10)), EngineModel(SPEED, Limits(6, 512, max_model_len=64)))
    assert (out.completed, out.rejected, out.simulated_s) == (0, 1, 3.0)
    assert out.ttft.quantile(0.5) is None
    assert out.itl.quantile(0.5) is None
    assert out.ttft.mean is None
    assert out.running_mean == out.waiting_mean == 0


def test_the_horizon_ends_a_queue_that_grows() -> None:
    n = 4000
    work = workload(*((0.01 * i, 200, 100) for i in range(n)))
    model = EngineModel(SPEED, Limits(4, 512, kv_tokens=1024))
    out = replay(work, model, horizon=20.0, per_request=True)
    each = out.per_request
    assert each is not None
    assert out.requests == 2000
    assert 0 < out.completed < out.requests
    assert int((each.e2e_s >= 0).sum()) == out.completed
    assert out.simulated_s == pytest.approx(20.0, rel=0.01)
    assert out.saturated
    assert not replay(
        workload(*((0.1 * i, 200, 100) for i in range(n))), EngineModel(SPEED, Limits(512, 4096))
    ).saturated


def test_cost_goes_with_requests_and_not_with_tokens() -> None:
    """A billion tokens: iteration by iteration this would outlast the time limit of a test by far."""
    n = 1000
    out = replay(workload(*((float(i), 10, 1_000_000) for i in range(n))), EngineModel(SPEED, Limits(512, 4096)))
    assert out.completed == n
    assert out.itl.count == n * 999_999
    assert np.isfinite(out.e2e.mean or np.nan)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [({"replicas": 0}, "replicas"), ({"router": "random"}, "router"), ({"horizon": 0.0}, "horizon")],
)
def test_bad_arguments_say_what_to_do(kwargs: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replay(workload((0.0, 1, 1)), EngineModel(SPEED, Limits(1, 1)), **kwargs)  # type: ignore[arg-type]


def test_an_empty_workload_is_an_error() -> None:
    empty = np.array([], np.int64)
    with pytest.raises(ValueError, match="no requests"):
        replay(Workload(np.array([], float), empty, empty, empty), EngineModel(SPEED, Limits(1, 1)))
