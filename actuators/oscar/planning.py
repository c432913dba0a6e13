"""A service as a Shape, and the steps from one to another. Pure: definitions in, a plan out."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from actuators.base import ActuatorError, CannotPlan, LiveState
from actuators.shape import Autoscaling, Need, Operation, Plan, Shape
from collectors.oscar.services import bytes_of, cpus_of, mode_of, resources_of, section_of

SYSTEM = "oscar"
_CHANGES = ("autoscaling", "cpus", "memory_gb", "accelerator_count")
#: What OSCAR writes itself, and what may change without anybody's doing.
_STATUS = ("token", "volume_status", "deployment", "namespace")
Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ServiceTerms:
    """What the settings say of how a change goes."""

    endpoint: str
    cluster: str
    unlimited_as: int
    rollout_s: float


def shape_of(service: Body, unlimited_as: int) -> Shape:
    """What is configured. How many instances there are is the platform's to say. Raises ActuatorError ``STRANGE_SERVICE``."""
    resources = resources_of(service)
    scale = service.get(section_of(mode_of(service))) or {}
    try:
        memory = bytes_of(resources.get("memory"))
        least = int(scale.get("min_scale") or 0)
        most = int(scale.get("max_scale") or 0) or unlimited_as
        return Shape(
            accelerator_count=1 if resources.get("enable_gpu") else None,
            cpus=cpus_of(resources.get("cpu")),
            memory_gb=None if memory is None else round(memory / 1e9, 3),
            autoscaling=Autoscaling(least, max(least, most)),
        )
    except (ValueError, TypeError) as error:
        raise ActuatorError("STRANGE_SERVICE", f"service {service.get('name')}: {error}") from error


def version_of(service: Body, writes: int) -> str:
    """Of the definition, which has no version of its own: Flyball's own ``writes`` tell two visits apart."""
    rests_on = [writes, {k: v for k, v in service.items() if k not in _STATUS}]
    return hashlib.sha256(json.dumps(rests_on, sort_keys=True).encode()).hexdigest()[:16]


def plan(terms: ServiceTerms, service: Body, live: LiveState, wanted: Shape, free_bytes: float | None = None) -> Plan:
    """``free_bytes``: memory that the cluster has free; None: not told. Raises ``CannotPlan``."""
    _check(service, live.shape, wanted)
    fields = fields_of(service, live.shape, wanted)
    steps: list[Operation] = []
    name = str(service.get("name"))
    if fields:
        summary = f"update service {name}: {', '.join(f'{k}={v}' for k, v in sorted(fields.items()))}"
        args = {"service": name, "fields": fields, "version": live.version}
        steps.append(Operation("update", args, terms.rollout_s, summary))
    rolls = bool(fields) and mode_of(service) == "exposed" and any("scale" not in f for f in fields)
    return Plan(
        endpoint=terms.endpoint,
        system=SYSTEM,
        before=live.shape,
        after=wanted,
        version=live.version,
        operations=tuple(steps),
        restarts=bool(fields),
        downtime_s=terms.rollout_s if rolls else 0.0,
        way_back="the same fields of the definition as they were stated before",
        undo={"fields": {field: value_of(service, field) for field in fields}},
        locks=(f"oscar:{terms.cluster}:{name}",),
        needs=_needs(live.shape, wanted, free_bytes),
    )


def kept_gb(shape: Shape) -> float:
    """Memory of the instances that are there all the time."""
    return (shape.autoscaling.least if shape.autoscaling is not None else 0) * (shape.memory_gb or 0.0)


def _needs(now: Shape, wanted: Shape, free_bytes: float | None) -> tuple[Need, ...]:
    """What more is kept, of what the cluster has now: one that adds nodes may have more."""
    more = round(kept_gb(wanted) - kept_gb(now), 3)
    free = None if free_bytes is None else round(free_bytes / 1e9, 3)
    return (Need("memory of the cluster, GB", more, free, may_grow=True),) if more > 0 else ()


def as_stated(plan: Plan, before: Body) -> Plan:
    """A way back whose fields are written as they were, and not merely so that they come to the same."""
    operations = [
        replace(o, args={**o.args, "fields": {f: before.get(f, v) for f, v in o.args["fields"].items()}})
        for o in plan.operations
    ]
    return replace(plan, operations=tuple(operations))


def fields_of(service: Body, now: Shape, wanted: Shape) -> dict[str, Any]:
    """What the definition has to say otherwise, by its path."""
    mode = mode_of(service)
    at = "kserve." if mode == "kserve" else ""
    fields: dict[str, Any] = {}
    if wanted.cpus != now.cpus:
        fields[f"{at}cpu"] = f"{wanted.cpus:g}"
    if wanted.memory_gb != now.memory_gb and wanted.memory_gb is not None:
        fields[f"{at}memory"] = str(round(wanted.memory_gb * 1e9))
    if wanted.accelerator_count != now.accelerator_count:
        fields[f"{at}enable_gpu"] = bool(wanted.accelerator_count)
    if wanted.autoscaling is not None and now.autoscaling is not None:
        section = section_of(mode)
        if wanted.autoscaling.least != now.autoscaling.least:
            fields[f"{section}.min_scale"] = wanted.autoscaling.least
        if wanted.autoscaling.most != now.autoscaling.most:
            fields[f"{section}.max_scale"] = wanted.autoscaling.most
    return fields


def value_of(service: Body, field: str) -> Any:
    section, _, name = field.rpartition(".")
    return (service.get(section) or {}).get(name) if section else service.get(name)


def with_fields(service: Body, fields: Body) -> dict[str, Any]:
    """The definition with these fields."""
    whole: dict[str, Any] = copy.deepcopy(dict(service))
    for field, value in fields.items():
        section, _, name = field.rpartition(".")
        of = whole.setdefault(section, {}) if section else whole
        of[name] = value
    return whole


def _check(service: Body, now: Shape, wanted: Shape) -> None:
    other = [k for k in Shape.__slots__ if k not in (*_CHANGES, "replicas") and getattr(wanted, k) != getattr(now, k)]
    if other:
        text = f"OSCAR cannot change {', '.join(other)} of a service: write another definition"
        raise CannotPlan("UNSUPPORTED_CHANGE", text)
    then = wanted.autoscaling
    if wanted.replicas != now.replicas or then is None:
        raise CannotPlan("OWNED", "the platform sets the instances: say least and most (autoscaling), not the count")
    if not 0 <= then.least <= then.most or then.most < 1:
        raise CannotPlan(
            "BAD_BOUNDS", f"0 <= least <= most is needed, and most of 1 or more, not {then.least}..{then.most}"
        )
    if then.targets:
        raise CannotPlan("UNKNOWN_TARGET", "a service states no target that can be changed here")
    if wanted.cpus != now.cpus and not (wanted.cpus or 0) > 0:
        raise CannotPlan("BAD_RESOURCES", f"cpus={wanted.cpus}: a number above 0 is needed")
    if wanted.memory_gb != now.memory_gb and not (wanted.memory_gb or 0) > 0:
        raise CannotPlan("BAD_RESOURCES", f"memory_gb={wanted.memory_gb}: a number above 0 is needed")
    if (
        wanted.memory_gb is not None
        and wanted.memory_gb != now.memory_gb
        and round(wanted.memory_gb, 3) != wanted.memory_gb
    ):
        raise CannotPlan("BAD_RESOURCES", f"memory_gb={wanted.memory_gb}: three decimals at most")
    if wanted.accelerator_count != now.accelerator_count and wanted.accelerator_count not in (None, 1):
        text = f"accelerator_count={wanted.accelerator_count}: a service has one GPU, or none"
        raise CannotPlan("BAD_RESOURCES", text)
    if wanted != now and (service.get("environment") or {}).get("secrets"):
        text = f"service {service.get('name')} has secrets, which OSCAR does not tell and an update would empty: change it by its own file"
        raise CannotPlan("HAS_SECRETS", text)
