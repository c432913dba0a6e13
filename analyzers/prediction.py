"""What a Shape is expected to do under a Workload, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from actuators.shape import Shape
from analyzers.policy import Catalogue, Policy
from collectors.window import Window
from collectors.workload import Workload


@dataclass(frozen=True, slots=True)
class Interval:
    """An 80 % interval: the truth is expected below ``low`` one time in ten, and above ``high`` one time in ten."""

    low: float
    mid: float
    high: float

    def scaled(self, factor: float) -> Interval:
        return Interval(self.low * factor, self.mid * factor, self.high * factor)

    def wider(self, by: float) -> Interval:
        """With each end ``by`` times as far from the middle, as a ratio."""
        if self.low <= 0 or self.mid <= 0:
            return self
        return Interval(self.mid * (self.low / self.mid) ** by, self.mid, self.mid * (self.high / self.mid) ** by)

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def within(self, limit: float) -> bool | None:
        """Whether the truth is at most ``limit``: yes where the whole interval is, no where its middle is not.

        None: not known. It is likelier than not, and yet the limit lies in the interval.
        """
        return True if self.high <= limit else False if self.mid > limit else None


@dataclass(frozen=True, slots=True)
class Prediction:
    """Metrics of one Shape under one Workload. A metric that the method cannot support is absent."""

    metrics: Mapping[str, Interval]
    """``ttft_p95_s``, ``itl_p95_s``, ``e2e_p95_s``, ``output_tokens_per_s``, ``running_mean``, ``kv_usage_max`` ...: the objective's names."""
    saturates: float
    """Probability, 0..1, that this shape cannot carry this workload (its queue grows without end)."""
    method: str
    """``simulation``, ``roofline+simulation`` ..."""
    error: Mapping[str, float | None] = field(default_factory=dict)
    """The method's measured relative error by metric on this endpoint (median, from the ledger); None: not measured yet, a stated prior."""
    notes: tuple[str, ...] = ()
    extrapolates: bool = False
    """Beyond the loads, or off the hardware, that the method was calibrated on."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "metrics": {k: {"low": v.low, "mid": v.mid, "high": v.high} for k, v in self.metrics.items()},
            "saturates": self.saturates,
            "method": self.method,
            "error": dict(self.error),
            "notes": list(self.notes),
            "extrapolates": self.extrapolates,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Prediction:
        return cls(
            {k: Interval(**v) for k, v in data["metrics"].items()},
            data["saturates"],
            data["method"],
            data["error"],
            tuple(data["notes"]),
            bool(data.get("extrapolates", False)),
        )


@dataclass(frozen=True, slots=True)
class Bar:
    """What a prediction must stay within to be of use: one that certainly does not is given up early."""

    limits: Mapping[str, float]
    """The most of each metric, by the objective's names."""
    end: Literal["mid", "high"]
    """Which end of the interval must stay within them."""
    saturates: float
    """The greatest share of replays that may saturate."""


@dataclass(frozen=True, slots=True)
class Miss:
    """A prediction that was given up, because it would not have stayed within its bar."""

    metric: str | None
    """The one that is above its limit; None: the queue grows without end."""
    share: float
    """Of its limit, as far as it was replayed; of what the shape can carry, where its queue grows."""
    replays: int
    """0: a bound on its work alone told it."""


#: The share of all requests in time, beside each hour's, that an autoscaler's targets must keep.
LEAST_WITHIN = 0.99


@dataclass(frozen=True, slots=True)
class LoadCourse:
    """The load of a day, step by step from its beginning, as multiples of another one's."""

    step_s: float
    factors: tuple[float, ...]

    @property
    def duration_s(self) -> float:
        return self.step_s * len(self.factors)


@dataclass(frozen=True, slots=True)
class AutoscaledDay:
    """What an autoscaler made of a course of load."""

    replicas_mean: float
    """Provisioned, cold starts and emptying included."""
    within: float
    """Share of the requests in time."""
    hours_missed: int
    """Hours in which a smaller share than the objective asks for was in time."""

    @property
    def held(self) -> bool:
        return not self.hours_missed and self.within >= LEAST_WITHIN

    @staticmethod
    def mean_of(days: Sequence[tuple[AutoscaledDay, int]]) -> AutoscaledDay:
        """Of a week with so many of each."""
        n = sum(count for _, count in days)
        return AutoscaledDay(
            sum(day.replicas_mean * count for day, count in days) / n,
            min(day.within for day, _ in days),
            sum(day.hours_missed * count for day, count in days),
        )


class Predictor(Protocol):
    """How shapes would respond to the load observed, or a multiple of it."""

    def knobs(self, shape: Shape, policy: Policy, catalogue: Catalogue, /) -> list[Shape]:
        """What may be proposed instead of ``shape``, itself included."""
        ...

    def predict(self, shape: Shape, factor: float, /) -> Prediction:
        """At ``factor`` times the load. Raises CannotPredict."""
        ...

    def screen(self, shape: Shape, factor: float, bar: Bar, /) -> Prediction | Miss:
        """As ``predict``, given up as soon as the bar is certainly missed. Raises CannotPredict."""
        ...

    def follow(self, shape: Shape, course: LoadCourse, cold_start_s: float, room: float, /) -> AutoscaledDay:
        """A day in which the load takes this course, under the shape's own autoscaler. room: the share of each limit that may be
        taken. Raises CannotPredict, where the autoscaler goes by something that a replay does not tell too."""
        ...

    def under(self, windows: Sequence[Window], /) -> Predictor:
        """The same endpoint under the traffic that these windows saw."""
        ...

    def changed(self, change: Callable[[Workload], Workload], /) -> Predictor:
        """The same endpoint, its requests changed."""
        ...


class CannotPredict(Exception):
    """Nothing supports a prediction. ``code`` is stable, the text says what is missing and how to get it."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Refusal:
    """A ``Predictor`` where nothing supports a prediction, and why."""

    error: CannotPredict

    def knobs(self, shape: Shape, _policy: Policy, _catalogue: Catalogue, /) -> list[Shape]:
        return [shape]

    def predict(self, _shape: Shape, _factor: float, /) -> Prediction:
        raise self.error

    def screen(self, _shape: Shape, _factor: float, _bar: Bar, /) -> Prediction | Miss:
        raise self.error

    def follow(self, _shape: Shape, _course: LoadCourse, _cold_start_s: float, _room: float, /) -> AutoscaledDay:
        raise self.error

    def under(self, _windows: Sequence[Window], /) -> Refusal:
        return self

    def changed(self, _change: Callable[[Workload], Workload], /) -> Refusal:
        return self
