"""One streaming request to an OpenAI-compatible server, and when its tokens came.

Owns the wire format of chat and text completions and the definitions of the times. Each chunk is stamped as it is
read, before it is parsed. Success: a 2xx answer, no error within the stream, a finish reason or [DONE], and at least
one token.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from collectors.http import Http, check_status
from collectors.sse import Event, SseReader
from collectors.window import CollectError

Api = Literal["chat", "completions"]
PATHS: Mapping[Api, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
_MAX_STREAM = 64 * 2**20
#: Where the text of a token may be: reasoning counts as output, as it does in the server's usage.
_TEXTS = ("content", "reasoning_content", "reasoning", "tool_calls", "text", "refusal")


@dataclass(frozen=True, slots=True)
class Completion:
    """What was measured. Stamps are of the client's monotonic clock."""

    sent_at: float
    """The first byte of the request was handed to the socket; connecting is not part of any latency."""
    first_at: float
    """First token: the first chunk with content, reasoning or a tool call; a chunk with a role alone is none."""
    last_at: float
    """Last token; the usage that may follow is not waited for in the latencies."""
    gaps_s: tuple[float, ...]
    """Between consecutive chunks with tokens, divided by the tokens in a chunk where the server packs several."""
    output_tokens: int
    prompt_tokens: int | None
    cached_tokens: int | None
    finish_reason: str | None
    token_source: Literal["usage", "chunks"]

    @property
    def ttft_s(self) -> float:
        return self.first_at - self.sent_at

    @property
    def e2e_s(self) -> float:
        return self.last_at - self.sent_at

    @property
    def tpot_s(self) -> float | None:
        """(end-to-end - TTFT) / (output tokens - 1); None for a single token."""
        return (self.last_at - self.first_at) / (self.output_tokens - 1) if self.output_tokens > 1 else None


def request_of(
    api: Api,
    model: str,
    prompt: str,
    output_tokens: int,
    *,
    exact: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The request's JSON. ``exact``: generate on past the end of the text (vLLM's ``ignore_eos``)."""
    body: dict[str, Any] = {"model": model, "max_tokens": output_tokens, "temperature": 0.0}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    body |= {"messages": [{"role": "user", "content": prompt}]} if api == "chat" else {"prompt": prompt}
    if exact:
        body |= {"ignore_eos": True, "min_tokens": output_tokens}
    return body | dict(extra or {})


async def complete(
    http: Http, url: str, body: Mapping[str, Any], *, headers: Mapping[str, str], timeout_s: float
) -> Completion:
    """Send one request and read its stream to the end.

    Raises CollectError; besides the kinds of ``Http``: in_stream_error, broken_stream, empty.
    """
    async with http.stream(
        "POST", url, headers=headers, json=dict(body), timeout_s=timeout_s, max_bytes=_MAX_STREAM
    ) as stream:
        if not 200 <= stream.status < 300:
            check_status(stream.status, url, await stream.body())
        if "text/event-stream" not in stream.headers.get("content-type", ""):
            raise CollectError("broken_stream", "the answer is no event stream: the server or a proxy does not stream")
        reader, seen = SseReader(), _Seen()
        try:
            async for stamp, chunk in stream:
                for event in reader.feed(chunk):
                    seen.take(stamp, event)
            for event in reader.finish():
                seen.take(http.monotonic(), event)
        except ValueError as error:
            raise CollectError("broken_stream", f"the stream cannot be read: {error}") from error
    return seen.completion(stream.sent_at)


@dataclass(slots=True)
class _Seen:
    """The stream so far."""

    stamps: list[float] = field(default_factory=list)
    """Of chunks with text."""
    silent: list[float] = field(default_factory=list)
    """Of chunks with a choice but no text, and more than a role: half a character, an end-of-text token."""
    usage: Mapping[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None
    done: bool = False

    def take(self, stamp: float, event: Event) -> None:
        """Raises ValueError on what is not the format, CollectError on an error that the server reports."""
        if event.data.strip() == "[DONE]":
            self.done = True
            return
        try:
            message = json.loads(event.data)
        except RecursionError as error:
            raise ValueError("JSON nested too deep") from error
        if not isinstance(message, dict):
            raise ValueError(f"an event holds {event.data[:40]!r}")
        if event.kind == "error" or message.get("error"):
            raise CollectError("in_stream_error", f"the server reports within the stream: {event.data[:200]}")
        if isinstance(message.get("usage"), dict):
            self.usage = message["usage"]
        choices = message.get("choices")
        if isinstance(choices, Sequence) and choices and isinstance(choices[0], dict):
            self._choice(stamp, choices[0])

    def _choice(self, stamp: float, choice: Mapping[str, Any]) -> None:
        delta = choice.get("delta")
        parts = delta if isinstance(delta, dict) else choice
        if any(parts.get(text) for text in _TEXTS):
            self.stamps.append(stamp)
        elif not parts.get("role"):
            self.silent.append(stamp)
        reason = choice.get("finish_reason")
        if isinstance(reason, str):
            self.finish_reason = reason

    def completion(self, sent_at: float) -> Completion:
        """Raises CollectError unless the stream was a success."""
        if not self.done and self.finish_reason is None:
            raise CollectError("broken_stream", "the stream ended without a finish reason and without [DONE]")
        if self.finish_reason == "error":
            raise CollectError("in_stream_error", "the server ended the request with the finish reason error")
        counted = _whole(self.usage.get("completion_tokens"))
        tokens = len(self.stamps) if counted is None else counted
        stamps = self.stamps or self.silent  # tokens without any text are tokens still
        if tokens < 1 or not stamps:
            raise CollectError("empty", "the server answered without a single token")
        packed = max(1.0, (tokens - 1) / (len(stamps) - 1)) if len(stamps) > 1 else 1.0
        details = self.usage.get("prompt_tokens_details")
        return Completion(
            sent_at=sent_at,
            first_at=stamps[0],
            last_at=stamps[-1],
            gaps_s=tuple((b - a) / packed for a, b in itertools.pairwise(stamps)),
            output_tokens=tokens,
            prompt_tokens=_whole(self.usage.get("prompt_tokens")),
            cached_tokens=_whole(details.get("cached_tokens")) if isinstance(details, dict) else None,
            finish_reason=self.finish_reason,
            token_source="chunks" if counted is None else "usage",
        )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
