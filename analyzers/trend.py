"""Whether a series rises or falls for real, at comparable load, and whether it did so in one step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # which imports its parts when they are first used

from collectors.workload import Floats


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
    slope, intercept = _line(y, x)
    first, last = np.clip([intercept + slope * x[0], intercept + slope * x[-1]], y.min(), y.max())
    p_value = float(scipy.stats.kendalltau(x, y).pvalue)
    return Trend(float(slope), float(first), float(last), p_value)


@dataclass(frozen=True, slots=True)
class LevelShift:
    """A series that has one level before a moment, and another one from then on."""

    at: float
    """Time of the first value of the new level."""
    before: float
    after: float
    """Medians."""
    p_value: float
    """Probability of so large a step without any."""


def step(times: Sequence[float], values: Sequence[float]) -> LevelShift | None:
    """The likeliest single step: Pettitt 1979, "A Non-Parametric Approach to the Change-Point Problem", with its approximate probability.

    ``times`` ascending. None with fewer than 8 points.
    """
    n = len(times)
    if n < 8:
        return None
    y = np.asarray(values, dtype=np.float64)
    ranks = scipy.stats.rankdata(y)
    # U(k) = 2 (sum of the first k ranks) - k (n + 1): how the first k compare with the rest.
    u = np.abs(2 * np.cumsum(ranks)[:-1] - np.arange(1, n) * (n + 1))
    k = int(u.argmax()) + 1
    p_value = min(1.0, 2.0 * math.exp(-6.0 * float(u[k - 1]) ** 2 / (n**3 + n**2)))
    return LevelShift(float(times[k]), float(np.median(y[:k])), float(np.median(y[k:])), p_value)


def in_one_step(times: Sequence[float], values: Sequence[float], line: Trend, found: LevelShift) -> bool:
    """Whether the step describes the series better than the line does: by the absolute deviations that are left."""
    x, y = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    sloped = y - line.slope * x
    level = np.where(x < found.at, found.before, found.after)
    return float(np.abs(y - level).sum()) < float(np.abs(sloped - np.median(sloped)).sum())


def at_comparable_load(values: Sequence[float], load: Sequence[float]) -> list[float]:
    """The series as it would be at its median load: less the robust slope of value on load, where more load makes more of it.

    What rises only because the load rose, rises no more. Theil-Sen over the pairs whose loads differ.
    """
    x, y = np.asarray(load, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if x.shape[0] < 3 or np.ptp(x) == 0:
        return [float(v) for v in y]
    slope = max(0.0, _line(y, x)[0])
    return [float(v) for v in y - slope * (x - np.median(x))]


def _line(y: Floats, x: Floats) -> tuple[float, float]:
    """Slope and intercept by Theil and Sen. Of values that are mostly alike scipy's confidence interval, which nobody asks for, takes the root
    of a negative number."""
    with np.errstate(invalid="ignore"):
        slope, intercept = scipy.stats.theilslopes(y, x)[:2]
    return float(slope), float(intercept)
