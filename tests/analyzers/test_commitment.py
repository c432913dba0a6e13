"""What is worth reserving: each replica whose share of the time is above the price's share, and no other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actuators.shape import Purchase, Shape
from analyzers.commitment import Commitment, commitment, worth_reserving
from analyzers.money import HOURS_PER_MONTH
from tests.analyzers.situations import situation

WEEK = 7 * 24


def spent(replicas: list[float], reserved_count: int, on_demand: float, reserved: float) -> float:
    return sum(reserved_count * reserved + max(0.0, n - reserved_count) * on_demand for n in replicas)


def test_a_night_of_one_and_a_day_of_four_reserve_what_runs_more_than_the_price_asks() -> None:
    day = [1.0] * 10 + [4.0] * 14
    found = commitment(day, on_demand=2.0, reserved=1.2)  # pays from 60 % on; the 2nd to 4th run 58 % of the time
    assert found == Commitment(1, 1.0, pytest.approx(0.8 * HOURS_PER_MONTH))
    cheaper = commitment(day, on_demand=2.0, reserved=1.0)
    assert cheaper is not None
    assert cheaper.replicas == 4


@given(st.lists(st.integers(0, 6).map(float), min_size=1, max_size=40), st.floats(0.1, 5.0), st.floats(0.0, 1.2))
def test_no_other_number_would_have_cost_less(replicas: list[float], on_demand: float, ratio: float) -> None:
    reserved = on_demand * ratio
    found = commitment(replicas, on_demand, reserved)
    count = 0 if found is None else found.replicas
    least = min(spent(replicas, n, on_demand, reserved) for n in range(8))
    assert spent(replicas, count, on_demand, reserved) == pytest.approx(least)
    if found is not None:
        saved = (sum(replicas) * on_demand - least) / len(replicas) * HOURS_PER_MONTH
        assert found.saved_per_month == pytest.approx(saved)


def test_it_is_told_with_its_numbers_after_a_week() -> None:
    found = worth_reserving(situation(), [4.0] * WEEK, 2.0, 1.2)
    assert found is not None
    assert (found.kind, found.severity, found.reason.code) == ("cost", "info", "RESERVATION_WOULD_SAVE")
    assert found.reason.numbers == {"replicas": 2.0, "share": 1.0, "saved_per_month": pytest.approx(1168.0)}
    assert "2 x small reserved would save $1,168 a month" in found.reason.text


def test_units_of_provisioned_throughput_are_reserved_as_replicas_are() -> None:
    bought = situation(shape=Shape(purchase=Purchase(50, "ptu")))
    found = worth_reserving(bought, [50.0] * WEEK, 1.0, 0.64)
    assert found is not None
    assert "50 x PTU reserved would save $13,140 a month" in found.reason.text


@pytest.mark.parametrize(
    "hours",
    [
        [4.0] * (WEEK - 1),
        [4.0] * WEEK + [None] * WEEK,
        [0.0] * WEEK,
        [None] * WEEK,
    ],
)
def test_nothing_is_told_of_too_little_or_of_what_did_not_run(hours: list[float | None]) -> None:
    assert worth_reserving(situation(), hours, 2.0, 1.2) is None


def test_a_price_that_saves_nothing_is_no_finding() -> None:
    assert worth_reserving(situation(), [4.0] * WEEK, 2.0, 2.0) is None
    assert worth_reserving(situation(), [4.0] * WEEK, 0.0, 0.0) is None
