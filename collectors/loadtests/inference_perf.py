"""inference-perf's ``stage_N_lifecycle_metrics.json``, older and newer (kubernetes-sigs/inference-perf ``reportgen/base.py``).

Older versions counted chunks or tokens twice in TPOT and ITL: ``reader`` checks them against end-to-end.
"""

from __future__ import annotations

from collections.abc import Iterator

from collectors.loadtests.fields import MEDIAN_NAMES, Json, count, label, latencies, mean, number, section, summary
from collectors.loadtests.loadtest import LATENCIES, BadLoadTest, LoadTest

#: Median delay against its own schedule above which the generator could not keep up, by its own documentation.
MOST_LAG_S = 0.010
#: A lag below this share of the mean TTFT does not spoil it.
_SMALL_LAG = 0.05
_NAMES = ("time_to_first_token", "inter_token_latency", "time_per_output_token", "request_latency")


def knows(data: Json) -> bool:
    """By its summaries of load and of successes."""
    return "load_summary" in data and "successes" in data


def read(data: Json, where: str) -> Iterator[LoadTest]:
    """One test, the stage. Raises BadLoadTest."""
    load, good, bad = (section(data, name) for name in ("load_summary", "successes", "failures"))
    latency = section(good, "latency")
    if not latency:
        raise BadLoadTest(
            f"{where}: inference-perf's server metrics, without requests; give a stage_N_lifecycle_metrics.json"
        )
    completed, sent = count(good, "count"), count(load, "count")
    throughput = number(section(good, "throughput"), "requests_per_sec")
    concurrency = number(load, "concurrency")
    # Of a closed loop it writes the request count as a rate.
    asked, achieved = (None if concurrency else number(load, n) for n in ("requested_rate", "achieved_rate"))
    duration = number(data, "benchmark_time_seconds")
    if duration is None and completed is not None and throughput:
        duration = completed / throughput
    names = dict(zip(LATENCIES, _NAMES, strict=True))
    found = {k: summary(section(latency, n), MEDIAN_NAMES) for k, n in names.items()}
    lag, ttft = number(section(load, "schedule_delay"), "median"), mean(found["ttft_s"])
    if concurrency is None and lag is not None and ttft is not None and lag > max(MOST_LAG_S, _SMALL_LAG * ttft):
        found["ttft_s"] = None
    rate = achieved if achieved is not None else asked
    yield LoadTest(
        source="inference-perf",
        name=label(concurrency, rate),
        sent=sent,
        completed=completed,
        failed=count(bad, "count"),
        duration_s=duration,
        controlled="concurrency" if concurrency is not None else "rate" if rate is not None else None,
        rate_per_s=rate,
        concurrency=concurrency,
        throughput_per_s=throughput,
        prompt_tokens=summary(section(good, "prompt_len", "prompt_tokens"), MEDIAN_NAMES),
        output_tokens=summary(section(good, "output_tokens", "output_len"), MEDIAN_NAMES),
        latency=latencies(found),
        notes=() if concurrency else tuple(_notes(asked, achieved, lag, found["ttft_s"] is None and ttft is not None)),
    )


def _notes(asked: float | None, achieved: float | None, lag_s: float | None, spoiled: bool) -> Iterator[str]:
    """On an open loop. spoiled: its TTFT is left out."""
    yield "its constant rate has exponential gaps, so arrivals are Poisson in either mode"
    if asked is None:
        yield "no rate is given: a summary over all stages is not one load; give the stage files"
    elif achieved is not None and not 0.95 * asked < achieved < 1.05 * asked:
        yield f"sent {achieved:.3g} requests per second where {asked:.3g} were asked for; the former is taken"
    if lag_s is not None and lag_s > MOST_LAG_S:
        yield f"the generator ran {lag_s:.3g} s (median) behind its schedule: latencies hold its own delay" + (
            ", and TTFT is left out" if spoiled else ""
        )
