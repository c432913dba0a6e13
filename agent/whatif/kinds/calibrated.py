"""A calibrated engine, looked at with its doubt: the best fit's replay as a client sees it, and the ensemble's 80 % intervals beside it.

Other accelerators are reached through ``predict.Candidate``, by the roofline. The simulation and its doubt are ``analyzers.whatif.outlook``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actuators.shape import Shape
from agent.whatif import asked
from agent.whatif.asked import BadQuestion, Value
from agent.whatif.results import METRICS, Ran, Result, Rows, Traffic, of_replay
from analyzers.hardware import ACCELERATORS, find
from analyzers.prediction import Interval, Prediction
from analyzers.whatif.calibrate import Calibrated
from analyzers.whatif.discrepancy import Discrepancy
from analyzers.whatif.engine import Router
from analyzers.whatif.fit import Draw, Times
from analyzers.whatif.fleet import Fleet
from analyzers.whatif.model import EngineModel, Iteration
from analyzers.whatif.outlook import Member
from analyzers.whatif.outlook import look as look_ahead
from analyzers.whatif.predict import TRANSFER_ERROR, Candidate

#: Members of the ensemble beside the best fit, as ``predict.predict`` replays.
DRAWS = 16


@dataclass(frozen=True, slots=True)
class Look:
    """What is replayed: the engine as it is asked for, the best fit and its draws."""

    model: EngineModel
    draws: tuple[Draw, ...]
    discrepancy: Discrepancy
    load: tuple[float, float]
    """Running sequences per replica that were seen in calibration."""
    transferred: bool
    notes: tuple[str, ...]


def base_shape(calibration: Calibrated) -> Shape:
    """What it was calibrated on, as its key says: ``1xH100/model=...``. Without an accelerator where it names none that is known."""
    match = re.match(r"(\d+)x([^/]+)", calibration.key)
    row = find(match[2]) if match else None
    if match is None or row is None:
        return Shape(replicas=1)
    return Shape(replicas=1, accelerator=row.name, accelerator_count=int(match[1]))


def accelerator(name: str, calibration: Calibrated) -> str:
    """Its name in the hardware table. Raises BadQuestion where the one or the other is not known."""
    row = find(name)
    if row is None:
        raise BadQuestion(f"gpu={name}: its bandwidth is not known; {asked.nearest(name, ACCELERATORS)}")
    if base_shape(calibration).accelerator is None:
        raise BadQuestion(
            f"gpu={name}: the engine file does not tell which accelerator it was calibrated on ({calibration.key}); "
            "calibrate with --gpu, or an endpoint whose shape names its accelerator"
        )
    return row.name


def look(calibration: Calibrated, gpu: str | None, gpus: int | None, settings: Mapping[str, Value]) -> Look:
    """The calibration on ``gpus`` x ``gpu`` (None: as calibrated), with single engine settings changed.

    A coefficient that is set scales that of every draw alike. Raises CannotPredict, BadQuestion.
    """
    asked.with_settings(calibration.model, settings)  # refuses what contradicts itself, whatever it runs on
    base = base_shape(calibration)
    wanted = {"accelerator": gpu or base.accelerator, "accelerator_count": gpus or base.accelerator_count}
    kept = {"kv_tokens": tokens} if isinstance(tokens := settings.get("kv_tokens"), int) else {}
    found = Candidate.of(base.with_(engine=kept, **wanted), calibration, base, ACCELERATORS)
    best = found.draws[0].iteration
    model = asked.with_settings(replace(found.model, iteration=best), settings)
    draws = tuple(replace(d, iteration=_set(d.iteration, best, model.iteration)) for d in found.draws)
    return Look(model, draws, calibration.discrepancy, calibration.load, found.transferred, found.notes)


def _set(drawn: Iteration, best: Iteration, wanted: Iteration) -> Iteration:
    """``drawn`` as far from ``wanted`` as it was from ``best``."""
    each = zip(drawn.as_tuple(), best.as_tuple(), wanted.as_tuple(), strict=True)
    return Iteration(*(value if new == old else value * new / old if old else new for value, old, new in each))


def run(
    at: Look,
    traffic: Traffic,
    replicas: int,
    router: Router,
    fleet: Fleet | None,
    cost_usd: Callable[[Result], float | None],
) -> Ran:
    """The best fit's replay, and its prediction from the whole ensemble. A queue without end is cut off well after the last arrival."""
    work = traffic.workload
    how: dict[str, Any] = {"router": router, "horizon": work.duration_s * 2.0 + 600.0, "timeout_s": traffic.timeout_s}
    how |= {"replicas": replicas} if fleet is None else {"fleet": fleet}
    draws = at.draws[: 1 + DRAWS]
    members = look_ahead(work, at.model, draws, at.discrepancy, doubt=TRANSFER_ERROR if at.transferred else 0.0, **how)
    results = [_result(member) for member in members]
    rows = [_figures(result, traffic, cost_usd(result)) for result in results]
    notes, beyond = _extrapolates(at, results[0])
    prediction = Prediction(
        metrics={name: _interval([row[name] for row in rows], mid) for name, mid in rows[0].items() if mid is not None},
        saturates=sum(result.saturated for result in results) / len(results),
        method="roofline+simulation" if at.transferred else "simulation",
        notes=(*at.notes, *notes),
        extrapolates=beyond or at.transferred,
    )
    return Ran(results[0], prediction)


def _replicas_mean(result: Result) -> float:
    """Provisioned, over the time simulated."""
    return max((result.replica_s or 0.0) / (result.simulated_s or 1.0), 1e-3)


def _result(member: Member) -> Result:
    """As a client sees it."""
    times = member.times

    def goodput(limits: Mapping[str, float]) -> float:
        good, seconds = np.isfinite(times.e2e_s), times.by_name()
        for metric, limit in limits.items():
            good &= ~(seconds["tpot_s" if metric == "itl_s" else metric] > limit)  # one token has no gap, and meets it
        return float(np.count_nonzero(good)) / member.replay.simulated_s

    plain = of_replay(member.replay)
    return replace(plain, distribution=member.distribution, goodput=goodput, rows=lambda: _rows(times, plain.rows()))


def _rows(times: Times, engine: Rows) -> Rows:
    ttft, tpot, e2e, queue = (
        np.nan_to_num(v, nan=-1.0) for v in (times.ttft_s, times.tpot_s, times.e2e_s, times.queue_s)
    )
    return Rows(queue_s=queue, ttft_s=ttft, tpot_s=tpot, e2e_s=e2e, state=engine.state)


def _figures(result: Result, traffic: Traffic, cost_usd: float | None) -> dict[str, float | None]:
    """By the objective's names, and those of the answer."""
    found = {
        f"{metric.removesuffix('_s')}_{name}_s": value
        for metric in METRICS
        for name, value in result.summary(metric).items()
    }
    for target in traffic.objective.targets:
        if target.quantile is not None:
            found[target.name] = result.distribution(target.metric).quantile(target.quantile)
    return found | {
        "requests_per_s": result.per_s(result.completed),
        "output_tokens_per_s": result.per_s(result.output_tokens),
        "goodput_per_s": result.goodput_per_s(traffic.limits),
        "running_mean": result.running_mean,
        "waiting_mean": result.waiting_mean,
        "kv_usage_max": result.kv_usage_max,
        "replica_hours": None if result.replica_s is None else result.replica_s / 3600,
        "cost_usd": cost_usd,
    }


def _interval(values: Sequence[float | None], mid: float) -> Interval:
    """The ensemble's first and ninth decile; the best fit's own value stays inside."""
    drawn = [v for v in values[1:] if v is not None] or [mid]
    low, high = (float(v) for v in np.quantile(drawn, (0.1, 0.9)))
    return Interval(min(low, mid), mid, max(high, mid))


def _extrapolates(at: Look, best: Result) -> tuple[list[str], bool]:
    """As ``predict.predict`` has it."""
    assert best.running_mean is not None
    (low, high), expected = at.load, best.running_mean / _replicas_mean(best)
    beyond = not 0.5 * low <= expected <= 1.5 * high
    if at.transferred or not beyond:
        return [], beyond
    seen = f"{low:.3g} to {high:.3g} were seen in calibration, so this extrapolates"
    return [f"expects {expected:.3g} running sequences per replica; {seen}"], True
