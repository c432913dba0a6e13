"""Windows in the database: saving, loading, rolling up, ageing out."""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy import exc

from agent.store import schema
from agent.store.database import Store
from agent.store.sql import upsert
from analyzers.anomaly import SlotFigures
from analyzers.forecast.history import LoadSpan
from analyzers.money import Cost, Tariff, Usage
from collectors.metrics import names
from collectors.sketch import Sketch
from collectors.window import Gauge, Range, Window

log = structlog.get_logger()
T = TypeVar("T")
_T = schema.windows
_KEY = ("endpoint", "source", "duration_s", "start")
_VALUES = tuple(column.name for column in _T.columns if column.name not in ("id", *_KEY))
#: Counters with a column of their own; the others are in ``more``.
_COUNTERS = tuple(name for name in names("counter") if name in _T.c)
_QUANTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))

#: Resolutions above the collected one, finest first: seconds.
ROLLUPS = (300.0, 3600.0)
#: A span is merged when its last collected window had this many windows' time to come in; whatever comes later merges it again.
SETTLE_WINDOWS = 2
#: Spans that are merged in one transaction, and windows that are looked through for them.
_CHUNK, _LOOKED = 200, 20_000


class Entry(NamedTuple):
    """A closed window, and what its time cost: bound when it closed, by the price of that moment."""

    window: Window
    cost_usd: float | None
    """Of the whole endpoint over the window; None: unknown."""


def save(db: sa.Connection, windows: Sequence[Window], tariffs: Mapping[str, Tariff] | None = None) -> int:
    """Save windows at the tariffs of their endpoints, by name. As ``save_entries``."""
    known = tariffs or {}
    return save_entries(db, [entry_of(w, known.get(w.endpoint, Tariff())) for w in windows])


def entry_of(window: Window, tariff: Tariff, replicas: float | None = None, ptus: float | None = None) -> Entry:
    """At a tariff, with so many replicas or units of provisioned throughput; None: not known."""
    return Entry(window, tariff.cost(Usage.of(window, replicas, ptus)).usd)


def save_entries(db: sa.Connection, entries: Sequence[Entry]) -> int:
    """Save windows; one that is there already is replaced by one that observed more, and otherwise stays as it is.

    Returns how many were written. Raises ValueError on a window that no database should hold.
    """
    rows = [_row(window, cost) for window, cost in entries]
    return _write(db, rows)


def each_saved(
    store: Store, items: Sequence[T], write: Callable[[sa.Connection, Sequence[T]], object]
) -> list[tuple[T, str]]:
    """Write all of ``items``, in one transaction where possible. What the database refuses for good is left out, and returned with
    the reason, so that one value never blocks the others. Raises whatever means that the database is away."""
    try:
        with store.write() as db:
            write(db, items)
    except Exception as error:
        if not refused(error):
            raise
        if len(items) == 1:
            return [(items[0], f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")]
        middle = len(items) // 2
        return [*each_saved(store, items[:middle], write), *each_saved(store, items[middle:], write)]
    return []


def refused(error: Exception) -> bool:
    """Whether the database, or its driver, will never take this, however often it is tried: not an outage.

    A table or a column that is not there is no fault of the value, so ``ProgrammingError`` and ``OperationalError`` are outages, but
    for PostgreSQL's class 54, a limit of the program exceeded: too large for a row.
    """
    if isinstance(error, exc.DBAPIError):
        state = str(getattr(error.orig, "sqlstate", None) or "")
        return isinstance(error, exc.DataError | exc.IntegrityError) or state.startswith("54")
    return isinstance(error, exc.StatementError | ValueError | TypeError | ArithmeticError)


def load(db: sa.Connection, endpoint: str, source: str, start: float, end: float, duration_s: float) -> list[Window]:
    """Windows of one resolution that lie whole within ``start``..``end``, in order."""
    rows = db.execute(
        sa.select(_T)
        .where(_T.c.endpoint == endpoint, _T.c.source == source, _T.c.duration_s == duration_s)
        .where(_T.c.start >= start, _T.c.start + _T.c.duration_s <= end)
        .order_by(_T.c.start)
    )
    return [_window(dict(row._mapping)) for row in rows]


def first(
    db: sa.Connection, endpoint: str, sources: Sequence[str], start: float, end: float, duration_s: float
) -> float | None:
    """Where the earliest window of one resolution begins that lies whole within ``start``..``end``; None: there is none."""
    found: float | None = db.execute(
        sa.select(sa.func.min(_T.c.start))
        .where(_T.c.endpoint == endpoint, _T.c.source.in_(sources), _T.c.duration_s == duration_s)
        .where(_T.c.start >= start, _T.c.start + _T.c.duration_s <= end)
    ).scalar_one()
    return found


def load_spans(
    db: sa.Connection, endpoint: str, sources: Sequence[str], start: float, end: float, raw_s: float
) -> list[LoadSpan]:
    """The load of ``start``..``end`` in order, without sketches: 5-minute windows, and collected ones where these are not merged yet;
    of the first source that tells requests."""
    for source in sources:
        spans: list[LoadSpan] = []
        for width in sorted({raw_s, max(raw_s, ROLLUPS[0])}, reverse=True):
            since = spans[-1].start + spans[-1].duration_s if spans else start
            spans += _spans(db, endpoint, source, since, end, width)
        if any(span.requests is not None for span in spans):
            return spans
    return []


def _spans(
    db: sa.Connection, endpoint: str, source: str, start: float, end: float, duration_s: float
) -> list[LoadSpan]:
    backlog = _T.c.running_mean + _T.c.waiting_mean
    load = (_T.c.requests, _T.c.prompt_tokens, _T.c.output_tokens, backlog)
    rows = db.execute(
        sa.select(_T.c.start, _T.c.duration_s, _T.c.coverage, *load)
        .where(_T.c.endpoint == endpoint, _T.c.source == source, _T.c.duration_s == duration_s)
        .where(_T.c.start >= start, _T.c.start + _T.c.duration_s <= end)
        .order_by(_T.c.start)
    )
    return [LoadSpan(*row) for row in rows]


def load_figures(
    db: sa.Connection, endpoint: str, source: str, start: float, end: float, duration_s: float
) -> list[SlotFigures]:
    """What plain columns tell of windows of one resolution within ``start``..``end``, in order; of those that were mostly observed."""
    c = _T.c
    columns = (c.start, c.duration_s, c.coverage, c.requests, c.errors, c.prompt_tokens, c.output_tokens)
    times = (c.ttft_p50_s, c.ttft_p95_s, c.itl_p50_s, c.waiting_mean)
    rows = db.execute(
        sa.select(*columns, *times)
        .where(c.endpoint == endpoint, c.source == source, c.duration_s == duration_s, c.coverage >= 0.5)
        .where(c.start >= start, c.start + c.duration_s <= end)
        .order_by(c.start)
    )
    return [_figures(row._mapping) for row in rows]


def _figures(row: Mapping[Any, Any]) -> SlotFigures:
    requests = row["requests"]
    each = (
        {} if not requests else {n: row[n] / requests for n in ("prompt_tokens", "output_tokens") if row[n] is not None}
    )
    values = {
        "requests_per_s": None if requests is None else requests / (row["duration_s"] * row["coverage"]),
        "error_rate": None if row["errors"] is None or not requests else row["errors"] / requests,
        "waiting": row["waiting_mean"],
        **{name: row[name] for name in ("ttft_p50_s", "ttft_p95_s", "itl_p50_s")},
        **each,
    }
    return SlotFigures(row["start"], {name: value for name, value in values.items() if value is not None})


def latest(db: sa.Connection, endpoint: str, duration_s: float, source: str) -> Window | None:
    """The newest window that really observed something."""
    row = db.execute(
        sa.select(_T)
        .where(_T.c.endpoint == endpoint, _T.c.source == source, _T.c.duration_s == duration_s, _T.c.coverage > 0)
        .order_by(_T.c.start.desc())
        .limit(1)
    ).first()
    return _window(dict(row._mapping)) if row is not None else None


def begun(db: sa.Connection, endpoint: str, duration_s: float) -> float | None:
    """When observing began: in the oldest collected window that observed something, as late as its coverage says. None: never."""
    query = (
        sa.select(_T.c.start, _T.c.coverage)
        .where(_T.c.endpoint == endpoint, _T.c.duration_s == duration_s, _T.c.coverage > 0)
        .order_by(_T.c.start, _T.c.coverage.desc())
        .limit(1)
    )
    first = db.execute(query).one_or_none()
    return None if first is None else float(first.start + (1 - first.coverage) * duration_s)


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


def costs(
    db: sa.Connection, endpoint: str, source: str, start: float, end: float, duration_s: float
) -> dict[float, float | None]:
    """US dollars of each window of one resolution, by its start; None: not known."""
    rows = db.execute(
        sa.select(_T.c.start, _T.c.cost_usd).where(
            _T.c.endpoint == endpoint,
            _T.c.source == source,
            _T.c.duration_s == duration_s,
            _T.c.start >= start,
            _T.c.start < end,
        )
    )
    return {float(row.start): row.cost_usd for row in rows}


def roll_up(store: Store, now: float, raw_s: float) -> int:
    """Merge 5-minute and 1-hour spans that have ended and settled, and again those into which a late window came.

    Returns how many windows were made. Looks only at windows that were not merged yet, and holds the write lock for a chunk at a time.
    """
    made = 0
    finer = raw_s
    now -= SETTLE_WINDOWS * raw_s
    for coarse in ROLLUPS:
        if coarse <= finer:
            continue
        while number := _roll_chunk(store, now, finer, coarse):
            made += number
        finer = coarse
    return made


class _PendingWindow(NamedTuple):
    """A window that was not merged yet, as it was when it was looked at."""

    id: int
    coverage: float
    endpoint: str
    source: str
    start: float


def _roll_chunk(store: Store, now: float, finer: float, coarse: float) -> int:
    """Merge some spans; how many. A window that is replaced meanwhile stays to be merged."""
    with store.read() as db:
        chosen = _waiting(db, now // coarse * coarse, finer, coarse)
        made = [row for span in chosen if (row := _rolled(db, *span, finer, coarse)) is not None]
    if not chosen:
        return 0
    mark = sa.update(_T).where(_T.c.id == sa.bindparam("it"), _T.c.coverage == sa.bindparam("seen")).values(rolled=True)
    for row, reason in each_saved(store, made, _write):
        log.error("span_refused", endpoint=row["endpoint"], source=row["source"], start=row["start"], error=reason)
    with store.write() as db:
        db.execute(mark, [{"it": w.id, "seen": w.coverage} for waiting in chosen.values() for w in waiting])
    return len(chosen)


def _write(db: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> int:
    return upsert(db, _T, rows, key=_KEY, update=_VALUES, greater="coverage")


def _waiting(
    db: sa.Connection, until: float, finer: float, coarse: float
) -> dict[tuple[str, str, float], list[_PendingWindow]]:
    """Windows to be merged, by endpoint, source and the start of their span; the oldest spans, not too many."""
    rows = db.execute(
        sa.select(_T.c.id, _T.c.coverage, _T.c.endpoint, _T.c.source, _T.c.start)
        .where(_T.c.duration_s == finer, _T.c.rolled == sa.false(), _T.c.start < until)
        .order_by(_T.c.start)
        .limit(_LOOKED)
    )
    spans: dict[tuple[str, str, float], list[_PendingWindow]] = defaultdict(list)
    for row in (_PendingWindow(*row) for row in rows):
        key = (row.endpoint, row.source, row.start // coarse * coarse)
        if key in spans or len(spans) < _CHUNK:
            spans[key].append(row)
    return spans


def _rolled(
    db: sa.Connection, endpoint: str, source: str, begin: float, finer: float, coarse: float
) -> dict[str, Any] | None:
    """One span merged; None, and said, where what is stored cannot be merged: it must not block the others."""
    try:
        members = load(db, endpoint, source, begin, begin + coarse, finer)
        cost = spent(db, endpoint, source, begin, begin + coarse, finer)
        whole = None if cost.lacking else cost.usd  # a part alone would pass for all of it
        return _row(merge(members, begin, coarse), whole)
    except (ValueError, TypeError, KeyError) as error:
        log.error("span_damaged", endpoint=endpoint, source=source, start=begin, error=repr(error))
        return None


def age_out(db: sa.Connection, now: float, keep_s: Mapping[float, float]) -> int:
    """Delete windows of each resolution (seconds) that are older than their keeping time (seconds)."""
    gone = 0
    for duration_s, seconds in keep_s.items():
        old = (
            _T.c.duration_s == duration_s,
            _T.c.rolled.in_((False, True)),
            _T.c.start < now - seconds,
        )  # the index's order
        gone += db.execute(sa.delete(_T).where(*old)).rowcount
    return gone


def merge(windows: Sequence[Window], start: float, duration_s: float) -> Window:
    """Windows of one endpoint and source as one: counts add, sketches merge, gauges are weighted by what was observed, and of
    quantiles that came as numbers the least and the greatest are kept.

    A stretch without a window is a gap: it lowers the coverage.
    """
    counts: dict[str, float] = defaultdict(float)
    sketches: dict[str, list[Sketch]] = defaultdict(list)
    gauges: dict[str, list[tuple[float, Gauge]]] = defaultdict(list)
    quantiles: dict[tuple[str, float], list[Range]] = defaultdict(list)
    errors: dict[str, int] = defaultdict(int)
    facts: dict[str, str] = {}
    for window in windows:
        for name, value in window.counts.items():
            counts[name] += value
        for name, sketch in window.sketches.items():
            sketches[name].append(sketch)
        for name, gauge in window.gauges.items():
            gauges[name].append((window.coverage * window.duration_s, gauge))
        for name, ranges in window.quantiles.items():
            for q, known in ranges.items():
                quantiles[name, q].append(known)
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
        quantiles=_by_name(quantiles),
        observed=_observed(windows, duration_s),
    )


def _by_name(quantiles: Mapping[tuple[str, float], Sequence[Range]]) -> dict[str, dict[float, Range]]:
    merged: dict[str, dict[float, Range]] = defaultdict(dict)
    for (name, q), ranges in sorted(quantiles.items()):
        merged[name][q] = Range.merge(ranges)
    return dict(merged)


def _observed(windows: Sequence[Window], duration_s: float) -> dict[str, float]:
    """The share of the span in which each metric was told, where it is not the coverage. A counter that a window lacks was not told
    in it; a latency that it lacks may just not have occurred."""
    counters = {name for w in windows for name in w.counts}
    named = counters | {name for w in windows for name in w.observed}
    whole = sum(w.coverage * w.duration_s for w in windows)
    shares: dict[str, float] = {}
    for name in sorted(named):
        told = sum(
            w.coverage_of(name) * w.duration_s
            for w in windows
            if name not in counters or name in w.counts or name in w.observed
        )
        if not math.isclose(told, whole, rel_tol=1e-9, abs_tol=1e-9):
            shares[name] = min(1.0, told / duration_s)
    return shares


def _merge_gauges(parts: Sequence[tuple[float, Gauge]]) -> Gauge:
    weight = sum(w for w, _ in parts)
    mean = sum(w * g.mean for w, g in parts) / weight if weight > 0 else parts[-1][1].mean
    return Gauge(mean=mean, maximum=max(g.maximum for _, g in parts), last=parts[-1][1].last)


def _row(window: Window, cost_usd: float | None) -> dict[str, Any]:
    """Raises ValueError on a number that is not finite: neither a page nor PostgreSQL takes it."""
    row: dict[str, Any] = {
        "endpoint": window.endpoint,
        "source": window.source,
        "start": window.start,
        "duration_s": window.duration_s,
        "coverage": window.coverage,
        "targets": window.targets,
        "restarts": window.restarts,
        "cost_usd": cost_usd,
        "sketches": pack(window.sketches),
        "gauges": {name: [g.mean, g.maximum, g.last] for name, g in window.gauges.items()},
        "read_errors": dict(window.errors),
        "facts": dict(window.facts),
        "more": {
            "counts": {name: value for name, value in window.counts.items() if name not in _COUNTERS},
            "observed": dict(window.observed),
        },
        "quantiles": {
            name: {str(q): [r.least, r.most] for q, r in ranges.items()} for name, ranges in window.quantiles.items()
        },
        "rolled": window.duration_s >= ROLLUPS[-1],
    }
    for name in _COUNTERS:
        row[name] = window.counts.get(name)
    for metric in ("ttft", "itl", "tpot", "e2e", "queue"):
        for label, q in _QUANTILES:
            row[f"{metric}_{label}_s"] = window.quantile(f"{metric}_s", q)
    for name in ("running", "waiting", "kv_usage"):
        gauge = window.gauges.get(name)
        row[f"{name}_mean"] = gauge.mean if gauge else None
        row[f"{name}_max"] = gauge.maximum if gauge else None
    for name in ("gpu_usage", "cpu_usage"):
        gauge = window.gauges.get(name)
        row[f"{name}_mean"] = gauge.mean if gauge else None
    _check_finite(row)
    return row


def _check_finite(value: object, where: str = "window") -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}")
    if isinstance(value, Mapping):
        for name, part in value.items():
            _check_finite(part, f"{where}.{name}")
    elif isinstance(value, list):
        for part in value:
            _check_finite(part, where)


def _window(row: Mapping[str, Any]) -> Window:
    return Window(
        endpoint=row["endpoint"],
        source=row["source"],
        start=row["start"],
        duration_s=row["duration_s"],
        coverage=row["coverage"],
        targets=row["targets"],
        restarts=row["restarts"],
        counts={name: row[name] for name in _COUNTERS if row[name] is not None} | row["more"].get("counts", {}),
        sketches=unpack(row["sketches"]),
        gauges={name: Gauge(*values) for name, values in row["gauges"].items()},
        errors=row["read_errors"],
        facts=row["facts"],
        quantiles={
            name: {float(q): Range(*ends) for q, ends in ranges.items()} for name, ranges in row["quantiles"].items()
        },
        observed=row["more"].get("observed", {}),
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
