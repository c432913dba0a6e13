"""An application's deployment as a Shape, and the steps from one to another. Pure."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from actuators.base import CannotPlan, LiveState
from actuators.shape import Autoscaling, EngineValue, Operation, Plan, Shape
from collectors.rayserve.client import ServeApplication, ServeDeployment

SYSTEM = "ray-serve"
#: Ray's name of the target, and of the limit that is `max_concurrency` of a Shape.
TARGET, LIMIT = "ongoing_requests", "max_ongoing_requests"
Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ServeTerms:
    """What the settings say of how a change goes."""

    endpoint: str
    dashboard: str
    rollout_s: float


def shape_of(application: ServeApplication, deployment: ServeDeployment) -> Shape:
    """What is configured. Replicas that Serve's autoscaler sets are unknown here: they are ``serving``."""
    config = deployment.config
    actor = config.get("ray_actor_options") or {}
    scaling = autoscaling_of(config)
    limit = config.get(LIMIT)
    count = deployment.target if application.external else config.get("num_replicas")
    gpus = actor.get("num_gpus")
    return Shape(
        replicas=None if scaling is not None else int(count if isinstance(count, int) else deployment.target),
        accelerator_count=int(gpus) if gpus else None,
        cpus=float(actor["num_cpus"]) if actor.get("num_cpus") else None,
        engine={"max_concurrency": int(limit)} if isinstance(limit, int) else {},
        autoscaling=scaling,
    )


def autoscaling_of(config: Body) -> Autoscaling | None:
    scaling = config.get("autoscaling_config")
    if not isinstance(scaling, dict):
        return None
    target = scaling.get("target_ongoing_requests")
    targets = {TARGET: float(target)} if isinstance(target, int | float) else {}
    return Autoscaling(int(scaling.get("min_replicas", 1)), int(scaling.get("max_replicas", 1)), targets)


def version_of(application: ServeApplication, deployment: ServeDeployment | None, writes: int) -> str:
    """Of what is configured. The external scaler leaves no trace but the count, so Flyball's own ``writes`` tell two visits apart."""
    count = deployment.target if application.external and deployment is not None else None
    rests_on = [writes, application.deployed_at, application.stated, application.external, count]
    return hashlib.sha256(json.dumps(rests_on, sort_keys=True, default=str).encode()).hexdigest()[:16]


def plan(
    terms: ServeTerms, application: ServeApplication, deployment: ServeDeployment, live: LiveState, wanted: Shape
) -> Plan:
    """Raises ``CannotPlan``."""
    _check(application, live.shape, wanted)
    fields = fields_of(application, deployment, live.shape, wanted)
    steps: list[Operation] = []
    of = {"application": application.name, "deployment": deployment.name, "version": live.version}
    if fields:
        said = ", ".join(
            f"{k}={json.dumps(v) if v is not None else 'as in the code'}" for k, v in sorted(fields.items())
        )
        summary = f"configure {application.name}/{deployment.name}: {said}"
        steps.append(Operation("configure", {**of, "fields": fields}, terms.rollout_s, summary))
    if application.external and wanted.replicas != live.shape.replicas:
        args = {**of, "replicas": wanted.replicas, "was": live.shape.replicas}
        summary = f"scale {application.name}/{deployment.name} from {live.shape.replicas} to {wanted.replicas}"
        steps.append(Operation("scale", args, terms.rollout_s, summary))
    return Plan(
        endpoint=terms.endpoint,
        system=SYSTEM,
        before=live.shape,
        after=wanted,
        version=live.version,
        operations=tuple(steps),
        restarts=False,
        downtime_s=0.0,
        way_back="the deployment's configuration as it was stated before; Serve starts and stops replicas, and restarts none",
        undo={"fields": {name: entry_of(application.stated, deployment.name).get(name) for name in fields}},
        locks=(f"ray-serve:{terms.dashboard}",),
    )


def as_stated(plan: Plan, before: Body) -> Plan:
    """A way back whose configuration is the one that was stated, and not merely one that comes to the same."""
    operations = [
        replace(
            o, args={**o.args, "fields": {name: before.get(name, value) for name, value in o.args["fields"].items()}}
        )
        if o.name == "configure"
        else o
        for o in plan.operations
    ]
    return replace(plan, operations=tuple(operations))


def restored(plan: Plan, live: LiveState) -> Plan:
    """The way back of a configuration that failed: as it was stated, whatever Serve has of it now."""
    operations = tuple(
        replace(
            o,
            args={**o.args, "version": live.version, "fields": dict(plan.undo.get("fields", {}))},
            summary=f"configure {o.args['application']}/{o.args['deployment']} as it was stated before",
        )
        for o in plan.operations
        if o.name == "configure"
    )
    return replace(
        plan, before=live.shape, after=plan.before, version=live.version, operations=operations, undo={}, finish=()
    )


def entry_of(stated: Body, deployment: str) -> Body:
    """The deployment's own entry in the configuration. Empty: it has none."""
    for entry in stated.get("deployments") or ():
        if isinstance(entry, dict) and entry.get("name") == deployment:
            return entry
    return {}


def with_fields(stated: Body, deployment: str, fields: Body) -> dict[str, Any]:
    """An application's configuration with these fields of one deployment; None: without that one."""
    whole: dict[str, Any] = copy.deepcopy(dict(stated))
    entries = [dict(e) for e in whole.get("deployments") or ()]
    entry = next((e for e in entries if e.get("name") == deployment), None)
    if entry is None:
        entry = {"name": deployment}
        entries.append(entry)
    for name, value in fields.items():
        entry.pop(name, None)
        if value is not None:
            entry[name] = value
    whole["deployments"] = [e for e in entries if e.keys() - {"name"}]
    if not whole["deployments"]:
        del whole["deployments"]
    return whole


def fields_of(application: ServeApplication, deployment: ServeDeployment, now: Shape, wanted: Shape) -> dict[str, Any]:
    """What the configuration of the deployment has to say otherwise."""
    fields: dict[str, Any] = {}
    if wanted.replicas != now.replicas and not application.external:
        fields["num_replicas"] = wanted.replicas
    limit = wanted.engine.get("max_concurrency")
    if limit != now.engine.get("max_concurrency"):
        fields[LIMIT] = limit
    if wanted.autoscaling is not None and wanted.autoscaling != now.autoscaling:
        fields["autoscaling_config"] = _scaling(application, deployment, wanted.autoscaling)
    return fields


def _scaling(application: ServeApplication, deployment: ServeDeployment, wanted: Autoscaling) -> dict[str, Any]:
    """The stated one with other bounds; of one that stands in the code all that Serve made of it, as a configuration replaces it whole."""
    stated = entry_of(application.stated, deployment.name).get("autoscaling_config")
    there = stated if isinstance(stated, dict) else deployment.config.get("autoscaling_config") or {}
    kept = {name: value for name, value in there.items() if value is not None}
    if (kept.get("initial_replicas") or wanted.most) > wanted.most:
        del kept["initial_replicas"]
    target = {"target_ongoing_requests": wanted.targets[TARGET]} if wanted.targets else {}
    return {**kept, "min_replicas": wanted.least, "max_replicas": wanted.most, **target}


def _check(application: ServeApplication, now: Shape, wanted: Shape) -> None:
    names = ("replicas", "engine", "autoscaling")
    other = [k for k in Shape.__slots__ if k not in names and getattr(wanted, k) != getattr(now, k)]
    if other:
        text = f"Ray Serve would restart its replicas for another {', '.join(other)}: change ray_actor_options by hand"
        raise CannotPlan("UNSUPPORTED_CHANGE", text)
    if wanted == now:
        return
    if not application.declarative:
        text = f"{application.name} was deployed by a program (serve.run): deploy it by a configuration, or change it there"
        raise CannotPlan("BY_PROGRAM", text)
    _check_engine(now.engine, wanted.engine)
    if now.autoscaling is not None:
        _check_scaling(now.autoscaling, wanted)
    elif wanted.autoscaling is not None:
        raise CannotPlan("NO_AUTOSCALER", f"{application.name} has no autoscaler to tune; set replicas")
    elif wanted.replicas is None or wanted.replicas < (0 if application.external else 1):
        text = f"say how many replicas, not {wanted.replicas}; only the external scaler and an autoscaler go to 0"
        raise CannotPlan("INCOMPLETE_SHAPE", text)


def _check_engine(now: Mapping[str, EngineValue], wanted: Mapping[str, EngineValue]) -> None:
    for name in {*now, *wanted}:
        value = wanted.get(name)
        if value == now.get(name):
            continue
        if name != "max_concurrency":
            raise CannotPlan(
                "BAD_ENGINE_LIMIT", f"{name}: Ray Serve has max_concurrency, its {LIMIT}, and no other limit"
            )
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise CannotPlan("BAD_ENGINE_LIMIT", f"max_concurrency={value}: a whole number of 1 or more is needed")


def _check_scaling(now: Autoscaling, wanted: Shape) -> None:
    then = wanted.autoscaling
    if wanted.replicas is not None or then is None:
        raise CannotPlan(
            "OWNED", "Serve's autoscaler sets the replicas: change its bounds or its target, not the count"
        )
    if not 0 <= then.least <= then.most or then.most < 1:
        raise CannotPlan("BAD_BOUNDS", f"an autoscaler takes 0 <= least <= most, not {then.least}..{then.most}")
    if set(then.targets) - {TARGET} or any(not value > 0 for value in then.targets.values()):
        raise CannotPlan("UNKNOWN_TARGET", f"Serve's autoscaler has one target, {TARGET}, above 0")
    if set(then.targets) != set(now.targets):
        raise CannotPlan("INCOMPLETE_SHAPE", f"say the autoscaler's target {TARGET} too")
