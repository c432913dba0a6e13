"""How much of a rate limit is used, by the headers of an answer: OpenAI's, Azure's and LiteLLM's spelling, and Anthropic's."""

from __future__ import annotations

from collections.abc import Mapping

#: Before ``limit-tokens`` or ``tokens-limit``.
_OPENAI, _ANTHROPIC = "x-ratelimit", "anthropic-ratelimit"
_OF = {"token_limit_used": ("tokens", "input-tokens"), "request_limit_used": ("requests",)}


def used(headers: Mapping[str, str]) -> dict[str, float]:
    """Shares, 0..1, by gauge name. A limit that is not told, or is none, is absent. ``headers``: names in lower case."""
    found: dict[str, float] = {}
    for name, parts in _OF.items():
        for part in parts:
            pairs = (
                (f"{_OPENAI}-limit-{part}", f"{_OPENAI}-remaining-{part}"),
                (f"{_ANTHROPIC}-{part}-limit", f"{_ANTHROPIC}-{part}-remaining"),
            )
            for limit, remaining in pairs:
                whole, left = _number(headers.get(limit)), _number(headers.get(remaining))
                if whole and left is not None and name not in found:
                    found[name] = min(1.0, max(0.0, 1.0 - left / whole))
    return found


def _number(text: str | None) -> float | None:
    said = (text or "").strip()
    return float(said) if said.isascii() and said.isdigit() and len(said) < 16 else None
