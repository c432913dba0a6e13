"""The nouns of telemetry: what a source read, and the window that readings add up to.

Unknown is ``None`` or an absent key, never 0. The names of metrics stand in ``collectors.metrics``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from collectors.sketch import Sketch
from collectors.text import clean


@dataclass(frozen=True, slots=True)
class Histogram:
    """A cumulative histogram as Prometheus exposes it.

    ``edges`` are the finite upper bounds (``le``), ascending; ``counts`` the cumulative counts at each of them and, last,
    at +Inf, so ``len(counts) == len(edges) + 1``. ``total`` is the sum of the observed values.
    """

    edges: tuple[float, ...]
    counts: tuple[float, ...]
    total: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What one target said at one moment. Counters and histograms are cumulative since the target started."""

    target: str
    """Which replica or engine, stable between readings: the address, and the engine's index where there are several."""
    at: float
    """When it was read: our clock, Unix seconds."""
    counters: Mapping[str, float] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)
    started_at: float | None = None
    """When the target says that it started, by its own clock. Only compared with itself: later is a restart, earlier is another server.
    None where it is not of the calendar, such as seconds since boot: then counters that fall show a restart."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Model, engine version, KV capacity: text, as the target gave it."""
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """By canonical histogram name: single values that this very reading measured. Not cumulative."""


@dataclass(frozen=True, slots=True)
class Gauge:
    """A gauge over a window: time-weighted mean, maximum, and last value."""

    mean: float
    maximum: float
    last: float


@dataclass(frozen=True, slots=True)
class Range:
    """What a quantile is known to lie between. Ranges merge soundly: the p-quantile of a mixture lies between the least and the
    greatest p-quantile of its parts."""

    least: float
    most: float

    @classmethod
    def merge(cls, ranges: Iterable[Range]) -> Range:
        """Of at least one."""
        several = list(ranges)
        return cls(min(r.least for r in several), max(r.most for r in several))


@dataclass(frozen=True, slots=True)
class Span:
    """What a source says of an interval, already differenced: totals of a minute, a usage bucket, a delta. It may come late.

    An interval of a target is told once; told again, it is passed by.
    """

    target: str
    """Which replica, or the endpoint's name where the source adds all of them up."""
    start: float
    end: float
    """Unix seconds."""
    counts: Mapping[str, float] = field(default_factory=dict)
    sketches: Mapping[str, Sketch] = field(default_factory=dict)
    gauges: Mapping[str, Gauge] = field(default_factory=dict)
    quantiles: Mapping[str, Mapping[float, Range]] = field(default_factory=dict)
    """Percentiles that come as numbers: ``{"e2e_s": {0.95: Range(0.8, 0.8)}}``."""
    facts: Mapping[str, str] = field(default_factory=dict)
    share: float = 1.0
    """The share of it that was really observed, 0..1, where the source adds targets up and some of them did not answer."""


@dataclass(frozen=True, slots=True)
class Window:
    """Telemetry of one endpoint from one source over one fixed interval."""

    endpoint: str
    source: str
    start: float
    """Unix seconds, a multiple of ``duration_s``."""
    duration_s: float
    coverage: float
    """Share of the interval really observed, 0..1, over all targets. 0 is a gap that was noticed."""
    targets: int = 0
    """How many targets were read."""
    restarts: int = 0
    counts: Mapping[str, float] = field(default_factory=dict)
    """By canonical counter name: the increase within the window, over all targets."""
    sketches: Mapping[str, Sketch] = field(default_factory=dict)
    """By canonical histogram name."""
    gauges: Mapping[str, Gauge] = field(default_factory=dict)
    """By canonical gauge name. ``running`` and ``waiting`` are summed over targets, shares are the mean over targets."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """Failed reads by class (``timeout``, ``http_401`` ...): why coverage is below 1."""
    facts: Mapping[str, str] = field(default_factory=dict)
    quantiles: Mapping[str, Mapping[float, Range]] = field(default_factory=dict)
    """By canonical histogram name and share (0..1): quantiles that the source gave as numbers, where it gives no distribution."""
    observed: Mapping[str, float] = field(default_factory=dict)
    """By metric name: the share of the interval in which that metric was told, where it is not ``coverage``."""

    @property
    def end(self) -> float:
        return self.start + self.duration_s

    def count(self, name: str) -> float | None:
        """The increase of a counter, or None where it is unknown."""
        return self.counts.get(name)

    def coverage_of(self, name: str) -> float:
        """The share of the interval in which this metric was observed, 0..1."""
        return self.observed.get(name, self.coverage)

    def rate(self, name: str) -> float | None:
        """The increase of a counter per second in which it was *observed*, or None where it is unknown."""
        value, share = self.counts.get(name), self.coverage_of(name)
        if value is None or share <= 0:
            return None
        return value / (self.duration_s * share)

    def range(self, name: str, q: float) -> Range | None:
        """What a quantile of a latency or length lies between (``most`` may be infinite), or None where nothing is known of it."""
        sketch, given = self.sketches.get(name), self.quantiles.get(name, {}).get(q)
        known = [] if given is None else [given]
        if sketch is not None and sketch.count > 0:
            known.append(Range(*sketch.bounds(q)))
        return Range.merge(known) if known else None

    def quantile(self, name: str, q: float) -> float | None:
        """A quantile of a latency or length, or None where nothing was observed or it lies beyond the last bound.

        Where the source gave a range instead of a distribution, its upper end.
        """
        sketch, given = self.sketches.get(name), self.quantiles.get(name, {}).get(q)
        if sketch is not None and sketch.count > 0:
            return sketch.quantile(q)
        return given.most if given is not None else None

    def mean(self, name: str) -> float | None:
        """The mean of a gauge, or of a latency or length, or None where it is unknown."""
        gauge = self.gauges.get(name)
        if gauge is not None:
            return gauge.mean
        sketch = self.sketches.get(name)
        return sketch.mean if sketch is not None else None


class CollectError(Exception):
    """A source could not be read. ``kind`` is a stable class for counting, ``detail`` says what and what to do."""

    def __init__(self, kind: str, detail: str) -> None:
        self.kind = kind
        self.detail = clean(detail)
        super().__init__(f"{kind}: {self.detail}")
