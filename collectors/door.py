"""What a source says is checked once, before anything is added up: numbers that can be, text that can be kept.

Whatever passes here can be merged, closed into a window, and saved. Does no I/O.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from collectors.bins import LARGEST
from collectors.text import clean
from collectors.window import CollectError, Histogram, Reading, Span

#: No counter, gauge or sum is greater: beyond it sums lose their units, and a few of them are infinite.
GREATEST = 1e18
#: Longest name of a target, and the most facts of one.
_MOST_NAME, _MOST_FACTS = 300, 100


def checked(reading: Reading) -> Reading:
    """The reading with clean text. Raises CollectError ``invalid_value`` on a number that cannot be."""
    for name, value in (*reading.counters.items(), *reading.gauges.items()):
        check_number(name, value)
    for name, histogram in reading.histograms.items():
        check_histogram(name, histogram)
    for name, values in reading.samples.items():
        for value in values:
            check_number(name, value)
    check_time("the time of the reading", reading.at)
    if reading.started_at is not None:
        check_time("the start of the server", reading.started_at)
    return replace(reading, target=clean(reading.target, _MOST_NAME), facts=clean_facts(reading.facts))


def checked_span(span: Span) -> Span:
    """As ``checked``, for a span."""
    check_time("the start of the span", span.start)
    check_time("the end of the span", span.end)
    if not (span.start < span.end and 0 <= span.share <= 1):
        raise CollectError(
            "invalid_value", f"a span from {span.start} to {span.end}, observed to {span.share}, cannot be"
        )
    for name, value in span.counts.items():
        check_number(name, value)
    for name, gauge in span.gauges.items():
        for value in (gauge.mean, gauge.maximum, gauge.last):
            check_number(name, value)
    for name, sketch in span.sketches.items():
        check_number(name, sketch.count)
        check_number(name, sketch.total)
    for name, ranges in span.quantiles.items():
        for q, known in ranges.items():
            check_number(name, known.least)
            check_number(name, known.most)
            if not (0 <= q <= 1 and known.least <= known.most):
                raise CollectError("invalid_value", f"{name} has a quantile {q} from {known.least} to {known.most}")
    return replace(span, target=clean(span.target, _MOST_NAME), facts=clean_facts(span.facts))


def check_number(name: str, value: float) -> None:
    """Raises CollectError unless it is finite, not negative, and not greater than anything that can be counted."""
    if not 0 <= value <= GREATEST:  # NaN makes it false
        raise CollectError("invalid_value", f"{name} is {value}, which cannot be")


def check_time(what: str, at: float) -> None:
    if not math.isfinite(at) or not 0 <= at < 1e11:  # the year 5138
        raise CollectError("invalid_value", f"{what} is {at}, which is no time")


def check_histogram(name: str, histogram: Histogram) -> None:
    """Raises CollectError unless edges ascend, counts do not fall, and the sum is finite."""
    edges, counts = histogram.edges, histogram.counts
    if not edges or len(counts) != len(edges) + 1:
        raise CollectError("invalid_value", f"{name} has {len(edges)} bounds and {len(counts)} counts: no histogram")
    ascending = all(low < high for low, high in itertools.pairwise(edges))
    if not ascending or not (edges[0] >= 0 and edges[-1] <= LARGEST):  # NaN makes each false
        raise CollectError("invalid_value", f"{name} has bounds that are negative, infinite, or do not ascend")
    if not (counts[0] >= 0 and counts[-1] <= GREATEST) or not all(a <= b for a, b in itertools.pairwise(counts)):
        raise CollectError("invalid_value", f"{name} has bucket counts that are negative or fall, which cannot be")
    check_number(f"{name}, its sum,", histogram.total)


def total(name: str, values: Iterable[float]) -> float:
    """Their sum; NaN where one is. Raises CollectError where it is greater than anything that can be counted."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError) as error:  # too large; or infinities of both signs
        raise CollectError("invalid_value", f"{name} adds up to more than can be") from error


def clean_facts(facts: Mapping[str, str]) -> dict[str, str]:
    return {clean(name, _MOST_NAME): clean(text) for name, text in itertools.islice(facts.items(), _MOST_FACTS)}
