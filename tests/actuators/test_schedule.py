"""A schedule by the clocks of its zone: what is wanted when, what it costs on average, and how it is told and kept."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actuators.shape import Schedule, ScheduleStep, Shape, difference

NIGHTLY = Schedule((ScheduleStep("07:00", 4), ScheduleStep("20:00", 2)), "Europe/Berlin")
WEEKLY = Schedule(
    (
        ScheduleStep("06:50", 4, (0, 1, 2, 3, 4)),
        ScheduleStep("20:00", 2, (0, 1, 2, 3, 4)),
        ScheduleStep("00:00", 1, (5, 6)),
    )
)


def at(text: str, zone: str = "Europe/Berlin") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("when", "replicas"),
    [
        ("2026-01-05T06:59", 2),
        ("2026-01-05T07:00", 4),
        ("2026-01-05T19:59", 4),
        ("2026-01-05T20:00", 2),
        ("2026-01-06T00:00", 2),
        ("2026-03-29T07:00", 4),  # the clocks go forward in that night
        ("2026-03-29T06:59", 2),
        ("2026-10-25T07:00", 4),  # and back in this one
        ("2026-10-25T06:59", 2),
    ],
)
def test_the_count_of_the_moment_goes_by_the_local_clock(when: str, replicas: int) -> None:
    assert NIGHTLY.replicas_at(at(when)) == replicas


@pytest.mark.parametrize(
    ("when", "replicas"),
    [
        ("2026-01-09T19:59", 4),  # a Friday
        ("2026-01-09T20:00", 2),
        ("2026-01-10T12:00", 1),  # the weekend
        ("2026-01-11T23:59", 1),
        ("2026-01-12T00:00", 1),  # Monday, before its first step
        ("2026-01-12T06:50", 4),
    ],
)
def test_days_of_the_week_differ(when: str, replicas: int) -> None:
    assert WEEKLY.replicas_at(at(when, "UTC")) == replicas


def test_its_mean_its_changes_and_its_words() -> None:
    assert NIGHTLY.mean == pytest.approx((13 * 4 + 11 * 2) / 24)
    assert (NIGHTLY.least, NIGHTLY.most) == (2, 4)
    assert NIGHTLY.changes() == [(2, 4), (4, 2)] * 7
    assert NIGHTLY.label() == "4 from 07:00, 2 from 20:00 (Europe/Berlin)"
    assert WEEKLY.label() == "mon-fri: 4 from 06:50, 2 from 20:00; sat-sun: 1 from 00:00 (UTC)"
    hours = 5 * (4 * (13 + 1 / 6) + 2 * 4) + 4 * 2 * (6 + 5 / 6) + 48 + 6 + 5 / 6
    assert WEEKLY.mean == pytest.approx(hours / 168)


def test_a_shape_is_told_with_it_and_comes_back_from_its_json() -> None:
    shape = Shape(replicas=4, size="gpu", schedule=NIGHTLY)
    assert Shape.from_dict(shape.as_dict()) == shape
    assert shape.label() == "4 x gpu, by schedule 4 from 07:00, 2 from 20:00 (Europe/Berlin)"
    assert difference(Shape(replicas=4, size="gpu"), shape) == f"schedule none → {NIGHTLY.label()}"


@pytest.mark.parametrize(
    "steps", [(), (ScheduleStep("24:00", 1),), (ScheduleStep("07:00", -1),), (ScheduleStep("07:00", 1, ()),)]
)
def test_what_is_no_schedule_is_refused(steps: tuple[ScheduleStep, ...]) -> None:
    with pytest.raises(ValueError, match=r"schedule|time"):
        Schedule(steps)


@given(
    st.lists(
        st.builds(
            lambda minute, count, days: ScheduleStep(
                f"{minute // 60:02d}:{minute % 60:02d}", count, tuple(sorted(days))
            ),
            st.integers(0, 1439),
            st.integers(0, 9),
            st.sets(st.integers(0, 6), min_size=1),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda step: step.minute,
    ),
    st.integers(0, 7 * 1440 - 1),
)
@settings(max_examples=60, deadline=None)
def test_the_course_of_a_week_is_what_each_moment_wants(steps: list[ScheduleStep], minute: int) -> None:
    schedule = Schedule(tuple(steps))
    monday = at("2026-01-05T00:00", "UTC")
    assert schedule.course()[minute] == schedule.replicas_at(monday + 60 * minute)
