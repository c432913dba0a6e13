"""Tunes and their trials: what was asked, how far it is, and what was measured. Each step is kept as it ends, so that a kill loses none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from agent.store import audit, schema
from agent.store.rows import TrialRow, TuneRow, every, one

_T = schema.tunes
_R = schema.trials
Row = TuneRow


def start(db: sa.Connection, row: Mapping[str, Any], trials: Iterable[Mapping[str, Any]]) -> bool:
    """Begin a tune with its planned trials. False when one is under way on this endpoint: the database's own index says so."""
    try:
        with db.begin_nested():
            db.execute(sa.insert(_T).values(**{"state": "running", **row}))
    except IntegrityError:
        return False
    planned = [{"tune_id": row["id"], "state": "planned", "why": "", "body": {}, **trial} for trial in trials]
    db.execute(sa.insert(_R), planned)
    audit.append(
        db,
        at=row["started_at"],
        actor=row["started_by"],
        action="tune",
        subject=row["endpoint"],
        body={"tune": row["id"], "trials": len(planned)},
    )
    return True


def get(db: sa.Connection, identity: str) -> Row | None:
    row = db.execute(sa.select(_T).where(_T.c.id == identity)).mappings().one_or_none()
    return one(TuneRow, row)


def running(db: sa.Connection, endpoint: str) -> Row | None:
    """The one that is not at its end, whether or not its process lives."""
    query = sa.select(_T).where(_T.c.endpoint == endpoint, _T.c.state == "running")
    row = db.execute(query).mappings().one_or_none()
    return one(TuneRow, row)


def end(
    db: sa.Connection, identity: str, *, state: str, now: float, by: str, result: Mapping[str, Any] | None = None
) -> None:
    """``done`` or ``abandoned``."""
    row = db.execute(sa.select(_T.c.endpoint).where(_T.c.id == identity)).one()
    db.execute(sa.update(_T).where(_T.c.id == identity).values(state=state, ended_at=now, result=result))
    audit.append(db, at=now, actor=by, action=f"tune_{state}", subject=row.endpoint, body={"tune": identity})


def trials(db: sa.Connection, identity: str) -> list[TrialRow]:
    """In the order in which they were asked for."""
    query = sa.select(_R).where(_R.c.tune_id == identity).order_by(_R.c.number)
    return every(TrialRow, db.execute(query).mappings())


def keep(db: sa.Connection, identity: str, number: int, **values: Any) -> None:
    """What changed of a trial."""
    db.execute(sa.update(_R).where(_R.c.tune_id == identity, _R.c.number == number).values(**values))


def latest(db: sa.Connection, endpoint: str | None = None, limit: int = 20) -> list[Row]:
    """Newest first."""
    query = sa.select(_T).order_by(_T.c.started_at.desc(), _T.c.id).limit(limit)
    if endpoint is not None:
        query = query.where(_T.c.endpoint == endpoint)
    return every(TuneRow, db.execute(query).mappings())
