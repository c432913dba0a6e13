"""One simulated world for all policies: the same traffic and the same hidden truth, whoever sets the number of replicas.

Owns what a scenario is, how a policy is played on it and how that is scored. The truth is the replay's own machine, with an engine
that no policy is told. Costs count what was provisioned, cold starts and emptying included; a request that is never answered misses
the objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzers.whatif.distribution import Bins
from analyzers.whatif.fleet import ReplicaFleet, operate
from analyzers.whatif.kernel import BIN_EDGES, GAPS, ROUND_ROBIN, KernelMachine
from analyzers.whatif.model import EngineModel
from analyzers.whatif.scaling import ScalingInput, ScalingPolicy
from collectors.workload import Floats, Workload

#: A shrink is judged by what came within so long after it: Flyball's own pause between two changes.
JUDGED_S = 3600.0
#: Within it, by the share of requests in time in steps of so long, if so many came in one.
STEP_S, LEAST_REQUESTS = 300.0, 20
#: Before a shrink's counterfactual is judged, the queue of the old shape fills for so long.
WARM_S = 300.0
#: The share of requests that an hour, or a step, must answer in time: the objective is a 95th percentile.
QUANTILE = 0.95
HOUR = 3600.0


@dataclass(frozen=True)
class Scenario:
    """Traffic, truth, and what it must hold."""

    name: str
    work: Workload
    duration_s: float
    model: EngineModel
    """The truth."""
    ttft_s: float
    """Within so long the first token of 95 % of the requests must come."""
    itl_s: float | None = None
    """And within so long on average each further one. None: not judged."""
    replicas: int = 4
    """At the start."""
    most: int = 8
    cold_start_s: float = 120.0
    usd_per_replica_hour: float = 1.0
    starts_at: float = 1_699_941_600.0
    """Unix seconds of the first moment: a Tuesday, 6:00 UTC."""
    decide_s: float = 300.0
    """Between two of Flyball's analyses."""
    missing: float = 0.0
    """The share of minutes whose telemetry nobody gets: an autoscaler then keeps the count, and Flyball has no window of it."""
    learning_s: float = 0.0
    """The first so many seconds are scored apart: a policy that learns the season of a load has not seen it yet."""
    earlier: Scenario | None = None
    """The same endpoint's traffic of another time: what the peers' settings are searched on. None: there is none."""

    def dark(self, at_s: float) -> bool:
        """Whether telemetry lacks in the minute that ends then, or is under way."""
        if self.missing == 0.0:
            return False
        minute = math.ceil(at_s / 60.0)
        return float(np.random.default_rng([17, minute]).random()) < self.missing


@dataclass(frozen=True)
class Action:
    """The count wanted was changed."""

    at_s: float
    before: int
    after: int


@dataclass(frozen=True)
class Play:
    """What came of a policy on a scenario."""

    ttft_s: Floats
    """(n,) of each request; infinity where it never came."""
    itl_s: Floats
    """(n,) its mean gap; 0 where it has no two tokens."""
    gaps: Bins
    """All gaps between tokens."""
    ready: tuple[tuple[float, int], ...]
    """(at_s, replicas that take requests) at each change."""
    replica_s: float
    """Provisioned until the scenario's end."""
    learning_replica_s: float
    """Of these, in the time that is scored apart."""
    actions: tuple[Action, ...]
    decided_s: tuple[float, ...] | None = None
    """When somebody decided a change, of a policy whose moves are not each decided: an approved schedule is one. None: each move is."""


#: Makes a policy for one play; the machine is there for those that observe more than a policy is told.
PolicyMaker = Callable[[KernelMachine], ScalingPolicy]


class _Recorder:
    """A policy whose changes are noted, within the bounds, and that leaves all as it is after the end."""

    def __init__(self, policy: ScalingPolicy, scenario: Scenario) -> None:
        self.actions: list[Action] = []
        self._policy = policy
        self._scenario = scenario

    @property
    def interval_s(self) -> float:
        return self._policy.interval_s

    def __call__(self, seen: ScalingInput, state: Any) -> tuple[int, Any]:
        now = seen.ready + seen.starting
        if seen.at_s >= self._scenario.duration_s:
            return now, state
        wanted, state = self._policy(seen, state)
        wanted = min(max(wanted, 1), self._scenario.most)
        if wanted != now:
            self.actions.append(Action(seen.at_s, now, wanted))
        return wanted, state


def play(scenario: Scenario, make: PolicyMaker) -> Play:
    """The scenario under a policy."""
    machine = _machine(scenario)
    recorder = _Recorder(make(machine), scenario)
    fleet = ReplicaFleet(scenario.replicas, scenario.cold_start_s, recorder, min_replicas=1, max_replicas=scenario.most)
    return _played(scenario, machine, fleet, recorder.actions)


def play_schedule(scenario: Scenario, schedule: Sequence[tuple[float, int]]) -> Play:
    """The scenario under counts that are known from the start: (at_s, wanted from then on)."""
    fleet = ReplicaFleet(scenario.replicas, scenario.cold_start_s, schedule=tuple(schedule))
    counts = [scenario.replicas, *(count for _, count in schedule)]
    actions = [
        Action(at, before, after) for (at, after), before in zip(schedule, counts, strict=False) if before != after
    ]
    return _played(scenario, _machine(scenario), fleet, actions)


def play_static(scenario: Scenario, replicas: int) -> Play:
    """The scenario on a count that never changes, and is there from the start."""
    same = replace(scenario, replicas=replicas)
    return _played(same, _machine(same), ReplicaFleet(replicas, same.cold_start_s), ())


def _machine(scenario: Scenario) -> KernelMachine:
    return KernelMachine(scenario.work, scenario.model, scenario.replicas, ROUND_ROBIN, math.inf, tracked=False)


def _played(scenario: Scenario, machine: KernelMachine, fleet: ReplicaFleet, actions: Sequence[Action]) -> Play:
    course = operate(fleet, machine, math.inf)
    output = scenario.work.output_tokens
    came = machine.e2e >= 0.0
    return Play(
        ttft_s=np.where(machine.ttft >= 0.0, machine.ttft, np.inf),
        itl_s=np.where(came, (machine.e2e - machine.ttft) / np.maximum(output - 1, 1), np.inf),
        gaps=Bins(machine.bins, BIN_EDGES, float(machine.real[:, GAPS].sum())),
        ready=course.ready,
        replica_s=course.replica_s(scenario.duration_s),
        learning_replica_s=course.replica_s(scenario.learning_s),
        actions=tuple(actions),
    )


# -- scores ------------------------------------------------------------------------------------------------------------


def in_time(scenario: Scenario, played: Play) -> NDArray[np.bool_]:
    """(n,) whether each request met the objective's limits."""
    good: NDArray[np.bool_] = played.ttft_s <= scenario.ttft_s
    return good if scenario.itl_s is None else good & (played.itl_s <= scenario.itl_s)


def score(scenario: Scenario, policy: str, played: Play) -> list[dict[str, Any]]:
    """Its row of the table, and before it one of the time that is scored apart, where there is some."""
    since, learning = scenario.learning_s, played.learning_replica_s
    rows = [_score(scenario, policy, played, since, scenario.duration_s, played.replica_s - learning)]
    if since > 0:
        first = _score(scenario, policy, played, 0.0, since, learning)
        rows.insert(0, first | {"scenario": f"{scenario.name}/first"})
    return rows


def _score(
    scenario: Scenario, policy: str, played: Play, since: float, until: float, replica_s: float
) -> dict[str, Any]:
    """What came between two moments. Gaps between tokens are those of the whole play."""
    arrival = scenario.work.arrival_s
    mine = (arrival >= since) & (arrival < until)
    good = in_time(scenario, played)
    ttft = np.sort(played.ttft_s[mine])
    p95 = float(ttft[min(ttft.size - 1, math.ceil(QUANTILE * ttft.size) - 1)])
    actions = [action for action in played.actions if since <= action.at_s < until]
    decided = [a.at_s for a in played.actions] if played.decided_s is None else played.decided_s
    return {
        "scenario": scenario.name,
        "policy": policy,
        "cost_usd": round(replica_s / HOUR * scenario.usd_per_replica_hour, 2),
        "within_objective": round(float(good[mine].mean()), 5),
        "ttft_p95_s": round(p95, 4) if math.isfinite(p95) else None,
        "itl_p95_s": round(played.gaps.quantile(QUANTILE), 5),
        "changes": sum(since <= at < until for at in decided),
        "moves": len(actions),
        "wrong_shrinks": wrong_shrinks(scenario, actions, good),
        "breach_hours": [h for h in breach_hours(scenario, good) if since <= h * HOUR < until],
    }


def breach_hours(scenario: Scenario, good: NDArray[np.bool_]) -> list[int]:
    """The hours, counted from 0, in which fewer than 95 % of the requests were in time."""
    hours = range(math.ceil(scenario.duration_s / HOUR))
    return [h for h in hours if _breached(scenario.work.arrival_s, good, h * HOUR, (h + 1) * HOUR)]


def wrong_shrinks(scenario: Scenario, actions: Sequence[Action], good: NDArray[np.bool_]) -> int:
    """Shrinks after which, within an hour, a step of five minutes was in breach that the count before would have held."""
    wrong = 0
    arrival = scenario.work.arrival_s
    for action in actions:
        if action.after >= action.before:
            continue
        end = min(action.at_s + JUDGED_S, scenario.duration_s)
        breached = _breached_steps(arrival, good, action.at_s, end)
        wrong += bool(breached) and bool(breached - _kept(scenario, action, end))
    return wrong


def _kept(scenario: Scenario, action: Action, end: float) -> set[int]:
    """The steps that would have been in breach with the count before."""
    since = max(0.0, action.at_s - WARM_S)
    part = cut(scenario.work, since, end)
    same = replace(scenario, work=part, duration_s=end - since)
    would = in_time(same, play_static(same, action.before))
    return _breached_steps(part.arrival_s + since, would, action.at_s, end)


def _breached_steps(arrival: Floats, good: NDArray[np.bool_], since: float, end: float) -> set[int]:
    steps = range(math.ceil((end - since) / STEP_S))
    return {i for i in steps if _breached(arrival, good, since + i * STEP_S, min(end, since + (i + 1) * STEP_S))}


def _breached(arrival: Floats, good: NDArray[np.bool_], since: float, end: float) -> bool:
    """Whether fewer than 95 % of the requests that arrived then were in time. False where hardly any came."""
    first, last = np.searchsorted(arrival, (since, end), "left")
    return bool(last - first >= LEAST_REQUESTS and good[first:last].mean() < QUANTILE)


def cut(work: Workload, since: float, until: float) -> Workload:
    """The requests that arrive in [since, until), from 0 on."""
    first, last = np.searchsorted(work.arrival_s, (since, until), "left")
    part = slice(int(first), int(last))
    return Workload(
        work.arrival_s[part] - since, work.prompt_tokens[part], work.output_tokens[part], work.prefix_tokens[part]
    )


def timeline(scenario: Scenario, policy: str, played: Play, step_s: float = STEP_S) -> list[dict[str, Any]]:
    """Rows over time: replicas that take requests (at the step's start), requests a second, TTFT p95 and the share in time."""
    arrival, good = scenario.work.arrival_s, in_time(scenario, played)
    moments, counts = np.array([at for at, _ in played.ready]), [n for _, n in played.ready]
    rows = []
    for start in np.arange(0.0, scenario.duration_s, step_s):
        first, last = np.searchsorted(arrival, (start, start + step_s), "left")
        some = last > first
        rows.append(
            {
                "scenario": scenario.name,
                "policy": policy,
                "at_s": int(start),
                "replicas": counts[int(np.searchsorted(moments, start, "right")) - 1],
                "requests_per_s": round(float(last - first) / step_s, 3),
                "ttft_p95_s": round(float(np.quantile(played.ttft_s[first:last], QUANTILE)), 4) if some else None,
                "within_objective": round(float(good[first:last].mean()), 4) if some else None,
            }
        )
    return rows


def spread(scenario: Scenario, seed: int) -> Scenario:
    """The same requests, arriving at one rate."""
    work = scenario.work
    arrival = np.sort(np.random.default_rng(seed).random(len(work))) * scenario.duration_s
    return replace(scenario, work=replace(work, arrival_s=arrival))


# -- traffic -----------------------------------------------------------------------------------------------------------


def arrivals(rate: Callable[[Floats], Floats], top: float, duration_s: float, seed: int) -> Floats:
    """A Poisson process of which ``rate`` gives the requests per second at each moment, never above ``top``."""
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.random(int(rng.poisson(top * duration_s)))) * duration_s
    kept: Floats = drawn[rng.random(drawn.size) * top < rate(drawn)]
    return kept
