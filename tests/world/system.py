"""The system that holds a simulated endpoint, and the thin actuator and collector through which Flyball meets it.

The system outlives every Flyball. It counts what was really done: a step that arrives again under its token is not done again, and
one that arrives under another token is, so that a governor that forgets what it did is found out.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from actuators.base import ActuatorError, LiveState, Progress, Receipt, Step, Trouble
from actuators.shape import Operation, Plan, Shape
from collectors.base import Scope, ScrapeTarget
from collectors.clock import Clock
from collectors.window import CollectError, Reading
from tests.world.endpoint import SimulatedEndpoint
from tests.world.faults import Faults


@dataclass(slots=True)
class SimulatedSystem:
    """The control plane of one endpoint, with its faults."""

    endpoint: SimulatedEndpoint
    clock: Clock
    start_delay_s: float = 5.0
    version: int = 1
    shape: Shape = field(init=False)
    """What is asked for; the endpoint serves on it ``start_delay_s`` later."""
    due: float = 0.0
    asked: Counter[str] = field(default_factory=Counter)
    """How often each token came."""
    executed: list[tuple[str, Operation]] = field(default_factory=list)
    """What was really done: token and step, in order."""
    executed_at: list[float] = field(default_factory=list)
    """When each of them was done."""
    left_by_us: list[Shape] = field(default_factory=list)
    """What each step of a change forward, and not of its way back, led to."""
    refuse: Callable[[str], ActuatorError | None] = lambda _token: None
    """By token: what ``do`` raises before anything is done."""
    delay: Callable[[str], float] = lambda _token: 0.0
    """By token: seconds until ``do`` answers, after it was done or refused."""
    never_done: bool = False
    hangs: bool = False
    unreadable: bool = False
    collect_error: str | None = None
    """The kind of CollectError that each read ends in."""

    def __post_init__(self) -> None:
        self.shape = self.endpoint.shape

    def settle(self) -> None:
        """Let the endpoint serve on what was asked for, once it is due."""
        now = self.clock.now()
        if self.shape != self.endpoint.shape and now >= self.due:
            self.endpoint.become(self.shape, now)

    def execute(self, operation: Operation, token: str) -> None:
        self.asked[token] += 1
        if any(token == done for done, _ in self.executed):
            return
        self.executed.append((token, operation))
        self.executed_at.append(self.clock.now())
        if operation.name == "add_replicas":
            self.change(self.shape.with_(replicas=(self.shape.replicas or 0) + operation.args["by"]))
        else:
            self.change(self.shape.with_(engine=dict(operation.args["engine"])))
        if ":apply:" in token:
            self.left_by_us.append(self.shape)

    def change(self, shape: Shape) -> None:
        """Whoever does it: Flyball, or somebody else by hand."""
        self.shape, self.due = shape, self.clock.now() + self.start_delay_s
        self.version += 1


class SimulatedActuator:
    """See ``actuators.base.Actuator``. Engine limits first, then replicas, so that a plan has up to two steps."""

    system: ClassVar[str] = "simulated"
    changes: ClassVar[Sequence[str]] = ("replicas", "engine.*")
    poll_s = 0.0

    def __init__(self, name: str, system: SimulatedSystem, faults: Faults) -> None:
        self._name = name
        self._system = system
        self._faults = faults

    async def live(self) -> LiveState:
        if self._system.unreadable:
            raise ActuatorError("UNREACHABLE", "the control plane does not answer", trouble=Trouble.UNREACHABLE)
        self._system.settle()
        ready = self._system.endpoint.shape == self._system.shape
        return LiveState(self._system.shape, str(self._system.version), ready)

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        operations = []
        if dict(wanted.engine) != dict(live.shape.engine):
            operations.append(Operation("set_engine", {"engine": dict(wanted.engine)}, 300.0, "set engine limits"))
        if wanted.replicas != live.shape.replicas:
            by = (wanted.replicas or 0) - (live.shape.replicas or 0)
            operations.append(Operation("add_replicas", {"by": by}, 300.0, f"{by:+d} replicas"))
        return Plan(
            self._name,
            self.system,
            live.shape,
            wanted,
            live.version,
            tuple(operations),
            restarts=any(o.name == "set_engine" for o in operations),
            downtime_s=0.0,
            way_back="the same steps backwards",
        )

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        return await self.plan(live, plan.before)

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        """Nothing to ask: the system takes each token once."""

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        if self._system.hangs:
            await asyncio.Event().wait()
        refused, delay_s = self._system.refuse(token), self._system.delay(token)
        if refused is None:
            self._faults.instant("before a step")
            self._system.execute(operation, token)
            self._faults.instant("after a step")
        if delay_s > 0:
            await self._system.clock.sleep(delay_s)
        if refused is not None:
            raise refused
        return Receipt({"token": token})

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        self._system.settle()
        token = receipt.handle["token"]
        known = any(token == done for done, _ in self._system.executed)
        if known and not self._system.never_done and self._system.endpoint.shape == self._system.shape:
            return Step(Progress.DONE, "it serves")
        return Step(Progress.PENDING, "starting" if known else "not begun")


class SimulatedCollector:
    """See ``collectors.base.Collector``."""

    source: ClassVar[str] = "vllm"
    interval_s: float | None = None
    deadline_s: float | None = None
    settles_s: float = 0.0
    scope: Scope = "replica"

    def __init__(self, system: SimulatedSystem) -> None:
        self._system = system

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        if self._system.collect_error is not None:
            raise CollectError(self._system.collect_error, "the world says so")
        self._system.settle()
        return [self._system.endpoint.reading(target.name, self._system.clock.now())]
