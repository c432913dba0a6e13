"""``flyball discover kubernetes`` and ``flyball permissions kubernetes``."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, Field

from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, Support, options_of
from collectors.engines import ENGINES
from collectors.kubernetes.access import ClusterSettings
from collectors.kubernetes.client import KubernetesClient, shared
from collectors.kubernetes.workloads import KINDS, SERVING, ClusterWorkload, containers, inventory, names_engine

_VLLM_PORT = 8000

#: Verb, API group, resource, subresource, and what it is for.
_NEEDS = (
    ("list", "apps", "deployments", "", "see"),
    ("list", "apps", "statefulsets", "", "see"),
    ("list", "leaderworkerset.x-k8s.io", "leaderworkersets", "", "see"),
    ("list", "serving.kserve.io", "inferenceservices", "", "see"),
    ("list", "serving.knative.dev", "services", "", "see"),
    ("list", "autoscaling", "horizontalpodautoscalers", "", "see"),
    ("list", "keda.sh", "scaledobjects", "", "see"),
    ("list", "", "pods", "", "see"),
    ("list", "", "services", "", "see"),
    ("list", "", "nodes", "", "see"),
    ("patch", "apps", "deployments", "", "change"),
    ("patch", "apps", "deployments", "scale", "change"),
    ("patch", "apps", "statefulsets", "", "change"),
    ("patch", "apps", "statefulsets", "scale", "change"),
    ("patch", "leaderworkerset.x-k8s.io", "leaderworkersets", "", "change"),
    ("patch", "leaderworkerset.x-k8s.io", "leaderworkersets", "scale", "change"),
    ("patch", "serving.kserve.io", "inferenceservices", "", "change"),
    ("patch", "serving.knative.dev", "services", "", "change"),
    ("patch", "autoscaling", "horizontalpodautoscalers", "", "change"),
    ("patch", "keda.sh", "scaledobjects", "", "change"),
    ("patch", "", "pods", "resize", "change"),
)


class ClusterDiscoveryOptions(ClusterSettings):
    """What ``flyball discover kubernetes`` takes: the cluster, and which namespace."""

    namespace: str | None = Field(default=None, min_length=1)
    """Only of this namespace. Default: of all that can be seen."""


class KubernetesSystem:
    """See ``collectors.discovery.System``."""

    name: ClassVar[str] = "kubernetes"
    options: ClassVar[type[BaseModel]] = ClusterDiscoveryOptions
    support: ClassVar[Support] = Support(
        title="Kubernetes: Deployment, StatefulSet, LeaderWorkerSet; HPA, KEDA; KServe, Knative; Argo CD, Flux",
        sees=("replicas that serve, and why others do not", "each pod's own metrics", "who owns the count or the manifest", "free GPUs"),
        changes=(
            "replicas",
            "an HPA's or a ScaledObject's bounds and targets",
            "bounds, target and concurrency of a KServe InferenceService or a Knative Service, by a new revision",
            "engine limits, by a rollout",
            "CPU and memory, by a rollout or in place",
            "a patch to merge, where Argo CD or Flux owns the manifest",
        ),
        verified="recorded answers",
        how="33 calls to a real API server 1.36, which the stand-in of the tests answers alike",
    )  # fmt: skip

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        options = options_of(ClusterDiscoveryOptions, context.options, "kubernetes")
        client = shared(context.sessions, _cluster(options), context.http, context.clock)
        known = inventory(context.sessions, client)
        taken: set[str] = set()
        for workload in await known.every():
            made = workload.controller is not None and workload.controller[0] in KINDS  # it is found under that name
            if options.namespace not in (None, workload.id.namespace) or made or not _serves(workload):
                continue
            entry = found(workload, await known.services(workload.id.namespace), options, taken)
            taken.add(entry.name)
            yield entry

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        """``entry``: an endpoint's settings, whose actuator names cluster and workload."""
        stated = dict((entry or {}).get("actuator", {}).get("options") or {})
        cluster = (
            ClusterSettings(**{k: v for k, v in stated.items() if k in ClusterSettings.model_fields}) if entry else None
        )
        options = options_of(ClusterDiscoveryOptions, context.options, "kubernetes")
        client = shared(context.sessions, cluster or _cluster(options), context.http, context.clock)
        namespace = stated.get("namespace") or (client.namespace if entry else options.namespace)
        return [await _permission(client, need, namespace) for need in _NEEDS if _concerns(need, stated, entry)]

    def permissions(self) -> str:
        return role()


async def _permission(
    client: KubernetesClient, need: tuple[str, str, str, str, str], namespace: str | None
) -> Permission:
    verb, group, resource, sub, what_for = need
    attributes = {"verb": verb, "group": group, "resource": resource}
    attributes |= ({"subresource": sub} if sub else {}) | (
        {"namespace": namespace} if namespace and resource != "nodes" else {}
    )
    name = f"{verb} {resource}{'/' + sub if sub else ''}{'.' + group if group else ''}"
    where = f"in namespace {namespace}" if namespace else "in all namespaces"
    granted = await client.review(attributes)
    return Permission(name, "see" if what_for == "see" else "change", granted, "" if granted else where)


def _concerns(need: tuple[str, str, str, str, str], stated: Mapping[str, Any], entry: Mapping[str, Any] | None) -> bool:
    """Whether an endpoint has to do with it. What is not installed (KEDA, LeaderWorkerSet) is no lack."""
    _, group, resource, _, what_for = need
    if group in ("serving.kserve.io", "serving.knative.dev"):
        return group == KINDS.get(str(stated.get("kind")), ("",))[0].partition("/")[0]
    if resource in ("leaderworkersets", "scaledobjects"):
        return str(stated.get("kind", "")).lower() + "s" == resource
    if entry is None:
        return what_for == "see"
    kind = str(stated.get("kind", "Deployment")).lower() + "s"
    return group != "apps" or resource == kind


def _serves(workload: ClusterWorkload) -> bool:
    """Whether it looks like a server of models: by its label, its image, its command, or vLLM's port."""
    if workload.id.kind == "InferenceService":
        return True
    meta, spec = workload.body.get("metadata") or {}, workload.template.get("spec") or {}
    labels = {**(meta.get("labels") or {}), **((workload.template.get("metadata") or {}).get("labels") or {})}
    if "flyball.dev/endpoint" in labels or labels.get("app.kubernetes.io/name") in ENGINES:
        return True
    for container in containers(spec):
        if names_engine(container):
            return True
        gpu = "nvidia.com/gpu" in ((container.get("resources") or {}).get("limits") or {})
        if gpu and any(p.get("containerPort") == _VLLM_PORT for p in container.get("ports") or ()):
            return True
    return False


def found(
    workload: ClusterWorkload, services: Sequence[Mapping[str, Any]], cluster: ClusterSettings, taken: set[str]
) -> DiscoveredEndpoint:
    """A workload as an entry of the settings. Secrets stand in it by reference only."""
    own = re.sub(r"[^a-z0-9._-]+", "-", workload.id.name.lower())[:63]
    name = own if own not in taken else f"{own}-{workload.id.namespace}"[:63]
    stated = cluster.model_dump(mode="json", exclude_defaults=True, include=set(ClusterSettings.model_fields))
    secrets = {"token": "${KUBERNETES_TOKEN}"} if stated.get("token") else {}
    options = {
        "namespace": workload.id.namespace,
        "kind": workload.id.kind,
        "name": workload.id.name,
        **stated,
        **secrets,
    }
    url, seen = _address(workload, services)
    model = _model(workload)
    settings: dict[str, Any] = {
        "name": name,
        "url": url,
        **({"model": model} if model else {}),
        "sources": {_source(workload): {}},
        "actuator": {"system": "kubernetes", "options": options},
        "mode": "observe",
    }
    serving = workload.id.kind in SERVING
    notes = [str(workload.id) if serving else f"{workload.id}, {workload.spec.get('replicas', 1)} replicas"]
    scaler, gitops = workload.autoscaler, workload.gitops
    if scaler is not None:
        # items of a typed list come without their kind
        kind = "ScaledObject" if "triggers" in (scaler.get("spec") or {}) else "HorizontalPodAutoscaler"
        notes.append(f"{kind} {(scaler.get('metadata') or {}).get('name')} sets the count: its bounds are tuned")
    if gitops is not None:
        notes.append(f"{gitops[0]} owns the manifest ({gitops[1]}): changes are given as a patch")
    if not seen:
        text = "it has no address yet" if serving else "no Service selects its pods"
        notes.append(f"{text}: correct the url")
    return DiscoveredEndpoint(name, settings, "; ".join(notes))


def _source(workload: ClusterWorkload) -> str:
    """Who reads its pods: llama.cpp has metrics of its own."""
    said = json.dumps(workload.template)
    return "llamacpp" if "llama-server" in said or "llama.cpp" in said else "vllm"


def _address(workload: ClusterWorkload, services: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """The Service in front, or where it would be; of those that have an address of their own, that."""
    told = (workload.body.get("status") or {}).get("url")
    if workload.id.kind in SERVING:
        return (str(told), True) if told else (f"http://{workload.id.name}.{workload.id.namespace}", False)
    labels = (workload.template.get("metadata") or {}).get("labels") or {}
    for service in services:
        spec, name = service.get("spec") or {}, (service.get("metadata") or {}).get("name")
        selector = spec.get("selector") or {}
        if selector and all(labels.get(k) == v for k, v in selector.items()):
            port = (spec.get("ports") or [{}])[0].get("port", _VLLM_PORT)
            return f"http://{name}.{workload.id.namespace}.svc:{port}", True
    return f"http://{workload.id.name}.{workload.id.namespace}.svc:{_VLLM_PORT}", False


def _model(workload: ClusterWorkload) -> str | None:
    for container in containers(workload.template.get("spec") or {}):
        words = [str(w) for w in (*(container.get("command") or ()), *(container.get("args") or ()))]
        for flag in ("--served-model-name", "--model"):
            for i, word in enumerate(words):
                head, equals, value = word.partition("=")
                if head == flag and (equals or i + 1 < len(words)):
                    return value if equals else words[i + 1]
        if "serve" in words[:-1]:
            return words[words.index("serve") + 1]
    return None


def _cluster(options: ClusterDiscoveryOptions) -> ClusterSettings:
    return ClusterSettings(**{name: getattr(options, name) for name in ClusterSettings.model_fields})


def role() -> str:
    """The least ClusterRole, with a binding to a service account. Its second part is only for changing."""
    see, change = [n for n in _NEEDS if n[4] == "see"], [n for n in _NEEDS if n[4] == "change"]
    return f"""apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: flyball}}
rules:
# To see.
{_rules(see, "get, list")}
# To change. Leave it out for mode observe; bind it by RoleBindings where only some namespaces are to be changed.
{_rules(change, "get, patch")}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: flyball, namespace: flyball}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: flyball}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: flyball}}
subjects: [{{kind: ServiceAccount, name: flyball, namespace: flyball}}]
"""


def _rules(needs: Sequence[tuple[str, str, str, str, str]], verbs: str) -> str:
    groups: dict[str, list[str]] = {}
    for _, group, resource, sub, _ in needs:
        groups.setdefault(group, []).append(f"{resource}/{sub}" if sub else resource)
    return "\n".join(
        f'- {{apiGroups: ["{group}"], resources: [{", ".join(names)}], verbs: [{verbs}]}}'
        for group, names in groups.items()
    )
