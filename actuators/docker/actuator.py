"""The system ``docker``: a container's limits as it runs, its GPUs and arguments by another container in its place, a service's replicas.

Docker keeps no version of a container, and a swarm's counts up with its status too. Each step reads and compares before it writes; a
container that Flyball makes carries the mark of its plan, so that one under the same plan is made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn
from urllib.parse import quote

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
from actuators.docker import planning
from actuators.docker.planning import NEXT, Body, ContainerPair, ContainerTerms, mark_of, name_of, runs
from actuators.shape import Operation, Plan, Shape
from actuators.writes import WriteCount
from collectors.docker.client import DockerClient, DockerError, DockerSettings, shared

_TROUBLE = {
    "conflict": Trouble.CONFLICT,
    "denied": Trouble.DENIED,
    "missing": Trouble.DRIFT,
    "unreachable": Trouble.UNREACHABLE,
}
_CONTAINER_STEPS = ("limit", "create", "start", "stop", "remove", "rename")
_SOON_S = 1.0


class Options(DockerSettings):
    """Settings of the system ``docker``: a container, or a service of a swarm."""

    container: str | None = Field(default=None, pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]*$")
    """The container's name. Default: the endpoint's."""
    service: str | None = None
    """A service of a swarm, instead. Default: none."""
    health: str | None = Field(default=None, pattern=r"^/")
    """A page under the endpoint's `url` that answers 200 once a new container serves, such as `/health`. Default: Docker's own health check,
    where the image has one; else it counts as healthy as soon as it runs."""
    start_s: float = Field(default=900.0, gt=0)
    """Seconds until a new container, or a service's new tasks, must be healthy: images, weights."""
    stop_s: float = Field(default=30.0, gt=0, le=300)
    """Seconds that a container has to end its requests before it is killed."""


class DockerActuator:
    """See ``actuators.base.Actuator``."""

    system: ClassVar[str] = planning.SYSTEM
    changes: ClassVar[Sequence[str]] = ("replicas", "cpus", "memory_gb", "accelerator_count", "engine.*")
    poll_s = 15.0

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.options = options_of(Options, context, "docker")
        self.name = self.options.container or context.endpoint
        self._writes = WriteCount(context.state_dir / "docker-writes.json")

    async def live(self) -> LiveState:
        if self.options.service is not None:
            return await self._service_live(await self._service())
        pair = await self._pair()
        state = pair.live.get("State") or {}
        up, text = _health(pair.live)
        if state.get("OOMKilled"):
            text += "; it was killed for want of memory"
        return LiveState(planning.shape_of(pair.live), self._version(pair.live), ready=up, serving=int(up), detail=text)

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        if self.options.service is not None:
            return planning.scale(await self._terms(), await self._service(), live, wanted)
        return planning.plan(await self._terms(), await self._pair(), live, wanted)

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        if "old" in plan.undo:
            old, new = [await self._container(str(plan.undo[k])) for k in ("old", "new")]
            found = planning.back(await self._terms(), plan, old, new, live)
            if found is not None:
                return found
        return await self.plan(live, plan.before)

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        self._known(operation)
        if operation.name == "scale":
            self._unmoved(operation, self._service_version(await self._service()), last)
            return
        container = await self._subject(operation)
        if operation.name in ("limit", "create"):
            self._unmoved(operation, self._version(container), last)

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        self._known(operation)
        leaves = await (self._scale if operation.name == "scale" else self._change)(operation, last)
        return Receipt({"step": operation.name, "token": token}, leaves=leaves)

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        self._known(operation)
        if operation.name == "scale":
            return await self._scaled(operation)
        name = str(operation.args.get("container") or operation.args["new"])
        container = await self._container(name)
        match operation.name:
            case "remove":
                gone = container is None or container["Id"] != operation.args["id"]
                return Step(Progress.DONE, f"{name} is gone") if gone else Step(Progress.PENDING, f"{name} is there")
            case "rename":
                to = await self._container(str(operation.args["to"]))
                fine = to is not None and mark_of(to) == operation.args["mark"]
                return Step(Progress.DONE, "") if fine else Step(Progress.FAILED, f"{name} kept its name")
        if container is None:
            return Step(Progress.FAILED, f"{name} is gone")
        match operation.name:
            case "limit":
                fine = _limited(container, operation)
                return Step(Progress.DONE, operation.summary) if fine else Step(Progress.FAILED, f"{name} was set back")
            case "stop":
                return Step(Progress.PENDING, f"{name} runs on") if runs(container) else Step(Progress.DONE, "")
            case "start":
                return await self._started(container)
        return Step(Progress.DONE, f"{name} is there")

    # inside

    def _client(self) -> DockerClient:
        own = DockerSettings(host=self.options.host)
        return shared(self.context.sessions, own, self.context.http, self.context.clock)

    async def _asked(self, method: str, path: str, **query: Any) -> Any:
        try:
            return await getattr(self._client(), method)(path, **query)
        except DockerError as error:
            self._raise(error)

    async def _container(self, name: str) -> dict[str, Any] | None:
        try:
            return await self._client().container(name)
        except DockerError as error:
            self._raise(error)

    async def _pair(self) -> ContainerPair:
        """Where two are there, the one that runs is the live one; where both or none do, the one that has the name."""
        one, two = await self._container(self.name), await self._container(self.name + NEXT)
        if one is None and two is None:
            text = f"{self.options.host} has no container {self.name!r}: set actuator.options.container"
            raise ActuatorError("NO_CONTAINER", text, trouble=Trouble.DRIFT)
        if one is None or (two is not None and runs(two) and not runs(one)):
            assert two is not None
            return ContainerPair(self.name, two, one)
        return ContainerPair(self.name, one, two)

    async def _subject(self, operation: Operation) -> dict[str, Any]:
        """The container that the step is about, as it was when the step was planned. Raises ``ActuatorError`` ``DRIFT``."""
        args = operation.args
        name = str(args["old"] if operation.name == "create" else args["container"])
        found = await self._container(name)
        ours = found is not None and (
            mark_of(found) == args["mark"]
            if "mark" in args and operation.name != "create"
            else found["Id"] == args["id"]
        )
        if found is None or not ours:
            text = f"container {name} is gone, or is another one now; plan again"
            raise ActuatorError("STALE_PLAN", text, trouble=Trouble.DRIFT)
        return found

    async def _terms(self) -> ContainerTerms:
        info = await self._asked("get", "/info")
        return ContainerTerms(
            self.context.endpoint,
            self.options.start_s,
            self.options.stop_s,
            int(info.get("NCPU") or 0),
            int(info.get("MemTotal") or 0),
        )

    def _version(self, container: Body) -> str:
        return planning.version_of(container, self._writes.value)

    def _unmoved(self, operation: Operation, version: str, last: Receipt | None) -> None:
        expected = last.leaves if last is not None else operation.args.get("version")
        if expected is not None and version != expected:
            text = f"somebody changed {self.options.service or self.name} meanwhile; plan again"
            raise ActuatorError("STALE_PLAN", text, trouble=Trouble.DRIFT)

    async def _change(self, operation: Operation, last: Receipt | None) -> str | None:
        """Once, whatever was done before. What it leaves is only told of what the next step compares."""
        args = operation.args
        match operation.name:
            case "limit":
                container = await self._subject(operation)
                if not _limited(container, operation):
                    self._unmoved(operation, self._version(container), last)
                    body = planning.limits_body(
                        container.get("HostConfig") or {}, args.get("cpus"), args.get("memory_gb")
                    )
                    await self._asked("post", f"/containers/{_path(container)}/update", body=body)
                    self._writes.add()
                    container = await self._subject(operation)
                return self._version(container)
            case "create":
                await self._create(operation, last)
            case "start":
                await self._asked("post", f"/containers/{_path(await self._subject(operation))}/start")
            case "stop":
                await self._stop(operation)
            case "remove":
                await self._remove(operation)
            case "rename":
                to = await self._container(str(args["to"]))
                if to is None or mark_of(to) != args["mark"]:
                    container = await self._subject(operation)
                    await self._asked("post", f"/containers/{_path(container)}/rename", name=args["to"])
        return None

    async def _create(self, operation: Operation, last: Receipt | None) -> None:
        args = operation.args
        there = await self._container(str(args["new"]))
        if there is not None and mark_of(there) == args["mark"]:
            return
        old = await self._subject(operation)
        self._unmoved(operation, self._version(old), last)
        if there is not None:
            if runs(there):
                text = f"container {args['new']} runs, and is none of this plan's: remove or rename it"
                raise ActuatorError("NAME_TAKEN", text, trouble=Trouble.DRIFT)
            await self._asked("delete", f"/containers/{_path(there)}")
        try:
            body = planning.creation(old, args["changes"], str(args["mark"]), await self._image(old))
        except ValueError as error:
            raise ActuatorError("STALE_PLAN", f"{args['old']}: {error}; plan again", trouble=Trouble.DRIFT) from error
        await self._asked("post", "/containers/create", body=body, name=args["new"])
        self._writes.add()

    async def _image(self, container: Body) -> str:
        """By the name that people know, where that is still the same image."""
        name = str((container.get("Config") or {}).get("Image"))
        try:
            image = await self._client().get(f"/images/{quote(name, safe='/:@')}/json")
        except DockerError as error:
            if error.kind == "missing":
                return str(container["Image"])
            self._raise(error)
        return name if image.get("Id") == container["Image"] else str(container["Image"])

    async def _stop(self, operation: Operation) -> None:
        """Docker answers when it has ended."""
        container, wait_s = await self._subject(operation), self.options.stop_s
        if runs(container):
            await self._asked("post", f"/containers/{_path(container)}/stop", timeout_s=wait_s + 15, t=int(wait_s))

    async def _remove(self, operation: Operation) -> None:
        container = await self._container(str(operation.args["container"]))
        if container is None or container["Id"] != operation.args["id"]:
            return
        if runs(container):
            text = f"{operation.args['container']} runs: it is not removed"
            raise ActuatorError("STALE_PLAN", text, trouble=Trouble.DRIFT)
        await self._asked("delete", f"/containers/{_path(container)}")

    async def _started(self, container: Body) -> Step:
        if not runs(container):
            state = container.get("State") or {}
            text = (
                f"{name_of(container)} has ended with {state.get('ExitCode')}: {state.get('Error') or 'see its logs'}"
            )
            return Step(Progress.FAILED, text)
        up, text = _health(container)
        if not up:
            failed = ((container.get("State") or {}).get("Health") or {}).get("Status") == "unhealthy"
            return Step(Progress.FAILED if failed else Progress.PENDING, text, again_in_s=_SOON_S)
        if self.options.health is not None:
            url = self.context.url.rstrip("/") + self.options.health
            try:
                answer = await self.context.http("GET", url, headers=self.context.headers, timeout_s=5.0)
            except (OSError, ValueError) as error:
                return Step(Progress.PENDING, f"{url}: {error}", again_in_s=_SOON_S)
            if answer.status >= 300:
                return Step(Progress.PENDING, f"{url} answers {answer.status}", again_in_s=_SOON_S)
        return Step(Progress.DONE, f"{name_of(container)} serves")

    # a service

    async def _service(self) -> dict[str, Any]:
        name = quote(str(self.options.service), safe="")
        found: dict[str, Any] = await self._asked("get", f"/services/{name}")
        return found

    def _service_version(self, service: Body) -> str:
        return planning.service_version(service, self._writes.value)

    async def _tasks(self) -> int:
        """How many run, and are meant to."""
        filters = {"service": [self.options.service], "desired-state": ["running"]}
        rows = await self._asked("get", "/tasks", filters=filters)
        return sum((row.get("Status") or {}).get("State") == "running" for row in rows)

    async def _service_live(self, service: Body) -> LiveState:
        shape, running = planning.service_shape(service), await self._tasks()
        ready = shape.replicas is None or running == shape.replicas
        text = "" if ready else f"{running} of {shape.replicas} tasks run"
        return LiveState(shape, self._service_version(service), ready=ready, serving=running, detail=text)

    async def _scale(self, operation: Operation, last: Receipt | None) -> str | None:
        service = await self._service()
        wanted = operation.args["replicas"]
        if planning.service_shape(service).replicas != wanted:
            self._unmoved(operation, self._service_version(service), last)
            spec = {**service["Spec"], "Mode": {"Replicated": {"Replicas": wanted}}}
            index = service["Version"]["Index"]
            await self._asked("post", f"/services/{service['ID']}/update", body=spec, version=index)
            self._writes.add()
            service = await self._service()
        return self._service_version(service)

    async def _scaled(self, operation: Operation) -> Step:
        service, wanted = await self._service(), operation.args["replicas"]
        if planning.service_shape(service).replicas != wanted:
            return Step(Progress.FAILED, f"somebody has set service {operation.args['service']} back")
        running = await self._tasks()
        if running == wanted:
            return Step(Progress.DONE, f"{running} tasks run")
        return Step(Progress.PENDING, f"{running} of {wanted} tasks run", again_in_s=_SOON_S)

    def _known(self, operation: Operation) -> None:
        known = ("scale",) if self.options.service is not None else _CONTAINER_STEPS
        if operation.name not in known:
            raise ActuatorError("UNKNOWN_OPERATION", f"docker knows no step {operation.name!r} here: plan again")

    def _raise(self, error: DockerError) -> NoReturn:
        trouble = _TROUBLE.get(error.kind, Trouble.INVALID)
        raise ActuatorError(error.kind.upper(), error.detail, trouble=trouble) from error


def _path(container: Body) -> str:
    """By its id: a name may be another's by now."""
    return str(container["Id"])


def _health(container: Body) -> tuple[bool, str]:
    """By Docker's own check, where there is one."""
    name, state = name_of(container), container.get("State") or {}
    if not runs(container):
        return False, f"{name} is {state.get('Status')}"
    status = (state.get("Health") or {}).get("Status")
    fine = status in (None, "healthy", "none")
    return fine, "" if fine else f"{name} is {status}"


def _limited(container: Body, operation: Operation) -> bool:
    """Whether its limits are what the step sets."""
    shape = planning.shape_of(container)
    return all(getattr(shape, k) == operation.args[k] for k in ("cpus", "memory_gb") if k in operation.args)


def make(context: SystemContext) -> Actuator:
    """The entry point. Raises ActuatorError ``BAD_OPTIONS``."""
    return DockerActuator(context)
