"""A Shape and a Workload in, a Prediction out; or a refusal.

The workload is replayed once for each draw of the calibration's ensemble. The interval of a metric is the ensemble's 80 % spread,
widened by the method's own error: what the ledger measured on this endpoint, or a stated prior where nothing is measured yet.
Another accelerator is scaled by the roofline, which widens it again.

``screen`` is ``predict`` for those who only want it if it stays within a bar: it stops at the first replay after which it cannot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actuators.shape import Shape
from analyzers.hardware import Hardware, find
from analyzers.objective import Objective
from analyzers.prediction import Bar, CannotPredict, Interval, Miss, Prediction
from analyzers.whatif.calibrate import CalibratedEngine
from analyzers.whatif.discrepancy import Z80, Discrepancy
from analyzers.whatif.engine import Replay, Router
from analyzers.whatif.fit import PosteriorDraw
from analyzers.whatif.fleet import ReplicaFleet
from analyzers.whatif.model import EngineModel, IterationCost
from analyzers.whatif.outlook import Member, look
from analyzers.whatif.roofline import RooflineMachine
from analyzers.whatif.traffic import scaled
from collectors.workload import Floats, Workload

#: Median relative error that is assumed until the ledger has measured one.
PRIOR_ERROR = {"ttft": 0.25, "queue": 0.25}
PRIOR_ERROR_OTHER = 0.15
#: Added in quadrature when the engine was calibrated on another accelerator: twice the 13 % median of published roofline simulators.
TRANSFER_ERROR = 0.25
#: A normal distribution's median absolute error, in standard deviations.
_MEDIAN = 0.6745
#: A best fit that is this far beyond its bar is not brought back by the other members' doubt.
BEYOND = 1.5
#: Work that a bound finds beyond capacity by this factor is so whatever the fit was off by.
_OVERLOAD = 1.15
#: Members of the ensemble that are replayed beside the best fit.
DRAWS = 16
_SET_BY_DEMAND = frozenset(("output_tokens_per_s", "requests_per_s", "goodput_per_s", "replica_hours", "cost_usd"))
_ALWAYS = (("ttft_s", 0.5), ("ttft_s", 0.95), ("itl_s", 0.5), ("itl_s", 0.95), ("e2e_s", 0.5), ("e2e_s", 0.95))


def predict(
    shape: Shape,
    workload: Workload,
    calibrated: CalibratedEngine,
    *,
    objective: Objective,
    base_shape: Shape,
    hardware: Mapping[str, Hardware],
    error: Mapping[str, float | None],
    draws: int = DRAWS,
    router: Router = "round_robin",
) -> Prediction:
    """How ``shape`` would respond to ``workload``.

    calibrated: learned on ``base_shape``. hardware: accelerators by name. error: the ledger's median relative error by metric.
    draws: members of the ensemble to replay, beside the best fit.
    ``saturates`` is the share of replays whose queue still grew when the traffic ended (``Replay.saturated`` states the criterion).
    Raises CannotPredict: ``UNKNOWN_HARDWARE``, ``UNKNOWN_REPLICAS``, ``INVALID_LIMITS``.
    """
    ensemble, replicas = Ensemble.of(shape, calibrated, base_shape, hardware), replicas_of(shape)
    members = list(ensemble.members(workload, draws, replicas=replicas, router=router))
    rows, saturated = [_metrics(m, objective) for m in members], [m.replay.saturated for m in members]
    return ensemble.prediction(members[0].replay, saturated, rows, error)


def screen(
    shape: Shape,
    workload: Workload,
    calibrated: CalibratedEngine,
    bar: Bar,
    *,
    objective: Objective,
    base_shape: Shape,
    hardware: Mapping[str, Hardware],
    error: Mapping[str, float | None],
    draws: int = DRAWS,
    router: Router = "round_robin",
) -> Prediction | Miss:
    """``predict``, or why its result would not stay within ``bar``. Parameters and errors as ``predict`` has them.

    In this order: a lower bound on the work against what the replicas can do; the best fit, where it is far beyond the bar; the
    members one by one, until so many are beyond the bar that the rest cannot change it. Only the second can be wrong: where the
    ensemble's middle is better than ``BEYOND`` times the best fit's.
    """
    ensemble, replicas = Ensemble.of(shape, calibrated, base_shape, hardware), replicas_of(shape)
    overloaded, load = ensemble.overload(workload, replicas, draws)
    if overloaded > bar.saturates:
        return Miss(None, load, 0)
    members: list[Member] = []
    rows: list[Figures] = []
    extra = TRANSFER_ERROR if ensemble.transferred else 0.0
    count = _Count(bar, 1 + min(draws, len(ensemble.draws) - 1), error, extra)
    for member in ensemble.members(workload, draws, replicas=replicas, router=router):
        members.append(member)
        rows.append(_metrics(member, objective))
        if (miss := count.after(member, rows[-1])) is not None:
            return miss
    return ensemble.prediction(members[0].replay, [m.replay.saturated for m in members], rows, error)


class _Count:
    """How many members are beyond the bar so far, and whether the rest can still make up for them."""

    def __init__(self, bar: Bar, members: int, error: Mapping[str, float | None], extra: float) -> None:
        self._bar, self._members = bar, members
        #: An interval's high end lies above its middle by this factor at least.
        self._wider = {m: math.exp(_own(m, error.get(m), extra)) if bar.end == "high" else 1.0 for m in bar.limits}
        self._seen: dict[str, list[float]] = {m: [] for m in bar.limits}
        self._saturated = self._replays = 0

    def after(self, member: Member, values: Figures) -> Miss | None:
        bar, n = self._bar, self._members
        self._replays += 1
        self._saturated += member.replay.saturated
        if self._saturated > bar.saturates * n:
            return Miss(None, 1.0, self._replays)
        for metric, limit in bar.limits.items():
            value = values.get(metric)
            if value is None:
                continue
            seen, wider = self._seen[metric], self._wider[metric]
            seen.append(value)
            above = sum(v * wider > limit for v in seen)
            middle = above > n // 2 or (self._replays == 1 and value * wider > limit * BEYOND)
            tail = bar.end == "high" and sum(v > limit for v in seen) >= n - math.floor(0.9 * (n - 1))
            if middle or tail:
                return Miss(metric, float(np.median(seen)) * wider / limit, self._replays)
        return None


def limit_rate(
    shape: Shape,
    workload: Workload,
    calibrated: CalibratedEngine,
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
    ensemble, replicas = Ensemble.of(shape, calibrated, base_shape, hardware), replicas_of(shape)
    if not workload.duration_s > 0:
        return None

    def meets(factor: float) -> bool:
        (best,) = ensemble.members(scaled(workload, factor), 0, replicas=replicas, router=router)
        if best.replay.saturated or not best.replay.completed:
            return False
        values = _metrics(best, objective)
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


def replicas_of(shape: Shape) -> int:
    """How many to replay with: of an autoscaled shape, all that its bounds allow. Raises CannotPredict ``UNKNOWN_REPLICAS``."""
    replicas = shape.replicas or (shape.autoscaling.most if shape.autoscaling is not None else None)
    if not replicas:
        raise CannotPredict("UNKNOWN_REPLICAS", f"{shape.label()}: the number of replicas is not known; state it")
    return replicas


#: By the objective's names. None: no value came of it (nothing completed, or it is not simulated).
Figures = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Ensemble:
    """One replica of a shape as engines to replay: the calibration with the shape's limits, and scaled to its accelerators."""

    model: EngineModel
    draws: tuple[PosteriorDraw, ...]
    """The best fit first."""
    discrepancy: Discrepancy
    load: tuple[float, float]
    """Running sequences per replica that were seen in calibration."""
    transferred: bool
    """Whether it was calibrated on other hardware."""
    notes: tuple[str, ...]

    @classmethod
    def of(cls, shape: Shape, calibrated: CalibratedEngine, base: Shape, hardware: Mapping[str, Hardware]) -> Ensemble:
        """Raises CannotPredict where the shape is not known well enough, or its limits contradict each other."""
        notes: list[str] = []
        if shape.replicas is None and shape.autoscaling is not None:
            notes.append(f"autoscaled: replayed with all {shape.autoscaling.most} replicas that its bounds allow")
        move = _move(shape, calibrated, base, hardware, notes)
        model = _limited(calibrated.model, shape, base, move, notes)
        factors = np.ones(8) if move is None else move.factors
        draws = tuple(
            replace(d, iteration=IterationCost(*(float(v) for v in np.array(d.iteration.as_tuple()) * factors)))
            for d in (calibrated.best, *calibrated.draws)
        )
        return cls(model, draws, calibrated.discrepancy, calibrated.load, move is not None, tuple(notes))

    @property
    def best_model(self) -> EngineModel:
        """The engine of the best fit."""
        return replace(self.model, iteration=self.draws[0].iteration)

    def members(
        self,
        workload: Workload,
        draws: int,
        *,
        replicas: int = 1,
        router: Router = "round_robin",
        fleet: ReplicaFleet | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Member]:
        """Replays of the best fit and of the first ``draws`` draws. A queue without end is cut off well after the last arrival."""
        where: dict[str, Any] = {"replicas": replicas} if fleet is None else {"fleet": fleet}
        return look(
            workload,
            self.model,
            self.draws[: 1 + max(0, draws)],
            self.discrepancy,
            router=router,
            horizon=workload.duration_s * 2.0 + 600.0,
            timeout_s=timeout_s,
            **where,
        )

    def prediction(
        self, best: Replay, saturated: Sequence[bool], rows: Sequence[Figures], error: Mapping[str, float | None]
    ) -> Prediction:
        """What the members' figures (``rows``), and whether each saturated, promise together.

        best: the first one's replay. error: the method's, by metric, as ``predict`` has it.
        """
        extra = TRANSFER_ERROR if self.transferred else 0.0
        metrics = {}
        for name in (name for name, value in rows[0].items() if value is not None):
            values = np.array([v for row in rows if (v := row[name]) is not None])
            metrics[name] = _interval(name, values, error.get(name), extra)
        notes = list(self.notes)
        low, high = self.load
        expected = metrics["running_mean"].mid / max(best.replica_s / (best.simulated_s or 1.0), 1e-3)
        beyond = not 0.5 * low <= expected <= 1.5 * high
        if not self.transferred and beyond:
            seen = f"{low:.3g} to {high:.3g} were seen in calibration, so this extrapolates"
            notes.append(f"expects {expected:.3g} running sequences per replica; {seen}")
        return Prediction(
            metrics=metrics,
            saturates=sum(saturated) / len(saturated),
            method="roofline+simulation" if self.transferred else "simulation",
            error={name: error.get(name) for name in metrics},
            notes=tuple(notes),
            extrapolates=beyond or self.transferred,
        )

    def overload(self, workload: Workload, replicas: int, draws: int) -> tuple[float, float]:
        """The share of the draws whose queue certainly grows without end, and the best fit's load as a share of what it can carry.

        A bound on the later half of the arrivals, which ``Replay.saturated`` judges: their work takes at least so many seconds of
        full batches. Prefixes and batches are taken at their best, so that nothing is claimed that a replay would deny.
        """
        half = len(workload) // 2
        span = workload.duration_s - float(workload.arrival_s[half]) if half else 0.0
        if span <= 0:
            return 0.0, 0.0
        drawn = self.draws[: 1 + max(0, draws)]
        least = _LeastWork.of(workload, half, self.model, max(1.0, *(d.cache for d in drawn)))
        work = np.array([least.seconds(d.iteration) for d in drawn])
        loads = work / (replicas * span)
        late = len(workload) - half
        unserved = late * (1.0 - _OVERLOAD / np.maximum(loads, 1e-9)) - replicas * self.model.limits.max_num_seqs
        return float(np.mean(unserved > max(0.05 * late, 3.0 * math.sqrt(late)))), float(loads[0])


@dataclass(frozen=True, slots=True)
class _LeastWork:
    """The fewest iterations that some requests take, and what the formula's other terms add up to over them."""

    iterations: float
    prefills: float
    """Iterations with a prefill."""
    sums: Floats
    """(4,): of D, C, P and Q."""
    widest: int
    """Tokens of an iteration at most."""

    @classmethod
    def of(cls, workload: Workload, first: int, model: EngineModel, cache: float) -> _LeastWork:
        """Of the requests from ``first`` on. cache: the KV cache's size at most, over what the limits state."""
        prompt, output, prefix = (
            v[first:].astype(np.float64)
            for v in (workload.prompt_tokens, workload.output_tokens, workload.prefix_tokens)
        )
        limits, decodes = model.limits, np.maximum(output - 1.0, 0.0)
        steps = decodes / model.accept_length
        context = float((steps * (prompt + decodes / 2.0)).sum())
        prefill, sequences = float((prompt - prefix).sum()), float(steps.sum())
        widest = limits.max_num_batched_tokens
        if not model.chunked_prefill:
            widest = max(widest, int((prompt - prefix).max()))  # runs alone
        fewest = [sequences / limits.max_num_seqs, (sequences + prefill) / widest]
        if limits.kv_tokens is not None:
            fewest.append(context / (limits.kv_tokens * cache))
        products = float(((prompt**2 - prefix**2) / 2.0).sum())
        return cls(max(fewest), prefill / widest, np.array([sequences, context, prefill, products]), widest)

    def seconds(self, cost: IterationCost) -> float:
        """Experts read: U is concave and 0 at 0, so that tokens that come together read the least."""
        base, *slopes = cost.as_tuple()[:5]
        tokens = self.sums[0] + self.sums[2]
        reads = tokens / self.widest * (1.0 - (1.0 - cost.expert_share) ** self.widest)
        fixed = base * self.iterations + cost.prefill_base_s * self.prefills + cost.expert_read_s * reads
        return float(fixed + self.sums @ np.array(slopes))


@dataclass(frozen=True, slots=True)
class _Transfer:
    """From the calibrated accelerators to others."""

    factors: Floats
    """(8,) of the coefficients."""
    cache_tokens: int | None
    """Where it follows from the sizes of model and memory."""
    memory: float
    """New over old, per replica."""


def _move(
    shape: Shape, calibrated: CalibratedEngine, base: Shape, hardware: Mapping[str, Hardware], notes: list[str]
) -> _Transfer | None:
    """None where the accelerators stay the same."""
    same_kind = (shape.accelerator or base.accelerator) == base.accelerator and (
        shape.size == base.size or shape.size is None or shape.accelerator is not None
    )
    count, base_count = shape.accelerator_count or 1, base.accelerator_count or 1
    if shape.accelerator is None and shape.size in (None, base.size):
        count = base_count
    if same_kind and count == base_count:
        return None
    new = _hardware("candidate", shape.accelerator, shape, hardware)
    old = _hardware("calibrated", base.accelerator, base, hardware)
    notes.append(
        f"calibrated on {base_count} x {old.name}, scaled by the roofline to {count} x {new.name} "
        f"(bandwidth {new.bandwidth_gb_s / old.bandwidth_gb_s:.2f}, arithmetic {new.tflops_bf16 / old.tflops_bf16:.2f}, each accelerator)"
    )
    memory = (new.memory_gb * count) / (old.memory_gb * base_count)
    if calibrated.architecture is not None:
        here, there = (
            RooflineMachine(calibrated.architecture, row, n, calibrated.weight_bytes)
            for row, n in ((old, base_count), (new, count))
        )
        if here.measured and there.measured:
            notes.append("scaled by the measured times of both accelerators' kernels too")
        else:  # a ratio of two beliefs of one kind
            here, there = here.by_datasheet, there.by_datasheet
        old_costs, new_costs = here.coefficients(), there.coefficients()
        factors = np.divide(new_costs, old_costs, out=np.ones_like(old_costs), where=old_costs > 0.0)
        return _Transfer(factors, there.cache_tokens() or 0, memory)
    # More accelerators share the work, and pay for it in communication: 85 % for each doubling.
    split = 0.85 ** math.log2(count / base_count) * count / base_count
    bandwidth = old.bandwidth_gb_s / new.bandwidth_gb_s / split
    arithmetic = old.tflops_bf16 / new.tflops_bf16 / split
    return _Transfer(
        np.array([bandwidth, bandwidth, bandwidth, arithmetic, arithmetic, 1.0, bandwidth, 1.0]), None, memory
    )


def _hardware(which: str, name: str | None, shape: Shape, table: Mapping[str, Hardware]) -> Hardware:
    row = find(name, table) if name else None
    if row is None:
        raise CannotPredict(
            "UNKNOWN_HARDWARE",
            f"the {which} shape ({shape.label()}) names no accelerator with a known bandwidth; "
            "state its `accelerator`, and add it to the hardware table if it is not there",
        )
    return row


def _limited(model: EngineModel, shape: Shape, base: Shape, move: _Transfer | None, notes: list[str]) -> EngineModel:
    """The calibrated limits with those that the shape states, and a cache that goes with memory where hardware changes.

    Raises CannotPredict ``DOES_NOT_FIT`` where the model's weights leave no room for a cache, ``INVALID_LIMITS``.
    """
    changes: dict[str, int] = {}
    for name in ("max_num_seqs", "max_num_batched_tokens", "kv_tokens", "block_size", "max_model_len"):
        value = shape.engine.get(name)
        if value is not None:
            changes[name] = int(value)
    usual, wanted = (s.engine.get("gpu_memory_utilization") for s in (base, shape))
    if move is not None and "kv_tokens" not in changes:
        if move.cache_tokens is not None:
            if move.cache_tokens < max(model.limits.block_size, 256):
                raise CannotPredict(
                    "DOES_NOT_FIT",
                    f"{shape.label()}: the model's weights leave no room for a KV cache; use more memory",
                )
            changes["kv_tokens"] = move.cache_tokens
            notes.append(f"KV capacity from memory less weights: {move.cache_tokens} tokens")
        elif model.limits.kv_tokens is not None:
            changes["kv_tokens"] = max(model.limits.block_size, int(model.limits.kv_tokens * move.memory))
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


def _metrics(member: Member, objective: Objective) -> Figures:
    """What is always told, and the objective's targets."""
    got = member.replay
    out: dict[str, float | None] = {}
    targets = [(t.metric, t.quantile) for t in objective.targets if t.quantile is not None]
    for metric, q in (*_ALWAYS, *targets):
        assert q is not None
        out[f"{metric.removesuffix('_s')}_p{q * 100:g}_s"] = member.distribution(metric).quantile(q)
    span = got.simulated_s or 1.0
    out["output_tokens_per_s"] = got.output_tokens / span
    out["requests_per_s"] = got.completed / span
    out["running_mean"] = got.running_mean
    out["waiting_mean"] = got.waiting_mean
    out["kv_usage_max"] = got.kv_usage_max
    return out


def _interval(name: str, values: np.ndarray, measured: float | None, extra: float) -> Interval:
    """The ensemble's median, and its 10 % and 90 % quantiles, widened in quadrature (in logarithms) by the method's own error.

    The median is the best fit's value where the ensemble lies evenly about it, and stays with the many where it does not.

    What the demand and the fleet set, not the engine (``_SET_BY_DEMAND``), is not widened by it.
    """
    low, mid, high = (float(v) for v in np.quantile(values, (0.1, 0.5, 0.9)))
    return widened(name, Interval(low, mid, high), measured, extra)


def widened(name: str, interval: Interval, measured: float | None, extra: float = 0.0) -> Interval:
    """Wider by the method's own error: what the ledger measured, or a prior. extra: of a transfer, in logarithms."""
    low, mid, high = interval.low, interval.mid, interval.high
    if mid <= 0 or name in _SET_BY_DEMAND:
        return interval
    own = _own(name, measured, extra)
    down = math.hypot(math.log(mid / max(low, mid * 1e-9)), own)
    up = math.hypot(math.log(high / mid), own)
    top = mid * math.exp(min(up, 50.0))
    return Interval(mid * math.exp(-down), mid, min(top, 1.0) if name == "kv_usage_max" else top)


def _own(name: str, measured: float | None, extra: float) -> float:
    """Half the width of the method's own 80 % interval, in logarithms."""
    family = name.split("_", maxsplit=1)[0]
    median_error = measured if measured is not None else PRIOR_ERROR.get(family, PRIOR_ERROR_OTHER)
    return Z80 * math.hypot(median_error / _MEDIAN, extra)
