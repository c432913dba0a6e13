"""What was saved in a period: what the shape that was given up would have cost and done, less what was really spent.

Money is counted over windows whose cost is known; where the replicas of the shape that was given up follow the load, over those of
which the load is known too. What lies beyond is unknown, and its hours are told. Growth has a negative saving.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from actuators.shape import Shape
from analyzers.money import Tariff, Usage
from analyzers.objective import Objective, attainment
from analyzers.prediction import CannotPredict, Interval
from analyzers.savings.counterfactual import Counterfactual
from collectors.window import Window

HOUR = 3600.0
#: Replays the shape on the windows (the second ones: of the hour before). Raises CannotPredict.
ShapeReplay = Callable[[Sequence[Window], Sequence[Window]], Counterfactual]


@dataclass(frozen=True, slots=True)
class PeriodEvidence:
    """What is known of a period in which another shape could have served."""

    start: float
    end: float
    """Unix seconds: from when the shape was given up, within the period."""
    windows: Sequence[Window]
    """In order."""
    before: Sequence[Window]
    """Of the hour before ``start``."""
    usd: Mapping[float, float | None]
    """By a window's start, what it cost at the price of that moment. None, or absent: not known."""


@dataclass(frozen=True, slots=True)
class Saving:
    """Of one period. None: not known, which is not 0."""

    spent_usd: float | None
    """Really, in the hours that are compared."""
    would_cost_usd: Interval | None
    saved_usd: Interval | None
    hours_compared: float
    hours_unknown: float
    """Of the period: of them neither the one nor the other is known."""
    missed_s: float | None
    """Seconds in which the objective was really missed."""
    missed_unknown_s: float
    """Seconds of which it is not known whether it was."""
    would_miss_s: Interval | None
    """Seconds in which it would have been missed."""
    would_miss_unknown_s: float
    requests: int
    replays: int
    notes: tuple[str, ...]
    unknown: tuple[str, ...]
    """What is not known, and why; a sentence each."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "notes": list(self.notes), "unknown": list(self.unknown)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Saving:
        """The reverse, of a mapping that may hold more."""
        named = {field.name: data[field.name] for field in fields(cls)}
        intervals = {
            name: Interval(**named[name]) if named[name] is not None else None
            for name in ("would_cost_usd", "saved_usd", "would_miss_s")
        }
        return cls(**{**named, **intervals, "notes": tuple(named["notes"]), "unknown": tuple(named["unknown"])})


def reckon(
    shape: Shape, evidence: PeriodEvidence, objective: Objective, tariff: Callable[[float], Tariff], replay: ShapeReplay
) -> Saving:
    """``shape``: the one that was given up; ``tariff``: what it is paid for by, at a moment (Unix seconds)."""
    unknown: list[str] = []
    told = [w for w in evidence.windows if w.coverage > 0 and w.count("requests") is not None]
    lead = [w for w in evidence.before if w.coverage > 0 and w.count("requests") is not None]
    found: Counterfactual | None = None
    if sum(w.count("requests") or 0.0 for w in told) == 0:
        unknown.append("no request is known of this period: nothing could be replayed")
    else:
        try:
            found = replay(told, lead)
        except CannotPredict as refused:
            unknown.append(f"it could not be replayed: {refused.detail}")
    fixed = shape.replicas is not None
    compared = [w for w in (evidence.windows if fixed else told) if evidence.usd.get(w.start) is not None]
    hours = sum(w.duration_s for w in compared) / HOUR
    spent = sum(evidence.usd[w.start] or 0.0 for w in compared) if compared else None
    seen = sum(w.duration_s for w in told)
    would = _cost(shape, compared, tariff, found, seen / HOUR, unknown)
    if len(compared) < len(evidence.windows):
        unknown.append("in some hours what was spent, or what came, is not known")
    missed_s, doubtful_s = _missed(evidence.windows, objective)
    saved = (
        None if would is None or spent is None else Interval(would.low - spent, would.mid - spent, would.high - spent)
    )
    return Saving(
        spent_usd=spent,
        would_cost_usd=would,
        saved_usd=saved,
        hours_compared=hours if saved is not None else 0.0,
        hours_unknown=max(0.0, (evidence.end - evidence.start) / HOUR - (hours if saved is not None else 0.0)),
        missed_s=missed_s,
        missed_unknown_s=max(0.0, evidence.end - evidence.start - sum(w.duration_s for w in evidence.windows))
        + doubtful_s,
        would_miss_s=None if found is None else found.missed_s,
        would_miss_unknown_s=max(
            0.0, evidence.end - evidence.start - (seen if found is not None and found.missed_s is not None else 0.0)
        ),
        requests=0 if found is None else found.requests,
        replays=0 if found is None else found.replays,
        notes=() if found is None else found.notes,
        unknown=(*unknown, *(() if found is None else found.unknown)),
    )


def _cost(
    shape: Shape,
    compared: Sequence[Window],
    tariff: Callable[[float], Tariff],
    found: Counterfactual | None,
    replayed_hours: float,
    unknown: list[str],
) -> Interval | None:
    """US dollars over ``compared``. Replicas that follow the load are those of the replay, at the price of the time."""
    if not compared:
        return None
    hourly = [tariff(w.start).cost(Usage(hours=1.0, replica_hours=1.0)) for w in compared]
    if any(cost.usd is None for cost in hourly):
        unknown.append(f"the price of {shape.label()} is not known")
        return None
    weight = [w.duration_s / HOUR for w in compared]
    each = [(cost.usd or 0.0) * h for cost, h in zip(hourly, weight, strict=True)]  # of one replica
    if shape.replicas is not None:
        counts = [shape.replicas if shape.schedule is None else shape.schedule.replicas_at(w.start) for w in compared]
        return Interval(*(sum(n * usd for n, usd in zip(counts, each, strict=True)),) * 3)
    if found is None or found.replica_hours is None:
        unknown.append("how many replicas it would have run is not known")
        return None
    return found.replica_hours.scaled(sum(each) / replayed_hours)


def _missed(windows: Sequence[Window], objective: Objective) -> tuple[float | None, float]:
    """Seconds of windows in which a target was certainly missed, and of those of which it is not known."""
    targets = [t for t in objective.targets if t.quantile is not None]
    if not targets or not windows:
        return None, sum(w.duration_s for w in windows)
    missed = doubtful = 0.0
    for window in windows:
        met = [attainment([window], target).met for target in targets] if window.coverage > 0 else [None]
        if False in met:
            missed += window.duration_s
        elif None in met and not (window.coverage > 0 and window.count("requests") == 0):
            doubtful += window.duration_s
    return missed, doubtful


@dataclass(frozen=True, slots=True)
class SavingTotal:
    """Several periods together."""

    saved_usd: Interval | None
    """Ends are added to ends, as if all periods erred together: they rest on one calibration. None: not known of any."""
    spent_usd: float | None
    would_cost_usd: Interval | None
    missed_s: float | None
    would_miss_s: Interval | None
    periods: int
    hours_compared: float
    hours_unknown: float

    @classmethod
    def of(cls, savings: Sequence[Saving]) -> SavingTotal:
        known = [s for s in savings if s.saved_usd is not None]
        missed = [s.missed_s for s in savings if s.missed_s is not None]
        return cls(
            saved_usd=_sum([s.saved_usd for s in known]),
            spent_usd=sum(s.spent_usd or 0.0 for s in known) if known else None,
            would_cost_usd=_sum([s.would_cost_usd for s in known]),
            missed_s=sum(missed) if missed else None,
            would_miss_s=_sum([s.would_miss_s for s in savings]),
            periods=len(savings),
            hours_compared=sum(s.hours_compared for s in savings),
            hours_unknown=sum(s.hours_unknown for s in savings),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def _sum(intervals: Sequence[Interval | None]) -> Interval | None:
    known = [i for i in intervals if i is not None]
    if not known:
        return None
    return Interval(sum(i.low for i in known), sum(i.mid for i in known), sum(i.high for i in known))
