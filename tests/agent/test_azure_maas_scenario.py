"""A serverless endpoint from its callers' telemetry to the advice with its figures: nothing of it can be changed, and nothing is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.store import fleet, windows
from analyzers.money import Tariff
from collectors.azure.serverless import AzureMaasSystem
from collectors.discovery import DiscoveryContext
from collectors.http import Http
from collectors.sessions import Sessions
from tests.agent.slack import SLACK
from tests.analyzers.kinds.test_call_kinds import limited
from tests.fakes.azure import Cloud, FakeAzure
from tests.fakes.azure.cloud import SUBSCRIPTION
from tests.fakes.azure.ml import add_serverless
from tests.world.wire import WireWorld
from tests.world.world import run


class MaasWorld(WireWorld):
    """Its callers tell what they were answered; Azure tells what it is."""

    name = "mistral"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, loops=("lead", "collect", "decide", "act"))
        self.azure = FakeAzure(Cloud(self.clock.now))
        add_serverless(self.azure.cloud, "mistral")

    def open(self) -> None:
        self.azure.__enter__()

    def close(self) -> None:
        self.azure.__exit__()

    async def stated(self) -> Mapping[str, Any]:
        http = Http()
        account = {"credential": "token", "token": "arm-token", "arm_url": self.azure.url, "subscription": SUBSCRIPTION}
        try:
            asked = DiscoveryContext(http.call, self.clock, Sessions(), account)
            (found,) = [f async for f in AzureMaasSystem().discover(asked)]
        finally:
            await http.aclose()
        options = {**found.settings["actuator"]["options"], "token": "arm-token"}
        entry = {
            **found.settings,
            "api_key": "key",
            "actuator": {"system": "azure-maas", "options": options},
            "shape": {"purchase": {"amount": 60_000, "unit": "tokens_per_minute"}},
            "policy": {"purchase": [90_000, 120_000, 180_000], "stable_cycles": 1, "min_coverage": 0.7},
            "mode": "approve",
        }
        return {
            "collect": {"interval_s": 60, "window_s": 60},
            "decide": {"interval_s": 300},
            "slack": SLACK,
            "endpoints": [entry],
        }

    def decision(self) -> str:
        """Why nothing is proposed; empty before the first analysis."""
        with self.store.read() as db:
            row = fleet.get(db, self.name)
        return "" if row is None else str(row["decision"])

    def told(self, per_minute: float, tpm: int) -> None:
        """What callers were answered in the hour that has just ended, by OTLP."""
        start = self.clock.now() - 3600.0
        hour = [
            replace(w, endpoint="mistral", source="otlp", start=start + w.start)
            for w in limited(per_minute, tpm, reserve=1.0)
        ]
        with self.store.write() as db:
            windows.save_entries(db, [windows.entry_of(w, Tariff()) for w in hour[:60]])


def test_from_discovery_to_a_patch_with_figures(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with MaasWorld(tmp_path) as world:
            world.told(150, 60_000)
            assert await world.until(lambda: bool(world.recommendations("proposed")), 900), world.known()
            (row,) = world.recommendations("proposed")
            body, plan = row["body"], row["plan"]
            assert body["direction"] == "grow"
            assert "OBJECTIVE_BREACH_THROTTLE_RATE" in {r["code"] for r in body["reasons"]}
            wanted = body["proposed"]["shape"]["purchase"]["amount"]
            assert wanted in (90_000, 120_000, 180_000)
            assert body["proposed"]["prediction"]["metrics"]["throttle_rate"]["mid"] < 0.01
            assert plan["operations"] == []
            assert f"takes 60,000 tokens a minute, and {wanted:,} are called for" in plan["by_hand"]
            assert f"{-(-wanted // 60_000)} of this model take" in plan["by_hand"]
            assert world.click(row["id"]) != "accepted", "there is nothing to approve: people make the change"
            assert {m for m, _ in world.azure.cloud.requests} == {"GET"}

    run(scenario)


def test_without_a_stated_limit_nothing_is_claimed(tmp_path: Path) -> None:
    class Unstated(MaasWorld):
        async def stated(self) -> Mapping[str, Any]:
            settings = dict(await super().stated())
            settings["endpoints"] = [{k: v for k, v in settings["endpoints"][0].items() if k != "shape"}]
            return settings

    async def scenario() -> None:
        async with Unstated(tmp_path) as world:
            world.told(150, 60_000)
            assert await world.until(lambda: "nor what is bought are known" in world.decision(), 900)
            assert not world.recommendations("proposed")

    run(scenario)
