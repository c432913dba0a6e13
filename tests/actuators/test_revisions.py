"""KServe's InferenceService and Knative's Service: bounds, target and concurrency by a new revision, and back; what they make is theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from actuators.base import ActuatorError, CannotPlan, Progress, Trouble
from actuators.shape import Autoscaling, Shape
from tests.actuators.test_kubernetes import Place
from tests.fakes.kubernetes import manifest

_SCALING = "autoscaling.knative.dev/"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    with made.server:
        yield made


def _isvc(**predictor: Any) -> dict[str, Any]:
    model = {
        "modelFormat": {"name": "huggingface"},
        "args": ["--model_name=llama"],
        "resources": {"limits": {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}},
    }
    return {
        "metadata": {"name": "chat"},
        "spec": {"predictor": {"minReplicas": 1, "maxReplicas": 3, "model": model, **predictor}},
    }


def _ksvc(container_concurrency: int | None = None, **marks: str) -> dict[str, Any]:
    annotations = {_SCALING + name.replace("_", "-"): value for name, value in marks.items()}
    container = {"name": "vllm", "image": "vllm/vllm-openai", "args": ["--port", "8080"]}
    inner: dict[str, Any] = {"containers": [container]}
    if container_concurrency is not None:
        inner["containerConcurrency"] = container_concurrency
    return {
        "metadata": {"name": "chat"},
        "spec": {"template": {"metadata": {"annotations": annotations}, "spec": inner}},
    }


def _deploy(place: Place, body: dict[str, Any]) -> None:
    kserve = "predictor" in body["spec"]
    place.options["kind"] = "InferenceService" if kserve else "KnativeService"
    place.deploy(body, "inferenceservices" if kserve else "ksvc")


def test_what_an_inference_service_states_is_the_shape(place: Place) -> None:
    _deploy(place, _isvc(scaleMetric="concurrency", scaleTarget=4, containerConcurrency=8))
    live = place.live()
    assert live.shape == Shape(
        accelerator_count=1,
        cpus=4.0,
        memory_gb=pytest.approx(17.18, abs=0.01),
        engine={"max_concurrency": 8},
        autoscaling=Autoscaling(1, 3, {"concurrency": 4.0}),
    )
    assert (live.ready, live.serving, live.shape.replicas) == (True, 1, None)
    assert live.owner is not None
    assert live.owner.kind == "knative"
    assert place.server.writes == []


def test_bounds_target_and_concurrency_are_one_patch_and_a_new_revision(place: Place) -> None:
    _deploy(place, _isvc(scaleTarget=4, containerConcurrency=8))
    before = place.live()
    wanted = before.shape.with_(autoscaling=Autoscaling(2, 6, {"concurrency": 2.0}), engine={"max_concurrency": 4})
    plan = place.plan(wanted, before)
    assert [o.name for o in plan.operations] == ["set_serving"]
    place.carry_out(plan.operations)
    after = place.live()
    assert (after.shape, after.ready, after.serving) == (wanted, True, 2)
    predictor = place.object("inferenceservices")["spec"]["predictor"]
    assert {k: predictor[k] for k in ("minReplicas", "maxReplicas", "scaleTarget", "containerConcurrency")} == {
        "minReplicas": 2, "maxReplicas": 6, "scaleTarget": 2, "containerConcurrency": 4,
    }  # fmt: skip
    assert predictor["model"]["args"] == ["--model_name=llama"], "the rest stays"
    assert [p for _, p, _ in place.cluster.written] == [
        "/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices/chat"
    ]
    back = place.plan(before.shape, after)
    place.carry_out(back.operations)
    now = place.live()
    assert (now.shape, now.ready) == (before.shape, True)
    assert now.version not in (before.version, after.version)


def test_a_knative_services_annotations_and_its_own_revision_name(place: Place) -> None:
    body = _ksvc(10, min_scale="1", max_scale="4", target="7")
    body["spec"]["template"]["metadata"]["name"] = "chat-v1"
    _deploy(place, body)
    before = place.live()
    assert before.shape.autoscaling == Autoscaling(1, 4, {"concurrency": 7.0})
    assert next(iter(before.targets.values())).endswith(":8080")
    wanted = before.shape.with_(autoscaling=Autoscaling(0, 8, {"concurrency": 3.5}))
    place.carry_out(place.plan(wanted, before).operations)
    assert place.live().shape == wanted
    meta = place.object("ksvc")["spec"]["template"]["metadata"]
    assert meta["annotations"] == {_SCALING + "min-scale": "0", _SCALING + "max-scale": "8", _SCALING + "target": "3.5"}
    assert "name" not in meta, "a revision's own name is of that one alone"


def test_a_revision_that_never_serves_fails_and_the_old_one_serves_on(place: Place) -> None:
    _deploy(place, _ksvc(min_scale="1", max_scale="4"))
    before = place.live()
    place.cluster.stuck = True
    plan = place.plan(before.shape.with_(autoscaling=Autoscaling(2, 4)), before)

    async def story() -> None:
        (operation,) = plan.operations
        receipt = await place.with_(lambda a: a.do(operation, "t", None))
        assert (await place.with_(lambda a: a.done(operation, receipt))).progress is Progress.PENDING
        place.later(700)
        step = await place.with_(lambda a: a.done(operation, receipt))
        assert (step.progress, "failed with message" in step.detail) == (Progress.FAILED, True)

    asyncio.run(story())
    live = place.live()
    assert (live.serving, live.ready) == (1, False)
    assert "is not ready" in live.detail
    place.cluster.stuck = False
    place.carry_out(place.plan(before.shape, live).operations)
    assert place.live().ready


def test_a_lost_answer_is_no_second_revision(place: Place) -> None:
    _deploy(place, _isvc())
    before = place.live()
    plan = place.plan(before.shape.with_(autoscaling=Autoscaling(1, 5)), before)
    place.carry_out(plan.operations, resumed=True)
    place.carry_out(plan.operations, resumed=True)
    assert len(place.cluster.written) == 1


def test_what_it_makes_is_its_own_and_named(place: Place) -> None:
    body = manifest("chat-predictor", 1)
    body["metadata"]["labels"] = {
        "serving.kserve.io/inferenceservice": "chat",
        "serving.knative.dev/service": "chat-predictor",
    }
    place.deploy(body)
    place.options["name"] = "chat-predictor"
    live = place.live()
    with pytest.raises(CannotPlan, match="made by InferenceService chat") as refused:
        place.plan(live.shape.with_(replicas=3), live)
    assert refused.value.code == "OWNED"
    knative = _ksvc(min_scale="1", max_scale="4")
    knative["metadata"] = {"name": "chat-predictor", "labels": {"serving.kserve.io/inferenceservice": "chat"}}
    _deploy(place, knative)
    live = place.live()
    with pytest.raises(CannotPlan, match="made by InferenceService chat"):
        place.plan(live.shape.with_(autoscaling=Autoscaling(1, 9)), live)


def test_what_an_operator_makes_is_refused_by_the_operators_name(place: Place) -> None:
    body = manifest("chat", 1)
    body["metadata"]["ownerReferences"] = [{"kind": "NIMService", "name": "nim", "controller": True}]
    place.deploy(body)
    live = place.live()
    with pytest.raises(CannotPlan, match="made by NIMService nim"):
        place.plan(live.shape.with_(replicas=3), live)


def test_where_argo_owns_the_manifest_the_patch_is_given(place: Place) -> None:
    body = _isvc()
    body["metadata"]["labels"] = {"argocd.argoproj.io/instance": "models"}
    _deploy(place, body)
    live = place.live()
    plan = place.plan(live.shape.with_(autoscaling=Autoscaling(2, 6)), live)
    assert plan.operations == ()
    assert plan.by_hand is not None
    patch = yaml.safe_load(plan.by_hand)
    assert (patch["kind"], patch["spec"]) == ("InferenceService", {"predictor": {"minReplicas": 2, "maxReplicas": 6}})


def test_somebody_elses_change_voids_the_plan(place: Place) -> None:
    _deploy(place, _isvc())
    before = place.live()
    plan = place.plan(before.shape.with_(autoscaling=Autoscaling(2, 3)), before)
    changed = place.object("inferenceservices")
    place.cluster.write(
        "inferenceservices",
        "default",
        "chat",
        {**changed, "spec": {"predictor": {**changed["spec"]["predictor"], "maxReplicas": 9}}},
        {},
        "ada",
        dry_run=False,
    )
    with pytest.raises(ActuatorError) as refused:
        asyncio.run(place.with_(lambda a: a.clear(plan.operations[0], None)))
    assert refused.value.trouble is Trouble.DRIFT


def test_the_webhooks_refusal_comes_by_the_dry_run(place: Place) -> None:
    _deploy(place, _isvc())
    live = place.live()
    plan = place.plan(live.shape.with_(autoscaling=Autoscaling(2, 3)), live)
    worse = {**plan.operations[0].args, "fields": {"least": 5, "most": 3, "targets": {}}}
    with pytest.raises(ActuatorError, match="MinReplicas cannot be greater"):
        asyncio.run(place.with_(lambda a: a.clear(replace(plan.operations[0], args=worse), None)))
    assert place.cluster.written == []


@pytest.mark.parametrize(
    ("body", "changes", "code"),
    [
        (_isvc(), {"replicas": 2}, "OWNED"),
        (_isvc(), {"cpus": 8.0}, "UNSUPPORTED_CHANGE"),
        (_isvc(), {"autoscaling": Autoscaling(3, 2)}, "BAD_BOUNDS"),
        (_isvc(), {"autoscaling": Autoscaling(1, 3, {"rps": 4.0})}, "UNKNOWN_TARGET"),
        (_isvc(scaleTarget=4), {"autoscaling": Autoscaling(1, 3, {"concurrency": 2.5})}, "BAD_TARGET"),
        (_isvc(), {"autoscaling": None}, "INCOMPLETE_SHAPE"),
        (_isvc(), {"engine": {"max_num_seqs": 8}}, "BAD_ENGINE_LIMIT"),
        (_isvc(canaryTrafficPercent=10), {"autoscaling": Autoscaling(1, 4)}, "CANARY"),
        (_ksvc(), {"autoscaling": Autoscaling(1, 4)}, "NOT_STATED"),
    ],
)
def test_what_it_would_not_take_or_nobody_could_answer_for_is_refused(
    place: Place, body: dict[str, Any], changes: dict[str, Any], code: str
) -> None:
    _deploy(place, body)
    live = place.live()
    with pytest.raises(CannotPlan) as refused:
        place.plan(live.shape.with_(**changes), live)
    assert refused.value.code == code


def test_as_a_deployment_it_keeps_one_and_has_no_concurrency(place: Place) -> None:
    body = _isvc(scaleTarget=80)
    body["metadata"]["annotations"] = {"serving.kserve.io/deploymentMode": "RawDeployment"}
    _deploy(place, body)
    live = place.live()
    assert live.shape.autoscaling == Autoscaling(1, 3, {"cpu": 80.0})
    for changes, code in (
        ({"autoscaling": Autoscaling(0, 3, {"cpu": 80.0})}, "BAD_BOUNDS"),
        ({"engine": {"max_concurrency": 4}}, "BAD_ENGINE_LIMIT"),
    ):
        with pytest.raises(CannotPlan) as refused:
            place.plan(live.shape.with_(**changes), live)
        assert refused.value.code == code


def test_scaled_to_none_it_is_ready(place: Place) -> None:
    place.cluster.wants = lambda _now: 0
    _deploy(place, _ksvc(min_scale="0", max_scale="4"))
    live = place.live()
    assert (live.ready, live.serving, live.targets) == (True, 0, {})
