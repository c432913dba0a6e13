"""A Shape and a Workload in, a Prediction out; or a refusal.

The workload is replayed once for each draw of the calibration's ensemble. The interval of a metric is the ensemble's 80 % spread,
widened by the method's own error: what the ledger measured on this endpoint, or a stated prior where nothing is measured yet.
Another accelerator is scaled by the roofline, which widens it again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from actuators.shape import Shape
from analyzers.hardware import Hardware, find
from analyzers.objective import Objective
from analyzers.prediction import CannotPredict, Interval, Prediction
from analyzers.whatif.calibrate import Calibrated, Draw
from analyzers.whatif.engine import Replay, Router, replay
from analyzers.whatif.model import EngineModel, Iteration
from analyzers.whatif.traffic import scaled
from collectors.workload import Workload

#: Median relative error that is assumed until the ledger has measured one.
PRIOR_ERROR = {"ttft": 0.25, "queue": 0.25}
PRIOR_ERROR_OTHER = 0.15
#: Added in quadrature when the engine was calibrated on another accelerator: twice the 13 % median of published roofline simulators.
TRANSFER_ERROR = 0.25
#: 80 % of a normal distribution lies within 1.2816 standard deviations; its median absolute error is 0.6745 of one.
_Z80 = 1.2816
_MEDIAN = 0.6745
_ALWAYS = (("ttft_s", 0.5), ("ttft_s", 0.95), ("itl_s", 0.5), ("itl_s", 0.95), ("e2e_s", 0.5), ("e2e_s", 0.95))


def predict(
    shape: Shape,
    workload: Workload,
    calibrated: Calibrated,
    *,
    objective: Objective,
    base_shape: Shape,
    hardware: Mapping[str, Hardware],
    error: Mapping[str, float | None],
    draws: int = 16,
    router: Router = "round_robin",
) -> Prediction:
    """How ``shape`` would respond to ``workload``.

    calibrated: learned on ``base_shape``. hardware: accelerators by name. error: the ledger's median relative error by metric.
    draws: members of the ensemble to replay, beside the best fit.
    ``saturates`` is the share of replays whose queue still grew when the traffic ended (``Replay.saturated`` states the criterion).
    Raises CannotPredict: ``UNKNOWN_HARDWARE``, ``UNKNOWN_REPLICAS``, ``INVALID_LIMITS``.
    """
    candidate = Candidate.of(shape, calibrated, base_shape, hardware)
    members = [candidate.best, *candidate.draws[: max(0, draws)]]
    rows, saturated = [], 0
    for member in members:
        got = candidate.run(workload, member, router)
        saturated += got.saturated
        rows.append(_metrics(got, objective, member.overhead_s))
    names = [name for name, value in rows[0].items() if value is not None]
    extra = TRANSFER_ERROR if candidate.transferred else 0.0
    metrics = {}
    for name in names:
        values = np.array([v for row in rows if (v := row[name]) is not None])
        metrics[name] = _interval(
            name, float(values[0]), values[1:] if values.shape[0] > 1 else values, error.get(name), extra
        )
    notes = list(candidate.notes)
    low, high = calibrated.load
    expected = metrics["running_mean"].mid / candidate.replicas
    beyond = not 0.5 * low <= expected <= 1.5 * high
    if not candidate.transferred and beyond:
        notes.append(
            f"expects {expected:.3g} running sequences per replica; {low:.3g} to {high:.3g} were seen in calibration, so this extrapolates"
        )
    return Prediction(
        metrics=metrics,
        saturates=saturated / len(members),
        method="roofline+simulation" if candidate.transferred else "simulation",
        error={name: error.get(name) for name in metrics},
        notes=tuple(notes),
        extrapolates=beyond or candidate.transferred,
    )


def limit_rate(
    shape: Shape,
    workload: Workload,
    calibrated: Calibrated,
    *,
    objective: Objective,
    base_shape: Shape,
    hardware: Mapping[str, Hardware],
    router: Router = "round_robin",
    precision: float = 0.02,
) -> float | None:
    """The highest request rate, per second and of the same mix, at which the best fit still meets ``objective``.

    Arrivals are sped up or slowed down as a whole; bisection to ``precision``. The objective's ``error_rate`` is not simulated and
    does not bind; without latency targets, the rate is the one above which the queue grows. None: not even a hundredth of the
    workload's rate meets it, or the workload has no duration to scale. Raises as ``predict``.
    """
    candidate = Candidate.of(shape, calibrated, base_shape, hardware)
    if not workload.duration_s > 0:
        return None

    def meets(factor: float) -> bool:
        got = candidate.run(scaled(workload, factor), candidate.best, router)
        if got.saturated or not got.completed:
            return False
        values = _metrics(got, objective, candidate.best.overhead_s)
        return all((v := values.get(t.name)) is None or v <= t.limit for t in objective.targets)

    low, high = 1.0, 1.0
    if meets(1.0):
        while meets(high := high * 2.0):
            low = high
            if high > 1e4:
                break
    else:
        while not meets(low := low / 2.0):
            high = low
            if low < 0.01:
                return None
    while high / low > 1.0 + precision:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low * len(workload) / workload.duration_s


class Candidate:
    """A shape as engines to replay: the calibration with the shape's limits, and scaled to its accelerators."""

    def __init__(
        self,
        model: EngineModel,
        best: Draw,
        draws: tuple[Draw, ...],
        replicas: int,
        transferred: bool,
        notes: tuple[str, ...],
    ) -> None:
        self.model = model
        self.best = best
        self.draws = draws
        self.replicas = replicas
        self.transferred = transferred
        """Whether it was calibrated on other hardware."""
        self.notes = notes

    @classmethod
    def of(cls, shape: Shape, calibrated: Calibrated, base: Shape, hardware: Mapping[str, Hardware]) -> Candidate:
        """Raises CannotPredict where the shape is not known well enough, or its limits contradict each other."""
        replicas = shape.replicas or shape.max_replicas
        if not replicas:
            raise CannotPredict("UNKNOWN_REPLICAS", f"{shape.label()}: the number of replicas is not known; state it")
        notes: list[str] = []
        if shape.replicas is None:
            notes.append(f"autoscaled: replayed with all {replicas} replicas that its bounds allow")
        memory, compute, capacity = _ratios(shape, base, hardware, notes)
        model = _limited(calibrated.model, shape, base, capacity, notes)
        found = (Draw(calibrated.model.iteration, calibrated.overhead_s), *calibrated.draws)
        best, *rest = (replace(d, iteration=_scaled(d.iteration, memory, compute)) for d in found)
        return cls(model, best, tuple(rest), replicas, (memory, compute) != (1.0, 1.0), tuple(notes))

    def run(self, workload: Workload, draw: Draw, router: Router) -> Replay:
        """Replay with this draw's coefficients. A queue without end is cut off well after the last arrival."""
        horizon = workload.duration_s * 2.0 + 600.0
        return replay(
            workload,
            replace(self.model, iteration=draw.iteration),
            replicas=self.replicas,
            router=router,
            horizon=horizon,
        )


def _ratios(
    shape: Shape, base: Shape, hardware: Mapping[str, Hardware], notes: list[str]
) -> tuple[float, float, float | None]:
    """Per replica, new over old: bandwidth, arithmetic, and memory (None where no new hardware is involved)."""
    same_kind = (shape.accelerator or base.accelerator) == base.accelerator and (
        shape.size == base.size or shape.size is None or shape.accelerator is not None
    )
    count, base_count = shape.accelerator_count or 1, base.accelerator_count or 1
    if shape.accelerator is None and shape.size in (None, base.size):
        count = base_count
    if same_kind and count == base_count:
        return 1.0, 1.0, None
    known: list[Hardware] = []
    for which, name in (("candidate", shape.accelerator), ("calibrated", base.accelerator)):
        row = find(name, hardware) if name else None
        if row is None:
            raise CannotPredict(
                "UNKNOWN_HARDWARE",
                f"the {which} shape ({(shape if which == 'candidate' else base).label()}) names no accelerator with a known bandwidth; "
                "state its `accelerator`, and add it to the hardware table if it is not there",
            )
        known.append(row)
    new, old = known
    # More accelerators share the work, and pay for it in communication: 85 % for each doubling.
    split = 0.85 ** math.log2(count / base_count) * count / base_count
    notes.append(
        f"calibrated on {base_count} x {old.name}, scaled by the roofline to {count} x {new.name} "
        f"(bandwidth {new.bandwidth_gb_s / old.bandwidth_gb_s:.2f}, arithmetic {new.tflops_bf16 / old.tflops_bf16:.2f}, each accelerator)"
    )
    return (
        split * new.bandwidth_gb_s / old.bandwidth_gb_s,
        split * new.tflops_bf16 / old.tflops_bf16,
        (new.memory_gb * count) / (old.memory_gb * base_count),
    )


def _scaled(iteration: Iteration, memory: float, compute: float) -> Iteration:
    """Decode goes with memory bandwidth, prefill with arithmetic."""
    return Iteration(
        iteration.base_s / memory,
        iteration.per_sequence_s / memory,
        iteration.per_context_token_s / memory,
        iteration.per_prefill_token_s / compute,
        iteration.per_prefill_context_token_s / compute,
    )


def _limited(model: EngineModel, shape: Shape, base: Shape, capacity: float | None, notes: list[str]) -> EngineModel:
    """The calibrated limits with those that the shape states, and a cache that goes with memory where hardware changes."""
    changes: dict[str, int] = {}
    for name in ("max_num_seqs", "max_num_batched_tokens", "kv_tokens", "block_size", "max_model_len"):
        value = shape.engine.get(name)
        if value is not None:
            changes[name] = int(value)
    usual, wanted = (s.engine.get("gpu_memory_utilization") for s in (base, shape))
    if capacity is not None and "kv_tokens" not in changes and model.limits.kv_tokens is not None:
        changes["kv_tokens"] = max(model.limits.block_size, int(model.limits.kv_tokens * capacity))
        notes.append(
            "KV capacity scaled with memory; weights take their share first, so a smaller card holds less than this"
        )
    elif usual != wanted:
        notes.append(
            "gpu_memory_utilization changes the KV capacity, which is left as calibrated; state kv_tokens to replay it"
        )
    chunked = shape.engine.get("enable_chunked_prefill", model.chunked_prefill)
    try:
        return replace(model.with_limits(**changes), chunked_prefill=bool(chunked))
    except ValueError as problem:
        raise CannotPredict("INVALID_LIMITS", f"{shape.label()}: {problem}") from problem


def _metrics(got: Replay, objective: Objective, overhead_s: float) -> dict[str, float | None]:
    """By the objective's names. None: no value came of it (nothing completed, or it is not simulated)."""
    out: dict[str, float | None] = {}
    targets = [(t.metric, t.quantile) for t in objective.targets if t.quantile is not None]
    for metric, q in (*_ALWAYS, *targets):
        assert q is not None
        value = got.distribution(metric).quantile(q)
        if value is not None and metric in ("ttft_s", "e2e_s"):
            value += overhead_s
        out[f"{metric.removesuffix('_s')}_p{q * 100:g}_s"] = value
    span = got.simulated_s or 1.0
    out["output_tokens_per_s"] = got.output_tokens / span
    out["requests_per_s"] = got.completed / span
    out["running_mean"] = got.running_mean
    out["waiting_mean"] = got.waiting_mean
    out["kv_usage_max"] = got.kv_usage_max
    return out


def _interval(name: str, mid: float, values: np.ndarray, measured: float | None, extra: float) -> Interval:
    """The ensemble's 10 % and 90 % quantiles, widened in quadrature (in logarithms) by the method's own error.

    Rates that the demand sets, not the engine (``output_tokens_per_s``, ``requests_per_s``), are not widened by it.
    """
    low, high = (float(v) for v in np.quantile(values, (0.1, 0.9)))
    low, high = min(low, mid), max(high, mid)
    if mid <= 0 or name in ("output_tokens_per_s", "requests_per_s"):
        return Interval(low, mid, high)
    family = name.split("_", maxsplit=1)[0]
    median_error = measured if measured is not None else PRIOR_ERROR.get(family, PRIOR_ERROR_OTHER)
    own = _Z80 * math.hypot(median_error / _MEDIAN, extra)
    down = math.hypot(math.log(mid / max(low, mid * 1e-9)), own)
    up = math.hypot(math.log(high / mid), own)
    top = mid * math.exp(min(up, 50.0))
    return Interval(mid * math.exp(-down), mid, min(top, 1.0) if name == "kv_usage_max" else top)
