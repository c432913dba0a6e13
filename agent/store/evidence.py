"""The windows by which an endpoint is judged: each metric from the first source that tells it. The only place that knows that order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from agent.store import windows
from collectors.window import Window


def judged(
    db: sa.Connection, endpoint: str, sources: Iterable[str], start: float, end: float, duration_s: float
) -> list[Window]:
    """Windows of one resolution that lie whole within ``start``..``end``, oldest first, each put together from all sources.

    sources: by their names, as the settings order them. A metric is taken from one source over the whole span, so that it never
    hops between two that measure differently; where that one lacks it, it is unknown. ``source`` names those that were used.
    """
    by_source = {s: windows.load(db, endpoint, s, start, end, duration_s) for s in sources}
    return combined({source: rows for source, rows in by_source.items() if rows})


def main_source(window: Window) -> str:
    """Of a window that was put together: the source that its coverage is of. Each source's row of that moment has the same cost."""
    return window.source.partition("+")[0]


def combined(by_source: Mapping[str, Sequence[Window]]) -> list[Window]:
    """The windows of several sources of one endpoint as those of one; the sources in their order."""
    if len(by_source) <= 1:
        return [window for rows in by_source.values() for window in rows]
    owner = _owners(by_source)
    # The coverage is that of the source that tells how many requests there were; without one, of the first that tells anything.
    main = owner.get("requests") or next(iter(owner.values()), None) or next(iter(by_source))
    by_start: dict[float, dict[str, Window]] = {}
    for source, rows in by_source.items():
        for window in rows:
            by_start.setdefault(window.start, {})[source] = window
    return [_combined(at, owner, main) for _, at in sorted(by_start.items())]


def _owners(by_source: Mapping[str, Sequence[Window]]) -> dict[str, str]:
    """Metric to the first source that tells it anywhere in the span."""
    owner: dict[str, str] = {}
    for source, rows in by_source.items():
        for window in rows:
            for name in (*window.counts, *window.sketches, *window.quantiles, *window.gauges):
                owner.setdefault(name, source)
    return owner


def _combined(at: Mapping[str, Window], owner: Mapping[str, str], main: str) -> Window:
    """One moment. A metric whose source has no window then was not observed."""
    first = at.get(main)
    model = first or next(iter(at.values()))
    coverage = first.coverage if first is not None else 0.0
    observed: dict[str, float] = {}
    for name, source in owner.items():
        share = at[source].coverage_of(name) if source in at else 0.0
        if share != coverage:
            observed[name] = share
    errors: dict[str, int] = {}
    for window in at.values():
        for kind, n in window.errors.items():
            errors[kind] = errors.get(kind, 0) + n
    return Window(
        endpoint=model.endpoint,
        source="+".join(dict.fromkeys((main, *owner.values()))),
        start=model.start,
        duration_s=model.duration_s,
        coverage=coverage,
        targets=model.targets,
        restarts=model.restarts,
        counts=_own(at, owner, "counts"),
        sketches=_own(at, owner, "sketches"),
        gauges=_own(at, owner, "gauges"),
        errors=errors,
        facts={name: text for window in reversed(list(at.values())) for name, text in window.facts.items()},
        quantiles=_own(at, owner, "quantiles"),
        observed=observed,
    )


def _own(at: Mapping[str, Window], owner: Mapping[str, str], field: str) -> dict[str, Any]:
    return {
        name: value
        for source, window in at.items()
        for name, value in getattr(window, field).items()
        if owner[name] == source
    }
