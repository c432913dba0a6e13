"""One streaming request through ``Http``, measured: for the probe, which sends few. Traffic has a client of its own.

Each chunk is stamped as it is read, before it is parsed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from collectors.http import Http, check_status
from collectors.openai import PATHS, Api, Completion, CompletionStream, request_of
from collectors.ratelimits import used
from collectors.sse import SseReader
from collectors.window import CollectError

__all__ = ["PATHS", "Api", "Completion", "complete", "request_of"]

#: OpenAI's names, which Azure and others have too.
_LIMITS = {"token_limit": "x-ratelimit-limit-tokens", "request_limit": "x-ratelimit-limit-requests"}
_MAX_STREAM = 64 * 2**20


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
        reader, seen = SseReader(), CompletionStream()
        try:
            async for stamp, chunk in stream:
                for event in reader.feed(chunk):
                    seen.take(stamp, event)
            for event in reader.finish():
                seen.take(http.monotonic(), event)
        except ValueError as error:
            raise CollectError("broken_stream", f"the stream cannot be read: {error}") from error
    told = {name: stream.headers[header] for name, header in _LIMITS.items() if stream.headers.get(header)}
    return replace(seen.completion(stream.sent_at), limits=told, limits_used=used(stream.headers))
