"""What is stored, what is refused, and what the controllers make of it as time goes on."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]
GROUPS = {
    "deployments": ("apps", "v1", "Deployment"),
    "statefulsets": ("apps", "v1", "StatefulSet"),
    "leaderworkersets": ("leaderworkerset.x-k8s.io", "v1", "LeaderWorkerSet"),
    "horizontalpodautoscalers": ("autoscaling", "v2", "HorizontalPodAutoscaler"),
    "scaledobjects": ("keda.sh", "v1alpha1", "ScaledObject"),
    "inferenceservices": ("serving.kserve.io", "v1beta1", "InferenceService"),
    "ksvc": ("serving.knative.dev", "v1", "Service"),
    "pods": ("", "v1", "Pod"),
    "services": ("", "v1", "Service"),
    "nodes": ("", "v1", "Node"),
}
CUSTOM = ("leaderworkersets", "scaledobjects", "inferenceservices", "ksvc")
#: Those that set their own replicas, by revisions; ``ksvc`` is how kubectl calls a Knative Service, too.
REVISED = {"inferenceservices": "serving.kserve.io/inferenceservice", "ksvc": "serving.knative.dev/service"}
_SCALING = "autoscaling.knative.dev/"
_WORKLOADS = ("deployments", "statefulsets", "leaderworkersets")
Key = tuple[str, str, str]


class Refused(Exception):
    """A ``Status`` with its code."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.details = code, reason, message, details

    def body(self) -> Body:
        status: Body = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        status["reason"] = self.reason
        return status | ({"details": self.details} if self.details else {}) | {"code": self.code}


@dataclass
class Cluster:
    """Use with ``FakeKubernetes``."""

    now: Callable[[], float]
    start_s: float = 30.0
    """From a pod's creation until it serves."""
    wants: Callable[[float], int] | None = None
    """What the HPA's or KEDA's metric asks for at a moment; None: its metric fails."""
    gitops_s: float | None = None
    """Argo CD writes the manifests back so long after a change; None: it is not there."""
    stuck: bool = False
    """New pods never come up."""
    quota: int | None = None
    """Pods that the namespace's quota allows."""
    denied: set[tuple[str, str]] = field(default_factory=set)
    """Verb and resource, ``("patch", "deployments/scale")``, that Flyball may not."""
    infeasible: bool = False
    """No node has room for a pod that is resized in place."""
    installed: set[str] = field(default_factory=lambda: set(CUSTOM))
    tokens: set[str] = field(default_factory=lambda: {"flyball-token"})
    objects: dict[Key, Body] = field(default_factory=dict)
    written: list[tuple[str, str, str]] = field(default_factory=list)
    """Every write that was stored: method, path, field manager."""
    throttle_s: int | None = None
    """The next request is answered 429 with this Retry-After."""
    down: bool = False
    _version: int = 100
    _manifests: dict[Key, tuple[float, Body]] = field(default_factory=dict)

    # -- storing -------------------------------------------------------------------------------------------------------

    def create(self, resource: str, namespace: str, body: Body) -> Body:
        made = copy.deepcopy(body)
        meta = made.setdefault("metadata", {})
        if not meta.get("name"):
            raise Refused(422, "Invalid", "metadata.name: Required value: name or generateName is required")
        key = (resource, namespace, meta["name"])
        if key in self.objects:
            raise Refused(409, "AlreadyExists", f'{_of(resource)} "{meta["name"]}" already exists')
        group, version, kind = GROUPS[resource]
        made.setdefault("apiVersion", f"{group}/{version}" if group else version)
        made.setdefault("kind", kind)
        if resource != "nodes":
            meta["namespace"] = namespace
        meta["generation"] = 1
        meta["created_at"] = self.now()
        if resource in _WORKLOADS:
            made["spec"].setdefault("replicas", 1)
            made["status"] = {}
        self._check(resource, made)
        self._store(key, made, "test")
        if resource in _WORKLOADS:
            self._manifests[key] = (self.now(), copy.deepcopy(made["spec"]))
        self.settle()
        return self.objects[key]

    def get(self, resource: str, namespace: str, name: str) -> Body:
        self.settle()
        found = self.objects.get((resource, namespace, name))
        if found is None:
            group, _, _ = GROUPS[resource]
            raise Refused(404, "NotFound", f'{_of(resource)} "{name}" not found', name=name, group=group, kind=resource)
        return found

    def all(self, resource: str, namespace: str | None) -> list[Body]:
        self.settle()
        return [b for (r, n, _), b in sorted(self.objects.items()) if r == resource and namespace in (None, n)]

    def write(
        self, resource: str, namespace: str, name: str, body: Body, change: Body, manager: str, *, dry_run: bool
    ) -> Body:
        """``body`` in place of what is there; ``change`` is what was sent."""
        key, old = (resource, namespace, name), self.get(resource, namespace, name)
        expected = (change.get("metadata") or {}).get("resourceVersion")
        if expected is not None and expected != old["metadata"]["resourceVersion"]:
            text = f'Operation cannot be fulfilled on {_of(resource)} "{name}": the object has been modified'
            raise Refused(409, "Conflict", text, name=name, group=GROUPS[resource][0], kind=resource)
        new = copy.deepcopy(body)
        new["metadata"] = {**new["metadata"], "resourceVersion": old["metadata"]["resourceVersion"]}
        self._check(resource, new)
        if new == old:
            return old
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] = old["metadata"]["generation"] + 1
        if dry_run:
            return new
        self._store(key, new, manager)
        self.settle()
        return self.objects[key]

    def _store(self, key: Key, body: Body, manager: str) -> None:
        self._version += 1
        meta = body["metadata"]
        meta["resourceVersion"] = str(self._version)
        managers = {m["manager"] for m in meta.get("managedFields") or ()} | {manager}
        meta["managedFields"] = [{"manager": m, "operation": "Update"} for m in sorted(managers)]
        self.objects[key] = body

    def _check(self, resource: str, body: Body) -> None:
        spec, name = body.get("spec") or {}, body["metadata"]["name"]
        if resource in _WORKLOADS and (not isinstance(spec.get("replicas"), int) or spec["replicas"] < 0):
            raise invalid(
                body["kind"],
                GROUPS[resource][0],
                name,
                "spec.replicas",
                f"Invalid value: {spec.get('replicas')}: must be greater than or equal to 0",
            )
        if resource == "horizontalpodautoscalers" and spec.get("maxReplicas", 0) < spec.get("minReplicas", 1):
            text = f"Invalid value: {spec.get('maxReplicas')}: must be greater than or equal to `minReplicas`"
            raise invalid(body["kind"], "autoscaling", name, "spec.maxReplicas", text)
        if resource == "scaledobjects" and spec.get("maxReplicaCount", 100) < max(1, spec.get("minReplicaCount", 0)):
            text = f"Invalid value: {spec.get('maxReplicaCount')}: spec.maxReplicaCount in body should be greater than or equal to 1"
            raise invalid(body["kind"], "keda.sh", name, "spec.maxReplicaCount", text)
        if resource in REVISED:
            self._check_bounds(resource, body)
        if resource in _WORKLOADS and self.quota is not None and spec.get("replicas", 0) > self.quota:
            # a real quota refuses pods; a validating webhook on it, as many clusters have, refuses here
            raise Refused(
                403,
                "Forbidden",
                f'{_of(resource)} "{name}" is forbidden: exceeded quota: pods, requested: {spec["replicas"]}, limited: {self.quota}',
            )

    def _check_bounds(self, resource: str, body: Body) -> None:
        """What the webhooks of KServe and Knative refuse."""
        least, most = _bounds(resource, body["spec"])
        if least < 0 or most < 0 or (most and most < least):
            if resource == "ksvc":
                text = f"max-scale={most} is less than min-scale={least}: spec.template.metadata.annotations"
                hook = "validation.webhook.serving.knative.dev"
                raise Refused(
                    400, "BadRequest", f'admission webhook "{hook}" denied the request: validation failed: {text}'
                )
            hook = "inferenceservice.kserve-webhook-server.validator"
            text = f'admission webhook "{hook}" denied the request: MinReplicas cannot be greater than MaxReplicas'
            raise Refused(403, "Forbidden", text)

    # -- controllers ---------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """All that the controllers have done by now."""
        for key in [k for k in self.objects if k[0] in _WORKLOADS]:
            self._gitops(key)
            self._autoscale(key)
            self._roll(key)
        for key in [k for k in self.objects if k[0] in REVISED]:
            self._revise(key)

    def _gitops(self, key: Key) -> None:
        known = self._manifests.get(key)
        if self.gitops_s is None or known is None or self.objects[key]["spec"] == known[1]:
            self._manifests[key] = (self.now(), known[1] if known else copy.deepcopy(self.objects[key]["spec"]))
            return
        if self.now() - known[0] >= self.gitops_s:
            body = copy.deepcopy(self.objects[key])
            body["spec"] = copy.deepcopy(known[1])
            body["metadata"]["generation"] += 1
            self._store(key, body, "argocd-controller")

    def _autoscale(self, key: Key) -> None:
        for (resource, namespace, _), scaler in list(self.objects.items()):
            spec = scaler.get("spec") or {}
            ref = spec.get("scaleTargetRef") or {}
            if resource not in ("horizontalpodautoscalers", "scaledobjects") or (namespace, ref.get("name")) != key[1:]:
                continue
            if ref.get("kind", "Deployment") != GROUPS[key[0]][2]:
                continue
            least = spec.get("minReplicas", spec.get("minReplicaCount", 1))
            most = spec.get("maxReplicas", spec.get("maxReplicaCount", 100))
            asked = self.wants(self.now()) if self.wants is not None else None
            now = self.objects[key]["spec"]["replicas"]
            scaler["status"] = {"currentReplicas": now, "desiredReplicas": 0 if asked is None else asked}
            wanted = min(most, max(least, now if asked is None else asked))
            if wanted != now:
                body = copy.deepcopy(self.objects[key])
                body["spec"]["replicas"] = wanted
                body["metadata"]["generation"] += 1
                self._store(key, body, "kube-controller-manager")

    def _roll(self, key: Key) -> None:
        """Pods of the newest template first, then those of an older one go: at no time do fewer serve."""
        body, namespace = self.objects[key], key[1]
        spec, wanted = body["spec"], body["spec"]["replicas"]
        group = spec.get("leaderWorkerTemplate") or {}
        template = spec.get("template") or group.get("leaderTemplate") or group["workerTemplate"]
        digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:8]
        pods = self._pods(key)
        new = [p for p in pods if p["metadata"]["labels"]["pod-template-hash"] == digest]
        new += [self._start(key, template, digest) for _ in range(wanted - len(new))]
        for pod in sorted(new, key=lambda p: p["metadata"]["created_at"])[wanted:]:
            del self.objects["pods", namespace, pod["metadata"]["name"]]
        new = new[:wanted]
        for pod in self._pods(key):
            self._wake(pod)
        serving_new = [p for p in new if _ready(p)]
        old = [p for p in self._pods(key) if p["metadata"]["labels"]["pod-template-hash"] != digest]
        while (old and len(serving_new) + len([p for p in old if _ready(p)]) > wanted) or (
            old and len(serving_new) == wanted
        ):
            gone = old.pop()
            del self.objects["pods", namespace, gone["metadata"]["name"]]
        there = self._pods(key)
        available = sum(_ready(p) for p in there)
        counts = {"replicas": len(there), "updatedReplicas": len(new), "readyReplicas": available}
        seen = {"observedGeneration": body["metadata"]["generation"], "availableReplicas": available}
        counts |= seen if key[0] != "leaderworkersets" else {}
        told = {name: count for name, count in counts.items() if count}  # a real server leaves zeros out
        body["status"] = {**told, "conditions": self._conditions(key, new, wanted)}

    def _revise(self, key: Key) -> None:
        """Each template is a revision; the newest gets the traffic once its pods serve, and the others go then."""
        body, namespace = self.objects[key], key[1]
        part = body["spec"]["predictor" if key[0] == "inferenceservices" else "template"]
        digest = hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:5]
        known: list[str] = body.setdefault("revisions", [])
        if digest not in known or known[-1] != digest:
            known[:] = [*(d for d in known if d != digest), digest]
        least, most = _bounds(key[0], body["spec"])
        asked = self.wants(self.now()) if self.wants is not None else None
        wanted = max(least, 1 if asked is None else asked)
        wanted = min(most, wanted) if most else wanted
        inner = (
            (part.get("spec") or {}).get("containers")
            or part.get("containers")
            or [{"name": "kserve-container", **part.get("model", {})}]
        )
        template = {"metadata": {"labels": {REVISED[key[0]]: key[2]}}, "spec": {"containers": inner}}
        new = [p for p in self._pods(key) if p["metadata"]["labels"]["pod-template-hash"] == digest]
        new += [self._start(key, template, digest) for _ in range(wanted - len(new))]
        for pod in new[wanted:]:
            del self.objects["pods", namespace, pod["metadata"]["name"]]
        for pod in self._pods(key):
            self._wake(pod)
        ready = all(_ready(p) for p in new[:wanted])
        if ready:
            body["latest"] = digest
            for pod in self._pods(key):
                if pod["metadata"]["labels"]["pod-template-hash"] != digest:
                    del self.objects["pods", namespace, pod["metadata"]["name"]]
        created, latest = (None if d is None else f"{key[2]}-{d}" for d in (digest, body.get("latest")))
        late = self.stuck and not ready and self.now() - min(p["metadata"]["created_at"] for p in new) >= 600.0
        state = "True" if ready else "False" if late else "Unknown"
        failed = (
            {"reason": "RevisionFailed", "message": f'Revision "{created}" failed with message: timed out.'}
            if late
            else {}
        )
        conditions = [{"type": name, "status": state, **failed} for name in ("ConfigurationsReady", "Ready")]
        status: Body = {"conditions": conditions, "url": f"http://{key[2]}.{namespace}.example.com"}
        status["observedGeneration"] = body["metadata"]["generation"]
        if key[0] == "ksvc":
            status |= {"latestCreatedRevisionName": created, "latestReadyRevisionName": latest}
        else:
            status["components"] = {"predictor": {"latestCreatedRevision": created, "latestReadyRevision": latest}}
        body["status"] = {k: v for k, v in status.items() if v is not None}

    def _conditions(self, key: Key, new: list[Body], wanted: int) -> list[Body]:
        waiting = [p for p in new if not _ready(p)]
        if self.stuck and waiting and self.now() - min(p["metadata"]["created_at"] for p in waiting) >= 600.0:
            text = f'ReplicaSet "{key[2]}" has timed out progressing.'
            return [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": text}]
        return [{"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}]

    def _pods(self, key: Key) -> list[Body]:
        owner = f"{key[0]}/{key[2]}"
        return [
            b
            for (r, n, _), b in self.objects.items()
            if (r, n) == ("pods", key[1]) and b["metadata"].get("owner") == owner
        ]

    def _start(self, key: Key, template: Body, digest: str) -> Body:
        self._version += 1
        name = f"{key[2]}-{digest}-{self._version}"
        labels = {**(template.get("metadata") or {}).get("labels", {}), "pod-template-hash": digest}
        if key[0] == "leaderworkersets":
            labels["leaderworkerset.sigs.k8s.io/name"] = key[2]
        pod: Body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": key[1],
                "labels": labels,
                "generation": 1,
                "created_at": self.now(),
                "owner": f"{key[0]}/{key[2]}",
            },
            "spec": copy.deepcopy(template["spec"]),
            "status": {"phase": "Pending", "conditions": []},
        }
        self._store(("pods", key[1], name), pod, "kube-controller-manager")
        return pod

    def _wake(self, pod: Body) -> None:
        if (
            not self.stuck
            and self.now() - pod["metadata"]["created_at"] >= self.start_s
            and pod["status"]["phase"] == "Pending"
        ):
            pod["status"] = {
                "phase": "Running",
                "podIP": f"127.0.1.{int(pod['metadata']['resourceVersion']) % 250 + 1}",
                "conditions": [{"type": "Ready", "status": "True"}],
            }

    def resized(self, namespace: str, name: str, body: Body, change: Body, manager: str) -> Body:
        """The ``resize`` subresource: resources alone, and never another class of service."""
        old = self.get("pods", namespace, name)
        if _class(old) != _class(body):
            raise Refused(
                422,
                "Invalid",
                f'Pod "{name}" is invalid: spec: Invalid value: "{_class(body)}": Pod QOS Class may not change as a result of resizing',
            )
        new = self.write("pods", namespace, name, body, change, manager, dry_run=False)
        others = [c for c in (new.get("status") or {}).get("conditions", []) if c["type"] != "PodResizePending"]
        pending = [
            {"type": "PodResizePending", "status": "True", "reason": "Infeasible", "message": "node has too little cpu"}
        ]
        new["status"] = {**(new.get("status") or {}), "conditions": others + (pending if self.infeasible else [])}
        return new


def _bounds(resource: str, spec: Body) -> tuple[int, int]:
    """Least and most; 0: no bound above."""
    if resource == "inferenceservices":
        return int(spec["predictor"].get("minReplicas", 1)), int(spec["predictor"].get("maxReplicas", 0))
    marks = (spec["template"].get("metadata") or {}).get("annotations") or {}
    return int(marks.get(f"{_SCALING}min-scale", 0)), int(marks.get(f"{_SCALING}max-scale", 0))


def invalid(kind: str, group: str, name: str, at: str, text: str) -> Refused:
    cause = {"reason": "FieldValueInvalid", "message": text, "field": at}
    full = f'{kind}{"." + group if group else ""} "{name}" is invalid: {at}: {text}'
    return Refused(422, "Invalid", full, name=name, group=group, kind=kind, causes=[cause])


def _of(resource: str) -> str:
    group = GROUPS[resource][0]
    return f"{resource}.{group}" if group else resource


def _ready(pod: Mapping[str, Any]) -> bool:
    return any((c["type"], c["status"]) == ("Ready", "True") for c in pod["status"].get("conditions", []))


def _class(pod: Mapping[str, Any]) -> str:
    guaranteed, any_ = True, False
    for container in pod["spec"]["containers"]:
        resources = container.get("resources") or {}
        any_ = any_ or bool(resources)
        guaranteed = (
            guaranteed
            and bool(resources.get("limits"))
            and resources.get("requests", resources["limits"]) == resources["limits"]
        )
    return "Guaranteed" if guaranteed else "Burstable" if any_ else "BestEffort"


def manifest(
    name: str, replicas: int, *args: str, gpus: int = 1, cpu: str = "4", memory: str = "16Gi", **labels: str
) -> Body:
    """A Deployment (or, with the kind replaced, a StatefulSet) of vLLM."""
    resources = {"cpu": cpu, "memory": memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    container = {
        "name": "vllm",
        "image": "vllm/vllm-openai:v0.33.0",
        "args": ["--model", "tiny", *args],
        "ports": [{"containerPort": 8000}],
        "resources": {"requests": dict(resources), "limits": dict(resources)},
    }
    selector = {"nvidia.com/gpu.product": "NVIDIA-L4", "node.kubernetes.io/instance-type": "g2-standard-8"}
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"nodeSelector": selector, "containers": [container]},
            },
        },
    }
