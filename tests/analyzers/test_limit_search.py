"""The search for a limit: few measurements, the right bracket, whatever the guess and the noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzers.limit_search import Limit, MeasuredRate, limit_of, next_rate


def searched(limit: float, guess: float, precision: float = 0.15, most: int = 60) -> list[MeasuredRate]:
    """By an oracle that is always sure."""
    found: list[MeasuredRate] = []
    while (rate := next_rate(found, guess, precision, most)) is not None:
        met = rate <= limit
        found.append(MeasuredRate(rate, "met" if met else "missed", met))
    return found


@given(st.floats(1e-2, 1e4), st.floats(-3, 3), st.floats(0.02, 0.5))
def test_the_limit_is_bracketed_within_the_precision(limit: float, off: float, precision: float) -> None:
    found = searched(limit, limit * 10**off, precision)
    known = limit_of(found)
    assert known.low is not None
    assert known.high is not None
    assert known.sure
    assert known.low <= limit <= known.high
    assert known.high / known.low <= (1 + precision) * (1 + 1e-9)


@given(st.floats(0.1, 100), st.floats(-0.13, 0.13))
def test_a_good_guess_takes_two_or_three_measurements(limit: float, off: float) -> None:
    assert len(searched(limit, limit * (1 + off))) <= 3


def test_a_guess_ten_times_off_takes_no_more_than_ten() -> None:
    assert max(len(searched(limit, 1.0)) for limit in np.geomspace(0.1, 10, 200)) <= 10


def test_few_requests_that_decide_nothing_still_lead_somewhere() -> None:
    found: list[MeasuredRate] = []
    while (rate := next_rate(found, 5.0)) is not None:
        found.append(MeasuredRate(rate, "unsure", rate < 4))
    known = limit_of(found)
    assert not known.sure
    assert known.low is not None
    assert known.high is not None
    assert known.low < 4 <= known.high
    assert known.high / known.low <= 1.15 * (1 + 1e-9)


def test_the_sure_ones_count_where_unsure_ones_contradict_them() -> None:
    found = [
        MeasuredRate(4, "met", True),
        MeasuredRate(3, "unsure", False),
        MeasuredRate(8, "missed", False),
        MeasuredRate(9, "unsure", True),
    ]
    assert limit_of(found) == Limit(4, 8, True)
    assert limit_of([*found, MeasuredRate(5, "unsure", True)]) == Limit(5, 8, False)
    assert limit_of([*found, MeasuredRate(5, "unsure", False)]) == Limit(4, 5, True)


def test_where_noise_contradicts_itself_the_missed_one_counts() -> None:
    assert limit_of(
        [MeasuredRate(4, "met", True), MeasuredRate(5, "missed", False), MeasuredRate(6, "met", True)]
    ) == Limit(4, 5, True)
    assert limit_of([]) == Limit(None, None, False)


@given(st.integers(0, 2**32 - 1))
def test_with_noise_it_ends_and_is_near(seed: int) -> None:
    """Verdicts of a judge who is unsure near the limit and wrong once in forty."""
    rng = np.random.default_rng(seed)
    found: list[MeasuredRate] = []
    while (rate := next_rate(found, 3.0, most=12)) is not None:
        distance = math.log(rate / 5.0)
        likely = bool(distance + 0.05 * rng.standard_normal() < 0)
        sure = abs(distance) > 0.1 or rng.random() < 0.2
        found.append(MeasuredRate(rate, ("met" if likely else "missed") if sure else "unsure", likely))
    known = limit_of(found)
    assert known.low is None or known.low < 5.0 * 1.3


@pytest.mark.parametrize(("guess", "precision"), [(0.0, 0.1), (-1.0, 0.1), (float("nan"), 0.1), (1.0, 0.0)])
def test_nonsense_is_refused(guess: float, precision: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        next_rate([], guess, precision)
