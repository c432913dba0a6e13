"""What happened between two readings of one target: differences of cumulative values, across restarts.

Arithmetic only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from collectors.bins import Edges, Floats, divided
from collectors.tokengaps import output_of, tokens_per_gap
from collectors.window import Histogram, Reading

#: Start times are compared with this slack: some are computed from a clock's ticks.
SAME_START_S = 1.0


@dataclass(frozen=True, slots=True)
class HistogramIncrease:
    """The increase of one histogram."""

    name: str
    edges: Edges
    increments: Floats
    """(n + 1,) for n edges: how many values fell into each bin, not cumulative over the edges."""
    total: float

    def split(self, parts: float) -> HistogramIncrease:
        """Each value as so many equal ones that add up to it."""
        return HistogramIncrease(self.name, divided(self.edges, parts), self.increments * parts, self.total)


@dataclass(frozen=True, slots=True)
class Increase:
    """Only names that both readings know: what appears anew has no known beginning."""

    restarted: bool
    counts: dict[str, float]
    histograms: list[HistogramIncrease]


def increase(before: Reading, after: Reading) -> Increase:
    """The difference of two readings, with the gaps between events as gaps between tokens.

    When the target says that it started anew, everything that it counts happened since. When a value fell although it
    does not say so, that value was set back, as Prometheus takes it (documentation of ``rate``: "breaks in
    monotonicity").
    """
    anew = (
        before.started_at is not None
        and after.started_at is not None
        and abs(after.started_at - before.started_at) > SAME_START_S
    )
    restarted = anew
    counts = {}
    for name, value in after.counters.items():
        if name in before.counters:
            fell = value < before.counters[name]
            restarted = restarted or fell
            counts[name] = value if anew or fell else value - before.counters[name]
    histograms = []
    for name, histogram in after.histograms.items():
        if name in before.histograms:
            old = before.histograms[name]
            fell = _fell(old, histogram)
            restarted = restarted or fell
            histograms.append(_filled(name, None if anew or fell else old, histogram))
    return Increase(restarted, counts, _per_token(counts, histograms, after))


def _per_token(
    counts: Mapping[str, float], histograms: list[HistogramIncrease], after: Reading
) -> list[HistogramIncrease]:
    lately = output_of(counts, {h.name: (float(h.increments.sum()), h.total) for h in histograms})
    ever = output_of(after.counters, {name: (h.counts[-1], h.total) for name, h in after.histograms.items()})
    if lately is None or ever is None:
        return histograms
    parts = tokens_per_gap(lately, ever)
    return histograms if parts == 1 else [h.split(parts) if h.name == "itl_s" else h for h in histograms]


def _fell(before: Histogram, after: Histogram) -> bool:
    """Whether it cannot be a continuation: a count fell, or the edges are others."""
    if before.edges != after.edges:
        return True
    return any(new < old for old, new in zip(before.counts, after.counts, strict=True))


def _filled(name: str, before: Histogram | None, after: Histogram) -> HistogramIncrease:
    reached = np.array(after.counts)
    total = after.total
    if before is not None:
        reached -= before.counts
        total -= before.total
    # A page is not written at one instant: bins may be ahead of each other by a value or two.
    increments = np.maximum(np.diff(reached, prepend=0.0), 0.0)
    return HistogramIncrease(name, after.edges, increments, max(0.0, total))
