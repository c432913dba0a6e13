"""Attested savings in the database: append-only, each row's hash over its body and the hash of the row before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from agent.store import audit, schema
from agent.store.rows import SavingRow, every

_T = schema.savings
_START = "0" * 64
#: Columns that repeat what the body says, for a person's own SQL.
_COLUMNS = ("endpoint", "change_id", "period_start", "period_end", "spent_usd", "missed_s")
Row = SavingRow


def append(db: sa.Connection, body: Mapping[str, Any], now: float) -> str:
    """Add one period within the caller's transaction; returns its hash, which the audit names as well."""
    previous = db.execute(sa.select(_T.c.hash).order_by(_T.c.id.desc()).limit(1)).scalar_one_or_none() or _START
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    digest = _digest(previous, now, text)
    db.execute(sa.insert(_T).values(**_columns(body), body=text, attested_at=now, previous=previous, hash=digest))
    about = {"period_start": body["period_start"], "period_end": body["period_end"], "hash": digest}
    audit.append(db, at=now, actor="flyball", action="attest_saving", subject=body["endpoint"], body=about)
    return digest


def listed(
    db: sa.Connection, *, endpoint: str | None = None, start: float | None = None, end: float | None = None
) -> list[Row]:
    """Oldest first. start, end: periods that begin within them (Unix seconds)."""
    query = sa.select(_T).order_by(_T.c.id)
    if endpoint is not None:
        query = query.where(_T.c.endpoint == endpoint)
    if start is not None:
        query = query.where(_T.c.period_start >= start)
    if end is not None:
        query = query.where(_T.c.period_start < end)
    return every(SavingRow, db.execute(query).mappings())


def altered(db: sa.Connection) -> int | None:
    """The id of the first row that was altered, or from before which one is missing; None when the chain holds.

    The last rows could be cut off unseen: that they were there, the audit says.
    """
    previous = _START
    for row in listed(db):
        whole = row["previous"] == previous and row["hash"] == _digest(previous, row["attested_at"], row["body"])
        if not whole or any(row[name] != value for name, value in _columns(json.loads(row["body"])).items()):  # type: ignore[literal-required]
            return row["id"]
        previous = row["hash"]
    return None


def missing(db: sa.Connection) -> list[str]:
    """Hashes that the audit names and that no row has: of rows that were cut off."""
    table = schema.audit
    named = db.execute(sa.select(table.c.body).where(table.c.action == "attest_saving").order_by(table.c.id)).scalars()
    there = set(db.execute(sa.select(_T.c.hash)).scalars())
    return [digest for body in named if (digest := json.loads(body)["hash"]) not in there]


def _columns(body: Mapping[str, Any]) -> dict[str, Any]:
    saved, would, miss = (body[name] or {} for name in ("saved_usd", "would_cost_usd", "would_miss_s"))
    return {name: body[name] for name in _COLUMNS} | {
        "would_cost_usd": would.get("mid"),
        "saved_low_usd": saved.get("low"),
        "saved_usd": saved.get("mid"),
        "saved_high_usd": saved.get("high"),
        "would_miss_s": miss.get("mid"),
    }


def _digest(previous: str, at: float, body: str) -> str:
    return hashlib.sha256(json.dumps([previous, repr(at), body], separators=(",", ":")).encode()).hexdigest()
