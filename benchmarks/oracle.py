"""The clairvoyant policy: knows every arrival and the truth, and asks for each replica a cold start before it is needed.

What it is a bound of: the cheapest schedule that it finds is *played on the truth* like any policy, and keeps at least 99 % of the
requests within the objective. So its cost can be reached, and the least cost that any policy could reach is at most that much. It is
not proven to be the least: counts change only at whole steps (a quarter of an hour, or the cold start if that is longer), the misses of
a step are those of its count held alone (after a few minutes of the same count, so without a queue that an earlier step left), and the
1 % is shared out by one price for a miss (a Lagrangian), which leaves a little of it unused.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.world import WARM_S, Play, Scenario, cut, in_time, play_schedule, play_static
from collectors.workload import Floats

LEAST_WITHIN = 0.99
STEP_S = 900.0
#: A count under which a larger share of a step is late is not used in it.
HOPELESS = 0.5
_TRIES = 20


def oracle(scenario: Scenario) -> Play:
    """Its play: with 99 %, or, where the replicas of the start or the most do not allow that, with as many as there can be."""
    width = max(STEP_S, scenario.cold_start_s)
    late = _late(scenario, width)
    allowed = budget = (1.0 - LEAST_WITHIN) * len(scenario.work)
    for _ in range(_TRIES):
        played = play_schedule(scenario, _schedule(scenario, _within_budget(scenario, late, width, budget), width))
        beyond = float(np.count_nonzero(~in_time(scenario, played))) - allowed
        if beyond <= 0 or budget == 0:
            break
        budget = max(0.0, 0.9 * budget - 0.5 * beyond)
    return played


def _late(scenario: Scenario, width: float) -> Floats:
    """(steps, most + 1): the requests that each step answers too late with each count; infinity where it is hopeless.

    More replicas are taken to be late for no more, so that nothing is played above a count that is late for none.
    """
    steps = math.ceil(scenario.duration_s / width)
    late = np.full((steps, scenario.most + 1), np.inf)
    enough = scenario.replicas
    for k in range(steps):
        start, end = k * width, min((k + 1) * width, scenario.duration_s)
        since = max(0.0, start - WARM_S)
        part = replace(scenario, work=cut(scenario.work, since, end), duration_s=end - since)
        mine = part.work.arrival_s + since >= start
        if not mine.any():
            late[k, 1:] = 0.0
            continue
        late[k, enough] = _missed(part, mine, enough)
        for n in range(enough - 1, 0, -1):
            late[k, n] = _missed(part, mine, n)
            if late[k, n] > HOPELESS * np.count_nonzero(mine):
                late[k, n] = np.inf
                break
        for n in range(enough + 1, scenario.most + 1):
            late[k, n] = _missed(part, mine, n) if late[k, n - 1] else 0.0
        enough = int(np.argmin(late[k]))
    return late


def _missed(part: Scenario, mine: NDArray[np.bool_], replicas: int) -> int:
    return int(np.count_nonzero(~in_time(part, play_static(part, replicas))[mine]))


def _within_budget(scenario: Scenario, late: Floats, width: float, budget: float) -> list[int]:
    """The cheapest counts by step whose late requests, added up, are at most ``budget``: by the least price of a late request."""
    low, high = 1e-6, 1e6
    best = _cheapest(scenario, late, width, high)
    for _ in range(60):
        price = math.sqrt(low * high)
        counts = _cheapest(scenario, late, width, price)
        if sum(late[k, n] for k, n in enumerate(counts)) <= budget:
            best, high = counts, price
        else:
            low = price
    return best


def _cheapest(scenario: Scenario, late: Floats, width: float, price: float) -> list[int]:
    """The counts that make replica-seconds and ``price`` times the late requests least, cold starts included: dynamic programming."""
    counts = np.arange(late.shape[1])
    rise = scenario.cold_start_s * np.maximum(0, counts[None, :] - counts[:, None])
    before = np.where(counts > 0, scenario.cold_start_s * np.maximum(0, counts - scenario.replicas), np.inf)
    chosen = []
    for k in range(late.shape[0]):
        own = width * counts + np.where(np.isfinite(late[k]), price * late[k], np.inf)
        if k == 0:
            best = before + own
            continue
        through = best[:, None] + rise
        chosen.append(np.argmin(through, axis=0))
        best = np.min(through, axis=0) + own
    path = [int(np.argmin(best))]
    for back in reversed(chosen):
        path.append(int(back[path[-1]]))
    return path[::-1]


def _schedule(scenario: Scenario, counts: list[int], width: float) -> list[tuple[float, int]]:
    """Up a cold start before the step, down at its start."""
    schedule = [(0.0, counts[0])]
    for k in range(1, len(counts)):
        if counts[k] != counts[k - 1]:
            ahead = scenario.cold_start_s if counts[k] > counts[k - 1] else 0.0
            schedule.append((max(0.0, k * width - ahead), counts[k]))
    return schedule
