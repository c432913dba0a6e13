"""What is read from a load-test summary: one steady load, what it was and how it was answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

LATENCIES = ("ttft_s", "itl_s", "tpot_s", "e2e_s")


class BadLoadTest(ValueError):
    """A file that is no load test that is read here, or one that says nothing: which file, what was seen, what to do."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A distribution by some of its figures. None: not given."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None

    def scaled(self, factor: float) -> Summary:
        """In another unit."""
        values = (self.mean, self.p50, self.p90, self.p95, self.p99)
        return Summary(*(None if v is None else v * factor for v in values))

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary | None:
        """Of values themselves; None of none."""
        if not len(values):
            return None
        quantiles = (float(q) for q in np.quantile(values, (0.5, 0.9, 0.95, 0.99)))
        return cls(float(np.mean(values)), *quantiles)


@dataclass(frozen=True, slots=True)
class LoadTestRecord:
    """One request that completed."""

    sent_s: float | None
    """From the first request of the test."""
    prompt_tokens: int | None
    output_tokens: int | None
    ttft_s: float | None
    e2e_s: float | None


@dataclass(frozen=True, slots=True)
class RateRamp:
    """A rate that changes from request to request."""

    start_per_s: float
    end_per_s: float
    kind: Literal["linear", "exponential"]
    """Over the requests' order: the rate, or its logarithm, runs straight."""


@dataclass(frozen=True, slots=True)
class LoadTest:
    """One load: a stage, a strategy, a run."""

    source: str
    """``inference-perf``, ``guidellm``, ``aiperf`` or ``vllm-bench``."""
    name: str
    """Which of the file's tests: the strategy and its load, as a person would say it."""
    sent: int | None
    completed: int | None
    failed: int | None
    duration_s: float | None
    controlled: Literal["rate", "concurrency"] | None
    """What was held: arrivals (open loop) or requests in flight (closed loop). None: not known."""
    rate_per_s: float | None
    """Requests sent per second, in an open loop: as it came out where that is given, else as asked. None also where it ramps."""
    concurrency: float | None
    """Requests in flight: as held in a closed loop (all of them where all were sent at once), else the mean where that is given."""
    throughput_per_s: float | None
    """Requests completed per second."""
    prompt_tokens: Summary | None
    output_tokens: Summary | None
    latency: Mapping[str, Summary]
    """``ttft_s``, ``itl_s``, ``tpot_s``, ``e2e_s``, those that are known. Of completed requests."""
    records: tuple[LoadTestRecord, ...] = ()
    """Empty where the file has none."""
    model: str | None = None
    max_concurrency: int | None = None
    """The client's cap on requests in flight, beside the load. None: none, or not known."""
    burstiness: float = 1.0
    """Shape of an open loop's gamma gaps: 1 is Poisson, above it more even, infinite exactly even."""
    ramp: RateRamp | None = None
    """Of an open loop whose rate changes."""
    burst: int = 0
    """Requests that an open loop sends at once when it begins."""
    cached_tokens: float | None = None
    """Mean prompt tokens of a request that the server found in its prefix cache. None: not known."""
    engine: Mapping[str, str | int | float] = field(default_factory=dict)
    """Engine arguments that the file tells, such as ``max_num_seqs``."""
    notes: tuple[str, ...] = ()
    """What was converted, left out, or is to be taken with care."""

    @property
    def in_flight(self) -> float | None:
        """Mean requests in flight: as held or measured, else by Little's law from throughput and mean end-to-end."""
        e2e = self.latency["e2e_s"].mean if "e2e_s" in self.latency else None
        if self.concurrency is not None or self.throughput_per_s is None or e2e is None:
            return self.concurrency
        return self.throughput_per_s * e2e
