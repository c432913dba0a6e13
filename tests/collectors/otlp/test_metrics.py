"""The conventions' instruments in all spellings, temporalities and bucket forms, as Flyball's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from collectors.metrics import METRICS as NAMES
from collectors.otlp.metrics import INSTRUMENTS
from collectors.otlp.receiver import OtlpReceiver
from collectors.otlp.routes import OtlpRoute
from collectors.window import Span
from tests.collectors.clocks import SetClock
from tests.collectors.otlp.messages import T0, attributes, metrics, nanos, push, receiver, span_of

DELTA, CUMULATIVE = {"aggregation_temporality": 1}, {"aggregation_temporality": 2}
BOUNDS = (0.1, 1.0, 10.0)
DURATION, TTFT, USAGE = (
    "gen_ai.server.request.duration",
    "gen_ai.server.time_to_first_token",
    "gen_ai.client.token.usage",
)


def histogram(
    start: float, at: float, counts: Sequence[int], total: float, told: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "start_time_unix_nano": nanos(start),
        "time_unix_nano": nanos(at),
        "count": sum(counts),
        "sum": total,
        "explicit_bounds": BOUNDS,
        "bucket_counts": counts,
        "attributes": attributes(told or {}),
    }


def counter(start: float, at: float, value: int, told: Mapping[str, Any] | None = None) -> dict[str, Any]:
    times = {"start_time_unix_nano": nanos(start), "time_unix_nano": nanos(at)}
    return {**times, "as_int": value, "attributes": attributes(told or {})}


def take(to: OtlpReceiver, *told: Any, resource: Mapping[str, Any] | None = None) -> Span:
    return span_of(to.take(push(metrics(told, resource))))


def test_a_delta_is_what_happened_in_its_interval() -> None:
    point = histogram(T0 - 10, T0, [1, 2, 1, 0], 5.0)
    said = take(receiver(), (DURATION, "s", "histogram", DELTA, [point]))
    assert (said.start, said.end) == (T0 - 10, T0)
    assert said.counts == {"requests": 4, "errors": 0, "throttled": 0, "rejected": 0}
    assert said.sketches["e2e_s"].count == 4
    assert said.sketches["e2e_s"].total == pytest.approx(5.0)
    assert said.sketches["e2e_s"].bounds(0.5) == (0.1, 1.0)


def test_what_is_cumulative_is_differenced_series_by_series() -> None:
    to = receiver()
    start = T0 - 3_000  # long ago: how it came to its first value is not known
    first = histogram(start, T0 - 60, [1, 1, 0, 0], 1.0)
    assert not to.take(push(metrics([(DURATION, "s", "histogram", CUMULATIVE, [first])]))).told
    more = histogram(start, T0 - 30, [1, 4, 0, 0], 3.0)
    failed = histogram(T0 - 40, T0 - 30, [0, 0, 2, 0], 8.0, {"error.type": "500"})  # this series is new
    said = take(to, (DURATION, "s", "histogram", CUMULATIVE, [more, failed]))
    assert said.counts == {"requests": 5, "errors": 2, "throttled": 0, "rejected": 0}
    assert said.sketches["e2e_s"].total == pytest.approx(10.0)
    again = take(to, (DURATION, "s", "histogram", CUMULATIVE, [histogram(start, T0, [1, 4, 0, 0], 3.0)]))
    assert (again.start, again.end) == (T0 - 30, T0)
    assert again.counts["requests"] == 0, "nothing came, which is known"


def test_a_restart_counts_from_its_own_start_and_an_outage_counts_nothing() -> None:
    clock = SetClock(T0)
    to = receiver(clock=clock)
    take(to, (DURATION, "s", "histogram", CUMULATIVE, [histogram(T0 - 20, T0 - 10, [9, 0, 0, 0], 0.5)]))
    said = take(to, (DURATION, "s", "histogram", CUMULATIVE, [histogram(T0 - 5, T0, [3, 0, 0, 0], 0.1)]))
    assert (said.start, said.counts["requests"]) == (T0 - 5, 3)
    clock.time += 5_000
    late = histogram(T0 - 5, T0 + 5_000, [5_000, 0, 0, 0], 100.0)
    assert not to.take(push(metrics([(DURATION, "s", "histogram", CUMULATIVE, [late])]))).told, "nobody knows when"
    clock.time += 10
    said = take(to, (DURATION, "s", "histogram", CUMULATIVE, [histogram(T0 - 5, T0 + 5_010, [5_001, 0, 0, 0], 100.1)]))
    assert said.counts["requests"] == 1


def test_a_point_that_is_sent_twice_counts_once() -> None:
    to = receiver()
    sent = metrics([(DURATION, "s", "histogram", CUMULATIVE, [histogram(T0 - 10, T0, [3, 0, 0, 0], 0.1)])])
    assert span_of(to.take(push(sent))).counts["requests"] == 3
    assert not to.take(push(sent)).told


def exponential(
    start: float, at: float, scale: int, offset: int, counts: Sequence[int], total: float, zero: int = 0
) -> dict[str, Any]:
    return {
        "start_time_unix_nano": nanos(start),
        "time_unix_nano": nanos(at),
        "count": sum(counts) + zero,
        "sum": total,
        "scale": scale,
        "zero_count": zero,
        "positive": {"offset": offset, "bucket_counts": counts},
    }


def test_exponential_buckets_are_ranges_of_the_width_that_they_have() -> None:
    point = exponential(T0 - 10, T0, 3, 8, [4], 8.4, zero=1)  # (2, 2 ** (9 / 8)]
    said = take(receiver(), (TTFT, "s", "exponential_histogram", DELTA, [point]))
    low, high = said.sketches["ttft_s"].bounds(0.9)
    assert (low, high) == (pytest.approx(2.0), pytest.approx(2 ** (9 / 8)))
    assert said.sketches["ttft_s"].count == 5


def test_an_exponential_histogram_that_widens_its_buckets_goes_on() -> None:
    """The SDK lowers the scale when a value comes that is far from the others."""
    to = receiver()
    take(to, (TTFT, "s", "exponential_histogram", CUMULATIVE, [exponential(T0 - 20, T0 - 10, 3, 8, [4, 2], 13.0)]))
    # At scale 2 buckets 8 and 9 are one, 4; then two more fell into it, and one far above.
    wider = exponential(T0 - 20, T0, 2, 4, [8, 0, 0, 0, 1], 13.0 + 4.4 + 4.1)
    said = take(to, (TTFT, "s", "exponential_histogram", CUMULATIVE, [wider]))
    assert said.sketches["ttft_s"].count == pytest.approx(3)
    assert said.sketches["ttft_s"].bounds(0.5) == (pytest.approx(2.0), pytest.approx(2 ** (5 / 4)))


def test_fine_exponential_buckets_of_a_day_share_their_bounds() -> None:
    to = receiver()
    spans = []
    for number in range(5):
        at = T0 - 50 + 10 * number
        point = exponential(at - 10, at, 12, 9_000 + 311 * number, [1] * 100, 500.0)
        spans.append(take(to, (TTFT, "s", "exponential_histogram", DELTA, [point])).sketches["ttft_s"])
    assert len({tuple(sorted(s._parts)) for s in spans}) == 1
    assert all(s.count == pytest.approx(100) for s in spans)


@pytest.mark.parametrize(("unit", "factor"), [("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("", 1.0)])
def test_times_are_seconds_whatever_unit_they_come_in(unit: str, factor: float) -> None:
    said = take(receiver(), (TTFT, unit, "histogram", DELTA, [histogram(T0 - 10, T0, [0, 2, 0, 0], 1.0)]))
    assert said.sketches["ttft_s"].bounds(0.5) == (pytest.approx(0.1 * factor), pytest.approx(1.0 * factor))
    assert said.sketches["ttft_s"].total == pytest.approx(1.0 * factor)


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        ("429", "throttled"), ("RateLimitError", "throttled"), ("ThrottlingException", "throttled"),
        ("400", "rejected"), ("BadRequestError", "rejected"), ("401", "rejected"), ("openai.AuthenticationError", "rejected"),
        ("500", "errors"), ("408", "errors"), ("timeout", "errors"), ("_OTHER", "errors"),
    ],
)  # fmt: skip
def test_a_request_that_failed_is_counted_as_what_it_was(error: str, counted: str) -> None:
    points = [
        histogram(T0 - 10, T0, [1, 0, 0, 0], 0.1),
        histogram(T0 - 10, T0, [2, 0, 0, 0], 0.1, {"error.type": error}),
    ]
    said = take(receiver(), (DURATION, "s", "histogram", DELTA, points))
    assert said.counts == {"requests": 3, "errors": 0, "throttled": 0, "rejected": 0} | {counted: 2}


def usage(kind: str, count: int, total: float) -> dict[str, Any]:
    return histogram(T0 - 10, T0, [0, 0, 0, count], total, {"gen_ai.token.type": kind})


@pytest.mark.parametrize("output", ["output", "completion"])
def test_tokens_by_the_oldest_spelling(output: str) -> None:
    said = take(receiver(), (USAGE, "{token}", "histogram", DELTA, [usage("input", 2, 300.0), usage(output, 2, 90.0)]))
    assert said.counts == {"prompt_tokens": 300, "output_tokens": 90}
    assert said.sketches["prompt_length"].mean == pytest.approx(150)
    assert said.sketches["output_length"].mean == pytest.approx(45)


def test_tokens_by_one_counter_with_a_type() -> None:
    points = [
        counter(T0 - 10, T0, 300, {"gen_ai.token.type": "input"}),
        counter(T0 - 10, T0, 90, {"gen_ai.token.type": "output"}),
    ]
    told = ("gen_ai.client.inference.tokens", "{token}", "sum", {**DELTA, "is_monotonic": True}, points)
    assert take(receiver(), told).counts == {"prompt_tokens": 300, "output_tokens": 90}


def test_tokens_by_a_counter_each_and_cached_ones_apart() -> None:
    names = {"input_tokens": 300, "output_tokens": 90, "cache_read.input_tokens": 200}
    told = [
        (
            f"gen_ai.client.inference.usage.{name}",
            "{token}",
            "sum",
            {**DELTA, "is_monotonic": True},
            [counter(T0 - 10, T0, value)],
        )
        for name, value in names.items()
    ]
    told.append(
        ("gen_ai.client.inference.operation.input_tokens", "{token}", "histogram", DELTA, [usage("", 2, 300.0)])
    )
    said = take(receiver(), *told)
    assert said.counts == {"prompt_tokens": 300, "output_tokens": 90, "cached_prompt_tokens": 200}
    assert said.sketches["prompt_length"].mean == pytest.approx(150)


def test_what_is_told_in_two_spellings_counts_once() -> None:
    old = (USAGE, "{token}", "histogram", DELTA, [usage("input", 2, 300.0), usage("output", 2, 90.0)])
    new = (
        "gen_ai.client.inference.usage.input_tokens",
        "{token}",
        "sum",
        {**DELTA, "is_monotonic": True},
        [counter(T0 - 10, T0, 300)],
    )
    said = take(receiver(), old, new)
    assert said.counts == {"prompt_tokens": 300, "output_tokens": 90}, (
        "output tokens are told by the old spelling alone"
    )
    assert said.sketches["prompt_length"].count == 2


def test_the_servers_own_measurement_stands_before_its_callers() -> None:
    clock = SetClock(T0)
    to = receiver(clock=clock)
    called = ("gen_ai.client.operation.duration", "s", "histogram", DELTA, [histogram(T0 - 10, T0, [0, 5, 0, 0], 2.0)])
    served = (DURATION, "s", "histogram", DELTA, [histogram(T0 - 10, T0, [5, 0, 0, 0], 0.2)])
    assert take(to, called, served).counts["requests"] == 5
    said = to.take(push(metrics([called], {"service.name": "chat", "service.instance.id": "the caller"}))).told
    assert not said or "requests" not in said[0][1].counts  # type: ignore[union-attr]
    clock.time += 700  # the server says nothing any more
    at = clock.time
    later = ("gen_ai.client.operation.duration", "s", "histogram", DELTA, [histogram(at - 10, at, [0, 5, 0, 0], 2.0)])
    assert take(to, later).counts["requests"] == 5


def test_agents_and_tools_hold_requests_and_are_none() -> None:
    points = [
        histogram(T0 - 10, T0, [1, 0, 0, 0], 0.1, {"gen_ai.operation.name": name})
        for name in ("chat", "invoke_agent", "execute_tool")
    ]
    assert (
        take(receiver(), ("gen_ai.client.operation.duration", "s", "histogram", DELTA, points)).counts["requests"] == 1
    )


def test_other_metrics_are_passed_by() -> None:
    taken = receiver().take(
        push(
            metrics(
                [("http.server.request.duration", "s", "histogram", DELTA, [histogram(T0 - 1, T0, [1, 0, 0, 0], 1)])]
            )
        )
    )
    assert not taken.told
    assert taken.answer.body == b"", "and are no error of the sender's"


WRONG = {
    "no temporality": (DURATION, "s", "histogram", {}, [histogram(T0 - 10, T0, [1, 0, 0, 0], 1.0)]),
    "a gauge": (DURATION, "s", "gauge", {}, [counter(T0 - 10, T0, 3)]),
    "a unit of length": (DURATION, "m", "histogram", DELTA, [histogram(T0 - 10, T0, [1, 0, 0, 0], 1.0)]),
    "from the future": (DURATION, "s", "histogram", DELTA, [histogram(T0, T0 + 1_000, [1, 0, 0, 0], 1.0)]),
    "before its start": (DURATION, "s", "histogram", DELTA, [histogram(T0, T0 - 10, [1, 0, 0, 0], 1.0)]),
    "counts that do not fit": (DURATION, "s", "histogram", DELTA, [histogram(T0 - 10, T0, [1, 0], 1.0)]),
    "a negative sum": (DURATION, "s", "histogram", DELTA, [histogram(T0 - 10, T0, [1, 0, 0, 0], -1.0)]),
    "no number": (DURATION, "s", "histogram", DELTA, [histogram(T0 - 10, T0, [1, 0, 0, 0], float("nan"))]),
    "a scale that cannot be": (TTFT, "s", "exponential_histogram", DELTA, [exponential(T0 - 10, T0, -11, 1, [1], 1.0)]),
    "a bucket beyond all numbers": (TTFT, "s", "exponential_histogram", DELTA, [exponential(T0 - 10, T0, 0, 2_000, [1], 1.0)]),
    "a counter that may fall": ("gen_ai.client.inference.usage.input_tokens", "", "sum", DELTA, [counter(T0 - 10, T0, 3)]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused_and_the_rest_is_taken(name: str) -> None:
    right = (USAGE, "{token}", "histogram", DELTA, [usage("input", 2, 300.0)])
    taken = receiver().take(push(metrics([WRONG[name], right])))
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

    said = ExportMetricsServiceResponse.FromString(taken.answer.body)
    assert taken.answer.status == 200
    assert said.partial_success.rejected_data_points == 1
    assert said.partial_success.error_message
    assert span_of(taken).counts == {"prompt_tokens": 300}


def test_each_process_is_a_target_of_its_own() -> None:
    to = receiver()
    told = (DURATION, "s", "histogram", DELTA, [histogram(T0 - 10, T0, [1, 0, 0, 0], 0.1)])
    targets = {take(to, told, resource={"service.name": "chat", "service.instance.id": each}).target for each in "ab"}
    assert len(targets) == 2
    assert not any(target == "a" or target == "b" for target in targets)


def test_models_of_one_gateway_are_endpoints_of_their_own() -> None:
    to = receiver(OtlpRoute("small", "m-small", {}, None), OtlpRoute("large", "m-large", {}, None))
    points = [
        histogram(T0 - 10, T0, [count, 0, 0, 0], 0.1, {"gen_ai.request.model": model})
        for model, count in (("m-small", 3), ("m-large", 5), ("another", 7))
    ]
    taken = to.take(push(metrics([(DURATION, "s", "histogram", DELTA, points)], {"service.name": "gateway"})))
    assert {endpoint: said.counts["requests"] for endpoint, said in taken.told} == {"small": 3, "large": 5}  # type: ignore[union-attr]
    assert b"no endpoint takes it" in taken.answer.body


def test_the_instruments_words_are_those_of_the_table() -> None:
    named = {name for each in INSTRUMENTS.values() for name in (each.distribution, each.total) if name is not None}
    assert named - {"chunk_gap_s"} <= set(NAMES)
