"""What one endpoint is judged by: its windows, its objective, its policy, and the shape that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actuators.shape import Shape
from analyzers.finding import Evidence
from analyzers.forecast.horizon import Horizon
from analyzers.objective import Objective, total
from analyzers.policy import Policy
from collectors.window import Window


@dataclass(frozen=True, slots=True)
class KnownEvent:
    """Something that happened to an endpoint, from which its figures may follow."""

    at: float
    """Unix seconds."""
    text: str


@dataclass(frozen=True, slots=True)
class Situation:
    """One endpoint, as it is judged: the windows of its judged source over ``start``..``end``, gaps left out."""

    endpoint: str
    source: str
    windows: Sequence[Window]
    start: float
    end: float
    objective: Objective
    policy: Policy
    shape: Shape
    per_hour: float | None
    """US dollars per hour of the whole endpoint; None: unknown."""
    lag_s: float = 0.0
    """How far behind the source's newest windows are by nature, in seconds: data that comes late is not stale."""
    settling: bool = False
    """Whether the span is cut short by a change that has only just been made."""
    changing: bool = False
    """Whether a change is being applied, or led back: engines of both shapes may run at once."""
    wanted_s: float | None = None
    """How long the span is to be; it is shorter while the endpoint has not been watched for so long. None: as long as it is."""
    longer: Sequence[Window] = ()
    """Coarse windows of the days before ``end``, where the span itself saw too few requests."""
    horizon: Horizon | None = None
    """The load to come. None: no history of it is at hand, and a choice rests on the span alone."""
    model: str | None = None
    """The model that the settings name."""
    events: Sequence[KnownEvent] = ()
    """Deployments, engines, prices, and Flyball's own changes, about the span."""
    by_platform: bool = False
    """Whether a platform starts and stops instances by itself, and a prediction follows it: it is then of the shape, bounds and all."""
    stated: bool = False
    """Whether the shape, its engine's limits with it, is only what the settings state: no system tells it."""

    def coverage_of(self, metric: str) -> float:
        """The share of the span in which a metric was told."""
        span = self.end - self.start
        told = sum(w.coverage_of(metric) * w.duration_s for w in self.windows)
        return min(1.0, told / span) if span > 0 else 0.0

    def serving(self, shape: Shape) -> float | None:
        """Replicas on average: those of the shape; under an autoscaler, those that were observed, within the shape's bounds."""
        if shape.autoscaling is None:
            return None if shape.replicas is None else float(shape.replicas)
        bounds = shape.autoscaling
        seen = [(min(max(w.targets, bounds.least), bounds.most), w.duration_s) for w in self.windows if w.coverage > 0]
        seconds = sum(duration for _, duration in seen)
        return sum(count * duration for count, duration in seen) / seconds if seconds else None

    @property
    def provisional(self) -> bool:
        """Whether less was seen than a decision to go smaller needs."""
        return self.wanted_s is not None and self.end - self.start < self.policy.min_coverage * self.wanted_s

    @property
    def whole_at(self) -> float | None:
        """When enough will have been seen: Unix seconds. None: it has."""
        return self.start + self.policy.min_coverage * (self.wanted_s or 0.0) if self.provisional else None

    @property
    def evidence(self) -> Evidence:
        span = self.end - self.start
        observed = sum(w.coverage * w.duration_s for w in self.windows)
        return Evidence(
            start=self.start,
            end=self.end,
            windows=len(self.windows),
            coverage=min(1.0, observed / span) if span > 0 else 0.0,
            requests=total(self.windows, "requests"),
            source=self.source,
        )
