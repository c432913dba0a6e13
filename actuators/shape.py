"""The nouns of change: Shape, Operation, Plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

EngineValue = int | float | str | bool


@dataclass(frozen=True, slots=True)
class Shape:
    """What an endpoint runs on. Unknown is None: a reader of shapes must not take it for a default."""

    replicas: int | None = None
    size: str | None = None
    """VM size, instance type, or a name from the settings' ``sizes``."""
    accelerator: str | None = None
    accelerator_count: int | None = None
    """Per replica."""
    engine: Mapping[str, EngineValue] = field(default_factory=dict)
    """Engine limits by their vLLM names: max_num_seqs, max_num_batched_tokens, tensor_parallel_size ..."""
    capacity: int | None = None
    """Purchased capacity: tokens per minute or PTU, as ``billing`` says."""
    billing: str = "hourly"
    """hourly | per_token | ptu | serverless"""
    min_replicas: int | None = None
    """The autoscaler's bounds, where one owns the replica count."""
    max_replicas: int | None = None

    def with_(self, **changes: Any) -> Shape:
        """A copy with the named fields changed; ``engine`` entries are merged, not replaced."""
        if "engine" in changes:
            changes["engine"] = {**self.engine, **changes["engine"]}
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, without what is unknown."""
        return {k: (dict(v) if k == "engine" else v) for k, v in asdict(self).items() if v is not None and v != {}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Shape:
        """The reverse of ``as_dict``. Raises TypeError on an unknown key."""
        return cls(**data)

    def label(self) -> str:
        """One short line for people: ``2 x Standard_NC24ads_A100_v4, max_num_seqs=64``."""
        what = self.size or (f"{self.accelerator_count or 1} x {self.accelerator}" if self.accelerator else None)
        parts = []
        if self.replicas is not None:
            parts.append(
                f"{self.replicas} x {what}" if what else f"{self.replicas} replica{'s' * (self.replicas != 1)}"
            )
        elif what:
            parts.append(what)
        if self.min_replicas is not None or self.max_replicas is not None:
            parts.append(f"autoscaled {self.min_replicas}..{self.max_replicas}")
        if self.capacity is not None:
            parts.append(f"{self.capacity} {'PTU' if self.billing == 'ptu' else 'tokens/min'}")
        parts += [f"{k}={v}" for k, v in sorted(self.engine.items())]
        return ", ".join(parts) or "unknown shape"


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of a plan. Idempotent: doing it twice is the same as doing it once."""

    name: str
    args: Mapping[str, Any]
    deadline_s: float
    """How long it may take until ``Actuator.done`` says so; longer is a failure."""
    summary: str
    """For people: what it does, in one line."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Ordered operations that lead from one shape to another, with what must be true right before the first of them."""

    endpoint: str
    system: str
    before: Shape
    after: Shape
    version: str
    """The precondition: ``Live.version`` must still be this. A different version means that somebody else acted: the plan is void."""
    operations: tuple[Operation, ...]
    restarts: bool
    """Whether running sequences are interrupted or drained."""
    downtime_s: float
    """Estimated seconds in which less than ``before`` or ``after`` serves."""
    way_back: str
    """For people: how it is undone."""

    @property
    def hash(self) -> str:
        """``sha256:`` and the digest of the canonical JSON of everything that will be done. Approvals name this."""
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint,
            "system": self.system,
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "version": self.version,
            "operations": [
                {"name": o.name, "args": dict(o.args), "deadline_s": o.deadline_s, "summary": o.summary}
                for o in self.operations
            ],
            "restarts": self.restarts,
            "downtime_s": self.downtime_s,
            "way_back": self.way_back,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        fields = dict(data)
        fields["before"] = Shape.from_dict(fields["before"])
        fields["after"] = Shape.from_dict(fields["after"])
        fields["operations"] = tuple(Operation(**o) for o in fields["operations"])
        return cls(**fields)
