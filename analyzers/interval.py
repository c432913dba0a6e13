"""How sure a share of a few is."""

from __future__ import annotations

import math


def wilson(good: int, n: int, z: float = 1.96) -> tuple[float | None, float | None]:
    """95 % interval of a share. Source: E. B. Wilson, JASA 22 (1927) 209."""
    if n < 1:
        return None, None
    share, spread = good / n, z * math.sqrt(good / n * (1 - good / n) / n + z * z / (4 * n * n))
    middle, scale = share + z * z / (2 * n), 1 + z * z / n
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
