"""One window while it is open: what was seen in it so far. Used by the window builder alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from collectors.bins import Edges, Floats
from collectors.metrics import Addition, over_targets
from collectors.sketch import Sketch
from collectors.window import Gauge, Range

_MAX_PENDING = 10_000


@dataclass(slots=True)
class _GaugeSummary:
    """One gauge of one target."""

    area: float = 0.0
    seconds: float = 0.0
    maximum: float = 0.0
    last: float = 0.0

    @property
    def mean(self) -> float:
        return self.area / self.seconds if self.seconds > 0 else self.last


@dataclass(slots=True)
class _Bins:
    increments: Floats
    total: float


@dataclass(slots=True)
class Accumulator:
    """Sums over targets. Memory is bounded by names and targets, not by readings."""

    start: float
    end: float
    observed: dict[str, float] = field(default_factory=dict)
    """Seconds, by target."""
    read: set[str] = field(default_factory=set)
    counts: dict[str, float] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    facts: dict[str, Mapping[str, str]] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)
    """Seconds in which a target was observed, but did not tell a metric that it told before."""
    ranges: dict[tuple[str, float], Range] = field(default_factory=dict)
    _gauges: dict[tuple[str, str], _GaugeSummary] = field(default_factory=dict)
    _bins: dict[tuple[str, Edges], _Bins] = field(default_factory=dict)
    _pending: dict[str, list[float]] = field(default_factory=dict)
    _sampled: dict[str, Sketch] = field(default_factory=dict)

    def spoil(self) -> None:
        """Forget what was added up: it turned out not to be of one server."""
        self.counts.clear()
        self.observed.clear()
        for sums in (self.lost, self.ranges, self._gauges, self._bins, self._pending, self._sampled):
            sums.clear()

    def lose(self, name: str, seconds: float) -> None:
        self.lost[name] = self.lost.get(name, 0.0) + seconds

    def count(self, name: str, increase: float) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + increase

    def fill(self, name: str, edges: Edges, increments: Floats, total: float) -> None:
        """Add to a histogram: what fell into each bin, and the sum of it."""
        bins = self._bins.get((name, edges))
        if bins is None:
            self._bins[name, edges] = _Bins(increments.copy(), total)
        else:
            bins.increments += increments
            bins.total += total

    def sample(self, name: str, values: Iterable[float]) -> None:
        pending = self._pending.setdefault(name, [])
        pending.extend(values)
        if len(pending) > _MAX_PENDING:
            self._sampled[name] = self._sampled.get(name, Sketch()).add_many(pending)
            pending.clear()

    def merge(self, name: str, sketch: Sketch) -> None:
        """Add a distribution that came as one."""
        self._sampled[name] = Sketch.merge((self._sampled.get(name, Sketch()), sketch))
        self._pending.setdefault(name, [])

    def quantile(self, name: str, q: float, known: Range) -> None:
        """Add a quantile that came as a number."""
        old = self.ranges.get((name, q))
        self.ranges[name, q] = known if old is None else Range.merge((old, known))

    def stretch(self, target: str, name: str, gauge: Gauge, seconds: float) -> None:
        """A gauge over a span, as the source itself summed it up."""
        self.course(target, name, gauge.mean, gauge.mean, seconds)
        seen = self._gauges[target, name]
        seen.maximum, seen.last = max(seen.maximum, gauge.maximum), gauge.last

    def point(self, target: str, name: str, value: float) -> None:
        """A gauge at one moment, where its course before that is not known."""
        seen = self._gauges.setdefault((target, name), _GaugeSummary(maximum=value))
        seen.maximum, seen.last = max(seen.maximum, value), value

    def course(self, target: str, name: str, first: float, last: float, seconds: float) -> None:
        """A gauge over a span, taken as straight between two values."""
        self.point(target, name, first)
        self.point(target, name, last)
        seen = self._gauges[target, name]
        seen.area += (first + last) / 2 * seconds
        seen.seconds += seconds

    def gauges(self) -> dict[str, Gauge]:
        """Over all targets. Of a sum, the maximum is the sum of the targets' maxima, an upper bound."""
        by_name: dict[str, list[_GaugeSummary]] = {}
        for (_, name), seen in self._gauges.items():
            by_name.setdefault(name, []).append(seen)
        return {name: _added(over_targets(name), several) for name, several in by_name.items()}

    def quantiles(self) -> dict[str, dict[float, Range]]:
        by_name: dict[str, dict[float, Range]] = {}
        for (name, q), known in sorted(self.ranges.items()):
            by_name.setdefault(name, {})[q] = known
        return by_name

    def sketches(self) -> dict[str, Sketch]:
        """By name; nothing for a name of which nothing was observed."""
        parts: dict[str, list[Sketch]] = {}
        for (name, edges), bins in self._bins.items():
            parts.setdefault(name, []).append(Sketch.from_histogram(edges, bins.increments, bins.total))
        for name, values in self._pending.items():
            parts.setdefault(name, []).extend((self._sampled.get(name, Sketch()), Sketch.from_values(values)))
        merged = {name: Sketch.merge(several) for name, several in parts.items()}
        return {name: sketch for name, sketch in merged.items() if sketch.count > 0}

    def told(self) -> dict[str, str]:
        """The facts: one text where all targets agree, else each one's, in order."""
        values: dict[str, set[str]] = {}
        for facts in self.facts.values():
            for name, text in facts.items():
                values.setdefault(name, set()).add(text)
        return {name: ", ".join(sorted(texts)[:8]) for name, texts in values.items()}


def _added(how: Addition, several: Sequence[_GaugeSummary]) -> Gauge:
    if how == "max":
        return Gauge(max(g.mean for g in several), max(g.maximum for g in several), max(g.last for g in several))
    mean, last = sum(g.mean for g in several), sum(g.last for g in several)
    if how == "sum":
        return Gauge(mean, sum(g.maximum for g in several), last)
    return Gauge(mean / len(several), max(g.maximum for g in several), last / len(several))
