"""The system ``azure-openai`` against the strict stand-in for Azure, over HTTP and in virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actuators.base import ActuatorError, CannotPlan, Trouble
from actuators.shape import Plan, Purchase, Shape
from collectors.sessions import Sessions
from tests.actuators.azure import Death, Journal, StepFailed, resume, run
from tests.actuators.azure_openai import stage
from tests.fakes.azure.cloud import Fault
from tests.fakes.azure.openai import add_deployment


def tpm(amount: int) -> Purchase:
    return Purchase(amount, "tokens_per_minute")


def test_live_is_what_is_configured_and_only_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            live = await on.make().live()
            assert live.shape == Shape(
                purchase=tpm(60_000),
                tier="GlobalStandard",
                region="westeurope",
                engine={"requests_per_1k_tokens": 6.0},
                extra={"model": "gpt-4.1", "model_version": "2025-04-14"},
            )
            assert (live.ready, live.owner, live.detail) == (True, None, "")
            sent = len(on.http.sent)
            assert await on.make().live() == live
            assert len(on.http.sent) == sent, "the account is shared for poll_s"
            add_deployment(on.cloud, "draw", "Standard", 10, model=("OpenAI", "gpt-4o", "2024-08-06"))
            await on.clock.advance(61)
            await on.make().live()
            draw = on.make().options.resource.replace("/chat", "/draw")
            assert (await on.make(resource=draw).live()).shape.purchase == tpm(10_000)
            assert len(on.http.sent) == sent + 2, "the account and its deployments, for both"
            assert on.writes == []

    run(scenario)


def test_of_provisioned_throughput_azure_says_what_a_unit_carries_and_where_the_rest_goes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, "GlobalProvisionedManaged", 50, spilloverDeploymentName="chat-standard") as on:
            shape = (await on.make().live()).shape
            assert shape.purchase == Purchase(50, "ptu")
            assert shape.engine["spillover"] == "chat-standard"
            assert shape.engine["input_tokens_per_minute_per_ptu"] == pytest.approx(3000, rel=0.01)
            assert shape.engine["output_weight"] == pytest.approx(4.0, rel=0.01)
            on.cloud.not_actions = ("*/calculateModelCapacity/action",)
            shape = (await on.make(restarted=True).live()).shape
            assert "output_weight" not in shape.engine, "what may not be asked is not known"

    run(scenario)


def test_another_capacity_is_one_patch_and_back_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            plan = await on.plan(purchase=tpm(90_000))
            assert Plan.from_dict(plan.as_dict()).hash == plan.hash == (await on.plan(purchase=tpm(90_000))).hash
            assert [(n.what, n.wanted, n.free) for n in plan.needs] == [
                ("quota OpenAI.GlobalStandard.gpt-4.1", 30.0, 240.0),
                ("Azure's capacity of GlobalStandard gpt-4.1 in westeurope", 30.0, 1_000_000.0),
            ]
            assert plan.locks == (f"azure-openai:{on.make().id.account_path.lower()}",)
            before = await on.make().live()
            await on.carry_out(plan.operations, lose_receipts=True, restarted=True)
            live = await on.live()
            assert (live.shape, live.ready) == (plan.after, True)
            assert live.version != before.version
            assert [m for m, _ in on.writes] == ["PATCH"]
            assert on.deployment.body["tags"] == {"team": "search"}
            back = await on.make().back(plan, [], live)
            assert back.needs == (), "less needs no quota"
            await on.carry_out(back.operations, change="back")
            assert (await on.live()).shape == before.shape

    run(scenario)


def test_a_kill_at_every_instant(tmp_path: Path) -> None:
    async def die(at: int | None) -> tuple[int, bool]:
        async with stage(tmp_path, "GlobalProvisionedManaged", 50) as on:
            plan = await on.plan(purchase=Purchase(75, "ptu"))
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
            assert (await on.live()).shape.purchase == Purchase(75, "ptu")
            assert [o.kind for o in on.cloud.operations.values()] == ["capacity"], f"died at {at}"
            return instants, died

    async def scenario() -> None:
        whole, _ = await die(None)
        assert whole > 8
        for at in range(1, whole + 1):
            _, died = await die(at)
            assert died, at

    run(scenario)


def test_a_lost_answer_is_no_second_write(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            plan = await on.plan(purchase=tpm(90_000))
            on.cloud.faults.append(Fault("PATCH", "deployments", after=True))
            await on.carry_out(plan.operations, restarted=True)
            assert (await on.live()).shape == plan.after
            assert [o.kind for o in on.cloud.operations.values()] == ["capacity"]

    run(scenario)


def test_one_write_at_a_time_in_an_account(tmp_path: Path) -> None:
    """Another deployment of the account is being changed, by whomever: it waits, and then goes on."""

    async def scenario() -> None:
        async with stage(tmp_path) as on:
            other = add_deployment(on.cloud, "draw", "GlobalStandard", 10)
            other.state = "Accepted"
            plan = await on.plan(purchase=tpm(90_000))
            with pytest.raises(ActuatorError, match="draw of ai-chat is Accepted") as busy:
                await on.make().clear(plan.operations[0], None)
            assert busy.value.trouble is Trouble.CONFLICT
            with pytest.raises(ActuatorError) as busy:
                await on.make().do(plan.operations[0], "c/0", None)
            assert busy.value.trouble is Trouble.CONFLICT
            other.state = "Succeeded"
            on.cloud.faults.append(
                Fault("PATCH", "deployments", 409, "RequestConflict", "Another operation is being performed")
            )
            with pytest.raises(ActuatorError) as raced:
                await on.make().do(plan.operations[0], "c/0", None)
            assert (raced.value.trouble, raced.value.passes) == (Trouble.CONFLICT, True)
            await on.carry_out(plan.operations)
            assert (await on.live()).shape == plan.after

    run(scenario)


def test_quota_and_capacity_are_shown_and_asked_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            plan = await on.plan(purchase=tpm(400_000))
            assert [n.met for n in plan.needs] == [False, True]
            with pytest.raises(ActuatorError, match=r"340 units of quota .* 240 are free") as lacking:
                await on.make().clear(plan.operations[0], None)
            assert lacking.value.trouble is Trouble.QUOTA
            with pytest.raises(ActuatorError, match="InsufficientQuota") as refused:
                await on.make().do(plan.operations[0], "c/0", None)
            assert refused.value.trouble is Trouble.QUOTA
            on.cloud.model_quota["OpenAI.GlobalStandard.gpt-4.1"] = 1000
            on.cloud.model_capacity["westeurope", "GlobalStandard"] = 5
            with pytest.raises(ActuatorError, match="Azure's capacity") as lacking:
                await on.make().clear(plan.operations[0], None)
            assert lacking.value.trouble is Trouble.CAPACITY
            on.cloud.not_actions = ("*/locations/usages/read", "*/locations/modelCapacities/read")
            unknown = await on.plan(purchase=tpm(400_000))
            assert [n.free for n in unknown.needs] == [None], "what may not be read is not known, and no refusal"

    run(scenario)


def test_an_operation_that_fails_is_told_and_the_way_back_does_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            plan = await on.plan(purchase=tpm(90_000))
            on.cloud.operation_errors["capacity", "chat"] = ("InternalServerError", "the backend gave up")
            with pytest.raises(StepFailed, match="the backend gave up") as failed:
                await on.carry_out(plan.operations)
            back = await on.make().back(plan, failed.value.receipts, await on.live())
            assert back.operations == ()
            assert (await on.live()).shape.purchase == tpm(60_000)
            assert not (await on.live()).ready

    run(scenario)


def test_somebody_else_acted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            plan = await on.plan(purchase=tpm(90_000))
            on.deployment.body = {**on.deployment.body, "sku": {"name": "GlobalStandard", "capacity": 70}}
            for call in (on.make().clear(plan.operations[0], None), on.make().do(plan.operations[0], "c/0", None)):
                with pytest.raises(ActuatorError, match="somebody else changed chat") as drift:
                    await call
                assert drift.value.trouble is Trouble.DRIFT
            assert on.writes == []

    run(scenario)


def test_another_version_or_sku_is_a_patch_for_people(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, "Standard", 50, model=("OpenAI", "gpt-4o", "2024-08-06")) as on:
            plan = await on.plan(extra={"model_version": "2024-11-20"})
            assert plan.operations == ()
            assert plan.by_hand is not None
            assert "--deployment-name chat-2" in plan.by_hand
            assert "--model-name gpt-4o --model-version 2024-11-20" in plan.by_hand
            assert "--sku-name Standard --sku-capacity 50" in plan.by_hand
            assert [n.met for n in plan.needs] == [True, True]
            bought = await on.plan(tier="GlobalProvisionedManaged", purchase=Purchase(15, "ptu"))
            assert "--sku-name GlobalProvisionedManaged --sku-capacity 15" in (bought.by_hand or "")
            assert "paid for by the hour from its creation" in (bought.by_hand or "")
            with pytest.raises(CannotPlan, match="not known to be offered"):
                await on.plan(extra={"model_version": "1999-01-01"})

    run(scenario)


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ({"purchase": tpm(90_500)}, "INVALID_AMOUNT", "no whole number of units of 1,000"),
        ({"purchase": tpm(90_000_000)}, "INVALID_AMOUNT", "at most 10000 is offered"),
        ({"purchase": Purchase(10, "ptu")}, "INCOMPLETE_SHAPE", "GlobalStandard is bought in tokens_per_minute"),
        ({"purchase": None}, "INCOMPLETE_SHAPE", "how much is bought"),
        ({"replicas": 2}, "UNSUPPORTED_CHANGE", "no replicas"),
        ({"engine": {"requests_per_1k_tokens": 1.0}}, "UNSUPPORTED_CHANGE", "requests_per_1k_tokens"),
        ({"tier": "Spot"}, "NOT_OFFERED", "as Spot"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path: Path, changed: dict[str, Any], code: str, said: str) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            with pytest.raises(CannotPlan, match=said) as refused:
                await on.plan(**changed)
            assert refused.value.code == code
            assert on.writes == []

    run(scenario)


def test_steps_and_least_amounts_of_provisioned_throughput(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, "GlobalProvisionedManaged", 50) as on:
            for amount, said in ((10, "at least 15"), (52, "steps of 5")):
                with pytest.raises(CannotPlan, match=said):
                    await on.plan(purchase=Purchase(amount, "ptu"))
            plan = await on.plan(purchase=Purchase(25, "ptu"))
            await on.carry_out(plan.operations)
            assert (await on.live()).shape.purchase == Purchase(25, "ptu")

    run(scenario)


def test_a_deployment_that_is_gone_is_said(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as on:
            actuator = on.make()
            on.cloud.accounts["rg-chat/ai-chat"].deployments.clear()
            with pytest.raises(ActuatorError, match="no deployment chat"):
                await actuator.live()

    run(scenario)
