"""Whether a series rises or falls for real."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # which imports its parts when they are first used


@dataclass(frozen=True, slots=True)
class Trend:
    """A robust line through a series."""

    slope: float
    """Change per second."""
    first: float
    last: float
    """Where the line begins and ends, within the values of the series."""
    p_value: float
    """Probability of so much order without any trend."""

    @property
    def change(self) -> float:
        """Relative to where the line begins: -1 is a fall to nothing; infinite for a rise from nothing."""
        if self.first == 0:
            return math.inf if self.last > 0 else 0.0
        return (self.last - self.first) / abs(self.first)


def trend(times: Sequence[float], values: Sequence[float]) -> Trend | None:
    """Theil-Sen slope with the Mann-Kendall test (as Kendall's tau against time).

    ``times`` in seconds, ascending. None with fewer than 8 points, or where nothing moves. Sources: Sen 1968,
    "Estimates of the regression coefficient based on Kendall's tau"; Mann 1945, "Nonparametric tests against trend".
    """
    if len(times) < 8:
        return None
    x, y = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if np.median(np.abs(y)) == 0 or np.ptp(y) == 0:
        return None
    slope, intercept = scipy.stats.theilslopes(y, x)[:2]
    first, last = np.clip([intercept + slope * x[0], intercept + slope * x[-1]], y.min(), y.max())
    p_value = float(scipy.stats.kendalltau(x, y).pvalue)
    return Trend(float(slope), float(first), float(last), p_value)
