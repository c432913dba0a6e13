"""The system ``oscar``: a service's scale and resources.

An update is of the whole definition; OSCAR has no version to name and no dry run. So it is read and compared right before each write, and read
again right after. A step compares first, so that one under the same token is done once also where its answer was lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

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
from actuators.oscar import planning
from actuators.oscar.planning import ServiceTerms, value_of, with_fields
from actuators.shape import Operation, Plan, Shape
from actuators.writes import WriteCount
from collectors.oscar.client import OscarClient, OscarDeployment, OscarError, OscarSettings, shared
from collectors.oscar.services import bytes_of, cpus_of

_TROUBLE = {
    "denied": Trouble.DENIED,
    "missing": Trouble.DRIFT,
    "throttled": Trouble.THROTTLED,
    "unreachable": Trouble.UNREACHABLE,
}
_SOON_S = 5.0
Body = Mapping[str, Any]


class Options(OscarSettings):
    """Settings of the system ``oscar``."""

    service: str | None = None
    """The service. Default: the endpoint's name."""
    unlimited_as: int = Field(default=100, ge=1)
    """How many instances a service counts as that states no most (OSCAR's `max_scale: 0`). Default 100: more than most clusters hold."""
    rollout_s: float = Field(default=900.0, gt=0)
    """Seconds that an update may take: placement, images, weights."""


class OscarService:
    """See ``actuators.base.Actuator``."""

    system: ClassVar[str] = planning.SYSTEM
    changes: ClassVar[Sequence[str]] = ("autoscaling", "cpus", "memory_gb", "accelerator_count")
    poll_s = 30.0

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.options = options_of(Options, context, "oscar")
        self.service = self.options.service or context.endpoint
        self._writes = WriteCount(context.state_dir / "oscar-writes.json")

    async def live(self) -> LiveState:
        service, deployment = await self._read(), await self._deployment()
        only_jobs = deployment.state == "unavailable"
        ready = deployment.state in ("ready", "unavailable")
        return LiveState(
            self._shape(service),
            self._version(service),
            ready=ready,
            serving=None if only_jobs else max(0, deployment.instances - deployment.affected),
            detail="" if ready else f"{deployment.state}: {deployment.reason}",
        )

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        free: float | None = None
        if planning.kept_gb(wanted) > planning.kept_gb(live.shape):
            try:
                free = await self._client().free_memory()
            except OscarError as error:
                self._raise(error)
        return planning.plan(self._terms(), await self._read(), live, wanted, free)

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        """The fields as they were stated, ``512Mi`` and not what it comes to."""
        back = planning.plan(self._terms(), await self._read(), live, plan.before)
        return planning.as_stated(back, plan.undo.get("fields", {}))

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        _known(operation)
        self._unmoved(operation, await self._read(), last)

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        _known(operation)
        service = await self._read()
        if not _is_so(operation, service):
            self._unmoved(operation, service, last)
            try:
                await self._client().update(with_fields(service, operation.args["fields"]))
            except OscarError as error:
                self._raise(error)
            self._writes.add()
            service = await self._read()
        return Receipt({"step": operation.name, "token": token}, leaves=self._version(service))

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        _known(operation)
        if not _is_so(operation, await self._read()):
            return Step(Progress.FAILED, f"somebody has set service {self.service} back")
        deployment = await self._deployment()
        match deployment.state:
            case "unavailable":
                return Step(Progress.DONE, "the next job is of the new definition")
            case "ready":
                return Step(Progress.DONE, f"{deployment.instances - deployment.affected} instances serve")
            case "failed" | "stopped":
                return Step(Progress.FAILED, f"{deployment.state}: {deployment.reason}")
        return Step(Progress.PENDING, f"{deployment.state}: {deployment.reason}", again_in_s=_SOON_S)

    # inside

    def _client(self) -> OscarClient:
        own = OscarSettings(**{name: getattr(self.options, name) for name in OscarSettings.model_fields})
        return shared(self.context.sessions, own, self.context.http)

    def _terms(self) -> ServiceTerms:
        o = self.options
        return ServiceTerms(self.context.endpoint, o.cluster.rstrip("/"), o.unlimited_as, o.rollout_s)

    def _shape(self, service: Body) -> Shape:
        return planning.shape_of(service, self.options.unlimited_as)

    async def _read(self) -> Body:
        try:
            return await self._client().service(self.service)
        except OscarError as error:
            self._raise(error)

    async def _deployment(self) -> OscarDeployment:
        try:
            return await self._client().deployment(self.service)
        except OscarError as error:
            self._raise(error)

    def _version(self, service: Body) -> str:
        return planning.version_of(service, self._writes.value)

    def _unmoved(self, operation: Operation, service: Body, last: Receipt | None) -> None:
        expected = last.leaves if last is not None else operation.args.get("version")
        if expected is not None and self._version(service) != expected:
            text = f"somebody changed service {self.service} meanwhile; plan again"
            raise ActuatorError("STALE_PLAN", text, trouble=Trouble.DRIFT)

    def _raise(self, error: OscarError) -> NoReturn:
        trouble = _TROUBLE.get(error.kind, Trouble.INVALID)
        raise ActuatorError(error.kind.upper(), error.detail, trouble=trouble) from error


def _known(operation: Operation) -> None:
    if operation.name != "update":
        raise ActuatorError("UNKNOWN_OPERATION", f"oscar knows no step {operation.name!r}: plan again")


def _is_so(operation: Operation, service: Body) -> bool:
    """Whether what the step writes is there already, however it is written."""
    return all(_same(field, value_of(service, field), value) for field, value in operation.args["fields"].items())


def _same(field: str, now: Any, wanted: Any) -> bool:
    read = {"cpu": cpus_of, "memory": bytes_of}.get(field.rpartition(".")[2])
    return bool(now == wanted) if read is None else read(now) == read(wanted)


def make(context: SystemContext) -> Actuator:
    """The entry point. Raises ActuatorError ``BAD_OPTIONS``."""
    return OscarService(context)
