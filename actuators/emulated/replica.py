"""One emulated replica in real time: the scheduler's iterations, each as long as the timing says."""

from __future__ import annotations

import asyncio
import math
import random
import time
from dataclasses import dataclass

from actuators.emulated import metrics
from actuators.emulated.engine import Limits, Scheduler, Sequence, Timing

STUCK_LOOK_S = 0.2
_MAX_LAG_S = 1.0
"""A machine that stood still for longer is not caught up with: its pause is a pause."""


@dataclass(slots=True)
class Faults:
    """What is wrong with the engine, on request: from the moment on that it is asked for."""

    fail: float = 0.0
    """The share of requests that are answered 500."""
    slow: float = 1.0
    """Every iteration takes so many times as long."""
    stick: bool = False
    """Nothing comes out any more, and nobody is told."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.fail <= 1.0 or not self.slow > 0.0:
            raise ValueError(f"fail ({self.fail:g}) must be a share, 0 to 1, and slow ({self.slow:g}) a factor above 0")

    def become(self, other: Faults) -> None:
        """All replicas that have these have the other's from now on."""
        self.fail, self.slow, self.stick = other.fail, other.slow, other.stick


@dataclass(frozen=True, slots=True)
class Config:
    """What makes two replicas interchangeable."""

    timing: Timing
    limits: Limits
    slowdown: float
    """1, or more where the emulation plays a noisy neighbour."""
    noise: float
    """Sigma of the lognormal factor of each iteration."""


class Replica:
    """Runs until it is closed, or until it is drained and idle."""

    def __init__(self, index: int, config: Config, seed: int, faults: Faults) -> None:
        self.index = index
        self.config = config
        self.iteration_s = 0.0
        """Of the last one."""
        self._faults = faults
        self.scheduler = Scheduler(config.limits)
        self.metrics = metrics.ReplicaMetrics(config.limits.max_model_len, time.time())
        self.turn = 0
        self._random = random.Random(f"{seed}/{index}")  # noqa: S311 - noise, not a secret
        self._arrival = asyncio.Event()
        self._draining = False
        self._task = asyncio.create_task(self._run())

    def submit(self, sequence: Sequence) -> None:
        self.scheduler.add(sequence)
        self._arrival.set()

    def abort(self, sequence: Sequence) -> None:
        """Its client has gone."""
        if not sequence.finished:
            self.scheduler.remove(sequence)
            self.metrics.finished["abort"] += 1
            self._arrival.set()

    def drain(self) -> asyncio.Task[None]:
        """Finish what is there, then end. The task that it gives is done then."""
        self._draining = True
        self._arrival.set()
        return self._task

    def close(self) -> None:
        self._task.cancel()

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _run(self) -> None:
        deadline = self.now()
        while True:
            if self.scheduler.idle:
                if self._draining:
                    return
                self._arrival.clear()
                await self._arrival.wait()
                deadline = self.now()
                continue
            while self._faults.stick:
                await asyncio.sleep(STUCK_LOOK_S)
                deadline = self.now()
            iteration = self.scheduler.begin()
            begun = self.now()
            for sequence in iteration.started:
                if sequence.scheduled is None:
                    sequence.scheduled = begun
            # Deadlines add up, so that a late wake-up is not carried on to the iterations after it.
            self.iteration_s = iteration.seconds(self.config.timing) * self._factor()
            deadline = max(deadline, begun - _MAX_LAG_S) + self.iteration_s
            await asyncio.sleep(max(0.0, deadline - begun))
            self._count(self.scheduler.end(iteration, self.now()))
            self.metrics.preemptions += iteration.preempted
            self.metrics.histograms[metrics.STEP].observe(iteration.prefill + len(iteration.decoding))

    def _factor(self) -> float:
        sigma = self.config.noise
        noise = math.exp(self._random.gauss(-sigma * sigma / 2, sigma)) if sigma else 1.0
        return self.config.slowdown * self._faults.slow * noise

    def token(self, sequence: Sequence, now: float) -> None:
        """Count a token that came out."""
        self.metrics.generation_tokens += 1
        if sequence.first_token is None:
            sequence.first_token = now
            self.metrics.prompt_tokens += sequence.prompt
            self.metrics.cached_prompt_tokens += sequence.cached
            self.metrics.ttft.observe(now - sequence.arrived)
        else:
            self.metrics.itl.observe(now - sequence.last_token)
        sequence.last_token = now

    def _count(self, finished: list[Sequence]) -> None:
        for sequence in finished:
            first = sequence.first_token if sequence.first_token is not None else sequence.last_token
            scheduled = sequence.scheduled if sequence.scheduled is not None else sequence.arrived
            reason = "length" if sequence.output_limited else "stop"
            sizes = (sequence.prompt, sequence.produced)
            self.metrics.finish(reason, sequence.arrived, scheduled, first, sequence.last_token, sizes)
