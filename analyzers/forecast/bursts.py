"""Bursts: a load that stands out from the hours around it for a short while, at no time of day of its own. Pure values.

What comes at its own time each day is the season's. What does not cannot be foreseen: whoever must carry it when it comes, within less
than a replica takes to start, has to be able to at any time.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from analyzers.forecast.history import DAY, STEP_S
from collectors.workload import Floats

#: A burst is over within so many slots: it stands out from what is usual in as many before it, and in as many after it.
AROUND = 8
#: It stands out by this factor at least, beyond what chance makes of a Poisson count.
STANDS_OUT = 1.25
_CHANCE = 2.0
#: So many of them, holding this share of the load, are a habit; fewer are let pass.
LEAST_BURSTS, LEAST_SHARE = 3, 0.01
#: One that came at the same time of day, give or take a slot, on so many of the other days has a time of its own.
OF_ITS_OWN_TIME = 2 / 3
_WEEK = 7


def surroundings(rates: Floats) -> Floats:
    """(n,) what each slot stands out from: the larger of the medians of the two hours before it and after it, so that neither a step
    nor a climb does. Of a slot at an end, of the side that is known; nan where neither is."""
    before, after = _sides(rates)
    found: Floats = np.fmax(before, after)
    return found


def burst_ratio(rates: Floats) -> float:
    """The most that a burst without a time of its own was above its surroundings, in the last week; 1: there is no habit of bursts.

    rates: (n,) per second by slot; nan: unknown.
    """
    mine = rates[-_WEEK * DAY :]
    before, after = _sides(mine)
    level = np.maximum(before, after)  # nan where a side is not known: a climb that has just begun is no burst yet
    surely = np.maximum(0.0, mine - _CHANCE * np.sqrt(mine / STEP_S))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(level > 0, surely / level, math.nan)
    out = ratio >= STANDS_OUT
    out &= ~_at_its_own_time(out)
    begins = out & ~np.concatenate(([False], out[:-1]))
    if np.count_nonzero(begins) < LEAST_BURSTS or np.nansum(mine[out]) < LEAST_SHARE * np.nansum(mine):
        return 1.0
    return float(ratio[out].max())


def _sides(rates: Floats) -> tuple[Floats, Floats]:
    """(n,) each: the medians of the slots before, and after; nan where fewer than half of those are known."""
    n = rates.shape[0]
    padded = np.concatenate((np.full(AROUND, math.nan), rates, np.full(AROUND, math.nan)))
    spans = np.lib.stride_tricks.sliding_window_view(padded, AROUND)
    known = np.count_nonzero(~np.isnan(spans), axis=1) >= AROUND // 2
    medians = np.full(spans.shape[0], math.nan)
    medians[known] = np.nanmedian(spans[known], axis=1)
    return medians[:n], medians[AROUND + 1 : AROUND + 1 + n]


def _at_its_own_time(out: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(n,) whether something stood out at that time of day, give or take a slot, on most of the other days."""
    n = out.shape[0]
    near = out.copy()
    near[1:] |= out[:-1]
    near[:-1] |= out[1:]
    came, days = np.zeros(n), np.zeros(n)
    for k in range(1, _WEEK):
        for at, other in ((slice(k * DAY, None), slice(None, -k * DAY)), (slice(None, -k * DAY), slice(k * DAY, None))):
            came[at] += near[other]
            days[at] += 1
    found: NDArray[np.bool_] = (days > 0) & (came >= OF_ITS_OWN_TIME * days)
    return found
