"""Ray Serve's default autoscaling policy, as a pure function."""

from __future__ import annotations

import math
from dataclasses import dataclass

from analyzers.whatif.scaling import ScalingInput


@dataclass(frozen=True, slots=True)
class RayServeState:
    seen: tuple[float, ...]
    """Ongoing requests of the last reports, as many as make the look-back period."""
    wanted: int
    since_s: float | None = None
    """Since when more, or fewer, are wanted without a break."""
    up: bool = False


@dataclass(frozen=True, slots=True)
class RayServe:
    """Ongoing requests over ``target`` times the running replicas, as a ratio r; the replicas running times r, rounded up, are wanted
    once that has been so for ``upscale_delay_s`` or ``downscale_delay_s`` without a break. Factors of 1, its defaults; never to zero.

    Source: ``ray.serve.autoscaling_policy`` of Ray 2.60 (``replica_queue_length_autoscaling_policy``, ``_apply_delay_logic``).
    """

    target: float
    most: int
    least: int = 1
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    look_back: int = 3
    """Reports in its look-back period of 30 s."""
    interval_s: float = 10.0

    def __post_init__(self) -> None:
        if not self.target > 0 or not 1 <= self.least <= self.most:
            raise ValueError("Ray Serve: target > 0 and 1 <= least <= most are expected")

    def __call__(self, seen: ScalingInput, state: RayServeState | None) -> tuple[int, RayServeState]:
        reports = (*(state.seen if state is not None else ()), seen.in_flight)[-self.look_back :]
        wanted = state.wanted if state is not None else seen.ready + seen.starting
        desired = self._desired(sum(reports) / len(reports), seen.ready, wanted)
        if desired == wanted:
            return wanted, RayServeState(reports, wanted)
        up = desired > wanted
        unbroken = state is not None and state.since_s is not None and state.up == up
        since = state.since_s if state is not None and state.since_s is not None and unbroken else seen.at_s
        delay = self.upscale_delay_s if up else self.downscale_delay_s
        if seen.at_s - since + 1e-6 >= delay:
            return desired, RayServeState(reports, desired)
        return wanted, RayServeState(reports, wanted, since, up)

    def _desired(self, ongoing: float, ready: int, wanted: int) -> int:
        if ready == 0:
            return wanted
        desired = ready * (ongoing / (self.target * ready))
        return min(max(math.ceil(desired - 1e-9), self.least), self.most)
