"""Steps in order: receipts that outlive a kill, waiting as long as a system says, holding, gates, deadlines, pause, and the fence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa

from actuators.base import ActuatorError, LiveState, Progress, Receipt, Step, Trouble
from actuators.shape import Operation, Plan, Shape
from agent.cases import guardrails_of, obstacle_of
from agent.clock import VirtualClock
from agent.deploy import CannotDeploy, Deployment, carry_out
from agent.execution import ChangeRun, Execution, RunProgress
from agent.settings import Settings
from agent.store import Store, changes, control
from agent.store.control import Lead, LostLease
from analyzers.policy import RuleVerdict
from tests.agent.records import change_row

A, B = (
    Operation("a", {"n": 1}, deadline_s=100.0, summary="do a"),
    Operation("b", {"n": 2}, deadline_s=100.0, summary="do b"),
)
SETTINGS = Settings(endpoints=[{"name": "chat", "url": "http://chat.invalid", "mode": "approve"}])
Answer = Callable[[], Any]


@dataclass
class Scripted:
    """An actuator whose answers are given beforehand; it notes every call."""

    answers: dict[str, list[Any]] = field(default_factory=dict)
    """By call and operation, ``do a``: what is returned, or raised, in turn. Then the usual."""
    calls: list[Any] = field(default_factory=list)
    system: ClassVar[str] = "scripted"
    changes: ClassVar[Sequence[str]] = ()
    poll_s = 0.0

    def _answer(self, call: str, usual: Any) -> Any:
        waiting = self.answers.get(call)
        answer = waiting.pop(0) if waiting else usual
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def live(self) -> LiveState:
        raise NotImplementedError

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        raise NotImplementedError

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        raise NotImplementedError

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        self.calls.append(("clear", operation.name, last))
        self._answer(f"clear {operation.name}", None)

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        self.calls.append(("do", operation.name, token, last))
        answer: Receipt = self._answer(f"do {operation.name}", Receipt({"of": operation.name}))
        return answer

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        self.calls.append(("done", operation.name, receipt))
        answer: Step = self._answer(f"done {operation.name}", Step(Progress.DONE))
        return answer

    def did(self, call: str) -> list[Any]:
        return [c for c in self.calls if c[0] == call]


class Place:
    """A store, a clock, a lease."""

    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock()
        self.store = Store(f"sqlite:///{folder}/f.db", now=self.clock.now)
        self.store.upgrade()
        self.lead = self.leads("one")
        self.actuator = Scripted()

    def leads(self, holder: str, ttl_s: float = 1e9) -> Lead:
        with self.store.write() as db:
            lead = control.acquire(db, "leader", holder, ttl_s)
        assert lead is not None
        return lead

    def advance(self, *operations: Operation, gate: Any = None, lead: Lead | None = None) -> RunProgress:
        """With a new Execution each time, as after a kill."""
        run = ChangeRun("cccc0001", "chat", "apply", operations or (A, B), self.actuator, self.asks, gate)
        return asyncio.run(Execution(self.store, self.clock).advance(run, lead or self.lead))

    def asks(self, db: sa.Connection) -> RuleVerdict | None:
        """Of the guardrails only what a way back heeds, the pause among them."""
        return obstacle_of(
            db, guardrails_of(SETTINGS, "chat"), "chat", (Shape(), Shape()), self.clock.now(), "undo", by="ada"
        )

    def later(self, seconds: float) -> None:
        self.clock.set(self.clock.now() + seconds)

    def journal(self) -> list[tuple[int, str]]:
        with self.store.read() as db:
            return [(row["step"], row["state"]) for row in changes.journal(db, "cccc0001")]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_each_step_is_cleared_done_and_followed_with_the_receipt_of_the_one_before(place: Place) -> None:
    assert place.advance() == RunProgress("done")
    first, second = Receipt({"of": "a"}), Receipt({"of": "b"})
    assert place.actuator.calls == [
        ("clear", "a", None),
        ("do", "a", "cccc0001:apply:0", None),
        ("done", "a", first),
        ("clear", "b", first),
        ("do", "b", "cccc0001:apply:1", first),
        ("done", "b", second),
    ]
    assert place.advance() == RunProgress("done")
    assert len(place.actuator.calls) == 6, "what is done is not asked for again"


def test_a_receipt_outlives_the_process_and_may_be_replaced_on_the_way(place: Place) -> None:
    operation = Receipt({"status": "https://arm/operations/1"}, leaves="v2")
    moved = Receipt({"status": "https://arm/operations/2"}, leaves="v2")
    place.actuator.answers = {
        "do a": [operation],
        "done a": [Step(Progress.PENDING, "20 %", receipt=moved), Step(Progress.PENDING, "90 %")],
    }
    assert place.advance() == RunProgress("waiting", "20 %")
    assert place.advance() == RunProgress("waiting", "90 %")
    assert place.advance() == RunProgress("done")
    assert [c[2] for c in place.actuator.did("done")] == [operation, moved, moved, Receipt({"of": "b"})]
    assert [c[3] for c in place.actuator.did("do")] == [None, moved]


def test_an_intent_that_was_written_down_is_resumed_under_its_token_without_another_look(place: Place) -> None:
    """The process died in the middle of the call: whether it was done only its token can tell."""

    class Killed(BaseException):
        pass

    async def die(*_: Any) -> Receipt:
        raise Killed

    really, place.actuator.do = place.actuator.do, die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        place.advance()
    assert place.journal() == [(0, "intended")]
    place.actuator.do = really  # type: ignore[method-assign]
    assert place.advance() == RunProgress("done")
    assert [c[1] for c in place.actuator.did("clear")] == ["a", "b"]
    assert place.actuator.did("do")[0][2] == "cccc0001:apply:0"


@pytest.mark.parametrize("call", ["clear a", "do a"])
@pytest.mark.parametrize("trouble", [Trouble.CONFLICT, Trouble.THROTTLED, Trouble.UNREACHABLE])
def test_what_may_pass_is_tried_again_when_the_system_says(call: str, trouble: Trouble, place: Place) -> None:
    place.actuator.answers = {call: [ActuatorError("BUSY", "later", trouble=trouble, retry_after_s=17.0)]}
    assert place.advance() == RunProgress("waiting", "BUSY: later")
    asked = len(place.actuator.calls)
    place.later(16.9)
    assert place.advance().state == "waiting"
    assert len(place.actuator.calls) == asked, "nobody is asked before the time"
    place.later(0.2)
    assert place.advance() == RunProgress("done")


def test_without_a_word_it_waits_longer_each_time_until_the_deadline(place: Place) -> None:
    place.actuator.answers = {"do a": [ActuatorError("BUSY", "later", trouble=Trouble.CONFLICT) for _ in range(1000)]}
    tried, begun = 0, place.clock.now()
    while (progress := place.advance()).state == "waiting":
        now_tried = len(place.actuator.did("do"))
        tried = max(tried, now_tried)
        place.later(1.0)
        assert place.clock.now() - begun < 400
    assert progress == RunProgress("failed", "do a: BUSY: later")
    assert 4 <= tried <= 12, "not every second for a hundred seconds"
    assert place.advance() == progress, "and it stays so"


@pytest.mark.parametrize(
    "trouble", [Trouble.DRIFT, Trouble.QUOTA, Trouble.CAPACITY, Trouble.DENIED, Trouble.INVALID]
)  # fmt: skip
@pytest.mark.parametrize("call", ["clear b", "do b"])
def test_what_does_not_pass_fails_at_once(call: str, trouble: Trouble, place: Place) -> None:
    place.actuator.answers = {call: [ActuatorError("NO", "never", trouble=trouble)]}
    assert place.advance() == RunProgress("failed", "do b: NO: never")
    assert len(place.actuator.did("do")) == (1 if call == "clear b" else 2)


def test_a_bug_in_an_actuator_has_its_deadline(place: Place) -> None:
    place.actuator.answers = {"done a": [ZeroDivisionError("oops")] * 1000}
    assert place.advance() == RunProgress("waiting", "BUG: ZeroDivisionError: oops")
    place.later(101)
    assert place.advance() == RunProgress("failed", "do a: not done within 100 s (BUG: ZeroDivisionError: oops)")


def test_progress_is_asked_for_when_the_system_says(place: Place) -> None:
    place.actuator.answers = {"done a": [Step(Progress.PENDING, "slow", again_in_s=30.0)]}
    assert place.advance() == RunProgress("waiting", "slow")
    place.later(29)
    assert place.advance() == RunProgress("waiting", "slow")
    assert len(place.actuator.did("done")) == 1
    place.later(2)
    assert place.advance() == RunProgress("done")


def test_a_step_that_says_that_it_failed(place: Place) -> None:
    place.actuator.answers = {"done a": [Step(Progress.FAILED, "quota was taken meanwhile")]}
    assert place.advance() == RunProgress("failed", "do a: quota was taken meanwhile")
    assert place.journal() == [(0, "failed")]


def test_it_holds_and_then_asks_the_gate_before_the_next_step(place: Place) -> None:
    held = Operation("a", {}, 100.0, "shift 10 %", hold_s=300.0, gate=True)
    asked: list[float] = []
    verdicts: list[bool | None] = [None, True]

    async def gate(since: float) -> bool | None:
        asked.append(since)
        return verdicts.pop(0)

    done_at = place.clock.now()
    assert place.advance(held, B, gate=gate).why == "shift 10 %: holding for 300 s more"
    place.later(299)
    assert place.advance(held, B, gate=gate).state == "waiting"
    assert asked == []
    place.later(1)
    assert place.advance(held, B, gate=gate) == RunProgress("waiting", "shift 10 %: the objective is being judged")
    assert place.actuator.did("do")[-1][1] == "a"
    assert place.advance(held, B, gate=gate) == RunProgress("done")
    assert asked == [done_at, done_at]
    assert place.advance(held, B, gate=gate) == RunProgress("done"), "a gate that was passed is not asked again"
    assert verdicts == []


def test_a_gate_that_is_missed_ends_it_before_the_next_step(place: Place) -> None:
    async def gate(_since: float) -> bool | None:
        return False

    first = Operation("a", {}, 100.0, "shift 10 %", gate=True)
    assert place.advance(first, B, gate=gate) == RunProgress("failed", "shift 10 %: the objective is missed since")
    assert [c[1] for c in place.actuator.did("do")] == ["a"]


def test_pause_is_read_right_before_each_step(place: Place) -> None:
    with place.store.write() as db:
        control.pause(db, now=1.0, by="ada", reason="wait")
    assert place.advance() == RunProgress("waiting", "paused: by ada, wait", "PAUSE")
    assert place.actuator.calls == []
    with place.store.write() as db:
        control.resume(db, now=2.0, by="ada")

    async def clear(operation: Operation, _last: Receipt | None) -> None:
        if operation.name == "b":  # while it looks, somebody pauses
            with place.store.write() as db:
                control.pause(db, now=3.0, by="ada", reason="stop")

    place.actuator.clear = clear  # type: ignore[method-assign]
    assert place.advance() == RunProgress("waiting", "paused: by ada, stop", "PAUSE")
    assert [c[1] for c in place.actuator.did("do")] == ["a"]


def test_who_was_deposed_in_the_middle_of_a_call_writes_nothing(place: Place) -> None:
    async def do(*_: Any) -> Receipt:
        with place.store.write() as db:
            control.release(db, "leader", "one")
        place.leads("two")
        raise ActuatorError("STALE", "409", trouble=Trouble.DRIFT)

    really, place.actuator.do = place.actuator.do, do  # type: ignore[method-assign]
    with pytest.raises(LostLease):
        place.advance()
    assert place.journal() == [(0, "intended")]
    place.actuator.do = really  # type: ignore[method-assign]
    with pytest.raises(LostLease):
        place.advance()
    assert place.actuator.did("do") == []
    assert place.advance(lead=place.leads("two")) == RunProgress("done")


# -- deployments, which a person's own process carries out ---------------------------------------------------------------


def _deployment(place: Place, purpose: Any = "deploy") -> Deployment:
    plan = Plan("chat", "scripted", Shape(replicas=0), Shape(replicas=1), "v", (A,), False, 0.0, "back", finish=(B,))
    return Deployment("chat", plan, place.actuator, guardrails_of(SETTINGS, "chat"), purpose)


def _carry_out(place: Place, deployment: Deployment) -> None:
    async def live() -> LiveState:
        return LiveState(Shape(replicas=1), "v2", True)

    place.actuator.live = live  # type: ignore[method-assign]
    asyncio.run(carry_out(deployment, place.store, place.clock, "ada"))


def _changes(place: Place) -> list[tuple[str, str]]:
    with place.store.read() as db:
        return [(c["purpose"], c["state"]) for c in changes.listed(db)]


def test_a_deployment_that_was_cut_off_goes_on_under_its_tokens(place: Place) -> None:
    async def clear(operation: Operation, _last: Receipt | None) -> None:
        if operation.name == "b":
            with place.store.write() as db:
                control.pause(db, now=1.0, by="ada", reason="wait")

    really, place.actuator.clear = place.actuator.clear, clear  # type: ignore[method-assign]
    with pytest.raises(CannotDeploy, match="resume"):
        _carry_out(place, _deployment(place))
    assert _changes(place) == [("deploy", "applying")]
    with place.store.write() as db:
        control.resume(db, now=2.0, by="ada")
    place.actuator.clear = really  # type: ignore[method-assign]
    _carry_out(place, _deployment(place))
    assert _changes(place) == [("deploy", "succeeded")]
    assert [c[1] for c in place.actuator.did("do")] == ["a", "b"], "what was done is not done again"


def test_a_step_that_fails_ends_the_deployment_and_leaves_the_endpoint_free(place: Place) -> None:
    place.actuator.answers = {"do a": [ActuatorError("NO", "never")]}
    with pytest.raises(CannotDeploy, match="do a: NO: never"):
        _carry_out(place, _deployment(place))
    assert _changes(place) == [("deploy", "failed")]
    _carry_out(place, _deployment(place))
    assert sorted(_changes(place)) == [("deploy", "failed"), ("deploy", "succeeded")]


def test_while_a_change_is_under_way_nobody_deploys(place: Place) -> None:
    with place.store.write() as db:
        changes.start(db, change_row("cccc0002"))
    with pytest.raises(CannotDeploy, match="a change is under way"):
        _carry_out(place, _deployment(place))
    assert place.actuator.calls == []
