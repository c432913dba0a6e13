"""The system ``azure-openai``: a model deployment's capacity (tokens per minute or PTU), through Azure Resource Manager.

Azure writes to one deployment of an account at a time, and answers 409 to the next: the account is the lock. It keeps no state: what was done is
read from ARM, so that a step under the same token is done once, also when its answer was lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn, TypeVar

from pydantic import Field, field_validator

from actuators.arm import actuator_error, is_settled, provisioning, unsettled
from actuators.azure_openai import planning
from actuators.azure_openai.planning import CapacityRoom, capacity_of, model_of, shape_of, sku_of, version_of
from actuators.base import (
    Actuator,
    ActuatorError,
    CannotPlan,
    LiveState,
    Progress,
    Receipt,
    Step,
    SystemContext,
    Trouble,
    options_of,
)
from actuators.shape import Operation, Plan, Shape
from collectors.azure.accounts import ModelAccount, ModelAccounts, ModelDeploymentId, TokenRates, model_accounts
from collectors.azure.client import COGNITIVE_VERSION, AzureClient, shared
from collectors.azure.credentials import AzureAccount
from collectors.azure.errors import AzureError
from collectors.window import CollectError

T = TypeVar("T")

#: What lacks there is not known, and stops nothing.
_UNTOLD = ("denied", "missing", "invalid")


class Options(AzureAccount):
    """Settings of the system ``azure-openai``."""

    resource: str = ""
    """The deployment's resource id, as `az cognitiveservices account deployment show --query id` has it."""
    change_deadline_s: float = Field(default=1800.0, gt=0)
    """How long another capacity may take, with the time that other deployments of the account are being written to."""

    @field_validator("resource")
    @classmethod
    def _an_id(cls, value: str) -> str:
        if value:
            ModelDeploymentId.parse(value)
        return value


class AzureOpenAi:
    """See ``actuators.base.Actuator``."""

    system: ClassVar[str] = "azure-openai"
    changes: ClassVar[Sequence[str]] = ("purchase",)

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.options = options_of(Options, context, self.system)
        if not self.options.resource:
            text = f"endpoint {context.endpoint}, azure-openai: resource: the deployment's resource id is needed"
            raise ActuatorError("BAD_OPTIONS", text)
        self.poll_s = self.options.poll_s
        self.id = ModelDeploymentId.parse(self.options.resource)

    # -- reading -------------------------------------------------------------------------------------------------------

    async def live(self) -> LiveState:
        account = await self._account(fresh=False)
        deployment = self._there(account)
        problems = [] if provisioning(deployment) == "Succeeded" else [f"{self.id.name} is {provisioning(deployment)}"]
        if (planning.properties_of(deployment)).get("dynamicThrottlingEnabled"):
            problems.append("dynamic throttling is on: it may be given more than its limit")
        return LiveState(
            shape=shape_of(account, deployment, await self._rates(deployment)),
            version=version_of(deployment),
            ready=provisioning(deployment) == "Succeeded",
            detail="; ".join(problems),
        )

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        account = await self._account(fresh=True)
        deployment = self._there(account)
        if version_of(deployment) != live.version:
            text = f"{self.id.name} was changed since it was last read: it is read anew"
            raise CannotPlan("STALE_LIVE", text, trouble=Trouble.DRIFT)
        return await self._planned(account, deployment, live, wanted)

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        account = await self._account(fresh=True)
        return await self._planned(account, self._there(account), live, plan.before)

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        args, account = self._args(operation), await self._account(fresh=True)
        deployment = self._there(account)
        self._free(account)
        if last is not None and last.leaves is not None and last.leaves != version_of(deployment):
            self._drift("it is not any more what the last step left")
        present = self._capacity(deployment, args)
        room = await self._room(account, model_of(deployment), sku_of(deployment))
        for need in room.needs(args["capacity"] - present, f"{sku_of(deployment)} {model_of(deployment).get('name')}"):
            if need.met is False:
                trouble = Trouble.QUOTA if need.what.startswith("quota") else Trouble.CAPACITY
                text = f"{need.wanted:g} units of {need.what} are needed in {account.region}, {need.free:g} are free"
                raise ActuatorError("NO_QUOTA" if trouble is Trouble.QUOTA else "NO_CAPACITY", text, trouble=trouble)

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        args, account = self._args(operation), await self._account(fresh=True)
        deployment = self._there(account)
        handle: Mapping[str, str] = {}
        if self._capacity(deployment, args) != args["capacity"]:
            self._free(account)
            body = {"sku": {"name": args["sku"], "capacity": args["capacity"]}}
            try:
                written = await (await self._client()).write(
                    "PATCH", self.id.path, COGNITIVE_VERSION, body, token=token
                )
                handle = written.handle
            except CollectError as error:
                raise actuator_error(error) from error
            finally:
                (await self._accounts()).forget(self.id.account_path)
        return Receipt({**handle, "token": token})

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        args = self._args(operation)
        handle = {k: str(v) for k, v in receipt.handle.items() if k in ("status", "result")}
        try:
            progress = await (await self._client()).operation(handle)
        except CollectError as error:
            raise actuator_error(error) from error
        if progress.state == "running":
            return Step(Progress.PENDING, "Azure is at it", progress.again_in_s)
        if progress.error is not None:
            return Step(Progress.FAILED, progress.error.detail)
        account = await self._account(fresh=True)
        deployment = account.deployment(self.id.name)
        step = unsettled(deployment, self.id.name)
        if step is not None or deployment is None:
            return step or Step(Progress.FAILED, f"{self.id.name} is gone")
        if capacity_of(deployment) != args["capacity"]:
            text = f"{self.id.name} has a capacity of {capacity_of(deployment)}: somebody else changed it"
            return Step(Progress.FAILED, text)
        left = Receipt(dict(receipt.handle), version_of(deployment))
        return Step(Progress.DONE, f"its capacity is {args['capacity']}", receipt=left)

    # -- parts ---------------------------------------------------------------------------------------------------------

    async def _planned(
        self, account: ModelAccount, deployment: Mapping[str, Any], live: LiveState, wanted: Shape
    ) -> Plan:
        model = {**model_of(deployment)}
        for key, name in (("name", "model"), ("version", "model_version")):
            if wanted.extra.get(name):
                model[key] = wanted.extra[name]
        room = await self._room(account, model, wanted.tier or sku_of(deployment))
        return planning.plan(
            self.context.endpoint, account, deployment, live.shape, wanted, room, self.options.change_deadline_s
        )

    async def _room(self, account: ModelAccount, model: Mapping[str, Any], sku: str) -> CapacityRoom:
        accounts = await self._accounts()
        offer = await self._told(accounts.offer(account.path, model, sku))
        usage = offer.usage if offer is not None else None
        quota = None if usage is None else await self._told(accounts.quota(account.region, usage))
        return CapacityRoom(offer, quota, await self._told(accounts.available(account.region, model, sku)))

    async def _told(self, asked: Awaitable[T | None]) -> T | None:
        """What may not be read, or is not there, is not known."""
        try:
            return await asked
        except AzureError as error:
            if error.kind in _UNTOLD:
                return None
            raise actuator_error(error) from error

    async def _rates(self, deployment: Mapping[str, Any]) -> TokenRates | None:
        """Of provisioned throughput alone."""
        if planning.unit_of(sku_of(deployment)) != "ptu":
            return None
        return await self._told((await self._accounts()).rates(model_of(deployment), sku_of(deployment)))

    async def _client(self) -> AzureClient:
        context = self.context
        try:
            return shared(context.sessions, self.id.subscription, self.options, context.http, context.clock)
        except CollectError as error:
            raise actuator_error(error) from error

    async def _accounts(self) -> ModelAccounts:
        return model_accounts(self.context.sessions, await self._client())

    async def _account(self, *, fresh: bool) -> ModelAccount:
        accounts = await self._accounts()
        try:
            return await accounts.account(self.id.account_path, fresh=fresh)
        except CollectError as error:
            raise actuator_error(error) from error

    def _there(self, account: ModelAccount) -> Mapping[str, Any]:
        found = account.deployment(self.id.name)
        if found is None:
            text = f"{self.id.account} has no deployment {self.id.name} (any more): correct the resource, or deploy it"
            raise ActuatorError("NO_DEPLOYMENT", text, trouble=Trouble.DRIFT)
        return found

    def _capacity(self, deployment: Mapping[str, Any], args: Mapping[str, Any]) -> int:
        """What it has: as the step found it, or as the step leaves it."""
        present = capacity_of(deployment)
        if sku_of(deployment) != args["sku"] or present not in (args["from"], args["capacity"]):
            self._drift(f"it is {sku_of(deployment)} {present} and not {args['sku']} {args['from']}")
        assert present is not None
        return present

    def _free(self, account: ModelAccount) -> None:
        """Azure writes to one deployment of an account at a time."""
        busy = next((d for d in account.deployments if not is_settled(d)), None)
        if busy is not None:
            text = (
                f"deployment {busy.get('name')} of {self.id.account} is {provisioning(busy)}: wait until it has ended"
            )
            raise ActuatorError("BUSY", text, trouble=Trouble.CONFLICT, retry_after_s=15.0)

    def _drift(self, what: str) -> NoReturn:
        text = f"somebody else changed {self.id.name}: {what}; plan again"
        raise ActuatorError("STALE_PLAN", text, trouble=Trouble.DRIFT)

    def _args(self, operation: Operation) -> Mapping[str, Any]:
        if operation.name != "capacity":
            raise ActuatorError("UNKNOWN_OPERATION", f"azure-openai knows no step {operation.name!r}: plan again")
        return operation.args


def make(context: SystemContext) -> Actuator:
    """The entry point."""
    return AzureOpenAi(context)
