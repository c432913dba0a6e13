"""SGLang's own ``/metrics``, of a server that was started with ``--enable-metrics``.

Names by SGLang 0.5.23's source. Schedulers of several tensor-parallel ranks say the same, so the first speaks; data-parallel ones add up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from collectors.base import SourceContext
from collectors.discovery import Support
from collectors.exposition import Labels, MetricsPage
from collectors.series import added_up, histogram_of, share, summed
from collectors.servers.page import ServerCollector, ServerFigures, ServerNames, ServerOptions
from collectors.window import CollectError

#: Canonical name to SGLang's.
_COUNTERS: Mapping[str, str] = {
    "prompt_tokens": "sglang:prompt_tokens_total",
    "cached_prompt_tokens": "sglang:cached_tokens_total",
    "output_tokens": "sglang:generation_tokens_total",
    "preemptions": "sglang:num_retracted_requests_total",
}
_HISTOGRAMS: Mapping[str, tuple[str, ...]] = {
    "ttft_s": ("sglang:time_to_first_token_seconds",),
    "itl_s": ("sglang:inter_token_latency_seconds",),
    # Until 0.4 by another name.
    "tpot_s": ("sglang:request_time_per_output_token_seconds", "sglang:time_per_output_token_seconds"),
    "e2e_s": ("sglang:e2e_request_latency_seconds",),
    "queue_s": ("sglang:queue_time_seconds",),
}
_REQUESTS, _ANSWERS = "sglang:num_requests_total", "sglang:http_responses_total"
_RUNNING, _WAITING, _USAGE = "sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage"
_WHOLE = "sglang:max_total_num_tokens"
_NAMES = {*_COUNTERS.values(), _REQUESTS, _ANSWERS, _RUNNING, _WAITING, _USAGE, _WHOLE} | {
    name + part for names in _HISTOGRAMS.values() for name in names for part in ("_bucket", "_sum", "_count")
}
_FAILED: Final = re.compile(r"5\d\d")

SUPPORT = Support(
    title="SGLang's /metrics",
    sees=("requests, errors, tokens, cached ones apart", "TTFT, ITL, TPOT, end-to-end, queue", "batch, KV cache"),
    changes=(),
    verified="specification only",
    how="the names of SGLang 0.5.23's source code",
)


class Options(ServerOptions):
    """Settings of the ``sglang`` source."""


def values_of(samples: MetricsPage, model: str | None) -> ServerFigures:
    """One model's figures. Raises CollectError: model_not_found, several_models, truncated, invalid_value."""
    mine = _of_model(samples, model)
    counters = {name: value for name, theirs in _COUNTERS.items() if (value := summed(mine, theirs)) is not None}
    finished = summed(mine, _REQUESTS)
    answers = samples.get(_ANSWERS)  # of the whole server, without a model
    if finished is not None:
        failed = None if answers is None else added_up(_ANSWERS, [v for labels, v in answers if _is_failure(labels)])
        counters["requests"] = finished + (failed or 0.0)
        if failed is not None:
            counters["errors"] = failed
    histograms = {}
    for name, spellings in _HISTOGRAMS.items():
        found = next((h for each in spellings if (h := histogram_of(each, mine)) is not None), None)
        if found is not None:
            histograms[name] = found
    gauges = {
        name: v
        for name, theirs in (("running", _RUNNING), ("waiting", _WAITING))
        if (v := summed(mine, theirs)) is not None
    }
    used = [value for _, value in mine.get(_USAGE, ())]
    if used and (whole := added_up(_USAGE, used)) is not None:
        gauges["kv_usage"] = share("the KV cache's usage", whole / len(used))
    facts = {}
    if (tokens := summed(mine, _WHOLE)) is not None:
        facts["kv_tokens"] = f"{tokens:.0f}"
    if (served := model or _only_model(mine)) is not None:
        facts["model"] = served
    return ServerFigures(counters, histograms, gauges, facts)


def _only_model(mine: MetricsPage) -> str | None:
    return next(
        (labels["model_name"] for series in mine.values() for labels, _ in series if "model_name" in labels), None
    )


def _of_model(samples: MetricsPage, model: str | None) -> MetricsPage:
    """What one model's schedulers say, each of several ranks that work together once."""
    there = {labels.get("model_name") for series in samples.values() for labels, _ in series} - {None}
    if model is not None and there and model not in there:
        raise CollectError(
            "model_not_found", f"the server has no model {model}; it has {', '.join(sorted(map(str, there))[:8])}"
        )
    if model is None and len(there) > 1:
        raise CollectError("several_models", f"the page has {len(there)} models: set the endpoint's `model`")
    mine = MetricsPage(samples.page)
    for name, series in samples.items():
        kept = [
            (labels, value)
            for labels, value in series
            if labels.get("model_name") in (None, model or labels.get("model_name"))
            and all(labels.get(rank, "0") == "0" for rank in ("tp_rank", "pp_rank"))
        ]
        if kept:
            mine[name] = kept
    return mine


def _is_failure(labels: Labels) -> bool:
    return _FAILED.fullmatch(labels.get("status_code", "")) is not None and labels.get("endpoint", "/v1/").startswith(
        ("/v1/", "/generate")
    )


NAMES = ServerNames("sglang", "SGLang's", _NAMES, values_of)


def make(context: SourceContext) -> ServerCollector:
    """The entry point. Raises pydantic's ValidationError on options that are not those of ``Options``."""
    return ServerCollector(context, Options.model_validate(dict(context.options)), NAMES)
