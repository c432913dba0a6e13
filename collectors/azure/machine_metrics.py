"""The source ``azure-vm``: what Azure Monitor says of virtual machines and scale sets: CPU and memory, minutes late. It has no figure of a GPU.

What the model server does is told by its own metrics, beside this: requests and latencies are no machine's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import ClassVar

from pydantic import Field, ValidationError, field_validator

from collectors.azure.client import AzureClient, shared
from collectors.azure.credentials import AzureAccount
from collectors.azure.errors import AzureError
from collectors.azure.machines import COMPUTE, MachineId
from collectors.azure.questions import MetricQuestion, MetricSeries, ask
from collectors.azure.settled import MINUTE, SettledMinutes
from collectors.base import FleetMember, FleetQuery, SourceContext
from collectors.discovery import Support
from collectors.options import problems_of
from collectors.window import CollectError, Gauge, Reading, Span

_CPU, _FREE = "Percentage CPU", "Available Memory Percentage"
_NAMESPACES = {"vm": f"{COMPUTE}/virtualMachines", "set": f"{COMPUTE}/virtualMachineScaleSets"}
_NO_METRICS = "a node pool has no metrics of its own: read its nodes by `prometheus` (node_exporter, DCGM)"


class Options(AzureAccount):
    """Settings of the source ``azure-vm``."""

    resource: str = ""
    """The resource id of a virtual machine or a scale set."""
    lag_s: float = Field(default=180.0, ge=0, le=1800)
    """A minute is taken as it stands so long after its end: Azure's metrics come one to three minutes late."""

    @field_validator("resource")
    @classmethod
    def _an_id(cls, value: str) -> str:
        if value and MachineId.parse(value).kind == "pool":
            raise ValueError(_NO_METRICS)
        return value


SUPPORT = Support(
    title="Azure Monitor, of virtual machines and scale sets",
    sees=(
        "CPU and memory, minutes late; nothing of a GPU",
        "requests and latencies by the model server's own source beside it",
    ),
    changes=(),
    verified="official SDK",
    how="the stand-in of the system `azure-vm`, which azure-monitor-querymetrics drives too",
)


class MachineMetrics:
    """All machines of one subscription that are read alike. See ``collectors.base.FleetCollector``."""

    source: ClassVar[str] = "azure-vm"
    interval_s: float | None = MINUTE
    deadline_s: float | None = 120.0

    def __init__(self, client: AzureClient, lag_s: float) -> None:
        self._client = client
        self._minutes = SettledMinutes(client.clock, lag_s)
        self.settles_s = self._minutes.settles_s
        self._regions: dict[str, str] = {}

    async def read_all(
        self, wanted: Sequence[FleetQuery], since: float | None
    ) -> AsyncIterator[tuple[str, Reading | Span | CollectError]]:
        """The minutes of each that have settled since it was last read, and the newest of them in any case."""
        end = self._minutes.end()
        groups: dict[tuple[float, str, str], list[tuple[str, MachineId]]] = defaultdict(list)
        for one in wanted:
            id_ = MachineId.parse(str(one.options["resource"]))
            try:
                region = await self._region(id_)
            except AzureError as error:
                yield one.endpoint, error
                continue
            first = self._minutes.first(id_.key, end)
            groups[first, region, id_.kind].append((one.endpoint, id_))
        for (start, region, kind), members in sorted(groups.items()):
            question = MetricQuestion(_NAMESPACES[kind], (_CPU, _FREE), "", "average,maximum,minimum")
            found = await ask(
                self._client, region, question, list(dict.fromkeys(m.path for _, m in members)), start, end
            )
            for name, id_ in members:
                answer = found[id_.path]
                if isinstance(answer, AzureError):
                    yield name, answer
                    continue
                self._minutes.read(id_.key, end)
                for span in _spans(name, answer):
                    yield name, span

    async def _region(self, id_: MachineId) -> str:
        """A machine does not move: asked for once."""
        if id_.key not in self._regions:
            body = await self._client.get(id_.path, id_.version)
            self._regions[id_.key] = str(body.get("location", "")).replace(" ", "").lower()
        return self._regions[id_.key]


def _spans(endpoint: str, lines: Sequence[MetricSeries]) -> list[Span]:
    """What Azure leaves out is unknown."""
    gauges: dict[float, dict[str, Gauge]] = defaultdict(dict)
    for line in lines:
        for at, mean in line.average.items():
            if line.metric == _CPU:
                most = max(line.maximum.get(at, mean), mean)
                gauges[at]["cpu_usage"] = Gauge(mean / 100, most / 100, mean / 100)
            elif line.metric == _FREE:
                used, most = 1 - mean / 100, 1 - line.minimum.get(at, mean) / 100
                gauges[at]["memory_usage"] = Gauge(used, max(most, used), used)
    return [Span(target=endpoint, start=at, end=at + MINUTE, gauges=found) for at, found in sorted(gauges.items())]


def make(context: SourceContext) -> FleetMember:
    """The entry point. Raises CollectError ``settings``, ``credentials``."""
    try:
        options = Options(**context.options)
        problem = "" if options.resource else "resource: the id of a virtual machine or a scale set is needed"
    except ValidationError as error:
        problem = problems_of(error, Options)
    if problem:
        raise CollectError("settings", f"endpoint {context.endpoint}, azure-vm: {problem}")
    sessions, id_ = context.sessions, MachineId.parse(options.resource)
    client = shared(sessions, id_.subscription, options, context.http.call, context.clock)
    fleet = sessions.get(("azure-vm", id(client), options.lag_s), lambda: MachineMetrics(client, options.lag_s))
    return FleetMember(fleet, FleetQuery(context.endpoint, context.model, {"resource": options.resource}))
