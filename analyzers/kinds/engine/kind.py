"""Continuous batching (vLLM, SGLang, TGI) as a kind: the what-if engine, calibrated on windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actuators.shape import Shape
from analyzers.autoscaling.case import breach_hours, case_of, in_time, play
from analyzers.autoscaling.own import fleet_of
from analyzers.hardware import Hardware
from analyzers.kinds.base import Basis
from analyzers.money import Usage
from analyzers.policy import Catalogue, Policy, candidates
from analyzers.prediction import AutoscaledDay, Bar, Miss, Prediction
from analyzers.whatif.calibrate import CalibratedEngine, calibrate, calibration_key
from analyzers.whatif.predict import Ensemble, predict, screen
from analyzers.whatif.traffic import workload_from_windows
from collectors.window import Window
from collectors.workload import Workload


class EngineKind:
    """See ``kinds.base.Kind``."""

    name = "engine"
    bursts = False

    def key(self, facts: Mapping[str, str], shape: Shape) -> str:
        return calibration_key(facts, shape)

    def calibrate(
        self, windows: Sequence[Window], shape: Shape, hardware: Hardware | None, _recorded: Workload | None = None
    ) -> CalibratedEngine:
        return calibrate(windows, shape, prior=None, hardware=hardware)

    def read(self, data: Mapping[str, Any]) -> CalibratedEngine:
        return CalibratedEngine.from_dict(data)

    def workload(self, windows: Sequence[Window], *, seed: int, scale: float = 1.0) -> Workload:
        return workload_from_windows(windows, seed=seed, scale=scale)

    def knobs(self, shape: Shape, policy: Policy, catalogue: Catalogue) -> list[Shape]:
        return candidates(shape, policy, catalogue)

    def predict(self, shape: Shape, workload: Workload, calibrated: CalibratedEngine, basis: Basis) -> Prediction:
        return predict(shape, workload, calibrated, **_how(basis))

    def screen(
        self, shape: Shape, workload: Workload, calibrated: CalibratedEngine, basis: Basis, bar: Bar
    ) -> Prediction | Miss:
        return screen(shape, workload, calibrated, bar, **_how(basis))

    def spill(self, _shape: Shape, _workload: Workload, _calibrated: CalibratedEngine, _basis: Basis) -> Usage | None:
        return None

    def follow(
        self, shape: Shape, workload: Workload, calibrated: CalibratedEngine, basis: Basis, cold_start_s: float
    ) -> AutoscaledDay:
        fleet = fleet_of(shape, cold_start_s)
        policy = fleet.policy
        assert policy is not None, "an autoscaler's fleet has one"
        one = Ensemble.of(
            shape.with_(replicas=1, autoscaling=None), calibrated, basis.present, basis.catalogue.hardware
        )
        case = case_of(
            "day",
            workload,
            workload.duration_s,
            one.best_model,
            basis.objective,
            overhead_s=one.draws[0].overhead_s,
            replicas=fleet.replicas,
            most=fleet.max_replicas,
            cold_start_s=cold_start_s,
        )
        played = play(case, lambda _machine: policy)
        good = in_time(case, played)
        return AutoscaledDay(played.replica_s / case.duration_s, float(good.mean()), len(breach_hours(case, good)))


def _how(basis: Basis) -> dict[str, Any]:
    return {
        "objective": basis.objective,
        "base_shape": basis.present,
        "hardware": basis.catalogue.hardware,
        "error": basis.error,
        "router": basis.router,
    }
