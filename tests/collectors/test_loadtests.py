"""Load-test summaries. The files here are stand-ins, written after each program's own schema with figures that are easy to check."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.loadtests import BadLoadTest, LoadTest, LoadTestRecord, RateRamp, Summary, parse, read

# One truth for all four: 200 ms to the first token, 101 tokens, 10 ms between them: 1.2 s in all; 4 a second, 400 requests.
TTFT, GAP, TOKENS, E2E = 0.2, 0.01, 101, 1.2


def spread(mean: float, median: str = "median", mean_name: str = "mean") -> dict[str, float]:
    return {
        mean_name: mean,
        median: 0.9 * mean,
        "p90": 1.5 * mean,
        "p95": 1.8 * mean,
        "p99": 2.5 * mean,
        "max": 9 * mean,
    }


def inference_perf(tpot: float = GAP, **load: Any) -> dict[str, Any]:
    """``stage_0_lifecycle_metrics.json`` of 0.7."""
    usual = {"requested_rate": 4.0, "achieved_rate": 3.96, "send_duration": 101.0}
    return {
        "benchmark_time_seconds": 100.0,
        "load_summary": {"count": 404, "schedule_delay": spread(0.0005)} | usual | load,
        "successes": {
            "count": 400,
            "latency": {
                "request_latency": spread(E2E),
                "normalized_time_per_output_token": spread(E2E / TOKENS),
                "time_per_output_token": spread(tpot),
                "time_to_first_token": spread(TTFT),
                "inter_token_latency": spread(tpot),
            },
            "throughput": {"requests_per_sec": 4.0, "output_tokens_per_sec": 404.0},
            "prompt_tokens": {"total": 80_000.0} | spread(200.0),
            "output_len": spread(99.0),
            "output_tokens": {"total": 40_400.0} | spread(float(TOKENS)),
        },
        "failures": {"count": 4, "request_latency": None},
    }


def guidellm(strategy: dict[str, Any], where: str = "config", totals: str = "metrics") -> dict[str, Any]:
    """``benchmarks.json``: of 0.4 and later, or, as ``where`` and ``totals`` say, of 0.2."""

    def by_status(mean: float) -> dict[str, Any]:
        figures = spread(mean)
        percentiles = {k: v for k, v in figures.items() if k.startswith("p")}
        found = {"mean": mean, "median": figures["median"], "count": 400, "percentiles": percentiles}
        return {
            "successful": found,
            "errored": {"mean": 0.0},
            "incomplete": {"mean": 7.0},
            "total": found | {"mean": 5.0},
        }

    metrics: dict[str, Any] = {
        "requests_per_second": by_status(4.0),
        "request_concurrency": by_status(4.8),
        "request_latency": by_status(E2E + 0.05),
        "prompt_token_count": by_status(200.0),
        "output_token_count": by_status(float(TOKENS)),
        "time_to_first_token_ms": by_status(1e3 * TTFT),
        "time_per_output_token_ms": by_status(1e3 * E2E / TOKENS),
        "inter_token_latency_ms": by_status(1e3 * GAP),
    }
    benchmark: dict[str, Any] = {
        "type_": "generative_benchmark",
        "start_time": 1000.0,
        "end_time": 1100.0,
        "metrics": metrics,
    }
    (metrics if totals == "metrics" else benchmark)["request_totals"] = {
        "successful": 400, "errored": 3, "incomplete": 5, "total": 408
    }  # fmt: skip
    request = {"prompt_tokens": 200, "output_tokens": TOKENS, "time_to_first_token_ms": 200.0, "request_latency": E2E}
    benchmark["requests"] = {
        "successful": [request | {"request_start_time": 1001.0}, request | {"request_start_time": 1001.25}],
        "errored": [{"prompt_tokens": 1}],
    }
    if where == "config":
        benchmark["config"] = {"strategy": strategy, "backend": {"model": "llama"}}
    else:
        benchmark |= {"args": {"strategy": strategy}, "worker": {"backend_model": "llama"}}
    return {"metadata": {"version": 2}, "benchmarks": [benchmark]}


def aiperf(config: dict[str, Any], **more: Any) -> dict[str, Any]:
    """``profile_export_aiperf.json``."""

    def figures(mean: float, unit: str) -> dict[str, Any]:
        return {"unit": unit} | spread(mean, "p50", "avg")

    return {
        "aiperf_version": "0.13.0",
        "request_throughput": {"unit": "requests/sec", "avg": 4.0},
        "request_latency": figures(1e3 * E2E, "ms"),
        "request_count": {"unit": "requests", "avg": 400.0},
        "time_to_first_token": figures(1e3 * TTFT, "ms"),
        "inter_token_latency": figures(1e3 * GAP, "ms"),
        "inter_chunk_latency": figures(1e3 * GAP, "ms"),
        "output_sequence_length": figures(float(TOKENS), "tokens"),
        "input_sequence_length": figures(200.0, "tokens"),
        "benchmark_duration": {"unit": "sec", "avg": 100.0},
        "input_config": config,
    } | more


NEW_CONFIG = {
    "models": {"items": [{"name": "llama"}]},
    "phases": [
        {"name": "warmup", "type": "concurrency", "concurrency": 1},
        {"name": "profiling", "type": "poisson", "rate": 4.0},
    ],
}
OLD_CONFIG = {
    "endpoint": {"model_names": ["llama"], "type": "chat"},
    "loadgen": {"concurrency": 5, "request_count": 400},
}


def vllm_bench(**more: Any) -> dict[str, Any]:
    """``vllm bench serve --save-result``."""
    return {
        "date": "20260101-000000", "endpoint_type": "openai", "backend": "openai", "label": None, "model_id": "llama",
        "tokenizer_id": "llama", "num_prompts": 404, "request_rate": 4.0, "burstiness": 1.0, "max_concurrency": None,
        "duration": 100.0, "completed": 400, "failed": 4, "total_input_tokens": 80_000, "total_output_tokens": 40_400,
        "request_throughput": 4.0, "output_throughput": 404.0, "max_concurrent_requests": 30,
        "mean_ttft_ms": 1e3 * TTFT, "median_ttft_ms": 180.0, "std_ttft_ms": 1.0, "p99_ttft_ms": 500.0,
        "mean_tpot_ms": 1e3 * GAP, "median_tpot_ms": 9.0, "p99_tpot_ms": 25.0,
        "mean_itl_ms": 1e3 * GAP, "median_itl_ms": 9.0, "p99_itl_ms": 25.0,
    } | more  # fmt: skip


def one(document: dict[str, Any]) -> LoadTest:
    (test,) = parse(json.dumps(document), "run.json")
    return test


@pytest.mark.parametrize(
    ("document", "source", "failed"),
    [
        (inference_perf(), "inference-perf", 4),
        (guidellm({"type_": "poisson", "rate": 4.0}), "guidellm", 3),
        (guidellm({"type_": "constant", "rate": 4.0}, "args", "benchmark"), "guidellm", 3),
        (aiperf(NEW_CONFIG, error_request_count={"avg": 4.0}), "aiperf", 4),
        (vllm_bench(p90_ttft_ms=300.0, mean_e2el_ms=1200.0), "vllm-bench", 4),
    ],
)
def test_the_same_load_reads_the_same_from_each(document: dict[str, Any], source: str, failed: int) -> None:
    test = one(document)
    assert (test.source, test.controlled, test.completed, test.failed) == (source, "rate", 400, failed)
    assert test.rate_per_s == pytest.approx(4.0, rel=0.02)
    assert test.duration_s == 100.0
    assert test.throughput_per_s == 4.0
    assert test.prompt_tokens is not None
    assert test.output_tokens is not None
    assert (test.prompt_tokens.mean, test.output_tokens.mean) == (200.0, TOKENS)
    assert test.latency["ttft_s"].mean == pytest.approx(TTFT)
    assert test.latency["ttft_s"].p50 == pytest.approx(0.9 * TTFT)
    assert test.latency["ttft_s"].p90 == pytest.approx(1.5 * TTFT)
    assert test.latency["tpot_s"].mean == pytest.approx(GAP)
    assert test.latency["itl_s"].mean == pytest.approx(GAP, rel=0.01)
    assert test.latency["e2e_s"].mean == pytest.approx(E2E, rel=0.05)
    assert test.in_flight == pytest.approx(4.0 * E2E, rel=0.05)
    assert "taken instead" not in " ".join(test.notes)


@pytest.mark.parametrize(
    "document",
    [
        inference_perf(concurrency=5, requested_rate=404.0, achieved_rate=9000.0),
        guidellm({"type_": "concurrent", "streams": 5}),
        aiperf(OLD_CONFIG),
        vllm_bench(request_rate="inf", max_concurrency=5),
    ],
)
def test_a_closed_loop_holds_the_concurrency_and_has_no_rate(document: dict[str, Any]) -> None:
    test = one(document)
    assert (test.controlled, test.concurrency, test.rate_per_s, test.in_flight) == ("concurrency", 5.0, None, 5.0)
    assert test.name.endswith("5 at once")
    assert test.max_concurrency is None


# ------------------------------------------------------------------------------------------------ one program at a time


def test_inference_perf_that_counted_tokens_twice_is_set_right() -> None:
    test = one(inference_perf(tpot=0.52 * GAP))
    assert test.latency["tpot_s"] == test.latency["itl_s"] == Summary(mean=pytest.approx(GAP))
    assert sum("taken instead" in note for note in test.notes) == 2
    within = one(inference_perf(tpot=0.85 * GAP))
    assert within.latency["tpot_s"].mean == pytest.approx(0.85 * GAP)


def test_inference_perf_of_older_versions() -> None:
    older = inference_perf()
    del older["benchmark_time_seconds"]
    older["successes"]["prompt_len"] = older["successes"].pop("prompt_tokens")
    older["successes"]["output_len"] = older["successes"].pop("output_tokens")
    test = one(older)
    assert test.duration_s == pytest.approx(100.0)
    assert test.prompt_tokens == Summary(200.0, 180.0, 300.0, 360.0, 500.0)


def test_inference_perf_says_when_it_lagged_and_when_stages_are_mixed() -> None:
    lagged = one(inference_perf(achieved_rate=3.0, schedule_delay=spread(2.0)))
    assert lagged.rate_per_s == 3.0
    assert any("3 requests per second where 4" in note for note in lagged.notes)
    assert any("1.8 s (median) behind" in note for note in lagged.notes)
    mixed = one(inference_perf(requested_rate=None, achieved_rate=None))
    assert mixed.controlled is None
    assert any("stage files" in note for note in mixed.notes)


def test_inference_perf_server_metrics_are_not_taken_for_requests() -> None:
    metrics = {"load_summary": {}, "successes": {"count": 5, "rate": 1.0}, "failures": {}}
    with pytest.raises(BadLoadTest, match="server metrics"):
        one(metrics)


def test_guidellm_leaves_out_its_tpot_and_keeps_its_gap_against_a_longer_end() -> None:
    document = guidellm({"type_": "synchronous"})
    document["benchmarks"][0]["metrics"]["request_latency"]["successful"]["mean"] = E2E + 0.4
    test = one(document)
    assert (test.controlled, test.concurrency) == ("concurrency", 1.0)
    assert test.latency["tpot_s"].mean == test.latency["itl_s"].mean == pytest.approx(GAP)
    assert test.latency["tpot_s"].p99 == pytest.approx(2.5 * GAP)
    assert test.latency["itl_s"].p99 is None  # of means by request, not of gaps
    assert any("the gap is kept" in note for note in test.notes)
    assert any("5 requests were cut off" in note for note in test.notes)


def test_guidellm_requests_are_read() -> None:
    test = one(guidellm({"type_": "constant", "rate": 4.0, "max_concurrency": 50}))
    assert test.records == (LoadTestRecord(0.0, 200, TOKENS, TTFT, E2E), LoadTestRecord(0.25, 200, TOKENS, TTFT, E2E))
    assert test.model == "llama"
    assert test.max_concurrency == 50
    assert test.concurrency == 4.8
    assert any("cap of 50" in note for note in test.notes)


def test_guidellm_has_one_test_for_each_strategy() -> None:
    document = guidellm({"type_": "synchronous"})
    document["benchmarks"] += guidellm({"type_": "throughput"})["benchmarks"]
    first, second = parse(json.dumps(document), "sweep.json")
    assert first.name == "synchronous, 1 at once"
    assert (second.name, second.controlled) == ("throughput", None)


def test_aiperf_units_phases_and_chunks_of_several_tokens() -> None:
    seconds = {name: {"unit": "sec", "avg": 0.2} for name in ("time_to_first_token",)}
    test = one(aiperf(NEW_CONFIG, **seconds, inter_chunk_latency={"unit": "ms", "avg": 40.0, "p99": 80.0}))
    assert test.latency["ttft_s"] == Summary(mean=0.2)
    assert test.latency["itl_s"] == Summary(mean=pytest.approx(GAP))  # four tokens a chunk
    assert (test.model, test.name) == ("llama", "4 a second")
    capped = {"phases": [{"name": "profiling", "type": "constant", "rate": 4.0, "concurrency": 30}]}
    assert one(aiperf(capped)).max_concurrency == 30
    trace = {"phases": [{"name": "profiling", "type": "fixed_schedule"}]}
    assert one(aiperf(trace)).controlled is None


def test_aiperf_without_a_counter_of_errors_had_none() -> None:
    test = one(aiperf(OLD_CONFIG, was_cancelled=True))
    assert (test.sent, test.failed) == (400, 0)
    assert any("cancelled" in note for note in test.notes)


def test_vllm_bench_without_end_to_end_has_tpot_judge_itl() -> None:
    test = one(vllm_bench(mean_itl_ms=39.0))
    assert "e2e_s" not in test.latency
    assert test.latency["itl_s"] == Summary(mean=pytest.approx(GAP))
    assert any("its TPOT" in note for note in test.notes)
    assert test.latency["tpot_s"].p99 == 0.025


def test_vllm_bench_with_details_has_requests() -> None:
    document = vllm_bench(
        num_prompts=3, completed=2, failed=1, total_input_tokens=300, total_output_tokens=7,
        input_lens=[100, 50, 200], output_lens=[5, 0, 2], ttfts=[0.2, 0.0, 0.3], itls=[[0.01] * 4, [], [0.02]],
        start_times=[50.0, 50.25, 50.5], errors=["", "503", ""], generated_texts=["a", "", "b"],
    )  # fmt: skip
    test = one(document)
    assert test.records == (
        LoadTestRecord(0.0, 100, 5, 0.2, pytest.approx(0.24)),
        LoadTestRecord(0.5, 200, 2, 0.3, pytest.approx(0.32)),
    )
    assert test.prompt_tokens is not None
    assert (test.prompt_tokens.mean, test.prompt_tokens.p50) == (150.0, 150.0)
    assert test.latency["e2e_s"].mean == pytest.approx(0.28)


def test_vllm_bench_latencies_without_details_are_the_end_to_end() -> None:
    assert one(vllm_bench(failed=0, latencies=[1.0, 1.4])).latency["e2e_s"].mean == pytest.approx(1.2)
    assert "e2e_s" not in one(vllm_bench(failed=4, latencies=[1.0, 1.4, 0.1])).latency


@pytest.mark.parametrize(
    ("more", "words", "controlled"),
    [
        ({"endpoint_type": "openai-chat"}, "role alone", "rate"),
        ({"burstiness": 0.5}, "burstiness 0.5", "rate"),
        ({"max_concurrency": 30}, "cap of 30", "rate"),
        ({"request_rate": "inf"}, "at once", "concurrency"),
        ({"request_rate": "inf", "ramp_up_strategy": "linear"}, "ramped", None),
    ],
)
def test_vllm_bench_traps_are_noted(more: dict[str, Any], words: str, controlled: str | None) -> None:
    test = one(vllm_bench(**more))
    assert any(words in note for note in test.notes)
    assert test.controlled == controlled


@pytest.mark.parametrize(
    ("more", "concurrency", "rate", "cap"),
    [
        ({"request_rate": "inf", "max_concurrency": 8}, 8.0, None, None),
        ({"request_rate": "inf"}, 404.0, None, None),
        ({"request_rate": 4.0, "max_concurrency": 8}, None, 4.0, 8),
        ({"request_rate": None, "max_concurrency": 8}, 8.0, None, None),
        ({"request_rate": None}, None, None, None),
    ],
)
def test_vllm_bench_holds_what_it_was_told_to_hold(
    more: dict[str, Any], concurrency: float | None, rate: float | None, cap: int | None
) -> None:
    test = one(vllm_bench(**more))
    assert (test.concurrency, test.rate_per_s, test.max_concurrency) == (concurrency, rate, cap)
    assert test.controlled == ("rate" if rate else "concurrency" if concurrency else None)


def test_vllm_bench_ramps_and_gaps_are_read() -> None:
    ramp = {"request_rate": "inf", "ramp_up_strategy": "linear", "ramp_up_start_rps": 1, "ramp_up_end_rps": 9}
    test = one(vllm_bench(**ramp))
    assert test.ramp == RateRamp(1.0, 9.0, "linear")
    assert (test.controlled, test.rate_per_s, test.name) == ("rate", None, "1 to 9 a second")
    assert one(vllm_bench(burstiness=0.5)).burstiness == 0.5
    assert one(vllm_bench(burstiness="inf")).burstiness == math.inf


def test_a_sweep_tells_its_engine_arguments_in_each_record() -> None:
    """A list of records, as ``vllm bench sweep`` sums them up."""
    rows = [vllm_bench(max_num_seqs=32), vllm_bench(**{"--max-num-seqs": "64", "gpu_memory_utilization": "0.8"})]
    first, second = parse(json.dumps(rows), "summary.json")
    assert dict(first.engine) == {"max_num_seqs": 32}
    assert dict(second.engine) == {"max_num_seqs": 64, "gpu_memory_utilization": 0.8}


@pytest.mark.parametrize(
    ("strategy", "controlled", "concurrency", "rate", "burstiness", "burst"),
    [
        ({"type_": "synchronous"}, "concurrency", 1.0, None, 1.0, 0),
        ({"type_": "concurrent", "streams": 6}, "concurrency", 6.0, None, 1.0, 0),
        ({"type_": "throughput", "max_concurrency": 64}, "concurrency", 64.0, None, 1.0, 0),
        ({"type_": "constant", "rate": 4.0, "initial_burst": True}, "rate", 4.8, 4.0, math.inf, 4),
        ({"type_": "poisson", "rate": 4.0}, "rate", 4.8, 4.0, 1.0, 0),
        ({"type_": "throughput"}, None, 4.8, None, 1.0, 0),
    ],
)
def test_guidellm_strategies(
    strategy: dict[str, Any],
    controlled: str | None,
    concurrency: float,
    rate: float | None,
    burstiness: float,
    burst: int,
) -> None:
    test = one(guidellm(strategy))
    assert (test.controlled, test.concurrency, test.rate_per_s) == (controlled, concurrency, rate)
    assert (test.burstiness, test.burst) == (burstiness, burst)


def test_guidellm_throughput_without_a_stated_cap_has_the_one_that_showed() -> None:
    document = guidellm({"type_": "throughput"})
    document["benchmarks"][0]["metrics"]["request_concurrency"]["successful"]["max"] = 96.0
    assert (one(document).controlled, one(document).concurrency) == ("concurrency", 96.0)


@pytest.mark.parametrize(
    ("phase", "controlled", "burstiness"),
    [
        ({"type": "constant", "rate": 4.0}, "rate", math.inf),
        ({"type": "poisson", "rate": 4.0}, "rate", 1.0),
        ({"type": "gamma", "rate": 4.0, "smoothness": 2.5}, "rate", 2.5),
        ({"type": "concurrency", "concurrency": 9}, "concurrency", 1.0),
        ({"type": "concurrency", "concurrency": 9, "concurrency_ramp": 30}, None, 1.0),
        ({"type": "fixed_schedule"}, None, 1.0),
        ({"type": "user_centric", "rate": 4.0, "users": 7}, None, 1.0),
    ],
)
def test_aiperf_phases(phase: dict[str, Any], controlled: str | None, burstiness: float) -> None:
    test = one(aiperf({"phases": [{"name": "profiling"} | phase]}))
    assert (test.controlled, test.burstiness) == (controlled, burstiness)


def test_aiperf_conversations_say_what_their_prompts_are_and_what_was_cached() -> None:
    config = OLD_CONFIG | {"input": {"conversation": {"turn": {"mean": 4}}}}
    test = one(aiperf(config))
    assert any("the share that was cached is not known" in note for note in test.notes)
    cached = one(aiperf(config, usage_prompt_cache_read_tokens={"unit": "tokens", "avg": 120.0}))
    assert cached.cached_tokens == 120.0
    assert any("as the server told it" in note for note in cached.notes)
    assert not any("several turns" in note for note in one(aiperf(OLD_CONFIG)).notes)


def test_inference_perf_that_ran_late_tells_no_ttft() -> None:
    late = inference_perf(schedule_delay=spread(0.05))
    assert "ttft_s" not in one(late).latency
    assert "ttft_s" in one(inference_perf(schedule_delay=spread(0.005))).latency


def test_vllm_bench_of_older_versions_and_of_several_runs_in_one_file() -> None:
    older = vllm_bench()
    del older["failed"]
    assert one(older).failed == 4
    appended = json.dumps(older) + "\n" + json.dumps(vllm_bench(request_rate=8.0)) + "\n"
    assert [test.rate_per_s for test in parse(appended, "runs.json")] == [4.0, 8.0]


def test_vllm_bench_of_embeddings_is_refused() -> None:
    document = vllm_bench()
    del document["total_output_tokens"]
    with pytest.raises(BadLoadTest, match="embeddings"):
        one(document)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "b": 2}', "saw an object with a, b.*inference-perf.*GuideLLM.*AIPerf.*vllm bench"),
        ("[1, 2]", "saw a JSON list"),
        ("{}", "no fields"),
        ("", "empty"),
        ("  \n", "empty"),
        (json.dumps(vllm_bench()) + '\n{"b": ', "run.json:2: is not JSON"),
        ("Metric,avg\nttft,5", "run.json:1: is not JSON"),
        (json.dumps({"benchmarks": [{"metrics": 5}]}), r"benchmarks\[0\] has no metrics"),
        (json.dumps({"benchmarks": []}), "none of its 0 tests"),
    ],
)
def test_what_is_no_load_test_is_an_error_that_says_what_was_seen(text: str, words: str) -> None:
    with pytest.raises(BadLoadTest, match=f"(?s)^run.json.*{words}" if "run.json" not in words else words):
        parse(text, "run.json")


def test_a_run_without_a_completed_request_is_refused_and_its_zeros_are_unknown() -> None:
    nothing = vllm_bench(completed=0, failed=404, mean_ttft_ms=0.0, mean_tpot_ms=0.0, mean_itl_ms=0.0)
    with pytest.raises(BadLoadTest, match="completed request"):
        one(nothing)
    _, second = parse(json.dumps(vllm_bench()) + json.dumps(nothing), "runs.json")
    assert (dict(second.latency), second.output_tokens) == ({}, None)
    silent = one(vllm_bench(mean_ttft_ms=0.0, mean_itl_ms=0.0))  # a server that does not stream
    assert "ttft_s" not in silent.latency


def test_files_are_read_and_missing_ones_are_named(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(vllm_bench()))
    assert read(path)[0].source == "vllm-bench"
    with pytest.raises(BadLoadTest, match=r"none.json: cannot be read"):
        read(tmp_path / "none.json")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadLoadTest, match="cannot be read"):
        read(path)


junk = st.one_of(
    st.none(), st.booleans(), st.floats(allow_nan=True), st.text(max_size=3), st.lists(st.integers(), max_size=2)
)


def spoil(value: Any, at: int, replacement: Any) -> tuple[Any, int]:
    """``value`` with its ``at``-th node replaced, counted as they are written."""
    if at == 0:
        return replacement, -1
    at -= 1
    if isinstance(value, dict):
        out = {}
        for key, inner in value.items():
            out[key], at = spoil(inner, at, replacement) if at >= 0 else (inner, at)
        return out, at
    if isinstance(value, list):
        items = []
        for inner in value:
            new, at = spoil(inner, at, replacement) if at >= 0 else (inner, at)
            items.append(new)
        return items, at
    return value, at


@pytest.mark.parametrize(
    "document",
    [
        inference_perf(),
        guidellm({"type_": "constant", "rate": 4.0}),
        aiperf(NEW_CONFIG),
        vllm_bench(
            input_lens=[1], output_lens=[2], ttfts=[0.2], itls=[[0.01]], start_times=[5.0], errors=[""], latencies=[1.0]
        ),
    ],
    ids=["inference-perf", "guidellm", "aiperf", "vllm-bench"],
)
@given(at=st.integers(1, 120), replacement=junk)
def test_one_senseless_field_is_unknown_or_a_clear_error(document: dict[str, Any], at: int, replacement: Any) -> None:
    spoilt, _ = spoil(document, at, replacement)
    try:
        tests = parse(json.dumps(spoilt), "run.json")
    except BadLoadTest:
        return
    for test in tests:
        for summary in (*test.latency.values(), test.prompt_tokens, test.output_tokens):
            values = [] if summary is None else [summary.mean, summary.p50, summary.p90, summary.p95, summary.p99]
            assert all(v is None or 0 <= v < float("inf") for v in values)
