"""Keeps schedules: each step is a change like any other, under the approval that its schedule was given, and within today's guardrails.

Nothing is decided here. A step is begun when the clock says so, or when an analysis holds the schedule at more. Where anybody else has set
the replicas since the last step, the endpoint is frozen, and people are told: two hands on one valve end badly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import structlog

from actuators.base import Actuator, ActuatorError, CannotPlan, LiveState, ReviewedActuator
from actuators.shape import Plan, Schedule, Shape
from agent.cases import guardrails_of, obstacle_of
from agent.settings import Settings
from agent.store import Store, changes, control, fleet, recommendations, schedules
from agent.store.control import Lead
from agent.store.schedules import StandingSchedule
from agent.watch import WatchedEndpoint, Watcher
from analyzers.policy import RuleVerdict
from collectors.clock import Clock

log = structlog.get_logger()

#: A schedule that an analysis holds at more is held for so long after it.
HELD_S = 1800.0
#: And for so long after a breach: what was too small tonight is so for the rest of the night.
BREACH_HELD_S = 6 * 3600.0
#: A step that a guardrail or the system forbids is tried again after so long.
AGAIN_S = 30.0
#: A step's plan takes no longer than this, or is made anew at the next look.
_PLAN_S = 60.0


async def plan_of(endpoint: str, actuator: Actuator, live: LiveState, schedule: Schedule | None, wanted: Shape) -> Plan:
    """The system's plan towards ``wanted``, with the schedules that hold before and after it: no system knows of those.

    Raises ActuatorError.
    """
    if wanted.schedule is not None and isinstance(actuator, ReviewedActuator):
        raise CannotPlan(
            "NO_SCHEDULE", "each step of a schedule would wait for a merge: set policy.scheduled_steps_per_day to 0"
        )
    bare = wanted.with_(schedule=None)
    if wanted.schedule is not None and bare == live.shape:  # its count is there already: only the schedule begins
        plan = Plan(
            endpoint,
            actuator.system,
            live.shape,
            bare,
            live.version,
            operations=(),
            restarts=False,
            downtime_s=0.0,
            way_back="no schedule is kept",
        )
    else:
        plan = await actuator.plan(live, bare)
    return replace(plan, before=plan.before.with_(schedule=schedule), after=plan.after.with_(schedule=wanted.schedule))


def system_plan(plan: Plan) -> Plan:
    """As its system knows it."""
    return replace(plan, before=plan.before.with_(schedule=None), after=plan.after.with_(schedule=None))


class ScheduleKeeper:
    """Begins the steps that are due. One transaction writes the change and nothing else; ``Applier`` leads it to its end."""

    def __init__(
        self, watched: Mapping[str, WatchedEndpoint], watcher: Watcher, settings: Settings, store: Store, clock: Clock
    ) -> None:
        self._watched = watched
        self._watcher = watcher
        self._settings = settings
        self._store = store
        self._clock = clock
        self._forbidden: dict[str, tuple[float, str]] = {}
        """By endpoint: when a step that could not be begun is tried again (monotonic seconds), and why it could not."""

    def due(self) -> dict[str, StandingSchedule]:
        """Those whose endpoint, as it was last seen, has other replicas than are wanted now; by endpoint. Reads the store."""
        now = self._clock.now()
        with self._store.read() as db:
            found = schedules.in_force(db)
        return {name: each for name, each in found.items() if self._calls(name, each, now)}

    def _calls(self, name: str, standing: StandingSchedule, now: float) -> bool:
        watched = self._watched.get(name)
        live = watched.live if watched is not None else None
        if watched is None or live is None:
            return False
        if name in self._forbidden and self._clock.monotonic() < self._forbidden[name][0]:
            return False
        return live.shape.replicas != standing.wanted(now) or now >= standing.until

    async def step(self, name: str, standing: StandingSchedule, lead: Lead) -> None:
        """Begin the step that is due, or leave it where something forbids it. Raises ``LostLease``."""
        watched = self._watched[name]
        seen = watched.live
        if seen is None or await asyncio.to_thread(self._obstacle, name, seen.shape, seen.shape) is not None:
            return
        live = await self._watcher.look(watched)
        if live is None:
            return
        now, present = self._clock.now(), live.shape.replicas
        wanted = standing.wanted(now)
        if present is None or live.shape.autoscaling is not None:
            await asyncio.to_thread(self._disturbed, name, standing, "an autoscaler sets the replicas now", lead)
        elif standing.left is not None and present not in (standing.left, wanted):
            reason = f"somebody set {present} replicas beside the schedule, whose last step left {standing.left}"
            await asyncio.to_thread(self._disturbed, name, standing, reason, lead)
        elif present == wanted:
            await asyncio.to_thread(self._arrived, name, standing, present, lead)
        else:
            plan = await self._plan(watched, live, present, wanted)
            if isinstance(plan, str):
                self._put_off(name, plan)
            elif plan.by_hand is not None:
                await asyncio.to_thread(self._disturbed, name, standing, "somebody else owns the replicas now", lead)
            else:
                self._forbidden.pop(name, None)
                await asyncio.to_thread(self._begin, name, standing, plan, lead)

    async def _plan(self, watched: WatchedEndpoint, live: LiveState, present: int, wanted: int) -> Plan | str:
        """As far towards ``wanted`` as one change may go; or why there is none."""
        most = watched.settings.policy.max_step_replicas
        shape = live.shape.with_(replicas=max(present - most, min(present + most, wanted)))
        stop = await asyncio.to_thread(self._obstacle, watched.settings.name, live.shape, shape)
        if stop is not None:
            return stop.text
        try:
            return await asyncio.wait_for(watched.actuator.plan(live, shape), _PLAN_S)
        except (ActuatorError, TimeoutError) as error:
            return f"no plan leads there: {error}"

    def _put_off(self, name: str, why: str) -> None:
        """Told once, and tried again in a while: neither the log nor the system is hammered."""
        if name not in self._forbidden or self._forbidden[name][1] != why:
            log.warning("scheduled_step_forbidden", endpoint=name, why=why)
        self._forbidden[name] = (self._clock.monotonic() + AGAIN_S, why)

    def _obstacle(self, name: str, before: Shape, after: Shape) -> RuleVerdict | None:
        """What of the guardrails stands against a step at this moment."""
        rails = guardrails_of(self._settings, self._watched[name].settings)
        with self._store.read() as db:
            return obstacle_of(db, rails, name, (before, after), self._clock.now(), "step")

    def _begin(self, name: str, standing: StandingSchedule, plan: Plan, lead: Lead) -> None:
        now = self._clock.now()
        held = standing.held is not None and now < standing.held_until
        identity = recommendations.new_id()
        change = {
            "id": identity,
            "recommendation_id": standing.recommendation_id,
            "endpoint": name,
            "state": "applying",
            "state_reason": standing.held_because if held else "its time has come",
            "purpose": "schedule",
            "approved_by": f"{standing.approved_by}, by schedule",
            "plan_hash": plan.hash,
            "plan": plan.as_dict(),
            "prediction": None,
            "epoch": lead.epoch,
            "created_at": now,
        }
        with control.leading(self._store, lead) as db, db.begin_nested() as all_of_it:
            if schedules.of(db, name) != standing:  # ended, or held otherwise, since it was read
                return
            free = changes.lock(db, plan.locks, identity, lead.epoch) is None
            begun = free and changes.start(db, change)
            if not begun:
                all_of_it.rollback()
        if begun:
            log.info("scheduled_step", endpoint=name, shape=plan.after.label(), why=change["state_reason"])

    def _arrived(self, name: str, standing: StandingSchedule, present: int, lead: Lead) -> None:
        """The replicas are what is wanted; a schedule whose time is over ends there."""
        now = self._clock.now()
        with control.leading(self._store, lead) as db:
            if schedules.of(db, name) != standing:
                return
            if now >= standing.until:
                reason = f"its time is over; {present} replicas stay, the most that it had"
                schedules.end(db, name, now=now, by="flyball", reason=reason)
            elif standing.left != present:
                schedules.keep(db, name, replace(standing, left=present))

    def _disturbed(self, name: str, standing: StandingSchedule, reason: str, lead: Lead) -> None:
        """Somebody else sets the replicas. Once a person has unfrozen it, they are taken as they are."""
        now = self._clock.now()
        with control.leading(self._store, lead) as db:
            if schedules.of(db, name) == standing:
                schedules.keep(db, name, replace(standing, left=None))
                fleet.freeze(db, name, reason=reason, now=now, by="flyball")
        log.warning("schedule_disturbed", endpoint=name, why=reason)
