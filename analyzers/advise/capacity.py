"""How much an offer carries within the objective, by replays: one unit at steady arrivals, and how many units this traffic takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from analyzers.kinds.results import ReplayTraffic, Result
from analyzers.kinds.system import ReplaySystem
from analyzers.objective import Objective
from collectors.workload import Workload

#: Requests that a steady load is made of.
_REQUESTS = 2_000
#: A limit is known to within this.
_PRECISION = 1.05
#: Doublings and halvings after which nothing is claimed.
_MOST_STEPS = 24


def meets(result: Result, objective: Objective) -> bool | None:
    """Whether it held. None: one of its targets is not known of this kind of endpoint, and no other is missed."""
    if result.saturated or not result.completed:
        return False
    found = [_met(result, target.metric, target.quantile, target.limit) for target in objective.targets]
    return False if False in found else None if None in found else True


def _met(result: Result, metric: str, quantile: float | None, limit: float) -> bool | None:
    if quantile is None:  # error_rate
        return (result.requests - result.completed) / result.requests <= limit
    value = result.distribution(metric).quantile(quantile)
    return None if value is None else value <= limit


def steady(workload: Workload, rate_per_s: float, seed: int) -> Workload:
    """Poisson arrivals at a rate, of requests that are drawn whole from ``workload``."""
    rng = np.random.default_rng(seed)
    at = rng.integers(0, len(workload), _REQUESTS)
    arrival = np.cumsum(rng.exponential(1.0 / rate_per_s, _REQUESTS))
    columns = (workload.prompt_tokens[at], workload.output_tokens[at], workload.prefix_tokens[at])
    return Workload(arrival, *columns)


def carried(unit: ReplaySystem, traffic: ReplayTraffic, guess_per_s: float, seed: int) -> float | None:
    """Requests per second of steady arrivals that one unit carries within the objective, to within 5 %.

    What a kind cannot tell of the objective is left out. None: it carries none, however few; infinite: as many as were tried.
    """

    def holds(rate: float) -> bool:
        work = steady(traffic.workload, rate, seed)
        return meets(unit.run(replace(traffic, workload=work)).best, traffic.objective) is not False

    low = high = guess_per_s
    if holds(guess_per_s):
        for _ in range(_MOST_STEPS):
            high = low * 2
            if not holds(high):
                break
            low = high
        else:
            return math.inf
    else:
        for _ in range(_MOST_STEPS):
            low = high / 2
            if holds(low):
                break
            high = low
        else:
            return None
    while high / low > _PRECISION:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def least_units(holds: Callable[[int], bool], guess: int, least: int, most: int) -> int | None:
    """The fewest units, from ``least`` to ``most``, that do: more always do as well. None: not even the most.

    ``guess``: where to begin.
    """
    at = min(max(guess, least), most)
    step = 1
    if holds(at):
        high = at
        while high > least and holds(low := max(least, high - step)):
            high, step = low, step * 2
        if high == least:
            return least
        low = max(least, high - step)
    else:
        low, high = at, at
        while not holds(high := min(most, low + step)):
            if high == most:
                return None
            low, step = high, step * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
