"""Usage reports as spans: one a minute, minutes late. Knows no provider's names."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence

from collectors.base import Scope, ScrapeTarget
from collectors.clock import Clock
from collectors.modelapis.client import UsageMinute
from collectors.window import Reading, Span

MINUTE = 60.0
#: So far back is asked for what could not be read before.
_BACK_S = 3600.0
Report = Callable[[float, float], Awaitable[list[UsageMinute]]]


class UsageCollector:
    """One endpoint: a project's or a workspace's use of one model. See ``collectors.base.Collector``."""

    interval_s: float | None = MINUTE
    deadline_s: float | None = 90.0
    scope: Scope = "endpoint"

    def __init__(self, source: str, clock: Clock, lag_s: float, report: Report, facts: dict[str, str]) -> None:
        """report: the minutes of an interval (Unix seconds)."""
        self.source = source
        self.settles_s = lag_s + 2 * MINUTE
        self._clock, self._lag_s, self._report, self._facts = clock, lag_s, report, facts
        self._next: float | None = None

    async def read(self, target: ScrapeTarget) -> Sequence[Reading | Span]:
        """The minutes that have settled since the last read, and the newest of them in any case. Raises CollectError."""
        end = math.floor((self._clock.now() - self._lag_s) / MINUTE) * MINUTE
        first = end - MINUTE if self._next is None else min(self._next, end - MINUTE)
        minutes = await self._report(max(first, end - _BACK_S), end)
        self._next = end
        told = {minute.start: minute for minute in minutes if first <= minute.start < end}
        return [Span(target.name, at, at + MINUTE, counts=told[at].counts, facts=self._facts) for at in sorted(told)]
