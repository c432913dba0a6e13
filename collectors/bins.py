"""Logarithmic bins, and how the bins of a Prometheus histogram lie over them. Arithmetic only.

DDSketch: Masson, Rim, Lee, "DDSketch: A Fast and Fully-Mergeable Quantile Sketch with Relative-Error Guarantees",
VLDB 2019.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Edges = tuple[float, ...]

#: Greatest relative error of a quantile of samples.
ERROR = 0.01
GAMMA = (1 + ERROR) / (1 - ERROR)
_LOG_GAMMA = math.log(GAMMA)
#: Values below this are counted as zero: no clock and no token count resolves them.
RESOLUTION = 1e-9
LARGEST = 1e300
ZERO_KEY = math.floor(math.log(RESOLUTION) / _LOG_GAMMA)
#: A histogram's first bin reaches down to 0, where logarithmic bins never arrive: they stop at this share of its top.
_FLOOR = 1e-3


class Spread(NamedTuple):
    """How a histogram's bins lie over the logarithmic ones. All three have one entry for each logarithmic bin."""

    keys: Ints
    owner: Ints
    """Which bin of the histogram it belongs to."""
    share: Floats
    """Which share of that bin's count it gets."""


@lru_cache(maxsize=256)
def spread(edges: Edges) -> Spread:
    """Each bin spread evenly over its range, as ``histogram_quantile`` assumes. The overflow is left out."""
    keys: list[Ints] = []
    owners: list[Ints] = []
    shares: list[Floats] = []
    low = 0.0
    for index, high in enumerate(edges):
        inside = _keys_within(low, high)
        cuts = np.concatenate(([low], GAMMA ** inside[:-1].astype(np.float64), [high]))
        width = high - low
        keys.append(inside)
        owners.append(np.full(inside.size, index, np.int64))
        shares.append(np.diff(cuts) / width if width > 0 else np.ones(1))
        low = high
    return Spread(np.concatenate(keys), np.concatenate(owners), np.concatenate(shares))


def _keys_within(low: float, high: float) -> Ints:
    """The logarithmic bins whose value lies in (low, high]; at least one."""
    bottom, top = key_of(np.array([max(low, high * _FLOOR), high]))
    inside = np.arange(bottom, top + 1, dtype=np.int64)
    values = value_of(inside)
    inside = inside[(values > max(low, high * _FLOOR)) & (values <= high)]
    return inside if inside.size else key_of(np.array([(low + high) / 2]))


def key_of(values: Floats) -> Ints:
    """The bin of each value: bin k holds (GAMMA**(k-1), GAMMA**k], and the lowest all that is below the resolution."""
    with np.errstate(divide="ignore"):
        keys = np.ceil(np.log(values) / _LOG_GAMMA)
    return np.maximum(keys, ZERO_KEY).astype(np.int64)


def value_of(keys: Ints) -> Floats:
    """The value that stands for a bin: within 1 % of each value in it."""
    return np.where(keys > ZERO_KEY, 2 * GAMMA ** keys.astype(np.float64) / (GAMMA + 1), 0.0)


def gather(keys: Ints, counts: Floats) -> tuple[Ints, Floats]:
    """Equal keys added up, keys ascending, empty ones dropped."""
    if keys.size == 0:
        return keys, counts
    first = int(keys.min())
    dense = np.asarray(np.bincount(keys - first, weights=counts), np.float64)
    used = np.flatnonzero(dense)
    return used + first, dense[used]


def divided(edges: Edges, parts: float) -> Edges:
    """Edges of the values' equal parts, to 1 %: numbers of parts that are close to each other give the same edges, so that bins add up."""
    rounded = math.exp(round(math.log(parts) / (2 * ERROR)) * 2 * ERROR)
    return tuple(edge / rounded for edge in edges)


def check_part(edges: Edges, counts: Floats) -> None:
    """Raises ValueError unless ``edges`` (n,) and ``counts`` (n + 1,) can be a histogram."""
    ascending = all(low < high for low, high in itertools.pairwise(edges))
    if not edges or not ascending or not (edges[0] >= 0 and edges[-1] <= LARGEST):  # NaN makes each false
        raise ValueError("sketch: edges must be finite, ascending and not negative")
    if counts.shape != (len(edges) + 1,):
        raise ValueError(f"sketch: {len(edges)} edges need {len(edges) + 1} counts, not {counts.size}")
    if not np.all((counts >= 0) & np.isfinite(counts)):
        raise ValueError("sketch: counts must be finite and not negative")
