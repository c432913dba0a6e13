"""The system ``openai-api``: how many tokens and requests a minute a project may use of one model.

The API has no version to name and no dry run, and takes effect at once: limits are read and compared right before each write.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

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
from actuators.shape import EngineValue, Operation, Plan, Purchase, Shape
from actuators.writes import WriteCount
from collectors.modelapis.client import ModelApiError, ModelRateLimit
from collectors.modelapis.openai import OpenAIAdmin, OpenAISettings, shared

_TROUBLE = {
    "denied": Trouble.DENIED,
    "missing": Trouble.DRIFT,
    "throttled": Trouble.THROTTLED,
    "unreachable": Trouble.UNREACHABLE,
}
_SET_S = 120.0
#: Of the shape's ``engine``: calls a minute, which OpenAI limits beside tokens. The kind ``quota`` reads it there.
REQUESTS = "requests_per_minute"
#: By a name of ours: OpenAI's.
_FIELDS = {"tokens": "max_tokens_per_1_minute", "requests": "max_requests_per_1_minute"}


class Options(OpenAISettings):
    """Settings of the system ``openai-api``."""

    model: str | None = None
    """The model, as the project's rate limits name it. Default: the endpoint's."""


class ProjectLimits:
    """See ``actuators.base.Actuator``."""

    system: ClassVar[str] = "openai-api"
    changes: ClassVar[Sequence[str]] = ("purchase", "engine.*")
    poll_s = 60.0

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.options = options_of(Options, context, "openai-api")
        self.model = self.options.model or context.model
        self.project = self.options.project or ""
        self._writes = WriteCount(context.state_dir / "openai-api-writes.json")

    async def live(self) -> LiveState:
        limit = await self._limit()
        return LiveState(_shape(limit), self._version(limit), ready=True)

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        limit, now = await self._limit(), live.shape
        _check(now, wanted)
        fields: dict[str, int] = {}
        if wanted.purchase is not None and wanted.purchase != now.purchase:
            fields["tokens"] = wanted.purchase.amount
        if wanted.engine.get(REQUESTS) != now.engine.get(REQUESTS):
            fields["requests"] = int(wanted.engine[REQUESTS])
        steps: list[Operation] = []
        if fields:
            said = " and ".join(f"{value} {name}" for name, value in fields.items())
            args = {"limit": limit.id, "fields": fields, "version": live.version}
            steps.append(Operation("set", args, _SET_S, f"{limit.model}: {said} a minute in project {self.project}"))
        return Plan(
            endpoint=self.context.endpoint,
            system=self.system,
            before=now,
            after=wanted,
            version=live.version,
            operations=tuple(steps),
            restarts=False,
            downtime_s=0.0,
            way_back="the limits of before",
            locks=(f"openai-api:{self.project}:{limit.model}",),
        )

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        return await self.plan(live, plan.before)

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        _known(operation)
        self._unmoved(operation, await self._limit(), last)

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        _known(operation)
        limit = await self._limit()
        if not _is_so(operation, limit):
            self._unmoved(operation, limit, last)
            fields = {_FIELDS[name]: value for name, value in operation.args["fields"].items()}
            try:
                await self._client().set_rate_limit(self.project, operation.args["limit"], fields)
            except ModelApiError as error:
                self._raise(error)
            self._writes.add()
            limit = await self._limit()
        return Receipt({"step": operation.name, "token": token}, leaves=self._version(limit))

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        _known(operation)
        if _is_so(operation, await self._limit()):
            return Step(Progress.DONE, "the limits are set")
        return Step(
            Progress.FAILED, f"the limits of {self.model} are others: somebody has set them, or OpenAI keeps them lower"
        )

    # inside

    def _client(self) -> OpenAIAdmin:
        own = OpenAISettings(**{name: getattr(self.options, name) for name in OpenAISettings.model_fields})
        return shared(self.context.sessions, own, self.context.http)

    async def _limit(self) -> ModelRateLimit:
        if not self.project or self.model is None:
            raise ActuatorError("NO_PROJECT", "set actuator.options.project, and the endpoint's model")
        try:
            limits = await self._client().rate_limits(self.project)
        except ModelApiError as error:
            self._raise(error)
        found = next((limit for limit in limits if limit.model == self.model), None)
        if found is None:
            text = f"project {self.project} has no rate limit of {self.model!r}; set actuator.options.model as its limits name it"
            raise ActuatorError("NO_LIMIT", text)
        return found

    def _version(self, limit: ModelRateLimit) -> str:
        rests_on = [self._writes.value, limit.id, limit.tokens_per_minute, limit.requests_per_minute]
        return hashlib.sha256(json.dumps(rests_on).encode()).hexdigest()[:16]

    def _unmoved(self, operation: Operation, limit: ModelRateLimit, last: Receipt | None) -> None:
        expected = last.leaves if last is not None else operation.args.get("version")
        if expected is not None and self._version(limit) != expected:
            text = f"somebody set the limits of {limit.model} meanwhile; plan again"
            raise ActuatorError("STALE_PLAN", text, trouble=Trouble.DRIFT)

    def _raise(self, error: ModelApiError) -> NoReturn:
        trouble = _TROUBLE.get(error.kind, Trouble.INVALID)
        raise ActuatorError(
            error.kind.upper(), error.detail, trouble=trouble, retry_after_s=error.retry_after_s
        ) from error


def _shape(limit: ModelRateLimit) -> Shape:
    engine: dict[str, EngineValue] = {} if limit.requests_per_minute is None else {REQUESTS: limit.requests_per_minute}
    tokens = limit.tokens_per_minute
    return Shape(purchase=None if not tokens else Purchase(tokens, "tokens_per_minute"), engine=engine)


def _check(now: Shape, wanted: Shape) -> None:
    other = [k for k in Shape.__slots__ if k not in ("purchase", "engine") and getattr(wanted, k) != getattr(now, k)]
    if other:
        text = f"a rate limit has no {', '.join(other)}: another model or tier is the caller's to ask for"
        raise CannotPlan("UNSUPPORTED_CHANGE", text)
    bought = wanted.purchase
    if bought != now.purchase and (bought is None or bought.unit != "tokens_per_minute" or bought.amount < 1):
        raise CannotPlan("BAD_LIMIT", f"purchase {bought}: tokens_per_minute, 1 or more, is what OpenAI limits")
    if {*wanted.engine} != {*now.engine}:
        raise CannotPlan("BAD_LIMIT", f"beside tokens OpenAI limits {REQUESTS} alone, and always")
    requests = wanted.engine.get(REQUESTS)
    if requests != now.engine.get(REQUESTS) and (
        isinstance(requests, bool) or not isinstance(requests, int) or requests < 1
    ):
        raise CannotPlan("BAD_LIMIT", f"{REQUESTS}={requests}: a whole number of 1 or more is needed")


def _known(operation: Operation) -> None:
    if operation.name != "set":
        raise ActuatorError("UNKNOWN_OPERATION", f"openai-api knows no step {operation.name!r}: plan again")


def _is_so(operation: Operation, limit: ModelRateLimit) -> bool:
    now: Mapping[str, Any] = {"tokens": limit.tokens_per_minute, "requests": limit.requests_per_minute}
    return all(now[name] == value for name, value in operation.args["fields"].items())


def make(context: SystemContext) -> Actuator:
    """The entry point. Raises ActuatorError ``BAD_OPTIONS``."""
    return ProjectLimits(context)
