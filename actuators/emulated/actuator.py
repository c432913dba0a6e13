"""The system ``emulated``: reads and changes an emulated endpoint through its own admin address. For demonstrations and tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

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
from actuators.emulated.endpoint import CACHING, ENGINE_LIMITS, MAX_REPLICAS
from actuators.shape import Operation, Plan, Shape
from collectors.http import HttpAnswer

#: What the emulation has none of. Its accelerators are a matter of its size.
_FIXED = ("cpus", "memory_gb", "autoscaling", "purchase", "tier", "region", "extra")


class Options(BaseModel):
    """Settings of the system ``emulated``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    admin_url: str | None = None
    """Where ``/emulated/shape`` is. Default: the endpoint's ``url``."""
    sizes: tuple[str, ...] | None = None
    """The sizes that the server was started with. Default: not known, and the server refuses a wrong one."""
    ready_timeout_s: float = Field(default=60.0, gt=0)
    """How long a change may take, from the cold start to the last drained request."""


class EmulatedActuator:
    """See ``actuators.base.Actuator``. The server's generation is the version, and the server keeps the token of each change."""

    system: ClassVar[str] = "emulated"
    changes: ClassVar[Sequence[str]] = ("replicas", "size", "engine.*")
    poll_s = 15.0

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.options = options_of(Options, context, "emulated")
        self._url = (self.options.admin_url or context.url).rstrip("/") + "/emulated/shape"

    async def live(self) -> LiveState:
        status = await self._status()
        shape, generation = self._shape(status), str(status["generation"])
        ready = bool(status["ready"]) and status["ready_replicas"] == shape.replicas
        detail = "" if ready else f"{status['ready_replicas']} serve, {status['draining_replicas']} drain"
        return LiveState(shape, generation, ready, serving=status["ready_replicas"], detail=detail)

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        self._check(live, wanted)
        restarts = (wanted.size, dict(wanted.engine)) != (live.shape.size, dict(live.shape.engine))
        operations: tuple[Operation, ...] = ()
        if wanted != live.shape:
            args = {"shape": wanted.as_dict(), "generation": live.version}
            summary = f"emulated change: start {wanted.label()}, switch, drain what was there"
            operations = (Operation("put_shape", args, self.options.ready_timeout_s, summary),)
        return Plan(
            endpoint=self.context.endpoint,
            system=self.system,
            before=live.shape,
            after=wanted,
            version=live.version,
            operations=operations,
            restarts=restarts,
            downtime_s=0.0,
            way_back=f"the same step towards {live.shape.label()}",
        )

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        return await self.plan(live, plan.before)

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        """Nothing beforehand: the server compares the generation with each change."""
        self._known(operation)

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        self._known(operation)
        args = operation.args
        headers = {"if-match": f'"{args["generation"]}"'}
        answer = await self._call("PUT", headers=headers, body={"shape": args["shape"], "token": token})
        if answer.status == 202:
            return Receipt({"token": token})
        said = answer.body.decode(errors="replace")[:300]
        if answer.status == 409:
            text = f"somebody else changed the shape: plan again ({said})"
            raise ActuatorError("STALE_PLAN", text, trouble=Trouble.DRIFT)
        trouble = Trouble.UNREACHABLE if answer.status >= 500 else Trouble.INVALID
        raise ActuatorError("REFUSED", f"{answer.status} {said}", trouble=trouble)

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        self._known(operation)
        status = await self._status()
        if status["token"] == receipt.handle["token"]:
            if status["ready"]:
                return Step(Progress.DONE, f"{status['ready_replicas']} serve")
            return Step(Progress.PENDING, f"{status['ready_replicas']} serve, {status['draining_replicas']} drain")
        if str(status["generation"]) == operation.args["generation"]:
            return Step(Progress.PENDING, "not begun")
        return Step(Progress.FAILED, f"generation {status['generation']} is somebody else's: plan again")

    def _check(self, live: LiveState, wanted: Shape) -> None:
        if wanted.replicas is None or not 0 <= wanted.replicas <= MAX_REPLICAS:
            raise CannotPlan("INCOMPLETE_SHAPE", f"say how many replicas, 0 to {MAX_REPLICAS}, not {wanted.replicas}")
        fixed = [k for k in _FIXED if getattr(wanted, k) != getattr(live.shape, k)]
        if fixed:
            raise CannotPlan("UNSUPPORTED_CHANGE", f"the emulation has no {', '.join(fixed)} to change")
        if self.options.sizes is not None and wanted.size not in (*self.options.sizes, live.shape.size):
            known = ", ".join(self.options.sizes)
            raise CannotPlan("UNKNOWN_SIZE", f"{wanted.size!r} is not one of the emulated sizes ({known})")
        for name, value in wanted.engine.items():
            if name == CACHING and isinstance(value, bool):
                continue
            if name not in ENGINE_LIMITS or isinstance(value, bool) or not isinstance(value, int) or value < 1:
                text = f"{name}={value!r}: the emulation takes whole numbers above 0 for {', '.join(ENGINE_LIMITS)}"
                raise CannotPlan("BAD_ENGINE_LIMIT", text)

    def _known(self, operation: Operation) -> None:
        if operation.name != "put_shape":
            raise ActuatorError("UNKNOWN_OPERATION", f"emulated knows no step {operation.name!r}: plan again")

    def _shape(self, status: dict[str, Any]) -> Shape:
        try:
            return Shape.from_dict(status["shape"])
        except TypeError as error:
            raise ActuatorError("BAD_ANSWER", f"{self._url} gave a shape that is none: {error}") from None

    async def _status(self) -> dict[str, Any]:
        answer = await self._call("GET")
        try:
            status = json.loads(answer.body)
        except ValueError:
            status = None
        needed = ("shape", "generation", "token", "ready", "ready_replicas", "draining_replicas")
        if answer.status != 200 or not isinstance(status, dict) or any(k not in status for k in needed):
            text = f"{self._url} answered {answer.status} and not its status: is an emulated endpoint there?"
            raise ActuatorError("BAD_ANSWER", text)
        return status

    async def _call(self, method: str, headers: dict[str, str] | None = None, body: Any = None) -> HttpAnswer:
        try:
            return await self.context.http(method, self._url, headers=headers, json=body)
        except (OSError, ValueError) as error:
            raise ActuatorError(
                "UNREACHABLE", f"{self._url}: {error}; is the endpoint up?", trouble=Trouble.UNREACHABLE
            ) from None


def make(context: SystemContext) -> Actuator:
    """The entry point."""
    return EmulatedActuator(context)
