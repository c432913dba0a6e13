"""The flight recorder in the database: requests without their content, bounded in age and in number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TypedDict

import sqlalchemy as sa

from agent.store import schema
from agent.store.rows import FlightRow, every
from agent.store.sql import upsert
from collectors.flight import FlightRecord

_T = schema.flights
#: Rows that leave the database at once.
_CHUNK = 20_000


class FlightSummary(TypedDict):
    """What is there of one endpoint."""

    endpoint: str
    side: str
    requests: int
    first_at: float
    last_at: float
    with_prefixes: int


def keep(db: sa.Connection, records: Sequence[tuple[str, FlightRecord]]) -> int:
    """Save requests, each with its endpoint's name; one that is there already stays. Returns how many were written."""
    rows = [{"endpoint": endpoint, **asdict(record)} for endpoint, record in records]
    return upsert(db, _T, rows, key=["endpoint", "identity"])


def listed(db: sa.Connection, endpoint: str, side: str, start: float, end: float) -> Iterator[FlightRow]:
    """Those that arrived within ``start``..``end`` (Unix seconds), in the order of arrival, read in chunks."""
    after = (-1.0, 0)
    while True:
        later = sa.tuple_(_T.c.arrived_at, _T.c.id) > sa.tuple_(sa.literal(after[0]), sa.literal(after[1]))
        query = (
            sa.select(_T)
            .where(_T.c.endpoint == endpoint, _T.c.side == side, _T.c.arrived_at >= start, _T.c.arrived_at < end)
            .where(later)
            .order_by(_T.c.arrived_at, _T.c.id)
            .limit(_CHUNK)
        )
        rows = every(FlightRow, db.execute(query).mappings())
        yield from rows
        if len(rows) < _CHUNK:
            return
        after = (rows[-1]["arrived_at"], rows[-1]["id"])


def lengths(db: sa.Connection, endpoint: str, start: float, end: float, most: int) -> list[tuple[int, int]]:
    """Prompt and output tokens of the newest requests that arrived within ``start``..``end`` and were answered; ``most`` of them."""
    c = _T.c
    query = (
        sa.select(c.prompt_tokens, c.output_tokens)
        .where(c.endpoint == endpoint, c.arrived_at >= start, c.arrived_at < end, c.error.is_(None))
        .where(c.prompt_tokens > 0, c.output_tokens > 0)
        .order_by(c.arrived_at.desc())
        .limit(most)
    )
    return [(prompt, output) for prompt, output in db.execute(query)]


def summaries(db: sa.Connection, start: float = 0.0, end: float = 1e12) -> list[FlightSummary]:
    """Of each endpoint and each side that measured, of what arrived within ``start``..``end``."""
    c, count = _T.c, sa.func.count()
    query = (
        sa.select(
            c.endpoint,
            c.side,
            count.label("requests"),
            sa.func.min(c.arrived_at).label("first_at"),
            sa.func.max(c.arrived_at).label("last_at"),
            sa.func.sum(sa.case((c.blocks_whole.is_not(None), 1), else_=0)).label("with_prefixes"),
        )
        .where(c.arrived_at >= start, c.arrived_at < end)
        .group_by(c.endpoint, c.side)
        .order_by(c.endpoint, c.side)
    )
    return every(FlightSummary, db.execute(query).mappings())


def age_out(db: sa.Connection, before: float, most: int) -> int:
    """Delete what arrived before that moment (Unix seconds), and of each endpoint all but its newest ``most``. Returns how many."""
    gone = db.execute(sa.delete(_T).where(_T.c.arrived_at < before)).rowcount
    for endpoint in db.execute(sa.select(_T.c.endpoint).distinct()).scalars().all():
        mine = _T.c.endpoint == endpoint
        oldest = sa.select(_T.c.arrived_at).where(mine).order_by(_T.c.arrived_at.desc()).offset(most - 1).limit(1)
        bound = db.execute(oldest).scalar_one_or_none()
        if bound is not None:
            gone += db.execute(sa.delete(_T).where(mine, _T.c.arrived_at < bound)).rowcount
    return int(gone)
