"""What came of a traffic, as plain JSON with a version. Unknown is null."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.simulate.run import TrafficOutcome, cost
from analyzers.client import reasons
from analyzers.interval import wilson
from collectors.openai import DEFINITIONS
from collectors.traffic.tally import LATENCIES, QUANTILES, Slice, Tally, Values

SCHEMA_VERSION = 1
#: What each figure means, in the answer itself. docs/simulate.md says more.
MEANINGS = {
    "ttft_s": "due (scheduled; in a closed loop: sent) to first token: content, reasoning or tool call; the headline",
    "ttft_sent_s": "request handed to the socket to first token",
    "ttfo_s": "due to first token that is neither reasoning nor a tool call",
    "itl_s": "gap between two arrivals over the tokens of the later one, each token counted",
    "icl_s": "gap between two chunks with tokens, as they came",
    "tpot_s": "of one request: (last token - first token) / (tokens that came after the first arrival)",
    "e2e_s": "due to last token; usage that comes later is not waited for",
    "e2e_sent_s": "request handed to the socket to last token",
    "normalized_s": "e2e_s / output tokens",
    "success": "2xx, no error within the stream, a finish reason or [DONE], one token at least",
    "goodput_per_s": "requests per second that keep every limit of the objective, on due times; failures miss it",
}
#: Figures of single requests, which are independent enough for an interval; gaps of one request are not.
_PER_REQUEST = tuple(name for name in LATENCIES if name not in ("itl_s", "icl_s"))
_SPECULATIVE = 1.2
_HELD_UP = 0.5


def answer(outcome: TrafficOutcome) -> dict[str, Any]:
    """Everything, in the order in which a person reads it."""
    tally, run, traffic = outcome.run.tally, outcome.run, outcome.traffic
    against = reasons(tally, run.stopped, traffic.closed)
    seconds = outcome.measured_s
    return {
        "schema_version": SCHEMA_VERSION,
        "definitions": {"version": DEFINITIONS, **MEANINGS},
        "valid": not against,
        "invalid_reasons": [reason.as_dict() for reason in against],
        "stopped": run.stopped,
        "target": {
            "url": traffic.target.url,
            "model": outcome.model,
            "api": traffic.target.api,
            "endpoint": traffic.target.endpoint,
        },
        "load": {
            **traffic.about,
            "duration_s": traffic.duration_s,
            "max_concurrency": traffic.most_in_flight,
            "seed": traffic.seed,
        },
        "started_at": run.started_at,
        "elapsed_s": run.elapsed_s,
        "warmup_s": traffic.warmup_s,
        **_counts(tally),
        **{name: _summary(tally.values[name], name in _PER_REQUEST) for name in LATENCIES},
        "prompt_tokens": _summary(tally.values["prompt_length"], False),
        "output_tokens": _summary(tally.values["output_length"], False),
        **_rates(tally, seconds),
        **_good(outcome, seconds),
        **_costs(outcome),
        "tokens": {"source": dict(tally.token_sources), "packing": dict(tally.packings)},
        "stream": _stream(tally),
        "client": _client(tally, run.nodes),
        "slices": _slices(outcome),
    }


def _counts(tally: Tally) -> dict[str, Any]:
    return {
        "planned": tally.planned,
        "sent": tally.sent,
        "warmup_requests": tally.warmup,
        "warmup_errors": dict(tally.warmup_errors.most_common()),
        "completed": tally.ok,
        "errors": dict(tally.errors.most_common()),
        "error_details": dict(tally.details),
        "retry_after_s": _summary(tally.retry_after, False) if tally.retry_after.count else None,
        "held": tally.held,
        "unsent": tally.unsent,
        "abandoned": tally.abandoned,
        "retried": tally.retried,
    }


def _summary(values: Values, with_interval: bool) -> dict[str, Any]:
    """Seconds or tokens; every figure null where there is no value."""
    found: dict[str, Any] = {"count": values.count, "mean": values.mean}
    found |= dict(zip(QUANTILES, values.quantiles(list(QUANTILES.values())), strict=True))
    found["resolution"] = "exact" if values.exact else "within 1 %"
    if with_interval:
        found["ci95"] = {name: list(values.interval(share)) for name, share in QUANTILES.items()}
    return found


def _rates(tally: Tally, seconds: float) -> dict[str, Any]:
    """Of what ended after the warm-up and before the sending ended."""
    known = seconds > 0
    return {
        "measured_s": seconds,
        "requests_per_s": tally.steady_ok / seconds if known else None,
        "output_tokens_per_s": tally.steady_tokens / seconds if known else None,
    }


def _good(outcome: TrafficOutcome, seconds: float) -> dict[str, Any]:
    tally, limits = outcome.run.tally, outcome.rules.limits
    if not limits:
        return {"goodput_per_s": None, "attainment": None, "objective": []}
    low, high = wilson(tally.good, tally.ended)
    return {
        "goodput_per_s": tally.steady_good / seconds if seconds > 0 else None,
        "attainment": {"share": tally.good / tally.ended if tally.ended else None, "low": low, "high": high},
        "objective": [_judged(t.name, t.metric, t.quantile, t.limit, tally) for t in outcome.traffic.objective.targets],
    }


def _judged(name: str, metric: str, quantile: float | None, limit: float, tally: Tally) -> dict[str, Any]:
    if quantile is not None:
        values = tally.values.get(metric)
        found = values.quantiles([quantile])[0] if values is not None else None
    else:
        found = tally.errors.total() / tally.ended if tally.ended else None
    return {"target": name, "limit": limit, "observed": found, "met": None if found is None else found <= limit}


def _costs(outcome: TrafficOutcome) -> dict[str, Any]:
    """Of the whole run, the warm-up and failures included; and for each success and 1000 output tokens of the steady part."""
    tally, traffic = outcome.run.tally, outcome.traffic
    total = cost(traffic, outcome.run.elapsed_s, tally.all_prompt, tally.all_output)
    known = total is not None and tally.all_ok > 0 and tally.all_output > 0
    return {
        "cost_usd": total,
        "cost_per_call_usd": total / tally.all_ok if known and total is not None else None,
        "cost_per_1k_output_tokens_usd": 1000 * total / tally.all_output if known and total is not None else None,
    }


def _stream(tally: Tally) -> dict[str, Any]:
    """How tokens come: several in a chunk is the server's doing (speculative decoding), several chunks in a read is held up on the way."""
    per_chunk = tally.tokens / tally.chunks if tally.chunks else None
    bunched = tally.bunched / tally.streams if tally.streams else None
    delay = tally.watch.read_delay.quantiles([0.99])[0]
    gap = tally.values["tpot_s"].quantiles([0.5])[0]
    late = delay is not None and gap is not None and delay > gap  # the client itself let chunks pile up
    return {
        "tokens_per_chunk": per_chunk,
        "chunks_per_read": tally.chunks / tally.arrivals if tally.arrivals else None,
        "buffered_share": bunched,
        "buffered": None if bunched is None or (late and bunched > 0) else bunched > _HELD_UP,
        "several_tokens_per_chunk": None if per_chunk is None else per_chunk > _SPECULATIVE,
    }


def _client(tally: Tally, nodes: Mapping[str, int] | None) -> dict[str, Any]:
    """``nodes``: workers by node of a cluster, null where all ran on this machine."""
    watch = tally.watch
    late, delay = watch.lateness.quantiles([0.99, 1.0]), watch.read_delay.quantiles([0.99, 1.0])
    ended = tally.all_ok + tally.all_errors
    return {
        "workers": watch.workers,
        "nodes": nodes,
        "connections": watch.connections,
        "cpu_s": watch.cpu_s,
        "cpu_per_request_s": watch.cpu_s / ended if ended else None,
        "busiest_share": watch.busiest,
        "lateness_mean_s": watch.lateness.mean,
        "lateness_p99_s": late[0],
        "lateness_max_s": late[1],
        "read_delay_mean_s": watch.read_delay.mean,
        "read_delay_p99_s": delay[0],
        "read_delay_max_s": delay[1],
        "loop_lag_max_s": watch.lag_max_s,
    }


def _slices(outcome: TrafficOutcome) -> list[dict[str, Any]]:
    """Over time, by when requests ended; empty pieces too."""
    tally, rules, width = outcome.run.tally, outcome.rules, outcome.rules.slice_s
    if not tally.slices:
        return []
    end = outcome.run.started_at + outcome.run.elapsed_s
    first, last = rules.slice_of(0.0), int(end // width)
    return [_slice(tally.slices.get(i), i * width, width, outcome.run.started_at, end) for i in range(first, last + 1)]


def _slice(piece: Slice | None, start: float, width: float, since: float, until: float) -> dict[str, Any]:
    piece = piece or Slice()
    seconds = min(start + width, until) - max(start, since)
    known = seconds > 0
    found: dict[str, Any] = {
        "start": start,
        "duration_s": width,
        "start_s": max(0.0, start - since),
        "seconds": seconds,
    }
    counts: Mapping[str, float] = {
        "sent": piece.sent,
        "completed": piece.ok,
        "errors": piece.errors,
        "output_tokens": piece.output_tokens,
    }
    found |= {f"{name}_per_s": value / seconds if known else None for name, value in counts.items()}
    for name in ("ttft_s", "itl_s", "e2e_s"):
        values = piece.values.get(name)
        p50, p95 = values.quantiles([0.5, 0.95]) if values is not None else (None, None)
        found |= {f"{name[:-2]}_p50_s": p50, f"{name[:-2]}_p95_s": p95}
    return found
