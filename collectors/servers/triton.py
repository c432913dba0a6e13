"""The metrics of NVIDIA's Triton, on a port of their own (8002). Names by its documentation.

Times are microseconds that only grow: their mean can be told, and no percentile. A model on the vLLM backend has vLLM's names too, where it was
started so: the source ``vllm`` reads those.
"""

from __future__ import annotations

from collectors.base import SourceContext
from collectors.discovery import Support
from collectors.exposition import MetricsPage
from collectors.series import added_up, share, summed
from collectors.servers.page import ServerCollector, ServerFigures, ServerNames, ServerOptions
from collectors.window import CollectError

_SUCCESS, _FAILURE = "nv_inference_request_success", "nv_inference_request_failure"
_SPENT_US, _PENDING = "nv_inference_request_duration_us", "nv_inference_pending_request_count"
_GPU, _USED, _WHOLE, _POWER = (
    "nv_gpu_utilization",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_memory_total_bytes",
    "nv_gpu_power_usage",
)
_NAMES = {_SUCCESS, _FAILURE, _SPENT_US, _PENDING, _GPU, _USED, _WHOLE, _POWER}

SUPPORT = Support(
    title="Triton's metrics",
    sees=(
        "requests and errors of a model",
        "the mean time of requests (no percentiles)",
        "what waits; GPU load, memory and power",
    ),
    changes=(),
    verified="specification only",
    how="Triton's documentation",
)


class Options(ServerOptions):
    """Settings of the ``triton`` source."""


def values_of(samples: MetricsPage, model: str | None) -> ServerFigures:
    """One model's figures, of all its versions. Raises CollectError: model_not_found, several_models, invalid_value."""
    there = {labels.get("model", "") for labels, _ in samples.get(_SUCCESS, ())}
    if model is not None and model not in there:
        raise CollectError(
            "model_not_found", f"the server has no model {model}; it has {', '.join(sorted(there)[:8]) or 'none'}"
        )
    if model is None and len(there) > 1:
        raise CollectError("several_models", f"the page has {len(there)} models: set the endpoint's `model`")
    of_model = {} if model is None else {"model": model}
    counters: dict[str, float] = {}
    served, failed = summed(samples, _SUCCESS, **of_model), summed(samples, _FAILURE, **of_model)
    if served is not None and failed is not None:
        counters |= {"requests": served + failed, "errors": failed}
    if (spent := summed(samples, _SPENT_US, **of_model)) is not None:
        counters["e2e_total_s"] = spent / 1e6
    gauges = {}
    if (pending := summed(samples, _PENDING, **of_model)) is not None:
        gauges["waiting"] = pending
    busy = [value for _, value in samples.get(_GPU, ())]
    if busy and (whole := added_up(_GPU, busy)) is not None:
        gauges["gpu_usage"] = share("a GPU's load", whole / len(busy))
    used, total = summed(samples, _USED), summed(samples, _WHOLE)
    if used is not None and total:
        gauges["gpu_memory_usage"] = share("the GPUs' memory", used / total)
    if (power := summed(samples, _POWER)) is not None:
        gauges["gpu_power_w"] = power
    name = model or next(iter(there), "")
    return ServerFigures(counters, {}, gauges, {"model": name} if name else {})


NAMES = ServerNames("triton", "Triton's", _NAMES, values_of)


def make(context: SourceContext) -> ServerCollector:
    """The entry point. Raises pydantic's ValidationError on options that are not those of ``Options``."""
    return ServerCollector(context, Options.model_validate(dict(context.options)), NAMES)
