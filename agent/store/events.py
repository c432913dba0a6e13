"""What happened to an endpoint that its figures may follow from: its engine, its deployment, its price. ``changes`` has Flyball's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from agent.store import schema
from agent.store.rows import EventRow, every, one

_T = schema.events


def add(db: sa.Connection, endpoint: str, *, at: float, kind: str, text: str, body: Mapping[str, Any]) -> None:
    """kind: ``engine`` (what it says of itself), ``deploy`` (its live specification), ``price``. ``text`` is empty for the first one seen."""
    db.execute(sa.insert(_T).values(endpoint=endpoint, at=at, kind=kind, text=text, body=dict(body)))


def latest(db: sa.Connection, endpoint: str, kind: str) -> EventRow | None:
    query = sa.select(_T).where(_T.c.endpoint == endpoint, _T.c.kind == kind).order_by(_T.c.id.desc()).limit(1)
    row = db.execute(query).mappings().one_or_none()
    return one(EventRow, row)


def listed(db: sa.Connection, endpoint: str, since: float) -> list[EventRow]:
    """What changed, oldest first. Not how it was when it was first seen."""
    query = sa.select(_T).where(_T.c.endpoint == endpoint, _T.c.at >= since, _T.c.text != "").order_by(_T.c.at)
    return every(EventRow, db.execute(query).mappings())
