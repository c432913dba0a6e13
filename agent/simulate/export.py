"""The answer in the field names of other load generators, for the tools that read those. Only what they define as we do, or can be turned
into it; the two say of themselves that Flyball wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_GUIDELLM = {"p50": "p50", "p90": "p90", "p95": "p95", "p99": "p99", "p99.9": "p999"}


def guidellm(answer: Mapping[str, Any]) -> dict[str, Any]:
    """GuideLLM's ``benchmarks.json``. Its end-to-end lasts until the stream ends; ours until the last token."""
    load, errors = answer["load"], sum(answer["errors"].values())
    closed = load["kind"] == "closed"
    strategy: dict[str, Any] = (
        {"type_": "concurrent", "streams": load["users"]} if closed else {"type_": load.get("arrivals", "poisson")}
    )
    if not closed:
        strategy |= {"rate": load["peak_rate"]} | (
            {"max_concurrency": load["max_concurrency"]} if load["max_concurrency"] else {}
        )
        strategy["type_"] = strategy["type_"] if strategy["type_"] in ("constant", "poisson") else "poisson"
    metrics = {
        "request_totals": {
            "total": answer["completed"] + errors,
            "successful": answer["completed"],
            "errored": errors,
            "incomplete": answer["abandoned"],
        },
        "time_to_first_token_ms": _distribution(answer["ttft_sent_s"], 1e3),
        "inter_token_latency_ms": _distribution(answer["tpot_s"], 1e3),
        "request_latency": _distribution(answer["e2e_sent_s"], 1.0),
        "prompt_token_count": _distribution(answer["prompt_tokens"], 1.0),
        "output_token_count": _distribution(answer["output_tokens"], 1.0),
        "requests_per_second": {"successful": {"mean": answer["requests_per_s"]}},
        "output_tokens_per_second": {"successful": {"mean": answer["output_tokens_per_s"]}},
    }
    entry = {
        "config": {
            "strategy": strategy,
            "backend": {"model": answer["target"]["model"], "target": answer["target"]["url"]},
        },
        "start_time": answer["started_at"],
        "end_time": answer["started_at"] + answer["elapsed_s"],
        "duration": answer["measured_s"],
        "metrics": metrics,
        "requests": {"successful": [], "incomplete": [], "errored": []},
    }
    return {"metadata": {"version": 1, "written_by": "flyball simulate"}, "benchmarks": [entry]}


def _distribution(summary: Mapping[str, Any], factor: float) -> dict[str, Any]:
    scaled = {name: None if summary[name] is None else summary[name] * factor for name in ("mean", *_GUIDELLM)}
    percentiles = {theirs: scaled[ours] for ours, theirs in _GUIDELLM.items()}
    return {
        "successful": {
            "mean": scaled["mean"],
            "median": scaled["p50"],
            "count": summary["count"],
            "percentiles": percentiles,
        }
    }


def aiperf(answer: Mapping[str, Any]) -> dict[str, Any]:
    """AIPerf's ``profile_export_aiperf.json``."""
    load = answer["load"]
    closed = load["kind"] == "closed"
    loadgen = (
        {"concurrency": load["users"]}
        if closed
        else {"request_rate": load["peak_rate"], "concurrency": load["max_concurrency"]}
    )
    return {
        "schema_version": "1.0",
        "written_by": "flyball simulate",
        "input_config": {
            "endpoint": {
                "model_names": [answer["target"]["model"]],
                "urls": [answer["target"]["url"]],
                "streaming": True,
            },
            "loadgen": {name: value for name, value in loadgen.items() if value is not None},
        },
        "time_to_first_token": _metric(answer["ttft_sent_s"], 1e3, "ms"),
        "inter_token_latency": _metric(answer["tpot_s"], 1e3, "ms"),
        "inter_chunk_latency": _metric(answer["icl_s"], 1e3, "ms"),
        "request_latency": _metric(answer["e2e_sent_s"], 1e3, "ms"),
        "input_sequence_length": _metric(answer["prompt_tokens"], 1.0, "tokens"),
        "output_sequence_length": _metric(answer["output_tokens"], 1.0, "tokens"),
        "request_throughput": {"unit": "requests/sec", "avg": answer["requests_per_s"]},
        "output_token_throughput": {"unit": "tokens/sec", "avg": answer["output_tokens_per_s"]},
        "request_count": {"unit": "requests", "avg": answer["completed"]},
        "error_request_count": {"unit": "requests", "avg": sum(answer["errors"].values())},
        "benchmark_duration": {"unit": "sec", "avg": answer["measured_s"]},
        "was_cancelled": answer["stopped"] is not None,
    }


def _metric(summary: Mapping[str, Any], factor: float, unit: str) -> dict[str, Any]:
    names = {"avg": "mean", "p50": "p50", "p90": "p90", "p95": "p95", "p99": "p99"}
    figures = {theirs: None if summary[ours] is None else summary[ours] * factor for theirs, ours in names.items()}
    return {"unit": unit, **figures}
