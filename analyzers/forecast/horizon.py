"""The load to come of one endpoint, and when its shape could be changed again. Pure values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from analyzers.forecast.days import DayDemand
from analyzers.forecast.forecast import Forecast
from analyzers.forecast.history import LEAST_SEEN, LOADS, STEP_S
from analyzers.objective import mean_rate, told_s
from collectors.window import Window
from collectors.workload import Floats


@dataclass(frozen=True, slots=True)
class Horizon:
    """What a shape must carry until the next change could be made, and after it."""

    forecast: Forecast
    windows: Sequence[Window]
    """The busiest hour seen: the traffic that is replayed for the load to come, at a multiple of its rate."""
    lead_s: float
    """From an analysis that calls for more to a replica that serves: repeated analyses, a person's answer, the cold start."""
    cooldown_s: float
    """After a change, none is made for so long."""
    may_change: tuple[bool, ...] = ()
    """Slot by slot of the forecast, whether a change window is open. Empty: always."""
    recent_changes: int = 0
    """Changes made in the last day."""
    carried: bool = False
    """Whether the present shape served ``windows``, and met the objective."""

    ended: Mapping[str, float] = field(default_factory=dict)
    """By name in ``LOADS``: the upper end, per second, that was forecast for the slot that has ended before it began. Empty: none was."""
    start_s: float = 0.0
    """A replica that is asked for serves after so long."""
    days: tuple[DayDemand, ...] = ()
    """What each kind of day brings. Empty: no season is known."""

    def demand(self) -> Floats | None:
        """(slots,) the upper end of the load to come, as a multiple of the busiest slot of ``windows``. None: it is not known."""
        return self.multiple({name: band.high for name, band in self.forecast.bands.items()})

    def multiple(self, rates: Mapping[str, Floats]) -> Floats | None:
        """Rates by name in ``LOADS`` as a multiple of the busiest slot of ``windows``: of requests, prompt tokens and output tokens the one
        that is most. None: none is known."""
        found = [
            each / rate
            for name in LOADS
            if (each := rates.get(name)) is not None and (rate := busiest_rate(self.windows, name))
        ]
        return np.max(np.stack(found), axis=0) if found else None

    def beyond(self, windows: Sequence[Window], end: float) -> float:
        """What came in the last quarter of an hour before ``end``, as a multiple of the most that was to be expected, where it is more; else 1.

        The day to come is then taken to be so much more as well: whatever made it so (longer answers, a launch) is not in its season.
        """
        recent = [w for w in windows if w.end > end - STEP_S]
        expected, before = self.demand(), self._of(self.ended)
        now = self._of({name: rate for name in LOADS if (rate := mean_rate(recent, name)) is not None})
        if expected is None or before is None or now is None or told_s(recent, "requests") < LEAST_SEEN * STEP_S:
            return 1.0
        usual = max(float(expected[0]), before)
        return max(1.0, now / usual) if usual > 0 else 1.0

    def _of(self, rates: Mapping[str, float]) -> float | None:
        """One slot's rates, as ``multiple``."""
        found = self.multiple({name: np.array([rate]) for name, rate in rates.items()})
        return None if found is None else float(found[0])

    def slots(self, seconds: float) -> int:
        """So many slots hold that time, the one that has begun included."""
        return 1 + math.ceil(seconds / STEP_S)

    def open(self, slot: int) -> bool:
        return not self.may_change or self.may_change[slot]


def busiest_rate(windows: Sequence[Window], name: str) -> float | None:
    """Per second in the busiest slot of the windows, which the load of other slots is compared with: an hour with a burst in it is not
    as busy as the burst on average. None: it is not known."""
    slots: dict[int, list[Window]] = {}
    for window in windows:
        slots.setdefault(int(window.start // STEP_S), []).append(window)
    rates = [mean_rate(several, name) for several in slots.values() if told_s(several, name) >= LEAST_SEEN * STEP_S]
    return max((rate for rate in rates if rate is not None), default=mean_rate(windows, name))
