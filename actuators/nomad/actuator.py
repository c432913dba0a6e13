"""The system ``nomad``: a group of a service job, through any agent's HTTP API.

Nomad refuses to scale a job whose deployment is under way, and writes an event of the error into the job: so that is asked for first, and the
step waits. A registration names the index that it was made for, and is refused once somebody else wrote: then the job is read again, and
that tells whether the plan still holds. The request that scales has no such word, so the job is read and compared right before. A step
compares first, so that one under the same token is done once also where its answer was lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from pydantic import Field

from actuators.base import (
    Actuator,
    ActuatorError,
    LiveState,
    Owner,
    Progress,
    Receipt,
    Step,
    SystemContext,
    Trouble,
    options_of,
)
from actuators.nomad import planning
from actuators.nomad.planning import JobTerms, with_fields
from actuators.shape import Operation, Plan, Shape
from actuators.writes import WriteCount
from collectors.nomad.client import (
    GroupScale,
    JobAllocation,
    JobDeployment,
    NomadClient,
    NomadError,
    NomadSettings,
    shared,
)
from collectors.nomad.jobs import UnknownPart, group_of, port_of, task_of

_TROUBLE = {
    "conflict": Trouble.CONFLICT,
    "denied": Trouble.DENIED,
    "missing": Trouble.DRIFT,
    "throttled": Trouble.THROTTLED,
    "unreachable": Trouble.UNREACHABLE,
}
_STEPS = ("scale", "register", "revert")
_SOON_S = 2.0
Body = Mapping[str, Any]


class Options(NomadSettings):
    """Settings of the system ``nomad``."""

    job: str | None = None
    """The job. Default: the endpoint's name."""
    group: str | None = None
    """The group that serves. Default: the job's only one."""
    task: str | None = None
    """The task whose resources are changed. Default: the group's only one beside those with a lifecycle."""
    port: str | None = None
    """The label of the port where each allocation serves and tells its metrics. Default: `metrics`, the service's, `api`, `http`, or the
    first."""
    allocations: bool = True
    """Whether each allocation is read at its own address. Where Flyball cannot reach them: false, and only `url` is read."""
    rollout_s: float = Field(default=1800.0, gt=0)
    """Seconds that a deployment may take: placement, images, weights, health."""


class NomadJob:
    """See ``actuators.base.Actuator``."""

    system: ClassVar[str] = planning.SYSTEM
    changes: ClassVar[Sequence[str]] = ("replicas", "autoscaling", "cpus", "memory_gb", "accelerator_count", "engine.*")
    poll_s = 15.0

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.options = options_of(Options, context, "nomad")
        self.job = self.options.job or context.endpoint
        self._writes = WriteCount(context.state_dir / "nomad-writes.json")

    async def live(self) -> LiveState:
        job = await self._read()
        shape = self._shape(job)
        name = self._group(job)
        counts = await self._counts(name)
        deployment = await self._deployment()
        wanted = 0 if job.get("Stop") else counts.desired
        ready = counts.running == wanted and not (deployment is not None and deployment.active)
        owner = None
        if shape.autoscaling is not None:
            owner = Owner("nomad-autoscaler", name, frozenset({"replicas"}))
        said = [f"{counts.running} of {wanted} allocations run, {counts.placed} are placed"]
        if deployment is not None and (deployment.active or deployment.status == "failed"):
            said.append(f"deployment {deployment.status}: {deployment.detail}")
        return LiveState(
            shape,
            self._version(job),
            ready=ready,
            serving=counts.running,
            owner=owner,
            targets=await self._targets(job) if self.options.allocations else {},
            detail="" if ready else "; ".join(said),
        )

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        return planning.plan(self._terms(), await self._read(), live, wanted)

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        """Nomad's own revert, where the present version is the one that Flyball wrote and the old one is kept; else field by field."""
        job = await self._read()
        way = planning.plan(self._terms(), job, live, plan.before)
        ours = done and done[-1].handle.get("job_version") == job.get("Version")
        if not way.operations or not ours or live.shape.autoscaling is not None:
            return way
        try:
            kept = {v.get("Version") for v in await self._client().versions(self.job)}
        except NomadError as error:
            self._raise(error)
        return planning.reverted(self._terms(), job, plan, live) if plan.undo.get("job_version") in kept else way

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        """Asks the scheduler by a plan, which changes nothing, whether it finds room."""
        _known(operation)
        job = await self._read()
        self._unmoved(operation, job, last)
        if await self._is_so(operation, job):
            return
        await self._idle()
        if operation.name == "revert":  # what ran before has had its room
            return
        try:
            planned = await self._client().planned(self._written(operation, job))
        except NomadError as error:
            self._raise(error)
        lacking = planned.get("FailedTGAllocs")
        if lacking:
            raise ActuatorError("NO_ROOM", f"job {self.job}: {_why(lacking)}", trouble=Trouble.CAPACITY)

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        _known(operation)
        job, evaluation = await self._read(), None
        if not await self._is_so(operation, job):
            self._unmoved(operation, job, last)
            await self._idle()
            try:
                evaluation = (await self._write(operation, job, token)).get("EvalID")
            except NomadError as error:
                self._raise(error)
            self._writes.add()
            job = await self._read()
        handle = {"step": operation.name, "token": token, "evaluation": evaluation, "job_version": job.get("Version")}
        return Receipt(handle, leaves=self._version(job))

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        _known(operation)
        deployment = (
            await self._deployment()
        )  # before the job: one that Nomad reverts meanwhile is then seen as reverted
        job = await self._read()
        if not await self._is_so(operation, job):
            return Step(Progress.FAILED, f"job {self.job} was set back, by somebody or by its auto_revert")
        room = ""
        if receipt.handle.get("evaluation"):
            try:
                evaluation = await self._client().evaluation(receipt.handle["evaluation"])
            except NomadError as error:
                if error.kind != "missing":  # it is collected as garbage after an hour
                    self._raise(error)
                evaluation = {}
            status = evaluation.get("Status", "complete")
            if status in ("failed", "canceled", "cancelled"):
                return Step(Progress.FAILED, f"the evaluation {status}: {evaluation.get('StatusDescription') or ''}")
            if status != "complete":
                return Step(Progress.PENDING, f"the evaluation is {status}", again_in_s=_SOON_S)
            room = _why(evaluation.get("FailedTGAllocs") or {})
        if deployment is not None and deployment.job_version == job.get("Version"):
            if deployment.status in ("failed", "cancelled"):
                return Step(Progress.FAILED, f"the deployment {deployment.status}: {deployment.detail}")
            if deployment.active:
                text = f"the deployment is {deployment.status}: {deployment.detail} {room}".rstrip()
                return Step(Progress.PENDING, text, again_in_s=_SOON_S)
        counts = await self._counts(self._group(job))
        old = [a for a in await self._allocations(self._group(job)) if a.running and _older(a, operation, receipt)]
        if counts.running == counts.desired and not old:
            return Step(Progress.DONE, f"{counts.running} allocations run")
        text = f"{counts.running} of {counts.desired} allocations run, {len(old)} of an older version {room}".rstrip()
        return Step(Progress.PENDING, text, again_in_s=_SOON_S)

    # inside

    def _client(self) -> NomadClient:
        own = NomadSettings(**{name: getattr(self.options, name) for name in NomadSettings.model_fields})
        return shared(self.context.sessions, own, self.context.http)

    def _terms(self) -> JobTerms:
        o = self.options
        return JobTerms(self.context.endpoint, o.address.rstrip("/"), o.namespace, o.group, o.task, o.rollout_s)

    async def _read(self) -> Body:
        try:
            return await self._client().job(self.job)
        except NomadError as error:
            self._raise(error)

    def _shape(self, job: Body) -> Shape:
        try:
            return planning.shape_of(job, self.options.group, self.options.task)
        except UnknownPart as error:
            raise ActuatorError("NO_PART", f"{error}; set actuator.options.group or task") from error

    def _group(self, job: Body) -> str:
        return str(group_of(job, self.options.group).get("Name"))

    async def _counts(self, group: str) -> GroupScale:
        try:
            return (await self._client().scale_of(self.job)).get(group) or GroupScale(0, 0, 0)
        except NomadError as error:
            self._raise(error)

    async def _deployment(self) -> JobDeployment | None:
        try:
            return await self._client().deployment(self.job)
        except NomadError as error:
            self._raise(error)

    async def _allocations(self, group: str) -> list[JobAllocation]:
        try:
            return [a for a in await self._client().allocations(self.job) if a.group == group]
        except NomadError as error:
            self._raise(error)

    async def _targets(self, job: Body) -> dict[str, str]:
        """Each allocation that runs, and is not known to be unwell, at its own address. One that has just gone is left out."""
        group = group_of(job, self.options.group)
        task, found = task_of(group, self.options.task), {}
        for each in await self._allocations(self._group(job)):
            if not each.running or each.healthy is False:
                continue
            try:
                ports = await self._client().ports(each.id)
            except NomadError as error:
                if error.kind == "missing":
                    continue
                self._raise(error)
            address = port_of(group, task, ports, self.options.port)
            if address is not None:
                found[each.id[:8]] = f"http://{address}"
        return found

    def _version(self, job: Body) -> str:
        return planning.version_of(job, self.options.group, self._writes.value)

    def _unmoved(self, operation: Operation, job: Body, last: Receipt | None) -> None:
        expected = last.leaves if last is not None else operation.args.get("version")
        if expected is not None and self._version(job) != expected:
            text = f"somebody changed job {self.job} meanwhile; plan again"
            raise ActuatorError("STALE_PLAN", text, trouble=Trouble.DRIFT)

    async def _idle(self) -> None:
        """Raises ActuatorError CONFLICT while a deployment is under way."""
        deployment = await self._deployment()
        if deployment is not None and deployment.active:
            text = f"a deployment of job {self.job} is {deployment.status}: {deployment.detail}"
            raise ActuatorError("DEPLOYMENT_ACTIVE", text, trouble=Trouble.CONFLICT, retry_after_s=_SOON_S)

    def _written(self, operation: Operation, job: Body) -> Body:
        """The specification as the step leaves it."""
        fields = {"count": operation.args["count"]} if operation.name == "scale" else operation.args["fields"]
        return with_fields(job, self.options.group, self.options.task, fields)

    async def _is_so(self, operation: Operation, job: Body) -> bool:
        """Whether what the step writes is there already."""
        if operation.name != "revert":
            return bool(self._written(operation, job)["TaskGroups"] == job["TaskGroups"])
        if job.get("Version") == operation.args["prior"]:
            return False
        try:  # Nomad gives what it reverted to a new number
            versions = await self._client().versions(self.job)
        except NomadError as error:
            self._raise(error)
        wanted = next((v for v in versions if v.get("Version") == operation.args["to"]), None)
        return wanted is not None and wanted.get("TaskGroups") == job.get("TaskGroups")

    async def _write(self, operation: Operation, job: Body, token: str) -> Body:
        client, args = self._client(), operation.args
        if operation.name == "scale":
            message = f"flyball: {operation.summary}"
            return await client.scale(self.job, args["group"], args["count"], message, {"flyball": token})
        if operation.name == "revert":
            return await client.revert(self.job, args["to"], args["prior"])
        return await client.register(self._written(operation, job), int(job["JobModifyIndex"]))

    def _raise(self, error: NomadError) -> NoReturn:
        trouble = _TROUBLE.get(error.kind, Trouble.INVALID)
        raise ActuatorError(error.kind.upper(), error.detail, trouble=trouble) from error


def _known(operation: Operation) -> None:
    if operation.name not in _STEPS:
        raise ActuatorError("UNKNOWN_OPERATION", f"nomad knows no step {operation.name!r}: plan again")


def _older(allocation: JobAllocation, operation: Operation, receipt: Receipt) -> bool:
    """Whether it still runs what was before the step. One that was updated in place has the new version."""
    of = receipt.handle.get("job_version")
    return operation.name != "scale" and of is not None and allocation.job_version < of


def _why(lacking: Body) -> str:
    """Why the scheduler finds no room, by group."""
    said = []
    for group, metric in lacking.items():
        reasons = {**(metric.get("DimensionExhausted") or {}), **(metric.get("ConstraintFiltered") or {})}
        text = ", ".join(f"{name} on {number} nodes" for name, number in sorted(reasons.items()))
        said.append(f"no room for group {group} ({text or 'no node fits'} of {metric.get('NodesEvaluated', 0)})")
    return "; ".join(said)


def make(context: SystemContext) -> Actuator:
    """The entry point. Raises ActuatorError ``BAD_OPTIONS``."""
    return NomadJob(context)
