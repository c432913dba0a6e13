"""Messages that must get out, and reports that were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from agent.store import schema
from agent.store.rows import MessageRow, ReportRow, every, one
from agent.store.sql import upsert

_O = schema.outbox
_R = schema.reports
Row = MessageRow


def put(db: sa.Connection, *, channel: str, kind: str, subject: str, revision: int, now: float) -> bool:
    """Queue a message; the same one is queued once. Returns whether it is new."""
    row = {
        "channel": channel, "kind": kind, "subject": subject, "revision": revision,
        "state": "waiting", "attempts": 0, "created_at": now, "next_try_at": now,
    }  # fmt: skip
    return upsert(db, _O, [row], key=["channel", "kind", "subject", "revision"]) == 1


def due(db: sa.Connection, now: float, limit: int = 20) -> list[Row]:
    query = sa.select(_O).where(_O.c.state == "waiting", _O.c.next_try_at <= now).order_by(_O.c.id).limit(limit)
    return every(MessageRow, db.execute(query).mappings())


def sent(db: sa.Connection, identity: int, now: float) -> None:
    db.execute(sa.update(_O).where(_O.c.id == identity).values(state="sent", sent_at=now, error=None))


def failed(db: sa.Connection, identity: int, *, error: str, retry_at: float | None) -> None:
    """``retry_at`` None: given up, and shown in `flyball status`."""
    values: dict[str, Any] = {"error": error, "attempts": _O.c.attempts + 1}
    values |= {"state": "failed"} if retry_at is None else {"next_try_at": retry_at}
    db.execute(sa.update(_O).where(_O.c.id == identity).values(**values))


def undelivered(db: sa.Connection) -> list[Row]:
    """Given up, or tried in vain at least once."""
    query = sa.select(_O).where(sa.or_(_O.c.state == "failed", sa.and_(_O.c.state == "waiting", _O.c.attempts > 0)))
    return every(MessageRow, db.execute(query.order_by(_O.c.id)).mappings())


def add_report(
    db: sa.Connection, *, start: float, end: float, now: float, path: str, summary: Mapping[str, Any]
) -> None:
    row = {"period_start": start, "period_end": end, "made_at": now, "path": path, "summary": dict(summary)}
    upsert(db, _R, [row], key=["period_start", "period_end"], update=["made_at", "path", "summary"])


def report(db: sa.Connection, identity: int) -> ReportRow | None:
    row = db.execute(sa.select(_R).where(_R.c.id == identity)).mappings().one_or_none()
    return one(ReportRow, row)


def reports(db: sa.Connection, limit: int = 50) -> list[ReportRow]:
    """Newest first."""
    query = sa.select(_R).order_by(_R.c.period_end.desc(), _R.c.id.desc()).limit(limit)
    return every(ReportRow, db.execute(query).mappings())
