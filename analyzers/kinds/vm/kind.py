"""A plain VM endpoint as a kind: the universal scalability law, fitted to its own windows.

A window is one steady load: the mean requests in one machine (a gauge, or Little's law) and their mean time, of a distribution or of the
seconds that were spent in requests. Another size is reached by its number of cores, with what the law was off by at home (``away``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from actuators.shape import Shape
from analyzers.hardware import Hardware
from analyzers.kinds.base import Basis
from analyzers.kinds.vm import usl
from analyzers.kinds.vm.away import away, carried
from analyzers.kinds.vm.usl import Point, Usl, UslFit
from analyzers.money import Usage
from analyzers.policy import Catalogue, Policy, candidates
from analyzers.prediction import AutoscaledDay, Bar, CannotPredict, Interval, Miss, Prediction
from analyzers.whatif.predict import replicas_of, widened
from analyzers.whatif.traffic import workload_from_windows
from collectors.window import Window
from collectors.workload import Workload

#: Windows of fewer requests say too little of a mean.
_LEAST_REQUESTS = 10.0
#: Points that a fit is made of, at most: windows alike in load are taken together.
_MOST_POINTS = 24
_DRAWS = 24


@dataclass(frozen=True, slots=True)
class CalibratedMachine:
    """The law of one machine, and what it rests on."""

    key: str
    fit: UslFit
    cpus: float | None
    """Of the machine that it was learned on; None: not known, and no other size is predicted."""
    windows: int
    requests: float
    notes: tuple[str, ...] = ()
    residuals: Mapping[str, float] = field(default_factory=dict)
    away: Mapping[str, Interval] = field(default_factory=dict)
    """By metric: observed over replayed, on the shape that it was learned on."""

    @property
    def load(self) -> tuple[float, float]:
        return self.fit.load

    @property
    def misfit(self) -> Mapping[str, float]:
        """None: points that lie on no such curve are refused."""
        return {}

    @property
    def warnings(self) -> tuple[str, ...]:
        return ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "fit": asdict(self.fit),
            "cpus": self.cpus,
            "windows": self.windows,
            "requests": self.requests,
            "notes": list(self.notes),
            "residuals": dict(self.residuals),
            "away": {name: asdict(interval) for name, interval in self.away.items()},
        }


class VmKind:
    """See ``kinds.base.Kind``."""

    name = "vm"
    bursts = False

    def key(self, facts: Mapping[str, str], shape: Shape) -> str:
        machine = shape.size or (f"{shape.cpus:g} cores" if shape.cpus is not None else "unknown")
        return "/".join(["vm", machine, *(f"{k}={facts[k]}" for k in sorted(facts) if k in ("model", "version"))])

    def calibrate(
        self, windows: Sequence[Window], shape: Shape, _hardware: Hardware | None, _recorded: Workload | None = None
    ) -> CalibratedMachine:
        seen = [p for w in windows if (p := _load(w, _machines(w, shape))) is not None]
        if not seen:
            detail = (
                "no window tells how long requests took and how many came; a source of e2e_s and requests is needed"
            )
            raise CannotPredict("NO_EVIDENCE", detail)
        fit = usl.fit(_points(seen), draws=_DRAWS)
        return CalibratedMachine(
            key=self.key(windows[-1].facts, shape),
            fit=fit,
            cpus=shape.cpus,
            windows=len(seen),
            requests=sum(requests for _, _, requests in seen),
            notes=fit.notes,
            residuals={"e2e_s": fit.scatter},
            away=away(windows, fit, shape.replicas or 1),
        )

    def read(self, data: Mapping[str, Any]) -> CalibratedMachine:
        fit = dict(data["fit"])
        law = UslFit(
            **{
                **fit,
                "best": Usl(**fit["best"]),
                "draws": tuple(Usl(**d) for d in fit["draws"]),
                "load": (fit["load"][0], fit["load"][1]),
                "notes": tuple(fit["notes"]),
            }
        )
        away = {name: Interval(**interval) for name, interval in data["away"].items()}
        return CalibratedMachine(**{**data, "fit": law, "notes": tuple(data["notes"]), "away": away})

    def workload(self, windows: Sequence[Window], *, seed: int, scale: float = 1.0) -> Workload:
        return workload_from_windows(windows, seed=seed, scale=scale, lengths=False)

    def knobs(self, shape: Shape, policy: Policy, catalogue: Catalogue) -> list[Shape]:
        return candidates(shape, policy, catalogue)

    def predict(self, shape: Shape, workload: Workload, calibrated: CalibratedMachine, basis: Basis) -> Prediction:
        fitted = _on(shape, calibrated)
        limit = shape.engine.get("max_concurrency")
        got = usl.predict(
            fitted,
            workload,
            objective=basis.objective,
            replicas=replicas_of(shape),
            max_concurrency=int(limit) if isinstance(limit, int | float) else None,
            error=basis.error,
        )
        metrics = carried(got.metrics, calibrated.away)
        return replace(got, metrics={name: widened(name, i, basis.error.get(name)) for name, i in metrics.items()})

    def screen(
        self, shape: Shape, workload: Workload, calibrated: CalibratedMachine, basis: Basis, _bar: Bar
    ) -> Prediction | Miss:
        return self.predict(shape, workload, calibrated, basis)  # its replays cost next to nothing

    def spill(self, _shape: Shape, _workload: Workload, _calibrated: CalibratedMachine, _basis: Basis) -> Usage | None:
        return None

    def follow(
        self, shape: Shape, _workload: Workload, _calibrated: CalibratedMachine, _basis: Basis, _cold_start_s: float, /
    ) -> AutoscaledDay:
        raise CannotPredict(
            "UNREPLAYABLE_AUTOSCALER", f"{shape.label()}: only engines are replayed under an autoscaler"
        )


def _on(shape: Shape, calibrated: CalibratedMachine) -> UslFit:
    if shape.cpus == calibrated.cpus:
        return calibrated.fit
    if shape.cpus is None or calibrated.cpus is None:
        raise CannotPredict(
            "UNKNOWN_CORES",
            f"{shape.label()}: its number of CPU cores, or that of the present size, is not known; state `cpus`",
        )
    return usl.on_cores(calibrated.fit, shape.cpus / calibrated.cpus)


def _machines(window: Window, shape: Shape) -> float:
    """How many there were, as the window saw it; else as the shape says."""
    return window.mean("replicas") or shape.replicas or window.targets or 1


def _load(window: Window, machines: float) -> tuple[float, float, float] | None:
    """(mean requests in one machine, their mean seconds, how many requests); None of a window that does not tell."""
    rate, requests = window.rate("requests"), window.count("requests")
    seconds = _mean_s(window)
    if not rate or requests is None or requests < _LEAST_REQUESTS or not seconds:
        return None
    return rate * seconds / machines, seconds, requests  # Little's law: exact, where a gauge is a few samples


def _mean_s(window: Window) -> float | None:
    """The mean end-to-end time: of the distribution, else of the seconds that were spent in requests."""
    sketch = window.sketches.get("e2e_s")
    if sketch is not None and sketch.mean:
        return sketch.mean
    spent, requests = window.count("e2e_total_s"), window.count("requests")
    return spent / requests if spent and requests else None


def _points(seen: Sequence[tuple[float, float, float]]) -> list[Point]:
    """Windows alike in load taken together, weighted by their requests."""
    ordered = sorted(seen)
    groups = np.array_split(np.arange(len(ordered)), min(_MOST_POINTS, len(ordered)))
    points = []
    for group in groups:
        rows = np.array([ordered[i] for i in group])
        concurrency, seconds = (float(np.average(rows[:, k], weights=rows[:, 2])) for k in (0, 1))
        points.append(Point(concurrency, latency_s=seconds))
    return points
