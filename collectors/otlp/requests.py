"""Spans of requests to a model, as flight records: the conventions' names, old and new, and vLLM's own.

Spans may be sampled, so nothing is counted by them: windows are made of metrics alone.
"""

from __future__ import annotations

import hashlib
import re

from opentelemetry.proto.trace.v1.trace_pb2 import Span as TraceSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from collectors.door import check_time
from collectors.flight import FlightRecord
from collectors.otlp.attributes import Attributes
from collectors.otlp.outcomes import outcome
from collectors.otlp.prefixes import PrefixKey, prompt_of
from collectors.window import CollectError

_OPERATIONS = frozenset(("chat", "text_completion", "generate_content"))
_PROMPT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.usage.prompt_tokens")
_OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.usage.completion_tokens")
_CACHED = (
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_read_input_tokens",
    "gen_ai.usage.cached_input_tokens",
    "gen_ai.usage.input_tokens.cached",
)
_TTFT = (
    "gen_ai.latency.time_to_first_token",  # vLLM's
    "gen_ai.server.time_to_first_token",
    "gen_ai.response.time_to_first_chunk",
)
_E2E = ("gen_ai.latency.e2e", "gen_ai.server.request.duration")
_QUEUE = ("gen_ai.latency.time_in_queue",)
_SERVERS_OWN = ("gen_ai.latency.e2e", "gen_ai.latency.time_to_first_token", "gen_ai.server.time_to_first_token")
_MODELS = ("gen_ai.request.model", "gen_ai.response.model")
_MOST_TOKENS = 1e9
#: How far a sender's clock may be ahead of ours.
AHEAD_S = 60.0
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:/-]{0,63}")


def is_request(attributes: Attributes) -> bool:
    """Whether a model was asked to generate: no agent, tool, retrieval or embedding."""
    operation = attributes.text("gen_ai.operation.name")
    if operation is not None:
        return operation in _OPERATIONS
    return attributes.has(*_PROMPT, *_OUTPUT, *_SERVERS_OWN)


def models_of(attributes: Attributes) -> list[str]:
    """As they were asked for and answered by; empty: not told."""
    return [name for each in _MODELS if (name := attributes.text(each)) is not None]


def record_of(
    span: TraceSpan, attributes: Attributes, prefixes: PrefixKey, now: float, tenant: str | None
) -> FlightRecord:
    """What is known of a request. ``tenant``: the attribute that says whose it is. Raises CollectError ``invalid_value``."""
    start = span.start_time_unix_nano / 1e9
    check_time("the start of a span", start)
    if not span.span_id or start <= 0 or start > now + AHEAD_S:
        raise CollectError("invalid_value", "a span without an id or a start, or from a clock that is ahead of ours")
    lasted = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    e2e = attributes.number(*_E2E)
    e2e = e2e if e2e is not None else lasted if lasted >= 0 else None
    ttft = attributes.number(*_TTFT)
    prompt, cached = _tokens(attributes, *_PROMPT), _tokens(attributes, *_CACHED)
    server = span.kind == TraceSpan.SPAN_KIND_SERVER or attributes.has(*_SERVERS_OWN)
    failed = outcome(attributes.text("error.type"))
    if failed is None and span.status.code == Status.STATUS_CODE_ERROR:
        failed = "error"
    blocks, whole = prefixes.hashed(prompt_of(span, attributes))
    return FlightRecord(
        identity=hashlib.blake2b(span.trace_id + span.span_id, digest_size=16).hexdigest(),
        side="server" if server else "client",
        arrived_at=start,
        prompt_tokens=prompt,
        cached_tokens=None if cached is None or prompt is None or cached > prompt else cached,
        output_tokens=_tokens(attributes, *_OUTPUT),
        ttft_s=None if ttft is None or (e2e is not None and ttft > e2e + 0.01) else ttft,
        e2e_s=e2e,
        queue_s=attributes.number(*_QUEUE),
        error=failed,
        tenant=_tag(attributes, tenant),
        blocks=blocks,
        blocks_whole=whole,
    )


def _tokens(attributes: Attributes, *names: str) -> int | None:
    number = attributes.number(*names)
    return None if number is None or number > _MOST_TOKENS else round(number)


def _tag(attributes: Attributes, name: str | None) -> str | None:
    """A text that is no tag could be anything, and is left out."""
    text = None if name is None else attributes.text(name)
    return text if text is not None and _TAG.fullmatch(text) else None
