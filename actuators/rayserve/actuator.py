"""The system ``ray-serve``: a deployment's replicas, bounds and limit, through the dashboard's REST API.

A PUT is of all applications at once, and deletes whoever is left out; the API has no version to name. So the state is read and compared right
before each write, and the configurations of all others go along as they are stated. A step compares first, so that one under the same token is
done once also where its answer was lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from pydantic import Field

from actuators.base import (
    Actuator,
    ActuatorError,
    CannotPlan,
    LiveState,
    Owner,
    Progress,
    Receipt,
    Step,
    SystemContext,
    Trouble,
    options_of,
)
from actuators.rayserve import planning
from actuators.rayserve.planning import ServeTerms, entry_of, with_fields
from actuators.shape import Operation, Plan, Shape
from actuators.writes import WriteCount
from collectors.rayserve.client import (
    DashboardSettings,
    RayServeClient,
    RayServeError,
    ServeApplication,
    ServeDeployment,
    ServeState,
    shared,
)

_TROUBLE = {
    "conflict": Trouble.CONFLICT,
    "denied": Trouble.DENIED,
    "disabled": Trouble.DRIFT,
    "missing": Trouble.DRIFT,
    "throttled": Trouble.THROTTLED,
    "unreachable": Trouble.UNREACHABLE,
}
_STEPS = ("configure", "scale")
_SOON_S = 1.0


class Options(DashboardSettings):
    """Settings of the system ``ray-serve``."""

    application: str | None = None
    """The application. Default: the endpoint's name."""
    deployment: str | None = None
    """The deployment that is changed. Default: the one that takes the requests."""
    rollout_s: float = Field(default=900.0, gt=0)
    """Seconds that a change of replicas may take: placement, images, weights."""


class RayServeDeployment:
    """See ``actuators.base.Actuator``."""

    system: ClassVar[str] = planning.SYSTEM
    changes: ClassVar[Sequence[str]] = ("replicas", "autoscaling", "engine.*")
    poll_s = 15.0

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.options = options_of(Options, context, "ray-serve")
        self.application = self.options.application or context.endpoint
        self._writes = WriteCount(context.state_dir / "ray-serve-writes.json")

    async def live(self) -> LiveState:
        _, application, deployment = await self._found()
        if deployment is None:
            version, detail = self._version(application, None), f"{application.status} {application.message[:1000]}"
            return LiveState(Shape(), version, ready=False, detail=detail)
        shape = planning.shape_of(application, deployment)
        running = len(deployment.running)
        # where the external scaler was disabled, Serve keeps to its count, whatever is configured
        wanted = deployment.target if shape.replicas is None else shape.replicas
        ready = application.status == "RUNNING" and deployment.status == "HEALTHY" and running == wanted
        said = [f"{running} of {wanted} replicas run", f"{application.status}, {deployment.status}"]
        said += [text[:500] for text in (application.message, deployment.message) if text]
        owner = None
        if shape.autoscaling is not None:
            owner = Owner("ray-serve-autoscaler", deployment.name, frozenset({"replicas"}))
        return LiveState(
            shape,
            self._version(application, deployment),
            ready=ready,
            serving=running,
            owner=owner,
            detail="" if ready else "; ".join(said),
        )

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        _, application, deployment = await self._found()
        if deployment is None:
            text = f"{application.name} is {application.status}: {application.message[:300] or 'wait until it runs'}"
            raise CannotPlan("NO_DEPLOYMENT", text, trouble=Trouble.CONFLICT)
        return planning.plan(self._terms(), application, deployment, live, wanted)

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        """The configuration as it was stated: also what it left to the code."""
        _, application, deployment = await self._found()
        if deployment is None:
            return planning.restored(plan, live)
        back = planning.plan(self._terms(), application, deployment, live, plan.before)
        return planning.as_stated(back, plan.undo.get("fields", {}))

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        _known(operation)
        _, application, deployment = await self._found()
        self._unmoved(operation, application, deployment, last)

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        _known(operation)
        state, application, deployment = await self._found()
        if not _is_so(operation, application, deployment):
            self._unmoved(operation, application, deployment, last)
            try:
                await self._write(operation, state, application)
            except RayServeError as error:
                self._raise(error)
            self._writes.add()
            _, application, deployment = await self._found()
        return Receipt({"step": operation.name, "token": token}, leaves=self._version(application, deployment))

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        _known(operation)
        _, application = await self._application()
        if application.status == "DEPLOY_FAILED":
            return Step(Progress.FAILED, f"{application.name}: {application.message[:1000]}")
        deployment = application.deployments.get(self._name(application) or "")
        if deployment is None:  # while a configuration is taken up there is none
            return Step(Progress.PENDING, f"{application.name} is {application.status}", again_in_s=_SOON_S)
        if not _is_so(operation, application, deployment):
            return Step(Progress.FAILED, f"somebody has set {application.name}/{deployment.name} back")
        if deployment.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            return Step(Progress.FAILED, f"{deployment.name} is {deployment.status}: {deployment.message[:1000]}")
        wanted = operation.args.get("replicas") or operation.args.get("fields", {}).get("num_replicas")
        running = len(deployment.running)
        there = running == deployment.target and (wanted is None or running == wanted)
        if there and application.status == "RUNNING" and deployment.status == "HEALTHY":
            return Step(Progress.DONE, f"{running} replicas run")
        text = f"{running} of {deployment.target} replicas run; {deployment.status} {deployment.message[:300]}"
        return Step(Progress.PENDING, text, again_in_s=_SOON_S)

    # inside

    def _client(self) -> RayServeClient:
        own = DashboardSettings(**{name: getattr(self.options, name) for name in DashboardSettings.model_fields})
        return shared(self.context.sessions, own, self.context.http)

    def _terms(self) -> ServeTerms:
        return ServeTerms(self.context.endpoint, self.options.dashboard.rstrip("/"), self.options.rollout_s)

    async def _found(self) -> tuple[ServeState, ServeApplication, ServeDeployment | None]:
        """None: Serve has none of the application's deployments now, as its configuration is being taken up or has failed."""
        state, application = await self._application()
        name = self._name(application)
        deployment = None if name is None else application.deployments.get(name)
        if deployment is None and application.deployments:
            text = f"application {self.application}: set actuator.options.deployment; there are: {', '.join(application.deployments)}"
            raise ActuatorError("NO_DEPLOYMENT", text)
        return state, application, deployment

    async def _application(self) -> tuple[ServeState, ServeApplication]:
        try:
            state = await self._client().state()
        except RayServeError as error:
            self._raise(error)
        found = state.applications.get(self.application)
        if found is None:
            there = ", ".join(sorted(state.applications)) or "none"
            text = f"Ray Serve at {self.options.dashboard} has no application {self.application!r}; there are: {there}"
            raise ActuatorError("NO_APPLICATION", text)
        return state, found

    def _name(self, application: ServeApplication) -> str | None:
        return self.options.deployment or application.ingress

    def _version(self, application: ServeApplication, deployment: ServeDeployment | None) -> str:
        return planning.version_of(application, deployment, self._writes.value)

    def _unmoved(
        self,
        operation: Operation,
        application: ServeApplication,
        deployment: ServeDeployment | None,
        last: Receipt | None,
    ) -> None:
        expected = last.leaves if last is not None else operation.args.get("version")
        if expected is not None and self._version(application, deployment) != expected:
            text = f"somebody configured {self.application} meanwhile; plan again"
            raise ActuatorError("STALE_PLAN", text, trouble=Trouble.DRIFT)

    async def _write(self, operation: Operation, state: ServeState, application: ServeApplication) -> None:
        args, client = operation.args, self._client()
        if operation.name == "scale":
            await client.scale(application.name, args["deployment"], args["replicas"])
            return
        changed = with_fields(application.stated, args["deployment"], args["fields"])
        stated = [
            a for a in state.applications.values() if a.declarative
        ]  # those of programs are none of a configuration's
        await client.configure([changed if a.name == application.name else a.stated for a in stated])

    def _raise(self, error: RayServeError) -> NoReturn:
        trouble = _TROUBLE.get(error.kind, Trouble.INVALID)
        raise ActuatorError(error.kind.upper(), error.detail, trouble=trouble) from error


def _known(operation: Operation) -> None:
    if operation.name not in _STEPS:
        raise ActuatorError("UNKNOWN_OPERATION", f"ray-serve knows no step {operation.name!r}: plan again")


def _is_so(operation: Operation, application: ServeApplication, deployment: ServeDeployment | None) -> bool:
    """Whether what the step writes is there already."""
    if operation.name == "scale":
        return deployment is not None and bool(deployment.target == operation.args["replicas"])
    fields: Mapping[str, Any] = operation.args["fields"]
    entry = entry_of(application.stated, operation.args["deployment"])
    return all(entry.get(name) == value for name, value in fields.items())


def make(context: SystemContext) -> Actuator:
    """The entry point. Raises ActuatorError ``BAD_OPTIONS``."""
    return RayServeDeployment(context)
