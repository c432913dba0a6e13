"""Questions to Azure Monitor, many resources with each, and the lines of its answers.

What Azure leaves out is unknown, and never zero. Owns how a question is put and read; what is asked, and what becomes of it, its callers'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from collectors.azure.client import AzureClient
from collectors.azure.errors import AzureError

#: Azure answers for so many resources of one region at once.
BATCH = 50
#: Where Azure drops series without a word; as many as were asked for means that some may lack.
_MOST_SERIES = 1000


@dataclass(frozen=True, slots=True)
class MetricQuestion:
    """What is asked of each resource."""

    namespace: str
    metrics: tuple[str, ...]
    filter: str
    aggregation: str = "average,maximum"


@dataclass(frozen=True, slots=True)
class MetricSeries:
    """One line of an answer: its dimensions in lower case, and its values by the minute's start."""

    metric: str
    labels: Mapping[str, str]
    average: Mapping[float, float]
    maximum: Mapping[float, float]
    total: Mapping[float, float]
    minimum: Mapping[float, float] = field(default_factory=dict)


async def ask(
    client: AzureClient, region: str, question: MetricQuestion, resources: Sequence[str], start: float, end: float
) -> dict[str, list[MetricSeries] | AzureError]:
    """By resource. One that spoils the answer for all is found by halves, and costs the others nothing."""
    if not resources:
        return {}
    if len(resources) > BATCH:
        parts = [resources[i : i + BATCH] for i in range(0, len(resources), BATCH)]
        return {k: v for part in parts for k, v in (await ask(client, region, question, part, start, end)).items()}
    try:
        answers = await client.metrics(
            region,
            resources,
            namespace=question.namespace,
            names=question.metrics,
            start=_iso(start),
            end=_iso(end),
            filter_=question.filter,
            aggregation=question.aggregation,
        )
    except AzureError as error:
        if len(resources) == 1 or error.kind not in ("invalid", "missing", "denied"):
            return dict.fromkeys(resources, error)
        half = len(resources) // 2
        first = await ask(client, region, question, resources[:half], start, end)
        return first | await ask(client, region, question, resources[half:], start, end)
    by_id = {str(answer.get("resourceid", "")).lower(): answer for answer in answers}
    return {resource: _lines(by_id.get(resource.lower()), resource) for resource in resources}


def _lines(answer: Mapping[str, Any] | None, resource: str) -> list[MetricSeries] | AzureError:
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
            lines.append(
                MetricSeries(
                    name, labels, *(_values(points, how) for how in ("average", "maximum", "total", "minimum"))
                )
            )
    return lines


def _values(points: Sequence[tuple[float, Mapping[str, Any]]], how: str) -> dict[float, float]:
    """Without what is null, or can be no measurement."""
    return {at: float(p[how]) for at, p in points if isinstance(p.get(how), int | float) and p[how] >= 0}


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(text: Any) -> float | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
