"""Replicas over time, as a chart: a row of steps for each candidate whose replicas change, under the traffic that they follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np

from agent import charts
from collectors.workload import Floats

Steps = Sequence[Sequence[float]]
"""(at_s, replicas that take requests), ascending."""

#: So many rows stay readable.
MOST_ROWS = 8
#: More changes than this cannot be seen: then it is the most and the least of each of so many spans of equal length.
MOST_STEPS = 400
_SPANS = 120
_WIDTH, _HEIGHT = 820, 54
_UNITS = (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def timeline(of_each: Mapping[str, Steps], arrival_s: Floats, end_s: float) -> str | None:
    """SVG, or None without any candidate.

    ``of_each``: by what it is called; the first ``MOST_ROWS`` are drawn, up to ``end_s``. arrival_s: of the traffic.
    """
    names = list(of_each)[:MOST_ROWS]
    if not names or not end_s > 0:
        return None
    most = int(max(n for name in names for _, n in of_each[name]))
    whole = alt.Axis(values=list(range(0, most + 1, max(1, -(-most // 3)))), format="d", minExtent=26)
    rate = _rate(arrival_s, end_s)
    rows = [
        _row(
            "requests/s",
            rate,
            end_s,
            1.15 * max(n for _, n in rate),
            alt.Axis(tickCount=2, minExtent=26),
            ("#d5dae1", "#d5dae1"),
        )
    ]
    rows += [_row(name, of_each[name], end_s, most + 0.5, whole, ("#9dbfe3", "#2f6db3")) for name in names]
    rows[-1] = rows[-1].encode(x=_time(end_s, labelled=True))
    return charts.svg(alt.vconcat(*rows, spacing=8))


def _row(name: str, steps: Steps, end_s: float, top: float, ticks: alt.Axis, colours: tuple[str, str]) -> alt.Chart:
    length = _unit(end_s)[1]
    data = [{"t": at / length, "n": n} for at, n in _drawn(steps, end_s)]
    y = alt.Y("n:Q", title=name, stack=None, scale=alt.Scale(domain=[0, top], nice=False), axis=ticks)
    mark = alt.Chart(alt.InlineData(data)).mark_area(
        interpolate="step-after", color=colours[0], line={"color": colours[1], "strokeWidth": 1}
    )
    made: alt.Chart = mark.encode(x=_time(end_s), y=y).properties(width=_WIDTH, height=_HEIGHT)
    return made


def _time(end_s: float, *, labelled: bool = False) -> alt.X:
    unit, length = _unit(end_s)
    axis = alt.Axis() if labelled else alt.Axis(labels=False, ticks=False)
    scale = alt.Scale(domain=[0, end_s / length], nice=False)
    return alt.X("t:Q", title=unit if labelled else None, scale=scale, axis=axis)


def _unit(end_s: float) -> tuple[str, float]:
    return next((u for u in _UNITS if end_s >= 3 * u[1]), _UNITS[-1])


def _rate(arrival_s: Floats, end_s: float) -> list[tuple[float, float]]:
    """(from_s, requests per second) of equal spans."""
    counts, edges = np.histogram(arrival_s, _SPANS, (0.0, end_s))
    return [(float(at), float(n) * _SPANS / end_s) for at, n in zip(edges, counts, strict=False)]


def _drawn(steps: Steps, end_s: float) -> list[tuple[float, float]]:
    """The steps up to ``end_s``, and there the last one again."""
    kept = [(float(at), float(n)) for at, n in steps if at <= end_s]
    if len(kept) > MOST_STEPS:
        kept = _thinned(kept, end_s / MOST_STEPS)
    return [*kept, (end_s, kept[-1][1])]


def _thinned(steps: Sequence[tuple[float, float]], width: float) -> list[tuple[float, float]]:
    """Of each span that has several steps its most, its least and its last, in the order in which they came."""
    spans: dict[int, list[tuple[float, float]]] = {}
    for step in steps:
        spans.setdefault(int(step[0] // width), []).append(step)
    out: list[tuple[float, float]] = []
    for inside in spans.values():
        out += sorted({min(inside, key=lambda s: s[1]), max(inside, key=lambda s: s[1]), inside[-1]})
    return out
