"""Gradient boosting on calendar and lags: the load of a slot from the days and weeks before it. scikit-learn's, on histograms.

As the other profiles, it says of each slot what is known a day before, so that a whole day can be told at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from analyzers.forecast.history import DAY
from analyzers.forecast.learned import LearnedLoad
from collectors.workload import Floats

#: Lags in days.
LAGS = (1, 2, 3, 6, 7, 14, 21)
#: Seconds to fit go by the rounds; more of them did no better on the day and week curves of the tests.
ROUNDS = 80


class TreeEnsemble(LearnedLoad):
    """Regressors, each of the load up to its first slot."""

    @classmethod
    def _learner(cls, rates: Floats, start_slot: int) -> Callable[[int], _TreeModel]:
        features = _features(rates, start_slot)
        return lambda upto: _fitted(features, rates, upto)

    def _teller(self, rates: Floats, start_slot: int) -> Callable[[_TreeModel, int, int], Floats]:
        features = _features(rates, start_slot)

        def tell(model: _TreeModel, begin: int, end: int) -> Floats:
            with threadpool_limits(1, user_api="openmp"):
                return model(features[begin:end])

        return tell


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
