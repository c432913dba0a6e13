"""The source ``azure-monitor``: online endpoints' requests, latencies and machines, minute by minute, minutes late.

All endpoints of a subscription are read together. A minute is taken as it stands ``lag_s`` after its end; what could not be read of an
endpoint is asked for again, up to an hour back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import ClassVar

from pydantic import Field, ValidationError, field_validator

from collectors.azure.client import AzureClient, shared
from collectors.azure.credentials import AzureAccount
from collectors.azure.errors import AzureError
from collectors.azure.inventory import EndpointState, Inventory, inventory
from collectors.azure.minutes import Minute, read
from collectors.azure.names import EndpointId
from collectors.azure.settled import MINUTE, SettledMinutes
from collectors.base import FleetMember, FleetQuery, SourceContext
from collectors.discovery import Support
from collectors.window import CollectError, Reading, Span


class Options(AzureAccount):
    """Settings of the source ``azure-monitor``."""

    resource: str = ""
    """The endpoint's resource id, as `az ml online-endpoint show --query id` has it."""
    lag_s: float = Field(default=180.0, ge=0, le=1800)
    """A minute is taken as it stands so long after its end: Azure's metrics come one to three minutes late."""

    @field_validator("resource")
    @classmethod
    def _an_id(cls, value: str) -> str:
        if value:
            EndpointId.parse(value)
        return value


SUPPORT = Support(
    title="Azure Monitor, of managed online endpoints",
    sees=(
        "requests, errors, throttling",
        "end-to-end P50, P90, P95, P99 as numbers, minutes late",
        "CPU, memory, GPU",
        "instances",
    ),
    changes=(),
    verified="official SDK",
    how="the stand-in of `azure-ml`, which azure-monitor-querymetrics and azure-mgmt-monitor drive too",
)


class AzureMonitor:
    """All endpoints of one subscription that are read alike. See ``collectors.base.FleetCollector``."""

    source: ClassVar[str] = "azure-monitor"
    interval_s: float | None = MINUTE
    deadline_s: float | None = 120.0

    def __init__(self, client: AzureClient, lists: Inventory, lag_s: float) -> None:
        self._client = client
        self._lists = lists
        self._minutes = SettledMinutes(client.clock, lag_s)
        self.settles_s = self._minutes.settles_s

    async def read_all(
        self, wanted: Sequence[FleetQuery], since: float | None
    ) -> AsyncIterator[tuple[str, Reading | Span | CollectError]]:
        """The minutes of each that have settled since it was last read, and the newest of them in any case."""
        end = self._minutes.end()
        spans: dict[float, list[tuple[str, EndpointState]]] = defaultdict(list)
        for one in wanted:
            id_ = EndpointId.parse(str(one.options["resource"]))
            try:
                state = await self._lists.endpoint(id_)
            except AzureError as error:
                yield one.endpoint, error
                continue
            first = self._minutes.first(id_.key, end)
            spans[first].append((one.endpoint, state))
        for start, members in sorted(spans.items()):
            found = await read(self._client, [state for _, state in members], start, end)
            for name, state in members:
                answer = found[state.id.key]
                if isinstance(answer, AzureError):
                    yield name, answer
                    continue
                self._minutes.read(state.id.key, end)
                for minute in answer:
                    yield name, _span(name, minute)


def _span(endpoint: str, minute: Minute) -> Span:
    return Span(
        target=endpoint,
        start=minute.start,
        end=minute.start + MINUTE,
        counts=minute.counts,
        gauges=minute.gauges,
        quantiles={"e2e_s": minute.quantiles} if minute.quantiles else {},
    )


def make(context: SourceContext) -> FleetMember:
    """The entry point. Raises CollectError ``settings``, ``credentials``."""
    try:
        options = Options(**context.options)
        problem = "" if options.resource else "resource: the endpoint's resource id is needed"
    except ValidationError as error:
        problem = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    if problem:
        raise CollectError("settings", f"endpoint {context.endpoint}, azure-monitor: {problem}")
    sessions, id_ = context.sessions, EndpointId.parse(options.resource)
    client = shared(sessions, id_.subscription, options, context.http.call, context.clock)
    fleet = sessions.get(
        ("azure-monitor", id(client), options.lag_s),
        lambda: AzureMonitor(client, inventory(sessions, client), options.lag_s),
    )
    return FleetMember(fleet, FleetQuery(context.endpoint, context.model, {"resource": options.resource}))
