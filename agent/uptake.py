"""Takes up what was approved: begins a change where it may begin now, and voids an approval where it may not begin at all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import structlog

from actuators.base import LiveState
from actuators.shape import Plan
from agent.settings import ChangeWindow, EndpointSettings, Settings, weekdays
from agent.store import Store, changes, control, fleet, recommendations, tunes
from agent.store.control import Lead
from agent.watch import WatchedEndpoint, Watcher
from agent.wiring import policy_of
from analyzers.policy import violations
from collectors.clock import Clock

log = structlog.get_logger()


class Uptake:
    """From ``approved`` to a change that exists. One transaction moves the recommendation and inserts the change, or neither."""

    def __init__(
        self, watched: Mapping[str, WatchedEndpoint], watcher: Watcher, settings: Settings, store: Store, clock: Clock
    ) -> None:
        self._watched = watched
        self._watcher = watcher
        self._settings = settings
        self._store = store
        self._clock = clock

    async def take_up(self, row: recommendations.Row, lead: Lead) -> None:
        """Begin an approved change, let it wait, or void it. Raises ``LostLease``."""
        watched = self._watched.get(row["endpoint"])
        if watched is None:
            return await self._void(row, "the endpoint is no longer in the settings", lead)
        waits = await asyncio.to_thread(self._waits, row, watched.settings)
        if waits:
            log.info("change_waits", endpoint=row["endpoint"], id=row["id"], why=waits)
            return None
        live = await self._watcher.look(watched)
        if live is None:
            return None
        plan = Plan.from_dict(row["plan"])
        objection = await asyncio.to_thread(self._objection, row, watched, plan, live)
        if objection:
            return await self._void(row, objection, lead)
        held = await asyncio.to_thread(self._start, row, plan, lead)
        if held is None:
            log.info("change_begins", endpoint=row["endpoint"], id=row["id"], plan=plan.hash)
        else:
            log.info("change_waits", endpoint=row["endpoint"], id=row["id"], why=held)
        return None

    def _start(self, row: recommendations.Row, plan: Plan, lead: Lead) -> str | None:
        """None where it has begun, otherwise what keeps it."""
        change = self._new_change(row, plan, lead)
        with control.leading(self._store, lead) as db, db.begin_nested() as all_of_it:
            held = changes.lock(db, plan.locks, change["id"], lead.epoch)
            begun = held is None and (
                recommendations.move(
                    db,
                    row["id"],
                    from_states=["approved"],
                    to="applying",
                    now=self._clock.now(),
                    by="flyball",
                    reason="taken up",
                )
                and changes.start(db, change)
            )
            if not begun:
                all_of_it.rollback()
        if begun:
            return None
        return f"another change holds {held}" if held is not None else "somebody else took it up, or another one"

    def _waits(self, row: recommendations.Row, endpoint: EndpointSettings) -> str | None:
        """Why a change may not begin just now; None when it may."""
        now = self._clock.now()
        with self._store.read() as db:
            last = changes.last_decided_at(db, endpoint.name)
            if control.paused(db) is not None:
                return "paused"
            if changes.active_of(db, endpoint.name) is not None:
                return "another change is under way"
            if tunes.running(db, endpoint.name) is not None:
                return "a tune is under way"
        if last is not None and now < last + endpoint.policy.cooldown_s and row["requested_by"] == "flyball":
            return "cooling down after the last change"
        if not within(endpoint.policy.change_windows, now, self._settings.timezone):
            return "outside the change windows"
        return None

    def _objection(self, row: recommendations.Row, watched: WatchedEndpoint, plan: Plan, live: LiveState) -> str | None:
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
        if live.version != plan.version:
            return "somebody changed the endpoint since the plan was made"
        if plan.by_hand is not None:
            return "somebody else owns what it would change: apply the plan's patch by hand"
        broken = violations(plan.after, plan.before, policy_of(endpoint), watched.catalogue)
        return f"a guardrail forbids it: {'; '.join(broken)}" if broken else None

    async def _void(self, row: recommendations.Row, reason: str, lead: Lead) -> None:
        def write() -> None:
            with control.leading(self._store, lead) as db:
                recommendations.move(
                    db,
                    row["id"],
                    from_states=["approved"],
                    to="superseded",
                    now=self._clock.now(),
                    by="flyball",
                    reason=reason,
                )

        log.warning("approval_void", endpoint=row["endpoint"], id=row["id"], why=reason)
        await asyncio.to_thread(write)

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
