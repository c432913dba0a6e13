"""What a replay came to, in one form for all kinds. None: it has no such thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzers.kinds.service import ServiceReplay
from analyzers.objective import Objective
from analyzers.prediction import Prediction
from analyzers.whatif.distribution import Distribution
from analyzers.whatif.engine import Replay
from collectors.workload import Floats, Workload

METRICS = ("ttft_s", "itl_s", "tpot_s", "e2e_s", "queue_s")
QUANTILES = (50, 90, 95, 99)

#: What became of a request; ``Rows.state`` counts in this order.
STATES = ("completed", "rejected", "timed_out", "failed", "gave_up", "unfinished")


@dataclass(frozen=True, slots=True)
class ReplayTraffic:
    """What all candidates have in common."""

    workload: Workload
    objective: Objective
    timeout_s: float | None = None
    """Clients give up after so long."""

    @property
    def limits(self) -> dict[str, float]:
        """Seconds by metric, for goodput: of two limits on one, the wider."""
        found: dict[str, float] = {}
        for target in self.objective.targets:
            if target.quantile is not None:
                found[target.metric] = max(target.limit, found.get(target.metric, 0.0))
        return found


@dataclass(frozen=True, slots=True)
class Rows:
    """(n,) one entry for each request of the workload. A time that never came is below 0."""

    queue_s: Floats
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    state: NDArray[np.int64]
    """Index into ``STATES``."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one replay came to. Means and rates are over the whole of ``simulated_s``."""

    requests: int
    completed: int
    rejected: int
    output_tokens: int
    """Of completed requests."""
    simulated_s: float
    saturated: bool
    running_mean: float | None
    waiting_mean: float | None
    distribution: Callable[[str], Distribution]
    """By canonical name, such as ``ttft_s``; empty where this kind has no such latency."""
    goodput: Callable[[Mapping[str, float]], float | None]
    """Requests per second within all the limits (seconds by canonical name)."""
    rows: Callable[[], Rows]
    timed_out: int | None = None
    failed: int | None = None
    """Lost with a replica that died."""
    gave_up: int | None = None
    """Clients that were refused once too often, or waited too long for a slot."""
    throttled: int | None = None
    """Answers of 429; one request can get several."""
    retries: int | None = None
    """Calls sent again."""
    cold_starts: int | None = None
    spilled_requests: int | None = None
    preemptions: int | None = None
    kv_usage_max: float | None = None
    replica_s: float | None = None
    """Provisioned, summed over replicas or instances."""
    replicas_max: int | None = None
    """The most that there were at once."""
    timeline: tuple[tuple[float, int], ...] | None = None
    """(at_s, replicas that take requests)."""
    used: Mapping[str, float] = field(default_factory=dict)
    """What is paid for, in quantities."""
    gauges: Mapping[str, float] = field(default_factory=dict)
    """What the kind has to say beside."""

    def per_s(self, count: float) -> float | None:
        return count / self.simulated_s if self.simulated_s > 0 else None

    def goodput_per_s(self, limits: Mapping[str, float]) -> float | None:
        return self.goodput(limits) if self.simulated_s > 0 else None

    def summary(self, metric: str) -> dict[str, float | None]:
        """``mean``, ``p50`` ... in seconds."""
        d = self.distribution(metric)
        return {"mean": d.mean, **{f"p{q}": d.quantile(q / 100) for q in QUANTILES}}


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """A system's answer to the traffic."""

    best: Result
    prediction: Prediction | None = None
    """80 % intervals, where the system knows how unsure it is of itself."""


def of_served(got: ServiceReplay, **more: Any) -> Result:
    """The answer of a kind that is no engine."""
    each = got.each
    done = each.e2e_s >= 0.0
    span = got.simulated_s or 1.0
    waited = float(each.queue_s[done].sum())

    def goodput(limits: Mapping[str, float]) -> float | None:
        streams = not got.completed or got.ttft.count
        return got.goodput_per_s(limits) if streams or not {"ttft_s", "tpot_s", "itl_s"} & set(limits) else None

    def rows() -> Rows:
        state = np.select(
            [done, each.rejected], [STATES.index("completed"), STATES.index("rejected")], STATES.index("gave_up")
        )
        return Rows(each.queue_s, each.ttft_s, each.tpot_s, each.e2e_s, state)

    return Result(
        requests=got.requests,
        completed=got.completed,
        rejected=got.rejected,
        gave_up=got.gave_up,
        output_tokens=got.output_tokens,
        simulated_s=got.simulated_s,
        saturated=got.saturated,
        running_mean=float((each.e2e_s - each.queue_s)[done].sum()) / span,
        waiting_mean=None if got.gave_up else waited / span,
        distribution=got.distribution,
        goodput=goodput,
        rows=rows,
        used=got.used,
        gauges=got.gauges,
        **more,
    )


def calls(got: ServiceReplay) -> dict[str, int]:
    """What 429 came to."""
    return {"throttled": got.throttled, "retries": int(np.maximum(got.each.tries - 1, 0).sum())}


def of_replay(got: Replay) -> Result:
    """The answer of ``analyzers.whatif.engine``."""
    each = got.per_request

    def rows() -> Rows:
        became = (each.e2e_s >= 0, each.rejected, each.timed_out, each.failed)
        state = np.select(became, [STATES.index(s) for s in STATES[:4]], STATES.index("unfinished"))
        return Rows(each.queue_s, each.ttft_s, np.where(each.output_tokens > 1, each.tpot_s, -1.0), each.e2e_s, state)

    return Result(
        requests=got.requests,
        completed=got.completed,
        rejected=got.rejected,
        timed_out=got.timed_out,
        failed=got.failed,
        preemptions=got.preemptions,
        output_tokens=got.output_tokens,
        simulated_s=got.simulated_s,
        saturated=got.saturated,
        running_mean=got.running_mean,
        waiting_mean=got.waiting_mean,
        kv_usage_max=got.kv_usage_max,
        replica_s=got.replica_s,
        replicas_max=got.replicas_max,
        timeline=got.replicas,
        distribution=got.distribution,
        goodput=got.goodput_per_s,
        rows=rows,
        used={"replica_s": got.replica_s},
    )
