"""OTLP/HTTP bodies: unpacked within bounds, decoded, and answered as the protocol has it (opentelemetry.io, "OTLP Specification").

No error's text repeats what was sent: it may be a prompt.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status

from collectors.receiver import Push, PushAnswer, PushError

M = TypeVar("M", bound=Message)

PROTOBUF, JSON = "application/x-protobuf", "application/json"
#: Bytes of a body, unpacked.
MOST_UNPACKED = 8 << 20
_GZIP = 31
_DEEPEST = 64
#: gRPC's codes of the statuses, as the protocol's Status has them.
_CODES: Mapping[int, int] = {400: 3, 401: 16, 413: 8, 415: 3, 429: 8, 500: 13, 503: 14}


def message(push: Push, kind: type[M]) -> M:
    """The body as a message. Raises PushError: 400, 413 or 415."""
    media = _media_type(push)
    if media not in (PROTOBUF, JSON):
        raise PushError(415, f"send {PROTOBUF} or {JSON}")
    data = _unpacked(push)
    try:
        found: M
        if media == PROTOBUF:
            found = kind.FromString(data)
        else:
            found = json_format.Parse(data, kind(), ignore_unknown_fields=True, max_recursion_depth=_DEEPEST)
        return found
    except (DecodeError, json_format.ParseError, RecursionError, ValueError) as error:
        raise PushError(400, f"the body is no {kind.DESCRIPTOR.name} in {media}") from error


def answer(push: Push, said: Message, status: int = 200, retry_after_s: float | None = None) -> PushAnswer:
    """In the encoding of the request."""
    if _media_type(push) == JSON:
        return PushAnswer(status, json_format.MessageToJson(said, indent=None).encode(), JSON, retry_after_s)
    return PushAnswer(status, said.SerializeToString(), PROTOBUF, retry_after_s)


def refusal(push: Push, error: PushError) -> PushAnswer:
    """A ``google.rpc.Status``."""
    said = Status(code=_CODES.get(error.status, 2), message=error.detail)
    return answer(push, said, error.status, error.retry_after_s)


def _media_type(push: Push) -> str:
    return push.headers.get("content-type", "").partition(";")[0].strip().lower()


def _unpacked(push: Push) -> bytes:
    encoding = push.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return push.body
    if encoding != "gzip":
        raise PushError(415, "send gzip or no compression")
    unpacking: Any = zlib.decompressobj(_GZIP)
    try:
        data: bytes = unpacking.decompress(push.body, MOST_UNPACKED + 1)
    except zlib.error as error:
        raise PushError(400, "the body is no gzip") from error
    if len(data) > MOST_UNPACKED:
        raise PushError(413, f"the body is more than {MOST_UNPACKED} bytes unpacked: send smaller batches")
    if not unpacking.eof or unpacking.unused_data:
        raise PushError(400, "the body is no single whole gzip stream")
    return data
