"""An instance or a group as a Shape, and the steps from one to another. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actuators.base import CannotPlan, LiveState
from actuators.shape import Autoscaling, Operation, Plan, Shape
from collectors.aws.sizes import InstanceType

SYSTEM = "ec2"
Body = Mapping[str, Any]
#: What a size is made of, which comes with it.
_MADE_OF = ("accelerator", "accelerator_count", "cpus", "memory_gb")


@dataclass(frozen=True, slots=True)
class MachineTerms:
    """What the settings say of how a change goes."""

    endpoint: str
    stop_s: float
    start_s: float
    scale_s: float


def with_size(size: str | None, sizes: Mapping[str, InstanceType], **more: Any) -> Shape:
    known = sizes.get(size or "")
    return Shape(
        size=size,
        accelerator=None if known is None else known.accelerator,
        accelerator_count=None if known is None or not known.accelerator_count else known.accelerator_count,
        cpus=None if known is None else float(known.cpus),
        memory_gb=None if known is None else known.memory_gb,
        **more,
    )


def version_of(*rests_on: Any) -> str:
    return hashlib.sha256(json.dumps(rests_on, default=str).encode()).hexdigest()[:16]


# -- an instance -------------------------------------------------------------------------------------------------------


def state_of(instance: Body) -> str:
    """``pending``, ``running``, ``stopping``, ``stopped``, ``shutting-down``, ``terminated``."""
    return str((instance.get("State") or {}).get("Name"))


def resize(terms: MachineTerms, instance: Body, live: LiveState, wanted: Shape) -> Plan:
    """To another type, and to running, from whatever state it is in. Raises ``CannotPlan``."""
    now = live.shape
    if wanted.size != now.size:
        now = now.with_(**{name: getattr(wanted, name) for name in _MADE_OF})
    other = [k for k in Shape.__slots__ if k not in ("size", "replicas") and getattr(wanted, k) != getattr(now, k)]
    if other:
        text = f"an instance has no {', '.join(other)} to change here: name another type (size)"
        raise CannotPlan("UNSUPPORTED_CHANGE", text)
    if wanted.replicas != 1:
        raise CannotPlan("UNSUPPORTED_CHANGE", f"one instance is one replica, not {wanted.replicas}: use a group")
    if wanted.size is None or "." not in wanted.size:
        raise CannotPlan("UNKNOWN_SIZE", f"{wanted.size}: name an instance type, such as g5.xlarge")
    steps: list[Operation] = []
    if wanted.size != now.size or state_of(instance) not in ("running", "pending"):
        id_, was = str(instance["InstanceId"]), str(instance["InstanceType"])
        of = {"instance": id_, "version": live.version}
        change = wanted.size != was
        if change and state_of(instance) != "stopped":
            steps.append(Operation("stop", of, terms.stop_s, f"stop {id_}: its type cannot be changed while it runs"))
        if change:
            args = {**of, "type": wanted.size, "was": was}
            steps.append(Operation("type", args, 120.0, f"make {id_} a {wanted.size}, from {was}"))
        steps.append(Operation("start", of, terms.start_s, f"start {id_}"))
    return _plan(
        terms,
        live,
        wanted,
        steps,
        restarts=True,
        downtime_s=terms.stop_s + terms.start_s,
        way_back=f"stopped again, made a {live.shape.size} again, started again; where the new type has no capacity it is stopped already",
        lock=f"ec2:{instance['InstanceId']}",
    )


# -- a group -----------------------------------------------------------------------------------------------------------


def serving_of(group: Body) -> int:
    """Instances in service that are healthy."""
    there = group.get("Instances") or ()
    return sum((i.get("LifecycleState"), i.get("HealthStatus")) == ("InService", "Healthy") for i in there)


def size_of(group: Body) -> str | None:
    """The type of its instances. None: it has none, or several types."""
    sizes = {i.get("InstanceType") for i in group.get("Instances") or ()}
    return str(sizes.pop()) if len(sizes) == 1 else None


def group_shape(group: Body, policies: Sequence[Body], sizes: Mapping[str, InstanceType]) -> Shape:
    """Where policies set the count, it is unknown here and its bounds are the shape."""
    size = size_of(group)
    if policies:
        scaling = Autoscaling(int(group["MinSize"]), int(group["MaxSize"]), _targets(policies))
        return with_size(size, sizes, autoscaling=scaling)
    return with_size(size, sizes, replicas=int(group["DesiredCapacity"]))


def _targets(policies: Sequence[Body]) -> dict[str, float]:
    found = {}
    for policy in policies:
        tracked = policy.get("TargetTrackingConfiguration") or {}
        if "TargetValue" in tracked:
            metric = (tracked.get("PredefinedMetricSpecification") or {}).get("PredefinedMetricType")
            found[str(metric or policy.get("PolicyName"))] = float(tracked["TargetValue"])
    return found


def scale(terms: MachineTerms, group: Body, live: LiveState, wanted: Shape) -> Plan:
    """Raises ``CannotPlan``."""
    now = live.shape
    other = [
        k for k in Shape.__slots__ if k not in ("replicas", "autoscaling") and getattr(wanted, k) != getattr(now, k)
    ]
    if other:
        text = f"a group has no {', '.join(other)} to change here: give it another launch template, and refresh its instances"
        raise CannotPlan("UNSUPPORTED_CHANGE", text)
    name, least, most = str(group["AutoScalingGroupName"]), int(group["MinSize"]), int(group["MaxSize"])
    of = {"group": name, "version": live.version}
    steps = []
    if now.autoscaling is not None:
        then = wanted.autoscaling
        if wanted.replicas is not None or then is None:
            raise CannotPlan("OWNED", f"policies of group {name} set its count: change its bounds (autoscaling)")
        if dict(then.targets) != dict(now.autoscaling.targets):
            raise CannotPlan("UNSUPPORTED_CHANGE", "targets of policies are changed by hand; bounds are changed here")
        if not 0 <= then.least <= then.most:
            raise CannotPlan("BAD_BOUNDS", f"bounds must be 0 or more, least first, not {then.least} to {then.most}")
        if then != now.autoscaling:
            args = {**of, "least": then.least, "most": then.most}
            steps.append(
                Operation("bounds", args, 120.0, f"group {name}: {least}..{most} become {then.least}..{then.most}")
            )
    elif wanted.autoscaling is not None:
        raise CannotPlan("NO_AUTOSCALER", f"group {name} has no policy that sets its count; set replicas")
    elif wanted.replicas is None or not least <= wanted.replicas <= most:
        text = f"group {name} takes {least} to {most} instances, not {wanted.replicas}: change its bounds by hand first"
        raise CannotPlan("INCOMPLETE_SHAPE", text)
    elif wanted.replicas != now.replicas:
        args = {**of, "count": wanted.replicas, "was": now.replicas}
        steps.append(
            Operation("count", args, terms.scale_s, f"group {name}: {now.replicas} instances become {wanted.replicas}")
        )
    return _plan(terms, live, wanted, steps, way_back="the count or the bounds are set back", lock=f"asg:{name}")


def _plan(
    terms: MachineTerms,
    live: LiveState,
    wanted: Shape,
    steps: Sequence[Operation],
    *,
    way_back: str,
    lock: str,
    restarts: bool = False,
    downtime_s: float = 0.0,
) -> Plan:
    return Plan(
        endpoint=terms.endpoint,
        system=SYSTEM,
        before=live.shape,
        after=wanted,
        version=live.version,
        operations=tuple(steps),
        restarts=restarts and bool(steps),
        downtime_s=downtime_s if steps else 0.0,
        way_back=way_back if steps else "nothing is done",
        locks=(lock,) if steps else (),
    )
