"""The replicas of the next day: never too few for what comes, and no more changes than are worth it."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from analyzers.forecast.forecast import Forecast
from analyzers.forecast.history import DAY, STEP_S
from analyzers.forecast.horizon import Horizon
from analyzers.path import GRID, Capacities, ReplicaPath, replica_path
from analyzers.policy import Policy

EACH = 8.0  #: what one replica carries


def carries(count: int, load: float, surely: bool) -> bool:
    return load <= count * EACH * (0.95 if surely else 1.0)


def horizon(
    *, season: bool = True, lead_s: float = 1800.0, may_change: tuple[bool, ...] = (), **other: object
) -> Horizon:
    found = Forecast(0.0, "same hour yesterday", 86_400.0 if season else None, {}, 86_400.0)
    return Horizon(found, (), lead_s, 3600.0, may_change, **other)  # type: ignore[arg-type]


def day(phase_h: float = 0.0, swing: float = 0.8) -> np.ndarray:
    return 16.0 * (1 + swing * np.sin(2 * np.pi * (np.arange(DAY) / DAY + phase_h / 24)))


def path(
    demand: np.ndarray, present: int, *, most: int = 4, worth: float = 40.0, changes: int = 2, **other: object
) -> ReplicaPath:
    h, policy = horizon(**other), Policy(max_changes_per_day=changes)  # type: ignore[arg-type]
    return replica_path(h, demand, present, range(1, most + 1), policy, carries, worth)


def carried(demand: np.ndarray, counts: tuple[int, ...]) -> bool:
    return all(load <= n * EACH for load, n in zip(demand, counts, strict=True))


def test_a_day_has_one_smaller_night_and_carries_all_of_its_load() -> None:
    demand = day()
    found = path(demand, 4)
    changes = [(i, b) for i, (a, b) in enumerate(zip(found.counts, found.counts[1:], strict=False)) if a != b]
    assert len(changes) == 2
    assert carried(demand, found.counts)
    assert min(found.counts) == 2  # one step of two, and not down to one and up again in four
    assert found.now == 4


def test_it_shrinks_in_the_evening_only_when_the_load_allows_it_until_the_next_change() -> None:
    first = next(i for i in range(DAY) if path(np.roll(day(), -i), 4).now < 4)
    demand = np.roll(day(), -first)
    ahead = demand[: 1 + math.ceil((3600 + 1800) / STEP_S)]
    assert ahead.max() <= 2 * EACH * 0.95
    assert demand[0] < day()[0]  # past the middle of the day's fall


def test_it_grows_before_the_load_comes() -> None:
    night = np.roll(day(), -int(0.75 * DAY))  # begins at the least load
    at = next(i for i in range(DAY) if path(np.roll(night, -i), 2).now > 2)
    too_much = next(i for i in range(DAY) if night[i] > 2 * EACH)
    assert at * STEP_S + 1800 <= too_much * STEP_S  # with the lead to spare
    assert too_much - at <= 4  # and not hours before


def test_without_a_season_nothing_grows_and_the_largest_seen_bounds_what_shrinks() -> None:
    assert path(np.full(DAY, 4 * EACH), 2, season=False).now == 2
    assert path(np.full(DAY, 1.5 * EACH), 4, season=False).now == 2
    assert path(np.full(DAY, 2.5 * EACH), 4, season=False).now == 3


def test_a_saving_that_is_not_worth_it_changes_nothing() -> None:
    dip = np.full(DAY, 3.5 * EACH)
    dip[2:12] = 1.0
    assert path(dip, 4).counts == (4,) * DAY
    assert min(path(dip, 4, worth=5.0).counts) < 4


def test_changes_are_made_only_in_change_windows() -> None:
    by_day = tuple(32 <= i < 72 for i in range(DAY))
    found = path(np.roll(day(), -24), 4, may_change=by_day)
    changes = [i for i, (a, b) in enumerate(zip(found.counts, found.counts[1:], strict=False), 1) if a != b]
    assert all(by_day[i] for i in changes)


def test_a_days_changes_are_spent_once() -> None:
    evening = np.roll(day(), -int(0.6 * DAY))
    assert path(evening, 4).now < 4
    assert path(evening, 4, recent_changes=2).now == 4


def test_what_was_carried_and_met_the_objective_is_taken_to_be_carried() -> None:
    full = np.full(DAY, 1.0)  # multiples of the busiest hour

    def hopeless(_count: int, _load: float, _surely: bool) -> bool:
        return False

    h = horizon(carried=True)
    assert replica_path(h, full, 2, range(1, 5), Policy(), hopeless, 1.0).now == 2
    assert replica_path(horizon(), full, 2, range(1, 5), Policy(), hopeless, 1.0).now == 4


@given(
    st.integers(1, 6),
    st.integers(0, DAY - 1),
    st.floats(0.0, 0.95),
    st.floats(4.0, 30.0),
    st.floats(0.0, 7200.0),
)
@example(5, 44, 0.6875, 28.0, 0.0)
@settings(max_examples=30, deadline=None)
def test_never_outside_the_bounds_and_never_less_for_more_load(
    present: int, shift: int, swing: float, mean: float, lead_s: float
) -> None:
    """Where changes are scarce, a day of more load may begin its night sooner, to have one left for the morning; never beyond what
    carries the load until the next change."""
    demand = np.roll(day(swing=swing) / 16 * mean, shift)
    for times in (1.0, 1.3):
        found = path(times * demand, present, most=6, lead_s=lead_s)
        assert all(1 <= n <= 6 for n in found.counts)
        assert abs(found.now - present) <= Policy().max_step_replicas
        if found.now < present:
            assert times * demand[: 1 + math.ceil((3600 + lead_s) / STEP_S)].max() <= found.now * EACH
    less, more = (path(k * demand, present, most=6, lead_s=lead_s, changes=16, worth=0.0) for k in (1.0, 1.3))
    assert more.now >= less.now


def test_of_a_large_fleet_only_what_a_day_can_reach_is_asked() -> None:
    asked: set[int] = set()

    def ask(count: int, load: float, surely: bool) -> bool:
        asked.add(count)
        return carries(count, load, surely)

    found = replica_path(horizon(), 30 * day(), 100, range(1, 401), Policy(), ask, 10.0)
    assert asked <= set(range(94, 107))
    assert max(found.counts) == 106  # 108 would be needed at noon


def test_few_questions_answer_many() -> None:
    asked: list[tuple[int, float]] = []

    def ask(count: int, load: float, surely: bool) -> bool:
        asked.append((count, load))
        return carries(count, load, surely)

    known = Capacities()
    for shift in range(0, DAY, 8):
        demand = np.roll(day(), -shift)
        replica_path(
            horizon(),
            demand,
            4,
            range(1, 5),
            Policy(),
            lambda n, load, sure: known.carries(n, load, sure, ask),
            10.0,
        )
    assert len(asked) < 60
    assert len(asked) == len(set(asked)) or len(asked) <= 2 * len(set(asked))
    for count in range(1, 5):
        for load in (0.0, 3.0, 7.0, 15.0, 31.0):
            if known.carries(count, load, False, ask):
                assert load <= count * EACH
            else:
                assert load * GRID > count * EACH
