"""The system ``azure-vm``: a virtual machine's size, a scale set's count and size, a node pool's count or bounds.

Each step reads and compares before it writes, and sends the etag of what it read where Azure takes one, so that a step is done once,
also when its answer was lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from pydantic import Field, field_validator

from actuators.arm import actuator_error, is_settled, provisioning, unsettled
from actuators.azure_vm import planning
from actuators.azure_vm.planning import AzureTerms, MachineState, shape_of, version_of
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
from actuators.shape import Operation, Plan, Shape
from actuators.writes import WriteCount
from collectors.azure.client import AUTOSCALE_VERSION, COMPUTE_VERSION, AzureClient, shared
from collectors.azure.credentials import AzureAccount
from collectors.azure.errors import AzureError
from collectors.azure.machines import MachineId, MachineSize, machine_sizes, power_of
from collectors.window import CollectError

Args = Mapping[str, Any]
#: By kind: the steps that it knows.
_STEPS = {"vm": ("resize", "deallocate", "start"), "set": ("set", "upgrade"), "pool": ("pool",)}
#: What a pool's PUT may not send back.
_POOL_READ_ONLY = (
    "provisioningState",
    "powerState",
    "currentOrchestratorVersion",
    "nodeImageVersion",
    "eTag",
    "status",
)


class Options(AzureAccount):
    """Settings of the system ``azure-vm``."""

    resource: str = ""
    """The resource id of a virtual machine, a scale set, or an AKS agent pool."""
    change_deadline_s: float = Field(default=1800.0, gt=0)
    """How long another size or count may take, or a machine to leave its hardware."""
    start_deadline_s: float = Field(default=1800.0, gt=0)
    """How long machines may take to start. Whether the model answers is seen by its metrics."""

    @field_validator("resource")
    @classmethod
    def _an_id(cls, value: str) -> str:
        if value:
            MachineId.parse(value)
        return value


class AzureMachines:
    """See ``actuators.base.Actuator``."""

    system: ClassVar[str] = "azure-vm"
    changes: ClassVar[Sequence[str]] = ("size", "replicas", "autoscaling")

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.options = options_of(Options, context, self.system)
        if not self.options.resource:
            text = (
                f"endpoint {context.endpoint}, azure-vm: resource: the id of a machine, a scale set or a pool is needed"
            )
            raise ActuatorError("BAD_OPTIONS", text)
        self.poll_s = self.options.poll_s
        self.id = MachineId.parse(self.options.resource)
        self._writes = WriteCount(context.state_dir / "azure-vm-writes.json")

    # -- reading -------------------------------------------------------------------------------------------------------

    async def live(self) -> LiveState:
        state = await self._state()
        settled = provisioning(state.body) == "Succeeded"
        problems = [] if settled else [f"{self.id.name} is {provisioning(state.body)}"]
        if self.id.kind == "vm" and state.power != "running":
            problems.append(f"it is {state.power}")
        if not state.owner_known:
            problems.append("autoscale settings may not be read, so who owns the count is not known")
        owner = None
        if state.owner is not None:
            owner = Owner("azure-autoscale", state.owner, frozenset(("replicas",)))
        elif state.bounds is not None:
            owner = Owner("cluster-autoscaler", self.id.name, frozenset(("replicas",)))
        up = settled and (self.id.kind != "vm" or state.power == "running")
        return LiveState(
            shape=shape_of(state, await self._sizes(state), _region(state)),
            version=self._version(state),
            ready=up,
            serving=(state.count if up else 0) if self.id.kind == "vm" or settled else None,
            owner=owner,
            detail="; ".join(problems),
        )

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        state = await self._state()
        if self._version(state) != live.version:
            text = f"{self.id.name} was changed since it was last read: it is read anew"
            raise CannotPlan("STALE_LIVE", text, trouble=Trouble.DRIFT)
        terms = await self._terms(state, wanted)
        return planning.plan(terms, state, self._version(state), live.shape, wanted)

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        """The state that it is in says all: a machine that was taken off its hardware is made what it was, and started."""
        state = await self._state()
        terms = await self._terms(state, plan.before)
        before = live.shape.with_(
            replicas=plan.before.replicas, size=plan.before.size, autoscaling=plan.before.autoscaling
        )
        known = terms.sizes.get(before.size or "")
        before = before.with_(cpus=float(known.cores) if known is not None else before.cpus)
        return planning.plan(terms, state, self._version(state), live.shape, before, start=bool(done))

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        self._known(operation)
        state = await self._state()
        self._free(state)
        if last is not None and last.leaves is not None and last.leaves != self._version(state):
            self._drift("it is not any more what the last step left")
        if not await self._holds(operation, state):
            self._unmoved(operation, state)
            await self._check_quota(operation, state)

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        self._known(operation)
        state = await self._state()
        handle: Mapping[str, str] = {}
        if not await self._holds(operation, state):
            self._unmoved(operation, state)
            self._free(state)
            try:
                handle = await self._write(operation, state, token)
            except CollectError as error:
                raise actuator_error(error) from error
            self._writes.add()
        return Receipt({**handle, "token": token})

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        self._known(operation)
        handle = {k: str(v) for k, v in receipt.handle.items() if k in ("status", "result")}
        try:
            progress = await (await self._client()).operation(handle)
        except CollectError as error:
            raise actuator_error(error) from error
        if progress.state == "running":
            return Step(Progress.PENDING, "Azure is at it", progress.again_in_s)
        if progress.error is not None:
            return Step(Progress.FAILED, progress.error.detail)
        state = await self._state()
        step = unsettled(state.body, self.id.name)
        if step is not None:
            return step
        if operation.name == "upgrade":
            behind = await self._behind()
            if behind:
                return Step(Progress.PENDING, f"{behind} machines are not yet what the set says")
        if not await self._holds(operation, state):
            return Step(
                Progress.FAILED,
                f"{self.id.name} is {state.size} x {state.count}, {state.power}: somebody else changed it",
            )
        return Step(Progress.DONE, operation.summary, receipt=Receipt(dict(receipt.handle), self._version(state)))

    # -- steps ---------------------------------------------------------------------------------------------------------

    async def _holds(self, operation: Operation, state: MachineState) -> bool:
        """Whether what the step is for holds already."""
        args = operation.args
        match operation.name:
            case "resize":
                return bool(state.size == args["size"])
            case "deallocate":
                return state.power == "deallocated"
            case "start":
                return state.power == "running"
            case "set":
                return self._set_of(args, state) == list(args["to"])
            case "pool":
                return _pool_of(state) == list(args["to"])
        return state.size == args["size"] and await self._behind() == 0

    def _unmoved(self, operation: Operation, state: MachineState) -> None:
        """Raises DRIFT where it is not what the step starts from."""
        args = operation.args
        match operation.name:
            case "resize" if state.size != args["from"]:
                self._drift(f"it is a {state.size} and not a {args['from']}")
            case "set" if self._set_of(args, state) != list(args["from"]):
                self._drift(f"it is {state.count} x {state.size} and not {args['from'][1]} x {args['from'][0]}")
            case "upgrade" if state.size != args["size"]:
                self._drift(f"its model is {state.size} and not {args['size']}")
            case "pool" if _pool_of(state) != list(args["from"]):
                self._drift(f"it has {_pool_of(state)} nodes and not {args['from']}")

    async def _write(self, operation: Operation, state: MachineState, token: str) -> Mapping[str, str]:
        client, args, path = await self._client(), operation.args, self.id.path
        match operation.name:
            case "resize":
                body: Any = {"properties": {"hardwareProfile": {"vmSize": args["size"]}}}
                written = await client.write("PATCH", path, self.id.version, body, token=token, etag=state.etag)
            case "deallocate" | "start":
                written = await client.write("POST", f"{path}/{operation.name}", self.id.version, token=token)
            case "set":
                size, count = args["to"]
                sku = {
                    "name": size,
                    "tier": state.sku.get("tier", "Standard"),
                    "capacity": state.count if args["owned"] else count,
                }
                written = await client.write("PATCH", path, self.id.version, {"sku": sku}, token=token, etag=state.etag)
            case "upgrade":
                if not args["manual"]:
                    return {}
                body = {"instanceIds": ["*"]}
                written = await client.write("POST", f"{path}/manualupgrade", self.id.version, body, token=token)
            case _:
                written = await client.write(
                    "PUT", path, self.id.version, _pool_body(state, args), token=token, etag=state.etag
                )
        return written.handle

    @staticmethod
    def _set_of(args: Args, state: MachineState) -> list[Any]:
        """Size and count; of a set whose count an autoscaler moves, the size alone counts."""
        return [state.size, args["to"][1] if args["owned"] else state.count]

    async def _behind(self) -> int:
        """Machines of a scale set that are not yet what its model says."""
        try:
            rows = [r async for r in (await self._client()).pages(f"{self.id.path}/virtualMachines", COMPUTE_VERSION)]
        except AzureError as error:
            raise actuator_error(error) from error
        return sum(not (row.get("properties") or {}).get("latestModelApplied") for row in rows)

    async def _check_quota(self, operation: Operation, state: MachineState) -> None:
        args = operation.args
        size, count = state.size, state.count or 0
        if operation.name == "resize":
            size = args["size"]
        elif operation.name == "set":
            size, count = args["to"][0], count if args["owned"] else args["to"][1]
        elif operation.name == "pool":
            count = args["to"][-1]
        else:
            return
        wanted = Shape(size=size, replicas=count)
        terms = await self._terms(state, wanted)
        had = state.bounds[1] if state.bounds is not None else state.count or 0
        for need in terms.needs(size, count, state.size, had):
            if need.met is False:
                text = f"{need.wanted:g} {need.what} are needed in {terms.region}, {need.free:g} are free: ask Azure for more quota"
                raise ActuatorError("NO_QUOTA", text, trouble=Trouble.QUOTA)

    # -- parts ---------------------------------------------------------------------------------------------------------

    async def _state(self) -> MachineState:
        try:
            return await self._read(await self._client())
        except CollectError as error:
            raise actuator_error(error) from error

    async def _read(self, client: AzureClient) -> MachineState:
        body = await client.get(self.id.path, self.id.version)
        if self.id.kind == "vm":
            power = power_of(await client.get(f"{self.id.path}/instanceView", COMPUTE_VERSION))
            rows = (await client.get(f"{self.id.path}/vmSizes", COMPUTE_VERSION)).get("value") or ()
            return MachineState(self.id, body, power, frozenset(str(r.get("name")) for r in rows))
        if self.id.kind == "pool":
            cluster = await client.get(self.id.path.rpartition("/agentPools/")[0], self.id.version)
            return MachineState(self.id, {"location": cluster.get("location"), **body})
        path = f"/subscriptions/{client.subscription}/providers/Microsoft.Insights/autoscalesettings"
        try:
            settings = [s async for s in client.pages(path, AUTOSCALE_VERSION)]
        except AzureError as error:
            if error.kind != "denied":
                raise
            return MachineState(self.id, body, owner_known=False)
        mine = [s for s in settings if _looks_after(s, self.id.key)]
        return MachineState(self.id, body, owner=str(mine[0].get("name")) if mine else None)

    async def _sizes(self, state: MachineState) -> Mapping[str, MachineSize]:
        """What the region offers; nothing where that may not be known."""
        try:
            return await machine_sizes(self.context.sessions, await self._client()).sizes(_region(state))
        except AzureError as error:
            if error.kind == "denied":
                return {}
            raise actuator_error(error) from error

    async def _terms(self, state: MachineState, wanted: Shape) -> AzureTerms:
        sizes = await self._sizes(state)
        size = sizes.get(wanted.size or "")
        free: dict[str, float | None] = {}
        if size is not None:
            try:
                asked = machine_sizes(self.context.sessions, await self._client())
                free[size.family] = await asked.free_cores(_region(state), size.family)
            except AzureError as error:
                if error.kind != "denied":
                    raise actuator_error(error) from error
        o = self.options
        return AzureTerms(self.context.endpoint, _region(state), sizes, free, o.change_deadline_s, o.start_deadline_s)

    async def _client(self) -> AzureClient:
        context = self.context
        try:
            return shared(context.sessions, self.id.subscription, self.options, context.http, context.clock)
        except CollectError as error:
            raise actuator_error(error) from error

    def _version(self, state: MachineState) -> str:
        return version_of(state, self._writes.value)

    def _free(self, state: MachineState) -> None:
        if not is_settled(state.body):
            text = f"{self.id.name} is {provisioning(state.body)}: wait until it has ended"
            raise ActuatorError("BUSY", text, trouble=Trouble.CONFLICT, retry_after_s=15.0)

    def _drift(self, what: str) -> NoReturn:
        text = f"somebody else changed {self.id.name}: {what}; plan again"
        raise ActuatorError("STALE_PLAN", text, trouble=Trouble.DRIFT)

    def _known(self, operation: Operation) -> None:
        if operation.name not in _STEPS[self.id.kind]:
            raise ActuatorError("UNKNOWN_OPERATION", f"azure-vm knows no step {operation.name!r} here: plan again")


def _region(state: MachineState) -> str:
    return str(state.body.get("location") or "").replace(" ", "").lower()


def _pool_of(state: MachineState) -> list[int | None]:
    """Its bounds where the cluster's autoscaler sets the count, else its count."""
    return list(state.bounds) if state.bounds is not None else [state.count]


def _pool_body(state: MachineState, args: Args) -> dict[str, Any]:
    """The whole of it, since what a PUT leaves out is lost."""
    kept = {k: v for k, v in state.properties.items() if k not in _POOL_READ_ONLY and v is not None}
    if state.bounds is not None:
        least, most = args["to"]
        return {
            "properties": {
                **kept,
                "minCount": least,
                "maxCount": most,
                "count": min(max(state.count or least, least), most),
            }
        }
    return {"properties": {**kept, "count": args["to"][0]}}


def _looks_after(setting: Mapping[str, Any], key: str) -> bool:
    told = setting.get("properties") or {}
    return str(told.get("targetResourceUri", "")).lower() == key and bool(told.get("enabled", True))


def make(context: SystemContext) -> Actuator:
    """The entry point."""
    return AzureMachines(context)
