"""What every system is: the protocol, and what it is made from. Registered in the entry-point group ``flyball.actuators``.

An actuator holds no order and no time: the agent writes the journal, waits and gives up. It answers: what is live; what plan leads
there; what plan leads back; may this step be done now; do it; is it done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ValidationError

from actuators.shape import Operation, Plan, Shape
from collectors.clock import Clock
from collectors.http import HttpCall
from collectors.options import problems_of
from collectors.sessions import Sessions

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class SystemContext:
    """What an actuator is given when it is made."""

    endpoint: str
    url: str
    """Where clients reach the endpoint."""
    model: str | None
    shape: Shape
    """The shape that the settings state: what to deploy when nothing is there, and what the system cannot tell itself."""
    state_dir: Path
    """A folder of this endpoint's own, that outlives the process."""
    http: HttpCall
    clock: Clock
    sessions: Sessions
    """Where a client of an account or a cluster is kept, one for all of its endpoints."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """For requests to ``url`` alone: they hold the model's key, which no control plane may see."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The system's own settings, validated by its ``Options`` model."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who else sets a part of the shape."""

    kind: str
    """hpa, keda, argocd, flux, azure-autoscale ..."""
    name: str
    owns: frozenset[str]
    """Names of Shape fields; ``*``: all of it."""


@dataclass(frozen=True, slots=True)
class LiveState:
    """What is really there now."""

    shape: Shape
    """What is configured."""
    version: str
    """A hash of the specification that plans rest on (etag, generation ...), never of its status: it changes whenever anybody
    changes what was configured, and not when an autoscaler moves the count or a replica dies."""
    ready: bool
    """Whether as many replicas serve as the shape says."""
    serving: int | None = None
    """How many replicas serve now. None: the system does not tell."""
    owner: Owner | None = None
    targets: Mapping[str, str] = field(default_factory=dict)
    """Replica name to base address, for those who read each replica's metrics. Empty where only the one address is known."""
    detail: str = ""
    """For people, where something is wrong: which replica, which log."""
    landed: str | None = None
    """The hash of the plan that the newest change of the specification is, by its own word, where changes come by review elsewhere."""


class Progress(Enum):
    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a step leaves in the journal, so that it can be followed up after a restart."""

    handle: Mapping[str, Any] = field(default_factory=dict)
    """The address of a long-running operation, the id of an evaluation, the token. Plain JSON, no secret."""
    leaves: str | None = None
    """``LiveState.version`` after this step, where it is known: the next step's precondition."""

    def as_dict(self) -> dict[str, Any]:
        return {"handle": dict(self.handle), "leaves": self.leaves}


@dataclass(frozen=True, slots=True)
class Step:
    """How far an operation is."""

    progress: Progress
    detail: str = ""
    again_in_s: float | None = None
    """When to ask again, where the system says so (Retry-After)."""
    receipt: Receipt | None = None
    """What takes the place of the step's receipt from now on."""


class Actuator(Protocol):
    """One system that holds one endpoint. Raises ``ActuatorError`` and nothing else."""

    system: ClassVar[str]
    """The name in ``Plan.system`` and in the settings."""

    changes: ClassVar[Sequence[str]]
    """What it can change: names of Shape fields, ``engine.*`` for any engine limit. Empty: it only reads."""

    poll_s: float
    """Seconds between two reads of the control plane, unless a change is under way."""

    async def live(self) -> LiveState:
        """Read the live shape. Sends only reads."""

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        """The operations from ``live`` to ``wanted``; deterministic, and sends only reads. Raises ``CannotPlan``."""

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        """The plan from wherever ``plan`` was left to the shape before it. ``done``: of the steps that were begun, in order.

        ``plan(live, plan.before)`` where a Shape says all. Sends only reads. Raises ``CannotPlan``.
        """

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        """Whether the step may be begun at this moment; ``last`` is the receipt of the one before. Sends only reads.

        Raises ``ActuatorError``: DRIFT where somebody else changed what the plan rests on, QUOTA, CAPACITY, DENIED, or CONFLICT
        where another operation is under way.
        """

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        """Start one step and return soon. ``token`` is the same when the same step is resumed, so it is done once.

        Raises ``ActuatorError``; its trouble says whether the same step may be tried again.
        """

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        """How far the step is. Sends only reads."""


@runtime_checkable
class RemovableActuator(Protocol):
    """An actuator whose system leaves something running at zero replicas, such as a router that answers for nobody."""

    async def remove(self) -> None:
        """Stop that too, and forget what was there. Only ever called at zero replicas; once more does nothing."""


@dataclass(frozen=True, slots=True)
class Review:
    """How a plan that is reviewed elsewhere stands there."""

    state: Literal["absent", "open", "merged"]
    """``absent``: its branch is not there. ``merged``: what is configured is the plan's shape, by this plan."""
    by: str = ""
    """Who merged it, as the repository tells: an e-mail address, or ``unknown``."""
    where: str = ""
    """The branch, and the address of the request to merge it, where there is one."""


@runtime_checkable
class ReviewedActuator(Protocol):
    """An actuator whose plans are branches of a repository: the merge of one is its approval. It never writes to what is deployed."""

    async def offer(self, plan: Plan, title: str, evidence: str) -> Review:
        """Show a plan as a branch of our own. Once more does nothing. Raises ``ActuatorError``: DRIFT where it fits no longer."""

    async def review(self, plan: Plan) -> Review:
        """Sends only reads."""

    async def withdraw(self, keep: Collection[str]) -> None:
        """Take away the branches of this endpoint's plans, but of those whose hashes are to be kept."""


class Trouble(StrEnum):
    """Why a system did not do it."""

    CONFLICT = "conflict"
    """Another operation is under way: it passes."""
    DRIFT = "drift"
    """Somebody changed what the plan rests on: plan again."""
    QUOTA = "quota"
    CAPACITY = "capacity"
    """The system has nothing of this size just now."""
    THROTTLED = "throttled"
    """Too many requests: later."""
    DENIED = "denied"
    INVALID = "invalid"
    """It is not what this system takes."""
    UNREACHABLE = "unreachable"
    """No answer, or one that is broken: nobody knows whether it was done."""


_PASSES = frozenset((Trouble.CONFLICT, Trouble.THROTTLED, Trouble.UNREACHABLE))


class ActuatorError(Exception):
    """A system refused or did not answer. ``code`` is stable, the text says what to do."""

    def __init__(
        self, code: str, detail: str, *, trouble: Trouble = Trouble.INVALID, retry_after_s: float | None = None
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.trouble = trouble
        self.retry_after_s = retry_after_s
        """When the system said that it may be asked again."""

    @property
    def passes(self) -> bool:
        """Whether the same call may succeed later."""
        return self.trouble in _PASSES


class CannotPlan(ActuatorError):
    """No plan leads there: the shape is not allowed, not supported, or not complete."""


def options_of(model: type[M], context: SystemContext, system: str) -> M:
    """The system's options. Raises ActuatorError ``BAD_OPTIONS`` with each problem and its field."""
    try:
        return model(**context.options)
    except ValidationError as error:
        text = f"endpoint {context.endpoint}, {system}: {problems_of(error, model)}"
        raise ActuatorError("BAD_OPTIONS", text) from None


#: What the entry point must be: called once for each endpoint that names the system.
ActuatorFactory = Callable[[SystemContext], Actuator]
