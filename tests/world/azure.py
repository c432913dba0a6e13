"""The stand-in for Azure in virtual time, with the product's own governor, source and system on it: nothing in between is simulated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collectors.azure.discover import AzureMlSystem
from collectors.discovery import DiscoveryContext
from collectors.http import Http
from collectors.sessions import Sessions
from tests.agent.slack import SLACK
from tests.fakes.azure import Cloud, FakeAzure, Law
from tests.fakes.azure.cloud import SUBSCRIPTION, Endpoint
from tests.world.wire import LOOPS, Snapshot, WireWorld

F2S, F4S = "Standard_F2s_v2", "Standard_F4s_v2"
SETTINGS: dict[str, Any] = {
    "collect": {"interval_s": 60, "window_s": 60, "timeout_s": 20},
    "decide": {"interval_s": 300, "act_interval_s": 15},
    "sizes": {F2S: {"usd_per_replica_hour": 0.097, "cpus": 2}, F4S: {"usd_per_replica_hour": 0.194, "cpus": 4}},
    "slack": SLACK,
}
ENDPOINT: dict[str, Any] = {
    "mode": "approve",
    "objective": {"e2e_p95_s": 0.24, "error_rate": 0.02},
    "policy": {
        "min_replicas": 2,
        "max_replicas": 6,
        "sizes": [F2S, F4S],
        "evidence_s": 3600,
        "min_coverage": 0.7,
        "stable_cycles": 1,
        "cooldown_s": 600,
        "expires_s": 7200,
    },
    "verify": {"warmup_s": 60, "windows": 3, "deadline_s": 1800, "load_tolerance": 0.5},
}


def load(at: float) -> float:
    """Requests per second: a wave of half an hour between 16 and 64."""
    return 40.0 + 24.0 * math.sin(2 * math.pi * at / 1800.0)


class AzureWorld(WireWorld):
    """See ``WireWorld``."""

    def __init__(
        self,
        folder: Path,
        *,
        law: Law | None = None,
        snapshot: Snapshot | None = None,
        loops: tuple[str, ...] = LOOPS,
    ) -> None:
        super().__init__(folder, snapshot=snapshot, loops=loops)
        self.cloud = Cloud(self.clock.now)
        self.cloud.law = law or Law()
        self.cloud.rate = load
        self.cloud.create_s, self.cloud.delete_s, self.cloud.retry_after_s = 240.0, 60.0, 60
        self.endpoint: Endpoint = self.cloud.add("chat", F2S, 4)
        self.azure = FakeAzure(self.cloud)

    def open(self) -> None:
        self.azure.__enter__()

    def close(self) -> None:
        self.azure.__exit__()

    async def stated(self) -> Mapping[str, Any]:
        return {**SETTINGS, "endpoints": [{**await self.discovered(), **ENDPOINT}]}

    async def discovered(self) -> dict[str, Any]:
        """What ``flyball discover azure-ml`` writes, with the references to secrets replaced by what they stand for."""
        http = Http()
        account = {"credential": "token", "token": "arm-token", "metrics_token": "metrics-token", "arm_url": self.azure.url,
                   "metrics_url": self.azure.url, "subscription": SUBSCRIPTION}  # fmt: skip
        try:
            context = DiscoveryContext(http.call, self.clock, Sessions(), account)
            (found,) = [f async for f in AzureMlSystem().discover(context)]
        finally:
            await http.aclose()
        secrets = {"token": "arm-token", "metrics_token": "metrics-token"}
        access = {**found.settings["actuator"]["options"], **secrets}
        return {
            **found.settings,
            "api_key": "primary-key",
            "sources": {"azure-monitor": access},
            "actuator": {
                "system": "azure-ml",
                "options": {**access, "smoke_test": {"input": [1]}, "hold_s": 60},
            },
        }

    @property
    def deployments(self) -> dict[str, tuple[str, int, int]]:
        """Size, count and percent of the traffic, by name."""
        return {n: (d.size, d.count, self.endpoint.traffic.get(n, 0)) for n, d in self.endpoint.deployments.items()}

    @property
    def written(self) -> list[str]:
        """What Azure was really made to do."""
        return [o.kind for o in self.cloud.operations.values()]
