"""The ``/metrics`` of Hugging Face's Text Embeddings Inference. Names by TEI 1.9.3's source.

It generates nothing: a request has a prompt and a time.
"""

from __future__ import annotations

from collections.abc import Mapping

from collectors.base import SourceContext
from collectors.discovery import Support
from collectors.exposition import MetricsPage
from collectors.series import histogram_of, summed
from collectors.servers.page import ServerCollector, ServerFigures, ServerNames, ServerOptions

_HISTOGRAMS: Mapping[str, str] = {
    "e2e_s": "te_request_duration",
    "queue_s": "te_request_queue_duration",
    "prompt_length": "te_request_input_length",
}
_REQUESTS, _FAILURES, _QUEUE = "te_request_count", "te_request_failure", "te_queue_size"
_PROMPT = "te_request_input_length_sum"
_NAMES = {_REQUESTS, _FAILURES, _QUEUE, _PROMPT} | {
    name + part for name in _HISTOGRAMS.values() for part in ("_bucket", "_sum", "_count")
}

SUPPORT = Support(
    title="TEI's /metrics (Text Embeddings Inference)",
    sees=("requests, errors, prompt tokens", "end-to-end and queue", "what waits"),
    changes=(),
    verified="specification only",
    how="the names of TEI 1.9.3's source code",
)


class Options(ServerOptions):
    """Settings of the ``tei`` source."""


def values_of(samples: MetricsPage, _model: str | None) -> ServerFigures:
    """The one model's figures. Raises CollectError: truncated, invalid_value."""
    counters: dict[str, float] = {}
    requests, failures = summed(samples, _REQUESTS), summed(samples, _FAILURES)
    if requests is not None:
        counters |= {"requests": requests, "errors": failures or 0.0}  # the series of failures comes with the first one
    if (prompt := summed(samples, _PROMPT)) is not None:
        counters["prompt_tokens"] = prompt
    histograms = {
        name: found for name, theirs in _HISTOGRAMS.items() if (found := histogram_of(theirs, samples)) is not None
    }
    waiting = summed(samples, _QUEUE)
    return ServerFigures(counters, histograms, {} if waiting is None else {"waiting": waiting})


NAMES = ServerNames("tei", "TEI's", _NAMES, values_of)


def make(context: SourceContext) -> ServerCollector:
    """The entry point. Raises pydantic's ValidationError on options that are not those of ``Options``."""
    return ServerCollector(context, Options.model_validate(dict(context.options)), NAMES)
