"""AIPerf's ``profile_export_aiperf.json`` (ai-dynamo/aiperf ``common/models/export_models.py``, ``config/phases.py``)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from collectors.loadtests.fields import (
    Json,
    capped,
    count,
    engine_arguments,
    label,
    latencies,
    mean,
    number,
    rows,
    section,
    summary,
    text,
)
from collectors.loadtests.loadtest import LoadTest, Summary

_LATENCIES = {
    "ttft_s": "time_to_first_token",
    "itl_s": "inter_chunk_latency",
    "tpot_s": "inter_token_latency",
    "e2e_s": "request_latency",
}
_FIGURES = ("avg", "p50", "p90", "p95", "p99")
#: What changes a phase's load on its way.
_UNREAD = (
    "concurrency_ramp",
    "rate_ramp",
    "rate_series",
    "prefill_concurrency",
    "concurrency_ramp_duration",
    "request_rate_ramp_duration",
)
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3}


def knows(data: Json) -> bool:
    """By its end-to-end latency with an average."""
    return isinstance(data.get("request_latency"), dict) and "avg" in data["request_latency"]


def read(data: Json, _where: str) -> Iterator[LoadTest]:
    """One test, the run."""
    config = section(data, "input_config")
    phase = _phase(config)
    rate, cap = number(phase, "rate", "request_rate"), number(phase, "concurrency")
    completed, failed = (count(section(data, n), "avg") for n in ("request_count", "error_request_count"))
    kind = phase.get("type") or phase.get("arrival_pattern") or phase.get("request_rate_mode")
    lengths, cached = _metric(data, "input_sequence_length"), mean(_metric(data, "usage_prompt_cache_read_tokens"))
    notes = ["its ITL is a mean for each request, which is TPOT here; its gaps between chunks are ITL here"]
    if data.get("was_cancelled"):
        notes.append("the run was cancelled before its end")
    if kind not in (None, "concurrency", "concurrency_burst", "constant", "poisson", "gamma"):
        notes.append(f"load of type {kind}: its arrivals are not in the file")
        rate = cap = None
    elif any(phase.get(name) for name in _UNREAD):
        named = ", ".join(name for name in _UNREAD if phase.get(name))
        notes.append(f"the load changes ({named}) in a way that the file does not tell whole")
        rate = cap = None
    if rate is not None and cap is not None:
        notes.append(capped(cap))
    if _multi_turn(config):
        notes.append(
            "conversations of several turns: each turn's prompt holds those before it, and is counted whole; "
            + (
                "the cached share is as the server told it"
                if cached is not None
                else "the share that was cached is not known"
            )
        )
    models = [text(m, "name") for m in rows(section(config, "models"), "items") if isinstance(m, dict)]
    models += [m for m in rows(section(config, "endpoint"), "model_names") if isinstance(m, str)]
    yield LoadTest(
        source="aiperf",
        name=label(cap if rate is None else None, rate),
        sent=None if completed is None else completed + (failed or 0),
        completed=completed,
        failed=failed if failed is not None or not completed else 0,  # it leaves a counter out that counted nothing
        duration_s=mean(_metric(data, "benchmark_duration")),
        controlled="rate" if rate is not None else "concurrency" if cap is not None else None,
        rate_per_s=rate,
        concurrency=cap if rate is None else None,
        throughput_per_s=mean(_metric(data, "request_throughput")),
        prompt_tokens=lengths,
        output_tokens=_metric(data, "output_sequence_length"),
        latency=latencies({name: _metric(data, key) for name, key in _LATENCIES.items()}),
        model=models[0] if models else None,
        max_concurrency=int(cap) if rate is not None and cap is not None else None,
        burstiness=_burstiness(kind, phase),
        cached_tokens=cached,
        engine=engine_arguments(data),
        notes=tuple(notes),
    )


def _burstiness(kind: object, phase: Json) -> float:
    """The shape of its gaps. Without a word on it they are Poisson, its default."""
    if kind == "constant":
        return math.inf
    return (number(phase, "smoothness", "arrival_smoothness") or 1.0) if kind == "gamma" else 1.0


def _multi_turn(config: Json) -> bool:
    """Whether a conversation has more than one request, as its older and newer configuration say it."""
    conversation = section(section(config, "input"), "conversation")
    datasets = [d for d in (config, *rows(config, "datasets")) if isinstance(d, dict)]
    turns = [section(conversation, "turn").get("mean")]
    for one in (*datasets, *(section(d, "dataset") for d in datasets), *(section(d, "prompts") for d in datasets)):
        told = one.get("turns")
        turns.append(told.get("mean", told.get("value")) if isinstance(told, dict) else told)
    kinds = [section(config, "input").get("custom_dataset_type"), *(d.get("format") for d in datasets)]
    return any(isinstance(t, int | float) and t > 1 for t in turns) or "multi_turn" in kinds


def _phase(config: Json) -> Json:
    """What set the load: ``loadgen`` of its older configuration, the profiling phase of its newer one."""
    if older := section(config, "loadgen"):
        return older
    phases = [p for p in rows(config, "phases") if isinstance(p, dict)]
    profiling = [p for p in phases if "profiling" in (p.get("kind"), p.get("name"))]
    return (profiling or phases or [{}])[-1]


def _metric(data: Json, name: str) -> Summary | None:
    found = section(data, name)
    figures = summary(found, _FIGURES)
    return figures.scaled(_UNITS.get(str(found.get("unit")), 1.0)) if figures is not None else None
