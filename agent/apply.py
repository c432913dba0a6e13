"""Adjust: leads every change from its first step to its end.

Each state has its ways on, and a limit to how long it lasts: ``applying`` the deadlines of its steps; ``warming`` and ``verifying``
their settings' times; ``finishing`` the deadlines of its steps; ``rolling_back`` those of its steps, and a limit until the way back
is known. An endpoint that is taken out of the settings ends its change. Steps are carried out by ``Execution``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import IntegrityError

from actuators.base import ActuatorError
from actuators.shape import Plan, Shape
from agent.cases import guardrails_of, obstacle_of
from agent.execution import ChangeRun, Direction, Execution, RunProgress, in_time, receipt_of
from agent.metrics import Metrics
from agent.schedules import ScheduleKeeper, system_plan
from agent.settings import Settings
from agent.store import Store, changes, control, fleet, outbox, recommendations, schedules
from agent.store.control import Lead, LostLease
from agent.store.evidence import judged
from agent.store.rows import JournalRow
from agent.store.schedules import StandingSchedule
from agent.uptake import Uptake
from agent.watch import WatchedEndpoint, Watcher
from agent.wayback import WayBackReview
from analyzers.guardrails import Stage
from analyzers.policy import RuleVerdict
from analyzers.prediction import Prediction
from analyzers.verify import NO_METHOD, LedgerScore, Verdict, judge
from collectors.clock import Clock

log = structlog.get_logger()

LEASE = "leader"
#: What the governor itself leads to its end: advice that was approved, and the steps of a schedule.
GOVERNED = ("change", "schedule")
#: A cycle waits no longer than this for what it began; whatever hangs goes on by itself, and is not begun twice.
CYCLE_S = 5.0
#: So long a way back may be unknown, the system being away, before the change ends as failed.
UNKNOWN_WAY_S = 1800.0
#: So long after its time a change that was not judged turns back.
UNJUDGED_S = 900.0
#: The metric of a row of the ledger where nothing was promised and no objective is stated.
NO_TARGET = "outcome"
#: A deployment or a trial whose process is gone for so long is over.
ABANDONED_S = 900.0


class Applier:
    """The adjusting part of the loop. ``cycle`` is called often; it never waits for the world."""

    def __init__(
        self,
        watched: Mapping[str, WatchedEndpoint],
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
        self._execution = Execution(store, clock)
        self._uptake = Uptake(watched, watcher, settings, store, clock)
        self._schedules = ScheduleKeeper(watched, watcher, settings, store, clock)
        self._way_backs = WayBackReview(watched, settings, store, clock)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """By endpoint: what is being done about it. Endpoints do not wait for each other."""

    async def cycle(self, lead: Lead) -> None:
        """Advance every change under way by what can be done now, then take up what was approved."""
        under_way, approved, due = await asyncio.to_thread(self._agenda, lead)
        await asyncio.to_thread(self._way_backs.cycle, lead)
        for name in dict.fromkeys([*(row["endpoint"] for row in (*under_way, *approved)), *due]):
            if name not in self._tasks:
                mine = [change for change in under_way if change["endpoint"] == name]
                waiting = [row for row in approved if row["endpoint"] == name]
                self._tasks[name] = asyncio.create_task(self._serve(name, mine, waiting, due.get(name), lead))
        if not self._tasks:
            return
        await asyncio.wait(self._tasks.values(), timeout=CYCLE_S)
        ended = [self._tasks.pop(name) for name, task in list(self._tasks.items()) if task.done()]
        for task in ended:
            task.result()

    async def stop(self) -> None:
        """Leave everything where it is: the journal says how to go on."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()

    def _agenda(
        self, lead: Lead
    ) -> tuple[list[changes.Row], list[recommendations.Row], Mapping[str, StandingSchedule]]:
        """Changes under way, advice that was approved, and schedules with a step that is due."""
        now = self._clock.now()
        with control.leading(self._store, lead) as db:
            recommendations.expire(db, now)
            self._metrics.paused.set(control.paused(db) is not None)
            asked_back = [c for c in changes.listed(db, states=["succeeded"]) if c["rollback_requested"]]
            approved = recommendations.listed(db, states=["approved"])[::-1]
        for change in asked_back:
            self._undo_succeeded(change, lead)
        with self._store.read() as db:
            under_way = changes.active(db)
        return under_way, approved, self._schedules.due()

    async def _serve(
        self,
        name: str,
        under_way: list[changes.Row],
        approved: list[recommendations.Row],
        due: StandingSchedule | None,
        lead: Lead,
    ) -> None:
        """All that is to be done about one endpoint. Its trouble is counted, and stays its own."""
        try:
            for change in under_way:
                await self._advance(change, lead)
            for row in approved:
                await self._uptake.take_up(row, lead)
            if due is not None and not under_way and not approved:
                await self._schedules.step(name, due, lead)
        except LostLease as error:
            log.warning("deposed", endpoint=name, why=str(error))
        except Exception as error:
            self._metrics.change_errors.labels(name, type(error).__name__).inc()
            log.exception("act_failed", endpoint=name)

    # -- one change ----------------------------------------------------------------------------------------------------

    async def _advance(self, change: changes.Row, lead: Lead) -> None:
        if change["purpose"] not in GOVERNED:
            return await self._end_abandoned(change, lead)
        watched = self._watched.get(change["endpoint"])
        if watched is None:
            reason = "its endpoint was taken out of the settings on the way: nothing more is sent; see what is live"
            return await self._finish(change, "failed", reason, lead)
        if watched.settings.mode == "observe" and change["state"] in ("applying", "finishing", "rolling_back"):
            reason = "its mode became observe on the way: nothing more is sent; see what is live"
            return await self._finish(change, "failed", reason, lead)
        if change["rollback_requested"] and change["state"] in ("applying", "warming", "verifying"):
            return await self._turn_back(change, "asked for by a person", lead)
        if change["state"] in ("warming", "verifying") and self._overdue(change, watched):
            return await self._turn_back(change, "it was not judged in its time", lead)
        match change["state"]:
            case "applying":
                await self._apply(change, watched, lead)
            case "warming":
                await self._warm(change, watched, lead)
            case "verifying":
                await self._verify(change, watched, lead)
            case "finishing":
                await self._clean_up(change, watched, lead)
            case "rolling_back":
                await self._roll_back(change, watched, lead)
        return None

    async def _end_abandoned(self, change: changes.Row, lead: Lead) -> None:
        """A person's own deployment or trial: carried out by his process, and ended here once that is long gone."""

        def abandoned() -> bool:
            with self._store.read() as db:
                return control.leader(db, lease_of(change["endpoint"])) is None

        if self._clock.now() - _since(change) > ABANDONED_S and await asyncio.to_thread(abandoned):
            await self._finish(change, "failed", "its process is gone; see what is live", lead)

    def _overdue(self, change: changes.Row, watched: WatchedEndpoint) -> bool:
        return self._clock.now() > _warm_at(change, watched) + watched.settings.verify.deadline_s + UNJUDGED_S

    async def _apply(self, change: changes.Row, watched: WatchedEndpoint, lead: Lead) -> None:
        progress = await self._operate(change, Plan.from_dict(change["plan"]), "apply", watched, lead)
        if progress.state == "failed":
            await self._turn_back(change, progress.why, lead)
        elif progress.state == "done":
            await self._watcher.look(watched)
            now = self._clock.now()
            if change["purpose"] == "schedule":  # judged when it was approved, and by each analysis
                await self._finish(change, "succeeded", change["state_reason"], lead)
                return

            def write() -> None:
                with control.leading(self._store, lead) as db:
                    reason = "every step is done"
                    changes.move(
                        db, change["id"], from_states=["applying"], to="warming", now=now, reason=reason, applied_at=now
                    )
                    fleet.changed(db, change["endpoint"], now)

            await asyncio.to_thread(write)
            log.info("change_applied", endpoint=change["endpoint"], change=change["id"])

    async def _warm(self, change: changes.Row, watched: WatchedEndpoint, lead: Lead) -> None:
        now = self._clock.now()
        ready = _warm_at(change, watched)
        if now < ready:
            return
        width = self._settings.collect.window_s

        def write() -> None:
            with control.leading(self._store, lead) as db:
                changes.move(
                    db,
                    change["id"],
                    from_states=["warming"],
                    to="verifying",
                    now=now,
                    reason="warm",
                    judged_from=-(-ready // width) * width,
                )

        await asyncio.to_thread(write)

    async def _verify(self, change: changes.Row, watched: WatchedEndpoint, lead: Lead) -> None:
        begin = _warm_at(change, watched)
        last = begin + watched.settings.verify.deadline_s
        verdict = await asyncio.to_thread(self._judge, change, watched, change["judged_from"] or begin, last)
        if verdict.state == "pending":
            return
        plan = Plan.from_dict(change["plan"])

        def write() -> None:
            with control.leading(self._store, lead) as db:
                if not changes.ledger(db, change_id=change["id"]):  # a crash right after this must not write it twice
                    changes.add_ledger(db, _ledger_rows(change, verdict.scores, self._clock.now()))
                changes.update(db, change["id"], outcome=self._outcome(change, verdict))
                if verdict.state != "regressed" and plan.finish:
                    changes.move(
                        db,
                        change["id"],
                        from_states=["verifying"],
                        to="finishing",
                        now=self._clock.now(),
                        reason=verdict.text,
                    )

        await asyncio.to_thread(write)
        if verdict.state == "regressed":
            await self._turn_back(change, verdict.text, lead)
        elif not plan.finish:
            await self._finish(change, "succeeded", verdict.text, lead)

    async def _clean_up(self, change: changes.Row, watched: WatchedEndpoint, lead: Lead) -> None:
        """After a verdict of success: what the way back needed goes. What cannot be removed makes the success no failure."""
        plan = Plan.from_dict(change["plan"])
        progress = await self._operate(change, plan, "finish", watched, lead)
        if progress.state == "waiting":
            return
        left = f"; not cleaned up: {progress.why}" if progress.state == "failed" else ""
        await self._watcher.look(watched)
        await self._finish(change, "succeeded", change["state_reason"] + left, lead)

    async def _operate(
        self, change: changes.Row, plan: Plan, direction: Direction, watched: WatchedEndpoint, lead: Lead
    ) -> RunProgress:
        async def gate(since: float) -> bool | None:
            width = self._settings.collect.window_s
            begin, last = -(-since // width) * width, since + watched.settings.verify.deadline_s
            verdict = await asyncio.to_thread(self._judge, change, watched, begin, last)
            return None if verdict.state == "pending" else verdict.state != "regressed"

        def asks(db: sa.Connection) -> RuleVerdict | None:
            now, name, by = self._clock.now(), change["endpoint"], change["approved_by"]
            stage: Stage = "operation" if direction == "apply" else "undo"
            rails = guardrails_of(self._settings, watched.settings)
            return obstacle_of(db, rails, name, (plan.before, plan.after), now, stage, by=by, change=change["id"])

        operations = plan.finish if direction == "finish" else plan.operations
        run = ChangeRun(
            change["id"],
            change["endpoint"],
            direction,
            operations,
            watched.actuator,
            asks,
            gate if direction == "apply" else None,
        )
        return await self._execution.advance(run, lead)

    def _judge(self, change: changes.Row, watched: WatchedEndpoint, since: float, last: float) -> Verdict:
        """What was observed since then, beside what was before the change; it is final at ``last``."""
        endpoint, width, now = watched.settings, self._settings.collect.window_s, self._clock.now()
        with self._store.read() as db:
            earlier = [c for c in changes.listed(db, endpoint=endpoint.name) if c["created_at"] < change["created_at"]]
            settled = [_settled_at(c, endpoint.verify.warmup_s) for c in earlier]
            begin = max([change["created_at"] - endpoint.policy.evidence_s, *settled])
            before = judged(db, endpoint.name, endpoint.sources, begin, change["created_at"], width)
            after = judged(db, endpoint.name, endpoint.sources, since, now, width)
        prediction = Prediction.from_dict(change["prediction"]) if change["prediction"] else None
        return judge(
            before,
            after,
            endpoint.wanted(),
            prediction,
            needed=endpoint.verify.windows,
            final=now >= last,
            load_tolerance=endpoint.verify.load_tolerance,
        )

    def _outcome(self, change: changes.Row, verdict: Verdict) -> dict[str, Any]:
        plan = Plan.from_dict(change["plan"])
        catalogue = self._watched[change["endpoint"]].catalogue
        before, after = catalogue.per_hour(plan.before), catalogue.per_hour(plan.after)
        return verdict.as_dict() | {"per_hour_before": before, "per_hour_after": after}

    # -- back ----------------------------------------------------------------------------------------------------------

    async def _turn_back(self, change: changes.Row, reason: str, lead: Lead) -> None:
        def write() -> None:
            with control.leading(self._store, lead) as db:
                changes.move(
                    db,
                    change["id"],
                    from_states=["applying", "warming", "verifying"],
                    to="rolling_back",
                    now=self._clock.now(),
                    reason=reason,
                )

        log.warning("change_turns_back", endpoint=change["endpoint"], change=change["id"], why=reason)
        await asyncio.to_thread(write)

    def _undo_succeeded(self, change: changes.Row, lead: Lead) -> None:
        """A person wants a finished change undone: the newest of its endpoint only, since it restores what was before it."""
        with control.leading(self._store, lead) as db:
            newest = changes.listed(db, endpoint=change["endpoint"], limit=1)[0]
            if newest["id"] != change["id"] or self._observes(change["endpoint"]):
                changes.update(db, change["id"], rollback_requested=False)
                return
        try:
            with control.leading(self._store, lead) as db:
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

    async def _roll_back(self, change: changes.Row, watched: WatchedEndpoint, lead: Lead) -> None:
        if change["rollback_plan"] is not None:
            plan = Plan.from_dict(change["rollback_plan"])
        else:
            try:
                found = await self._way_back(change, watched, lead)
            except ActuatorError as error:
                reason = f"{change['state_reason']}; no way back: {error}"
                if not error.passes or self._clock.now() - _since(change) > UNKNOWN_WAY_S:
                    await self._finish(change, "failed", reason, lead)
                return
            if found is None:
                return
            plan = found
        progress = await self._operate(change, plan, "rollback", watched, lead)
        if progress.state == "failed":
            reason = f"{change['state_reason']}; the way back failed: {progress.why}"
            await self._finish(change, "failed", reason, lead)
        elif progress.state == "done":
            live = await self._watcher.look(watched)
            if live is None and self._clock.now() - _since(change) <= UNKNOWN_WAY_S:
                return  # it is not called undone before it was seen to be
            left = (
                "nobody sees what is there"
                if live is None
                else not_restored(Plan.from_dict(change["plan"]), live.shape)
            )
            if left:
                reason = f"{change['state_reason']}; the way back was gone, but {left}"
                await self._finish(change, "failed", reason, lead)
            else:
                await self._finish(change, "rolled_back", change["state_reason"], lead)

    async def _way_back(self, change: changes.Row, watched: WatchedEndpoint, lead: Lead) -> Plan | None:
        """The plan from wherever it was left; None while it waits for another one's lock. Raises ActuatorError."""
        forward = Plan.from_dict(change["plan"])

        def begun() -> list[JournalRow]:
            with self._store.read() as db:
                return changes.journal(db, change["id"])

        rows = [row for row in await asyncio.to_thread(begun) if row["receipt"] is not None]
        receipts = [receipt_of(row) for row in rows if row["direction"] != "rollback"]
        live = watched.complete(await in_time(watched.actuator.live()))  # the plan's shapes were completed too
        plan = await in_time(watched.actuator.back(system_plan(forward), receipts, live))

        def keep() -> bool:
            with control.leading(self._store, lead) as db:
                if changes.lock(db, plan.locks, change["id"], lead.epoch) is not None:
                    return False
                changes.update(db, change["id"], rollback_plan=plan.as_dict())
                return True

        return plan if await asyncio.to_thread(keep) else None

    async def _finish(self, change: changes.Row, state: str, reason: str, lead: Lead) -> None:
        """End the change. What was not succeeded freezes the endpoint: a person looks before anything else is done."""
        if await asyncio.to_thread(self._write_end, change, state, reason, lead):
            self._metrics.changes.labels(change["endpoint"], state).inc()
            log.info("change_ended", endpoint=change["endpoint"], change=change["id"], state=state, why=reason)

    def _write_end(self, change: changes.Row, state: str, reason: str, lead: Lead) -> bool:
        now, name = self._clock.now(), change["endpoint"]
        with control.leading(self._store, lead) as db:
            ended = changes.move(
                db,
                change["id"],
                from_states=["applying", "warming", "verifying", "finishing", "rolling_back"],
                to=state,
                now=now,
                reason=reason,
                finished_at=now,
                rollback_requested=change["rollback_requested"] and state == "succeeded",
                **({"applied_at": now} if change["purpose"] == "schedule" and state == "succeeded" else {}),
            )
            if not ended:
                return False
            changes.unlock(db, change["id"])
            if change["purpose"] not in GOVERNED:
                return True
            self._keep_schedule(db, change, state, now)
            if change["purpose"] == "schedule":
                fleet.changed(db, name, now)
            if change["purpose"] == "change" and not changes.ledger(db, change_id=change["id"]):
                watched = self._watched.get(name)
                targets = [t.name for t in watched.settings.wanted().targets] if watched is not None else []
                changes.add_ledger(db, _unobserved(change, targets, now))
            if change["purpose"] == "change":
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
                fleet.changed(db, name, now)
            if state == "failed" or (state == "rolled_back" and not change["rollback_requested"]):
                because = f"change {change['id']} {state.replace('_', ' ')}: {reason}"
                fleet.freeze(db, name, reason=because, now=now, by="flyball")
            if self._settings.slack is not None and (change["purpose"] == "change" or state != "succeeded"):
                outbox.put(db, channel="slack", kind="change", subject=change["id"], revision=_REVISION[state], now=now)
        return True

    def _keep_schedule(self, db: sa.Connection, change: changes.Row, state: str, now: float) -> None:
        """The schedule that holds after the change's end."""
        plan, name = Plan.from_dict(change["plan"]), change["endpoint"]
        if change["purpose"] == "schedule":
            standing = schedules.of(db, name)
            if standing is not None:
                left = plan.after.replicas if state == "succeeded" else None
                schedules.keep(db, name, replace(standing, left=left))
            return
        undone = state == "rolled_back" and change["finished_at"] is not None
        wanted = plan.after.schedule if state == "succeeded" else plan.before.schedule if undone else None
        if wanted is not None:
            watched = self._watched.get(name)
            days = watched.settings.policy.schedule_days if watched is not None else 0.0
            left = (plan.after if state == "succeeded" else plan.before).replicas
            until = now + days * 86_400.0
            standing = StandingSchedule(
                wanted, change["id"], change["recommendation_id"], change["approved_by"], now, until, left
            )
            schedules.begin(db, name, standing, now)
        elif state == "succeeded" or undone:
            schedules.end(db, name, now=now, by="flyball", reason=f"change {change['id']} {state.replace('_', ' ')}")


def not_restored(forward: Plan, live: Shape) -> str:
    """What the change had altered and is not again as it was, as a system tells it; empty where all is, or nobody can tell."""
    before, after = forward.before, forward.after
    told: dict[str, tuple[object, object, object]] = {
        name: (getattr(before, name), getattr(after, name), getattr(live, name))
        for name in ("replicas", "size", "accelerator", "accelerator_count", "autoscaling", "purchase")
    }
    told |= {name: (value, after.engine.get(name), live.engine.get(name)) for name, value in before.engine.items()}
    wrong = [
        f"{name} is {now} and was {was}"
        for name, (was, then, now) in told.items()
        if was is not None and now is not None and was != then and now != was
    ]
    return ", ".join(wrong)


def _since(change: changes.Row) -> float:
    """When it came into its state."""
    return change["created_at"] if change["since"] is None else change["since"]


def _warm_at(change: changes.Row, watched: WatchedEndpoint) -> float:
    """From when on what is observed is of the new shape."""
    assert change["applied_at"] is not None, "it is applied before it warms"
    return change["applied_at"] + watched.settings.verify.warmup_s


def lease_of(endpoint: str) -> str:
    """Whoever holds it may deploy the endpoint, and shapes of a tune on it."""
    return f"deploy:{endpoint}"


_REVISION = {"succeeded": 1, "rolled_back": 2, "failed": 3}


def _settled_at(change: changes.Row, warmup_s: float) -> float:
    """From when on its endpoint was what it was after this change: since it was warm, where it stayed; else since its end."""
    if change["state"] == "succeeded" and change["applied_at"] is not None:
        return change["applied_at"] + warmup_s
    return change["finished_at"] or 0.0


def _ledger_rows(change: changes.Row, scores: tuple[LedgerScore, ...], now: float) -> list[dict[str, Any]]:
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


def _unobserved(change: changes.Row, targets: Sequence[str], now: float) -> list[dict[str, Any]]:
    """The promise of a change of which nothing was observed; without one, each target, so that every change has a row."""
    prediction = change["prediction"] or {"metrics": {}, "method": NO_METHOD}
    scores = [
        LedgerScore(metric, prediction["method"], i["low"], i["mid"], i["high"], None, None, comparable=False)
        for metric, i in prediction["metrics"].items()
    ]
    if not scores:
        bare = targets or [NO_TARGET]
        scores = [LedgerScore(metric, NO_METHOD, None, None, None, None, None, comparable=False) for metric in bare]
    return _ledger_rows(change, tuple(scores), now)
