"""Shapes in words, and whole through JSON."""

from __future__ import annotations

import json

import pytest

from actuators.shape import Autoscaling, Need, Operation, Plan, Purchase, Shape, difference

SMALL = Shape(replicas=4, size="F2s", cpus=2.0, engine={"max_num_seqs": 8})


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (SMALL, ""),
        (SMALL.with_(replicas=2), "replicas 4 → 2"),
        (SMALL.with_(engine={"max_num_seqs": 16}), "max_num_seqs 8 → 16"),
        (SMALL.with_(replicas=2, size="F4s", cpus=4.0), "replicas 4 → 2, size F2s → F4s"),
        (SMALL.with_(cpus=3.5), "cpus 2 → 3.5"),
        (SMALL.with_(engine={"block_size": 16}), "block_size none → 16"),
    ],
)
def test_of_two_shapes_what_differs_is_said(after: Shape, said: str) -> None:
    assert difference(SMALL, after) == said


def test_bounds_and_targets_and_purchases_are_said_one_by_one() -> None:
    before = Shape(autoscaling=Autoscaling(1, 4, {"queue": 5.0}))
    assert difference(before, Shape(autoscaling=Autoscaling(2, 4, {"queue": 2.5}))) == "queue 5 → 2.5, least 1 → 2"
    assert difference(Shape(purchase=Purchase(100, "ptu")), Shape(purchase=Purchase(150, "ptu"))) == "PTU 100 → 150"


def test_every_field_of_a_plan_is_hashed_and_comes_back_from_json() -> None:
    shape = Shape(
        autoscaling=Autoscaling(1, 4, {"q": 5.0}), purchase=Purchase(1, "ptu"), cpus=1.5, memory_gb=2.0, tier="spot",
        region="eu", extra={"x": 1},
    )  # fmt: skip
    step = Operation("a", {"b": [1]}, 1.0, "do a", hold_s=2.0, gate=True)
    plan = Plan("chat", "s", SMALL, shape, "v", (step,), True, 1.0, "back")
    whole = Plan.from_dict(
        json.loads(json.dumps({**plan.as_dict(), "finish": [step_dict(step)], "undo": {"of": "blue"}, "locks": ["l"]}))
    )
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan
    assert (whole.finish, whole.undo, whole.locks) == ((step,), {"of": "blue"}, ("l",))
    others = [
        Plan("chat", "s", SMALL, shape, "v", (step,), True, 1.0, "back", finish=(step,)),
        Plan("chat", "s", SMALL, shape, "v", (step,), True, 1.0, "back", undo={"a": 1}),
        Plan("chat", "s", SMALL, shape, "v", (step,), True, 1.0, "back", locks=("l",)),
        Plan("chat", "s", SMALL, shape, "v", (step,), True, 1.0, "back", needs=(Need("cores", 2.0, None),)),
        Plan("chat", "s", SMALL, shape, "v", (step,), True, 1.0, "back", by_hand="patch"),
    ]
    assert len({plan.hash, *(p.hash for p in others)}) == 1 + len(others)


def step_dict(step: Operation) -> dict[str, object]:
    return {"name": step.name, "args": dict(step.args), "deadline_s": step.deadline_s, "summary": step.summary,
            "hold_s": step.hold_s, "gate": step.gate}  # fmt: skip


@pytest.mark.parametrize(("free", "met"), [(None, None), (1.0, False), (2.0, True)])
def test_a_need_is_met_or_not_or_not_known(free: float | None, met: bool | None) -> None:
    assert Need("cores", 2.0, free).met is met


def test_what_is_bought_is_told_by_its_unit() -> None:
    before, after = (Shape(purchase=Purchase(n, "ptu"), tier="ProvisionedManaged") for n in (25, 40))
    assert difference(before, after) == "PTU 25 → 40"
    other = Shape(purchase=Purchase(60_000, "tokens_per_minute"), tier="Standard")
    assert difference(before, other) == "PTU 25 → none, tier ProvisionedManaged → Standard, tokens/min none → 60000"
