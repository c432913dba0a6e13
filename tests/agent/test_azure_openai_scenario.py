"""Azure OpenAI from discovery to the ledger: the product's own governor, source, kinds and system, over HTTP, in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.world.openai import OpenAiWorld
from tests.world.wire import Snapshot
from tests.world.world import run

#: While a change is under way nothing is decided anyway, and deciding is what takes time.
CHANGING = ("lead", "collect", "act")
WATCH_S, CHANGE_S = 5400.0, 4 * 3600.0
AMOUNTS = [30_000, 60_000, 90_000, 120_000]


def test_a_quota_from_discovery_to_the_ledger(tmp_path: Path) -> None:
    """Up to 140 calls a minute of about 490 tokens on 50,000 a minute: calls are refused at the top of the wave."""

    async def scenario() -> None:
        async with OpenAiWorld(tmp_path, "GlobalStandard", 50, AMOUNTS) as world:
            assert await world.until(lambda: bool(world.recommendations("proposed")), WATCH_S), "nothing was proposed"
            assert world.written == [], "watching writes nothing"
            (row,) = world.recommendations("proposed")
            body = row["body"]
            assert body["direction"] == "grow"
            assert body["proposed"]["shape"]["purchase"]["amount"] in (90_000, 120_000)
            assert {r["code"] for r in body["reasons"]} >= {"OBJECTIVE_BREACH_THROTTLE_RATE"}
            promised = body["proposed"]["prediction"]["metrics"]["throttle_rate"]
            assert promised["mid"] < 0.01
            assert row["plan"]["needs"][0]["what"] == "quota OpenAI.GlobalStandard.gpt-4.1"
            assert world.click(row["id"]) == "accepted"
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "succeeded", change["state_reason"]
            assert world.written == ["capacity"]
            assert world.deployment.capacity * 1000 == body["proposed"]["shape"]["purchase"]["amount"]
            scores = {s["metric"]: s for s in world.ledger(change["id"])}
            assert scores["throttle_rate"]["before"] > 0.01 > scores["throttle_rate"]["observed"]

    run(scenario)


def test_a_quota_that_is_not_what_refuses_goes_back(tmp_path: Path) -> None:
    """Whatever is granted, Azure serves as if it were 50: the refusals stay, and the change is undone."""

    async def scenario() -> None:
        async with OpenAiWorld(tmp_path, "GlobalStandard", 50, AMOUNTS, really=lambda n: min(n, 50)) as world:
            assert await world.until(lambda: bool(world.recommendations("proposed")), WATCH_S)
            (row,) = world.recommendations("proposed")
            assert world.click(row["id"]) == "accepted"
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "rolled_back", change["state_reason"]
            assert world.written == ["capacity", "capacity"]
            assert world.deployment.capacity == 50
            assert world.known()["frozen_because"]

    run(scenario)


def test_provisioned_throughput_is_sized_from_its_own_arrivals(tmp_path: Path) -> None:
    """Up to 140 calls take some 100,000 weighted tokens a minute: 34 units of 3,000, and there are 25."""

    async def scenario() -> None:
        amounts, prices = [15, 40, 50, 80], {"usd_per_ptu_hour": 1.0}
        async with OpenAiWorld(tmp_path, "GlobalProvisionedManaged", 25, amounts, more=prices) as world:
            assert await world.until(lambda: bool(world.recommendations("proposed")), WATCH_S), "nothing was proposed"
            (row,) = world.recommendations("proposed")
            body = row["body"]
            assert body["direction"] == "grow"
            bought = body["proposed"]["shape"]["purchase"]["amount"]
            assert bought in (40, 50)
            assert body["saving_per_month"] == pytest.approx((25 - bought) * 730.0)
            assert {r["code"] for r in body["reasons"]} >= {"OBJECTIVE_BREACH_THROTTLE_RATE", "PTU_FULL"}
            promised = body["proposed"]["prediction"]["metrics"]["ptu_usage_mean"]
            assert row["plan"]["needs"][0]["what"] == "quota OpenAI.GlobalProvisionedManaged"
            assert world.click(row["id"]) == "accepted"
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "succeeded", change["state_reason"]
            assert (world.written, world.deployment.capacity) == (["capacity"], bought)
            scores = {s["metric"]: s for s in world.ledger(change["id"])}
            assert scores["throttle_rate"]["before"] > 0.01 > scores["throttle_rate"]["observed"]
            assert promised["low"] < scores["ptu_usage_mean"]["observed"] < promised["high"]

    run(scenario)


def test_a_kill_at_any_instant_is_no_second_write(tmp_path: Path) -> None:
    """Before and after requests and commits, while a change is under way. Every request alone is killed in the system's own tests."""

    async def instants(at: int | None, folder: Path, watched: Snapshot) -> list[str]:
        async with OpenAiWorld(folder, "GlobalStandard", 50, AMOUNTS, snapshot=watched, loops=CHANGING) as world:
            (row,) = world.recommendations("proposed")
            assert world.click(row["id"]) == "accepted"
            faults = world.process.faults
            faults.instants.clear()
            faults.die_at = at
            assert await world.until(world.ended, CHANGE_S)
            (change,) = world.changes()
            assert change["state"] == "succeeded", (at, change["state_reason"])
            assert world.written == ["capacity"], at
            assert world.deaths == (at is not None)
            return faults.instants

    async def scenario() -> None:
        async with OpenAiWorld(tmp_path / "watched", "GlobalStandard", 50, AMOUNTS) as world:
            assert await world.until(lambda: bool(world.recommendations("proposed")), WATCH_S)
            watched = await world.snapshot()
        passed = await instants(None, tmp_path / "whole", watched)
        acting = [i for i, name in enumerate(passed) if name.startswith("act:")]
        assert len(acting) > 20
        for at in acting[1 :: max(1, len(acting) // 6)]:
            await instants(at, tmp_path / str(at), watched)

    run(scenario)
