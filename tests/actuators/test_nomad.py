"""A group of a Nomad job: scaled, registered with other resources, reverted; serialised with deployments, resumed, and voided by others."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actuators.base import ActuatorError, CannotPlan, LiveState, Owner, Progress, Receipt, Trouble
from actuators.nomad.actuator import NomadJob
from actuators.shape import Autoscaling, Plan, Shape
from tests.actuators.support import Caller, carry_out, context, eventually, reach, until_done
from tests.fakes.nomad import FakeNomad, NomadCluster, service_job

SCALED = {"Min": 1, "Max": 4, "Enabled": True, "Type": "horizontal", "Policy": {"check": [{"load": []}]}}


class Place:
    """A cluster with the job, and a new actuator for each call, as after a kill."""

    def __init__(self, folder: Path, nomad: FakeNomad, **options: Any) -> None:
        self.nomad = nomad
        self.caller = Caller()
        self.of = context(folder, nomad.url, Shape(), {"address": nomad.url, **options}, self.caller)

    def make(self) -> NomadJob:
        return NomadJob(self.of)

    def live(self) -> LiveState:
        return asyncio.run(self.make().live())

    def plan(self, **changes: Any) -> Plan:
        live = self.live()
        return asyncio.run(self.make().plan(live, live.shape.with_(**changes)))

    @property
    def group(self) -> dict[str, Any]:
        group: dict[str, Any] = self.nomad.cluster.jobs["chat"].body["TaskGroups"][0]
        return group


@contextlib.contextmanager
def placed(folder: Path, job: dict[str, Any] | None = None, *, idle: bool = True, **more: Any) -> Iterator[Place]:
    tokens, options = more.pop("tokens", None), more.pop("options", {})
    cluster = NomadCluster(time.time, **more)
    cluster.register(job or service_job())
    nomad = FakeNomad(cluster, tokens)
    with nomad:
        place = Place(folder, nomad, **options)
        if idle:
            asyncio.run(eventually(lambda: settled(place)))
        yield place


async def settled(place: Place) -> bool:
    return (await place.make().live()).ready


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with placed(tmp_path) as made:
        yield made


def test_the_job_is_the_shape_and_each_allocation_has_its_own_address(place: Place) -> None:
    live = place.live()
    assert live.shape == Shape(replicas=1, memory_gb=1.07, engine={"cpu_mhz": 500})
    assert (live.ready, live.serving, live.owner) == (True, 1, None)
    (allocation,) = place.nomad.cluster.jobs["chat"].allocations
    assert live.targets == {allocation.id[:8]: f"http://127.0.0.1:{allocation.port}"}
    assert place.nomad.writes == []


def test_a_count_is_scaled_with_a_message_and_the_way_back_is_a_revert(place: Place) -> None:
    async def story() -> None:
        before = await place.make().live()
        plan = await place.make().plan(before, before.shape.with_(replicas=3))
        assert [o.name for o in plan.operations] == ["scale"]
        steps = await carry_out(place.make, plan)
        after = await place.make().live()
        assert (after.shape.replicas, after.serving, after.ready, len(after.targets)) == (3, 3, True, 3)
        (event,) = place.nomad.cluster.jobs["chat"].events["web"]
        assert (event["Message"], event["Meta"]) == ("flyball: scale chat/web from 1 to 3", {"flyball": "c/0"})
        receipt = await place.make().do(plan.operations[0], "c/0", None)
        back = await place.make().back(plan, [receipt for _ in steps], after)
        assert [o.name for o in back.operations] == ["revert"]
        await carry_out(place.make, back, "b")
        assert (await place.make().live()).shape == before.shape

    asyncio.run(story())
    assert [p.rsplit("/", 1)[-1] for _, p in place.nomad.writes] == ["scale", "revert"]


def test_resources_are_planned_and_registered_for_just_the_version_that_was_read(place: Place) -> None:
    asyncio.run(reach(place.make, place.live().shape.with_(replicas=2, memory_gb=4.0, engine={"cpu_mhz": 900})))
    assert place.group["Tasks"][0]["Resources"] == {"CPU": 900, "MemoryMB": 3815, "Devices": None}
    assert place.group["Count"] == 2
    assert [p for _, p in place.nomad.writes] == ["/v1/jobs"]
    assert ("POST", "/v1/job/chat/plan") in place.nomad.requests
    plan = place.plan(memory_gb=2.0)
    assert (plan.restarts, plan.downtime_s) == (True, 0.0), "one of two is replaced at a time"


def test_gpus_and_whole_cores(tmp_path: Path) -> None:
    devices = [{"Name": "nvidia/gpu/Tesla T4", "Count": 1, "Constraints": None}]
    with placed(tmp_path, service_job(Cores=2, Devices=devices)) as place:
        live = place.live()
        assert live.shape == Shape(replicas=1, accelerator="Tesla T4", accelerator_count=1, cpus=2.0, memory_gb=1.07)
        after = asyncio.run(reach(place.make, live.shape.with_(accelerator_count=2, cpus=4.0)))
        assert (after.shape.accelerator_count, after.shape.cpus) == (2, 4.0)
        with pytest.raises(CannotPlan, match="accelerator "):
            place.plan(accelerator="A100")


def test_a_deployment_that_is_under_way_is_waited_for_and_no_error_is_left_in_the_job(tmp_path: Path) -> None:
    with placed(tmp_path, healthy_s=60.0, idle=False) as place:
        plan = place.plan(replicas=2)
        for call in (
            lambda: place.make().clear(plan.operations[0], None),
            lambda: place.make().do(plan.operations[0], "c/0", None),
        ):
            with pytest.raises(ActuatorError, match="deployment of job chat is running") as refused:
                asyncio.run(call())
            assert (refused.value.trouble, refused.value.passes) == (Trouble.CONFLICT, True)
        assert place.nomad.cluster.jobs["chat"].events == {}
        assert place.live().ready is False


def test_nomads_own_refusal_of_the_same_is_a_conflict_too(place: Place) -> None:
    plan = place.plan(replicas=2)
    answers = place.nomad.cluster

    async def story() -> None:
        actuator = place.make()
        idle = actuator._idle

        async def raced() -> None:  # a deployment begins between the question and the write
            await idle()
            assert answers.jobs["chat"].deployment is not None
            answers.jobs["chat"].deployment["Status"] = "running"
            answers.healthy_s = 60.0

        actuator._idle = raced  # type: ignore[method-assign]
        with pytest.raises(ActuatorError, match="blocked due to active deployment") as refused:
            await actuator.do(plan.operations[0], "c/0", None)
        assert refused.value.trouble is Trouble.CONFLICT

    asyncio.run(story())


@pytest.mark.parametrize("changes", [{"replicas": 2}, {"memory_gb": 2.0}])
def test_an_answer_that_was_lost_is_no_second_write(place: Place, changes: dict[str, Any]) -> None:
    async def story() -> None:
        live = await place.make().live()
        plan = await place.make().plan(live, live.shape.with_(**changes))
        place.nomad.fail_next = 500  # done, and nobody was told
        with pytest.raises(ActuatorError) as lost:
            await place.make().do(plan.operations[0], "c/0", None)
        assert lost.value.passes
        receipt = await place.make().do(plan.operations[0], "c/0", None)
        assert (await until_done(place.make, plan.operations[0], receipt)).progress is Progress.DONE

    asyncio.run(story())
    assert len(place.nomad.writes) == 1


def test_a_revert_whose_answer_was_lost_is_no_second_write(place: Place) -> None:
    async def story() -> None:
        before = await place.make().live()
        plan = await place.make().plan(before, before.shape.with_(memory_gb=2.0))
        await carry_out(place.make, plan)
        receipt = await place.make().do(plan.operations[0], "c/0", None)
        back = await place.make().back(plan, [receipt], await place.make().live())
        place.nomad.fail_next = 500
        with pytest.raises(ActuatorError):
            await place.make().do(back.operations[0], "b/0", None)
        receipt = await place.make().do(back.operations[0], "b/0", None)
        assert (await until_done(place.make, back.operations[0], receipt)).progress is Progress.DONE
        assert (await place.make().live()).shape == before.shape

    asyncio.run(story())
    assert [p.rsplit("/", 1)[-1] for _, p in place.nomad.writes] == ["jobs", "revert"]


@pytest.mark.parametrize("call", ["clear", "do"])
@pytest.mark.parametrize("changes", [{"replicas": 2}, {"memory_gb": 2.0}])
def test_somebody_elses_registration_voids_the_plan(place: Place, call: str, changes: dict[str, Any]) -> None:
    plan = place.plan(**changes)
    place.nomad.cluster.register(service_job(MemoryMB=2048))
    step = plan.operations[0]
    with pytest.raises(ActuatorError) as refused:
        asyncio.run(place.make().clear(step, None) if call == "clear" else place.make().do(step, "c/0", None))
    assert refused.value.trouble is Trouble.DRIFT
    assert place.nomad.writes == []


def test_somebody_who_writes_in_that_very_moment_is_told_by_the_index(place: Place) -> None:
    plan = place.plan(memory_gb=2.0)

    async def story() -> None:
        actuator = place.make()
        idle = actuator._idle

        async def raced() -> None:
            await idle()
            place.nomad.cluster.register(service_job(MemoryMB=3000))

        actuator._idle = raced  # type: ignore[method-assign]
        with pytest.raises(ActuatorError, match="Enforcing job modify index") as refused:
            await actuator.do(plan.operations[0], "c/0", None)
        assert refused.value.trouble is Trouble.CONFLICT, "it is asked again, and then the plan is void"

    asyncio.run(story())
    with pytest.raises(ActuatorError) as void:
        asyncio.run(place.make().do(plan.operations[0], "c/0", None))
    assert void.value.trouble is Trouble.DRIFT
    assert place.group["Tasks"][0]["Resources"]["MemoryMB"] == 3000


def test_the_way_back_after_somebody_elses_write_sets_fields_and_reverts_nothing_of_theirs(place: Place) -> None:
    async def story() -> None:
        before = await place.make().live()
        plan = await place.make().plan(before, before.shape.with_(replicas=2))
        await carry_out(place.make, plan)
        receipt = await place.make().do(plan.operations[0], "c/0", None)
        theirs = service_job(count=2)
        theirs["TaskGroups"][0]["Tasks"][0]["Config"]["image"] = "vllm/vllm-openai:v0.12.0"
        place.nomad.cluster.register(theirs)
        back = await place.make().back(plan, [receipt], await place.make().live())
        assert [o.name for o in back.operations] == ["scale"]

    asyncio.run(story())


def test_where_there_is_no_room_nothing_is_written_and_the_scheduler_says_why(tmp_path: Path) -> None:
    with placed(tmp_path, mib=2_000) as place:
        plan = place.plan(replicas=3)
        with pytest.raises(ActuatorError, match="no room for group web") as refused:
            asyncio.run(place.make().clear(plan.operations[0], None))
        assert (refused.value.trouble, "memory" in refused.value.detail) == (Trouble.CAPACITY, True)
        assert place.nomad.writes == []
        receipt = asyncio.run(place.make().do(plan.operations[0], "c/0", None))  # the room went after it was asked for
        step = asyncio.run(place.make().done(plan.operations[0], receipt))
        assert (step.progress, "no room" in step.detail) == (Progress.PENDING, True)


@pytest.mark.parametrize("reverts", [False, True])
def test_a_deployment_that_fails_is_a_failed_step_also_where_nomad_reverts_it_itself(
    tmp_path: Path, reverts: bool
) -> None:
    job = service_job()
    job["TaskGroups"][0]["Update"] = {"AutoRevert": reverts}
    with placed(tmp_path, job) as place:
        plan = place.plan(memory_gb=2.0)
        place.nomad.cluster.fails = "unhealthy"
        receipt = asyncio.run(place.make().do(plan.operations[0], "c/0", None))
        step = asyncio.run(until_done(place.make, plan.operations[0], receipt))
        assert step.progress is Progress.FAILED
        assert ("auto_revert" if reverts else "unhealthy allocations") in step.detail
        back = asyncio.run(place.make().back(plan, [receipt], place.live()))
        assert [o.name for o in back.operations] == ([] if reverts else ["revert"])


def test_the_bounds_of_an_autoscaler_are_set_and_the_count_is_its_own(tmp_path: Path) -> None:
    job = service_job(count=2)
    job["TaskGroups"][0]["Scaling"] = SCALED
    with placed(tmp_path, job) as place:
        live = place.live()
        assert (live.shape.replicas, live.shape.autoscaling, live.serving) == (None, Autoscaling(1, 4), 2)
        assert live.owner == Owner("nomad-autoscaler", "web", frozenset({"replicas"}))
        place.nomad.cluster.scale("chat", {"Count": 3, "Target": {"Group": "web"}})
        asyncio.run(eventually(lambda: settled(place)))
        assert place.live().version == live.version, "its count is no change of what plans rest on"
        after = asyncio.run(reach(place.make, live.shape.with_(autoscaling=Autoscaling(2, 6))))
        assert (after.shape.autoscaling, after.serving) == (Autoscaling(2, 6), 3)
        assert place.group["Scaling"] == {**SCALED, "Min": 2, "Max": 6}
        for changes, said in (
            ({"replicas": 3}, "autoscaler sets"),
            ({"autoscaling": Autoscaling(1, 2, {"load": 1.0})}, "policy"),
        ):
            with pytest.raises(CannotPlan, match=said):
                place.plan(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": {"cpu_mhz": 0}}, "whole number"),
        ({"engine": {"max_num_seqs": 4}}, "task's arguments"),
        ({"cpus": 2.0}, "reserves cores"),
        ({"memory_gb": 1.2345}, "two decimals"),
        ({"size": "big"}, "job's own file"),
    ],
)
def test_what_nomad_would_not_do_is_refused(place: Place, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CannotPlan, match=said):
        place.plan(**changes)


def test_the_scaling_block_is_kept_to_and_a_stopped_or_batch_job_is_left_alone(tmp_path: Path) -> None:
    job = service_job()
    job["TaskGroups"][0]["Scaling"] = {**SCALED, "Policy": {}}
    with placed(tmp_path, job) as place, pytest.raises(CannotPlan, match=r"allows 1\.\.4"):
        place.plan(replicas=9)
    with (
        placed(tmp_path, {**service_job(), "Stop": True}, idle=False) as place,
        pytest.raises(CannotPlan, match="stopped"),
    ):
        place.plan(replicas=2)
    with placed(tmp_path, {**service_job(), "Type": "batch"}) as place, pytest.raises(CannotPlan, match="service jobs"):
        place.plan(replicas=2)


def test_one_of_several_groups_or_tasks_is_named(tmp_path: Path) -> None:
    job = service_job()
    job["TaskGroups"].append({**job["TaskGroups"][0], "Name": "other"})
    with placed(tmp_path, job, options={"group": "other"}) as place:
        asyncio.run(reach(place.make, place.live().shape.with_(replicas=2)))
        assert [g["Count"] for g in place.nomad.cluster.jobs["chat"].body["TaskGroups"]] == [1, 2]
    with placed(tmp_path, job, idle=False) as place, pytest.raises(ActuatorError, match="web, other"):
        place.live()


def test_a_token_without_the_capability_is_denied_and_told_what_lacks(tmp_path: Path) -> None:
    tokens = {"see": {"list-jobs", "read-job"}, "scale": {"list-jobs", "read-job", "scale-job"}}
    with placed(tmp_path, tokens=tokens, options={"token": "see"}) as place:
        plan = place.plan(replicas=2)
        with pytest.raises(ActuatorError, match="permissions nomad") as refused:
            asyncio.run(place.make().do(plan.operations[0], "c/0", None))
        assert refused.value.trouble is Trouble.DENIED
        receipt = Receipt({"token": "c/0"})
        assert asyncio.run(place.make().done(plan.operations[0], receipt)).progress is Progress.FAILED
