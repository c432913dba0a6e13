"""What a tune's answer says of a shape: what it carries, how many users that is, and where nothing is known."""

from __future__ import annotations

from typing import Any

import pytest

from actuators.shape import Shape
from agent.tune.answer import answer
from agent.tune.request import Budget, Effort, Load, TuneRequest
from agent.tune.table import columns, rows
from analyzers.limit_search import Limit
from analyzers.objective import Objective
from analyzers.tuning.choose import Trial
from tests.agent.records import tune_load

SHAPE = Shape(replicas=1, size="small")
ROW = {"id": "aaaa0001", "started_at": 1.0}


def done(limit: Limit | None, price: float | None = 3.6) -> Trial:
    """Alone an answer takes two seconds, at four requests a second five."""
    steps = [tune_load("single", None, 2.0), tune_load("rate", 4.0, 5.0)]
    return Trial(0, "a", SHAPE, price, "done", steps=steps, limit=limit, output_tokens=50.0, busy_s=60.0)


def told(*trials: Trial, think_s: float = 0.0, demand: float | None = None, ended: str = "done") -> dict[str, Any]:
    asked = TuneRequest(
        "chat", SHAPE, tuple((t.name, t.shape) for t in trials), Objective.from_mapping({"ttft_p95_s": 0.5}), demand,
        Load(think_s=think_s), Effort(), Budget(),
    )  # fmt: skip
    return answer(asked, ROW, trials, ended, 0.25)


def cell(found: dict[str, Any], column: str) -> str:
    return rows(found)[0][columns(found).index(column)]


def test_users_are_the_rate_times_how_long_each_takes() -> None:
    found = told(done(Limit(4.0, 4.4, True)))
    assert found["trials"][0]["users"] == 20.0
    assert (cell(found, "requests/s"), cell(found, "users"), cell(found, "TTFT p95 ms")) == ("4 (<4.4)", "20", "250")
    ten, hundred = (found["trials"][0]["serves"][n] for n in ("10", "100"))
    # Half as many users wait for half of what the load adds: 10 / 3.5 s of 50 tokens for 0.001 $/s.
    assert ten == {"met": True, "cost_per_1k_output_tokens_usd": pytest.approx(0.001 / (10 / 3.5 * 50) * 1000)}
    assert hundred == {"met": False, "cost_per_1k_output_tokens_usd": None}
    assert told(done(Limit(4.0, 4.4, True)), think_s=20.0)["trials"][0]["serves"]["100"]["met"] is True


@pytest.mark.parametrize(
    ("limit", "says", "ten_users"),
    [
        (Limit(4.0, 4.4, True), "4 (<4.4)", "yes, $0.007"),
        (Limit(4.0, None, False), "~4", "yes, $0.007"),
        (Limit(None, 0.0, False), "none", "no"),  # not even one user
        (Limit(None, 3.0, False), "<3", "-"),  # too high was all that was sent
        (None, "-", "-"),  # nothing that counts was sent
    ],
)
def test_what_is_not_known_is_not_none(limit: Limit | None, says: str, ten_users: str) -> None:
    found = told(done(limit))
    assert (cell(found, "requests/s"), cell(found, "10 users")) == (says, ten_users)
    assert (found["recommended"] is None) is (limit is None or limit.low is None)


def test_why_it_is_recommended() -> None:
    one, sure = Limit(4.0, 4.4, False), Limit(4.0, 4.4, True)
    assert told(done(sure))["recommended"]["why"] == "the least dollars per token at its limit"
    assert told(done(sure, None))["recommended"]["why"] == "the highest rate within the objective; no price is known"
    assert "the cheapest that carries 3 requests/s" in told(done(sure), demand=3.0)["recommended"]["why"]
    assert "the fewest replicas that carry 3" in told(done(sure, None), demand=3.0)["recommended"]["why"]
    assert "none carries 5 requests/s" in told(done(sure), demand=5.0)["recommended"]["why"]
    skipped = Trial(1, "b", SHAPE, 1.0, "skipped")
    assert told(done(one), skipped, ended="x")["recommended"]["notes"] == [
        "its limit rests on few requests",
        "1 shapes were not tried",
    ]
    assert told(done(sure))["recommended"]["notes"] == []


def test_what_it_took_and_how_good_the_promises_were() -> None:
    first, second, unpriced = done(Limit(4.0, 4.4, True)), done(Limit(4.0, 4.4, True)), done(None, None)
    second.promised = 5.0
    found = told(first, second)
    assert found["spent"] == {"minutes": 2.0, "usd": pytest.approx(0.12)}
    assert found["predictions"] == {"checked": 1, "errors": [0.25], "doubt": 0.25}
    assert told(first, unpriced)["spent"]["usd"] is None
    assert told(first, ended="interrupted")["complete"] is False
