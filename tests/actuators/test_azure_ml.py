"""The system ``azure-ml`` against the strict stand-in for Azure, over HTTP and in virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actuators.base import ActuatorError, CannotPlan, Trouble
from actuators.shape import Autoscaling, Plan, Shape
from collectors.sessions import Sessions
from tests.actuators.azure import Death, Journal, Stage, StepFailed, resume, run, stage
from tests.fakes.azure.cloud import Fault
from tests.fakes.azure.ml import deployment_id

F2S, F4S = "Standard_F2s_v2", "Standard_F4s_v2"


def test_live_is_what_is_configured_and_only_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            live = await on.make().live()
            assert live.shape == Shape(replicas=4, size=F2S, cpus=2.0, region="westeurope")
            assert (live.ready, live.serving, live.owner, live.detail) == (True, 4, None, "")
            assert on.http.writes == []
            sent = len(on.http.sent)
            assert await on.make().live() == live
            assert len(on.http.sent) == sent, "the lists are shared for poll_s"
            await on.clock.advance(61)
            assert await on.make().live() == live
            assert len(on.http.sent) == sent + 3, "two pages of the index and the autoscale settings, and nothing else"

    run(scenario)


def test_the_lists_are_shared_by_a_thousand_endpoints(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            on.cloud.page = 1000
            names = [f"chat{i}" for i in range(30)]
            ids = [
                on.make().options.resource.replace("onlineEndpoints/chat", f"onlineEndpoints/{name}")
                for name in names
                if on.cloud.add(name)
            ]
            actuators = [on.make(resource=id_) for id_ in ids]
            for actuator in actuators:
                await actuator.live()
            sent = len(on.http.sent)
            await on.clock.advance(61)
            for actuator in actuators:
                await actuator.live()
            assert len(on.http.sent) - sent == 3

    run(scenario)


def test_another_count_is_one_patch_that_keeps_the_tags(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            plan = await on.plan(replicas=6)
            assert Plan.from_dict(plan.as_dict()).hash == plan.hash == (await on.plan(replicas=6)).hash
            assert [n.wanted for n in plan.needs] == [6.0]
            assert plan.needs[0].free == 90.0
            before = await on.make().live()
            await on.carry_out(plan.operations, lose_receipts=True, restarted=True)
            live = await on.live()
            assert (live.shape, live.ready, live.serving) == (plan.after, True, 6)
            assert live.version != before.version
            assert [m for m, _ in on.http.writes] == ["PATCH"]
            assert on.endpoint.deployments["blue"].body["tags"] == {"team": "search"}
            back = await on.make().back(plan, [], live)
            await on.carry_out(back.operations, change="back")
            assert (await on.live()).version == before.version

    run(scenario)


def test_another_size_is_a_second_deployment_with_a_smoke_test_and_traffic_in_steps(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            plan = await on.plan(size=F4S, replicas=2, cpus=4.0)
            assert [o.name for o in plan.operations] == ["create", "smoke", "traffic", "traffic", "traffic"]
            assert [(o.gate, o.hold_s) for o in plan.operations[2:]] == [(True, 300.0), (True, 300.0), (False, 0.0)]
            assert [o.name for o in plan.finish] == ["delete"]
            assert plan.needs[0].wanted == 12.0  # 1.2 x 2, rounded up, of 4 cores
            assert "WORKER_COUNT" not in str(plan.as_dict()), "a deployment's environment may hold secrets"
            await on.carry_out(plan.operations, lose_receipts=True, restarted=True)
            live = await on.live()
            assert (live.shape, live.ready) == (plan.after, True)
            assert set(on.cloud.scored) == {"blue-2"}
            assert set(on.endpoint.deployments) == {"blue", "blue-2"}, "the old one stands until the verdict"
            new = on.endpoint.deployments["blue-2"].body
            assert new["tags"] == {"team": "search", "created-by": "flyball"}
            assert new["properties"]["requestSettings"]["maxConcurrentRequestsPerInstance"] == 8
            assert on.endpoint.body["tags"] == {"owner": "ada"}
            await on.carry_out(plan.finish, change="f", lose_receipts=True, restarted=True)
            assert set(on.endpoint.deployments) == {"blue-2"}
            methods = [m for m, u in on.http.writes if "/score" not in u]
            assert methods == ["PUT", "PUT", "PUT", "PUT", "DELETE"], "each step once, though begun twice"

    run(scenario)


def test_a_kill_at_every_instant_of_a_change_of_size(tmp_path: Path) -> None:
    """Before and after each request that is sent: what follows is the same world, and each write was taken once."""

    async def die(at: int | None) -> tuple[int, bool]:
        async with stage(tmp_path, traffic_steps=(50, 100)) as on:
            plan = await on.plan(size=F4S, replicas=2, cpus=4.0)
            on.cloud.retry_after_s = 200  # fewer instants that are all alike
            steps, journal = (*plan.operations, *plan.finish), Journal()
            on.http.instants, on.http.die_at = 0, at
            died = False
            try:
                await resume(on, steps, journal, "c")
            except Death:
                died, on.http.die_at, on.sessions = True, None, Sessions()
                await on.clock.advance(7)
                await resume(on, steps, journal, "c")
            instants = on.http.instants
            assert (await on.live()).shape == plan.after
            assert set(on.endpoint.deployments) == {"blue-2"}
            taken = [o.kind for o in on.cloud.operations.values()]
            assert taken == ["create", "traffic", "traffic", "delete"], f"died at {at}"
            return instants, died

    async def scenario() -> None:
        whole, _ = await die(None)
        assert whole > 60
        for at in range(1, whole + 1):
            _, died = await die(at)
            assert died, at

    run(scenario)


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 5])
def test_the_way_back_from_every_half_way_state(tmp_path: Path, after: int) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            before = await on.make().live()
            plan = await on.plan(size=F4S, replicas=2, cpus=4.0)
            receipts = await on.carry_out(plan.operations[:after])
            back = await on.make(restarted=True).back(plan, receipts, await on.live())
            await on.carry_out(back.operations, change="back", lose_receipts=True, restarted=True)
            assert (await on.live()).version == before.version
            assert set(on.endpoint.deployments) == {"blue"}

    run(scenario)


def test_the_way_back_while_the_new_one_is_still_made(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            before = await on.make().live()
            plan = await on.plan(size=F4S, replicas=2, cpus=4.0)
            actuator = on.make()
            receipt = await actuator.do(plan.operations[0], "c/0", None)
            back = await actuator.back(plan, [receipt], await actuator.live())
            with pytest.raises(ActuatorError) as busy:
                await actuator.clear(back.operations[0], None)
            assert busy.value.trouble is Trouble.CONFLICT
            await on.carry_out(back.operations, change="back")
            assert (await on.live()).version == before.version

    run(scenario)


def test_the_way_back_after_the_old_one_is_gone_makes_it_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            plan = await on.plan(size=F4S, replicas=2, cpus=4.0)
            await on.carry_out(plan.operations)
            await on.carry_out(plan.finish, change="f")
            back = await on.make().back(plan, [], await on.live())
            assert next(o.name for o in back.operations) == "create"
            await on.carry_out(back.operations, change="back")
            assert (await on.live()).shape == plan.before

    run(scenario)


def test_an_answer_that_was_lost_is_no_second_write(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            plan = await on.plan(size=F4S, replicas=2, cpus=4.0)
            on.cloud.faults += [
                Fault("PUT", "/deployments/blue-2", after=True),
                Fault("PUT", r"/onlineEndpoints/chat\?", after=True),
                Fault("DELETE", "/deployments/blue", after=True),
            ]
            await on.carry_out((*plan.operations, *plan.finish))
            assert (await on.live()).shape == plan.after
            assert len([m for m, u in on.http.writes if "/score" not in u]) == 5

    run(scenario)


def test_azure_may_ask_to_wait(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            plan = await on.plan(replicas=6)
            on.cloud.faults.append(Fault("PATCH", "blue", 429, "TooManyRequests", "slow down", {"Retry-After": "37"}))
            actuator = on.make()
            with pytest.raises(ActuatorError) as limited:
                await actuator.do(plan.operations[0], "c/0", None)
            assert (limited.value.trouble, limited.value.retry_after_s) == (Trouble.THROTTLED, 37.0)
            sent = len(on.http.writes)
            with pytest.raises(ActuatorError):
                await actuator.do(plan.operations[0], "c/0", None)
            assert len(on.http.writes) == sent, "nobody is asked until then"
            await on.clock.advance(37)
            await actuator.do(plan.operations[0], "c/0", None)

    run(scenario)


async def _somebody_scales(on: Stage) -> None:
    on.endpoint.deployments["blue"].body["sku"] = {"name": "Default", "capacity": 5}


async def _somebody_edits(on: Stage) -> None:
    properties = on.endpoint.deployments["blue"].body["properties"]
    on.endpoint.deployments["blue"].body = {
        **on.endpoint.deployments["blue"].body,
        "properties": {**properties, "environmentVariables": {"WORKER_COUNT": "9"}},
    }


async def _somebody_makes_one_of_that_name(on: Stage) -> None:
    from tests.fakes.azure.cloud import Deployment

    body = on.endpoint.deployments["blue"].body
    on.endpoint.deployments["blue-2"] = Deployment("blue-2", {**body, "tags": {}}, "Succeeded", 4)


@pytest.mark.parametrize("act", [_somebody_edits, _somebody_makes_one_of_that_name])
def test_what_somebody_else_did_stops_a_change_of_size(tmp_path: Path, act: Any) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            plan = await on.plan(size=F4S, replicas=2, cpus=4.0)
            await act(on)
            for call in (on.make().clear(plan.operations[0], None), on.make().do(plan.operations[0], "c/0", None)):
                with pytest.raises(ActuatorError) as refused:
                    await call
                assert (refused.value.code, refused.value.trouble) == ("STALE_PLAN", Trouble.DRIFT)
            assert on.http.writes == []

    run(scenario)


def test_what_somebody_else_did_stops_a_change_of_count(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            plan = await on.plan(replicas=6)
            await _somebody_scales(on)
            with pytest.raises(CannotPlan, match="STALE_LIVE"):
                await on.plan(replicas=7)  # the lists are not a minute old, and wrong: that is found out
            for call in (on.make().clear(plan.operations[0], None), on.make().do(plan.operations[0], "c/0", None)):
                with pytest.raises(ActuatorError, match="STALE_PLAN"):
                    await call
            assert (await on.plan(replicas=7)).before.replicas == 5

    run(scenario)


def test_drift_between_two_steps_is_found_by_what_the_last_one_left(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            plan = await on.plan(size=F4S, replicas=2, cpus=4.0)
            receipts = await on.carry_out(plan.operations[:3])
            await _somebody_edits(on)
            with pytest.raises(ActuatorError) as refused:
                await on.make().clear(plan.operations[3], receipts[-1])
            assert refused.value.trouble is Trouble.DRIFT

    run(scenario)


def test_quota_is_said_in_the_plan_and_asked_for_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            on.cloud.quota["standardFSv2Family"] = 20
            plan = await on.plan(size=F4S, replicas=2, cpus=4.0)
            assert (plan.needs[0].wanted, plan.needs[0].free, plan.needs[0].met) == (12.0, 10.0, False)
            with pytest.raises(ActuatorError, match="12 cores of standardFSv2Family") as refused:
                await on.make().clear(plan.operations[0], None)
            assert refused.value.trouble is Trouble.QUOTA
            with pytest.raises(ActuatorError, match=r"Current usage/limit: 10/20\. Additional needed: 12") as told:
                await on.make().do(plan.operations[0], "c/0", None)
            assert told.value.trouble is Trouble.QUOTA

    run(scenario)


def test_a_region_without_the_size(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            on.cloud.unavailable.add(F4S)
            plan = await on.plan(size=F4S, replicas=2, cpus=4.0)
            with pytest.raises(ActuatorError, match="SkuNotAvailable") as refused:
                await on.make().do(plan.operations[0], "c/0", None)
            assert refused.value.trouble is Trouble.CAPACITY
            with pytest.raises(CannotPlan, match="not offered"):
                await on.plan(size="Standard_X1", replicas=2)

    run(scenario)


@pytest.mark.parametrize(("kind", "at"), [("create", "blue-2"), ("traffic", "chat")])
def test_an_operation_that_fails_says_why_and_is_undone(tmp_path: Path, kind: str, at: str) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            before = await on.make().live()
            plan = await on.plan(size=F4S, replicas=2, cpus=4.0)
            on.cloud.operation_errors[kind, at] = ("ResourceNotReady", "the container crashed while it started")
            with pytest.raises(StepFailed, match="container crashed") as failed:
                await on.carry_out(plan.operations)
            back = await on.make().back(plan, failed.value.receipts, await on.live())
            await on.carry_out(back.operations, change="back")
            live = await on.live()
            assert live.version == before.version
            assert set(on.endpoint.deployments) == {"blue"}

    run(scenario)


def test_a_scaling_that_fails_says_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            plan = await on.plan(replicas=6)
            on.cloud.unavailable.add(F2S)
            with pytest.raises(StepFailed, match="lack of capacity"):
                await on.carry_out(plan.operations)
            assert on.endpoint.deployments["blue"].serving == 4

    run(scenario)


def test_a_model_that_does_not_answer_gets_no_traffic(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            plan = await on.plan(size=F4S, replicas=2, cpus=4.0)
            on.cloud.broken.add("blue-2")
            with pytest.raises(ActuatorError, match="answered 500 to the smoke test"):
                await on.carry_out(plan.operations)
            assert on.endpoint.traffic == {"blue": 100}

    run(scenario)


def test_the_models_key_goes_to_the_model_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            plan = await on.plan(size=F4S, replicas=2, cpus=4.0)
            await on.carry_out(plan.operations)
            for url, headers in on.http.headers:
                sent = next(v for k, v in headers.items() if k.lower() == "authorization")
                assert sent == ("Bearer primary-key" if url.endswith("/score") else "Bearer arm-token")

    run(scenario)


def test_an_autoscaler_is_found_and_its_bounds_are_tuned(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            on.cloud.add_autoscale("chat-auto", deployment_id(on.cloud, on.endpoint, "blue"), 2, 6)
            live = await on.make().live()
            assert live.owner is not None
            assert (live.owner.kind, live.owner.name, live.owner.owns) == ("azure-autoscale", "chat-auto", {"replicas"})
            assert live.shape.autoscaling == Autoscaling(2, 6, {"CpuUtilizationPercentage": 70.0})
            assert (live.shape.replicas, live.serving) == (None, 4)
            with pytest.raises(CannotPlan, match="OWNED"):
                await on.plan(replicas=5)
            wanted = Autoscaling(3, 9, dict(live.shape.autoscaling.targets))
            plan = await on.plan(autoscaling=wanted)
            on.endpoint.deployments["blue"].body["sku"] = {"name": "Default", "capacity": 6}  # it does its work
            on.endpoint.deployments["blue"].serving = 6
            await on.carry_out(plan.operations, lose_receipts=True)
            after = await on.live()
            assert (after.shape.autoscaling, after.serving) == (wanted, 6)
            assert on.endpoint.deployments["blue"].count == 6, "the count is the autoscaler's"
            assert [m for m, _ in on.http.writes] == ["PUT"]
            back = await on.make().back(plan, [], after)
            await on.carry_out(back.operations, change="back")
            assert (await on.live()).version == live.version

    run(scenario)


def test_an_autoscaler_follows_its_endpoint_to_another_size_and_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, traffic_steps=(100,)) as on:
            blue = deployment_id(on.cloud, on.endpoint, "blue")
            on.cloud.add_autoscale("chat-auto", blue, 2, 6)
            before = await on.make().live()
            plan = await on.plan(size=F4S, cpus=4.0)
            assert [o.name for o in plan.operations] == ["create", "smoke", "traffic", "target"]
            assert plan.operations[0].args["capacity"] == 4
            receipts = await on.carry_out(plan.operations, lose_receipts=True, restarted=True)
            live = await on.live()
            assert (live.shape, live.ready, live.detail) == (plan.after, True, "")
            assert live.owner is not None
            setting = next(iter(on.cloud.autoscale.values()))["properties"]
            assert setting["targetResourceUri"] == f"{blue}-2"
            assert {r["metricTrigger"]["metricResourceUri"] for p in setting["profiles"] for r in p["rules"]} == {
                f"{blue}-2"
            }
            back = await on.make().back(plan, receipts, live)
            assert [o.name for o in back.operations] == ["target", "traffic", "delete"]
            await on.carry_out(back.operations, change="back", lose_receipts=True)
            after = await on.live()
            assert (after.shape, after.version) == (before.shape, before.version)

    run(scenario)


def test_who_may_not_see_autoscalers_may_not_scale(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            on.cloud.not_actions = ("Microsoft.Insights/AutoscaleSettings/Read",)
            assert "who owns the count is not known" in (await on.make().live()).detail
            with pytest.raises(CannotPlan, match="AutoscaleSettings/Read"):
                await on.plan(replicas=5)

    run(scenario)


def test_the_lacking_permission_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            plan = await on.plan(replicas=6)
            on.cloud.not_actions = ("*/deployments/write",)
            with pytest.raises(
                ActuatorError,
                match=r"lacks Microsoft\..*/onlineEndpoints/deployments/write",
            ) as no:
                await on.make().do(plan.operations[0], "c/0", None)
            assert no.value.trouble is Trouble.DENIED

    run(scenario)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"replicas": 0}, "INCOMPLETE_SHAPE"),
        ({"replicas": None}, "INCOMPLETE_SHAPE"),
        ({"replicas": 51}, "INCOMPLETE_SHAPE"),
        ({"tier": "Standard"}, "UNSUPPORTED_CHANGE"),
        ({"engine": {"max_num_seqs": 4}}, "UNSUPPORTED_CHANGE"),
        ({"autoscaling": Autoscaling(1, 2)}, "UNSUPPORTED_CHANGE"),
    ],
)
def test_what_it_cannot_do_it_refuses(tmp_path: Path, change: dict[str, Any], code: str) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            with pytest.raises(CannotPlan) as refused:
                await on.plan(**change)
            assert refused.value.code == code

    run(scenario)


def test_traffic_that_somebody_split_is_left_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            await _somebody_makes_one_of_that_name(on)
            on.endpoint.body["properties"]["traffic"] = {"blue": 60, "blue-2": 40}
            live = await on.make().live()
            assert (live.ready, live.detail) == (False, "traffic is split: blue 60 %, blue-2 40 %")
            with pytest.raises(CannotPlan, match="SPLIT_TRAFFIC"):
                await on.plan(replicas=5)

    run(scenario)


def test_the_version_forgets_nothing_and_a_status_is_no_change(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            before = (await on.live()).version
            blue = on.endpoint.deployments["blue"]
            blue.state, blue.operation_uri = "Updating", "https://management.azure.com/x"
            assert (await on.live()).version == before
            blue.state = "Succeeded"
            for act in (_somebody_scales, _somebody_edits):
                await act(on)
                assert (await on.live()).version != before
                before = (await on.live()).version

    run(scenario)
