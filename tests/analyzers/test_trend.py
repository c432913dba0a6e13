"""Trends: real ones are found with their slope, noise and outliers are not taken for one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzers.trend import at_comparable_load, in_one_step, step, trend

TIMES = [60.0 * i for i in range(60)]


def test_a_straight_line() -> None:
    line = trend(TIMES, [100.0 + 0.5 * t for t in TIMES])
    assert line is not None
    assert line.slope == pytest.approx(0.5)
    assert (line.first, line.last) == (pytest.approx(100.0), pytest.approx(100.0 + 0.5 * TIMES[-1]))
    assert line.change == pytest.approx(0.5 * TIMES[-1] / 100.0)
    assert line.p_value < 1e-9


def test_a_falling_one_has_a_negative_change() -> None:
    line = trend(TIMES, [100.0 - 0.01 * t for t in TIMES])
    assert line is not None
    assert line.change < 0


def test_outliers_do_not_bend_it() -> None:
    values = [100.0 + 0.5 * t for t in TIMES]
    values[10] = values[50] = 1e6
    line = trend(TIMES, values)
    assert line is not None
    assert line.slope == pytest.approx(0.5, rel=0.05)


def test_noise_is_seldom_taken_for_a_trend() -> None:
    """At p < 0.01 about 2 of 200 noises pass by definition; three times that would be a wrong test."""
    rng = np.random.default_rng(1)
    found = [trend(TIMES, list(rng.normal(10.0, 1.0, 60))) for _ in range(200)]
    assert sum(f is not None and f.p_value < 0.01 for f in found) <= 6


@pytest.mark.parametrize("values", [[5.0] * 60, [0.0] * 60, [0.0] * 59 + [1.0]], ids=["flat", "zero", "mostly zero"])
def test_where_nothing_moves_there_is_none(values: list[float]) -> None:
    assert trend(TIMES, values) is None


def test_few_points_say_nothing() -> None:
    assert trend(TIMES[:7], [float(i) for i in range(7)]) is None
    assert trend(TIMES[:8], [float(i) for i in range(8)]) is not None


def test_what_falls_to_nothing_fell_by_all_of_it_and_no_more() -> None:
    line = trend([10.0 * i for i in range(12)], [5.0] * 5 + [1.0] + [0.0] * 6)
    assert line is not None
    assert line.change == -1.0
    back = trend([10.0 * i for i in range(12)], [0.0] * 6 + [1.0] + [5.0] * 5)
    assert back is not None
    assert (back.first, back.change) == (0.0, math.inf)


@given(st.lists(st.floats(0, 1e6), min_size=8, max_size=40))
def test_no_series_without_negative_values_falls_by_more_than_all_of_it(values: list[float]) -> None:
    line = trend([60.0 * i for i in range(len(values))], values)
    assert line is None or line.change >= -1.0


# -- steps and load -------------------------------------------------------------------------------------------------------


def test_a_step_is_found_where_it_is() -> None:
    rng = np.random.default_rng(2)
    values = [*rng.normal(10.0, 1.0, 25), *rng.normal(14.0, 1.0, 35)]
    found, line = step(TIMES, values), trend(TIMES, values)
    assert found is not None
    assert line is not None
    assert found.at == pytest.approx(TIMES[25], abs=60.0)
    assert (found.before, found.after) == (pytest.approx(10.0, abs=0.6), pytest.approx(14.0, abs=0.6))
    assert found.p_value < 1e-6
    assert in_one_step(TIMES, values, line, found)


def test_a_slope_is_no_step() -> None:
    values = [100.0 + 0.5 * t for t in TIMES]
    found, line = step(TIMES, values), trend(TIMES, values)
    assert found is not None
    assert line is not None
    assert not in_one_step(TIMES, values, line, found)


def test_noise_is_seldom_taken_for_a_step() -> None:
    """Pettitt's approximation is on the safe side."""
    rng = np.random.default_rng(4)
    found = [step(TIMES, list(rng.normal(10.0, 1.0, 60))) for _ in range(300)]
    assert sum(f is not None and f.p_value < 0.01 for f in found) <= 6
    assert step(TIMES[:7], [1.0] * 7) is None


def test_the_loads_part_is_taken_out_and_the_rest_stays() -> None:
    rng = np.random.default_rng(6)
    load = rng.uniform(1.0, 5.0, 60)
    own = np.linspace(0.0, 1.0, 60)
    adjusted = at_comparable_load(list(2.0 * load + own), list(load))
    assert np.corrcoef(adjusted, own)[0, 1] > 0.95
    assert abs(np.corrcoef(adjusted, load)[0, 1]) < 0.35
    assert at_comparable_load([1.0, 2.0, 4.0], [3.0, 3.0, 3.0]) == [1.0, 2.0, 4.0]
    less = list(10.0 - load)
    assert at_comparable_load(less, list(load)) == less, "more load makes nothing faster"


def test_values_that_are_mostly_alike_are_no_error() -> None:
    """All loads but one alike, and all values but one: Sen's variance is below 0 there."""
    assert at_comparable_load([1.0] * 6 + [2.0], [1.0] * 6 + [2.0]) == [1.0] * 7
