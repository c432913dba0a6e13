"""Distributions that a replay answers with: read by quantile, by mean, by share above a limit. Pure values."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from collectors.workload import Floats


class Samples:
    """One value a request, kept. Quantiles interpolate linearly between order statistics."""

    def __init__(self, values: Floats) -> None:
        self._values = values

    @cached_property
    def _sorted(self) -> Floats:
        return np.sort(self._values)

    @property
    def count(self) -> float:
        return float(self._values.shape[0])

    @property
    def mean(self) -> float | None:
        """None where there is no value."""
        return float(self._values.mean()) if self._values.shape[0] else None

    def quantile(self, q: float) -> float | None:
        """None where there is no value."""
        n = self._values.shape[0]
        if n == 0:
            return None
        at = q * (n - 1)
        below = int(at)
        above = min(below + 1, n - 1)
        low, high = float(self._sorted[below]), float(self._sorted[above])
        return float(low + (high - low) * (at - below))

    def share_above(self, x: float) -> float:
        """The share of values above ``x``; 0 where there is none."""
        n = self._values.shape[0]
        return float(n - np.searchsorted(self._sorted, x, side="right")) / n if n else 0.0


class Bins:
    """Weights in bins that grow by a constant factor, and the exact sum of all values.

    A quantile is placed geometrically within its bin, so it is off by at most the factor (1 % here).
    """

    def __init__(self, weights: Floats, edges: Floats, total: float) -> None:
        self._weights = weights
        self._edges = edges
        self._total = total

    @cached_property
    def _cumulated(self) -> Floats:
        return np.cumsum(self._weights)

    @property
    def count(self) -> float:
        return float(self._cumulated[-1])

    @property
    def mean(self) -> float | None:
        """Exact. None where there is no value."""
        return self._total / self.count if self.count else None

    def quantile(self, q: float) -> float | None:
        """None where there is no value."""
        if not self.count:
            return None
        target = q * self.count
        at = int(np.searchsorted(self._cumulated, target, side="left"))
        at = min(at, int(np.flatnonzero(self._weights)[-1]))
        if at == 0:
            return float(self._edges[0]) if self._total > 0 else 0.0
        before = float(self._cumulated[at - 1])
        within = min(1.0, max(0.0, (target - before) / float(self._weights[at])))
        low, high = float(self._edges[at - 1]), float(self._edges[at])
        return float(low * (high / low) ** within)

    def share_above(self, x: float) -> float:
        """The share of values above ``x``, to within one bin; 0 where there is none."""
        if not self.count:
            return 0.0
        return (
            1.0 - float(self._cumulated[min(int(np.searchsorted(self._edges, x)), len(self._edges) - 1)]) / self.count
        )


Distribution = Samples | Bins
