"""Autoscalers as their documents set them, what a search over their settings may try, and the file that sets them so.

HPA, KEDA and KPA are the ones that a replay runs (``analyzers.whatif.scaling``, written from their sources), Ray Serve's policy is
``rayserve``. A ``share`` is one of the engine's slots (``max_num_seqs``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from analyzers.autoscaling.case import FleetCase
from analyzers.autoscaling.rayserve import RayServe
from analyzers.whatif.scaling import Hpa, Keda, Kpa, Metric, MetricTarget, ScalingPolicy

#: A policy's settings by name. ``least`` and ``most`` are bounds of the replicas; without them 1 and the case's most.
RuleSettings = Mapping[str, float]

#: Of an engine's slots: Knative's default utilisation. The HPA has no default of its own for concurrency.
UTILIZATION = 0.7
#: Waiting requests a replica: what vLLM's production stack documents for KEDA.
QUEUE = 5.0
_SHARES = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0)
_DEPTHS = (0.05, 0.2, 1.0, 3.0)
_DOWN_S = (300.0, 1200.0)


@dataclass(frozen=True)
class AutoscalerRule:
    """One autoscaler on one metric."""

    title: str
    documented: RuleSettings
    """As its documents set it, apart from its own defaults."""
    tried: Sequence[RuleSettings]
    """What a search may set, beside its bounds."""
    policy: Callable[[FleetCase, RuleSettings], ScalingPolicy]
    manifest: Callable[[str, FleetCase, RuleSettings], Mapping[str, Any]]
    """What to apply so that it is set so: of that endpoint's name, as the plain values of a YAML document."""


def grid(**values: Sequence[float]) -> list[dict[str, float]]:
    """Every combination."""
    return [dict(zip(values, point, strict=True)) for point in product(*values.values())]


def slots_of(case: FleetCase) -> int:
    return case.model.limits.max_num_seqs


def _bounds(case: FleetCase, settings: RuleSettings) -> tuple[int, int]:
    return int(settings.get("least", 1)), int(settings.get("most", case.most))


def _each(case: FleetCase, settings: RuleSettings) -> float:
    """What one replica should bear."""
    return settings["share"] * slots_of(case) if "share" in settings else settings["target"]


# -- HPA and KEDA ------------------------------------------------------------------------------------------------------------------


def hpa(metric: Metric, case: FleetCase, settings: RuleSettings) -> Hpa:
    """Tolerance 0.1, every 15 s, down by the most of the last 5 minutes unless stated: Kubernetes' defaults."""
    least, most = _bounds(case, settings)
    target = MetricTarget(metric, _each(case, settings))
    return Hpa((target,), least=least, most=most, down_window_s=settings.get("down_window_s", 300.0))


def _hpa(metric: Metric) -> Callable[[FleetCase, RuleSettings], ScalingPolicy]:
    return lambda case, settings: hpa(metric, case, settings)


def _keda(case: FleetCase, settings: RuleSettings) -> ScalingPolicy:
    """Polled every 15 s, cooldown 360 s, on ``vllm:num_requests_waiting``: vLLM's production stack,
    docs/source/use_cases/autoscaling-keda.rst."""
    least, _ = _bounds(case, settings)
    return Keda(hpa("waiting", case, settings), least=least, polling_interval_s=15.0, cooldown_s=360.0)


#: Of a pod, as vLLM names it and the Prometheus adapter offers it.
_SERIES = {"waiting": "vllm:num_requests_waiting", "in_flight": "vllm:num_requests_running + vllm:num_requests_waiting"}


def _behavior(settings: RuleSettings) -> dict[str, Any]:
    return {"scaleDown": {"stabilizationWindowSeconds": int(settings.get("down_window_s", 300.0))}}


def _hpa_manifest(metric: str) -> Callable[[str, FleetCase, RuleSettings], Mapping[str, Any]]:
    def manifest(name: str, case: FleetCase, settings: RuleSettings) -> Mapping[str, Any]:
        least, most = _bounds(case, settings)
        return {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": name},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
                "minReplicas": least,
                "maxReplicas": most,
                "metrics": [
                    {
                        "type": "Pods",
                        "pods": {
                            "metric": {"name": f"vllm_requests_{metric}"},
                            "target": {"type": "AverageValue", "averageValue": _quantity(_each(case, settings))},
                        },
                    }
                ],
                "behavior": _behavior(settings),
            },
        }

    return manifest


def _keda_manifest(name: str, case: FleetCase, settings: RuleSettings) -> Mapping[str, Any]:
    least, most = _bounds(case, settings)
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"name": name},
            "pollingInterval": 15,
            "cooldownPeriod": 360,
            "minReplicaCount": least,
            "maxReplicaCount": most,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(settings)}},
            "triggers": [
                {
                    "type": "prometheus",
                    "metricType": "AverageValue",
                    "metadata": {
                        "serverAddress": "http://prometheus:9090",
                        "query": f'sum({_SERIES["waiting"]}{{job="{name}"}})',
                        "threshold": f"{_each(case, settings):g}",
                    },
                }
            ],
        },
    }


def _quantity(value: float) -> str:
    """As Kubernetes counts: in thousandths."""
    return f"{round(value * 1000)}m" if value * 1000 % 1000 else f"{value:.0f}"


# -- KPA and Ray Serve -------------------------------------------------------------------------------------------------------------


def _kpa(case: FleetCase, settings: RuleSettings) -> ScalingPolicy:
    """Windows of 60 s and 6 s, panic at twice the target; the container's concurrency is the engine's slots."""
    least, most = _bounds(case, settings)
    stable_s = settings.get("stable_window_s", 60.0)
    target = MetricTarget("in_flight", float(slots_of(case)))
    return Kpa(target, most, least=least, utilization=settings["utilization"], stable_s=stable_s, panic_s=stable_s / 10)


def _kpa_manifest(name: str, case: FleetCase, settings: RuleSettings) -> Mapping[str, Any]:
    least, most = _bounds(case, settings)
    annotations = {
        "autoscaling.knative.dev/metric": "concurrency",
        "autoscaling.knative.dev/target-utilization-percentage": f"{100 * settings['utilization']:.0f}",
        "autoscaling.knative.dev/window": f"{settings.get('stable_window_s', 60.0):.0f}s",
        "autoscaling.knative.dev/min-scale": str(least),
        "autoscaling.knative.dev/max-scale": str(most),
    }
    template = {"metadata": {"annotations": annotations}, "spec": {"containerConcurrency": slots_of(case)}}
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"template": template},
    }


def _ray_serve(case: FleetCase, settings: RuleSettings) -> ScalingPolicy:
    """Two ongoing requests a replica, up after 30 s, down after 600 s: Ray's defaults."""
    least, most = _bounds(case, settings)
    return RayServe(
        _each(case, settings), most, max(1, least), downscale_delay_s=settings.get("downscale_delay_s", 600.0)
    )


def _ray_manifest(name: str, case: FleetCase, settings: RuleSettings) -> Mapping[str, Any]:
    least, most = _bounds(case, settings)
    config = {
        "min_replicas": max(1, least),
        "max_replicas": most,
        "target_ongoing_requests": round(_each(case, settings), 3),
        "downscale_delay_s": settings.get("downscale_delay_s", 600.0),
    }
    return {"deployments": [{"name": name, "max_ongoing_requests": slots_of(case), "autoscaling_config": config}]}


RULES: Mapping[str, AutoscalerRule] = {
    "hpa-concurrency": AutoscalerRule(
        "HPA on requests in flight",
        {"share": UTILIZATION},
        grid(share=_SHARES, down_window_s=_DOWN_S),
        _hpa("in_flight"),
        _hpa_manifest("in_flight"),
    ),
    "hpa-queue": AutoscalerRule(
        "HPA on waiting requests",
        {"target": QUEUE},
        grid(target=_DEPTHS, down_window_s=_DOWN_S),
        _hpa("waiting"),
        _hpa_manifest("waiting"),
    ),
    "keda-waiting": AutoscalerRule(
        "KEDA on waiting requests",
        {"target": QUEUE},
        grid(target=_DEPTHS, down_window_s=_DOWN_S),
        _keda,
        _keda_manifest,
    ),
    "kpa": AutoscalerRule(
        "Knative's KPA on concurrency",
        {"utilization": UTILIZATION},
        grid(utilization=_SHARES, stable_window_s=(60.0, 600.0)),
        _kpa,
        _kpa_manifest,
    ),
    "ray-serve": AutoscalerRule(
        "Ray Serve on ongoing requests",
        {"target": 2.0},
        grid(share=_SHARES, downscale_delay_s=(300.0, 1200.0)),
        _ray_serve,
        _ray_manifest,
    ),
}
