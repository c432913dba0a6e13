"""What a series gained: delta and cumulative points, explicit and exponential buckets (opentelemetry.io, "Metrics Data Model").

Cumulative points are differenced here, series by series: an exponential histogram changes its buckets as it goes, and a restart is a
new start time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from collectors.sketch import Sketch
from collectors.window import CollectError

#: A gain over a longer time says nothing of when it was, and is left out.
LONGEST_S = 900.0
#: Series that are remembered; the one that was silent longest is forgotten first, and begins anew when it comes again.
MOST_SERIES = 20_000
#: Exponential buckets are brought to this scale at most: 16 in an octave, 4 % wide.
_SCALE = 4
#: Bounds begin and end at whole multiples of so many octaves, so that histograms of a day have the same ones.
_OCTAVES = 4
_MOST_BUCKETS = 4096


@dataclass(frozen=True, slots=True)
class ExplicitBuckets:
    """``edges``: (n,) ascending upper bounds. ``counts``: (n + 1,) of each bucket, not added up."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]

    def minus(self, before: ExplicitBuckets) -> ExplicitBuckets | None:
        """None where it does not go on from there."""
        if self.edges != before.edges:
            return None
        counts = tuple(b - a for a, b in zip(before.counts, self.counts, strict=True))
        return None if min(counts) < 0 else ExplicitBuckets(self.edges, counts)

    def sketch(self, total: float, unit: float) -> Sketch:
        return Sketch.from_histogram([edge * unit for edge in self.edges], self.counts, total * unit)


@dataclass(frozen=True, slots=True)
class ExponentialBuckets:
    """``counts``: by index ``i``, of values in (base ** i, base ** (i + 1)], with base = 2 ** (2 ** -scale)."""

    scale: int
    zero: float
    counts: Mapping[int, float]

    def at(self, scale: int) -> ExponentialBuckets:
        """With wider buckets. ``scale``: not above its own."""
        counts: dict[int, float] = {}
        for index, count in self.counts.items():
            wider = index >> (self.scale - scale)
            counts[wider] = counts.get(wider, 0.0) + count
        return ExponentialBuckets(scale, self.zero, counts)

    def minus(self, before: ExponentialBuckets) -> ExponentialBuckets | None:
        """None where it does not go on from there."""
        scale = min(self.scale, before.scale)
        old, new = before.at(scale), self.at(scale)
        counts = {i: new.counts.get(i, 0.0) - old.counts.get(i, 0.0) for i in {*new.counts, *old.counts}}
        if new.zero < old.zero or min(counts.values(), default=0.0) < 0:
            return None
        return ExponentialBuckets(scale, new.zero - old.zero, counts)

    def sketch(self, total: float, unit: float) -> Sketch:
        coarse = self.at(min(self.scale, _SCALE))
        counts = {index: count for index, count in coarse.counts.items() if count > 0}
        step = _OCTAVES << coarse.scale if coarse.scale >= 0 else 1
        low = min(counts, default=0) // step * step
        high = -(-(max(counts, default=0) + 1) // step) * step
        if high - low > _MOST_BUCKETS:
            raise ValueError(f"{high - low} buckets are too many")
        width = 2.0**-coarse.scale
        edges = [2.0 ** (index * width) * unit for index in range(low, high + 1)]
        return Sketch.from_histogram(
            edges, [coarse.zero, *(counts.get(i, 0.0) for i in range(low, high)), 0.0], total * unit
        )


Buckets = ExplicitBuckets | ExponentialBuckets


@dataclass(frozen=True, slots=True)
class SeriesPoint:
    """One point: what was counted from ``start`` to ``at`` (Unix seconds)."""

    start: float
    at: float
    count: float
    total: float | None
    """The sum of a histogram's values; None: not told."""
    buckets: Buckets | None = None

    def minus(self, before: SeriesPoint) -> SeriesPoint | None:
        """What came after ``before``. None where it does not go on from there."""
        count = self.count - before.count
        total = None if self.total is None or before.total is None else self.total - before.total
        buckets = _minus(self.buckets, before.buckets)
        if count < 0 or (total is not None and total < 0) or (buckets is None and self.buckets is not None):
            return None
        return SeriesPoint(before.at, self.at, count, total, buckets)

    def sketch(self, unit: float) -> Sketch | None:
        """Its values, each times ``unit``. None where it tells no buckets, or not their sum. Raises CollectError ``invalid_value``."""
        if self.buckets is None or self.total is None:
            return None
        try:
            return self.buckets.sketch(self.total, unit)
        except (ValueError, OverflowError) as error:
            raise CollectError("invalid_value", f"a histogram cannot be: {error}") from error


def _minus(after: Buckets | None, before: Buckets | None) -> Buckets | None:
    if isinstance(after, ExplicitBuckets) and isinstance(before, ExplicitBuckets):
        return after.minus(before)
    if isinstance(after, ExponentialBuckets) and isinstance(before, ExponentialBuckets):
        return after.minus(before)
    return None


class SeriesMemory:
    """The last cumulative point of each series."""

    def __init__(self) -> None:
        self._last: OrderedDict[bytes, SeriesPoint] = OrderedDict()

    def gained(self, key: bytes, point: SeriesPoint, *, delta: bool) -> SeriesPoint | None:
        """What came since the series' last point; None where that is not known.

        ``key`` names the series and its start. A series that is new counts from its start, where that is not long ago.
        """
        if not point.start <= point.at or not math.isfinite(point.count):
            raise CollectError("invalid_value", "a point ends before it starts")
        if delta:
            return point if 0 < point.at - point.start <= LONGEST_S else None
        before = self._last.pop(key, None)
        if before is not None and point.at <= before.at:
            self._last[key] = before  # sent again, or late: what it counts is counted
            return None
        self._last[key] = point
        if len(self._last) > MOST_SERIES:
            self._last.popitem(last=False)
        if before is None:
            return point if point.start > 0 and 0 < point.at - point.start <= LONGEST_S else None
        gained = point.minus(before)
        if gained is None:  # it fell although it says that it goes on: it was set back
            gained = replace(point, start=before.at)
        return gained if gained.at - gained.start <= LONGEST_S else None
