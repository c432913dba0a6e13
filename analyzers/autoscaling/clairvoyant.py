"""The clairvoyant policy: knows every arrival and the engine, and asks for each replica a cold start before it is needed.

Two of them. ``clairvoyant`` changes as often as it likes, and spends its share of late requests where it saves most, whole hours of breach
among them: less than anybody who keeps an objective could pay. ``clairvoyant_by_rules`` plays by the rules that Flyball has by default: the
objective holds in every hour, and no day has more than two changes.

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

from analyzers.autoscaling.case import FleetCase, Play, breach_hours, cut, in_time, play_schedule, play_static
from collectors.workload import Floats

LEAST_WITHIN = 0.99
STEP_S = 900.0
LEAST_STEPS, LEAST_STEP_S = 24, 60.0
#: Before a step is judged, the queue of the count fills for so long.
WARM_S = 300.0
DAY_S = 86_400.0
#: Changes a day, as ``policy.max_changes_per_day`` is by default.
MOST_CHANGES = 2
#: Shares of a step that may be late where every hour must hold its 95 %.
HOUR_SHARES = (0.05, 0.03, 0.02, 0.01, 0.0)
#: A count under which a larger share of a step is late is not used in it.
HOPELESS = 0.5
_TRIES = 20


def clairvoyant_by_rules(case: FleetCase, within: float = LEAST_WITHIN) -> Play:
    """By the rules: no hour in breach, that share within, at most two changes a day. Where no schedule does that, the next best."""
    width = _width(case)
    late, asked = _late(case, width)
    for share in HOUR_SHARES:  # a step's own share is not its hour's: the first that holds them all
        held = np.where(late <= share * asked[:, None], late, np.inf)
        hopeless = ~np.isfinite(held).any(axis=1)
        held[hopeless] = late[hopeless]
        played = _played(case, held, width, within, MOST_CHANGES)
        if not breach_hours(case, in_time(case, played)):
            break
    return played


def clairvoyant(case: FleetCase, within: float = LEAST_WITHIN) -> Play:
    """With that share within, or, where the replicas of the start or the most do not allow that, with as many as there can be."""
    return clairvoyant_and_bound(case, within)[0]


def clairvoyant_and_bound(case: FleetCase, within: float = LEAST_WITHIN) -> tuple[Play, float]:
    """``clairvoyant`` and ``bound`` of one case: what each count misses in each step is worked out once for both."""
    width = _width(case)
    late, _ = _late(case, width)
    return _played(case, late, width, within, None), _bound(case, late, width, within)


def _width(case: FleetCase) -> float:
    """Seconds of a step: of a short trace a part of it."""
    return max(min(STEP_S, case.duration_s / LEAST_STEPS), case.cold_start_s, LEAST_STEP_S)


def bound(case: FleetCase, within: float = LEAST_WITHIN) -> float:
    """Replica-seconds that no policy can go below, as long as no step answers more in time than its count does alone.

    The same steps and misses without cold starts and without a limit to changes, by Lagrangian duality: for each price of a late request,
    the cheapest counts step by step, less the price of what may be late; of all prices the largest.
    """
    width = _width(case)
    return _bound(case, _late(case, width)[0], width, within)


def _bound(case: FleetCase, late: Floats, width: float, within: float) -> float:
    allowed, counts = (1.0 - within) * len(case.work), np.arange(late.shape[1])
    own = np.minimum(width, case.duration_s - width * np.arange(late.shape[0]))[:, None] * counts
    best = 0.0
    for price in np.geomspace(1e-3, 1e6, 120):
        cost = own + np.where(np.isfinite(late), price * late, np.inf)
        best = max(best, float(cost.min(axis=1).sum() - price * allowed))
    return best


def _played(case: FleetCase, late: Floats, width: float, within: float, most_changes: int | None) -> Play:
    """The cheapest schedule that it finds within what may be late, played."""
    allowed = budget = (1.0 - within) * len(case.work)
    for _ in range(_TRIES):
        counts = _within_budget(case, late, width, budget, most_changes)
        played = play_schedule(case, _schedule(case, counts, width))
        beyond = float(np.count_nonzero(~in_time(case, played))) - allowed
        if beyond <= 0 or budget == 0:
            break
        budget = max(0.0, 0.9 * budget - 0.5 * beyond)
    return played


def _late(case: FleetCase, width: float) -> tuple[Floats, Floats]:
    """(steps, most + 1): the requests that each step answers too late with each count; infinity where it is hopeless. (steps,): all.

    More replicas are taken to be late for no more, so that nothing is played above a count that is late for none.
    """
    steps = math.ceil(case.duration_s / width)
    late, asked = np.full((steps, case.most + 1), np.inf), np.zeros(steps)
    enough = case.replicas
    for k in range(steps):
        start, end = k * width, min((k + 1) * width, case.duration_s)
        since = max(0.0, start - WARM_S)
        part = replace(case, work=cut(case.work, since, end), duration_s=end - since)
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
        for n in range(enough + 1, case.most + 1):
            late[k, n] = _missed(part, mine, n) if late[k, n - 1] else 0.0
        enough = int(np.argmin(late[k]))
    return late, asked


def _missed(part: FleetCase, mine: NDArray[np.bool_], replicas: int) -> int:
    return int(np.count_nonzero(~in_time(part, play_static(part, replicas))[mine]))


def _within_budget(case: FleetCase, late: Floats, width: float, budget: float, most_changes: int | None) -> list[int]:
    """The cheapest counts by step whose late requests, added up, are at most ``budget``: by the least price of a late request."""
    low, high = 1e-6, 1e6
    best = _cheapest(case, late, width, high, most_changes)
    for _ in range(40):
        price = math.sqrt(low * high)
        counts = _cheapest(case, late, width, price, most_changes)
        if sum(late[k, n] for k, n in enumerate(counts)) <= budget:
            best, high = counts, price
        else:
            low = price
    return best


def _cheapest(case: FleetCase, late: Floats, width: float, price: float, most_changes: int | None) -> list[int]:
    """The counts that make replica-seconds and ``price`` times the late requests least, cold starts included: dynamic programming over
    counts and the changes made since the day began. None: any number of them."""
    counts, made = np.arange(late.shape[1]), np.arange(1 if most_changes is None else most_changes + 1)
    rise = case.cold_start_s * np.maximum(0, counts[None, :] - counts[:, None])
    same, day = np.eye(len(counts), dtype=bool), round(DAY_S / width)
    best = np.full((len(counts), len(made)), np.inf)
    best[case.replicas, 0] = 0.0
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


def _schedule(case: FleetCase, counts: list[int], width: float) -> list[tuple[float, int]]:
    """Up a cold start before the step, down at its start."""
    schedule = [(0.0, counts[0])]
    for k in range(1, len(counts)):
        if counts[k] != counts[k - 1]:
            ahead = case.cold_start_s if counts[k] > counts[k - 1] else 0.0
            schedule.append((max(0.0, k * width - ahead), counts[k]))
    return schedule
