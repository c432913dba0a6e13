"""Amazon in virtual time: moto behind the strict layer, with the product's own governor, source and system on it.

What CloudWatch tells of the endpoint is simulated: the law of a machine, on as many of that type as serve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from collectors.aws.discover import SageMakerSystem
from collectors.discovery import DiscoveryContext
from collectors.http import Http
from collectors.sessions import Sessions
from tests.agent.slack import SLACK
from tests.fakes.aws import IDENTITY, REGION, FakeAws
from tests.fakes.azure import Law
from tests.world.wire import LOOPS, Snapshot, WireWorld

SMALL, LARGE = "ml.c5.large", "ml.c5.xlarge"
CORES = {SMALL: 2, LARGE: 4}
VARIANT = "AllTraffic"
SETTINGS: dict[str, Any] = {
    "collect": {"interval_s": 60, "window_s": 60, "timeout_s": 20},
    "decide": {"interval_s": 300, "act_interval_s": 15},
    "sizes": {SMALL: {"usd_per_replica_hour": 0.102, "cpus": 2}, LARGE: {"usd_per_replica_hour": 0.204, "cpus": 4}},
    "slack": SLACK,
}
ENDPOINT: dict[str, Any] = {
    "mode": "approve",
    "objective": {"e2e_p95_s": 0.24, "error_rate": 0.02},
    "policy": {
        "min_replicas": 2,
        "max_replicas": 6,
        "sizes": [SMALL, LARGE],
        "evidence_s": 3600,
        "min_coverage": 0.7,
        "stable_cycles": 1,
        "cooldown_s": 600,
        "expires_s": 7200,
    },
    "verify": {"warmup_s": 60, "windows": 3, "deadline_s": 1800, "load_tolerance": 0.5},
}


@dataclass(frozen=True)
class Machine:
    name: str
    cores: int


def load(at: float) -> float:
    """Requests per second: a wave of half an hour between 16 and 64."""
    return 40.0 + 24.0 * math.sin(2 * math.pi * at / 1800.0)


class AwsWorld(WireWorld):
    """See ``WireWorld``."""

    def __init__(
        self,
        folder: Path,
        *,
        slowdown: Callable[[str], float] = lambda _size: 1.0,
        snapshot: Snapshot | None = None,
        loops: tuple[str, ...] = LOOPS,
    ) -> None:
        super().__init__(folder, snapshot=snapshot, loops=loops)
        self.law = Law(slowdown=slowdown)
        self.aws = FakeAws(update_s=240.0, now=self.clock.now)
        self.aws.tells = self._tells
        self._identity = mock.patch.dict("os.environ", IDENTITY)

    def open(self) -> None:
        self._identity.start()
        self.aws.__enter__()
        self.aws.endpoint("chat", {VARIANT: (SMALL, 4, 1.0)})
        self.aws.history[0] = (0.0, self.aws.history[0][1])

    def close(self) -> None:
        self.aws.__exit__()
        self._identity.stop()

    async def stated(self) -> Mapping[str, Any]:
        """What ``flyball discover sagemaker`` writes, with the objective and the policy."""
        http, sessions = Http(), Sessions()
        try:
            context = DiscoveryContext(http.call, self.clock, sessions, {"region": REGION, "aws_url": self.aws.url})
            (found,) = [f async for f in SageMakerSystem().discover(context)]
        finally:
            await sessions.aclose()
            await http.aclose()
        return {**SETTINGS, "endpoints": [{**found.settings, **ENDPOINT}]}

    def _tells(self, namespace: str, metric: str, of: Mapping[str, str], stat: str, at: float) -> float | None:
        """A minute of the variant as CloudWatch has it: microseconds, and 100 % for each core."""
        size, count = next(served for since, served in reversed(self.aws.history) if since <= at)[VARIANT]
        rate = load(at + 30)
        mean, held = self.law.latency_s(rate / count, Machine(size, CORES[size]))  # type: ignore[arg-type]
        requests = round(rate * 60)
        match metric, stat:
            case "Invocations", "Sum":
                return float(requests)
            case (("Invocation4XXErrors" | "Invocation5XXErrors"), "Sum"):
                return 0.0
            case "ModelLatency", "Sum":
                return requests * mean * 1e6
            case "ModelLatency", _:
                return self.law.quantile(mean, float(stat[1:]) / 100) * 1e6
            case "OverheadLatency", _:
                return 1_000.0 * (requests if stat == "Sum" else 1)
            case "CPUUtilization", _:
                return CORES[size] * 100 * (1 - math.exp(-held / CORES[size]))
        return None

    # -- what is there -------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[str, int]:
        """Type and instances."""
        (config,) = self.aws.config_of()["ProductionVariants"]
        return config["InstanceType"], self.aws.variants()[VARIANT]["CurrentInstanceCount"]

    @property
    def written(self) -> list[str]:
        return [action for _, action in self.aws.writes]
