"""The system ``azure-vm`` against the strict stand-in for Azure: a machine, a scale set, a node pool, over HTTP and in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from actuators.azure_vm.actuator import AzureMachines, make
from actuators.base import ActuatorError, CannotPlan, SystemContext, Trouble
from actuators.shape import Autoscaling, Plan, Purchase, Shape
from agent.clock import VirtualClock
from collectors.sessions import Sessions
from tests.actuators.azure import NOW, CountingHttp, Death, Journal, Stage, StepFailed, resume, run
from tests.fakes.azure import Cloud, FakeAzure
from tests.fakes.azure.cloud import Fault
from tests.fakes.azure.compute import Machine, add_pool, add_set, add_vm

F2S, F4S, F8S, A100 = "Standard_F2s_v2", "Standard_F4s_v2", "Standard_F8s_v2", "Standard_NC24ads_A100_v4"
Made = Callable[[Cloud], Machine]


class MachineStage(Stage):
    """One machine, set or pool."""

    @property
    def machine(self) -> Machine:
        found: Machine = next(iter(self.cloud.machines.values()))
        return found

    def make(self, *, restarted: bool = False, **options: Any) -> AzureMachines:  # type: ignore[override]
        if restarted:
            self.sessions = Sessions()
        stated = {"resource": self.machine.path, "credential": "token", "token": "arm-token", "arm_url": self.azure.url}
        context = SystemContext(
            endpoint="chat",
            url=self.azure.url,
            model=None,
            shape=Shape(),
            state_dir=self.folder,
            http=self.http.call,
            clock=self.clock,
            sessions=self.sessions,
            options={**stated, **options},
        )
        made = make(context)
        assert isinstance(made, AzureMachines)
        return made

    @property
    def taken(self) -> list[str]:
        """What Azure was really made to do."""
        return [o.kind for o in self.cloud.operations.values()]


@asynccontextmanager
async def stage(folder: Path, made: Made) -> AsyncIterator[MachineStage]:
    clock = VirtualClock(NOW)
    cloud = Cloud(clock.now)
    cloud.scale_s = 60.0
    made(cloud)
    http = CountingHttp()
    with FakeAzure(cloud) as azure:
        try:
            yield MachineStage(azure, clock, http, folder)
        finally:
            await http.aclose()


def flexible(cloud: Cloud) -> Machine:
    return add_set(cloud, flexible=True)


def rolling(cloud: Cloud) -> Machine:
    return add_set(cloud, mode="Rolling")


def scaled(cloud: Cloud) -> Machine:
    return add_pool(cloud, bounds=(1, 4))


def test_live_is_what_is_configured_and_only_read(tmp_path: Path) -> None:
    expected: list[tuple[Made, Shape]] = [
        (add_vm, Shape(replicas=1, size=F2S, cpus=2.0, region="westeurope")),
        (add_set, Shape(replicas=2, size=F2S, cpus=2.0, region="westeurope")),
        (add_pool, Shape(replicas=2, size=F2S, cpus=2.0, region="westeurope")),
        (scaled, Shape(size=F2S, cpus=2.0, autoscaling=Autoscaling(1, 4), region="westeurope")),
    ]

    async def scenario() -> None:
        for made, shape in expected:
            async with stage(tmp_path, made) as on:
                live = await on.make().live()
                assert live.shape == shape
                assert (live.ready, live.detail) == (True, "")
                assert (live.owner is not None) == (shape.autoscaling is not None)
                assert on.http.writes == []

    run(scenario)


# -- a virtual machine -----------------------------------------------------------------------------------------------------


def test_a_size_of_the_same_hardware_is_a_reboot(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, add_vm) as on:
            plan = await on.plan(size=F4S, cpus=4.0)
            assert Plan.from_dict(plan.as_dict()).hash == plan.hash == (await on.plan(size=F4S, cpus=4.0)).hash
            assert [o.name for o in plan.operations] == ["resize"]
            assert (plan.restarts, plan.downtime_s) == (True, 180.0)
            assert [(n.what, n.wanted, n.free) for n in plan.needs] == [("cores of standardFSv2Family", 2.0, 98.0)]
            before = await on.make().live()
            await on.carry_out(plan.operations, lose_receipts=True, restarted=True)
            live = await on.live()
            assert (live.shape, live.ready) == (plan.after, True)
            assert live.version != before.version
            assert on.taken == ["resize"]
            assert on.machine.body["tags"] == {"owner": "ada"}
            back = await on.make().back(plan, [], live)
            assert [o.name for o in back.operations] == ["deallocate", "resize", "start"] or on.machine.here
            await on.carry_out(back.operations, change="back")
            assert (await on.live()).shape == before.shape

    run(scenario)


def test_a_size_of_other_hardware_leaves_it_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, add_vm) as on:
            plan = await on.plan(size=F8S, cpus=8.0)
            assert [o.name for o in plan.operations] == ["deallocate", "resize", "start"]
            assert "temporary disk" in plan.operations[0].summary
            await on.carry_out(plan.operations, lose_receipts=True, restarted=True)
            live = await on.live()
            assert (live.shape, live.ready, live.serving) == (plan.after, True, 1)
            assert on.taken == ["deallocate", "resize", "start"]

    run(scenario)


def test_a_kill_at_every_instant_of_each_kind_of_change(tmp_path: Path) -> None:
    cases: list[tuple[Made, dict[str, Any], list[str]]] = [
        (add_vm, {"size": F8S, "cpus": 8.0}, ["deallocate", "resize", "start"]),
        (add_set, {"size": F4S, "cpus": 4.0, "replicas": 3}, ["set", "upgrade"]),
        (add_pool, {"replicas": 3}, ["pool"]),
    ]

    async def die(made: Made, wanted: dict[str, Any], expected: list[str], at: int | None) -> tuple[int, bool]:
        folder = tmp_path / f"{expected[0]}-{at}"
        folder.mkdir()
        async with stage(folder, made) as on:
            on.cloud.retry_after_s = 60
            plan = await on.plan(**wanted)
            journal = Journal()
            on.http.instants, on.http.die_at = 0, at
            died = False
            try:
                await resume(on, plan.operations, journal, "c")
            except Death:
                died, on.http.die_at, on.sessions = True, None, Sessions()
                await on.clock.advance(7)
                await resume(on, plan.operations, journal, "c")
            instants = on.http.instants
            assert (await on.live()).shape == plan.after
            assert on.taken == expected, f"died at {at}"
            return instants, died

    async def scenario() -> None:
        for made, wanted, expected in cases:
            whole, _ = await die(made, wanted, expected, None)
            for at in range(1, whole + 1):
                _, died = await die(made, wanted, expected, at)
                assert died, at

    run(scenario)


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_the_way_back_from_every_half_way_state(tmp_path: Path, after: int) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, add_vm) as on:
            before = await on.make().live()
            plan = await on.plan(size=F8S, cpus=8.0)
            receipts = await on.carry_out(plan.operations[:after])
            back = await on.make(restarted=True).back(plan, receipts, await on.live())
            await on.carry_out(back.operations, change="back", lose_receipts=True, restarted=True)
            live = await on.live()
            assert (live.shape, live.ready) == (before.shape, True)

    run(scenario)


def test_a_size_that_does_not_start_again_goes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, add_vm) as on:
            plan = await on.plan(size=F8S, cpus=8.0)
            on.cloud.unavailable.add(F8S)
            with pytest.raises(StepFailed, match="sufficient capacity") as failed:
                await on.carry_out(plan.operations)
            back = await on.make().back(plan, failed.value.receipts, await on.live())
            assert [o.name for o in back.operations] == ["resize", "start"]
            await on.carry_out(back.operations, change="back")
            live = await on.live()
            assert (live.shape.size, live.ready) == (F2S, True)

    run(scenario)


def test_an_etag_that_moved_is_no_overwrite(tmp_path: Path) -> None:
    """Somebody writes between our reading and our writing: Azure refuses, and nothing of theirs is lost."""

    async def scenario() -> None:
        async with stage(tmp_path, add_vm) as on:
            plan = await on.plan(size=F4S, cpus=4.0)
            on.cloud.faults.append(Fault("PATCH", "virtualMachines", 412, "PreconditionFailed", "the etag moved"))
            with pytest.raises(ActuatorError, match="the etag moved") as drift:
                await on.make().do(plan.operations[0], "c/0", None)
            assert drift.value.trouble is Trouble.DRIFT
            sent = [h for u, h in on.http.headers if h.get("if-match")]
            assert sent, "the etag of what was read goes with the write"

    run(scenario)


# -- scale sets and pools --------------------------------------------------------------------------------------------------


def test_a_scale_set_is_scaled_and_its_machines_are_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, add_set) as on:
            more = await on.plan(replicas=4)
            assert [o.name for o in more.operations] == ["set"]
            assert not more.restarts
            await on.carry_out(more.operations, lose_receipts=True, restarted=True)
            assert (await on.live()).shape == more.after
            larger = await on.plan(size=F4S, cpus=4.0, replicas=2)
            assert [o.name for o in larger.operations] == ["set", "upgrade"]
            await on.carry_out(larger.operations, change="d", lose_receipts=True, restarted=True)
            assert (await on.live()).shape == larger.after
            assert on.machine.applied == [True, True]
            assert on.taken == ["set", "set", "upgrade"]

    run(scenario)


def test_a_set_that_upgrades_by_itself_is_waited_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, rolling) as on:
            plan = await on.plan(size=F4S, cpus=4.0)
            await on.carry_out(plan.operations)
            assert on.taken == ["set"]
            assert (await on.live()).shape == plan.after

    run(scenario)


def test_a_count_that_an_autoscaler_sets_is_not_touched(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, add_set) as on:
            on.cloud.add_autoscale("auto", on.machine.path, 1, 5)
            live = await on.make().live()
            assert live.owner is not None
            assert live.shape.replicas is None
            with pytest.raises(CannotPlan, match="autoscale setting auto sets the count"):
                await on.plan(replicas=4)
            plan = await on.plan(size=F4S, cpus=4.0)
            on.machine.body["sku"]["capacity"], on.machine.applied = 3, [True] * 3
            await on.carry_out(plan.operations)
            assert (on.machine.size, on.machine.count) == (F4S, 3), "the count is the autoscaler's"
            on.cloud.not_actions = ("Microsoft.Insights/AutoscaleSettings/Read",)
            assert "who owns the count is not known" in (await on.live()).detail
            with pytest.raises(CannotPlan, match="may not be known"):
                await on.plan(replicas=4)

    run(scenario)


def test_a_pool_is_put_whole_by_count_or_by_bounds(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path / "count", add_pool) as on:
            plan = await on.plan(replicas=4)
            await on.carry_out(plan.operations, lose_receipts=True, restarted=True)
            assert (await on.live()).shape == plan.after
            assert on.machine.body["properties"]["nodeLabels"] == {"gpu": "yes"}, "what a PUT leaves out would be lost"
            assert on.taken == ["pool"]
        async with stage(tmp_path / "bounds", scaled) as on:
            plan = await on.plan(autoscaling=Autoscaling(3, 6))
            assert [n.wanted for n in plan.needs] == [4.0], "two more at the most, of two cores"
            before = await on.make().live()
            await on.carry_out(plan.operations)
            told = on.machine.body["properties"]
            assert (told["minCount"], told["maxCount"], told["count"]) == (3, 6, 3)
            back = await on.make().back(plan, [], await on.live())
            await on.carry_out(back.operations, change="back")
            assert (await on.live()).shape == before.shape

    run(scenario)


def test_another_size_of_a_pool_is_another_pool_by_hand(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, add_pool) as on:
            plan = await on.plan(size=F4S, cpus=4.0, replicas=1)
            assert plan.operations == ()
            assert plan.by_hand is not None
            assert "az aks nodepool add -g rg-chat --cluster-name aks -n gpupool2" in plan.by_hand
            assert f"--node-vm-size {F4S} --node-count 1" in plan.by_hand
            assert "kubectl drain -l agentpool=gpupool" in plan.by_hand

    run(scenario)


# -- refusals --------------------------------------------------------------------------------------------------------------


def test_cores_that_lack_are_shown_and_asked_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, add_vm) as on:
            plan = await on.plan(size=A100, cpus=24.0)
            assert [(n.wanted, n.free, n.met) for n in plan.needs] == [(24.0, 0.0, False)]
            resize = plan.operations[1]
            on.machine.power = "deallocated"
            with pytest.raises(ActuatorError, match="24 cores of StandardNCADSA100v4Family are needed") as lacking:
                await on.make().clear(resize, None)
            assert lacking.value.trouble is Trouble.QUOTA
        async with stage(tmp_path, add_set) as on:
            plan = await on.plan(replicas=60)
            with pytest.raises(ActuatorError, match="exceeding approved") as refused:
                await on.make().do(plan.operations[0], "c/0", None)
            assert refused.value.trouble is Trouble.QUOTA

    run(scenario)


def test_what_is_under_way_is_waited_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, add_vm) as on:
            plan = await on.plan(size=F4S, cpus=4.0)
            on.machine.state = "Updating"
            for call in (on.make().clear(plan.operations[0], None), on.make().do(plan.operations[0], "c/0", None)):
                with pytest.raises(ActuatorError, match="gpu is Updating") as busy:
                    await call
                assert busy.value.trouble is Trouble.CONFLICT

    run(scenario)


@pytest.mark.parametrize(
    ("made", "changed", "code"),
    [
        (add_vm, {"replicas": 2}, "UNSUPPORTED_CHANGE"),
        (add_vm, {"replicas": 0}, "INCOMPLETE_SHAPE"),
        (add_vm, {"size": "Standard_Nothing"}, "UNKNOWN_SIZE"),
        (add_vm, {"size": None}, "INCOMPLETE_SHAPE"),
        (add_vm, {"purchase": Purchase(1, "ptu")}, "UNSUPPORTED_CHANGE"),
        (add_set, {"autoscaling": Autoscaling(1, 2)}, "UNSUPPORTED_CHANGE"),
        (flexible, {"size": F4S}, "UNSUPPORTED_CHANGE"),
        (scaled, {"autoscaling": Autoscaling(4, 2)}, "INCOMPLETE_SHAPE"),
        (scaled, {"autoscaling": Autoscaling(1, 2, {"cpu": 0.5})}, "INCOMPLETE_SHAPE"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path: Path, made: Made, changed: dict[str, Any], code: str) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, made) as on:
            with pytest.raises(CannotPlan) as refused:
                await on.plan(**changed)
            assert refused.value.code == code
            assert on.http.writes == []

    run(scenario)


def test_a_size_that_the_subscription_may_not_have_is_said(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, add_vm) as on:
            on.cloud.forbidden.add(F8S)
            with pytest.raises(CannotPlan, match="NotAvailableForSubscription"):
                await on.plan(size=F8S)

    run(scenario)
