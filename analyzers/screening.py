"""What a prediction must stay within to be of use: the objective's limits with the policy's margin. Values in, values out."""

from __future__ import annotations

from typing import Literal

from actuators.shape import Shape
from analyzers.objective import Target
from analyzers.prediction import Bar, CannotPredict, Miss, Prediction, Predictor
from analyzers.situation import Situation

#: A shape that saturates in more than this share of the draws is not proposed.
MAX_SATURATION = 0.1


def replayed_targets(s: Situation) -> list[Target]:
    """The objective's targets that a replay can predict: what fails is nothing that it knows of."""
    return [t for t in s.objective.targets if t.metric != "error_rate"]


def bar(s: Situation, end: Literal["mid", "high"], *, margin: float | None = None) -> Bar:
    """By the middle of a prediction a few draws may saturate; by its high end, none. margin: default the policy's."""
    room = 1 - (s.policy.margin if margin is None else margin)
    limits = {t.name: t.limit * room for t in replayed_targets(s)}
    return Bar(limits, end, MAX_SATURATION if end == "mid" else 0.0)


def carries(
    s: Situation,
    predictor: Predictor,
    shape: Shape,
    factor: float,
    end: Literal["mid", "high"],
    *,
    margin: float | None = None,
) -> bool | None:
    """Whether the shape meets the objective with margin (default: the policy's) at ``factor`` times the predictor's load.

    None: that cannot be told.
    """
    wanted = bar(s, end, margin=margin)
    try:
        got = predictor.screen(shape, factor, wanted)
    except CannotPredict:
        return None
    if isinstance(got, Miss):
        return False
    targets = replayed_targets(s)
    if not targets or any(t.name not in got.metrics for t in targets):
        return None
    room = 1 - (s.policy.margin if margin is None else margin)
    return worst_of(s, got, end)[0] <= room and got.saturates <= wanted.saturates


def worst_of(s: Situation, prediction: Prediction, end: str) -> tuple[float, str]:
    """The largest share of its limit that any predicted target takes, and that target's name."""
    shares = [
        (getattr(interval, end) / target.limit, target.name)
        for target in s.objective.targets
        if (interval := prediction.metrics.get(target.name)) is not None
    ]
    return max(shares, default=(0.0, "nothing that is predicted"))
