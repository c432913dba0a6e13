"""A scale set from discovery to the ledger: the product's own governor, source and system, in virtual time. Its engine is simulated."""

from __future__ import annotations

from pathlib import Path

from tests.world.machines import MachineWorld
from tests.world.world import run

RATE, WATCH_S, CHANGE_S = 20.0, 1800.0, 3600.0


def test_from_discovery_to_the_ledger(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with MachineWorld(tmp_path, rate=RATE) as world:
            assert await world.until(lambda: bool(world.recommendations("proposed")), WATCH_S), "nothing was proposed"
            assert world.written == [], "watching writes nothing"
            (row,) = world.recommendations("proposed")
            wanted = row["body"]["proposed"]["shape"]["replicas"]
            assert row["body"]["direction"] == "grow"
            assert wanted > 2
            assert [o["name"] for o in row["plan"]["operations"]] == ["set"]
            assert row["plan"]["needs"][0]["what"] == "cores of standardFSv2Family"
            assert row["body"]["current"]["money"]["per_hour"] == 2 * 0.388
            assert world.click(row["id"]) == "accepted"
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "succeeded", change["state_reason"]
            assert (world.written, world.fleet.count) == (["set"], wanted)
            scores = {s["metric"]: s for s in world.ledger(change["id"])}
            assert scores["ttft_p95_s"]["observed"] < scores["ttft_p95_s"]["before"]

    run(scenario)


def test_machines_that_do_not_help_go_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        slow = lambda shape: 1.0 if (shape.replicas or 0) <= 2 else 4.0  # noqa: E731
        async with MachineWorld(tmp_path, rate=RATE, slowdown=slow) as world:
            assert await world.until(lambda: bool(world.recommendations("proposed")), WATCH_S)
            (row,) = world.recommendations("proposed")
            assert world.click(row["id"]) == "accepted"
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "rolled_back", change["state_reason"]
            assert (world.written, world.fleet.count) == (["set", "set"], 2)
            assert world.known()["frozen_because"]

    run(scenario)
