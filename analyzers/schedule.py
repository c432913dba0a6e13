"""Replicas by the time of day: the cheapest daily course that carries what such days bring, with few steps.

A schedule is approved once and kept every day, so that its steps wait for no person and no pause: each count need carry no more than
its own hours. A step up begins so long before as a replica takes to serve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tzlocal.windows_tz import tz_win

from actuators.shape import DAYS, EVERY_DAY, Schedule, ScheduleStep
from analyzers.forecast.history import STEP_S

#: Whether so many replicas carry a multiple of the load.
Enough = Callable[[int, float], bool]
#: A step that saves less than so many replica-slots is none.
LEAST_SLOTS = 2.0
_DAY_MINUTES = 24 * 60


def least_counts(demand: Sequence[float], counts: Sequence[int], enough: Enough) -> list[int]:
    """(slots,) the fewest of ``counts`` (fewest first) that carry each slot's load and the next one's; else the most."""
    n = len(demand)
    coming = [max(demand[i], demand[(i + 1) % n]) for i in range(n)]
    return [next((count for count in counts if enough(count, load)), counts[-1]) for load in coming]


def daily_course(needed: Sequence[int], counts: Sequence[int], most_steps: int, most_at_once: int) -> list[int]:
    """(slots,) replicas by slot of a day that repeats: never fewer than ``needed``, at most so many steps a day, of at most so many
    replicas each; the fewest replica-slots, each step counted as ``LEAST_SLOTS``. By dynamic programming over counts and steps.
    """
    top = max(needed)
    at = int(np.argmax(needed))  # the day is cut where the most is needed: the course begins and ends with the most
    turned = [*needed[at:], *needed[:at]]
    course = _cheapest(turned, counts, most_steps, most_at_once) or [top] * len(turned)
    return [*course[len(course) - at :], *course[: len(course) - at]]


def _cheapest(needed: Sequence[int], counts: Sequence[int], most_steps: int, most_at_once: int) -> list[int] | None:
    """The cheapest course that begins at what the first slot needs, the most, and could begin again after the last. None: there is none."""
    first = needed[0]
    counts = [count for count in counts if count <= first]
    cost = np.full((len(counts), most_steps + 1), math.inf)
    cost[counts.index(first), 0] = 0.0
    ways: list[np.ndarray] = []
    values = np.array(counts)
    near = np.abs(values[:, None] - values[None, :]) <= most_at_once
    for slot, need in enumerate(needed):
        way = np.tile(np.arange(len(counts))[:, None], (1, most_steps + 1))  # by default the count stays
        following = cost.copy()
        if slot > 0:
            for to in range(len(counts)):
                others = np.where((near[:, to] & (np.arange(len(counts)) != to))[:, None], cost, math.inf)
                source = others.argmin(axis=0)
                moved = others.min(axis=0)[:-1] + LEAST_SLOTS
                better = moved < following[to, 1:]
                following[to, 1:] = np.where(better, moved, following[to, 1:])
                way[to, 1:] = np.where(better, source[:-1], way[to, 1:])
        following += values[:, None]
        following[values < need] = math.inf
        ways.append(way)
        cost = following
    # back to the first count at the day's end, which is a step of its own
    last, steps, least = -1, 0, math.inf
    for i, count in enumerate(counts):
        if abs(count - first) > most_at_once:
            continue
        more = int(count != first)
        for made in range(most_steps + 1 - more):
            if cost[i, made] + more * LEAST_SLOTS < least:
                last, steps, least = i, made, cost[i, made] + more * LEAST_SLOTS
    if last < 0:
        return None
    course = []
    at, made = last, steps
    for way in reversed(ways):
        course.append(counts[at])
        before = int(way[at, made])
        if before != at:
            made -= 1
        at = before
    return course[::-1]


def schedule_of(courses: Sequence[tuple[tuple[int, ...], Sequence[int]]], zone: str, start_s: float) -> Schedule:
    """From (days, counts by slot from midnight on): a step up begins ``start_s`` before its slot, one down at its slot."""
    if len({tuple(course) for _, course in courses}) == 1:
        courses = [(EVERY_DAY, courses[0][1])]
    steps = []
    for days, course in courses:
        for slot, count in enumerate(course):
            before = course[slot - 1]  # the day before is taken to be such a day; where it is not, a hold bridges it
            if count == before and not (slot == 0 and len(courses) > 1):
                continue
            ahead = start_s if count > before else 0.0
            minute = math.floor((slot * STEP_S - ahead) / 60)
            at = minute % (24 * 60)
            on = days if minute >= 0 else tuple(sorted((day - 1) % 7 for day in days))
            steps.append(ScheduleStep(f"{at // 60:02d}:{at % 60:02d}", count, on))
    if not steps:
        steps = [ScheduleStep("00:00", courses[0][1][0])]
    return Schedule(tuple(sorted(steps, key=lambda step: (step.days, step.minute))), zone)


def keda_cron(schedule: Schedule, name: str) -> dict[str, Any]:
    """The same schedule as cron triggers of a KEDA ScaledObject, for whom the cluster itself is to keep it: of several that are active KEDA
    takes the largest, so that each step's lasts until the next one. Source: keda.sh/docs, scalers, Cron.
    """
    moments = sorted((day * _DAY_MINUTES + step.minute, step.replicas) for step in schedule.steps for day in step.days)
    periods: dict[tuple[int, int, int], tuple[list[int], list[int]]] = {}
    for (begin, count), (end, _) in zip(moments, [*moments[1:], moments[0]], strict=True):
        starts, ends = periods.setdefault((begin % _DAY_MINUTES, end % _DAY_MINUTES, count), ([], []))
        starts.append(begin // _DAY_MINUTES)
        ends.append(end // _DAY_MINUTES)
    triggers = [
        {
            "type": "cron",
            "metadata": {
                "timezone": schedule.zone,
                "start": _cron(begin, starts),
                "end": _cron(end, ends),
                "desiredReplicas": str(count),
            },
        }
        for (begin, end, count), (starts, ends) in periods.items()
        if count > schedule.least
    ]
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"name": name},
            "minReplicaCount": schedule.least,
            "maxReplicaCount": schedule.most,
            "cooldownPeriod": 0,
            "triggers": triggers,
        },
    }


#: Profiles that an autoscale setting of Azure may have.
_AZURE_MOST_PROFILES = 20


def azure_autoscale(schedule: Schedule, name: str, resource: str, location: str) -> dict[str, Any]:
    """The same schedule as an autoscale setting of Azure Monitor, for whom Azure itself is to keep it: a profile for each step, which begins at
    its time and stays until the next one begins. resource: the id of what is scaled. Source: Azure Monitor REST API, Autoscale Settings,
    2022-10-01. Raises ValueError where there are more steps than it may have profiles, or Windows has no name for the zone.
    """
    if len(schedule.steps) > _AZURE_MOST_PROFILES:
        raise ValueError(
            f"an autoscale setting has {_AZURE_MOST_PROFILES} profiles at most, and the schedule {len(schedule.steps)} steps"
        )
    zone = tz_win.get(schedule.zone)
    if zone is None:
        raise ValueError(f"Azure names zones as Windows does, which has no name for {schedule.zone}")
    profiles = [
        {
            "name": f"{step.replicas} from {step.at} ({', '.join(DAYS[day] for day in step.days)})",
            "capacity": dict.fromkeys(("minimum", "maximum", "default"), str(step.replicas)),
            "rules": [],
            "recurrence": {
                "frequency": "Week",
                "schedule": {
                    "timeZone": zone,
                    "days": [_AZURE_DAYS[day] for day in step.days],
                    "hours": [step.minute // 60],
                    "minutes": [step.minute % 60],
                },
            },
        }
        for step in schedule.steps
    ]
    return {
        "location": location,
        "properties": {"name": name, "enabled": True, "targetResourceUri": resource, "profiles": profiles},
    }


_AZURE_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _cron(minute: int, days: Sequence[int]) -> str:
    """``50 6 * * 1,2,3,4,5``: cron counts from Sunday."""
    of_week = "*" if len(set(days)) == len(EVERY_DAY) else ",".join(str((day + 1) % 7) for day in sorted(set(days)))
    return f"{minute % 60} {minute // 60} * * {of_week}"
