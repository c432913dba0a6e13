"""The system ``none``: an endpoint that Flyball watches and nobody lets it change. It only reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import ClassVar, NoReturn

from pydantic import BaseModel, ConfigDict

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
from actuators.shape import Operation, Plan, Shape
from collectors.discovery import Support

_HOW = "change it by hand and state the new shape in the settings, or name the `system` that holds the endpoint"


SUPPORT = Support(
    title="an endpoint that nobody lets Flyball change",
    sees=("whether its address answers",),
    changes=(),
    verified="real part",
    how="read beside a real vLLM server in the tests",
)


class Options(BaseModel):
    """Settings of the system ``none``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    health: bool = True
    """Whether its address is asked for `/health` and `/v1/models`. False where it has neither, as a cloud's API for models: then it counts as
    ready, and its sources tell whether it serves. Default: it is asked."""


class ReadOnlyActuator:
    """See ``actuators.base.Actuator``. The live shape is the one that the settings state."""

    system: ClassVar[str] = "none"
    changes: ClassVar[Sequence[str]] = ()
    poll_s = 15.0

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.options = options_of(Options, context, self.system)

    async def live(self) -> LiveState:
        shape = self.context.shape
        text = json.dumps(shape.as_dict(), sort_keys=True)
        version = hashlib.sha256(text.encode()).hexdigest()[:16]
        if not self.options.health:
            return LiveState(shape, version, ready=True)
        problems = []
        for path in ("/health", "/v1/models"):
            problem = await self._problem(path)
            if problem is None:
                return LiveState(shape, version, ready=True)
            problems.append(problem)
        return LiveState(shape, version, ready=False, detail="; ".join(problems))

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        if wanted != live.shape:
            raise CannotPlan("READ_ONLY", f"{self.context.endpoint} has the system none, which changes nothing: {_HOW}")
        return Plan(
            endpoint=self.context.endpoint,
            system=self.system,
            before=live.shape,
            after=wanted,
            version=live.version,
            operations=(),
            restarts=False,
            downtime_s=0.0,
            way_back="nothing is done",
        )

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        return await self.plan(live, plan.before)

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        self._refuse(operation)

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        self._refuse(operation)

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        self._refuse(operation)

    def _refuse(self, operation: Operation) -> NoReturn:
        raise ActuatorError("READ_ONLY", f"step {operation.name} is refused: {_HOW}", trouble=Trouble.DENIED)

    async def _problem(self, path: str) -> str | None:
        """Why the address does not answer well, or None."""
        url = self.context.url.rstrip("/") + path
        try:
            answer = await self.context.http("GET", url, headers=self.context.headers, timeout_s=5.0)
        except (OSError, ValueError) as error:
            return f"{url}: {error}"
        return None if answer.status == 200 else f"{url}: status {answer.status}"


def make(context: SystemContext) -> Actuator:
    """The entry point."""
    return ReadOnlyActuator(context)
