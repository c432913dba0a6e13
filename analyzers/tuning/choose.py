"""Which shape is tried next, which need not be tried, and which is best. Pure: trials in, a choice with its reason out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actuators.shape import Shape
from analyzers.limit_search import Limit
from analyzers.money import Tariff, Unit, Usage, per_1k_tokens

#: The least doubt of a promised limit, as a share, and how much of the greatest error that was seen is added to be on the safe side.
_LEAST_DOUBT, _SAFE = 0.25, 1.5


@dataclass(slots=True)
class Trial:
    """One shape of a tune, and how far it is."""

    number: int
    name: str
    shape: Shape
    usd_per_hour: float | None
    """US dollars of the whole shape. None: unknown."""
    state: str = "planned"
    """``planned``, ``running``, ``done``, ``failed``, ``pruned`` (need not be tried) or ``skipped`` (for want of budget)."""
    why: str = ""
    promised: float | None = None
    """Requests per second that the what-if engine said, before it was measured."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    limit: Limit | None = None
    output_tokens: float | None = None
    """Mean of an answer, as measured."""
    busy_s: float = 0.0
    """From the start of its deployment to the end of its last load."""

    @property
    def carries(self) -> float | None:
        """Requests per second at which the objective held. None: not measured, or none."""
        return self.limit.low if self.limit is not None else None

    def cost_per_1k(self, rate: float | None = None) -> float | None:
        """US dollars of reserved capacity for 1000 output tokens at ``rate``, at its limit where none is given. None: unknown."""
        return _per_1k(self.usd_per_hour, self.carries if rate is None else rate, self.output_tokens)

    @property
    def spent_usd(self) -> float | None:
        return Tariff.of({Unit.HOUR: self.usd_per_hour}).cost(Usage(hours=self.busy_s / 3600.0)).usd

    def as_body(self) -> Mapping[str, Any]:
        """What is kept of it beside its own columns."""
        return {
            "usd_per_hour": self.usd_per_hour,
            "promised": self.promised,
            "output_tokens": self.output_tokens,
            "sure": self.limit.sure if self.limit is not None else None,
            "steps": self.steps,
        }


def best(trials: Sequence[Trial], demand: float | None) -> Trial | None:
    """With a demand: the cheapest that carries it, else the one that carries most. Without: the cheapest per token; where no price is
    known, the one that carries most. What has no price comes after what has one. None: none was measured that carries anything."""
    measured = [t for t in trials if t.state == "done" and t.carries]
    return min(measured, key=lambda t: _rank(t, demand), default=None)


def _rank(trial: Trial, demand: float | None) -> tuple[float, ...]:
    return _ranked(trial, trial.carries or 0.0, trial.output_tokens, demand)


def _ranked(trial: Trial, carries: float, tokens: float | None, demand: float | None) -> tuple[float, ...]:
    """Less is better: as if the trial carried so much, in answers of so many tokens."""
    price = trial.usd_per_hour
    if demand is not None and carries < demand:
        return (1.0, -carries)
    if demand is not None:
        return (0.0, math.inf if price is None else price, trial.shape.replicas or 0, -carries)
    cost = _per_1k(price, carries, tokens)
    return (math.inf if cost is None else cost, -carries)


def _per_1k(usd_per_hour: float | None, rate: float | None, tokens: float | None) -> float | None:
    return per_1k_tokens(usd_per_hour, None if not rate or not tokens else rate * tokens * 3600.0)


def doubt(trials: Sequence[Trial]) -> float:
    """How far above a promise the truth may lie, as a share: from what was promised and what was measured in this very tune."""
    told = [(t.promised, t.carries) for t in trials if t.state == "done" and t.promised and t.carries]
    off = [abs(math.log(carries / promised)) for promised, carries in told if promised and carries]
    return max([_LEAST_DOUBT, *(math.expm1(_SAFE * o) for o in off)])


def hopeless(trial: Trial, leader: Trial | None, demand: float | None, doubt: float) -> str | None:
    """Why a planned trial cannot win even if it does better than promised by ``doubt`` (a share). None: it may."""
    if leader is None or leader.carries is None:
        return None
    at_most = math.inf if trial.promised is None else trial.promised * (1.0 + doubt)
    # The answers are as long on each shape.
    if _ranked(trial, at_most, leader.output_tokens or 1.0, demand) <= _rank(leader, demand):
        return None
    mine, its, number = trial.usd_per_hour, leader.usd_per_hour, leader.number + 1
    told = "" if trial.promised is None else f"predicted to carry {trial.promised:.3g}/s, {at_most:.3g} at most: "
    if demand is not None and leader.carries >= demand:
        if at_most < demand:
            return f"{told}less than {demand:g}/s"
        if mine != its:
            what = "its price is not known, as is that of" if mine is None else "dearer than"
            return f"{what} shape {number}, which carries {demand:g}/s"
        if (trial.shape.replicas or 0) > (leader.shape.replicas or 0):
            return f"more replicas than shape {number}, which carries {demand:g}/s"
    elif demand is None and its is not None:
        return (
            f"its price is not known, as is that of shape {number}"
            if mine is None
            else f"{told}dearer per token than shape {number}"
        )
    return f"{told}shape {number} carries {leader.carries:.3g}"


def following(planned: Sequence[Trial], demand: float | None) -> Trial | None:
    """The most promising one; in the order in which they were asked for where nothing is promised yet."""
    return min(planned, key=lambda t: (*_promise(t, demand), t.number), default=None)


def _promise(trial: Trial, demand: float | None) -> tuple[float, ...]:
    if trial.promised is None:
        return (2.0, 0.0, 0.0)
    price = math.inf if trial.usd_per_hour is None else trial.usd_per_hour
    if demand is not None:
        return (0.0, price, -trial.promised) if trial.promised >= demand else (1.0, -trial.promised, 0.0)
    return (0.0, price / trial.promised if trial.promised else math.inf, -trial.promised)


def at_limit(trial: Trial) -> dict[str, Any] | None:
    """The load at the highest rate that was met; the one user where no rate was. None: nothing was measured."""
    carries = trial.carries
    rates: Sequence[dict[str, Any]] = [s for s in trial.steps if s["kind"] == "rate" and s["rate"] == carries]
    return rates[-1] if rates else next((s for s in trial.steps if s["kind"] == "single"), None)
