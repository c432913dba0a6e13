"""What vendors billed for each day of an endpoint. A bill grows until it is complete: what was read last counts."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from agent.store import schema
from agent.store.rows import BillRow, every
from agent.store.sql import upsert
from collectors.billing import BilledDay

_T = schema.bills


def keep(db: sa.Connection, endpoint: str, vendor: str, days: Sequence[BilledDay], now: float) -> None:
    rows = [{"endpoint": endpoint, "day": d.start, "vendor": vendor, "usd": d.usd, "read_at": now} for d in days]
    upsert(db, _T, rows, key=["endpoint", "day"], update=["vendor", "usd", "read_at"])


def listed(db: sa.Connection, endpoint: str, start: float, end: float) -> list[BillRow]:
    """Days that begin within ``start``..``end`` (Unix seconds), oldest first."""
    query = sa.select(_T).where(_T.c.endpoint == endpoint, _T.c.day >= start, _T.c.day < end).order_by(_T.c.day)
    return every(BillRow, db.execute(query).mappings())
