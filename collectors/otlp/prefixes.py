"""The beginning of a prompt as keyed hashes of its blocks: enough to see which prompts begin alike, and nothing to read.

The key is drawn here, is kept in memory alone, and is thrown away every day: after that nobody can tell of any text whether it was there.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable

from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as TraceSpan

from collectors.clock import Clock
from collectors.otlp.attributes import Attributes

#: Bytes of text in a block: about 64 tokens of English.
BLOCK_BYTES = 256
#: A hash's.
HASH_BYTES = 8
#: Blocks of one prompt that are hashed, the leading ones.
MOST_BLOCKS = 512
ROTATES_S = 86_400.0

_WHOLE = ("gen_ai.system_instructions", "gen_ai.input.messages")
_OLD = "gen_ai.prompt"
_NUMBERED = re.compile(r"gen_ai\.prompt\.(\d{1,6})\.content")
_EVENTS = frozenset(
    (
        "gen_ai.system.message",
        "gen_ai.user.message",
        "gen_ai.assistant.message",
        "gen_ai.tool.message",
        "gen_ai.content.prompt",
        "gen_ai.client.inference.operation.details",
    )
)
_OF_EVENT = ("gen_ai.event.content", "content")


class PrefixKey:
    """The key of the day."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._key = b""
        self._until = -1.0

    def hashed(self, pieces: Iterable[bytes]) -> tuple[bytes, float | None]:
        """Hashes of a text's leading whole blocks, 8 bytes each, and how many blocks the whole text is; None of no text."""
        if self._clock.monotonic() >= self._until:
            self._key, self._until = secrets.token_bytes(32), self._clock.monotonic() + ROTATES_S
        data = b"".join(pieces)
        if not data:
            return b"", None
        before, hashes = b"", []
        for start in range(0, min(len(data) - BLOCK_BYTES + 1, MOST_BLOCKS * BLOCK_BYTES), BLOCK_BYTES):
            block = data[start : start + BLOCK_BYTES]
            before = hashlib.blake2b(before + block, key=self._key, digest_size=HASH_BYTES).digest()
            hashes.append(before)
        return b"".join(hashes), len(data) / BLOCK_BYTES


def prompt_of(span: TraceSpan, attributes: Attributes) -> list[bytes]:
    """The prompt in order, in the first spelling that tells it; empty where none does, which is the conventions' default."""
    told = _of(attributes)
    for event in () if told else span.events:
        if event.name in _EVENTS:
            own = Attributes(event.attributes)
            told += _of(own) or [_bytes(own.values[name]) for name in _OF_EVENT if name in own.values]
    return told


def _of(attributes: Attributes) -> list[bytes]:
    whole = [_bytes(attributes.values[name]) for name in _WHOLE if name in attributes.values]
    if whole:
        return whole
    if _OLD in attributes.values:
        return [_bytes(attributes.values[_OLD])]
    numbered = sorted((int(m[1]), name) for name in attributes.values if (m := _NUMBERED.fullmatch(name)))
    return [_bytes(attributes.values[name]) for _, name in numbered]


def _bytes(value: AnyValue) -> bytes:
    if value.WhichOneof("value") == "string_value":
        return value.string_value.encode("utf-8", "replace")
    packed: bytes = value.SerializeToString(deterministic=True)
    return packed
