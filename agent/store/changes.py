"""Changes: their journal of intents, their outcome, and the ledger of predicted against observed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from agent.store import audit, schema
from agent.store.rows import ChangeRow, JournalRow, LedgerRow, every, one
from agent.store.sql import upsert

_T = schema.changes
_J = schema.journal
_L = schema.ledger
_K = schema.locks
Row = ChangeRow


def start(db: sa.Connection, row: Mapping[str, Any]) -> bool:
    """Begin a change. False when one is under way on this endpoint: the database's own index says so."""
    try:
        with db.begin_nested():
            db.execute(sa.insert(_T).values(**{"purpose": "change", "since": row["created_at"], **row}))
    except IntegrityError:
        return False
    body = {"endpoint": row["endpoint"], "plan_hash": row["plan_hash"], "recommendation": row["recommendation_id"]}
    audit.append(db, at=row["created_at"], actor=row["approved_by"], action="apply", subject=row["id"], body=body)
    return True


def move(
    db: sa.Connection, identity: str, *, from_states: Iterable[str], to: str, now: float, reason: str, **values: Any
) -> bool:
    """Change the state where it is still one of ``from_states``. False: it is elsewhere by now."""
    touched = db.execute(
        sa.update(_T)
        .where(_T.c.id == identity, _T.c.state.in_(list(from_states)))
        .values(state=to, state_reason=reason, since=now, **values)
    ).rowcount
    if touched:
        audit.append(db, at=now, actor="flyball", action=to, subject=identity, body={"reason": reason})
    return touched == 1


def update(db: sa.Connection, identity: str, **values: Any) -> None:
    db.execute(sa.update(_T).where(_T.c.id == identity).values(**values))


def get(db: sa.Connection, identity: str) -> Row | None:
    """By id, or by the only one that starts so."""
    rows = db.execute(sa.select(_T).where(_T.c.id.startswith(identity, autoescape=True)).limit(2)).mappings().all()
    return one(ChangeRow, rows[0]) if len(rows) == 1 else None


def listed(
    db: sa.Connection,
    *,
    endpoint: str | None = None,
    states: Iterable[str] | None = None,
    since: float | None = None,
    purpose: str | None = None,
    limit: int = 100,
) -> list[Row]:
    """Newest first. purpose: ``change`` leaves out what a person deployed, what a tune tried, and a schedule's steps."""
    query = sa.select(_T).order_by(_T.c.created_at.desc(), _T.c.id).limit(limit)
    if endpoint is not None:
        query = query.where(_T.c.endpoint == endpoint)
    if states is not None:
        query = query.where(_T.c.state.in_(list(states)))
    if since is not None:
        query = query.where(_T.c.created_at >= since)
    if purpose is not None:
        query = query.where(_T.c.purpose == purpose)
    return every(ChangeRow, db.execute(query).mappings())


def active(db: sa.Connection) -> list[Row]:
    """Those under way, oldest first."""
    return listed(db, states=schema.ACTIVE_CHANGE, limit=1000)[::-1]


def active_of(db: sa.Connection, endpoint: str) -> Row | None:
    """The one under way on this endpoint."""
    rows = listed(db, endpoint=endpoint, states=schema.ACTIVE_CHANGE, limit=1)
    return rows[0] if rows else None


def last_decided_at(db: sa.Connection, endpoint: str) -> float | None:
    """When the endpoint's shape was changed last by what somebody decided: a schedule's steps do not count. Unix seconds."""
    query = (
        sa.select(_T.c.state, _T.c.applied_at, _T.c.finished_at)
        .where(_T.c.endpoint == endpoint, _T.c.purpose != "schedule")
        .order_by(_T.c.created_at.desc())
        .limit(2)
    )
    rows = db.execute(query).all()
    moments = [row.applied_at if row.state == "succeeded" else row.finished_at or row.applied_at for row in rows]
    return max((at for at in moments if at is not None), default=None)


def begun_since(db: sa.Connection, since: float) -> int:
    """Changes of all endpoints that began since then, schedules' steps, deployments and trials not counted."""
    query = sa.select(sa.func.count()).where(_T.c.created_at >= since, _T.c.purpose == "change")
    return int(db.execute(query).scalar_one())


def request_rollback(db: sa.Connection, identity: str, *, now: float, by: str) -> bool:
    """A person wants it undone. Taken up at the next step. False when there is nothing to undo."""
    touched = db.execute(
        sa.update(_T)
        .where(_T.c.id == identity, _T.c.state.in_(["applying", "warming", "verifying", "finishing", "succeeded"]))
        .where(_T.c.purpose == "change")
        .values(rollback_requested=sa.true())
    ).rowcount
    if touched:
        audit.append(db, at=now, actor=by, action="request_rollback", subject=identity)
    return touched == 1


def intend(db: sa.Connection, row: Mapping[str, Any]) -> None:
    """Write down what is about to be done, before it is done."""
    db.execute(sa.insert(_J).values(**row, state="waiting", detail=""))


def settle(db: sa.Connection, change_id: str, direction: str, step: int, *, epoch: int, **values: Any) -> None:
    """Write down what came of it, in the name of that epoch: a step that a later one has taken up stays as it is."""
    db.execute(
        sa.update(_J)
        .where(_J.c.change_id == change_id, _J.c.direction == direction, _J.c.step == step, _J.c.epoch <= epoch)
        .values(epoch=epoch, **values)
    )


def lock(db: sa.Connection, names: Iterable[str], change_id: str, epoch: int) -> str | None:
    """Take all of these locks for a change; None once it has them. Otherwise the name of one that another change holds."""
    for name in sorted(names):
        upsert(db, _K, [{"name": name, "change_id": change_id, "epoch": epoch}], key=["name"])
        holder = db.execute(sa.select(_K.c.change_id).where(_K.c.name == name)).scalar_one()
        if holder != change_id:
            return name
    return None


def unlock(db: sa.Connection, change_id: str) -> None:
    db.execute(sa.delete(_K).where(_K.c.change_id == change_id))


def journal(db: sa.Connection, change_id: str, direction: str | None = None) -> list[JournalRow]:
    query = sa.select(_J).where(_J.c.change_id == change_id).order_by(_J.c.id)
    if direction is not None:
        query = query.where(_J.c.direction == direction)
    return every(JournalRow, db.execute(query).mappings())


def add_ledger(db: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        db.execute(sa.insert(_L), [dict(row) for row in rows])


def ledger(
    db: sa.Connection, *, endpoint: str | None = None, change_id: str | None = None, since: float | None = None
) -> list[LedgerRow]:
    """Newest first."""
    query = sa.select(_L).order_by(_L.c.at.desc(), _L.c.id)
    if endpoint is not None:
        query = query.where(_L.c.endpoint == endpoint)
    if change_id is not None:
        query = query.where(_L.c.change_id == change_id)
    if since is not None:
        query = query.where(_L.c.at >= since)
    return every(LedgerRow, db.execute(query).mappings())


def measured_error(db: sa.Connection, endpoint: str) -> dict[str, float]:
    """Median relative error by metric, over the comparable rows of this endpoint. Metrics never measured are absent."""
    errors: dict[str, list[float]] = {}
    for row in ledger(db, endpoint=endpoint):
        if row["comparable"] and row["error"] is not None:
            errors.setdefault(row["metric"], []).append(abs(row["error"]))
    return {metric: median(values) for metric, values in errors.items()}
