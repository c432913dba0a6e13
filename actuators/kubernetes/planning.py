"""The steps from one shape of a workload to another. Pure: a workload in, a plan out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from actuators.base import CannotPlan, LiveState
from actuators.commandline import ENGINE_LIMITS, with_engine
from actuators.kubernetes import spec
from actuators.kubernetes.revisions import owned_by
from actuators.shape import Autoscaling, EngineValue, Need, Operation, Plan, Shape
from collectors.kubernetes.workloads import ClusterWorkload, quantity

SYSTEM = "kubernetes"
_CHANGES = ("replicas", "cpus", "memory_gb", "engine", "autoscaling")
Patch = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Terms:
    """What the settings say of how a change goes."""

    endpoint: str
    container: str | None
    rollout_s: float
    """How long a rollout may take."""
    in_place: bool
    """CPU and memory of running pods are resized as they run; the template follows after the verdict."""


def plan(terms: Terms, workload: ClusterWorkload, live: LiveState, wanted: Shape, free_gpus: float | None) -> Plan:
    """Raises ``CannotPlan``."""
    _check(workload, live, wanted)
    steps, finish = _steps(terms, workload, live.shape, wanted)
    steps = [replace(step, args={**step.args, "version": live.version}) for step in steps]
    owner = spec.owner_of(workload)
    by_hand = None
    if steps and owner is not None and "*" in owner.owns:
        by_hand = _by_hand(owner.kind, owner.name, workload, [*steps, *finish])
        steps, finish = [], []
    restarts = any(step.name == "patch_template" for step in [*steps, *finish])
    return Plan(
        endpoint=terms.endpoint,
        system=SYSTEM,
        before=live.shape,
        after=wanted,
        version=live.version,
        operations=tuple(steps),
        restarts=restarts,
        downtime_s=_downtime_s(terms, workload) if restarts else 0.0,
        way_back="the same fields set back; pods are replaced again where the template was changed",
        finish=tuple(finish),
        needs=_needs(live.shape, wanted, free_gpus),
        by_hand=by_hand,
    )


def _downtime_s(terms: Terms, workload: ClusterWorkload) -> float:
    """Seconds at most in which fewer serve while a new template is rolled out. Raises ``CannotPlan`` where it never would be."""
    s = workload.spec
    strategy = s.get("strategy") or s.get("updateStrategy") or s.get("rolloutStrategy") or {}
    rolling = strategy.get("rollingUpdate") or strategy.get("rollingUpdateConfiguration") or {}
    held = [
        text
        for text, there in (
            ("its rollouts are paused", s.get("paused")),
            ("its updateStrategy is OnDelete", strategy.get("type") == "OnDelete"),
            ("its updateStrategy has a partition", rolling.get("partition")),
        )
        if there
    ]
    if held:
        raise CannotPlan("HELD", f"{workload.id}: {held[0]}, so a new template would not come to all its pods")
    surges = workload.id.kind == "Deployment" or bool(rolling.get("maxSurge"))
    return terms.rollout_s if strategy.get("type") == "Recreate" or not surges else 0.0


def _check(workload: ClusterWorkload, live: LiveState, wanted: Shape) -> None:
    other = [k for k in Shape.__slots__ if k not in _CHANGES and getattr(wanted, k) != getattr(live.shape, k)]
    if other:
        text = f"kubernetes cannot change {', '.join(other)} of a running workload: deploy another one on those nodes"
        raise CannotPlan("UNSUPPORTED_CHANGE", text)
    if workload.controller is not None and wanted != live.shape:
        raise CannotPlan("OWNED", owned_by(workload, workload.controller))
    if spec.is_paused(workload):
        if wanted.autoscaling is not None or wanted.replicas != live.shape.replicas:
            raise CannotPlan("OWNED", f"somebody paused the ScaledObject of {workload.id}: resume it first")
    elif workload.autoscaler is not None and wanted.replicas is not None:
        owner = spec.owner_of(workload)
        who = f"{owner.kind} {owner.name}" if owner is not None else "its autoscaler"
        raise CannotPlan("OWNED", f"{who} sets the replicas: change its bounds or targets (autoscaling), not the count")
    if workload.autoscaler is None and wanted.autoscaling is not None:
        raise CannotPlan("NO_AUTOSCALER", f"{workload.id} has no autoscaler to tune; set replicas")
    if workload.autoscaler is None and (wanted.replicas is None or wanted.replicas < 0):
        raise CannotPlan("INCOMPLETE_SHAPE", f"say how many replicas of {workload.id}, not {wanted.replicas}")
    unknown = [n for n in wanted.engine if n not in ENGINE_LIMITS and wanted.engine[n] != live.shape.engine.get(n)]
    if unknown:
        raise CannotPlan("BAD_ENGINE_LIMIT", f"{', '.join(unknown)}: known are {', '.join(ENGINE_LIMITS)}")
    _check_scaling(live.shape.autoscaling, wanted.autoscaling)


def _check_scaling(before: Autoscaling | None, wanted: Autoscaling | None) -> None:
    if wanted is None:
        if before is not None:
            raise CannotPlan("INCOMPLETE_SHAPE", "the autoscaler stays: say its bounds")
        return
    if not 0 <= wanted.least <= wanted.most or wanted.most < 1:
        raise CannotPlan("BAD_BOUNDS", f"an autoscaler takes 0 <= least <= most, not {wanted.least}..{wanted.most}")
    strange = set(wanted.targets) - set(before.targets if before is not None else ())
    if strange:
        raise CannotPlan("UNKNOWN_TARGET", f"the autoscaler has no target {', '.join(sorted(strange))}")


def _steps(
    terms: Terms, workload: ClusterWorkload, now: Shape, wanted: Shape
) -> tuple[list[Operation], list[Operation]]:
    steps: list[Operation] = []
    finish: list[Operation] = []
    resized = (wanted.cpus, wanted.memory_gb) != (now.cpus, now.memory_gb)
    limits: dict[str, EngineValue | None] = {k: v for k, v in wanted.engine.items() if now.engine.get(k) != v}
    limits |= dict.fromkeys(now.engine.keys() - wanted.engine.keys())
    if limits or (resized and not terms.in_place):
        steps.append(_template(terms, workload, wanted if resized else None, limits))
    elif resized:
        steps.append(resize(terms, workload, wanted))
        finish.append(_template(terms, workload, wanted, {}))
    if wanted.replicas != now.replicas:
        args = {"replicas": wanted.replicas, "was": now.replicas}
        steps.append(
            Operation("scale", args, terms.rollout_s, f"scale {workload.id} from {now.replicas} to {wanted.replicas}")
        )
    if wanted.autoscaling != now.autoscaling and wanted.autoscaling is not None:
        steps.append(_bounds(workload, wanted.autoscaling))
    return steps, finish


def _resources(workload: ClusterWorkload, container: str | None, wanted: Shape) -> dict[str, dict[str, str]]:
    """Requests and limits, where the container states them. What was not stated stays so, and a request stays the same part of its
    limit: Kubernetes refuses to change a pod's class of service.
    """
    stated = spec.serving_container(workload, container).get("resources") or {}
    found: dict[str, dict[str, str]] = {}
    for name, most in (("cpu", wanted.cpus), ("memory", None if wanted.memory_gb is None else wanted.memory_gb * 1e9)):
        if most is None:
            continue
        limit = quantity((stated.get("limits") or {}).get(name))
        for part in ("requests", "limits"):
            now = quantity((stated.get(part) or {}).get(name))
            if now is not None:
                value = most * (now / limit if limit else 1.0)
                found.setdefault(part, {})[name] = f"{round(value * 1000)}m" if name == "cpu" else str(round(value))
        if not any(name in values for values in found.values()):
            raise CannotPlan(
                "NOT_STATED", f"{workload.id} states no {name}, neither requested nor limited: state it first"
            )
    return found


def _template(
    terms: Terms, workload: ClusterWorkload, wanted: Shape | None, limits: Mapping[str, EngineValue | None]
) -> Operation:
    holds = spec.serving_container(workload, terms.container)
    change: dict[str, Any] = {"name": holds["name"]}
    said = []
    if wanted is not None:
        change["resources"] = _resources(workload, terms.container, wanted)
        said.append(f"{wanted.cpus:g} CPUs" if wanted.cpus is not None else "")
        said.append(f"{wanted.memory_gb:.3g} GB" if wanted.memory_gb is not None else "")
    if limits:
        try:
            change["args"] = with_engine(holds, limits)
        except ValueError as error:
            raise CannotPlan("BY_HAND", f"{workload.id}: {error}") from error
        said += [f"{name}={value}" if value is not None else f"no {name}" for name, value in sorted(limits.items())]
    summary = f"roll {workload.id} out with {', '.join(s for s in said if s)}"
    return Operation("patch_template", {"container": change}, terms.rollout_s, summary)


def resize(terms: Terms, workload: ClusterWorkload, wanted: Shape) -> Operation:
    container = spec.serving_container(workload, terms.container)["name"]
    args = {"container": container, "resources": _resources(workload, terms.container, wanted)}
    return Operation("resize_pods", args, terms.rollout_s, f"resize the running pods of {workload.id} in place")


def _bounds(workload: ClusterWorkload, wanted: Autoscaling) -> Operation:
    assert workload.autoscaler is not None
    name = str((workload.autoscaler.get("metadata") or {}).get("name"))
    kind = "scaledobjects" if spec.is_keda(workload.autoscaler) else "horizontalpodautoscalers"
    args = {"kind": kind, "name": name, "least": wanted.least, "most": wanted.most, "targets": dict(wanted.targets)}
    targets = "".join(f", {k} {v:g}" for k, v in sorted(wanted.targets.items()))
    summary = f"set {name} to {wanted.least}..{wanted.most}{targets}"
    return Operation("set_bounds", args, 300.0, summary)


def _needs(now: Shape, wanted: Shape, free_gpus: float | None) -> tuple[Need, ...]:
    """GPUs that more replicas ask for, of what the scheduler has."""
    each = wanted.accelerator_count
    if not each:
        return ()
    most_now = now.replicas if now.autoscaling is None else now.autoscaling.most
    most_then = wanted.replicas if wanted.autoscaling is None else wanted.autoscaling.most
    more = ((most_then or 0) - (most_now or 0)) * each
    return (Need(spec.GPU, float(more), free_gpus, may_grow=True),) if more > 0 else ()


def _by_hand(kind: str, name: str, workload: ClusterWorkload, steps: list[Operation]) -> str:
    """The patch for whoever owns the manifest."""
    head = f"# {workload.id} is owned by {kind} ({name}): what is written beside it comes back. Merge this into its manifest.\n"
    api = workload.body.get("apiVersion") or "apps/v1"
    parts = []
    for step in steps:
        if step.name == "resize_pods":
            continue  # the template says the same
        target = {
            "apiVersion": api,
            "kind": workload.id.kind,
            "metadata": {"name": workload.id.name, "namespace": workload.id.namespace},
        }
        if step.name == "set_bounds":
            keda = step.args["kind"] == "scaledobjects"
            target |= {
                "apiVersion": "keda.sh/v1alpha1" if keda else "autoscaling/v2",
                "kind": "ScaledObject" if keda else "HorizontalPodAutoscaler",
                "metadata": {"name": step.args["name"], "namespace": workload.id.namespace},
            }
        parts.append(yaml.safe_dump({**target, **patch_of(step, workload)}, sort_keys=False))
    return head + "---\n".join(parts)


def patch_of(step: Operation, workload: ClusterWorkload) -> dict[str, Any]:
    """The body of the patch that carries out a step."""
    match step.name:
        case "scale":
            return {"spec": {"replicas": step.args["replicas"]}}
        case "patch_template":
            inner: dict[str, Any] = {"spec": {"containers": [step.args["container"]]}}
            if (
                workload.id.kind == "LeaderWorkerSet"
            ):  # a custom resource's lists are replaced whole: so the others come along
                change, there = step.args["container"], (workload.template.get("spec") or {}).get("containers") or ()
                merged = [_over(c, change) if c.get("name") == change["name"] else dict(c) for c in there]
                leads = "leaderTemplate" in (workload.spec.get("leaderWorkerTemplate") or {})
                part = "leaderTemplate" if leads else "workerTemplate"
                return {"spec": {"leaderWorkerTemplate": {part: {"spec": {"containers": merged}}}}}
            return {"spec": {"template": inner}}
        case "set_bounds":
            return {"spec": _bounds_body(step, workload)}
    raise ValueError(f"{step.name} is no patch of the workload")


def _over(container: Patch, change: Patch) -> dict[str, Any]:
    """A container with the change; resources that it does not name, such as GPUs, stay."""
    resources = {k: dict(v) if isinstance(v, dict) else v for k, v in (container.get("resources") or {}).items()}
    for part, values in (change.get("resources") or {}).items():
        resources[part] = {**(resources.get(part) or {}), **values}
    return {**container, **change, **({"resources": resources} if resources else {})}


def is_set(step: Operation, workload: ClusterWorkload) -> bool:
    """Whether the autoscaler says already what the step writes, as it writes it: a share is a whole number of percent."""
    scaler = workload.autoscaler
    if scaler is None:
        return False
    written = {**scaler, "spec": {**(scaler.get("spec") or {}), **_bounds_body(step, workload)}}
    now, then = spec.autoscaling_of(workload), spec.autoscaling_of(replace(workload, autoscaler=written))
    return now is not None and now == then


def _bounds_body(step: Operation, workload: ClusterWorkload) -> dict[str, Any]:
    now = ((workload.autoscaler or {}).get("spec")) or {}
    targets = step.args["targets"]
    if step.args["kind"] == "scaledobjects":
        body: dict[str, Any] = {"minReplicaCount": step.args["least"], "maxReplicaCount": step.args["most"]}
        if targets:
            there = now.get("triggers") or ()
            named = zip(there, spec.trigger_names(there), strict=True)
            body["triggers"] = [_with_threshold(t, targets.get(name)) for t, name in named]
        return body
    body = {"minReplicas": step.args["least"], "maxReplicas": step.args["most"]}
    if targets:
        there = now.get("metrics") or ()
        named = zip(there, spec.metric_names(there), strict=True)
        body["metrics"] = [_with_target(m, targets.get(name)) for m, name in named]
    return body


def _with_threshold(trigger: Patch, value: float | None) -> dict[str, Any]:
    """One that stays is written as it was."""
    if value is None or value == spec.threshold(trigger):
        return dict(trigger)
    meta = dict(trigger.get("metadata") or {})
    meta["threshold" if "threshold" in meta else "value"] = f"{value:.12g}"
    return {**trigger, "metadata": meta}


def _with_target(metric: Patch, value: float | None) -> dict[str, Any]:
    """One that stays is written as it was."""
    if value is None or value == spec.metric_target(metric):
        return dict(metric)
    own = spec.metric_of(metric)
    target, kind = dict(own.get("target") or {}), str(metric.get("type", ""))
    if "averageUtilization" in target:
        target["averageUtilization"] = max(1, round(value * 100))
    else:
        target["averageValue" if "averageValue" in target else "value"] = f"{round(value * 1000)}m"
    return {**metric, kind[:1].lower() + kind[1:]: {**own, "target": target}}
