"""OTLP messages, written field by field: what an SDK cannot be made to send."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from collectors.clock import Clock
from collectors.flight import FlightRecord
from collectors.otlp.receiver import METRICS, TRACES, OtlpReceiver
from collectors.otlp.routes import OtlpRoute
from collectors.receiver import Intake, Push
from collectors.window import Span
from tests.collectors.clocks import SetClock

T0 = 1_800_000_000.0
PROTOBUF = {"content-type": "application/x-protobuf"}


def attributes(given: Mapping[str, Any]) -> list[KeyValue]:
    def value(given: Any) -> AnyValue:
        if isinstance(given, bool):
            return AnyValue(bool_value=given)
        if isinstance(given, int):
            return AnyValue(int_value=given)
        if isinstance(given, float):
            return AnyValue(double_value=given)
        return AnyValue(string_value=given)

    return [KeyValue(key=name, value=value(each)) for name, each in given.items()]


def nanos(seconds: float) -> int:
    return round(seconds * 1e9)


def request_span(at: float, lasted: float, told: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """One span as the arguments of its message."""
    number = fields.pop("number", nanos(at) % 2**60)
    return {
        "trace_id": number.to_bytes(16, "big"),
        "span_id": number.to_bytes(8, "big"),
        "name": "chat m",
        "kind": 3,
        "start_time_unix_nano": nanos(at),
        "end_time_unix_nano": nanos(at + lasted),
        "attributes": attributes(told),
        **fields,
    }


def traces(spans: Sequence[Mapping[str, Any]], resource: Mapping[str, Any] | None = None) -> ExportTraceServiceRequest:
    sent = ExportTraceServiceRequest()
    of = sent.resource_spans.add()
    of.resource.attributes.extend(attributes(resource or {"service.name": "chat"}))
    scope = of.scope_spans.add()
    for span in spans:
        scope.spans.add(**span)
    return sent


def metrics(
    told: Sequence[tuple[str, str, str, Mapping[str, Any], Sequence[Mapping[str, Any]]]],
    resource: Mapping[str, Any] | None = None,
) -> ExportMetricsServiceRequest:
    """told: name, unit, kind (``sum``, ``histogram``, ``exponential_histogram``), fields of that, fields of each of its points."""
    sent = ExportMetricsServiceRequest()
    of = sent.resource_metrics.add()
    of.resource.attributes.extend(attributes(resource or {"service.name": "chat"}))
    scope = of.scope_metrics.add()
    for name, unit, kind, fields, points in told:
        metric = scope.metrics.add(name=name, unit=unit)
        data = getattr(metric, kind)
        for field, value in fields.items():
            setattr(data, field, value)
        for point in points:
            data.data_points.add(**point)
    return sent


def push(
    sent: Any, *, form: str = "protobuf", packed: bool = False, token: str | None = None, trusted: bool = True
) -> Push:
    path = METRICS if isinstance(sent, ExportMetricsServiceRequest) else TRACES
    if form == "protobuf":
        headers, body = dict(PROTOBUF), sent.SerializeToString()
    else:
        headers, body = {"content-type": "application/json; charset=utf-8"}, json_format.MessageToJson(sent).encode()
    if packed:
        headers["content-encoding"] = "gzip"
        body = gzip.compress(body)
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return Push(path, headers, body, trusted)


def receiver(*routes: OtlpRoute, clock: Clock | None = None) -> OtlpReceiver:
    made = OtlpReceiver(clock or SetClock(T0))
    for route in routes or (OtlpRoute("chat", "m", {}, None),):
        made.add(route)
    return made


def span_of(intake: Intake) -> Span:
    ((_, said),) = intake.told
    assert isinstance(said, Span)
    return said


def record_of(intake: Intake) -> FlightRecord:
    ((_, record),) = intake.records
    return record
