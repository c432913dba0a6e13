"""GuideLLM's ``benchmarks.json``, versions 0.2 to 0.8 (vllm-project/guidellm ``benchmark/schemas``)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from collectors.loadtests.fields import (
    MEDIAN_NAMES,
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
from collectors.loadtests.loadtest import BadLoadTest, LoadTest, LoadTestRecord, Summary

_METRICS = {
    "ttft_s": "time_to_first_token_ms",
    "tpot_s": "inter_token_latency_ms",
    "e2e_s": "request_latency",
    "prompt": "prompt_token_count",
    "output": "output_token_count",
    "throughput": "requests_per_second",
    "concurrency": "request_concurrency",
}


def knows(data: Json) -> bool:
    """By its list of benchmarks."""
    return isinstance(data.get("benchmarks"), list)


def read(data: Json, where: str) -> Iterator[LoadTest]:
    """One test for each strategy that was run. Raises BadLoadTest."""
    for i, entry in enumerate(rows(data, "benchmarks")):
        if not isinstance(entry, dict) or not section(entry, "metrics"):
            raise BadLoadTest(f"{where}: benchmarks[{i}] has no metrics; is the run complete?")
        yield _benchmark(entry)


def _benchmark(entry: Json) -> LoadTest:
    metrics = section(entry, "metrics")
    strategy = next((s for k in ("config", "scheduler", "args") if (s := section(section(entry, k), "strategy"))), {})
    kind = str(strategy.get("type_", "unknown"))
    totals = section(metrics, "request_totals") or section(entry, "request_totals")
    held = 1.0 if kind == "synchronous" else number(strategy, "streams", "max_concurrency")
    if (
        held is None and kind == "throughput"
    ):  # the client's own limit, which it does not tell, shows in what was in flight
        held = number(section(section(metrics, "request_concurrency"), "successful"), "max")
    closed = kind in ("synchronous", "concurrent", "throughput") and held is not None
    rate = number(strategy, "rate") if kind in ("constant", "poisson") else None
    found = {name: _metric(metrics, key) for name, key in _METRICS.items()}
    gap = mean(found["tpot_s"])
    latency = {"itl_s": None if gap is None else Summary(mean=gap)} | {
        n: found[n] for n in ("ttft_s", "tpot_s", "e2e_s")
    }
    worker, backend = section(entry, "worker"), section(section(entry, "config"), "backend")
    return LoadTest(
        source="guidellm",
        name=kind if held is None and rate is None else f"{kind}, {label(held if closed else None, rate)}",
        sent=count(totals, "total"),
        completed=count(totals, "successful"),
        failed=count(totals, "errored"),
        duration_s=_duration(entry),
        controlled="concurrency" if closed else "rate" if rate is not None else None,
        rate_per_s=rate,
        concurrency=held if closed else mean(found["concurrency"]),
        throughput_per_s=mean(found["throughput"]),
        prompt_tokens=found["prompt"],
        output_tokens=found["output"],
        latency=latencies(latency),
        records=tuple(_records(section(entry, "requests"))),
        model=text(backend, "model") or text(worker, "backend_model"),
        max_concurrency=None if closed or held is None else int(held),
        burstiness=math.inf if kind == "constant" else 1.0,
        burst=math.floor(rate) if rate is not None and strategy.get("initial_burst") is True else 0,
        engine=engine_arguments(entry),
        notes=tuple(_notes(kind, count(totals, "incomplete"), None if closed else held)),
    )


def _notes(kind: str, cut: int | None, cap: float | None) -> Iterator[str]:
    yield "its TPOT holds TTFT and is left out; its ITL is a mean for each request, weighted by tokens, and is TPOT here"
    yield "its end-to-end lasts until the stream ends, and so holds the wait for a usage chunk after the last token"
    if cut:
        yield f"{cut} requests were cut off at the end and are not in the latencies"
    if kind == "throughput":
        yield "all requests sent as fast as the client could; the load is what its cap let through"
    if cap is not None:
        yield capped(cap)


def _duration(entry: Json) -> float | None:
    start, end, given = (number(entry, name) for name in ("start_time", "end_time", "duration"))
    return end - start if given is None and start is not None and end is not None else given


def _metric(metrics: Json, key: str) -> Summary | None:
    found = section(section(metrics, key), "successful")
    flat = {**section(found, "percentiles"), "mean": found.get("mean"), "median": found.get("median")}
    figures = summary(flat, MEDIAN_NAMES)
    return figures.scaled(1e-3) if figures is not None and key.endswith("_ms") else figures


def _records(requests: Json) -> Iterator[LoadTestRecord]:
    done = [r for r in rows(requests, "successful") if isinstance(r, dict)]
    starts = [number(r, "request_start_time", "start_time") for r in done]
    first = min((s for s in starts if s is not None), default=0.0)
    for request, start in zip(done, starts, strict=True):
        ttft = number(request, "time_to_first_token_ms")
        yield LoadTestRecord(
            sent_s=None if start is None else start - first,
            prompt_tokens=count(request, "prompt_tokens"),
            output_tokens=count(request, "output_tokens"),
            ttft_s=ttft * 1e-3 if ttft else None,
            e2e_s=number(request, "request_latency") or None,
        )
