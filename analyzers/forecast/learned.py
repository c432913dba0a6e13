"""A load that was learned: models made one after the other, of which each speaks only of slots after those that it learned from.

So what it says of the past was said by models that had not seen it, and may be tested on it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from analyzers.forecast.history import DAY
from collectors.workload import Floats

#: So many of the last days are told by models that had not seen them; at first each serves for so many days, and then one is made a day.
HELD_DAYS, EACH = 6, 2
#: Fewer known days teach nothing.
LEAST_DAYS = 8


@dataclass(frozen=True)
class LearnedLoad(ABC):
    """Models of one load, oldest first: each from which slot on it speaks (counted from Unix time 0), and itself."""

    models: tuple[tuple[int, Any], ...]

    @classmethod
    def installed(cls) -> bool:
        """Whether what it needs is there."""
        return True

    @classmethod
    def renewed(cls, before: LearnedLoad | None, rates: Floats, start_slot: int) -> Self | None:
        """With a model that has learned all that is known, where the last one is a day old. None: too little is known.

        before: of the same class. start_slot: of the first rate. Deterministic.
        """
        assert before is None or isinstance(before, cls)
        end = start_slot + rates.shape[0]
        if before is not None and end - before.models[-1][0] < DAY:
            return before
        scale = float(np.nanmean(rates)) if not np.isnan(rates).all() else 0.0
        firsts = [end] if before is not None else [end - back * DAY for back in range(HELD_DAYS, -1, -EACH)]
        if scale <= 0 or np.count_nonzero(~np.isnan(rates[: firsts[0] - start_slot])) < LEAST_DAYS * DAY:
            return before
        fit = cls._learner(rates, start_slot)
        made = [(first, fit(first - start_slot)) for first in firsts]
        kept = [] if before is None else [m for m in before.models if m[0] >= end - (HELD_DAYS + EACH) * DAY]
        return cls((*kept, *made))

    def profile(self, rates: Floats, start_slot: int) -> Floats:
        """(n + DAY,) what it says of each slot; nan of those that its first model has seen."""
        said = np.full(rates.shape[0] + DAY, math.nan)
        tell = self._teller(rates, start_slot)
        for i, (first, model) in enumerate(self.models):
            begin = max(0, first - start_slot)
            end = self.models[i + 1][0] - start_slot if i + 1 < len(self.models) else said.shape[0]
            if begin < end:
                said[begin:end] = tell(model, begin, end)
        return said

    @classmethod
    @abstractmethod
    def _learner(cls, rates: Floats, start_slot: int, /) -> Callable[[int], Any]:
        """Makes a model of the first so many rates."""

    @abstractmethod
    def _teller(self, rates: Floats, start_slot: int, /) -> Callable[[Any, int, int], Floats]:
        """Says a model's rates of the slots from the second number to the third, counted from the first rate."""
