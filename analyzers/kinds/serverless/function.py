"""A serverless function or container as an engine file: ``analyzers.kinds.serverless.platform``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from analyzers.kinds.results import ReplayResult, ReplayTraffic, Result, of_served
from analyzers.kinds.serverless import platform as serverless
from analyzers.kinds.serverless.platform import Serverless
from analyzers.kinds.service import Speed
from analyzers.kinds.system import DescribedSystem, check_prices
from analyzers.money import Tariff, Unit, Usage


@dataclass(frozen=True, kw_only=True)
class ServerlessFunction(DescribedSystem, Serverless):
    kind: ClassVar[str] = "serverless"

    speed: Speed
    """Of a request alone on an instance."""
    seed: int = 0
    billed: Literal["instance", "busy", "request"] = "instance"
    """What an hour of ``usd_per_billed_hour`` is: of an instance that is there, of one with at least one request, or of one request."""
    usd_per_billed_hour: float | None = None

    def __post_init__(self) -> None:
        Serverless.__post_init__(self)
        check_prices(self)

    @property
    def label(self) -> str:
        return f"serverless, {self.least} to {self.most} instances of {self.concurrency} at once"

    def run(self, traffic: ReplayTraffic) -> ReplayResult:
        got = serverless.replay(traffic.workload, self, self.speed, seed=self.seed)
        more = {
            "cold_starts": int(got.gauges["cold_starts"]),
            "replica_s": got.used["instance_s"],
            "replicas_max": int(got.gauges["instances_max"]),
        }
        return ReplayResult(of_served(got, **more))

    def cost_usd(self, result: Result) -> float | None:
        hours = result.used[f"{self.billed}_s"] / 3600.0
        unit, used = {
            "instance": (Unit.REPLICA_HOUR, Usage(replica_hours=hours)),
            "busy": (Unit.BUSY_HOUR, Usage(busy_hours=hours)),
            "request": (Unit.REQUEST_HOUR, Usage(request_hours=hours)),
        }[self.billed]
        return Tariff.of({unit: self.usd_per_billed_hour}).cost(used).usd
