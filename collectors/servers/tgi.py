"""The ``/metrics`` of Hugging Face's Text Generation Inference.

Names by TGI 3.3.7's source. It tells no time to the first token and nothing of the KV cache: the probe tells the one, nobody the other. What it
calls the mean time of a token has the prefill in it, and so is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from collectors.base import SourceContext
from collectors.discovery import Support
from collectors.exposition import MetricsPage
from collectors.series import added_up, histogram_of, summed
from collectors.servers.page import ServerCollector, ServerFigures, ServerNames, ServerOptions

_HISTOGRAMS: Mapping[str, str] = {
    "e2e_s": "tgi_request_duration",
    "queue_s": "tgi_request_queue_duration",
    "prompt_length": "tgi_request_input_length",
    "output_length": "tgi_request_generated_tokens",
}
_REQUESTS, _FAILURES = "tgi_request_count", "tgi_request_failure"
#: Failures that are the request's own fault.
_REFUSED = ("validation", "template")
#: Refused for want of room: not served, and no error.
_FULL = "overloaded"
_GAUGES: Mapping[str, str] = {"running": "tgi_batch_current_size", "waiting": "tgi_queue_size"}
_TOKENS: Mapping[str, str] = {
    "prompt_tokens": "tgi_request_input_length_sum",
    "output_tokens": "tgi_request_generated_tokens_sum",
}
_NAMES = {_REQUESTS, _FAILURES, *_GAUGES.values(), *_TOKENS.values()} | {
    name + part for name in _HISTOGRAMS.values() for part in ("_bucket", "_sum", "_count")
}

SUPPORT = Support(
    title="TGI's /metrics (Text Generation Inference)",
    sees=("requests, errors, refusals, tokens", "end-to-end and queue; no TTFT", "batch and queue; no KV cache"),
    changes=(),
    verified="specification only",
    how="the names of TGI 3.3.7's source code",
)


class Options(ServerOptions):
    """Settings of the ``tgi`` source."""


def values_of(samples: MetricsPage, _model: str | None) -> ServerFigures:
    """The one model's figures: a server has one, and does not name it. Raises CollectError: truncated, invalid_value."""
    counters = {name: value for name, theirs in _TOKENS.items() if (value := summed(samples, theirs)) is not None}
    arrived = summed(samples, _REQUESTS)
    if arrived is not None:
        failures = samples.get(_FAILURES, ())  # a series comes with its first failure

        def of(*errors: str) -> float | None:
            return added_up(_FAILURES, [value for labels, value in failures if labels.get("err") in errors])

        refused, full, all_of_them = of(*_REFUSED), of(_FULL), summed(samples, _FAILURES) or 0.0
        if refused is not None and full is not None:
            counters |= {
                "requests": arrived,
                "rejected": refused,
                "throttled": full,
                "errors": all_of_them - refused - full,
            }
    histograms = {
        name: found for name, theirs in _HISTOGRAMS.items() if (found := histogram_of(theirs, samples)) is not None
    }
    gauges = {name: value for name, theirs in _GAUGES.items() if (value := summed(samples, theirs)) is not None}
    return ServerFigures(counters, histograms, gauges)


NAMES = ServerNames("tgi", "TGI's", _NAMES, values_of)


def make(context: SourceContext) -> ServerCollector:
    """The entry point. Raises pydantic's ValidationError on options that are not those of ``Options``."""
    return ServerCollector(context, Options.model_validate(dict(context.options)), NAMES)
