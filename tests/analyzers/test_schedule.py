"""Replicas by the time of day: never fewer than needed, few steps, and the cheapest of all such days."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actuators.shape import EVERY_DAY, Schedule, ScheduleStep
from analyzers.forecast.days import WEEKEND, WORKDAYS, days_of
from analyzers.forecast.forecast import forecast
from analyzers.forecast.history import DAY, DAY_S, LOADS, STEP_S, LoadHistory
from analyzers.schedule import LEAST_SLOTS, azure_autoscale, daily_course, keda_cron, least_counts, schedule_of

EACH = 8.0
SCHEDULES = [
    Schedule((ScheduleStep("07:00", 4), ScheduleStep("20:00", 2))),
    Schedule((ScheduleStep("06:50", 2), ScheduleStep("09:00", 4), ScheduleStep("22:10", 1)), "Europe/Berlin"),
    Schedule(
        (
            ScheduleStep("06:50", 4, WORKDAYS),
            ScheduleStep("20:00", 2, WORKDAYS),
            ScheduleStep("00:00", 1, WEEKEND),
            ScheduleStep("23:50", 3, (6,)),
        )
    ),
]


def steps_of(course: list[int]) -> list[tuple[int, int]]:
    return [(a, b) for a, b in zip([course[-1], *course[:-1]], course, strict=True) if a != b]


def cost(course: list[int]) -> float:
    return sum(course) + LEAST_SLOTS * len(steps_of(course))


def test_each_slot_has_the_fewest_that_carry_it_and_the_next_one() -> None:
    needed = least_counts([1.0, 9.0, 9.0, 1.0, 99.0], range(1, 5), lambda count, load: load <= EACH * count)
    assert needed == [2, 2, 2, 4, 4]


@given(st.lists(st.integers(1, 3), min_size=5, max_size=5), st.integers(2, 4), st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_the_course_is_the_cheapest_of_all(needed: list[int], most_steps: int, at_once: int) -> None:
    found = daily_course(needed, range(1, 4), most_steps, at_once)
    assert all(count >= need for count, need in zip(found, needed, strict=True))
    assert len(steps_of(found)) <= most_steps
    allowed = [
        cost(list(course))
        for course in itertools.product(range(1, max(needed) + 1), repeat=5)
        if all(c >= n for c, n in zip(course, needed, strict=True))
        and len(steps_of(list(course))) <= most_steps
        and all(abs(a - b) <= at_once for a, b in steps_of(list(course)))
    ]
    assert cost(found) == min(allowed)


def test_a_dip_that_is_not_worth_two_steps_has_none() -> None:
    needed = [3] * 10 + [2] * int(2 * LEAST_SLOTS - 1) + [3] * 10
    assert daily_course(needed, range(1, 4), 8, 2) == [3] * len(needed)


def test_a_step_up_begins_a_cold_start_before_its_slot_also_over_midnight() -> None:
    course = [2] * DAY
    course[0:40] = [3] * 40
    told = schedule_of([(EVERY_DAY, course)], "UTC", 600.0)
    assert [(s.at, s.replicas) for s in told.steps] == [("10:00", 2), ("23:50", 3)]
    apart = schedule_of([(WORKDAYS, course), (WEEKEND, [1] * DAY)], "UTC", 600.0)
    assert {(s.at, s.replicas, s.days) for s in apart.steps} == {
        ("23:50", 3, (0, 1, 2, 3, 6)),  # of the day before
        ("10:00", 2, WORKDAYS),
        ("00:00", 1, WEEKEND),
    }


def history(days: int, rate: np.ndarray) -> LoadHistory:
    """From a Monday, 0:00 UTC, on; ``rate`` by slot of a week."""
    monday = 4 * DAY_S
    rates = np.resize(rate, days * DAY)
    return LoadHistory(monday, dict.fromkeys(LOADS, rates))


def test_working_days_and_weekends_are_told_apart_once_a_week_was_seen() -> None:
    week = np.concatenate([np.full(5 * DAY, 10.0), np.full(2 * DAY, 2.0)])
    seen = history(15, week)
    found = forecast(seen, growth=1.2)
    assert found is not None
    work, weekend = days_of(seen, found, "UTC")
    assert (work.days, weekend.days) == (WORKDAYS, WEEKEND)
    assert work.upper["requests"].min() >= 10.0
    assert weekend.upper["requests"].max() < 3.0
    young = history(3, week)
    found = forecast(young, growth=1.2)
    assert found is not None
    assert [day.days for day in days_of(young, found, "UTC")] == [EVERY_DAY]


def test_slots_are_those_of_the_zone() -> None:
    rate = np.where(np.arange(7 * DAY) % DAY < DAY // 2, 1.0, 5.0)
    seen = history(3, rate)
    found = forecast(seen, growth=1.2)
    assert found is not None
    (day,) = days_of(seen, found, "Asia/Tokyo")  # nine hours ahead
    busy = day.upper["requests"] > 3.0
    first = int((12 + 9) % 24 * 3600 / STEP_S)
    assert busy[first]
    assert not busy[first - 4]


def test_without_a_season_nothing_is_known_of_days() -> None:
    seen = LoadHistory(0.0, dict.fromkeys(LOADS, np.full(DAY // 2, 3.0)))
    found = forecast(seen, growth=1.2)
    assert found is not None
    assert days_of(seen, found, "UTC") == ()


def _last(expression: str, minute: int) -> int:
    """The last minute of the week, at most ``minute``, at which that cron expression fires; as often as needed, a week before."""
    at, hour, _, _, days = expression.split()
    of_week = range(7) if days == "*" else [(int(day) - 1) % 7 for day in days.split(",")]
    fires = [day * 1440 + int(hour) * 60 + int(at) for day in of_week]
    return max([fire for fire in fires if fire <= minute] or [max(fires) - 7 * 1440])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_keda_would_keep_the_same_replicas_every_minute_of_the_week(schedule: Schedule) -> None:
    """KEDA's rule: a trigger is active from its start to its end, and the largest of the active ones counts."""
    spec = keda_cron(schedule, "chat")["spec"]
    course = schedule.course()
    for minute in range(0, 7 * 1440, 5):
        counts = [spec["minReplicaCount"]]
        for trigger in spec["triggers"]:
            told = trigger["metadata"]
            assert told["timezone"] == schedule.zone
            if _last(told["start"], minute) > _last(told["end"], minute):
                counts.append(int(told["desiredReplicas"]))
        assert max(counts) == course[minute], minute


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_azure_would_keep_the_same_replicas_every_minute_of_the_week(schedule: Schedule) -> None:
    """Azure's rule: a recurring profile is in force from its begin until another one's. As Microsoft's own client reads it."""
    client = pytest.importorskip("azure.mgmt.monitor.models", reason="Microsoft's client is not installed")
    body = azure_autoscale(schedule, "chat", "/subscriptions/s/deployments/blue", "westeurope")
    read = client.AutoscaleSettingResource.deserialize(body)
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    begins: dict[int, int] = {}
    for profile in read.profiles:
        told = profile.recurrence.schedule
        assert told.time_zone == {"UTC": "UTC", "Europe/Berlin": "W. Europe Standard Time"}[schedule.zone]
        assert profile.capacity.minimum == profile.capacity.maximum == profile.capacity.default
        begins |= {
            days.index(day) * 1440 + told.hours[0] * 60 + told.minutes[0]: int(profile.capacity.default)
            for day in told.days
        }
    course = schedule.course()
    for minute in range(0, 7 * 1440, 5):
        before = max((at for at in begins if at <= minute), default=max(begins))
        assert begins[before] == course[minute], minute


def test_what_azure_cannot_keep_is_refused() -> None:
    many = Schedule(tuple(ScheduleStep(f"{hour:02d}:00", 1 + hour % 2) for hour in range(21)))
    with pytest.raises(ValueError, match="20 profiles"):
        azure_autoscale(many, "chat", "id", "westeurope")
    with pytest.raises(ValueError, match="no name for Antarctica/Troll"):
        azure_autoscale(Schedule((ScheduleStep("07:00", 4),), "Antarctica/Troll"), "chat", "id", "westeurope")
