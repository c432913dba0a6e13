"""An endpoint's variant as a Shape, and the steps from one to another. Pure.

No body stands in a plan: a step that makes a configuration says which one it copies, and what is to be different.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from actuators.base import CannotPlan, LiveState, Owner
from actuators.shape import Autoscaling, EngineValue, Operation, Plan, Shape
from collectors.aws.endpoints import SageMakerEndpoint, SageMakerVariant
from collectors.aws.sizes import InstanceType

SYSTEM = "sagemaker"
#: Before a variant's name, in ``Shape.engine``: its part of the traffic.
WEIGHT = "weight."
_LONGEST_NAME = 63
_CHANGES = ("replicas", "size", "autoscaling", "engine", "accelerator", "accelerator_count", "cpus", "memory_gb")
_METRICS = {
    "SageMakerVariantInvocationsPerInstance": "invocations_per_instance",
    "SageMakerVariantConcurrentRequestsPerModelHighResolution": "concurrent_requests",
}


@dataclass(frozen=True, slots=True)
class EndpointTerms:
    """What the settings say of how a change goes."""

    endpoint: str
    update_s: float


def shape_of(endpoint: SageMakerEndpoint, variant: SageMakerVariant, sizes: Mapping[str, InstanceType]) -> Shape:
    """What is configured. Instances that Application Auto Scaling counts are unknown here: they are ``serving``."""
    scaling = autoscaling_of(endpoint, variant)
    known = sizes.get(variant.size or "")
    several = len(endpoint.variants) > 1
    weights: dict[str, EngineValue] = {
        f"{WEIGHT}{v.name}": v.weight for v in endpoint.variants if several and v.weight is not None
    }
    return Shape(
        replicas=None if scaling is not None else variant.desired,
        size=variant.size,
        accelerator=None if known is None else known.accelerator,
        accelerator_count=None if known is None or not known.accelerator_count else known.accelerator_count,
        cpus=None if known is None else float(known.cpus),
        memory_gb=None if known is None else known.memory_gb,
        engine=weights,
        autoscaling=scaling,
    )


def autoscaling_of(endpoint: SageMakerEndpoint, variant: SageMakerVariant) -> Autoscaling | None:
    target = (endpoint.targets or {}).get(variant.name)
    if target is None:
        return None
    targets = {}
    for policy in endpoint.policies.get(variant.name, ()):
        tracked = policy.get("TargetTrackingScalingPolicyConfiguration") or {}
        metric = (tracked.get("PredefinedMetricSpecification") or {}).get("PredefinedMetricType")
        if "TargetValue" in tracked:
            targets[_METRICS.get(str(metric), str(policy.get("PolicyName")))] = float(tracked["TargetValue"])
    return Autoscaling(int(target["MinCapacity"]), int(target["MaxCapacity"]), targets)


def owner_of(endpoint: SageMakerEndpoint, variant: SageMakerVariant) -> Owner | None:
    target = (endpoint.targets or {}).get(variant.name)
    return None if target is None else Owner("app-autoscaling", str(target["ResourceId"]), frozenset({"replicas"}))


def version_of(endpoint: SageMakerEndpoint, variant: SageMakerVariant, writes: int) -> str:
    """Of what is configured; not of the count, where Application Auto Scaling sets it. Counts have no version of their own, so
    Flyball's own ``writes`` tell two visits of one state apart."""
    target = (endpoint.targets or {}).get(variant.name)
    bounds = None if target is None else [target["MinCapacity"], target["MaxCapacity"]]
    rests_on: list[Any] = [
        writes,
        str(endpoint.body.get("CreationTime")),
        endpoint.pending_config or endpoint.config_name,
        [[v.name, v.weight] for v in endpoint.variants],
        bounds if bounds is not None else variant.desired,
        endpoint.targets is None,
    ]
    return hashlib.sha256(json.dumps(rests_on).encode()).hexdigest()[:16]


def plan(
    terms: EndpointTerms, endpoint: SageMakerEndpoint, variant: SageMakerVariant, live: LiveState, wanted: Shape
) -> Plan:
    """Raises ``CannotPlan``."""
    now = live.shape
    if wanted.size != now.size:  # what a size is made of comes with it, and whoever asks need not say it
        made_of = ("accelerator", "accelerator_count", "cpus", "memory_gb")
        wanted_of = {name: getattr(wanted, name) for name in made_of}
        now = now.with_(**wanted_of)
    _check(endpoint, variant, now, wanted)
    steps: list[Operation] = []
    undo: dict[str, Any] = {}
    if wanted.size != now.size:
        steps += _resize(terms, endpoint, variant, live.version, wanted)
        undo = {"config": endpoint.config_name}
    elif wanted.replicas != now.replicas or wanted.engine != now.engine:
        steps.append(_scale(terms, endpoint, variant, live, wanted))
    if wanted.autoscaling != now.autoscaling and wanted.autoscaling is not None and now.autoscaling is not None:
        steps.append(_bounds(terms, endpoint, variant, live.version, now.autoscaling, wanted.autoscaling))
    return _plan(terms, live, wanted, tuple(steps), undo)


def back(
    terms: EndpointTerms,
    endpoint: SageMakerEndpoint,
    variant: SageMakerVariant,
    undone: Plan,
    live: LiveState,
) -> Plan:
    """To the configuration that was there before a change of type, whatever is there now; then to its counts and weights."""
    old, before = str(undone.undo["config"]), undone.before
    steps: list[Operation] = []
    if (endpoint.pending_config or endpoint.config_name) != old:
        args = {"endpoint": endpoint.name, "config": old, "version": live.version}
        steps.append(Operation("update", args, terms.update_s, f"update {endpoint.name} to its configuration {old}"))
    if steps or (variant.desired, live.shape.engine) != (before.replicas, before.engine):
        steps.append(_scale(terms, endpoint, variant, live, before, whole=True))
    return replace(
        _plan(terms, live, before, tuple(steps), {}), locks=undone.locks, way_back="none: this is the way back"
    )


def config_changes(name: str, size: str, counts: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """What a copied configuration says otherwise: the type of one variant, and counts and weights as they are now."""
    return {"variant": name, "size": size, "counts": dict(counts), "weights": dict(weights)}


def copied(config: Mapping[str, Any], name: str, changes: Mapping[str, Any], members: frozenset[str]) -> dict[str, Any]:
    """The call that makes a configuration like this one, with the changes. ``members``: what such a call takes."""
    body = {k: v for k, v in config.items() if k in members and v not in ({}, [], None)}
    variants = []
    for stated in config.get("ProductionVariants") or ():
        variant, own = dict(stated), stated.get("VariantName")
        if own == changes["variant"]:
            variant["InstanceType"] = changes["size"]
        if own in changes["counts"]:
            variant["InitialInstanceCount"] = changes["counts"][own]
        if own in changes["weights"]:
            variant["InitialVariantWeight"] = changes["weights"][own]
        variants.append(variant)
    return {**body, "EndpointConfigName": name, "ProductionVariants": variants}


def digest(config: Mapping[str, Any]) -> str:
    """Of a configuration that is copied."""
    text = json.dumps({k: v for k, v in config.items() if k != "CreationTime"}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _resize(
    terms: EndpointTerms, endpoint: SageMakerEndpoint, variant: SageMakerVariant, version: str, wanted: Shape
) -> list[Operation]:
    counts: dict[str, Any] = {v.name: v.desired for v in endpoint.variants if v.desired is not None}
    counts[variant.name] = wanted.replicas
    weights: dict[str, Any] = {v.name: v.weight for v in endpoint.variants if v.weight is not None}
    weights |= {name.removeprefix(WEIGHT): value for name, value in wanted.engine.items()}
    changes = config_changes(variant.name, str(wanted.size), counts, weights)
    source = digest(endpoint.config)
    mark = hashlib.sha256(json.dumps([source, changes, version], sort_keys=True).encode()).hexdigest()[:8]
    size = str(wanted.size).removeprefix("ml.").replace(".", "-")
    name = f"{endpoint.name[: _LONGEST_NAME - len(size) - 10].rstrip('-')}-{size}-{mark}"
    of = {"endpoint": endpoint.name, "version": version}
    copy = {**of, "config": name, "copy_of": endpoint.config_name, "digest": source, "changes": changes}
    moved = f"{wanted.replicas} x {wanted.size}"
    return [
        Operation("config", copy, 120.0, f"make configuration {name}: {endpoint.config_name} on {moved}"),
        Operation(
            "update",
            {**of, "config": name},
            terms.update_s,
            f"update {endpoint.name} to it: new instances first, then the traffic, then the old ones go",
        ),
    ]


def _scale(
    terms: EndpointTerms,
    endpoint: SageMakerEndpoint,
    variant: SageMakerVariant,
    live: LiveState,
    wanted: Shape,
    *,
    whole: bool = False,
) -> Operation:
    """One call for all of it: an endpoint takes one change at a time. ``whole``: also what is so now, as it may not be any more then."""
    now, then = live.shape, []
    weights = {n.removeprefix(WEIGHT): v for n, v in wanted.engine.items() if whole or now.engine.get(n) != v}
    for one in endpoint.variants:
        entry: dict[str, Any] = {"VariantName": one.name}
        if one.name in weights:
            entry["DesiredWeight"] = float(weights[one.name])
        if one.name == variant.name and wanted.replicas is not None and (whole or wanted.replicas != now.replicas):
            entry["DesiredInstanceCount"] = wanted.replicas
        if len(entry) > 1:
            then.append(entry)
    said = [
        f"{e['VariantName']}: "
        + ", ".join(
            ([f"{e['DesiredInstanceCount']} instances"] if "DesiredInstanceCount" in e else [])
            + ([f"weight {e['DesiredWeight']:g}"] if "DesiredWeight" in e else [])
        )
        for e in then
    ]
    args = {"endpoint": endpoint.name, "variants": then, "version": live.version}
    return Operation("scale", args, terms.update_s, f"{endpoint.name}: {'; '.join(said)}")


def _bounds(
    terms: EndpointTerms,
    endpoint: SageMakerEndpoint,
    variant: SageMakerVariant,
    version: str,
    now: Autoscaling,
    wanted: Autoscaling,
) -> Operation:
    resource = str((endpoint.targets or {})[variant.name]["ResourceId"])
    args = {
        "endpoint": endpoint.name,
        "resource": resource,
        "least": wanted.least,
        "most": wanted.most,
        "version": version,
    }
    summary = (
        f"Application Auto Scaling of {variant.name}: {now.least}..{now.most} become {wanted.least}..{wanted.most}"
    )
    return Operation("bounds", args, terms.update_s, summary)


def _plan(
    terms: EndpointTerms, live: LiveState, wanted: Shape, steps: tuple[Operation, ...], undo: Mapping[str, Any]
) -> Plan:
    ways = {
        "config": "the endpoint is updated to its configuration of before, which stays; new instances first, again",
        "bounds": "the bounds are set back",
        "scale": "counts and weights are set back",
    }
    return Plan(
        endpoint=terms.endpoint,
        system=SYSTEM,
        before=live.shape,
        after=wanted,
        version=live.version,
        operations=steps,
        restarts=False,
        downtime_s=0.0,
        way_back=ways.get(steps[0].name, "set back") if steps else "nothing is done",
        undo=undo,
        locks=(f"sagemaker:{steps[0].args['endpoint']}",) if steps else (),
    )


def _check(endpoint: SageMakerEndpoint, variant: SageMakerVariant, now: Shape, wanted: Shape) -> None:
    other = [k for k in Shape.__slots__ if k not in _CHANGES and getattr(wanted, k) != getattr(now, k)]
    made_of = ("accelerator", "accelerator_count", "cpus", "memory_gb")
    other += [k for k in made_of if getattr(wanted, k) != getattr(now, k)]
    if other:
        text = f"SageMaker has no {', '.join(other)} to change on its own: name another instance type (size)"
        raise CannotPlan("UNSUPPORTED_CHANGE", text)
    if wanted == now:
        return
    if variant.serverless or variant.size is None:
        text = f"variant {variant.name} is serverless or has several instance types: it is only seen"
        raise CannotPlan("UNSUPPORTED_CHANGE", text)
    if endpoint.targets is None:
        text = "whether Application Auto Scaling sets the count is not known: allow application-autoscaling:DescribeScalableTargets"
        raise CannotPlan("OWNER_UNKNOWN", text)
    _check_engine(now.engine, wanted.engine)
    if now.autoscaling is not None:
        _check_scaling(now, wanted)
    elif wanted.autoscaling is not None:
        raise CannotPlan("NO_AUTOSCALER", f"{endpoint.name} has no scalable target to tune; set replicas")
    elif wanted.replicas is None or wanted.replicas < 1:
        text = f"a real-time variant runs on 1 instance or more, not {wanted.replicas}; to stop paying, delete the endpoint"
        raise CannotPlan("INCOMPLETE_SHAPE", text)
    if wanted.size is None or not wanted.size.startswith("ml."):
        raise CannotPlan("UNKNOWN_SIZE", f"{wanted.size}: SageMaker's instance types begin with ml.")


def _check_scaling(now: Shape, wanted: Shape) -> None:
    then = wanted.autoscaling
    if wanted.replicas is not None or then is None:
        raise CannotPlan(
            "OWNED", "Application Auto Scaling sets the count: change its bounds (autoscaling), not replicas"
        )
    if wanted.size != now.size:
        text = "SageMaker changes no instance type while Application Auto Scaling is registered: deregister the variant first"
        raise CannotPlan("OWNED", text)
    assert now.autoscaling is not None
    if dict(then.targets) != dict(now.autoscaling.targets):
        raise CannotPlan(
            "UNSUPPORTED_CHANGE", "targets of scaling policies are changed by hand; their bounds are changed here"
        )
    if not 1 <= then.least <= then.most:
        text = f"bounds must be 1 or more, least first, not {then.least} to {then.most}"
        raise CannotPlan("BAD_BOUNDS", text)


def _check_engine(now: Mapping[str, EngineValue], wanted: Mapping[str, EngineValue]) -> None:
    for name in {*now, *wanted}:
        value = wanted.get(name)
        if value == now.get(name):
            continue
        if name not in now:
            there = ", ".join(sorted(now)) or "none, as the endpoint has one variant"
            raise CannotPlan("BAD_ENGINE_LIMIT", f"{name}: SageMaker has the weights of variants; there are: {there}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise CannotPlan("BAD_ENGINE_LIMIT", f"{name}={value}: a weight is a number of 0 or more")
    weights = [v for n, v in wanted.items() if n.startswith(WEIGHT)]
    if weights and not any(isinstance(v, int | float) and v > 0 for v in weights):
        raise CannotPlan("BAD_ENGINE_LIMIT", "at least one variant needs a weight above 0")
