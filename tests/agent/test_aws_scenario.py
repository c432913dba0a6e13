"""SageMaker from discovery to the ledger: the product's own governor, source and system, real botocore over HTTP, in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.world.aws import LARGE, SMALL, AwsWorld
from tests.world.ec2 import Ec2World
from tests.world.wire import Snapshot
from tests.world.world import run

#: While a change is under way nothing is decided anyway, and deciding is what takes time.
CHANGING = ("lead", "collect", "act")
WATCH_S = 5400.0
CHANGE_S = 4 * 3600.0


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """An hour and a half of four small machines that are too slow, until a larger type is proposed."""
    kept: list[Snapshot] = []

    async def scenario() -> None:
        async with AwsWorld(tmp_path_factory.mktemp("watched")) as world:
            assert await world.until(lambda: bool(world.recommendations("proposed")), WATCH_S), "nothing was proposed"
            assert world.written == [], "watching writes nothing"
            kept.append(await world.snapshot())

    run(scenario)
    return kept[0]


def test_from_discovery_to_the_ledger(watched: Snapshot, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with AwsWorld(tmp_path, snapshot=watched, loops=CHANGING) as world:
            (row,) = world.recommendations("proposed")
            proposed = row["body"]["proposed"]
            assert proposed["shape"]["size"] == LARGE
            assert [o["name"] for o in row["plan"]["operations"]] == ["config", "update"]
            assert world.click(row["id"]) == "accepted"
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "succeeded", change["state_reason"]
            assert world.shape == (LARGE, proposed["shape"]["replicas"])
            assert world.written == ["CreateEndpointConfig", "UpdateEndpoint"]
            score = {s["metric"]: s for s in world.ledger(change["id"])}["e2e_p95_s"]
            assert score["before"] > 0.24 > score["observed"]

    run(scenario)


def test_a_type_that_is_slower_than_promised_goes_back(watched: Snapshot, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with AwsWorld(
            tmp_path, snapshot=watched, slowdown=lambda size: 6.0 if size == LARGE else 1.0, loops=CHANGING
        ) as world:
            (row,) = world.recommendations("proposed")
            assert world.click(row["id"]) == "accepted"
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "rolled_back", change["state_reason"]
            assert world.shape == (SMALL, 4)
            assert world.written == ["CreateEndpointConfig", "UpdateEndpoint", "UpdateEndpoint"]
            assert world.ledger(change["id"])
            assert world.known()["frozen_because"]

    run(scenario)


def test_a_kill_at_any_instant_is_no_second_write(watched: Snapshot, tmp_path: Path) -> None:
    """Before and after requests and commits, while a change is under way. Every request alone is killed in the system's own tests."""

    async def instants(at: int | None, folder: Path) -> list[str]:
        async with AwsWorld(folder, snapshot=watched, loops=CHANGING) as world:
            (row,) = world.recommendations("proposed")
            assert world.click(row["id"]) == "accepted"
            faults = world.process.faults
            faults.instants.clear()
            faults.die_at = at
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "succeeded", (at, change["state_reason"])
            assert world.written == ["CreateEndpointConfig", "UpdateEndpoint"], at
            assert world.deaths == (at is not None)
            return faults.instants

    async def scenario() -> None:
        passed = await instants(None, tmp_path / "whole")
        acting = [i for i, name in enumerate(passed) if name.startswith("act:")]
        assert len(acting) > 50
        for at in acting[3 :: len(acting) // 4]:
            await instants(at, tmp_path / str(at))

    run(scenario)


async def _larger(world: Ec2World) -> None:
    """A person asks for a larger type of the instance, and approves."""
    assert not await world.until(lambda: False, 320.0)
    governor, watched = world.governor, world.governor.watched["chat"]
    live = await governor.watcher.look(watched)
    assert live is not None
    assert (live.shape.size, live.ready) == ("g4dn.xlarge", True)
    wanted = live.shape.with_(size="g4dn.2xlarge", cpus=8.0, memory_gb=34.36)
    asked = await governor.reflector.request(watched, wanted, "ada")
    assert world.written == []
    assert world.click(asked) == "accepted"
    assert await world.until(world.ended, CHANGE_S)


def test_an_instance_is_stopped_changed_started_and_verified(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Ec2World(tmp_path, loops=CHANGING) as world:
            await _larger(world)
            (change,) = world.changes()
            assert change["state"] == "succeeded", change["state_reason"]
            assert world.machine == ("g4dn.2xlarge", "running")
            assert world.written == ["StopInstances", "ModifyInstanceAttribute", "StartInstances"]
            assert world.ledger(change["id"])

    run(scenario)


def test_without_capacity_the_instance_is_what_it_was_and_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Ec2World(tmp_path, no_capacity={"g4dn.2xlarge"}, loops=CHANGING) as world:
            await _larger(world)
            (change,) = world.changes()
            assert change["state"] == "rolled_back", change["state_reason"]
            assert "InsufficientInstanceCapacity" in change["state_reason"]
            assert world.machine == ("g4dn.xlarge", "running")
            calls = ["StopInstances", "ModifyInstanceAttribute", "ModifyInstanceAttribute", "StartInstances"]
            assert world.written == calls
            assert world.known()["frozen_because"]

    run(scenario)
