"""Autoscaler policies inside a replay, as pure functions: what was seen and the own state in, replicas wanted and the next state out.

The same rules as outside (HPA, KEDA, Knative's KPA, Flyball's own), so that a replay can ask what each would have done. A policy
holds no clock: time is in what it is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Seen:
    """What a policy is told at one tick. Means are over the time since the tick before, over all replicas together."""

    at_s: float
    ready: int
    """Replicas that take requests."""
    starting: int
    """Asked for, and still in their cold start."""
    arrivals_per_s: float
    running: float
    """Mean sequences in the batches."""
    waiting: float
    """Mean requests that wait, at replicas and at the router (which holds them while no replica is ready)."""
    kv_usage: float | None
    """0..1, mean over ready replicas, at the tick. None: the cache is not limited, or no replica is ready."""

    @property
    def in_flight(self) -> float:
        return self.running + self.waiting


class Policy(Protocol):
    """Asked every ``interval_s`` of simulated time."""

    @property
    def interval_s(self) -> float: ...

    def __call__(self, seen: Seen, state: Any) -> tuple[int, Any]:
        """(replicas wanted: ready and starting together, the next state). ``state`` is None at the first tick."""
        ...
