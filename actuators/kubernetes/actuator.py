"""The system ``kubernetes``: a Deployment, StatefulSet or LeaderWorkerSet, through the API server alone.

It keeps no state. A step compares before it writes, so that one under the same token is done once also where its answer was lost, and
each write names the version that it was made for: somebody else's write in between is refused by the server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NoReturn

from pydantic import Field

from actuators.base import (
    Actuator,
    ActuatorError,
    LiveState,
    Progress,
    Receipt,
    Step,
    SystemContext,
    Trouble,
    options_of,
)
from actuators.kubernetes import planning, revisions, spec
from actuators.kubernetes.planning import Terms, patch_of
from actuators.shape import Operation, Plan, Shape
from collectors.kubernetes.access import ClusterSettings
from collectors.kubernetes.client import KubernetesClient, KubernetesError, shared
from collectors.kubernetes.workloads import SERVING, ClusterWorkload, WorkloadId, inventory, quantity
from collectors.window import CollectError

_TROUBLE = {
    "conflict": Trouble.CONFLICT,
    "denied": Trouble.DENIED,
    "credentials": Trouble.DENIED,
    "missing": Trouble.DRIFT,
    "quota": Trouble.QUOTA,
    "throttled": Trouble.THROTTLED,
    "unreachable": Trouble.UNREACHABLE,
}
#: A LeaderWorkerSet does not say which generation its status is of: it has so many seconds to follow.
_UNSEEN_S = 30.0


class Options(ClusterSettings):
    """Settings of the system ``kubernetes``."""

    namespace: str | None = None
    """Where the workload is. Default: the pod's own, or the kubeconfig's."""
    kind: Literal["Deployment", "StatefulSet", "LeaderWorkerSet", "InferenceService", "KnativeService"] = "Deployment"
    """What it is: KServe's `InferenceService` and a Service of Knative (`KnativeService`) set their replicas themselves."""
    name: str = ""
    """Its name. Default: the endpoint's."""
    container: str | None = None
    """The container that serves. Default: the first whose image or command names an engine, else the first."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """Where each pod serves and tells its metrics. Default: `--port`, then the container's first port, then 8000."""
    pods: bool = True
    """Whether each pod is read at its own address. Where Flyball cannot reach them: false, and only `url` is read."""
    rollout_s: float = Field(default=1800.0, gt=0)
    """Seconds that a rollout may take: scheduling, images, weights."""
    resize: Literal["rolling", "in_place"] = "rolling"
    """How CPU and memory change: by new pods, or in the running ones (Kubernetes 1.33 and newer), the template following once it is verified."""


class KubernetesWorkload:
    """See ``actuators.base.Actuator``."""

    system: ClassVar[str] = "kubernetes"
    changes: ClassVar[Sequence[str]] = ("replicas", "autoscaling", "cpus", "memory_gb", "engine.*")
    poll_s = 15.0

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.options = options_of(Options, context, "kubernetes")

    async def live(self) -> LiveState:
        return self._live(await self._workload(fresh=False))

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        workload = await self._workload(fresh=False)
        if workload.id.kind in SERVING:
            return revisions.plan(self.context.endpoint, self.options.rollout_s, workload, live, wanted)
        free: float | None = None
        if (wanted.accelerator_count or 0) > 0:
            try:
                free = await inventory(self.context.sessions, self._client()).free(spec.GPU)
            except KubernetesError as error:
                self._raise(error)
        return planning.plan(self._terms(), workload, live, wanted, free)

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        """Fields set back say all, but for one thing: pods that were resized in place are not in the template."""
        resized = [r for r in done if r.handle.get("step") == "resize_pods"]
        if not resized or any(r.handle.get("step") == "patch_template" for r in done):
            return await self.plan(live, plan.before)
        workload = await self._workload(fresh=True)
        before = planning.plan(self._terms(), workload, live, plan.before, None)
        undone = planning.resize(self._terms(), workload, plan.before)
        return Plan(
            endpoint=before.endpoint,
            system=before.system,
            before=live.shape,
            after=plan.before,
            version=live.version,
            operations=(undone, *before.operations),
            restarts=before.restarts,
            downtime_s=0.0,
            way_back=before.way_back,
            finish=before.finish,
        )

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        """Asks admission and quota with a dry run, against the workload as it is now."""
        _known(operation)
        workload = await self._workload(fresh=True)
        self._unmoved(operation, workload, last)
        if operation.name != "resize_pods":
            await self._write(operation, workload, dry_run=True)

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        _known(operation)
        workload = await self._workload(fresh=True)
        if operation.name == "resize_pods":
            return await self._resize(operation, workload, token)
        if not self._is_so(operation, workload):
            self._unmoved(operation, workload, last)
            await self._write(operation, workload, dry_run=False)
            workload = await self._workload(fresh=True)
        generation = (workload.body.get("metadata") or {}).get("generation")
        return Receipt(
            {"step": operation.name, "token": token, "generation": generation, "at": self.context.clock.now()},
            leaves=_version(workload),
        )

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        _known(operation)
        workload = await self._workload(fresh=True)
        if operation.name == "set_bounds":
            kept = self._is_so(operation, workload)
            return Step(Progress.DONE, "the bounds are set") if kept else self._lost(workload)
        if operation.name == "resize_pods":
            return self._resized(operation, workload)
        if not self._is_so(operation, workload):
            return self._lost(workload)
        if operation.name == "set_serving":
            return self._revised(workload, receipt)
        seen = "observedGeneration" in (workload.body.get("status") or {})
        if not seen and self.context.clock.now() - receipt.handle["at"] < _UNSEEN_S:
            return Step(Progress.PENDING, f"the status of {workload.id} may still be of before")
        stuck = spec.stuck_of(workload)
        if stuck is not None:
            return Step(Progress.FAILED, stuck)
        ready, serving, detail = spec.ready_of(workload)
        return Step(Progress.DONE, f"{serving} serve") if ready else Step(Progress.PENDING, detail)

    # inside

    def _revised(self, workload: ClusterWorkload, receipt: Receipt) -> Step:
        """Whether the new revision serves. Who does not say which generation its status is of has some seconds to follow."""
        stuck = revisions.stuck_of(workload)
        seen = "observedGeneration" in (workload.body.get("status") or {})
        if not seen and self.context.clock.now() - receipt.handle["at"] < _UNSEEN_S:
            return Step(Progress.PENDING, f"the status of {workload.id} may still be of before")
        ready, detail = revisions.ready_of(workload)
        if ready:
            return Step(Progress.DONE, f"{revisions.serving(workload)} pods serve")
        return Step(Progress.PENDING, detail) if stuck is None else Step(Progress.FAILED, stuck)

    def _client(self) -> KubernetesClient:
        try:
            return shared(self.context.sessions, self.options, self.context.http, self.context.clock)
        except CollectError as error:
            self._raise(error)

    def _id(self, client: KubernetesClient) -> WorkloadId:
        namespace = self.options.namespace or client.namespace
        return WorkloadId(namespace, self.options.kind, self.options.name or self.context.endpoint)

    async def _workload(self, *, fresh: bool) -> ClusterWorkload:
        client = self._client()
        try:
            return await inventory(self.context.sessions, client).workload(self._id(client), fresh=fresh)
        except KubernetesError as error:
            self._raise(error)

    def _live(self, workload: ClusterWorkload) -> LiveState:
        if workload.id.kind in SERVING:
            return self._serving_live(workload)
        try:
            shape = spec.shape_of(workload, self.options.container)
            holds = spec.serving_container(workload, self.options.container)
        except ValueError as error:
            raise ActuatorError("NO_CONTAINER", f"{error}; set actuator.options.container") from error
        ready, serving, detail = spec.ready_of(workload)
        targets = spec.targets_of(workload, self.options.port or spec.port_of(holds)) if self.options.pods else {}
        return LiveState(
            shape,
            spec.version_of(workload),
            ready,
            serving=serving,
            owner=spec.owner_of(workload),
            targets=targets,
            detail=detail,
        )

    def _serving_live(self, workload: ClusterWorkload) -> LiveState:
        ready, detail = revisions.ready_of(workload)
        port = self.options.port or spec.port_of(spec.serving_container(workload, self.options.container))
        return LiveState(
            revisions.shape_of(workload),
            revisions.version_of(workload),
            ready,
            serving=revisions.serving(workload),
            owner=revisions.owner_of(workload),
            targets=spec.targets_of(workload, port) if self.options.pods else {},
            detail=detail,
        )

    def _terms(self) -> Terms:
        return Terms(
            self.context.endpoint, self.options.container, self.options.rollout_s, self.options.resize == "in_place"
        )

    def _unmoved(self, operation: Operation, workload: ClusterWorkload, last: Receipt | None) -> None:
        """Nobody else wrote since the plan, or since the step before. Raises ``ActuatorError``."""
        if operation.name == "scale" and workload.spec.get("replicas", 1) not in (
            operation.args["was"],
            operation.args["replicas"],
        ):
            text = f"{workload.id} has {workload.spec.get('replicas')} replicas and not {operation.args['was']}"
            raise ActuatorError("STALE_PLAN", f"{text}: somebody scaled it; plan again", trouble=Trouble.DRIFT)
        expected = last.leaves if last is not None else operation.args.get("version")
        if expected is not None and _version(workload) != expected:
            text = f"{workload.id}: somebody changed it meanwhile; plan again"
            raise ActuatorError("STALE_PLAN", text, trouble=Trouble.DRIFT)

    def _is_so(self, operation: Operation, workload: ClusterWorkload) -> bool:
        """Whether what the step writes is there already."""
        match operation.name:
            case "scale":
                return bool(workload.spec.get("replicas", 1) == operation.args["replicas"])
            case "set_bounds":
                return planning.is_set(operation, workload)
            case "set_serving":
                return revisions.is_set(operation, workload)
            case "patch_template":
                change = operation.args["container"]
                holds = spec.serving_container(workload, change["name"])
                same_args = "args" not in change or list(holds.get("args") or ()) == list(change["args"])
                return same_args and _holds(holds.get("resources") or {}, change.get("resources") or {})
        raise AssertionError(operation.name)

    async def _write(self, operation: Operation, workload: ClusterWorkload, *, dry_run: bool) -> None:
        """One patch, for just the version that was read."""
        patched = revisions.patch_of if operation.name == "set_serving" else patch_of
        client, body = self._client(), patched(operation, workload)
        path, read = workload.id.path + ("/scale" if operation.name == "scale" else ""), workload.body
        if operation.name == "set_bounds":
            read = workload.autoscaler or {}
            api = "keda.sh/v1alpha1" if operation.args["kind"] == "scaledobjects" else "autoscaling/v2"
            path = f"/apis/{api}/namespaces/{workload.id.namespace}/{operation.args['kind']}/{operation.args['name']}"
        version = (read.get("metadata") or {}).get("resourceVersion")
        body["metadata"] = {"resourceVersion": version} if version else {}
        strategic = operation.name == "patch_template" and workload.id.kind != "LeaderWorkerSet"
        try:
            await client.patch(path, body, strategic=strategic, dry_run=dry_run)
        except KubernetesError as error:
            self._raise(error)
        if not dry_run:
            inventory(self.context.sessions, client).forget()

    async def _resize(self, operation: Operation, workload: ClusterWorkload, token: str) -> Receipt:
        client, name = self._client(), operation.args["container"]
        for pod in workload.pods:
            if _pod_holds(pod, name, operation.args["resources"]):
                continue
            path = f"/api/v1/namespaces/{workload.id.namespace}/pods/{pod['metadata']['name']}/resize"
            body = {"spec": {"containers": [{"name": name, "resources": operation.args["resources"]}]}}
            try:
                await client.patch(path, body, strategic=True)
            except KubernetesError as error:
                if error.kind == "missing":  # the pod has gone meanwhile; the new one has the template's size
                    continue
                self._raise(error)
        inventory(self.context.sessions, client).forget()
        return Receipt({"step": "resize_pods", "token": token}, leaves=spec.version_of(workload))

    def _resized(self, operation: Operation, workload: ClusterWorkload) -> Step:
        waiting = []
        for pod in workload.pods:
            conditions = {c.get("type"): c for c in (pod.get("status") or {}).get("conditions") or ()}
            pending = conditions.get("PodResizePending") or {}
            if pending.get("reason") == "Infeasible":
                return Step(Progress.FAILED, f"{pod['metadata']['name']}: {pending.get('message') or 'infeasible'}")
            if (
                pending
                or "PodResizeInProgress" in conditions
                or not _pod_holds(pod, operation.args["container"], operation.args["resources"])
            ):
                waiting.append(str(pod["metadata"]["name"]))
        if waiting:
            return Step(Progress.PENDING, f"waiting for {', '.join(waiting)}")
        return Step(Progress.DONE, f"{len(workload.pods)} pods are resized")

    def _lost(self, workload: ClusterWorkload) -> Step:
        """What was written is not there any more."""
        owner = None if workload.id.kind in SERVING else spec.owner_of(workload)
        who = f"{owner.kind} {owner.name} has" if owner is not None else "somebody has"
        return Step(Progress.FAILED, f"{who} set {workload.id} back")

    def _raise(self, error: CollectError) -> NoReturn:
        after = error.retry_after_s if isinstance(error, KubernetesError) else None
        trouble = _TROUBLE.get(error.kind, Trouble.INVALID)
        raise ActuatorError(error.kind.upper(), error.detail, trouble=trouble, retry_after_s=after) from error


def _version(workload: ClusterWorkload) -> str:
    return revisions.version_of(workload) if workload.id.kind in SERVING else spec.version_of(workload)


def _known(operation: Operation) -> None:
    if operation.name not in ("scale", "patch_template", "resize_pods", "set_bounds", "set_serving"):
        raise ActuatorError("UNKNOWN_OPERATION", f"kubernetes knows no step {operation.name!r}: plan again")


def _holds(now: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether the quantities are the same, however they are written."""
    return all(
        quantity((now.get(part) or {}).get(name)) == quantity(value)
        for part, values in wanted.items()
        for name, value in values.items()
    )


def _pod_holds(pod: Mapping[str, Any], container: str, wanted: Mapping[str, Any]) -> bool:
    found = [c for c in (pod.get("spec") or {}).get("containers") or () if c.get("name") == container]
    return all(_holds(c.get("resources") or {}, wanted) for c in found)


def make(context: SystemContext) -> Actuator:
    """The entry point."""
    return KubernetesWorkload(context)
