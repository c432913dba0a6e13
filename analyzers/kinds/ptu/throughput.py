"""Purchased throughput (Azure PTU): a leaky bucket of utilisation, 429 at 100 %, and spillover to pay-per-token.

As Azure documents it (Microsoft Learn, "What is provisioned throughput", how the service decides when to send a 429; "Understanding
costs associated with PTU", throughput per PTU; "Manage traffic with spillover"):

- A call arrives: at 100 % it gets 429 with ``retry-after-ms``, the time until utilisation is below 100 %. Else its prompt tokens, without
  the cached ones, and ``max_tokens``, weighted by the model's ratio, are added; the call may take it beyond 100 %.
- It ends: what it really used replaces the estimate.
- Utilisation falls all the time at the rate that the PTUs buy: PTUs x input tokens per minute and PTU.
- One output token counts as several input tokens: 4 for gpt-4.1, 8 for gpt-5. Cached prompt tokens count as nothing.
- Accepted calls have a steady latency. Refused ones may go to a standard deployment, which bills them by the token.

Assumed, since it is not documented: 100 % is ``bucket_s`` = 60 seconds of the purchased rate (the metric has minutes); a refusal takes no
time; the deployment that takes the spill has no limit of its own (replay what it gets with ``quota`` to see). Owns no prices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analyzers.kinds import kernels
from analyzers.kinds.quota.limits import accepted_calls, last_end, limited_output, tokens
from analyzers.kinds.service import Retries, ServiceReplay, Speed, check_not_empty, decoded, served
from collectors.workload import Ints, Workload


@dataclass(frozen=True)
class Ptu:
    """A provisioned deployment."""

    ptus: float
    input_tokens_per_minute_per_ptu: float
    """From Azure's table for the model: 3,000 for gpt-4.1, 4,750 for gpt-5 (2025-08)."""
    output_weight: float
    """Input tokens that one output token counts as."""
    bucket_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("ptus", "input_tokens_per_minute_per_ptu", "output_weight", "bucket_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"ptu: {name} must be above 0, not {value}")

    @property
    def per_second(self) -> float:
        """Weighted tokens that are bought for each second."""
        return self.ptus * self.input_tokens_per_minute_per_ptu / 60.0


def replay(
    workload: Workload,
    ptu: Ptu,
    speed: Speed,
    *,
    max_tokens: int | Ints | None = None,
    spill: Speed | None = None,
    retries: Retries | None = None,
    seed: int = 0,
) -> ServiceReplay:
    """Replay ``workload`` on ``ptu``; accepted calls are as fast as ``speed``.

    max_tokens: as in ``quota.replay``; the estimate is at least what came out. spill: how fast the pay-per-token deployment is that takes
    refused calls at once. None: clients try again as ``retries`` says (None: OpenAI's client).
    ``used``: ``ptu_hours``, reserved for the whole time; ``spilled_prompt_tokens``, ``spilled_cached_prompt_tokens`` and
    ``spilled_output_tokens``, which are paid for by the token. ``gauges``: ``utilization_mean`` and ``utilization_max`` (1 is 100 %),
    ``spilled_requests``. ``throttled`` counts the 429 of the provisioned deployment, spilled ones too.
    Raises ValueError on an empty workload.
    """
    check_not_empty(workload)
    retries = retries or Retries()
    uncached = (workload.prompt_tokens - workload.prefix_tokens).astype(np.float64)
    first, tpot = speed.draw(workload, seed)
    bucket = ptu.per_second * ptu.bucket_s
    accepted, tries, spilled, refused, state = kernels.ptu(
        np.ascontiguousarray(workload.arrival_s),
        uncached + ptu.output_weight * limited_output(workload, max_tokens),
        uncached + ptu.output_weight * workload.output_tokens,
        decoded(workload, first, tpot)[0],
        np.random.default_rng((seed, 1)).random(len(workload)),
        bucket,
        ptu.per_second,
        retries.as_array(),
        spill is not None,
    )
    if spill is not None:
        first, tpot = (
            np.where(spilled, there, here)
            for here, there in zip((first, tpot), spill.draw(workload, seed + 1), strict=True)
        )
    each = accepted_calls(workload, accepted, first, tpot, np.zeros(len(workload), np.bool_), tries)
    end = max(float(state[1]), last_end(workload, each))
    return served(
        workload,
        each,
        served_at_s=np.where(accepted >= 0.0, accepted, np.inf),
        end_s=end,
        throttled=int(refused),
        used={"ptu_hours": ptu.ptus * end / 3600.0}
        | {f"spilled_{name}": value for name, value in tokens(workload, spilled).items()},
        gauges={
            "utilization_mean": float(state[2]) / (bucket * end) if end > 0 else 0.0,
            "utilization_max": float(state[3]) / bucket,
            "spilled_requests": float(np.count_nonzero(spilled)),
        },
    )
