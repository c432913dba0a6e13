"""One simulated world for all policies: the same traffic and the same hidden truth, whoever sets the number of replicas.

Owns what a scenario is beside its case, and how a policy's play is scored. The truth is the replay's own machine, with an engine that no
policy is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzers.autoscaling.case import (
    HOUR,
    QUANTILE,
    Action,
    FleetCase,
    Play,
    SizeChange,
    breach_hours,
    breached_steps,
    cut,
    in_time,
    play_static,
)
from analyzers.whatif.kernel import KernelMachine
from analyzers.whatif.scaling import ScalingInput
from benchmarks.sizes import MachineSize, SizedMachine
from collectors.workload import Floats

#: What is read at a tick, each with an error of its own.
READ = ("arrivals_per_s", "running", "waiting", "kv_usage")
#: A shrink is judged by what came within so long after it: Flyball's own pause between two changes.
JUDGED_S = 3600.0
#: Within it, by the share of requests in time in steps of so long.
STEP_S = 300.0
#: Before a shrink's counterfactual is judged, the queue of the old shape fills for so long.
WARM_S = 300.0


@dataclass(frozen=True)
class Scenario(FleetCase):
    """A case whose engine nobody is told, and how it is scored."""

    starts_at: float = 1_699_941_600.0
    """Unix seconds of the first moment: a Tuesday, 6:00 UTC."""
    decide_s: float = 300.0
    """Between two of Flyball's analyses."""
    missing: float = 0.0
    """The share of minutes whose telemetry nobody gets: an autoscaler then keeps the count, and Flyball has no window of it."""
    noise: float = 0.0
    """Everybody's readings are wrong by so much: the standard deviation of the logarithm of what is read over what is true."""
    sizes: tuple[MachineSize, ...] = ()
    """What its replicas may be of, the one that they are of at the start first. Empty: there is but one."""
    learning_s: float = 0.0
    """The first so many seconds are scored apart: a policy that learns the season of a load has not seen it yet."""
    earlier: Scenario | None = None
    """The same endpoint's traffic of another time: what the peers' settings are searched on. None: there is none."""

    def machine(self) -> KernelMachine:
        if not self.sizes:
            return super().machine()
        return SizedMachine(self.work, [size.model for size in self.sizes], self.replicas)

    def on(self, size: MachineSize) -> Scenario:
        """All of it on that size from the start."""
        return replace(self, model=size.model, usd_per_replica_hour=size.usd_per_replica_hour, sizes=())

    def dark(self, at_s: float) -> bool:
        """Whether telemetry lacks in the minute that ends then, or is under way."""
        if self.missing == 0.0:
            return False
        minute = math.ceil(at_s / 60.0)
        return float(np.random.default_rng([17, minute]).random()) < self.missing

    def errors(self, at_s: float, size: int) -> Floats:
        """(size,) what each figure that is read then is multiplied by; the same for whoever reads it."""
        if self.noise == 0.0:
            return np.ones(size)
        drawn: Floats = np.exp(self.noise * np.random.default_rng([19, round(at_s)]).standard_normal(size))
        return drawn

    def read(self, seen: ScalingInput) -> ScalingInput:
        """As an autoscaler reads it."""
        if self.noise == 0.0:
            return seen
        errors = dict(zip(READ, self.errors(seen.at_s, len(READ)).tolist(), strict=True))
        usage = None if seen.kv_usage is None else min(1.0, seen.kv_usage * errors["kv_usage"])
        return replace(
            seen, kv_usage=usage, **{name: getattr(seen, name) * errors[name] for name in READ if name != "kv_usage"}
        )


# -- scores ------------------------------------------------------------------------------------------------------------


def score(scenario: Scenario, policy: str, played: Play) -> list[dict[str, Any]]:
    """Its row of the table, and before it one of the time that is scored apart, where there is some."""
    since = scenario.learning_s
    learning = played.paid_s(since)
    rows = [_score(scenario, policy, played, since, scenario.duration_s, played.paid_s(scenario.duration_s) - learning)]
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
        "wrong_shrinks": wrong_shrinks(scenario, actions, good, played.sizes),
        "breach_hours": [h for h in breach_hours(scenario, good) if since <= h * HOUR < until],
    }


def wrong_shrinks(
    scenario: Scenario, actions: Sequence[Action], good: NDArray[np.bool_], sizes: Sequence[SizeChange] = ()
) -> int:
    """Shrinks after which, within an hour, a step of five minutes was in breach that the count before would have held."""
    wrong = 0
    for action in actions:
        if action.after >= action.before:
            continue
        end = min(action.at_s + JUDGED_S, scenario.duration_s)
        breached = set(breached_steps(scenario, good, action.at_s, end, STEP_S))
        model = next((size.model for size in reversed(sizes) if size.at_s <= action.at_s), scenario.model)
        same = replace(scenario, model=model, sizes=())
        wrong += bool(breached) and bool(breached - _kept(same, action, end))
    return wrong


def _kept(scenario: Scenario, action: Action, end: float) -> set[int]:
    """The steps that would have been in breach with the count before."""
    since = max(0.0, action.at_s - WARM_S)
    same = replace(scenario, work=cut(scenario.work, since, end), duration_s=end - since)
    would = in_time(same, play_static(same, action.before))
    return set(breached_steps(same, would, action.at_s - since, end - since, STEP_S))


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
