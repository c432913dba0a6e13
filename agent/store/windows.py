"""Windows in the database: saving, loading, rolling up, ageing out."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from agent.store import schema
from agent.store.sql import upsert
from analyzers.money import Cost
from collectors.sketch import Sketch
from collectors.window import COUNTERS, Gauge, Window

_T = schema.windows
_KEY = ("endpoint", "source", "duration_s", "start")
_QUANTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))

#: Resolutions above the collected one, finest first: seconds.
ROLLUPS = (300.0, 3600.0)
#: A span is merged once, so not before its last collected window had this many windows' time to come in.
SETTLE_WINDOWS = 2


def save(db: sa.Connection, windows: Sequence[Window], price_per_hour: Mapping[str, float | None] | None = None) -> int:
    """Save windows; one that is there already stays as it is. ``price_per_hour`` is the whole endpoint's, by name.

    Returns how many were new.
    """
    prices = price_per_hour or {}
    return upsert(db, _T, [_row(w, prices.get(w.endpoint)) for w in windows], key=_KEY)


def load(db: sa.Connection, endpoint: str, source: str, start: float, end: float, duration_s: float) -> list[Window]:
    """Windows of one resolution that lie whole within ``start``..``end``, in order."""
    rows = db.execute(
        sa.select(_T)
        .where(_T.c.endpoint == endpoint, _T.c.source == source, _T.c.duration_s == duration_s)
        .where(_T.c.start >= start, _T.c.start + _T.c.duration_s <= end)
        .order_by(_T.c.start)
    )
    return [_window(dict(row._mapping)) for row in rows]


def latest(db: sa.Connection, endpoint: str, duration_s: float, source: str) -> Window | None:
    """The newest window that really observed something."""
    row = db.execute(
        sa.select(_T)
        .where(_T.c.endpoint == endpoint, _T.c.source == source, _T.c.duration_s == duration_s, _T.c.coverage > 0)
        .order_by(_T.c.start.desc())
        .limit(1)
    ).first()
    return _window(dict(row._mapping)) if row is not None else None


def spent(db: sa.Connection, endpoint: str, source: str, start: float, end: float, duration_s: float) -> Cost:
    """US dollars over windows of one resolution, gaps included: reserved capacity costs whether watched or not.

    ``usd`` is of those whose cost is known; where it is not of some, the price lacks.
    """
    usd, priced, all_ = db.execute(
        sa.select(sa.func.sum(_T.c.cost_usd), sa.func.count(_T.c.cost_usd), sa.func.count()).where(
            _T.c.endpoint == endpoint,
            _T.c.source == source,
            _T.c.duration_s == duration_s,
            _T.c.start >= start,
            _T.c.start < end,
        )
    ).one()
    return Cost(usd, ("price",) if priced < all_ else ())


def roll_up(db: sa.Connection, now: float, raw_s: float) -> int:
    """Merge whole 5-minute and 1-hour spans that have ended and settled. Returns how many windows were made."""
    made = 0
    finer = raw_s
    now -= SETTLE_WINDOWS * raw_s
    for coarse in ROLLUPS:
        if coarse <= finer:
            continue
        made += _roll_level(db, now, finer, coarse)
        finer = coarse
    return made


def _roll_level(db: sa.Connection, now: float, finer: float, coarse: float) -> int:
    until = now // coarse * coarse
    done = {
        (row.endpoint, row.source): float(row.last)
        for row in db.execute(
            sa.select(_T.c.endpoint, _T.c.source, sa.func.max(_T.c.start).label("last"))
            .where(_T.c.duration_s == coarse)
            .group_by(_T.c.endpoint, _T.c.source)
        )
    }
    pairs = db.execute(
        sa.select(_T.c.endpoint, _T.c.source, sa.func.min(_T.c.start).label("first"))
        .where(_T.c.duration_s == finer)
        .group_by(_T.c.endpoint, _T.c.source)
    ).all()
    made: list[Mapping[str, Any]] = []
    for endpoint, source, first in pairs:
        start = done[endpoint, source] + coarse if (endpoint, source) in done else first // coarse * coarse
        groups: dict[float, list[Window]] = defaultdict(list)
        for window in load(db, endpoint, source, start, until, finer):
            groups[window.start // coarse * coarse].append(window)
        for begin, members in groups.items():
            cost = spent(db, endpoint, source, begin, begin + coarse, finer)
            whole = None if cost.lacking else cost.usd  # a part alone would pass for all of it
            made.append({**_row(merge(members, begin, coarse), None), "cost_usd": whole})
    return upsert(db, _T, made, key=_KEY)


def age_out(db: sa.Connection, now: float, keep_s: Mapping[float, float]) -> int:
    """Delete windows of each resolution (seconds) that are older than their keeping time (seconds)."""
    gone = 0
    for duration_s, seconds in keep_s.items():
        gone += db.execute(sa.delete(_T).where(_T.c.duration_s == duration_s, _T.c.start < now - seconds)).rowcount
    return gone


def merge(windows: Sequence[Window], start: float, duration_s: float) -> Window:
    """Windows of one endpoint and source as one: counts add, sketches merge, gauges are weighted by what was observed.

    A stretch without a window is a gap: it lowers the coverage.
    """
    counts: dict[str, float] = defaultdict(float)
    sketches: dict[str, list[Sketch]] = defaultdict(list)
    gauges: dict[str, list[tuple[float, Gauge]]] = defaultdict(list)
    errors: dict[str, int] = defaultdict(int)
    facts: dict[str, str] = {}
    for window in windows:
        for name, value in window.counts.items():
            counts[name] += value
        for name, sketch in window.sketches.items():
            sketches[name].append(sketch)
        for name, gauge in window.gauges.items():
            gauges[name].append((window.coverage * window.duration_s, gauge))
        for kind, n in window.errors.items():
            errors[kind] += n
        facts.update(window.facts)
    return Window(
        endpoint=windows[0].endpoint,
        source=windows[0].source,
        start=start,
        duration_s=duration_s,
        coverage=min(1.0, sum(w.coverage * w.duration_s for w in windows) / duration_s),
        targets=max(w.targets for w in windows),
        restarts=sum(w.restarts for w in windows),
        counts=dict(counts),
        sketches={name: Sketch.merge(parts) for name, parts in sketches.items()},
        gauges={name: _merge_gauges(parts) for name, parts in gauges.items()},
        errors=dict(errors),
        facts=facts,
    )


def _merge_gauges(parts: Sequence[tuple[float, Gauge]]) -> Gauge:
    weight = sum(w for w, _ in parts)
    mean = sum(w * g.mean for w, g in parts) / weight if weight > 0 else parts[-1][1].mean
    return Gauge(mean=mean, maximum=max(g.maximum for _, g in parts), last=parts[-1][1].last)


def _row(window: Window, price_per_hour: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "endpoint": window.endpoint,
        "source": window.source,
        "start": window.start,
        "duration_s": window.duration_s,
        "coverage": window.coverage,
        "targets": window.targets,
        "restarts": window.restarts,
        "cost_usd": None if price_per_hour is None else price_per_hour * window.duration_s / 3600,
        "sketches": pack(window.sketches),
        "gauges": {name: [g.mean, g.maximum, g.last] for name, g in window.gauges.items()},
        "read_errors": dict(window.errors),
        "facts": dict(window.facts),
    }
    for name in COUNTERS:
        row[name] = window.counts.get(name)
    for metric in ("ttft", "itl", "tpot", "e2e", "queue"):
        sketch = window.sketches.get(f"{metric}_s")
        for label, q in _QUANTILES:
            row[f"{metric}_{label}_s"] = sketch.quantile(q) if sketch is not None else None
    for name in ("running", "waiting", "kv_usage"):
        gauge = window.gauges.get(name)
        row[f"{name}_mean"] = gauge.mean if gauge else None
        row[f"{name}_max"] = gauge.maximum if gauge else None
    for name in ("gpu_usage", "cpu_usage"):
        gauge = window.gauges.get(name)
        row[f"{name}_mean"] = gauge.mean if gauge else None
    return row


def _window(row: Mapping[str, Any]) -> Window:
    return Window(
        endpoint=row["endpoint"],
        source=row["source"],
        start=row["start"],
        duration_s=row["duration_s"],
        coverage=row["coverage"],
        targets=row["targets"],
        restarts=row["restarts"],
        counts={name: row[name] for name in COUNTERS if row[name] is not None},
        sketches=unpack(row["sketches"]),
        gauges={name: Gauge(*values) for name, values in row["gauges"].items()},
        errors=row["read_errors"],
        facts=row["facts"],
    )


def pack(sketches: Mapping[str, Sketch]) -> bytes:
    """Name and bytes of each sketch, each behind its length."""
    parts: list[bytes] = []
    for name, sketch in sorted(sketches.items()):
        data, key = sketch.to_bytes(), name.encode()
        parts += [struct.pack(">HI", len(key), len(data)), key, data]
    return b"".join(parts)


def unpack(data: bytes) -> dict[str, Sketch]:
    """The reverse of ``pack``. Raises ValueError on anything else."""
    sketches: dict[str, Sketch] = {}
    for key, blob in _entries(memoryview(data)):
        sketches[key] = Sketch.from_bytes(blob)
    return sketches


def _entries(view: memoryview) -> Iterable[tuple[str, bytes]]:
    head = struct.calcsize(">HI")
    while view:
        if len(view) < head:
            raise ValueError("packed sketches: cut off")
        key_size, size = struct.unpack(">HI", view[:head])
        if len(view) < head + key_size + size:
            raise ValueError("packed sketches: cut off")
        yield bytes(view[head : head + key_size]).decode(), bytes(view[head + key_size : head + key_size + size])
        view = view[head + key_size + size :]
