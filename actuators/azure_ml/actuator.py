"""The system ``azure-ml``: a managed online endpoint's count, VM size and autoscaling bounds, through Azure Resource Manager.

It keeps no state: what was done is read from ARM, so that a step under the same token is done once, also when its answer was lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator

from actuators.arm import actuator_error, provisioning, unsettled
from actuators.azure_ml import planning
from actuators.azure_ml.planning import Pace, Region
from actuators.azure_ml.spec import (
    MARK,
    Body,
    autoscaling_of,
    busy,
    count_of,
    default_of,
    main_of,
    name_of,
    owner_of,
    properties_of,
    setting_of,
    shape_of,
    size_of,
    target_of,
    version_of,
)
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
)
from actuators.shape import Operation, Plan, Shape
from collectors.azure.client import AUTOSCALE_VERSION, ML_VERSION, AcceptedWrite, AzureClient, shared
from collectors.azure.credentials import AzureAccount
from collectors.azure.inventory import EndpointState, inventory
from collectors.azure.names import EndpointId
from collectors.azure.sizes import VmSize, cores_needed, size_catalogue
from collectors.window import CollectError


class Options(AzureAccount):
    """Settings of the system ``azure-ml``."""

    resource: str = ""
    """The endpoint's resource id, as `az ml online-endpoint show --query id` has it."""
    smoke_test: dict[str, Any] | None = None
    """JSON that is posted to a new deployment, by header, before it gets traffic. Default: none, and Azure's own probes must do."""
    traffic_steps: tuple[int, ...] = (10, 50, 100)
    """Percent of the traffic that a new deployment gets, step by step; the last must be 100."""
    hold_s: float = Field(default=300.0, ge=0)
    """Seconds between two such steps, in which the objective is judged. Keep it above the lateness of Azure's metrics."""
    create_deadline_s: float = Field(default=3600.0, gt=0)
    """How long a new deployment may take. Images are pulled and models loaded."""
    scale_deadline_s: float = Field(default=1800.0, gt=0)
    """How long more or fewer instances may take."""
    traffic_deadline_s: float = Field(default=600.0, gt=0)
    """How long a change of traffic may take."""
    delete_deadline_s: float = Field(default=1800.0, gt=0)
    """How long a deletion may take."""

    @field_validator("traffic_steps")
    @classmethod
    def _rises(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or value[-1] != 100 or list(value) != sorted(set(value)) or value[0] < 1:
            raise ValueError(f"traffic_steps must rise from 1 or more to 100, not {value}")
        return value

    @field_validator("resource")
    @classmethod
    def _an_id(cls, value: str) -> str:
        if value:
            EndpointId.parse(value)
        return value


Args = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Kind:
    """The three sides of one kind of step: may it be done, do it, is it done."""

    clear: Callable[[Args, EndpointState], Awaitable[None]]
    do: Callable[[Args, str], Awaitable[Mapping[str, str]]]
    done: Callable[[Args, EndpointState], Step]


class AzureMl:
    """See ``actuators.base.Actuator``."""

    system: ClassVar[str] = "azure-ml"
    changes: ClassVar[Sequence[str]] = ("replicas", "size", "autoscaling")

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.options = _options(context)
        self.poll_s = self.options.poll_s
        self.id = EndpointId.parse(self.options.resource)
        self._steps = {
            "scale": _Kind(self._clear_scale, self._do_scale, self._done_scale),
            "create": _Kind(self._clear_create, self._do_create, self._done_create),
            "smoke": _Kind(self._clear_smoke, self._do_smoke, self._done_smoke),
            "traffic": _Kind(self._clear_traffic, self._do_traffic, self._done_traffic),
            "delete": _Kind(self._clear_delete, self._do_delete, self._done_delete),
            "target": _Kind(self._clear_target, self._do_target, self._done_target),
            "bounds": _Kind(self._clear_bounds, self._do_bounds, self._done_bounds),
        }

    # -- reading -------------------------------------------------------------------------------------------------------

    async def live(self) -> LiveState:
        state = await self._state(fresh=False)
        main = main_of(state)
        if main is None:
            text = (
                f"{self.id.name} has {len(state.deployments)} deployments, and none takes its traffic: give it to one"
            )
            raise ActuatorError("NO_DEPLOYMENT", text)
        under_way, setting = busy(state), setting_of(state, main)
        settled = provisioning(main) == "Succeeded"
        problems = [under_way] if under_way else []
        if not settled and not under_way:
            problems.append(f"deployment {name_of(main)} is {provisioning(main)}")
        if len(state.traffic) > 1:
            problems.append("traffic is split: " + ", ".join(f"{n} {s} %" for n, s in state.traffic.items()))
        if state.autoscale is None:
            problems.append("autoscale settings may not be read, so who owns the count is not known")
        return LiveState(
            shape=shape_of(state, main, await self._sizes(state)),
            version=version_of(state),
            ready=settled and under_way is None and len(state.traffic) <= 1,
            serving=count_of(main) if settled else None,
            owner=owner_of(setting),
            detail="; ".join(problems),
        )

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        state = await self._state(fresh=True)
        if version_of(state) != live.version:
            self._changed()
            text = f"{self.id.name} was changed since it was last read: it is read anew"
            raise CannotPlan("STALE_LIVE", text, trouble=Trouble.DRIFT)
        return planning.plan(self.context.endpoint, state, wanted, self._pace(), await self._region(state))

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        state = await self._state(fresh=True)
        if plan.undo:
            way = planning.bounds_back if "bounds" in plan.undo else planning.back
            found = way(self.context.endpoint, state, plan, self._pace(), await self._region(state))
            if found is not None:
                return found
        return planning.plan(self.context.endpoint, state, plan.before, self._pace(), await self._region(state))

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        kind = self._kind(operation)
        state = await self._state(fresh=True)
        self._free(state)
        if last is not None and last.leaves is not None and last.leaves != version_of(state):
            self._drift("it is not any more what the last step left")
        await kind.clear(operation.args, state)

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        kind = self._kind(operation)
        try:
            handle = await kind.do(operation.args, token)
        except CollectError as error:
            raise actuator_error(error) from error
        finally:
            self._changed()
        return Receipt({**handle, "token": token})

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        kind = self._kind(operation)
        handle = {k: str(v) for k, v in receipt.handle.items() if k in ("status", "result")}
        try:
            progress = await (await self._client()).operation(handle)
        except CollectError as error:
            raise actuator_error(error) from error
        if progress.state == "running":
            return Step(Progress.PENDING, "Azure is at it", progress.again_in_s)
        if progress.error is not None:
            return Step(Progress.FAILED, progress.error.detail)
        state = await self._state(fresh=True)
        ended = kind.done(operation.args, state)
        if ended.progress is Progress.DONE:
            self._changed()
            return Step(Progress.DONE, ended.detail, receipt=Receipt(dict(receipt.handle), version_of(state)))
        return ended

    # -- count ---------------------------------------------------------------------------------------------------------

    async def _clear_scale(self, args: Args, state: EndpointState) -> None:
        deployment = self._there(state, args["deployment"])
        if count_of(deployment) not in (args["from"], args["capacity"]):
            self._drift(f"{args['deployment']} has {count_of(deployment)} instances and not {args['from']}")
        if setting_of(state, deployment) is not None:
            self._drift(f"an autoscale setting owns the count of {args['deployment']} now")
        size = size_of(deployment) or ""
        known = (await self._region(state, fresh=True)).sizes.get(size)
        if known is not None:
            more = cores_needed(known, args["capacity"]) - cores_needed(known, count_of(deployment) or 0)
            await self._check_quota(state, size, more)

    async def _do_scale(self, args: Args, token: str) -> Mapping[str, str]:
        state = await self._read()
        deployment = self._there(state, args["deployment"])
        if count_of(deployment) == args["capacity"]:
            return _under_way(deployment)
        if count_of(deployment) != args["from"]:
            self._drift(f"{args['deployment']} has {count_of(deployment)} instances and not {args['from']}")
        self._free(state)
        body = {"tags": dict(deployment.get("tags") or {}), "sku": {"name": "Default", "capacity": args["capacity"]}}
        return (await self._write("PATCH", self.id.deployment(args["deployment"]), body, token)).handle

    def _done_scale(self, args: Args, state: EndpointState) -> Step:
        deployment = state.deployment(args["deployment"])
        step = unsettled(deployment, args["deployment"])
        if step is None and deployment is not None and count_of(deployment) != args["capacity"]:
            return Step(
                Progress.FAILED, f"{args['deployment']} has {count_of(deployment)} instances: somebody else changed it"
            )
        return step or Step(Progress.DONE, f"{args['capacity']} instances serve")

    # -- size: a second deployment -------------------------------------------------------------------------------------

    async def _clear_create(self, args: Args, state: EndpointState) -> None:
        source = self._there(state, args["copy_of"])
        if planning.source_digest(source) != args["digest"]:
            self._drift(f"{args['copy_of']} was changed since")
        there = state.deployment(args["deployment"])
        if there is not None and not self._ours(there, args):
            self._drift(f"there is a deployment {args['deployment']} already")
        if there is None:
            known = (await self._region(state, fresh=True)).sizes.get(args["size"])
            if known is not None:
                await self._check_quota(state, args["size"], cores_needed(known, args["capacity"]))

    async def _do_create(self, args: Args, token: str) -> Mapping[str, str]:
        state = await self._read()
        there = state.deployment(args["deployment"])
        if there is not None:
            if not self._ours(there, args):
                self._drift(f"there is a deployment {args['deployment']} already")
            return _under_way(there)
        source = self._there(state, args["copy_of"])
        if planning.source_digest(source) != args["digest"]:
            self._drift(f"{args['copy_of']} was changed since")
        self._free(state)
        body = planning.copy_body(source, args["size"], args["capacity"])
        return (await self._write("PUT", self.id.deployment(args["deployment"]), body, token)).handle

    def _done_create(self, args: Args, state: EndpointState) -> Step:
        step = unsettled(state.deployment(args["deployment"]), args["deployment"])
        return step or Step(Progress.DONE, f"{args['capacity']} x {args['size']} wait for traffic")

    @staticmethod
    def _ours(deployment: Body, args: Args) -> bool:
        marked = (deployment.get("tags") or {}).get(MARK[0]) == MARK[1]
        return marked and (size_of(deployment), count_of(deployment)) == (args["size"], args["capacity"])

    # -- smoke test ----------------------------------------------------------------------------------------------------

    async def _clear_smoke(self, args: Args, state: EndpointState) -> None:
        self._serving(state, args["deployment"])

    async def _do_smoke(self, args: Args, token: str) -> Mapping[str, str]:
        """One request to the new deployment alone. Until it answers well the step is tried again, and fails at its deadline."""
        state = await self._read()
        url = str(properties_of(state.body).get("scoringUri") or "")
        if (urlsplit(url).scheme, urlsplit(url).netloc) != (
            urlsplit(self.context.url).scheme,
            urlsplit(self.context.url).netloc,
        ):
            text = f"the endpoint answers at {url}, and the settings' url is {self.context.url}: the key is sent to no other place"
            raise ActuatorError("WRONG_URL", text)
        headers = {**self.context.headers, "azureml-model-deployment": args["deployment"]}
        try:
            answer = await self.context.http("POST", url, headers=headers, json=self.options.smoke_test, timeout_s=60.0)
        except (OSError, ValueError) as error:
            raise ActuatorError("SMOKE_TEST", f"{args['deployment']}: {error}", trouble=Trouble.UNREACHABLE) from error
        if answer.status in (401, 403):
            raise ActuatorError(
                "SMOKE_TEST", f"{url} refuses the endpoint's api_key: {answer.status}", trouble=Trouble.DENIED
            )
        if answer.status >= 300:
            said = " ".join(answer.body[:200].decode(errors="replace").split())
            text = f"{args['deployment']} answered {answer.status} to the smoke test: {said}"
            raise ActuatorError("SMOKE_TEST", text, trouble=Trouble.UNREACHABLE, retry_after_s=10.0)
        return {}

    def _done_smoke(self, args: Args, state: EndpointState) -> Step:
        return Step(Progress.DONE, f"{args['deployment']} answers")

    # -- traffic -------------------------------------------------------------------------------------------------------

    async def _clear_traffic(self, args: Args, state: EndpointState) -> None:
        for name, share in args["to"].items():
            if share:
                self._serving(state, name)
        if state.traffic not in (_taken(args["from"]), _taken(args["to"])):
            self._drift(f"traffic is {state.traffic} and not {args['from']}")

    async def _do_traffic(self, args: Args, token: str) -> Mapping[str, str]:
        state = await self._read()
        if state.traffic == _taken(args["to"]):
            return {}
        if state.traffic != _taken(args["from"]):
            self._drift(f"traffic is {state.traffic} and not {args['from']}")
        self._free(state)
        body = planning.traffic_body(state.body, args["to"])
        return (await self._write("PUT", self.id.path, body, token)).handle

    def _done_traffic(self, args: Args, state: EndpointState) -> Step:
        step = unsettled(state.body, f"endpoint {self.id.name}")
        if step is None and state.traffic != _taken(args["to"]):
            return Step(Progress.FAILED, f"traffic is {state.traffic}: somebody else changed it")
        return step or Step(Progress.DONE, f"traffic is {state.traffic}")

    # -- deletion ------------------------------------------------------------------------------------------------------

    async def _clear_delete(self, args: Args, state: EndpointState) -> None:
        if state.traffic.get(args["deployment"]):
            self._drift(f"{args['deployment']} takes {state.traffic[args['deployment']]} % of the traffic")

    async def _do_delete(self, args: Args, token: str) -> Mapping[str, str]:
        state = await self._read()
        deployment = state.deployment(args["deployment"])
        if deployment is None:
            return {}
        if provisioning(deployment) == "Deleting":
            return _under_way(deployment)
        self._free(state)
        await self._clear_delete(args, state)
        return (await self._write("DELETE", self.id.deployment(args["deployment"]), None, token)).handle

    def _done_delete(self, args: Args, state: EndpointState) -> Step:
        deployment = state.deployment(args["deployment"])
        if deployment is None:
            return Step(Progress.DONE, f"{args['deployment']} is gone")
        if provisioning(deployment) == "Deleting":
            return Step(Progress.PENDING, "it is being deleted")
        return Step(Progress.FAILED, f"{args['deployment']} is still there, {provisioning(deployment)}")

    # -- an autoscaler's target ----------------------------------------------------------------------------------------

    async def _clear_target(self, args: Args, state: EndpointState) -> None:
        self._serving(state, str(args["to"]).rpartition("/")[2])
        self._setting(args, state)

    async def _do_target(self, args: Args, token: str) -> Mapping[str, str]:
        setting = self._setting(args, await self._read())
        if target_of(setting) != str(args["to"]).lower():
            body = planning.target_body(setting, str(args["from"]), str(args["to"]))
            await self._write("PUT", str(args["setting"]), body, token, version=AUTOSCALE_VERSION)
        return {}

    def _done_target(self, args: Args, state: EndpointState) -> Step:
        if target_of(self._setting(args, state)) != str(args["to"]).lower():
            return Step(Progress.PENDING, "it still looks after another deployment")
        return Step(Progress.DONE, f"it looks after {str(args['to']).rpartition('/')[2]}")

    def _setting(self, args: Args, state: EndpointState) -> Body:
        """The setting, which looks after the deployment before or the one wanted."""
        setting = next((s for s in state.autoscale or () if s.get("id") == args["setting"]), None)
        if setting is None or target_of(setting) not in (str(args["from"]).lower(), str(args["to"]).lower()):
            self._drift("the autoscale setting is gone, or looks after another deployment")
        return setting

    # -- an autoscaler's bounds ----------------------------------------------------------------------------------------

    async def _clear_bounds(self, args: Args, state: EndpointState) -> None:
        self._bounds(args, state)

    async def _do_bounds(self, args: Args, token: str) -> Mapping[str, str]:
        setting, now = self._bounds(args, await self._read())
        if now != list(args["to"]):
            body = planning.bounds_body(setting, *args["to"])
            await self._write("PUT", str(args["setting"]), body, token, version=AUTOSCALE_VERSION)
        return {}

    def _done_bounds(self, args: Args, state: EndpointState) -> Step:
        _, now = self._bounds(args, state)
        if now != list(args["to"]):
            return Step(Progress.PENDING, f"the bounds are still {now[0]}..{now[1]}")
        return Step(Progress.DONE, f"bounds are {now[0]}..{now[1]}")

    def _bounds(self, args: Args, state: EndpointState) -> tuple[Body, list[int]]:
        """The setting, and its bounds: those before or those wanted."""
        setting = next((s for s in state.autoscale or () if s.get("id") == args["setting"]), None)
        found = autoscaling_of(setting) if setting is not None else None
        if setting is None or found is None:
            self._drift("the autoscale setting is gone")
        now = [found.least, found.most, default_of(setting)]
        if now not in (list(args["from"]), list(args["to"])):
            self._drift(f"the autoscale setting's bounds are {now[0]}..{now[1]}")
        return setting, now

    # -- parts ---------------------------------------------------------------------------------------------------------

    async def _client(self) -> AzureClient:
        context = self.context
        try:
            return shared(context.sessions, self.id.subscription, self.options, context.http, context.clock)
        except CollectError as error:
            raise actuator_error(error) from error

    async def _state(self, *, fresh: bool) -> EndpointState:
        client = await self._client()
        try:
            return await inventory(self.context.sessions, client).endpoint(self.id, fresh=fresh)
        except CollectError as error:
            raise actuator_error(error) from error

    async def _read(self) -> EndpointState:
        return await self._state(fresh=True)

    async def _sizes(self, state: EndpointState) -> Mapping[str, VmSize]:
        """What the region offers; nothing where that may not be known."""
        try:
            return await size_catalogue(self.context.sessions, await self._client()).sizes(state.region)
        except CollectError as error:
            if error.kind == "denied":
                return {}
            raise actuator_error(error) from error

    async def _region(self, state: EndpointState, *, fresh: bool = False) -> Region:
        sizes = await self._sizes(state)
        try:
            quotas = await size_catalogue(self.context.sessions, await self._client()).quotas(state.region, fresh=fresh)
        except CollectError as error:
            if error.kind != "denied":
                raise actuator_error(error) from error
            quotas = {}
        return Region(sizes, quotas)

    async def _check_quota(self, state: EndpointState, size: str, more: int) -> None:
        for need in (await self._region(state)).need(size, more):
            if need.met is False:
                text = f"{need.wanted:g} {need.what} are needed in {state.region}, {need.free:g} are free: ask Azure for more quota"
                raise ActuatorError("NO_QUOTA", text, trouble=Trouble.QUOTA)

    async def _write(self, method: str, path: str, body: Any, token: str, version: str = ML_VERSION) -> AcceptedWrite:
        return await (await self._client()).write(method, path, version, body, token=token)

    def _changed(self) -> None:
        """Have it read directly from now on."""
        client = shared(
            self.context.sessions, self.id.subscription, self.options, self.context.http, self.context.clock
        )
        inventory(self.context.sessions, client).touch(self.id)

    def _pace(self) -> Pace:
        o = self.options
        return Pace(
            create_s=o.create_deadline_s,
            scale_s=o.scale_deadline_s,
            traffic_s=o.traffic_deadline_s,
            delete_s=o.delete_deadline_s,
            steps=o.traffic_steps,
            hold_s=o.hold_s,
            smoke=o.smoke_test is not None,
        )

    def _there(self, state: EndpointState, name: str) -> Body:
        found = state.deployment(name)
        if found is None:
            self._drift(f"deployment {name} is gone")
        return found

    def _serving(self, state: EndpointState, name: str) -> None:
        if provisioning(self._there(state, name)) != "Succeeded":
            self._drift(f"deployment {name} is {provisioning(self._there(state, name))}")

    def _free(self, state: EndpointState) -> None:
        """Azure does one thing at a time on an endpoint, and answers 409 to the next."""
        under_way = busy(state)
        if under_way is not None:
            text = f"{under_way}: wait until it has ended"
            raise ActuatorError("BUSY", text, trouble=Trouble.CONFLICT, retry_after_s=15.0)

    def _drift(self, what: str) -> NoReturn:
        raise ActuatorError(
            "STALE_PLAN", f"somebody else changed {self.id.name}: {what}; plan again", trouble=Trouble.DRIFT
        )

    def _kind(self, operation: Operation) -> _Kind:
        found = self._steps.get(operation.name)
        if found is None:
            raise ActuatorError("UNKNOWN_OPERATION", f"azure-ml knows no step {operation.name!r}: plan again")
        return found


def _under_way(deployment: Body) -> Mapping[str, str]:
    """The handle of the operation that the service itself notes on a deployment: it outlives a lost answer."""
    noted = (properties_of(deployment).get("properties") or {}).get("AzureAsyncOperationUri")
    return {"status": noted} if isinstance(noted, str) and provisioning(deployment) != "Succeeded" else {}


def _taken(traffic: Mapping[str, int]) -> dict[str, int]:
    return {name: share for name, share in sorted(traffic.items()) if share}


def _options(context: SystemContext) -> Options:
    try:
        options = Options(**context.options)
        problem = "" if options.resource else "resource: the endpoint's resource id is needed"
    except ValidationError as error:
        problem = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    if problem:
        text = f"endpoint {context.endpoint}, azure-ml: {problem} (known: {', '.join(Options.model_fields)})"
        raise ActuatorError("BAD_OPTIONS", text)
    return options


def make(context: SystemContext) -> Actuator:
    """The entry point."""
    return AzureMl(context)
