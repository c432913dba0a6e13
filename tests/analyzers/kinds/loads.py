"""Random workloads for the kinds: bursts, gaps and ties in time, small numbers so that limits bind."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from collectors.workload import Floats, Workload


def workload(*rows: tuple[float, int, int]) -> Workload:
    """(arrival, prompt tokens, output tokens) of each."""
    arrival, prompt, output = zip(*rows, strict=True)
    zeros = np.zeros(len(rows), np.int64)
    return Workload(np.array(arrival, float), np.array(prompt, np.int64), np.array(output, np.int64), zeros)


def steady(n: int, per_second: float, prompt: int = 100, output: int = 20) -> Workload:
    """Poisson arrivals, all of one length."""
    gaps = np.random.default_rng(7).exponential(1.0 / per_second, n)
    return Workload(np.cumsum(gaps), *(np.full(n, x, np.int64) for x in (prompt, output, 0)))


@st.composite
def workloads(draw: st.DrawFn, step: float) -> Workload:
    """Arrivals at multiples of ``step``, many of them at one instant."""
    n = draw(st.integers(1, 30))
    gaps = draw(st.lists(st.sampled_from((0, 0, 1, 1, 2, 5, 60)), min_size=n, max_size=n))
    prompt = draw(st.lists(st.integers(1, 40), min_size=n, max_size=n))
    output = draw(st.lists(st.integers(0, 20), min_size=n, max_size=n))
    prefix = [p // 3 for p in prompt]
    columns = (np.array(x, np.int64) for x in (prompt, output, prefix))
    return Workload(np.cumsum(np.array(gaps, float)) * step, *columns)


def requests_per_s(replay: Callable[[], Any], requests: int) -> float:
    """The best of three, after one that compiles."""
    replay()
    took = []
    for _ in range(3):
        begun = time.perf_counter()
        replay()
        took.append(time.perf_counter() - begun)
    return requests / min(took)


def seconds(values: Floats) -> list[float]:
    return [float(v) for v in values]
