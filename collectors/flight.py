"""One request that an endpoint served, without a token of what it said: what the flight recorder keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Side = Literal["server", "client"]


@dataclass(frozen=True, slots=True)
class FlightRecord:
    """One request. None: not told. Nothing in it is text that a user or a model wrote."""

    identity: str
    """32 hex digits, the same each time that the request is told."""
    side: Side
    """Who measured it: the model server, or the application that called it."""
    arrived_at: float
    """Unix seconds, by the sender's clock."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """Of the prompt, served from the prefix cache."""
    output_tokens: int | None = None
    ttft_s: float | None = None
    e2e_s: float | None = None
    queue_s: float | None = None
    error: str | None = None
    """``throttled``, ``rejected`` or ``error``; None: it was served."""
    tenant: str | None = None
    """A tag of letters, digits, dots and dashes."""
    blocks: bytes = b""
    """Keyed hashes of the prompt's leading whole blocks, 8 bytes each. Each is of all that comes before it, too. Empty: not told."""
    blocks_whole: float | None = None
    """How many blocks the whole prompt is, the last one in part."""
