"""What is known of each endpoint now: its live shape, its sources' health, its findings, its calibration, whether it is frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from agent.store import audit, schema
from agent.store.rows import CalibrationRow, EndpointRow, FindingRow, SourceRow, every, one
from agent.store.sql import upsert
from analyzers.finding import Finding

_E = schema.endpoints
_F = schema.findings
_S = schema.sources
Row = EndpointRow


def saw_shape(db: sa.Connection, endpoint: str, row: Mapping[str, Any]) -> None:
    """Keep the live shape: ``shape, shape_version, ready, detail, seen_at, price_per_hour``."""
    upsert(db, _E, [{"endpoint": endpoint, **row}], key=["endpoint"], update=list(row))


def get(db: sa.Connection, endpoint: str) -> Row | None:
    row = db.execute(sa.select(_E).where(_E.c.endpoint == endpoint)).mappings().one_or_none()
    return one(EndpointRow, row)


def by_name(db: sa.Connection) -> dict[str, Row]:
    """All endpoints that were seen."""
    return {row["endpoint"]: row for row in every(EndpointRow, db.execute(sa.select(_E)).mappings())}


def changed(db: sa.Connection, endpoint: str, now: float) -> None:
    db.execute(sa.update(_E).where(_E.c.endpoint == endpoint).values(last_change_at=now))


def decided(db: sa.Connection, endpoint: str, decision: Mapping[str, Any]) -> None:
    """Keep what the last analysis came to: ``at, state, text, reasons`` (what is shown where people ask why)."""
    db.execute(sa.update(_E).where(_E.c.endpoint == endpoint).values(decision=dict(decision)))


def compared(db: sa.Connection, endpoint: str, comparison: Mapping[str, Any]) -> None:
    """Keep how it stands beside its reference: a comparison as JSON, with ``at``."""
    values = {"comparison": dict(comparison), "comparison_lacks": None}
    db.execute(sa.update(_E).where(_E.c.endpoint == endpoint).values(**values))


def lacks_comparison(db: sa.Connection, endpoint: str, text: str) -> None:
    """Keep what it would take to compare it now. What was compared before stays, with its time."""
    db.execute(sa.update(_E).where(_E.c.endpoint == endpoint).values(comparison_lacks=text))


def freeze(db: sa.Connection, endpoint: str, *, reason: str, now: float, by: str) -> None:
    """Nothing is applied to it until a person unfreezes it."""
    db.execute(sa.update(_E).where(_E.c.endpoint == endpoint).values(frozen_because=reason, frozen_at=now))
    audit.append(db, at=now, actor=by, action="freeze", subject=endpoint, body={"reason": reason})


def unfreeze(db: sa.Connection, endpoint: str, *, now: float, by: str) -> bool:
    touched = db.execute(
        sa.update(_E)
        .where(_E.c.endpoint == endpoint, _E.c.frozen_because.is_not(None))
        .values(frozen_because=None, frozen_at=None)
    ).rowcount
    if touched:
        audit.append(db, at=now, actor=by, action="unfreeze", subject=endpoint)
    return touched == 1


def source_health(db: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep how each source fares: one row with all columns for each."""
    columns = [c.name for c in _S.columns if c.name not in ("endpoint", "source")]
    upsert(db, _S, rows, key=["endpoint", "source"], update=columns)


def sources(db: sa.Connection, endpoint: str | None = None) -> list[SourceRow]:
    query = sa.select(_S).order_by(_S.c.endpoint, _S.c.source)
    if endpoint is not None:
        query = query.where(_S.c.endpoint == endpoint)
    return every(SourceRow, db.execute(query).mappings())


def found(db: sa.Connection, endpoint: str, findings: Sequence[Finding], now: float) -> list[Finding]:
    """Keep the endpoint's findings; those not found this time become inactive. Returns the ones that are new."""
    known = {
        row.key: bool(row.active)
        for row in db.execute(sa.select(_F.c.key, _F.c.active).where(_F.c.endpoint == endpoint))
    }
    rows = [
        {
            "key": f.key,
            "endpoint": endpoint,
            "kind": f.kind,
            "severity": f.severity,
            "code": f.reason.code,
            "body": f.as_dict(),
            "first_seen_at": now,
            "last_seen_at": now,
            "active": True,
        }
        for f in findings
    ]
    gone = [key for key, active in known.items() if active and key not in {f.key for f in findings}]
    if gone:
        db.execute(sa.update(_F).where(_F.c.key.in_(gone)).values(active=False))
    again = [f.key for f in findings if known.get(f.key) is False]
    if again:
        db.execute(sa.update(_F).where(_F.c.key.in_(again)).values(first_seen_at=now))
    upsert(db, _F, rows, key=["key"], update=["kind", "severity", "body", "last_seen_at", "active"])
    return [f for f in findings if not known.get(f.key)]


def findings(db: sa.Connection, endpoint: str | None = None, *, active: bool = True) -> list[FindingRow]:
    """Most severe first."""
    rank = sa.case({"critical": 0, "warning": 1}, value=_F.c.severity, else_=2)
    query = sa.select(_F).order_by(rank, _F.c.endpoint, _F.c.code)
    if endpoint is not None:
        query = query.where(_F.c.endpoint == endpoint)
    if active:
        query = query.where(_F.c.active)
    return every(FindingRow, db.execute(query).mappings())


def keep_calibration(db: sa.Connection, endpoint: str, *, key: str, now: float, body: Mapping[str, Any]) -> None:
    db.execute(sa.insert(schema.calibrations).values(endpoint=endpoint, key=key, fitted_at=now, body=dict(body)))


def calibration(db: sa.Connection, endpoint: str, key: str | None = None) -> CalibrationRow | None:
    """The newest one, of this key where given."""
    table = schema.calibrations
    query = sa.select(table).where(table.c.endpoint == endpoint).order_by(table.c.id.desc()).limit(1)
    if key is not None:
        query = query.where(table.c.key == key)
    row = db.execute(query).mappings().one_or_none()
    return one(CalibrationRow, row)
