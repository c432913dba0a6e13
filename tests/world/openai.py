"""A model deployment on the stand-in for Azure in virtual time, with the product's own governor, source and system on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from collectors.azure.discover_models import AzureOpenAiSystem
from collectors.discovery import DiscoveryContext
from collectors.http import Http
from collectors.sessions import Sessions
from tests.agent.slack import SLACK
from tests.fakes.azure import Cloud, FakeAzure
from tests.fakes.azure.cloud import SUBSCRIPTION
from tests.fakes.azure.openai import CallMix, add_deployment
from tests.world.wire import LOOPS, START, Snapshot, WireWorld

SETTINGS: dict[str, Any] = {
    "collect": {"interval_s": 60, "window_s": 60, "timeout_s": 20},
    "decide": {"interval_s": 300, "act_interval_s": 15},
    "slack": SLACK,
}
POLICY: dict[str, Any] = {
    "evidence_s": 3600,
    "min_coverage": 0.7,
    "stable_cycles": 1,
    "cooldown_s": 600,
    "expires_s": 7200,
}
VERIFY = {"warmup_s": 60, "windows": 3, "deadline_s": 1800, "load_tolerance": 0.5}


def load(at: float) -> CallMix:
    """Calls a minute: a wave of ten minutes between 60 and 140, whose answers are longer at its foot."""
    wave = math.sin(2 * math.pi * at / 600.0)
    return CallMix(100.0 + 40.0 * wave, 400.0, 100.0 - 20.0 * wave)


class OpenAiWorld(WireWorld):
    """See ``WireWorld``."""

    def __init__(
        self,
        folder: Path,
        sku: str,
        capacity: int,
        amounts: list[int],
        *,
        really: Callable[[int], float] = float,
        more: Mapping[str, Any] | None = None,
        properties: Mapping[str, Any] | None = None,
        snapshot: Snapshot | None = None,
        loops: tuple[str, ...] = LOOPS,
    ) -> None:
        """amounts: those that the policy allows. more: of the endpoint's settings. properties: of the deployment."""
        super().__init__(folder, snapshot=snapshot, loops=loops)
        self.cloud = Cloud(self.clock.now)
        self.cloud.scale_s, self.cloud.retry_after_s = 60.0, 15
        self.cloud.model_quota = {"OpenAI.GlobalStandard.gpt-4.1": 300, "OpenAI.GlobalProvisionedManaged": 200}
        self.deployment = add_deployment(self.cloud, "chat", sku, capacity, **(properties or {}))
        self.deployment.callers, self.deployment.really = load, really
        self.deployment.changed = START - 86_400.0  # also in a world that goes on from a snapshot
        self.amounts, self.more = amounts, dict(more or {})
        self.azure = FakeAzure(self.cloud)

    def open(self) -> None:
        self.azure.__enter__()

    def close(self) -> None:
        self.azure.__exit__()

    async def stated(self) -> Mapping[str, Any]:
        policy = {**POLICY, "purchase": self.amounts}
        entry = {**await self.discovered(), "mode": "approve", "policy": policy, "verify": VERIFY, **self.more}
        return {**SETTINGS, "endpoints": [entry]}

    async def discovered(self) -> dict[str, Any]:
        """What ``flyball discover azure-openai`` writes, with the references to secrets replaced by what they stand for."""
        http = Http()
        account = {"credential": "token", "token": "arm-token", "metrics_token": "metrics-token", "arm_url": self.azure.url,
                   "metrics_url": self.azure.url, "subscription": SUBSCRIPTION, "prices": False}  # fmt: skip
        try:
            context = DiscoveryContext(http.call, self.clock, Sessions(), account)
            (found,) = [f async for f in AzureOpenAiSystem().discover(context)]
        finally:
            await http.aclose()
        secrets = {"token": "arm-token", "metrics_token": "metrics-token"}
        reached = {**found.settings["actuator"]["options"], **secrets}
        actuator = {"system": "azure-openai", "options": reached}
        return {**found.settings, "api_key": "key", "sources": {"azure-openai": reached}, "actuator": actuator}

    @property
    def written(self) -> list[str]:
        """What Azure was really made to do."""
        return [o.kind for o in self.cloud.operations.values()]
