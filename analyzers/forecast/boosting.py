"""Gradient boosting on calendar and lags: the load of a slot from the days and weeks before it. scikit-learn's, on histograms.

As the other profiles, it says of each slot what is known a day before, so that a whole day can be told at once. What it says of the past is
said by models that had not seen it: each speaks only of slots after those that it learned from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from threadpoolctl import threadpool_limits

from analyzers.forecast.history import DAY
from collectors.workload import Floats

#: Lags in days.
LAGS = (1, 2, 3, 6, 7, 14, 21)
#: So many of the last days are told by models that had not seen them; at first each serves for so many days, and then one is made a day.
HELD_DAYS, EACH = 6, 2
#: Fewer known days teach it nothing.
LEAST_DAYS = 8
#: Seconds to fit go by the rounds; more of them did no better on the day and week curves of the tests.
ROUNDS = 80


@dataclass(frozen=True)
class TreeEnsemble:
    """Models of one load, oldest first: each from which slot on it speaks (counted from Unix time 0), and itself."""

    models: tuple[tuple[int, _TreeModel], ...]

    @classmethod
    def renewed(cls, before: Self | None, rates: Floats, start_slot: int) -> Self | None:
        """With a model that has learned all that is known, where the last one is a day old. None: too little is known.

        start_slot: of the first rate. Deterministic.
        """
        end = start_slot + rates.shape[0]
        if before is not None and end - before.models[-1][0] < DAY:
            return before
        scale = float(np.nanmean(rates)) if not np.isnan(rates).all() else 0.0
        firsts = [end] if before is not None else [end - back * DAY for back in range(HELD_DAYS, -1, -EACH)]
        if scale <= 0 or np.count_nonzero(~np.isnan(rates[: firsts[0] - start_slot])) < LEAST_DAYS * DAY:
            return before
        features = _features(rates, start_slot)
        made = [(first, _fitted(features, rates, first - start_slot)) for first in firsts]
        kept = [] if before is None else [m for m in before.models if m[0] >= end - (HELD_DAYS + EACH) * DAY]
        return cls((*kept, *made))

    def profile(self, rates: Floats, start_slot: int) -> Floats:
        """(n + DAY,) what it says of each slot; nan of those that its first model has seen."""
        features = _features(rates, start_slot)
        said = np.full(features.shape[0], math.nan)
        for i, (first, model) in enumerate(self.models):
            begin = max(0, first - start_slot)
            end = self.models[i + 1][0] - start_slot if i + 1 < len(self.models) else said.shape[0]
            if begin < end:
                with threadpool_limits(1, user_api="openmp"):
                    said[begin:end] = model(features[begin:end])
        return said


@dataclass(frozen=True)
class _TreeModel:
    """A regressor, and the features that it looks at."""

    columns: tuple[int, ...]
    regressor: Any

    def __call__(self, features: Floats) -> Floats:
        said: Floats = np.maximum(0.0, self.regressor.predict(features[:, self.columns]))
        return said


def _fitted(features: Floats, rates: Floats, upto: int) -> _TreeModel:
    from sklearn.ensemble import HistGradientBoostingRegressor  # takes a second to import, and few commands need it

    known = ~np.isnan(rates[:upto])
    seen = features[:upto][known]
    columns = tuple(i for i, column in enumerate(seen.T) if np.unique(column[~np.isnan(column)]).size > 1)
    regressor = HistGradientBoostingRegressor(
        loss="absolute_error", max_iter=ROUNDS, min_samples_leaf=20, early_stopping=False, random_state=0
    )
    with threadpool_limits(
        1, user_api="openmp"
    ):  # its threads spin at each barrier: on shared cores one is faster than two
        return _TreeModel(columns, regressor.fit(seen[:, columns], rates[:upto][known]))


def _features(rates: Floats, start_slot: int) -> Floats:
    """(n + DAY, features): lags, their middle, the time of day and the day of the week. nan: not known, which trees take as it is."""
    n = rates.shape[0] + DAY
    lagged = []
    for days in LAGS:
        column = np.full(n, math.nan)
        if days * DAY < n:
            column[days * DAY :] = rates[: n - days * DAY]
        lagged.append(column)
    slot = start_slot + np.arange(n)
    of_day, of_week = slot % DAY, (slot // DAY + 3) % 7  # Unix time 0 was a Thursday
    week = np.stack(lagged[:5])
    some = ~np.isnan(week).all(axis=0)
    middle = np.full(n, math.nan)
    middle[some] = np.nanmedian(week[:, some], axis=0)
    angle = 2 * np.pi * of_day / DAY
    columns = [*lagged, middle, np.sin(angle), np.cos(angle), of_day.astype(float), of_week.astype(float)]
    found: Floats = np.stack(columns, axis=1)
    return found
