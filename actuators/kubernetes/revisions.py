"""A KServe InferenceService or a Knative Service as a Shape, and the one patch from one to another. Pure.

Both set the replicas themselves, from none to a bound. A change makes a new revision, which gets the traffic once it is ready; until then, and
where it never is, the old one serves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import yaml

from actuators.base import CannotPlan, LiveState, Owner
from actuators.kubernetes import spec
from actuators.shape import Autoscaling, EngineValue, Operation, Plan, Shape
from collectors.kubernetes.workloads import ClusterWorkload, quantity

Body = Mapping[str, Any]
_SCALING = "autoscaling.knative.dev/"
#: What a target may be of.
_METRICS = ("concurrency", "rps", "cpu", "memory")
_CHANGES = ("autoscaling", "engine")


def part_of(workload: ClusterWorkload) -> Body:
    """Where an InferenceService says how its predictor scales; of a Knative Service its template."""
    name = "predictor" if workload.id.kind == "InferenceService" else "template"
    found: Body = workload.spec.get(name) or {}
    return found


def _annotations(workload: ClusterWorkload) -> Body:
    found: Body = (part_of(workload).get("metadata") or {}).get("annotations") or {}
    return found


def raw(workload: ClusterWorkload) -> bool:
    """Whether KServe makes a Deployment and an HPA of it, and no Knative Service."""
    marks = (workload.body.get("metadata") or {}).get("annotations") or {}
    mode = marks.get("serving.kserve.io/deploymentMode") or (workload.body.get("status") or {}).get("deploymentMode")
    return str(mode) in ("RawDeployment", "Standard")


def autoscaling_of(workload: ClusterWorkload) -> Autoscaling | None:
    """None: no bound above is stated, so that nobody knows how many there may be."""
    if workload.id.kind == "InferenceService":
        predictor = part_of(workload)
        least, most = predictor.get("minReplicas", 1), predictor.get("maxReplicas") or None
        if most is None and raw(workload):
            most = max(int(least), 1)
        metric = str(predictor.get("scaleMetric") or ("cpu" if raw(workload) else "concurrency"))
        target = predictor.get("scaleTarget")
    else:
        marks = _annotations(workload)
        least, most = marks.get(f"{_SCALING}min-scale", 0), int(marks.get(f"{_SCALING}max-scale") or 0) or None
        metric, target = str(marks.get(f"{_SCALING}metric") or "concurrency"), marks.get(f"{_SCALING}target")
    if most is None:
        return None
    value = quantity(target)
    return Autoscaling(int(least), int(most), {} if value is None else {metric: value})


def shape_of(workload: ClusterWorkload) -> Shape:
    """Replicas are unknown here: they are ``serving``. ``max_concurrency``: how many requests one replica takes at once."""
    holder = part_of(workload) if workload.id.kind == "InferenceService" else part_of(workload).get("spec") or {}
    limit = holder.get("containerConcurrency")
    resources = spec.serving_container(workload, None).get("resources") or {}
    most, least = resources.get("limits") or {}, resources.get("requests") or {}
    memory = quantity(most.get("memory", least.get("memory")))
    gpus = quantity(most.get(spec.GPU, least.get(spec.GPU)))
    return Shape(
        accelerator_count=int(gpus) if gpus else None,
        cpus=quantity(most.get("cpu", least.get("cpu"))),
        memory_gb=None if memory is None else memory / 1e9,
        engine={"max_concurrency": int(limit)} if limit else {},
        autoscaling=autoscaling_of(workload),
    )


def owner_of(workload: ClusterWorkload) -> Owner | None:
    gitops = workload.gitops
    if gitops is not None:
        return Owner(gitops[0], gitops[1], frozenset({"*"}))
    return Owner("hpa" if raw(workload) else "knative", workload.id.name, frozenset({"replicas"}))


def version_of(workload: ClusterWorkload) -> str:
    generation = (workload.body.get("metadata") or {}).get("generation")
    rests_on = [generation, workload.spec, workload.gitops, workload.controller]
    return hashlib.sha256(json.dumps(rests_on, sort_keys=True).encode()).hexdigest()[:16]


def _conditions(workload: ClusterWorkload) -> dict[str, Body]:
    return {str(c.get("type")): c for c in (workload.body.get("status") or {}).get("conditions") or ()}


def ready_of(workload: ClusterWorkload) -> tuple[bool, str]:
    """Whether its newest revision serves; and what is wrong, for people. None at all serve where it has scaled to zero: that is fine."""
    meta, status = workload.body.get("metadata") or {}, workload.body.get("status") or {}
    generation = int(meta.get("generation", 0) or 0)
    if int(status.get("observedGeneration", generation) or 0) < generation:
        return False, "its controller has not seen the newest change yet"
    component = (status.get("components") or {}).get("predictor") or {}
    created = status.get("latestCreatedRevisionName") or component.get("latestCreatedRevision")
    latest = status.get("latestReadyRevisionName") or component.get("latestReadyRevision")
    problems = [
        f"{name}: {c.get('reason')} {c.get('message') or ''}".rstrip()
        for name, c in _conditions(workload).items()
        if c.get("status") != "True" and c.get("severity") != "Info"
    ]
    if created != latest:
        problems.insert(0, f"revision {created} is not ready, {latest} serves")
    ready = (_conditions(workload).get("Ready") or {}).get("status") == "True" and created == latest
    return ready, "" if ready else "; ".join(problems) or "it tells no condition yet"


def stuck_of(workload: ClusterWorkload) -> str | None:
    """Why the newest revision will not come to serve by itself; None while it may."""
    transition = (workload.body.get("status") or {}).get("modelStatus") or {}
    if transition.get("transitionStatus") in ("BlockedByFailedLoad", "InvalidSpec"):
        failure = (transition.get("lastFailureInfo") or {}).get("message") or transition["transitionStatus"]
        return f"the model does not load: {failure}"
    for condition in _conditions(workload).values():
        if condition.get("status") == "False" and condition.get("reason") in (
            "RevisionFailed",
            "ProgressDeadlineExceeded",
        ):
            return str(condition.get("message") or condition["reason"])
    return None


def serving(workload: ClusterWorkload) -> int:
    """Pods that are ready, of all revisions."""
    return len(spec.targets_of(workload, 1))


def plan(endpoint: str, rollout_s: float, workload: ClusterWorkload, live: LiveState, wanted: Shape) -> Plan:
    """Raises ``CannotPlan``."""
    now = live.shape
    _check(workload, now, wanted)
    steps: tuple[Operation, ...] = ()
    by_hand = None
    fields: dict[str, Any] = {}
    if wanted.autoscaling is not None and wanted.autoscaling != now.autoscaling:
        then = wanted.autoscaling
        fields |= {"least": then.least, "most": then.most, "targets": dict(then.targets)}
    limit = wanted.engine.get("max_concurrency")
    if limit != now.engine.get("max_concurrency"):
        fields["concurrency"] = limit
    if fields:
        said = [f"{fields['least']}..{fields['most']}"] if "least" in fields else []
        said += [f"{k} {v:g}" for k, v in sorted(fields.get("targets", {}).items())]
        said += [f"{limit or 'no limit of'} requests at once in a replica"] if "concurrency" in fields else []
        args = {"fields": fields, "version": live.version}
        step = Operation(
            "set_serving", args, rollout_s, f"set {workload.id} to {', '.join(said)}, until its new revision serves"
        )
        steps = (step,)
        if live.owner is not None and "*" in live.owner.owns:
            by_hand, steps = _by_hand(workload, live.owner, step), ()
    return Plan(
        endpoint=endpoint,
        system="kubernetes",
        before=now,
        after=wanted,
        version=live.version,
        operations=steps,
        restarts=bool(steps),
        downtime_s=0.0,
        way_back="the same fields set back, by a new revision; until one is ready the old one serves"
        if steps
        else "nothing is done",
        by_hand=by_hand,
    )


def _by_hand(workload: ClusterWorkload, owner: Owner, step: Operation) -> str:
    meta = {"name": workload.id.name, "namespace": workload.id.namespace}
    kind = "Service" if workload.id.kind == "KnativeService" else workload.id.kind
    head = f"# {workload.id} is owned by {owner.kind} ({owner.name}): what is written beside it comes back. Merge this into its manifest.\n"
    target = {"apiVersion": workload.body.get("apiVersion"), "kind": kind, "metadata": meta}
    return head + yaml.safe_dump({**target, **patch_of(step, workload)}, sort_keys=False)


def patch_of(step: Operation, workload: ClusterWorkload) -> dict[str, Any]:
    """A merge patch."""
    fields = step.args["fields"]
    targets = dict(fields.get("targets") or {})
    if workload.id.kind == "InferenceService":
        predictor: dict[str, Any] = {}
        if "least" in fields:
            predictor = {"minReplicas": fields["least"], "maxReplicas": fields["most"]}
        if targets:
            predictor["scaleTarget"] = round(next(iter(targets.values())))
        if "concurrency" in fields:
            predictor["containerConcurrency"] = fields["concurrency"]
        return {"spec": {"predictor": predictor}}
    template: dict[str, Any] = {"metadata": {}}
    if "least" in fields:
        marks = {f"{_SCALING}min-scale": str(fields["least"]), f"{_SCALING}max-scale": str(fields["most"])}
        marks |= {f"{_SCALING}target": f"{value:.12g}" for value in targets.values()}
        template["metadata"]["annotations"] = marks
    if (part_of(workload).get("metadata") or {}).get("name"):
        template["metadata"]["name"] = None  # a revision's own name is of that one alone
    if "concurrency" in fields:
        template["spec"] = {"containerConcurrency": fields["concurrency"]}
    return {"spec": {"template": template}}


def is_set(step: Operation, workload: ClusterWorkload) -> bool:
    """Whether it says already what the step writes."""
    fields, now = step.args["fields"], shape_of(workload)
    if "least" in fields:
        then = Autoscaling(fields["least"], fields["most"], dict(fields["targets"]))
        if now.autoscaling != then:
            return False
    return "concurrency" not in fields or now.engine.get("max_concurrency") == fields["concurrency"]


def _check(workload: ClusterWorkload, now: Shape, wanted: Shape) -> None:
    other = [k for k in Shape.__slots__ if k not in _CHANGES and getattr(wanted, k) != getattr(now, k)]
    if "replicas" in other:
        text = f"{workload.id} sets its replicas by load: change its bounds or its target (autoscaling), not the count"
        raise CannotPlan("OWNED", text)
    if other:
        text = f"of {workload.id} bounds, target and concurrency are changed here, and not {', '.join(other)}: change its manifest"
        raise CannotPlan("UNSUPPORTED_CHANGE", text)
    if wanted == now:
        return
    made = workload.controller
    if made is not None:
        raise CannotPlan("OWNED", owned_by(workload, made))
    canary = part_of(workload).get("canaryTrafficPercent") if workload.id.kind == "InferenceService" else None
    if canary not in (None, 100):
        raise CannotPlan("CANARY", f"{workload.id} gives {canary} % of its traffic to a canary: end that first")
    _check_scaling(workload, now.autoscaling, wanted.autoscaling)
    _check_engine(workload, now.engine, wanted.engine)


def owned_by(workload: ClusterWorkload, made: tuple[str, str]) -> str:
    """What to name instead."""
    kind, name = made
    return f"{workload.id} is made by {kind} {name}, which writes it again: name that one in actuator.options (kind: {kind}, name: {name})"


def _check_scaling(workload: ClusterWorkload, now: Autoscaling | None, wanted: Autoscaling | None) -> None:
    if now is None:
        field = "spec.predictor.maxReplicas" if workload.id.kind == "InferenceService" else f"{_SCALING}max-scale"
        text = f"{workload.id} states no bound above ({field}): without one nobody knows what it may cost, so state it first"
        raise CannotPlan("NOT_STATED", text)
    if wanted is None:
        raise CannotPlan("INCOMPLETE_SHAPE", "its autoscaler stays: say its bounds")
    least = 1 if workload.id.kind == "InferenceService" and raw(workload) else 0
    if not least <= wanted.least <= wanted.most or wanted.most < 1:
        raise CannotPlan(
            "BAD_BOUNDS", f"{workload.id} takes {least} <= least <= most, not {wanted.least}..{wanted.most}"
        )
    if set(wanted.targets) != set(now.targets):
        stated = ", ".join(now.targets) or "none"
        raise CannotPlan("UNKNOWN_TARGET", f"its stated target is {stated}; known are {', '.join(_METRICS)}")
    whole = workload.id.kind == "InferenceService"
    if any(value <= 0 or (whole and value != round(value)) for value in wanted.targets.values()):
        raise CannotPlan("BAD_TARGET", f"a target is a {'whole ' if whole else ''}number above 0")


def _check_engine(workload: ClusterWorkload, now: Mapping[str, EngineValue], wanted: Mapping[str, EngineValue]) -> None:
    for name in {*now, *wanted}:
        value = wanted.get(name)
        if value == now.get(name):
            continue
        if name != "max_concurrency":
            text = f"{name}: {workload.id} has max_concurrency (containerConcurrency), and no other limit here"
            raise CannotPlan("BAD_ENGINE_LIMIT", text)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise CannotPlan("BAD_ENGINE_LIMIT", f"max_concurrency={value}: a whole number of 1 or more is needed")
        if raw(workload) and workload.id.kind == "InferenceService":
            raise CannotPlan(
                "BAD_ENGINE_LIMIT", "containerConcurrency counts only where Knative serves, and not as a Deployment"
            )
