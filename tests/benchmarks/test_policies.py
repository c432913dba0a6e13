"""The world that the policies are compared in: what it counts, and that each policy is really played in it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzers.autoscaling import case
from analyzers.autoscaling.clairvoyant import LEAST_WITHIN, _cheapest, clairvoyant, clairvoyant_by_rules
from analyzers.whatif.kernel import KernelMachine
from analyzers.whatif.scaling import ScalingInput, ScalingPolicy
from benchmarks import autoscalers, peer_code, policies, policies_page, scenarios, simulators, world
from benchmarks.sizes import SizedMachine
from benchmarks.telemetry import FleetTelemetry
from benchmarks.world import Scenario
from collectors.window import Span
from collectors.workload import Floats

HOUR = 3600.0


def scenario(rate: Callable[[Floats], Floats], top: float, hours: float, replicas: int = 2) -> Scenario:
    work = scenarios.chat(rate, top)(hours / 24, 5)
    return Scenario("small", work, hours * HOUR, scenarios.SMALL, ttft_s=1.0, replicas=replicas, most=4)


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
        self.telemetry = FleetTelemetry(machine, of.work, of.errors)
        self.spans: list[Span] = []

    def __call__(self, seen: ScalingInput, state: None) -> tuple[int, None]:
        self.telemetry.look(seen.at_s, seen.kv_usage)
        if seen.at_s % 60 == 0:
            self.spans.append(self.telemetry.span("chat", 0.0))
        return seen.ready + seen.starting, None


def test_telemetry_tells_each_request_once_and_none_before_its_time() -> None:
    small = steady(12.0, 0.25)
    small.work.prompt_tokens[500] = 50_000  # more than the cache holds: refused, and missed by the objective
    watches: list[_Watch] = []

    def make(machine: KernelMachine) -> ScalingPolicy:
        watches.append(_Watch(machine, small))
        return watches[-1]

    played = case.play(small, make)
    (watch,), n = watches, len(small.work)
    watch.telemetry.look(small.duration_s + 120.0, None)
    spans = [*watch.spans, watch.telemetry.span("chat", 0.0)]
    served = np.arange(n) != 500
    assert sum(s.counts["requests"] for s in spans) == n - 1
    assert sum(s.counts["prompt_tokens"] for s in spans) == small.work.prompt_tokens[served].sum()
    assert sum(s.counts["output_tokens"] for s in spans) == pytest.approx(small.work.output_tokens[served].sum())
    assert sum(s.sketches["ttft_s"].total for s in spans) == pytest.approx(played.ttft_s[served].sum())
    assert not case.in_time(small, played)[500]
    assert spans[-1].gauges["running"].last == spans[-1].gauges["waiting"].last == 0
    for span in spans:
        came = small.work.arrival_s + played.ttft_s
        assert span.sketches["ttft_s"].count == np.count_nonzero((came > span.start) & (came <= span.end))
    assert played.replica_s == pytest.approx(2 * small.duration_s)


def test_a_shrink_is_wrong_where_the_count_before_would_have_held() -> None:
    """Two replicas carry 14 requests a second, and one does not; that one does not carry 30 either way is no shrink's fault."""
    for rate, hours, wrong in ((14.0, 1.0, 1), (4.0, 1.0, 0), (30.0, 0.5, 0)):
        small = steady(rate, hours)
        played = case.play_schedule(small, [(600.0, 1)])
        assert world.score(small, "", played)[-1]["wrong_shrinks"] == wrong, f"{rate} requests/s"
        assert (played.ready[-1][1], len(played.actions)) == (1, 1)


def test_a_cold_start_and_emptying_are_paid_for() -> None:
    small = steady(4.0, 1.0)
    played = case.play_schedule(small, [(1200.0, 3), (2400.0, 2)])
    assert played.ready[:2] == ((0.0, 2), (1200.0 + small.cold_start_s, 3))
    assert played.replica_s == pytest.approx(2 * HOUR + 1200.0, abs=10.0)


def test_the_oracle_keeps_its_share_and_is_never_dearer_than_the_static_peak() -> None:
    small = step(3.0)
    found = clairvoyant_by_rules(small)
    assert case.in_time(small, found).mean() >= LEAST_WITHIN
    peak = policies.OWN["static-peak"](small)
    assert not world.score(small, "", peak)[-1]["breach_hours"]
    assert found.replica_s < 0.85 * peak.replica_s, "it has one replica less for two thirds of the time"
    assert not case.breach_hours(small, case.in_time(small, found))
    free = clairvoyant(small)
    assert case.in_time(small, free).mean() >= LEAST_WITHIN
    assert free.replica_s <= found.replica_s + 1.0, "whoever keeps fewer rules pays no more"
    hopeless = replace(steady(14.0, 0.5), most=1, replicas=1)
    for found_by in (clairvoyant_by_rules, clairvoyant):
        assert found_by(hopeless).ready == ((0.0, 1),)


def test_the_oracle_by_rules_makes_two_changes_a_day_at_most_and_each_day_anew() -> None:
    counts = np.arange(9)
    needed = np.tile(np.repeat([1, 3, 2, 4], 24), 3)  # three days of four levels, of six hours each
    late = np.where(counts[None, :] >= needed[:, None], 0.0, np.inf)
    late[:, 0] = np.inf
    small = replace(steady(1.0, 0.5), replicas=4)
    free = _cheapest(small, late, 900.0, 1.0, None)
    assert free == needed.tolist()
    bound = np.array(_cheapest(small, late, 900.0, 1.0, 2))
    assert np.all(bound >= needed)
    days = bound.reshape(3, 96)
    before = np.concatenate([[4], days[:-1, -1]])
    changes = [int(np.count_nonzero(np.diff([b, *day]))) for b, day in zip(before, days, strict=True)]
    assert max(changes) <= 2
    assert bound.sum() < 4 * needed.size  # and yet it saves


def test_the_time_to_learn_is_scored_apart() -> None:
    small = replace(steady(4.0, 2.0), learning_s=HOUR)
    played = case.play_schedule(small, [(1200.0, 3), (5400.0, 2)])
    first, rest = world.score(small, "x", played)
    assert first["scenario"] == f"{small.name}/first"
    assert rest["scenario"] == small.name
    assert (first["changes"], rest["changes"]) == (1, 1)
    assert first["cost_usd"] + rest["cost_usd"] == pytest.approx(played.replica_s / HOUR, abs=0.02)


def test_every_policy_gives_a_row_and_flyball_is_the_real_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far too little for its load at first: the governor sees it in its windows, proposes, is approved, and the fleet grows."""
    monkeypatch.setitem(
        policies.SCENARIOS, "small", lambda _quick: replace(steady(14.0, 0.75, replicas=1), decide_s=900.0)
    )
    output, times = tmp_path / "rows.json", tmp_path / "times.csv"
    policies.main(["--trace", "small", "--quick", "--output", str(output), "--timeline", str(times)])
    rows = {row["policy"]: row for row in json.loads(output.read_text())["rows"]}
    own_code = {"ray-serve", "skyserve"}
    assert list(rows) == [name for name in policies.policies(tuned=False) if name not in own_code], (
        "they are not installed"
    )
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


@pytest.mark.parametrize(
    ("value", "index", "end"),
    [(0.005, 0, 0.01), (0.01, 1, 0.0205), (0.1, 8, 0.110266), (1.0, 36, 1.016281), (10.0, 80, 10.207903)],
)
def test_the_percentile_recommenders_buckets_are_vpas(value: float, index: int, end: float) -> None:
    assert autoscalers.bucket(value, 0.01) == index
    assert autoscalers.bucket_start(index + 1, 0.01) == pytest.approx(end, abs=1e-6)


@pytest.mark.parametrize(
    ("days", "upper", "lower"), [(1 / 24, 25.0, 0.953674), (1, 2.0, 0.998003), (8, 1.125, 0.99975)]
)
def test_its_bounds_narrow_as_vpas_do(days: float, upper: float, lower: float) -> None:
    assert autoscalers.confident(1.0, days, 1.0, 1.0) == pytest.approx(upper)
    assert autoscalers.confident(1.0, days, 0.001, -2.0) == pytest.approx(lower, abs=1e-6)


def test_a_search_takes_the_cheapest_setting_that_keeps_the_share() -> None:
    """An HPA with a target far too high is cheapest and late; far too low, it is dear. On other traffic of the same kind."""
    peer = replace(autoscalers.PEERS["hpa-concurrency"], tried=[{"target": t} for t in (1.0, 8.0, 200.0)])
    small, earlier = steady(14.0, 1.0), steady(14.0, 1.0, replicas=2)
    played, stated = autoscalers.tuned(peer, small, earlier, None)
    assert stated == {"target": 8.0}
    assert case.in_time(small, played).mean() >= LEAST_WITHIN


def _stand_in(folder: Path, name: str) -> None:
    """A folder as ``install`` leaves it, with this interpreter in the place of the peer's."""
    (folder / name / "bin").mkdir(parents=True)
    (folder / name / "bin" / "python").symlink_to(sys.executable)
    (folder / name / "installed.txt").write_text(peer_code.REQUIREMENTS[name])


RAY = """
import json, sys
stated = json.loads(sys.stdin.readline())
assert stated == {"least": 1, "most": 4, "target": 8.0}, stated
for line in sys.stdin:
    seen = json.loads(line)
    print(json.dumps({"wanted": 3 if seen["requests"] > 2 * seen["ready"] else seen["wanted"]}), flush=True)
"""


def test_a_peers_own_code_is_asked_in_its_own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(tmp_path, "ray_serve")
    (tmp_path / "run_ray_serve.py").write_text(RAY)
    monkeypatch.setattr(simulators, "_SCRIPTS", tmp_path)
    small = steady(14.0, 0.25)
    with peer_code.ray_serve(tmp_path, small, {"target": 8.0}) as policy:
        played = case.play(small, lambda _machine: policy)
    assert [(a.before, a.after) for a in played.actions] == [(2, 3)]
    with pytest.raises(simulators.NotRun, match="ray_serve ended"), peer_code.ray_serve(tmp_path, small, {}) as policy:
        case.play(small, lambda _machine: policy)
    with pytest.raises(simulators.NotRun, match="install-peers"):
        autoscalers.documented(autoscalers.PEERS["skyserve"], small, None)


def test_the_halves_of_a_trace_are_kept_apart_and_drawn_out(tmp_path: Path) -> None:
    """Two hours of which the second has other lengths, and no requests in its first half: nothing of it is in what peers are searched on."""
    arrival = np.concatenate((np.linspace(0, 3599, 600), np.linspace(5400, 7200, 900)))
    prompt = np.where(arrival < 3600, 100, 200)
    path = tmp_path / "trace.csv"
    rows = [f"{t},{p},10" for t, p in zip(arrival, prompt, strict=True)]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]))
    found = scenarios.of_file(path, quick=True)
    assert found.earlier is not None
    assert found.duration_s == pytest.approx(12 * HOUR, rel=0.01)
    assert set(found.earlier.work.prompt_tokens) == {100}
    assert set(found.work.prompt_tokens) == {200}
    assert found.work.arrival_s[0] > 5.9 * HOUR, "a gap is drawn out too"
    assert len(found.earlier.work) == pytest.approx(12 * 600, rel=0.1), "at the same rate, twelve times as long"


def test_lengths_and_rates_change_when_the_scenario_says() -> None:
    work = scenarios.regime()(3.0, 1)
    early, late = (work.output_tokens[m].mean() for m in (work.arrival_s < 1.5 * 86_400, work.arrival_s > 1.5 * 86_400))
    assert late == pytest.approx(2 * early, rel=0.02)
    arrival = scenarios.office()(5.0, 1).arrival_s
    per_hour = np.histogram(arrival, np.arange(0, 121) * HOUR)[0] / HOUR
    assert per_hour[4] == pytest.approx(24.0, rel=0.05), "10:00 on a Tuesday"
    assert per_hour[16] == pytest.approx(2.0, rel=0.1), "22:00"
    assert per_hour[4 * 24 + 4] == pytest.approx(2.0, rel=0.1), "10:00 on a Saturday"


def test_without_telemetry_an_autoscaler_keeps_the_count() -> None:
    dark = replace(steady(14.0, 0.5, replicas=1), missing=1.0)
    kept = autoscalers.documented(autoscalers.PEERS["hpa-concurrency"], dark, None)
    assert kept.actions == ()
    assert autoscalers.documented(autoscalers.PEERS["hpa-concurrency"], replace(dark, missing=0.0), None).actions


def test_noise_is_in_what_all_read_and_in_nothing_that_happens() -> None:
    """Requests that a window tells are off by as much as was said, and on average not; what came of them is the same."""
    true, noisy = steady(14.0, 4.0), replace(steady(14.0, 4.0), noise=0.2)
    told = {}
    for small in (true, noisy):
        watches: list[_Watch] = []

        def make(machine: KernelMachine, small: Scenario = small, watches: list[_Watch] = watches) -> ScalingPolicy:
            watches.append(_Watch(machine, small))
            return watches[-1]

        told[small.noise] = (case.play(small, make), watches[0].spans)
    (played, spans), (same, wrong) = told[0.0], told[0.2]
    assert np.array_equal(played.ttft_s, same.ttft_s)
    for name in ("requests", "output_tokens"):
        off = np.log([w.counts[name] / s.counts[name] for w, s in zip(wrong, spans, strict=True)])
        assert np.std(off) == pytest.approx(0.2, rel=0.2)
        assert abs(np.mean(off)) < 0.04
    first, second = (np.array([w.counts[n] for w in wrong]) for n in ("requests", "output_tokens"))
    assert np.std(np.log(first / second)) > 0.2, "each figure has an error of its own"
    seen = ScalingInput(60.0, 2, 0, 14.0, 10.0, 4.0, 0.99)
    read = noisy.read(seen)
    assert read == noisy.read(seen), "whoever reads at a moment reads the same"
    assert read.running != seen.running
    assert true.read(seen) == seen
    assert read.kv_usage is not None
    assert read.kv_usage <= 1.0


class _Resized:
    """Three of the other size, asked for after 20 minutes; the two there were go once those serve."""

    interval_s = 15.0

    def __init__(self, machine: SizedMachine) -> None:
        self.machine = machine

    def __call__(self, seen: ScalingInput, state: None) -> tuple[int, None]:
        if seen.at_s < 1200.0:
            return 2, None
        self.machine.wanted = 1
        return (5 if seen.ready == 2 else 3), None


def test_a_fleet_changes_its_size_without_a_request_late_and_pays_for_both_meanwhile() -> None:
    small = replace(steady(14.0, 1.0), sizes=scenarios.SIZES, most=6)
    alone = case.play_static(replace(small, sizes=()), 2)
    assert np.array_equal(case.play_static(small, 2).ttft_s, alone.ttft_s), "of one size alone it is the same machine"

    def make(machine: KernelMachine) -> ScalingPolicy:
        assert isinstance(machine, SizedMachine)
        return _Resized(machine)

    big = case.SizeChange(1200.0, scenarios.SIZES[1].model, 1.6)
    played = replace(case.play(small, make), sizes=(big,))
    assert [(a.before, a.after) for a in played.actions] == [(2, 5), (5, 3)]
    assert case.in_time(small, played).all()
    before, after = (played.ttft_s[m] for m in (small.work.arrival_s < 1200.0, small.work.arrival_s > 1400.0))
    assert np.median(after) < 0.6 * np.median(before), "two and a half times as fast"
    first = small.work.arrival_s < 1200.0
    assert np.allclose(played.ttft_s[first], alone.ttft_s[first])
    assert played.paid_s(1200.0) == pytest.approx(2 * 1200.0)
    assert played.paid_s(HOUR) == pytest.approx(2 * (1200.0 + small.cold_start_s) + 1.6 * 3 * 2400.0, abs=60.0)
    (row,) = world.score(small, "", played)
    assert row["cost_usd"] == round(played.paid_s(HOUR) / HOUR, 2)
    assert row["wrong_shrinks"] == 0


def test_the_oracle_takes_the_size_that_is_cheapest() -> None:
    """18 a second: one large machine (1.6) carries what takes two small ones."""
    both = replace(steady(18.0, 1.0), sizes=scenarios.SIZES)
    found = policies.OWN["oracle"](both)
    assert [size.price for size in found.sizes] == [1.6]
    assert found.paid_s(HOUR) < policies.OWN["oracle"](replace(both, sizes=())).paid_s(HOUR)


def _row(scenario: str, policy: str, cost_usd: float, within: float) -> dict[str, Any]:
    return {
        "scenario": scenario, "policy": policy, "cost_usd": cost_usd, "within_objective": within, "changes": 3, "moves": 7, "wrong_shrinks": 1,
        "breach_hours": [4, 5],
    }  # fmt: skip


def test_the_page_is_made_of_the_rows_and_nothing_else_of_it_changes(tmp_path: Path) -> None:
    old = [_row("a", "oracle", 10.0, 0.99), _row("a", "flyball", 20.0, 0.5), _row("a", "kpa-tuned", 15.0, 0.995)]
    new = [_row("a", "flyball", 11.0, 0.991), _row("b", "flyball", 1.0, 0.5)]
    new += [_row("a/first", "oracle", 4.0, 0.99), _row("a/first", "flyball", 6.0, 1.0)]
    page, rows = tmp_path / "policies.md", [tmp_path / "old.json", tmp_path / "new.json"]
    page.write_text(f"above\n{policies_page.BEGIN}\nstale\n{policies_page.END}\nbelow\n")
    for path, several in zip(rows, (old, new), strict=True):
        path.write_text(json.dumps({"rows": several}))
    policies_page.main(["--rows", *map(str, rows), "--page", str(page)])
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "stale" not in text
    assert "| flyball | **1.10 · 99.1 %** |  · 50.0 % |" in text, (
        "the last file holds, and without the clairvoyant there is no ratio"
    )
    assert "| kpa-tuned | 3 · 7 · 1 · 2 |  |" in text
    assert "| flyball | **1.50 · 100.0 %** |" in text.split("first days")[1], (
        "each scenario's first day, in a table of its own"
    )
    assert "/first" not in text
    assert text.index("| flyball") < text.index("| oracle") < text.index("| kpa-tuned")
    assert "<svg" in (tmp_path / "policies-cost.svg").read_text()
    with pytest.raises(ValueError, match="no place"):
        policies_page.replaced("without marks", "")
