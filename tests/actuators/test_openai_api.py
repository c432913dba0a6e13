"""A project's rate limits of a model at OpenAI: set, compared before, resumed, taken back, and kept to by the organization's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actuators.base import ActuatorError, CannotPlan, LiveState, Progress, Receipt, Trouble
from actuators.openai_api.actuator import ProjectLimits
from actuators.shape import Plan, Purchase, Shape
from tests.actuators.support import Caller, carry_out, context
from tests.fakes.modelapis import ADMIN_KEY, FakeOpenAI


class Place:
    def __init__(self, folder: Path, openai: FakeOpenAI, **options: Any) -> None:
        self.openai = openai
        stated = {"url": openai.url, "key": ADMIN_KEY, "project": "proj_a", **options}
        self.of = context(folder, openai.url, Shape(), stated, Caller())

    def make(self) -> ProjectLimits:
        return ProjectLimits(self.of)

    def live(self) -> LiveState:
        return asyncio.run(self.make().live())

    def plan(self, **changes: Any) -> Plan:
        live = self.live()
        return asyncio.run(self.make().plan(live, live.shape.with_(**changes)))

    @property
    def limit(self) -> tuple[int, int]:
        of = self.openai.limits["proj_a"]["rl-tiny"]
        return of["max_tokens_per_1_minute"], of["max_requests_per_1_minute"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    openai = FakeOpenAI({"proj_a": {"tiny": (30_000, 500), "other": (1, 1)}}, most=100_000)
    with openai:
        yield Place(tmp_path, openai)


def tokens(amount: int) -> Purchase:
    return Purchase(amount, "tokens_per_minute")


def test_the_limit_is_the_shape_and_goes_there_and_back(place: Place) -> None:
    live = place.live()
    assert live.shape == Shape(purchase=tokens(30_000), engine={"requests_per_minute": 500})
    plan = place.plan(purchase=tokens(60_000))
    asyncio.run(carry_out(place.make, plan))
    assert place.limit == (60_000, 500), "calls stay as they are, unless they are asked for"
    back = asyncio.run(place.make().back(plan, [Receipt()], place.live()))
    asyncio.run(carry_out(place.make, back, "b"))
    assert place.limit == (30_000, 500)
    assert [p for _, p in place.openai.writes] == ["/v1/organization/projects/proj_a/rate_limits/rl-tiny"] * 2


def test_an_answer_that_was_lost_is_no_second_write(place: Place) -> None:
    plan = place.plan(purchase=tokens(60_000))
    place.openai.fail_next = 500
    with pytest.raises(ActuatorError) as lost:
        asyncio.run(place.make().do(plan.operations[0], "c/0", None))
    assert lost.value.passes
    receipt = asyncio.run(place.make().do(plan.operations[0], "c/0", None))
    assert asyncio.run(place.make().done(plan.operations[0], receipt)).progress is Progress.DONE
    assert len(place.openai.writes) == 1


@pytest.mark.parametrize("call", ["clear", "do"])
def test_somebody_elses_limit_voids_the_plan(place: Place, call: str) -> None:
    plan = place.plan(purchase=tokens(60_000))
    place.openai.limits["proj_a"]["rl-tiny"]["max_tokens_per_1_minute"] = 40_000
    step = plan.operations[0]
    with pytest.raises(ActuatorError) as refused:
        asyncio.run(place.make().clear(step, None) if call == "clear" else place.make().do(step, "c/0", None))
    assert refused.value.trouble is Trouble.DRIFT
    assert place.openai.writes == []


def test_more_than_the_organization_has_is_refused_in_openais_words(place: Place) -> None:
    plan = place.plan(purchase=tokens(200_000))
    with pytest.raises(ActuatorError, match="organization's limit of 100000") as refused:
        asyncio.run(place.make().do(plan.operations[0], "c/0", None))
    assert not refused.value.passes
    assert place.limit == (30_000, 500)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"purchase": Purchase(10, "ptu")}, "tokens_per_minute"),
        ({"purchase": tokens(0)}, "1 or more"),
        ({"engine": {"requests_per_minute": 0}}, "whole number"),
        ({"engine": {"max_num_seqs": 1}}, "alone"),
        ({"tier": "flex"}, "the caller's to ask for"),
    ],
)
def test_what_openai_does_not_limit_is_refused(place: Place, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CannotPlan, match=said):
        place.plan(**changes)


def test_a_model_without_a_limit_is_said(tmp_path: Path, place: Place) -> None:
    with pytest.raises(ActuatorError, match="as its limits name it"):
        asyncio.run(Place(tmp_path, place.openai, model="gone").make().live())
