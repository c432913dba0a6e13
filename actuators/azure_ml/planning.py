"""Plans for an online endpoint: the count in place, a size by a second deployment, an autoscaler's bounds; and the ways back.

Pure: what is there and what is wanted in, operations out. No body stands in a plan, since a deployment's environment may hold secrets:
a step says which deployment it copies, and the digest that this one must still have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actuators.arm import digest
from actuators.azure_ml.spec import (
    MARK,
    Body,
    autoscaling_of,
    count_of,
    default_of,
    main_of,
    name_of,
    profiles_of,
    properties_of,
    setting_of,
    shape_of,
    size_of,
    target_of,
    version_of,
    writable,
)
from actuators.base import CannotPlan
from actuators.shape import Need, Operation, Plan, Shape
from collectors.azure.inventory import EndpointState
from collectors.azure.sizes import CoreQuota, VmSize, cores_needed

_MOST_REPLICAS = 50
_LONGEST_NAME = 32
#: Fields of a Shape that nobody can change here; cores and accelerators come and go with the size.
_FIXED = ("memory_gb", "engine", "purchase", "tier", "region", "extra")


@dataclass(frozen=True, slots=True)
class Pace:
    """How long steps may take, and how traffic is moved."""

    create_s: float
    scale_s: float
    traffic_s: float
    delete_s: float
    steps: Sequence[int]
    hold_s: float
    smoke: bool


@dataclass(frozen=True, slots=True)
class Region:
    """What the region offers now."""

    sizes: Mapping[str, VmSize]
    quotas: Mapping[str, CoreQuota]
    """By family, in lower case."""

    def need(self, size: str, more: int) -> tuple[Need, ...]:
        """``more`` cores of a size's family."""
        known = self.sizes.get(size)
        if known is None or more <= 0:
            return ()
        quota = self.quotas.get(known.family.lower())
        return (Need(f"cores of {known.family}", float(more), None if quota is None else float(quota.free)),)


def plan(endpoint: str, state: EndpointState, wanted: Shape, pace: Pace, region: Region) -> Plan:
    """From what is there to ``wanted``. Raises CannotPlan."""
    main = main_of(state)
    if main is None:
        raise CannotPlan("NO_DEPLOYMENT", f"{state.id.name} has no deployment that takes its traffic: {_split(state)}")
    live = shape_of(state, main, region.sizes)
    if wanted.with_(cpus=live.cpus) == live:
        return _made(endpoint, state, live, wanted, (), "nothing is done")
    _check(live, wanted)
    if len(state.traffic) > 1:
        raise CannotPlan(
            "SPLIT_TRAFFIC", f"several deployments take traffic ({_split(state)}): give it to one of them first"
        )
    if wanted.size != live.size:
        return _resize(endpoint, state, main, live, wanted, pace, region)
    if wanted.autoscaling != live.autoscaling:
        return _tune(endpoint, state, main, live, wanted, pace)
    return _scale(endpoint, state, main, live, wanted, pace, region)


def bounds_back(endpoint: str, state: EndpointState, undone: Plan, pace: Pace, region: Region) -> Plan | None:
    """The bounds that were there before, whatever they are now. None where the setting is gone: plan anew."""
    setting = next((s for s in state.autoscale or () if s.get("id") == undone.undo["setting"]), None)
    now, main = autoscaling_of(setting) if setting is not None else None, main_of(state)
    if setting is None or now is None or main is None:
        return None
    before = tuple(int(v) for v in undone.undo["bounds"])
    there = (now.least, now.most, default_of(setting))
    steps = () if there == before else (_bounds_step(setting, there, before, pace),)
    return _made(
        endpoint, state, shape_of(state, main, region.sizes), undone.before, steps, "none: this is the way back"
    )


def back(endpoint: str, state: EndpointState, undone: Plan, pace: Pace, region: Region) -> Plan | None:
    """From wherever a change of size was left to the deployment before it. None where that one is gone: plan anew."""
    undo = undone.undo
    old = state.deployment(str(undo["deployment"]))
    if old is None:
        return None
    operations = []
    setting = next((s for s in state.autoscale or () if s.get("id") == undo.get("setting")), None)
    if setting is not None and target_of(setting) != str(undo["target"]).lower():
        operations.append(_target_step(setting, target_of(setting), str(undo["target"]), pace))
    count, before = count_of(old), undo["capacity"]
    if count != before and setting is None and setting_of(state, old) is None:
        operations.append(_scale_step(name_of(old), count, before, pace))
    traffic = {str(k): int(v) for k, v in undo["traffic"].items()}
    if state.traffic != traffic:
        operations.append(_traffic_step(state.traffic, traffic, pace))
    new = state.deployment(str(undo["created"]))
    if new is not None and (new.get("tags") or {}).get(MARK[0]) == MARK[1]:
        operations.append(_delete_step(new, pace.create_s + pace.delete_s, pace))
    main = main_of(state)
    live = shape_of(state, main, region.sizes) if main is not None else undone.after
    return _made(endpoint, state, live, undone.before, tuple(operations), "none: this is the way back")


def _check(live: Shape, wanted: Shape) -> None:
    fixed = [name for name in _FIXED if getattr(wanted, name) != getattr(live, name)]
    if fixed:
        raise CannotPlan("UNSUPPORTED_CHANGE", f"an online endpoint has no {', '.join(fixed)} to change here")
    if (wanted.autoscaling is None) != (live.autoscaling is None):
        text = (
            "an autoscale setting is neither made nor removed here: do it in the portal, and Flyball tunes its bounds"
        )
        raise CannotPlan("UNSUPPORTED_CHANGE", text)
    if live.autoscaling is not None and wanted.replicas is not None:
        raise CannotPlan("OWNED", "an autoscale setting sets the count: change its bounds (autoscaling), not replicas")
    if live.autoscaling is None and live.replicas is None:
        raise CannotPlan("OWNED", "an autoscale setting that cannot be read sets the count: it is tuned by hand")
    if live.autoscaling is None and (wanted.replicas is None or not 1 <= wanted.replicas <= _MOST_REPLICAS):
        text = f"a managed deployment runs on 1 to {_MOST_REPLICAS} instances, not {wanted.replicas}; to stop paying, delete it"
        raise CannotPlan("INCOMPLETE_SHAPE", text)
    if wanted.size is None:
        raise CannotPlan("INCOMPLETE_SHAPE", "say which VM size")


# -- the three changes -------------------------------------------------------------------------------------------------


def _scale(
    endpoint: str, state: EndpointState, main: Body, live: Shape, wanted: Shape, pace: Pace, region: Region
) -> Plan:
    assert live.replicas is not None and wanted.replicas is not None  # noqa: PT018  what _check found
    if state.autoscale is None:
        text = (
            "whether an autoscale setting owns the count is not known: grant Microsoft.Insights/AutoscaleSettings/Read"
        )
        raise CannotPlan("OWNER_UNKNOWN", text)
    size = region.sizes.get(live.size or "")
    more = cores_needed(size, wanted.replicas) - cores_needed(size, live.replicas) if size is not None else 0
    step = _scale_step(name_of(main), live.replicas, wanted.replicas, pace)
    needs = region.need(live.size or "", more)
    return _made(endpoint, state, live, wanted, (step,), f"the count is set back to {live.replicas}", needs=needs)


def _resize(
    endpoint: str, state: EndpointState, main: Body, live: Shape, wanted: Shape, pace: Pace, region: Region
) -> Plan:
    size = region.sizes.get(wanted.size or "")
    if size is None:
        raise CannotPlan("UNKNOWN_SIZE", f"{wanted.size} is not offered in {state.region}")
    setting = setting_of(state, main)
    if setting is not None and wanted.autoscaling != live.autoscaling:
        raise CannotPlan("UNSUPPORTED_CHANGE", "change the size and the autoscaler's bounds one after the other")
    count = wanted.replicas if wanted.replicas is not None else count_of(main)
    assert count is not None
    old, new = name_of(main), _new_name(state, name_of(main))
    source = digest(_source(main))
    args = {"deployment": new, "copy_of": old, "digest": source, "size": size.name, "capacity": count}
    operations = [
        Operation("create", args, pace.create_s, f"deploy {new}: {old} on {count} x {size.name}, without traffic")
    ]
    if pace.smoke:
        operations.append(Operation("smoke", {"deployment": new}, 300.0, f"one request to {new}, by header"))
    traffic = {old: 100}
    for share in pace.steps:
        moved = {old: 100 - share, new: share}
        operations.append(_traffic_step(traffic, moved, pace, last=share == pace.steps[-1]))
        traffic = {name: part for name, part in moved.items() if part}
    undo: dict[str, Any] = {
        "deployment": old,
        "traffic": dict(state.traffic),
        "created": new,
        "capacity": count_of(main),
    }
    if setting is not None:
        here, there = state.id.deployment(old), state.id.deployment(new)
        operations.append(_target_step(setting, here, there, pace))
        undo |= {"setting": str(setting.get("id")), "target": here}
    return _made(
        endpoint,
        state,
        live,
        wanted,
        tuple(operations),
        f"traffic goes back to {old}, which runs on until the change is verified, and {new} is deleted",
        finish=(_delete_step(main, pace.delete_s, pace),),
        undo=undo,
        needs=region.need(size.name, cores_needed(size, count)),
    )


def _tune(endpoint: str, state: EndpointState, main: Body, live: Shape, wanted: Shape, pace: Pace) -> Plan:
    setting = setting_of(state, main)
    assert setting is not None and live.autoscaling is not None and wanted.autoscaling is not None  # noqa: PT018
    least, most = wanted.autoscaling.least, wanted.autoscaling.most
    if dict(wanted.autoscaling.targets) != dict(live.autoscaling.targets):
        raise CannotPlan(
            "UNSUPPORTED_CHANGE", "thresholds of an autoscale setting are changed by hand; its bounds are changed here"
        )
    if len(profiles_of(setting)) != 1:
        raise CannotPlan("OWNED", f"autoscale setting {setting.get('name')} has profiles by the clock: tune it by hand")
    if not 1 <= least <= most <= _MOST_REPLICAS:
        raise CannotPlan(
            "INCOMPLETE_SHAPE", f"bounds must be 1 to {_MOST_REPLICAS}, least first, not {least} to {most}"
        )
    old = autoscaling_of(setting)
    assert old is not None
    usual = default_of(setting)
    new = (least, most, min(max(usual, least), most))
    step = _bounds_step(setting, (old.least, old.most, usual), new, pace)
    undo = {"setting": str(setting.get("id")), "bounds": [old.least, old.most, usual]}
    way_back = f"the bounds are set back to {old.least}..{old.most}"
    return _made(endpoint, state, live, wanted, (step,), way_back, undo=undo)


# -- steps -------------------------------------------------------------------------------------------------------------


def _bounds_step(setting: Body, before: tuple[int, ...], after: tuple[int, ...], pace: Pace) -> Operation:
    """Least, most, and the count where no metric is there to tell."""
    args = {"setting": str(setting.get("id")), "from": list(before), "to": list(after)}
    summary = (
        f"autoscale setting {setting.get('name')}: {before[0]}..{before[1]} instances become {after[0]}..{after[1]}"
    )
    return Operation("bounds", args, pace.traffic_s, summary)


def _target_step(setting: Body, here: str, there: str, pace: Pace) -> Operation:
    args = {"setting": str(setting.get("id")), "from": here, "to": there}
    summary = f"autoscale setting {setting.get('name')} looks after {there.rpartition('/')[2]}"
    return Operation("target", args, pace.traffic_s, summary)


def _scale_step(deployment: str, before: int | None, after: int, pace: Pace) -> Operation:
    args = {"deployment": deployment, "from": before, "capacity": after}
    return Operation("scale", args, pace.scale_s, f"{deployment}: {before} instances become {after}")


def _traffic_step(before: Mapping[str, int], after: Mapping[str, int], pace: Pace, *, last: bool = True) -> Operation:
    shown = ", ".join(f"{name} {share} %" for name, share in sorted(after.items()))
    args = {"from": dict(before), "to": dict(after)}
    return Operation("traffic", args, pace.traffic_s, f"traffic: {shown}", 0.0 if last else pace.hold_s, gate=not last)


def _delete_step(deployment: Body, deadline_s: float, pace: Pace) -> Operation:
    name = name_of(deployment)
    summary = f"delete {name} ({count_of(deployment)} x {size_of(deployment)}), which takes no traffic"
    return Operation("delete", {"deployment": name}, max(deadline_s, pace.delete_s), summary)


def _made(
    endpoint: str,
    state: EndpointState,
    before: Shape,
    after: Shape,
    operations: tuple[Operation, ...],
    way_back: str,
    *,
    finish: tuple[Operation, ...] = (),
    undo: Mapping[str, Any] | None = None,
    needs: tuple[Need, ...] = (),
) -> Plan:
    return Plan(
        endpoint=endpoint,
        system="azure-ml",
        before=before,
        after=after,
        version=version_of(state),
        operations=operations,
        restarts=False,
        downtime_s=0.0,
        way_back=way_back,
        finish=finish,
        undo=undo or {},
        locks=(f"azure-ml:{state.id.key}",) if operations else (),
        needs=needs,
    )


def _source(deployment: Body) -> Mapping[str, Any]:
    """What a copy takes over: all but count and size."""
    body = writable(deployment)
    properties = {k: v for k, v in body["properties"].items() if k != "instanceType"}
    return {**{k: v for k, v in body.items() if k != "sku"}, "properties": properties}


def source_digest(deployment: Body) -> str:
    return digest(_source(deployment))


def copy_body(deployment: Body, size: str, capacity: int) -> dict[str, Any]:
    """The whole body of a deployment like this one, on another size."""
    body = {**_source(deployment)}
    body["tags"] = {**body["tags"], MARK[0]: MARK[1]}
    body["sku"] = {"name": "Default", "capacity": capacity}
    body["properties"] = {**body["properties"], "instanceType": size}
    return body


def _new_name(state: EndpointState, old: str) -> str:
    """``blue`` becomes ``blue-2``, and that ``blue-3``: the first that is free."""
    match = re.match(r"^(.*?)-(\d+)$", old)
    base, number = (match[1], int(match[2]) + 1) if match else (old, 2)
    taken = {name_of(d) for d in state.deployments}
    while True:
        suffix = f"-{number}"
        name = base[: _LONGEST_NAME - len(suffix)] + suffix
        if name not in taken:
            return name
        number += 1


def _split(state: EndpointState) -> str:
    shares = ", ".join(f"{name} {share} %" for name, share in state.traffic.items())
    return shares or f"{len(state.deployments)} deployments, and none has traffic"


def traffic_body(endpoint: Body, traffic: Mapping[str, int]) -> dict[str, Any]:
    """The whole body of the endpoint with its traffic replaced; nothing else of an endpoint's traffic can be patched."""
    body = writable(endpoint)
    body["properties"] = {**body["properties"], "traffic": dict(traffic)}
    return body


def target_body(setting: Body, here: str, there: str) -> dict[str, Any]:
    """The whole body of an autoscale setting for another deployment: its target, and the metrics of that which its rules look at."""

    def moved(uri: Any) -> Any:
        return there if isinstance(uri, str) and uri.lower() == here.lower() else uri

    profiles = []
    for profile in profiles_of(setting):
        rules = [
            {
                **rule,
                "metricTrigger": {
                    **rule["metricTrigger"],
                    "metricResourceUri": moved(rule["metricTrigger"].get("metricResourceUri")),
                },
            }
            for rule in profile.get("rules") or ()
        ]
        profiles.append({**profile, "rules": rules})
    body = _setting_body(setting, profiles)
    body["properties"] |= {"targetResourceUri": there}
    return body


def bounds_body(setting: Body, least: int, most: int, usual: int) -> dict[str, Any]:
    """The whole body of an autoscale setting with other bounds."""
    capacity = {"minimum": str(least), "maximum": str(most), "default": str(usual)}
    profiles = [{**profile, "capacity": capacity} for profile in profiles_of(setting)]
    return _setting_body(setting, profiles)


def _setting_body(setting: Body, profiles: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    properties = {k: v for k, v in properties_of(setting).items() if v is not None}
    return {
        "location": setting.get("location"),
        "tags": dict(setting.get("tags") or {}),
        "properties": {**properties, "profiles": list(profiles)},
    }
