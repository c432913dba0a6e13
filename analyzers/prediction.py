"""What a Shape is expected to do under a Workload, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Interval:
    """An 80 % interval: the truth is expected below ``low`` one time in ten, and above ``high`` one time in ten."""

    low: float
    mid: float
    high: float

    def scaled(self, factor: float) -> Interval:
        return Interval(self.low * factor, self.mid * factor, self.high * factor)

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


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


class CannotPredict(Exception):
    """Nothing supports a prediction. ``code`` is stable, the text says what is missing and how to get it."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
