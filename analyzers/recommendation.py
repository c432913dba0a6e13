"""A change of Shape, with why, what it is expected to do, what it costs, and what was not chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from actuators.shape import Shape
from analyzers.finding import Evidence, Reason
from analyzers.objective import Attainment
from analyzers.prediction import Prediction
from analyzers.premortem import Premortem
from analyzers.reference import ReferenceComparison

Direction = Literal["grow", "shrink", "reshape"]
Risk = Literal["low", "medium", "high"]


@dataclass(frozen=True, slots=True)
class Money:
    """US dollars of reserved capacity. None: the price is not known, and no saving is claimed."""

    per_hour: float | None
    per_1k_tokens: float | None
    """Per 1,000 tokens (prompt and output together) that the workload really has."""
    per_request: float | None

    def scaled(self, factor: float) -> Money:
        """Of so many times the capacity under the same load."""
        return Money(
            *(None if v is None else v * factor for v in (self.per_hour, self.per_1k_tokens, self.per_request))
        )

    def as_dict(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in Money.__slots__}


@dataclass(frozen=True, slots=True)
class ObservedTarget:
    """One target of the objective as it is now: measured, never predicted."""

    target: str
    limit: float
    observed: float | None
    """Seconds, or a share. None: unknown."""
    at_least: float | None
    at_most: float | None
    """What it lies between: a histogram only tells a bucket. None: without bound, or unknown."""
    met: bool | None

    @classmethod
    def of(cls, a: Attainment) -> ObservedTarget:
        most = a.at_most if a.at_most is not None and math.isfinite(a.at_most) else None
        return cls(a.target.name, a.target.limit, a.observed, a.at_least, most, a.met)

    def as_dict(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ObservedTarget.__slots__}


@dataclass(frozen=True, slots=True)
class Option:
    """One shape that was considered."""

    shape: Shape
    money: Money
    prediction: Prediction | None
    """None: refused; ``verdict`` says why."""
    verdict: str
    """``chosen``, ``current``, or a stable code for why not: MISSES_OBJECTIVE, COSTS_MORE, SATURATES, CANNOT_PREDICT ..."""
    why: str
    """One sentence with numbers."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "shape": self.shape.as_dict(),
            "label": self.shape.label(),
            "money": self.money.as_dict(),
            "prediction": self.prediction.as_dict() if self.prediction else None,
            "verdict": self.verdict,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The decision, without identity, time, plan or state: those are the agent's."""

    endpoint: str
    direction: Direction
    current: Option
    proposed: Option
    reasons: tuple[Reason, ...]
    options: tuple[Option, ...]
    """All that were considered, ranked: chosen first."""
    saving_per_month: float | None
    """US dollars, 730 hours; negative where it costs more; None where a price is unknown."""
    risk: Risk
    risk_reasons: tuple[str, ...]
    workload: Mapping[str, float]
    """The load that was replayed: request rate, mean lengths, cache hit share, peak factor."""
    evidence: Evidence
    observed: tuple[ObservedTarget, ...] = ()
    """The objective's targets as they are now."""
    premortem: Premortem | None = None
    """What the proposed shape would survive. None: not tried."""
    turning: tuple[Reason, ...] = ()
    """From which load, limit or price on it would be another one."""
    reference: ReferenceComparison | None = None
    """The endpoint as it is, beside the reference server. None: there is none, or it is not known well enough."""

    @property
    def fingerprint(self) -> str:
        """The same advice seen again refreshes one row instead of adding another."""
        after = self.proposed.shape.as_dict()
        return f"{self.endpoint}/{self.direction}/{sorted(after.items(), key=str)}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint,
            "direction": self.direction,
            "current": self.current.as_dict(),
            "proposed": self.proposed.as_dict(),
            "reasons": [{"code": r.code, "text": r.text, "numbers": dict(r.numbers)} for r in self.reasons],
            "options": [o.as_dict() for o in self.options],
            "saving_per_month": self.saving_per_month,
            "risk": self.risk,
            "risk_reasons": list(self.risk_reasons),
            "workload": dict(self.workload),
            "evidence": {k: getattr(self.evidence, k) for k in Evidence.__slots__},
            "observed": [o.as_dict() for o in self.observed],
            "turning": [{"code": r.code, "text": r.text, "numbers": dict(r.numbers)} for r in self.turning],
            "premortem": self.premortem.as_dict() if self.premortem is not None else None,
            "reference": self.reference.as_dict() if self.reference is not None else None,
        }
