"""A candidate's figures as plain JSON, the same ones whatever it is; and distributions to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.whatif.candidates import Candidate
from agent.whatif.table import SATURATED
from analyzers.kinds.results import METRICS, QUANTILES, ReplayResult, ReplayTraffic, Result, Rows
from analyzers.prediction import CannotPredict, Prediction
from analyzers.whatif.distribution import Distribution

SCHEMA_VERSION = 1
#: Where a distribution is read for a chart: every percent, and the last ones more closely.
_CURVE = (*(i / 100 for i in range(1, 100)), 0.995, 0.999)

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
        **_judged(got, ran.prediction, traffic),
        "refused": None,
    }


def refused(candidate: Candidate, why: CannotPredict, traffic: ReplayTraffic) -> dict[str, Any]:
    """The same names, with nothing claimed."""
    unknown = (
        *_COUNTS, "requests_per_s", "output_tokens_per_s", "goodput_per_s", "running_mean", "waiting_mean", "kv_usage_max",
        "replica_hours", "replicas_max", "replica_timeline", "cost_usd", "usd_per_hour", "simulated_s", "saturated", "saturates",
        "prediction", "meets_objective", "wall_s", "compile_s",
    )  # fmt: skip
    targets = [{"target": t.name, "limit": t.limit, "value": None, "met": None} for t in traffic.objective.targets]
    return {
        **_identity(candidate),
        **dict.fromkeys(unknown),
        **{metric: dict.fromkeys(("mean", *(f"p{q}" for q in QUANTILES))) for metric in METRICS},
        "used": {},
        "gauges": {},
        "objective": targets,
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
    }


def curves(result: Result) -> Curves:
    return {metric: curve(result.distribution(metric)) for metric in ("ttft_s", "itl_s", "e2e_s")}


def curve(d: Distribution) -> list[tuple[float, float]]:
    return [(q, value) for q in _CURVE if (value := d.quantile(q)) is not None]


def _judged(got: Result, prediction: Prediction | None, traffic: ReplayTraffic) -> dict[str, Any]:
    """Each target with what came, and whether all hold on a shape that carries the traffic. None: nothing to tell by."""
    rows: list[dict[str, Any]] = []
    for target in traffic.objective.targets:
        if target.quantile is None:  # error_rate
            value = (got.requests - got.completed) / got.requests if got.requests else None
        else:
            value = got.distribution(target.metric).quantile(target.quantile)
        interval = None if prediction is None else prediction.metrics.get(target.name)
        value = value if interval is None else interval.mid
        met = None if value is None else value <= target.limit
        sure = {} if interval is None else {"low": interval.low, "high": interval.high}
        rows.append({"target": target.name, "limit": target.limit, "value": value, **sure, "met": met})
    grows = got.saturated if prediction is None else prediction.saturates > SATURATED
    return {"objective": rows, "meets_objective": meets([row["met"] for row in rows], grows)}


def meets(met: Sequence[bool | None], saturated: bool) -> bool | None:
    """Whether the whole objective is met; a queue that grows without end meets none for long."""
    if not met:
        return None
    if saturated or False in met:
        return False
    return None if None in met else True
