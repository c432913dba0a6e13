"""`flyball simulate`, the command: what it answers, what it refuses, how it stops, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from agent.cli import app, output
from agent.simulate.profile import shape_of
from agent.simulate.request import Prices
from agent.simulate.run import _Guard
from agent.store import Store, windows
from collectors.loadtests import read
from collectors.traces import write_trace
from collectors.window import Window
from collectors.workload import Workload
from tests.collectors.exact import Exact, exact

FLYBALL = [sys.executable, "-m", "agent"]


@pytest.fixture(scope="module")
def server() -> Iterator[Exact]:
    with exact() as served:
        yield served


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.stdout, "width", 240)
    monkeypatch.setattr(output.console, "width", 240)


def run(*arguments: str | Path, code: int | set[int] = 0) -> Result:
    result = CliRunner().invoke(app, ["simulate", *map(str, arguments)])
    codes = {code} if isinstance(code, int) else code
    assert result.exit_code in codes, (result.exit_code, result.stdout, result.stderr, result.exception)
    return result


def asked(server: Exact, *arguments: str | Path, code: int | set[int] | None = None) -> dict[str, Any]:
    """The JSON answer. A machine that does other things may make the client late: then the answer says so, and exits 3."""
    found = run("--url", server.url, *arguments, "-o", "json", code={0, 3} if code is None else code)
    answer = json.loads(found.stdout)
    assert isinstance(answer, dict)
    return answer


def test_the_answer_has_its_schema(server: Exact) -> None:
    answer = asked(
        server,
        "--rate",
        "20",
        "--duration",
        "1.5",
        "--output-tokens",
        "fixed:10",
        "--objective",
        "ttft_p95=5",
        "--usd-per-hour",
        "3.6",
    )
    assert answer["schema_version"] == 1
    assert answer["definitions"]["version"] == 1
    assert answer["valid"] is (answer["invalid_reasons"] == [])
    assert answer["stopped"] is None
    assert answer["planned"] == answer["sent"] == answer["completed"] + answer["warmup_requests"]
    assert answer["errors"] == {}
    for name in ("ttft_s", "ttft_sent_s", "itl_s", "icl_s", "tpot_s", "e2e_s", "normalized_s"):
        figures = answer[name]
        assert set(figures) >= {"mean", "p50", "p90", "p95", "p99", "p99.9", "count"}
        assert figures["p50"] <= figures["p90"] <= figures["p95"] <= figures["p99"] <= figures["p99.9"]
    assert answer["ttft_s"]["count"] == answer["completed"]
    low, high = answer["ttft_s"]["ci95"]["p50"]
    assert low <= answer["ttft_s"]["p50"] <= high
    assert answer["ttft_s"]["ci95"]["p99.9"][1] is None, "so few requests do not bound it"
    assert answer["output_tokens"]["mean"] == 10
    assert answer["tokens"] == {"source": {"usage": answer["completed"]}, "packing": {"one": answer["completed"]}}
    assert 0 < answer["goodput_per_s"] <= answer["requests_per_s"]
    assert answer["attainment"]["share"] == 1
    assert answer["attainment"]["low"] < 1
    assert answer["objective"] == [
        {"target": "ttft_p95_s", "limit": 5, "observed": answer["ttft_s"]["p95"], "met": True}
    ]
    assert answer["cost_usd"] == pytest.approx(0.001 * answer["elapsed_s"])
    assert answer["cost_per_call_usd"] == pytest.approx(answer["cost_usd"] / answer["sent"])
    assert {"cpu_s", "lateness_p99_s", "read_delay_p99_s", "workers"} <= set(answer["client"])
    assert sum(s["completed_per_s"] * s["seconds"] for s in answer["slices"] if s["seconds"] > 0) == pytest.approx(
        answer["sent"]
    )


def test_without_price_and_objective_cost_and_goodput_are_unknown(server: Exact) -> None:
    answer = asked(server, "--concurrency", "3", "--duration", "1", "--output-tokens", "fixed:5", "--warmup", "0")
    assert (answer["cost_usd"], answer["goodput_per_s"], answer["attainment"]) == (None, None, None)
    assert answer["load"]["kind"] == "closed"
    assert answer["warmup_requests"] == 0
    assert answer["sent"] >= 3


def test_the_table_says_it_in_words(server: Exact) -> None:
    found = run("--url", server.url, "--rate", "10", "--duration", "1", "--output-tokens", "fixed:5", code={0, 3})
    assert "TTFT" in found.stdout
    assert "errors: none" in found.stdout
    assert f"To {server.url}" in found.stderr, "the estimate is shown before it starts"


def test_pages_records_and_other_formats(server: Exact, tmp_path: Path) -> None:
    page, rows, table = tmp_path / "a.html", tmp_path / "a.jsonl", tmp_path / "a.parquet"
    theirs, other = tmp_path / "g.json", tmp_path / "a.json"
    answer = asked(
        server, "--rate", "20", "--duration", "1", "--output-tokens", "fixed:40", "--html", page, "--save", rows,
        "--export", f"guidellm:{theirs}", "--export", f"aiperf:{other}",
    )  # fmt: skip
    text = page.read_text()
    assert text.count("<svg") >= 4
    assert "http://" not in text.replace("http://www.w3.org", "").replace(server.url, "")
    assert "<script" not in text
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(records) == answer["sent"]
    assert {r["output_tokens"] for r in records} == {40}
    assert all(r["due_s"] <= r["sent_s"] <= r["first_s"] <= r["last_s"] for r in records)
    for path, source in ((theirs, "guidellm"), (other, "aiperf")):
        (test,) = read(path)
        assert (test.source, test.completed, test.failed, test.model) == (source, answer["completed"], 0, "exact")
        assert test.latency["ttft_s"].mean == pytest.approx(answer["ttft_sent_s"]["mean"])
        # A client that stalls times gaps that are not those of the whole; then the reader takes those of the whole, and says so.
        stalled = any("taken instead" in note for note in test.notes)
        assert stalled or test.latency["tpot_s"].p50 == pytest.approx(answer["tpot_s"]["p50"])
        assert test.throughput_per_s == pytest.approx(answer["requests_per_s"])
    asked(server, "--concurrency", "2", "--duration", "0.5", "--output-tokens", "fixed:40", "--save", table)
    assert pq.read_table(table).column("error").null_count == pq.read_table(table).num_rows > 0


PROFILES = {
    "steps": "steps: [[0.5, 10], [0.5, 20]]\narrivals: constant",
    "points": "points: [[0, 0], [1, 30]]\narrivals: constant",
    "day": "day: {rates: [10, 20], seconds: 1}\narrivals: constant\nduration_s: 1",
    "bursts": "bursts: {rates: [5, 40], dwell_s: [0.3, 0.2]}\nduration_s: 1",
    "users": "users: 3\nthink: exponential:0.05\nduration_s: 1",
    "sessions": "rate: 8\nturns: fixed:2\nthink: fixed:0.05\nprefix_tokens: 30\nduration_s: 1\narrivals: constant",
}


@pytest.mark.parametrize("name", PROFILES)
def test_profiles(server: Exact, tmp_path: Path, name: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(PROFILES[name] + "\noutput_tokens: fixed:3\nprompt_tokens: fixed:20\n")
    answer = asked(server, "--profile", path, "--warmup", "0")
    assert answer["errors"] == {}
    assert answer["completed"] == answer["sent"] > 0
    wanted = {"steps": 15, "points": 15, "day": 15}.get(name)
    assert wanted is None or answer["sent"] == wanted
    if name == "sessions":
        assert answer["load"]["kind"] == "sessions"
        assert 8 <= answer["sent"] <= 16


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("steps: [[1m, 5], [500ms, 2]]", "steps: [[60, 5], [0.5, 2]]"),
        ("points: [[0, 5], [2m, 2]]", "points: [[0, 5], [120, 2]]"),
        ("day: {rates: [1, 2], seconds: 1d}\nduration_s: 2h", "day: {rates: [1, 2], seconds: 86400}\nduration_s: 7200"),
        ("bursts: {rates: [1, 2], dwell_s: [500ms, 2s]}\nduration_s: 1m", "bursts: {rates: [1, 2], dwell_s: [0.5, 2]}\nduration_s: 60"),
    ],
)  # fmt: skip
def test_times_of_a_profile_are_durations(tmp_path: Path, text: str, same: str) -> None:
    found = []
    for name, written in (("a", text), ("b", same)):
        (tmp_path / name).write_text(written)
        profile = shape_of(tmp_path / name)
        found.append((profile.duration_s, profile.rates(profile.duration_s or 0.0, 1)))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rate: 5\nusers: 3", "give one of"),
        ("rats: 5", "did you mean rate"),
        ("[1, 2]", "names with values"),
        ("steps: [[1]]", "pairs of seconds"),
        ("rate: -1\nduration_s: 5", "above 0"),
        ("rate: .nan\nduration_s: 5", "above 0"),
        ("day: {rates: [1, x]}\nduration_s: 5", "requests per second"),
        ("bursts: {rates: [1, 2], dwell_s: [1]}\nduration_s: 5", "as many dwell_s"),
        ("users: many\nduration_s: 5", "no whole number"),
        ("rate: 5\nprompt_tokens: zipf:2\nduration_s: 5", "expected 100"),
        ("rate: 5", "--duration"),
        ("a: [", "is not YAML"),
    ],
)
def test_profiles_that_say_nothing_sensible(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    assert says in run("--url", "http://127.0.0.1:1", "--profile", path, code=2).stderr


def test_a_trace_is_sent_again_faster(server: Exact, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    n = np.arange(1, 21)
    write_trace(Workload(n / 5.0, n * 0 + 30, n % 4 + 2, n * 0), path)
    answer = asked(server, "--trace", path, "--speed", "4", "--warmup", "0")
    assert (answer["sent"], answer["completed"]) == (20, 20)
    assert answer["load"] | {"trace": "t.csv", "speed": 4, "requests": 20} == answer["load"]
    assert answer["output_tokens"]["mean"] == float((n % 4 + 2).mean())
    assert answer["load"]["duration_s"] == pytest.approx(1.0, abs=0.01)
    assert asked(server, "--trace", path, "--duration", "2", "--speed", "4", "--max-requests", "99")["sent"] == 20
    assert "none.csv" in run("--url", server.url, "--trace", tmp_path / "none.csv", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--rate", "5"), "--duration"),
        ((), "one of --rate"),
        (("--rate", "5", "--concurrency", "3", "--duration", "1"), "not --rate and --concurrency"),
        (("--rate", "-5", "--duration", "1"), "above 0"),
        (("--rate", "5", "--duration", "1", "--warmup", "1"), "less than"),
        (("--rate", "5", "--duration", "1", "--output-tokens", "x"), "expected 100"),
        (("--rate", "5", "--duration", "1", "--arrivals", "zipf"), "known are constant"),
        (("--rate", "5", "--duration", "1", "--api", "grpc"), "known are chat"),
        (("--rate", "5", "--duration", "1", "--header", "nonsense"), "NAME: VALUE"),
        (("--rate", "5", "--duration", "1", "--api-key-env", "NO_SUCH_KEY"), "no such variable"),
        (("--rate", "5", "--duration", "1", "--save", "x.csv"), ".parquet or .jsonl"),
        (("--rate", "5", "--duration", "1", "--extra", "[1]"), "JSON object"),
        (("--rate", "5", "--duration", "1", "--objective", "speed=1"), "speed"),
        (("--rate", "50", "--duration", "10", "--max-rate", "20"), "--max-rate 20"),
        (("--rate", "50", "--duration", "10", "--max-requests", "20"), "--max-requests 20"),
        (("--rate", "50", "--duration", "10", "--max-tokens", "200"), "--max-tokens 200"),
        (("--rate", "50", "--duration", "10", "--max-usd", "0.01"), "no price is known"),
        (("--rate", "50", "--duration", "100", "--max-usd", "0.01", "--usd-per-hour", "36"), "--max-usd 0.01"),
        (("--concurrency", "0", "--duration", "1"), "1 or more"),
    ],
)  # fmt: skip
def test_wrong_questions_are_answered_before_anything_is_sent(
    server: Exact, arguments: tuple[str, ...], says: str
) -> None:
    before = server.log()["requests"]
    found = run("--url", server.url, *arguments, code=2)
    assert says in " ".join(found.stderr.split())
    assert server.log()["requests"] == before


def test_a_server_that_is_not_there() -> None:
    assert "down" in run("--url", "http://127.0.0.1:9", "--model", "m", "--rate", "5", "--duration", "1", code=1).stderr
    assert "dns" in run("--url", "http://no-such-host.invalid", "--rate", "5", "--duration", "1", code=1).stderr


def test_users_are_stopped_at_a_cap(server: Exact) -> None:
    answer = asked(
        server,
        "--concurrency",
        "4",
        "--duration",
        "60",
        "--output-tokens",
        "fixed:2",
        "--max-requests",
        "12",
        "--warmup",
        "0",
    )
    assert answer["sent"] == 12
    answer = asked(
        server,
        "--concurrency",
        "4",
        "--duration",
        "60",
        "--output-tokens",
        "fixed:2",
        "--max-tokens",
        "2000",
        "--warmup",
        "0",
    )
    assert answer["stopped"] == "cap_tokens"
    assert answer["elapsed_s"] < 50


def test_what_users_will_send_is_a_guess_with_its_basis(server: Exact) -> None:
    users = ("--url", server.url, "--concurrency", "4", "--duration", "1", "--output-tokens", "5", "--warmup", "0")
    said = " ".join(run(*users, code={0, 3}).stderr.split())
    assert "about 40 requests in 1 s" in said
    assert "a user sends again every 0.1 s where the server is fast" in said
    assert "no bound is set: --max-requests sets one" in said
    assert "at most" not in said
    said = " ".join(run(*users, "--max-requests", "6", code={0, 3}).stderr.split())
    assert ": 6 requests in 1 s" in said
    assert "a guess" not in said
    said = " ".join(run(*users, "--max-requests", "50", code={0, 3}).stderr.split())
    assert "never more than 50" in said


def test_tokens_that_are_under_way_count_towards_the_cap() -> None:
    caps = SimpleNamespace(requests=None, tokens=1000, usd=None, error_rate=0.5)
    traffic: Any = SimpleNamespace(caps=caps, closed=True, mean_prompt=60.0, mean_output=40.0, prices=Prices())
    guard = _Guard(traffic, lambda _at, _counts: None)
    used = {"prompt_tokens": 300, "output_tokens": 200}
    assert guard.see(1.0, Counter(used | {"in_flight": 5})) is None
    assert guard.see(1.0, Counter(used | {"in_flight": 6})) == "cap_tokens"


def test_an_error_storm_stops_the_traffic() -> None:
    with exact("http_503") as server:  # every tenth fails: a storm only for who allows less
        calm = asked(server, "--rate", "60", "--duration", "2", "--output-tokens", "fixed:2")
        assert calm["stopped"] is None
        assert calm["errors"]["http_5xx"] > 0
        answer = asked(
            server,
            "--rate",
            "60",
            "--duration",
            "60",
            "--output-tokens",
            "fixed:2",
            "--max-error-rate",
            "0.05",
            "--warmup",
            "0",
            code=4,
        )
    assert answer["stopped"] == "error_storm"
    assert answer["elapsed_s"] < 50
    assert answer["retry_after_s"]["p50"] == 2


def test_an_interrupt_gives_what_there_is(server: Exact) -> None:
    command = [
        *FLYBALL,
        "simulate",
        "--url",
        server.url,
        "--rate",
        "30",
        "--duration",
        "600",
        "--output-tokens",
        "fixed:5",
        "--warmup",
        "0",
        "-o",
        "json",
    ]
    before = server.log()["requests"]

    def interruptible() -> None:
        """Whoever runs the tests in the background may have had it ignored, and that is inherited."""
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=interruptible) as process:
        until = time.monotonic() + 60
        while server.log()["requests"] < before + 20 and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    answer = json.loads(out)
    assert answer["stopped"] == "interrupted"
    assert answer["completed"] >= 10
    assert answer["sent"] == answer["completed"] + answer["abandoned"]
    assert answer["planned"] == answer["sent"] + answer["unsent"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process to a core")
def test_a_client_that_is_too_slow_says_so(server: Exact) -> None:
    """A ninth of a core for a client with far too many streams: less than the server needs to keep it busy, however slow that is.
    Each hog has a session of its own, since kernels that group processes by session share out the core among these. They come when
    the traffic has begun, and leave when it is over: how slowly the client starts is not in question."""
    spin = [sys.executable, "-c", "import time\nend = time.monotonic() + 4\nwhile time.monotonic() < end: pass"]
    load = ("--url", server.url, "--concurrency", "600", "--duration", "3", "--output-tokens", "fixed:50")
    before = server.log()["requests"]
    client = subprocess.Popen(
        [*FLYBALL, "simulate", *load, "-o", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, {0}),
    )
    hogs: list[subprocess.Popen[bytes]] = []
    try:
        while server.log()["requests"] <= before:
            assert client.poll() is None, client.communicate()
            time.sleep(0.05)
        for _ in range(8):
            hogs.append(subprocess.Popen(spin, start_new_session=True))
            os.sched_setaffinity(hogs[-1].pid, {0})
        out, err = client.communicate(timeout=100)
    finally:
        for process in (*hogs, client):
            process.kill()
            process.wait()
    assert client.returncode == 3, err
    answer = json.loads(out)
    assert answer["valid"] is False
    assert {r["code"] for r in answer["invalid_reasons"]} & {
        "late_sending",
        "late_reading",
        "client_cpu",
        "nothing_measured",
    }
    assert all("bottleneck" in r["detail"] for r in answer["invalid_reasons"] if r["code"].startswith("late"))


# -- with settings ------------------------------------------------------------------------------------------------------


def settings(tmp_path: Path, server: Exact, role: str) -> Path:
    path = tmp_path / "flyball.yaml"
    path.write_text(
        f"database: 'sqlite:///{tmp_path}/f.db'\n"
        f"endpoints:\n  - {{name: chat, url: '{server.url}', model: exact, role: {role}, usd_per_replica_hour: 3.6, shape: {{replicas: 1}}, "
        "objective: {ttft_p95_s: 5}, sources: {vllm: {}}}\n"
    )
    return path


def test_production_needs_to_be_allowed(server: Exact, tmp_path: Path) -> None:
    config = settings(tmp_path, server, "production")
    load = ("--rate", "10", "--duration", "0.5", "--output-tokens", "fixed:3")
    assert "--allow-production" in run("-c", config, "--endpoint", "chat", *load, code=2).stderr
    assert "--allow-production" in run("-c", config, "--url", server.url, *load, code=2).stderr, (
        "also under its address"
    )
    run("-c", config, "--endpoint", "chat", *load, "--allow-production", code={0, 3})
    assert "known: chat" in run("-c", config, "--endpoint", "other", *load, code=2).stderr


def test_an_endpoint_of_the_settings_keeps_windows_and_can_be_imitated(server: Exact, tmp_path: Path) -> None:
    config = settings(tmp_path, server, "reference")
    answer = json.loads(
        run(
            "-c",
            config,
            "--endpoint",
            "chat",
            "--rate",
            "20",
            "--duration",
            "1",
            "--output-tokens",
            "fixed:3",
            "-o",
            "json",
            code={0, 3},
        ).stdout
    )
    assert answer["target"]["endpoint"] == "chat"
    assert answer["objective"][0]["target"] == "ttft_p95_s"
    assert answer["cost_usd"] == pytest.approx(0.001 * answer["elapsed_s"])
    store = Store(f"sqlite:///{tmp_path}/f.db")
    now = time.time()
    with store.read() as db:
        kept = windows.load(db, "chat", "traffic", now - 600, now + 600, 60.0)
    assert sum(w.count("requests") or 0 for w in kept) == answer["sent"]
    assert sum(w.sketches["ttft_s"].count for w in kept if "ttft_s" in w.sketches) == answer["sent"]
    start = now // 60 * 60 - 300
    counts = {"requests": 600.0, "errors": 0.0, "prompt_tokens": 12_000.0, "output_tokens": 1800.0}
    with store.write() as db:
        windows.save(db, [Window("chat", "vllm", start, 60.0, 1.0, targets=1, counts=counts)])
    store.close()
    like = json.loads(
        run(
            "-c",
            config,
            "--url",
            server.url,
            "--like",
            "chat",
            "--since",
            "1h",
            "--duration",
            "2",
            "-o",
            "json",
            code={0, 3},
        ).stdout
    )
    assert like["load"]["kind"] == "replay"
    assert like["sent"] == pytest.approx(20, abs=16)  # ten a second, Poisson
    assert like["output_tokens"]["mean"] == 3
    quiet = run("-c", config, "--url", server.url, "--like", "chat", "--since", "1m", code=2).stderr
    assert "give a span that saw traffic" in quiet
