"""One request that ended: from what came off the socket to what is known of it. Pure: stamps and bytes in, a RequestRecord out."""

from __future__ import annotations

from dataclasses import dataclass, field

from collectors.openai import Completion, CompletionStream
from collectors.sse import SseReader
from collectors.traffic.framing import Answer
from collectors.traffic.schedule import Job
from collectors.window import CollectError


@dataclass(slots=True)
class Exchange:
    """A request under way, and all that came back so far."""

    job: Job
    body: bytes
    started: float
    """When it was taken up: its deadline counts from here."""
    sent: float | None = None
    answer: Answer = field(default_factory=Answer)
    head_at: float | None = None
    reads: list[tuple[float, bytes]] = field(default_factory=list)
    """The payload of each read, and when it was read."""
    size: int = 0
    ended: float | None = None
    failure: tuple[str, str] | None = None
    """Kind and detail, where it did not come to its end."""
    retried: bool = False


@dataclass(slots=True)
class RequestRecord:
    """One request. Times are seconds from the start of the traffic; None: not reached."""

    due_s: float
    sent_s: float | None
    """When its first byte was handed to the socket; None where it never was, and so counts from when it was due."""
    first_s: float | None
    """First token: content, reasoning or a tool call."""
    last_s: float | None
    """Last token; for a failure, its end."""
    gaps_s: tuple[float, ...]
    """Between output tokens: once for each token (docs/simulate.md)."""
    prompt_tokens: int | None
    output_tokens: int
    error: str | None
    """The kind of failure; None for a success."""
    head_s: float | None = None
    first_byte_s: float | None = None
    """Of the payload, whatever it was."""
    first_content_s: float | None = None
    """First token that is neither reasoning nor a tool call."""
    done_s: float | None = None
    """The end of the answer, usage and all."""
    chunk_gaps_s: tuple[float, ...] = ()
    tpot_s: float | None = None
    """(last token - first token) / (tokens that came after the first arrival)."""
    chunks: int = 0
    arrivals: int = 0
    token_source: str = "chunks"  # noqa: S105  who counted the tokens
    packing: str = "one"
    cached_tokens: int | None = None
    finish_reason: str | None = None
    status: int | None = None
    detail: str = ""
    retry_after_s: float | None = None
    retried: bool = False
    asked_prompt: int = 0
    asked_output: int = 0
    session: int | None = None
    turn: int = 0
    text: str = ""

    @property
    def ttft_s(self) -> float | None:
        """Sent to first token."""
        return None if self.first_s is None or self.sent_s is None else self.first_s - self.sent_s

    @property
    def ttft_sched_s(self) -> float | None:
        """Due to first token: what a user waited."""
        return None if self.first_s is None else self.first_s - self.due_s

    @property
    def e2e_s(self) -> float | None:
        """Due to last token."""
        return None if self.last_s is None else self.last_s - self.due_s


def record_of(exchange: Exchange, start: float) -> RequestRecord:
    """What is known of an exchange that ended. ``start``: the stamp of the traffic's second 0."""
    try:
        done = _completion(exchange)
    except CollectError as error:
        return _told(exchange, start, None, (error.kind, error.detail))
    return _told(exchange, start, done, None)


def _completion(exchange: Exchange) -> Completion:
    """Raises CollectError unless it was a success."""
    answer = exchange.answer
    if answer.status is not None and not 200 <= answer.status < 300 and exchange.failure is None:
        said = " ".join(b"".join(data for _, data in exchange.reads)[:200].decode("utf-8", "replace").split())
        raise CollectError(kind_of(answer.status), f"status {answer.status}" + (f": {said}" if said else ""))
    stream = CompletionStream()
    streams = "text/event-stream" in answer.headers.get("content-type", "")
    if streams:
        _read(exchange, stream)  # also of one that broke off: an error that the server reported is the cause
    if exchange.failure is not None:
        raise CollectError(*exchange.failure)
    if not streams:
        raise CollectError("broken_stream", "the answer is no event stream: the server or a proxy does not stream")
    assert exchange.sent is not None
    return stream.completion(exchange.sent)


def _read(exchange: Exchange, stream: CompletionStream) -> None:
    reader = SseReader()
    try:
        feed, take = reader.feed, stream.take
        for stamp, data in exchange.reads:
            for event in feed(data):
                take(stamp, event)
        for event in reader.finish():
            stream.take(exchange.reads[-1][0] if exchange.reads else 0.0, event)
    except ValueError as error:
        if exchange.failure is None:
            raise CollectError("broken_stream", f"the stream cannot be read: {error}") from error


def _told(exchange: Exchange, start: float, done: Completion | None, failure: tuple[str, str] | None) -> RequestRecord:
    job, answer = exchange.job, exchange.answer

    def since(stamp: float | None) -> float | None:
        return None if stamp is None else stamp - start

    first_byte = next((stamp for stamp, data in exchange.reads if data), None)
    record = RequestRecord(
        due_s=job.due,
        sent_s=since(exchange.sent),
        first_s=None,
        last_s=since(exchange.ended),
        gaps_s=(),
        prompt_tokens=None,
        output_tokens=0,
        error=failure[0] if failure else None,
        head_s=since(exchange.head_at),
        first_byte_s=since(first_byte),
        done_s=since(exchange.ended),
        status=answer.status,
        detail=failure[1] if failure else "",
        retry_after_s=_seconds(answer.headers.get("retry-after")) if failure else None,
        retried=exchange.retried,
        asked_prompt=job.prompt_tokens,
        asked_output=job.output_tokens,
        session=job.session,
        turn=job.turn,
    )
    if done is not None:
        _add(record, done, start)
    return record


def _add(record: RequestRecord, done: Completion, start: float) -> None:
    record.first_s, record.last_s = done.first_at - start, done.last_at - start
    record.first_content_s = None if done.first_content_at is None else done.first_content_at - start
    record.gaps_s, record.chunk_gaps_s, record.tpot_s = done.gaps_s, done.chunk_gaps_s, done.tpot_s
    record.prompt_tokens, record.output_tokens = done.prompt_tokens, done.output_tokens
    record.chunks, record.arrivals = len(done.stamps), len(done.arrivals)
    record.token_source, record.packing = done.token_source, done.packing
    record.cached_tokens, record.finish_reason, record.text = done.cached_tokens, done.finish_reason, done.text


def kind_of(status: int) -> str:
    """The class of an answer that is no success."""
    if status == 429:
        return "rate_limited"
    if status in (401, 403, 404):
        return f"http_{status}"
    if 300 <= status < 400:
        return "redirect"
    return f"http_{status // 100}xx" if 400 <= status < 600 else "protocol"


def _seconds(text: str | None) -> float | None:
    """A Retry-After in seconds; None for none, and for a date."""
    return float(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 10 else None
