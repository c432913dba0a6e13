"""A latency or length distribution that can be merged: samples within 1 %, and Prometheus histograms as they came.

Owns the value and its bytes, does no I/O; the bins themselves are in ``bins``. Samples go into logarithmic bins. The
bins of a histogram are kept as they are, one part for each set of edges, so that merging never claims a resolution
that the source did not have.
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from collectors.bins import (
    GAMMA,
    LARGEST,
    ZERO_KEY,
    Edges,
    Floats,
    Ints,
    check_part,
    divided,
    gather,
    key_of,
    spread,
    value_of,
)
from collectors.packing import pack_counts, take, take_counts

_VERSION = 1
_HEAD = struct.Struct("<BBdddII")


class _FlatSketch(NamedTuple):
    """The distribution laid out for reading: values ascending, their counts added up, and the intervals behind them."""

    values: Floats
    reached: Floats
    lows: Floats
    lows_reached: Floats
    highs: Floats
    highs_reached: Floats


class Sketch:
    """A distribution of values >= 0 with counts that may be fractions. A value: every operation returns a new one.

    Quantiles of samples are within 1 % of the true ones. Those of histograms are what PromQL's ``histogram_quantile``
    gives, to 1 %, and ``bounds`` says how far off that may be. The sum, and so the mean, is exact.
    """

    __slots__ = ("_counts", "_flat", "_keys", "_maximum", "_minimum", "_parts", "_total")

    _keys: Ints
    _counts: Floats
    _parts: Mapping[Edges, Floats]
    _total: float
    _minimum: float
    _maximum: float
    _flat: _FlatSketch | None

    def __init__(self) -> None:
        """The empty distribution."""
        self._fill(np.empty(0, np.int64), np.empty(0), {}, 0.0, math.inf, -math.inf)

    def _fill(
        self, keys: Ints, counts: Floats, parts: Mapping[Edges, Floats], total: float, minimum: float, maximum: float
    ) -> Sketch:
        keys.flags.writeable = False
        counts.flags.writeable = False
        self._keys, self._counts, self._parts = keys, counts, parts
        self._total, self._minimum, self._maximum = total, minimum, maximum
        self._flat = None
        return self

    # -- making -------------------------------------------------------------------------------------------------

    @classmethod
    def from_values(cls, values: ArrayLike) -> Sketch:
        """From samples, in any order. Raises ValueError on a negative, NaN or infinite one."""
        array = np.asarray(values, np.float64).ravel()
        if array.size == 0:
            return cls()
        if not (array.min() >= 0 and array.max() <= LARGEST):  # NaN makes both false
            raise ValueError("sketch: samples must be finite and not negative")
        keys = key_of(array)
        first = int(keys.min())
        dense = np.bincount(keys - first).astype(np.float64)
        used = np.flatnonzero(dense)
        return cls()._fill(used + first, dense[used], {}, float(array.sum()), float(array.min()), float(array.max()))

    @classmethod
    def from_histogram(cls, edges: Sequence[float], increments: ArrayLike, total: float) -> Sketch:
        """From the increase of a histogram.

        edges: (n,) finite upper bounds, ascending, the first >= 0.
        increments: (n + 1,) how many fell into each bin, the last beyond all edges; not cumulative over the edges.
        total: the sum of the values, for the mean.
        Raises ValueError when these cannot be true.
        """
        key = tuple(float(e) for e in edges)
        counts = np.array(increments, np.float64)
        check_part(key, counts)
        if not math.isfinite(total) or total < 0:
            raise ValueError(f"sketch: the sum of a histogram must be finite and not negative, not {total}")
        if not counts.any():
            return cls()
        counts.flags.writeable = False
        return cls()._fill(np.empty(0, np.int64), np.empty(0), {key: counts}, float(total), math.inf, -math.inf)

    @classmethod
    def merge(cls, sketches: Iterable[Sketch]) -> Sketch:
        """All of them as one. Associative and commutative, up to rounding of fractional counts and of the sum."""
        several = [s for s in sketches if s.count > 0]
        if len(several) < 2:
            return several[0] if several else cls()
        parts: defaultdict[Edges, list[Floats]] = defaultdict(list)
        for sketch in several:
            for edges, counts in sketch._parts.items():
                parts[edges].append(counts)
        summed = {edges: _frozen(np.sum(parts[edges], axis=0)) for edges in sorted(parts)}
        keys, counts = gather(np.concatenate([s._keys for s in several]), np.concatenate([s._counts for s in several]))
        return cls()._fill(
            keys,
            counts,
            summed,
            math.fsum(s._total for s in several),
            min(s._minimum for s in several),
            max(s._maximum for s in several),
        )

    def add(self, value: float, count: float = 1.0) -> Sketch:
        """With ``count`` more samples of ``value``. Raises ValueError on a negative or non-finite value or count."""
        if not (math.isfinite(count) and count >= 0):
            raise ValueError(f"sketch: a count must be finite and not negative, not {count}")
        one = Sketch.from_values([value])
        if count == 0:
            return self
        one._fill(one._keys, np.array([count]), {}, value * count, value, value)
        return Sketch.merge((self, one))

    def scaled(self, share: float) -> Sketch:
        """The same distribution with ``share`` times as many values. Raises ValueError on a share that is negative or not finite."""
        if not (math.isfinite(share) and share >= 0):
            raise ValueError(f"sketch: a share must be finite and not negative, not {share}")
        if share == 0 or self.count <= 0:
            return Sketch()
        parts = {edges: _frozen(counts * share) for edges, counts in self._parts.items()}
        return Sketch()._fill(
            self._keys, self._counts * share, parts, self._total * share, self._minimum, self._maximum
        )

    def split(self, parts: float) -> Sketch:
        """Each value as so many equal ones that add up to it. Raises ValueError unless ``parts`` is finite and above 0."""
        if not (math.isfinite(parts) and parts > 0):
            raise ValueError(f"sketch: values are split into a finite number of parts above 0, not {parts}")
        if self.count <= 0:
            return Sketch()
        keys, counts = gather(key_of(value_of(self._keys) / parts), self._counts * parts)
        split: defaultdict[Edges, Floats] = defaultdict(lambda: np.zeros(1))
        for edges, added in self._parts.items():
            key = divided(edges, parts)
            split[key] = _frozen(split[key] + added * parts)
        return Sketch()._fill(keys, counts, dict(split), self._total, self._minimum / parts, self._maximum / parts)

    def add_many(self, values: ArrayLike) -> Sketch:
        """With these samples too. Raises ValueError as ``from_values``."""
        return Sketch.merge((self, Sketch.from_values(values)))

    # -- reading ------------------------------------------------------------------------------------------------

    @property
    def count(self) -> float:
        """How many values. Fractional where an interval was divided between two windows."""
        return float(self._counts.sum()) + sum(float(c.sum()) for c in self._parts.values())

    @property
    def total(self) -> float:
        """Their sum, exact."""
        return self._total

    @property
    def mean(self) -> float | None:
        """Their mean, exact; None when empty."""
        count = self.count
        return self._total / count if count > 0 else None

    @property
    def minimum(self) -> float | None:
        """The smallest value, exact; None when empty, or when a histogram hides it."""
        return self._minimum if self._counts.size and not self._parts else None

    @property
    def maximum(self) -> float | None:
        """The greatest value, exact; None when empty, or when a histogram hides it."""
        return self._maximum if self._counts.size and not self._parts else None

    def quantile(self, q: float) -> float | None:
        """The smallest value that at least the share ``q`` does not exceed; None when empty or beyond the last edge."""
        if self.count <= 0:
            _check_shares(np.array([q]))
            return None
        value = float(self.quantiles([q])[0])
        return None if math.isnan(value) else value

    def quantiles(self, qs: ArrayLike) -> Floats:
        """Quantiles, the same shape as ``qs``; NaN where unknown."""
        shares = np.asarray(qs, np.float64)
        _check_shares(shares)
        if self.count <= 0:
            return np.full(shares.shape, math.nan)
        flat = self._laid_out()
        ranks = shares * flat.reached[-1]
        values = _at(flat.values, flat.reached, ranks)
        low, high = self._between(flat, ranks)
        return np.where(np.isinf(high), math.nan, np.clip(values, low, high))

    def bounds(self, q: float) -> tuple[float, float]:
        """The interval in which the true quantile lies; ``high`` is inf beyond a histogram's last edge.

        Each value is known to lie in an interval (its logarithmic bin, its histogram bin); the k-th smallest value lies
        between the k-th smallest lower end and the k-th smallest upper end. Raises ValueError when empty.
        """
        shares = np.array([q], np.float64)
        _check_shares(shares)
        if self.count <= 0:
            raise ValueError("sketch: nothing was observed, so a quantile has no bounds; look at count first")
        flat = self._laid_out()
        low, high = self._between(flat, shares * flat.reached[-1])
        return float(low[0]), float(high[0])

    def most(self, q: float) -> float:
        """The greatest that the true quantile can be: the upper end of ``bounds``, or closer where the exact sum says so.

        The share 1 - q of the values is at least the quantile, and no other value is below its own interval, so what is left of the
        sum is theirs. Raises ValueError when empty.
        """
        low, high = self.bounds(q)
        flat = self._laid_out()
        count = float(flat.lows_reached[-1])
        above = (1 - q) * count
        if above <= 0 or math.isinf(high):
            return high
        counts = np.diff(flat.lows_reached, prepend=0.0)
        below = np.clip(q * count - (flat.lows_reached - counts), 0.0, counts)  # the smallest q * count values
        most = (self._total - float((flat.lows * below).sum())) / above
        return (
            high if most < low else min(high, most)
        )  # a page is not written at one instant: its sum may be behind its counts

    def share_above(self, x: float) -> float:
        """The share of values above ``x``, interpolated within a histogram's bin as ``histogram_quantile`` does.

        Values beyond a histogram's last edge count as above, even where ``x`` is further: then it is an upper bound.
        Raises ValueError when empty.
        """
        count = self.count
        if count <= 0:
            raise ValueError("sketch: nothing was observed, so no share is known; look at count first")
        above = float(self._counts[value_of(self._keys) > x].sum())
        for edges, counts in self._parts.items():
            points = np.array((0.0, *edges))
            reached = np.concatenate(([0.0], np.cumsum(counts[:-1])))
            below = float(np.interp(x, points, reached)) if x >= 0 else 0.0
            above += float(counts.sum()) - below
        return min(1.0, max(0.0, above / count))

    def share_bounds(self, x: float) -> tuple[float, float]:
        """The least and the most that the share of values above ``x`` can be; the same where ``x`` is a histogram's edge.

        Raises ValueError when empty.
        """
        count = self.count
        if count <= 0:
            raise ValueError("sketch: nothing was observed, so no share is known; look at count first")
        lows = np.where(self._keys > ZERO_KEY, GAMMA ** (self._keys - 1.0), 0.0)
        least = float(self._counts[lows >= x].sum())
        most = float(self._counts[GAMMA ** self._keys.astype(np.float64) > x].sum())
        if not self._parts and self._counts.size:  # the extremes of samples are exact
            if x < self._minimum:
                return 1.0, 1.0
            if x >= self._maximum:
                return 0.0, 0.0
        for edges, counts in self._parts.items():
            points = np.array((0.0, *edges, math.inf))
            least += float(counts[points[:-1] >= x].sum())
            most += float(counts[points[1:] > x].sum())
        return min(1.0, least / count), min(1.0, most / count)

    def sample(self, uniforms: ArrayLike) -> Floats:
        """Draws by inversion, the same shape as ``uniforms`` (each in 0..1). Beyond the last edge, that edge is drawn.

        Raises ValueError when empty.
        """
        shares = np.asarray(uniforms, np.float64)
        _check_shares(shares)
        if self.count <= 0:
            raise ValueError("sketch: nothing was observed, so nothing can be drawn; look at count first")
        flat = self._laid_out()
        ranks = shares * flat.reached[-1]
        low, high = self._between(flat, ranks)
        return np.where(np.isinf(high), low, np.clip(_at(flat.values, flat.reached, ranks), low, high))

    def _between(self, flat: _FlatSketch, ranks: Floats) -> tuple[Floats, Floats]:
        low = _at(flat.lows, flat.lows_reached, ranks)
        high = _at(flat.highs, flat.highs_reached, ranks)
        if not self._parts:  # the extremes of samples are exact
            low, high = np.maximum(low, self._minimum), np.minimum(high, self._maximum)
        return low, high

    def _laid_out(self) -> _FlatSketch:
        if self._flat is None:
            self._flat = self._lay_out()
        return self._flat

    def _lay_out(self) -> _FlatSketch:
        keys, weights = [self._keys], [self._counts]
        lows = [np.where(self._keys > ZERO_KEY, GAMMA ** (self._keys - 1.0), 0.0)]
        highs, counted = [GAMMA ** self._keys.astype(np.float64)], [self._counts]
        overflow = 0.0
        for edges, counts in self._parts.items():
            layout = spread(edges)
            keys.append(layout.keys)
            weights.append(counts[layout.owner] * layout.share)
            points = np.array((0.0, *edges, math.inf))
            lows.append(points[:-1])
            highs.append(points[1:])
            counted.append(counts)
            overflow += float(counts[-1])
        used, sums = gather(np.concatenate(keys), np.concatenate(weights))
        values = value_of(used)
        if overflow > 0:
            values, sums = np.append(values, math.inf), np.append(sums, overflow)
        return _FlatSketch(
            values,
            np.cumsum(sums),
            *_ordered(np.concatenate(lows), np.concatenate(counted)),
            *_ordered(np.concatenate(highs), np.concatenate(counted)),
        )

    # -- as a value ---------------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sketch):
            return NotImplemented
        return (
            (self._total, self._minimum, self._maximum) == (other._total, other._minimum, other._maximum)
            and np.array_equal(self._keys, other._keys)
            and np.array_equal(self._counts, other._counts)
            and self._parts.keys() == other._parts.keys()
            and all(np.array_equal(counts, other._parts[edges]) for edges, counts in self._parts.items())
        )

    def __hash__(self) -> int:
        return hash((self._total, self.count, self._minimum, self._maximum))

    def __repr__(self) -> str:
        if self.count <= 0:
            return "Sketch(empty)"
        shown = ", ".join(f"p{100 * q:g}={self.quantile(q)}" for q in (0.5, 0.95, 0.99))
        return f"Sketch(count={self.count:g}, mean={self.mean}, {shown})"

    def to_bytes(self) -> bytes:
        """A compact form that ``from_bytes`` gives back exactly. Little-endian; the first byte is the version."""
        out = [
            _HEAD.pack(_VERSION, 0, self._total, self._minimum, self._maximum, self._keys.size, len(self._parts)),
            self._keys.astype("<i4").tobytes(),
            pack_counts(self._counts),
        ]
        for edges, counts in sorted(self._parts.items()):
            out += [struct.pack("<I", len(edges)), np.array(edges, "<f8").tobytes(), pack_counts(counts)]
        return b"".join(out)

    @classmethod
    def from_bytes(cls, data: bytes) -> Sketch:
        """What ``to_bytes`` made. Raises ValueError on anything else, and on a version that is not known."""
        try:
            return cls._unpacked(memoryview(data))
        except struct.error as error:
            raise ValueError(f"sketch: {len(data)} bytes are too few") from error

    @classmethod
    def _unpacked(cls, data: memoryview) -> Sketch:
        if not data:
            raise ValueError("sketch: no bytes")
        if data[0] != _VERSION:
            raise ValueError(f"sketch: version {data[0]} is not known here; a newer Flyball wrote it")
        _, flags, total, minimum, maximum, size, number = _HEAD.unpack_from(data)
        stored, at = take(data, _HEAD.size, "<i4", size)
        keys = stored.astype(np.int64)
        counts, at = take_counts(data, at, size)
        parts: dict[Edges, Floats] = {}
        for _ in range(number):
            (length,) = struct.unpack_from("<I", data, at)
            edges, at = take(data, at + 4, "<f8", length)
            part, at = take_counts(data, at, length + 1)
            key = tuple(edges.tolist())
            check_part(key, part)
            parts[key] = _frozen(part)
        sound = (
            flags == 0
            and at == len(data)
            and len(parts) == number
            and bool(np.all(np.diff(keys) > 0) and np.all((keys >= ZERO_KEY) & (keys <= key_of(np.array([LARGEST])))))
            and bool(np.all((counts > 0) & np.isfinite(counts)))
            and math.isfinite(total)
            and total >= 0
            and (0 <= minimum <= maximum <= LARGEST if size else (minimum, maximum) == (math.inf, -math.inf))
        )
        if not sound:
            raise ValueError("sketch: the bytes are damaged")
        return cls()._fill(keys, counts, parts, total, minimum, maximum)


def _ordered(values: Floats, counts: Floats) -> tuple[Floats, Floats]:
    used = counts > 0
    order = np.argsort(values[used], kind="stable")
    return values[used][order], np.cumsum(counts[used][order])


def _at(values: Floats, reached: Floats, ranks: Floats) -> Floats:
    """The first value whose added-up count reaches the rank; the slack absorbs rounding in the sums."""
    found = np.searchsorted(reached, ranks - 1e-12 * reached[-1], side="left")
    return np.asarray(values[np.minimum(found, values.size - 1)])


def _check_shares(shares: Floats) -> None:
    if not np.all((shares >= 0) & (shares <= 1)):  # NaN makes both false
        raise ValueError("sketch: a quantile is asked for as a share from 0 to 1")


def _frozen(array: Floats) -> Floats:
    array.flags.writeable = False
    return array
