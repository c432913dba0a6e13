"""The system ``ec2``: an instance's type (stop, change, start), or an Auto Scaling group's count or bounds.

Each step reads and compares before it writes. Before it, ``clear`` asks EC2 itself by a dry run whether Flyball may.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from actuators.aws import actuator_error
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
from actuators.ec2 import planning
from actuators.ec2.planning import MachineTerms, state_of
from actuators.shape import Operation, Plan, Shape
from actuators.writes import WriteCount
from collectors.aws.client import AwsAccount, AwsClient, shared
from collectors.aws.errors import AwsError
from collectors.aws.sizes import InstanceType, catalogue

Body = Mapping[str, Any]
_SOON_S = 5.0
_CALLS = {"stop": "StopInstances", "type": "ModifyInstanceAttribute", "start": "StartInstances"}


class Options(AwsAccount):
    """Settings of the system ``ec2``: one of ``instance`` and ``group``."""

    instance: str = Field(default="", pattern=r"^(i-[0-9a-f]+)?$")
    """An instance's id."""
    group: str = ""
    """An Auto Scaling group's name."""
    stop_s: float = Field(default=600.0, gt=0)
    """Seconds that an instance may take to stop."""
    start_s: float = Field(default=1200.0, gt=0)
    """Seconds that it may take to start and to pass EC2's own checks. Whether the model answers is seen by its metrics."""
    scale_s: float = Field(default=1800.0, gt=0)
    """Seconds that more or fewer instances of a group may take."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.instance and self.group:
            raise ValueError("name an instance or a group, and not both")
        return self


class Ec2Actuator:
    """See ``actuators.base.Actuator``."""

    system: ClassVar[str] = planning.SYSTEM
    changes: ClassVar[Sequence[str]] = ("size", "replicas", "autoscaling")
    poll_s = 30.0

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.options = options_of(Options, context, "ec2")
        if not (self.options.instance or self.options.group):
            text = f"endpoint {context.endpoint}, ec2: name an instance or a group"
            raise ActuatorError("BAD_OPTIONS", text)
        self._writes = WriteCount(context.state_dir / "ec2-writes.json")

    async def live(self) -> LiveState:
        if self.options.instance:
            return await self._instance_live(await self._instance())
        group, policies = await self._group()
        size = planning.size_of(group)
        shape = planning.group_shape(group, policies, await self._sizes(size))
        serving, wanted = planning.serving_of(group), int(group["DesiredCapacity"])
        owner = None
        if policies:
            owner = Owner("asg-policy", str(policies[0].get("PolicyName")), frozenset({"replicas"}))
        text = "" if serving == wanted else f"{serving} of {wanted} instances are in service"
        return LiveState(
            shape, self._version(group, policies), ready=serving == wanted, serving=serving, owner=owner, detail=text
        )

    async def _instance_live(self, instance: Body) -> LiveState:
        size, state = str(instance["InstanceType"]), state_of(instance)
        shape = planning.with_size(size, await self._sizes(size), replicas=1)
        up, text = await self._up(instance)
        return LiveState(shape, self._version(instance), ready=up, serving=1 if state == "running" else 0, detail=text)

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        if self.options.instance:
            return planning.resize(self._terms(), await self._instance(), live, wanted)
        group, _ = await self._group()
        return planning.scale(self._terms(), group, live, wanted)

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        """The state that it is in says all: a stopped instance is only made what it was, and started."""
        return await self.plan(live, plan.before)

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        there = await self._there(operation)
        self._unmoved(operation, there, last)
        if operation.name in _CALLS:
            await self._allowed(operation)

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        there = await self._there(operation)
        if not _is_so(operation, there[0]):
            self._unmoved(operation, there, last)
            try:
                await self._write(operation)
            except AwsError as error:
                raise actuator_error(error) from error
            self._writes.add()
            there = await self._there(operation)
        return Receipt({"step": operation.name, "token": token}, leaves=self._version(*there))

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        body, *_ = await self._there(operation)
        match operation.name:
            case "stop":
                if state_of(body) == "stopped":
                    return Step(Progress.DONE, "it is stopped")
                return Step(Progress.PENDING, f"it is {state_of(body)}", again_in_s=_SOON_S)
            case "start":
                up, text = await self._up(body)
                if up:
                    return Step(Progress.DONE, f"a {body['InstanceType']} runs")
                if state_of(body) == "stopped":
                    why = (body.get("StateReason") or {}).get("Message") or "EC2 does not say why"
                    return Step(Progress.FAILED, f"it is stopped again: {why}")
                return Step(Progress.PENDING, text, again_in_s=_SOON_S)
        if not _is_so(operation, body):
            return Step(Progress.FAILED, "somebody else has set it back")
        if operation.name == "count" and planning.serving_of(body) != operation.args["count"]:
            text = f"{planning.serving_of(body)} of {operation.args['count']} are in service"
            return Step(Progress.PENDING, text, again_in_s=_SOON_S)
        return Step(Progress.DONE, operation.summary)

    # inside

    def _client(self) -> AwsClient:
        context = self.context
        try:
            return shared(context.sessions, AwsAccount.of(self.options), context.http, context.clock)
        except AwsError as error:
            raise actuator_error(error) from error

    async def _items(self, service: str, operation: str, key: str, **parameters: Any) -> list[Any]:
        try:
            return await self._client().items(service, operation, key, **parameters)
        except AwsError as error:
            raise actuator_error(error) from error

    async def _instance(self) -> Body:
        rows = await self._items("ec2", "DescribeInstances", "Reservations", InstanceIds=[self.options.instance])
        found = [i for r in rows for i in r.get("Instances") or ()]
        if not found or state_of(found[0]) in ("terminated", "shutting-down"):
            raise ActuatorError("NO_INSTANCE", f"{self.options.instance} is not there any more", trouble=Trouble.DRIFT)
        instance: Body = found[0]
        return instance

    async def _group(self) -> tuple[Body, list[Any]]:
        name = self.options.group
        rows = await self._items(
            "autoscaling", "DescribeAutoScalingGroups", "AutoScalingGroups", AutoScalingGroupNames=[name]
        )
        if not rows:
            raise ActuatorError("NO_GROUP", f"there is no Auto Scaling group {name}", trouble=Trouble.DRIFT)
        policies = await self._items("autoscaling", "DescribePolicies", "ScalingPolicies", AutoScalingGroupName=name)
        return rows[0], [p for p in policies if p.get("Enabled", True)]

    async def _there(self, operation: Operation) -> tuple[Any, ...]:
        """What the step is about. Raises ``ActuatorError`` on one that is not known."""
        if operation.name in _CALLS and self.options.instance:
            return (await self._instance(),)
        if operation.name in ("count", "bounds") and self.options.group:
            return await self._group()
        raise ActuatorError("UNKNOWN_OPERATION", f"ec2 knows no step {operation.name!r} here: plan again")

    async def _sizes(self, size: str | None) -> Mapping[str, InstanceType]:
        if size is None:
            return {}
        try:
            return await catalogue(self.context.sessions, self._client()).types([size])
        except AwsError as error:
            raise actuator_error(error) from error

    async def _up(self, instance: Body) -> tuple[bool, str]:
        """Whether it runs, and EC2's checks are passed or none of them fails; and what it is, for people."""
        if state_of(instance) != "running":
            return False, f"{instance['InstanceId']} is {state_of(instance)}"
        rows = await self._items(
            "ec2", "DescribeInstanceStatus", "InstanceStatuses", InstanceIds=[self.options.instance]
        )
        checks = [str((row.get(k) or {}).get("Status")) for row in rows for k in ("InstanceStatus", "SystemStatus")]
        waiting = [c for c in checks if c not in ("ok", "not-applicable")]
        return not waiting, f"{instance['InstanceId']} runs; EC2's checks: {', '.join(waiting)}" if waiting else ""

    def _terms(self) -> MachineTerms:
        o = self.options
        return MachineTerms(self.context.endpoint, o.stop_s, o.start_s, o.scale_s)

    def _version(self, body: Body, policies: Sequence[Body] | None = None) -> str:
        """Of what is configured; not of the count, where policies set it."""
        if policies is None:
            return planning.version_of(self._writes.value, body["InstanceId"], body["InstanceType"])
        named = [[p.get("PolicyName"), p.get("TargetTrackingConfiguration")] for p in policies]
        count = None if policies else body["DesiredCapacity"]
        parts = [body[k] for k in ("AutoScalingGroupName", "MinSize", "MaxSize", "CreatedTime")]
        return planning.version_of(self._writes.value, parts, count, named)

    def _unmoved(self, operation: Operation, there: tuple[Any, ...], last: Receipt | None) -> None:
        expected = last.leaves if last is not None else operation.args.get("version")
        if expected is not None and self._version(*there) != expected:
            what = self.options.instance or self.options.group
            raise ActuatorError("STALE_PLAN", f"somebody changed {what} meanwhile; plan again", trouble=Trouble.DRIFT)

    async def _allowed(self, operation: Operation) -> None:
        """By a dry run, whose good end is an error too."""
        try:
            await self._call(operation, DryRun=True)
        except AwsError as error:
            if error.code == "DryRunOperation":
                return
            if error.kind in ("denied", "credentials"):
                raise actuator_error(error) from error
            # a dry run may look at the state too, which the step before has not brought about yet

    async def _call(self, operation: Operation, **more: Any) -> None:
        args, one = operation.args, [operation.args["instance"]]
        of = {"InstanceId": one[0], "InstanceType": {"Value": args["type"]}} if operation.name == "type" else {}
        await self._client().call("ec2", _CALLS[operation.name], **(of or {"InstanceIds": one}), **more)

    async def _write(self, operation: Operation) -> None:
        args = operation.args
        if operation.name in _CALLS:
            await self._call(operation)
            return
        change = (
            {"DesiredCapacity": args["count"]}
            if operation.name == "count"
            else {"MinSize": args["least"], "MaxSize": args["most"]}
        )
        await self._client().call("autoscaling", "UpdateAutoScalingGroup", AutoScalingGroupName=args["group"], **change)


def _is_so(operation: Operation, body: Body) -> bool:
    """Whether what the step writes is there already, or on its way."""
    args = operation.args
    match operation.name:
        case "stop":
            return state_of(body) in ("stopping", "stopped")
        case "type":
            return bool(body["InstanceType"] == args["type"])
        case "start":
            return state_of(body) in ("pending", "running")
        case "count":
            return bool(body["DesiredCapacity"] == args["count"])
    return (body["MinSize"], body["MaxSize"]) == (args["least"], args["most"])


def make(context: SystemContext) -> Actuator:
    """The entry point. Raises ActuatorError ``BAD_OPTIONS``."""
    return Ec2Actuator(context)
