"""What is learned of a load takes the bar's place only where it was better on days that it had not seen."""

from __future__ import annotations

import numpy as np
import pytest

from analyzers.forecast import learned
from analyzers.forecast.boosting import TreeEnsemble
from analyzers.forecast.forecast import LEARNERS, forecast, learned_forecast
from analyzers.forecast.history import DAY, DAY_S, LOADS, STEP_S, LoadHistory
from analyzers.forecast.learned import EACH, LearnedLoad
from analyzers.forecast.statistical import SeasonalTrend
from collectors.workload import Floats

MONDAY = 4 * DAY_S
needs_statsforecast = pytest.mark.skipif(not SeasonalTrend.installed(), reason="the extra forecast is not installed")
each_learner = pytest.mark.parametrize(
    "learner", [TreeEnsemble, pytest.param(SeasonalTrend, marks=needs_statsforecast)]
)
BOOSTED = "gradient boosting"


class Uninstalled(SeasonalTrend):
    @classmethod
    def installed(cls) -> bool:
        return False


def history(rates: Floats) -> LoadHistory:
    return LoadHistory(MONDAY, dict.fromkeys(LOADS, rates))


def curve(days: int, seed: int = 1, noise: float = 0.02) -> Floats:
    """A day curve, a weekend at a third of it."""
    slots = np.arange(days * DAY)
    day = 10.0 * (1 + 0.8 * np.sin(2 * np.pi * slots / DAY))
    level = np.where(slots // DAY % 7 >= 5, 0.3, 1.0)
    return day * level * np.exp(np.random.default_rng(seed).normal(0.0, noise, slots.size))


def every_third(days: int) -> Floats:
    """Every third day is busy: what neither yesterday nor last week tells."""
    slots = np.arange(days * DAY)
    return np.where(slots // DAY % 3 == 0, 3.0, 1.0) * (5.0 + np.sin(2 * np.pi * slots / DAY))


@pytest.fixture
def two_models(monkeypatch: pytest.MonkeyPatch) -> int:
    """Fewer models at first: each costs a second. How many days are held back then."""
    monkeypatch.setattr(learned, "HELD_DAYS", EACH)
    return EACH


@each_learner
def test_it_speaks_only_of_what_it_had_not_seen_and_of_the_day_to_come(
    learner: type[LearnedLoad], two_models: int
) -> None:
    rates = curve(20)
    found = learner.renewed(None, rates, 0)
    assert found is not None
    said = found.profile(rates, 0)
    assert said.shape[0] == rates.shape[0] + DAY
    first = rates.shape[0] - two_models * DAY
    assert np.isnan(said[:first]).all()
    assert not np.isnan(said[first:]).any()
    changed = rates.copy()
    changed[first:] *= 100.0  # what comes later teaches the first model nothing
    again = learner.renewed(None, changed, 0)
    assert again is not None
    assert again.profile(rates, 0)[first : first + EACH * DAY] == pytest.approx(
        said[first : first + EACH * DAY], rel=1e-6
    )


@each_learner
@pytest.mark.usefixtures("two_models")
def test_a_model_a_day_is_made_and_the_old_ones_speak_on(learner: type[LearnedLoad]) -> None:
    rates = curve(22)
    first = learner.renewed(None, rates[: 20 * DAY], 0)
    assert first is not None
    assert learner.renewed(first, rates[: 20 * DAY + DAY // 2], 0) is first
    second = learner.renewed(first, rates[: 21 * DAY], 0)
    assert second is not None
    assert second.models[-1][0] == 21 * DAY
    before, after = (each.profile(rates[: 21 * DAY], 0) for each in (first, second))
    assert before[: 21 * DAY] == pytest.approx(after[: 21 * DAY], nan_ok=True)


def test_it_is_chosen_where_it_is_better_and_not_where_the_bar_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEARNERS, "seasons and trend", Uninstalled)  # type: ignore[misc]
    found, models = learned_forecast(history(every_third(28)), 1.2, {})
    assert found is not None
    assert found.model == BOOSTED
    assert set(models[BOOSTED]) == set(LOADS)
    plain = forecast(history(every_third(28)), growth=1.2)
    assert plain is not None
    truth = every_third(29)[-DAY:]
    better, bar = (float(np.abs(f.bands["requests"].mid - truth).mean()) for f in (found, plain))
    assert better < 0.5 * bar
    flat, models = learned_forecast(history(curve(28, noise=0.0)), 1.2, {})
    assert flat is not None
    assert flat.model != BOOSTED, "last week tells it all"
    assert set(models[BOOSTED]) == {"requests"}


@each_learner
def test_with_too_little_nothing_is_learned(learner: type[LearnedLoad]) -> None:
    assert learner.renewed(None, curve(10), 0) is None
    assert learner.renewed(None, np.full(20 * DAY, np.nan), 0) is None
    assert learner.renewed(None, np.zeros(20 * DAY), 0) is None


@each_learner
@pytest.mark.usefixtures("two_models")
def test_the_same_history_teaches_the_same(learner: type[LearnedLoad]) -> None:
    rates = curve(20)
    one, two = (learner.renewed(None, rates, 5) for _ in range(2))
    assert one is not None
    assert two is not None
    assert np.array_equal(one.profile(rates, 5), two.profile(rates, 5), equal_nan=True)
    assert STEP_S * DAY == DAY_S


@needs_statsforecast
def test_a_trend_over_the_seasons_is_what_statsforecast_is_chosen_for() -> None:
    """A load that grows by a tenth each day: the same hour of any day before is too low."""
    growing = curve(29, noise=0.01) * 1.1 ** (np.arange(29 * DAY) / DAY)
    seen = LoadHistory(MONDAY, dict.fromkeys(LOADS, np.full(28 * DAY, np.nan)) | {"requests": growing[: 28 * DAY]})
    found, _ = learned_forecast(seen, 1.2, {})
    assert found is not None
    assert found.model == "seasons and trend"
    assert {score.model for score in found.backtest} >= set(LEARNERS)
    truth = growing[-DAY:]
    bar = forecast(seen, growth=1.2)
    assert bar is not None
    better, plain = (float(np.abs(f.bands["requests"].mid - truth).mean()) for f in (found, bar))
    assert better < plain
