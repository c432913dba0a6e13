"""One simulated endpoint: the hidden truth of its engine, the traffic that it gets, and the telemetry that comes of both.

Requests are a seeded Poisson process under a day curve. From each moment at which the shape changes, all that are still to come are
replayed on the new shape; what is in flight then is begun again on it. Telemetry is what vLLM would expose: counters and histograms
that only grow until a restart, and gauges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from actuators.shape import Shape
from analyzers.whatif.engine import replay
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from collectors.window import Histogram, Reading
from collectors.workload import Workload

Floats = NDArray[np.float64]

#: vLLM's own bounds for times, shortened by those that nothing here reaches.
EDGES = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0,
)  # fmt: skip
LENGTHS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
_TIMES = ("ttft_s", "itl_s", "e2e_s", "queue_s")
_KV_TOKENS = 40_000
ENGINE = EngineModel(IterationCost(0.025, 0.0001, 2e-7, 0.0001), EngineLimits(16, 2048, _KV_TOKENS))


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests per second at a moment: ``rate`` on average, with a day's wave of relative height ``swing``."""

    rate: float
    swing: float = 0.0
    prompt: float = 180.0
    output: float = 40.0

    def at(self, moment: Floats) -> Floats:
        wave: Floats = 1.0 + self.swing * np.sin(2 * math.pi * moment / 86_400.0)
        return self.rate * wave


@dataclass(slots=True)
class _Course:
    """What one shape makes of the requests that arrive from ``since`` on. Times are absolute; sorted where the name says so."""

    since: float
    arrivals: Floats
    admitted: Floats
    ends: Floats
    """(n,) sorted; the columns of ``values`` are in this order."""
    values: dict[str, Floats]
    prompt: Floats
    output: Floats
    taken: int = 0
    """How many ends the counters hold already."""


@dataclass(slots=True)
class SimulatedEndpoint:
    """The world's side of one endpoint. Times are Unix seconds of the virtual clock."""

    shape: Shape
    traffic: Traffic
    until: float
    """No request arrives after this."""
    engine: EngineModel = ENGINE
    slowdown: Callable[[Shape], float] = lambda _shape: 1.0
    """The truth's own secret: how much slower than the engine it is on a shape."""
    error_share: Callable[[Shape], float] = lambda _shape: 0.0
    noise: float = 0.03
    seed: int = 1
    _course: _Course | None = None
    _rng: np.random.Generator = field(init=False)
    _started_at: float = 0.0
    _counters: dict[str, float] = field(default_factory=dict)
    _bins: dict[str, tuple[Floats, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def become(self, shape: Shape, now: float) -> None:
        """Serve on another shape from now on. An engine that restarts counts from 0 again."""
        self._advance(now)
        restarts = dict(shape.engine) != dict(self.shape.engine) or shape.size != self.shape.size
        self.shape = shape
        if restarts or self._course is None:
            self._started_at, self._counters, self._bins = now, {}, {}
        self._course = self._play(now)

    def reading(self, target: str, now: float) -> Reading:
        """All that the server says at this moment."""
        if self._course is None:
            self.become(self.shape, now)
        self._advance(now)
        course = self._course
        assert course is not None
        running = float(np.searchsorted(course.admitted, now, "right") - np.searchsorted(course.ends, now, "right"))
        waiting = float(np.searchsorted(course.arrivals, now, "right") - np.searchsorted(course.admitted, now, "right"))
        held = running * (self.traffic.prompt + self.traffic.output / 2) / (_KV_TOKENS * (self.shape.replicas or 1))
        empty: dict[str, tuple[Floats, float]] = {
            name: (np.zeros(len(EDGES if name in _TIMES else LENGTHS) + 1), 0.0)
            for name in (*_TIMES, "prompt_length", "output_length")
        }
        return Reading(
            target=target,
            at=now,
            started_at=self._started_at,
            counters={"requests": 0.0, "errors": 0.0, "prompt_tokens": 0.0, "output_tokens": 0.0} | self._counters,
            histograms={
                name: Histogram(EDGES if name in _TIMES else LENGTHS, tuple(np.cumsum(counts).tolist()), total)
                for name, (counts, total) in (empty | self._bins).items()
            },
            gauges={"running": running, "waiting": waiting, "kv_usage": min(1.0, held)},
            facts={"model": "sim-8b", "version": "0.11.0"},
        )

    def _play(self, now: float) -> _Course:
        """Draw what arrives from now on, and replay it on the shape."""
        span = max(1.0, self.until - now)
        top = self.traffic.rate * (1 + abs(self.traffic.swing))
        drawn = now + np.sort(self._rng.random(int(self._rng.poisson(top * span)))) * span
        arrivals = drawn[self._rng.random(drawn.size) * top < self.traffic.at(drawn)]
        if not arrivals.size:
            empty = np.zeros(0)
            return _Course(now, empty, empty, empty, dict.fromkeys(_TIMES, empty), empty, empty)
        n = arrivals.size
        prompt = np.clip(self._rng.lognormal(math.log(self.traffic.prompt), 0.4, n), 1, 1500).astype(np.int64)
        output = np.clip(self._rng.lognormal(math.log(self.traffic.output), 0.4, n), 2, 400).astype(np.int64)
        work = Workload(arrivals - now, prompt, output, np.zeros(n, np.int64))
        seen = replay(work, self._truth(), replicas=max(1, self.shape.replicas or 1)).per_request
        assert seen is not None
        shaken = 1.0 + self.noise * self._rng.standard_normal(n).clip(-3, 3)
        ttft, e2e = seen.ttft_s * shaken, seen.e2e_s * shaken
        ends = arrivals + e2e
        order = np.argsort(ends, kind="stable")
        values = {"ttft_s": ttft, "e2e_s": e2e, "queue_s": seen.queue_s, "itl_s": (e2e - ttft) / (output - 1)}
        return _Course(
            since=now,
            arrivals=arrivals,
            admitted=np.sort(arrivals + seen.queue_s),
            ends=ends[order],
            values={name: v[order] for name, v in values.items()},
            prompt=prompt[order].astype(np.float64),
            output=output[order].astype(np.float64),
        )

    def _truth(self) -> EngineModel:
        """The engine as it really is on this shape."""
        i, slow = self.engine.iteration, self.slowdown(self.shape)
        slower = i.scaled(slow)
        limits = {k: int(v) for k, v in self.shape.engine.items() if k in ("max_num_seqs", "max_num_batched_tokens")}
        return EngineModel(slower, self.engine.limits).with_limits(**limits)

    def _advance(self, now: float) -> None:
        """Count what ended since the last look."""
        course = self._course
        if course is None:
            return
        first, last = course.taken, int(np.searchsorted(course.ends, now, "right"))
        if last <= first:
            return
        course.taken = last
        prompt, output = course.prompt[first:last], course.output[first:last]
        self._count("requests", last - first)
        self._count("errors", float(np.count_nonzero(self._rng.random(last - first) < self.error_share(self.shape))))
        self._count("prompt_tokens", float(prompt.sum()))
        self._count("output_tokens", float(output.sum()))
        for name in _TIMES:
            self._fill(name, EDGES, course.values[name][first:last], output - 1 if name == "itl_s" else None)
        self._fill("prompt_length", LENGTHS, prompt, None)
        self._fill("output_length", LENGTHS, output, None)

    def _count(self, name: str, more: float) -> None:
        self._counters[name] = self._counters.get(name, 0.0) + more

    def _fill(self, name: str, edges: tuple[float, ...], values: Floats, weights: Floats | None) -> None:
        each = np.ones(values.size) if weights is None else weights
        counts = np.bincount(np.searchsorted(edges, values), weights=each, minlength=len(edges) + 1)
        before, total = self._bins.get(name, (np.zeros(len(edges) + 1), 0.0))
        self._bins[name] = (before + counts, total + float((values * each).sum()))
