"""A SageMaker endpoint on moto behind the strict layer: counts, weights, another type, an autoscaler's bounds; resumed, taken back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.applicationautoscaling.models import applicationautoscaling_backends

from actuators.base import ActuatorError, CannotPlan, LiveState, Owner, Progress, Receipt, Trouble
from actuators.sagemaker.actuator import SageMakerActuator
from actuators.shape import Autoscaling, Plan, Shape
from collectors.sessions import Sessions
from tests.actuators.support import Caller, carry_out, context, reach
from tests.fakes.aws import ACCOUNT, IDENTITY, REGION, FakeAws

SMALL, LARGE = "ml.g4dn.xlarge", "ml.p3.8xlarge"
TWO = {"old": (SMALL, 2, 3.0), "new": (SMALL, 1, 1.0)}


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in IDENTITY.items():
        monkeypatch.setenv(name, value)


class DeadlyCaller(Caller):
    """Dies before the request of that number."""

    def __init__(self) -> None:
        super().__init__()
        self.die_at: int | None = None

    async def __call__(self, *args: Any, **options: Any) -> Any:
        if len(self.sent) == self.die_at:
            raise RuntimeError("killed")
        return await super().__call__(*args, **options)


class Place:
    """An account with one endpoint, and a new actuator for each call, as after a kill."""

    def __init__(self, folder: Path, aws: FakeAws, **options: Any) -> None:
        self.aws = aws
        self.caller = DeadlyCaller()
        stated = {"region": REGION, "aws_url": aws.url, **options}
        self.of = context(folder, "http://127.0.0.1:9", Shape(), stated, self.caller)

    def make(self) -> SageMakerActuator:
        return SageMakerActuator(self.of)

    def live(self) -> LiveState:
        return asyncio.run(self.make().live())

    def plan(self, **changes: Any) -> Plan:
        live = self.live()
        return asyncio.run(self.make().plan(live, live.shape.with_(**changes)))

    def scales(self, least: int, most: int) -> None:
        """Application Auto Scaling takes the count over."""
        resource, dimension = "endpoint/chat/variant/AllTraffic", "sagemaker:variant:DesiredInstanceCount"
        backend = applicationautoscaling_backends[ACCOUNT][REGION]
        backend.register_scalable_target("sagemaker", resource, dimension, least, most, "", None)


@contextlib.contextmanager
def placed(folder: Path, variants: Any = None, *, options: dict[str, Any] | None = None, **aws: Any) -> Iterator[Place]:
    with FakeAws(update_s=0.05, **aws) as fake:
        fake.endpoint("chat", variants)
        yield Place(folder, fake, **(options or {}))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with placed(tmp_path) as made:
        yield made


def test_what_the_configuration_and_the_instance_type_say_is_the_shape(place: Place) -> None:
    live = place.live()
    assert live.shape == Shape(
        replicas=1,
        size=SMALL,
        accelerator="T4",
        accelerator_count=1,
        cpus=4.0,
        memory_gb=pytest.approx(17.18, abs=0.01),
    )
    assert (live.ready, live.serving, live.owner) == (True, 1, None)
    assert place.aws.writes == []


def test_counts_and_weights_go_in_one_call_and_come_back(tmp_path: Path) -> None:
    with placed(tmp_path, TWO, options={"variant": "old"}) as place:

        async def story() -> None:
            before = await place.make().live()
            assert before.shape.engine == {"weight.old": 3.0, "weight.new": 1.0}
            wanted = before.shape.with_(replicas=4, engine={"weight.new": 0.0})
            plan = await place.make().plan(before, wanted)
            assert [o.name for o in plan.operations] == ["scale"]
            await carry_out(place.make, plan)
            after = await place.make().live()
            assert (after.shape, after.ready, after.serving) == (wanted, True, 4)
            back = await place.make().back(plan, [Receipt()], after)
            await carry_out(place.make, back, "b")
            assert (await place.make().live()).shape == before.shape

        asyncio.run(story())
        assert [a for _, a in place.aws.writes] == ["UpdateEndpointWeightsAndCapacities"] * 2
        now = place.aws.variants()
        assert [(n, v["CurrentInstanceCount"], v["CurrentWeight"]) for n, v in now.items()] == [
            ("old", 2, 3.0),
            ("new", 1, 1.0),
        ]


def test_another_type_is_another_configuration_and_the_old_one_is_the_way_back(place: Place) -> None:
    async def story() -> None:
        await reach(
            place.make, (await place.make().live()).shape.with_(replicas=2), "before"
        )  # not what its configuration says
        before = await place.make().live()
        plan = await place.make().plan(before, before.shape.with_(size=LARGE))
        assert [o.name for o in plan.operations] == ["config", "update"]
        assert plan.undo == {"config": "chat-config"}
        steps = await carry_out(place.make, plan)
        assert [s.progress for s in steps] == [Progress.DONE] * 2
        after = await place.make().live()
        assert (after.shape.size, after.shape.replicas, after.serving) == (LARGE, 2, 2)
        assert place.aws.config_of()["ProductionVariants"][0]["ModelName"] == "model"
        back = await place.make().back(plan, [Receipt()] * 2, after)
        assert [o.name for o in back.operations] == ["update", "scale"]
        await carry_out(place.make, back, "b")
        now = await place.make().live()
        assert (now.shape, now.ready) == (before.shape, True)

    asyncio.run(story())
    assert place.aws.config_of()["EndpointConfigName"] == "chat-config"


def test_an_update_without_capacity_fails_with_sagemakers_words_and_nothing_is_to_be_undone(tmp_path: Path) -> None:
    with placed(tmp_path, no_capacity={"p3.8xlarge"}) as place:
        plan = place.plan(size=LARGE)
        steps = asyncio.run(carry_out(place.make, plan))
        assert [s.progress for s in steps] == [Progress.DONE, Progress.FAILED]
        assert "InsufficientInstanceCapacity" in steps[-1].detail
        live = place.live()
        assert (live.shape.size, live.ready) == (SMALL, True)
        assert asyncio.run(place.make().back(plan, [Receipt()] * 2, live)).operations == ()


def test_where_an_autoscaler_is_registered_its_bounds_are_changed_and_never_the_count(place: Place) -> None:
    place.scales(1, 4)
    live = place.live()
    assert (live.shape.replicas, live.shape.autoscaling) == (None, Autoscaling(1, 4))
    assert live.owner == Owner("app-autoscaling", "endpoint/chat/variant/AllTraffic", frozenset({"replicas"}))
    with pytest.raises(CannotPlan, match="sets the count"):
        place.plan(replicas=3)
    with pytest.raises(CannotPlan, match="deregister"):
        place.plan(size=LARGE)
    wanted = live.shape.with_(autoscaling=Autoscaling(2, 6))
    assert asyncio.run(reach(place.make, wanted)).shape == wanted
    assert [a for _, a in place.aws.writes] == ["RegisterScalableTarget"]


def test_where_scalable_targets_may_not_be_read_nothing_is_planned(tmp_path: Path) -> None:
    with placed(tmp_path, denied={"application-autoscaling:DescribeScalableTargets"}) as place:
        assert "who owns the count is not known" in place.live().detail
        with pytest.raises(CannotPlan, match="DescribeScalableTargets"):
            place.plan(replicas=2)


@pytest.mark.parametrize("change", [{"replicas": 3}, {"size": LARGE}])
def test_a_kill_before_each_request_ends_in_one_write_of_each(tmp_path: Path, change: dict[str, Any]) -> None:
    """Dies before every request of every step in turn, and after each write by a lost answer; each time it is resumed."""
    deaths = 0
    with placed(tmp_path) as place:
        plan = place.plan(**change)

        async def to_the_end() -> None:
            nonlocal deaths
            last: Receipt | None = None
            for number, operation in enumerate(plan.operations):
                receipt = None
                for die_at in [*range(30), None]:
                    place.of.sessions._made.clear()
                    place.caller.sent.clear()
                    place.caller.die_at = die_at
                    try:
                        receipt = receipt or await place.make().do(operation, f"c/{number}", last)
                        step = await place.make().done(operation, receipt)
                    except RuntimeError:
                        deaths += 1
                        continue
                    except ActuatorError as error:
                        assert error.passes, error  # noqa: PT017
                        continue
                    if step.progress is Progress.DONE:
                        last = step.receipt
                        break
                    await asyncio.sleep(0.02)
                else:
                    pytest.fail(f"{operation.name} does not end")
                place.aws.lost = 1 if number == 0 else 0

        place.aws.lost = 1
        asyncio.run(to_the_end())
        place.caller.die_at = None
        live = place.live()
        assert live.ready
        assert {k: getattr(live.shape, k) for k in change} == change
        assert [a for _, a in place.aws.writes] == {
            "replicas": ["UpdateEndpointWeightsAndCapacities"],
            "size": ["CreateEndpointConfig", "UpdateEndpoint"],
        }[next(iter(change))]
        assert deaths > 5


def test_while_it_updates_it_is_busy_and_says_so(tmp_path: Path) -> None:
    with placed(tmp_path) as place:
        place.aws.update_s = 60.0
        plan = place.plan(replicas=2)
        receipt = asyncio.run(place.make().do(plan.operations[0], "c/0", None))
        assert asyncio.run(place.make().done(plan.operations[0], receipt)).progress is Progress.PENDING
        live = place.live()
        assert (live.ready, live.serving, live.shape.replicas) == (False, 1, 2)
        again = asyncio.run(place.make().plan(live, live.shape.with_(replicas=3)))
        with pytest.raises(ActuatorError, match="Updating") as busy:
            asyncio.run(place.make().clear(again.operations[0], None))
        assert (busy.value.trouble, busy.value.passes) == (Trouble.CONFLICT, True)


@pytest.mark.parametrize(
    ("aws", "trouble"),
    [
        ({"denied": {"sagemaker:UpdateEndpointWeightsAndCapacities"}}, Trouble.DENIED),
        ({"quota": 2}, Trouble.QUOTA),
    ],
)
def test_a_refusal_has_its_trouble_and_names_the_permission(
    tmp_path: Path, aws: dict[str, Any], trouble: Trouble
) -> None:
    with placed(tmp_path, **aws) as place:
        plan = place.plan(replicas=3)
        with pytest.raises(ActuatorError) as refused:
            asyncio.run(place.make().do(plan.operations[0], "c/0", None))
        assert refused.value.trouble is trouble
        assert "very-secret-key" not in refused.value.detail
        if trouble is Trouble.DENIED:
            assert "Allow sagemaker:UpdateEndpointWeightsAndCapacities" in refused.value.detail


def test_a_rate_that_was_refused_passes(place: Place) -> None:
    place.aws.throttled = 1
    with pytest.raises(ActuatorError) as refused:
        place.live()
    assert (refused.value.trouble, refused.value.passes) == (Trouble.THROTTLED, True)
    assert refused.value.retry_after_s is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"replicas": 0}, "1 instance or more"),
        ({"cpus": 64.0}, "another instance type"),
        ({"size": "g5.xlarge"}, "begin with ml"),
        ({"engine": {"weight.AllTraffic": 2}}, "one variant"),
        ({"engine": {"max_num_seqs": 2}}, "weights of variants"),
        ({"autoscaling": Autoscaling(1, 2)}, "no scalable target"),
    ],
)
def test_what_sagemaker_would_not_take_is_refused(place: Place, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CannotPlan, match=said):
        place.plan(**changes)


def test_a_variant_is_named_where_there_are_several(tmp_path: Path) -> None:
    with placed(tmp_path, TWO) as place, pytest.raises(ActuatorError, match="old, new"):
        place.live()


def test_without_credentials_it_says_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(ActuatorError, match="NoCredentials") as refused:
        place.live()
    assert refused.value.trouble is Trouble.DENIED


def test_the_event_loop_is_free_while_amazon_thinks(place: Place) -> None:
    """Its own threads wait: the loop's other work goes on."""

    async def story() -> int:
        turns = 0
        asking = asyncio.create_task(place.make().live())
        while not asking.done():
            turns += 1
            await asyncio.sleep(0)
        return turns

    place.of = context(place.of.state_dir, "http://127.0.0.1:9", Shape(), place.of.options, place.caller)
    assert isinstance(place.of.sessions, Sessions)
    assert asyncio.run(story()) > 100
