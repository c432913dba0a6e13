"""The world that the policies are compared in: what it counts, and that each policy is really played in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analyzers.whatif.kernel import KernelMachine
from analyzers.whatif.scaling import ScalingInput, ScalingPolicy
from benchmarks import policies, scenarios, world
from benchmarks.oracle import LEAST_WITHIN, oracle
from benchmarks.telemetry import FleetTelemetry
from benchmarks.world import Scenario
from collectors.window import Span
from collectors.workload import Floats

HOUR = 3600.0


def scenario(rate: Callable[[Floats], Floats], top: float, hours: float, replicas: int = 2) -> Scenario:
    work = world.workload(world.arrivals(rate, top, hours * HOUR, seed=5), scenarios.CHAT, seed=6)
    return Scenario("small", work, hours * HOUR, scenarios.ENGINE, ttft_s=1.0, replicas=replicas, most=4)


def steady(rate: float, hours: float, replicas: int = 2) -> Scenario:
    return scenario(lambda at: np.full(at.shape, rate), rate, hours, replicas)


def step(hours: float) -> Scenario:
    """4 requests a second, and 14 in the middle third: one replica, two, and one again."""
    third = hours * HOUR / 3
    return scenario(lambda at: np.where((at > third) & (at < 2 * third), 14.0, 4.0), 14.0, hours)


class _Watch:
    """Keeps the count, and reads the telemetry once a minute."""

    interval_s = 15.0

    def __init__(self, machine: KernelMachine, of: Scenario) -> None:
        self.telemetry = FleetTelemetry(machine, of.work)
        self.spans: list[Span] = []

    def __call__(self, seen: ScalingInput, state: None) -> tuple[int, None]:
        self.telemetry.look(seen.at_s, seen.kv_usage)
        if seen.at_s % 60 == 0:
            self.spans.append(self.telemetry.span("chat", 0.0))
        return seen.ready + seen.starting, None


def test_telemetry_tells_each_request_once_and_none_before_its_time() -> None:
    small = steady(12.0, 0.25)
    watches: list[_Watch] = []

    def make(machine: KernelMachine) -> ScalingPolicy:
        watches.append(_Watch(machine, small))
        return watches[-1]

    played = world.play(small, make)
    (watch,), n = watches, len(small.work)
    watch.telemetry.look(small.duration_s + 120.0, None)
    spans = [*watch.spans, watch.telemetry.span("chat", 0.0)]
    assert sum(s.counts["requests"] for s in spans) == n
    assert sum(s.counts["prompt_tokens"] for s in spans) == small.work.prompt_tokens.sum()
    assert sum(s.counts["output_tokens"] for s in spans) == pytest.approx(small.work.output_tokens.sum())
    assert sum(s.sketches["ttft_s"].total for s in spans) == pytest.approx(played.ttft_s.sum())
    for span in spans:
        came = small.work.arrival_s + played.ttft_s
        assert span.sketches["ttft_s"].count == np.count_nonzero((came > span.start) & (came <= span.end))
    assert played.replica_s == pytest.approx(2 * small.duration_s)


def test_a_shrink_is_wrong_where_the_count_before_would_have_held() -> None:
    """Two replicas carry 14 requests a second, and one does not; that one does not carry 30 either way is no shrink's fault."""
    for rate, hours, wrong in ((14.0, 1.0, 1), (4.0, 1.0, 0), (30.0, 0.5, 0)):
        small = steady(rate, hours)
        played = world.play_schedule(small, [(600.0, 1)])
        assert world.score(small, "", played)["wrong_shrinks"] == wrong, f"{rate} requests/s"
        assert (played.ready[-1][1], len(played.actions)) == (1, 1)


def test_a_cold_start_and_emptying_are_paid_for() -> None:
    small = steady(4.0, 1.0)
    played = world.play_schedule(small, [(1200.0, 3), (2400.0, 2)])
    assert played.ready[:2] == ((0.0, 2), (1200.0 + small.cold_start_s, 3))
    assert played.replica_s == pytest.approx(2 * HOUR + 1200.0, abs=10.0)


def test_the_oracle_keeps_its_share_and_is_never_dearer_than_the_static_peak() -> None:
    small = step(3.0)
    found = oracle(small)
    assert world.in_time(small, found).mean() >= LEAST_WITHIN
    peak = policies.POLICIES["static-peak"](small)
    assert not world.score(small, "", peak)["breach_hours"]
    assert found.replica_s < 0.85 * peak.replica_s, "it has one replica less for two thirds of the time"
    hopeless = replace(steady(14.0, 0.5), most=1, replicas=1)
    assert oracle(hopeless).ready == ((0.0, 1),)


def test_every_policy_gives_a_row_and_flyball_is_the_real_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far too little for its load at first: the governor sees it in its windows, proposes, is approved, and the fleet grows."""
    monkeypatch.setitem(
        policies.SCENARIOS, "small", lambda _quick: replace(steady(14.0, 0.75, replicas=1), decide_s=900.0)
    )
    output, times = tmp_path / "rows.json", tmp_path / "times.csv"
    policies.main(["--trace", "small", "--quick", "--output", str(output), "--timeline", str(times)])
    rows = {row["policy"]: row for row in json.loads(output.read_text())["rows"]}
    assert list(rows) == list(policies.POLICIES)
    for row in rows.values():
        assert set(row) >= {
            "scenario",
            "cost_usd",
            "within_objective",
            "ttft_p95_s",
            "itl_p95_s",
            "changes",
            "wrong_shrinks",
        }
        assert 0.0 <= row["within_objective"] <= 1.0
        assert row["cost_usd"] > 0
    assert rows["flyball"]["changes"] >= 1, "it grew"
    assert 0.75 < rows["flyball"]["cost_usd"] < rows["static-peak"]["cost_usd"]
    assert len(times.read_text().splitlines()) == 1 + 9 * len(rows)
