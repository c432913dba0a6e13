"""Bursts: told from steps, climbs and chance, and from what comes at its own time each day."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analyzers.forecast.bursts import burst_ratio, surroundings
from analyzers.forecast.days import days_of
from analyzers.forecast.forecast import forecast
from analyzers.forecast.history import DAY, STEP_S, LoadHistory
from collectors.workload import Floats


def curve(days: int, mean: float = 8.0, swing: float = 0.5) -> Floats:
    found: Floats = mean * (1 + swing * np.sin(2 * math.pi * np.arange(days * DAY) / DAY))
    return found


def at(rates: Floats, slots: list[int], factor: float) -> Floats:
    found = rates.copy()
    found[slots] *= factor
    return found


#: Of three days, at no time twice.
ANY_TIME = [20, 37, 61, DAY + 5, DAY + 48, DAY + 75, 2 * DAY + 14, 2 * DAY + 31, 2 * DAY + 88]
#: At 10:00, 14:00 and 20:00 of each.
OWN_TIME = [k * DAY + slot for k in range(3) for slot in (40, 56, 80)]


def test_a_habit_of_bursts_is_told_by_its_most() -> None:
    rates = at(curve(3), ANY_TIME, 2.2)
    rates[37] *= 2.6 / 2.2
    assert burst_ratio(rates) == pytest.approx(2.6, rel=0.12)  # less what chance might make of it
    assert np.allclose(surroundings(rates), curve(3), rtol=0.25)


def test_what_has_its_own_time_or_stays_is_none() -> None:
    office = np.where((np.arange(4 * DAY) % DAY >= 32) & (np.arange(4 * DAY) % DAY < 72), 24.0, 2.0)
    launch = 4.0 + 20.0 * (np.arange(3 * DAY) > 144) * 0.5 ** (np.maximum(np.arange(3 * DAY) - 144, 0) / 24)
    two = at(curve(3), [20, DAY + 48], 3.0)
    for name, rates in (
        ("day", curve(3, swing=0.8)), ("office", office), ("launch", launch), ("own time", at(curve(3), OWN_TIME, 3.0)),
        ("twice", two), ("climbs now", np.concatenate((curve(2), [30.0]))), ("unknown", np.full(DAY, math.nan)), ("nothing", np.zeros(DAY)),
    ):  # fmt: skip
        assert burst_ratio(rates) == 1.0, name


def test_chance_is_none() -> None:
    for rate in (0.02, 0.2, 2.0):
        drawn = [np.random.default_rng(seed).poisson(rate * STEP_S, 7 * DAY) / STEP_S for seed in range(40)]
        assert sum(burst_ratio(rates) > 1.0 for rates in drawn) <= 2, rate


def test_the_upper_ends_hold_a_burst_at_any_time() -> None:
    """Of days with bursts at any time the next day, and each time of day, must hold one; of days that have them at their own time only there."""
    usual = curve(1)
    for slots, anywhere in ((ANY_TIME, True), (OWN_TIME, False)):
        rates = at(curve(3), slots, 2.2)
        history = LoadHistory(0.0, {"requests": rates, "prompt_tokens": 100 * rates, "output_tokens": 50 * rates})
        found = forecast(history, growth=1.2)
        assert found is not None
        quiet = np.array([i for i in range(DAY) if all(abs(i - s % DAY) > 2 for s in slots)])
        assert (found.burst > 1.5) == anywhere
        (each,) = days_of(history, found, "UTC")
        for upper in (found.bands["requests"].high, each.upper["requests"]):
            assert bool(np.all(upper[quiet] > 1.8 * usual[quiet])) == anywhere
            assert np.all(upper >= usual - 1e-9)
            assert upper.max() < 3.2 * usual.max()
