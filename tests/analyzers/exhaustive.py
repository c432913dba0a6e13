"""The decision as it is defined: every allowed shape replayed whole, at both loads, and then compared. Slow, and plain."""

from __future__ import annotations

from collections.abc import Sequence

from actuators.shape import Shape
from analyzers.choice import WORTHWHILE_RELIEF, against_shrinking, current_of
from analyzers.finding import Finding
from analyzers.money import HOURS_PER_MONTH
from analyzers.policy import Catalogue, candidates
from analyzers.prediction import CannotPredict, Prediction, Predictor
from analyzers.screening import MAX_SATURATION, replayed_targets
from analyzers.situation import Situation


def chosen_of_all(s: Situation, findings: Sequence[Finding], catalogue: Catalogue, predictor: Predictor) -> Shape | str:
    """The shape, or the code of why there is none."""
    at_present = predictor.predict(s.shape, 1.0)
    rows = [row for shape in candidates(s.shape, s.policy, catalogue)[1:] if (row := _row(s, shape, predictor))]
    room = 1 - s.policy.margin
    cost = {id(shape): catalogue.per_hour(shape) or 0.0 for shape, _, _ in rows}

    def preference(row: tuple[Shape, Prediction, Prediction]) -> tuple[float, int, float]:
        a, b = row[0], s.shape
        touched = (a.size != b.size) + (a.replicas != b.replicas) + (dict(a.engine) != dict(b.engine))
        return cost[id(a)], touched, _worst(s, row[1], "mid")

    meets = [r for r in rows if _worst(s, r[1], "mid") <= room and r[1].saturates <= MAX_SATURATION]
    if any(f.kind == "breach" for f in findings):
        meets, rows = (
            [r for r in some if r[0].size != s.shape.size or (r[0].replicas or 0) >= (s.shape.replicas or 0)]
            for some in (meets, rows)
        )
        if meets:
            return min(meets, key=preference)[0]
        limit = _worst(s, at_present, "mid") * (1 - WORTHWHILE_RELIEF)
        better = [r for r in rows if _worst(s, r[1], "mid") < limit]
        return min(better, key=lambda r: (_worst(s, r[1], "mid"), preference(r)))[0] if better else "NO_SHAPE_MEETS"
    against = against_shrinking(s, findings, current_of(s, catalogue, at_present))
    if against:
        return against[0].code
    present = catalogue.per_hour(s.shape) or 0.0
    roomy = [r for r in meets if _worst(s, r[2], "high") <= room and r[2].saturates == 0 and cost[id(r[0])] < present]
    worth = [
        r
        for r in roomy
        if cost[id(r[0])] <= present * (1 - s.policy.min_saving_share)
        and (present - cost[id(r[0])]) * HOURS_PER_MONTH >= s.policy.min_saving_per_month
    ]
    if worth:
        return min(worth, key=preference)[0]
    return "SAVING_TOO_SMALL" if roomy else "RIGHT_SIZE"


def _row(s: Situation, shape: Shape, predictor: Predictor) -> tuple[Shape, Prediction, Prediction] | None:
    try:
        now, grown = predictor.predict(shape, 1.0), predictor.predict(shape, s.policy.growth)
    except CannotPredict:
        return None
    names = [t.name for t in replayed_targets(s)]
    return (shape, now, grown) if all(n in p.metrics for n in names for p in (now, grown)) else None


def _worst(s: Situation, prediction: Prediction, end: str) -> float:
    return max(getattr(prediction.metrics[t.name], end) / t.limit for t in replayed_targets(s))
