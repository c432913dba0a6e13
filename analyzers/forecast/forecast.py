"""The load of the next day, from the same hours of the days and weeks before; with an interval that its own backtest gives.

Until a whole day was seen there is no season: then the largest load seen is what may come again, and more where little was seen.
Seasonal-naive is the bar: a model that does better in the backtest of this very endpoint takes its place, and no other. Source of the
bar and of the backtest by rolling origin: Hyndman and Athanasopoulos, "Forecasting: Principles and Practice", 5.2 and 5.10; of the
interval from the residuals' own order: Vovk et al., split conformal prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from analyzers.forecast.boosting import TreeEnsemble
from analyzers.forecast.bursts import burst_ratio, surroundings
from analyzers.forecast.history import DAY, DAY_S, FLOOR, LOADS, STEP_S, WEEK, LoadHistory
from analyzers.forecast.learned import LearnedLoad
from analyzers.forecast.statistical import SeasonalTrend
from collectors.workload import Floats

#: Models that are learned of an endpoint's own load, by the names that they are shown under.
LEARNERS: Mapping[str, type[LearnedLoad]] = {"gradient boosting": TreeEnsemble, "seasons and trend": SeasonalTrend}
#: Share of a day's slots that must be known for it to be a season.
WHOLE = 0.8
#: A slot's load lies below ``low`` one time in ten, and above ``high`` one time in ten.
TAIL = 0.1
#: The level of today beside the season's is taken from so many slots, and is forgotten by half in so many.
LEVEL_SLOTS, LEVEL_HALF_LIFE = 8, 24
#: Today's level is trusted within these.
LEAST_LEVEL, MOST_LEVEL = 0.5, 2.0
#: A model takes the bar's place where its backtest error is less by this share, and by this much of the load.
BETTER, CLEARLY = 0.02, 0.001
#: The backtest: from these leads, over origins so far apart, of so many days.
LEADS = (1, 2, 4, 8, 16, 32, 64, 96)
ORIGIN_STEP, BACKTEST_DAYS = 4, 14
#: Distinct slots below which residuals say too little: until then the policy's growth bounds the interval, less and less.
LEAST_RESIDUALS = 24
#: Up to this lead the interval is that of short leads.
SHORT = 8
#: Until a day was seen, its rest may bring so many times the largest load seen, at the very beginning; less as more of it is seen. An office
#: that opens, or a day curve, has ten times its night.
UNSEEN_DAY = 10.0


@dataclass(frozen=True, slots=True)
class LoadBand:
    """(n,) each, per second, slot by slot: an 80 % interval and its middle."""

    low: Floats
    mid: Floats
    high: Floats


@dataclass(frozen=True, slots=True)
class BacktestScore:
    """One model on this endpoint's own past."""

    model: str
    error: float
    """Sum of absolute errors over the sum of what came."""
    forecasts: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """The load of the ``n`` slots from ``start`` on."""

    start: float
    """Unix seconds; also the end of what was seen."""
    model: str
    season_s: float | None
    """Seconds after which the load repeats; None: no season is known yet, and the largest load seen stands for it."""
    bands: Mapping[str, LoadBand]
    """By name in ``LOADS``; one that is not known is absent."""
    seen_s: float
    backtest: tuple[BacktestScore, ...] = ()
    """The bar first. Empty: too little was seen to test any."""
    held: float | None = None
    """Share of the backtest in which the interval held what came, of the model chosen. None: not tested."""
    burst: float = 1.0
    """So many times the usual requests of its hours may come at any time, for a short while: the upper ends hold that. 1: no habit of it."""

    @property
    def slots(self) -> int:
        return int(self.bands["requests"].mid.shape[0]) if "requests" in self.bands else 0

    @property
    def error(self) -> float | None:
        """Backtest error of the model chosen; None: not tested."""
        return next((score.error for score in self.backtest if score.model == self.model), None)


#: By the learner's name and by name in ``LOADS``.
Learned = Mapping[str, Mapping[str, LearnedLoad]]


def forecast(
    history: LoadHistory, *, growth: float, slots: int = DAY, learned: Learned | None = None
) -> Forecast | None:
    """The next ``slots`` (at most a day). growth: what a load may grow by, as long as no residuals tell. None: nothing is known.

    learned: what was learned of the endpoint; each is tried beside the others once the requests' is there.
    Deterministic: the same history and models, the same forecast.
    """
    if not 1 <= slots <= DAY:
        raise ValueError(f"slots ({slots}) must be 1 to {DAY}")
    if history.largest("requests") is None:
        return None
    requests = history.rates["requests"]
    if not _has_season(requests):
        bands = {name: band for name in LOADS if (band := _largest_seen(history, name, slots, growth)) is not None}
        return Forecast(history.end, "largest load seen", None, bands, history.seen_s)
    bar = _BAR_OF_WEEKS if _weeks_known(requests) else _BAR_OF_DAYS
    scores = _backtest(requests, bar)
    best = min(scores, key=lambda score: score.error, default=None)
    chosen = bar if best is None or best.error > scores[0].error * (1 - BETTER) - CLEARLY else best.model
    start_slot = round(history.start / STEP_S)
    said: dict[str, dict[str, Floats]] = {
        model: {name: each.profile(history.rates[name], start_slot) for name, each in loads.items()}
        for model, loads in (learned or {}).items()
    }
    for model in said if scores else ():
        better = _learned_score(requests, (chosen, said), (model, said))
        if better is not None:
            scores.append(better[0])
            chosen = model if better[1] else chosen
    bands, held = {}, None
    for name in LOADS:
        profile = said.get(chosen, {}).get(name)
        model = bar if chosen in said and profile is None else chosen
        found = _banded(history.rates[name], model, slots, growth, profile)
        if found is not None:
            bands[name], share = found
            held = share if name == "requests" else held
    season_s = 7 * DAY_S if chosen in (*_OF_WEEKS, *LEARNERS) else DAY_S
    return Forecast(history.end, chosen, season_s, bands, history.seen_s, tuple(scores), held, burst_ratio(requests))


def learned_forecast(history: LoadHistory, growth: float, before: Learned) -> tuple[Forecast | None, Learned]:
    """The next day, with the learners that are installed tried; and what they learned, to be given back the next time: a model is made
    once a day.

    The tokens' models are made only where the requests' is better than all others.
    """
    start_slot = round(history.start / STEP_S)

    def learned(model: str, *names: str) -> dict[str, LearnedLoad]:
        known = before.get(model, {})
        found = {name: LEARNERS[model].renewed(known.get(name), history.rates[name], start_slot) for name in names}
        return {name: each for name, each in found.items() if each is not None}

    now = {model: learned(model, "requests") for model, learner in LEARNERS.items() if learner.installed()}
    found = forecast(history, growth=growth, learned=now)
    if found is not None and found.model in now:
        now[found.model] |= learned(found.model, *(name for name in LOADS if name != "requests"))
        found = forecast(history, growth=growth, learned=now)
    return found, {model: {**before.get(model, {}), **loads} for model, loads in now.items()}


def _has_season(rates: Floats) -> bool:
    return rates.shape[0] >= DAY and float(np.mean(~np.isnan(rates[-DAY:]))) >= WHOLE


def _weeks_known(rates: Floats) -> bool:
    """Whether the same hours a week ago are known, of the day to come and of the one that was."""
    return rates.shape[0] >= WEEK + DAY and float(np.mean(~np.isnan(rates[-WEEK - DAY : -WEEK + DAY]))) >= WHOLE


def _largest_seen(history: LoadHistory, name: str, slots: int, growth: float) -> LoadBand | None:
    largest = history.largest(name)
    if largest is None:
        return None
    known = history.rates[name][~np.isnan(history.rates[name])]
    unseen = 1.0 + (UNSEEN_DAY - 1.0) * max(0.0, 1.0 - history.seen_s / DAY_S)
    level = (float(known.min()), float(known[-4:].mean()), largest * growth * unseen)
    return LoadBand(*(np.full(slots, value) for value in level))


# -- profiles: what the days before say of a slot; known for every slot up to a day beyond the last one seen --------------------------

_Profile = Callable[[Floats], Floats]


def _lagged(rates: Floats, lag: int) -> Floats:
    """(n + DAY,) the value ``lag`` slots before; nan where there is none. lag >= DAY."""
    n = rates.shape[0] + DAY
    found = np.full(n, math.nan)
    if lag < n:
        found[lag:] = rates[: n - lag]
    return found


def _day_before(rates: Floats) -> Floats:
    return _lagged(rates, DAY)


def _days_before(rates: Floats) -> Floats:
    return _middle([_lagged(rates, k * DAY) for k in range(1, 8)])


def _week_before(rates: Floats) -> Floats:
    return _lagged(rates, WEEK)


def _weeks_before(rates: Floats) -> Floats:
    return _middle([_lagged(rates, k * WEEK) for k in range(1, 5)])


def _middle(lagged: list[Floats]) -> Floats:
    """Of the values known, slot by slot."""
    stacked = np.stack(lagged)
    known = ~np.isnan(stacked).all(axis=0)
    found = np.full(stacked.shape[1], math.nan)
    found[known] = np.nanmedian(stacked[:, known], axis=0)
    return found


_BAR_OF_DAYS, _BAR_OF_WEEKS = "same hour yesterday", "same hour last week"
_PROFILES: Mapping[str, tuple[_Profile, bool]] = {
    _BAR_OF_DAYS: (_day_before, False),
    f"{_BAR_OF_DAYS}, at today's level": (_day_before, True),
    "same hours of a week's days": (_days_before, False),
    "same hours of a week's days, at today's level": (_days_before, True),
    _BAR_OF_WEEKS: (_week_before, False),
    f"{_BAR_OF_WEEKS}, at today's level": (_week_before, True),
    "same hours of four weeks": (_weeks_before, False),
    "same hours of four weeks, at today's level": (_weeks_before, True),
}
_OF_WEEKS = frozenset(name for name, (profile, _) in _PROFILES.items() if profile in (_week_before, _weeks_before))


def _own_profile(rates: Floats, model: str, learned: Floats | None) -> Floats:
    if model in LEARNERS:
        assert learned is not None
        return learned
    return _PROFILES[model][0](rates)


def _levels(model: str) -> bool:
    """Whether it is told at today's level."""
    return model not in LEARNERS and _PROFILES[model][1]


def _profile(rates: Floats, model: str, learned: Floats | None) -> Floats:
    """(n + DAY,) the model's profile; where it knows nothing, yesterday's, or the largest known."""
    found = _own_profile(rates, model, learned)
    for other in (_days_before(rates), np.full(found.shape, float(np.nanmax(rates)))):
        found = np.where(np.isnan(found), other, found)
    return found


def _level(rates: Floats, profile: Floats, origin: int) -> float:
    """What came in the last slots before ``origin``, over what the profile says of them."""
    begin = max(0, origin - LEVEL_SLOTS)
    came, said = rates[begin:origin], profile[begin:origin]
    known = ~np.isnan(came) & ~np.isnan(said)
    if not known.any() or said[known].sum() <= 0:
        return 1.0
    return float(np.clip(came[known].sum() / said[known].sum(), LEAST_LEVEL, MOST_LEVEL))


def _points(rates: Floats, profile: Floats, model: str, origin: int, at: np.ndarray) -> Floats:
    """(k,) forecasts made at ``origin`` of the slots ``at``."""
    points: Floats = profile[at]
    if _levels(model):
        points = points * _level(rates, profile, origin) ** (0.5 ** ((at - origin) / LEVEL_HALF_LIFE))
    return points


# -- the backtest ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Past:
    """(k,) each: forecasts that would have been made, and what came."""

    at: np.ndarray
    lead: np.ndarray
    said: Floats
    came: Floats


def _past(rates: Floats, model: str, learned: Floats | None = None) -> _Past:
    """From the first slot of which the model's own profile speaks; of the last days only, which weigh what is now."""
    profile = _own_profile(rates, model, learned)
    n = rates.shape[0]
    first = max(DAY, n - BACKTEST_DAYS * DAY)
    parts: list[tuple[np.ndarray, np.ndarray, Floats]] = []
    for origin in range(n - ORIGIN_STEP, first - 1, -ORIGIN_STEP):
        lead = np.array([k for k in LEADS if origin + k - 1 < n])
        at = origin + lead - 1
        parts.append((at, lead, _points(rates, profile, model, origin, at)))
    if not parts:
        empty = np.zeros(0)
        return _Past(empty.astype(np.int64), empty.astype(np.int64), empty, empty)
    at, lead, said = (np.concatenate(column) for column in zip(*parts, strict=True))
    known = ~np.isnan(said) & ~np.isnan(rates[at])
    return _Past(at[known], lead[known], said[known], rates[at][known])


def _backtest(rates: Floats, bar: str) -> list[BacktestScore]:
    """Each model's error, on forecasts that all of them could have made; the bar first. Empty where there are too few."""
    names = [bar, *(m for m in _PROFILES if m != bar and (bar == _BAR_OF_WEEKS or m not in _OF_WEEKS))]
    pasts = {name: _past(rates, name) for name in names}
    bar_past = pasts[bar]
    if np.unique(bar_past.at).size < LEAST_RESIDUALS:
        return []
    if bar == _BAR_OF_WEEKS and np.ptp(bar_past.at) < WEEK - DAY:  # of a few days' backtest, none may be a Sunday
        pasts = {name: past for name, past in pasts.items() if name in _OF_WEEKS}
    wide = max(LEADS) + 1
    common = bar_past.at * wide + bar_past.lead  # each forecast's own number
    scores = []
    for name, past in pasts.items():
        mine = np.isin(past.at * wide + past.lead, common)
        total = float(np.abs(past.came[mine]).sum())
        if np.count_nonzero(mine) < common.size or total <= 0:
            continue
        error = float(np.abs(past.came[mine] - past.said[mine]).sum()) / total
        scores.append(BacktestScore(name, error, int(np.count_nonzero(mine))))
    return scores


#: A model's name, and what each learner says by load.
_Said = tuple[str, Mapping[str, Mapping[str, Floats]]]


def _learned_score(rates: Floats, best: _Said, tried: _Said) -> tuple[BacktestScore, bool] | None:
    """The error of ``tried`` where it had not seen what came, and whether the best so far did clearly worse there. None: too little of that."""
    if "requests" not in tried[1][tried[0]]:
        return None
    others, mine = (_past(rates, model, said.get(model, {}).get("requests")) for model, said in (best, tried))
    wide = max(LEADS) + 1
    shared = np.isin(others.at * wide + others.lead, mine.at * wide + mine.lead)
    same = np.isin(mine.at * wide + mine.lead, others.at * wide + others.lead)
    total = float(np.abs(mine.came[same]).sum())
    if np.unique(mine.at[same]).size < LEAST_RESIDUALS or total <= 0:
        return None
    error = float(np.abs(mine.came[same] - mine.said[same]).sum()) / total
    theirs = float(np.abs(others.came[shared] - others.said[shared]).sum()) / total
    score = BacktestScore(tried[0], error, int(np.count_nonzero(same)))
    return score, error <= theirs * (1 - BETTER) - CLEARLY


def _banded(
    rates: Floats, model: str, slots: int, growth: float, learned: Floats | None = None
) -> tuple[LoadBand, float | None] | None:
    """The interval of the next slots, and the share of the backtest in which such an interval held. None: the load is not known."""
    if np.isnan(rates).all():
        return None
    n = rates.shape[0]
    mid = _points(rates, _profile(rates, model, learned), model, n, n + np.arange(slots))
    past = _past(rates, model, learned)
    floor = FLOOR * float(np.nanmean(rates))
    ratios = (past.came + floor) / (past.said + floor) if floor > 0 else np.ones(past.said.shape)
    low, high = np.full(slots, 1.0 / growth), np.full(slots, growth)
    held: list[np.ndarray] = []
    near = past.lead <= SHORT
    of_leads = [(near, slice(0, SHORT)), (~near, slice(SHORT, slots))]
    if not _levels(model):  # it says the same however long before
        of_leads = [(np.ones(past.lead.shape, dtype=bool), slice(0, slots))]
    for of_past, of_next in of_leads:
        seen = np.unique(past.at[of_past]).size
        if not seen:
            continue
        ends = _order(ratios[of_past], TAIL), _order(ratios[of_past], 1 - TAIL)
        prior = growth ** max(0.0, 1.0 - seen / LEAST_RESIDUALS)  # which few residuals do not yet take the place of
        low[of_next], high[of_next] = min(1 / prior, ends[0]), max(prior, ends[1])
        if seen >= LEAST_RESIDUALS:
            held.append((ratios[of_past] >= ends[0]) & (ratios[of_past] <= ends[1]))
    noise = 1.28 * np.sqrt(mid / STEP_S)  # of a Poisson count: one time in ten above
    top = float(np.nanmax(rates)) * growth  # no more than the most that was ever seen, grown
    upper = np.minimum(np.maximum((mid + floor) * high - floor, mid + noise), max(top, float(mid.max())))
    if not _weeks_known(rates):  # what day of the week a day is like is not known yet
        days = np.stack([_lagged(rates, k * DAY)[n : n + slots] for k in range(1, 8)])
        upper = np.maximum(upper, np.nanmax(np.vstack([days, upper]), axis=0))
    burst = burst_ratio(rates)
    if burst > 1.0:
        upper = np.fmax(upper, burst * surroundings(mid))
    lower = np.maximum(0.0, np.minimum((mid + floor) * low - floor, mid - noise))
    return LoadBand(lower, mid, upper), float(np.concatenate(held).mean()) if held else None


def _order(values: Floats, share: float) -> float:
    """The order statistic that a new value lies beyond with the wanted probability, whatever the distribution (split conformal)."""
    ordered, n = np.sort(values), values.shape[0]
    at = math.ceil((n + 1) * share) if share > 0.5 else math.floor((n + 1) * share)
    return float(ordered[min(max(at, 1), n) - 1])
