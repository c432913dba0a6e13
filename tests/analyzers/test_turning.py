"""From which load, limit or price on a recommendation would be another one: each figure is where the answer really turns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actuators.shape import Shape
from analyzers.policy import Catalogue, Policy
from analyzers.prediction import CannotPredict, Prediction
from analyzers.recommend import recommend
from analyzers.recommendation import Recommendation
from analyzers.screening import carries
from analyzers.situation import Situation
from analyzers.turning import RATIO, turning_points
from analyzers.words import track_record
from tests.analyzers.situations import Whole, promise, situation

PRICED = Catalogue(prices={"small": 1.0})


def slow_beyond(rate: float) -> Whole:
    """Two replicas carry twice as much as one."""

    def predict(shape: Shape, factor: float) -> Prediction:
        return promise(0.4 if factor <= rate * (shape.replicas or 0) else 4.0)

    return Whole(predict)


def shrunk(predictor: Whole) -> tuple[Recommendation, Situation]:
    s = situation(
        shape=Shape(replicas=4, size="small"), policy=Policy(min_replicas=1, max_replicas=4, max_step_replicas=3)
    )
    advice = recommend(s, [], PRICED, predictor).recommendation
    assert advice is not None
    assert advice.direction == "shrink"
    return advice, s


def test_the_load_is_where_the_smaller_shape_stops_to_do() -> None:
    predictor = slow_beyond(0.8)
    advice, s = shrunk(predictor)
    points = {point.code: point for point in turning_points(advice, s, PRICED, predictor)}
    factor = points["LOAD"].numbers["factor"]
    shape = advice.proposed.shape
    assert carries(s, predictor, shape, factor, "high")
    assert not carries(s, predictor, shape, factor * RATIO, "high")
    assert "it would not do" in points["LOAD"].text


def test_the_limit_is_where_the_prediction_with_its_margin_would_miss_it() -> None:
    predictor = slow_beyond(0.8)
    advice, s = shrunk(predictor)
    points = {point.code: point for point in turning_points(advice, s, PRICED, predictor)}
    prediction = advice.proposed.prediction
    assert prediction is not None
    high = prediction.metrics["ttft_p95_s"].high
    assert points["LIMIT"].numbers["limit"] == pytest.approx(high / (1 - s.policy.margin))


def test_the_price_is_where_the_saving_is_the_least_that_is_worth_it() -> None:
    predictor = slow_beyond(0.8)
    advice, s = shrunk(predictor)
    points = {point.code: point for point in turning_points(advice, s, PRICED, predictor)}
    least = points["PRICE"].numbers["usd_per_replica_hour"]
    assert advice.saving_per_month is not None
    assert advice.saving_per_month * least / 1.0 == pytest.approx(s.policy.min_saving_per_month)


def test_what_cannot_be_told_is_left_out() -> None:
    predictor = slow_beyond(0.8)
    advice, s = shrunk(predictor)

    def refuse(_shape: Shape, _factor: float) -> Prediction:
        raise CannotPredict("NO_EVIDENCE", "nothing is known")

    blind = replace(advice, proposed=replace(advice.proposed, prediction=None), saving_per_month=None)
    assert turning_points(blind, s, PRICED, Whole(refuse)) == ()


def test_how_good_promises_were_is_told_here_and_on_all() -> None:
    none = {"promises": 0, "held": 0}
    assert track_record({"endpoint": none, "all": none}) == "none yet; 80 % of them should hold"
    all_ = {"promises": 10, "held": 8}
    assert (
        track_record({"endpoint": none, "all": all_}) == "none on this endpoint yet, 8 of 10 held on all (80 % should)"
    )
    assert track_record({"endpoint": {"promises": 2, "held": 2}, "all": all_}).startswith(
        "2 of 2 held on this endpoint, "
    )
