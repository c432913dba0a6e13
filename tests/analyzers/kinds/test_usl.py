"""The universal scalability law: the fit finds it and says how well, refuses what cannot tell, and the replay obeys it."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from analyzers.kinds.serverless.platform import Serverless
from analyzers.kinds.vm.usl import Point, Usl, UslFit, fit, on_cores, predict, replay
from analyzers.objective import Objective
from analyzers.prediction import CannotPredict
from tests.analyzers.kinds.loads import requests_per_s, steady, workload
from tests.analyzers.kinds.test_serverless import Plain

LAW = Usl(50.0, 0.05, 0.0008)
LEVELS = (1, 2, 4, 8, 16, 32, 48, 64)


def measured(law: Usl = LAW, noise: float = 0.0, seed: int = 0, levels: tuple[int, ...] = LEVELS) -> list[Point]:
    off = np.exp(noise * np.random.default_rng(seed).standard_normal(len(levels)))
    return [Point(n, throughput_per_s=law.throughput_per_s(n) / float(x)) for n, x in zip(levels, off, strict=True)]


@cache
def fits(law: Usl, levels: tuple[int, ...]) -> list[UslFit]:
    return [fit(measured(law, 0.05, seed, levels)) for seed in range(60)]


def test_the_law_and_its_peak() -> None:
    assert LAW.throughput_per_s(1) == 50.0
    assert LAW.throughput_per_s(10) == pytest.approx(500 / (1 + 0.45 + 0.072))
    assert LAW.latency_s(10) == pytest.approx((1 + 0.45 + 0.072) / 50)
    assert LAW.peak == pytest.approx(math.sqrt(0.95 / 0.0008))
    assert LAW.throughput_per_s(LAW.peak) > max(LAW.throughput_per_s(LAW.peak * f) for f in (0.9, 1.1))
    assert LAW.highest_per_s == LAW.throughput_per_s(LAW.peak)
    assert Usl(50.0, 0.05).highest_per_s == pytest.approx(1000.0)
    assert Usl(50.0).peak == Usl(50.0).highest_per_s == math.inf


@settings(max_examples=25)
@given(
    rate=st.floats(0.1, 1000.0),
    sigma=st.sampled_from((0.0, 0.02, 0.3, 0.9)),
    kappa=st.sampled_from((0.0, 1e-4, 1e-2)),
    by_latency=st.booleans(),
)
def test_exact_points_give_the_law_back(rate: float, sigma: float, kappa: float, by_latency: bool) -> None:
    law = Usl(rate, sigma, kappa)
    points = [Point(n, latency_s=law.latency_s(n)) for n in LEVELS] if by_latency else measured(law)
    found = fit(points)
    assert found.best.rate_per_s == pytest.approx(rate, rel=1e-6)
    assert found.best.sigma == pytest.approx(sigma, abs=1e-6)
    assert found.best.kappa == pytest.approx(kappa, abs=1e-7)
    assert all(0 <= d.sigma <= 1 and d.kappa >= 0 and d.rate_per_s > 0 for d in found.draws)
    assert len(found.draws) == 200
    assert found == fit(points)


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
@pytest.mark.parametrize("spoilt", range(1, 8))
def test_one_point_that_is_off_by_three_does_not_matter(factor: float, spoilt: int) -> None:
    points = measured(noise=0.02, seed=spoilt)
    points[spoilt] = Point(LEVELS[spoilt], latency_s=LAW.latency_s(LEVELS[spoilt]) * factor)
    found = fit(points)
    for n in LEVELS:
        assert found.best.latency_s(n) == pytest.approx(LAW.latency_s(n), rel=0.06)
    assert found.scatter < 0.06


@pytest.mark.parametrize(
    ("law", "levels"),
    [
        (LAW, LEVELS),
        (Usl(50.0), (1, 2, 4, 8, 16, 32)),
        (Usl(20.0, 0.3), (1, 3, 9, 27)),
        (Usl(20.0, 0.1, 0.002), (2, 8, 32)),
    ],
)
@pytest.mark.parametrize("asked", [1, 24, 96])
def test_eighty_percent_intervals_hold_at_least_so_often(law: Usl, levels: tuple[int, ...], asked: int) -> None:
    """Within and beyond the points, with laws that lie on the edge of what is allowed. Few points are wider than they need be."""
    held = sum(law.latency_s(asked) in found.interval(lambda x: x.latency_s(asked)) for found in fits(law, levels))
    assert held >= 38  # of 60: 48 expected, 3 standard deviations


def test_the_first_draws_stand_for_all() -> None:
    """Some laws do without kappa, some do not; a prediction takes only the first draws."""
    found = fit(measured(noise=0.2, seed=4, levels=(1, 2, 4, 8, 16)))
    without = [law.kappa == 0.0 for law in found.draws]
    assert 0.1 < sum(without) / 200 < 0.9
    assert sum(without[:50]) == pytest.approx(sum(without) / 4, abs=4 * 50**0.5 / 2)


def test_more_noise_and_fewer_points_are_wider() -> None:
    def width(noise: float, levels: tuple[int, ...]) -> float:
        found = fit(measured(noise=noise, levels=levels)).interval(lambda law: law.latency_s(64))
        return math.log(found.high / found.low)

    assert width(0.01, LEVELS) < width(0.1, LEVELS)
    assert width(0.01, LEVELS) < width(0.01, (1, 4, 16))


@pytest.mark.parametrize(
    ("points", "code"),
    [
        ([], "USL_FEW_POINTS"),
        (measured(levels=(4, 4, 4, 16, 16)), "USL_FEW_POINTS"),
        (measured(levels=(100, 120, 150)), "USL_NARROW"),
        (measured(noise=1.5), "USL_NO_FIT"),
        ([*measured(), *measured(Usl(5.0, 0.0, 0.1))], "USL_NO_FIT"),
    ],
)
def test_points_that_cannot_tell_are_refused(points: list[Point], code: str) -> None:
    with pytest.raises(CannotPredict) as caught:
        fit(points)
    assert caught.value.code == code


@pytest.mark.parametrize("bad", [(0.0, 1.0, None), (4.0, None, None), (4.0, math.nan, None), (4.0, None, -1.0)])
def test_a_point_that_is_none_is_refused(bad: tuple[float, float | None, float | None]) -> None:
    with pytest.raises(ValueError, match="USL point"):
        Point(*bad)


def test_more_cores_are_faster_in_proportion_and_less_sure() -> None:
    found = fit(measured(noise=0.03))
    f4s, f8s = on_cores(found, 2.0), on_cores(found, 4.0)

    def latency(law: Usl) -> float:
        return law.latency_s(8)

    assert f4s.best == Usl(found.best.rate_per_s * 2, found.best.sigma, found.best.kappa)
    widths = [math.log(i.high / i.low) for i in (x.interval(latency) for x in (found, f4s, f8s))]
    assert widths[0] < widths[1] < widths[2]
    assert "assumed" in f8s.notes[0]
    with pytest.raises(ValueError, match="cores"):
        on_cores(found, 0.0)


def test_those_in_the_machine_share_what_the_law_gives() -> None:
    """Two that overlap: one second alone each, at 2 / (1 + 0.5 + 2 x 0.125) = 8 / 7 of one machine's speed together."""
    got = replay(workload((0.0, 1, 1), (0.5, 1, 1)), Usl(1.0, 0.5, 0.125))
    # Until 0.5 the first has half; it ends 0.5 x 1.75 later; the second then has half too.
    assert got.each.e2e_s.tolist() == pytest.approx([1.375, 1.375])
    assert got.used == {"replica_s": got.simulated_s}
    assert got.distribution("ttft_s").mean is None
    with pytest.raises(ValueError, match="ttft_s"):
        got.goodput_per_s({"ttft_s": 1.0})


@given(seed=st.integers(0, 50), replicas=st.integers(1, 3), cap=st.none() | st.integers(1, 4))
def test_the_replay_is_where_a_plain_simulator_has_it(seed: int, replicas: int, cap: int | None) -> None:
    rng = np.random.default_rng(seed)
    load, share = steady(40, 6.0), rng.exponential(1.0, 40)
    law = Usl(4.0, 0.137, 0.0519)
    machines = Serverless(cap or 40, 0.0, replicas, replicas, sigma=law.sigma, kappa=law.kappa)
    plain = Plain(load, machines, np.full(40, -1.0), share / law.rate_per_s, packed=False)
    plain.simulate()
    got = replay(load, law, replicas=replicas, max_concurrency=cap, work=share)
    assert_allclose(got.each.e2e_s, np.array(plain.ended) - load.arrival_s, rtol=1e-9)
    assert_allclose(got.each.queue_s, np.array(plain.begun) - load.arrival_s, rtol=1e-9, atol=1e-9)


def test_one_processor_shared_is_the_queue_that_the_textbook_has() -> None:
    """sigma 1 is processor sharing, whose mean time in the system is S / (1 - rho) whatever the sizes (M/G/1-PS)."""
    n = 400_000
    load, share = steady(n, 7.0), np.random.default_rng(3).lognormal(-0.5, 1.0, n)
    got = replay(load, Usl(10.0, 1.0), work=share)
    rho = share.mean() * 0.1 * n / load.duration_s
    assert got.e2e.mean == pytest.approx(share.mean() * 0.1 / (1 - rho), rel=0.03)
    assert got.gauges["running_mean"] == pytest.approx(rho / (1 - rho), rel=0.03)


def test_it_saturates_where_the_law_says() -> None:
    highest = LAW.highest_per_s
    assert not replay(steady(20_000, 0.8 * highest), LAW, max_concurrency=34).saturated
    assert replay(steady(20_000, 1.2 * highest), LAW, max_concurrency=34).saturated
    assert not replay(steady(20_000, 1.2 * highest), LAW, replicas=2, max_concurrency=34).saturated


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="work"):
        replay(steady(5, 1.0), LAW, work=np.ones(4))
    with pytest.raises(ValueError, match="replicas"):
        replay(steady(5, 1.0), LAW, replicas=0)
    with pytest.raises(ValueError, match="sigma"):
        Usl(1.0, 1.5)


def test_a_prediction_has_intervals_and_says_when_it_extrapolates() -> None:
    found = fit(measured(noise=0.03))
    objective = Objective.from_mapping({"e2e_p99_s": 0.5, "ttft_p95_s": 1.0})
    got = predict(found, steady(4000, 200.0), objective=objective)
    assert {"e2e_p50_s", "e2e_p95_s", "e2e_p99_s", "queue_p95_s", "requests_per_s", "running_mean"} == set(got.metrics)
    assert all(i.low <= i.mid <= i.high for i in got.metrics.values())
    truth = replay(steady(4000, 200.0), LAW)
    assert truth.e2e.quantile(0.95) in got.metrics["e2e_p95_s"]
    assert (got.saturates, got.extrapolates, got.notes) == (0.0, False, ())
    far = predict(on_cores(found, 0.25), steady(4000, 200.0), objective=objective)
    assert far.saturates == 1.0
    assert far.extrapolates
    assert len(far.notes) == 2


def test_a_hundred_thousand_requests_a_second() -> None:
    load = steady(200_000, 300.0)
    assert requests_per_s(lambda: replay(load, LAW), len(load)) > 100_000
