"""Prices times what was used: unknown is named, and never 0."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actuators.shape import Autoscaling, Shape
from analyzers.choice import money_of
from analyzers.findings import analyze
from analyzers.money import Cost, Price, Tariff, Total, Unit, Usage, parts
from analyzers.policy import Catalogue, Policy, candidates, most_replicas
from analyzers.prediction import Prediction
from analyzers.recommend import Decision, recommend
from analyzers.words import and_unknown
from collectors.window import Window
from tests.analyzers.situations import Whole, hour, promise, situation
from tests.analyzers.test_recommend import chosen

TOKENS = Tariff.of({Unit.INPUT_1K: 0.003, Unit.OUTPUT_1K: 0.015})


def test_reserved_capacity_is_paid_for_by_the_hour() -> None:
    tariff = Tariff.of({Unit.REPLICA_HOUR: 3.67})
    assert tariff.cost(Usage(hours=2.0, replica_hours=5.0)) == Cost(pytest.approx(18.35))
    assert tariff.cost(Usage(hours=2.0)) == Cost(None, ("replica_hours",))
    assert tariff.cost(Usage(replica_hours=0.0)) == Cost(0.0)


def test_tokens_are_paid_for_one_by_one() -> None:
    used = Usage(prompt_tokens=10_000.0, cached_prompt_tokens=4_000.0, output_tokens=2_000.0)
    assert TOKENS.cost(used).usd == pytest.approx(0.03 + 0.03)
    cached = Tariff((*TOKENS.prices, Price(0.001, Unit.CACHED_INPUT_1K)))
    assert cached.cost(used).usd == pytest.approx(0.018 + 0.004 + 0.03)
    assert TOKENS.cost(Usage(prompt_tokens=10.0)) == Cost(None, ("output_tokens",))


def test_what_was_used_over_a_window() -> None:
    counts = {"prompt_tokens": 900.0, "output_tokens": 300.0, "requests": 3.0}
    window = Window("chat", "vllm", 0.0, 1800.0, 1.0, counts=counts, observed={"output_tokens": 0.5})
    used = Usage.of(window, 3)
    assert used == Usage(hours=0.5, replica_hours=1.5, prompt_tokens=900.0, requests=3.0), (
        "half of the output is unknown"
    )
    assert TOKENS.cost(used) == Cost(None, ("output_tokens",))
    assert Tariff.of({Unit.REPLICA_HOUR: 2.0}).cost(used) == Cost(3.0)
    assert Tariff.of({Unit.REPLICA_HOUR: 2.0}).cost(Usage.of(window)) == Cost(None, ("replica_hours",))
    gap = Window("chat", "vllm", 0.0, 1800.0, 0.0)
    assert Usage.of(gap, 3) == Usage(hours=0.5, replica_hours=1.5), "capacity is paid for, seen or not"


def test_what_has_no_price_costs_an_unknown_amount() -> None:
    assert Tariff.of({Unit.HOUR: None}).cost(Usage(hours=1.0)) == Cost(None, ("price",))
    with pytest.raises(ValueError, match="usd_per_replica_hour must be US dollars, 0 or more"):
        Price(-1.0, Unit.REPLICA_HOUR)


def test_a_total_names_what_is_unknown() -> None:
    total = Total.of({"a": Cost(10.0), "b": Cost(None, ("price",)), "c": Cost(1.0, ("price",))})
    assert (total.usd, total.lacking, total.whole) == (11.0, ("b", "c"), False)
    assert f"spent ${total.usd:.2f}{and_unknown(total.lacking)}" == "spent $11.00, and an unknown amount on `b`, `c`"
    assert Total.of({"b": Cost(None, ("price",))}).usd is None
    assert and_unknown(()) == ""
    assert parts([Cost(1.0), Cost(None, ("price",)), Cost(2.0)]) == Cost(3.0, ("price",))


# -- an autoscaler's count ----------------------------------------------------------------------------------------------

CATALOGUE = Catalogue(prices={"small": 1.0, "big": 3.0})
SCALED = Shape(size="small", engine={"max_num_seqs": 10}, autoscaling=Autoscaling(1, 4))


def test_an_autoscaled_endpoint_costs_what_was_there() -> None:
    s = situation(shape=SCALED)  # two replicas in each window
    assert s.serving(SCALED) == 2.0
    assert s.serving(SCALED.with_(autoscaling=Autoscaling(3, 4))) == 3.0
    money = money_of(s, CATALOGUE, SCALED)
    assert money.per_hour == 2.0
    assert money.per_request == pytest.approx(2.0 / 3600)


def test_its_bounds_are_what_is_varied() -> None:
    policy = Policy(max_replicas=6, max_step_replicas=2, sizes=["big"])
    found = candidates(SCALED, policy, CATALOGUE)
    assert {s.replicas for s in found} == {None}
    bounds = {(s.size, s.autoscaling.least, s.autoscaling.most) for s in found if s.autoscaling is not None}
    assert bounds == {(size, 1, most) for size in ("small", "big") for most in (2, 3, 4, 5, 6)}
    tight = Policy(max_replicas=6, budget_per_month=4 * 730.0)
    assert max(s.autoscaling.most for s in candidates(SCALED, tight, CATALOGUE) if s.autoscaling is not None) == 4


def test_a_breach_under_an_autoscaler_at_its_bound_raises_the_bound() -> None:
    def by_most(shape: Shape, _factor: float) -> Prediction:
        most = most_replicas(shape) or 0
        return promise(3.0 / (most - 3) if most > 3 else 9.0)

    at_bound = [replace(w, targets=4) for w in hour(ttft=[3.0] * 10, waiting=6.0)]
    s = situation(at_bound, shape=SCALED, policy=Policy(max_replicas=8, max_step_replicas=4))
    decision = recommend(s, analyze(s), CATALOGUE, Whole(by_most))
    assert chosen(decision) == ("small", None)
    assert decision.recommendation is not None
    assert decision.recommendation.proposed.shape.autoscaling == Autoscaling(1, 7)


def test_a_wider_bound_is_not_proposed_where_the_autoscaler_does_not_use_the_one_it_has() -> None:
    def decide(waiting: float, policy: Policy) -> Decision:
        s = situation(hour(ttft=[3.0] * 10, waiting=waiting, running=12.0), shape=SCALED, policy=policy)
        return recommend(s, analyze(s), CATALOGUE, Whole(lambda shape, _: promise(4.0 / (most_replicas(shape) or 1))))

    policy = Policy(max_replicas=8, max_step_replicas=4)
    for decision in (decide(0.0, policy), decide(6.0, replace(policy, tune_autoscaler=False))):
        assert decision.recommendation is None
        assert [r.code for r in decision.hold][-1:] == ["AUTOSCALER_TOO_LAX"]
    queued = decide(6.0, policy)  # two replicas run twelve requests, and six wait: three would run them all
    assert queued.recommendation is not None
    assert queued.recommendation.proposed.shape.autoscaling == Autoscaling(3, 4)
    assert queued.recommendation.proposed.verdict == "chosen"
    assert [r.code for r in queued.recommendation.reasons][-1] == "MORE_AT_LEAST"
    many = decide(600.0, policy).recommendation
    assert many is not None
    assert many.proposed.shape.autoscaling == Autoscaling(4, 4)
