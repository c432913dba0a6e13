"""The load to come: what each history supports, and what it does not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzers.forecast.forecast import UNSEEN_DAY, forecast
from analyzers.forecast.history import DAY, STEP_S, LoadHistory, LoadSpan

GROWTH = 1.2


def day_curve(at_s: float) -> float:
    return 16.0 * (1 + 0.8 * math.sin(2 * math.pi * at_s / 86_400))


def week_curve(at_s: float) -> float:
    return day_curve(at_s) * (0.3 if int(at_s // 86_400) % 7 >= 5 else 1.0)


def history(days: float, rate: Callable[[float], float], noise: float = 0.05, seed: int = 1) -> LoadHistory:
    rng = np.random.default_rng(seed)
    n = int(days * DAY)
    rates = np.array([rate((i + 0.5) * STEP_S) for i in range(n)]) * np.exp(rng.normal(0, noise, n))
    return LoadHistory(0.0, {"requests": rates, "prompt_tokens": 100 * rates, "output_tokens": rates * math.nan})


def to_come(seen: LoadHistory, rate: Callable[[float], float]) -> np.ndarray:
    return np.array([rate(seen.end + (i + 0.5) * STEP_S) for i in range(DAY)])


def test_without_a_whole_day_the_largest_load_seen_stands_for_what_may_come() -> None:
    seen = history(0.5, day_curve)
    found = forecast(seen, growth=GROWTH)
    assert found is not None
    assert found.season_s is None
    assert found.model == "largest load seen"
    high = found.bands["requests"].high
    assert np.all(high == pytest.approx(seen.largest("requests") * GROWTH * (1 + 0.5 * (UNSEEN_DAY - 1))))
    assert "output_tokens" not in found.bands  # not known, and not zero


def test_nothing_known_is_no_forecast() -> None:
    assert forecast(LoadHistory.of([], 0.0), growth=GROWTH) is None
    assert forecast(history(2, lambda _: math.nan), growth=GROWTH) is None


def test_after_a_day_the_same_hours_of_yesterday_come_again() -> None:
    seen = history(1.0, day_curve)
    found = forecast(seen, growth=GROWTH)
    assert found is not None
    assert found.season_s == 86_400
    assert found.bands["requests"].mid == pytest.approx(seen.rates["requests"])
    assert found.bands["requests"].high == pytest.approx(
        GROWTH * seen.rates["requests"], rel=0.05
    )  # no residual tells yet


@pytest.mark.parametrize(
    ("days", "rate"), [(4.0, day_curve), (10.0, day_curve), (10.0, week_curve), (21.5, week_curve)]
)
def test_the_interval_holds_most_of_what_comes(days: float, rate: Callable[[float], float]) -> None:
    held, error = [], []
    for seed in range(8):
        seen = history(days, rate, seed=seed)
        found = forecast(seen, growth=GROWTH)
        assert found is not None
        band = found.bands["requests"]
        came = to_come(seen, rate) * np.exp(np.random.default_rng(100 + seed).normal(0, 0.05, DAY))
        held.append(np.mean((came >= band.low) & (came <= band.high)))
        error.append(np.abs(came - band.mid).sum() / came.sum())
    assert 0.72 <= float(np.mean(held)) <= 0.97
    assert float(np.mean(error)) < 0.08


def test_a_weekend_is_told_from_the_week_before() -> None:
    seen = history(12.0, week_curve)  # the next day is a Saturday
    found = forecast(seen, growth=GROWTH)
    assert found is not None
    assert found.season_s == 7 * 86_400
    truth = to_come(seen, week_curve)
    assert np.abs(found.bands["requests"].mid - truth).sum() / truth.sum() < 0.1


def test_before_a_week_was_seen_the_largest_of_the_days_bounds_a_monday() -> None:
    def from_friday(at_s: float) -> float:
        return day_curve(at_s) * (0.3 if int(at_s // 86_400) in (1, 2) else 1.0)

    seen = history(3.0, from_friday)  # Friday, Saturday, Sunday
    found = forecast(seen, growth=GROWTH)
    assert found is not None
    assert np.all(found.bands["requests"].high >= 0.99 * seen.rates["requests"][:DAY])


def test_a_model_takes_the_bars_place_only_by_its_backtest() -> None:
    def growing(at_s: float) -> float:
        return day_curve(at_s) * (1 + 0.05 * at_s / 86_400)

    found = forecast(history(20.0, growing), growth=GROWTH)
    assert found is not None
    assert "today's level" in found.model
    assert found.error is not None
    assert found.error < found.backtest[0].error
    steady = forecast(history(20.0, week_curve, noise=0.0), growth=GROWTH)
    assert steady is not None
    assert steady.model == steady.backtest[0].model == "same hour last week"  # nothing betters it by enough


def test_gaps_stay_gaps_and_are_no_quiet_hours() -> None:
    seen = history(5.0, day_curve)
    rates = seen.rates["requests"].copy()
    rates[3 * DAY + 20 : 3 * DAY + 30] = math.nan
    rates[4 * DAY + 40 : 4 * DAY + 44] = math.nan
    found = forecast(LoadHistory(0.0, {**seen.rates, "requests": rates}), growth=GROWTH)
    assert found is not None
    truth = to_come(seen, day_curve)
    assert np.all(found.bands["requests"].high[40:44] > 0.8 * truth[40:44])


@given(
    st.lists(st.one_of(st.floats(0, 1e4), st.just(math.nan)), min_size=1, max_size=4 * DAY),
    st.integers(1, DAY),
)
@settings(max_examples=60, deadline=None)
def test_whatever_was_seen_the_interval_is_ordered_and_the_same_again(values: list[float], slots: int) -> None:
    rates = np.array(values)
    seen = LoadHistory(0.0, {"requests": rates, "prompt_tokens": rates, "output_tokens": rates})
    found = forecast(seen, growth=GROWTH, slots=slots)
    if np.isnan(rates).all():
        assert found is None
        return
    assert found is not None
    assert found.slots == slots
    for band in found.bands.values():
        assert np.all(band.low >= 0)
        assert np.all(band.low <= band.mid + 1e-9)
        assert np.all(band.mid <= band.high + 1e-9)
        assert np.all(np.isfinite(band.high))
    again = forecast(seen, growth=GROWTH, slots=slots)
    assert again is not None
    assert again.model == found.model
    assert np.array_equal(again.bands["requests"].high, found.bands["requests"].high)


def span(
    start: float, duration_s: float, requests: float | None, *, coverage: float = 1.0, backlog: float | None = None
) -> LoadSpan:
    return LoadSpan(start, duration_s, coverage, requests, None, None, backlog)


def test_a_slot_is_what_was_asked_in_the_time_that_was_seen() -> None:
    spans = [span(0, 300, 300.0), span(300, 300, 150.0, coverage=0.5), span(600, 300, None), span(900, 300, 60.0)]
    seen = LoadHistory.of(spans, 1800.0)
    assert seen.rates["requests"][0] == pytest.approx(450.0 / 450.0)
    assert math.isnan(seen.rates["requests"][1])  # a third of it is not half
    assert seen.seen_s == STEP_S
    assert LoadHistory.of(spans, 899.0).slots == 0  # only what is over


def test_what_a_full_server_answers_is_not_what_was_asked_of_it() -> None:
    spans = [span(300 * i, 300, 300.0, backlog=100.0 + 60 * i) for i in range(3)]
    assert LoadHistory.of(spans, 900.0).rates["requests"][0] == pytest.approx((900 + 120) / 900)
