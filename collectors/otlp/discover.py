"""What `flyball permissions otlp` prints: how a sender is pointed here. Nothing is listed: senders come by themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, Support
from collectors.otlp.receiver import SUPPORT
from collectors.window import CollectError

_SENDER = """\
# Flyball needs no role anywhere: senders push. This is the environment of each sender (any OpenTelemetry SDK or Collector; vLLM takes
# --otlp-traces-endpoint in place of the address).
OTEL_SERVICE_NAME=chat                                      # the endpoint's name in flyball.yaml
OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf                   # vLLM: OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf
OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:8321           # web.host and web.port; /v1/metrics and /v1/traces are added
OTEL_EXPORTER_OTLP_HEADERS="Authorization=Bearer%20${FLYBALL_OTLP_TOKEN}"  # sources.otlp.token; it may send, and do nothing else
OTEL_EXPORTER_OTLP_COMPRESSION=gzip
# Prompts are not needed. Without this, SDKs send none:
# OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true
"""


class SenderOptions(BaseModel):
    """What ``flyball discover otlp`` takes: nothing."""

    model_config = ConfigDict(extra="forbid")


class OtlpSystem:
    """See ``collectors.discovery.System``."""

    name: ClassVar[str] = "otlp"
    options: ClassVar[type[BaseModel]] = SenderOptions
    support: ClassVar[Support] = SUPPORT

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        """Raises CollectError ``pushed``."""
        nothing: Sequence[DiscoveredEndpoint] = ()
        for each in nothing:
            yield each
        raise CollectError(
            "pushed",
            "senders come by themselves and cannot be listed; `flyball permissions otlp` says how to point one here",
        )

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        """None is needed."""
        return []

    def permissions(self) -> str:
        """The environment of a sender."""
        return _SENDER
