"""The GenAI conventions' instruments, in all their spellings, and what they mean in Flyball's words.

Of what is told twice, the better is taken: a model server's own measurement before its callers', newer names before older ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    AGGREGATION_TEMPORALITY_DELTA,
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
)

from collectors.otlp.attributes import Attributes
from collectors.otlp.outcomes import outcome
from collectors.otlp.series import ExplicitBuckets, ExponentialBuckets, SeriesPoint
from collectors.sketch import Sketch
from collectors.window import CollectError, Span


@dataclass(frozen=True, slots=True)
class Instrument:
    """One name of the conventions."""

    rank: int
    """Of several that tell the same, the least is taken."""
    distribution: str | None = None
    """What its histogram is of, in Flyball's words."""
    total: str | None = None
    """What the sum of its values counts."""
    counts_requests: bool = False
    by_type: bool = False
    """Whether ``gen_ai.token.type`` tells input from output; then ``distribution`` and ``total`` are those of ``_BY_TYPE``."""


_SERVER, _CLIENT = 0, 1
INSTRUMENTS: Mapping[str, Instrument] = {
    "gen_ai.server.request.duration": Instrument(_SERVER, "e2e_s", counts_requests=True),
    "gen_ai.client.operation.duration": Instrument(_CLIENT, "e2e_s", counts_requests=True),
    "gen_ai.server.time_to_first_token": Instrument(_SERVER, "ttft_s"),
    "gen_ai.client.operation.time_to_first_chunk": Instrument(_CLIENT, "ttft_s"),
    "gen_ai.server.time_per_output_token": Instrument(_SERVER, "tpot_s"),
    # A chunk may hold several tokens, so that this is no ITL.
    "gen_ai.client.operation.time_per_output_chunk": Instrument(_CLIENT, "chunk_gap_s"),
    "gen_ai.client.inference.usage.input_tokens": Instrument(0, total="prompt_tokens"),
    "gen_ai.client.inference.usage.output_tokens": Instrument(0, total="output_tokens"),
    "gen_ai.client.inference.usage.cache_read.input_tokens": Instrument(0, total="cached_prompt_tokens"),
    "gen_ai.client.inference.operation.input_tokens": Instrument(0, "prompt_length"),
    "gen_ai.client.inference.operation.output_tokens": Instrument(0, "output_length"),
    "gen_ai.client.inference.tokens": Instrument(1, by_type=True),
    "gen_ai.client.token.usage": Instrument(2, by_type=True),
}
_BY_TYPE: Mapping[str, tuple[str | None, str | None]] = {
    "input": ("prompt_tokens", "prompt_length"),
    "prompt": ("prompt_tokens", "prompt_length"),
    "output": ("output_tokens", "output_length"),
    "completion": ("output_tokens", "output_length"),
}
#: Operations that ask a model for something; agents and tools hold those, and would count them twice.
_OPERATIONS = frozenset(("chat", "text_completion", "generate_content", "embeddings"))
_SECONDS: Mapping[str, float] = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_COUNTED_AS = {"throttled": "throttled", "rejected": "rejected", "error": "errors"}
Point = NumberDataPoint | HistogramDataPoint | ExponentialHistogramDataPoint


def operation_counts(attributes: Attributes) -> bool:
    operation = attributes.text("gen_ai.operation.name")
    return operation is None or operation in _OPERATIONS


def unit_of(metric: Metric, instrument: Instrument) -> float:
    """Of its values, in ours: seconds, or tokens. Raises CollectError ``invalid_value``."""
    if instrument.distribution is None or not instrument.distribution.endswith("_s"):
        return 1.0
    if metric.unit not in _SECONDS:
        raise CollectError("invalid_value", f"{metric.name} has a unit that is no time: send s or ms")
    return _SECONDS[metric.unit]


def points_of(metric: Metric) -> tuple[Iterable[Point], bool]:
    """Its points, and whether they are deltas. Raises CollectError ``invalid_value`` on a kind that the conventions do not have."""
    kind = metric.WhichOneof("data")
    if kind not in ("sum", "histogram", "exponential_histogram"):
        raise CollectError("invalid_value", f"{metric.name} is no counter and no histogram")
    data: Any = getattr(metric, kind)
    if data.aggregation_temporality not in (AGGREGATION_TEMPORALITY_DELTA, AGGREGATION_TEMPORALITY_CUMULATIVE):
        raise CollectError("invalid_value", f"{metric.name} does not say whether it is delta or cumulative")
    if kind == "sum" and not data.is_monotonic:
        raise CollectError("invalid_value", f"{metric.name} may fall, and so is no counter")
    return data.data_points, data.aggregation_temporality == AGGREGATION_TEMPORALITY_DELTA


def point_of(told: Point) -> SeriesPoint:
    """Raises CollectError ``invalid_value``."""
    start, at = told.start_time_unix_nano / 1e9, told.time_unix_nano / 1e9
    if isinstance(told, NumberDataPoint):
        value = float(told.as_int if told.WhichOneof("value") == "as_int" else told.as_double)
        return SeriesPoint(start, at, value, None)
    total = told.sum if told.HasField("sum") else None
    count = float(told.count)
    if isinstance(told, HistogramDataPoint):
        edges, counts = tuple(told.explicit_bounds), tuple(float(c) for c in told.bucket_counts)
        if not edges:
            return SeriesPoint(start, at, count, total)
        if len(counts) != len(edges) + 1:
            raise CollectError("invalid_value", f"a histogram has {len(edges)} bounds and {len(counts)} counts")
        return SeriesPoint(start, at, count, total, ExplicitBuckets(edges, counts))
    if any(told.negative.bucket_counts) or not -10 <= told.scale <= 20:
        raise CollectError("invalid_value", "a histogram has values below 0, or a scale that cannot be")
    first = told.positive.offset
    buckets = {first + i: float(c) for i, c in enumerate(told.positive.bucket_counts) if c}
    return SeriesPoint(start, at, count, total, ExponentialBuckets(told.scale, float(told.zero_count), buckets))


def series_key(where: str, target: str, name: str, told: Point) -> bytes:
    """Of one series since its start. A hash: what attributes say is not kept."""
    digest = hashlib.blake2b(digest_size=16)
    parts = sorted((each.key.encode(), each.value.SerializeToString(deterministic=True)) for each in told.attributes)
    start = str(told.start_time_unix_nano).encode()
    for part in (where.encode(), target.encode(), name.encode(), start, *(p for pair in parts for p in pair)):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


@dataclass(slots=True)
class Gains:
    """What one target of one endpoint gained in one push."""

    start: float
    end: float
    counts: dict[str, float] = field(default_factory=dict)
    sketches: dict[str, list[Sketch]] = field(default_factory=dict)

    def add(
        self,
        instrument: Instrument,
        point: SeriesPoint,
        unit: float,
        attributes: Attributes,
        best: Callable[[str], bool],
    ) -> None:
        """``best``: whether nothing better tells what has this name. Raises CollectError ``invalid_value``."""
        total, distribution = instrument.total, instrument.distribution
        if instrument.by_type:
            total, distribution = _BY_TYPE.get(attributes.text("gen_ai.token.type") or "", (None, None))
        sketch = None if distribution is None else point.sketch(unit)
        self.start, self.end = min(self.start, point.start), max(self.end, point.at)
        # Of a counter the count is the sum.
        summed = point.count if point.buckets is None and point.total is None else point.total
        if total is not None and summed is not None and best(total):
            self._count(total, summed)
        if distribution is None or not best(distribution):
            return
        if sketch is not None:
            self.sketches.setdefault(distribution, []).append(sketch)
        if instrument.counts_requests:
            self._count("requests", point.count)
            for ended, name in _COUNTED_AS.items():
                self._count(name, point.count if outcome(attributes.text("error.type")) == ended else 0.0)

    def _count(self, name: str, more: float) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + more

    def span(self, target: str) -> Span:
        sketches = {name: Sketch.merge(several) for name, several in self.sketches.items()}
        return Span(target, self.start, self.end, counts=self.counts, sketches=sketches)


def ranked(metrics: Iterable[Metric]) -> Iterator[tuple[Metric, Instrument]]:
    """Those of the conventions, the best of what tells the same first."""
    known = ((metric, INSTRUMENTS[metric.name]) for metric in metrics if metric.name in INSTRUMENTS)
    yield from sorted(known, key=lambda each: each[1].rank)
