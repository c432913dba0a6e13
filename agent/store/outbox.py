"""Messages that must get out, and reports that were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from agent.store import schema
from agent.store.recommendations import OPEN
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


def due(db: sa.Connection, now: float, limit: int = 20, channel: str = "slack") -> list[Row]:
    """Of one channel, the oldest first."""
    waiting = (_O.c.channel == channel, _O.c.state == "waiting", _O.c.next_try_at <= now)
    query = sa.select(_O).where(*waiting).order_by(_O.c.id).limit(limit)
    return every(MessageRow, db.execute(query).mappings())


def sent(db: sa.Connection, identity: int, now: float, place: tuple[str, str] | None = None) -> None:
    """place: the message's channel and time stamp, where its channel told."""
    channel, ts = place or (None, None)
    told = {"message_channel": channel, "message_ts": ts}
    db.execute(sa.update(_O).where(_O.c.id == identity).values(state="sent", sent_at=now, error=None, **told))


def place(db: sa.Connection, kind: str, subject: str, revision: int | None = None) -> tuple[str, str] | None:
    """Channel and time stamp of the last such message, or of that revision's. None: none was posted, or nobody told where it stands."""
    query = sa.select(_O.c.message_channel, _O.c.message_ts).where(
        _O.c.kind == kind, _O.c.subject == subject, _O.c.message_ts.is_not(None)
    )
    if revision is not None:
        query = query.where(_O.c.revision == revision)
    row = db.execute(query.order_by(_O.c.revision.desc()).limit(1)).one_or_none()
    return None if row is None else (row.message_channel, row.message_ts)


def place_of_token(db: sa.Connection, digest: str) -> tuple[str, str] | None:
    """Of the message that carries the button of this token."""
    token = schema.tokens
    found = db.execute(
        sa.select(token.c.recommendation_id, token.c.revision).where(token.c.digest == digest)
    ).one_or_none()
    return None if found is None else place(db, "recommendation", found.recommendation_id, found.revision)


def outdated(db: sa.Connection, since: float) -> list[Row]:
    """Messages sent since then whose recommendation can no longer be decided by them, and of which nobody was told so."""
    advice, later = schema.recommendations, _O.alias()
    told = sa.exists().where(
        later.c.kind == "decided", later.c.subject == _O.c.subject, later.c.revision == _O.c.revision
    )
    query = (
        sa.select(_O)
        .join(advice, advice.c.id == _O.c.subject)
        .where(
            _O.c.kind == "recommendation",
            _O.c.state == "sent",
            _O.c.sent_at >= since,
            sa.or_(advice.c.state.not_in(OPEN), advice.c.revision > _O.c.revision),
            ~told,
        )
        .order_by(_O.c.id)
    )
    return every(MessageRow, db.execute(query).mappings())


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
