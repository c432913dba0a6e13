"""Costs against traffic, what is carried, what an offer may say, and what is seen in traffic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzers.advise.advice import advise
from analyzers.advise.capacity import carried, least_units, steady
from analyzers.advise.curves import MachineCurve, OverflowCurve, ReplayCurve, TokenCurve, break_even, cheapest
from analyzers.advise.estimates import estimate
from analyzers.advise.offers import offer_of
from analyzers.advise.options import Condition, DeploymentOption
from analyzers.advise.profile import profile_of
from analyzers.grammar import BadQuestion
from tests.analyzers.advise.test_seeds import API, GPU, HOUR, SERVERLESS, context, offers, poisson, spaced, workload

C, D = Condition, DeploymentOption


def test_machines_are_there_whether_they_are_used_or_not() -> None:
    curve = MachineCurve(2.0, 4.0, least=1, most=3)
    assert [curve.usd_per_hour(r) for r in (0.0, 4.0, 4.1, 12.0, 12.1)] == [2.0, 2.0, 4.0, 6.0, None]


def test_the_cheapest_changes_where_both_cost_the_same() -> None:
    curves = {"api": TokenCurve(0.001), "gpu": MachineCurve(1.8, 2.0)}
    first, second = cheapest(curves, 0.01, 3.0)
    assert (first.name, second.name) == ("api", "gpu")
    assert second.from_per_s == pytest.approx(1.8 / 3.6)
    at = break_even("gpu", 1.8, 2.0, "api", 0.001)
    assert at is not None
    assert at.requests_per_s == pytest.approx(0.5)
    assert at.share == pytest.approx(0.25)
    assert break_even("gpu", 1.8, None, "api", 0.0) is None


def test_between_replays_costs_are_in_proportion_and_beyond_them_unknown() -> None:
    curve = ReplayCurve(((1.0, 2.0), (4.0, 8.0)))
    assert curve.usd_per_hour(2.0) == pytest.approx(4.0)
    assert curve.usd_per_hour(0.5) == pytest.approx(1.0)
    assert curve.usd_per_hour(5.0) is None


rates = st.lists(st.floats(0.0, 50.0), min_size=1, max_size=40).filter(lambda r: sum(r) > 0.1)


@given(rates, st.floats(0.1, 5.0), st.floats(0.2, 10.0), st.floats(1e-5, 1e-2))
def test_overflow_costs_no_more_than_either_alone(
    minutes: list[float], usd: float, carries: float, call: float
) -> None:
    """The least over every number of machines, counted one by one."""
    at = np.array(minutes)
    mean = float(at.mean())
    curve = OverflowCurve(MachineCurve(usd, carries, least=0), carries, TokenCurve(call), at / mean)
    units, cost, share = curve.best(mean)

    def of(n: int) -> float:
        return n * usd + float(np.maximum(0.0, at - n * carries).mean()) * 3600 * call

    assert cost == pytest.approx(min(of(n) for n in range(int(at.max() / carries) + 2)))
    assert cost == pytest.approx(of(units))
    assert 0.0 <= share <= 1.0


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 40), st.integers(1, 250))
def test_the_fewest_units_are_found_from_any_guess(enough: int, guess: int, least: int, most: int) -> None:
    found = least_units(lambda n: n >= enough, guess, least, max(least, most))
    assert found == (max(enough, least) if enough <= max(least, most) else None)


def test_what_is_carried_is_the_limit_of_the_objective() -> None:
    on = context(poisson(1.0, HOUR), e2e_p95_s=5.0)
    (gpu,) = offers(gpu={**GPU, "option": "dedicated", "sigma": 0.5})
    limit = carried(gpu.sized(1), on.traffic, 1.0, 0)
    assert limit is not None
    for rate, holds in ((limit, True), (limit * 1.1, False)):
        at = gpu.sized(1).run(context(steady(on.traffic.workload, rate, 0)).traffic).best
        assert ((at.distribution("e2e_s").quantile(0.95) or 9) <= 5.0) is holds
    slow = offers(gpu={**GPU, "option": "dedicated", "rate_per_s": 0.1})[0]
    found = estimate(slow, on)
    assert (found.meets, found.usd_per_hour) == (False, None)
    assert "not even one request" in found.notes[0]


def test_more_traffic_never_takes_fewer_machines() -> None:
    units = []
    for rate in (0.5, 2.0, 8.0, 32.0):
        (gpu,) = offers(gpu={**GPU, "option": "dedicated", "sigma": 0.5})
        found = estimate(gpu, context(poisson(rate, 1200.0), e2e_p95_s=4.0))
        assert found.meets is True
        assert found.curve is not None
        assert found.curve.usd_per_hour(context(poisson(rate, 1200.0)).profile.rate_per_s) == found.usd_per_hour
        units.append(found.units or 0)
    assert units == sorted(units)
    assert units[-1] > units[0]


def test_provisioned_throughput_is_bought_in_steps() -> None:
    ptu = {"kind": "ptu", "ptus": 15, "unit_step": 15, "min_units": 15, "input_tokens_per_minute_per_ptu": 3000, "output_weight": 4,
           "speed": {"ttft_s": 0.4, "tpot_s": 0.01}, "usd_per_ptu_hour": 1.0}  # fmt: skip
    on = context(poisson(3.0, 1800.0), e2e_p95_s=10.0)
    (offer,) = offers(ptu={"option": "provisioned", **ptu})
    found = estimate(offer, on)
    # 3 requests a second of 400 + 4 x 200 tokens are 216,000 tokens a minute: 72 PTU.
    assert found.units in (75, 90)
    assert found.usd_per_hour == pytest.approx(found.units, rel=0.02)
    assert found.meets is True


def test_what_has_no_model_is_unknown_and_not_nothing() -> None:
    on = context(poisson(1.0, HOUR), ttft_p95_s=1.0)
    prices, free, unpriced, machine = offers(
        prices={"option": "pay-per-token", "kind": "tokens", "usd_per_1k_input_tokens": 0.001, "usd_per_1k_output_tokens": 0.002},
        free={"option": "pay-per-token", "kind": "tokens", "usd_per_1k_input_tokens": 0, "usd_per_1k_output_tokens": 0},
        unpriced={"option": "pay-per-token", "kind": "tokens"},
        machine={"option": "dedicated", "kind": "machine", "usd_per_replica_hour": 2.0},
    )  # fmt: skip
    a, b, c, d = (estimate(offer, on) for offer in (prices, free, unpriced, machine))
    assert set(a.latency.values()) == {None}
    assert a.meets is None
    assert a.usd_per_request == pytest.approx(400 * 0.001 / 1000 + 200 * 0.002 / 1000)
    assert b.usd_per_hour == 0.0
    assert (c.usd_per_hour, c.lacking) == (None, ("price",))
    assert (d.usd_per_hour, d.meets, d.carries_per_s) == (2.0, None, None)
    assert "not known" in d.notes[0]
    found = advise([unpriced], on, ())
    assert found.first.usd_per_hour is None
    assert found.ranges == ()


def test_a_batch_is_judged_by_its_deadline() -> None:
    batch = {
        "option": "batch",
        "kind": "tokens",
        "usd_per_1k_input_tokens": 0.0002,
        "usd_per_1k_output_tokens": 0.0008,
        "deadline_s": 86400,
    }
    on = context(poisson(1.0, HOUR), e2e_p95_s=5.0)
    asked = advise(offers(api=API, night=batch), on, (C.BATCH,))
    assert asked.first.name == "night"
    assert asked.first.estimate is not None
    assert "within 24 h" in asked.first.estimate.notes[0]
    assert advise(offers(api=API, night=batch), on, ()).first.name == "api", "nobody said that a deadline does"
    assert advise(offers(api=API, night=batch), on, (C.LOW_LATENCY,)).ranked[-1].name == "night"


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"option": "pay-per-tokens", "kind": "tokens"}, "did you mean pay-per-token?"),
        ({"option": "hybrid"}, "made of the other offers"),
        ({"kind": "tokens"}, "option: missing"),
        ({"option": "serverless", "kind": "tokens"}, "is none of the kind tokens"),
        ({"option": "dedicated", "kind": "vms"}, "did you mean vm?"),
        ({"option": "dedicated", "kind": "machine", "usd_per_hour": 1}, "usd_per_hour: unknown field"),
        ({"option": "pay-per-token", "kind": "tokens", "usd_per_1k_input_tokens": 1}, "give both, or neither"),
        ({"option": "pay-per-token", "kind": "tokens", "as_of": "yesterday"}, "write a date"),
        ({**GPU, "option": "dedicated", "max_units": 0}, "max_units must be above 0"),
        ({**GPU, "option": "dedicated", "rate_per_s": -1}, "rate"),
    ],
)
def test_an_offer_that_says_nothing_sensible_is_named(written: dict[str, Any], says: str) -> None:
    with pytest.raises(BadQuestion) as found:
        offer_of("mine", written)
    assert "offers.mine" in str(found.value)
    assert says in str(found.value)


def test_a_price_of_ones_own_counts_instead() -> None:
    (gpu,) = offers(gpu={**GPU, "option": "dedicated"})
    mine = gpu.priced("usd_per_replica_hour", 1.25)
    assert (mine.by_name["usd_per_replica_hour"], mine.terms.source) == (1.25, "--price")
    with pytest.raises(ValueError, match="did you mean usd_per_replica_hour"):
        gpu.priced("usd_per_replica_hours", 1.0)
    (function,) = offers(function=SERVERLESS)
    assert function.priced("usd_per_billed_hour", 2.0).by_name["usd_per_billed_hour"] == 2.0


def test_conditions_that_traffic_shows() -> None:
    def seen(work: Any) -> set[Condition]:
        return set(profile_of(work).conditions())

    assert seen(spaced()) == {C.SPARSE}
    assert seen(poisson(0.5, 4 * HOUR)) == {C.FEW, C.STEADY}
    assert seen(poisson(0.5, 600.0)) == {C.FEW}, "ten minutes say nothing of how steady it is"
    assert C.MANY in seen(poisson(20.0, 600.0))
    calm, rush = poisson(0.5, 4 * HOUR).arrival_s, HOUR + poisson(10.0, 600.0, 2).arrival_s
    assert C.PEAKS in seen(workload(np.concatenate([calm, rush])))


def test_traffic_without_a_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="no rate"):
        profile_of(workload([0.0, 0.0]))
