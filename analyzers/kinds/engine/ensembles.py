"""A calibrated engine under a question's traffic: the best fit's replay as a client sees it, and the ensemble's 80 % intervals beside it.

The ensemble, its replays and its intervals are ``whatif.predict``'s, for everybody who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from actuators.shape import Shape
from analyzers import grammar
from analyzers.grammar import BadQuestion, Value
from analyzers.hardware import ACCELERATORS, Hardware, find
from analyzers.kinds.results import METRICS, ReplayResult, ReplayTraffic, Result, Rows, of_replay
from analyzers.strict import nearest
from analyzers.whatif.calibrate import CalibratedEngine
from analyzers.whatif.engine import Router
from analyzers.whatif.fit import Times
from analyzers.whatif.fleet import ReplicaFleet
from analyzers.whatif.model import IterationCost
from analyzers.whatif.outlook import Member
from analyzers.whatif.predict import DRAWS, Ensemble, Figures

#: A file has no ledger.
_NO_LEDGER = (
    "the model's own error is not measured for an engine file: priors of 25 % (TTFT) and 15 % widen the intervals"
)


def base_shape(calibration: CalibratedEngine) -> Shape:
    """What it was calibrated on. Without an accelerator where that is none that is known."""
    row = find(calibration.accelerator) if calibration.accelerator is not None else None
    if row is None:
        return Shape(replicas=1)
    return Shape(replicas=1, accelerator=row.name, accelerator_count=calibration.accelerator_count)


def accelerator(name: str, calibration: CalibratedEngine) -> str:
    """Its name in the hardware table. Raises BadQuestion where the one or the other is not known."""
    row = find(name)
    if row is None:
        raise BadQuestion(f"accelerator={name}: its bandwidth is not known; {nearest(name, ACCELERATORS)}")
    if base_shape(calibration).accelerator is None:
        raise BadQuestion(
            f"accelerator={name}: the engine file does not tell which accelerator it was calibrated on; "
            "calibrate with --gpu, or an endpoint whose shape names its accelerator"
        )
    return row.name


def ensemble(
    calibration: CalibratedEngine,
    gpu: str | None,
    gpus: int | None,
    settings: Mapping[str, Value],
    hardware: Mapping[str, Hardware],
) -> Ensemble:
    """The calibration on ``gpus`` x ``gpu`` of ``hardware`` (None: as calibrated), with single engine settings changed.

    A coefficient that is set scales that of every draw alike. Raises CannotPredict, BadQuestion.
    """
    grammar.with_settings(calibration.model, settings)  # refuses what contradicts itself, whatever it runs on
    base = base_shape(calibration)
    wanted = {"accelerator": gpu or base.accelerator, "accelerator_count": gpus or base.accelerator_count}
    kept = {"kv_tokens": tokens} if isinstance(tokens := settings.get("kv_tokens"), int) else {}
    found = Ensemble.of(base.with_(engine=kept, **wanted), calibration, base, hardware)
    best = found.draws[0].iteration
    model = grammar.with_settings(replace(found.model, iteration=best), settings)
    draws = tuple(replace(d, iteration=_set(d.iteration, best, model.iteration)) for d in found.draws)
    return replace(found, model=model, draws=draws)


def _set(drawn: IterationCost, best: IterationCost, wanted: IterationCost) -> IterationCost:
    """``drawn`` as far from ``wanted`` as it was from ``best``."""
    each = zip(drawn.as_tuple(), best.as_tuple(), wanted.as_tuple(), strict=True)
    return IterationCost(*(value if new == old else value * new / old if old else new for value, old, new in each))


def run(
    at: Ensemble,
    traffic: ReplayTraffic,
    replicas: int,
    router: Router,
    fleet: ReplicaFleet | None,
    cost_usd: Callable[[Result], float | None],
) -> ReplayResult:
    """The best fit's replay, and its prediction from the whole ensemble."""
    how = {"replicas": replicas} if fleet is None else {}
    members = at.members(traffic.workload, DRAWS, router=router, fleet=fleet, timeout_s=traffic.timeout_s, **how)
    first = next(members)
    best = _result(first)
    rows, saturated = [_figures(best, traffic, cost_usd(best))], [best.saturated]
    for member in members:  # one at a time: a long trace weighs much
        result = _result(member)
        rows.append(_figures(result, traffic, cost_usd(result)))
        saturated.append(result.saturated)
    got = at.prediction(first.replay, saturated, rows, {})
    return ReplayResult(best, replace(got, notes=(*got.notes, _NO_LEDGER)))


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


def _figures(result: Result, traffic: ReplayTraffic, cost_usd: float | None) -> Figures:
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
