"""The flight recorder read: a stretch of an endpoint's requests as a trace that can be replayed, and what was seen of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from agent.store import flights
from agent.store.rows import FlightRow
from analyzers.objective import answered
from analyzers.whatif.traffic import LEAST_RECORDED, RecordedLengths
from collectors.otlp.prefixes import HASH_BYTES
from collectors.window import Window
from collectors.workload import Workload

SCHEMA_VERSION = 1
#: So many recorded requests tell how lengths go together.
_MOST_LENGTHS = 5_000
#: A span with more requests is drawn from its windows; and of a whole one, at most such a share may not be there.
_MOST_WHOLE, _LEFT_OUT = 50_000, 0.1
_QUANTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))


class NoFlights(Exception):
    """There is nothing to replay; the text says why."""


@dataclass(frozen=True, slots=True)
class Flights:
    """One stretch."""

    workload: Workload
    first_at: float
    """Unix seconds of the first arrival."""
    side: str
    seen: Mapping[str, Any]
    """Of the same requests: TTFT, end-to-end and queue as quantiles and mean; None where no request tells."""
    notes: Sequence[str]
    """What was left out, and what is not known."""


def lengths(db: sa.Connection, endpoint: str, start: float, end: float) -> RecordedLengths | None:
    """Prompts and answers as they came together, of the newest requests that were recorded in that time. None: too few were."""
    found = np.array(flights.lengths(db, endpoint, start, end, _MOST_LENGTHS), np.int64).reshape(-1, 2)
    return None if found.shape[0] < LEAST_RECORDED else RecordedLengths(found[:, 0], found[:, 1])


def whole(db: sa.Connection, endpoint: str, windows: Sequence[Window]) -> Workload | None:
    """The requests of a span, one by one, where the recorder holds about all that were answered in it. None: it does not.

    The first arrives at the second in which it did: quiet time before it is none of the traffic's.
    """
    seen = [n for w in windows if w.coverage > 0 and (n := answered(w)) is not None]
    if not seen or not 0 < sum(seen) <= _MOST_WHOLE:
        return None
    start, end = windows[0].start, windows[-1].end
    known = [row["requests"] for row in flights.summaries(db, start, end) if row["endpoint"] == endpoint]
    if max(known, default=0) < (1 - _LEFT_OUT) * sum(seen):
        return None
    try:
        found = stretch(db, endpoint, start, end).workload
    except NoFlights:
        return None
    return found if abs(len(found) / sum(seen) - 1) <= _LEFT_OUT else None


def stretch(db: sa.Connection, endpoint: str, start: float, end: float) -> Flights:
    """The requests that arrived within ``start``..``end`` (Unix seconds), by the model server's measurement where it has one.

    Raises NoFlights.
    """
    sides = {row["side"] for row in flights.summaries(db, start, end) if row["endpoint"] == endpoint}
    if not sides:
        raise NoFlights(f"{endpoint}: the flight recorder has no request of this time; see `flyball recorder list`")
    side = "server" if "server" in sides else "client"
    rows = list(flights.listed(db, endpoint, side, start, end))
    whole = [r for r in rows if r["error"] is None and r["prompt_tokens"] and r["output_tokens"] is not None]
    failed = sum(r["error"] is not None for r in rows)
    notes = []
    if "client" in sides and side == "server":
        notes.append("callers measured too; the model server's own measurement is taken")
    if failed:
        notes.append(f"{failed} requests that were not served are left out")
    if len(rows) - failed - len(whole):
        notes.append(f"{len(rows) - failed - len(whole)} requests that do not tell their lengths are left out")
    if not whole:
        raise NoFlights(f"{endpoint}: none of {len(rows)} requests was served and tells its lengths")
    return Flights(_workload(whole, notes), whole[0]["arrived_at"], side, _seen(whole), notes)


def _workload(rows: Sequence[FlightRow], notes: list[str]) -> Workload:
    arrival = np.array([r["arrived_at"] for r in rows])
    prompt = np.array([r["prompt_tokens"] for r in rows], np.int64)
    output = np.array([r["output_tokens"] for r in rows], np.int64)
    cached = [r["cached_tokens"] for r in rows]
    hashed = sum(r["blocks_whole"] is not None for r in rows)
    prefix = np.zeros_like(prompt)
    session = None
    if hashed:
        shares, session = _prefixes(rows)
        prefix = np.floor(shares * prompt).astype(np.int64)
        notes.append(f"{hashed} of {len(rows)} requests tell the beginnings of their prompts, as hashes")
    told = np.array([c is not None for c in cached])
    if told.any():
        prefix = np.where(told, [c or 0 for c in cached], prefix)
        notes.append(f"{int(told.sum())} of {len(rows)} requests tell how much of their prompt was cached")
    if not hashed and not told.any():
        notes.append("nothing is known of the prefix cache: the replay computes each prompt whole")
    return Workload(arrival - arrival[0], prompt, output, np.minimum(prefix, prompt - 1), session)


def _prefixes(rows: Sequence[FlightRow]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(n,) each: the share of a prompt that an earlier request began with, and the session that it goes on with or begins.

    As ``collectors.traces`` reads hashed blocks: a request goes on with the one that first had its deepest matched block, if it has all
    of that one's whole blocks; else it only shares a beginning with it. A hash is of all that comes before its block, too, so that
    the deepest known one tells all.
    """
    shares, sessions = np.zeros(len(rows)), np.arange(len(rows))
    owner: dict[bytes, int] = {}
    for i, row in enumerate(rows):
        blocks = [row["blocks"][k : k + HASH_BYTES] for k in range(0, len(row["blocks"]), HASH_BYTES)]
        matched = next((k for k, block in enumerate(blocks) if block not in owner), len(blocks))
        if matched and row["blocks_whole"]:
            shares[i] = min(1.0, matched / row["blocks_whole"])
            first = owner[blocks[matched - 1]]
            if matched * HASH_BYTES >= len(rows[first]["blocks"]):
                sessions[i] = sessions[first]
        for block in blocks:
            owner.setdefault(block, i)
    return shares, np.unique(sessions, return_inverse=True)[1].astype(np.int64)


def _seen(rows: Sequence[FlightRow]) -> dict[str, Any]:
    told = {
        "ttft_s": [r["ttft_s"] for r in rows if r["ttft_s"] is not None],
        "e2e_s": [r["e2e_s"] for r in rows if r["e2e_s"] is not None],
        "queue_s": [r["queue_s"] for r in rows if r["queue_s"] is not None],
    }
    return {name: _summary(values) for name, values in told.items()}


def _summary(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    at = np.quantile(values, [q for _, q in _QUANTILES])
    named = {name: float(value) for (name, _), value in zip(_QUANTILES, at, strict=True)}
    return {"count": len(values), "mean": float(np.mean(values)), **named}


def as_dict(endpoint: str, found: Flights) -> dict[str, Any]:
    """Plain JSON, without the requests."""
    work = found.workload
    return {
        "schema_version": SCHEMA_VERSION,
        "endpoint": endpoint,
        "side": found.side,
        "first_at": found.first_at,
        "last_at": found.first_at + work.duration_s,
        "requests": len(work),
        "prompt_tokens": int(work.prompt_tokens.sum()),
        "output_tokens": int(work.output_tokens.sum()),
        "seen": found.seen,
        "notes": list(found.notes),
    }
