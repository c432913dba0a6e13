"""Who leads, what is paused, and when each loop last ran."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from agent.store import audit, schema
from agent.store.sql import upsert

_L = schema.leases
_C = schema.control


def acquire(db: sa.Connection, name: str, holder: str, now: float, ttl_s: float) -> int | None:
    """Take or renew the lease. Returns its fencing epoch, which grows with each new holder; None while another holds it."""
    renewed = db.execute(
        sa.update(_L)
        .where(_L.c.name == name, _L.c.holder == holder, _L.c.expires_at > now)
        .values(expires_at=now + ttl_s)
    ).rowcount
    if not renewed:
        upsert(db, _L, [{"name": name, "holder": "", "epoch": 0, "expires_at": 0.0}], key=["name"])
        taken = db.execute(
            sa.update(_L)
            .where(_L.c.name == name, _L.c.expires_at <= now)
            .values(holder=holder, epoch=_L.c.epoch + 1, expires_at=now + ttl_s)
        ).rowcount
        if not taken:
            return None
    return int(db.execute(sa.select(_L.c.epoch).where(_L.c.name == name)).scalar_one())


def release(db: sa.Connection, name: str, holder: str) -> None:
    """Give the lease up, so that the next one need not wait."""
    db.execute(sa.update(_L).where(_L.c.name == name, _L.c.holder == holder).values(expires_at=0.0))


def holds(db: sa.Connection, name: str, holder: str, epoch: int, now: float) -> bool:
    """Whether this holder still leads under this epoch: the fence, asked right before each operation."""
    row = db.execute(sa.select(_L).where(_L.c.name == name)).one_or_none()
    return row is not None and row.holder == holder and row.epoch == epoch and row.expires_at > now


def leader(db: sa.Connection, name: str) -> dict[str, Any] | None:
    row = db.execute(sa.select(_L).where(_L.c.name == name)).mappings().one_or_none()
    return dict(row) if row is not None else None


def put(db: sa.Connection, key: str, value: Any, now: float, by: str) -> None:
    upsert(db, _C, [{"key": key, "value": value, "at": now, "by": by}], key=["key"], update=["value", "at", "by"])


def get(db: sa.Connection, key: str) -> dict[str, Any] | None:
    """``{"key", "value", "at", "by"}``, or None."""
    row = db.execute(sa.select(_C).where(_C.c.key == key)).mappings().one_or_none()
    return dict(row) if row is not None else None


def pause(db: sa.Connection, *, now: float, by: str, reason: str) -> None:
    """Stop the next operation, whichever it is."""
    put(db, "paused", {"reason": reason}, now, by)
    audit.append(db, at=now, actor=by, action="pause", subject="flyball", body={"reason": reason})


def resume(db: sa.Connection, *, now: float, by: str) -> bool:
    """Let operations go on. False when nothing was paused."""
    gone = db.execute(sa.delete(_C).where(_C.c.key == "paused")).rowcount > 0
    if gone:
        audit.append(db, at=now, actor=by, action="resume", subject="flyball")
    return gone


def paused(db: sa.Connection) -> dict[str, Any] | None:
    """Who paused, when and why; None when nothing is paused."""
    return get(db, "paused")
