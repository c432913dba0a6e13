"""The system ``azure-maas``: a serverless endpoint, which has no capacity to change. Its plans are patches for people, with figures.

A limit is the endpoint's own, so that more of it is another endpoint, and callers that are shared out; or callers are held below it before Azure
refuses them. What another kind of deployment would cost, ``flyball advise`` replays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from pydantic import field_validator

from actuators.arm import actuator_error, digest, provisioning
from actuators.base import (
    Actuator,
    ActuatorError,
    CannotPlan,
    LiveState,
    Receipt,
    Step,
    SystemContext,
    Trouble,
    options_of,
)
from actuators.shape import Operation, Plan, Purchase, Shape
from collectors.azure.client import ML_VERSION, shared
from collectors.azure.credentials import AzureAccount
from collectors.azure.serverless import ServerlessId, model_of
from collectors.window import CollectError

#: What the service alone writes.
_READ_ONLY = ("provisioningState", "endpointState", "inferenceEndpoint", "marketplaceSubscriptionId")
_UNITS = {"tokens_per_minute": ("tpm", "tokens a minute"), "requests_per_minute": ("rpm", "requests a minute")}


class Options(AzureAccount):
    """Settings of the system ``azure-maas``."""

    resource: str = ""
    """The endpoint's resource id, as `az ml serverless-endpoint show --query id` has it."""

    @field_validator("resource")
    @classmethod
    def _an_id(cls, value: str) -> str:
        if value:
            ServerlessId.parse(value)
        return value


class AzureMaas:
    """See ``actuators.base.Actuator``. Its limit is the one that the settings state."""

    system: ClassVar[str] = "azure-maas"
    changes: ClassVar[Sequence[str]] = ()

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.options = options_of(Options, context, self.system)
        if not self.options.resource:
            text = f"endpoint {context.endpoint}, azure-maas: resource: the endpoint's resource id is needed"
            raise ActuatorError("BAD_OPTIONS", text)
        self.poll_s = self.options.poll_s
        self.id = ServerlessId.parse(self.options.resource)

    async def live(self) -> LiveState:
        body = await self._body()
        properties = body.get("properties") or {}
        state = str(properties.get("endpointState", "unknown"))
        shape = Shape(
            purchase=self.context.shape.purchase,
            tier=(body.get("sku") or {}).get("name"),
            region=str(body.get("location", "")).replace(" ", "").lower() or None,
            engine=dict(self.context.shape.engine),
            extra={"model": model_of(body)},
        )
        stated = {k: v for k, v in properties.items() if k not in _READ_ONLY}
        at = (body.get("systemData") or {}).get("lastModifiedAt")
        version = digest({"properties": stated, "sku": body.get("sku"), "at": at, "shape": shape.as_dict()})
        ready = provisioning(body) == "Succeeded" and state in ("Online", "unknown")
        return LiveState(shape, version, ready, detail="" if ready else f"it is {state}, {provisioning(body)}")

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        if wanted == live.shape:
            return self._made(live, wanted, "nothing is done", None)
        before, after = live.shape.purchase, wanted.purchase
        if wanted.with_(purchase=before) != live.shape or after is None:
            raise CannotPlan(
                "READ_ONLY", f"{self.id.name} is a serverless endpoint, which has nothing to change but who calls it"
            )
        if before is None or before.unit != after.unit or after.unit not in _UNITS:
            text = "a serverless endpoint has no provisioned throughput; state its limit (shape.purchase) to plan by it"
            raise CannotPlan("INCOMPLETE_SHAPE", text)
        text = _patch(self.context.endpoint, self.id.name, before, after)
        return self._made(live, wanted, "callers go back to the one endpoint", text)

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        return self._made(live, live.shape, "nothing is done", None)

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        self._refuse(operation)

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        self._refuse(operation)

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        self._refuse(operation)

    async def _body(self) -> Mapping[str, Any]:
        context = self.context
        try:
            client = shared(context.sessions, self.id.subscription, self.options, context.http, context.clock)
            return await client.get(self.id.path, ML_VERSION)
        except CollectError as error:
            raise actuator_error(error) from error

    def _refuse(self, operation: Operation) -> NoReturn:
        text = f"step {operation.name} is refused: a serverless endpoint has nothing to change"
        raise ActuatorError("READ_ONLY", text, trouble=Trouble.DENIED)

    def _made(self, live: LiveState, wanted: Shape, way_back: str, by_hand: str | None) -> Plan:
        return Plan(
            endpoint=self.context.endpoint,
            system=self.system,
            before=live.shape,
            after=wanted,
            version=live.version,
            operations=(),
            restarts=False,
            downtime_s=0.0,
            way_back=way_back,
            by_hand=by_hand,
        )


def _patch(endpoint: str, name: str, before: Purchase, after: Purchase) -> str:
    """What people can do, with figures."""
    short, words = _UNITS[after.unit]
    count = -(-after.amount // before.amount)
    return (
        f"A serverless endpoint has no capacity to change: {name} takes {before.amount:,} {words}, and {after.amount:,} are called for. "
        "Either:\n\n"
        f"1. **More endpoints**: {count} of this model take {count * before.amount:,} {words}. Share callers out by a LiteLLM proxy that holds "
        f"each below its limit (`{short}: {before.amount}` of each deployment); as an endpoint of the system litellm, Flyball tunes it. "
        "Tokens are paid for as before.\n"
        f"2. **Fewer calls at once**: let the proxy hold callers at `{short}: {before.amount}`, or queue what may wait: Azure refuses nothing, "
        "and what lies above it comes later.\n"
        f"3. **Another kind**: `flyball advise --endpoint {endpoint} --offers offers.yaml` replays this traffic on provisioned throughput, "
        "on machines of your own and on a mixture of both, with costs and the rate from which each is cheaper.\n"
    )


def make(context: SystemContext) -> Actuator:
    """The entry point."""
    return AzureMaas(context)
