"""What each engine and exporter calls things, as PromQL: the queries that make Flyball's metrics of them.

A template has ``$by`` (the labels that tell endpoints apart), ``$sel`` (matchers that choose them, never empty), ``$w`` (the interval),
``$alive`` (a series that each target always has) and, for gauges, ``$over`` (the function over the interval). One answer serves all endpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

QueryKind = Literal["count", "gauge", "histogram"]
#: Labels that vLLM's HTTP layer does not have.
_ENGINE = frozenset(("model_name", "engine"))


@dataclass(frozen=True, slots=True)
class Query:
    """One metric. ``templates``: the preferred first; the next one is asked only for endpoints of which the one before says nothing."""

    metric: str
    kind: QueryKind
    templates: tuple[str, ...]
    lacks: frozenset[str] = frozenset()
    """Labels that these series do not have: what is told by the others alone goes to an endpoint only where it is the only one."""
    adds: Literal["", "may", "must"] = ""
    """Whether it is added to what the query before it told of the same metric; ``must``: without it, that is unknown too."""


@dataclass(frozen=True, slots=True)
class Preset:
    """All queries of one engine or exporter."""

    alive: str
    """A series of each target that is always there: who answers, and how many."""
    watch: str
    """A counter of each target that moves with any traffic: a reset of it tells a restart."""
    queries: tuple[Query, ...]


def _count(metric: str, *names: str, more: str = "") -> Query:
    return Query(metric, "count", (" or ".join(_increase(name, more) for name in names),))


def _increase(name: str, more: str = "") -> str:
    series = f"{name}{{$sel{more}}}"
    return f"sum by ($by) ({grown(series)} or {begun(series)})"


def begun(series: str) -> str:
    """Counters that appeared within the interval, with their first event, on targets that were there at its beginning."""
    return f"{series} unless {series} offset $w and on (job, instance) $alive{{$sel}} offset $w"


def grown(series: str) -> str:
    """The increase of each counter within the interval, exactly: what is there at its end less what was there at its beginning.

    ``increase()`` looks only at samples inside the interval, and guesses what happened between the last one of an interval and the first one
    of the next. A counter that was reset has counted since then what it shows; one that was not there before has no known beginning.
    """
    return f"({series} - {series} offset $w) >= 0 or {series} and resets({series}[$w]) > 0"


def _part(part: str, whole: str) -> str:
    """A series that appears with its first event: 0 where the whole is there and it is not."""
    return f"{part} or 0 * {whole}"


def _gauge(metric: str, how: Literal["sum", "avg"], *names: str, more: str = "", scale: str = "") -> Query:
    each = (f"{how} by ($by) ($over({name}{{$sel{more}}}[$w])){scale}" for name in names)
    return Query(metric, "gauge", (" or ".join(each),))


def _histogram(metric: str, *names: str) -> Query:
    return Query(metric, "histogram", names)


#: Endpoints whose targets are the same at both ends of the interval, and did not restart in it.
STEADY = (
    "count by ($by) ($alive{$sel} and $alive{$sel} offset $w) == count by ($by) ($alive{$sel})"
    " == count by ($by) ($alive{$sel} offset $w) unless sum by ($by) (resets($watch{$sel}[$w])) > 0"
)


def buckets(name: str, *, steady: bool) -> tuple[str, str]:
    """The increase of a histogram's buckets, and of its sum.

    Where all targets are the same as before, sums are compared instead of series: for a store that is a quarter of the work.
    """
    edges, total = f"{name}_bucket{{$sel}}", f"{name}_sum{{$sel}}"
    if steady:
        return _between(edges, "$by, le"), _between(total, "$by")
    return f"sum by ($by, le) ({grown(edges)})", f"sum by ($by) ({grown(total)})"


def _between(series: str, by: str) -> str:
    """What is there now less what was there then; a series that came since then began at 0, for its target was there."""
    now = f"sum by ({by}) ({series})"
    return f"{now} - (sum by ({by}) ({series} offset $w) or 0 * {now})"


def _cached_before_0_17() -> str:
    """What the prefix cache had, where it counted tokens: until 0.9 the same names count blocks, of which fewer are looked up than half
    of the prompt tokens. There the share of hits in what was looked up is taken, which has no unit. None is none in any unit.
    """
    hits, queries = (
        " or ".join(_increase(f"vllm:{name}_{part}_total") for name in ("prefix_cache", "gpu_prefix_cache"))
        for part in ("hits", "queries")
    )
    prompt = _increase("vllm:prompt_tokens_total")
    counted = f"({hits}) and ({queries}) >= 0.5 * {prompt}"
    return f"({counted}) or ({hits}) == 0 or ({hits}) / (({queries}) > 0) * {prompt}"


_FINISHED = _increase("vllm:request_success_total")
_HTTP = _increase("http_requests_total", ',handler=~"/v1/.*"')
_HTTP_FAILED = _part(_increase("http_requests_total", ',handler=~"/v1/.*",status=~"5.*"'), _HTTP)

_VLLM = Preset(
    "vllm:num_requests_running",
    "vllm:generation_tokens_total",
    (
        Query("requests", "count", (_FINISHED,)),
        Query("requests", "count", (_HTTP_FAILED,), _ENGINE, "may"),
        Query("errors", "count", (_part(_increase("vllm:request_success_total", ',finished_reason="error"'), _FINISHED),)),
        Query("errors", "count", (_HTTP_FAILED,), _ENGINE, "must"),
        _count("prompt_tokens", "vllm:prompt_tokens_total"),
        _count("output_tokens", "vllm:generation_tokens_total"),
        _count("preemptions", "vllm:num_preemptions_total"),
        Query("cached_prompt_tokens", "count", (_increase("vllm:prompt_tokens_cached_total"), _cached_before_0_17())),
        _count("drafts", "vllm:spec_decode_num_drafts_total"),
        _count("accepted_tokens", "vllm:spec_decode_num_accepted_tokens_total"),
        _gauge("running", "sum", "vllm:num_requests_running"),
        Query("waiting", "gauge", (
            'sum by ($by) ($over(vllm:num_requests_waiting_by_reason{$sel,reason="capacity"}[$w]))'
            " or sum by ($by) ($over(vllm:num_requests_waiting{$sel}[$w]))",
        )),
        _gauge("kv_usage", "avg", "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        _histogram("ttft_s", "vllm:time_to_first_token_seconds"),
        _histogram("itl_s", "vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
        _histogram("tpot_s", "vllm:request_time_per_output_token_seconds"),
        _histogram("e2e_s", "vllm:e2e_request_latency_seconds"),
        _histogram("queue_s", "vllm:request_queue_time_seconds", "vllm:time_in_queue_requests"),
        _histogram("prefill_s", "vllm:request_prefill_time_seconds"),
        _histogram("prompt_length", "vllm:request_prompt_tokens"),
        _histogram("output_length", "vllm:request_generation_tokens"),
    ),
)  # fmt: skip

#: With several tensor-parallel ranks each exports the scheduler's series: one of them is enough.
_RANK = ',tp_rank=~"0|"'
_SGLANG = Preset(
    "sglang:num_running_reqs",
    "sglang:generation_tokens_total",
    (
        _count("requests", "sglang:num_requests_total"),
        Query("errors", "count", (
            _part(_increase("sglang:http_responses_total", ',status_code=~"5.*"'), _increase("sglang:http_responses_total")),
        ), frozenset(("model_name", "engine_type"))),
        _count("prompt_tokens", "sglang:prompt_tokens_total"),
        _count("cached_prompt_tokens", "sglang:cached_tokens_total"),
        _count("output_tokens", "sglang:generation_tokens_total"),
        _count("preemptions", "sglang:num_retracted_requests_total", more=_RANK),
        _gauge("running", "sum", "sglang:num_running_reqs", more=_RANK),
        _gauge("waiting", "sum", "sglang:num_queue_reqs", more=_RANK),
        _gauge("kv_usage", "avg", "sglang:token_usage", more=_RANK),
        _histogram("ttft_s", "sglang:time_to_first_token_seconds"),
        _histogram("itl_s", "sglang:inter_token_latency_seconds"),
        _histogram("tpot_s", "sglang:request_time_per_output_token_seconds"),
        _histogram("e2e_s", "sglang:e2e_request_latency_seconds"),
        _histogram("queue_s", "sglang:queue_time_seconds"),
    ),
)  # fmt: skip

#: TGI's time per token counts the prefill too, so it is no TPOT; it has no TTFT.
_TGI = Preset(
    "tgi_batch_current_size",
    "tgi_request_count",
    (
        _count("requests", "tgi_request_count"),
        Query("errors", "count", (
            _part(_increase("tgi_request_failure", ',err!~"validation|template"'), _increase("tgi_request_count")),
        )),
        _count("prompt_tokens", "tgi_request_input_length_sum"),
        _count("output_tokens", "tgi_request_generated_tokens_sum"),
        _gauge("running", "sum", "tgi_batch_current_size"),
        _gauge("waiting", "sum", "tgi_queue_size"),
        _histogram("e2e_s", "tgi_request_duration"),
        _histogram("queue_s", "tgi_request_queue_duration"),
        _histogram("prompt_length", "tgi_request_input_length"),
        _histogram("output_length", "tgi_request_generated_tokens"),
    ),
)  # fmt: skip

#: llama.cpp counts neither requests nor latencies; its prompt tokens leave the cached ones out, which older versions do not count.
_LLAMACPP = Preset(
    "llamacpp:requests_processing",
    "llamacpp:tokens_predicted_total",
    (
        _count("prompt_tokens", "llamacpp:prompt_tokens_total"),
        Query("prompt_tokens", "count", (_increase("llamacpp:prompt_tokens_cached_total"),), adds="must"),
        _count("cached_prompt_tokens", "llamacpp:prompt_tokens_cached_total"),
        _count("output_tokens", "llamacpp:tokens_predicted_total"),
        _gauge("running", "sum", "llamacpp:requests_processing"),
        _gauge("waiting", "sum", "llamacpp:requests_deferred"),
        _gauge("kv_usage", "avg", "llamacpp:kv_cache_usage_ratio"),
    ),
)

_CONTAINER = '{$sel,container!=""}'
_CADVISOR = Preset(
    "container_memory_working_set_bytes",
    "container_cpu_usage_seconds_total",
    (
        Query("cpu_usage", "gauge", (
            f"sum by ($by) (rate(container_cpu_usage_seconds_total{_CONTAINER}[$w]))"
            f" / sum by ($by) (container_spec_cpu_quota{_CONTAINER} / container_spec_cpu_period{_CONTAINER})",
        )),
        Query("memory_usage", "gauge", (
            f"sum by ($by) ($over(container_memory_working_set_bytes{_CONTAINER}[$w]))"
            f" / sum by ($by) (container_spec_memory_limit_bytes{_CONTAINER} > 0)",
        )),
    ),
)  # fmt: skip

_DCGM = Preset(
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
    (
        _gauge("gpu_usage", "avg", "DCGM_FI_DEV_GPU_UTIL", scale=" / 100"),
        _gauge("gpu_power_w", "sum", "DCGM_FI_DEV_POWER_USAGE"),
        Query("gpu_memory_usage", "gauge", (
            "sum by ($by) ($over(DCGM_FI_DEV_FB_USED{$sel}[$w])) / ("
            "sum by ($by) (DCGM_FI_DEV_FB_USED{$sel}) + sum by ($by) (DCGM_FI_DEV_FB_FREE{$sel})"
            " + (sum by ($by) (DCGM_FI_DEV_FB_RESERVED{$sel}) or 0 * sum by ($by) (DCGM_FI_DEV_FB_FREE{$sel})))",
        )),
    ),
)  # fmt: skip

#: Knative's queue-proxy, beside each replica; KServe's serverless predictors have it too. Milliseconds, so the time is told as a sum alone.
_REVISION = "revision_app_request_count"
_KNATIVE = Preset(
    _REVISION,
    _REVISION,
    (
        _count("requests", _REVISION),
        Query("errors", "count", (
            _part(_increase(_REVISION, ',response_code_class="5xx"'), _increase(_REVISION)),
        )),
        Query("throttled", "count", (_part(_increase(_REVISION, ',response_code="429"'), _increase(_REVISION)),)),
        Query("rejected", "count", (
            _part(_increase(_REVISION, ',response_code_class="4xx",response_code!="429"'), _increase(_REVISION)),
        )),
        Query("e2e_total_s", "count", (f"({_increase('revision_app_request_latencies_sum')}) / 1000",)),
    ),
)  # fmt: skip

PRESETS: Mapping[str, Preset] = {
    "vllm": _VLLM,
    "sglang": _SGLANG,
    "tgi": _TGI,
    "llamacpp": _LLAMACPP,
    "cadvisor": _CADVISOR,
    "dcgm": _DCGM,
    "knative": _KNATIVE,
}
