"""Traffic to be sent: how often, how long. Turns into a Workload by a seed; sends nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from collectors.completion import Api
from collectors.workload import Ints, Workload

_LONGEST = 1_000_000
_MOST_REQUESTS = 5_000_000


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of lengths in tokens, written as ``fixed:100``, ``uniform:50:200`` or ``lognormal:MEAN:CV``."""

    kind: Literal["fixed", "uniform", "lognormal"]
    first: float
    """The length, the shortest, or the mean."""
    second: float = 0.0
    """The longest, or the coefficient of variation (standard deviation over mean)."""

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """Raises ValueError, with what is expected, on anything else."""
        kind, *numbers = text.split(":")
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
        raise ValueError(
            f"lengths {text!r}: expected fixed:100, uniform:50:200 or lognormal:MEAN:CV, in tokens from 1 up"
        )

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
class TrafficPlan:
    """Open-loop traffic: requests are due at their times, whether or not earlier ones were answered."""

    rate: float
    """Requests per second."""
    duration_s: float
    prompt_tokens: Lengths
    output_tokens: Lengths
    arrivals: Literal["poisson", "constant"] = "poisson"
    seed: int = 0
    model: str = ""
    api: Api = "chat"
    exact_output: bool = False
    """Ask for exactly that many tokens (``ignore_eos``): servers other than vLLM may refuse it."""
    timeout_s: float = 120.0
    """Of one request, from its sending."""
    max_in_flight: int = 1000
    """Requests that are due beyond this are not sent, and counted as shed: the client's limit, not the server's."""

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
            # Given their number, the arrivals of a Poisson process lie uniformly over the time.
            arrival_s = np.sort(rng.uniform(0.0, self.duration_s, rng.poisson(self.rate * self.duration_s)))
        n = arrival_s.shape[0]
        prompts, outputs = self.prompt_tokens.draw(rng, n), self.output_tokens.draw(rng, n)
        return Workload(arrival_s, prompts, outputs, np.zeros(n, np.int64))
