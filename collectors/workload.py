"""Traffic, described: what is replayed on a candidate, and what a simulator sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests, one entry each. All arrays have the same length ``n``.

    arrival_s: (n,) seconds from the start of the workload, ascending, >= 0.
    prompt_tokens: (n,) >= 1.      output_tokens: (n,) >= 0.
    prefix_tokens: (n,) of the prompt, expected to be found in the prefix cache; 0 <= prefix < prompt.
    session: (n,) >= 0, whose prefix that is: a replica holds it only after it served this session. None: every replica holds it.
    """

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    prefix_tokens: Ints
    session: Ints | None = None

    def __post_init__(self) -> None:
        n = self.arrival_s.shape[0]
        for name in ("prompt_tokens", "output_tokens", "prefix_tokens"):
            if getattr(self, name).shape != (n,):
                raise ValueError(f"workload: {name} has {getattr(self, name).shape[0]} entries, arrival_s has {n}")
        if self.session is not None and self.session.shape != (n,):
            raise ValueError(f"workload: session has {self.session.shape[0]} entries, arrival_s has {n}")
        if n == 0:
            return
        if self.session is not None and self.session.min() < 0:
            raise ValueError("workload: session must be 0 or more")
        if not np.all(np.isfinite(self.arrival_s)) or self.arrival_s[0] < 0 or np.any(np.diff(self.arrival_s) < 0):
            raise ValueError("workload: arrival_s must be finite, from 0 upwards and sorted")
        if self.prompt_tokens.min() < 1 or self.output_tokens.min() < 0:
            raise ValueError("workload: prompt_tokens must be at least 1 and output_tokens at least 0")
        if self.prefix_tokens.min() < 0 or np.any(self.prefix_tokens >= self.prompt_tokens):
            raise ValueError("workload: prefix_tokens must lie between 0 and prompt_tokens - 1")

    def __len__(self) -> int:
        return int(self.arrival_s.shape[0])

    def take(self, at: slice | NDArray[Any], *, arrival_s: Floats | None = None) -> Workload:
        """The requests at these places; with other arrivals where they are given."""
        session = None if self.session is None else self.session[at]
        arrival = self.arrival_s[at] if arrival_s is None else arrival_s
        return Workload(arrival, self.prompt_tokens[at], self.output_tokens[at], self.prefix_tokens[at], session)

    @property
    def duration_s(self) -> float:
        """From 0 to the last arrival."""
        return float(self.arrival_s[-1]) if len(self) else 0.0
