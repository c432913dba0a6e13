"""OpenTelemetry traces of a cycle, sent by OTLP when the settings name a receiver; otherwise spans cost next to nothing."""

from __future__ import annotations

from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from agent.settings import OtlpSettings


class Tracing:
    """A tracer of its own, not the process's global one."""

    def __init__(self, settings: OtlpSettings | None) -> None:
        self._provider: TracerProvider | None = None
        if settings is None:
            self.tracer: trace.Tracer = trace.NoOpTracer()
            return
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "flyball", "service.version": version("flyball")})
        )
        exporter = OTLPSpanExporter(endpoint=settings.endpoint.rstrip("/") + "/v1/traces", timeout=5)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=2000))
        self.tracer = self._provider.get_tracer("flyball")

    def close(self) -> None:
        """Send what is left, and stop."""
        if self._provider is not None:
            self._provider.shutdown()
