"""Which minutes of Azure Monitor are read: those that have settled and were not read yet. What all three of its sources share."""

from __future__ import annotations

import math

from collectors.clock import Clock

MINUTE = 60.0
#: So far back is asked for what could not be read before.
BACK_S = 3600.0


class SettledMinutes:
    """By key of what is read: where to go on."""

    def __init__(self, clock: Clock, lag_s: float) -> None:
        """lag_s: how late the numbers of a minute may be, in seconds."""
        self._clock = clock
        self._lag_s = lag_s
        self.settles_s = lag_s + MINUTE
        self._next: dict[str, float] = {}
        """The first minute that was not read yet."""

    def end(self) -> float:
        """Unix seconds: minutes that end by then have settled."""
        return math.floor((self._clock.now() - self._lag_s) / MINUTE) * MINUTE

    def first(self, key: str, end: float) -> float:
        """From where on ``key`` is to be read: what was not read yet, and the newest minute in any case."""
        newest = end - MINUTE
        return min(newest, max(self._next.get(key, newest), end - BACK_S))

    def read(self, key: str, end: float) -> None:
        """It was read up to ``end``."""
        self._next[key] = end
