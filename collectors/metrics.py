"""The names of telemetry, in one table: what each is, its unit, and how it adds up over targets.

A source may use other names too: they are kept, and count as the defaults of their kind say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MetricKind = Literal["counter", "distribution", "gauge"]
Addition = Literal["sum", "mean", "max"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One name in readings, spans and windows."""

    name: str
    kind: MetricKind
    unit: str
    """s, tokens, requests, 1 (a share), W, USD."""
    over_targets: Addition
    """How the targets' values make up the endpoint's. Of a distribution: ``sum``, they are merged."""
    meaning: str


_TABLE = (
    Metric("requests", "counter", "requests", "sum", "finished requests, errors included"),
    Metric("errors", "counter", "requests", "sum", "of those, failed: 5xx, aborted by the server, broken stream"),
    Metric("throttled", "counter", "requests", "sum", "refused for a rate or a quota: not served, and no error of the server's"),
    Metric("spilled", "counter", "requests", "sum", "served by another deployment, since this one had no room"),
    Metric("rejected", "counter", "requests", "sum", "refused as wrong: 4xx but for 429"),
    Metric("e2e_total_s", "counter", "s", "sum", "spent in requests, of a source that tells their mean time and no distribution"),
    Metric("prompt_tokens", "counter", "tokens", "sum", "read, cached ones included"),
    Metric("cached_prompt_tokens", "counter", "tokens", "sum", "of the prompt tokens, served from the prefix cache"),
    Metric("output_tokens", "counter", "tokens", "sum", "generated"),
    Metric("drafts", "counter", "steps", "sum", "of a sequence, that verified drafted tokens: speculative decoding"),
    Metric("accepted_tokens", "counter", "tokens", "sum", "of the output tokens, those drafted: accept length = 1 + accepted / drafts"),
    Metric("preemptions", "counter", "requests", "sum", "sequences thrown out of the batch for want of memory"),
    Metric("billed_usd", "counter", "USD", "sum", "what the source says that it charged"),
    Metric("ttft_s", "distribution", "s", "sum", "request sent to first token"),
    Metric("itl_s", "distribution", "s", "sum", "gap between consecutive output tokens after the first"),
    Metric("tpot_s", "distribution", "s", "sum", "of one request: (end-to-end - TTFT) / (output tokens - 1)"),
    Metric("e2e_s", "distribution", "s", "sum", "request sent to last token"),
    Metric("queue_s", "distribution", "s", "sum", "arrival at the engine to its first scheduling"),
    Metric("cold_start_s", "distribution", "s", "sum", "an instance asked for to its first work, with nothing waiting before it"),
    Metric("processing_s", "distribution", "s", "sum", "in a replica or an instance, the queue before it not included"),
    Metric("prefill_s", "distribution", "s", "sum", "first scheduling to first token: TTFT without the queue, of the same requests"),
    Metric("prompt_length", "distribution", "tokens", "sum", "of one request"),
    Metric("output_length", "distribution", "tokens", "sum", "of one request"),
    Metric("running", "gauge", "requests", "sum", "sequences in the batch"),
    Metric("waiting", "gauge", "requests", "sum", "sequences that wait for capacity"),
    Metric("replicas", "gauge", "replicas", "sum", "that serve"),
    Metric("token_limit_used", "gauge", "1", "max", "of the tokens that a vendor's rate limit allows, as its headers tell"),
    Metric("request_limit_used", "gauge", "1", "max", "of the calls that a vendor's rate limit allows, as its headers tell"),
    Metric("kv_usage", "gauge", "1", "mean", "of the KV cache"),
    Metric("ptu_usage", "gauge", "1", "max", "of provisioned throughput: from 1 on, calls are refused"),
    Metric("ttft_mean_s", "gauge", "s", "mean", "of requests, from a source that tells no distribution"),
    Metric("itl_mean_s", "gauge", "s", "mean", "likewise, between output tokens"),
    Metric("cpu_usage", "gauge", "1", "mean", "of the host, or of what the replica may use"),
    Metric("memory_usage", "gauge", "1", "mean", "of the host, or of what the replica may use"),
    Metric("gpu_usage", "gauge", "1", "mean", "share of time in which the GPU did something"),
    Metric("gpu_memory_usage", "gauge", "1", "mean", "engines preallocate it, so never a signal to act on"),
    Metric("gpu_power_w", "gauge", "W", "sum", "of all GPUs"),
)  # fmt: skip

#: Between a counter's name and whose part of it this is.
_OF = "@"

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _TABLE}


def over_targets(name: str) -> Addition:
    """How a gauge adds up; one that is not in the table is a mean."""
    known = METRICS.get(name)
    return known.over_targets if known is not None else "mean"


def names(kind: MetricKind) -> tuple[str, ...]:
    """Of one kind, in the table's order."""
    return tuple(name for name, metric in METRICS.items() if metric.kind == kind)


def tagged(name: str, tag: str) -> str:
    """The name of the part of a counter that carries a tag: a tenant, a team."""
    return f"{name}{_OF}{tag}"


def tag_of(name: str) -> tuple[str, str | None]:
    """A counter's name, and whose part of it this is; None: it is the whole."""
    counter, of, tag = name.partition(_OF)
    return counter, tag if of else None
