"""OpenAI's API from discovery to the ledger, of the kind quota: the product's own governor and system, over HTTP, in virtual time."""

from __future__ import annotations

from pathlib import Path

from tests.world.modelapi import ModelApiWorld
from tests.world.world import run

WATCH_S, CHANGE_S = 5400.0, 4 * 3600.0
AMOUNTS = [30_000, 60_000, 90_000, 120_000]


def test_from_discovery_to_the_ledger(tmp_path: Path) -> None:
    """130 calls a minute of 500 tokens on 50,000 a minute: three in thirteen are refused."""

    async def scenario() -> None:
        async with ModelApiWorld(tmp_path, AMOUNTS) as world:
            assert await world.until(lambda: bool(world.recommendations("proposed")), WATCH_S), "nothing was proposed"
            assert world.server.writes == [], "watching writes nothing"
            (row,) = world.recommendations("proposed")
            body = row["body"]
            assert body["direction"] == "grow"
            bought = body["proposed"]["shape"]["purchase"]["amount"]
            assert bought in (90_000, 120_000)
            assert [o["name"] for o in row["plan"]["operations"]] == ["set"]
            assert world.click(row["id"]) == "accepted"
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "succeeded", change["state_reason"]
            assert (world.granted, len(world.server.writes)) == (bought, 1)
            scores = {s["metric"]: s for s in world.ledger(change["id"])}
            assert scores["throttle_rate"]["before"] > 0.01 > scores["throttle_rate"]["observed"]

    run(scenario)


def test_a_limit_that_is_not_what_refuses_goes_back(tmp_path: Path) -> None:
    """Whatever the project is granted, the organization has 50,000: the refusals stay, and the change is undone."""

    async def scenario() -> None:
        async with ModelApiWorld(tmp_path, AMOUNTS, really=lambda n: min(n, 50_000)) as world:
            assert await world.until(lambda: bool(world.recommendations("proposed")), WATCH_S)
            (row,) = world.recommendations("proposed")
            assert world.click(row["id"]) == "accepted"
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "rolled_back", change["state_reason"]
            assert (world.granted, len(world.server.writes)) == (50_000, 2)
            assert world.known()["frozen_because"]

    run(scenario)
