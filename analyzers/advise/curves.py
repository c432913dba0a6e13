"""What each option costs at any rate of the same traffic, where two cost the same, and how much of a machine's capacity that is.

Formulas: facts of the field restated. A pay-per-token call costs its uncached, cached and output tokens times their prices; what is
reserved costs its hours whether it is used or not; break-even is the one over the other. For a base load on machines with overflow by the
token, the number of machines that costs least under the rates that occur (the newsvendor's optimum). Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from collectors.workload import Floats

#: Rates at which curves are compared, for each tenfold.
_PER_DECADE = 24
_BISECTIONS = 40


class CostCurve(Protocol):
    def usd_per_hour(self, rate_per_s: float) -> float | None:
        """At a mean rate of requests. None: it does not carry that, or it is not known."""
        ...


@dataclass(frozen=True, slots=True)
class TokenCurve:
    """Paid by the token."""

    usd_per_request: float

    def usd_per_hour(self, rate_per_s: float) -> float | None:
        return rate_per_s * 3600.0 * self.usd_per_request


@dataclass(frozen=True, slots=True)
class MachineCurve:
    """Machines, or units of throughput, that are there whether they are used or not."""

    usd_per_machine_hour: float
    carries_per_s: float
    """Mean rate of this traffic, with its peaks, that each carries."""
    least: int = 1
    most: int | None = None

    def machines(self, rate_per_s: float) -> int:
        return max(self.least, math.ceil(rate_per_s / self.carries_per_s - 1e-9))

    def usd_per_hour(self, rate_per_s: float) -> float | None:
        n = self.machines(rate_per_s)
        return None if self.most is not None and n > self.most else n * self.usd_per_machine_hour


@dataclass(frozen=True, slots=True)
class ReplayCurve:
    """What replays at several rates have cost: between them in proportion on logarithmic axes, below them by the request."""

    points: tuple[tuple[float, float], ...]
    """(requests per second, US dollars per hour), ascending, above 0."""

    def usd_per_hour(self, rate_per_s: float) -> float | None:
        rates, costs = np.array(self.points).T
        if rate_per_s > rates[-1] * (1 + 1e-9):
            return None
        if rate_per_s < rates[0]:
            return float(costs[0] * rate_per_s / rates[0])
        return float(np.exp(np.interp(math.log(rate_per_s), np.log(rates), np.log(costs))))


@dataclass(frozen=True, slots=True)
class OverflowCurve:
    """Machines for the base load; what is above goes by the token."""

    machine: MachineCurve
    carries_per_s: float
    """Rate that one machine carries at any moment."""
    token: TokenCurve
    minutes: Floats
    """(m,) rates of the traffic's minutes over their mean."""

    def best(self, rate_per_s: float) -> tuple[int, float, float]:
        """Machines, US dollars per hour, and the share of requests that overflows, where the whole costs least."""
        rates = self.minutes * rate_per_s
        most = math.ceil(float(rates.max()) / self.carries_per_s)
        if self.machine.most is not None:
            most = min(most, self.machine.most)
        capacity = np.arange(most + 1)[:, None] * self.carries_per_s
        # A million of numbers at a time at most: the optimum lies where the next machine saves less than it costs.
        step = max(1, -(-(most + 1) * rates.size // 4_000_000))
        over = np.maximum(0.0, rates[None, ::step] - capacity).mean(axis=1)
        usd = np.arange(most + 1) * self.machine.usd_per_machine_hour + over * 3600.0 * self.token.usd_per_request
        at = int(np.argmin(usd))
        return at, float(usd[at]), float(over[at] / rates[::step].mean())

    def usd_per_hour(self, rate_per_s: float) -> float | None:
        return self.best(rate_per_s)[1]


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Where what is reserved costs as much as what is paid by the token."""

    reserved: str
    by_token: str
    requests_per_s: float
    """From here on one machine, used to this rate, costs less than the tokens."""
    share: float | None
    """Of what one machine carries within the objective. Above 1: it never costs less. None: not known what it carries."""


def break_even(
    reserved: str, usd_per_machine_hour: float, carries_per_s: float | None, by_token: str, usd_per_request: float
) -> BreakEven | None:
    """None where a call costs nothing."""
    if usd_per_request <= 0:
        return None
    rate = usd_per_machine_hour / usd_per_request / 3600.0
    return BreakEven(reserved, by_token, rate, None if carries_per_s is None else rate / carries_per_s)


@dataclass(frozen=True, slots=True)
class CheapestRange:
    """From a rate on one option costs least, up to the next one's."""

    from_per_s: float
    name: str
    usd_per_hour: float


def cheapest(curves: Mapping[str, CostCurve], low_per_s: float, high_per_s: float) -> list[CheapestRange]:
    """Which costs least from ``low_per_s`` to ``high_per_s``, with the rates at which that changes."""
    found: list[CheapestRange] = []
    before = low_per_s
    for rate in grid(low_per_s, high_per_s):
        best = _best(curves, rate)
        if best is None:
            before = rate
            continue
        if not found or found[-1].name != best[0]:
            at = rate if not found else _change(curves, found[-1].name, before, rate)
            usd = curves[best[0]].usd_per_hour(at)
            found.append(CheapestRange(at, best[0], best[1] if usd is None else usd))
        before = rate
    return found


def grid(low: float, high: float) -> list[float]:
    """Rates from ``low`` to ``high``, both included, evenly on a logarithmic axis."""
    steps = max(2, math.ceil(math.log10(high / low) * _PER_DECADE))
    return [low * (high / low) ** (i / steps) for i in range(steps + 1)]


def _best(curves: Mapping[str, CostCurve], rate: float) -> tuple[str, float] | None:
    known = [(usd, i, name) for i, (name, c) in enumerate(curves.items()) if (usd := c.usd_per_hour(rate)) is not None]
    if not known:
        return None
    usd, _, name = min(known)
    return name, usd


def _change(curves: Mapping[str, CostCurve], name: str, low: float, high: float) -> float:
    """The rate up to which ``name`` costs least, between one where it does and one where it does not."""
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        best = _best(curves, middle)
        low, high = (middle, high) if best is not None and best[0] == name else (low, middle)
    return high


def sampled(curve: CostCurve, rates: Sequence[float]) -> list[tuple[float, float]]:
    """(requests per second, US dollars per hour) where it is known."""
    return [(rate, usd) for rate in rates if (usd := curve.usd_per_hour(rate)) is not None]
