"""An EC2 instance's type and a group's count, on moto behind the strict layer: stop, change, start; no capacity and the way back; dry runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actuators.base import ActuatorError, CannotPlan, LiveState, Progress, Receipt, Trouble
from actuators.ec2.actuator import Ec2Actuator
from actuators.shape import Autoscaling, Plan, Shape
from tests.actuators.support import Caller, carry_out, context, reach, until_done
from tests.fakes.aws import IDENTITY, REGION, FakeAws

SMALL, LARGE = "g4dn.xlarge", "g4dn.2xlarge"


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in IDENTITY.items():
        monkeypatch.setenv(name, value)


class Place:
    """One instance or one group, and a new actuator for each call, as after a kill."""

    def __init__(self, folder: Path, aws: FakeAws, **options: Any) -> None:
        self.aws = aws
        self.of = context(
            folder, "http://127.0.0.1:9", Shape(), {"region": REGION, "aws_url": aws.url, **options}, Caller()
        )

    def make(self) -> Ec2Actuator:
        return Ec2Actuator(self.of)

    def live(self) -> LiveState:
        return asyncio.run(self.make().live())

    def plan(self, **changes: Any) -> Plan:
        live = self.live()
        return asyncio.run(self.make().plan(live, live.shape.with_(**changes)))


@contextlib.contextmanager
def instance(folder: Path, **aws: Any) -> Iterator[Place]:
    with FakeAws(stop_s=0.05, **aws) as fake:
        yield Place(folder, fake, instance=fake.instance(SMALL))


@contextlib.contextmanager
def group(folder: Path, **aws: Any) -> Iterator[Place]:
    with FakeAws(stop_s=0.05, **aws) as fake:
        fake.group("workers", least=1, most=4, count=2)
        yield Place(folder, fake, group="workers")


def made(**fields: Any) -> dict[str, Any]:
    return {"size": LARGE, "cpus": 8.0, "memory_gb": 34.36, **fields}


def test_another_type_is_a_stop_a_change_and_a_start_and_so_is_the_way_back(tmp_path: Path) -> None:
    with instance(tmp_path) as place:
        before = place.live()
        assert (before.shape.size, before.shape.accelerator, before.ready) == (SMALL, "T4", True)
        plan = place.plan(**made())
        assert [o.name for o in plan.operations] == ["stop", "type", "start"]
        assert (plan.restarts, plan.downtime_s > 0) == (True, True)
        after = asyncio.run(reach(place.make, before.shape.with_(**made())))
        assert (after.shape.size, after.shape.cpus, after.ready) == (LARGE, 8.0, True)
        back = asyncio.run(reach(place.make, before.shape, "b"))
        assert (back.shape, back.ready) == (before.shape, True)
        calls = ["StopInstances", "ModifyInstanceAttribute", "StartInstances"]
        assert [a for _, a in place.aws.writes] == calls * 2


def test_without_capacity_it_does_not_start_and_goes_back_to_the_old_type(tmp_path: Path) -> None:
    with instance(tmp_path, no_capacity={LARGE}) as place:
        plan = place.plan(**made())
        receipts: list[Receipt] = []
        with pytest.raises(ActuatorError, match=LARGE) as refused:
            asyncio.run(_begun(place, plan, receipts))
        assert (refused.value.trouble, refused.value.passes) == (Trouble.CAPACITY, False)
        live = place.live()
        assert (live.shape.size, live.serving, live.ready) == (LARGE, 0, False)
        back = asyncio.run(place.make().back(plan, receipts, live))
        assert [o.name for o in back.operations] == ["type", "start"], "it is stopped already"
        asyncio.run(carry_out(place.make, back, "b"))
        live = place.live()
        assert (live.shape.size, live.ready) == (SMALL, True)


async def _begun(place: Place, plan: Plan, receipts: list[Receipt]) -> None:
    last = None
    for number, operation in enumerate(plan.operations):
        await place.make().clear(operation, last)
        last = await place.make().do(operation, f"c/{number}", last)
        receipts.append(last)
        await until_done(place.make, operation, last)


def test_a_permission_that_lacks_is_found_by_the_dry_run_before_anything_is_stopped(tmp_path: Path) -> None:
    with instance(tmp_path, denied={"ec2:StopInstances"}) as place:
        plan = place.plan(**made())
        with pytest.raises(ActuatorError, match="Allow ec2:StopInstances") as refused:
            asyncio.run(place.make().clear(plan.operations[0], None))
        assert refused.value.trouble is Trouble.DENIED
        assert place.aws.writes == []


def test_the_type_of_an_instance_that_runs_is_refused_by_amazon_and_passes(tmp_path: Path) -> None:
    """moto would allow it: the layer before it does not, as EC2 does not."""
    with instance(tmp_path) as place:
        plan = place.plan(**made())
        with pytest.raises(ActuatorError, match="IncorrectInstanceState") as refused:
            asyncio.run(place.make().do(plan.operations[1], "c/1", None))
        assert refused.value.trouble is Trouble.CONFLICT


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("lost", [False, True])
def test_a_kill_before_or_after_each_write_is_no_second_one(tmp_path: Path, step: int, lost: bool) -> None:
    with instance(tmp_path) as place:

        async def story() -> None:
            live = await place.make().live()
            plan = await place.make().plan(live, live.shape.with_(**made()))
            last = None
            for number, operation in enumerate(plan.operations):
                token = f"c/{number}"
                if number == step:
                    if lost:  # done, and nobody was told
                        place.aws.lost = 1
                        with pytest.raises(ActuatorError) as error:
                            await place.make().do(operation, token, last)
                        assert error.value.passes
                    else:  # its receipt was lost
                        await place.make().do(operation, token, last)
                last = await place.make().do(operation, token, last)
                done = await until_done(place.make, operation, last)
                assert done.progress is Progress.DONE, done.detail

        asyncio.run(story())
        assert [a for _, a in place.aws.writes] == ["StopInstances", "ModifyInstanceAttribute", "StartInstances"]
        assert place.live().ready


def test_somebody_elses_change_voids_the_plan(tmp_path: Path) -> None:
    with instance(tmp_path) as place:
        old = place.plan(**made())
        asyncio.run(
            reach(place.make, place.live().shape.with_(**made(size="g4dn.4xlarge", cpus=16.0, memory_gb=68.719)))
        )
        with pytest.raises(ActuatorError) as refused:
            asyncio.run(place.make().clear(old.operations[0], None))
        assert refused.value.trouble is Trouble.DRIFT


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"replicas": 2}, "use a group"),
        ({"cpus": 64.0}, "another type"),
        ({"size": "large"}, "instance type"),
        ({"tier": "spot"}, "tier"),
    ],
)
def test_what_an_instance_does_not_do_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with instance(tmp_path) as place, pytest.raises(CannotPlan, match=said):
        place.plan(**changes)


def test_a_groups_count_is_reached_once_its_instances_are_in_service(tmp_path: Path) -> None:
    with group(tmp_path) as place:
        before = place.live()
        assert (before.shape.replicas, before.shape.size, before.serving, before.ready) == (2, SMALL, 2, True)
        plan = place.plan(replicas=4)
        steps = asyncio.run(carry_out(place.make, plan))
        assert [s.progress for s in steps] == [Progress.DONE]
        after = place.live()
        assert (after.shape.replicas, after.serving, after.ready) == (4, 4, True)
        back = asyncio.run(reach(place.make, before.shape, "b"))
        assert back.shape == before.shape
        assert [a for _, a in place.aws.writes] == ["UpdateAutoScalingGroup"] * 2


def test_a_count_beyond_the_groups_bounds_is_refused(tmp_path: Path) -> None:
    with group(tmp_path) as place, pytest.raises(CannotPlan, match="takes 1 to 4"):
        place.plan(replicas=5)


def test_where_policies_set_the_count_the_bounds_are_the_shape(tmp_path: Path) -> None:
    with group(tmp_path) as place:
        place.aws.policy("workers", 60.0)
        live = place.live()
        assert live.shape.replicas is None
        assert live.shape.autoscaling == Autoscaling(1, 4, {"ASGAverageCPUUtilization": 60.0})
        assert live.owner is not None
        with pytest.raises(CannotPlan, match="set its count"):
            place.plan(replicas=3)
        wanted = live.shape.with_(autoscaling=Autoscaling(2, 6, {"ASGAverageCPUUtilization": 60.0}))
        assert asyncio.run(reach(place.make, wanted)).shape == wanted


def test_an_instance_that_is_gone_is_drift(tmp_path: Path) -> None:
    with instance(tmp_path) as place:
        place.of = context(
            tmp_path, "http://x", Shape(), {**place.of.options, "instance": "i-0fffffffffffffff0"}, Caller()
        )
        with pytest.raises(ActuatorError) as refused:
            place.live()
        assert refused.value.trouble is Trouble.DRIFT
