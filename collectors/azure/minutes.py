"""What Azure Monitor says of online endpoints, minute by minute: many endpoints with each question.

Azure gives one-minute averages. Requests and errors are counts; a percentile is a number, and of several deployments only the least and
the greatest bound it; what Azure leaves out is unknown, and never zero. The mean latency comes as what it adds up to: seconds spent in
requests. Owns the questions and the reading of the answers; when they are asked, and what becomes of them, is ``monitor``'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from collectors.azure.client import AzureClient
from collectors.azure.errors import AzureError
from collectors.azure.inventory import EndpointState
from collectors.azure.names import DEPLOYMENTS, ENDPOINTS
from collectors.azure.questions import BATCH, MetricQuestion, MetricSeries, ask
from collectors.window import Gauge, Range

_QUANTILES = {
    0.5: "RequestLatency_P50",
    0.9: "RequestLatency_P90",
    0.95: "RequestLatency_P95",
    0.99: "RequestLatency_P99",
}
_USES = {
    "CpuUtilizationPercentage": "cpu_usage",
    "CpuMemoryUtilizationPercentage": "memory_usage",
    "GpuUtilizationPercentage": "gpu_usage",
    "GpuMemoryUtilizationPercentage": "gpu_memory_usage",
}


_REQUESTS = MetricQuestion(ENDPOINTS, ("RequestsPerMinute",), "deployment eq '*' and statusCode eq '*'")
_LATENCY = MetricQuestion(ENDPOINTS, ("RequestLatency", *_QUANTILES.values()), "deployment eq '*'")
_MACHINES = MetricQuestion(DEPLOYMENTS, (*_USES, "DeploymentCapacity"), "instanceId eq '*'")


@dataclass(frozen=True, slots=True)
class Minute:
    """One endpoint in one minute, as far as Azure tells."""

    start: float
    counts: Mapping[str, float] = field(default_factory=dict)
    """requests, errors (5xx), throttled (429), rejected (other 4xx), e2e_total_s (seconds spent in requests)."""
    quantiles: Mapping[float, Range] = field(default_factory=dict)
    """Of the end-to-end latency, seconds."""
    gauges: Mapping[str, Gauge] = field(default_factory=dict)
    """Shares 0..1 over the instances that take traffic; ``replicas`` is how many there are."""


async def read(
    client: AzureClient, states: Sequence[EndpointState], start: float, end: float
) -> dict[str, list[Minute] | AzureError]:
    """By endpoint key: its minutes that begin in [start, end) and of which anything is known, oldest first; or what went wrong."""
    found: dict[str, list[Minute] | AzureError] = {}
    for region, here in sorted(_by_region(states).items()):
        for first in range(0, len(here), BATCH):
            batch = here[first : first + BATCH]
            by_path = {state.id.path: state for state in batch}
            machines = {state.id.deployment(name): state for state in batch for name in state.traffic}
            requests = await ask(client, region, _REQUESTS, list(by_path), start, end)
            latency = await ask(client, region, _LATENCY, list(by_path), start, end)
            uses = await ask(client, region, _MACHINES, list(machines), start, end)
            for path, state in by_path.items():
                answers = [requests[path], latency[path], *(uses[m] for m, s in machines.items() if s is state)]
                failed = next((a for a in answers[:2] if isinstance(a, AzureError)), None)
                known = [series for a in answers if not isinstance(a, AzureError) for series in a]
                found[state.id.key] = failed if failed is not None else list(_minutes(known))
    return found


def _by_region(states: Sequence[EndpointState]) -> dict[str, list[EndpointState]]:
    found: dict[str, list[EndpointState]] = defaultdict(list)
    for state in states:
        found[state.region].append(state)
    return found


# -- one endpoint ------------------------------------------------------------------------------------------------------


def _minutes(lines: Sequence[MetricSeries]) -> Iterator[Minute]:
    for start in sorted({at for line in lines for at in line.average}):
        here = [line for line in lines if start in line.average]
        minute = Minute(start, _counts(here, start), _quantiles(here, start), _gauges(here, start))
        if minute.counts or minute.quantiles or minute.gauges:
            yield minute


def _requests(lines: Sequence[MetricSeries], start: float) -> dict[str, float]:
    """By deployment."""
    found: dict[str, float] = defaultdict(float)
    for line in lines:
        if line.metric == "RequestsPerMinute":
            found[line.labels.get("deployment", "")] += line.average[start]
    return dict(found)


def _counts(lines: Sequence[MetricSeries], start: float) -> dict[str, float]:
    by_code: dict[str, float] = defaultdict(float)
    for line in lines:
        if line.metric == "RequestsPerMinute":
            by_code[line.labels.get("statuscode", "")] += line.average[start]
    if not by_code:
        return {}
    counts = {"requests": sum(by_code.values())}
    if all(code.isdigit() for code in by_code):  # a code that is none leaves open what failed
        counts["errors"] = sum(n for code, n in by_code.items() if code.startswith("5"))
        counts["throttled"] = by_code.get("429", 0.0)
        counts["rejected"] = sum(n for code, n in by_code.items() if code.startswith("4") and code != "429")
    mean = {
        line.labels.get("deployment", ""): line.average[start] / 1000
        for line in lines
        if line.metric == "RequestLatency"
    }
    served = {name: n for name, n in _requests(lines, start).items() if n > 0}
    if served.keys() <= mean.keys():
        counts["e2e_total_s"] = sum(n * mean[name] for name, n in served.items())
    return counts


def _quantiles(lines: Sequence[MetricSeries], start: float) -> dict[float, Range]:
    """The quantile of all lies between those of the deployments; where one that served does not tell its own, nobody knows."""
    served = {name for name, n in _requests(lines, start).items() if n > 0}
    found = {}
    for q, metric in _QUANTILES.items():
        by_deployment = {
            line.labels.get("deployment", ""): line.average[start] / 1000 for line in lines if line.metric == metric
        }
        values = [v for name, v in by_deployment.items() if name in served]
        if served and served <= by_deployment.keys():
            found[q] = Range(min(values), max(values))
    return found


def _gauges(lines: Sequence[MetricSeries], start: float) -> dict[str, Gauge]:
    found = {}
    for metric, name in _USES.items():
        here = [line for line in lines if line.metric == metric]
        if here:
            values = [line.average[start] / 100 for line in here]
            mean = sum(values) / len(values)
            highest = max(line.maximum.get(start, line.average[start]) / 100 for line in here)
            found[name] = Gauge(mean, max(highest, mean), mean)
    instances = [line for line in lines if line.metric == "DeploymentCapacity" and line.average[start] > 0]
    if instances:
        found["replicas"] = Gauge(float(len(instances)), float(len(instances)), float(len(instances)))
    return found
