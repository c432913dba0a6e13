"""Azure ML from discovery to the ledger: the product's own governor, source and system, over HTTP, in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.azure import Law
from tests.world.azure import F2S, F4S, AzureWorld
from tests.world.wire import Snapshot
from tests.world.world import run

#: While a change is under way nothing is decided anyway, and deciding is what takes time.
CHANGING = ("lead", "collect", "act")
WATCH_S = 5400.0
CHANGE_S = 4 * 3600.0


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """An hour and a half of four small machines that are too slow, until a larger size is proposed."""
    kept: list[Snapshot] = []

    async def scenario() -> None:
        async with AzureWorld(tmp_path_factory.mktemp("watched")) as world:
            assert await world.until(lambda: bool(world.recommendations("proposed")), WATCH_S), "nothing was proposed"
            assert world.written == [], "watching writes nothing"
            kept.append(await world.snapshot())

    run(scenario)
    return kept[0]


def test_from_discovery_to_the_ledger(watched: Snapshot, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with AzureWorld(tmp_path, snapshot=watched, loops=CHANGING) as world:
            (row,) = world.recommendations("proposed")
            body = row["body"]
            assert (body["proposed"]["shape"]["size"], body["proposed"]["shape"]["replicas"]) == (F4S, 2)
            assert body["current"]["shape"]["size"] == F2S
            promised = body["proposed"]["prediction"]["metrics"]["e2e_p95_s"]
            assert (
                promised["low"] < promised["mid"] < 0.24 < promised["high"]
            )  # less than an hour was seen: the interval is wide
            assert any(reason.startswith("provisional") for reason in body["risk_reasons"])
            assert [o["name"] for o in row["plan"]["operations"]] == [
                "create",
                "smoke",
                "traffic",
                "traffic",
                "traffic",
            ]
            assert world.click(row["id"]) == "accepted"
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "succeeded", change["state_reason"]
            assert world.deployments == {"blue-2": (F4S, 2, 100)}
            assert world.written == ["create", "traffic", "traffic", "traffic", "delete"]
            scores = {s["metric"]: s for s in world.ledger(change["id"])}
            assert scores["e2e_p95_s"]["observed"] == pytest.approx(promised["mid"], rel=0.3)
            assert scores["e2e_p95_s"]["before"] > 0.24 > scores["e2e_p95_s"]["observed"]

    run(scenario)


def test_a_size_that_is_slower_than_promised_goes_back(watched: Snapshot, tmp_path: Path) -> None:
    law = Law(slowdown=lambda size: 6.0 if size == F4S else 1.0)

    async def scenario() -> None:
        async with AzureWorld(tmp_path, snapshot=watched, law=law, loops=CHANGING) as world:
            (row,) = world.recommendations("proposed")
            assert world.click(row["id"]) == "accepted"
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "rolled_back", change["state_reason"]
            assert world.deployments == {"blue": (F2S, 4, 100)}
            assert world.written == ["create", "traffic", "traffic", "delete"], "it never got more than its first share"
            assert world.ledger(change["id"])
            assert world.known()["frozen_because"]

    run(scenario)


def _approved(world: AzureWorld) -> None:
    (row,) = world.recommendations("proposed")
    assert world.click(row["id"]) == "accepted"


def test_a_kill_at_any_instant_is_no_second_write(watched: Snapshot, tmp_path: Path) -> None:
    """Before and after requests and commits, while a change is under way. Every request alone is killed in the system's own tests."""

    async def instants(at: int | None, folder: Path) -> list[str]:
        async with AzureWorld(folder, snapshot=watched, loops=CHANGING) as world:
            _approved(world)
            faults = world.process.faults
            faults.instants.clear()
            faults.die_at = at
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "succeeded", (at, change["state_reason"])
            assert world.written == ["create", "traffic", "traffic", "traffic", "delete"], at
            assert world.deployments == {"blue-2": (F4S, 2, 100)}
            assert world.deaths == (at is not None)
            return faults.instants

    async def scenario() -> None:
        passed = await instants(None, tmp_path / "whole")
        acting = [i for i, name in enumerate(passed) if name.startswith("act:")]
        assert len(acting) > 100
        stride = max(1, len(acting) // 5)
        for at in acting[5::stride]:
            await instants(at, tmp_path / str(at))

    run(scenario)
