"""Adjust: carries out what was approved, a step at a time, and sees to it that every change ends.

Why this is safe, whoever dies when. (1) A change exists only through one transaction that moves its recommendation from
``approved`` and inserts the one active row that the database allows for an endpoint. (2) Each operation's intent is committed
before the operation; its token is the same when it is resumed, and operations are idempotent under their token. (3) Right before
each operation the brake and the lease's epoch are read again. (4) Each state has exactly one way on, and a deadline.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar
from zoneinfo import ZoneInfo

import structlog
from sqlalchemy.exc import IntegrityError

from actuators.base import ActuatorError, Progress, Receipt, Trouble
from actuators.shape import Operation, Plan
from agent.metrics import Metrics
from agent.settings import ChangeWindow, EndpointSettings, Settings, weekdays
from agent.store import Store, changes, control, fleet, outbox, recommendations, tunes, windows
from agent.watch import Watched, Watcher
from agent.wiring import policy_of
from analyzers.policy import violations
from analyzers.prediction import Prediction
from analyzers.verify import Scored, Verdict, judge
from collectors.clock import Clock

log = structlog.get_logger()

Direction = Literal["apply", "rollback"]
LEASE = "leader"
#: A system that does not answer a call for so long keeps nobody else waiting. A step itself may take much longer.
CALL_S = 60.0
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Lead:
    """Proof of leading: this holder, under this epoch."""

    holder: str
    epoch: int


class Applier:
    """The adjusting part of the loop. ``cycle`` is called often; it never waits for the world."""

    def __init__(
        self,
        watched: Mapping[str, Watched],
        watcher: Watcher,
        settings: Settings,
        store: Store,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._watched = watched
        self._watcher = watcher
        self._settings = settings
        self._store = store
        self._clock = clock
        self._metrics = metrics

    async def cycle(self, lead: Lead) -> None:
        """Advance every change under way by what can be done now, then take up what was approved."""
        now = self._clock.now()
        with self._store.write() as db:
            recommendations.expire(db, now)
            self._metrics.paused.set(control.paused(db) is not None)
            under_way = changes.active(db)
            asked_back = [c for c in changes.listed(db, states=["succeeded"]) if c["rollback_requested"]]
            approved = recommendations.listed(db, states=["approved"])[::-1]
        for change in asked_back:
            self._undo_succeeded(change)
        failed: list[Exception] = []
        for step, row in [*((self._advance, c) for c in under_way), *((self._take_up, r) for r in approved)]:
            try:
                await step(row, lead)
            except Exception as error:  # one endpoint's trouble does not keep the others waiting
                log.exception("act_failed")
                failed.append(error)
        if failed:
            raise failed[0]  # the loop's edge counts it

    # -- taking up -----------------------------------------------------------------------------------------------------

    async def _take_up(self, row: recommendations.Row, lead: Lead) -> None:
        """Begin an approved change, if it may begin now; void it, if it may not begin at all."""
        watched = self._watched.get(row["endpoint"])
        if watched is None:
            return self._void(row, "the endpoint is no longer in the settings")
        waits = self._waits(row, watched.settings)
        if waits:
            log.info("change_waits", endpoint=row["endpoint"], id=row["id"], why=waits)
            return None
        live = await self._watcher.look(watched)
        if live is None:
            return None
        plan = Plan.from_dict(row["plan"])
        objection = self._objection(row, watched, plan, live.shape == plan.before, live.version)
        if objection:
            return self._void(row, objection)
        with self._store.write() as db, db.begin_nested() as both:
            begun = recommendations.move(
                db,
                row["id"],
                from_states=["approved"],
                to="applying",
                now=self._clock.now(),
                by="flyball",
                reason="taken up",
            ) and changes.start(db, self._new_change(row, plan, lead))
            if not begun:  # somebody else took it up, or another one
                both.rollback()
        if begun:
            log.info("change_begins", endpoint=row["endpoint"], id=row["id"], plan=plan.hash)
        return None

    def _waits(self, row: recommendations.Row, endpoint: EndpointSettings) -> str | None:
        """Why a change may not begin just now; None when it may."""
        now = self._clock.now()
        with self._store.read() as db:
            state = fleet.get(db, endpoint.name)
            if control.paused(db) is not None:
                return "paused"
            if changes.listed(
                db, endpoint=endpoint.name, states=("applying", "warming", "verifying", "rolling_back"), limit=1
            ):
                return "another change is under way"
            if tunes.running(db, endpoint.name) is not None:
                return "a tune is under way"
        last = state["last_change_at"] if state is not None else None
        if last is not None and now < last + endpoint.policy.cooldown_s and row["requested_by"] == "flyball":
            return "cooling down after the last change"
        if not within(endpoint.policy.change_windows, now, self._settings.timezone):
            return "outside the change windows"
        return None

    def _objection(
        self, row: recommendations.Row, watched: Watched, plan: Plan, same_shape: bool, version: str
    ) -> str | None:
        """Why an approved change must not begin at all: each line is one of the invariants."""
        endpoint = watched.settings
        with self._store.read() as db:
            state = fleet.get(db, endpoint.name)
        if endpoint.mode == "observe":
            return "the endpoint's mode is observe: nothing is applied to it"
        if self._clock.now() >= row["expires_at"]:
            return "the approval has expired"
        if plan.hash != row["plan_hash"]:
            return "the plan is not the one that was approved"
        if state is not None and state["frozen_because"] and row["requested_by"] == "flyball":
            return f"the endpoint is frozen: {state['frozen_because']}"
        if version != plan.version or not same_shape:
            return "somebody changed the endpoint since the plan was made"
        broken = violations(plan.after, plan.before, policy_of(endpoint), watched.catalogue)
        return f"a guardrail forbids it: {'; '.join(broken)}" if broken else None

    def _void(self, row: recommendations.Row, reason: str) -> None:
        log.warning("approval_void", endpoint=row["endpoint"], id=row["id"], why=reason)
        with self._store.write() as db:
            recommendations.move(
                db,
                row["id"],
                from_states=["approved"],
                to="superseded",
                now=self._clock.now(),
                by="flyball",
                reason=reason,
            )

    def _new_change(self, row: recommendations.Row, plan: Plan, lead: Lead) -> dict[str, Any]:
        return {
            "id": recommendations.new_id(),
            "recommendation_id": row["id"],
            "endpoint": row["endpoint"],
            "state": "applying",
            "state_reason": "",
            "approved_by": row["state_by"],
            "plan_hash": row["plan_hash"],
            "plan": plan.as_dict(),
            "prediction": row["body"]["proposed"]["prediction"],
            "epoch": lead.epoch,
            "created_at": self._clock.now(),
        }

    # -- one change ----------------------------------------------------------------------------------------------------

    async def _advance(self, change: changes.Row, lead: Lead) -> None:
        watched = self._watched.get(change["endpoint"])
        if watched is None:
            log.warning("change_without_endpoint", change=change["id"], endpoint=change["endpoint"])
            return
        if watched.settings.mode == "observe" and change["state"] in ("applying", "rolling_back"):
            self._finish(change, "failed", "its mode became observe on the way: nothing more is sent; see what is live")
            return
        if change["rollback_requested"] and change["state"] in ("applying", "warming", "verifying"):
            self._turn_back(change, "asked for by a person")
            return
        if change["state"] == "applying":
            await self._apply(change, watched, lead)
        elif change["state"] == "warming":
            self._warm(change, watched)
        elif change["state"] == "verifying":
            await asyncio.to_thread(self._verify, change, watched)
        elif change["state"] == "rolling_back":
            await self._roll_back(change, watched, lead)

    async def _apply(self, change: changes.Row, watched: Watched, lead: Lead) -> None:
        done, failure = await self._operate(change, Plan.from_dict(change["plan"]), "apply", watched, lead)
        now = self._clock.now()
        if failure is not None:
            self._turn_back(change, failure)
        elif done:
            await self._watcher.look(watched)
            with self._store.write() as db:
                changes.move(
                    db,
                    change["id"],
                    from_states=["applying"],
                    to="warming",
                    now=now,
                    reason="every step is done",
                    applied_at=now,
                )
                fleet.changed(db, change["endpoint"], now)
            log.info("change_applied", endpoint=change["endpoint"], change=change["id"])

    def _warm(self, change: changes.Row, watched: Watched) -> None:
        now = self._clock.now()
        ready = change["applied_at"] + watched.settings.verify.warmup_s
        if now < ready:
            return
        width = self._settings.collect.window_s
        with self._store.write() as db:
            changes.move(
                db,
                change["id"],
                from_states=["warming"],
                to="verifying",
                now=now,
                reason="warm",
                judged_from=-(-ready // width) * width,
            )

    def _verify(self, change: changes.Row, watched: Watched) -> None:
        verdict = self._judge(change, watched)
        if verdict.state == "pending":
            return
        with self._store.write() as db:
            if not changes.ledger(db, change_id=change["id"]):  # a crash right after this must not write it twice
                changes.add_ledger(db, _ledger_rows(change, verdict.scores, self._clock.now()))
            changes.update(db, change["id"], outcome=self._outcome(change, verdict))
        if verdict.state == "regressed":
            self._turn_back(change, verdict.text)
        else:
            self._finish(change, "succeeded", verdict.text)

    def _judge(self, change: changes.Row, watched: Watched) -> Verdict:
        endpoint, width, now = watched.settings, self._settings.collect.window_s, self._clock.now()
        source = next(iter(endpoint.sources))
        with self._store.read() as db:
            earlier = [c for c in changes.listed(db, endpoint=endpoint.name) if c["created_at"] < change["created_at"]]
            since = max(
                [change["created_at"] - endpoint.policy.evidence_s, *(c["finished_at"] or 0.0 for c in earlier)]
            )
            before = windows.load(db, endpoint.name, source, since, change["created_at"], width)
            after = windows.load(db, endpoint.name, source, change["judged_from"], now, width)
        prediction = Prediction.from_dict(change["prediction"]) if change["prediction"] else None
        return judge(
            before,
            after,
            endpoint.wanted(),
            prediction,
            needed=endpoint.verify.windows,
            final=now >= change["applied_at"] + endpoint.verify.warmup_s + endpoint.verify.deadline_s,
            load_tolerance=endpoint.verify.load_tolerance,
        )

    def _outcome(self, change: changes.Row, verdict: Verdict) -> dict[str, Any]:
        plan = Plan.from_dict(change["plan"])
        catalogue = self._watched[change["endpoint"]].catalogue
        before, after = catalogue.per_hour(plan.before), catalogue.per_hour(plan.after)
        saving = before - after if before is not None and after is not None else None
        return verdict.as_dict() | {"per_hour_before": before, "per_hour_after": after, "saving_per_hour": saving}

    # -- back ----------------------------------------------------------------------------------------------------------

    def _turn_back(self, change: changes.Row, reason: str) -> None:
        log.warning("change_turns_back", endpoint=change["endpoint"], change=change["id"], why=reason)
        with self._store.write() as db:
            changes.move(
                db,
                change["id"],
                from_states=["applying", "warming", "verifying"],
                to="rolling_back",
                now=self._clock.now(),
                reason=reason,
            )

    def _undo_succeeded(self, change: changes.Row) -> None:
        """A person wants a finished change undone: the newest of its endpoint only, since it restores what was before it."""
        with self._store.write() as db:
            newest = changes.listed(db, endpoint=change["endpoint"], limit=1)[0]
            if newest["id"] != change["id"] or self._observes(change["endpoint"]):
                changes.update(db, change["id"], rollback_requested=False)
                return
        try:
            with self._store.write() as db:
                changes.move(
                    db,
                    change["id"],
                    from_states=["succeeded"],
                    to="rolling_back",
                    now=self._clock.now(),
                    reason="asked for by a person",
                )
        except IntegrityError:
            log.info("rollback_waits", change=change["id"], why="another change is under way")

    def _observes(self, endpoint: str) -> bool:
        watched = self._watched.get(endpoint)
        return watched is None or watched.settings.mode == "observe"

    async def _roll_back(self, change: changes.Row, watched: Watched, lead: Lead) -> None:
        if change["rollback_plan"] is None:
            live = await self._watcher.look(watched)
            if live is None:
                return
            before = Plan.from_dict(change["plan"]).before
            try:
                plan = await _in_time(watched.actuator.plan(live, before))
            except ActuatorError as error:
                if error.passes:
                    return
                self._finish(change, "failed", f"{change['state_reason']}; no way back: {error}")
                return
            with self._store.write() as db:
                changes.update(db, change["id"], rollback_plan=plan.as_dict())
        else:
            plan = Plan.from_dict(change["rollback_plan"])
        done, failure = await self._operate(change, plan, "rollback", watched, lead)
        if failure is not None:
            self._finish(change, "failed", f"{change['state_reason']}; the way back failed: {failure}")
        elif done:
            await self._watcher.look(watched)
            self._finish(change, "rolled_back", change["state_reason"])

    def _finish(self, change: changes.Row, state: str, reason: str) -> None:
        """End the change. What was not succeeded freezes the endpoint: a person looks before anything else is done."""
        now = self._clock.now()
        with self._store.write() as db:
            if not changes.move(
                db,
                change["id"],
                from_states=["applying", "verifying", "rolling_back"],
                to=state,
                now=now,
                reason=reason,
                finished_at=now,
                rollback_requested=False,
            ):
                return
            if state != "succeeded" and not changes.ledger(db, change_id=change["id"]):
                changes.add_ledger(db, _unobserved(change, now))
            recommendations.move(
                db,
                change["recommendation_id"],
                from_states=["applying", "succeeded"],
                to=state,
                now=now,
                by="flyball",
                reason=reason,
            )
            if state != "succeeded":  # its shape changed once more; a success is judged since it was applied
                fleet.changed(db, change["endpoint"], now)
            if state == "failed" or (state == "rolled_back" and not change["rollback_requested"]):
                fleet.freeze(
                    db,
                    change["endpoint"],
                    reason=f"change {change['id']} {state.replace('_', ' ')}: {reason}",
                    now=now,
                    by="flyball",
                )
            if self._settings.slack is not None:
                outbox.put(db, channel="slack", kind="change", subject=change["id"], revision=_REVISION[state], now=now)
        self._metrics.changes.labels(change["endpoint"], state).inc()
        log.info("change_ended", endpoint=change["endpoint"], change=change["id"], state=state, why=reason)

    # -- operations ----------------------------------------------------------------------------------------------------

    async def _operate(
        self, change: changes.Row, plan: Plan, direction: Direction, watched: Watched, lead: Lead
    ) -> tuple[bool, str | None]:
        """Do the next steps, as far as they go now. Returns (all done, failure)."""
        with self._store.read() as db:
            settled = {row["step"]: row for row in changes.journal(db, change["id"], direction)}
        for i, operation in enumerate(plan.operations):
            row = settled.get(i)
            if row is not None and row["state"] == "done":
                continue
            if row is not None and row["state"] == "failed":  # written down, and then we died
                return False, f"{operation.summary}: {row['detail']}"
            token = f"{change['id']}:{direction}:{i}"
            if row is None or row["state"] == "intended":
                intent_at = row["intent_at"] if row is not None else None
                began = await self._begin(change, operation, direction, i, token, watched, lead, intent_at)
                if began is not None:
                    return False, None if began == "later" else began
            started_at = row["done_at"] if row is not None and row["state"] == "started" else self._clock.now()
            finished, failure = await self._poll(change, operation, direction, i, token, watched, started_at)
            if not finished:
                return False, failure
        return True, None

    async def _begin(
        self,
        change: changes.Row,
        operation: Operation,
        direction: Direction,
        step: int,
        token: str,
        watched: Watched,
        lead: Lead,
        intent_at: float | None,
    ) -> str | None:
        """Write the intent, unless it stands there since ``intent_at``, then do it. Returns None when it has begun,
        ``later``, or the failure.
        """
        now = self._clock.now()
        with self._store.write() as db:
            if control.paused(db) is not None or not control.holds(db, LEASE, lead.holder, lead.epoch, now):
                return "later"
            if intent_at is None:
                changes.intend(
                    db,
                    {
                        "change_id": change["id"],
                        "direction": direction,
                        "step": step,
                        "token": token,
                        "operation": {
                            "name": operation.name,
                            "args": dict(operation.args),
                            "summary": operation.summary,
                        },
                        "epoch": lead.epoch,
                        "intent_at": now,
                    },
                )
        log.info(
            "operation",
            endpoint=change["endpoint"],
            change=change["id"],
            step=step,
            direction=direction,
            what=operation.summary,
        )
        try:
            receipt = await _in_time(watched.actuator.do(operation, token, None))
        except ActuatorError as error:
            if error.passes and now - (intent_at or now) <= operation.deadline_s:
                log.warning(
                    "operation_retries", endpoint=change["endpoint"], change=change["id"], step=step, error=str(error)
                )
                return "later"
            self._settle(change, direction, step, "failed", str(error))
            return f"{operation.summary}: {error}"
        self._settle(change, direction, step, "started", "", receipt)
        return None

    async def _poll(
        self,
        change: changes.Row,
        operation: Operation,
        direction: Direction,
        step: int,
        token: str,
        watched: Watched,
        started_at: float,
    ) -> tuple[bool, str | None]:
        try:
            state = await _in_time(watched.actuator.done(operation, Receipt({"token": token})))
        except ActuatorError as error:
            log.warning(
                "progress_unknown", endpoint=change["endpoint"], change=change["id"], step=step, error=str(error)
            )
            state = None
        if state is not None and state.progress is Progress.DONE:
            self._settle(change, direction, step, "done", state.detail)
            return True, None
        if state is not None and state.progress is Progress.FAILED:
            self._settle(change, direction, step, "failed", state.detail)
            return False, f"{operation.summary}: {state.detail}"
        if self._clock.now() - started_at > operation.deadline_s:
            detail = f"not done within {operation.deadline_s:.0f} s"
            self._settle(change, direction, step, "failed", detail)
            return False, f"{operation.summary}: {detail}"
        return False, None

    def _settle(
        self,
        change: changes.Row,
        direction: Direction,
        step: int,
        state: str,
        detail: str,
        receipt: Receipt | None = None,
    ) -> None:
        with self._store.write() as db:
            changes.settle(db, change["id"], direction, step, state=state, detail=detail, now=self._clock.now())


async def _in_time(call: Awaitable[_T]) -> _T:
    """What a system answers; that it does not answer is an error like any other, which may pass."""
    try:
        return await asyncio.wait_for(call, CALL_S)
    except TimeoutError as error:
        raise ActuatorError("TIMEOUT", f"no answer within {CALL_S:g} s", trouble=Trouble.UNREACHABLE) from error


_REVISION = {"succeeded": 1, "rolled_back": 2, "failed": 3}


def within(allowed: list[ChangeWindow], now: float, timezone: str) -> bool:
    """Whether a change may begin at this moment. Without any window it may at any time."""
    if not allowed:
        return True
    local = datetime.fromtimestamp(now, ZoneInfo(timezone))
    for window in allowed:
        days, time = weekdays(window.days), local.time().replace(microsecond=0, tzinfo=None)
        if window.start <= window.end:
            if local.weekday() in days and window.start <= time <= window.end:
                return True
        elif (local.weekday() in days and time >= window.start) or (
            (local.weekday() - 1) % 7 in days and time <= window.end
        ):
            return True  # over midnight: the days are those on which it begins
    return False


def _ledger_rows(change: changes.Row, scores: tuple[Scored, ...], now: float) -> list[dict[str, Any]]:
    return [
        {
            "change_id": change["id"],
            "endpoint": change["endpoint"],
            "metric": s.metric,
            "method": s.method,
            "low": s.low,
            "predicted": s.predicted,
            "high": s.high,
            "before": s.before,
            "observed": s.observed,
            "observed_low": s.at_least,
            "observed_high": None if s.at_most is None or math.isinf(s.at_most) else s.at_most,
            "inside": s.inside,
            "error": s.error,
            "comparable": s.comparable,
            "at": now,
        }
        for s in scores
    ]


def _unobserved(change: changes.Row, now: float) -> list[dict[str, Any]]:
    """The promise of a change that never came so far as to be observed."""
    prediction = change["prediction"] or {"metrics": {}, "method": "none"}
    scores = tuple(
        Scored(metric, prediction["method"], i["low"], i["mid"], i["high"], None, None, comparable=False)
        for metric, i in prediction["metrics"].items()
    )
    return _ledger_rows(change, scores, now)
