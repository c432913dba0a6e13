"""Whether a series rises or falls for real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, slots=True)
class Trend:
    """A robust line through a series."""

    slope: float
    """Change per second."""
    change: float
    """Relative change over the span, against the median of the series."""
    p_value: float
    """Probability of so much order without any trend."""


def trend(times: Sequence[float], values: Sequence[float]) -> Trend | None:
    """Theil-Sen slope with the Mann-Kendall test (as Kendall's tau against time).

    ``times`` in seconds, ascending. None with fewer than 8 points, or where nothing moves. Sources: Sen 1968,
    "Estimates of the regression coefficient based on Kendall's tau"; Mann 1945, "Nonparametric tests against trend".
    """
    if len(times) < 8:
        return None
    x, y = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    middle = float(np.median(np.abs(y)))
    if middle == 0 or np.ptp(y) == 0:
        return None
    slope = float(stats.theilslopes(y, x).slope)
    p_value = float(stats.kendalltau(x, y).pvalue)
    return Trend(slope=slope, change=slope * float(x[-1] - x[0]) / middle, p_value=p_value)
