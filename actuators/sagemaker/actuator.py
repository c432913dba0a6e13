"""The system ``sagemaker``: a real-time endpoint's instances, weights, instance type, or the bounds of Application Auto Scaling.

SageMaker has no etag, and takes one change of an endpoint at a time. A step reads and compares right before it writes, so that one under the
same token is done once also where its answer was lost; a configuration that is made twice is the same, by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from actuators.aws import actuator_error
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
from actuators.sagemaker import planning
from actuators.sagemaker.planning import EndpointTerms
from actuators.shape import Operation, Plan, Shape
from actuators.writes import WriteCount
from collectors.aws.client import AwsAccount, AwsClient, shared
from collectors.aws.endpoints import (
    DIMENSION,
    SageMakerEndpoint,
    SageMakerInventory,
    SageMakerVariant,
    inventory,
)
from collectors.aws.errors import AwsError
from collectors.aws.sizes import InstanceType, catalogue

_STEPS = ("bounds", "config", "scale", "update")
_SOON_S = 15.0
_FAILED = ("Failed", "UpdateRollbackFailed", "OutOfService")


class Options(AwsAccount):
    """Settings of the system ``sagemaker``."""

    endpoint: str | None = None
    """The endpoint's name. Default: the endpoint's name in the settings."""
    variant: str | None = None
    """The production variant that is sized. Default: the only one."""
    deployment: dict[str, Any] | None = None
    """SageMaker's own `DeploymentConfig` for another instance type, such as canary traffic and alarms that roll it back. Default: SageMaker's
    own, all traffic at once when the new instances serve."""
    update_s: float = Field(default=3600.0, gt=0)
    """Seconds that an update may take: capacity, images, weights."""


class SageMakerActuator:
    """See ``actuators.base.Actuator``."""

    system: ClassVar[str] = planning.SYSTEM
    changes: ClassVar[Sequence[str]] = ("replicas", "size", "autoscaling", "engine.*")
    poll_s = 30.0

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.options = options_of(Options, context, "sagemaker")
        self.endpoint = self.options.endpoint or context.endpoint
        self._writes = WriteCount(context.state_dir / "sagemaker-writes.json")

    async def live(self) -> LiveState:
        endpoint, variant = await self._found(fresh=False)
        sizes = await self._sizes(variant)
        settled = endpoint.status == "InService"
        ready = settled and (variant.serverless or variant.current == variant.desired)
        said = [] if settled else [f"{endpoint.name} is {endpoint.status}"]
        if endpoint.failure:
            said.append(endpoint.failure)
        if settled and not ready:
            said.append(f"{variant.current} of {variant.desired} instances serve")
        if endpoint.targets is None:
            said.append("scalable targets may not be read, so who owns the count is not known")
        return LiveState(
            planning.shape_of(endpoint, variant, sizes),
            self._version(endpoint, variant),
            ready=ready,
            serving=variant.current,
            owner=planning.owner_of(endpoint, variant),
            detail="; ".join(said),
        )

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        endpoint, variant = await self._found(fresh=True)
        self._same(endpoint, variant, live)
        return planning.plan(self._terms(), endpoint, variant, live, wanted)

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        endpoint, variant = await self._found(fresh=True)
        if "config" in plan.undo:
            return planning.back(self._terms(), endpoint, variant, plan, live)
        return planning.plan(self._terms(), endpoint, variant, live, plan.before)

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        _known(operation)
        endpoint, variant = await self._found(fresh=True)
        self._free(operation, endpoint)
        self._unmoved(operation, endpoint, variant, last)

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        _known(operation)
        endpoint, variant = await self._found(fresh=True)
        if not await self._is_so(operation, endpoint):
            self._free(operation, endpoint)
            self._unmoved(operation, endpoint, variant, last)
            try:
                await self._write(operation, endpoint)
            except AwsError as error:
                raise actuator_error(error) from error
            self._writes.add()
            (await self._inventory()).forget()
        return Receipt({"step": operation.name, "token": token})

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        _known(operation)
        endpoint, variant = await self._found(fresh=True)
        if operation.name in ("scale", "update"):
            if endpoint.status in _FAILED:
                text = f"{endpoint.name} is {endpoint.status}: {endpoint.failure or 'SageMaker does not say why'}"
                return Step(Progress.FAILED, text)
            if endpoint.status != "InService":
                return Step(Progress.PENDING, f"{endpoint.name} is {endpoint.status}", again_in_s=_SOON_S)
        if not await self._is_so(operation, endpoint):
            why = endpoint.failure or "somebody else has set it back"
            return Step(Progress.FAILED, f"{endpoint.name} is not what the step made it: {why}")
        waiting = [f"{v.current} of {v.desired} serve" for v in endpoint.variants if v.current != v.desired]
        if operation.name in ("scale", "update") and waiting:
            return Step(Progress.PENDING, "; ".join(waiting), again_in_s=_SOON_S)
        left = Receipt(dict(receipt.handle), leaves=self._version(endpoint, variant))
        return Step(Progress.DONE, operation.summary, receipt=left)

    # inside

    async def _client(self) -> AwsClient:
        context = self.context
        try:
            return shared(context.sessions, AwsAccount.of(self.options), context.http, context.clock)
        except AwsError as error:
            raise actuator_error(error) from error

    async def _inventory(self) -> SageMakerInventory:
        return inventory(self.context.sessions, await self._client())

    async def _found(self, *, fresh: bool) -> tuple[SageMakerEndpoint, SageMakerVariant]:
        try:
            endpoint = await (await self._inventory()).endpoint(self.endpoint, fresh=fresh)
        except AwsError as error:
            raise actuator_error(error) from error
        variant = endpoint.variant(self.options.variant)
        if variant is None:
            there = ", ".join(v.name for v in endpoint.variants) or "none"
            text = f"endpoint {endpoint.name}: set actuator.options.variant; there are: {there}"
            raise ActuatorError("NO_VARIANT", text)
        return endpoint, variant

    async def _sizes(self, variant: SageMakerVariant) -> Mapping[str, InstanceType]:
        if variant.size is None:
            return {}
        try:
            return await catalogue(self.context.sessions, await self._client()).types([variant.size])
        except AwsError as error:
            raise actuator_error(error) from error

    def _terms(self) -> EndpointTerms:
        return EndpointTerms(self.context.endpoint, self.options.update_s)

    def _version(self, endpoint: SageMakerEndpoint, variant: SageMakerVariant) -> str:
        return planning.version_of(endpoint, variant, self._writes.value)

    def _same(self, endpoint: SageMakerEndpoint, variant: SageMakerVariant, live: LiveState) -> None:
        if self._version(endpoint, variant) != live.version:
            text = f"{endpoint.name} was changed since it was last read: it is read anew"
            raise CannotPlan("STALE_LIVE", text, trouble=Trouble.DRIFT)

    def _free(self, operation: Operation, endpoint: SageMakerEndpoint) -> None:
        """SageMaker refuses a change of an endpoint that changes."""
        if operation.name in ("scale", "update") and endpoint.status != "InService":
            text = f"{endpoint.name} is {endpoint.status} {endpoint.failure}".rstrip()
            passes = endpoint.status in ("Creating", "Updating", "SystemUpdating", "RollingBack")
            trouble = Trouble.CONFLICT if passes else Trouble.INVALID
            raise ActuatorError("BUSY", f"{text}: wait", trouble=trouble, retry_after_s=_SOON_S)

    def _unmoved(
        self, operation: Operation, endpoint: SageMakerEndpoint, variant: SageMakerVariant, last: Receipt | None
    ) -> None:
        expected = last.leaves if last is not None else operation.args.get("version")
        if expected is not None and self._version(endpoint, variant) != expected:
            text = f"somebody changed {endpoint.name} meanwhile; plan again"
            raise ActuatorError("STALE_PLAN", text, trouble=Trouble.DRIFT)

    async def _is_so(self, operation: Operation, endpoint: SageMakerEndpoint) -> bool:
        """Whether what the step writes is there already, or on its way."""
        args = operation.args
        match operation.name:
            case "bounds":
                target = next((t for t in (endpoint.targets or {}).values() if t["ResourceId"] == args["resource"]), {})
                return (target.get("MinCapacity"), target.get("MaxCapacity")) == (args["least"], args["most"])
            case "config":
                return await self._config_there(str(args["config"]))
            case "scale":
                now = {v.name: v for v in endpoint.variants}
                return all(
                    (one := now.get(e["VariantName"])) is not None
                    and e.get("DesiredInstanceCount", one.desired) == one.desired
                    and e.get("DesiredWeight", one.weight) == one.weight
                    for e in args["variants"]
                )
        return (endpoint.pending_config or endpoint.config_name) == str(args["config"])

    async def _config_there(self, name: str) -> bool:
        try:
            await (await self._client()).call("sagemaker", "DescribeEndpointConfig", EndpointConfigName=name)
        except AwsError as error:
            if error.kind == "missing":
                return False
            raise actuator_error(error) from error
        return True

    async def _write(self, operation: Operation, endpoint: SageMakerEndpoint) -> None:
        client, args = await self._client(), operation.args
        match operation.name:
            case "bounds":
                await client.call(
                    "application-autoscaling",
                    "RegisterScalableTarget",
                    ServiceNamespace="sagemaker",
                    ResourceId=args["resource"],
                    ScalableDimension=DIMENSION,
                    MinCapacity=args["least"],
                    MaxCapacity=args["most"],
                )
            case "scale":
                await client.call(
                    "sagemaker",
                    "UpdateEndpointWeightsAndCapacities",
                    EndpointName=endpoint.name,
                    DesiredWeightsAndCapacities=list(args["variants"]),
                )
            case "config":
                source = await client.call("sagemaker", "DescribeEndpointConfig", EndpointConfigName=args["copy_of"])
                if planning.digest(source) != args["digest"]:
                    text = f"configuration {args['copy_of']} was made anew meanwhile; plan again"
                    raise ActuatorError("STALE_PLAN", text, trouble=Trouble.DRIFT)
                members = client.members("sagemaker", "CreateEndpointConfig")
                body = planning.copied(source, str(args["config"]), args["changes"], members)
                await client.call("sagemaker", "CreateEndpointConfig", **body)
            case "update":
                more: dict[str, Any] = {"DeploymentConfig": self.options.deployment} if self.options.deployment else {}
                await client.call(
                    "sagemaker",
                    "UpdateEndpoint",
                    EndpointName=endpoint.name,
                    EndpointConfigName=args["config"],
                    **more,
                )


def _known(operation: Operation) -> None:
    if operation.name not in _STEPS:
        raise ActuatorError("UNKNOWN_OPERATION", f"sagemaker knows no step {operation.name!r}: plan again")


def make(context: SystemContext) -> Actuator:
    """The entry point. Raises ActuatorError ``BAD_OPTIONS``."""
    return SageMakerActuator(context)
