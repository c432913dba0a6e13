"""The nouns of change: Shape, Operation, Need, Plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Literal
from zoneinfo import ZoneInfo

EngineValue = int | float | str | bool


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """What an autoscaler keeps to. Flyball tunes it, and never sets the count that it owns."""

    least: int
    most: int
    targets: Mapping[str, float] = field(default_factory=dict)
    """By the autoscaler's own name of the metric: ``cpu`` 0.7, ``vllm:num_requests_waiting`` 5."""


#: Names of the days of the week, from Monday on.
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
EVERY_DAY = (0, 1, 2, 3, 4, 5, 6)


@dataclass(frozen=True, slots=True)
class ScheduleStep:
    """From a time of day on, so many replicas are wanted."""

    at: str
    """``HH:MM`` of the schedule's zone: when the change is begun, a cold start before more of them are needed."""
    replicas: int
    days: tuple[int, ...] = EVERY_DAY
    """0 (Monday) to 6."""

    @property
    def minute(self) -> int:
        """Of the day."""
        hour, _, minute = self.at.partition(":")
        return 60 * int(hour) + int(minute)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Replicas by the time of day. Raises ValueError without a step, or with a time or day that there is not."""

    steps: tuple[ScheduleStep, ...]
    zone: str = "UTC"

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("a schedule has at least one step")
        for step in self.steps:
            if not 0 <= step.minute < 24 * 60 or not step.days or set(step.days) - set(EVERY_DAY) or step.replicas < 0:
                raise ValueError(f"{step}: a time from 00:00 to 23:59, days from 0 to 6, and replicas, 0 or more")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schedule:
        steps = (ScheduleStep(**{**step, "days": tuple(step.get("days", EVERY_DAY))}) for step in data["steps"])
        return cls(tuple(steps), data.get("zone", "UTC"))

    @property
    def least(self) -> int:
        return min(step.replicas for step in self.steps)

    @property
    def most(self) -> int:
        return max(step.replicas for step in self.steps)

    def replicas_at(self, now: float) -> int:
        """What is wanted at that moment (Unix seconds): the last step's count that was due by the clocks of its zone."""
        local = datetime.fromtimestamp(now, ZoneInfo(self.zone))
        for back in range(8):
            day = local.date() - timedelta(days=back)
            due = [
                s
                for s in self.steps
                if day.weekday() in s.days and (back or s.minute <= 60 * local.hour + local.minute)
            ]
            if due:
                return max(due, key=lambda step: step.minute).replicas
        return self.most

    def course(self) -> list[int]:
        """(7 * 24 * 60,) the count of each minute of a week from Monday, 0:00."""
        known: dict[int, int] = {day * 1440 + s.minute: s.replicas for s in self.steps for day in s.days}
        moments = sorted(known)
        course = [known[moments[-1]]] * moments[0]
        for begin, end in pairwise([*moments, 7 * 1440]):
            course += [known[begin]] * (end - begin)
        return course

    @property
    def mean(self) -> float:
        """Replicas on average over a week."""
        course = self.course()
        return sum(course) / len(course)

    def changes(self) -> list[tuple[int, int]]:
        """(before, after) of every step that changes something, over a week."""
        course = self.course()
        return [(a, b) for a, b in pairwise([course[-1], *course]) if a != b]

    def label(self) -> str:
        """For people: ``2 from 20:00, 4 from 06:50``; with days where they differ."""
        parts: dict[tuple[int, ...], list[str]] = {}
        for step in sorted(self.steps, key=lambda step: (step.days, step.minute)):
            parts.setdefault(step.days, []).append(f"{step.replicas} from {step.at}")
        said = [(f"{_days(days)}: " if days != EVERY_DAY else "") + ", ".join(each) for days, each in parts.items()]
        return "; ".join(said) + f" ({self.zone})"


def _days(days: tuple[int, ...]) -> str:
    """``mon-fri``, ``sat,sun``."""
    runs: list[list[int]] = []
    for day in sorted(days):
        if runs and runs[-1][-1] == day - 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    return ",".join(DAYS[r[0]] if len(r) == 1 else f"{DAYS[r[0]]}-{DAYS[r[-1]]}" for r in runs)


@dataclass(frozen=True, slots=True)
class Purchase:
    """Capacity that is bought and not run: a rate limit or provisioned throughput."""

    amount: int
    unit: Literal["tokens_per_minute", "ptu", "requests_per_minute"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What an endpoint runs on. Unknown is None: a reader of shapes must not take it for a default."""

    replicas: int | None = None
    """None beside ``autoscaling``: the autoscaler's, and how many serve is ``LiveState.serving``."""
    size: str | None = None
    """VM size, instance type, or a name from the settings' ``sizes``."""
    accelerator: str | None = None
    accelerator_count: int | None = None
    """Per replica."""
    cpus: float | None = None
    """Per replica: cores that it may use, where that is no property of ``size``."""
    memory_gb: float | None = None
    """Per replica, likewise."""
    engine: Mapping[str, EngineValue] = field(default_factory=dict)
    """Engine limits by their vLLM names: max_num_seqs, max_num_batched_tokens, tensor_parallel_size ..."""
    autoscaling: Autoscaling | None = None
    """The autoscaler's bounds and targets, where one owns the replica count."""
    schedule: Schedule | None = None
    """Replicas by the time of day, kept by Flyball; ``replicas`` is then the count of the moment."""
    purchase: Purchase | None = None
    tier: str | None = None
    """The vendor's kind of offer: Standard, GlobalStandard, spot ..."""
    region: str | None = None
    extra: Mapping[str, EngineValue] = field(default_factory=dict)
    """What only this system knows: compared and hashed, and read by nobody else."""

    def with_(self, **changes: Any) -> Shape:
        """A copy with the named fields changed; ``engine`` and ``extra`` entries are merged, not replaced."""
        for name in ("engine", "extra"):
            if name in changes:
                changes[name] = {**getattr(self, name), **changes[name]}
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, without what is unknown."""
        return {name: value for name, value in asdict(self).items() if value is not None and value != {}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Shape:
        """The reverse of ``as_dict``. Raises TypeError on an unknown key."""
        fields = dict(data)
        if fields.get("autoscaling") is not None:
            fields["autoscaling"] = Autoscaling(**fields["autoscaling"])
        if fields.get("purchase") is not None:
            fields["purchase"] = Purchase(**fields["purchase"])
        if fields.get("schedule") is not None:
            fields["schedule"] = Schedule.from_dict(fields["schedule"])
        return cls(**fields)

    def label(self) -> str:
        """One short line for people: ``2 x Standard_NC24ads_A100_v4, max_num_seqs=64``."""
        count = self.accelerator_count or 1
        what = self.size or (f"{count} x {self.accelerator}" if self.accelerator and count > 1 else self.accelerator)
        parts = []
        if self.replicas is not None:
            one = f"({what})" if what and what != (self.size or self.accelerator) else what
            parts.append(f"{self.replicas} x {one}" if one else f"{self.replicas} replica{'s' * (self.replicas != 1)}")
        elif what:
            parts.append(what)
        if self.autoscaling is not None:
            parts.append(f"autoscaled {self.autoscaling.least}..{self.autoscaling.most}")
            parts += [f"{name} {value:g}" for name, value in sorted(self.autoscaling.targets.items())]
        if self.schedule is not None:
            parts.append(f"by schedule {self.schedule.label()}")
        if self.purchase is not None:
            parts.append(f"{self.purchase.amount} {_UNITS[self.purchase.unit]}")
        parts += [f"{n:g} {unit}" for n, unit in ((self.cpus, "CPUs"), (self.memory_gb, "GB")) if n is not None]
        parts += [text for text in (self.tier, self.region) if text is not None]
        parts += [f"{k}={v}" for k, v in sorted({**self.engine, **self.extra}.items())]
        return ", ".join(parts) or "unknown shape"


def difference(before: Shape, after: Shape) -> str:
    """What changes, for people: ``replicas 4 → 2, max_num_seqs 8 → 16``. Empty: nothing does."""
    old, new = _flat(before), _flat(after)
    if old.get("size") != new.get("size"):  # what a size is made of changes with it, and says nothing more
        old, new = ({k: v for k, v in d.items() if k not in _OF_A_SIZE} for d in (old, new))
    names = [n for n in (*old, *(n for n in new if n not in old)) if old.get(n) != new.get(n)]
    return ", ".join(f"{n.replace('_', ' ') if n in _SPOKEN else n} {_said(old, n)} → {_said(new, n)}" for n in names)


_OF_A_SIZE = ("accelerator", "accelerator_count", "cpus", "memory_gb")
_SPOKEN = ("accelerator_count", "memory_gb")


def _flat(shape: Shape) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in shape.as_dict().items():
        if name == "purchase":
            flat[_UNITS[value["unit"]]] = value["amount"]
            continue
        if name == "schedule":
            flat[name] = shape.schedule.label() if shape.schedule is not None else None
            continue
        inner = value if isinstance(value, dict) else {name: value}
        flat |= inner.pop("targets", {}) if "targets" in inner else {}
        flat |= inner
    return flat


def _said(flat: Mapping[str, Any], name: str) -> str:
    value = flat.get(name)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


_UNITS = {"tokens_per_minute": "tokens/min", "ptu": "PTU", "requests_per_minute": "requests/min"}


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of a plan. Idempotent: doing it twice is the same as doing it once."""

    name: str
    args: Mapping[str, Any]
    deadline_s: float
    """How long it may take until ``Actuator.done`` says so; longer is a failure."""
    summary: str
    """For people: what it does, in one line."""
    hold_s: float = 0.0
    """Seconds to wait after it, before the next one."""
    gate: bool = False
    """After it and its wait, the objective is judged on what was observed since; missed, the change turns back."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a plan needs of its system: quota, capacity, a permission. Shown, and asked for again when it is applied."""

    what: str
    wanted: float
    free: float | None
    """None: the system does not tell."""
    may_grow: bool = False
    """Whether more of it comes when it is asked for, as nodes are added to a cluster: then too little free is no refusal."""

    @property
    def met(self) -> bool | None:
        if self.free is None or (self.may_grow and self.free < self.wanted):
            return None
        return self.free >= self.wanted


@dataclass(frozen=True, slots=True)
class Plan:
    """Ordered operations that lead from one shape to another, with what must be true right before the first of them."""

    endpoint: str
    system: str
    before: Shape
    after: Shape
    version: str
    """The precondition: ``LiveState.version`` must still be this. A different version means that somebody else acted: the plan is void."""
    operations: tuple[Operation, ...]
    """Up to what is verified."""
    restarts: bool
    """Whether running sequences are interrupted or drained."""
    downtime_s: float
    """Estimated seconds in which less than ``before`` or ``after`` serves."""
    way_back: str
    """For people: how it is undone."""
    finish: tuple[Operation, ...] = ()
    """After a verdict of success only: delete the old one. Until then the way back is short."""
    undo: Mapping[str, Any] = field(default_factory=dict)
    """What the way back needs and no Shape says. No secret."""
    locks: tuple[str, ...] = ()
    """Names of what no two changes may touch at once, wider than the endpoint: an account, a whole configuration."""
    needs: tuple[Need, ...] = ()
    by_hand: str | None = None
    """Where somebody else owns what would be changed: the patch to give to him. Then there are no operations."""
    by_merge: bool = False
    """Whether it is shown as a branch of a repository, and approved by the merge of that, and at no other door."""

    @property
    def hash(self) -> str:
        """``sha256:`` and the digest of the canonical JSON of everything that will be done. Approvals name this."""
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        whole = {
            **asdict(self),
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "operations": [asdict(o) for o in self.operations],
            "finish": [asdict(o) for o in self.finish],
            "locks": list(self.locks),
            "needs": [asdict(n) for n in self.needs],
        }
        if not self.by_merge:  # plans of before have no such word, and their hashes stay
            del whole["by_merge"]
        return whole

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        fields = dict(data)
        fields["before"] = Shape.from_dict(fields["before"])
        fields["after"] = Shape.from_dict(fields["after"])
        for name, made in (("operations", Operation), ("finish", Operation), ("needs", Need)):
            fields[name] = tuple(made(**item) for item in fields.get(name, ()))
        fields["locks"] = tuple(fields.get("locks", ()))
        return cls(**fields)
