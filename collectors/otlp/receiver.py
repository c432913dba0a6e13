"""The source ``otlp``: one receiver for all endpoints that name it, fed by the pages' server.

Metrics become spans of telemetry, request spans become flight records. Of what is sent, only numbers, names and keyed hashes are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, ResourceMetrics
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from collectors.base import SourceContext
from collectors.clock import Clock
from collectors.discovery import Support
from collectors.flight import FlightRecord
from collectors.otlp import bodies
from collectors.otlp.attributes import Attributes
from collectors.otlp.metrics import (
    Gains,
    Instrument,
    Point,
    operation_counts,
    point_of,
    points_of,
    ranked,
    series_key,
    unit_of,
)
from collectors.otlp.prefixes import PrefixKey
from collectors.otlp.requests import AHEAD_S, is_request, models_of, record_of
from collectors.otlp.routes import OtlpRoute, RouteError, allowed, routed
from collectors.otlp.series import SeriesMemory
from collectors.receiver import Intake, Push, PushAnswer, PushError, Receiver, ReceiverMember
from collectors.window import CollectError, Reading, Span

METRICS, TRACES = "/v1/metrics", "/v1/traces"
#: A better instrument that says nothing for so long is gone, and the next best one counts.
_FORGOTTEN_S = 600.0
_MOST_BEST = 20_000

SUPPORT = Support(
    title="OTLP, pushed: the GenAI conventions' metrics and request spans",
    sees=(
        "requests, errors, throttling, tokens, cached ones apart",
        "TTFT, TPOT, end-to-end, lengths",
        "each request without its content, for a replay: the flight recorder",
    ),
    changes=(),
    verified="real part",
    how="the real OpenTelemetry SDK's exporters, and the request spans of a real vLLM server (CPU)",
)


class Options(BaseModel):
    """Settings of the ``otlp`` source."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    resource: dict[str, str] = {}
    """What is this endpoint's: attributes of the resource, such as `service.name`, and their values. Default: whose `service.name` is the
    endpoint's name, or which names the endpoint's `model`; where this is the only endpoint that may take it, all."""
    token: SecretStr | None = Field(default=None, min_length=16)
    """The bearer token that senders show, of 16 characters at least; by reference. Default: none, which only a `web.host` of loopback allows."""
    tenant: str | None = None
    """The attribute of a request's span that says whose it is, such as `user.team`; kept where it is a tag of letters, digits and dots.
    Default: none."""
    settles_s: float = Field(default=90.0, ge=0, le=3600)
    """How late senders may be, in seconds. Default 90: the SDK's usual 60 s between two exports, and a half of it."""
    silent_s: float = Field(default=300.0, gt=0)
    """Seconds without a word after which the source counts as failed. Default 300: five usual exports."""


class OtlpReceiver:
    """See ``collectors.receiver.Receiver``."""

    paths: ClassVar[Sequence[str]] = (METRICS, TRACES)

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._routes: dict[str, OtlpRoute] = {}
        self._prefixes = PrefixKey(clock)
        self._memory = SeriesMemory()
        self._best: dict[tuple[str, str, str], tuple[int, float]] = {}
        """By what is told of whom: the rank of the best instrument that tells it, and when it last did, in monotonic seconds."""

    def add(self, route: OtlpRoute) -> None:
        self._routes[route.endpoint] = route

    def take(self, push: Push) -> Intake:
        """Raises PushError: 400, 401, 413, 415."""
        routes = allowed(self._routes.values(), push.headers, push.trusted)
        if not routes:
            raise PushError(401, "send the token of sources.otlp.token: Authorization: Bearer ...")
        return self._metrics(push, routes) if push.path == METRICS else self._traces(push, routes)

    def refusal(self, push: Push, error: PushError) -> PushAnswer:
        return bodies.refusal(push, error)

    # -- request spans ---------------------------------------------------------------------------------------------------

    def _traces(self, push: Push, routes: Sequence[OtlpRoute]) -> Intake:
        sent = bodies.message(push, ExportTraceServiceRequest)
        now, refused = self._clock.now(), _RefusalCount()
        records: list[tuple[str, FlightRecord]] = []
        for each in sent.resource_spans:
            resource = Attributes(each.resource.attributes)
            for span in (span for scope in each.scope_spans for span in scope.spans):
                attributes = Attributes(span.attributes)
                if not is_request(attributes):
                    continue
                try:
                    route = routed(routes, resource, models_of(attributes))
                    records.append((route.endpoint, record_of(span, attributes, self._prefixes, now, route.tenant)))
                except (RouteError, CollectError) as error:
                    refused.add(error)
        said = ExportTraceServiceResponse()
        if refused.number:
            said.partial_success.rejected_spans = refused.number
            said.partial_success.error_message = refused.why
        return Intake(bodies.answer(push, said), records=records)

    # -- metrics ---------------------------------------------------------------------------------------------------------

    def _metrics(self, push: Push, routes: Sequence[OtlpRoute]) -> Intake:
        sent = bodies.message(push, ExportMetricsServiceRequest)
        refused = _RefusalCount()
        told: list[tuple[str, Reading | Span]] = []
        for each in sent.resource_metrics:
            told += self._resource(each, routes, refused)
        said = ExportMetricsServiceResponse()
        if refused.number:
            said.partial_success.rejected_data_points = refused.number
            said.partial_success.error_message = refused.why
        return Intake(bodies.answer(push, said), told=told)

    def _resource(
        self, sent: ResourceMetrics, routes: Sequence[OtlpRoute], refused: _RefusalCount
    ) -> list[tuple[str, Reading | Span]]:
        resource, target = Attributes(sent.resource.attributes), _target(sent.resource)
        gains: dict[str, Gains] = {}
        for metric, instrument in ranked(metric for scope in sent.scope_metrics for metric in scope.metrics):
            try:
                points, delta = points_of(metric)
                unit = unit_of(metric, instrument)
            except CollectError as error:
                refused.add(error)
                continue
            for point in points:
                try:
                    self._point(metric, instrument, point, delta, unit, target, resource, routes, gains)
                except (RouteError, CollectError) as error:
                    refused.add(error)
        return [(endpoint, found.span(target)) for endpoint, found in gains.items() if found.end > found.start]

    def _point(
        self,
        metric: Metric,
        instrument: Instrument,
        told: Point,
        delta: bool,
        unit: float,
        target: str,
        resource: Attributes,
        routes: Sequence[OtlpRoute],
        gains: dict[str, Gains],
    ) -> None:
        attributes = Attributes(told.attributes)
        if not operation_counts(attributes):
            return
        endpoint = routed(routes, resource, models_of(attributes)).endpoint
        point = point_of(told)
        if point.at > self._clock.now() + AHEAD_S:
            raise CollectError("invalid_value", "a point from a clock that is ahead of ours")
        gained = self._memory.gained(series_key(endpoint, target, metric.name, told), point, delta=delta)
        if gained is not None:
            found = gains.setdefault(endpoint, Gains(gained.start, gained.at))
            found.add(instrument, gained, unit, attributes, partial(self._is_best, endpoint, target, instrument.rank))

    def _is_best(self, endpoint: str, target: str, rank: int, name: str) -> bool:
        """Whether nothing better tells what has this name: times of the whole endpoint, tokens of one sender."""
        key, now = (endpoint, "" if name.endswith("_s") else target, name), self._clock.monotonic()
        best, at = self._best.get(key, (rank, now))
        if best < rank and now - at <= _FORGOTTEN_S:
            return False
        if len(self._best) >= _MOST_BEST:
            self._best.clear()
        self._best[key] = (rank, now)
        return True


class _RefusalCount:
    """How many were not taken, and why the first of them was not."""

    def __init__(self) -> None:
        self.number = 0
        self.why = ""

    def add(self, error: Exception) -> None:
        self.number += 1
        self.why = self.why or str(error)


def _target(resource: Resource) -> str:
    """One process, by all that its resource says. A hash: what it says is not kept."""
    parts = sorted((each.key, each.value.SerializeToString(deterministic=True)) for each in resource.attributes)
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def make(context: SourceContext) -> ReceiverMember:
    """The entry point. Raises pydantic's ValidationError on options that are not those of ``Options``."""
    options = Options.model_validate(dict(context.options))
    receiver = context.sessions.get("otlp", lambda: OtlpReceiver(context.clock))
    receiver.add(OtlpRoute(context.endpoint, context.model, options.resource, options.token, options.tenant))
    shared: Receiver = receiver
    return ReceiverMember(shared, "otlp", options.settles_s, options.silent_s, options.token is None)
