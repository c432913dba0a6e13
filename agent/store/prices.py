"""What sizes and endpoints were paid for by, and from when on."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from agent.store import schema
from agent.store.rows import PriceRow, every
from analyzers.money import Price, Tariff, Unit

_T = schema.prices


def note(db: sa.Connection, known: Mapping[tuple[str, Unit], float], now: float) -> int:
    """Keep what is not what it was in the newest rows; how many there were. known: US dollars by subject and unit.

    The first price of a subject holds for all time before: nothing else was ever said of it. One that is taken away leaves no row: what
    is spent from then on is not known, whatever the last price was.
    """
    newest = {(row["subject"], Unit(row["per"])): row["usd"] for row in _rows(db, sa.true())}
    rows = [
        {
            "subject": key[0],
            "per": str(key[1]),
            "usd": usd,
            "source": "settings",
            "since": now if key in newest else 0.0,
        }
        for key, usd in known.items()
        if newest.get(key) != usd
    ]
    if rows:
        db.execute(sa.insert(_T), rows)
    return len(rows)


def history(db: sa.Connection, subject: str) -> Tariff:
    """All its prices, each with the moment since which it holds; ``Tariff.at`` tells those of a moment."""
    return Tariff(
        tuple(
            Price(row["usd"], Unit(row["per"]), row["source"], since=row["since"])
            for row in _rows(db, _T.c.subject == subject)
        )
    )


def _rows(db: sa.Connection, which: sa.ColumnElement[bool]) -> list[PriceRow]:
    """In order of time."""
    return every(PriceRow, db.execute(sa.select(_T).where(which).order_by(_T.c.since, _T.c.id)).mappings())
