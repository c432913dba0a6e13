"""Serverless: request by request as a plain reading of the rules has it, and the rules themselves by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from analyzers.kinds.serverless.platform import Serverless, replay, run
from analyzers.kinds.service import Speed
from collectors.workload import Workload
from tests.analyzers.kinds.loads import requests_per_s, seconds, steady, workload, workloads

WHOLE = Speed(0.5, 0.25)


@dataclass
class Instance:
    """One slot in the list of all that can be."""

    state: str = "off"
    until: float = math.inf
    """When it is ready, or goes for being idle."""
    started: float = 0.0
    busy: float = 0.0
    left: list[list[float]] = field(default_factory=list)
    """[request, seconds alone to its first token, seconds alone to its end] of each that runs."""


class Plain:
    """One event at a time, each found by looking at everything."""

    def __init__(self, load: Workload, platform: Serverless, first: np.ndarray, work: np.ndarray, packed: bool) -> None:
        n = len(load)
        self.load, self.platform, self.first, self.work, self.packed = load, platform, first, work, packed
        self.begun, self.answered, self.ended = [-1.0] * n, [-1.0] * n, [-1.0] * n
        self.all = [Instance("ready" if i < platform.least else "off") for i in range(platform.most)]
        self.queue: list[int] = []
        self.now, self.alive_s, self.cold_starts, self.last_end = 0.0, 0.0, 0, 0.0

    def slow(self, instance: Instance) -> float:
        k = len(instance.left)
        return 1 + self.platform.sigma * (k - 1) + self.platform.kappa * k * (k - 1)

    def next_of(self, instance: Instance) -> float:
        waits = [x for row in instance.left for x in row[1:] if x >= 0]
        return self.now + min(waits) * self.slow(instance) if waits else instance.until

    def alive(self) -> int:
        return sum(i.state != "off" for i in self.all)

    def move_to(self, now: float, acting: Instance | None) -> None:
        for instance in self.all:
            if instance.left:
                done = (now - self.now) / self.slow(instance)
                due = min(x for row in instance.left for x in row[1:] if x >= 0)
                instance.busy += now - self.now
                for row in instance.left:
                    # The one that acts does so now, whatever a division left over.
                    row[1:] = [x if x < 0 else x - (due if instance is acting else done) for x in row[1:]]
        self.now = now

    def admit(self, instance: Instance) -> None:
        while self.queue and instance.state == "ready" and len(instance.left) < self.platform.concurrency:
            i = self.queue.pop(0)
            self.begun[i] = self.now
            instance.left.append([i, float(self.first[i]), float(self.work[i])])

    def act(self, instance: Instance) -> None:
        if instance.state == "starting":
            instance.state, instance.until = "ready", self.now + self.platform.idle_s
        elif instance.left:
            due = min(x for row in instance.left for x in row[1:] if x >= 0)
            row = min((r for r in instance.left if due in r[1:]), key=lambda r: r[0])
            if row[1] == due:
                self.answered[int(row[0])] = self.now
                row[1] = -1.0
            else:
                self.ended[int(row[0])] = self.last_end = self.now
                instance.left.remove(row)
                instance.until = self.now + self.platform.idle_s
        elif self.alive() > self.platform.least:
            self.alive_s += self.now - instance.started
            instance.state, instance.until = "off", math.inf
        else:
            instance.until = math.inf
        self.admit(instance)

    def arrive(self, i: int) -> None:
        self.queue.append(i)
        free = [x for x in self.all if x.state == "ready" and len(x.left) < self.platform.concurrency]
        if free:
            self.admit(min(free, key=lambda x: -len(x.left) if self.packed else len(x.left)))
        starting = sum(x.state == "starting" for x in self.all) * self.platform.concurrency
        if len(self.queue) > starting and self.alive() < self.platform.most:
            new = next(x for x in self.all if x.state == "off")
            new.state, new.started, new.until = "starting", self.now, self.now + self.platform.cold_start_s
            self.cold_starts += 1

    def simulate(self) -> None:
        upcoming, n = 0, len(self.load)
        while upcoming < n or self.queue or any(x.left for x in self.all):
            instance = min(self.all, key=self.next_of)
            comes = self.load.arrival_s[upcoming] if upcoming < n else math.inf
            at = min(self.next_of(instance), comes)
            self.queue = [i for i in self.queue if at - self.load.arrival_s[i] <= self.platform.longest_wait_s]
            if comes < self.next_of(instance):
                self.move_to(at, None)
                self.arrive(upcoming)
                upcoming += 1
            elif at < math.inf:
                self.move_to(at, instance)
                self.act(instance)
        end = max(self.last_end, float(self.load.arrival_s[-1]))
        self.alive_s += sum(max(0.0, end - x.started) for x in self.all if x.state != "off")


def check(load: Workload, platform: Serverless, first: np.ndarray, work: np.ndarray, packed: bool) -> None:
    plain = Plain(load, platform, first, work, packed)
    plain.simulate()
    got = run(load, platform, first, work, packed=packed)
    done = np.array(plain.ended) >= 0
    for ours, theirs in (
        (got.each.queue_s, plain.begun),
        (got.each.ttft_s, plain.answered),
        (got.each.e2e_s, plain.ended),
    ):
        known = done & (np.array(theirs) >= 0)
        assert_allclose(ours, np.where(known, np.array(theirs) - load.arrival_s, -1.0), rtol=1e-9, atol=1e-9)
    assert got.completed == done.sum()
    assert got.gave_up == len(load) - got.completed
    assert got.gauges["cold_starts"] == plain.cold_starts
    assert got.used["instance_s"] == pytest.approx(plain.alive_s, rel=1e-9, abs=1e-9)
    assert got.used["busy_s"] == pytest.approx(sum(x.busy for x in plain.all), rel=1e-9, abs=1e-9)


platforms = st.builds(
    lambda most, least, **more: Serverless(most=most, least=min(most, least), **more),
    most=st.integers(1, 5),
    least=st.integers(0, 3),
    concurrency=st.integers(1, 4),
    cold_start_s=st.sampled_from((0.0, 0.75, 6.0)),
    idle_s=st.sampled_from((0.0, 2.0, 20.0)),
    longest_wait_s=st.sampled_from((0.0, 1.5, math.inf)),
)


@given(load=workloads(step=0.5), platform=platforms, packed=st.booleans(), streams=st.booleans())
def test_every_request_is_where_the_plain_reading_has_it(
    load: Workload, platform: Serverless, packed: bool, streams: bool
) -> None:
    """Quarters of seconds, so that what falls on one instant really does."""
    first = np.full(len(load), 0.5 if streams else -1.0)
    check(load, platform, first, 0.5 + 0.25 * np.maximum(load.output_tokens - 1, 0), packed)


@given(
    load=workloads(step=0.6180339887),
    platform=platforms,
    packed=st.booleans(),
    sigma=st.sampled_from((0.0, 0.137, 1.0)),
    kappa=st.sampled_from((0.0, 0.0519)),
)
def test_with_a_slowdown_too(load: Workload, platform: Serverless, packed: bool, sigma: float, kappa: float) -> None:
    """Lengths that are never alike: no two ends fall on one instant."""
    platform = Serverless(
        platform.concurrency, platform.cold_start_s, platform.most, platform.least, 2.0173, 1.513, sigma, kappa
    )
    work = 0.4711 + 0.25 * load.output_tokens + 0.001713 * np.arange(len(load)) ** 1.1
    check(load, platform, 0.319 * work, work, packed)


def test_a_cold_start_is_waited_for_and_a_warm_instance_is_not() -> None:
    load = workload((0.0, 1, 3), (0.5, 1, 3), (10.0, 1, 3), (100.0, 1, 3))
    got = replay(load, Serverless(concurrency=1, cold_start_s=4.0, most=5, idle_s=60.0), WHOLE)
    # The second waits with the first; the instance started for it is ready when the first one's is still busy.
    assert seconds(got.each.queue_s) == [4.0, 4.0, 0.0, 4.0]
    assert seconds(got.each.ttft_s) == [4.5, 4.5, 0.5, 4.5]
    assert seconds(got.each.e2e_s) == [5.0, 5.0, 1.0, 5.0]
    assert got.gauges["cold_starts"] == 3
    assert got.gauges["instances_max"] == 2
    # The first: from 0 until 60 s idle after 11. The second: from 0.5 until 60 s after 5.5. The third: from 100 to the end at 105.
    assert got.used["instance_s"] == 71.0 + 65.0 + 5.0
    assert got.used["busy_s"] == got.used["request_s"] == 4.0
    assert got.tpot.mean == 0.25


def test_instances_kept_warm_answer_at_once_and_cost_all_the_time() -> None:
    load = workload((0.0, 1, 3), (1000.0, 1, 3))
    got = replay(load, Serverless(concurrency=1, cold_start_s=4.0, most=5, least=1, idle_s=60.0), WHOLE)
    assert seconds(got.each.queue_s) == [0.0, 0.0]
    assert got.used["instance_s"] == got.simulated_s == 1001.0


def test_who_waits_too_long_gives_up() -> None:
    load = workload((0.0, 1, 3), (0.0, 1, 3), (0.0, 1, 3))
    got = replay(load, Serverless(concurrency=1, cold_start_s=0.0, most=1, longest_wait_s=1.5), WHOLE)
    assert seconds(got.each.queue_s) == [0.0, 1.0, -1.0]
    assert (got.completed, got.gave_up) == (2, 1)


def test_too_few_instances_saturate() -> None:
    load = steady(4000, 10.0)  # 10 a second of 0.5 + 19 x 0.25 = 5.25 s: 52.5 slots
    assert replay(load, Serverless(concurrency=5, cold_start_s=5.0, most=8), WHOLE).saturated
    assert not replay(load, Serverless(concurrency=5, cold_start_s=5.0, most=16), WHOLE).saturated


@pytest.mark.parametrize(
    "bad",
    [
        {"concurrency": 0},
        {"most": 0},
        {"least": 9},
        {"cold_start_s": -1.0},
        {"sigma": math.nan},
        {"cold_start_s": math.inf},
    ],
)
def test_impossible_platforms_are_refused(bad: dict[str, float]) -> None:
    usual: dict[str, float] = {"concurrency": 1, "cold_start_s": 1.0, "most": 4}
    with pytest.raises(ValueError, match="serverless"):
        Serverless(**usual | bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [1, 200])
def test_a_hundred_thousand_requests_a_second(most: int) -> None:
    load = steady(200_000, 10.0)
    platform = Serverless(concurrency=80 if most == 1 else 1, cold_start_s=2.0, most=most, sigma=0.01)
    assert requests_per_s(lambda: replay(load, platform, WHOLE), len(load)) > 100_000
