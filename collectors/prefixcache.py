"""Prompt tokens that vLLM served from its prefix caches, whatever unit the page counts them in.

Until vLLM 0.9 (pull request 18003) the counters of queries and hits count blocks, since then tokens, under the same name. Which it is
is decided by what the page says, then by the version, then by the other counters; what stays undecided is unknown. Does no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

PrefixUnit = Literal["tokens", "blocks"]

_WORDS = re.compile(r"\b(token|block)s?\b", re.IGNORECASE)
_RELEASE = re.compile(r"v?(\d{1,6})\.(\d{1,6})")
#: The first release that counts tokens.
_TOKENS_SINCE = (0, 9)
#: Nearly each prompt is looked up once, so what is looked up is about the prompt tokens: at least this share of them in tokens...
_LEAST_OF_TOKENS = 0.5
#: ... and in blocks between these: only whole blocks are looked up, and a preempted sequence is looked up again.
_LEAST_OF_BLOCKS, _MOST_OF_BLOCKS = 0.25, 2.0
#: In smaller blocks the two cannot be told apart by that.
_LEAST_BLOCK = 8
_SLACK = 1.05


@dataclass(frozen=True, slots=True)
class PrefixCacheCount:
    """One cache's counters, since the engine started, in a unit that is not known yet."""

    hits: float
    queries: float | None
    help: str
    """What the page says of them; empty where it says nothing."""
    recent_name: bool = False
    """Whether they have a name that no version had before it counted tokens."""


@dataclass(frozen=True, slots=True)
class PrefixCacheContext:
    """What else the engine tells, since it started. None: unknown."""

    prompt_tokens: float | None
    first_tokens: float | None
    """Requests whose prompt was read."""
    running: float | None
    block_size: int | None
    version: str | None


def cached_tokens(caches: Sequence[PrefixCacheCount], context: PrefixCacheContext) -> float | None:
    """Over all caches, the main one first; None where there is none, or where the unit of one cannot be told."""
    if not caches:
        return None
    main = unit_of(caches[0], context)
    added = 0.0
    for cache in caches:
        unit = main if cache is caches[0] else _told(cache.help) or main
        if cache.hits == 0:  # in any unit
            continue
        if unit is None or (unit == "blocks" and context.block_size is None):
            return None
        added += cache.hits * (context.block_size or 1) if unit == "blocks" else cache.hits
    return added


def unit_of(cache: PrefixCacheCount, context: PrefixCacheContext) -> PrefixUnit | None:
    """By the page's own words, else by the version, else by the other counters; None where none of them decides."""
    return _told(cache.help) or _of_version(context.version) or _of_counters(cache, context)


def _told(text: str) -> PrefixUnit | None:
    words = {word.lower() for word in _WORDS.findall(text)}
    if len(words) != 1:
        return None
    return "tokens" if words == {"token"} else "blocks"


def _of_version(version: str | None) -> PrefixUnit | None:
    """Of a build between two releases nobody knows on which side of the change it is."""
    found = _RELEASE.match(version or "")
    if found is None or "dev" in (version or ""):
        return None
    return "tokens" if (int(found[1]), int(found[2])) >= _TOKENS_SINCE else "blocks"


def _of_counters(cache: PrefixCacheCount, context: PrefixCacheContext) -> PrefixUnit | None:
    prompt, size = context.prompt_tokens, context.block_size
    if size == 1:
        return "tokens"
    if not prompt:
        return "tokens" if cache.recent_name else None
    if context.running is not None and context.running > (context.first_tokens or 0.0):
        return None  # looked up already, and not counted as read: the two do not belong together yet
    under_way = (context.running or 0.0) / context.first_tokens if context.first_tokens else 0.0
    most_hits = prompt * (_SLACK + under_way)
    if cache.hits > most_hits:
        return None
    if cache.queries is None:
        if size is not None and cache.hits * size > most_hits:
            return "tokens"
        return "tokens" if cache.recent_name else None
    if cache.queries >= _LEAST_OF_TOKENS * prompt:
        return "tokens"
    if size is None or size < _LEAST_BLOCK or cache.hits * size > most_hits:
        return None
    looked_up = cache.queries * size / prompt
    return "blocks" if _LEAST_OF_BLOCKS <= looked_up <= _MOST_OF_BLOCKS else None
