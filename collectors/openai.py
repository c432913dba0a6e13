"""A streaming answer of an OpenAI-compatible server: its events in, what was measured out.

Owns the wire format of chat and text completions and the definitions of the times (docs/simulate.md). Success: no error within
the stream, a finish reason or [DONE], and at least one token. Does no I/O: stamps come with the events.
"""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from collectors.sse import Event
from collectors.window import CollectError

Api = Literal["chat", "completions"]
PATHS: Mapping[Api, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
#: The definitions' version: raised whenever a figure would come out differently.
DEFINITIONS = 1
#: Where the text of a token may be: reasoning counts as output, as it does in the server's usage.
_TEXTS = ("content", "text", "reasoning_content", "reasoning", "tool_calls", "refusal")
_CONTENT = ("content", "text", "refusal")
#: Below so many tokens a chunk the length of a text says more about its word than about how many tokens it holds.
_MOSTLY_ONE = 1.5
_scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # typeshed lacks it


@dataclass(frozen=True, slots=True)
class Completion:
    """What was measured. Stamps are of the client's monotonic clock."""

    sent_at: float
    """The first byte of the request was handed to the socket; connecting is not part of any latency."""
    first_at: float
    """First token: the first chunk with content, reasoning or a tool call; a chunk with a role alone is none."""
    last_at: float
    """Last token; the usage that may follow is not waited for in the latencies."""
    stamps: tuple[float, ...]
    """Of the chunks with tokens. Those that came in one read have the same."""
    packed: tuple[float, ...]
    """The tokens in each of these chunks; a share where the server does not say (see ``packing``)."""
    packing: Literal["usage", "text", "even", "one"]
    """How that is known: from the usage in each chunk; by the length of its text; evenly; or each holds one."""
    output_tokens: int
    prompt_tokens: int | None
    cached_tokens: int | None
    finish_reason: str | None
    token_source: Literal["usage", "chunks"]
    arrivals: tuple[tuple[float, float], ...]
    """When tokens came, and how many: the chunks of one read came together."""
    first_content_at: float | None = None
    """First token that is neither reasoning nor a tool call."""
    text: str = ""
    limits: Mapping[str, str] = field(default_factory=dict)
    """What the answer's headers tell of the caller's rate limits: ``token_limit``, ``request_limit``, as the server wrote them."""
    limits_used: Mapping[str, float] = field(default_factory=dict)
    """Shares of the vendor's rate limits, as the answer's headers tell them."""

    @property
    def ttft_s(self) -> float:
        return self.first_at - self.sent_at

    @property
    def e2e_s(self) -> float:
        return self.last_at - self.sent_at

    @property
    def tpot_s(self) -> float | None:
        """(last token - first token) / (tokens that came in between, those of the last included); None where none did."""
        rest = sum(self.packed) - self.arrivals[0][1]
        return (self.last_at - self.first_at) / rest if rest > 0.5 and self.last_at > self.first_at else None

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Between tokens: the gap between two arrivals over the tokens of the later one, once for each of these tokens."""
        gaps: list[float] = []
        before = self.first_at
        for after, tokens in self.arrivals[1:]:
            if tokens == 1.0:
                gaps.append(after - before)
            else:
                gaps += [(after - before) / tokens] * max(1, round(tokens))
            before = after
        return tuple(gaps)

    @property
    def chunk_gaps_s(self) -> tuple[float, ...]:
        """Between chunks with tokens, as they came."""
        return tuple(map(operator.sub, self.stamps[1:], self.stamps))


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


class CompletionStream:
    """The events of one answer, taken one after the other; ``completion`` in the end says what was measured."""

    __slots__ = ("_counts", "_done", "_finish", "_first_content", "_lengths", "_silent", "_stamps", "_texts", "_usage")

    def __init__(self) -> None:
        self._stamps: list[float] = []
        """Of chunks with text."""
        self._lengths: list[int] = []
        """Of their texts."""
        self._counts: list[int | None] = []
        """Output tokens up to and with each, where the server says so."""
        self._silent: list[float] = []
        """Of chunks with a choice but no text, and more than a role: half a character, an end-of-text token."""
        self._texts: list[str] = []
        self._first_content: float | None = None
        self._usage: Mapping[str, Any] = {}
        self._finish: str | None = None
        self._done = False

    @property
    def chunks(self) -> int:
        """With text, so far."""
        return len(self._stamps)

    def take(self, stamp: float, event: Event) -> None:
        """Raises ValueError on what is not the format, CollectError on an error that the server reports."""
        kind, data = event
        data = data.strip()
        if data == "[DONE]":
            self._done = True
            return
        try:
            message, end = _scan(data, 0)
        except StopIteration as error:
            raise ValueError(f"an event holds {data[:40]!r}") from error
        except RecursionError as error:
            raise ValueError("JSON nested too deep") from error
        if end != len(data) or not isinstance(message, dict):
            raise ValueError(f"an event holds {data[:40]!r}")
        if kind == "error" or message.get("error"):
            raise CollectError("in_stream_error", f"the server reports within the stream: {data[:200]}")
        usage = message.get("usage")
        if isinstance(usage, dict):
            self._usage = usage
        choices = message.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            self._choice(stamp, choices[0], usage)

    def _choice(self, stamp: float, choice: Mapping[str, Any], usage: object) -> None:
        delta = choice.get("delta")
        parts = delta if isinstance(delta, dict) else choice
        for said in _TEXTS:
            if text := parts.get(said):
                break
        if text:
            self._stamps.append(stamp)
            self._lengths.append(len(text) if isinstance(text, str) else 1)
            self._counts.append(_whole(usage.get("completion_tokens")) if isinstance(usage, dict) else None)
            if said in _CONTENT:
                self._first_content = stamp if self._first_content is None else self._first_content
                self._texts.append(str(text))
        elif not parts.get("role"):
            self._silent.append(stamp)
        reason = choice.get("finish_reason")
        if isinstance(reason, str):
            self._finish = reason

    def completion(self, sent_at: float) -> Completion:
        """Raises CollectError unless the stream was a success."""
        if not self._done and self._finish is None:
            raise CollectError("broken_stream", "the stream ended without a finish reason and without [DONE]")
        if self._finish == "error":
            raise CollectError("in_stream_error", "the server ended the request with the finish reason error")
        counted = _whole(self._usage.get("completion_tokens"))
        tokens = len(self._stamps) if counted is None else counted
        stamps = self._stamps or self._silent  # tokens without any text are tokens still
        if tokens < 1 or not stamps:
            raise CollectError("empty", "the server answered without a single token")
        packing, packed = self._packed(tokens, len(stamps))
        details = self._usage.get("prompt_tokens_details")
        return Completion(
            sent_at=sent_at,
            first_at=stamps[0],
            last_at=stamps[-1],
            stamps=tuple(stamps),
            packed=packed,
            packing=packing,
            arrivals=_arrivals(stamps, packed),
            output_tokens=tokens,
            prompt_tokens=_whole(self._usage.get("prompt_tokens")),
            cached_tokens=_whole(details.get("cached_tokens")) if isinstance(details, dict) else None,
            finish_reason=self._finish,
            token_source="chunks" if counted is None else "usage",
            first_content_at=self._first_content,
            text="".join(self._texts),
        )

    def _packed(self, tokens: int, chunks: int) -> tuple[Literal["usage", "text", "even", "one"], tuple[float, ...]]:
        """How many tokens each chunk holds, and how that is known."""
        if tokens <= chunks + 1:  # one more: the end-of-text token, which has no chunk of its own
            return "one", (1.0,) * chunks
        counts = [count for count in self._counts if count is not None]
        if len(counts) == chunks:
            steps = [float(after - before) for before, after in itertools.pairwise([0, *counts])]
            if min(steps) > 0:
                return "usage", tuple(steps)
        if tokens < _MOSTLY_ONE * chunks or len(self._lengths) != chunks:
            return "even", (tokens / chunks,) * chunks
        each = tokens / sum(self._lengths)
        return "text", tuple(each * length for length in self._lengths)


def _arrivals(stamps: Sequence[float], packed: Sequence[float]) -> tuple[tuple[float, float], ...]:
    if len(set(stamps)) == len(stamps):
        return tuple(zip(stamps, packed, strict=True))
    found: dict[float, float] = {}
    for stamp, tokens in zip(stamps, packed, strict=True):
        found[stamp] = found.get(stamp, 0.0) + tokens
    return tuple(found.items())


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
