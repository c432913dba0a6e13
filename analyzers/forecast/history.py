"""What was asked of an endpoint, slot by slot. Pure values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from collectors.workload import Floats

#: Seconds of one slot. Short enough that a climb in the morning shows, long enough that a handful of requests a minute is no noise.
STEP_S = 900.0
DAY_S = 86_400.0
#: Slots in a day.
DAY = int(DAY_S / STEP_S)
WEEK = 7 * DAY
#: Of a load this share of its mean is noise to a ratio: next to nothing against nothing is not infinitely wrong.
FLOOR = 0.02
#: What a load is measured in, each per second.
LOADS = ("requests", "prompt_tokens", "output_tokens")
#: A slot of which less was observed is unknown.
LEAST_SEEN = 0.5


class LoadSpan(NamedTuple):
    """One stored window, as far as load goes."""

    start: float
    duration_s: float
    coverage: float
    requests: float | None
    prompt_tokens: float | None
    output_tokens: float | None
    backlog: float | None
    """Requests that ran or waited, on average. None: not told."""


@dataclass(frozen=True, slots=True)
class LoadHistory:
    """Rates in slots of ``STEP_S`` seconds, each on its multiple, oldest first."""

    start: float
    """Unix seconds at which the first slot begins."""
    rates: Mapping[str, Floats]
    """By name in ``LOADS``: (n,) per second; nan: unknown."""

    @classmethod
    def of(cls, spans: Sequence[LoadSpan], end: float) -> LoadHistory:
        """From windows in order; only slots that are over at ``end`` (Unix seconds).

        Requests are those that came: those that ended, and those by which the backlog grew. What a full server answers is what it can
        carry, and not what is asked of it.
        """
        last = int(end // STEP_S)
        first = int(spans[0].start // STEP_S) if spans else last
        n = max(0, last - first)
        told = {name: np.zeros(n) for name in LOADS}
        sums = {name: np.zeros(n) for name in LOADS}
        grown = _growth(spans)
        for span, more in zip(spans, grown, strict=True):
            at, seconds = int(span.start // STEP_S) - first, span.coverage * span.duration_s
            if not 0 <= at < n:
                continue
            for name in LOADS:
                value = getattr(span, name)
                if value is None:
                    continue
                scale = (value + more) / value if value > 0 and name == "requests" else 1.0
                told[name][at] += seconds
                sums[name][at] += value * scale
        rates = {}
        for name in LOADS:
            seen = told[name] >= LEAST_SEEN * STEP_S
            rates[name] = np.where(seen, np.maximum(0.0, sums[name]) / np.where(seen, told[name], 1.0), math.nan)
        return cls(first * STEP_S, rates)

    @property
    def end(self) -> float:
        return self.start + self.slots * STEP_S

    @property
    def slots(self) -> int:
        return int(self.rates["requests"].shape[0])

    @property
    def seen_s(self) -> float:
        """Seconds in which the request rate is known."""
        return float(np.count_nonzero(~np.isnan(self.rates["requests"]))) * STEP_S

    def largest(self, name: str) -> float | None:
        """The largest rate of any slot; None: none is known."""
        known = self.rates[name][~np.isnan(self.rates[name])]
        return float(known.max()) if known.size else None


def _growth(spans: Sequence[LoadSpan]) -> list[float]:
    """(n,) requests by which the backlog grew over each span, as its means tell it."""
    found: list[float] = []
    before: LoadSpan | None = None
    for span in spans:
        more = 0.0
        follows = before is not None and math.isclose(before.start + before.duration_s, span.start)
        if before is not None and follows and before.backlog is not None and span.backlog is not None:
            # Means are of the middle of each span: so much of the growth between the middles is this span's.
            more = (span.backlog - before.backlog) * 2 * span.duration_s / (before.duration_s + span.duration_s)
        found.append(more)
        before = span
    return found
