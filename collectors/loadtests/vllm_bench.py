"""What ``vllm bench serve --save-result`` writes, with ``--save-detailed`` or without (vllm ``benchmarks/serve.py``)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from collectors.loadtests.fields import (
    MEDIAN_NAMES,
    Json,
    capped,
    count,
    engine_arguments,
    label,
    latencies,
    number,
    rows,
    sensible,
    summary,
    text,
)
from collectors.loadtests.loadtest import BadLoadTest, LoadTest, LoadTestRecord, RateRamp, Summary

_LATENCIES = {"ttft_s": "ttft", "itl_s": "itl", "tpot_s": "tpot", "e2e_s": "e2el"}


def knows(data: Json) -> bool:
    """By its throughput beside a count of input tokens."""
    return "request_throughput" in data and "total_input_tokens" in data


def read(data: Json, where: str) -> Iterator[LoadTest]:
    """One test, the run. Raises BadLoadTest."""
    if "total_output_tokens" not in data:
        raise BadLoadTest(f"{where}: a `vllm bench serve` run of embeddings, which has no tokens to calibrate on")
    completed, sent, failed = (count(data, n) for n in ("completed", "num_prompts", "failed"))
    if failed is None and sent is not None and completed is not None:
        failed = sent - completed
    cap, rate = number(data, "max_concurrency"), number(data, "request_rate")
    ramp = _ramp(data)
    ramps = ramp is not None or data.get("ramp_up_strategy") is not None
    unlimited = rate is None and not ramps and data.get("request_rate") in ("inf", math.inf)
    # Without a rate and a cap, all requests go out at once: a client for each.
    held = None if ramps or rate is not None else cap if cap is not None else sent or completed if unlimited else None
    closed = held is not None
    records = tuple(_records(data))
    found = {name: _latency(data, key) for name, key in _LATENCIES.items()}
    if found["e2e_s"] is None:
        found["e2e_s"] = Summary.of([r.e2e_s for r in records if r.e2e_s is not None]) or _whole(data, failed)
    yield LoadTest(
        source="vllm-bench",
        name=label(held, rate) if ramp is None else f"{ramp.start_per_s:g} to {ramp.end_per_s:g} a second",
        sent=sent,
        completed=completed,
        failed=failed,
        duration_s=number(data, "duration"),
        controlled="concurrency" if closed else "rate" if ramp or (rate and not ramps) else None,
        rate_per_s=None if ramps else rate,
        concurrency=held,
        throughput_per_s=number(data, "request_throughput"),
        prompt_tokens=_lengths([r.prompt_tokens for r in records], number(data, "total_input_tokens"), completed),
        output_tokens=_lengths([r.output_tokens for r in records], number(data, "total_output_tokens"), completed),
        latency=latencies(found),
        records=records,
        model=text(data, "model_id"),
        max_concurrency=None if closed or cap is None else int(cap),
        burstiness=_burstiness(data),
        ramp=ramp,
        engine=engine_arguments(data),
        notes=tuple(_notes(data, rate, cap, ramp)),
    )


def _burstiness(data: Json) -> float:
    """The shape of its gamma gaps; 1, Poisson, where an older version does not say."""
    return math.inf if data.get("burstiness") in ("inf", math.inf) else number(data, "burstiness") or 1.0


def _ramp(data: Json) -> RateRamp | None:
    """None where there is none, or where it does not say from which rate to which."""
    kind = data.get("ramp_up_strategy")
    start, end = number(data, "ramp_up_start_rps"), number(data, "ramp_up_end_rps")
    if kind == "linear" and start is not None and end is not None and start + end > 0:
        return RateRamp(start, end, "linear")
    return RateRamp(start, end, "exponential") if kind == "exponential" and start and end else None


def _notes(data: Json, rate: float | None, cap: float | None, ramp: RateRamp | None) -> Iterator[str]:
    if "chat" in str(data.get("endpoint_type", data.get("backend", ""))):
        yield "of a chat endpoint its TTFT may be that of the chunk with the role alone, and so too short"
    burstiness = number(data, "burstiness")
    if rate is not None and burstiness not in (None, 1.0):
        yield f"arrivals are gamma with burstiness {burstiness:g}; 1 is Poisson, above it more even"
    ramped = data.get("ramp_up_strategy") is not None
    if cap is not None and (rate is not None or ramped):
        yield capped(cap)
    if rate is None and cap is None and not ramped:
        yield "all requests sent at once, and replayed so: no steady load, so it tells little of one"
    if ramped and ramp is None:
        yield "the rate was ramped, and it is not told from which to which"
    elif ramp is not None:
        yield "the rate was ramped, and is replayed so"


def _latency(data: Json, key: str) -> Summary | None:
    found = summary(data, [f"{name}_{key}_ms" for name in MEDIAN_NAMES])
    return None if found is None else found.scaled(1e-3)


def _records(data: Json) -> Iterator[LoadTestRecord]:
    """Of ``--save-detailed``. A request that failed has an error, or no output."""
    n = len(rows(data, "input_lens"))
    starts, latencies = _column(data, "start_times", n), _column(data, "latencies", n)
    errors = rows(data, "errors") if len(rows(data, "errors")) == n else [""] * n
    gaps = [list(filter(None, map(sensible, g))) if isinstance(g, list) else [] for g in rows(data, "itls")]
    begin = min((s for s in starts if s is not None), default=0.0)
    columns = (_column(data, name, n) for name in ("input_lens", "output_lens", "ttfts"))
    for i, (prompt, output, ttft) in enumerate(zip(*columns, strict=True)):
        if errors[i] or not output:
            continue
        whole, start = latencies[i], starts[i]
        if whole is None and ttft and len(gaps) == n:
            whole = ttft + sum(gaps[i])
        yield LoadTestRecord(
            sent_s=None if start is None else start - begin,
            prompt_tokens=None if prompt is None else int(prompt),
            output_tokens=int(output),
            ttft_s=ttft or None,
            e2e_s=whole or None,
        )


def _column(data: Json, name: str, n: int) -> list[float | None]:
    """One number a request; None throughout where the list is not there or of another length."""
    values = rows(data, name)
    return [sensible(v) for v in values] if len(values) == n else [None] * n


def _whole(data: Json, failed: int | None) -> Summary | None:
    """End-to-end from ``latencies``, which newer versions keep without the details: all of them, if none failed."""
    values = [v for v in map(sensible, rows(data, "latencies")) if v]
    return Summary.of(values) if failed == 0 else None


def _lengths(each: Sequence[int | None], total: float | None, completed: int | None) -> Summary | None:
    known = [v for v in each if v is not None]
    if known:
        return Summary.of(known)
    return Summary(mean=total / completed) if total is not None and completed else None
