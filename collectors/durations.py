"""Durations as people write them: ``500ms``, ``5s``, ``2m``, ``1h``, ``7d``, ``2w``; a bare number is seconds."""

from __future__ import annotations

import math
import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_WRITTEN = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(ms|s|m|h|d|w)?")


def seconds_of(value: object) -> float:
    """Seconds, of a number or of text. Raises ValueError on what is no duration, or is not finite."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and (match := _WRITTEN.fullmatch(value.strip().lower())):
        seconds = float(match[1]) * _UNITS[match[2] or "s"]
    else:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"{value!r} is no duration: write for instance 500ms, 5s, 2m, 1h or 7d")
    return seconds


def has_unit(value: object) -> bool:
    """Whether a duration was written with its unit, and is no bare number."""
    return isinstance(value, str) and value.strip()[-1:].isalpha()
