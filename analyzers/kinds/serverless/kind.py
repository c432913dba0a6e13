"""A serverless endpoint as a kind: how long its calls run and what a cold start takes, learned from its own windows.

Two forms. Where each call is an instance of its own (a job), it waits what such calls were seen to wait, and runs. Where instances stay for the
next call, the platform is replayed (``platform``): its bounds decide who meets a cold start. Another number of cores changes the run time by
something between nothing and their ratio: which, no window tells, and so the interval holds both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from actuators.shape import Autoscaling, Shape
from analyzers.hardware import Hardware
from analyzers.kinds.base import Basis
from analyzers.kinds.serverless.platform import Serverless, run
from analyzers.money import Usage
from analyzers.objective import merged
from analyzers.policy import Catalogue, Policy, violations
from analyzers.prediction import AutoscaledDay, Bar, CannotPredict, Interval, Miss, Prediction
from analyzers.whatif.distribution import Samples
from analyzers.whatif.predict import widened
from analyzers.whatif.traffic import workload_from_windows
from collectors.sketch import Sketch
from collectors.window import Window
from collectors.workload import Floats, Workload

#: The fact of a source whose calls are each an instance of its own, ended with the call.
MODE, JOBS = "mode", "jobs"
#: A distribution of fewer calls says too little.
_LEAST_REQUESTS = 10.0
#: Values that a distribution is kept as.
_VALUES = 200
#: Seconds that a cold start is taken for where none was ever seen: an image that is there, and one that is not.
_COLD_PRIOR = Interval(3.0, 15.0, 90.0)
#: An instance goes after so long without a call: Knative's stable window and its grace.
IDLE_S = 90.0
_SEEDS = (7, 8, 9)
_TARGETS = (("e2e_s", 0.5), ("e2e_s", 0.95), ("queue_s", 0.95))


@dataclass(frozen=True, slots=True)
class CalibratedFunction:
    """What a call takes, and what it waits for an instance."""

    key: str
    jobs: bool
    """Whether each call is an instance of its own."""
    run_s: tuple[float, ...]
    """Seconds of calls once they run, from the shortest to the longest: evenly spaced quantiles."""
    wait_s: tuple[float, ...]
    """Of jobs: seconds from the call to its run. Empty of others."""
    cold_s: Interval
    """Seconds of a cold start."""
    cpus: float | None
    windows: int
    requests: float
    load: tuple[float, float]
    notes: tuple[str, ...] = ()
    residuals: Mapping[str, float] = field(default_factory=dict)

    @property
    def misfit(self) -> Mapping[str, float]:
        """None: nothing is fitted, what was seen is drawn again."""
        return {}

    @property
    def warnings(self) -> tuple[str, ...]:
        return ()

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "load": list(self.load), "notes": list(self.notes), "residuals": dict(self.residuals)}


class ServerlessKind:
    """See ``kinds.base.Kind``."""

    name = "serverless"
    bursts = False

    def key(self, facts: Mapping[str, str], shape: Shape) -> str:
        """Not the bounds': a call runs as it does, whatever they are."""
        size = shape.size or (f"{shape.cpus:g} cores" if shape.cpus is not None else "unknown")
        gpus = f"{shape.accelerator_count} GPUs" if shape.accelerator_count else "no GPU"
        return "/".join(["serverless", size, gpus, *(f"{k}={facts[k]}" for k in sorted(facts) if k in ("model", MODE))])

    def calibrate(
        self, windows: Sequence[Window], shape: Shape, _hardware: Hardware | None, _recorded: Workload | None = None
    ) -> CalibratedFunction:
        jobs = any(w.facts.get(MODE) == JOBS for w in windows)
        runs, of = merged(windows, "processing_s"), "processing_s"
        if runs is None:
            runs, of = merged(windows, "e2e_s"), "e2e_s"
        if runs is None or runs.count < _LEAST_REQUESTS:
            text = f"{_LEAST_REQUESTS:g} calls with their time are needed: a source of processing_s or e2e_s"
            raise CannotPredict("NO_EVIDENCE", text)
        notes = (
            []
            if of == "processing_s"
            else ["run times include queue and cold starts, as the source tells them together"]
        )
        waits = merged(windows, "queue_s") if jobs else None
        if jobs and waits is None:
            raise CannotPredict("NO_EVIDENCE", "jobs whose wait is not told: a source of queue_s is needed")
        cold, seen = _cold(windows)
        if not seen and not jobs:
            notes.append(f"no cold start was seen: from {cold.low:g} to {cold.high:g} s are taken for one")
        running = [m for w in windows if (m := w.mean("running")) is not None]
        return CalibratedFunction(
            key=self.key(windows[-1].facts, shape),
            jobs=jobs,
            run_s=_values(runs),
            wait_s=() if waits is None else _values(waits),
            cold_s=cold,
            cpus=shape.cpus,
            windows=len(windows),
            requests=float(runs.count),
            load=(min(running, default=0.0), max(running, default=0.0)),
            notes=tuple(notes),
        )

    def read(self, data: Mapping[str, Any]) -> CalibratedFunction:
        least, most = data["load"]
        lists = {name: tuple(data[name]) for name in ("run_s", "wait_s", "notes")}
        return CalibratedFunction(**{**data, **lists, "load": (least, most), "cold_s": Interval(**data["cold_s"])})

    def workload(self, windows: Sequence[Window], *, seed: int, scale: float = 1.0) -> Workload:
        return workload_from_windows(windows, seed=seed, scale=scale, lengths=False)

    def knobs(self, shape: Shape, policy: Policy, catalogue: Catalogue) -> list[Shape]:
        """Other least counts within the present most, and greater most counts; of jobs nothing, as no bound holds them."""
        bounds = shape.autoscaling
        if bounds is None:
            return [shape]
        top = policy.max_replicas if policy.max_replicas is not None else bounds.most
        counts = range(policy.min_replicas, min(bounds.most, top) + 1)
        found = [replace(bounds, least=least) for least in counts if least != bounds.least]
        found += [replace(bounds, most=most) for most in range(bounds.most + 1, top + 1)]
        shapes = [shape.with_(autoscaling=each) for each in found]
        return [shape, *(s for s in shapes if not violations(s, shape, policy, catalogue))]

    def predict(self, shape: Shape, workload: Workload, calibrated: CalibratedFunction, basis: Basis) -> Prediction:
        speeds = _speeds(shape, calibrated)
        names = dict.fromkeys([*_TARGETS, *((t.metric, t.quantile) for t in basis.objective.targets)])
        rows, saturated, mids = list[dict[str, float]](), 0, list[dict[str, float]]()
        for cold, speed, seed in _cases(calibrated, speeds):
            row, full = _replayed(shape, workload, calibrated, cold, speed, seed, list(names))
            rows.append(row)
            saturated += full
            if (cold, speed) == (calibrated.cold_s.mid, speeds.mid):
                mids.append(row)
        metrics = {}
        for name in rows[0]:
            values, mid = [r[name] for r in rows], float(np.median([r[name] for r in mids]))
            interval = Interval(min(min(values), mid), mid, max(max(values), mid))
            metrics[name] = widened(name, interval, basis.error.get(name))
        notes = list(calibrated.notes)
        if speeds.low != speeds.high:
            notes.append("what other cores do to a call is not known: from nothing to their ratio")
        return Prediction(
            metrics=metrics,
            saturates=saturated / len(rows),
            method="jobs" if calibrated.jobs else "serverless",
            error={name: basis.error.get(name) for name in metrics},
            notes=tuple(notes),
            extrapolates=speeds.low != speeds.high,
        )

    def screen(
        self, shape: Shape, workload: Workload, calibrated: CalibratedFunction, basis: Basis, _bar: Bar
    ) -> Prediction | Miss:
        return self.predict(shape, workload, calibrated, basis)  # its replays cost next to nothing

    def spill(self, _shape: Shape, _workload: Workload, _calibrated: CalibratedFunction, _basis: Basis) -> Usage | None:
        return None

    def follow(
        self, shape: Shape, _workload: Workload, _calibrated: CalibratedFunction, _basis: Basis, _cold_start_s: float, /
    ) -> AutoscaledDay:
        raise CannotPredict(
            "UNREPLAYABLE_AUTOSCALER", f"{shape.label()}: a platform's own scaling has no target to tune"
        )


def _cold(windows: Sequence[Window]) -> tuple[Interval, bool]:
    """A cold start, and whether any was seen."""
    seen = merged(windows, "cold_start_s")
    if seen is None or seen.count < 1:
        return _COLD_PRIOR, False
    low, mid, high = (seen.quantile(q) or 0.0 for q in (0.1, 0.5, 0.9))
    return Interval(low, mid, high), True


def _values(sketch: Sketch) -> tuple[float, ...]:
    return tuple(float(sketch.quantile((i + 0.5) / _VALUES) or 0.0) for i in range(_VALUES))


def _speeds(shape: Shape, calibrated: CalibratedFunction) -> Interval:
    """How many times as long a call runs as it did."""
    if shape.cpus == calibrated.cpus:
        return Interval(1.0, 1.0, 1.0)
    if shape.cpus is None or calibrated.cpus is None:
        text = f"{shape.label()}: its number of CPU cores, or that of the present one, is not known; state `cpus`"
        raise CannotPredict("UNKNOWN_CORES", text)
    ratio = calibrated.cpus / shape.cpus
    return Interval(min(1.0, ratio), math.sqrt(ratio), max(1.0, ratio))


def _cases(calibrated: CalibratedFunction, speeds: Interval) -> list[tuple[float, float, int]]:
    """The middle by several draws, and both ends of what is not known."""
    cold = calibrated.cold_s
    middle = [(cold.mid, speeds.mid, seed) for seed in _SEEDS]
    ends = dict.fromkeys([(cold.low, speeds.low), (cold.high, speeds.high)])
    return [*middle, *((c, s, _SEEDS[0]) for c, s in ends if (c, s) != (cold.mid, speeds.mid))]


def _replayed(
    shape: Shape,
    workload: Workload,
    calibrated: CalibratedFunction,
    cold_s: float,
    speed: float,
    seed: int,
    names: Sequence[tuple[str, float | None]],
) -> tuple[dict[str, float], bool]:
    """The figures of one replay, and whether its queue grows without end."""
    rng, n = np.random.default_rng(seed), len(workload)
    work: Floats = rng.choice(np.array(calibrated.run_s), n) * speed
    if calibrated.jobs:
        queue = rng.choice(np.array(calibrated.wait_s), n)
        times = {"queue_s": queue, "e2e_s": queue + work}
        span = workload.duration_s or 1.0
        row = {"requests_per_s": n / span, "instances_mean": float(times["e2e_s"].sum()) / span}
        return row | _quantiles({k: Samples(v) for k, v in times.items()}, names), False
    platform = _platform(shape, cold_s)
    got = run(workload, platform, np.full(n, -1.0), work, packed=True)
    span = got.simulated_s or 1.0
    row = {
        "requests_per_s": got.completed / span,
        "instances_mean": got.used["instance_s"] / span,
        "running_mean": got.gauges["running_mean"],
        "cold_start_share": float(min(1.0, got.gauges["cold_starts"] / n)),
    }
    return row | _quantiles({"e2e_s": got.e2e, "queue_s": got.queue}, names), got.saturated


def _quantiles(times: Mapping[str, Samples], names: Sequence[tuple[str, float | None]]) -> dict[str, float]:
    found = {}
    for metric, q in names:
        value = times[metric].quantile(q) if q is not None and metric in times else None
        if value is not None and q is not None:
            found[f"{metric.removesuffix('_s')}_p{q * 100:g}_s"] = float(value)
    return found


def _platform(shape: Shape, cold_s: float) -> Serverless:
    """Raises CannotPredict where the shape does not say how many instances there may be."""
    bounds = shape.autoscaling
    if bounds is None and shape.replicas is not None:
        bounds = Autoscaling(shape.replicas, shape.replicas)
    if bounds is None or bounds.most < 1:
        text = f"{shape.label()}: how many instances there may be is not known; set shape.autoscaling, or an actuator"
        raise CannotPredict("UNKNOWN_SHAPE", text)
    limit = shape.engine.get("max_concurrency", 1)
    concurrency = int(limit) if isinstance(limit, int | float) and limit >= 1 else 1
    return Serverless(concurrency, cold_s, bounds.most, min(bounds.least, bounds.most), IDLE_S)
