"""Each finding by its stable code, with its numbers; and what is not known said before anything else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from actuators.shape import Shape
from analyzers.finding import Finding
from analyzers.findings import analyze, missing_evidence
from analyzers.policy import Policy
from analyzers.situation import KnownEvent, Situation
from tests.analyzers.situations import HOUR, MINUTE, hour, minute, objective, situation


def found(s: Situation) -> dict[str, Finding]:
    return {f.reason.code: f for f in analyze(s)}


def test_a_healthy_hour_gives_no_finding() -> None:
    assert analyze(situation()) == []


# -- what is not known --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("s", "codes"),
    [
        (situation([]), ["NO_DATA"]),
        (situation(hour(coverage=0.0, ttft=(), requests=None)), ["NO_DATA"]),
        (situation(hour()[:40]), ["STALE", "LOW_COVERAGE"]),
        (situation(hour(coverage=0.5)), ["LOW_COVERAGE"]),
        (situation(hour(requests=None)), ["UNKNOWN_REQUESTS"]),
        (situation(hour(requests=0.5)), ["FEW_REQUESTS"]),
        (situation(objective=objective({})), ["NO_OBJECTIVE"]),
        (situation(objective=objective({"itl_p95_s": 1.0})), ["UNKNOWN_METRIC"]),
        (situation(hour(errors=None), objective=objective({"error_rate": 0.1})), ["UNKNOWN_METRIC"]),
    ],
)
def test_what_is_missing_is_named(s: Situation, codes: list[str]) -> None:
    assert [r.code for r in missing_evidence(s)] == codes
    findings = [f for f in analyze(s) if f.kind == "insufficient_data"]
    assert [f.reason.code for f in findings] == codes
    assert all(f.severity == "warning" for f in findings)


def test_what_comes_late_by_nature_is_not_stale() -> None:
    s = situation(hour()[:55])
    assert [r.code for r in missing_evidence(s)] == ["STALE"]
    assert missing_evidence(replace(s, lag_s=240.0)) == []
    (reason,) = missing_evidence(replace(situation(hour()[:50]), lag_s=240.0))
    assert reason.text == "the newest telemetry is 600 s old, 240 s is usual"


def test_a_source_that_loses_one_metric_and_keeps_the_others_lacks_evidence() -> None:
    """Gauges go on, counters are gone for half of the time: the coverage of the readings is whole."""
    half = [replace(minute(i), observed={"requests": float(i < 30)}) for i in range(60)]
    (reason,) = missing_evidence(situation(half))
    assert reason.code == "LOW_COVERAGE"
    assert reason.text == "requests was told in 50% of the last 1 h, 80% is needed"


def test_the_numbers_stand_beside_the_words() -> None:
    (reason,) = missing_evidence(situation(hour(requests=0.5)))
    assert reason.numbers == {"requests": 30.0, "needed": 50.0}
    assert reason.text == "30 requests in the last 1 h, 50 are needed"
    (reason,) = missing_evidence(situation(hour(coverage=0.5)))
    assert reason.numbers == {"coverage": 0.5, "needed": 0.8}


def test_evidence_counts_gaps_as_nothing() -> None:
    evidence = situation(hour()[:30]).evidence
    assert (evidence.coverage, evidence.windows, evidence.requests) == (0.5, 30, 1800.0)


def test_what_is_known_is_said_whatever_is_missing_beside_it() -> None:
    """Half of the hour is missing; a latency and a queue that are bad in every window that was seen are no accident."""
    codes = found(situation(hour(coverage=0.5, ttft=[9.0] * 10, waiting=50.0, running=20.0)))
    assert set(codes) == {"LOW_COVERAGE", "OBJECTIVE_BREACH_TTFT_P95_S", "QUEUE_WAITING", "BATCH_FULL"}


@pytest.mark.parametrize("n", [2, 3])
def test_a_breach_and_a_queue_are_findings_after_three_windows(n: int) -> None:
    rows = [minute(i, ttft=[9.0] * 10, waiting=50.0, running=20.0) for i in range(n)]
    codes = set(found(situation(rows, end=n * MINUTE, wanted_s=HOUR)))
    assert codes == ({"OBJECTIVE_BREACH_TTFT_P95_S", "QUEUE_WAITING", "BATCH_FULL"} if n == 3 else set())


def test_the_figures_of_a_queue_are_those_of_the_windows_in_which_it_stood() -> None:
    rows = [minute(i, waiting=9.0 if i >= 57 else 0.0, running=20.0 if i >= 57 else 2.0) for i in range(60)]
    f = found(situation(rows))["QUEUE_WAITING"]
    assert (f.reason.numbers["waiting_mean"], f.reason.numbers["running_mean"]) == (9.0, 20.0)


# -- breaches -----------------------------------------------------------------------------------------------------------


def test_a_breach_with_its_numbers() -> None:
    f = found(situation(hour(ttft=[0.2] * 9 + [3.0])))["OBJECTIVE_BREACH_TTFT_P95_S"]
    assert f.kind == "breach"
    assert f.severity == "warning"  # 10 % late where 5 % may be: twice the budget, not more
    numbers = f.reason.numbers
    assert (numbers["limit"], numbers["samples"]) == (1.0, 600.0)
    assert numbers["observed"] == pytest.approx(3.0, rel=0.01)
    assert numbers["burn_rate"] == numbers["recent_burn_rate"] == pytest.approx(2.0)


def test_a_breach_that_burns_fast_and_still_does_is_critical() -> None:
    codes = found(situation(hour(ttft=[3.0] * 10)))
    assert codes["OBJECTIVE_BREACH_TTFT_P95_S"].severity == "critical"
    over = [minute(i, ttft=[3.0] * 10 if i < 50 else [0.2] * 10) for i in range(60)]
    assert found(situation(over))["OBJECTIVE_BREACH_TTFT_P95_S"].severity == "warning"


def test_a_fresh_breach_is_seen_before_the_hour_is_spoilt() -> None:
    """Three bad windows at the end with few requests: p95 of the hour is fine still."""
    rows = [minute(i, ttft=[0.2] * 100 if i < 57 else [3.0]) for i in range(60)]
    assert "OBJECTIVE_BREACH_TTFT_P95_S" in found(situation(rows))


def test_an_error_breach() -> None:
    s = situation(hour(errors=3.0), objective=objective({"error_rate": 0.01}))
    f = found(s)["OBJECTIVE_BREACH_ERROR_RATE"]
    assert f.severity == "critical"
    assert f.reason.text == "share of errors is 5 % over the last 1 h; the objective is 1 %"


# -- saturation ---------------------------------------------------------------------------------------------------------


def test_a_queue() -> None:
    f = found(situation(hour(waiting=5.0, running=20.0)))["QUEUE_WAITING"]
    assert f.reason.numbers == {"waiting_mean": 5.0, "running_mean": 20.0, "share_of_windows": 1.0}
    assert "QUEUE_WAITING" not in found(situation(hour(waiting=0.9)))
    assert "QUEUE_WAITING" not in found(situation(hour(waiting=1.5, running=20.0)))  # under a tenth of what runs
    assert "QUEUE_WAITING" not in found(situation(hour(waiting=None)))
    seldom = [minute(i, waiting=9.0 if i < 29 else 0.0) for i in range(60)]
    assert "QUEUE_WAITING" not in found(situation(seldom))


def test_a_full_kv_cache() -> None:
    assert found(situation(hour(kv_max=0.97)))["KV_CACHE_FULL"].reason.numbers["share_of_windows"] == 1.0
    assert found(situation(hour(kv_max=0.5, preemptions=1.0)))["KV_CACHE_FULL"].reason.numbers["preemptions"] == 60.0
    assert "KV_CACHE_FULL" not in found(situation(hour(kv_max=0.9, preemptions=0.0)))
    assert "KV_CACHE_FULL" not in found(situation(hour()))


def test_a_full_batch() -> None:
    f = found(situation(hour(running=19.5)))["BATCH_FULL"]
    assert f.reason.numbers == {"running_mean": 19.5, "slots": 20.0, "share_of_windows": 1.0}
    assert "BATCH_FULL" not in found(situation(hour(running=19.5), shape=Shape(replicas=2)))


# -- money and trends ---------------------------------------------------------------------------------------------------


def test_idle_money() -> None:
    f = found(situation(hour(requests=0.0, ttft=(), running=0.0)))["NO_TRAFFIC"]
    assert f.kind == "idle"
    assert f.reason.numbers == {"requests": 0.0, "usd_per_month": 1460.0}
    assert "$1,460 a month" in f.reason.text
    unpriced = found(situation(hour(requests=0.0, ttft=(), running=0.0), per_hour=None))["NO_TRAFFIC"]
    assert "usd_per_month" not in unpriced.reason.numbers


def test_low_occupancy_goes_by_the_peak() -> None:
    f = found(situation(hour(running=2.0)))["LOW_OCCUPANCY"]
    assert (f.severity, f.reason.numbers["running_peak"], f.reason.numbers["slots"]) == ("info", 2.0, 20.0)
    assert f.reason.text.startswith("2.0 of 20 sequences ran in the busiest window, at most 2 at any reading")
    once = [minute(i, running=12.0 if i == 7 else 1.0) for i in range(60)]
    assert "LOW_OCCUPANCY" not in found(situation(once))
    assert "LOW_OCCUPANCY" not in found(situation(hour(running=2.0, waiting=1.0)))


def test_silence_is_not_idleness_when_nobody_looked() -> None:
    assert "NO_TRAFFIC" not in found(situation(hour(requests=0.0, ttft=(), coverage=0.5)))
    assert "NO_TRAFFIC" not in found(situation(hour(requests=None, ttft=())))


def test_trends() -> None:
    rising = [minute(i, requests=60.0 + i) for i in range(60)]
    codes = found(situation(rising))
    assert codes["LOAD_RISING"].severity == "info"
    assert codes["LOAD_RISING"].reason.numbers["slope_per_hour"] == pytest.approx(1.0)  # from 1/s to 2/s in an hour
    slower = found(situation([minute(i, requests=60.0 + i % 7, ttft=[0.2 + 0.004 * i] * 10) for i in range(60)]))
    assert slower["TTFT_RISING"].severity == "warning"
    assert "ITL_RISING" not in slower
    falling = [minute(i, requests=120.0 - i) for i in range(60)]
    assert found(situation(falling))["LOAD_FALLING"].severity == "info"
    slightly = [minute(i, requests=60.0 + i * 0.1) for i in range(60)]
    assert "LOAD_RISING" not in found(situation(slightly))


def test_what_rises_because_the_traffic_rose_is_no_regression() -> None:
    with_load = [minute(i, requests=60.0 + i, ttft=[0.2 + 0.004 * i] * 10) for i in range(60)]
    assert set(found(situation(with_load))) == {"LOAD_RISING"}
    noisy = [60.0 + i + 10.0 * (i % 5) for i in range(60)]
    both = [minute(i, requests=r, ttft=[0.1 + 0.002 * r] * 10) for i, r in enumerate(noisy)]
    assert set(found(situation(both))) == {"LOAD_RISING"}
    own = [minute(i, requests=r, ttft=[0.1 + 0.002 * r + (0.3 if i >= 30 else 0.0)] * 10) for i, r in enumerate(noisy)]
    assert "TTFT_RISING" in found(situation(own))


def test_a_step_is_called_so_and_the_event_nearest_to_it_is_named() -> None:
    rows = [minute(i, requests=60.0 + i % 7, ttft=[0.2 if i < 30 else 0.5] * 10) for i in range(60)]
    upgrade, long_ago = KnownEvent(29 * MINUTE + 20, "engine_version 0.9 → 0.10"), KnownEvent(-9 * HOUR, "price")
    reason = found(situation(rows, events=(long_ago, upgrade)))["TTFT_RISING"].reason
    assert "rose by 150% in one step at 00:30 UTC" in reason.text
    assert reason.text.endswith("; at that time: engine_version 0.9 → 0.10")
    assert reason.numbers["step_at"] == 30 * MINUTE
    before = found(situation(rows, events=(KnownEvent(20 * MINUTE, "a deploy"),)))["TTFT_RISING"].reason
    assert before.text.endswith("; 10 min before: a deploy")
    alone = found(situation(rows, events=(long_ago, KnownEvent(50 * MINUTE, "later"))))["TTFT_RISING"].reason
    assert ";" not in alone.text


def test_the_same_conclusion_has_the_same_key_and_plain_json() -> None:
    (one,) = analyze(situation(hour(running=2.0)))
    (two,) = analyze(situation(hour(running=1.0)))
    assert one.key == two.key == "chat/idle/LOW_OCCUPANCY"
    assert json.loads(json.dumps(one.as_dict()))["evidence"]["windows"] == 60


def test_more_coverage_may_be_asked_for() -> None:
    s = situation(hour(coverage=0.9), policy=Policy(min_coverage=0.95))
    assert [r.code for r in missing_evidence(s)] == ["LOW_COVERAGE"]
