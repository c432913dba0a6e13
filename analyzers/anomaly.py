"""What is unlike its season: five minutes of an endpoint beside the same hour of the days before, all figures together.

How figures lie together about their season is learned from the older half of the history: a robust covariance (Rousseeuw and Van Driessen
1999, "A Fast Algorithm for the Minimum Covariance Determinant Estimator"), whose distance grows with what was never seen, which a forest's
does not. The newer half, which it has not seen, says how strange a usual slot looks (split conformal): the share of it that is at least as
strange is a probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from analyzers.finding import Finding, Reason
from analyzers.situation import Situation
from collectors.workload import Floats

SLOT_S = 300.0
DAY_S, HOUR_S = 86_400.0, 3600.0
#: Slots of history without which no season is known: three days.
LEAST_SLOTS = 864
#: So many slots in a row must each be as strange as this: with independent slots one false alarm in 40,000, half a year of them.
IN_A_ROW, ALPHA = 2, 0.005
#: Figures that fewer slots than this share tell are left out.
_TOLD = 0.8
#: Of the figures that are furthest from their season, so many are named; and none that is nearer than so many deviations.
_NAMED, _FAR = 2, 3.0
#: A figure's least deviation, and an unrest that is laid over all of them, in deviations: one that never moved has a covariance, too.
_LEAST_SPREAD, _UNREST = 0.05, 0.1

#: Figures, as they are called. Each is a rate, a time or a length, and its logarithm is compared.
FEATURES: Mapping[str, str] = {
    "requests_per_s": "requests/s",
    "prompt_tokens": "prompt tokens a request",
    "output_tokens": "output tokens a request",
    "ttft_p50_s": "the median time to first token",
    "ttft_p95_s": "ttft_p95_s",
    "itl_p50_s": "the median gap between tokens",
    "error_rate": "the share of errors",
    "waiting": "waiting requests",
}
#: Added before the logarithm where a figure can be 0.
_FLOORS = {"requests_per_s": 0.01, "error_rate": 0.001, "waiting": 0.1}


@dataclass(frozen=True, slots=True)
class SlotFigures:
    """Five minutes."""

    start: float
    values: Mapping[str, float]
    """Of ``FEATURES``; what is not known is absent."""


@dataclass(frozen=True, slots=True)
class SeasonModel:
    """How figures lie together at each hour of the day, and how strange a usual slot looks."""

    names: tuple[str, ...]
    usual: Floats
    """(24, features): medians of the logarithms, by hour of the day."""
    spread: Floats
    """(features,): median absolute deviation from those."""
    together: Any
    """scikit-learn's ``MinCovDet``."""
    distances: Floats
    """(n,) of slots that it has not learned from, ascending; a greater one is stranger."""

    @classmethod
    def of(cls, history: Sequence[SlotFigures], seed: int) -> Self | None:
        """From slots in order. None: too few tell enough, or some hour of the day was not seen."""
        names = tuple(n for n in FEATURES if sum(n in h.values for h in history) >= _TOLD * max(1, len(history)))
        known = [h for h in history if all(n in h.values for n in names)]
        if len(known) < LEAST_SLOTS or not names:
            return None
        table, hours = _table(known, names), _hours(known)
        if len(set(hours)) < 24:
            return None
        usual = np.stack([np.median(table[hours == hour], axis=0) for hour in range(24)])
        rest = table - usual[hours]
        spread = np.maximum(1.4826 * np.median(np.abs(rest), axis=0), _LEAST_SPREAD)
        scaled = rest / spread
        half = len(known) // 2
        from sklearn.covariance import MinCovDet  # takes a second to import, and few analyses need it

        unrest = np.random.default_rng(seed).normal(0.0, _UNREST, scaled[:half].shape)
        together = MinCovDet(random_state=seed).fit(scaled[:half] + unrest)
        return cls(names, usual, spread, together, np.sort(together.mahalanobis(scaled[half:])))

    def probabilities(self, slots: Sequence[SlotFigures]) -> Floats:
        """(n,) how often a usual slot is at least as strange; NaN where a figure is not known."""
        found: Floats = np.full(len(slots), math.nan)
        known = [i for i, slot in enumerate(slots) if all(n in slot.values for n in self.names)]
        if known:
            distances, n = self.together.mahalanobis(self._scaled([slots[i] for i in known])), self.distances.shape[0]
            found[known] = (1 + n - np.searchsorted(self.distances, distances, "left")) / (1 + n)
        return found

    def far(self, slot: SlotFigures) -> list[tuple[str, float, float, float]]:
        """The figures that are furthest from their season: name, value, usual value, deviations."""
        (scaled,) = self._scaled([slot])
        hour = _hours([slot])[0]
        order = np.argsort(-np.abs(scaled))[:_NAMED]
        return [
            (
                self.names[i],
                slot.values[self.names[i]],
                max(0.0, math.exp(float(self.usual[hour, i])) - _FLOORS.get(self.names[i], 0.0)),
                float(scaled[i]),
            )
            for i in order
            if abs(scaled[i]) >= _FAR
        ]

    def _scaled(self, slots: Sequence[SlotFigures]) -> Floats:
        scaled: Floats = (_table(slots, self.names) - self.usual[_hours(slots)]) / self.spread
        return scaled


def _table(slots: Sequence[SlotFigures], names: Sequence[str]) -> Floats:
    rows = [[max(h.values[n], 0.0) + _FLOORS.get(n, 0.0) for n in names] for h in slots]
    return np.log(np.maximum(np.array(rows, dtype=np.float64), 1e-9))


def _hours(slots: Sequence[SlotFigures]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([int(h.start % DAY_S // HOUR_S) for h in slots], dtype=np.int64)


def anomaly(s: Situation, season: SeasonModel, latest: Sequence[SlotFigures]) -> Finding | None:
    """Whether the last slots are all unlike their season. What is not known is no anomaly."""
    last = latest[-IN_A_ROW:]
    if len(last) < IN_A_ROW:
        return None
    found = season.probabilities(last)
    if not bool(np.all(found <= ALPHA)):
        return None
    named = season.far(last[-1])
    parts = [f"{FEATURES[name]} {value:.3g}, at this hour usually {usual:.3g}" for name, value, usual, _ in named]
    what = "; ".join(parts) if parts else "its figures do not go together as they do otherwise"
    text = f"unlike the same hour of the days before for {IN_A_ROW * SLOT_S / 60:.0f} min: {what}"
    numbers = {"probability": float(found.max()), "alpha": ALPHA} | {
        f"{name}_deviations": off for name, _, _, off in named
    }
    return Finding(s.endpoint, "anomaly", "info", Reason("UNLIKE_ITS_SEASON", text, numbers), s.evidence)
