"""What was counted, so that parts of it merge to exactly what one would have counted alone.

Owns counts and distributions of traffic; knows nothing of sockets. Unknown is None.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from collectors.bins import Floats
from collectors.sketch import Sketch

#: So many values are kept as they are; more of them as a sketch, within 1 %.
KEPT = 50_000
#: Values that wait to go into the sketch once there is one.
_WAITING = 4096
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
LATENCIES = ("ttft_s", "ttft_sent_s", "ttfo_s", "itl_s", "icl_s", "tpot_s", "e2e_s", "e2e_sent_s", "normalized_s")
LENGTHS = ("prompt_length", "output_length")


class Values:
    """A distribution: the values themselves while they are few, a sketch when they are many."""

    __slots__ = ("_kept", "_new", "_sketch")

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._new = array("d")
        self._sketch = Sketch()

    def add(self, value: float) -> None:
        self._new.append(value)
        if len(self._new) > self._kept:
            self._fold()

    def extend(self, values: Iterable[float]) -> None:
        self._new.extend(values)
        if len(self._new) > self._kept:
            self._fold()

    def merge(self, other: Values) -> None:
        self._sketch = Sketch.merge((self._sketch, other._sketch))
        self.extend(other._new)

    def _fold(self) -> None:
        self._sketch = self.sketch()
        self._new = array("d")
        self._kept = min(self._kept, _WAITING)

    @property
    def count(self) -> int:
        return round(self._sketch.count) + len(self._new)

    @property
    def exact(self) -> bool:
        """Whether every value is there still."""
        return self._sketch.count == 0

    @property
    def mean(self) -> float | None:
        """None where there is no value."""
        count = self.count
        return (self._sketch.total + math.fsum(self._new)) / count if count else None

    def sketch(self) -> Sketch:
        return Sketch.merge((self._sketch, Sketch.from_values(np.maximum(np.frombuffer(self._new), 0.0))))

    def quantiles(self, shares: Sequence[float]) -> list[float | None]:
        """The smallest values that at least these shares do not exceed; None where there is no value."""
        if not self.count:
            return [None] * len(shares)
        if not self.exact:
            return [float(value) for value in self.sketch().quantiles(shares)]
        ordered = np.sort(np.frombuffer(self._new))
        return [float(ordered[max(0, math.ceil(share * ordered.size - 1e-9) - 1)]) for share in shares]

    def interval(self, share: float) -> tuple[float | None, float | None]:
        """95 % confidence in which the quantile lies, whatever the distribution; None at an end that so few values do not bound."""
        low, high = ranks(self.count, share)
        ends = [None if rank is None else self.quantiles([(rank - 0.5) / self.count])[0] for rank in (low, high)]
        return ends[0], ends[1]


def ranks(n: int, share: float, confidence: float = 0.95) -> tuple[int | None, int | None]:
    """Which order statistics (1 is the least) enclose a quantile: the number of values below it is binomial.

    Source: H. A. David, H. N. Nagaraja, Order Statistics, 3rd ed., section 7.1.
    """
    if n < 1:
        return None, None
    tail = (1 - confidence) / 2
    spread = 6 * math.sqrt(n * share * (1 - share)) + 6
    k = np.arange(max(0, math.floor(n * share - spread)), min(n, math.ceil(n * share + spread)) + 1)
    chance = np.exp(_log_choose(n, k) + k * math.log(share) + (n - k) * math.log1p(-share))
    below = np.cumsum(chance)  # of at most k values below the quantile
    low = int(k[int(np.searchsorted(below, tail))])
    high = int(k[min(int(np.searchsorted(below, 1 - tail)), k.size - 1)]) + 1
    return (low if low >= 1 else None), (high if high <= n else None)


def _log_choose(n: int, k: Any) -> Floats:
    gammas = np.array([math.lgamma(i + 1) + math.lgamma(n - i + 1) for i in k.tolist()])
    return math.lgamma(n + 1) - gammas


@dataclass(slots=True)
class Slice:
    """What ended within one short piece of the time."""

    sent: int = 0
    ok: int = 0
    errors: int = 0
    prompt_tokens: int | None = 0
    """None: the server does not tell."""
    output_tokens: int = 0
    values: dict[str, Values] = field(default_factory=dict)

    def of(self, name: str) -> Values:
        found = self.values.get(name)
        if found is None:
            found = self.values[name] = Values(1000)
        return found

    def merge(self, other: Slice) -> None:
        self.sent += other.sent
        self.ok += other.ok
        self.errors += other.errors
        self.output_tokens += other.output_tokens
        known = self.prompt_tokens is not None and other.prompt_tokens is not None
        self.prompt_tokens = (self.prompt_tokens or 0) + (other.prompt_tokens or 0) if known else None
        for name, values in other.values.items():
            self.of(name).merge(values)


@dataclass(slots=True)
class ClientHealth:
    """The client, watched by itself."""

    lateness: Values = field(default_factory=Values)
    """Seconds between when a request could go and when it went, where nothing but the client was in the way."""
    read_delay: Values = field(default_factory=lambda: Values(5000))
    """Seconds that bytes lay in the socket before they were read; at most so many, where the kernel gave no stamp."""
    own_stamps: int = 0
    """Reads without a stamp of the kernel: what they lay in the socket is in their latencies."""
    lag_max_s: float = 0.0
    """Longest turn of the loop."""
    cpu_s: float = 0.0
    busiest: float = 0.0
    """Greatest share of its time in which a worker ran or waited for a core."""
    connections: int = 0
    workers: int = 0

    def merge(self, other: ClientHealth) -> None:
        self.lateness.merge(other.lateness)
        self.read_delay.merge(other.read_delay)
        self.own_stamps += other.own_stamps
        self.lag_max_s = max(self.lag_max_s, other.lag_max_s)
        self.busiest = max(self.busiest, other.busiest)
        self.cpu_s += other.cpu_s
        self.connections += other.connections
        self.workers += other.workers


@dataclass(slots=True)
class Tally:
    """Everything that was counted. Requests that were due in the warm-up are in ``warmup`` and ``slices`` alone."""

    planned: int = 0
    """Due in all, the warm-up included; in a closed loop, those that were sent."""
    sent: int = 0
    warmup: int = 0
    """Sent in the warm-up."""
    held: int = 0
    """Had to wait for the cap on requests in flight."""
    unsent: int = 0
    """Due, but not sent: the traffic was stopped, or this machine could not."""
    abandoned: int = 0
    """Under way when the traffic was stopped."""
    ok: int = 0
    good: int = 0
    """Met every limit."""
    retried: int = 0
    """Sent once more, because the server had closed an idle connection."""
    steady_ok: int = 0
    """Successes that ended after the warm-up and before the sending ended: what rates are counted from."""
    steady_good: int = 0
    steady_tokens: int = 0
    tokens: int = 0
    """Output tokens of successes."""
    prompt_tokens: int | None = 0
    """None: the server does not tell."""
    all_ok: int = 0
    """With the warm-up, as the next three."""
    all_errors: int = 0
    all_prompt: int = 0
    """Prompt tokens of all requests, as asked for where the server does not tell: what is paid for."""
    all_output: int = 0
    chunks: int = 0
    arrivals: int = 0
    """Reads that brought tokens."""
    streams: int = 0
    """Successes with several chunks."""
    bunched: int = 0
    """Of those, streams most of whose chunks came together with another one."""
    token_sources: Counter[str] = field(default_factory=Counter)
    packings: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    warmup_errors: Counter[str] = field(default_factory=Counter)
    details: dict[str, str] = field(default_factory=dict)
    """The first error of each kind, in words."""
    retry_after: Values = field(default_factory=lambda: Values(1000))
    values: dict[str, Values] = field(default_factory=lambda: {name: Values() for name in (*LATENCIES, *LENGTHS)})
    slices: dict[int, Slice] = field(default_factory=dict)
    watch: ClientHealth = field(default_factory=ClientHealth)

    @property
    def ended(self) -> int:
        return self.ok + self.errors.total()

    def slice(self, index: int) -> Slice:
        found = self.slices.get(index)
        if found is None:
            found = self.slices[index] = Slice()
        return found

    def merge(self, other: Tally) -> None:
        """Add what another one counted."""
        known = self.prompt_tokens is not None and other.prompt_tokens is not None
        self.prompt_tokens = (self.prompt_tokens or 0) + (other.prompt_tokens or 0) if known else None
        for f in fields(self):
            mine, its = getattr(self, f.name), getattr(other, f.name)
            if isinstance(mine, Counter):
                mine.update(its)
            elif isinstance(mine, Values | ClientHealth):
                mine.merge(its)
            elif isinstance(mine, int) and f.name != "prompt_tokens":
                setattr(self, f.name, mine + its)
        self.details = {**other.details, **self.details}
        for name, values in other.values.items():
            self.values[name].merge(values)
        for index, piece in other.slices.items():
            self.slice(index).merge(piece)
