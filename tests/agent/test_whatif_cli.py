"""`flyball whatif`: what it answers, what it refuses, and what it writes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from agent.cli import app, output
from agent.clock import WallClock
from agent.store import Store, fleet, flights, windows
from agent.whatif import predictions, replays
from agent.whatif.candidates import candidates
from analyzers import grammar
from analyzers.grammar import BadQuestion
from analyzers.kinds.results import ReplayTraffic
from analyzers.objective import Objective
from analyzers.whatif.engine import replay
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from collectors.flight import FlightRecord
from collectors.traces import write_trace
from tests.agent.telemetry import MODEL, SETTINGS, SHAPE
from tests.analyzers.whatif.reference_server import poisson

#: 10 ms an iteration and 1 ms a prefilled token: figures that a person can check by head.
PLAIN = EngineModel(
    IterationCost(0.01, per_prefill_token_s=0.001), EngineLimits(4, 1000, kv_tokens=4096, max_model_len=3000)
)
HEAD = "arrival_s,prompt_tokens,output_tokens\n"
FIELDS = {
    "schema_version", "requests", "completed", "rejected", "timed_out", "ttft_s", "itl_s", "tpot_s", "e2e_s",
    "requests_per_s", "output_tokens_per_s", "goodput_per_s", "running_mean", "waiting_mean", "kv_usage_max", "preemptions",
    "replica_hours", "cost_usd", "simulated_s", "wall_s", "saturated", "objective", "meets_objective", "candidates",
    "verdict", "misfit", "warnings",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.stdout, "width", 240)
    monkeypatch.setattr(output.console, "width", 240)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "engine.json"
    path.write_text(PLAIN.to_json())
    return path


def trace(tmp_path: Path, *rows: str, head: str = HEAD) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(head + "".join(f"{row}\n" for row in rows))
    return path


def run(*arguments: str | Path | float) -> Result:
    return CliRunner().invoke(app, ["whatif", *map(str, arguments)])


def _not_json(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def answer(*arguments: str | Path | float) -> dict[str, Any]:
    result = run(*arguments, "-o", "json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout, parse_constant=_not_json)
    assert isinstance(found, dict)
    return found


# -- from a trace -------------------------------------------------------------------------------------------------------


def test_one_request_by_hand(tmp_path: Path, engine: Path) -> None:
    """100 prompt tokens: 110 ms to the first token, then two gaps of 10 ms."""
    got = answer("--trace", trace(tmp_path, "0.5,100,3"), "--engine", engine, "--usd-per-replica-hour", 3600)
    assert set(got) >= FIELDS
    assert got["schema_version"] == 1
    assert (got["requests"], got["completed"], got["rejected"], got["timed_out"]) == (1, 1, 0, 0)
    assert got["ttft_s"] == pytest.approx(dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), 0.11))
    assert got["tpot_s"]["p99"] == pytest.approx(0.01)
    assert got["itl_s"]["mean"] == pytest.approx(0.01)
    assert got["e2e_s"]["mean"] == pytest.approx(0.13)
    assert got["simulated_s"] == pytest.approx(0.63)
    assert got["requests_per_s"] == got["goodput_per_s"] == pytest.approx(1 / 0.63)
    assert got["output_tokens_per_s"] == pytest.approx(3 / 0.63)
    assert got["replica_hours"] == pytest.approx(0.63 / 3600)
    assert got["cost_usd"] == pytest.approx(0.63)
    assert got["objective"] == []
    assert got["meets_objective"] is None
    assert got["saturated"] is False
    assert got["wall_s"] > 0
    assert got["candidates"][0]["ttft_s"] == got["ttft_s"]


def test_an_argument_without_a_known_effect_is_said_and_a_slip_of_the_pen_refused(tmp_path: Path, engine: Path) -> None:
    arguments = ("--trace", trace(tmp_path, "0.5,100,3"), "--engine", engine)
    got = answer(*arguments, "--shape", "enforce_eager=true", "--candidate", "enforce_eager=true,max_num_seqs=2")
    assert got["candidates"][1]["shape"]["limits"]["max_num_seqs"] == 2
    assert [note for note in got["notes"] if "enforce_eager: no effect of it" in note] == [got["notes"][0]]
    for slip, meant in (("max_num_seq=2", "max_num_seqs"), ("replica=2", "replicas")):
        result = run(*arguments, "--candidate", slip)
        assert result.exit_code == 2
        assert f"did you mean {meant}?" in result.stderr


def test_what_is_not_known_is_null(tmp_path: Path, engine: Path) -> None:
    """The only request is larger than the model: nothing came of it, and nothing has a price."""
    arguments = ("--trace", trace(tmp_path, "0,4000,3"), "--engine", engine, "--objective", "ttft_p95=1")
    got = answer(*arguments)
    assert (got["requests"], got["completed"], got["rejected"]) == (1, 0, 1)
    assert set(got["ttft_s"].values()) == {None}
    assert got["cost_usd"] is None
    assert got["goodput_per_s"] is None
    assert got["objective"] == [{"target": "ttft_p95_s", "limit": 1.0, "value": None, "met": None}]
    assert got["meets_objective"] is None
    assert "0 of 1 requests completed" in run(*arguments).stdout


def test_candidates_are_what_the_engine_says_of_each(tmp_path: Path) -> None:
    work = poisson(8.0, 60.0, 1)
    write_trace(work, tmp_path / "t.parquet")
    (tmp_path / "e.json").write_text(MODEL.to_json())
    (tmp_path / "other.json").write_text(replace(MODEL, iteration=IterationCost(0.02)).to_json())
    got = answer(
        *(
            "--trace",
            tmp_path / "t.parquet",
            "--engine",
            tmp_path / "e.json",
            "--replicas",
            2,
            "--shape",
            "max_num_seqs=32",
        ),
        *(
            "--router",
            "least_outstanding",
            "--usd-per-replica-hour",
            2,
            "--objective",
            "ttft_p95=0.2",
            "--objective",
            "itl_p95=1",
        ),
        *("--candidate", "replicas=1", "--candidate", "max_num_seqs=8,router=round_robin"),
        *("--candidate", f"engine={tmp_path / 'other.json'},usd_per_replica_hour=0.5"),
    )
    small, tiny = MODEL.with_limits(max_num_seqs=32), MODEL.with_limits(max_num_seqs=8)
    expected = [
        (replay(work, small, replicas=2, router="least_outstanding"), 4.0),
        (replay(work, small, replicas=1, router="least_outstanding"), 2.0),
        (replay(work, tiny, replicas=2, router="round_robin"), 4.0),
        (replay(work, replace(MODEL, iteration=IterationCost(0.02)), replicas=2, router="least_outstanding"), 1.0),
    ]
    assert len(got["candidates"]) == 4
    for candidate, (by_hand, per_hour) in zip(got["candidates"], expected, strict=True):
        for metric in ("ttft_s", "itl_s", "tpot_s", "e2e_s"):
            assert candidate[metric]["p95"] == by_hand.distribution(metric).quantile(0.95)
            assert candidate[metric]["mean"] == by_hand.distribution(metric).mean
        assert candidate["goodput_per_s"] == by_hand.goodput_per_s({"ttft_s": 0.2, "itl_s": 1.0})
        assert candidate["usd_per_hour"] == per_hour
        ttft, itl = candidate["objective"]
        assert ttft["met"] == (by_hand.ttft.quantile(0.95) <= 0.2)  # type: ignore[operator]
        assert itl["met"] is True
        assert candidate["meets_objective"] == (ttft["met"] and not by_hand.saturated)
    assert [c["candidate"] for c in got["candidates"]][:2] == ["2 replicas, max_num_seqs=32", "replicas=1"]
    assert {c["objective"][0]["met"] for c in got["candidates"]} == {True, False}, "the objective tells nothing apart"


def test_a_queue_that_grows_meets_no_objective(tmp_path: Path, engine: Path) -> None:
    rows = [f"{i * 0.02},100,5" for i in range(2000)]
    got = answer(
        "--trace", trace(tmp_path, *rows), "--engine", engine, "--objective", "itl_p50=4", "--candidate", "replicas=9"
    )
    assert (got["saturated"], got["objective"][0]["met"], got["meets_objective"]) == (True, True, False)
    nine = got["candidates"][1]
    assert (nine["saturated"], nine["meets_objective"]) == (False, True)


def test_goodput_and_error_rate_by_hand(tmp_path: Path, engine: Path) -> None:
    """Two that fit, one that waits for the first two, one too large."""
    rows = ("0,100,1", "10,900,1", "10,900,1", "20,4000,1")
    got = answer(
        *(
            "--trace",
            trace(tmp_path, *rows),
            "--engine",
            engine,
            "--objective",
            "ttft_p99_s=1.2",
            "--objective",
            "ttft_p50=0.2",
        ),
        *("--objective", "error_rate=0.2"),
    )
    assert got["goodput_per_s"] == pytest.approx(2 / got["simulated_s"])  # of two limits on TTFT, the wider
    assert [(o["target"], o["value"], o["met"]) for o in got["objective"]] == [
        ("ttft_p99_s", pytest.approx(1.01 + 0.98 * 0.81), False),
        ("ttft_p50_s", pytest.approx(1.01), False),
        ("error_rate", 0.25, False),
    ]


def test_timeout_and_speed(tmp_path: Path, engine: Path) -> None:
    given = trace(tmp_path, "0,100,3", "8,100,100")
    got = answer("--trace", given, "--engine", engine, "--timeout", "0.5", "--speed", "4")
    assert (got["completed"], got["timed_out"], got["timeout_s"]) == (1, 1, 0.5)
    assert got["trace"]["duration_s"] == 2.0
    assert got["notes"] == ["arrivals 4 times as fast as in the trace"]
    assert 2.5 <= got["simulated_s"] <= 2.6
    assert answer("--trace", given, "--engine", engine)["completed"] == 2


def test_each_requests_own_times(tmp_path: Path, engine: Path) -> None:
    rows = ("0,100,3", "5,4000,3", "10,100,1", "20,100,100")
    out = tmp_path / "requests.csv"
    answer("--trace", trace(tmp_path, *rows), "--engine", engine, "--timeout", 0.5, "--requests-out", out)
    with out.open(newline="") as file:
        found = list(csv.DictReader(file))
    names = ["arrival_s", "prompt_tokens", "output_tokens", "queue_s", "ttft_s", "tpot_s", "e2e_s", "state"]
    assert list(found[0]) == names
    assert [row["state"] for row in found] == ["completed", "rejected", "completed", "timed_out"]
    first = [float(found[0][name]) for name in names[:-1]]
    assert first == pytest.approx([0, 100, 3, 0, 0.11, 0.01, 0.13])
    assert [found[1][name] for name in names[3:7]] == ["", "", "", ""]
    assert (found[2]["tpot_s"], found[3]["e2e_s"]) == ("", "")  # one token has no gap; the other never ended
    assert float(found[2]["e2e_s"]) == pytest.approx(0.11)


def test_only_the_answer_goes_to_standard_output(tmp_path: Path, engine: Path) -> None:
    given = trace(tmp_path, "0,100,3,eve", head="arrival_s,prompt_tokens,output_tokens,user\n")
    result = run("--trace", given, "--engine", engine, "-o", "json", "--html", tmp_path / "p.html")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["notes"] == ["columns that are not used: user"]
    assert "note: columns that are not used: user" in result.stderr
    assert f"Wrote {tmp_path / 'p.html'}" in result.stderr


def test_the_table(tmp_path: Path, engine: Path) -> None:
    arguments = ("--trace", trace(tmp_path, "0,100,3"), "--engine", engine, "--candidate", "replicas=2")
    text = run(*arguments, "--objective", "ttft_p90=0.2", "--usd-per-replica-hour", 2).stdout
    rows = [line.split() for line in text.splitlines()]
    assert ["1", "1", "replica", "$2.00", "0.11", "0.11", "0.01", "0.13", "0.11", "7.69", "met"] in rows
    assert ["2", "replicas=2", "$4.00", "0.11", "0.11", "0.01", "0.13", "0.11", "7.69", "met"] in rows
    assert ["1", "1", "replica", "-", "0.11", "0.11", "0.01", "0.13", "7.69", "-"] in [
        line.split() for line in run(*arguments).stdout.splitlines()
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give either --trace FILE --engine ENGINE.json, or --endpoint NAME"),
        (("--trace", "T", "--endpoint", "chat"), "give either"),
        (("--trace", "T"), "--trace needs --engine"),
        (("--trace", "T", "--engine", "E", "--since", "7d"), "--since: no option of a question with --trace"),
        (("--endpoint", "chat", "--engine", "E", "--timeout", "3"), "--engine, --timeout: no option"),
        (("--trace", "none.csv", "--engine", "E"), "none.csv: cannot be read"),
        (("--trace", "T", "--engine", "none.json"), "none.json: cannot be read"),
        (("--trace", "T", "--engine", "E", "--trace-format", "vidur"), "cannot be read as 'vidur'"),
        (("--trace", "T", "--engine", "E", "--shape", "max_num_seq=4"), "did you mean max_num_seqs?"),
        (("--trace", "T", "--engine", "E", "--shape", "max_num_seqs=many"), "limits.max_num_seqs must be a whole number"),
        (("--trace", "T", "--engine", "E", "--shape", "max_num_seqs"), "is no NAME=VALUE"),
        (("--trace", "T", "--engine", "E", "--shape", "kv_tokens=4"), "is less than one block"),
        (("--trace", "T", "--engine", "E", "--candidate", "replicas=0"), "replicas=0: write a whole number"),
        (("--trace", "T", "--engine", "E", "--candidate", "replicas=2,replicas=3"), "given twice"),
        (("--trace", "T", "--engine", "E", "--candidate", "accelerator=L40S,replicas=2"), "does not tell how accelerator=L40S"),
        (("--trace", "T", "--engine", "E", "--candidate", "usd_per_replica_hour=low"), "write US dollars"),
        (("--trace", "T", "--engine", "E", "--candidate", "engine=none.json"), "none.json: cannot be read"),
        (("--trace", "T", "--engine", "E", "--router", "random"), "router random: known: least_outstanding"),
        (("--trace", "T", "--engine", "E", "--objective", "ttft=1"), "expected error_rate, throttle_rate, or ttft"),
        (("--trace", "T", "--engine", "E", "--objective", "ttft_p95=fast"), "write NAME=DURATION"),
        (("--trace", "T", "--engine", "E", "--objective", "ttft_p95=0"), "must be above 0"),
        (("--trace", "T", "--engine", "E", "--speed", "0"), "--speed 0: give a number above 0"),
        (("--trace", "T", "--engine", "E", "--timeout", "-1"), "is no duration"),
        (("--trace", "T", "--engine", "E", "--usd-per-replica-hour", "nan"), "--usd-per-replica-hour nan"),
        (("--trace", "T", "--engine", "E", "--requests-out", "/nowhere/r.csv"), "--requests-out /nowhere/r.csv: cannot be written"),
        (("--trace", "T", "--engine", "E", "--html", "/nowhere/p.html"), "--html /nowhere/p.html: cannot be written"),
    ],
)  # fmt: skip
def test_bad_questions_exit_with_2(tmp_path: Path, engine: Path, arguments: tuple[str, ...], says: str) -> None:
    files = {"T": str(trace(tmp_path, "0,100,3")), "E": str(engine)}
    result = run(*(files.get(a, a) for a in arguments))
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda e: e["limits"].pop("max_num_seqs"), "limits.max_num_seqs: missing"),
        (lambda e: e["iteration"].update(base_s=-1), "iteration.base_s must be a finite number"),
        (lambda e: e.update(colour="red"), "colour: unknown field"),
        (lambda e: e.update(schema_version=9), "schema_version: 9"),
    ],
)
def test_bad_engine_files_name_file_and_field(tmp_path: Path, engine: Path, change: Any, says: str) -> None:
    data = json.loads(engine.read_text())
    change(data)
    engine.write_text(json.dumps(data))
    result = run("--trace", trace(tmp_path, "0,100,3"), "--engine", engine)
    assert result.exit_code == 2
    assert f"{engine}: {says}" in result.stderr
    engine.write_text("{")
    result = run("--trace", trace(tmp_path, "0,100,3"), "--engine", engine)
    assert result.exit_code == 2
    assert f"{engine}: " in result.stderr


def test_bad_traces_name_file_and_line(tmp_path: Path, engine: Path) -> None:
    given = trace(tmp_path, "0,100,3", "-1,100,3")
    result = run("--trace", given, "--engine", engine)
    assert result.exit_code == 2
    assert f"{given}:3: arrival_s is -1" in result.stderr


def test_settings_by_their_names() -> None:
    assert grammar.with_settings(PLAIN, {"enable_chunked_prefill": False}).chunked_prefill is False
    assert grammar.with_settings(PLAIN, {"kv_tokens": None}).limits.kv_tokens is None
    assert grammar.with_settings(PLAIN, {"base_s": 0.5, "max_num_seqs": 2}) == replace(
        PLAIN, iteration=replace(PLAIN.iteration, base_s=0.5), limits=replace(PLAIN.limits, max_num_seqs=2)
    )
    assert grammar.with_settings(PLAIN, {"accept_length": 2.5}).accept_length == 2.5
    assert grammar.settings(["a=1,b=0.5", "a=true", "c=fp8"], "--shape", []) == {"a": True, "b": 0.5, "c": "fp8"}


def test_spans() -> None:
    assert [grammar.span(t) for t in ("7d", "36h", "1.5 h", "90m", "45s", "1W")] == [
        604_800.0, 129_600.0, 5400.0, 5400.0, 45.0, 604_800.0,
    ]  # fmt: skip
    for bad in ("7", "d", "0d", "-1d", "7 days", ""):
        with pytest.raises(BadQuestion, match="write a span"):
            grammar.span(bad)


def test_candidates_side_by_side_are_what_each_is_alone(tmp_path: Path) -> None:
    traffic = ReplayTraffic(poisson(5.0, 20.0, 2), Objective.from_mapping({"ttft_p95_s": 0.2}))
    (tmp_path / "e.json").write_text(MODEL.to_json())
    others = ["replicas=2", "max_num_seqs=4", "replicas=3", "accept_length=2.5"]
    tried = candidates(tmp_path / "e.json", others=others, notes=[])
    done: list[int] = []
    together = replays.all_replayed(traffic, tried, advance=lambda: done.append(1))
    assert len(done) == len(tried)
    for candidate, outcome in zip(tried, together, strict=True):
        alone = replays.replayed(traffic, candidate)
        assert alone.curves == outcome.curves
        assert {k: v for k, v in alone.figures.items() if k != "wall_s"} == {
            k: v for k, v in outcome.figures.items() if k != "wall_s"
        }


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['flyball', 'whatif', '--help']\nfrom agent.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'numba', 'numpy', 'altair', 'scipy', 'sqlalchemy', 'pyarrow', 'jinja2'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "[]\n")
    assert "--candidate" in ended.stdout


# -- from the store -----------------------------------------------------------------------------------------------------


@pytest.fixture
def own(telemetry: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    for name in ("flyball.yaml", "flyball.db"):
        (tmp_path / name).write_bytes((telemetry.parent / name).read_bytes())
    return tmp_path / "flyball.yaml"


def test_candidates_from_the_store(telemetry: Path, tmp_path: Path) -> None:
    got = answer(
        *("-c", telemetry, "--endpoint", "chat", "--since", "35m", "--html", tmp_path / "p.html"),
        *("--candidate", "replicas=2", "--candidate", "accelerator=L40S,replicas=2", "--candidate", "size=a100x2"),
        *(
            "--candidate",
            "accelerator=H100",
            "--candidate",
            "accelerator=T4",
            "--candidate",
            "max_num_batched_tokens=64",
        ),
    )
    present, two, l40s, pair, h100, t4, wrong = got["candidates"]
    assert present["candidate"] == "present"
    assert present["shape"] == SHAPE.as_dict()
    assert got["prediction"] == present["prediction"]
    assert 5_000 < got["evidence"]["requests"] < 6_500
    assert [c["usd_per_hour"] for c in got["candidates"]] == [3.5, 7.0, 3.0, 7.0, None, None, 3.5]
    assert (l40s["shape"]["size"], l40s["shape"]["accelerator"], l40s["shape"]["replicas"]) == ("l40s", "L40S", 2)
    assert (t4["shape"].get("size"), t4["shape"]["accelerator"]) == (None, "T4")
    assert pair["shape"]["accelerator_count"] == 2
    for candidate in (present, two, l40s, pair, h100, t4):
        interval = candidate["prediction"]["metrics"]["itl_p95_s"]
        assert interval["low"] <= interval["mid"] <= interval["high"]
    speed = {c["candidate"]: c["prediction"]["metrics"]["itl_p50_s"]["mid"] for c in (present, h100, l40s)}
    assert speed["accelerator=H100"] < speed["present"] < speed["accelerator=L40S,replicas=2"]
    truth = replay(poisson(4.0, 1200.0, 5), MODEL).itl.quantile(0.5)
    assert present["prediction"]["metrics"]["itl_p50_s"]["mid"] == pytest.approx(truth, rel=0.15)
    assert present["objective"][0]["target"] == "ttft_p95_s"
    assert present["meets_objective"] is True
    assert wrong["prediction"] is None
    assert wrong["refused"]["code"] == "INVALID_LIMITS"
    assert wrong["meets_objective"] is None
    assert "<svg" in (tmp_path / "p.html").read_text()


def test_the_table_from_the_store(telemetry: Path) -> None:
    result = run(
        "-c", telemetry, "--endpoint", "chat", "--candidate", "max_num_batched_tokens=64", "--objective", "e2e_p99=9"
    )
    assert result.exit_code == 0, result.output
    assert "present" in result.stdout
    assert "1 x a100" in result.stdout
    assert "2: not predicted." in result.stdout
    assert " to " in result.stdout
    assert "e2e" in result.stdout


def test_calibrated_on_what_came_since_the_last_change(own: Path) -> None:
    store = Store(f"sqlite:///{own.parent}/flyball.db")
    now = WallClock().now()
    with store.write() as db:
        fleet.changed(db, "chat", now - 1200)
    store.close()
    got = answer("-c", own, "--endpoint", "chat", "--since", "35m")
    assert "since the last change; the traffic is that of all" in got["notes"][0]
    assert got["calibration"]["windows"] < 20
    assert got["evidence"]["windows"] > 25


def test_objective_and_speed_are_the_callers(telemetry: Path) -> None:
    slow = answer("-c", telemetry, "--endpoint", "chat", "--objective", "itl_p95=0.0001")
    assert [o["target"] for o in slow["objective"]] == ["itl_p95_s"]
    assert slow["meets_objective"] is False
    fast = answer("-c", telemetry, "--endpoint", "chat", "--speed", "100")
    assert fast["saturates"] == 1.0
    assert fast["meets_objective"] is False


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--endpoint", "chart"), "--endpoint chart: did you mean chat?"),
        (("--endpoint", "chat", "--since", "week"), "--since week: write a span"),
        (
            ("--endpoint", "chat", "--candidate", "accelerator=L50S"),
            "accelerator=L50S: its bandwidth is not known; did you mean L40S?",
        ),
        (("--endpoint", "chat", "--candidate", "size=a101"), "the settings' sizes do not have it; did you mean a100?"),
        (("--endpoint", "chat", "--candidate", "size=a100,accelerator=H100"), "give one"),
        (
            ("--endpoint", "chat", "--candidate", "accelerator_count=half"),
            "accelerator_count=half: write a whole number",
        ),
        (("--endpoint", "chat", "--candidate", "replicas=1.5"), "replicas=1.5: write a whole number"),
        (("--endpoint", "chat", "--candidate", "max_num_seqs=none"), "give a value"),
        (("--endpoint", "chat", "--router", "x"), "router x"),
    ],
)
def test_bad_questions_to_the_store_exit_with_2(telemetry: Path, arguments: tuple[str, ...], says: str) -> None:
    result = run("-c", telemetry, *arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert result.stdout == ""


def test_without_telemetry_it_refuses(tmp_path: Path, sqlite_template: Path) -> None:
    (tmp_path / "flyball.yaml").write_text(SETTINGS)
    (tmp_path / "flyball.db").write_bytes(sqlite_template.read_bytes())
    result = run("-c", tmp_path / "flyball.yaml", "--endpoint", "chat")
    assert result.exit_code == 1
    assert "NO_TRAFFIC" in result.stderr
    assert result.stdout == ""


def test_older_telemetry_is_read_as_rolled_up(own: Path) -> None:
    store = Store(f"sqlite:///{own.parent}/flyball.db")
    now = WallClock().now()
    windows.roll_up(store, now, 60.0)
    with store.write() as db:
        windows.age_out(db, now, {60.0: 900.0})
    with store.read() as db:
        assert windows.load(db, "chat", "vllm", now - 3600, now, 300.0)
    from agent.configfile import load

    found = predictions.evidence(store, load(own).settings, "chat", 3600.0, now)
    store.close()
    widths = [w.duration_s for w in found.windows]
    assert set(widths) == {300.0, 60.0}
    assert widths == sorted(widths, reverse=True)
    ends = np.array([w.end for w in found.windows])
    starts = np.array([w.start for w in found.windows])
    assert np.all(starts[1:] >= ends[:-1] - 1e-6), "a minute is counted twice"


def test_recorded_requests_tell_how_an_endpoints_lengths_go_together(own: Path) -> None:
    from agent.configfile import load

    store, now = Store(f"sqlite:///{own.parent}/flyball.db"), WallClock().now()
    settings = load(own).settings
    before = predictions.evidence(store, settings, "chat", 3600.0, now)
    assert before.lengths is None
    records = [
        FlightRecord(f"{i:032x}", "server", now - 600 + i, prompt_tokens=10 * i, output_tokens=i) for i in range(1, 301)
    ]
    with store.write() as db:
        flights.keep(db, [("chat", each) for each in records])
    after = predictions.evidence(store, settings, "chat", 3600.0, now)
    store.close()
    plain, dealt = before.traffic(seed=1), after.traffic(seed=1)
    assert np.array_equal(plain.prompt_tokens, dealt.prompt_tokens)
    assert np.array_equal(np.sort(plain.output_tokens), np.sort(dealt.output_tokens))
    first = slice(0, 512)
    together = [float(np.corrcoef(w.prompt_tokens[first], w.output_tokens[first])[0, 1]) for w in (plain, dealt)]
    assert together[0] < 0.3
    assert together[1] > together[0] + 0.3


def test_the_answer_says_what_the_trace_was_read_as(engine: Path, tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0.25 * i + 0.013, "input_length": 100, "output_length": 5, "chat_id": i, "turn": 1}
        for i in range(41)
    ]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = run("--trace", file, "--engine", engine)
    assert said.exit_code == 0, said.output
    assert "read as bailian, times in s; 41 requests in 10 s, 4 a second on average" in said.stdout
    assert "columns that are not used: chat_id, turn" in said.stderr
    told = json.loads(run("--trace", file, "--engine", engine, "-o", "json").stdout)["trace"]
    assert (told["format"], told["time_unit"], told["span_s"], told["rate_per_s"]) == ("bailian", "s", 10.0, 4.0)
    assert told["unread_columns"] == ["chat_id", "turn"]
    hasty = run("--trace", file, "--engine", engine, "--time-unit", "ms", "-o", "json")
    assert json.loads(hasty.stdout)["trace"]["span_s"] == pytest.approx(0.01)
    assert run("--trace", file, "--engine", engine, "--time-unit", "min").exit_code == 2
