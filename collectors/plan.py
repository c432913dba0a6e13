"""Traffic to be sent: when, how often, how long. Turns into a Workload by a seed; sends nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from collectors.openai import Api
from collectors.workload import Floats, Ints, Workload

_LONGEST = 1_000_000
_MOST_REQUESTS = 5_000_000

Arrivals = Literal["constant", "poisson", "gamma"]


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of lengths in tokens, written as ``100`` or ``fixed:100``, ``uniform:50:200``, ``lognormal:MEAN:CV``."""

    kind: Literal["fixed", "uniform", "lognormal"]
    first: float
    """The length, the shortest, or the mean."""
    second: float = 0.0
    """The longest, or the coefficient of variation (standard deviation over mean)."""

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """Raises ValueError, with what is expected, on anything else."""
        kind, *numbers = (f"fixed:{text}" if text.strip().isdigit() else text).split(":")
        try:
            values = [float(number) for number in numbers]
        except ValueError:
            values = []
        sound = all(math.isfinite(value) and 0 < value <= _LONGEST for value in values)
        match kind, values:
            case "fixed", [length] if sound and length >= 1:
                return cls("fixed", length)
            case "uniform", [low, high] if sound and 1 <= low <= high:
                return cls("uniform", low, high)
            case "lognormal", [mean, cv] if sound and mean >= 1:
                return cls("lognormal", mean, cv)
        raise ValueError(f"lengths {text!r}: expected 100, uniform:50:200 or lognormal:MEAN:CV, in tokens from 1 up")

    @property
    def mean(self) -> float:
        return (self.first + self.second) / 2 if self.kind == "uniform" else self.first

    def draw(self, rng: np.random.Generator, n: int) -> Ints:
        """(n,) lengths >= 1."""
        if self.kind == "fixed":
            return np.full(n, round(self.first), np.int64)
        if self.kind == "uniform":
            return rng.integers(round(self.first), round(self.second), n, endpoint=True)
        variance = math.log1p(self.second**2)
        drawn = rng.lognormal(math.log(self.first) - variance / 2, math.sqrt(variance), n)
        return np.clip(np.rint(drawn), 1, _LONGEST).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Rates:
    """Requests per second over time: straight lines between points, a jump where two stand at the same time."""

    points: tuple[tuple[float, float], ...]
    """(seconds, requests per second), the first at 0; the last one ends the traffic."""

    def __post_init__(self) -> None:
        times, rates = [t for t, _ in self.points], [r for _, r in self.points]
        sound = all(math.isfinite(value) and value >= 0 for value in (*times, *rates))
        if len(times) < 2 or not sound or times[0] != 0 or times != sorted(times) or times[-1] <= 0:
            raise ValueError(
                "traffic: points of a rate must be [seconds, rate] from 0 upwards, in order of time, two at least"
            )
        if not 0 < self.expected <= _MOST_REQUESTS:
            raise ValueError(f"traffic: {self.expected:.0f} requests are not between 1 and {_MOST_REQUESTS}")

    @classmethod
    def constant(cls, rate: float, duration_s: float) -> Rates:
        return cls(((0.0, rate), (duration_s, rate)))

    @classmethod
    def steps(cls, steps: list[tuple[float, float]]) -> Rates:
        """From (seconds, rate) each."""
        points: list[tuple[float, float]] = []
        at = 0.0
        for seconds, rate in steps:
            points += [(at, rate), (at + seconds, rate)]
            at += seconds
        return cls(tuple(points))

    @classmethod
    def day(cls, rates: list[float], day_s: float, duration_s: float) -> Rates:
        """One rate for each equal part of a day, straight lines between their middles, day after day."""
        part = day_s / len(rates)
        middles = (np.arange(-1, math.ceil(duration_s / part) + 2) + 0.5) * part
        values = np.array(rates)[np.arange(-1, middles.size - 1) % len(rates)]
        inside = middles[(middles > 0) & (middles < duration_s)]
        times = [0.0, *inside.tolist(), duration_s]
        return cls(tuple((t, float(np.interp(t, middles, values))) for t in times))

    @classmethod
    def bursts(cls, rates: list[float], dwell_s: list[float], duration_s: float, seed: int) -> Rates:
        """Markov-modulated: each rate lasts for an exponential time of that mean, then another one follows."""
        rng = np.random.default_rng((seed, 5))
        steps: list[tuple[float, float]] = []
        at, state = 0.0, 0
        while at < duration_s:
            seconds = min(duration_s - at, max(1e-3, float(rng.exponential(dwell_s[state]))))
            steps.append((seconds, rates[state]))
            at += seconds
            state = (state + 1 + int(rng.integers(0, len(rates) - 1))) % len(rates) if len(rates) > 1 else 0
        return cls.steps(steps)

    @property
    def duration_s(self) -> float:
        return self.points[-1][0]

    @property
    def peak(self) -> float:
        return max(rate for _, rate in self.points)

    @property
    def expected(self) -> float:
        """Requests in all."""
        return float(self._reached()[-1])

    def _reached(self) -> Floats:
        times, rates = np.array(self.points).T
        return np.concatenate(([0.0], np.cumsum(np.diff(times) * (rates[1:] + rates[:-1]) / 2)))

    def when(self, reached: Floats) -> Floats:
        """The times at which so many requests should have come: the inverse of the integral of the rate."""
        times, rates = np.array(self.points).T
        sums = self._reached()
        piece = np.clip(np.searchsorted(sums, reached, side="right") - 1, 0, times.size - 2)
        rest, first = reached - sums[piece], rates[piece]
        span = times[piece + 1] - times[piece]
        slope = np.divide(rates[piece + 1] - first, span, out=np.zeros_like(span), where=span > 0)
        root = first + np.sqrt(np.maximum(0.0, first**2 + 2 * slope * rest))
        into = np.divide(2 * rest, root, out=np.zeros_like(root), where=root > 0)
        found: Floats = np.minimum(times[piece] + into, times[piece + 1])
        return found


def arrivals_of(rates: Rates, kind: Arrivals, rng: np.random.Generator, burstiness: float = 1.0) -> Floats:
    """(n,) seconds. ``burstiness``: the coefficient of variation of gamma gaps; 1 is Poisson, above it clusters.

    Gaps are drawn at rate 1 and stretched by the rate over time, so that every process follows every curve.
    """
    total = rates.expected
    if kind == "constant":
        reached = np.arange(math.ceil(total - 1e-9), dtype=np.float64)
    elif kind == "poisson":
        # Given their number, the arrivals of a Poisson process lie uniformly over the time.
        reached = np.sort(rng.uniform(0.0, total, rng.poisson(total)))
    else:
        reached = np.empty(0)
        while reached.size == 0 or reached[-1] < total:
            gaps = rng.gamma(burstiness**-2, burstiness**2, math.ceil(total + 10 * burstiness * math.sqrt(total) + 10))
            reached = np.concatenate((reached, (reached[-1] if reached.size else 0.0) + np.cumsum(gaps)))
        reached = reached[reached < total]
    return rates.when(reached)


@dataclass(frozen=True, slots=True)
class TrafficPlan:
    """Open-loop traffic: requests are due at their times, whether or not earlier ones were answered."""

    rate: float
    """Requests per second."""
    duration_s: float
    prompt_tokens: Lengths
    output_tokens: Lengths
    arrivals: Arrivals = "poisson"
    seed: int = 0
    model: str = ""
    api: Api = "chat"
    exact_output: bool = False
    """Ask for exactly that many tokens (``ignore_eos``): servers other than vLLM may refuse it."""
    timeout_s: float = 120.0
    """Of one request, from its sending."""
    max_in_flight: int = 1000
    """Requests that are due beyond this wait until another one ended. Their latencies count from when they were due."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate > 0 and math.isfinite(self.duration_s) and self.duration_s > 0):
            raise ValueError("traffic: rate and duration_s must be above 0")
        if self.rate * self.duration_s > _MOST_REQUESTS:
            raise ValueError(f"traffic: {self.rate * self.duration_s:.0f} requests are more than {_MOST_REQUESTS}")
        if self.max_in_flight < 1 or self.timeout_s <= 0:
            raise ValueError("traffic: max_in_flight and timeout_s must be above 0")

    def workload(self) -> Workload:
        """The same for the same seed."""
        rng = np.random.default_rng(self.seed)
        if self.arrivals == "constant":
            arrival_s = np.arange(math.ceil(self.rate * self.duration_s)) / self.rate
        else:
            arrival_s = arrivals_of(Rates.constant(self.rate, self.duration_s), self.arrivals, rng)
        n = arrival_s.shape[0]
        prompts, outputs = self.prompt_tokens.draw(rng, n), self.output_tokens.draw(rng, n)
        return Workload(arrival_s, prompts, outputs, np.zeros(n, np.int64))
