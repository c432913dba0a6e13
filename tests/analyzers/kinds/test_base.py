"""What the kinds share: counts and distributions of an answer, the draws of latencies, the client's waits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from analyzers.kinds.service import CallTimes, ReplayAnswer, Retries, ServiceReplay, Speed, served
from analyzers.whatif.engine import replay
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from tests.analyzers.kinds.loads import steady, workload


def answer() -> ServiceReplay:
    """Four requests: whole at once, one token, gave up, could never be accepted."""
    load = workload((0.0, 10, 5), (1.0, 10, 1), (2.0, 10, 5), (3.0, 10, 5))
    each = CallTimes(
        queue_s=np.array([0.0, 0.5, -1.0, -1.0]),
        ttft_s=np.array([0.2, 0.7, -1.0, -1.0]),
        tpot_s=np.array([0.1, -1.0, -1.0, -1.0]),
        e2e_s=np.array([0.6, 0.7, -1.0, -1.0]),
        rejected=np.array([False, False, False, True]),
        tries=np.array([1, 2, 3, 1]),
    )
    left = np.array([0.0, 1.5, np.inf, np.inf])
    return served(load, each, served_at_s=left, end_s=2.5, throttled=4, used={}, gauges={})


def test_counts_and_distributions_are_of_what_completed() -> None:
    got = answer()
    assert (got.requests, got.completed, got.rejected, got.gave_up, got.throttled) == (4, 2, 1, 1, 4)
    assert got.output_tokens == 6
    assert got.simulated_s == 3.0  # the last arrival is later than the last event
    assert got.distribution("ttft_s").mean == pytest.approx(0.45)
    assert got.distribution("tpot_s").count == 1
    assert got.distribution("queue_s").quantile(1.0) == 0.5
    gaps = got.distribution("itl_s")
    assert gaps.count == 4
    assert gaps.mean == pytest.approx(0.1)
    assert gaps.quantile(0.5) == pytest.approx(0.1, rel=0.01)
    with pytest.raises(KeyError):
        got.distribution("ttft")


def test_a_replay_of_an_engine_and_one_of_these_answer_alike() -> None:
    engine = EngineModel(IterationCost(0.01), EngineLimits(4, 64))
    for got in (answer(), replay(workload((0.0, 10, 5), (1.0, 10, 5)), engine)):
        assert isinstance(got, ReplayAnswer)
        assert got.goodput_per_s({"e2e_s": 60.0}) == pytest.approx(got.completed / got.simulated_s)
        assert got.distribution("e2e_s").count == got.completed
        assert not got.saturated


def test_goodput_needs_every_limit() -> None:
    got = answer()
    assert got.goodput_per_s({}) == pytest.approx(2 / 3)
    assert got.goodput_per_s({"ttft_s": 0.5}) == pytest.approx(1 / 3)
    assert got.goodput_per_s({"itl_s": 0.05}) == pytest.approx(1 / 3)  # one token has no gap
    assert got.goodput_per_s({"ttft_s": 0.7, "e2e_s": 0.65, "queue_s": 1.0}) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="ttft_ms"):
        got.goodput_per_s({"ttft_ms": 500.0})
    with pytest.raises(ValueError, match="nan"):
        got.goodput_per_s({"ttft_s": math.nan})


@pytest.mark.parametrize(("lost", "saturated"), [(0.0, False), (0.04, False), (0.2, True)])
def test_saturated_when_those_not_served_grow_by_more_than_chance(lost: float, saturated: bool) -> None:
    load = steady(20_000, 10.0)
    late = np.arange(20_000) >= 10_000
    gone = late & (np.random.default_rng(1).random(20_000) < lost)
    zeros = np.zeros(20_000)
    each = CallTimes(zeros, zeros, zeros, np.where(gone, -1.0, 0.5), zeros > 0, zeros.astype(np.int64))
    left = np.where(gone, np.inf, load.arrival_s + 0.1)
    got = served(load, each, served_at_s=left, end_s=0.0, throttled=0, used={}, gauges={})
    assert got.saturated is saturated


def test_speed_draws_pairs_by_seed_and_adds_the_uncached_prompt() -> None:
    load = steady(500, 1.0)
    first, tpot = Speed(np.array([0.1, 0.2]), np.array([1.0, 2.0]), 0.001).draw(load, 3)
    assert_allclose(first, np.where(tpot == 1.0, 0.2, 0.3))
    assert 150 < np.count_nonzero(tpot == 1.0) < 350
    assert np.array_equal(first, Speed(np.array([0.1, 0.2]), 1.0, 0.001).draw(load, 3)[0])
    assert not np.array_equal(first, Speed(np.array([0.1, 0.2]), 1.0, 0.001).draw(load, 4)[0])


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.array([]), np.array([0.1, np.inf])])
def test_speed_refuses_what_is_no_time(bad: float) -> None:
    with pytest.raises(ValueError, match="ttft_s"):
        Speed(bad, 0.01)


@pytest.mark.parametrize("bad", [{"tries": 0}, {"first_s": 0.0}, {"most_s": 0.1}, {"jitter": 2.0}])
def test_retries_refuse_what_never_ends_or_never_waits(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="retries"):
        Retries(**bad)  # type: ignore[arg-type]
