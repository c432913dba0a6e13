"""Predictions: limits override, replicas share, hardware scales, saturation is told, and the unknown is refused."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest

from actuators.shape import Shape
from analyzers.architecture import MODELS
from analyzers.hardware import ACCELERATORS, Hardware, find
from analyzers.objective import Objective
from analyzers.prediction import CannotPredict, Prediction
from analyzers.steptimes import StepTimes, StepTimesSource
from analyzers.whatif.calibrate import CalibratedEngine
from analyzers.whatif.discrepancy import Discrepancy, Residual
from analyzers.whatif.engine import replay
from analyzers.whatif.fit import PosteriorDraw
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from analyzers.whatif.predict import limit_rate, predict
from collectors.workload import Workload
from tests.analyzers.whatif.reference_server import poisson

MODEL = EngineModel(IterationCost(0.006, 4e-5, 3e-8, 2.8e-5, 2e-9), EngineLimits(64, 2048, 400_000))
BASE = Shape(replicas=1, accelerator="H100", accelerator_count=1)
OBJECTIVE = Objective.from_mapping({"ttft_p95_s": 0.5, "itl_p99_s": 0.1, "error_rate": 0.01})
KNOWN = {f"{m}_p{q}_s": 0.0 for m in ("ttft", "itl", "e2e") for q in (50, 95)}
#: The fit was seen to be right over all of the load.
SEEN = Discrepancy(
    tuple(
        Residual(metric, (math.log(running), math.log(600), math.log(200)), 0.0, 0.01)
        for metric in ("itl_s", "ttft_s")
        for running in (1.0, 3.0, 10.0, 30.0)
    )
)


def calibrated(spread: float = 0.02, overhead_s: float = 0.0) -> CalibratedEngine:
    rng = np.random.default_rng(1)
    draws = tuple(
        PosteriorDraw(
            IterationCost(*(v * math.exp(spread * z) for v, z in zip(MODEL.iteration.as_tuple(), row, strict=True))),
            overhead_s,
        )
        for row in rng.standard_normal((16, 8))
    )
    return CalibratedEngine("key", "H100", 1, MODEL, overhead_s, 0.0, draws, 60, 5000.0, (1.0, 40.0), SEEN)


def ask(
    shape: Shape = BASE,
    work: Workload | None = None,
    known: CalibratedEngine | None = None,
    error: dict[str, float] | None = None,
) -> Prediction:
    return predict(
        shape,
        work if work is not None else poisson(4.0, 300.0, 1),
        known or calibrated(),
        objective=OBJECTIVE,
        base_shape=BASE,
        hardware=ACCELERATORS,
        error=error if error is not None else dict(KNOWN),
    )


def limit(shape: Shape, objective: Objective, work: Workload | None = None) -> float | None:
    return limit_rate(
        shape,
        work if work is not None else poisson(4.0, 300.0, 1),
        calibrated(),
        objective=objective,
        base_shape=BASE,
        hardware=ACCELERATORS,
    )


def test_the_middle_is_the_replay_of_the_best_fit_where_the_load_is_light() -> None:
    work = poisson(4.0, 300.0, 1)
    got, own = ask(work=work), replay(work, MODEL)
    for name in ("ttft", "itl", "e2e"):
        for q in (0.5, 0.95):
            assert got.metrics[f"{name}_p{q * 100:g}_s"].mid == pytest.approx(
                own.distribution(f"{name}_s").quantile(q), rel=0.02
            )
    assert got.metrics["running_mean"].mid == pytest.approx(own.running_mean, rel=0.02)


def test_near_a_limit_a_little_doubt_is_much_queue() -> None:
    got = ask(work=poisson(16.0, 300.0, 1), known=calibrated(0.2)).metrics["ttft_p95_s"]
    assert got.high > 5 * got.mid


def test_what_a_prediction_states() -> None:
    got = ask(work=poisson(4.0, 300.0, 1))
    assert "error_rate" not in got.metrics
    assert got.saturates == 0
    assert got.method == "simulation"
    assert all(i.low <= i.mid <= i.high and math.isfinite(i.high) for i in got.metrics.values())
    assert Prediction.from_dict(got.as_dict()) == got


def test_doubt_widens() -> None:
    def width(got: Prediction) -> float:
        interval = got.metrics["ttft_p95_s"]
        return math.log(interval.high / interval.low)

    sure, unsure = width(ask()), width(ask(known=calibrated(0.2)))
    measured, unmeasured = width(ask(error={**KNOWN, "ttft_p95_s": 0.1})), width(ask(error={}))
    assert sure < measured < unmeasured
    assert sure < unsure
    assert unmeasured == pytest.approx(2 * 1.2816 * 0.25 / 0.6745, rel=0.1)


def test_time_outside_the_engine_is_added_to_first_token_and_end() -> None:
    plain, far = ask().metrics, ask(known=calibrated(overhead_s=0.1)).metrics
    assert far["ttft_p50_s"].mid == pytest.approx(plain["ttft_p50_s"].mid + 0.1, rel=0.02)
    assert far["e2e_p50_s"].mid == pytest.approx(plain["e2e_p50_s"].mid + 0.1, rel=0.02)
    assert far["itl_p50_s"].mid == plain["itl_p50_s"].mid


def test_limits_of_the_shape_override_those_that_were_calibrated() -> None:
    work = poisson(10.0, 300.0, 2)
    narrow = ask(BASE.with_(engine={"max_num_seqs": 16}), work)
    assert narrow.metrics["running_mean"].mid <= 16
    assert narrow.metrics["waiting_mean"].mid > 10 * ask(work=work).metrics["waiting_mean"].mid
    with pytest.raises(CannotPredict, match="max_num_batched_tokens") as caught:
        ask(BASE.with_(engine={"max_num_seqs": 16, "max_num_batched_tokens": 8}))
    assert caught.value.code == "INVALID_LIMITS"


def test_replicas_share_the_load() -> None:
    work = poisson(9.0, 300.0, 2)
    one, three = ask(work=work), ask(BASE.with_(replicas=3), work)
    assert three.metrics["itl_p95_s"].mid < one.metrics["itl_p95_s"].mid
    assert three.metrics["running_mean"].mid < one.metrics["running_mean"].mid
    with pytest.raises(CannotPredict) as caught:
        ask(Shape(accelerator="H100"))
    assert caught.value.code == "UNKNOWN_REPLICAS"


def test_saturation_is_a_probability() -> None:
    low, high = ask(work=poisson(2.0, 300.0, 3)), ask(work=poisson(60.0, 300.0, 3))
    assert (low.saturates, high.saturates) == (0.0, 1.0)
    shares = [ask(work=poisson(r, 400.0, 3), known=calibrated(0.15)).saturates for r in np.arange(10.0, 26.0, 2.0)]
    assert any(0 < s < 1 for s in shares)
    assert shares[0] < 0.5 < shares[-1]


def test_other_hardware_is_scaled_by_the_roofline_and_less_sure() -> None:
    here, there = ask(), ask(BASE.with_(accelerator="A100-80GB"))
    assert there.method == "roofline+simulation"
    assert any("roofline" in note for note in there.notes)
    assert there.metrics["itl_p50_s"].mid > 1.3 * here.metrics["itl_p50_s"].mid
    ratio = [m["itl_p50_s"].high / m["itl_p50_s"].low for m in (here.metrics, there.metrics)]
    assert ratio[1] > 1.5 * ratio[0]
    two = ask(BASE.with_(accelerator_count=2))
    assert two.metrics["itl_p50_s"].mid < here.metrics["itl_p50_s"].mid


@pytest.mark.parametrize("shape", [BASE.with_(accelerator="TPU v9"), Shape(replicas=1, size="Standard_F4s")])
def test_hardware_that_nobody_knows_is_refused(shape: Shape) -> None:
    with pytest.raises(CannotPredict) as caught:
        ask(shape)
    assert caught.value.code == "UNKNOWN_HARDWARE"
    assert "accelerator" in caught.value.detail


def test_extrapolation_is_said() -> None:
    far = dataclasses.replace(calibrated(), load=(0.5, 2.0))
    assert any("extrapolates" in note for note in ask(work=poisson(9.0, 300.0, 2), known=far).notes)
    assert not ask().notes


def test_the_limit_rate_is_where_the_objective_stops_to_hold() -> None:
    work = poisson(4.0, 300.0, 1)
    objective = Objective.from_mapping({"itl_p95_s": 0.025})
    rate = limit(BASE, objective)
    assert rate is not None
    for factor, holds in ((0.97, True), (1.05, False)):
        f = factor * rate * work.duration_s / len(work)
        itl = replay(dataclasses.replace(work, arrival_s=work.arrival_s / f), MODEL).itl.quantile(0.95)
        assert itl is not None
        assert (itl <= 0.025) is holds
    twice = limit(BASE.with_(replicas=2), objective)
    assert twice is not None
    assert 1.6 * rate < twice < 2.4 * rate
    assert limit(BASE, Objective.from_mapping({"itl_p95_s": 1e-4})) is None


def test_the_hardware_table_is_plausible_and_found_under_usual_names() -> None:
    for name, row in ACCELERATORS.items():
        assert name == row.name
        assert 100 < row.bandwidth_gb_s < 20_000
        assert 20 < row.tflops_bf16 < 5_000
        assert row.source
        assert row.as_of
    for spelled, name in (
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("h100 sxm 80gb", "H100"),
        ("Tesla T4", "T4"),
        ("rtx 4090", "RTX-4090"),
    ):
        found = find(spelled)
        assert found is not None
        assert found.name == name
    assert find("abacus") is None
    mine = {"Abacus 9": Hardware("Abacus 9", 1.0, 1.0, 1.0, "mine", "2026-01")}
    assert find("abacus 9", mine) is mine["Abacus 9"]


def test_measured_kernels_scale_where_both_accelerators_have_them() -> None:
    """Kernels of one alone would make a ratio of two beliefs of different kinds."""

    def kernels(factor: float) -> StepTimesSource:
        decoding = np.array([1.0, 8.0, 64.0, 256.0])
        return lambda *_: StepTimes(
            decoding, 1000.0 * decoding, 0.0 * decoding, 0.0 * decoding, factor * (0.006 + 4e-5 * decoding)
        )

    def gap(**factors: float) -> float:
        table = {n: replace(ACCELERATORS[n], kernels=kernels(f)) for n, f in factors.items()}
        known = replace(calibrated(), architecture=MODELS["llama-3.1-8b"])
        found = predict(
            BASE.with_(accelerator="L40S"), poisson(2.0, 300.0, 1), known,
            objective=OBJECTIVE, base_shape=BASE, hardware={**ACCELERATORS, **table}, error=dict(KNOWN), draws=2,
        )  # fmt: skip
        assert any("kernels" in note for note in found.notes) == (len(factors) == 2)
        return found.metrics["itl_p50_s"].mid

    assert gap(H100=5.0) == gap(L40S=5.0) == gap()
    assert gap(H100=1.0, L40S=9.0) > 1.5 * gap(H100=1.0, L40S=1.0)
