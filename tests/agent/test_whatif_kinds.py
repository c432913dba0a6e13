"""`flyball whatif` on other kinds of endpoint: each file is the analyzers' own call, side by side with the others, and paid for."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzers.kinds.ptu import throughput as ptu
from analyzers.kinds.ptu.throughput import Ptu
from analyzers.kinds.quota import limits as quota
from analyzers.kinds.quota.limits import ApiQuota, QuotaLimit
from analyzers.kinds.serverless import platform as serverless
from analyzers.kinds.serverless.platform import Serverless
from analyzers.kinds.service import Retries, ServiceReplay, Speed
from analyzers.kinds.vm import usl
from analyzers.kinds.vm.usl import Point, Usl
from analyzers.objective import Objective
from analyzers.whatif.engine import replay
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from collectors.traces import write_trace
from collectors.workload import Workload
from tests.agent.test_whatif_cli import FIELDS, answer, run, trace
from tests.analyzers.whatif.reference_server import poisson

MODEL = EngineModel(IterationCost(0.0085, 3e-5, 3e-8, 5e-5, 2e-9), EngineLimits(128, 4096, 200_000))
QUOTA: dict[str, Any] = {
    "kind": "quota", "tokens": {"per_minute": 60_000}, "requests": {"per_minute": 90, "period_s": 10},
    "speed": {"ttft_s": [0.3, 0.4, 0.6], "tpot_s": [0.01, 0.012, 0.02], "per_prompt_token_s": 0.0001}, "max_tokens": 500,
    "retries": {"tries": 2, "first_s": 1}, "seed": 3, "usd_per_1k_input_tokens": 0.5, "usd_per_1k_output_tokens": 2,
}  # fmt: skip
PTU: dict[str, Any] = {
    "kind": "ptu", "ptus": 15, "input_tokens_per_minute_per_ptu": 3000, "output_weight": 4, "speed": {"ttft_s": 0.3, "tpot_s": 0.01},
    "spill": {"ttft_s": 0.5, "tpot_s": 0.02}, "usd_per_ptu_hour": 2, "usd_per_1k_input_tokens": 0.5,
    "usd_per_1k_output_tokens": 2, "usd_per_1k_cached_input_tokens": 0.1,
}  # fmt: skip
SERVERLESS: dict[str, Any] = {
    "kind": "serverless", "concurrency": 4, "cold_start_s": 8, "most": 3, "idle_s": 20, "longest_wait_s": 20, "sigma": 0.1,
    "speed": {"ttft_s": 0.2, "tpot_s": 0.02}, "usd_per_billed_hour": 36,
}  # fmt: skip
LEVELS = (1, 2, 4, 8, 16)
TRUTH = Usl(2.0, 0.05, 0.002)
USL: dict[str, Any] = {
    "kind": "vm", "points": [{"concurrency": n, "throughput_per_s": TRUTH.throughput_per_s(n)} for n in LEVELS], "cores": 2,
    "max_concurrency": 16, "usd_per_replica_hour": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def work() -> Workload:
    found = poisson(2.0, 300.0, 4)
    cached = found.prompt_tokens // 3
    return Workload(found.arrival_s, found.prompt_tokens, found.output_tokens, cached)


@pytest.fixture
def files(tmp_path: Path, work: Workload) -> Path:
    write_trace(work, tmp_path / "t.parquet")
    (tmp_path / "vllm.json").write_text(MODEL.to_json())
    for data in (QUOTA, PTU, SERVERLESS, USL):
        (tmp_path / f"{data['kind']}.json").write_text(json.dumps({"schema_version": 1, **data}))
    return tmp_path


def calls(got: ServiceReplay) -> tuple[int, int]:
    return got.throttled, int(np.maximum(got.each.tries - 1, 0).sum())


def check(found: dict[str, Any], expected: ServiceReplay) -> None:
    assert set(found) >= FIELDS - {"schema_version", "candidates"}
    for name in ("requests", "completed", "rejected", "gave_up"):
        assert found[name] == getattr(expected, name), name
    for metric in ("ttft_s", "itl_s", "tpot_s", "e2e_s", "queue_s"):
        for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            assert found[metric][name] == expected.distribution(metric).quantile(q), (metric, name)
    assert found["saturated"] == expected.saturated
    assert found["simulated_s"] == expected.simulated_s
    assert found["used"] == dict(expected.used)
    assert found["requests_per_s"] == expected.completed / expected.simulated_s


def test_all_kinds_side_by_side(files: Path, work: Workload) -> None:
    got = answer(
        *(
            "--trace",
            files / "t.parquet",
            "--engine",
            files / "vllm.json",
            "--usd-per-replica-hour",
            3,
            "--objective",
            "ttft_p95=1",
        ),
        *("--candidate", f"engine={files / 'quota.json'}", "--candidate", f"engine={files / 'ptu.json'}"),
        *(
            "--candidate",
            f"engine={files / 'serverless.json'}",
            "--candidate",
            f"engine={files / 'vm.json'},replicas=2",
        ),
    )
    own, by_token, bought, function, vms = got["candidates"]
    assert [c["kind"] for c in got["candidates"]] == ["engine", "quota", "ptu", "serverless", "vm"]
    assert own["e2e_s"]["p95"] == replay(work, MODEL).e2e.quantile(0.95)
    assert own["throttled"] is None

    limits = ApiQuota(QuotaLimit(60_000), QuotaLimit(90, 10))
    speed = Speed(np.array([0.3, 0.4, 0.6]), np.array([0.01, 0.012, 0.02]), 0.0001)
    expected = quota.replay(work, limits, speed, max_tokens=500, retries=Retries(2, 1), seed=3)
    check(by_token, expected)
    assert (by_token["throttled"], by_token["retries"]) == calls(expected)
    assert min(by_token["throttled"], by_token["retries"], by_token["gave_up"]) > 0, "the limits do not bind"
    used = expected.used
    assert by_token["cost_usd"] == pytest.approx((used["prompt_tokens"] * 0.5 + used["output_tokens"] * 2) / 1000)
    assert by_token["replica_hours"] is None
    assert by_token["goodput_per_s"] == expected.goodput_per_s({"ttft_s": 1.0})

    expected = ptu.replay(work, Ptu(15, 3000, 4), Speed(0.3, 0.01), spill=Speed(0.5, 0.02))
    check(bought, expected)
    used = expected.used
    assert bought["spilled_requests"] == expected.gauges["spilled_requests"] > 0
    fresh = used["spilled_prompt_tokens"] - used["spilled_cached_prompt_tokens"]
    spilled = (fresh * 0.5 + used["spilled_cached_prompt_tokens"] * 0.1 + used["spilled_output_tokens"] * 2) / 1000
    assert bought["cost_usd"] == pytest.approx(used["ptu_hours"] * 2 + spilled)

    expected = serverless.replay(work, Serverless(4, 8, 3, idle_s=20, longest_wait_s=20, sigma=0.1), Speed(0.2, 0.02))
    check(function, expected)
    assert function["cold_starts"] == expected.gauges["cold_starts"] > 0
    assert function["replicas_max"] == expected.gauges["instances_max"]
    assert function["replica_hours"] == expected.used["instance_s"] / 3600
    assert function["cost_usd"] == pytest.approx(expected.used["instance_s"] / 100)

    fitted = usl.fit([Point(n, TRUTH.throughput_per_s(n)) for n in LEVELS])
    expected = usl.replay(work, fitted.best, replicas=2, max_concurrency=16)
    check(vms, expected)
    assert vms["usd_per_hour"] == pytest.approx(0.2)
    assert (vms["goodput_per_s"], vms["meets_objective"]) == (None, None), "what does not stream has no TTFT to judge"


def test_cores_are_askable_in_one_command(files: Path, work: Workload) -> None:
    got = answer(
        *("--trace", files / "t.parquet", "--engine", files / "vm.json", "--objective", "e2e_p97=4"),
        *("--candidate", "cores=4", "--candidate", "cores=8,usd_per_replica_hour=0.4"),
    )
    fitted = usl.fit([Point(n, TRUTH.throughput_per_s(n)) for n in LEVELS])
    for candidate, ratio in zip(got["candidates"], (1, 2, 4), strict=True):
        scaled = usl.on_cores(fitted, ratio) if ratio > 1 else fitted
        check(candidate, usl.replay(work, scaled.best, max_concurrency=16))
        objective = Objective.from_mapping({"e2e_p95_s": 1.0, "e2e_p97_s": 4.0})
        promised = usl.predict(scaled, work, objective=objective, max_concurrency=16)
        for name in ("e2e_p95_s", "e2e_p97_s"):
            interval = candidate["prediction"]["metrics"][name]
            expected = promised.metrics[name]
            assert (interval["low"], interval["mid"], interval["high"]) == (expected.low, expected.mid, expected.high)
        assert candidate["saturates"] == promised.saturates
        assert candidate["objective"][0]["high"] == promised.metrics["e2e_p97_s"].high
    assert [c["usd_per_hour"] and round(c["usd_per_hour"], 6) for c in got["candidates"]] == [0.1, None, 0.4]
    assert [c["label"] for c in got["candidates"]] == ["1 VM of 2 cores", "1 VM of 4 cores", "1 VM of 8 cores"]
    assert any(note.startswith("2: 2 times the cores") for note in got["notes"])
    assert got["e2e_s"]["p95"] > 2 * got["candidates"][2]["e2e_s"]["p95"]


def test_a_stated_law_is_taken_as_it_is(tmp_path: Path, work: Workload) -> None:
    write_trace(work, tmp_path / "t.parquet")
    law = {"schema_version": 1, "kind": "vm", "rate_per_s": 3, "sigma": 0.1, "kappa": 0.001, "cores": 2}
    (tmp_path / "vm.json").write_text(json.dumps(law))
    got = answer("--trace", tmp_path / "t.parquet", "--engine", tmp_path / "vm.json", "--candidate", "cores=4")
    check(got, usl.replay(work, Usl(3, 0.1, 0.001)))
    assert (got["prediction"], got["cost_usd"]) == (None, None)
    moved = got["candidates"][1]
    check(moved, usl.replay(work, Usl(6, 0.1, 0.001)))
    interval = moved["prediction"]["metrics"]["e2e_p95_s"]
    assert interval["low"] < interval["mid"] < interval["high"], "how rate goes with cores is assumed"


def test_single_settings_of_a_kind_can_be_changed(files: Path, work: Workload) -> None:
    got = answer(
        *("--trace", files / "t.parquet", "--engine", files / "quota.json"),
        *("--shape", "retries.tries=1", "--candidate", "tokens.per_minute=240000,max_tokens=none"),
        *("--candidate", f"engine={files / 'serverless.json'},billed=busy,concurrency=2,usd_per_billed_hour=7.2"),
    )
    speed = Speed(np.array([0.3, 0.4, 0.6]), np.array([0.01, 0.012, 0.02]), 0.0001)
    first, more, function = got["candidates"]
    once = Retries(1, 1)
    check(
        first,
        quota.replay(
            work, ApiQuota(QuotaLimit(60_000), QuotaLimit(90, 10)), speed, max_tokens=500, retries=once, seed=3
        ),
    )
    check(more, quota.replay(work, ApiQuota(QuotaLimit(240_000), QuotaLimit(90, 10)), speed, retries=once, seed=3))
    assert (first["candidate"], first["retries"]) == ("quota, retries.tries=1", 0)
    expected = serverless.replay(work, Serverless(2, 8, 3, idle_s=20, longest_wait_s=20, sigma=0.1), Speed(0.2, 0.02))
    check(function, expected)
    assert function["cost_usd"] == pytest.approx(expected.used["busy_s"] * 7.2 / 3600)
    assert function["prices"] == {"usd_per_billed_hour": 7.2}


def test_without_a_price_there_is_no_cost(files: Path, tmp_path: Path) -> None:
    for data in (QUOTA, PTU, SERVERLESS, USL):
        bare = {name: value for name, value in data.items() if not name.startswith("usd_")}
        (tmp_path / f"{data['kind']}.json").write_text(json.dumps({"schema_version": 1, **bare}))
    others = [o for kind in ("ptu", "serverless", "vm") for o in ("--candidate", f"engine={files / kind}.json")]
    got = answer("--trace", files / "t.parquet", "--engine", files / "quota.json", *others)
    assert [(c["cost_usd"], c["usd_per_hour"]) for c in got["candidates"]] == [(None, None)] * 4


def test_a_vllm_kind_may_be_said(files: Path) -> None:
    said = {"kind": "engine", **json.loads((files / "vllm.json").read_text())}
    (files / "said.json").write_text(json.dumps(said))
    got = answer(
        "--trace", files / "t.parquet", "--engine", files / "vllm.json", "--candidate", f"engine={files}/said.json"
    )
    assert got["candidates"][0]["e2e_s"] == got["candidates"][1]["e2e_s"]


def test_each_requests_times_on_every_kind(files: Path, work: Workload) -> None:
    out = files / "r.csv"
    answer(
        *("--trace", files / "t.parquet", "--engine", files / "quota.json", "--requests-out", out),
        *("--candidate", f"engine={files / 'vm.json'}", "--candidate", f"engine={files / 'vllm.json'}"),
    )
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    n = len(work)
    assert [rows[i]["candidate"] for i in (0, n, 2 * n)] == [
        "quota",
        f"engine={files}/vm.json",
        f"engine={files}/vllm.json",
    ]
    assert len(rows) == 3 * n
    assert {row["state"] for row in rows[:n]} == {"completed", "gave_up"}
    assert {row["ttft_s"] for row in rows[n : 2 * n]} == {""}, "a VM does not stream"
    ends = [float(row["e2e_s"]) for row in rows[2 * n :]]
    assert ends == pytest.approx(replay(work, MODEL).per_request.e2e_s.tolist())


def test_table_and_page_tell_what_each_kind_has(files: Path) -> None:
    page = files / "p.html"
    result = run(
        *("--trace", files / "t.parquet", "--engine", files / "vllm.json", "--html", page),
        *("--candidate", f"engine={files / 'quota.json'}", "--candidate", f"engine={files / 'ptu.json'}"),
        *("--candidate", f"engine={files / 'serverless.json'}", "--candidate", f"engine={files / 'vm.json'}"),
    )
    assert result.exit_code == 0, result.output
    html = page.read_text()
    for text in (
        " answers of 429, ",
        " sent again, ",
        " gave up",
        " spilled over",
        " cold starts, at most 3 instances",
        "1 VM of 2 cores",
    ):
        assert text in result.stdout, text
        assert text in html, text
    assert "end-to-end time, p95 (s)" in html, "the front is of what every kind has"
    assert html.count("<svg") == 4
    assert "pay per token, 60,000 tokens/min, 90 requests/min" in html


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        (QUOTA, {"kind": "qouta"}, "kind: 'qouta' is not known; did you mean quota?"),
        (QUOTA, {"schema_version": 2}, "schema_version: 2 is not known"),
        (QUOTA, {"speed": None}, "speed must be an object, not None"),
        (QUOTA, {"speed": {"ttft_s": 0.1}}, "speed.tpot_s: missing"),
        (QUOTA, {"speed": {"ttft_s": "fast", "tpot_s": 0.1}}, "speed.ttft_s must be a finite number or a list, not 'fast'"),
        (QUOTA, {"speed": {"ttft_s": -1, "tpot_s": 0.1}}, "e.json: speed: ttft_s must be finite seconds, 0 or more"),
        (QUOTA, {"tokens": {"per_minut": 5}}, "tokens.per_minut: unknown field; did you mean per_minute?"),
        (QUOTA, {"tokens": 5}, "tokens must be an object or null, not 5"),
        (QUOTA, {"usd_per_1k_output_tokens": None}, "give both, or neither"),
        (QUOTA, {"usd_per_1k_output_tokens": -1}, "usd_per_1k_output_tokens must be US dollars, 0 or more"),
        (QUOTA, {"replicas": 2}, "replicas: unknown field"),
        (PTU, {"ptus": 0}, "ptu: ptus must be above 0"),
        (SERVERLESS, {"concurrency": 1.5}, "concurrency must be a whole number, not 1.5"),
        (SERVERLESS, {"billed": "hourly"}, "billed: 'hourly' is not known; known: busy, instance, request"),
        (SERVERLESS, {"least": 9}, "serverless: concurrency >= 1, most >= 1 and 0 <= least <= most are expected"),
        (USL, {"points": [{"concurrency": 1, "latency_s": 1}]}, "USL_FEW_POINTS: 1 distinct concurrencies"),
        (USL, {"points": [{"concurrency": 1, "latency": 1}]}, "points[0].latency: unknown field; did you mean latency_s?"),
        (USL, {"points": [{"concurrency": 1}]}, "points[0]: a USL point needs throughput_per_s or latency_s"),
        (USL, {"rate_per_s": 2}, "give either rate_per_s (with sigma and kappa), or points"),
        (USL, {"sigma": 0.1}, "sigma and kappa are fitted to the points"),
    ],
)  # fmt: skip
def test_bad_files_name_file_and_field(tmp_path: Path, kind: dict[str, Any], change: dict[str, Any], says: str) -> None:
    file = tmp_path / "e.json"
    file.write_text(json.dumps({"schema_version": 1, **kind, **change}))
    result = run("--trace", trace(tmp_path, "0,100,3"), "--engine", file)
    assert result.exit_code == 2, result.output
    assert f"{file}: " in result.stderr
    assert says in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("kind", "arguments", "says"),
    [
        (QUOTA, ("--candidate", "token.per_minute=9"), "token.per_minute: there is no such setting; did you mean tokens.per_minute?"),
        (QUOTA, ("--replicas", "2"), "replicas: there is no such setting"),
        (QUOTA, ("--timeout", "5"), "--timeout: clients that give up are not simulated on the kind quota (quota)"),
        (QUOTA, ("--usd-per-replica-hour", "5"), "usd_per_replica_hour: there is no such setting"),
        (QUOTA, ("--autoscale", "hpa:in_flight=3,max=2"), "autoscale: there is no such setting"),
        (PTU, ("--usd-per-replica-hour", "5"), "usd_per_replica_hour: there is no such setting; did you mean usd_per_ptu_hour?"),
        (USL, ("--candidate", "cores=many"), "cores=many: write a number above 0"),
        (USL, ("--candidate", "accelerator=L40S"), "accelerator: there is no such setting"),
        ({**USL, "cores": None}, ("--candidate", "cores=4"), "cores: the engine file must say of how many cores its figures are"),
    ],
)  # fmt: skip
def test_bad_questions_about_kinds_exit_with_2(
    tmp_path: Path, kind: dict[str, Any], arguments: tuple[str, ...], says: str
) -> None:
    file = tmp_path / f"{kind['kind']}.json"
    file.write_text(json.dumps({"schema_version": 1, **kind}))
    result = run("--trace", trace(tmp_path, "0,100,3"), "--engine", file, *arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert result.stdout == ""
