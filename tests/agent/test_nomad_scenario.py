"""Nomad from discovery to the ledger: the product's own governor and system, over HTTP, in virtual time. Telemetry is simulated."""

from __future__ import annotations

from pathlib import Path

import pytest

from actuators.shape import Shape
from tests.world.nomad import NomadWorld
from tests.world.wire import Snapshot
from tests.world.world import run

#: While a change is under way nothing is decided anyway, and deciding is what takes time.
CHANGING = ("lead", "collect", "act")
RATE = 20.0
WATCH_S = 1800.0
CHANGE_S = 3600.0


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Two allocations that get more than they carry, until more of them are proposed."""
    kept: list[Snapshot] = []

    async def scenario() -> None:
        async with NomadWorld(tmp_path_factory.mktemp("watched"), rate=RATE) as world:
            assert await world.until(lambda: bool(world.recommendations("proposed")), WATCH_S), "nothing was proposed"
            assert world.server.writes == [], "watching writes nothing"
            kept.append(await world.snapshot())

    run(scenario)
    return kept[0]


def test_from_discovery_to_the_ledger(watched: Snapshot, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with NomadWorld(tmp_path, rate=RATE, snapshot=watched, loops=CHANGING) as world:
            (row,) = world.recommendations("proposed")
            assert row["body"]["proposed"]["shape"]["replicas"] == 3
            assert [o["name"] for o in row["plan"]["operations"]] == ["scale"]
            assert world.click(row["id"]) == "accepted"
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "succeeded", change["state_reason"]
            assert (world.replicas, world.written) == (3, ["scale"])
            score = {s["metric"]: s for s in world.ledger(change["id"])}["ttft_p95_s"]
            assert score["before"] > 1.0 > score["observed"]

    run(scenario)


def test_a_third_allocation_that_makes_it_worse_is_reverted(watched: Snapshot, tmp_path: Path) -> None:
    def slowdown(shape: Shape) -> float:
        return 4.0 if shape.replicas == 3 else 1.0

    async def scenario() -> None:
        async with NomadWorld(tmp_path, rate=RATE, slowdown=slowdown, snapshot=watched, loops=CHANGING) as world:
            (row,) = world.recommendations("proposed")
            assert world.click(row["id"]) == "accepted"
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "rolled_back", change["state_reason"]
            assert (world.replicas, world.written) == (2, ["scale", "revert"])
            assert world.known()["frozen_because"]

    run(scenario)


def test_a_kill_at_any_instant_is_no_second_write(watched: Snapshot, tmp_path: Path) -> None:
    async def instants(at: int | None, folder: Path) -> list[str]:
        async with NomadWorld(folder, rate=RATE, snapshot=watched, loops=CHANGING) as world:
            (row,) = world.recommendations("proposed")
            assert world.click(row["id"]) == "accepted"
            faults = world.process.faults
            faults.instants.clear()
            faults.die_at = at
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "succeeded", (at, change["state_reason"])
            assert (world.replicas, world.written) == (3, ["scale"]), at
            return faults.instants

    async def scenario() -> None:
        passed = await instants(None, tmp_path / "whole")
        acting = [i for i, name in enumerate(passed) if name.startswith("act:")]
        assert len(acting) > 50
        for at in acting[3 :: len(acting) // 4]:
            await instants(at, tmp_path / str(at))

    run(scenario)
