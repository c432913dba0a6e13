"""A group of a job as a Shape, and the steps from one to another. Pure: specifications in, a plan out."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actuators.base import CannotPlan, LiveState
from actuators.shape import Autoscaling, EngineValue, Operation, Plan, Shape
from collectors.nomad.jobs import group_of, task_of

SYSTEM = "nomad"
#: The share of a node's clock that a task is given, where no whole cores are reserved.
MHZ = "cpu_mhz"
_CHANGES = ("replicas", "autoscaling", "cpus", "memory_gb", "accelerator_count", "engine")
_MIB = 2**20
Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class JobTerms:
    """What the settings say of how a change goes."""

    endpoint: str
    address: str
    namespace: str
    group: str | None
    task: str | None
    rollout_s: float


def shape_of(job: Body, group_name: str | None, task_name: str | None) -> Shape:
    """What is configured. Allocations that Nomad's autoscaler sets are unknown here: they are ``serving``. Raises UnknownPart."""
    group = group_of(job, group_name)
    resources = task_of(group, task_name).get("Resources") or {}
    scaling = autoscaling_of(group)
    device = gpu_of(resources)
    cores, memory = resources.get("Cores"), resources.get("MemoryMB")
    engine: dict[str, EngineValue] = {} if cores or not resources.get("CPU") else {MHZ: int(resources["CPU"])}
    return Shape(
        replicas=None if scaling is not None else int(group.get("Count") or 0),
        accelerator=None if device is None else _model_of(device),
        accelerator_count=None if device is None else int(device.get("Count") or 1),
        cpus=float(cores) if cores else None,
        memory_gb=None if not memory else round(int(memory) * _MIB / 1e9, 2),
        engine=engine,
        autoscaling=scaling,
    )


def autoscaling_of(group: Body) -> Autoscaling | None:
    """The bounds, where a policy says how Nomad's autoscaler moves the count between them. Its targets stand in that policy, and stay."""
    scaling = group.get("Scaling") or {}
    if not scaling.get("Enabled") or not scaling.get("Policy"):
        return None
    return Autoscaling(int(scaling.get("Min") or 0), int(scaling.get("Max") or 0))


def gpu_of(resources: Body) -> Body | None:
    """The device that is a GPU: ``gpu``, ``nvidia/gpu``, ``nvidia/gpu/Tesla T4``."""
    return next((d for d in resources.get("Devices") or () if "gpu" in str(d.get("Name")).split("/")[:2]), None)


def _model_of(device: Body) -> str | None:
    """By the device's name, or by a constraint on its model."""
    parts = str(device.get("Name")).split("/")
    if len(parts) == 3:
        return parts[2]
    wanted = [
        c for c in device.get("Constraints") or () if c.get("LTarget") == "${device.model}" and c.get("Operand") == "="
    ]
    return str(wanted[0]["RTarget"]) if wanted else None


def version_of(job: Body, group_name: str | None, writes: int) -> str:
    """Of the specification. Where an autoscaler moves the count, and the index with it, the rest of the specification tells, with the
    number of Flyball's own ``writes``, so that two visits are told apart. Raises UnknownPart."""
    group = group_of(job, group_name)
    rests_on: list[Any] = [job.get("JobModifyIndex"), bool(job.get("Stop"))]
    if autoscaling_of(group) is not None:
        rest = {k: v for k, v in group.items() if k != "Count"}
        others = [g for g in job.get("TaskGroups") or () if g is not group]
        rests_on = [writes, bool(job.get("Stop")), rest, others]
    return hashlib.sha256(json.dumps(rests_on, sort_keys=True).encode()).hexdigest()[:16]


def plan(terms: JobTerms, job: Body, live: LiveState, wanted: Shape) -> Plan:
    """Raises ``CannotPlan``."""
    _check(terms, job, live.shape, wanted)
    of = {"job": str(job.get("ID")), "group": str(group_of(job, terms.group)["Name"]), "version": live.version}
    now = live.shape
    fields = fields_of(now, wanted)
    steps: list[Operation] = []
    if fields:
        if wanted.replicas != now.replicas and wanted.replicas is not None:
            fields["count"] = wanted.replicas
        summary = f"register job {of['job']} with {', '.join(f'{k} {_said(v)}' for k, v in fields.items())}"
        steps.append(Operation("register", {**of, "fields": fields}, terms.rollout_s, summary))
    elif wanted.replicas != now.replicas:
        args = {**of, "count": wanted.replicas, "was": now.replicas}
        summary = f"scale {of['job']}/{of['group']} from {now.replicas} to {wanted.replicas}"
        steps.append(Operation("scale", args, terms.rollout_s, summary))
    rolls = bool(fields.keys() - {"bounds", "count"})
    return Plan(
        endpoint=terms.endpoint,
        system=SYSTEM,
        before=now,
        after=wanted,
        version=live.version,
        operations=tuple(steps),
        restarts=rolls,
        downtime_s=terms.rollout_s if rolls and _stops_all(job, terms.group) else 0.0,
        way_back="the job reverted to its version of before, or the same fields set back where somebody else wrote meanwhile",
        undo={"job_version": job.get("Version")},
        locks=(f"nomad:{terms.address}:{terms.namespace}:{of['job']}",),
    )


def reverted(terms: JobTerms, job: Body, plan: Plan, live: LiveState) -> Plan:
    """The way back by Nomad's own: the version of before."""
    to = plan.undo["job_version"]
    of = {"job": str(job.get("ID")), "group": str(group_of(job, terms.group)["Name"]), "version": live.version}
    args = {**of, "to": to, "prior": job.get("Version")}
    step = Operation("revert", args, terms.rollout_s, f"revert job {of['job']} to its version {to}")
    return Plan(
        endpoint=terms.endpoint,
        system=SYSTEM,
        before=live.shape,
        after=plan.before,
        version=live.version,
        operations=(step,),
        restarts=plan.restarts,
        downtime_s=plan.downtime_s,
        way_back="none: it is one",
        locks=plan.locks,
    )


def fields_of(now: Shape, wanted: Shape) -> dict[str, Any]:
    """What the specification has to say otherwise, but for the count."""
    fields: dict[str, Any] = {}
    if wanted.cpus != now.cpus and wanted.cpus is not None:
        fields["cores"] = int(wanted.cpus)
    if wanted.engine.get(MHZ) != now.engine.get(MHZ):
        fields[MHZ] = wanted.engine.get(MHZ)
    if wanted.memory_gb != now.memory_gb and wanted.memory_gb is not None:
        fields["memory_mib"] = max(1, round(wanted.memory_gb * 1e9 / _MIB))
    if wanted.accelerator_count != now.accelerator_count:
        fields["gpus"] = wanted.accelerator_count or 0
    if wanted.autoscaling is not None and wanted.autoscaling != now.autoscaling:
        fields["bounds"] = [wanted.autoscaling.least, wanted.autoscaling.most]
    return fields


def with_fields(job: Body, group_name: str | None, task_name: str | None, fields: Body) -> dict[str, Any]:
    """The specification with these fields. Raises UnknownPart."""
    whole: dict[str, Any] = copy.deepcopy(dict(job))
    group: dict[str, Any] = dict(group_of(whole, group_name))
    task = dict(task_of(group, task_name))
    resources = dict(task.get("Resources") or {})
    for name, key in (("cores", "Cores"), (MHZ, "CPU"), ("memory_mib", "MemoryMB")):
        if name in fields:
            resources[key] = fields[name]
    most = resources.get("MemoryMaxMB")
    if most and "memory_mib" in fields:
        resources["MemoryMaxMB"] = max(int(most), fields["memory_mib"])
    if "gpus" in fields:
        resources["Devices"] = _devices(resources, fields["gpus"])
    task["Resources"] = resources
    group["Tasks"] = [task if t.get("Name") == task["Name"] else t for t in group["Tasks"]]
    if "bounds" in fields:
        least, most_count = fields["bounds"]
        group["Scaling"] = {**(group.get("Scaling") or {}), "Min": least, "Max": most_count}
        group["Count"] = min(max(int(group.get("Count") or 0), least), most_count)
    if "count" in fields:
        group["Count"] = fields["count"]
    whole["TaskGroups"] = [group if g.get("Name") == group["Name"] else g for g in whole["TaskGroups"]]
    return whole


def _devices(resources: Body, count: int) -> list[Body]:
    there = list(resources.get("Devices") or ())
    gpu = gpu_of(resources)
    if gpu is None:
        return [*there, {"Name": "nvidia/gpu", "Count": count}] if count else there
    return [{**d, "Count": count} if d is gpu else d for d in there if d is not gpu or count]


def _stops_all(job: Body, group_name: str | None) -> bool:
    """Whether a new version stops every allocation before another one serves: no rolling update, or one allocation and no canary."""
    group = group_of(job, group_name)
    update = group.get("Update") or {}
    return not update.get("MaxParallel") or (
        int(group.get("Count") or 0) <= int(update["MaxParallel"]) and not update.get("Canary")
    )


def _check(terms: JobTerms, job: Body, now: Shape, wanted: Shape) -> None:
    other = [k for k in Shape.__slots__ if k not in _CHANGES and getattr(wanted, k) != getattr(now, k)]
    if other:
        text = f"nomad cannot change {', '.join(other)} of a job: write it into the job's own file"
        raise CannotPlan("UNSUPPORTED_CHANGE", text)
    if wanted == now:
        return
    if job.get("Type") != "service" or job.get("Periodic") or job.get("ParameterizedJob"):
        raise CannotPlan(
            "NOT_A_SERVICE", f"job {job.get('ID')} is of type {job.get('Type')}: only service jobs are changed"
        )
    if job.get("Stop"):
        raise CannotPlan("STOPPED", f"job {job.get('ID')} is stopped: start it first (nomad job run)")
    _check_resources(now, wanted)
    group = group_of(job, terms.group)
    if now.autoscaling is not None:
        _check_bounds(wanted)
    elif wanted.autoscaling is not None:
        raise CannotPlan("NO_AUTOSCALER", f"group {group['Name']} has no scaling policy; set replicas")
    elif wanted.replicas is None or wanted.replicas < 0:
        raise CannotPlan(
            "INCOMPLETE_SHAPE", f"say how many allocations of group {group['Name']}, not {wanted.replicas}"
        )
    else:
        scaling = group.get("Scaling") or {}
        least, most = scaling.get("Min"), scaling.get("Max")
        if scaling and (wanted.replicas > (most or wanted.replicas) or wanted.replicas < (least or 0)):
            text = f"the scaling block of group {group['Name']} allows {least}..{most}, and {wanted.replicas} are wanted: change it there"
            raise CannotPlan("OUT_OF_BOUNDS", text)


def _check_resources(now: Shape, wanted: Shape) -> None:
    strange = [n for n in wanted.engine if n != MHZ and wanted.engine[n] != now.engine.get(n)]
    gone = [n for n in now.engine if n not in wanted.engine]
    if strange or gone:
        text = f"{', '.join([*strange, *gone])}: Nomad has {MHZ}; an engine's own limits stand in the task's arguments"
        raise CannotPlan("BAD_LIMIT", text)
    mhz = wanted.engine.get(MHZ)
    if mhz != now.engine.get(MHZ) and (
        isinstance(mhz, bool) or not isinstance(mhz, int) or mhz < 1 or MHZ not in now.engine
    ):
        raise CannotPlan(
            "BAD_LIMIT", f"{MHZ}={mhz}: a whole number of 1 or more is needed, of a task that reserves no cores"
        )
    if wanted.cpus != now.cpus and (now.cpus is None or wanted.cpus is None or wanted.cpus < 1 or wanted.cpus % 1):
        text = f"cpus={wanted.cpus}: whole cores are needed, of a task that reserves cores; one that does not has {MHZ}"
        raise CannotPlan("BAD_LIMIT", text)
    if wanted.memory_gb != now.memory_gb and (
        wanted.memory_gb is None or wanted.memory_gb <= 0 or round(wanted.memory_gb, 2) != wanted.memory_gb
    ):
        raise CannotPlan(
            "BAD_LIMIT", f"memory_gb={wanted.memory_gb}: a number above 0 with two decimals at most is needed"
        )
    if wanted.accelerator_count != now.accelerator_count and (wanted.accelerator_count or 0) < 0:
        raise CannotPlan("BAD_LIMIT", f"accelerator_count={wanted.accelerator_count}: 0 or more")


def _check_bounds(wanted: Shape) -> None:
    then = wanted.autoscaling
    if wanted.replicas is not None or then is None:
        raise CannotPlan("OWNED", "Nomad's autoscaler sets the count: change its bounds (autoscaling), not the count")
    if not 0 <= then.least <= then.most or then.most < 1:
        raise CannotPlan("BAD_BOUNDS", f"a scaling block takes 0 <= least <= most, not {then.least}..{then.most}")
    if then.targets:
        raise CannotPlan("UNKNOWN_TARGET", "the targets stand in the policy of the scaling block: change them there")


def _said(value: Any) -> str:
    return f"{value[0]}..{value[1]}" if isinstance(value, list) else str(value)
