"""What all kinds of endpoint share: the answer, how fast an accepted call is, how a client retries. Pure values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np

from analyzers.strict import NumberOrArray
from analyzers.whatif.distribution import Bins, Distribution, Samples
from collectors.workload import Floats, Ints, Workload

_GAP_LOW = 1e-6
_GAP_GROWTH = math.log(1.01)
#: Upper edges of the token gap histogram: bins of 1 % from 1 microsecond to some 30 hours.
GAP_EDGES: Floats = np.exp(math.log(_GAP_LOW) + _GAP_GROWTH * np.arange(2560))

METRICS = ("ttft_s", "itl_s", "tpot_s", "e2e_s", "queue_s")


@runtime_checkable
class ReplayAnswer(Protocol):
    """What a replay says, whatever the endpoint is."""

    @property
    def requests(self) -> int: ...

    @property
    def completed(self) -> int: ...

    @property
    def simulated_s(self) -> float: ...

    @property
    def saturated(self) -> bool: ...

    def distribution(self, metric: str) -> Distribution:
        """By canonical name: ``ttft_s``, ``itl_s``, ``tpot_s``, ``e2e_s``, ``queue_s``. Raises KeyError on another."""
        ...

    def goodput_per_s(self, limits: Mapping[str, float]) -> float:
        """Requests per second that meet every limit, by canonical name."""
        ...


@dataclass(frozen=True, slots=True)
class CallTimes:
    """(n,) one entry for each request of the workload, in its order. A time that never came is -1."""

    queue_s: Floats
    """Arrival to acceptance: waits for a slot, or for a retry."""
    ttft_s: Floats
    """From arrival. -1 throughout where the endpoint does not stream."""
    tpot_s: Floats
    """-1 for fewer than two tokens."""
    e2e_s: Floats
    rejected: np.ndarray
    """bool: could never be accepted, being larger than the limit itself."""
    tries: Ints
    """Calls sent, the first one and its retries."""


@dataclass(frozen=True)
class ServiceReplay:
    """What happened. Latencies are those of completed requests."""

    requests: int
    completed: int
    rejected: int
    """Larger than the limit itself, so they could never be accepted."""
    gave_up: int
    """After the last try, or the longest wait."""
    throttled: int
    """Answers of 429; one request can get several."""
    output_tokens: int
    """Of completed requests."""
    simulated_s: float
    """From 0 to the last completion, the last arrival, or the last one that gave up."""
    each: CallTimes
    used: Mapping[str, float]
    """What is paid for, as quantities and not as money: ``prompt_tokens``, ``replica_s``, ``ptu_hours`` ... as the kind states."""
    gauges: Mapping[str, float]
    """What the kind has to say beside: ``running_mean``, ``utilization_max`` ... as the kind states."""
    growth: float
    """Of those that arrived by the last arrival, how many more were still not served than half-way; those that gave up never are."""
    arrivals_late: int
    """Requests that arrived in that second half, without the rejected."""
    output_lengths: Ints

    @cached_property
    def ttft(self) -> Samples:
        return _known(self.each.ttft_s)

    @cached_property
    def tpot(self) -> Samples:
        return _known(self.each.tpot_s)

    @cached_property
    def e2e(self) -> Samples:
        return _known(self.each.e2e_s)

    @cached_property
    def queue(self) -> Samples:
        return Samples(self.each.queue_s[self.each.e2e_s >= 0.0])

    @cached_property
    def itl(self) -> Bins:
        """Over gaps between tokens, each taken as its request's mean gap."""
        many = self.each.tpot_s >= 0.0
        gaps, counts = self.each.tpot_s[many], (self.output_lengths[many] - 1).astype(np.float64)
        at = np.minimum(np.searchsorted(GAP_EDGES, gaps), GAP_EDGES.shape[0] - 1)
        weights = np.bincount(at, counts, minlength=GAP_EDGES.shape[0]).astype(np.float64)
        return Bins(weights, GAP_EDGES, float(gaps @ counts))

    def distribution(self, metric: str) -> Distribution:
        """By canonical name: ``ttft_s``, ``itl_s``, ``tpot_s``, ``e2e_s``, ``queue_s``. Raises KeyError on another.

        Empty, and so None at every quantile, where this kind of endpoint does not have it.
        """
        if metric not in METRICS:
            raise KeyError(metric)
        found: Distribution = getattr(self, metric.removesuffix("_s"))
        return found

    @property
    def saturated(self) -> bool:
        """Whether demand is beyond what the endpoint can take for long.

        In the second half of the arrivals the number not served grew by more than 5 % of them, and by more than three standard
        deviations of a Poisson count of them: the criterion of ``engine.Replay``, with those that gave up as never served.
        """
        n = self.arrivals_late
        return self.growth > max(0.05 * n, 3.0 * math.sqrt(n))

    def goodput_per_s(self, limits: Mapping[str, float]) -> float:
        """Completed requests per second that meet every limit: ``{"ttft_s": 0.5, "e2e_s": 20}``.

        A gap between tokens (``itl_s``) is judged by the request's mean gap; one token has none, and meets it.
        Raises ValueError on a metric that this kind of endpoint does not have, and on a limit that is no number of seconds.
        """
        good = self.each.e2e_s >= 0.0
        for metric, limit in limits.items():
            name = "tpot_s" if metric == "itl_s" else metric
            if metric not in METRICS or (name == "ttft_s" and self.completed and not self.ttft.count):
                raise ValueError(f"{metric}: this kind of endpoint has no such latency; known: {', '.join(METRICS)}")
            if not limit >= 0:
                raise ValueError(f"goodput: the limit on {metric} must be 0 seconds or more, not {limit}")
            good &= getattr(self.each, name) <= limit
        return float(np.count_nonzero(good)) / self.simulated_s if self.simulated_s > 0 else 0.0


@dataclass(frozen=True)
class Speed:
    """How fast an accepted call is: first token after ``ttft_s`` + ``per_prompt_token_s`` x uncached prompt tokens, then ``tpot_s`` each.

    ttft_s, tpot_s: seconds; a constant, or observed values to draw from. Two lists of one length are drawn in pairs.
    """

    ttft_s: NumberOrArray
    tpot_s: NumberOrArray
    per_prompt_token_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s", "per_prompt_token_s"):
            values = np.atleast_1d(np.asarray(getattr(self, name), np.float64))
            if values.size == 0 or not np.all(np.isfinite(values)) or values.min() < 0:
                raise ValueError(f"speed: {name} must be finite seconds, 0 or more")

    def draw(self, workload: Workload, seed: int) -> tuple[Floats, Floats]:
        """(n,) seconds to the first token, and (n,) seconds of each token after it, of one call for each request."""
        rng = np.random.default_rng(seed)
        ttft, tpot = (np.atleast_1d(np.asarray(x, np.float64)) for x in (self.ttft_s, self.tpot_s))
        at = rng.integers(0, ttft.size, len(workload))
        first = ttft[at] + self.per_prompt_token_s * (workload.prompt_tokens - workload.prefix_tokens)
        return first, tpot[at if ttft.size == tpot.size else rng.integers(0, tpot.size, len(workload))]


@dataclass(frozen=True, slots=True)
class Retries:
    """What a client does on 429. The defaults are those of OpenAI's Python client (``_base_client.py``).

    It heeds Retry-After up to ``longest_heeded_s``, to the instant. Without one, before retry k (from 0) it waits
    min(``first_s`` x 2^k, ``most_s``) x (1 - ``jitter`` x u), with u from 0 to 1 by seed. It sends ``tries`` calls in all and then gives up.
    """

    tries: int = 3
    first_s: float = 0.5
    most_s: float = 8.0
    jitter: float = 0.25
    heeds_retry_after: bool = True
    longest_heeded_s: float = 60.0

    def __post_init__(self) -> None:
        if self.tries < 1 or not 0 < self.first_s <= self.most_s or not 0 <= self.jitter <= 1:
            raise ValueError("retries: tries >= 1, 0 < first_s <= most_s and 0 <= jitter <= 1 are expected")

    def as_array(self) -> Floats:
        """In the order that ``kernels`` reads."""
        heeded = self.longest_heeded_s if self.heeds_retry_after else 0.0
        return np.array([self.tries, self.first_s, self.most_s, self.jitter, heeded])


def decoded(workload: Workload, first: Floats, tpot: Floats) -> tuple[Floats, Floats]:
    """(n,) seconds of each whole call, and (n,) its time per output token: -1 for fewer than two."""
    more = np.maximum(workload.output_tokens - 1, 0)
    return first + tpot * more, np.where(more > 0, tpot, -1.0)


def served(
    workload: Workload,
    each: CallTimes,
    *,
    served_at_s: Floats,
    end_s: float,
    throttled: int,
    used: Mapping[str, float],
    gauges: Mapping[str, float],
) -> ServiceReplay:
    """Counts and sums over ``each``.

    served_at_s: (n,) when each left the queue of the not yet served, infinite where never: what ``saturated`` is judged by.
    """
    done = each.e2e_s >= 0.0
    completed, rejected = int(np.count_nonzero(done)), int(np.count_nonzero(each.rejected))
    growth, late = _growth(workload.arrival_s, served_at_s, ~each.rejected)
    return ServiceReplay(
        requests=len(workload),
        completed=completed,
        rejected=rejected,
        gave_up=len(workload) - completed - rejected,
        throttled=throttled,
        output_tokens=int(workload.output_tokens[done].sum()),
        simulated_s=max(end_s, workload.duration_s),
        each=each,
        used=used,
        gauges=gauges,
        growth=growth,
        arrivals_late=late,
        output_lengths=workload.output_tokens,
    )


def check_not_empty(workload: Workload) -> None:
    """Raises ValueError where there is nothing to replay."""
    if not len(workload):
        raise ValueError("the workload has no requests; replay at least one")


def _growth(arrival: Floats, served_at: Floats, counted: np.ndarray) -> tuple[float, int]:
    half = arrival.shape[0] // 2
    if half == 0:
        return 0.0, 0

    def pending(at: float) -> int:
        return int(np.count_nonzero(counted & (arrival <= at) & (served_at > at)))

    return float(pending(float(arrival[-1])) - pending(float(arrival[half]))), int(np.count_nonzero(counted[half:]))


def _known(values: Floats) -> Samples:
    return Samples(values if values.size and values.min() >= 0.0 else values[values >= 0.0])
