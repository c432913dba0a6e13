"""Carries out the operations of a plan, for changes, deployments and trials alike.

Why this is safe, whoever dies when. (1) The intent of a step is committed before the step. (2) Its token is the same whenever it is
resumed, and a step is done once for a token. (3) Intent and outcome are written in transactions that hold the lease's row: whoever
was deposed writes nothing. (4) The guardrails, pause among them, are asked in the transaction right before the step. (5) What a step
leaves behind is in the journal, so that its progress can be asked for after a kill. (6) Each step has a deadline, in each of its states.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
import structlog

from actuators.base import Actuator, ActuatorError, Progress, Receipt, Step, Trouble
from actuators.shape import Operation
from agent.store import Store, changes, control
from agent.store.control import Lead
from agent.store.rows import JournalRow
from analyzers.policy import RuleVerdict
from collectors.clock import Clock

log = structlog.get_logger()

Direction = Literal["apply", "finish", "rollback"]
#: A system that does not answer a call for so long keeps nobody else waiting. A step itself may take much longer.
CALL_S = 60.0
#: After a refusal that may pass, the next try comes after half of the time that it has been tried for, within these bounds.
_LEAST_WAIT_S, _MOST_WAIT_S = 2.0, 60.0
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ChangeRun:
    """The operations of one change in one direction."""

    change: str
    endpoint: str
    direction: Direction
    operations: Sequence[Operation]
    actuator: Actuator
    asks: Callable[[sa.Connection], RuleVerdict | None]
    """What of the guardrails stands against the next step at this moment; None: nothing does. Asked in the transaction right before it."""
    gate: Callable[[float], Awaitable[bool | None]] | None = None
    """Whether the objective was kept since that moment (Unix seconds); None: not known yet. Without it no gate is asked."""


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is."""

    state: Literal["waiting", "done", "failed"]
    why: str = ""
    rule: str = ""
    """Of the guardrails, where one of them keeps it waiting or forbids it."""


_DONE = RunProgress("done")


class Execution:
    """Holds no state of its own: what was done stands in the journal."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def advance(self, run: ChangeRun, lead: Lead) -> RunProgress:
        """Do the next steps, as far as they go now. Raises ``LostLease`` where ``lead`` is no longer the truth."""
        rows = {row["step"]: row for row in await asyncio.to_thread(self._journal, run)}
        last: Receipt | None = None
        for step, operation in enumerate(run.operations):
            row = rows.get(step)
            if row is not None and row["state"] == "done":
                progress, last, done_at = _DONE, receipt_of(row), row["done_at"] or 0.0
            else:
                progress, last = await self._step(run, step, operation, row, last, lead)
                done_at = self._clock.now()
            if progress.state == "done" and step + 1 not in rows:
                progress = await self._pass(run, operation, done_at)
            if progress.state != "done":
                return progress
        return _DONE

    async def _step(
        self, run: ChangeRun, step: int, operation: Operation, row: JournalRow | None, last: Receipt | None, lead: Lead
    ) -> tuple[RunProgress, Receipt | None]:
        if row is not None and row["state"] == "failed":
            return RunProgress("failed", f"{operation.summary}: {row['detail']}"), None
        if row is not None and row["ask_at"] is not None and self._clock.now() < row["ask_at"]:
            return RunProgress("waiting", row["detail"]), None
        if row is None or row["state"] in ("waiting", "intended"):
            begun = await self._begin(run, step, operation, row, last, lead)
            if isinstance(begun, RunProgress):
                return begun, None
            receipt, started_at = begun, self._clock.now()
        else:
            receipt, started_at = receipt_of(row), row["started_at"] or row["intent_at"]
        return await self._follow(run, step, operation, receipt, started_at, lead)

    async def _begin(
        self, run: ChangeRun, step: int, operation: Operation, row: JournalRow | None, last: Receipt | None, lead: Lead
    ) -> Receipt | RunProgress:
        """Write the step down, ask whether it may be done, and do it."""
        noted = await asyncio.to_thread(self._note, run, step, operation, row, lead)
        if isinstance(noted, RunProgress):
            return noted
        intent_at, state = noted
        try:
            if state == "waiting":  # an intent that was written down may have been carried out: then its token answers
                await in_time(run.actuator.clear(operation, last))
                held_up = await asyncio.to_thread(self._intend, run, step, lead)
                if held_up is not None:
                    return held_up
            log.info("operation", endpoint=run.endpoint, change=run.change, step=step, what=operation.summary)
            receipt = await in_time(run.actuator.do(operation, _token(run, step), last))
        except ActuatorError as error:
            return await self._refused(run, step, operation, error, intent_at, lead)
        now = self._clock.now()
        started = {"state": "started", "detail": "", "started_at": now, "ask_at": None, "receipt": receipt.as_dict()}
        await self._settle(run, step, lead, **started)
        return receipt

    def _note(
        self, run: ChangeRun, step: int, operation: Operation, row: JournalRow | None, lead: Lead
    ) -> tuple[float, str] | RunProgress:
        """When it was first written down, and its state; or that it must wait."""
        now = self._clock.now()
        with control.leading(self._store, lead) as db:
            held_up = _held_up(run, operation, db)
            if held_up is not None:
                return held_up
            if row is not None:
                return row["intent_at"], row["state"]
            changes.intend(
                db,
                {
                    "change_id": run.change,
                    "direction": run.direction,
                    "step": step,
                    "token": _token(run, step),
                    "operation": {"name": operation.name, "args": dict(operation.args), "summary": operation.summary},
                    "epoch": lead.epoch,
                    "intent_at": now,
                },
            )
        return now, "waiting"

    def _intend(self, run: ChangeRun, step: int, lead: Lead) -> RunProgress | None:
        """The last look before the step; None: it may be done now."""
        with control.leading(self._store, lead) as db:
            held_up = _held_up(run, run.operations[step], db)
            if held_up is None:
                changes.settle(db, run.change, run.direction, step, state="intended", epoch=lead.epoch)
        return held_up

    async def _refused(
        self, run: ChangeRun, step: int, operation: Operation, error: ActuatorError, intent_at: float, lead: Lead
    ) -> RunProgress:
        tried_s = self._clock.now() - intent_at
        if error.passes and tried_s <= operation.deadline_s:
            wait_s = min(_MOST_WAIT_S, max(_LEAST_WAIT_S, tried_s / 2))
            if error.retry_after_s is not None:
                wait_s = max(error.retry_after_s, 0.0)
            log.warning("operation_retries", endpoint=run.endpoint, change=run.change, step=step, error=str(error))
            await self._settle(run, step, lead, detail=str(error), ask_at=self._clock.now() + wait_s)
            return RunProgress("waiting", str(error))
        return await self._fail(run, step, operation, str(error), lead)

    async def _follow(
        self, run: ChangeRun, step: int, operation: Operation, receipt: Receipt, started_at: float, lead: Lead
    ) -> tuple[RunProgress, Receipt | None]:
        """Ask how far it is."""
        try:
            state = await in_time(run.actuator.done(operation, receipt))
        except ActuatorError as error:  # not knowing is no progress, and no failure
            log.warning("progress_unknown", endpoint=run.endpoint, change=run.change, step=step, error=str(error))
            state = Step(Progress.PENDING, str(error), again_in_s=error.retry_after_s)
        now, detail, kept = self._clock.now(), state.detail, state.receipt or receipt
        if state.progress is Progress.DONE:
            done = {"state": "done", "detail": detail, "done_at": now, "ask_at": None, "receipt": kept.as_dict()}
            await self._settle(run, step, lead, **done)
            return _DONE, kept
        if state.progress is Progress.FAILED:
            return await self._fail(run, step, operation, detail, lead), None
        if now - started_at > operation.deadline_s:
            late = f"not done within {operation.deadline_s:.0f} s" + (f" ({detail})" if detail else "")
            return await self._fail(run, step, operation, late, lead), None
        if state.again_in_s is not None or state.receipt is not None:
            ask_at = None if state.again_in_s is None else now + state.again_in_s
            await self._settle(run, step, lead, detail=detail, ask_at=ask_at, receipt=kept.as_dict())
        return RunProgress("waiting", detail), None

    async def _pass(self, run: ChangeRun, operation: Operation, done_at: float) -> RunProgress:
        """Wait after a step, and have the objective judged where it is a gate."""
        now, opens_at = self._clock.now(), done_at + operation.hold_s
        if now < opens_at:
            return RunProgress("waiting", f"{operation.summary}: holding for {opens_at - now:.0f} s more")
        if not operation.gate or run.gate is None:
            return _DONE
        kept = await run.gate(done_at)
        if kept is None:
            return RunProgress("waiting", f"{operation.summary}: the objective is being judged")
        return _DONE if kept else RunProgress("failed", f"{operation.summary}: the objective is missed since")

    async def _fail(self, run: ChangeRun, step: int, operation: Operation, detail: str, lead: Lead) -> RunProgress:
        await self._settle(run, step, lead, state="failed", detail=detail, done_at=self._clock.now(), ask_at=None)
        return RunProgress("failed", f"{operation.summary}: {detail}")

    async def _settle(self, run: ChangeRun, step: int, lead: Lead, **values: Any) -> None:
        def write() -> None:
            with control.leading(self._store, lead) as db:
                changes.settle(db, run.change, run.direction, step, epoch=lead.epoch, **values)

        await asyncio.to_thread(write)

    def _journal(self, run: ChangeRun) -> list[JournalRow]:
        with self._store.read() as db:
            return changes.journal(db, run.change, run.direction)


def _held_up(run: ChangeRun, operation: Operation, db: sa.Connection) -> RunProgress | None:
    """What the guardrails say right before a step; None: it may be done."""
    stop = run.asks(db)
    if stop is None:
        return None
    if stop.verdict == "wait":
        return RunProgress("waiting", stop.text, stop.rule)
    return RunProgress("failed", f"{operation.summary}: a guardrail forbids it: {stop.text}", stop.rule)


def receipt_of(row: JournalRow) -> Receipt:
    """What the step left in its journal row."""
    return Receipt(**(row["receipt"] or {}))


async def in_time(call: Awaitable[_T]) -> _T:
    """What a system answers. Anything else that comes of the call is an error like any other, which may pass."""
    try:
        return await asyncio.wait_for(call, CALL_S)
    except ActuatorError:
        raise
    except TimeoutError as error:
        text = f"no answer within {CALL_S:g} s"
        raise ActuatorError("TIMEOUT", text, trouble=Trouble.UNREACHABLE) from error
    except Exception as error:  # a bug in an actuator is that endpoint's trouble, and has its deadline
        log.exception("actuator_bug")
        raise ActuatorError("BUG", f"{type(error).__name__}: {error}", trouble=Trouble.UNREACHABLE) from error


def _token(run: ChangeRun, step: int) -> str:
    return f"{run.change}:{run.direction}:{step}"
