"""The series of a metrics page added up: counters, gauges and cumulative histograms of several processes as one. Knows no engine's names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from collectors.door import GREATEST, check_histogram, total
from collectors.exposition import SeriesList
from collectors.window import CollectError, Histogram

SeriesPage = Mapping[str, SeriesList]


def summed(samples: SeriesPage, name: str, **labels: str) -> float | None:
    """The sum over all series with these labels; None where there is none, or where one is NaN."""
    values = [
        value for found, value in samples.get(name, ()) if all(found.get(key) == want for key, want in labels.items())
    ]
    return added_up(name, values) if values else None


def added_up(name: str, values: Sequence[float]) -> float | None:
    """Raises CollectError on values that a count cannot have."""
    if any(value < 0 or value > GREATEST for value in values):
        raise CollectError("invalid_value", f"{name} is {min(values)}, which cannot be")
    added = total(name, values)
    return None if math.isnan(added) else added


def histogram_of(name: str, samples: SeriesPage) -> Histogram | None:
    """A cumulative histogram by its ``_bucket``, ``_sum`` and ``_count``. None where it is not there, or is not known.

    Raises CollectError: truncated, invalid_value.
    """
    if name + "_bucket" not in samples:
        return None
    added = summed(samples, name + "_sum")
    if name + "_sum" not in samples or name + "_count" not in samples:
        raise CollectError("truncated", f"{name} has buckets but no sum or no count: half of a page")
    counts: dict[float, float] = {}
    for labels, value in samples[name + "_bucket"]:
        try:
            edge = float(labels.get("le", ""))
        except ValueError as error:
            raise CollectError(
                "invalid_value", f"{name} has a bucket without a number for its edge: {error}"
            ) from error
        if math.isnan(edge):
            raise CollectError("invalid_value", f"{name} has a bucket whose edge is no number")
        counts[edge] = counts.get(edge, 0.0) + value
    if added is None or any(math.isnan(count) for count in counts.values()):
        return None
    edges, reached = zip(*sorted(counts.items()), strict=True)
    if edges[-1] != math.inf:
        raise CollectError("truncated", f"{name} has no +Inf bucket: half of a page")
    if len(edges) == 1:
        return None  # legal, and says nothing of how long anything took
    histogram = Histogram(edges[:-1], reached, added)
    check_histogram(name, histogram)
    return histogram


def share(name: str, value: float) -> float:
    """Raises CollectError on a share that is more than its whole."""
    if value > 1.001:
        raise CollectError("invalid_value", f"{name} is {value}, and its whole is 1")
    return min(1.0, value)
