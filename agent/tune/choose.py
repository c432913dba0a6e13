"""Which shape is tried next, which need not be tried, and which is best. Pure: trials in, a choice with its reason out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actuators.shape import Shape
from analyzers.limit_search import Limit


@dataclass(slots=True)
class Trial:
    """One shape of a tune, and how far it is."""

    number: int
    name: str
    shape: Shape
    price_per_hour: float | None
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
        rate = self.carries if rate is None else rate
        if self.price_per_hour is None or not rate or not self.output_tokens:
            return None
        return self.price_per_hour / 3600.0 / (rate * self.output_tokens) * 1000.0

    @property
    def spent_usd(self) -> float | None:
        return None if self.price_per_hour is None else self.price_per_hour * self.busy_s / 3600.0

    def as_body(self) -> Mapping[str, Any]:
        """What is kept of it beside its own columns."""
        return {
            "price_per_hour": self.price_per_hour,
            "promised": self.promised,
            "output_tokens": self.output_tokens,
            "sure": self.limit.sure if self.limit is not None else None,
            "steps": self.steps,
        }


def best(trials: Sequence[Trial], demand: float | None) -> Trial | None:
    """With a demand: the cheapest that carries it, else the one that carries most. Without: the cheapest per token; where no price is
    known, the one that carries most. None: none was measured that carries anything."""
    measured = [t for t in trials if t.state == "done" and t.carries]
    return min(measured, key=lambda t: _rank(t, demand), default=None)


def _rank(trial: Trial, demand: float | None) -> tuple[float, ...]:
    carries = trial.carries or 0.0
    if demand is not None:
        if carries < demand:
            return (1.0, -carries)
        return (
            0.0,
            math.inf if trial.price_per_hour is None else trial.price_per_hour,
            trial.shape.replicas or 0,
            -carries,
        )
    cost = trial.cost_per_1k()
    return (math.inf if cost is None else cost, -carries)


def hopeless(trial: Trial, leader: Trial | None, demand: float | None, doubt: float) -> str | None:
    """Why a planned trial cannot win even if it does better than promised by ``doubt`` (a share). None: it may."""
    at_most = None if trial.promised is None else trial.promised * (1.0 + doubt)
    if demand is not None and at_most is not None and at_most < demand:
        return f"predicted to carry {trial.promised:.3g}/s, {at_most:.3g} at most: less than {demand:g}/s"
    if leader is None or leader.carries is None:
        return None
    mine, its = trial.price_per_hour, leader.price_per_hour
    if demand is not None and leader.carries >= demand and mine is not None and its is not None and mine != its:
        return f"dearer than shape {leader.number + 1}, which carries {demand:g}/s" if mine > its else None
    if at_most is None:
        return None
    if demand is None and mine is not None and its is not None:
        return _dearer_per_token(trial, leader, at_most)
    if at_most <= leader.carries:
        return f"predicted to carry {trial.promised:.3g}/s, {at_most:.3g} at most: shape {leader.number + 1} carries {leader.carries:.3g}"
    return None


def _dearer_per_token(trial: Trial, leader: Trial, at_most: float) -> str | None:
    assert trial.price_per_hour is not None
    assert leader.price_per_hour is not None
    assert leader.carries is not None
    # Dollars per request: the answers are as long on each shape.
    if trial.price_per_hour / at_most < leader.price_per_hour / leader.carries:
        return None
    return f"predicted to carry {trial.promised:.3g}/s, {at_most:.3g} at most: dearer per token than shape {leader.number + 1}"


def following(planned: Sequence[Trial], demand: float | None) -> Trial | None:
    """The most promising one; in the order in which they were asked for where nothing is promised yet."""
    return min(planned, key=lambda t: (*_promise(t, demand), t.number), default=None)


def _promise(trial: Trial, demand: float | None) -> tuple[float, ...]:
    if trial.promised is None:
        return (2.0, 0.0, 0.0)
    price = math.inf if trial.price_per_hour is None else trial.price_per_hour
    if demand is not None:
        return (0.0, price, -trial.promised) if trial.promised >= demand else (1.0, -trial.promised, 0.0)
    return (0.0, price / trial.promised if trial.promised else math.inf, -trial.promised)
