"""Kubernetes from discovery to the ledger: the product's own governor and system, over HTTP, in virtual time. Telemetry is simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actuators.shape import Autoscaling, Shape
from tests.world.kubernetes import KubernetesWorld
from tests.world.wire import Snapshot
from tests.world.world import run

#: While a change is under way nothing is decided anyway, and deciding is what takes time.
CHANGING = ("lead", "collect", "act")
RATE = 20.0
WATCH_S = 1800.0
CHANGE_S = 3600.0


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Two replicas that get more than they carry, until more of them are proposed."""
    kept: list[Snapshot] = []

    async def scenario() -> None:
        async with KubernetesWorld(tmp_path_factory.mktemp("watched"), rate=RATE) as world:
            assert await world.until(lambda: bool(world.recommendations("proposed")), WATCH_S), "nothing was proposed"
            assert world.server.writes == [], "watching writes nothing"
            kept.append(await world.snapshot())

    run(scenario)
    return kept[0]


def test_from_discovery_to_the_ledger(watched: Snapshot, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with KubernetesWorld(tmp_path, rate=RATE, snapshot=watched, loops=CHANGING) as world:
            (row,) = world.recommendations("proposed")
            assert row["body"]["proposed"]["shape"]["replicas"] == 3
            promised = row["body"]["proposed"]["prediction"]["metrics"]["ttft_p95_s"]
            assert promised["low"] < promised["mid"] < promised["high"] < 1.0
            assert [o["name"] for o in row["plan"]["operations"]] == ["scale"]
            assert world.click(row["id"]) == "accepted"
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "succeeded", change["state_reason"]
            assert (world.replicas, world.written) == (3, ["scale"])
            score = {s["metric"]: s for s in world.ledger(change["id"])}["ttft_p95_s"]
            assert score["before"] > 1.0 > score["observed"]
            assert score["observed"] == pytest.approx(promised["mid"], rel=0.3)

    run(scenario)


def test_a_third_replica_that_makes_it_worse_goes_back(watched: Snapshot, tmp_path: Path) -> None:
    def slowdown(shape: Shape) -> float:
        return 4.0 if shape.replicas == 3 else 1.0

    async def scenario() -> None:
        async with KubernetesWorld(tmp_path, rate=RATE, slowdown=slowdown, snapshot=watched, loops=CHANGING) as world:
            _approved(world)
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "rolled_back", change["state_reason"]
            assert (world.replicas, world.written) == (2, ["scale", "scale"])
            assert world.ledger(change["id"])
            assert world.known()["frozen_because"]

    run(scenario)


def _approved(world: KubernetesWorld) -> None:
    (row,) = world.recommendations("proposed")
    assert world.click(row["id"]) == "accepted"


def test_a_kill_at_any_instant_is_no_second_write(watched: Snapshot, tmp_path: Path) -> None:
    """Before and after requests and commits, while a change is under way. Every request alone is killed in the system's own tests."""

    async def instants(at: int | None, folder: Path) -> list[str]:
        async with KubernetesWorld(folder, rate=RATE, snapshot=watched, loops=CHANGING) as world:
            _approved(world)
            faults = world.process.faults
            faults.instants.clear()
            faults.die_at = at
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "succeeded", (at, change["state_reason"])
            assert (world.replicas, world.written) == (3, ["scale"]), at
            assert world.deaths == (at is not None)
            return faults.instants

    async def scenario() -> None:
        passed = await instants(None, tmp_path / "whole")
        acting = [i for i, name in enumerate(passed) if name.startswith("act:")]
        assert len(acting) > 50
        for at in acting[3 :: len(acting) // 5]:
            await instants(at, tmp_path / str(at))

    run(scenario)


def test_in_mode_observe_it_says_and_never_writes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with KubernetesWorld(tmp_path, rate=RATE, mode="observe") as world:
            assert await world.until(lambda: bool(world.recommendations()), WATCH_S), "nothing was said"
            (row,) = world.recommendations()
            assert world.click(row["id"]) == "forbidden", "the attempt is noted, and nothing is done"
            assert not await world.until(lambda: bool(world.changes()), 300.0)
            assert world.server.writes == []

    run(scenario)


def test_an_autoscaler_moves_the_count_while_its_bounds_wait_for_approval(tmp_path: Path) -> None:
    scaler = {
        "metadata": {"name": "chat"},
        "spec": {
            "scaleTargetRef": {"kind": "Deployment", "name": "chat"},
            "minReplicas": 1,
            "maxReplicas": 3,
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {"metric": {"name": "waiting"}, "target": {"type": "AverageValue", "averageValue": "5"}},
                }
            ],
        },
    }

    async def scenario() -> None:
        async with KubernetesWorld(tmp_path, autoscaler=scaler, loops=CHANGING) as world:
            world.cluster.wants = lambda _now: 2
            assert not await world.until(lambda: False, 320.0)
            governor, watched = world.governor, world.governor.watched["chat"]
            live = await governor.watcher.look(watched)
            assert live is not None
            assert (live.shape.replicas, live.serving) == (None, 2)
            assert live.shape.autoscaling == Autoscaling(1, 3, {"waiting": 5.0})
            wanted = live.shape.with_(autoscaling=Autoscaling(2, 4, {"waiting": 2.5}))
            asked = await governor.reflector.request(watched, wanted, "ada")
            world.cluster.wants = lambda _now: 3
            assert not await world.until(lambda: world.replicas != 3, 60.0), "the autoscaler sets the count"
            assert world.click(asked) == "accepted"
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "succeeded", change["state_reason"]
            assert (world.written, world.replicas) == (["chat"], 3), (
                "one patch of the autoscaler, and none of the count"
            )
            spec = world.cluster.get("horizontalpodautoscalers", "default", "chat")["spec"]
            assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 4)
            assert spec["metrics"][0]["pods"]["target"]["averageValue"] == "2500m"

    run(scenario)


def _inference(most: int) -> dict[str, Any]:
    model = {"modelFormat": {"name": "vllm"}, "args": ["--max-num-seqs", "16"]}
    predictor = {"minReplicas": 1, "maxReplicas": most, "scaleTarget": 8, "model": model}
    return {"metadata": {"name": "chat"}, "spec": {"predictor": predictor}}


async def _asked(world: KubernetesWorld, wanted: Autoscaling) -> None:
    """A person asks for other bounds of the InferenceService, and approves."""
    assert not await world.until(lambda: False, 320.0)
    governor, watched = world.governor, world.governor.watched["chat"]
    live = await governor.watcher.look(watched)
    assert live is not None
    assert (live.shape.replicas, live.shape.autoscaling) == (None, Autoscaling(1, 3, {"concurrency": 8.0}))
    asked = await governor.reflector.request(watched, live.shape.with_(autoscaling=wanted), "ada")
    assert world.click(asked) == "accepted"
    assert await world.until(world.ended, CHANGE_S)


def test_an_inference_services_bounds_are_changed_by_a_new_revision(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with KubernetesWorld(tmp_path, inference=_inference(3), loops=CHANGING) as world:
            assert world.settings.endpoints[0].url.startswith("http://chat.default")
            await _asked(world, Autoscaling(2, 4, {"concurrency": 4.0}))
            (change,) = world.changes()
            assert change["state"] == "succeeded", change["state_reason"]
            assert world.written == ["chat"]
            predictor = world.cluster.get("inferenceservices", "default", "chat")["spec"]["predictor"]
            assert (predictor["minReplicas"], predictor["maxReplicas"], predictor["scaleTarget"]) == (2, 4, 4)
            assert world.ledger(change["id"])

    run(scenario)


def test_a_revision_that_is_slower_goes_back_by_another_one(tmp_path: Path) -> None:
    def slowdown(shape: Shape) -> float:
        return 40.0 if shape.replicas == 2 else 1.0

    async def scenario() -> None:
        async with KubernetesWorld(tmp_path, inference=_inference(3), slowdown=slowdown, loops=CHANGING) as world:
            await _asked(world, Autoscaling(2, 4, {"concurrency": 8.0}))
            (change,) = world.changes()
            assert change["state"] == "rolled_back", change["state_reason"]
            assert world.written == ["chat", "chat"]
            predictor = world.cluster.get("inferenceservices", "default", "chat")["spec"]["predictor"]
            assert (predictor["minReplicas"], predictor["maxReplicas"]) == (1, 3)
            assert world.known()["frozen_because"]

    run(scenario)
