"""Purchased throughput (PTU) as an engine file: ``analyzers.kinds.ptu.throughput``. Prices per token are those of what spills over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from analyzers.kinds.ptu import throughput as ptu
from analyzers.kinds.ptu.throughput import Ptu
from analyzers.kinds.results import ReplayResult, ReplayTraffic, Result, calls, of_served
from analyzers.kinds.service import Retries, Speed
from analyzers.kinds.system import TokenPricedSystem
from analyzers.money import Tariff, Unit, Usage


@dataclass(frozen=True, kw_only=True)
class PtuDeployment(TokenPricedSystem, Ptu):
    kind: ClassVar[str] = "ptu"

    speed: Speed
    spill: Speed | None = None
    """How fast the pay-per-token deployment is that takes refused calls. None: clients try again."""
    max_tokens: int | None = None
    retries: Retries = field(default_factory=Retries)
    seed: int = 0
    usd_per_ptu_hour: float | None = None

    def __post_init__(self) -> None:
        TokenPricedSystem.__post_init__(self)
        Ptu.__post_init__(self)

    @property
    def label(self) -> str:
        return f"{self.ptus:g} PTU, {'spilling over' if self.spill is not None else 'no spillover'}"

    def run(self, traffic: ReplayTraffic) -> ReplayResult:
        got = ptu.replay(
            traffic.workload,
            self,
            self.speed,
            max_tokens=self.max_tokens,
            spill=self.spill,
            retries=self.retries,
            seed=self.seed,
        )
        spilled = int(got.gauges["spilled_requests"]) if self.spill is not None else None
        return ReplayResult(of_served(got, spilled_requests=spilled, **calls(got)))

    def cost_usd(self, result: Result) -> float | None:
        spilled = self.tokens_usd(result.used, "spilled_")
        bought = Tariff.of({Unit.PTU_HOUR: self.usd_per_ptu_hour}).cost(Usage(ptu_hours=result.used["ptu_hours"])).usd
        return None if bought is None or spilled is None else bought + spilled
