"""Prices, guardrails and candidates: what a shape costs, and which shapes may be proposed at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actuators.shape import EngineValue, Shape
from analyzers.choice import money_of
from analyzers.hardware import find
from analyzers.policy import Catalogue, Policy, candidates, violations
from tests.analyzers.situations import SHAPE, hour, situation

CATALOGUE = Catalogue(
    prices={"small": 1.0, "big": 3.0, "secret": None},
    built={"big": ("H100", 2)},
    own_size="small",
    own_price=9.0,
)


def test_money_is_reserved_capacity() -> None:
    """Two dollars in an hour, 3,600 requests of 150 tokens."""
    money = money_of(situation(), CATALOGUE, SHAPE)
    assert money.per_hour == 2.0
    assert money.per_request == pytest.approx(2.0 / 3600)
    assert money.per_1k_tokens == pytest.approx(2.0 / 540)


def test_only_time_that_was_observed_is_counted() -> None:
    """Half of the hour was seen, and half of the requests: a request costs the same."""
    money = money_of(situation(hour()[:30]), CATALOGUE, SHAPE)
    assert money.per_request == pytest.approx(2.0 / 3600)


@pytest.mark.parametrize(
    ("shape", "per_hour"),
    [
        (Shape(replicas=3, size="big"), 9.0),
        (Shape(replicas=3, size="secret"), None),
        (Shape(replicas=3, size="nowhere"), None),
        (Shape(size="big"), None),
        (Shape(replicas=0, size="big"), 0.0),
    ],
)
def test_prices_that_are_not_known_stay_so(shape: Shape, per_hour: float | None) -> None:
    assert CATALOGUE.per_hour(shape) == per_hour
    money = money_of(situation(), CATALOGUE, shape)
    assert money.per_hour == per_hour
    if per_hour is None:
        assert (money.per_1k_tokens, money.per_request) == (None, None)


def test_no_traffic_has_no_price_a_request() -> None:
    money = money_of(situation(hour(requests=0.0, ttft=())), CATALOGUE, SHAPE)
    assert (money.per_hour, money.per_request, money.per_1k_tokens) == (2.0, None, None)


def test_the_endpoints_own_price_is_for_its_own_size() -> None:
    own = Catalogue(own_size=None, own_price=2.5)
    assert own.per_hour(Shape(replicas=2)) == 5.0
    assert own.per_hour(Shape(replicas=2, size="big")) is None


# -- guardrails ---------------------------------------------------------------------------------------------------------


def broken(shape: Shape, **policy: object) -> str:
    return "; ".join(violations(shape, SHAPE, Policy(**policy), CATALOGUE))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "policy", "says"),
    [
        (SHAPE.with_(replicas=0), {}, "0 replicas are fewer than min_replicas 1"),
        (SHAPE.with_(replicas=3), {}, "3 replicas are more than max_replicas 2"),
        (SHAPE.with_(replicas=5), {"max_replicas": 9}, "3 replicas at once are more than max_step_replicas 2"),
        (SHAPE.with_(size="big"), {}, "size big is not among the policy's sizes"),
        (SHAPE.with_(engine={"max_num_seqs": 99}), {}, "max_num_seqs=99 is not among the policy's values"),
        (SHAPE.with_(engine={"other": 1}), {}, "other=1 is not among the policy's values"),
        (SHAPE.with_(replicas=1), {"budget_per_month": 729.0}, "$730 a month is above the budget of $729"),
        (SHAPE.with_(size="secret"), {"sizes": ["secret"], "budget_per_month": 9e9}, "the budget cannot be checked"),
        (Shape(), {}, "the replica count is not known"),
    ],
)
def test_each_guardrail(shape: Shape, policy: dict[str, object], says: str) -> None:
    assert says in broken(shape, **policy)


def test_what_is_allowed_breaks_nothing() -> None:
    assert broken(SHAPE) == ""
    assert broken(SHAPE.with_(replicas=1), budget_per_month=730.0) == ""
    assert broken(SHAPE.with_(replicas=4, size="big"), max_replicas=4, sizes=["big"]) == ""
    assert broken(SHAPE.with_(engine={"max_num_seqs": 20}), engine={"max_num_seqs": [20]}) == ""


def test_every_broken_guardrail_is_told() -> None:
    assert len(violations(Shape(replicas=9, size="x", engine={"y": 1}), SHAPE, Policy(), CATALOGUE)) == 4


# -- candidates ---------------------------------------------------------------------------------------------------------


def test_candidates_by_hand() -> None:
    policy = Policy(max_replicas=3, sizes=["big"], engine={"max_num_seqs": [10, 20]})
    found = candidates(SHAPE, policy, CATALOGUE)
    assert found[0] == SHAPE
    assert len(found) == 2 * 3 * 2  # sizes, replicas 1..3, values: the current one among them
    assert all(s.accelerator == "H100" and s.accelerator_count == 2 for s in found if s.size == "big")
    assert all(s.accelerator is None for s in found if s.size == "small")


def test_without_a_policy_only_fewer_replicas_are_considered() -> None:
    assert candidates(SHAPE, Policy(), CATALOGUE) == [SHAPE, SHAPE.with_(replicas=1)]


def test_an_unknown_shape_has_no_candidates() -> None:
    assert candidates(Shape(size="small"), Policy(max_replicas=5), CATALOGUE) == [Shape(size="small")]


def test_the_budget_is_a_bound() -> None:
    policy = Policy(max_replicas=4, sizes=["big", "secret"], budget_per_month=3.0 * 730)
    found = candidates(SHAPE, policy, CATALOGUE)[1:]
    assert {(s.size, s.replicas) for s in found} == {("small", 1), ("small", 3), ("big", 1)}


_replicas = st.integers(0, 12)


@settings(deadline=None, max_examples=60)
@given(
    current=_replicas,
    low=st.integers(0, 5),
    more=st.none() | st.integers(0, 9),
    step=st.integers(1, 4),
    budget=st.none() | st.floats(0, 10_000),
    values=st.lists(st.integers(1, 3), max_size=3),
)
def test_no_candidate_breaks_a_guardrail(
    current: int, low: int, more: int | None, step: int, budget: float | None, values: list[EngineValue]
) -> None:
    shape = SHAPE.with_(replicas=current)
    policy = Policy(
        min_replicas=low,
        max_replicas=None if more is None else max(1, low + more),
        max_step_replicas=step,
        sizes=["big"],
        engine={"max_num_seqs": values},
        budget_per_month=budget,
    )
    found = candidates(shape, policy, CATALOGUE)
    assert found[0] == shape
    assert len({str(s) for s in found}) == len(found)
    for other in found[1:]:
        assert violations(other, shape, policy, CATALOGUE) == []
        assert other.replicas is not None
        assert max(low, 1) <= other.replicas
        assert abs(other.replicas - current) <= step


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("h100 sxm", "H100"),
        ("Tesla T4", "T4"),
        ("L40S", "L40S"),
        ("GeForce RTX 4090", "RTX-4090"),
    ],
)
def test_accelerators_in_their_usual_spellings(spelled: str, name: str) -> None:
    row = find(spelled)
    assert row is not None
    assert row.name == name
    assert find("abacus") is None
