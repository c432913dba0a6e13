"""A request trace on candidates, whatever kinds they are: their replays side by side, and the answer as plain JSON.

Every candidate sees the same requests, and they are replayed side by side, over the cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agent.clock import WallClock
from agent.whatif import figures, requests
from agent.whatif.candidates import Candidate
from agent.whatif.figures import SCHEMA_VERSION, CandidateOutcome, numbered
from agent.whatif.parallel import each
from analyzers import grammar
from analyzers.kinds.results import ReplayTraffic
from analyzers.objective import Objective
from collectors import traces
from collectors.traces import Trace
from collectors.workload import Workload


def read(
    path: Path, format_name: str | None, speed: float | None, notes: list[str], time_unit: str | None = None
) -> tuple[Workload, Trace]:
    """The trace, arriving ``speed`` times as fast, and what its file was taken for. Raises BadTrace, BadQuestion."""
    found = traces.read(path, format_name, notes, time_unit)
    return at_speed(found.workload, speed, notes), found


def at_speed(workload: Workload, speed: float | None, notes: list[str]) -> Workload:
    """Arriving ``speed`` times as fast. Raises BadQuestion."""
    factor = grammar.positive(speed, "--speed") or 1.0
    if factor == 1.0:
        return workload
    notes.append(f"arrivals {factor:g} times as fast as in the trace")
    return replace(workload, arrival_s=workload.arrival_s / factor)


def load(candidate: Candidate) -> None:
    """Compile what its replay needs, or load it: one request is replayed."""
    if candidate.system.refused is None:
        one, none = np.ones(1, np.int64), np.zeros(1, np.int64)
        candidate.system.run(ReplayTraffic(Workload(np.zeros(1), one, one, none), Objective(())))


def replayed(traffic: ReplayTraffic, candidate: Candidate, *, rows: bool = False) -> CandidateOutcome:
    """One candidate's replay. rows: with each request's own times."""
    system = candidate.system
    if system.refused is not None:
        return CandidateOutcome(figures.refused(candidate, system.refused, traffic), {})
    clock = WallClock()
    begin = clock.monotonic()
    ran = system.run(traffic)
    wall_s = clock.monotonic() - begin
    found = {**figures.of(candidate, ran, traffic), "wall_s": wall_s}
    return CandidateOutcome(found, figures.curves(ran.best), ran.best.rows() if rows else None)


def all_replayed(
    traffic: ReplayTraffic,
    tried: Sequence[Candidate],
    *,
    requests_out: Path | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[CandidateOutcome]:
    """All candidates, in order. ``advance`` is called as each is done; ``requests_out``: each request's own times are written there.

    Raises BadQuestion where that file cannot be written.
    """
    found: list[CandidateOutcome] = []
    with requests.writing(requests_out, traffic.workload, len(tried) > 1) as writer:
        for outcome in each(partial(replayed, traffic, rows=writer is not None), tried):
            if writer is not None and outcome.rows is not None:
                writer.write(outcome.figures["candidate"], outcome.rows)
            found.append(replace(outcome, rows=None))
            advance()
    return found


def answer(
    traffic: ReplayTraffic,
    tried: Sequence[Candidate],
    outcomes: Sequence[CandidateOutcome],
    *,
    trace: Path,
    taken: Trace,
    engine: Path,
    notes: Sequence[str],
) -> dict[str, Any]:
    """The whole as JSON: the first candidate's figures, and all of them under ``candidates``. taken: what the file was read as."""
    work, found = traffic.workload, [outcome.figures for outcome in outcomes]
    return {
        "schema_version": SCHEMA_VERSION,
        **found[0],
        "trace": {
            "file": str(trace),
            "requests": len(work),
            "duration_s": work.duration_s,
            "format": taken.format,
            "time_unit": taken.time_unit,
            "span_s": taken.span_s,
            "rate_per_s": taken.rate_per_s,
            "unread_columns": list(taken.unread),
        },
        "engine": str(engine),
        "warnings": numbered([candidate["warnings"] for candidate in found]),
        "timeout_s": traffic.timeout_s,
        "notes": [*notes, *_notes(tried, outcomes)],
        "candidates": found,
    }


def _notes(tried: Sequence[Candidate], outcomes: Sequence[CandidateOutcome]) -> list[str]:
    """What must be known to trust the candidates' figures, once each, with the numbers of those that it is about."""
    predicted = [(outcome.figures["prediction"] or {}).get("notes", ()) for outcome in outcomes]
    refused = [candidate.system.refused is not None for candidate in tried]
    return numbered(
        [() if none else (*c.system.notes, *more) for c, more, none in zip(tried, predicted, refused, strict=True)]
    )
