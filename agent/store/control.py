"""Who leads, what is paused, and when each loop last ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from agent.store import audit, schema
from agent.store.database import Store
from agent.store.rows import ControlRow, LeaseRow, one
from agent.store.sql import DatabaseTime, upsert

_L = schema.leases
_C = schema.control


class LostLease(Exception):
    """Somebody else leads: whoever sees this stops, and writes nothing."""


@dataclass(frozen=True, slots=True)
class Lead:
    """Proof of holding a lease: this holder, under this epoch."""

    lease: str
    holder: str
    epoch: int


def acquire(db: sa.Connection, name: str, holder: str, ttl_s: float) -> Lead | None:
    """Take or renew the lease, by the database's clock. Its epoch grows with each new holder. None while another holds it."""
    now = DatabaseTime()
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
    return Lead(name, holder, int(db.execute(sa.select(_L.c.epoch).where(_L.c.name == name)).scalar_one()))


def release(db: sa.Connection, name: str, holder: str) -> None:
    """Give the lease up, so that the next one need not wait."""
    db.execute(sa.update(_L).where(_L.c.name == name, _L.c.holder == holder).values(expires_at=0.0))


@contextmanager
def leading(store: Store, lead: Lead) -> Iterator[sa.Connection]:
    """A write transaction of a leader: it holds the lease's row until it ends, so that nobody takes over in between.

    Raises ``LostLease``, and nothing is written, unless this holder has the lease under this epoch.
    """
    with store.write() as db:
        fence(db, lead)
        yield db


def fence(db: sa.Connection, lead: Lead) -> None:
    """See ``leading``: for a transaction that is open already."""
    mine = sa.select(_L.c.epoch).where(
        _L.c.name == lead.lease,
        _L.c.holder == lead.holder,
        _L.c.epoch == lead.epoch,
        _L.c.expires_at > DatabaseTime(),
    )
    if db.execute(mine.with_for_update(read=True)).one_or_none() is None:
        raise LostLease(f"{lead.holder} no longer holds {lead.lease} under epoch {lead.epoch}")


def leader(db: sa.Connection, name: str) -> LeaseRow | None:
    """``{"holder", "epoch", "expires_at"}`` of who holds the lease at this moment; None: nobody does."""
    row = db.execute(sa.select(_L).where(_L.c.name == name, _L.c.expires_at > DatabaseTime())).mappings().one_or_none()
    return one(LeaseRow, row)


def put(db: sa.Connection, key: str, value: Any, now: float, by: str) -> None:
    upsert(db, _C, [{"key": key, "value": value, "at": now, "by": by}], key=["key"], update=["value", "at", "by"])


def get(db: sa.Connection, key: str) -> ControlRow | None:
    """``{"key", "value", "at", "by"}``, or None."""
    row = db.execute(sa.select(_C).where(_C.c.key == key)).mappings().one_or_none()
    return one(ControlRow, row)


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


def paused(db: sa.Connection) -> ControlRow | None:
    """Who paused, when and why; None when nothing is paused."""
    return get(db, "paused")
