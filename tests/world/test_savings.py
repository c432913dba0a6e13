"""Attested savings in the simulated world: a change that was approved, the period after it, and the same figures again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent import attest
from agent.store import savings
from tests.world.world import START, World, run

PERIOD_S = 1800.0


def test_a_smaller_fleet_is_attested_after_its_period(tmp_path: Path) -> None:
    async def scenario() -> None:
        loops = ("lead", "collect", "act", "attest")
        async with World(
            tmp_path, replicas=3, rate=2.0, loops=loops, settings={"savings": {"period_s": PERIOD_S}}
        ) as world:
            await world.run(120.0)
            await world.ask_and_approve(replicas=2)
            assert await world.until_true(world.ended, 900.0)
            (change,) = world.changes()
            assert change["state"] == "succeeded"
            end = (change["applied_at"] // PERIOD_S + 1) * PERIOD_S

            def attested() -> bool:
                with world.store.read() as db:
                    return bool(savings.listed(db))

            assert not attested()
            assert await world.until_true(attested, end - world.clock.now() + attest.SETTLES_S + 400.0)
            assert world.clock.now() >= end + attest.SETTLES_S
            with world.store.read() as db:
                (row,) = savings.listed(db)
                assert (savings.altered(db), savings.missing(db)) == (None, [])
            body = attest.view(row)
            assert (body["given_up"]["replicas"], body["serves"]["replicas"]) == (3, 2)
            hours = body["hours_compared"]
            assert 0.0 < hours <= (end - change["applied_at"]) / 3600.0
            assert body["saved_usd"]["mid"] == pytest.approx(hours), "one replica at a dollar an hour"
            assert body["would_miss_s"] is not None
            assert await asyncio.to_thread(attest.recomputed, world.store, world.settings, row) == (
                True,
                "the same figures again",
            )

    assert START % 20 == 0
    run(scenario)
