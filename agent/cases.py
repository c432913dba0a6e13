"""Puts together what ``analyzers.guardrails`` looks at: the settings' guardrails of an endpoint, and a change as the store knows it now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from actuators.shape import Plan, Shape
from agent.settings import ChangeWindow, EndpointSettings, Settings, weekdays
from agent.store import changes, control, fleet, recommendations, tunes
from agent.wiring import catalogue_of, policy_of
from analyzers.guardrails import (
    DAY_S,
    OWN,
    ChangeCase,
    ChangeHours,
    Door,
    Guardrails,
    PlanFacts,
    Stage,
    obstacle,
    rule_verdicts,
)
from analyzers.policy import RuleVerdict


def guardrails_of(settings: Settings, endpoint: str | EndpointSettings) -> Guardrails:
    """What the settings say of the changes of one endpoint. Raises KeyError where they do not know its name."""
    own = settings.endpoint(endpoint) if isinstance(endpoint, str) else endpoint
    p = own.policy
    return Guardrails(
        mode=own.mode,
        policy=policy_of(own),
        catalogue=catalogue_of(settings, own),
        cooldown_s=p.cooldown_s,
        hours=hours_of(p.change_windows),
        timezone=settings.timezone,
        auto=frozenset(p.auto),
        approvers=frozenset(p.approvers),
        quorum=p.quorum,
        four_eyes=p.four_eyes if p.four_eyes is not None else len(p.approvers) > 1,
        fleet_changes_per_day=settings.fleet_changes_per_day,
    )


def hours_of(change_windows: Sequence[ChangeWindow]) -> tuple[ChangeHours, ...]:
    return tuple(ChangeHours(weekdays(w.days), w.start, w.end) for w in change_windows)


def standing(
    db: sa.Connection, endpoint: str, now: float, *, change: str | None = None, tune: str | None = None
) -> dict[str, Any]:
    """The fields of a ``ChangeCase`` that the store alone knows. change, tune: their own ids, which keep them not waiting."""
    state, pause = fleet.get(db, endpoint), control.paused(db)
    active, trying = changes.active_of(db, endpoint), tunes.running(db, endpoint)
    under_way = None
    own = active is not None and (active["id"] == change or (tune is not None and active["purpose"] == "trial"))
    if active is not None and not own:
        under_way = "a change"
    elif trying is not None and trying["id"] != tune:
        under_way = f"tune {trying['id']}"
    return {
        "now": now,
        "paused": None if pause is None else f"by {pause['by']}, {pause['value'].get('reason', '')}",
        "frozen": state["frozen_because"] if state is not None else None,
        "under_way": under_way,
        "last_change_at": changes.last_decided_at(db, endpoint),
        "fleet_changes": changes.begun_since(db, now - DAY_S),
    }


def case_of(
    db: sa.Connection,
    row: recommendations.Row,
    now: float,
    live_version: str | None,
    *,
    approver: str | None = None,
    door: Door | None = None,
) -> ChangeCase:
    """A recommendation at this moment. live_version: of ``LiveState``; None: not known."""
    body: Mapping[str, Any] = row["body"]
    plan = Plan.from_dict(row["plan"]) if row["plan"] else None
    facts = None
    if plan is not None:
        facts = PlanFacts(
            hash=plan.hash,
            shown_hash=row["plan_hash"],
            version=plan.version,
            live_version=live_version,
            expires_at=row["expires_at"],
            policy_hash=row["policy_hash"],
            needs=plan.needs,
            by_hand=plan.by_hand is not None,
            by_merge=plan.by_merge,
            direction=body["direction"],
            risk=body["risk"],
            approvers=recommendations.approvers(db, row),
        )
    return ChangeCase(
        before=plan.before if plan is not None else Shape.from_dict(body["current"]["shape"]),
        after=plan.after if plan is not None else Shape.from_dict(body["proposed"]["shape"]),
        requested_by=row["requested_by"],
        plan=facts,
        approver=approver,
        door=door,
        **standing(db, row["endpoint"], now),
    )


def verdicts_of(
    db: sa.Connection, settings: Settings, row: recommendations.Row, now: float, live_version: str | None
) -> Sequence[RuleVerdict]:
    """Every rule of a recommendation. Raises KeyError where its endpoint is not in the settings."""
    return rule_verdicts(case_of(db, row, now, live_version), guardrails_of(settings, row["endpoint"]))


def obstacle_of(
    db: sa.Connection,
    rails: Guardrails,
    endpoint: str,
    shapes: tuple[Shape, Shape],
    now: float,
    stage: Stage,
    *,
    by: str = OWN,
    **own: str | None,
) -> RuleVerdict | None:
    """What stands against a change that has no plan which people were shown, or has begun: a step of it or of a schedule, a deployment, a
    trial. shapes: before and after. own: see ``standing``."""
    before, after = shapes
    case = ChangeCase(before=before, after=after, requested_by=by, **standing(db, endpoint, now, **own))
    return obstacle(rule_verdicts(case, rails), stage)
