"""The clairvoyant policy: knows every arrival and the truth, and asks for each replica a cold start before it is needed.

Two of them. ``oracle`` changes as often as it likes, and spends its 1 % where it saves most, whole hours of breach among them: less than
anybody who keeps an objective could pay. ``oracle-by-rules`` plays by the rules that Flyball has by default: the objective holds in every
hour, 99 % of the requests are within it, and no day has more than two changes.

What each is a bound of: the cheapest schedule that it finds is *played on the truth* like any policy, and keeps what it promises. So its
cost can be reached, and the least cost that any policy could reach is at most that much. It is not proven to be the least: counts change
only at whole steps (a quarter of an hour, or the cold start if that is longer), the misses of a step are those of its count held alone
(after a few minutes of the same count, so without a queue that an earlier step left), and the 1 % is shared out by one price for a miss (a
Lagrangian), which leaves a little of it unused.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.world import WARM_S, Play, Scenario, breach_hours, cut, in_time, play_schedule, play_static
from collectors.workload import Floats

LEAST_WITHIN = 0.99
STEP_S = 900.0
DAY_S = 86_400.0
#: Changes a day, as ``policy.max_changes_per_day`` is by default.
MOST_CHANGES = 2
#: Shares of a step that may be late where every hour must hold its 95 %.
HOUR_SHARES = (0.05, 0.03, 0.02, 0.01, 0.0)
#: A count under which a larger share of a step is late is not used in it.
HOPELESS = 0.5
_TRIES = 20


def oracle_by_rules(scenario: Scenario) -> Play:
    """By the rules: no hour in breach, 99 % within, at most two changes a day. Where no schedule does that, the next best."""
    width = max(STEP_S, scenario.cold_start_s)
    late, asked = _late(scenario, width)
    for share in HOUR_SHARES:  # a step's own share is not its hour's: the first that holds them all
        held = np.where(late <= share * asked[:, None], late, np.inf)
        hopeless = ~np.isfinite(held).any(axis=1)
        held[hopeless] = late[hopeless]
        played = _played(scenario, held, width, MOST_CHANGES)
        if not breach_hours(scenario, in_time(scenario, played)):
            break
    return played


def oracle(scenario: Scenario) -> Play:
    """With 99 %, or, where the replicas of the start or the most do not allow that, with as many as there can be."""
    width = max(STEP_S, scenario.cold_start_s)
    late, _ = _late(scenario, width)
    return _played(scenario, late, width, None)


def _played(scenario: Scenario, late: Floats, width: float, most_changes: int | None) -> Play:
    """The cheapest schedule that it finds within the 1 %, played."""
    allowed = budget = (1.0 - LEAST_WITHIN) * len(scenario.work)
    for _ in range(_TRIES):
        counts = _within_budget(scenario, late, width, budget, most_changes)
        played = play_schedule(scenario, _schedule(scenario, counts, width))
        beyond = float(np.count_nonzero(~in_time(scenario, played))) - allowed
        if beyond <= 0 or budget == 0:
            break
        budget = max(0.0, 0.9 * budget - 0.5 * beyond)
    return played


def _late(scenario: Scenario, width: float) -> tuple[Floats, Floats]:
    """(steps, most + 1): the requests that each step answers too late with each count; infinity where it is hopeless. (steps,): all.

    More replicas are taken to be late for no more, so that nothing is played above a count that is late for none.
    """
    steps = math.ceil(scenario.duration_s / width)
    late, asked = np.full((steps, scenario.most + 1), np.inf), np.zeros(steps)
    enough = scenario.replicas
    for k in range(steps):
        start, end = k * width, min((k + 1) * width, scenario.duration_s)
        since = max(0.0, start - WARM_S)
        part = replace(scenario, work=cut(scenario.work, since, end), duration_s=end - since)
        mine = part.work.arrival_s + since >= start
        asked[k] = np.count_nonzero(mine)
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
    return late, asked


def _missed(part: Scenario, mine: NDArray[np.bool_], replicas: int) -> int:
    return int(np.count_nonzero(~in_time(part, play_static(part, replicas))[mine]))


def _within_budget(
    scenario: Scenario, late: Floats, width: float, budget: float, most_changes: int | None
) -> list[int]:
    """The cheapest counts by step whose late requests, added up, are at most ``budget``: by the least price of a late request."""
    low, high = 1e-6, 1e6
    best = _cheapest(scenario, late, width, high, most_changes)
    for _ in range(40):
        price = math.sqrt(low * high)
        counts = _cheapest(scenario, late, width, price, most_changes)
        if sum(late[k, n] for k, n in enumerate(counts)) <= budget:
            best, high = counts, price
        else:
            low = price
    return best


def _cheapest(scenario: Scenario, late: Floats, width: float, price: float, most_changes: int | None) -> list[int]:
    """The counts that make replica-seconds and ``price`` times the late requests least, cold starts included: dynamic programming over
    counts and the changes made since the day began. None: any number of them."""
    counts, made = np.arange(late.shape[1]), np.arange(1 if most_changes is None else most_changes + 1)
    rise = scenario.cold_start_s * np.maximum(0, counts[None, :] - counts[:, None])
    same, day = np.eye(len(counts), dtype=bool), round(DAY_S / width)
    best = np.full((len(counts), len(made)), np.inf)
    best[scenario.replicas, 0] = 0.0
    ways: list[NDArray[np.int64]] = []
    for k in range(late.shape[0]):
        begins = most_changes is not None and k % day == 0
        # From (count, made) to (count, made): a stay keeps what was made, a change adds one, and a day begins with none.
        through = np.full((*best.shape, *best.shape), np.inf)
        for m in made:
            stays, changes = (0, min(1, len(made) - 1)) if begins else (m, m + 1 if most_changes is not None else m)
            through[:, m, :, stays] = np.where(same, best[:, m][:, None], through[:, m, :, stays])
            if changes < len(made):
                moved = np.where(same, np.inf, best[:, m][:, None] + rise)
                through[:, m, :, changes] = np.minimum(through[:, m, :, changes], moved)
        flat = through.reshape(-1, *best.shape)
        ways.append(np.argmin(flat, axis=0))
        own = width * counts + np.where(np.isfinite(late[k]), price * late[k], np.inf)
        best = flat.min(axis=0) + own[:, None]
    at = int(np.argmin(best))
    path = []
    for way in reversed(ways):
        path.append(at // len(made))
        at = int(way.reshape(-1)[at])
    return path[::-1]


def _schedule(scenario: Scenario, counts: list[int], width: float) -> list[tuple[float, int]]:
    """Up a cold start before the step, down at its start."""
    schedule = [(0.0, counts[0])]
    for k in range(1, len(counts)):
        if counts[k] != counts[k - 1]:
            ahead = scenario.cold_start_s if counts[k] > counts[k - 1] else 0.0
            schedule.append((max(0.0, k * width - ahead), counts[k]))
    return schedule
