"""What each kind of day brings, by the time of day: what a schedule must carry. Pure values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np

from actuators.shape import EVERY_DAY
from analyzers.forecast.bursts import burst_ratio, surroundings
from analyzers.forecast.forecast import Forecast
from analyzers.forecast.history import DAY, LOADS, STEP_S, LoadHistory
from collectors.workload import Floats

WORKDAYS, WEEKEND = (0, 1, 2, 3, 4), (5, 6)
#: From so many days on, what a working day and a weekend bring are told apart.
APART = 8
#: So many days are looked back: each day of the week once.
_WEEK = 7


@dataclass(frozen=True, slots=True)
class DayDemand:
    """The upper end of the load of such a day."""

    days: tuple[int, ...]
    """0 (Monday) to 6."""
    zone: str
    upper: Mapping[str, Floats]
    """(96,) per second by quarter of an hour from midnight of the zone on, by name in ``LOADS``; one that is not known is absent."""


def days_of(history: LoadHistory, forecast: Forecast, zone: str) -> tuple[DayDemand, ...]:
    """The most that came at each time of day in the last week, or would have with a burst where those come at any time; and the
    forecast's upper end where the day to come is such a day.

    Empty without a season, or while a time of day is not known at all.
    """
    if forecast.season_s is None:
        return ()
    last = min(_WEEK * DAY, history.slots)
    times = [
        *_times(history.end - last * STEP_S, last, zone),
        *_times(forecast.start, forecast.slots, zone),
    ]
    apart = history.slots >= APART * DAY
    kinds = (WORKDAYS, WEEKEND) if apart else (EVERY_DAY,)
    found = [_demand(history, forecast, zone, days, times) for days in kinds]
    return tuple(day for day in found if day is not None) if all(found) else ()


def _times(start: float, slots: int, zone: str) -> list[tuple[int, int]]:
    """Of each slot, by the clocks of the zone: the day of the week, and the slot of the day."""
    local = (datetime.fromtimestamp(start + i * STEP_S, ZoneInfo(zone)) for i in range(slots))
    return [(at.weekday(), (60 * at.hour + at.minute) * 60 // int(STEP_S)) for at in local]


def _demand(
    history: LoadHistory, forecast: Forecast, zone: str, days: tuple[int, ...], times: Sequence[tuple[int, int]]
) -> DayDemand | None:
    upper = {}
    for name in LOADS:
        band = forecast.bands.get(name)
        if band is None:
            continue
        most = np.full(DAY, math.nan)
        rates = np.concatenate((_upper(history.rates[name])[-_WEEK * DAY :], band.high))
        for (day, slot), rate in zip(times, rates, strict=True):
            if day in days:
                most[slot] = np.fmax(most[slot], rate)
        if not np.isnan(most).any():
            upper[name] = most
    return DayDemand(days, zone, upper) if "requests" in upper else None


def _upper(rates: Floats) -> Floats:
    """What came, or what would have with a burst, where they come at no time of their own."""
    burst = burst_ratio(rates)
    return rates if burst == 1.0 else np.fmax(rates, burst * surroundings(rates))
