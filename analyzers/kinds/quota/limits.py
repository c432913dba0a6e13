"""A pay-per-token API behind rate limits: tokens and requests per minute, 429, and clients that try again.

What Azure documents for standard deployments (Microsoft Learn, "Manage Azure OpenAI quota", understanding rate limits), and is kept:

- Tokens are counted when a call arrives, as prompt + ``max_tokens``, into a running count that is set back each minute. Once the limit
  is reached, calls get 429 until then. (So the call that reaches it is still accepted, however large.)
- Requests are judged over 1 or 10 seconds: more than that share of the limit, and new ones get 429 until the next period.
- 6 requests per minute for each 1,000 tokens per minute, older models; others have other ratios.

OpenAI states limits "quantized" over shorter periods and counts prompt + ``max_tokens`` alike; its reset headers move continuously,
so ``continuous`` is a token bucket: it refills at the limit, holds at most one period of it, and takes a call only whole.

Assumed, since it is not documented: minutes start at 0 of the workload; every call received counts as a request, those that the
tokens refuse too; Retry-After is exact and names when the limits would take this call if nobody else came; a 429 takes no time;
latency does not depend on load. Owns no prices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analyzers.kinds import kernels
from analyzers.kinds.service import CallTimes, Retries, ServiceReplay, Speed, check_not_empty, decoded, served
from collectors.workload import Floats, Ints, Workload


@dataclass(frozen=True, slots=True)
class QuotaLimit:
    """``per_minute``, enforced over ``period_s``: in fixed windows, or, ``continuous``, as a bucket that holds one period's worth."""

    per_minute: float
    period_s: float = 60.0
    continuous: bool = False

    def __post_init__(self) -> None:
        if not (
            math.isfinite(self.per_minute)
            and self.per_minute > 0
            and math.isfinite(self.period_s)
            and self.period_s > 0
        ):
            raise ValueError(
                f"a limit must be above 0 per minute, over a period above 0, not {self.per_minute} and {self.period_s}"
            )

    @property
    def amount(self) -> float:
        """Of one period."""
        return self.per_minute * self.period_s / 60.0


@dataclass(frozen=True)
class ApiQuota:
    """The limits of a deployment. None: not limited."""

    tokens: QuotaLimit | None = None
    requests: QuotaLimit | None = None

    @classmethod
    def azure(
        cls, tokens_per_minute: float, *, requests_per_1k_tokens: float = 6.0, request_period_s: float = 10.0
    ) -> ApiQuota:
        """A standard deployment: a running minute of tokens, and requests over 10 s (or 1 s; Azure says either)."""
        requests = QuotaLimit(tokens_per_minute / 1000.0 * requests_per_1k_tokens, request_period_s)
        return cls(QuotaLimit(tokens_per_minute), requests)


def replay(
    workload: Workload,
    quota: ApiQuota,
    speed: Speed,
    *,
    max_tokens: int | Ints | None = None,
    retries: Retries | None = None,
    seed: int = 0,
) -> ServiceReplay:
    """Replay ``workload`` against ``quota``; accepted calls are as fast as ``speed``.

    max_tokens: what clients ask for at most, one number or (n,) of them; it is what the limit counts beside the prompt, and never less
    than what came out. None: as many as came out, so that clients who leave it high are throttled sooner than this says.
    retries: None: those of OpenAI's client. seed: of the latencies drawn and of the jitter.
    ``used``: ``prompt_tokens``, ``cached_prompt_tokens`` (of them), ``output_tokens`` of completed requests. ``gauges``:
    ``tokens_per_minute_max``, the most that one minute counted.
    Raises ValueError on an empty workload.
    """
    check_not_empty(workload)
    retries = retries or Retries()
    estimate = (workload.prompt_tokens + limited_output(workload, max_tokens)).astype(np.float64)
    if quota.tokens is not None and quota.tokens.continuous:
        estimate[estimate > quota.tokens.amount] = -1.0
    accepted, tries, refused, end = kernels.quota(
        np.ascontiguousarray(workload.arrival_s),
        estimate,
        np.random.default_rng((seed, 1)).random(len(workload)),
        _as_array(quota.tokens),
        _as_array(quota.requests),
        retries.as_array(),
    )
    first, tpot = speed.draw(workload, seed)
    each = accepted_calls(workload, accepted, first, tpot, estimate < 0.0, tries)
    return served(
        workload,
        each,
        served_at_s=np.where(accepted >= 0.0, accepted, np.inf),
        end_s=max(float(end), last_end(workload, each)),
        throttled=int(refused),
        used=tokens(workload, each.e2e_s >= 0.0),
        gauges={"tokens_per_minute_max": _busiest_minute(accepted, estimate)},
    )


def limited_output(workload: Workload, max_tokens: int | Ints | None) -> Ints:
    """(n,) output tokens that a call is admitted with. Raises ValueError on a wrong shape or a limit below 1."""
    if max_tokens is None:
        return workload.output_tokens
    limit = np.asarray(max_tokens, np.int64)
    if limit.shape not in ((), (len(workload),)) or limit.min() < 1:
        raise ValueError(f"max_tokens must be one number, 1 or more, or one for each of the {len(workload)} requests")
    return np.maximum(limit, workload.output_tokens)


def accepted_calls(
    workload: Workload, accepted: Floats, first: Floats, tpot: Floats, rejected: np.ndarray, tries: Ints
) -> CallTimes:
    """Latencies from when each call was accepted (-1: never), (n,) seconds to its first token and of each further one."""
    done = accepted >= 0.0
    queue = np.where(done, accepted - workload.arrival_s, -1.0)
    whole, per_token = decoded(workload, first, tpot)
    return CallTimes(
        queue_s=queue,
        ttft_s=np.where(done, queue + first, -1.0),
        tpot_s=np.where(done, per_token, -1.0),
        e2e_s=np.where(done, queue + whole, -1.0),
        rejected=rejected,
        tries=tries,
    )


def last_end(workload: Workload, each: CallTimes) -> float:
    """When the last completed request ended; 0 where none did."""
    done = each.e2e_s >= 0.0
    return float((workload.arrival_s[done] + each.e2e_s[done]).max()) if done.any() else 0.0


def tokens(workload: Workload, done: np.ndarray) -> dict[str, float]:
    """What a pay-per-token bill counts, over the requests that are ``done``."""
    return {
        "prompt_tokens": float(workload.prompt_tokens[done].sum()),
        "cached_prompt_tokens": float(workload.prefix_tokens[done].sum()),
        "output_tokens": float(workload.output_tokens[done].sum()),
    }


def _as_array(limit: QuotaLimit | None) -> Floats:
    if limit is None:
        return np.array([np.inf, 1.0, 0.0])
    return np.array([limit.amount, limit.period_s, float(limit.continuous)])


def _busiest_minute(accepted: Floats, estimate: Floats) -> float:
    done = accepted >= 0.0
    if not done.any():
        return 0.0
    return float(np.bincount((accepted[done] / 60.0).astype(np.int64), estimate[done]).max())
