"""A load as seasons of a day and of a week over a trend (MSTL), the trend by exponential smoothing. statsforecast's, where the extra is there.

Source: Bandara, Hyndman and Bergmeir 2021, "MSTL: a seasonal-trend decomposition algorithm for time series with multiple seasonal patterns".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np

from analyzers.forecast.history import DAY, FLOOR, WEEK
from analyzers.forecast.learned import EACH, LearnedLoad
from collectors.workload import Floats


class SeasonalTrend(LearnedLoad):
    """What each model told of the days from its first slot on, from what was known a day before, as the other profiles."""

    @classmethod
    def installed(cls) -> bool:
        return find_spec("statsforecast") is not None

    @classmethod
    def _learner(cls, rates: Floats, _start_slot: int) -> Callable[[int], Floats]:
        return lambda upto: _told(rates[: upto - DAY], (EACH + 2) * DAY)[DAY:]

    def _teller(self, _rates: Floats, _start_slot: int) -> Callable[[Floats, int, int], Floats]:
        def tell(model: Floats, begin: int, end: int) -> Floats:
            said = np.full(end - begin, math.nan)
            known = model[: end - begin]
            said[: known.shape[0]] = known
            return said

        return tell


def _told(rates: Floats, slots: int) -> Floats:
    """(slots,) after the last rate. Slots without a rate are taken as a week, a day, or the middle of all before."""
    from statsforecast.models import MSTL, AutoETS  # takes seconds to import, and few have it

    filled = rates.copy()
    for lag in (WEEK, DAY):
        missing = np.flatnonzero(np.isnan(filled))
        missing = missing[missing >= lag]
        for at in missing.tolist():  # in order, so that one that was filled fills the next
            filled[at] = filled[at - lag]
    filled[np.isnan(filled)] = float(np.nanmedian(rates))
    seasons = [DAY, WEEK] if filled.shape[0] >= 2 * WEEK else [DAY]
    model = MSTL(season_length=seasons, trend_forecaster=AutoETS(model="ZZN"))
    floor = FLOOR * float(filled.mean())  # a load grows by shares, not by amounts
    said: Floats = np.exp(model.forecast(y=np.log(filled + floor), h=slots)["mean"]) - floor
    return np.maximum(0.0, said)
