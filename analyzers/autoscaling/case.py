"""A fleet under a policy: the traffic, the engine, what must hold, and what came of it when it was played.

Costs count what was provisioned, cold starts and emptying included; a request that is never answered misses the objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzers.objective import Objective
from analyzers.prediction import CannotPredict
from analyzers.whatif.distribution import Bins
from analyzers.whatif.fleet import FleetHistory, ReplicaFleet, operate
from analyzers.whatif.kernel import BIN_EDGES, GAPS, ROUND_ROBIN, KernelMachine
from analyzers.whatif.model import EngineModel
from analyzers.whatif.scaling import ScalingInput, ScalingPolicy
from collectors.workload import Floats, Workload

HOUR = 3600.0
#: The share of requests that an hour, or a step, must answer in time, where nothing else is said: the objective is a 95th percentile.
QUANTILE = 0.95
#: More replicas than so many are not tried.
MOST_REPLICAS = 512
#: In an hour or step with fewer requests nothing is judged.
LEAST_REQUESTS = 20


@dataclass(frozen=True)
class FleetCase:
    """Traffic, an engine, and what it must hold."""

    name: str
    work: Workload
    duration_s: float
    model: EngineModel
    ttft_s: float = math.inf
    """Within so long the first token must come."""
    itl_s: float | None = None
    """And within so long on average each further one. None: not judged."""
    replicas: int = 4
    """At the start."""
    most: int = 8
    cold_start_s: float = 120.0
    usd_per_replica_hour: float = 1.0
    e2e_s: float | None = None
    """And within so long the last one. None: not judged."""
    quantile: float = QUANTILE
    """The share of requests in time that each hour must have."""

    def machine(self) -> KernelMachine:
        """What runs it."""
        return KernelMachine(self.work, self.model, self.replicas, ROUND_ROBIN, math.inf, tracked=False)


@dataclass(frozen=True)
class Action:
    """The count wanted was changed."""

    at_s: float
    before: int
    after: int


@dataclass(frozen=True)
class SizeChange:
    """Replicas that begin from then on are of another size."""

    at_s: float
    model: EngineModel
    price: float
    """Of a replica, that of the case's own size being 1."""


@dataclass(frozen=True)
class Play:
    """What came of a policy on a case."""

    ttft_s: Floats
    """(n,) of each request; infinity where it never came."""
    itl_s: Floats
    """(n,) its mean gap; 0 where it has no two tokens."""
    gaps: Bins
    """All gaps between tokens."""
    e2e_s: Floats
    """(n,) likewise."""
    ready: tuple[tuple[float, int], ...]
    """(at_s, replicas that take requests) at each change."""
    course: FleetHistory
    """Who was a replica when."""
    replica_s: float
    """Provisioned until the case's end."""
    actions: tuple[Action, ...]
    decided_s: tuple[float, ...] | None = None
    """When somebody decided a change, of a policy whose moves are not each decided: an approved schedule is one. None: each move is."""
    sizes: tuple[SizeChange, ...] = ()
    """In order. Empty: all are of the case's own size."""

    def paid_s(self, until: float) -> float:
        """Replica-seconds of the case's own size that cost as much as all that was provisioned until then."""
        return math.fsum(self._price(since) * max(0.0, min(to, until) - since) for since, to in self.course.lives)

    def _price(self, since: float) -> float:
        return next((size.price for size in reversed(self.sizes) if size.at_s <= since), 1.0)


#: Makes a policy for one play; the machine is there for those that observe more than a policy is told.
PolicyMaker = Callable[[KernelMachine], ScalingPolicy]


class _Recorder:
    """A policy whose changes are noted, within the bounds, and that leaves all as it is after the end."""

    def __init__(self, policy: ScalingPolicy, case: FleetCase) -> None:
        self.actions: list[Action] = []
        self._policy = policy
        self._case = case

    @property
    def interval_s(self) -> float:
        return self._policy.interval_s

    def __call__(self, seen: ScalingInput, state: Any) -> tuple[int, Any]:
        now = seen.ready + seen.starting
        if seen.at_s >= self._case.duration_s:
            return now, state
        wanted, state = self._policy(seen, state)
        wanted = min(max(wanted, 1), self._case.most)
        if wanted != now:
            self.actions.append(Action(seen.at_s, now, wanted))
        return wanted, state


def play(case: FleetCase, make: PolicyMaker) -> Play:
    """The case under a policy."""
    machine = case.machine()
    recorder = _Recorder(make(machine), case)
    fleet = ReplicaFleet(case.replicas, case.cold_start_s, recorder, min_replicas=1, max_replicas=case.most)
    return _played(case, machine, fleet, recorder.actions)


def play_schedule(case: FleetCase, schedule: Sequence[tuple[float, int]]) -> Play:
    """The case under counts that are known from the start: (at_s, wanted from then on)."""
    fleet = ReplicaFleet(case.replicas, case.cold_start_s, schedule=tuple(schedule))
    counts = [case.replicas, *(count for _, count in schedule)]
    actions = [
        Action(at, before, after) for (at, after), before in zip(schedule, counts, strict=False) if before != after
    ]
    return _played(case, case.machine(), fleet, actions)


def play_static(case: FleetCase, replicas: int) -> Play:
    """The case on a count that never changes, and is there from the start."""
    same = replace(case, replicas=replicas)
    return _played(same, same.machine(), ReplicaFleet(replicas, same.cold_start_s), ())


def _played(case: FleetCase, machine: KernelMachine, fleet: ReplicaFleet, actions: Sequence[Action]) -> Play:
    course = operate(fleet, machine, math.inf)
    output = case.work.output_tokens
    came = machine.e2e >= 0.0
    return Play(
        ttft_s=np.where(machine.ttft >= 0.0, machine.ttft, np.inf),
        itl_s=np.where(came, (machine.e2e - machine.ttft) / np.maximum(output - 1, 1), np.inf),
        e2e_s=np.where(came, machine.e2e, np.inf),
        gaps=Bins(machine.bins, BIN_EDGES, float(machine.real[:, GAPS].sum())),
        ready=course.ready,
        course=course,
        replica_s=course.replica_s(case.duration_s),
        actions=tuple(actions),
    )


def in_time(case: FleetCase, played: Play) -> NDArray[np.bool_]:
    """(n,) whether each request met the objective's limits."""
    good: NDArray[np.bool_] = played.ttft_s <= case.ttft_s
    if case.itl_s is not None:
        good = good & (played.itl_s <= case.itl_s)
    return good if case.e2e_s is None else good & (played.e2e_s <= case.e2e_s)


def breach_hours(case: FleetCase, good: NDArray[np.bool_]) -> list[int]:
    """The hours, counted from 0, in which too few of the requests were in time."""
    return breached_steps(case, good, 0.0, case.duration_s, HOUR)


def breached_steps(case: FleetCase, good: NDArray[np.bool_], since: float, end: float, step_s: float) -> list[int]:
    """The steps of so long from ``since`` on, counted from 0, in which too few of those that came were in time; not where hardly any came."""
    arrival, found = case.work.arrival_s, []
    for i in range(math.ceil((end - since) / step_s)):
        first, last = np.searchsorted(arrival, (since + i * step_s, min(end, since + (i + 1) * step_s)), "left")
        if last - first >= LEAST_REQUESTS and good[first:last].mean() < case.quantile:
            found.append(i)
    return found


def case_of(
    name: str,
    work: Workload,
    duration_s: float,
    model: EngineModel,
    objective: Objective,
    *,
    overhead_s: float = 0.0,
    **more: Any,
) -> FleetCase:
    """With an objective's latency limits: each request is in time within all of them, and the strictest quantile says how many must be.

    overhead_s: between client and engine, in each time to first token and to the last. more: fields of the case.
    Raises CannotPredict where no target is one of latency.
    """
    found = [t for t in objective.targets if t.quantile is not None and t.metric in ("ttft_s", "itl_s", "e2e_s")]
    if not found:
        text = "no target of the objective is one of TTFT, ITL or end-to-end time: state one, such as ttft_p95"
        raise CannotPredict("NO_OBJECTIVE", text)
    limits = {t.metric: min(other.limit for other in found if other.metric == t.metric) for t in found}
    return FleetCase(
        name,
        work,
        duration_s,
        model,
        ttft_s=limits.get("ttft_s", math.inf) - overhead_s,
        itl_s=limits.get("itl_s"),
        e2e_s=limits["e2e_s"] - overhead_s if "e2e_s" in limits else None,
        quantile=max(t.quantile for t in found if t.quantile is not None),
        **more,
    )


def fewest_static(case: FleetCase, within: float, most: int = MOST_REPLICAS) -> int | None:
    """The fewest replicas that never change and have that share in time. None: not even ``most`` have."""

    def enough(count: int) -> bool:
        return bool(in_time(case, play_static(case, count)).mean() >= within)

    low, high = 0, 1
    while not enough(high):
        if high >= most:
            return None
        low, high = high, min(most, 2 * high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def cut(work: Workload, since: float, until: float) -> Workload:
    """The requests that arrive in [since, until), from 0 on."""
    first, last = np.searchsorted(work.arrival_s, (since, until), "left")
    part = slice(int(first), int(last))
    return Workload(
        work.arrival_s[part] - since, work.prompt_tokens[part], work.output_tokens[part], work.prefix_tokens[part]
    )
