"""The schedule that each endpoint keeps: approved once, kept every day until its time is over, held at more where more is called for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from actuators.shape import Schedule
from agent.store import audit, schema

_E = schema.endpoints


@dataclass(frozen=True, slots=True)
class StandingSchedule:
    """A schedule in force, and what it rests on."""

    schedule: Schedule
    change_id: str
    """The change that brought it."""
    recommendation_id: str
    approved_by: str
    since: float
    until: float
    """From then on the most that it ever wants stays. Unix seconds, as ``since``."""
    left: int | None = None
    """Replicas that its last step left. None: whatever is there is taken as it is."""
    held: int | None = None
    """Never fewer than so many until ``held_until``."""
    held_until: float = 0.0
    held_because: str = ""

    def wanted(self, now: float) -> int:
        """Replicas at that moment."""
        if now >= self.until:
            return self.schedule.most
        by_clock = self.schedule.replicas_at(now)
        return by_clock if self.held is None or now >= self.held_until else max(by_clock, self.held)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StandingSchedule:
        return cls(**{**data, "schedule": Schedule.from_dict(data["schedule"])})


def of(db: sa.Connection, endpoint: str) -> StandingSchedule | None:
    body = db.execute(sa.select(_E.c.schedule).where(_E.c.endpoint == endpoint)).scalar_one_or_none()
    return None if body is None else StandingSchedule.from_dict(body)


def in_force(db: sa.Connection) -> dict[str, StandingSchedule]:
    """By endpoint."""
    rows = db.execute(sa.select(_E.c.endpoint, _E.c.schedule).where(_E.c.schedule.is_not(None)))
    return {name: StandingSchedule.from_dict(body) for name, body in rows if body is not None}


def keep(db: sa.Connection, endpoint: str, standing: StandingSchedule) -> None:
    db.execute(sa.update(_E).where(_E.c.endpoint == endpoint).values(schedule=standing.as_dict()))


def begin(db: sa.Connection, endpoint: str, standing: StandingSchedule, now: float) -> None:
    """It is in force from now on, in the place of any other."""
    keep(db, endpoint, standing)
    body = {"schedule": standing.schedule.label(), "approved_by": standing.approved_by, "until": standing.until}
    audit.append(db, at=now, actor="flyball", action="keep_schedule", subject=endpoint, body=body)


def end(db: sa.Connection, endpoint: str, *, now: float, by: str, reason: str) -> bool:
    """The replicas stay what they are. False: there is none."""
    touched = db.execute(
        sa.update(_E).where(_E.c.endpoint == endpoint, _E.c.schedule.is_not(None)).values(schedule=None)
    ).rowcount
    if touched:
        audit.append(db, at=now, actor=by, action="end_schedule", subject=endpoint, body={"reason": reason})
    return touched == 1
