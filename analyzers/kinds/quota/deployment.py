"""A pay-per-token API behind rate limits, as an engine file: ``analyzers.kinds.quota.limits``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from analyzers.kinds.quota import limits as quota
from analyzers.kinds.quota.limits import ApiQuota
from analyzers.kinds.results import ReplayResult, ReplayTraffic, Result, calls, of_served
from analyzers.kinds.service import Retries, Speed
from analyzers.kinds.system import TokenPricedSystem


@dataclass(frozen=True, kw_only=True)
class QuotaDeployment(TokenPricedSystem, ApiQuota):
    kind: ClassVar[str] = "quota"

    speed: Speed
    max_tokens: int | None = None
    """What clients ask for at most. None: as many as came out."""
    retries: Retries = field(default_factory=Retries)
    seed: int = 0

    @property
    def label(self) -> str:
        limits = [
            f"{limit.per_minute:,.0f} {what}/min"
            for limit, what in ((self.tokens, "tokens"), (self.requests, "requests"))
            if limit is not None
        ]
        return f"pay per token, {', '.join(limits) or 'not limited'}"

    def run(self, traffic: ReplayTraffic) -> ReplayResult:
        got = quota.replay(
            traffic.workload,
            self,
            self.speed,
            max_tokens=self.max_tokens,
            retries=self.retries,
            seed=self.seed,
        )
        return ReplayResult(of_served(got, **calls(got)))

    def cost_usd(self, result: Result) -> float | None:
        return self.tokens_usd(result.used)
