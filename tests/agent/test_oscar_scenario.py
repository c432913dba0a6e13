"""OSCAR from discovery to the ledger, of the kind serverless: the product's own governor and system, over HTTP, in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.world.oscar import COLD_S, OscarWorld
from tests.world.wire import Snapshot
from tests.world.world import run

CHANGING = ("lead", "collect", "act")
WATCH_S = 4 * 3600.0
CHANGE_S = 3 * 3600.0


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A service that scales to zero, one in ten of whose calls meets a cold start, until a warm instance is proposed."""
    kept: list[Snapshot] = []

    async def scenario() -> None:
        async with OscarWorld(tmp_path_factory.mktemp("watched")) as world:
            assert await world.until(lambda: bool(world.recommendations("proposed")), WATCH_S), "nothing was proposed"
            assert world.server.writes == [], "watching writes nothing"
            kept.append(await world.snapshot())

    run(scenario)
    return kept[0]


def test_from_discovery_to_the_ledger(watched: Snapshot, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with OscarWorld(tmp_path, snapshot=watched, loops=CHANGING) as world:
            (row,) = world.recommendations("proposed")
            proposed = row["body"]["proposed"]
            assert proposed["shape"]["autoscaling"]["least"] == 1
            promised = proposed["prediction"]["metrics"]["e2e_p95_s"]
            assert promised["low"] < promised["mid"] < promised["high"] < 10.0
            now, then = (row["body"][which]["money"]["per_hour"] for which in ("current", "proposed"))
            assert now < then < 0.65, "one instance is there all the time, and at times a second one"
            assert [o["name"] for o in row["plan"]["operations"]] == ["update"]
            assert world.click(row["id"]) == "accepted"
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "succeeded", change["state_reason"]
            assert (world.least, len(world.server.puts)) == (1, 1)
            score = {s["metric"]: s for s in world.ledger(change["id"])}["e2e_p95_s"]
            assert score["before"] > COLD_S / 2 > score["observed"]
            assert promised["low"] <= score["observed"] <= promised["high"]

    run(scenario)


def test_a_warm_instance_that_makes_it_worse_goes_back(watched: Snapshot, tmp_path: Path) -> None:
    def slowdown(least: int) -> float:
        return 20.0 if least else 1.0

    async def scenario() -> None:
        async with OscarWorld(tmp_path, slowdown=slowdown, snapshot=watched, loops=CHANGING) as world:
            (row,) = world.recommendations("proposed")
            assert world.click(row["id"]) == "accepted"
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "rolled_back", change["state_reason"]
            assert (world.least, len(world.server.puts)) == (0, 2)
            assert world.known()["frozen_because"]

    run(scenario)


def test_a_kill_at_any_instant_is_no_second_write(watched: Snapshot, tmp_path: Path) -> None:
    async def instants(at: int | None, folder: Path) -> list[str]:
        async with OscarWorld(folder, snapshot=watched, loops=CHANGING) as world:
            (row,) = world.recommendations("proposed")
            assert world.click(row["id"]) == "accepted"
            faults = world.process.faults
            faults.instants.clear()
            faults.die_at = at
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "succeeded", (at, change["state_reason"])
            assert (world.least, len(world.server.puts)) == (1, 1), at
            return faults.instants

    async def scenario() -> None:
        passed = await instants(None, tmp_path / "whole")
        acting = [i for i, name in enumerate(passed) if name.startswith("act:")]
        assert len(acting) > 50
        for at in acting[3 :: len(acting) // 4]:
            await instants(at, tmp_path / str(at))

    run(scenario)
