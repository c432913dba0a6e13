"""What every system is: the protocol, and what it is made from. Registered in the entry-point group ``flyball.actuators``.

An actuator holds no order and no time: the agent writes the journal, waits and gives up. It answers five questions: what is the
live shape; what plan leads there; do this step; is it done; how back (the plan from what is live to the shape before).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from actuators.shape import Operation, Plan, Shape


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Status, lower-case headers, and the whole body (bounded by the caller)."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpCall(Protocol):
    """The HTTP caller that an actuator is handed. Raises ``OSError`` when there is no answer, ``ValueError`` on a broken one."""

    async def __call__(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        timeout_s: float = 10.0,
    ) -> HttpAnswer: ...


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
    headers: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    """The system's own settings, validated by its ``Options`` model."""


@dataclass(frozen=True, slots=True)
class Live:
    """What is really there now."""

    shape: Shape
    version: str
    """Changes whenever anybody changes the shape (etag, resourceVersion, generation)."""
    ready: bool
    """Whether as many replicas serve as the shape says."""
    targets: Mapping[str, str] = field(default_factory=dict)
    """Replica name to base address, for those who read each replica's metrics. Empty where only the one address is known."""
    detail: str = ""
    """For people, where something is wrong: which replica, which log."""


class Progress(Enum):
    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Step:
    """How far an operation is."""

    progress: Progress
    detail: str = ""


class Actuator(Protocol):
    """One system that holds one endpoint. Raises ``ActuatorError`` and nothing else."""

    system: ClassVar[str]
    """The name in ``Plan.system`` and in the settings."""

    changes: ClassVar[Sequence[str]]
    """What it can change: names of Shape fields, ``engine.*`` for any engine limit. Empty: it only reads."""

    async def live(self) -> Live:
        """Read the live shape. Sends only reads."""

    async def plan(self, live: Live, wanted: Shape) -> Plan:
        """The operations from ``live`` to ``wanted``; deterministic, and sends only reads. Raises ``CannotPlan``."""

    async def do(self, operation: Operation, token: str) -> None:
        """Start one step and return soon. ``token`` is the same when the same step is resumed, so it is done once.

        Raises ``ActuatorError``; ``retry`` says whether the same step may be tried again.
        """

    async def done(self, operation: Operation, token: str) -> Step:
        """How far the step is. Sends only reads."""


@runtime_checkable
class Removable(Protocol):
    """An actuator whose system leaves something running at zero replicas, such as a router that answers for nobody."""

    async def remove(self) -> None:
        """Stop that too, and forget what was there. Only ever called at zero replicas; once more does nothing."""


class ActuatorError(Exception):
    """A system refused or did not answer. ``code`` is stable, the text says what to do."""

    def __init__(self, code: str, detail: str, *, retry: bool = False) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.retry = retry


class CannotPlan(ActuatorError):
    """No plan leads there: the shape is not allowed, not supported, or not complete."""


#: What the entry point must be: called once for each endpoint that names the system.
ActuatorFactory = Callable[[SystemContext], Actuator]
