"""A candidate's figures as plain JSON, the same ones whatever it is; and distributions to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.whatif.candidates import Candidate
from agent.whatif.table import SATURATED
from analyzers.kinds.results import METRICS, QUANTILES, ReplayResult, ReplayTraffic, Result, Rows
from analyzers.objective import Objective
from analyzers.prediction import CannotPredict, Interval, Prediction
from analyzers.whatif.distribution import Distribution
from analyzers.words import verdict

SCHEMA_VERSION = 1
#: Where a distribution is read for a chart: every percent, and the last ones more closely.
_CURVE = (*(i / 100 for i in range(1, 100)), 0.995, 0.999)
#: Beyond each end of an 80 % interval: so few replays of an ensemble may do otherwise.
_TAIL = 0.1

Curves = dict[str, list[tuple[float, float]]]
"""By metric: (share of the values, seconds that they lie below)."""

_COUNTS = (
    "requests", "completed", "rejected", "timed_out", "failed", "gave_up", "throttled", "retries", "cold_starts", "spilled_requests",
    "preemptions",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CandidateOutcome:
    """What came of a candidate: figures as plain JSON, distributions to draw, and each request's own times where they are asked for."""

    figures: dict[str, Any]
    curves: Curves
    rows: Rows | None = field(default=None, repr=False)


def of(candidate: Candidate, ran: ReplayResult, traffic: ReplayTraffic) -> dict[str, Any]:
    got, system = ran.best, candidate.system
    cost = system.cost_usd(got)
    hours = got.simulated_s / 3600
    return {
        **_identity(candidate),
        **{name: getattr(got, name) for name in _COUNTS},
        **{metric: got.summary(metric) for metric in METRICS},
        "requests_per_s": got.per_s(got.completed),
        "output_tokens_per_s": got.per_s(got.output_tokens),
        "goodput_per_s": got.goodput_per_s(traffic.limits),
        "running_mean": got.running_mean,
        "waiting_mean": got.waiting_mean,
        "kv_usage_max": got.kv_usage_max,
        "replica_hours": None if got.replica_s is None else got.replica_s / 3600,
        "replicas_max": got.replicas_max,
        "replica_timeline": None if got.timeline is None else [list(step) for step in got.timeline],
        "used": dict(got.used),
        "gauges": dict(got.gauges),
        "cost_usd": cost,
        "usd_per_hour": None if cost is None or not hours else cost / hours,
        "simulated_s": got.simulated_s,
        "saturated": got.saturated,
        "saturates": float(got.saturated) if ran.prediction is None else ran.prediction.saturates,
        "prediction": None if ran.prediction is None else ran.prediction.as_dict(),
        **_of_replay(got, ran.prediction, traffic),
        "refused": None,
    }


def refused(candidate: Candidate, why: CannotPredict, traffic: ReplayTraffic) -> dict[str, Any]:
    """The same names, with nothing claimed."""
    unknown = (
        *_COUNTS, "requests_per_s", "output_tokens_per_s", "goodput_per_s", "running_mean", "waiting_mean", "kv_usage_max",
        "replica_hours", "replicas_max", "replica_timeline", "cost_usd", "usd_per_hour", "simulated_s", "saturated", "saturates",
        "prediction", "wall_s",
    )  # fmt: skip
    return {
        **_identity(candidate),
        **dict.fromkeys(unknown),
        **{metric: dict.fromkeys(("mean", *(f"p{q}" for q in QUANTILES))) for metric in METRICS},
        "used": {},
        "gauges": {},
        **judged(traffic.objective, {}, None),
        "refused": {"code": why.code, "detail": why.detail},
    }


def _identity(candidate: Candidate) -> dict[str, Any]:
    system = candidate.system
    return {
        "candidate": candidate.name,
        "kind": system.kind,
        "label": system.label,
        "shape": system.shape(),
        "prices": system.prices(),
        "misfit": dict(system.misfit),
        "warnings": list(system.warnings),
    }


def curves(result: Result) -> Curves:
    return {metric: curve(result.distribution(metric)) for metric in ("ttft_s", "itl_s", "e2e_s")}


def curve(d: Distribution) -> list[tuple[float, float]]:
    return [(q, value) for q in _CURVE if (value := d.quantile(q)) is not None]


def _of_replay(got: Result, prediction: Prediction | None, traffic: ReplayTraffic) -> dict[str, Any]:
    """By the intervals where there are any; what has none is taken as it was replayed."""
    metrics: dict[str, Interval | float] = {}
    for target in traffic.objective.targets:
        if prediction is not None and target.name in prediction.metrics:
            metrics[target.name] = prediction.metrics[target.name]
        elif target.quantile is not None:
            value = got.distribution(target.metric).quantile(target.quantile)
            metrics |= {} if value is None else {target.name: value}
        elif got.requests:  # error_rate
            metrics[target.name] = (got.requests - got.completed) / got.requests
    return judged(traffic.objective, metrics, float(got.saturated) if prediction is None else prediction.saturates)


def judged(objective: Objective, metrics: Mapping[str, Interval | float], saturates: float | None) -> dict[str, Any]:
    """Each target with its value, and whether all hold on a shape that carries the traffic. None: not known.

    Of an interval the value is the middle (``Interval.within`` tells what is met).
    saturates: the share of replays whose queue grows without end, which meets nothing for long; None: nothing was replayed.
    """
    rows: list[dict[str, Any]] = []
    for target in objective.targets:
        of = metrics.get(target.name)
        known = {"value": of} if not isinstance(of, Interval) else {"value": of.mid, "low": of.low, "high": of.high}
        met = of.within(target.limit) if isinstance(of, Interval) else None if of is None else of <= target.limit
        rows.append({"target": target.name, "limit": target.limit, **known, "met": met})
    carries = None if saturates is None or _TAIL < saturates <= SATURATED else saturates <= _TAIL
    all_hold = [row["met"] for row in rows] + [carries]
    meets = None if not rows else False if False in all_hold else None if None in all_hold else True
    return {"objective": rows, "meets_objective": meets, "verdict": verdict(meets) if rows else None}


def misfits(answer: Mapping[str, Any]) -> list[str]:
    """The warnings of candidates whose calibration did not reach its data, numbered as they are."""
    about = answer["candidates"] if "trace" in answer else answer["candidates"][:1]  # an endpoint has one calibration
    return numbered([c["warnings"][:1] if c["misfit"] else [] for c in about])


def numbered(of_each: Sequence[Sequence[str]]) -> list[str]:
    """What is said of the candidates, once each; of several, with the numbers of those that it is about."""
    about: dict[str, list[str]] = {}
    for number, said in enumerate(of_each, 1):
        for text in dict.fromkeys(said):
            about.setdefault(text, []).append(str(number))
    return [f"{', '.join(numbers)}: {text}" if len(of_each) > 1 else text for text, numbers in about.items()]
