"""A conclusion with its evidence. Codes are stable: people filter on them, and the pages explain them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal[
    "breach",
    "trend",
    "saturation",
    "idle",
    "regression",
    "burn",
    "anomaly",
    "reference",
    "cost",
    "contradiction",
    "insufficient_data",
]
Severity = Literal["info", "warning", "critical"]


@dataclass(frozen=True, slots=True)
class Reason:
    """A stable code and its numbers: ``QUEUE_WAITING {"waiting_mean": 7.2, "running_mean": 8.0}``."""

    code: str
    text: str
    """One sentence for people, numbers included."""
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cause:
    """Whose a finding is: ``OWN`` (the endpoint's), ``TRAFFIC``, ``TRAFFIC_OR_MODEL``; and what shows it, in one clause."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """Which telemetry a conclusion rests on."""

    start: float
    end: float
    windows: int
    coverage: float
    """Mean coverage of the span, gaps counted as 0."""
    requests: float | None
    source: str


@dataclass(frozen=True, slots=True)
class Finding:
    endpoint: str
    kind: Kind
    severity: Severity
    reason: Reason
    evidence: Evidence
    cause: Cause | None = None
    """None: nothing tells it."""

    @property
    def refutes(self) -> bool:
        """Whether it takes the ground from a replay. Another name of the model does not: what was measured is of what is served."""
        return self.kind == "contradiction" and self.reason.code != "OTHER_MODEL"

    @property
    def key(self) -> str:
        """The same conclusion seen again updates one row."""
        return f"{self.endpoint}/{self.kind}/{self.reason.code}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint,
            "kind": self.kind,
            "severity": self.severity,
            "code": self.reason.code,
            "text": self.reason.text,
            "numbers": dict(self.reason.numbers),
            "cause": None if self.cause is None else {"code": self.cause.code, "text": self.cause.text},
            "evidence": {k: getattr(self.evidence, k) for k in Evidence.__slots__},
        }
