"""`flyball whatif` on fleets: a fleet file or an autoscaler's short form is the analyzers' ReplicaFleet, and its figures are the replay's."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from analyzers.kinds.engine import fleets
from analyzers.whatif.engine import replay
from analyzers.whatif.fleet import ReplicaFleet
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from analyzers.whatif.scaling import GovernorPolicy, Hpa, Keda, Kpa, MetricTarget, RateLimit
from collectors.traces import write_trace
from collectors.workload import Workload
from tests.agent.test_whatif_cli import answer, run, trace
from tests.analyzers.whatif.reference_server import poisson

MODEL = EngineModel(IterationCost(0.02, 3e-5, 3e-8, 1e-4), EngineLimits(16, 2048, 200_000))
LIMITS = MODEL.limits


@pytest.fixture(scope="module")
def work() -> Workload:
    return poisson(2.5, 600.0, 4)


@pytest.fixture
def asking(tmp_path: Path, work: Workload) -> tuple[str | Path, ...]:
    write_trace(work, tmp_path / "t.parquet")
    (tmp_path / "e.json").write_text(MODEL.to_json())
    return ("--trace", tmp_path / "t.parquet", "--engine", tmp_path / "e.json")


def write(path: Path, **fleet: Any) -> Path:
    path.write_text(json.dumps({"schema_version": 1, **fleet}))
    return path


HPA = Hpa((MetricTarget("in_flight", 8),), most=5, least=1)


def test_an_autoscaled_fleet_is_what_the_engine_says(asking: tuple[str | Path, ...], work: Workload) -> None:
    got = answer(
        *asking,
        *("--autoscale", "hpa:in_flight=8,min=1,max=5", "--cold-start", 45, "--usd-per-replica-hour", 2),
        *("--candidate", "autoscale=none,fleet=none,replicas=2", "--candidate", "in_flight=3,max=9"),
        *("--candidate", "autoscale=kpa:in_flight=20,min=0,max=6,cold_start=10"),
        *("--candidate", "autoscale=keda:waiting=3,min=1,max=4,cooldown_s=60,down_window_s=30"),
        *("--candidate", "autoscale=flyball,min=1,max=6,replicas=3,router=least_outstanding"),
    )
    by_hand = [
        replay(work, MODEL, fleet=ReplicaFleet(1, 45, HPA)),
        replay(work, MODEL, replicas=2),
        replay(work, MODEL, fleet=ReplicaFleet(1, 45, Hpa((MetricTarget("in_flight", 3),), most=9))),
        replay(work, MODEL, fleet=ReplicaFleet(1, 10, Kpa(MetricTarget("in_flight", 20), most=6))),
        replay(
            work,
            MODEL,
            fleet=ReplicaFleet(
                1, 45, Keda(Hpa((MetricTarget("waiting", 3),), most=4, down_window_s=30), least=1, cooldown_s=60)
            ),
        ),
        replay(work, MODEL, fleet=ReplicaFleet(3, 45, GovernorPolicy(16, 6, 45)), router="least_outstanding"),
    ]
    for candidate, expected in zip(got["candidates"], by_hand, strict=True):
        assert candidate["e2e_s"]["p95"] == expected.e2e.quantile(0.95), candidate["candidate"]
        assert candidate["replica_hours"] == expected.replica_s / 3600
        assert candidate["replicas_max"] == expected.replicas_max
        assert candidate["replica_timeline"] == [list(step) for step in expected.replicas]
        assert candidate["cost_usd"] == pytest.approx(2 * expected.replica_s / 3600)
        assert candidate["usd_per_hour"] == pytest.approx(2 * expected.replica_s / expected.simulated_s)
    dynamic = [len(c["replica_timeline"]) > 1 for c in got["candidates"]]
    assert dynamic == [True, False, True, True, True, True], "an autoscaler that does nothing tells nothing"
    assert got["shape"]["fleet"]["autoscaler"]["targets"] == [{"metric": "in_flight", "value": 8}]


def test_a_fleet_file_with_schedule_and_failures(
    asking: tuple[str | Path, ...], work: Workload, tmp_path: Path
) -> None:
    file = write(
        tmp_path / "f.json",
        replicas=2,
        cold_start_s=30,
        schedule=[[120, 4], [400, 1]],
        failures=[[200, 20]],
        max_replicas=4,
    )
    got = answer(*asking, "--candidate", f"fleet={file}", "--candidate", f"fleet={file},cold_start=90,replicas=1")
    schedule, failures = ((120.0, 4), (400.0, 1)), ((200.0, 20.0),)
    for candidate, (replicas, cold) in zip(got["candidates"][1:], ((2, 30), (1, 90)), strict=True):
        expected = replay(
            work, MODEL, fleet=ReplicaFleet(replicas, cold, schedule=schedule, failures=failures, max_replicas=4)
        )
        assert candidate["failed"] == expected.failed > 0
        assert candidate["completed"] == expected.completed < len(work)
        assert candidate["replica_timeline"] == [list(step) for step in expected.replicas]
        assert candidate["ttft_s"]["p99"] == expected.ttft.quantile(0.99)
    same = answer(*asking, "--fleet", file, "--objective", "error_rate=0.5")
    assert same["replica_timeline"] == got["candidates"][1]["replica_timeline"]
    assert same["objective"][0]["value"] == pytest.approx((len(work) - same["completed"]) / len(work))
    hpa = answer(*asking, "--fleet", file, "--autoscale", "hpa:in_flight=1,max=9")
    expected = replay(
        work,
        MODEL,
        fleet=ReplicaFleet(2, 30, Hpa((MetricTarget("in_flight", 1),), most=9), failures=failures, max_replicas=9),
    )
    assert hpa["replica_timeline"] == [list(step) for step in expected.replicas], "the autoscaler replaces the schedule"


def test_every_autoscaler_in_a_file() -> None:
    """By the dataclasses' own names; what the engine and the fleet know need not be said twice."""
    start = {"replicas": 1, "cold_start_s": 60, "min_replicas": 1, "max_replicas": 7}
    target = {"metric": "waiting", "value": 2}
    asked: dict[str, dict[str, Any]] = {
        "hpa": {"targets": [target], "up_limits": [{"period_s": 30, "pods": 1}], "tolerance": 0.2},
        "keda": {"hpa": {"targets": [target]}, "activation": 1},
        "kpa": {"target": target, "most": 3},
        "flyball": {"kv_target": None, "cooldown_s": 90},
    }
    waiting = MetricTarget("waiting", 2)
    expected: dict[str, Any] = {
        "hpa": Hpa((waiting,), most=7, tolerance=0.2, up_limits=(RateLimit(30, pods=1),)),
        "keda": Keda(Hpa((waiting,), most=7), least=1, activation=1),
        "kpa": Kpa(waiting, most=3, least=1),
        "flyball": GovernorPolicy(16, 7, 60, kv_target=None, cooldown_s=90),
    }
    for kind, settings in asked.items():
        made = fleets.built({**start, "autoscaler": {"kind": kind, **settings}}, LIMITS)
        assert made == ReplicaFleet(1, 60, expected[kind], min_replicas=1, max_replicas=7)


def test_each_requests_times_of_every_candidate(asking: tuple[str | Path, ...], work: Workload, tmp_path: Path) -> None:
    out = tmp_path / "r.csv"
    file = write(tmp_path / "f.json", replicas=2, cold_start_s=5, failures=[[200, 20]])
    answer(*asking, "--candidate", f"replicas=2,fleet={file}", "--requests-out", out)
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = ["1 replica", f"replicas=2,fleet={file}"]
    assert [row["candidate"] for row in rows] == [name for name in names for _ in range(len(work))]
    expected = replay(work, MODEL, fleet=ReplicaFleet(2, 5, failures=((200.0, 20.0),))).per_request
    second = rows[len(work) :]
    assert [row["state"] == "failed" for row in second] == expected.failed.tolist()
    assert any(expected.failed)
    done = [float(row["e2e_s"]) for row in second if row["e2e_s"]]
    assert done == pytest.approx(expected.e2e_s[expected.e2e_s >= 0].tolist())


def test_the_page_draws_replicas_over_time(asking: tuple[str | Path, ...], tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    answer(*asking, "--candidate", "autoscale=hpa:in_flight=4,max=4,cold_start=20", "--html", page)
    html = page.read_text()
    assert "<h2>Replicas over time</h2>" in html
    assert "no. 2" in html
    assert "no. 1<" not in html
    assert "paid for on average" in html
    answer(*asking, "--candidate", "replicas=2", "--html", page)
    assert "Replicas over time" not in page.read_text()


FLEET = {"replicas": 1, "cold_start_s": 60}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"replica": 2}, "replica: unknown field; did you mean replicas?"),
        ({"cold_start_s": None}, "cold_start_s must be a finite number, not None"),
        ({"schedule": [[0, 1], [60]]}, "schedule[1] must be a list of 2, not [60]"),
        ({"schedule": [[0, 1.5]]}, "schedule[0][1] must be a whole number, not 1.5"),
        ({"failures": [["noon", 3]]}, "failures[0][0] must be a finite number, not 'noon'"),
        ({"schedule": [[60, 1], [0, 1]]}, "fleet: the times of schedule must be finite, from 0 upwards and sorted"),
        ({"min_replicas": 3}, "fleet: replicas says 1, outside min_replicas (3)"),
        ({"autoscaler": "hpa"}, "autoscaler: expected an object with its kind"),
        ({"autoscaler": {"kind": "hpaa"}}, "autoscaler.kind: 'hpaa' is not known; did you mean hpa?"),
        ({"autoscaler": {"kind": "hpa", "most": 3}}, "autoscaler.targets: missing"),
        ({"autoscaler": {"kind": "hpa", "targets": [{"metric": "waiting", "value": 1}]}}, "autoscaler.most: missing"),
        (
            {"autoscaler": {"kind": "hpa", "most": 3, "targets": [{"metric": "wating", "value": 1}]}},
            "autoscaler.targets[0].metric: 'wating' is not known; did you mean waiting?",
        ),
        ({"autoscaler": {"kind": "kpa", "most": 3, "tolerence": 1}}, "autoscaler.tolerence: unknown field; known: "),
        ({"autoscaler": {"kind": "flyball", "most": 3, "cooldown_s": 5}}, "autoscaler: cooldown_s (5) must be longer"),
        ({"schema_version": 2}, "schema_version: 2 is not known"),
    ],
)
def test_bad_fleet_files_name_file_and_field(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    (tmp_path / "e.json").write_text(MODEL.to_json())
    file = tmp_path / "f.json"
    file.write_text(json.dumps({"schema_version": 1, **FLEET, **change}))
    result = run("--trace", trace(tmp_path, "0,100,3"), "--engine", tmp_path / "e.json", "--fleet", file)
    assert result.exit_code == 2, result.output
    assert f"{file}: {says}" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--autoscale", "hpb:in_flight=8,max=3"), "'hpb' is not known; did you mean hpa?"),
        (("--autoscale", "hpa:in_fligt=8,max=3", "--cold-start", "9"), "in_fligt: hpa has no such setting; did you mean in_flight?"),
        (("--autoscale", "hpa:in_flight=8,maxx=3", "--cold-start", "9"), "--autoscale hpa:in_flight=8,maxx=3: maxx: hpa has no such setting"),
        (("--autoscale", "hpa:in_flight=8,max=3"), "give cold_start=DURATION too"),
        (("--autoscale", "hpa:in_flight=8", "--cold-start", "9"), "autoscale=hpa: give max=N"),
        (("--autoscale", "kpa,max=3", "--cold-start", "9"), "autoscale=kpa: say what one replica should bear"),
        (("--autoscale", "hpa:8,max=3", "--cold-start", "9"), "write for instance hpa:in_flight=8"),
        (("--autoscale", "hpa:in_flight=-8,max=3", "--cold-start", "9"), "the target of in_flight must be above 0"),
        (("--autoscale", "flyball,max=3", "--cold-start", "900"), "cooldown_s (300) must be longer than the cold start (900 s)"),
        (("--cold-start", "9"), "cold_start=9.0: says nothing of replicas that stay"),
        (("--cold-start", "-1"), "is no duration"),
        (("--fleet", "none.json"), "none.json: cannot be read"),
        (("--candidate", "autoscale=hpa:in_flight=8,max=3,colour=red,cold_start=9"), "colour=red: the engine has no such setting"),
        (("--candidate", "autoscale=hpa:in_flight=8,max=3,tolerence=1,cold_start=9"), "did you mean tolerance?"),
        (("--candidate", "in_flight=8"), "in_flight=8: the engine has no such setting"),
        (("--replicas", "0"), "replicas=0: write a whole number, 1 or more"),
        (("--endpoint", "chat", "--autoscale", "x"), "give either"),
    ],
)  # fmt: skip
def test_bad_fleets_exit_with_2(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    (tmp_path / "e.json").write_text(MODEL.to_json())
    result = run("--trace", trace(tmp_path, "0,100,3"), "--engine", tmp_path / "e.json", *arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert result.stdout == ""


def test_a_fleet_can_start_from_nothing(tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text(MODEL.to_json())
    got = answer(
        *("--trace", trace(tmp_path, "0,100,3"), "--engine", tmp_path / "e.json", "--replicas", 0),
        *("--autoscale", "kpa:in_flight=1,min=0,max=2", "--cold-start", 20),
    )
    assert got["replica_timeline"][0] == [0.0, 0]
    assert got["ttft_s"]["p50"] > 20
