"""A workload as a Shape, and what of it plans rest on. Pure: bodies of the API server in, nouns out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from actuators.base import Owner
from actuators.commandline import argument, arguments, engine_of
from actuators.shape import Autoscaling, Shape
from collectors.kubernetes.workloads import ClusterWorkload, asked, containers, names_engine, quantity

Body = Mapping[str, Any]
GPU = "nvidia.com/gpu"
_KEDA = "autoscaling.keda.sh"
_WORKER = "leaderworkerset.sigs.k8s.io/worker-index"
_PRODUCT, _INSTANCE = "nvidia.com/gpu.product", "node.kubernetes.io/instance-type"
#: Labels of a node's product to the short names that prices and hardware tables have.
_PRODUCTS = (
    ("H200", "H200"), ("H100", "H100"), ("GH200", "GH200"), ("B200", "B200"), ("A100-SXM4-80GB", "A100-80GB"),
    ("A100-PCIE-80GB", "A100-80GB"), ("A100-80", "A100-80GB"), ("A100", "A100-40GB"),
    ("L40S", "L40S"), ("L4", "L4"), ("A10", "A10"), ("T4", "T4"),
)  # fmt: skip


def serving_container(workload: ClusterWorkload, name: str | None) -> Body:
    """The container that serves: the named one, or the first that names an engine, or the first. Raises ValueError where there is none."""
    found = list(containers(workload.template.get("spec") or {}))
    likely = sorted(found, key=lambda c: not names_engine(c))  # a proxy beside it may come before it
    chosen = next((c for c in likely if name is None or c.get("name") == name), None)
    if chosen is None:
        there = ", ".join(str(c.get("name")) for c in found) or "none"
        raise ValueError(f"{workload.id} has no container {name!r}; there are: {there}")
    return chosen


def shape_of(workload: ClusterWorkload, container: str | None) -> Shape:
    """What is configured. Replicas that an autoscaler sets are unknown here: they are ``serving``."""
    holds = serving_container(workload, container)
    selector = (workload.template.get("spec") or {}).get("nodeSelector") or {}
    resources = holds.get("resources") or {}
    least, most = resources.get("requests") or {}, resources.get("limits") or {}
    gpus = quantity(most.get(GPU, least.get(GPU)))
    memory = quantity(most.get("memory", least.get("memory")))
    scaling = autoscaling_of(workload)
    replicas = workload.spec.get("replicas", 1)
    inner = workload.spec.get("leaderWorkerTemplate") or {}
    group = inner.get("size")
    others = ((group or 1) - 1) * asked((inner.get("workerTemplate") or {}).get("spec") or {}, GPU)
    each = (gpus or 0.0) + others
    return Shape(
        replicas=None if scaling is not None else int(replicas),
        size=selector.get(_INSTANCE),
        accelerator=_accelerator(str(selector.get(_PRODUCT, ""))),
        accelerator_count=int(each) if each else None,
        cpus=quantity(most.get("cpu", least.get("cpu"))),
        memory_gb=None if memory is None else memory / 1e9,
        engine=engine_of(holds),
        autoscaling=scaling,
        extra={} if group is None else {"group_size": int(group)},
    )


def _accelerator(product: str) -> str | None:
    return next((short for part, short in _PRODUCTS if part in product), None)


def autoscaling_of(workload: ClusterWorkload) -> Autoscaling | None:
    """Bounds and targets of the HPA or ScaledObject. One that is paused sets nothing."""
    if workload.autoscaler is None or is_paused(workload):
        return None
    spec = workload.autoscaler.get("spec") or {}
    if is_keda(workload.autoscaler):
        triggers = spec.get("triggers") or ()
        found = dict(zip(trigger_names(triggers), map(threshold, triggers), strict=True))
        least, most = spec.get("minReplicaCount", 0), spec.get("maxReplicaCount", 100)
    else:
        metrics = spec.get("metrics") or ()
        found = dict(zip(metric_names(metrics), map(metric_target, metrics), strict=True))
        least, most = spec.get("minReplicas", 1), spec.get("maxReplicas", 1)
    return Autoscaling(int(least), int(most), {name: value for name, value in found.items() if value is not None})


def is_paused(workload: ClusterWorkload) -> bool:
    """Whether somebody told KEDA to leave the count alone, or to hold it."""
    marks = ((workload.autoscaler or {}).get("metadata") or {}).get("annotations") or {}
    return str(marks.get(f"{_KEDA}/paused")).lower() == "true" or f"{_KEDA}/paused-replicas" in marks


def trigger_names(triggers: Sequence[Body]) -> list[str]:
    """One for each, though most have none of their own and are of one type."""
    metas = [t.get("metadata") or {} for t in triggers]
    return _told_apart(
        [
            str(t.get("name") or m.get("metricName") or t.get("type") or "trigger")
            for t, m in zip(triggers, metas, strict=True)
        ]
    )


def threshold(trigger: Body) -> float | None:
    return quantity((trigger.get("metadata") or {}).get("threshold") or (trigger.get("metadata") or {}).get("value"))


def metric_names(metrics: Sequence[Body]) -> list[str]:
    """One for each, though two may be of one metric with other selectors."""
    names = []
    for metric in metrics:
        own = metric_of(metric)
        names.append(str((own.get("metric") or {}).get("name") or own.get("name") or metric.get("type", "")))
    return _told_apart(names)


def _told_apart(names: Sequence[str]) -> list[str]:
    return [f"{n}#{names[:i].count(n) + 1}" if n in names[:i] else n for i, n in enumerate(names)]


def metric_of(metric: Body) -> Body:
    """What a metric of an HPA says, under the name of its type."""
    kind = str(metric.get("type", ""))
    own: Body = metric.get(kind[:1].lower() + kind[1:]) or {}
    return own


def metric_target(metric: Body) -> float | None:
    target = metric_of(metric).get("target") or {}
    if "averageUtilization" in target:
        return float(target["averageUtilization"]) / 100
    return quantity(target.get("averageValue", target.get("value")))


def owner_of(workload: ClusterWorkload) -> Owner | None:
    """Who else writes it. He who owns the manifest comes before him who owns the count."""
    gitops = workload.gitops
    if gitops is not None:
        return Owner(gitops[0], gitops[1], frozenset({"*"}))
    scaler = workload.autoscaler
    if scaler is None:
        return None
    name = str((scaler.get("metadata") or {}).get("name"))
    kind = "keda" if is_keda(scaler) else "hpa"
    return Owner(kind, name, frozenset({"replicas"}))


def is_keda(scaler: Body) -> bool:
    spec = scaler.get("spec") or {}
    return scaler.get("kind") == "ScaledObject" or "triggers" in spec or "maxReplicaCount" in spec


def version_of(workload: ClusterWorkload) -> str:
    """A hash of the specification that plans rest on. What an autoscaler moves, and every status, is none of it."""
    spec, generation = dict(workload.spec), (workload.body.get("metadata") or {}).get("generation")
    if workload.autoscaler is not None:  # which counts up the generation too, each time that it moves the count
        spec.pop("replicas", None)
        generation = (workload.autoscaler.get("metadata") or {}).get("generation")
    rests_on = [generation, spec, (workload.autoscaler or {}).get("spec"), workload.gitops, is_paused(workload)]
    text = json.dumps(rests_on, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ready_of(workload: ClusterWorkload) -> tuple[bool, int, str]:
    """Whether as many serve as are configured, on the newest template; how many serve; and what is wrong, for people."""
    status, meta = workload.body.get("status") or {}, workload.body.get("metadata") or {}
    wanted = int(workload.spec.get("replicas", 1))
    # the API server leaves zeros out: what is not there is 0. A LeaderWorkerSet does not tell what is available
    serving = int(status.get("readyReplicas" if workload.id.kind == "LeaderWorkerSet" else "availableReplicas") or 0)
    updated = int(status.get("updatedReplicas") or 0)
    seen = int(status.get("observedGeneration", meta.get("generation", 0)) or 0) >= int(meta.get("generation", 0) or 0)
    total = int(status.get("replicas") or 0)
    ready = seen and serving == wanted and updated == wanted and total == wanted
    problems = [
        f"{c.get('type')}: {c.get('message')}"
        for c in status.get("conditions") or ()
        if (c.get("type"), c.get("status")) in (("Progressing", "False"), ("ReplicaFailure", "True"))
    ]
    detail = "" if ready else "; ".join([f"{serving} of {wanted} serve, {updated} on the newest template", *problems])
    return ready, serving, detail


def stuck_of(workload: ClusterWorkload) -> str | None:
    """Why the rollout will not come to its end by itself, as the controller or the scheduler says; None while it may."""
    for condition in (workload.body.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
            return str(condition.get("message") or "the progress deadline is exceeded")
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return str(condition.get("message") or "pods cannot be created")
    return None


def targets_of(workload: ClusterWorkload, port: int) -> dict[str, str]:
    """Each pod that serves, by name, at its own address: a Service in between would mix them. Of a group only its leader serves."""
    found = {}
    for pod in workload.pods:
        if ((pod.get("metadata") or {}).get("labels") or {}).get(_WORKER, "0") != "0":
            continue
        status = pod.get("status") or {}
        ready = any((c.get("type"), c.get("status")) == ("Ready", "True") for c in status.get("conditions") or ())
        address = status.get("podIP")
        if ready and address and (pod.get("metadata") or {}).get("deletionTimestamp") is None:
            host = f"[{address}]" if ":" in str(address) else address
            found[str((pod.get("metadata") or {}).get("name"))] = f"http://{host}:{port}"
    return found


def port_of(container: Body) -> int:
    """Where it serves: ``--port``, else the port that is declared, else vLLM's own."""
    stated = argument(arguments(container), "port")
    if stated is not None and stated.isdigit():
        return int(stated)
    declared = [p.get("containerPort") for p in container.get("ports") or ()]
    return int(declared[0]) if declared and declared[0] else 8000
