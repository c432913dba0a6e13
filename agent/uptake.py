"""Takes up what was approved: begins a change where it may begin now, and voids an approval where it may not begin at all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from actuators.base import LiveState
from actuators.shape import Plan
from agent.cases import verdicts_of
from agent.settings import Settings
from agent.store import Store, changes, control, recommendations
from agent.store.control import Lead
from agent.watch import WatchedEndpoint, Watcher
from analyzers.guardrails import STAGES, forbidden, obstacle
from analyzers.policy import RuleVerdict
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
        first = await asyncio.to_thread(self._verdicts, row, None)
        waits = [v for v in first if v.verdict == "wait" and v.rule in STAGES["begin"] and v.rule != "LIVE"]
        if waits:  # its system is not asked as long as it would not begin anyway
            log.info("change_waits", endpoint=row["endpoint"], id=row["id"], why=waits[0].text)
            return None
        live = await self._watcher.look(watched)
        verdicts = await asyncio.to_thread(self._verdicts, row, live)
        broken = forbidden(verdicts, "begin")
        if broken is not None:
            return await self._void(row, f"a guardrail forbids it: {broken}", lead)
        if obstacle(verdicts, "begin") is not None:
            return None
        plan = Plan.from_dict(row["plan"])
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

    def _verdicts(self, row: recommendations.Row, live: LiveState | None) -> Sequence[RuleVerdict]:
        with self._store.read() as db:
            version = None if live is None else live.version
            if live is not None and live.landed == row["plan_hash"]:  # its merge, and nothing else, moved what is there
                version = Plan.from_dict(row["plan"]).version
            return verdicts_of(db, self._settings, row, self._clock.now(), version)

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
