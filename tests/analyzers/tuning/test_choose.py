"""Which shape is tried next, which need not be, and which is best."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actuators.shape import Shape
from analyzers.limit_search import Limit
from analyzers.tuning.choose import Trial, best, doubt, following, hopeless


def trial(
    number: int,
    carries: float | None = None,
    price: float | None = 1.0,
    promised: float | None = None,
    replicas: int = 1,
    tokens: float | None = 50.0,
) -> Trial:
    """Measured where it carries something, else planned."""
    made = Trial(number, f"shape {number}", Shape(replicas=replicas), price, promised=promised)
    if carries is not None:
        made.state, made.limit, made.output_tokens = "done", Limit(carries or None, carries * 1.1, True), tokens
    return made


def numbers(found: Trial | None) -> int | None:
    return None if found is None else found.number


# -- the best ----------------------------------------------------------------------------------------------------------


def test_without_a_demand_the_cheapest_per_token_is_best() -> None:
    dear_and_fast, cheap_and_slow = trial(0, carries=10, price=5.0), trial(1, carries=3, price=1.0)
    assert numbers(best([dear_and_fast, cheap_and_slow], None)) == 1
    dear_and_fast.usd_per_hour = 3.0
    assert numbers(best([dear_and_fast, cheap_and_slow], None)) == 0


def test_with_a_demand_the_cheapest_that_carries_it_is_best() -> None:
    small, middle, large = trial(0, carries=3, price=1), trial(1, carries=6, price=2.5), trial(2, carries=20, price=5)
    assert numbers(best([small, middle, large], 5.0)) == 1
    assert numbers(best([small, middle, large], 6.0)) == 1, "just what it carries is carried"
    assert numbers(best([small, middle, large], 6.1)) == 2
    assert numbers(best([small, middle, large], 100.0)) == 2, "none does: the one that carries most"


def test_without_any_price_the_most_is_best_and_the_fewest_replicas_for_a_demand() -> None:
    one, two = trial(0, carries=4, price=None), trial(1, carries=7, price=None, replicas=2)
    assert numbers(best([one, two], None)) == 1
    assert numbers(best([one, two], 3.0)) == 0
    assert numbers(best([one, two], 5.0)) == 1


def test_what_has_no_price_comes_last() -> None:
    priced, unknown = trial(0, carries=1, price=100.0), trial(1, carries=50, price=None)
    assert numbers(best([unknown, priced], None)) == 0
    assert numbers(best([unknown, priced], 1.0)) == 0
    assert numbers(best([unknown, priced], 2.0)) == 1


def test_what_carries_nothing_or_was_not_measured_is_never_best() -> None:
    nothing, planned, failed = trial(0, carries=0.0), trial(1, promised=99.0), trial(2, carries=5.0)
    failed.state = "failed"
    assert best([], None) is None
    for demand in (None, 1.0):
        assert best([nothing, planned, failed], demand) is None


def test_dollars_of_tokens() -> None:
    found = trial(0, carries=2.0, price=3.6, tokens=50)
    assert found.cost_per_1k() == pytest.approx(0.01)  # 0.001 $/s over 100 tokens/s
    assert found.cost_per_1k(1.0) == pytest.approx(0.02)
    assert trial(0, carries=2.0, price=None).cost_per_1k() is None
    assert trial(0, carries=2.0, tokens=None).cost_per_1k() is None
    assert trial(0).cost_per_1k() is None


# -- what cannot win ---------------------------------------------------------------------------------------------------

LEADER = trial(0, carries=10.0, price=2.0)


@pytest.mark.parametrize(
    ("planned", "leader", "demand", "says"),
    [
        (trial(1, promised=4.0, price=1.0), LEADER, 8.0, "at most: less than 8/s"),
        (trial(1, promised=30.0, price=2.1), LEADER, 8.0, "dearer than shape 1, which carries 8/s"),
        (trial(1, price=2.1), LEADER, 8.0, "dearer than shape 1"),  # whatever it carries
        (trial(1, promised=30.0, price=None), LEADER, 8.0, "price is not known"),
        (trial(1, promised=30.0, price=2.0, replicas=2), LEADER, 8.0, "more replicas than shape 1"),
        (trial(1, promised=7.0, price=2.0), LEADER, 8.0, "8.75 at most: shape 1 carries 10"),
        (trial(1, promised=7.0, price=1.0), LEADER, 50.0, "8.75 at most: shape 1 carries 10"),  # neither carries it
        (trial(1, promised=10.0, price=4.0), LEADER, None, "dearer per token than shape 1"),
        (trial(1, promised=0.0, price=1.0), LEADER, None, "dearer per token than shape 1"),
        (trial(1, promised=99.0, price=None), LEADER, None, "price is not known"),
        (trial(1, promised=7.0, price=None), trial(0, carries=10.0, price=None), None, "8.75 at most: shape 1 carries"),
    ],
)
def test_what_cannot_win_says_why(planned: Trial, leader: Trial, demand: float | None, says: str) -> None:
    assert says in str(hopeless(planned, leader, demand, 0.25))


@pytest.mark.parametrize(
    ("planned", "leader", "demand"),
    [
        (trial(1, promised=1.0, price=9.0), None, None),  # nothing is measured yet
        (trial(1, promised=1.0, price=9.0), None, 8.0),
        (trial(1, price=9.0), LEADER, None),  # nothing is promised
        (trial(1, price=1.9), LEADER, 8.0),
        (trial(1, promised=6.5, price=1.0), LEADER, 8.0),  # 8.1 at most
        (
            trial(1, promised=6.5, price=1.0),
            trial(0, carries=2.0, price=1.0),
            50.0,
        ),  # neither carries it, but this more
        (trial(1, promised=9.0, price=2.0), LEADER, 8.0),  # 11.25 at most, for the same money
        (trial(1, promised=9.0, price=2.0), LEADER, None),
        (trial(1, promised=4.1, price=1.0), LEADER, None),
        (trial(1, promised=9.0, price=None), trial(0, carries=10.0, price=None), None),
        # A price that is known comes before one that is not, however much is carried.
        (trial(1, promised=1.0, price=9.0), trial(0, carries=10.0, price=None), None),
        (trial(1, promised=7.0, price=9.0), trial(0, carries=10.0, price=None), 8.0),
        # The fewest replicas come first where the money is the same.
        (trial(1, promised=7.0, price=None), trial(0, carries=10.0, price=None, replicas=2), 8.0),
    ],
)
def test_what_may_win_is_tried(planned: Trial, leader: Trial | None, demand: float | None) -> None:
    assert hopeless(planned, leader, demand, 0.25) is None


_rates = st.floats(0.01, 1e4)
_prices = st.none() | st.sampled_from([0.0, 1.0, 2.0]) | st.floats(0.01, 100.0)


@given(
    _rates, _prices, st.integers(1, 3), _rates, _prices, st.integers(1, 3), st.none() | _rates,
    st.floats(0.25, 2.0), st.floats(0.0, 1.0),
)  # fmt: skip
def test_a_shape_whose_truth_is_within_the_doubt_and_better_is_never_struck_out(
    promised: float,
    price: float | None,
    replicas: int,
    carried: float,
    its_price: float | None,
    its_replicas: int,
    demand: float | None,
    doubt: float,
    share: float,
) -> None:
    leader = trial(0, carries=carried, price=its_price, replicas=its_replicas)
    truth = trial(1, carries=promised * (1 + doubt * share), price=price, replicas=replicas)
    if best([leader, truth], demand) is truth:
        assert hopeless(trial(1, promised=promised, price=price, replicas=replicas), leader, demand, doubt) is None


# -- the order ---------------------------------------------------------------------------------------------------------


def order(planned: list[Trial], demand: float | None) -> list[int]:
    left, found = list(planned), list[int]()
    while (one := following(left, demand)) is not None:
        found.append(one.number)
        left.remove(one)
    return found


def test_what_is_tried_next() -> None:
    unknown = [trial(2), trial(0), trial(1)]
    assert order(unknown, None) == order(unknown, 5.0) == [0, 1, 2], "as they were asked for"
    told = [
        trial(0, promised=4.0, price=1.0),  # a quarter of a dollar each
        trial(1, promised=20.0, price=4.0),
        trial(2, promised=10.0, price=3.0),
        trial(3),
        trial(4, promised=0.0, price=1.0),
    ]
    assert order(told, None) == [1, 0, 2, 4, 3], "the cheapest per request first; what nobody knows of last"
    assert order(told, 8.0) == [2, 1, 0, 4, 3], "the cheapest that carries it, then what carries most"
    free = [trial(0, promised=4.0, price=None), trial(1, promised=20.0, price=None), trial(2, promised=1.0, price=9.0)]
    assert order(free, None) == [2, 1, 0], "without a price those that carry most"
    assert following([], None) is None


# -- the doubt ---------------------------------------------------------------------------------------------------------


def seen(*pairs: tuple[float, float]) -> list[Trial]:
    """What was promised, and what it carries."""
    return [trial(i, carries, promised=promised) for i, (promised, carries) in enumerate(pairs)]


def test_the_doubt_grows_with_what_was_seen() -> None:
    assert doubt([]) == doubt(seen((10.0, 10.0))) == 0.25
    assert doubt(seen((10.0, 11.0))) == 0.25, "so near is no reason for less"
    assert doubt(seen((10.0, 20.0))) == pytest.approx(2**1.5 - 1)
    assert doubt(seen((10.0, 20.0))) == pytest.approx(doubt(seen((20.0, 10.0)))), "too much is as wrong as too little"
    assert doubt(seen((10.0, 10.5), (10.0, 20.0), (5.0, 5.0))) == doubt(seen((10.0, 20.0)))
    assert doubt(seen((0.0, 5.0), (5.0, 0.0))) == 0.25
    assert doubt([trial(0, promised=10.0)]) == 0.25, "what is not measured says nothing"


@given(st.lists(st.tuples(st.floats(0.1, 1e3), st.floats(0.1, 1e3)), min_size=1))
def test_nothing_that_was_seen_lies_beyond_the_doubt(pairs: list[tuple[float, float]]) -> None:
    assert all(measured <= told * (1 + doubt(seen(*pairs))) * (1 + 1e-9) for told, measured in pairs)
