"""`flyball check --live` against real HTTP servers with pages of our own: what it saw, and what the settings state otherwise."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from agent.cli import app, output
from agent.snapshots import Contradiction, EndpointSnapshot, _same
from tests.collectors.servers import Handler, Request, answering, serve

PAGE = (
    "".join(
        f"vllm:num_requests_running{{{of}}} {running}\nvllm:num_requests_waiting{{{of}}} 4.0\nvllm:kv_cache_usage_perc{{{of}}} {usage}\n"
        for of, running, usage in (
            ('engine="0",model_name="org/m"', 9, 0.25),
            ('engine="1",model_name="org/m"', 8, 0.5),
        )
    )
    + 'vllm:cache_config_info{block_size="32",enable_prefix_caching="True",gpu_memory_utilization="0.9",num_gpu_blocks="1000"} 1.0\n'
)


def server(page: str = PAGE, *, models: bool = True, path: str = "/metrics") -> Handler:
    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        answers = {"/health": "", path: page, "/version": '{"version":"0.10.2"}'}
        if models:
            answers["/v1/models"] = json.dumps({"data": [{"id": "org/m", "max_model_len": 8192}]})
        if request.path in answers:
            await answering(answers[request.path])(request, writer)
        else:
            await answering("no", "404 Not Found")(request, writer)

    return handler


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.stdout, "width", 300)


def check(tmp_path: Path, entry: str, *arguments: str) -> Result:
    path = tmp_path / "flyball.yaml"
    path.write_text(f"endpoints:\n  - name: chat\n{entry}")
    return CliRunner().invoke(app, ["check", "-c", str(path), *arguments])


def check_json(tmp_path: Path, entry: str) -> Any:
    return json.loads(check(tmp_path, entry, "--live", "-o", "json").stdout)


def test_it_says_what_it_saw_in_a_few_lines(tmp_path: Path) -> None:
    with serve(server()) as served:
        result = check(tmp_path, f"    url: {served.url}\n", "--live")
        found = check_json(tmp_path, f"    url: {served.url}\n")
    assert result.exit_code == 0, result.output
    assert [line for line in result.stdout.splitlines() if not line.startswith("note: ")] == [
        f"chat: {served.url}, read by vllm",
        "  serves org/m, version 0.10.2, 2 engines",
        "  now: 17 running, 8 waiting, KV cache 50% used",
        "  limits: max_model_len 8,192, KV cache 32,000 tokens an engine, blocks of 32",
        f"{tmp_path}/flyball.yaml: fine, and everything answers",
    ]
    (seen,) = found["endpoints"]
    assert found["ok"] is True
    assert (seen["models"], seen["version"], seen["engines"]) == (["org/m"], "0.10.2", 2)
    assert (seen["running"], seen["waiting"], seen["max_model_len"], seen["kv_tokens"]) == (17, 8, 8192, "32000")
    assert (seen["accelerator"], seen["contradictions"]) == (None, [])


@pytest.mark.parametrize(
    ("stated", "field", "told"),
    [
        ("{max_model_len: 4096}", "shape.engine.max_model_len", "8192"),
        ("{block_size: 16}", "shape.engine.block_size", "32"),
        ("{gpu_memory_utilization: 0.8}", "shape.engine.gpu_memory_utilization", "0.9"),
        ("{enable_prefix_caching: false}", "shape.engine.enable_prefix_caching", "True"),
        ("{kv_tokens: 64000}", "shape.engine.kv_tokens", "32000"),
        ("{data_parallel_size: 4}", "shape.engine.data_parallel_size", "2"),
        ("{max_num_seqs: 8}", "shape.engine.max_num_seqs", "that 17 run at once on 2 engines"),
    ],
)
def test_what_the_settings_state_otherwise_is_a_problem(tmp_path: Path, stated: str, field: str, told: str) -> None:
    with serve(server()) as served:
        entry = f"    url: {served.url}\n    shape:\n      replicas: 1\n      engine: {stated}\n"
        result, found = check(tmp_path, entry, "--live"), check_json(tmp_path, entry)
    assert result.exit_code == 2
    assert f"contradicts the settings: {field} is" in result.stdout
    (problem,) = found["problems"]
    assert (problem["field"], problem["line"]) == (f"endpoints[0].{field}", 6)
    assert problem["what"].endswith(f"and the server says {told}")


def test_what_is_stated_as_it_is_is_fine(tmp_path: Path) -> None:
    engine = "{max_model_len: 8192, block_size: 32, gpu_memory_utilization: 0.90, enable_prefix_caching: true, max_num_seqs: 9}"
    with serve(server()) as served:
        entry = f"    url: {served.url}\n    model: org/m\n    shape: {{replicas: 1, engine: {engine}}}\n"
        assert check(tmp_path, entry, "--live").exit_code == 0


@pytest.mark.parametrize(
    ("running", "waiting", "usage", "doubtful"),
    [(4, 12, 0.2, True), (4, 0, 0.2, False), (4, 12, 0.95, False), (60, 12, 0.2, False)],
)
def test_requests_that_wait_beside_free_slots_are_doubtful_and_no_problem(
    tmp_path: Path, running: int, waiting: int, usage: float, doubtful: bool
) -> None:
    page = "".join(
        f'vllm:{name}{{engine="0",model_name="org/m"}} {value}\n'
        for name, value in (("num_requests_running", running), ("num_requests_waiting", waiting), ("kv_cache_usage_perc", usage))
    )  # fmt: skip
    with serve(server(page)) as served:
        entry = f"    url: {served.url}\n    shape: {{replicas: 1, engine: {{max_num_seqs: 64}}}}\n"
        result, found = check(tmp_path, entry, "--live"), check_json(tmp_path, entry)
    text = "12 wait while no more than 4 run: is shape.engine.max_num_seqs really 64? See whether it stays so"
    assert result.exit_code == 0, result.output
    assert found["endpoints"][0]["doubts"] == ([text] if doubtful else [])
    assert (f"  doubtful: {text}" in result.stdout.splitlines()) is doubtful


def test_another_model_than_the_settings_name(tmp_path: Path) -> None:
    with serve(server()) as served:
        found = check_json(tmp_path, f"    url: {served.url}\n    model: org/other\n")
    fields = {p["field"]: p["what"] for p in found["problems"]}
    assert "model_not_found" in fields["endpoints[0].sources.vllm"]
    assert fields["endpoints[0].model"] == "is org/other, and the server says org/m"


def test_a_server_without_a_list_of_models_is_seen_too(tmp_path: Path) -> None:
    with serve(server(models=False)) as served:
        (seen,) = check_json(tmp_path, f"    url: {served.url}\n")["endpoints"]
    assert (seen["models"], seen["max_model_len"]) == (["org/m"], None)


def test_a_page_of_another_program_is_named(tmp_path: Path) -> None:
    with serve(server("sglang:num_running_reqs 3\n")) as served:
        result = check(tmp_path, f"    url: {served.url}\n", "--live")
    assert result.exit_code == 2
    assert "not_vllm" in result.stdout
    assert "SGLang" in result.stdout


@pytest.mark.parametrize("page", ["/metrics", "/metrics/", "/v1/models", "/v1/chat/completions", "/prefix/metrics"])
def test_a_page_is_no_endpoints_address(tmp_path: Path, page: str) -> None:
    result = check(tmp_path, f"    url: http://127.0.0.1:8000{page}\n")
    assert result.exit_code == 2
    assert "endpoints[0].url" in result.stdout
    assert "write its root, http://127.0.0.1:8000" in result.stdout
    assert "sources: {vllm: {url: ...}}" in result.stdout


@pytest.mark.parametrize("root", ["", "/", "/models", "/metrics-gateway", "/v1/metrics/eu"])
def test_a_path_of_ones_own_is(tmp_path: Path, root: str) -> None:
    assert check(tmp_path, f"    url: http://127.0.0.1:8000{root}\n").exit_code == 0


def test_metrics_may_be_at_another_address(tmp_path: Path) -> None:
    with serve(server("own_page 1\n")) as api, serve(server()) as metrics:
        for address in (metrics.url, f"{metrics.url}/", f"{metrics.url}/metrics"):
            entry = f"    url: {api.url}\n    api_key: ${{KEY}}\n    sources: {{vllm: {{url: '{address}'}}}}\n"
            path = tmp_path / "flyball.yaml"
            path.write_text(f"endpoints:\n  - name: chat\n{entry}")
            done = CliRunner().invoke(app, ["check", "-c", str(path), "--live"], env={"KEY": "secret"})
            assert done.exit_code == 0, done.output
    assert {r.path for r in metrics.requests} == {"/metrics"}
    # The key belongs to the endpoint's own address.
    assert not any("authorization" in r.headers for r in metrics.requests)
    assert any(r.headers.get("authorization") == "Bearer secret" for r in api.requests)


@given(
    running=st.none() | st.floats(0, 1e6), kv=st.none() | st.just("32000"), models=st.lists(st.text(max_size=9), max_size=9).map(tuple),
    engines=st.none() | st.integers(1, 99), many=st.integers(0, 3),
)  # fmt: skip
def test_a_snapshot_is_a_few_lines_and_never_a_made_up_number(
    running: float | None, kv: str | None, models: tuple[str, ...], engines: int | None, many: int
) -> None:
    contradictions = (Contradiction(("model",), "a", "b"),) * many
    snapshot = EndpointSnapshot(
        "chat",
        "http://h",
        ("vllm",),
        models,
        running=running,
        kv_tokens=kv,
        engines=engines,
        contradictions=contradictions,
    )
    lines = snapshot.lines()
    assert 2 <= len(lines) <= 4 + many
    assert any("running" in line for line in lines) == (running is not None)
    assert any("32,000 tokens" in line for line in lines) == (kv is not None)
    assert json.loads(json.dumps(snapshot.as_dict()))["waiting"] is None


@given(st.integers(1, 10**9) | st.floats(1e-3, 1e6), st.booleans())
def test_a_number_is_the_same_however_it_is_written(number: float, flag: bool) -> None:
    assert _same(number, str(float(number)))
    assert _same(flag, str(flag))
    assert not _same(number, str(float(number) * 1.5))
    assert not _same(flag, str(not flag))
