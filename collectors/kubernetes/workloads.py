"""What runs in a cluster, read once for all who ask: workloads with their pods, and who owns which part of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from collectors.engines import name_of_engine
from collectors.kubernetes.client import KubernetesClient, KubernetesError
from collectors.sessions import Sessions

Body = Mapping[str, Any]
#: Kind to the API that has it and its name in paths. All but the first two are there where somebody installed them.
KINDS = {
    "Deployment": ("apps/v1", "deployments"),
    "StatefulSet": ("apps/v1", "statefulsets"),
    "LeaderWorkerSet": ("leaderworkerset.x-k8s.io/v1", "leaderworkersets"),
    "InferenceService": ("serving.kserve.io/v1beta1", "inferenceservices"),
    "KnativeService": ("serving.knative.dev/v1", "services"),
}
#: Kinds whose own autoscaler sets the replicas, and which make the Deployments beneath them.
SERVING = ("InferenceService", "KnativeService")
_KSERVE, _KNATIVE = "serving.kserve.io/inferenceservice", "serving.knative.dev/service"
_HPAS = "/apis/autoscaling/v2/horizontalpodautoscalers"
_SCALED_OBJECTS = "/apis/keda.sh/v1alpha1/scaledobjects"
#: Lists are as old as this at most for those who only watch.
LIST_S = 15.0
#: Field managers, and labels or annotations, of those who write whole manifests again and again.
_GITOPS = (
    ("argocd", ("argocd",), ("argocd.argoproj.io/instance", "argocd.argoproj.io/tracking-id")),
    ("flux", ("kustomize-controller", "helm-controller"), ("kustomize.toolkit.fluxcd.io/name", "helm.toolkit.fluxcd.io/name")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WorkloadId:
    """Which workload of a cluster."""

    namespace: str
    kind: str
    name: str

    @property
    def path(self) -> str:
        api, plural = KINDS[self.kind]
        return f"/apis/{api}/namespaces/{self.namespace}/{plural}/{self.name}"

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ClusterWorkload:
    """One workload as the API server has it, with all that bears on its size."""

    id: WorkloadId
    body: Body
    autoscaler: Body | None
    """The ScaledObject or the HPA that sets its replicas."""
    pods: tuple[Body, ...]

    @property
    def spec(self) -> Body:
        found: Body = self.body.get("spec") or {}
        return found

    @property
    def template(self) -> Body:
        """The template of the pods that serve; of a LeaderWorkerSet the leader's, which is the workers' where it has none of its own."""
        if self.id.kind == "InferenceService":
            predictor = self.spec.get("predictor") or {}
            model = {"name": "kserve-container", **(predictor.get("model") or {})}
            held: Body = {"spec": {"containers": predictor.get("containers") or [model]}}
            return held
        group = self.spec.get("leaderWorkerTemplate") or {}
        found: Body = self.spec.get("template") or group.get("leaderTemplate") or group.get("workerTemplate") or {}
        return found

    @property
    def controller(self) -> tuple[str, str] | None:
        """Kind and name of what made it and writes it again: what is written beside that comes back. The topmost that its labels tell."""
        meta = self.body.get("metadata") or {}
        labels = meta.get("labels") or {}
        for kind, label in (("InferenceService", _KSERVE), ("KnativeService", _KNATIVE)):
            if label in labels and self.id.kind != kind:
                return kind, str(labels[label])
        refs = [r for r in meta.get("ownerReferences") or () if r.get("controller")]
        return (str(refs[0].get("kind")), str(refs[0].get("name"))) if refs else None

    @property
    def gitops(self) -> tuple[str, str] | None:
        """Who owns the manifest, by kind and name: what is written beside him comes back."""
        meta = self.body.get("metadata") or {}
        marks = {**(meta.get("labels") or {}), **(meta.get("annotations") or {})}
        managers = {str(entry.get("manager")) for entry in meta.get("managedFields") or ()}
        for kind, writers, keys in _GITOPS:
            named = next((str(marks[key]) for key in keys if key in marks), None)
            if named is not None or any(m.startswith(writers) for m in managers):
                return kind, named or next(m for m in managers if m.startswith(writers))
        return None


class ClusterInventory:
    """Lists of one cluster, shared: a thousand endpoints cost five list calls, and not five thousand reads."""

    def __init__(self, client: KubernetesClient) -> None:
        self._client = client
        self._lists: dict[str, tuple[float, list[dict[str, Any]]]] = {}
        self._asking: dict[str, asyncio.Lock] = {}

    async def workload(self, id_: WorkloadId, *, fresh: bool = False) -> ClusterWorkload:
        """fresh: as it is at this moment, for those who are about to change it. Raises ``KubernetesError``."""
        if fresh:
            body: Body = await self._client.get(id_.path)
        else:
            listed = await self._list(_all(id_.kind))
            found = next((b for b in listed if _is(b, id_)), None)
            if found is None:
                raise KubernetesError("missing", f"{id_} is not there")
            body = found
        scaler = None if id_.kind in SERVING else await self._autoscaler(id_, fresh)
        return ClusterWorkload(id_, body, scaler, await self._pods(id_, body, fresh))

    async def every(self) -> list[ClusterWorkload]:
        """All workloads of all kinds."""
        found = []
        for kind in KINDS:
            try:
                listed = await self._list(_all(kind))
            except KubernetesError as error:
                if error.kind == "missing":  # nobody installed that kind
                    continue
                raise
            for body in listed:
                meta = body.get("metadata") or {}
                id_ = WorkloadId(str(meta.get("namespace")), kind, str(meta.get("name")))
                found.append(
                    ClusterWorkload(id_, body, await self._autoscaler(id_, False), await self._pods(id_, body, False))
                )
        return found

    def forget(self) -> None:
        """Something was written: what was read before is old."""
        self._lists.clear()

    async def services(self, namespace: str) -> list[dict[str, Any]]:
        return [
            s for s in await self._list("/api/v1/services") if (s.get("metadata") or {}).get("namespace") == namespace
        ]

    async def free(self, resource: str) -> float | None:
        """How much of a resource (``nvidia.com/gpu``) no pod has asked for. None where nodes may not be read."""
        try:
            nodes, pods = await self._list("/api/v1/nodes"), await self._list("/api/v1/pods")
        except KubernetesError as error:
            if error.kind in ("denied", "missing"):
                return None
            raise
        open_ = [n for n in nodes if not (n.get("spec") or {}).get("unschedulable")]  # one that is drained takes nobody
        closed = {(n.get("metadata") or {}).get("name") for n in nodes if n not in open_}
        there = sum(quantity(((n.get("status") or {}).get("allocatable") or {}).get(resource)) or 0.0 for n in open_)
        gone = ("Succeeded", "Failed")
        running = [
            p
            for p in pods
            if (p.get("status") or {}).get("phase") not in gone and (p.get("spec") or {}).get("nodeName") not in closed
        ]
        return there - sum(asked(p.get("spec") or {}, resource) for p in running)

    async def _autoscaler(self, id_: WorkloadId, fresh: bool) -> Body | None:
        """KEDA's object before the HPA that it made."""
        for path, target in ((_SCALED_OBJECTS, "scaleTargetRef"), (_HPAS, "scaleTargetRef")):
            try:
                listed = await self._list(path, fresh)
            except KubernetesError as error:
                if error.kind == "missing" and path == _SCALED_OBJECTS:
                    continue
                raise
            for body in listed:
                ref = (body.get("spec") or {}).get(target) or {}
                same = (body.get("metadata") or {}).get("namespace") == id_.namespace and ref.get("name") == id_.name
                if same and ref.get("kind", "Deployment") == id_.kind:
                    return body
        return None

    async def _pods(self, id_: WorkloadId, body: Body, fresh: bool) -> tuple[Body, ...]:
        labels = ((body.get("spec") or {}).get("selector") or {}).get("matchLabels") or {}
        own = {
            "LeaderWorkerSet": "leaderworkerset.sigs.k8s.io/name",
            "InferenceService": _KSERVE,
            "KnativeService": _KNATIVE,
        }
        if id_.kind in own:
            labels = {own[id_.kind]: id_.name}
        if not labels:
            return ()
        listed = await self._list("/api/v1/pods", fresh)
        return tuple(p for p in listed if _belongs(p, id_.namespace, labels))

    async def _list(self, path: str, fresh: bool = False) -> list[dict[str, Any]]:
        """One question for all who ask at once."""
        async with self._asking.setdefault(path, asyncio.Lock()):
            known, now = self._lists.get(path), self._client.clock.monotonic()
            if known is not None and not fresh and now - known[0] < LIST_S:
                return known[1]
            found = [item async for item in self._client.items(path)]
            self._lists[path] = (now, found)
            return found


def inventory(sessions: Sessions, client: KubernetesClient) -> ClusterInventory:
    """The one inventory of a cluster."""
    return sessions.get(("kubernetes inventory", id(client)), lambda: ClusterInventory(client))


def _all(kind: str) -> str:
    api, plural = KINDS[kind]
    return f"/apis/{api}/{plural}"


def _is(body: Body, id_: WorkloadId) -> bool:
    meta = body.get("metadata") or {}
    return meta.get("namespace") == id_.namespace and meta.get("name") == id_.name


def _belongs(pod: Body, namespace: str, labels: Mapping[str, str]) -> bool:
    meta = pod.get("metadata") or {}
    own = meta.get("labels") or {}
    return meta.get("namespace") == namespace and all(own.get(k) == v for k, v in labels.items())


def containers(spec: Body) -> Iterator[Body]:
    """Of a pod's spec."""
    yield from (c for c in spec.get("containers") or () if isinstance(c, dict))


def names_engine(container: Body) -> bool:
    """Whether its image or its command line names an engine."""
    words = (container.get("image"), *(container.get("command") or ()), *(container.get("args") or ()))
    return name_of_engine(words) is not None


def asked(spec: Body, resource: str) -> float:
    """What a pod asks for of one resource, over its containers."""
    total = 0.0
    for container in containers(spec):
        resources = container.get("resources") or {}
        value = (resources.get("requests") or {}).get(resource) or (resources.get("limits") or {}).get(resource)
        total += quantity(value) or 0.0
    return total


_SUFFIXES = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip
_QUANTITY = re.compile(
    r"([+-]?[0-9]{1,30}(?:\.[0-9]{0,30})?(?:[eE][+-]?[0-9]{1,2})?)([numkMGTPE]?|[KMGTPE]i)", re.ASCII
)


def quantity(value: object) -> float | None:
    """A resource quantity such as ``250m``, ``1Gi``, ``2``, as a plain number. None where it is none."""
    text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    found = _QUANTITY.fullmatch(text)
    return None if found is None else float(found[1]) * _SUFFIXES[found[2]]
