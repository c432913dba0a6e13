"""The append-only, hash-chained record of who did, or was refused, what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from agent.store import schema
from agent.store.rows import AuditRow, every

_T = schema.audit
_START = "0" * 64
_LOCK = 0x666C796175646974  # "flyaudit"


def append(
    db: sa.Connection, *, at: float, actor: str, action: str, subject: str, body: Mapping[str, Any] | None = None
) -> str:
    """Add one row within the caller's transaction; returns its hash. ``body`` must not hold secrets."""
    if db.dialect.name == "postgresql":  # SQLite's write transactions are one at a time already
        db.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    previous = db.execute(sa.select(_T.c.hash).order_by(_T.c.id.desc()).limit(1)).scalar_one_or_none() or _START
    text = json.dumps(body or {}, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    row = {"at": at, "actor": actor, "action": action, "subject": subject, "body": text, "previous": previous}
    digest = _digest(row)
    db.execute(sa.insert(_T).values(**row, hash=digest))
    return digest


@dataclass(slots=True)
class AuditCheckpoint:
    """How far the chain was followed: the last row that held, and its hash."""

    id: int = 0
    hash: str = _START


def verify(db: sa.Connection, known: AuditCheckpoint | None = None) -> int | None:
    """The id of the first row that was altered, or from before which one is missing; None when the chain holds.

    known: followed on from there, and kept up to date; what lies before it is not read again. Without it the whole chain is.
    """
    at = known if known is not None else AuditCheckpoint()
    if at.id and db.execute(sa.select(_T.c.hash).where(_T.c.id == at.id)).scalar_one_or_none() != at.hash:
        at.id, at.hash = 0, _START  # it was altered since: find out where
    for row in map(dict, db.execute(sa.select(_T).where(_T.c.id > at.id).order_by(_T.c.id)).mappings()):
        if row["previous"] != at.hash or row["hash"] != _digest(row):
            return int(row["id"])
        at.id, at.hash = int(row["id"]), row["hash"]
    return None


def last(db: sa.Connection) -> AuditCheckpoint:
    """The newest row; of an empty chain its beginning."""
    row = db.execute(sa.select(_T.c.id, _T.c.hash).order_by(_T.c.id.desc()).limit(1)).one_or_none()
    return AuditCheckpoint() if row is None else AuditCheckpoint(int(row.id), row.hash)


def holds(db: sa.Connection, digest: str) -> bool:
    """Whether a row with a hash that begins so is in the chain."""
    query = sa.select(_T.c.id).where(_T.c.hash.startswith(digest, autoescape=True)).limit(1)
    return db.execute(query).one_or_none() is not None


def entries(db: sa.Connection, subject: str | None = None, limit: int = 200) -> list[AuditRow]:
    """The newest rows first."""
    query = sa.select(_T).order_by(_T.c.id.desc()).limit(limit)
    if subject is not None:
        query = query.where(_T.c.subject == subject)
    return every(AuditRow, db.execute(query).mappings())


def _digest(row: Mapping[str, Any]) -> str:
    fields = [row["previous"], repr(float(row["at"])), row["actor"], row["action"], row["subject"], row["body"]]
    return hashlib.sha256(json.dumps(fields, separators=(",", ":")).encode()).hexdigest()
