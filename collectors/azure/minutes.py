"""What Azure Monitor says of online endpoints, minute by minute: many endpoints with each question.

Azure gives one-minute averages. Requests and errors are counts; a percentile is a number, and of several deployments only the least and
the greatest bound it; what Azure leaves out is unknown, and never zero. The mean latency comes as what it adds up to: seconds spent in
requests. Owns the questions and the reading of the answers; when they are asked, and what becomes of them, is ``monitor``'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from collectors.azure.client import AzureClient
from collectors.azure.errors import AzureError
from collectors.azure.inventory import EndpointState
from collectors.azure.names import DEPLOYMENTS, ENDPOINTS
from collectors.window import Gauge, Range

#: Azure answers for so many resources of one region at once.
BATCH = 50
#: Where Azure drops series without a word; as many as were asked for means that some may lack.
_MOST_SERIES = 1000
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


@dataclass(frozen=True, slots=True)
class _Question:
    namespace: str
    metrics: tuple[str, ...]
    filter: str


_REQUESTS = _Question(ENDPOINTS, ("RequestsPerMinute",), "deployment eq '*' and statusCode eq '*'")
_LATENCY = _Question(ENDPOINTS, ("RequestLatency", *_QUANTILES.values()), "deployment eq '*'")
_MACHINES = _Question(DEPLOYMENTS, (*_USES, "DeploymentCapacity"), "instanceId eq '*'")


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


@dataclass(frozen=True, slots=True)
class _Series:
    """One line of an answer: its dimensions in lower case, and average and maximum by the minute's start."""

    metric: str
    labels: Mapping[str, str]
    average: Mapping[float, float]
    maximum: Mapping[float, float]


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
            requests = await _ask(client, region, _REQUESTS, list(by_path), start, end)
            latency = await _ask(client, region, _LATENCY, list(by_path), start, end)
            uses = await _ask(client, region, _MACHINES, list(machines), start, end)
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


async def _ask(
    client: AzureClient, region: str, question: _Question, resources: Sequence[str], start: float, end: float
) -> dict[str, list[_Series] | AzureError]:
    """By resource. One that spoils the answer for all is found by halves, and costs the others nothing."""
    if not resources:
        return {}
    if len(resources) > BATCH:
        parts = [resources[i : i + BATCH] for i in range(0, len(resources), BATCH)]
        return {k: v for part in parts for k, v in (await _ask(client, region, question, part, start, end)).items()}
    try:
        answers = await client.metrics(
            region,
            resources,
            namespace=question.namespace,
            names=question.metrics,
            start=_iso(start),
            end=_iso(end),
            filter_=question.filter,
        )
    except AzureError as error:
        if len(resources) == 1 or error.kind not in ("invalid", "missing", "denied"):
            return dict.fromkeys(resources, error)
        half = len(resources) // 2
        first = await _ask(client, region, question, resources[:half], start, end)
        return first | await _ask(client, region, question, resources[half:], start, end)
    by_id = {str(answer.get("resourceid", "")).lower(): answer for answer in answers}
    return {resource: _lines(by_id.get(resource.lower()), resource) for resource in resources}


def _lines(answer: Mapping[str, Any] | None, resource: str) -> list[_Series] | AzureError:
    if answer is None:
        return AzureError("missing", f"Azure Monitor answered, and not for {resource}")
    lines = []
    for metric in answer.get("value") or ():
        name = str((metric.get("name") or {}).get("value", ""))
        series = metric.get("timeseries") or ()
        if len(series) >= _MOST_SERIES:
            return AzureError(
                "invalid", f"{name} of {resource} has {len(series)} series or more, and Azure drops the rest: not used"
            )
        for line in series:
            labels = {
                str((label.get("name") or {}).get("value", "")).lower(): str(label.get("value", ""))
                for label in line.get("metadatavalues") or ()
            }
            points = [(at, p) for p in line.get("data") or () if (at := _time(p.get("timeStamp"))) is not None]
            lines.append(_Series(name, labels, _values(points, "average"), _values(points, "maximum")))
    return lines


def _values(points: Sequence[tuple[float, Mapping[str, Any]]], how: str) -> dict[float, float]:
    """Without what is null, or can be no measurement."""
    return {at: float(p[how]) for at, p in points if isinstance(p.get(how), int | float) and p[how] >= 0}


# -- one endpoint ------------------------------------------------------------------------------------------------------


def _minutes(lines: Sequence[_Series]) -> Iterator[Minute]:
    for start in sorted({at for line in lines for at in line.average}):
        here = [line for line in lines if start in line.average]
        minute = Minute(start, _counts(here, start), _quantiles(here, start), _gauges(here, start))
        if minute.counts or minute.quantiles or minute.gauges:
            yield minute


def _requests(lines: Sequence[_Series], start: float) -> dict[str, float]:
    """By deployment."""
    found: dict[str, float] = defaultdict(float)
    for line in lines:
        if line.metric == "RequestsPerMinute":
            found[line.labels.get("deployment", "")] += line.average[start]
    return dict(found)


def _counts(lines: Sequence[_Series], start: float) -> dict[str, float]:
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


def _quantiles(lines: Sequence[_Series], start: float) -> dict[float, Range]:
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


def _gauges(lines: Sequence[_Series], start: float) -> dict[str, Gauge]:
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


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(text: Any) -> float | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
