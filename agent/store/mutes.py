"""What people do not want to be told of: a finding of an endpoint, by its code, for ever (suppressed) or until a time (snoozed)."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from agent.store import audit, schema
from agent.store.rows import MuteRow, every
from agent.store.sql import upsert

_T = schema.mutes


def mute(db: sa.Connection, endpoint: str, code: str, *, until: float | None, reason: str, now: float, by: str) -> None:
    """until: Unix seconds; None: for ever. It takes the place of what was said of this finding before."""
    row = {"endpoint": endpoint, "code": code, "until": until, "reason": reason, "at": now, "by": by}
    upsert(db, _T, [row], key=["endpoint", "code"], update=["until", "reason", "at", "by"])
    body = {"code": code, "reason": reason} | ({} if until is None else {"until": until})
    action = "suppress_finding" if until is None else "snooze_finding"
    audit.append(db, at=now, actor=by, action=action, subject=endpoint, body=body)


def unmute(db: sa.Connection, endpoint: str, code: str, *, now: float, by: str) -> bool:
    """False where it is told of already."""
    heard = sa.and_(_T.c.until.is_not(None), _T.c.until <= now)
    gone = db.execute(sa.delete(_T).where(_T.c.endpoint == endpoint, _T.c.code == code, sa.not_(heard))).rowcount
    if gone:
        audit.append(db, at=now, actor=by, action="resume_finding", subject=endpoint, body={"code": code})
    return gone == 1


def standing(db: sa.Connection, now: float) -> Mapping[tuple[str, str], MuteRow]:
    """By endpoint and code."""
    query = sa.select(_T).where(sa.or_(_T.c.until.is_(None), _T.c.until > now))
    return {(row["endpoint"], row["code"]): row for row in every(MuteRow, db.execute(query).mappings())}
