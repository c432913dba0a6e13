"""A deployment of Ray Serve: by configuration, with all others' beside it, or by the external scaler; resumed, and taken back as stated."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actuators.base import ActuatorError, CannotPlan, LiveState, Owner, Progress, Receipt, Trouble
from actuators.rayserve.actuator import RayServeDeployment
from actuators.shape import Autoscaling, Plan, Shape
from tests.actuators.support import Caller, carry_out, context, reach
from tests.fakes.rayserve import FakeApplication, FakeRayServe

STATED: dict[str, Any] = {"name": "chat", "route_prefix": "/", "import_path": "app:app"}
OTHER: dict[str, Any] = {
    "name": "other",
    "import_path": "other:app",
    "deployments": [{"name": "Model", "num_replicas": 3}],
}
SCALED = {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 2, "downscale_delay_s": 60.0}


class Place:
    """A cluster with the application and others, and a new actuator for each call, as after a kill."""

    def __init__(self, folder: Path, serve: FakeRayServe, **options: Any) -> None:
        self.serve = serve
        self.caller = Caller()
        stated = {"dashboard": serve.url, "application": "chat", **options}
        self.of = context(folder, "http://127.0.0.1:9", Shape(), stated, self.caller)

    def make(self) -> RayServeDeployment:
        return RayServeDeployment(self.of)

    def live(self) -> LiveState:
        return asyncio.run(self.make().live())

    def plan(self, **changes: Any) -> Plan:
        live = self.live()
        return asyncio.run(self.make().plan(live, live.shape.with_(**changes)))

    @property
    def stated(self) -> dict[str, Any]:
        stated = self.serve.applications["chat"].stated
        assert stated is not None
        return stated


@contextlib.contextmanager
def placed(
    folder: Path, stated: dict[str, Any] | None = STATED, *, code: dict[str, Any] | None = None, **more: Any
) -> Iterator[Place]:
    chat = FakeApplication("chat", {"Model": code or {}, "Helper": {}}, copy.deepcopy(stated))
    others = [FakeApplication("other", stated=copy.deepcopy(OTHER)), FakeApplication("by-program")]
    options = more.pop("options", {})
    serve = FakeRayServe(chat, *others, **more)
    with serve:
        yield Place(folder, serve, **options)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with placed(tmp_path) as made:
        yield made


def test_what_code_and_configuration_say_together_is_the_shape(place: Place) -> None:
    live = place.live()
    assert live.shape == Shape(replicas=1, cpus=1.0, engine={"max_concurrency": 5})
    assert (live.ready, live.serving, live.owner) == (True, 1, None)
    assert place.serve.writes == []


def test_a_configuration_goes_with_those_of_all_others_and_back_as_it_was_stated(place: Place) -> None:
    async def story() -> None:
        before = await place.make().live()
        wanted = before.shape.with_(replicas=2, engine={"max_concurrency": 8})
        plan = await place.make().plan(before, wanted)
        assert [o.name for o in plan.operations] == ["configure"]
        steps = await carry_out(place.make, plan)
        after = await place.make().live()
        assert (after.shape, after.ready, after.serving) == (wanted, True, 2)
        assert place.stated == {
            **STATED,
            "deployments": [{"name": "Model", "max_ongoing_requests": 8, "num_replicas": 2}],
        }
        back = await place.make().back(plan, [Receipt() for _ in steps], after)
        await carry_out(place.make, back, "b")
        assert (await place.make().live()).shape == before.shape

    asyncio.run(story())
    assert place.stated == STATED, "what was left to the code is left to it again"
    assert [[a["name"] for a in put["applications"]] for put in place.serve.puts] == [["chat", "other"]] * 2
    assert place.serve.applications["other"].stated == OTHER
    assert set(place.serve.applications) == {"chat", "other", "by-program"}


def test_the_bounds_and_the_target_of_an_autoscaler_are_set_and_the_rest_of_it_stays(tmp_path: Path) -> None:
    stated = {**STATED, "deployments": [{"name": "Model", "autoscaling_config": SCALED}]}
    with placed(tmp_path, stated) as place:
        live = place.live()
        assert (live.shape.replicas, live.shape.autoscaling) == (None, Autoscaling(1, 4, {"ongoing_requests": 2.0}))
        assert live.owner == Owner("ray-serve-autoscaler", "Model", frozenset({"replicas"}))
        wanted = live.shape.with_(autoscaling=Autoscaling(2, 6, {"ongoing_requests": 1.5}))
        assert asyncio.run(reach(place.make, wanted)).shape == wanted
        changed = {**SCALED, "min_replicas": 2, "max_replicas": 6, "target_ongoing_requests": 1.5}
        assert place.stated["deployments"] == [{"name": "Model", "autoscaling_config": changed}]
        with pytest.raises(CannotPlan, match="autoscaler sets the replicas"):
            place.plan(replicas=3)


def test_one_that_stands_in_the_code_is_written_whole_as_a_configuration_replaces_it(tmp_path: Path) -> None:
    with placed(tmp_path, code={"autoscaling_config": SCALED}) as place:
        asyncio.run(
            reach(place.make, place.live().shape.with_(autoscaling=Autoscaling(2, 4, {"ongoing_requests": 2.0})))
        )
        (entry,) = place.stated["deployments"]
        assert entry["autoscaling_config"]["downscale_delay_s"] == 60.0


def test_the_external_scaler_sets_the_count_where_it_is_enabled(tmp_path: Path) -> None:
    with placed(tmp_path, {**STATED, "external_scaler_enabled": True}) as place:
        before = place.live()
        after = asyncio.run(reach(place.make, before.shape.with_(replicas=0), "a"))
        assert (after.shape.replicas, after.ready) == (0, True)
        back = asyncio.run(reach(place.make, before.shape, "b"))
        assert back.version not in (before.version, after.version)
        assert place.serve.puts == []
        assert {path for _, path in place.serve.writes} == {"/api/v1/applications/chat/deployments/Model/scale"}


def test_a_scaler_that_was_disabled_leaves_its_count_and_that_is_said(tmp_path: Path) -> None:
    with placed(tmp_path, {**STATED, "external_scaler_enabled": True}) as place:
        asyncio.run(reach(place.make, place.live().shape.with_(replicas=0), "a"))
        place.serve.answer(
            "PUT", "/api/serve/applications/", "", json.dumps({"applications": [STATED, OTHER]}).encode()
        )
        live = place.live()
        assert (live.shape.replicas, live.serving, live.ready) == (1, 0, False)
        assert live.detail.startswith("0 of 1 replicas run")


def test_without_room_it_is_pending_with_serves_own_words_and_can_be_taken_back(tmp_path: Path) -> None:
    with placed(tmp_path, room=2) as place:

        async def story() -> None:
            live = await place.make().live()
            plan = await place.make().plan(live, live.shape.with_(replicas=5))
            receipt = await place.make().do(plan.operations[0], "c/0", None)
            step = await place.make().done(plan.operations[0], receipt)
            assert (step.progress, "2 of 5 replicas run" in step.detail) == (Progress.PENDING, True)
            back = await place.make().back(plan, [receipt], await place.make().live())
            assert [s.progress for s in await carry_out(place.make, back, "b")] == [Progress.DONE]

        asyncio.run(story())
        assert place.stated == STATED


@pytest.mark.parametrize("external", [False, True])
def test_an_answer_that_was_lost_is_no_second_write(tmp_path: Path, external: bool) -> None:
    with placed(tmp_path, {**STATED, **({"external_scaler_enabled": True} if external else {})}) as place:

        async def story() -> None:
            live = await place.make().live()
            plan = await place.make().plan(live, live.shape.with_(replicas=2))
            place.serve.fail_next = 503  # done, and nobody was told
            with pytest.raises(ActuatorError) as lost:
                await place.make().do(plan.operations[0], "c/0", None)
            assert lost.value.passes
            receipt = await place.make().do(plan.operations[0], "c/0", None)
            assert (await place.make().done(plan.operations[0], receipt)).progress is Progress.DONE

        asyncio.run(story())
        assert len(place.serve.writes) == 1


@pytest.mark.parametrize("call", ["clear", "do"])
def test_somebody_elses_configuration_voids_the_plan(place: Place, call: str) -> None:
    plan = place.plan(replicas=2)
    place.serve.answer(
        "PUT", "/api/serve/applications/", "", b'{"applications": [{"name": "chat", "import_path": "new:app"}]}'
    )
    writes = len(place.serve.writes)
    with pytest.raises(ActuatorError) as refused:
        asyncio.run(
            place.make().clear(plan.operations[0], None)
            if call == "clear"
            else place.make().do(plan.operations[0], "c/0", None)
        )
    assert refused.value.trouble is Trouble.DRIFT
    assert len(place.serve.writes) == writes


def test_a_configuration_that_fails_is_a_failed_step_with_the_traceback(place: Place) -> None:
    plan = place.plan(replicas=2)
    receipt = asyncio.run(place.make().do(plan.operations[0], "c/0", None))
    place.serve.applications["chat"].failed = "Traceback: no module named app"
    step = asyncio.run(place.make().done(plan.operations[0], receipt))
    assert (step.progress, "no module named app" in step.detail) == (Progress.FAILED, True)
    live = place.live()  # Serve lists no deployment any more
    assert (live.shape, live.ready) == (Shape(), False)
    with pytest.raises(CannotPlan, match="no module named app"):
        asyncio.run(place.make().plan(live, Shape(replicas=3)))
    back = asyncio.run(place.make().back(plan, [receipt], live))
    assert [s.progress for s in asyncio.run(carry_out(place.make, back, "b"))] == [Progress.DONE]
    assert place.stated == STATED
    assert place.live().ready


def test_an_application_of_a_program_is_only_seen(tmp_path: Path) -> None:
    with placed(tmp_path, options={"application": "by-program"}) as place:
        assert place.live().shape.replicas == 1
        with pytest.raises(CannotPlan, match=r"serve\.run"):
            place.plan(replicas=2)


def test_another_deployment_is_named(tmp_path: Path) -> None:
    with placed(tmp_path, options={"deployment": "Helper"}) as place:
        asyncio.run(reach(place.make, place.live().shape.with_(replicas=2)))
        assert place.stated["deployments"] == [{"name": "Helper", "num_replicas": 2}]
    with (
        placed(tmp_path, options={"deployment": "Nobody"}) as place,
        pytest.raises(ActuatorError, match="Model, Helper"),
    ):
        place.live()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"replicas": 0}, "only the external scaler"),
        ({"engine": {"max_concurrency": 0}}, "whole number"),
        ({"engine": {"max_num_seqs": 4}}, "no other limit"),
        ({"cpus": 2.0}, "ray_actor_options by hand"),
        ({"autoscaling": Autoscaling(1, 2)}, "no autoscaler"),
    ],
)
def test_what_serve_would_not_do_or_do_by_restarting_is_refused(
    place: Place, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(CannotPlan, match=said):
        place.plan(**changes)


def test_the_token_is_named_where_it_lacks(tmp_path: Path) -> None:
    with placed(tmp_path, token="right") as place, pytest.raises(ActuatorError, match="token_file") as refused:
        place.live()
    assert refused.value.trouble is Trouble.DENIED
    with placed(tmp_path, token="right", options={"token": "right"}) as place:
        assert place.live().ready
