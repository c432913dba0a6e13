"""The autoscaler of a shape, as a fleet that a replay runs. Knows metrics by the names that engines give them; owns no policy."""

from __future__ import annotations

from collections.abc import Mapping

from actuators.shape import Shape
from analyzers.prediction import CannotPredict
from analyzers.whatif.fleet import ReplicaFleet
from analyzers.whatif.scaling import Hpa, Keda, Metric, MetricTarget

#: By the name that an autoscaler knows a metric by; the second ones are those of ``flyball scorecard``'s files. Those of an engine come from
#: outside the pods, and so does what KEDA asks for.
_METRICS: Mapping[str, Metric] = {
    "in_flight": "in_flight",
    "running": "running",
    "waiting": "waiting",
    "arrivals_per_s": "arrivals_per_s",
    "kv_usage": "kv_usage",
    "vllm_requests_in_flight": "in_flight",
    "vllm_requests_waiting": "waiting",
    "vllm:num_requests_waiting": "waiting",
    "vllm:num_requests_running": "running",
    "vllm:kv_cache_usage_perc": "kv_usage",
    "vllm:gpu_cache_usage_perc": "kv_usage",
    "concurrency": "in_flight",
    "rps": "arrivals_per_s",
    "target_ongoing_requests": "in_flight",
}


def fleet_of(shape: Shape, cold_start_s: float) -> ReplicaFleet:
    """The replicas that the shape's autoscaler would run, all of its bounds at the start.

    Raises CannotPredict ``UNREPLAYABLE_AUTOSCALER`` where the shape has none, or where one of its targets is of nothing that a
    replay tells (a CPU's usage, say).
    """
    bounds = shape.autoscaling
    if bounds is None:
        raise CannotPredict("UNREPLAYABLE_AUTOSCALER", f"{shape.label()}: names no autoscaler")
    unknown = [name for name in bounds.targets if _metric(name) is None]
    if unknown or not bounds.targets:
        what = f"targets of {', '.join(unknown)} are" if unknown else "an autoscaler without a target is"
        raise CannotPredict("UNREPLAYABLE_AUTOSCALER", f"{shape.label()}: {what} nothing that a replay can follow")
    try:
        targets = tuple(MetricTarget(m, v) for name, v in bounds.targets.items() if (m := _metric(name)) is not None)
        hpa = Hpa(targets, most=bounds.most, least=max(1, bounds.least), external=any(":" in n for n in bounds.targets))
        policy = hpa if bounds.least > 0 else Keda(hpa)
        return ReplicaFleet(bounds.most, cold_start_s, policy, min_replicas=bounds.least, max_replicas=bounds.most)
    except ValueError as problem:
        raise CannotPredict("UNREPLAYABLE_AUTOSCALER", f"{shape.label()}: {problem}") from problem


def _metric(name: str) -> Metric | None:
    return _METRICS.get(name.partition("#")[0])
