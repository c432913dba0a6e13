"""A choice that knows the load to come: it grows before the morning, and shrinks only as far as the night allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from actuators.shape import EVERY_DAY, Autoscaling, Schedule, ScheduleStep, Shape
from analyzers.findings import analyze
from analyzers.forecast.days import DayDemand
from analyzers.forecast.forecast import Forecast, forecast
from analyzers.forecast.history import DAY, STEP_S, LoadHistory
from analyzers.forecast.horizon import Horizon
from analyzers.policy import Catalogue, Policy, most_replicas
from analyzers.prediction import CannotPredict, Prediction, Refusal
from analyzers.recommend import QUIET, Decision, before_the_load, recommend
from analyzers.situation import Situation
from collectors.window import Window
from tests.analyzers.situations import HOUR, Whole, hour, promise, situation

CATALOGUE = Catalogue(prices={"small": 1.0, "big": 1.5})
POLICY = Policy(max_replicas=4, sizes=["big"])
#: Requests a second that one small replica carries; a big one carries twice as many.
EACH = 8.0


def days(begins_h: float, *, seen: float = 3.0, swing: float = 0.8) -> Forecast:
    """Of a load with a mean of 16/s that is at its mean and rises at midnight; what comes begins at an hour of the day."""
    end = seen * 86_400 + begins_h * 3600
    at = np.arange(0.0, end, STEP_S) + STEP_S / 2
    rates = 16 * (1 + swing * np.sin(2 * math.pi * at / 86_400))
    found = forecast(
        LoadHistory(0.0, {"requests": rates, "prompt_tokens": 100 * rates, "output_tokens": 50 * rates}), growth=1.2
    )
    assert found is not None
    return found


def busiest(rate: float = 28.8) -> list[Window]:
    return hour(requests=60 * rate)


def serves(now: float, coming: float = 28.8, *, unknown: Sequence[str] = ()) -> Whole:
    """Slow where a replica has more to carry than it can; ``now`` a second are observed, and the busiest hour had ``coming``."""

    def of(rate: float) -> Whole:
        def predict(shape: Shape, factor: float) -> Prediction:
            if shape.size in unknown:
                raise CannotPredict("NO_EVIDENCE", "nothing is known of it")
            carried = (most_replicas(shape) or 0) * EACH * (2 if shape.size == "big" else 1)
            return promise(0.3 if factor * rate <= carried else 5.0, saturates=0.0 if factor * rate <= carried else 1.0)

        made = Whole(predict)
        object.__setattr__(made, "under", lambda _windows: of(coming))
        return made

    return of(now)


def decide(now: float, replicas: int, found: Forecast, *, provisional: bool = False, **other: object) -> Decision:
    ahead = Horizon(found, busiest(), 1800.0, 3600.0, **other)  # type: ignore[arg-type]
    s = situation(
        hour(requests=60 * now, running=None),
        policy=POLICY,
        shape=Shape(replicas=replicas, size="small"),
        horizon=ahead,
        wanted_s=3 * HOUR if provisional else HOUR,
    )
    return recommend(s, analyze(s), CATALOGUE, serves(now, unknown=("big",)))


def codes(decision: Decision) -> list[str]:
    advice = decision.recommendation
    return [r.code for r in (advice.reasons if advice is not None else decision.hold)]


def test_in_the_evening_it_shrinks_only_when_the_night_would_be_carried_until_the_next_change() -> None:
    rate = 16 * (
        1 + 0.8 * math.sin(2 * math.pi * 9 / 24)
    )  # at nine hours: 25/s, falling; 1.2 times that would need all four
    early = decide(rate, 4, days(9.0))
    assert codes(early) == ["RIGHT_SIZE"]
    late = decide(13.0, 4, days(13.0))
    assert late.recommendation is not None
    assert late.recommendation.proposed.shape.replicas == 2
    reason = next(r for r in late.recommendation.reasons if r.code == "LESS_WOULD_DO")
    assert "same hour yesterday" in reason.text
    assert "4 replicas again from about" in reason.text
    assert late.recommendation.risk != "high"


def test_where_the_changes_of_a_day_are_spent_it_says_so_and_not_that_the_size_is_right() -> None:
    assert codes(decide(13.0, 4, days(13.0), recent_changes=1)) == ["LESS_WOULD_DO"]
    spent = decide(13.0, 4, days(13.0), recent_changes=2)
    assert codes(spent) == ["CHANGES_SPENT"]
    assert "2 changes were made within the last day" in spent.hold[0].text
    assert spent.hold[0].numbers == {"replicas": 2.0, "changes": 2.0}
    assert codes(decide(25.0, 4, days(9.0), recent_changes=2)) == ["RIGHT_SIZE"]


def test_at_night_it_does_not_shrink_for_a_morning_that_it_could_not_meet() -> None:
    assert codes(decide(5.0, 2, days(21.5))) == [
        "RIGHT_SIZE"
    ]  # one replica would do for the last hour, and not for the next two


def test_before_the_morning_it_asks_for_what_the_morning_takes_also_while_evidence_is_short() -> None:
    for provisional in (False, True):
        found = decide(14.3, 2, days(23.5), provisional=provisional)
        assert found.recommendation is not None
        assert found.recommendation.direction == "grow"
        assert found.recommendation.proposed.shape.replicas == 4
        assert codes(found) == ["LOAD_COMING"]
        assert "30 min" in found.recommendation.reasons[0].text


def test_before_the_morning_of_a_night_without_requests_too() -> None:
    def s(found: Forecast, windows: Sequence[Window] | None = None) -> Situation:
        seen = hour(requests=0.0, ttft=(), running=0.0) if windows is None else windows
        ahead = Horizon(found, busiest(), 1800.0, 3600.0)
        return situation(seen, policy=POLICY, shape=Shape(replicas=1, size="small"), horizon=ahead)

    morning, night = days(23.5, swing=0.99), days(17.0, swing=0.99)
    for found, wanted in ((morning, 3), (night, None)):
        quiet = s(found)
        findings = analyze(quiet)
        assert {f.reason.code for f in findings if f.kind == "insufficient_data"} <= QUIET
        decision = before_the_load(quiet, findings, CATALOGUE, serves(0.1, unknown=("big",)))
        advice = None if decision is None else decision.recommendation
        assert (None if advice is None else advice.proposed.shape.replicas) == wanted
    assert decision is None
    unseen = s(morning, windows=[])
    assert (
        before_the_load(unseen, analyze(unseen), CATALOGUE, serves(0.1)) is None
    )  # nothing was read: that is no quiet hour


def test_what_cannot_be_told_is_no_reason_to_change_anything() -> None:
    found = situation(
        hour(requests=60 * 14.3, running=None), policy=POLICY, shape=Shape(replicas=2, size="small"),
        horizon=Horizon(days(23.5), busiest(), 1800.0, 3600.0),
    )  # fmt: skip
    known = serves(14.3, unknown=("big",))
    object.__setattr__(
        known, "under", lambda _windows: Refusal(CannotPredict("NO_EVIDENCE", "the busiest hour tells no lengths"))
    )
    assert codes(recommend(found, analyze(found), CATALOGUE, known)) == ["RIGHT_SIZE"]


def test_more_is_wanted_where_more_is_proposed() -> None:
    found = decide(14.3, 2, days(23.5))
    assert found.standing([]) == ("too_small", "proposed: replicas 2 → 4")


def test_a_load_that_the_present_shape_has_carried_calls_for_nothing() -> None:
    steady = days(0.0, swing=0.0)  # 16/s for ever: what two replicas carry by the model's middle, and nothing beyond
    s_high = replace(steady, bands={n: replace(b, high=b.high * 1.02) for n, b in steady.bands.items()})
    ahead = {"windows": busiest(16.0)}
    carried = Horizon(s_high, ahead["windows"], 1800.0, 3600.0, carried=True)
    not_seen = replace(carried, carried=False)
    for horizon, expected in ((carried, ["RIGHT_SIZE"]), (not_seen, ["LOAD_COMING"])):
        s = situation(
            hour(requests=60 * 16.0, running=None),
            policy=POLICY,
            shape=Shape(replicas=2, size="small"),
            horizon=horizon,
        )
        assert codes(recommend(s, analyze(s), CATALOGUE, serves(16.0, 16.0, unknown=("big",)))) == expected


def test_another_size_must_carry_the_whole_day() -> None:
    s = situation(
        hour(requests=60 * 13.0, running=None), policy=POLICY, shape=Shape(replicas=4, size="small"),
        horizon=Horizon(days(13.0), busiest(), 1800.0, 3600.0),
    )  # fmt: skip
    found = recommend(s, analyze(s), CATALOGUE, serves(13.0))
    verdicts = {(o.shape.size, o.shape.replicas): o.verdict for o in found.options}
    assert found.recommendation is not None
    assert (
        found.recommendation.proposed.shape.replicas == 2
    )  # two small ones by night: 2 $/h; two big ones by day and night: 3 $/h
    assert found.recommendation.proposed.shape.size == "small"
    assert verdicts.get(("big", 1)) != "MEETS"


def test_without_a_season_the_largest_load_seen_bounds_it_and_the_risk_says_so() -> None:
    half = days(12.0, seen=0.0)  # from midnight to noon: the peak was seen
    assert half.season_s is None
    assert codes(decide(14.0, 4, half)) == ["RIGHT_SIZE"]
    calm = replace(half, bands={n: replace(b, high=b.high / 16) for n, b in half.bands.items()})
    found = decide(5.0, 4, calm)
    assert found.recommendation is not None
    assert found.recommendation.direction == "shrink"
    assert found.recommendation.risk == "high"
    assert any("no season is known" in line for line in found.recommendation.risk_reasons)


def test_of_an_autoscaled_shape_the_bounds_must_carry_the_day() -> None:
    shape = Shape(size="small", autoscaling=Autoscaling(1, 4))
    windows = [replace(w, targets=3) for w in hour(requests=60 * 13.0, running=None)]
    s = situation(
        windows, policy=Policy(max_replicas=4), shape=shape, horizon=Horizon(days(13.0), busiest(), 1800.0, 3600.0)
    )
    found = recommend(s, analyze(s), CATALOGUE, serves(13.0))
    assert found.recommendation is None  # three at most would not carry the next noon


@pytest.mark.parametrize(
    ("big_usd", "unknown", "size"),
    [(1.5, (), "big"), (2.5, (), "small"), (None, (), "small"), (1.5, ("big",), "small")],
)
def test_a_schedule_is_of_the_size_that_costs_least(big_usd: float | None, unknown: tuple[str, ...], size: str) -> None:
    """A big replica carries as much as two small ones: by day two of them, one by night, at one and a half times the price."""
    found = days(13.0)
    each = DayDemand(EVERY_DAY, "UTC", {name: band.high for name, band in found.bands.items()})
    ahead = Horizon(found, busiest(), 1800.0, 3600.0, start_s=300.0, days=(each,))
    s = situation(
        hour(requests=60 * 13.0, running=None), policy=POLICY, shape=Shape(replicas=4, size="small"), horizon=ahead
    )
    catalogue = Catalogue(prices={"small": 1.0, "big": big_usd})
    advice = recommend(s, analyze(s), catalogue, serves(13.0, unknown=unknown)).recommendation
    assert advice is not None
    shape = advice.proposed.shape
    assert shape.schedule is not None
    assert shape.size == size
    assert (shape.schedule.least, shape.schedule.most) == ((1, 2) if size == "big" else (1, 4))
    assert shape.replicas == 2, "as far as one step may go, and no further than the clock's count"
    assert (" of big" in advice.reasons[-1].text) == (size == "big")


def test_what_comes_beyond_the_season_is_taken_to_go_on() -> None:
    """At 13:00 of a day curve, falling: two replicas would do for the evening; with half as much again as was to be expected, none goes."""
    found = days(13.0)
    top = float(found.bands["requests"].high[-1])
    ended = {"requests": top, "prompt_tokens": 100 * top, "output_tokens": 50 * top}
    ahead = Horizon(found, busiest(), 1800.0, 3600.0, ended=ended)
    usual, more = (hour(requests=60 * rate, running=None) for rate in (0.9 * top, 1.5 * top))
    assert ahead.beyond(usual, HOUR) == 1.0
    assert ahead.beyond(more, HOUR) == pytest.approx(1.5, rel=0.05)
    assert ahead.beyond([*usual[:-5], *more[-5:]], HOUR) < 1.2, "a quarter of an hour, and not a window"
    longer = hour(requests=60 * 0.9 * top, running=None, tokens=(100.0, 100.0))
    assert ahead.beyond(longer, HOUR) == pytest.approx(1.8, rel=0.05), "twice as long answers are twice the load"
    assert ahead.beyond([], HOUR) == 1.0
    assert replace(ahead, ended={}).beyond(more, HOUR) == 1.0, "nothing was forecast of it"
    assert decide(0.9 * top, 4, found, ended=ended).recommendation is not None
    assert decide(1.5 * top, 4, found, ended=ended).recommendation is None


def test_a_schedule_is_held_at_what_comes_beyond_its_season() -> None:
    """One replica by the clock, and one by the forecast: what comes now takes two, and was not to be expected."""
    schedule = Schedule((ScheduleStep("06:00", 4), ScheduleStep("18:00", 1)))
    found = days(18.0)
    top = float(found.bands["requests"].high[0])
    shape = Shape(replicas=1, size="small", schedule=schedule)
    for rate, count in ((0.9 * top, None), (3.0 * top, 2)):
        ended = {"requests": top, "prompt_tokens": 100 * top, "output_tokens": 50 * top}
        ahead = Horizon(found, busiest(), 1800.0, 3600.0, ended=ended, start_s=300.0)
        s = situation(hour(requests=60 * rate, running=None), policy=POLICY, shape=shape, horizon=ahead)
        hold = recommend(s, analyze(s), CATALOGUE, serves(1.0)).schedule_hold
        assert (None if hold is None else hold.replicas) == count, rate


def test_a_schedule_at_its_most_is_held_there_where_the_clock_is_about_to_take_some_away() -> None:
    """Four replicas at 17:50, one by the clock from 18:00 on: what comes is three times what was to be expected."""
    schedule = Schedule((ScheduleStep("00:00", 4), ScheduleStep("18:00", 1)))
    found = days(17.75)
    top = float(found.bands["requests"].high[0])
    shape = Shape(replicas=4, size="small", schedule=schedule)
    for rate, count in ((0.9 * top, None), (3.0 * top, 2)):
        ended = {"requests": top, "prompt_tokens": 100 * top, "output_tokens": 50 * top}
        ahead = Horizon(found, busiest(), 1800.0, 3600.0, ended=ended, start_s=300.0)
        s = situation(hour(requests=60 * rate, running=None), policy=POLICY, shape=shape, horizon=ahead)
        hold = recommend(s, analyze(s), CATALOGUE, serves(1.0)).schedule_hold
        assert (None if hold is None else hold.replicas) == count, rate


@pytest.mark.parametrize("begins", range(0, 24, 3))
def test_more_traffic_never_recommends_a_smaller_shape(begins: int) -> None:
    found = days(float(begins))
    more = replace(found, bands={n: replace(b, high=b.high * 1.4) for n, b in found.bands.items()})
    now = 16 * (1 + 0.8 * math.sin(2 * math.pi * begins / 24))

    def replicas(of: Forecast) -> int:
        advice = decide(now, 4, of).recommendation
        return 4 if advice is None else advice.proposed.shape.replicas or 0

    assert replicas(more) >= replicas(found)


def test_the_forecast_of_a_day_is_a_day() -> None:
    assert days(0.0).slots == DAY
