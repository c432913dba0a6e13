"""What the policies are compared on: traffic, with the truth that serves it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from benchmarks.world import Scenario, arrivals, workload
from collectors.workload import Floats

DAY = 86_400.0
#: A small model on a small GPU: about nine requests a second of 180 + 40 tokens, the first token within a second.
ENGINE = EngineModel(IterationCost(0.025, 0.0001, 2e-7, 0.0001), EngineLimits(16, 2048, 40_000))
#: Lognormal: median, sigma, most.
CHAT = {"prompt": (180.0, 0.4, 1500), "output": (40.0, 0.4, 400)}


def day_curve(quick: bool) -> Scenario:
    """16 requests a second on average, from 3.2 to 28.8 over each day, which begins on the way up at 6:00."""

    def rate(at: Floats) -> Floats:
        wave: Floats = 16.0 * (1.0 + 0.8 * np.sin(2 * math.pi * at / DAY))
        return wave

    def days(n: int, seed: int) -> Scenario:
        work = workload(arrivals(rate, 28.8, n * DAY, seed), CHAT, seed + 1)
        return Scenario("day-curve", work, n * DAY, ENGINE, ttft_s=1.0, decide_s=900.0 if quick else 300.0)

    return replace(days(3 if quick else 7, seed=1), earlier=days(1, seed=101))


#: By name; each is told whether it must be quick.
SCENARIOS: dict[str, Callable[[bool], Scenario]] = {"day-curve": day_curve}
