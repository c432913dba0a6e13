"""The system ``azure-ml`` on the stand-in for Azure: a stage with its own time, and a driver that carries plans out, dying as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actuators.azure_ml.actuator import AzureMl, make
from actuators.base import ActuatorError, LiveState, Progress, Receipt, SystemContext
from actuators.shape import Operation, Plan, Shape
from agent.clock import VirtualClock
from collectors.http import Http, HttpAnswer
from collectors.sessions import Sessions
from tests.collectors.servers import TRUST
from tests.fakes.azure import Cloud, FakeAzure
from tests.fakes.azure.cloud import Endpoint
from tests.fakes.azure.ml import endpoint_id

NOW = 1_700_000_400.0


class CountingHttp(Http):
    """The real client, which keeps what was sent."""

    def __init__(self) -> None:
        super().__init__(tls=TRUST)
        self.sent: list[tuple[str, str]] = []
        self.headers: list[tuple[str, dict[str, str]]] = []
        self.instants = 0
        self.die_at: int | None = None
        """The number of the instant to die at: before each request, and after each that is no read, which leaves all as it was."""

    async def call(self, method: str, url: str, **options: Any) -> HttpAnswer:
        self._instant()
        self.sent.append((method, url))
        self.headers.append((url, dict(options.get("headers") or {})))
        answer = await super().call(method, url, **options)
        if method != "GET":
            self._instant()
        return answer

    def _instant(self) -> None:
        self.instants += 1
        if self.instants == self.die_at:
            raise Death

    @property
    def writes(self) -> list[tuple[str, str]]:
        return [(m, u) for m, u in self.sent if m != "GET" and not u.endswith("/listKeys")]


@dataclass
class Stage:
    azure: FakeAzure
    clock: VirtualClock
    http: CountingHttp
    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    sessions: Sessions = field(default_factory=Sessions)

    @property
    def cloud(self) -> Cloud:
        return self.azure.cloud

    @property
    def endpoint(self) -> Endpoint:
        return next(iter(self.cloud.endpoints.values()))

    def make(self, *, restarted: bool = False, **options: Any) -> AzureMl:
        """``restarted``: nothing is remembered of before."""
        if restarted:
            self.sessions = Sessions()
        stated = {
            "resource": endpoint_id(self.cloud, self.endpoint),
            "credential": "token",
            "token": "arm-token",
            "metrics_token": "metrics-token",
            "arm_url": self.azure.url,
            "metrics_url": self.azure.url,
            "smoke_test": {"input": [1]},
            **self.options,
            **options,
        }
        context = SystemContext(
            endpoint="chat",
            url=f"{self.azure.url}",
            model=None,
            shape=Shape(),
            state_dir=self.folder,
            http=self.http.call,
            clock=self.clock,
            sessions=self.sessions,
            headers={"Authorization": "Bearer primary-key"},
            options=stated,
        )
        made = make(context)
        assert isinstance(made, AzureMl)
        return made

    async def plan(self, **changed: Any) -> Plan:
        actuator = self.make()
        live = await actuator.live()
        return await actuator.plan(live, live.shape.with_(**changed))

    async def carry_out(
        self,
        operations: Sequence[Operation],
        *,
        change: str = "c",
        restarted: bool = False,
        lose_receipts: bool = False,
    ) -> list[Receipt]:
        """Each step to its end, every wait in virtual time. ``lose_receipts``: die right after each ``do``, and begin it again."""
        last: Receipt | None = None
        receipts = []
        for number, operation in enumerate(operations):
            deadline = self.clock.now() + operation.deadline_s
            await self.until(lambda o=operation, r=last: self.make(restarted=restarted).clear(o, r), deadline)
            token = f"{change}/{number}"
            for _ in range(2 if lose_receipts else 1):
                receipt = await self.until(
                    lambda o=operation, r=last, t=token: self.make(restarted=restarted).do(o, t, r), deadline
                )
            while True:
                step = await self.make(restarted=restarted).done(operation, receipt)
                if step.progress is not Progress.PENDING:
                    break
                assert self.clock.now() < deadline, f"{operation.name} hangs: {step.detail}"
                await self.clock.advance(step.again_in_s or 10.0)
            if step.progress is Progress.FAILED:
                raise StepFailed(operation, step.detail, [*receipts, receipt])
            last = step.receipt or receipt
            receipts.append(last)
            await self.clock.advance(operation.hold_s)
        return receipts

    async def until(self, call: Callable[[], Coroutine[Any, Any, Any]], deadline: float) -> Any:
        """As an Execution does: what passes is tried again until the deadline, when the system says so."""
        while True:
            try:
                return await call()
            except ActuatorError as error:
                if not error.passes or self.clock.now() >= deadline:
                    raise
                await self.clock.advance(error.retry_after_s or 5.0)

    async def live(self) -> LiveState:
        return await self.make(restarted=True).live()


class Death(BaseException):
    """The process is no more. Not an Exception: nothing may survive it."""


@dataclass
class Journal:
    """What outlives a death: how far each step was written down."""

    states: dict[int, str] = field(default_factory=dict)
    receipts: dict[int, Receipt] = field(default_factory=dict)


async def resume(on: Stage, operations: Sequence[Operation], journal: Journal, change: str) -> None:
    """As the agent does: intent, step, receipt, progress, each written down before the next."""
    for number, operation in enumerate(operations):
        last = journal.receipts.get(number - 1)
        deadline = on.clock.now() + operation.deadline_s
        if journal.states.get(number) is None:
            await on.until(lambda o=operation, r=last: on.make().clear(o, r), deadline)
            journal.states[number] = "intended"
        if journal.states[number] == "intended":
            token = f"{change}/{number}"
            done = await on.until(lambda o=operation, r=last, t=token: on.make().do(o, t, r), deadline)
            journal.receipts[number], journal.states[number] = done, "started"
        while journal.states[number] == "started":
            step = await on.make().done(operation, journal.receipts[number])
            assert step.progress is not Progress.FAILED, step.detail
            if step.progress is Progress.DONE:
                journal.receipts[number] = step.receipt or journal.receipts[number]
                journal.states[number] = "done"
            else:
                assert on.clock.now() < deadline, f"{operation.name} hangs: {step.detail}"
                await on.clock.advance(step.again_in_s or 30.0)


class StepFailed(Exception):
    def __init__(self, operation: Operation, detail: str, receipts: list[Receipt]) -> None:
        super().__init__(f"{operation.name}: {detail}")
        self.operation = operation
        self.detail = detail
        self.receipts = receipts


@asynccontextmanager
async def stage(folder: Path, *, count: int = 4, size: str = "Standard_F2s_v2", **options: Any) -> AsyncIterator[Stage]:
    clock = VirtualClock(NOW)
    cloud = Cloud(clock.now)
    cloud.add("chat", size, count, tags={"owner": "ada"})
    http = CountingHttp()
    with FakeAzure(cloud) as azure:
        try:
            yield Stage(azure, clock, http, folder, options)
        finally:
            await http.aclose()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())
