"""The kind ``vm`` of a source that gives no distribution: seconds spent in requests, and percentiles as numbers or ranges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from actuators.shape import Shape
from analyzers.kinds.base import Basis, Replayer
from analyzers.kinds.vm import usl
from analyzers.kinds.vm.kind import VmKind
from analyzers.kinds.vm.usl import Usl
from analyzers.objective import Objective
from analyzers.policy import Catalogue
from collectors.window import Gauge, Range, Window
from collectors.workload import Workload

TRUTH = Usl(10.0, 0.05, 0.001)
FOUR = Shape(replicas=4, size="F2s", cpus=2)
TWO_LARGER = Shape(replicas=2, size="F4s", cpus=4)
VM = VmKind()
RATES = [4.0 + 14.0 * (1 + np.sin(i / 8)) / 2 for i in range(60)]
#: What the law knows nothing of: how requests differ from each other.
SPREAD = 0.6


def _served(rate: float, seed: int, law: Usl, machines: int, seconds: float = 600.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    n = max(2, int(rng.poisson(rate * seconds)))
    ones = np.ones(n, np.int64)
    work = Workload(np.sort(rng.random(n)) * seconds, ones, ones, np.zeros(n, np.int64))
    size = np.exp(SPREAD * rng.standard_normal(n) - SPREAD**2 / 2)
    times: np.ndarray = usl.replay(work, law, replicas=machines, work=size).each.e2e_s
    return times


def told(rates: Sequence[float], *, law: Usl = TRUTH, machines: int = 4, width: float = 0.0) -> list[Window]:
    """A minute at each rate as Azure Monitor tells it; ``width``: by how much a percentile is left open."""
    found = []
    for i, rate in enumerate(rates):
        times = _served(rate, i, law, machines)
        requests = rate * 60.0
        by_share = {q: float(np.quantile(times, q)) for q in (0.5, 0.9, 0.95, 0.99)}
        ranges = {q: Range(v * (1 - width), v * (1 + width)) for q, v in by_share.items()}
        counts = {"requests": requests, "errors": 0.0, "e2e_total_s": requests * float(times.mean())}
        gauges = {"replicas": Gauge(float(machines), float(machines), float(machines))}
        window = Window("chat", "azure-monitor", i * 60.0, 60.0, 1.0, 1, 0, counts, {}, gauges)
        found.append(replace(window, quantiles={"e2e_s": ranges}))
    return found


HOUR = told(RATES)


def _predict(windows: Sequence[Window], shape: Shape) -> dict[str, tuple[float, float, float]]:
    calibrated = VM.read(json.loads(json.dumps(VM.calibrate(windows, FOUR, None).as_dict())))
    basis = Basis(FOUR, Objective.from_mapping({"e2e_p95_s": 2.0}), Catalogue(), {})
    found = Replayer(VM, calibrated, windows, basis, 7).predict(shape, 1.0).metrics
    return {name: (i.low, i.mid, i.high) for name, i in found.items()}


def test_the_law_is_found_from_seconds_spent_in_requests() -> None:
    fit = VM.calibrate(HOUR, FOUR, None).fit
    busiest = max(HOUR, key=lambda w: w.counts["requests"])
    seconds = busiest.counts["e2e_total_s"] / busiest.counts["requests"]
    assert fit.load[1] == pytest.approx(busiest.counts["e2e_total_s"] / 60.0 / 4, rel=0.1)
    assert fit.best.latency_s(fit.load[1]) == pytest.approx(seconds, rel=0.1)


def test_how_many_machines_there_were_is_the_windows_to_say() -> None:
    eight = [replace(w, gauges={"replicas": Gauge(8.0, 8.0, 8.0)}) for w in told(RATES, machines=8)]
    assert VM.calibrate(eight, FOUR, None).fit.load[1] < VM.calibrate(HOUR, FOUR, None).fit.load[1]


def test_the_present_shape_is_predicted_as_it_was_observed() -> None:
    whole = np.concatenate([_served(rate, i, TRUTH, 4) for i, rate in enumerate(RATES)])
    low, mid, high = _predict(HOUR, FOUR)["e2e_p95_s"]
    assert mid == pytest.approx(float(np.quantile(whole, 0.95)), rel=0.15)
    assert low < float(np.quantile(whole, 0.95)) < high


def test_what_the_law_leaves_out_goes_along_to_another_size() -> None:
    faster = Usl(TRUTH.rate_per_s * 2, TRUTH.sigma, TRUTH.kappa)
    whole = np.concatenate([_served(rate, i, faster, 2) for i, rate in enumerate(RATES)])
    low, mid, high = _predict(HOUR, TWO_LARGER)["e2e_p95_s"]
    assert mid == pytest.approx(float(np.quantile(whole, 0.95)), rel=0.25)
    assert low < float(np.quantile(whole, 0.95)) < high
    flat = _predict([replace(w, quantiles={}) for w in HOUR], TWO_LARGER)["e2e_p95_s"]
    assert flat[1] < 0.85 * mid, "without it, requests that are all alike"


def test_a_percentile_that_is_left_open_leaves_the_promise_as_open() -> None:
    narrow, wide = (_predict(told(RATES, width=width), FOUR)["e2e_p95_s"] for width in (0.0, 0.3))
    assert wide[2] - wide[0] > 1.3 * (narrow[2] - narrow[0])
