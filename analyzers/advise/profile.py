"""What traffic is like: its rate, its tokens, and the conditions that can be seen in it, each with the figure that shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analyzers.advise.options import Condition
from collectors.workload import Floats, Workload

#: Minutes without a request from which on an idle instance may as well go, and the share of them from which on traffic is spaced out.
IDLE_S, SPARSE_SHARE = 300.0, 0.5
#: The busiest minute in a hundred over the mean one, beyond what chance brings: from here on there are peaks, and below, none.
PEAKED, EVEN = 3.0, 1.5
#: Requests of one ten-second span, of the busiest in a hundred: more are many at once.
AT_ONCE_S, MANY = 10.0, 100.0
#: Shorter traffic says nothing of how steady it is.
LEAST_STEADY_S = 3600.0


@dataclass(frozen=True, slots=True)
class TrafficProfile:
    requests: int
    span_s: float
    """From 0 to the last arrival."""
    prompt_tokens: float
    """Mean of a request, as the next two."""
    cached_prompt_tokens: float
    output_tokens: float
    minutes: Floats
    """(m,) requests per second of each minute, ascending; of the one span where there is no whole minute."""
    idle_share: float
    """Of spans of ``IDLE_S``, those without a request."""
    at_once: float
    """Requests within ``AT_ONCE_S``, of the busiest such span in a hundred."""

    @property
    def rate_per_s(self) -> float:
        return self.requests / self.span_s

    @property
    def tokens(self) -> float:
        """Mean of a request, in and out."""
        return self.prompt_tokens + self.output_tokens

    @property
    def peak(self) -> float:
        """The busiest minute in a hundred over the mean."""
        return max(1.0, float(np.quantile(self.minutes, 0.99)) / self.rate_per_s)

    @property
    def peak_by_chance(self) -> float:
        """What Poisson arrivals at the mean rate alone would make of ``peak``: 2.33 standard deviations of a minute's count."""
        return 1.0 + 2.33 / math.sqrt(self.rate_per_s * 60.0)

    def conditions(self) -> Mapping[Condition, str]:
        """Those that can be seen, and by which figure."""
        found: dict[Condition, str] = {}
        if self.idle_share >= SPARSE_SHARE:
            found[Condition.SPARSE] = f"{self.idle_share:.0%} of its spans of {IDLE_S / 60:g} minutes have no request"
        if self.at_once > MANY:
            found[Condition.MANY] = f"up to {self.at_once:.0f} requests within {AT_ONCE_S:g} s"
        elif Condition.SPARSE not in found:
            found[Condition.FEW] = f"at most {self.at_once:.0f} requests within {AT_ONCE_S:g} s"
        beyond = self.peak / self.peak_by_chance
        if self.span_s >= LEAST_STEADY_S and Condition.SPARSE not in found:
            if beyond >= PEAKED:
                found[Condition.PEAKS] = f"its busiest minutes have {self.peak:.1f} times the mean"
            elif beyond <= EVEN:
                found[Condition.STEADY] = f"its busiest minutes have {self.peak:.1f} times the mean"
        return found


def profile_of(workload: Workload) -> TrafficProfile:
    """Raises ValueError on traffic without a rate: fewer than two requests, or all at one instant."""
    n, span = len(workload), workload.duration_s
    if n < 2 or span <= 0:
        raise ValueError("the traffic has no rate: two requests at different times are the least that has one")
    return TrafficProfile(
        requests=n,
        span_s=span,
        prompt_tokens=float(workload.prompt_tokens.mean()),
        cached_prompt_tokens=float(workload.prefix_tokens.mean()),
        output_tokens=float(workload.output_tokens.mean()),
        minutes=np.sort(_counts(workload.arrival_s, 60.0) / min(60.0, span)),
        idle_share=float(np.mean(_counts(workload.arrival_s, IDLE_S) == 0)),
        at_once=float(np.quantile(_counts(workload.arrival_s, AT_ONCE_S), 0.99)),
    )


def _counts(arrival_s: Floats, width_s: float) -> Floats:
    """(k,) requests of each whole span of this width; of all where there is none."""
    spans = max(1, int(arrival_s[-1] / width_s))
    at = (arrival_s / width_s).astype(np.int64)
    return (
        np.bincount(np.minimum(at, spans), minlength=spans + 1)[:spans].astype(np.float64)
        if arrival_s[-1] >= width_s
        else np.array([float(arrival_s.shape[0])])
    )
