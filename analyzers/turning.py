"""What would change a recommendation: the load, the limit and the price from which on it would be another one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from analyzers.finding import Reason
from analyzers.objective import mean_rate
from analyzers.policy import Catalogue
from analyzers.prediction import Predictor
from analyzers.recommendation import Recommendation
from analyzers.screening import carries, replayed_targets
from analyzers.situation import Situation
from analyzers.words import figure, lasting, phrase

#: Loads are tried up to so many times the one that was observed, and down to one in so many, to this ratio.
WIDEST, RATIO = 8.0, 1.05


def turning_points(
    advice: Recommendation, s: Situation, catalogue: Catalogue, predictor: Predictor
) -> tuple[Reason, ...]:
    """Each with its number; none where it cannot be told. Loads are multiples of the one observed, the objective's margin kept."""
    found = [_load(advice, s, predictor), _limit(advice, s), _price(advice, s, catalogue)]
    return tuple(reason for reason in found if reason is not None)


def _load(advice: Recommendation, s: Situation, predictor: Predictor) -> Reason | None:
    """Of more replicas: below which load the present ones would do. Of fewer: above which load these would not."""
    grows = advice.direction == "grow"
    shape = (advice.current if grows else advice.proposed).shape.with_(schedule=None)

    def does(factor: float) -> bool | None:
        return carries(s, predictor, shape, factor, "mid" if grows else "high")

    factor = _most(does)
    if factor is None:
        return None
    rate = mean_rate(s.windows, "requests")
    load = f"{factor:.2g} times this load" + ("" if rate is None else f", {factor * rate:.3g} requests/s")
    if grows:
        text = f"below {load}, the present shape would do"
    elif factor >= WIDEST:
        text = f"up to {load} it would do, and no more was tried"
    else:
        text = f"above {load}, it would not do"
    return Reason("LOAD", text, {"factor": factor} | ({} if rate is None else {"requests_per_s": factor * rate}))


def _most(does: Callable[[float], bool | None]) -> float | None:
    """The most that is carried, by halving. None: it cannot be told, or not even the least is."""
    low, high = 1.0 / WIDEST, WIDEST
    at_low, at_high = does(low), does(high)
    if at_low is None or at_high is None or not at_low:
        return None
    if at_high:
        return high
    while high / low > RATIO:
        middle = (low * high) ** 0.5
        if does(middle):
            low = middle
        else:
            high = middle
    return low


def _limit(advice: Recommendation, s: Situation) -> Reason | None:
    """The target that is nearest to its limit, and the limit from which on the proposed shape would not do."""
    prediction = advice.proposed.prediction
    if prediction is None:
        return None
    end = "mid" if advice.direction == "grow" else "high"
    known = [t for t in replayed_targets(s) if t.name in prediction.metrics]
    nearest = max(known, key=lambda t: getattr(prediction.metrics[t.name], end) / t.limit, default=None)
    if nearest is None:
        return None
    needed = getattr(prediction.metrics[nearest.name], end) / (1 - s.policy.margin)
    if not 0 < needed < nearest.limit:
        return None
    said = lasting if nearest.quantile is not None else partial(figure, nearest.name)
    text = (
        f"with a limit of the {phrase(nearest.name)} below {said(needed)} (now {said(nearest.limit)}), it would not do"
    )
    return Reason("LIMIT", text, {"limit": needed})


def _price(advice: Recommendation, s: Situation, catalogue: Catalogue) -> Reason | None:
    """Of a saving: the price below which it would not be worth its disruption."""
    price, saving = catalogue.per_replica_hour(advice.proposed.shape), advice.saving_per_month
    if price is None or saving is None or saving <= 0 or advice.proposed.shape.size != advice.current.shape.size:
        return None
    least = price * s.policy.min_saving_per_month / saving
    if least >= price:
        return None
    text = f"with replicas at less than ${least:.2g} an hour (now ${price:.2g}), it would not be worth the change"
    return Reason("PRICE", text, {"usd_per_replica_hour": least})
