"""Azure Monitor's part: platform metrics by resource and in batches, their definitions, and autoscale settings."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tests.fakes.azure import compute, openai
from tests.fakes.azure.cloud import ML, Cloud, Endpoint, Refusal
from tests.fakes.azure.server import Call, Reply, Route, paged, route

_ENDPOINTS = f"{ML}/workspaces/onlineEndpoints".lower()
_DEPLOYMENTS = f"{_ENDPOINTS}/deployments"
ACCOUNTS = f"{openai.COGNITIVE}/accounts".lower()
VMS, SETS = (f"{compute.COMPUTE}/{word}".lower() for word in ("virtualMachines", "virtualMachineScaleSets"))


@dataclass(frozen=True)
class Metric:
    name: str
    unit: str
    aggregations: tuple[str, ...]
    dimensions: tuple[str, ...]


_LATENCIES = tuple(
    Metric(f"RequestLatency_P{p}", "Milliseconds", ("Average",), ("deployment",)) for p in (50, 90, 95, 99)
)
_ALL = ("Average", "Maximum", "Minimum")
METRICS: dict[str, dict[str, Metric]] = {
    _ENDPOINTS: {
        m.name: m
        for m in (
            Metric(
                "RequestsPerMinute",
                "Count",
                ("Average",),
                ("deployment", "statusCode", "statusCodeClass", "modelStatusCode"),
            ),
            Metric("RequestLatency", "Milliseconds", ("Average",), ("deployment",)),
            *_LATENCIES,
            Metric("ConnectionsActive", "Count", ("Average",), ()),
        )
    },
    _DEPLOYMENTS: {
        m.name: m
        for m in (
            Metric("CpuUtilizationPercentage", "Percent", _ALL, ("instanceId",)),
            Metric("CpuMemoryUtilizationPercentage", "Percent", _ALL, ("instanceId",)),
            Metric("GpuUtilizationPercentage", "Percent", _ALL, ("instanceId",)),
            Metric("GpuMemoryUtilizationPercentage", "Percent", _ALL, ("instanceId",)),
            Metric("GpuEnergyJoules", "Count", ("Total", *_ALL), ("instanceId",)),
            Metric("DeploymentCapacity", "Count", _ALL, ("instanceId", "State")),
        )
    },
}
_COUNTS = frozenset(("requests", "prompt", "output", "cached"))
METRICS[ACCOUNTS] = {
    name: Metric(
        name,
        "Count" if what in _COUNTS else "Percent" if what in ("usage", "cache_share") else "Milliseconds",
        ("Total",) if what in _COUNTS else _ALL,
        ("ModelDeploymentName", *(("StatusCode", "IsSpillover") if what == "requests" else ())),
    )
    for names in (openai.OPENAI_NAMES, openai.MODEL_NAMES)
    for name, what in names.items()
}
_VM = {
    name: Metric(name, unit, _ALL, ())
    for name, unit in (("Percentage CPU", "Percent"), ("Available Memory Percentage", "Percent"))
}
METRICS |= {VMS: _VM, SETS: _VM}
Series = dict[tuple[str, ...], float | None]


def _resource(cloud: Cloud, uri: str) -> tuple[str, Any, str | None, str]:
    """Namespace, endpoint or account, deployment and region of a resource id."""
    machine = cloud.machines.get("/" + uri.strip("/").lower())
    if machine is not None and machine.kind != "pool":
        return (VMS if machine.kind == "vm" else SETS), machine, None, machine.body["location"]
    account = openai.account_of(cloud, uri)
    if account is not None:
        return ACCOUNTS, account, None, account.region
    match = re.match(
        rf"/?subscriptions/[^/]+/resourceGroups/([^/]+)/providers/{ML}/workspaces/([^/]+)/onlineEndpoints/([^/]+)"
        r"(?:/deployments/([^/]+))?$",
        uri,
        re.IGNORECASE,
    )
    endpoint = cloud.endpoints.get("/".join(match.groups()[:3]).lower()) if match else None
    if match is None or endpoint is None or (match[4] and match[4] not in endpoint.deployments):
        raise Refusal(404, "ResourceNotFound", f"The Resource '{uri}' was not found.")
    return (_DEPLOYMENTS if match[4] else _ENDPOINTS), endpoint, match[4], endpoint.body["location"]


# -- what the traffic makes --------------------------------------------------------------------------------------------


def _shares(endpoint: Endpoint, at: float) -> dict[str, tuple[int, str, int]]:
    found: dict[str, tuple[int, str, int]] = {}
    for since, shares in endpoint.history:
        if since <= at:
            found = shares
    return found


def _minute(cloud: Cloud, endpoint: Endpoint, at: float) -> Iterator[tuple[str, float, float, float, float]]:
    """Deployment, requests in the minute, mean latency in seconds, share of errors, requests in each machine."""
    for name, (share, size, count) in _shares(endpoint, at + 30).items():
        rate = cloud.rate(at + 30) * share / 100
        if count <= 0 or rate <= 0:
            continue
        mean, held = cloud.law.latency_s(rate / count, cloud.sizes[size])
        yield name, round(rate * 60), mean, cloud.error_share(size), held


def _values(cloud: Cloud, endpoint: Any, deployment: str | None, metric: Metric, at: float) -> Series:
    """By the metric's dimensions, of one minute."""
    if isinstance(endpoint, compute.Machine):
        told = {"Percentage CPU": 100 * endpoint.busy, "Available Memory Percentage": 40.0}
        return {(): told[metric.name]} if endpoint.power == "running" else {}
    if isinstance(endpoint, openai.Account):
        told = openai.series_of(cloud, endpoint, metric.name, at)
        return {labels[: len(metric.dimensions)]: value for labels, value in told}
    found: Series = {}
    for name, requests, mean, errors, held in _minute(cloud, endpoint, at):
        if metric.name == "RequestsPerMinute":
            failed = float(round(requests * errors))
            found[name, "200", "2xx", "200"] = requests - failed
            if failed:
                found[name, "500", "5xx", "500"] = failed
        elif metric.name == "RequestLatency":
            found[name,] = mean * 1000
        elif metric.name.startswith("RequestLatency_P"):
            found[name,] = cloud.law.quantile(mean, int(metric.name[-2:]) / 100) * 1000
        elif metric.name == "ConnectionsActive":
            found[()] = 2.0
        elif name == deployment and metric.name == "CpuUtilizationPercentage":
            size, count = _shares(endpoint, at + 30)[name][1:]
            for i in range(count):
                found[f"{size}-{i}",] = min(100.0, 100 * (1 - math.exp(-held / cloud.sizes[size].cores))) * (
                    1 + 0.02 * i
                )
        elif name == deployment and metric.name == "CpuMemoryUtilizationPercentage":
            for i in range(_shares(endpoint, at + 30)[name][2]):
                found[f"{i}",] = 40.0
    if metric.name == "DeploymentCapacity" and deployment is not None:
        for i in range(endpoint.deployments[deployment].serving):
            found[f"{i}", "Succeeded"] = 1.0
    return found


# -- queries -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Query:
    start: float
    end: float
    step: float
    metrics: list[Metric]
    aggregations: list[str]
    clauses: dict[str, str]
    """Lower-case dimension to its value, or ``*``."""
    top: int | None


def _time(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Refusal(400, "BadRequest", f"Invalid time '{text}'.") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _query(call: Call, namespace: str, start: str, end: str) -> Query:
    names = [name for name in call.query.get("metricnames", "").split(",") if name]
    known = {name.lower(): metric for name, metric in METRICS[namespace].items()}
    if not 1 <= len(names) <= 20:
        raise Refusal(400, "BadRequest", f"Requested metrics count: {len(names)} must be between 1 and 20.")
    for name in names:
        if name.lower() not in known:
            valid = ",".join(METRICS[namespace])
            raise Refusal(400, "BadRequest", f"Failed to find metric configuration for provider: {ML}, resource Type: {namespace}, "
                          f"metric: {name}, Valid metrics: {valid}")  # fmt: skip
    metrics = [known[name.lower()] for name in names]
    aggregations = [a.strip().capitalize() for a in call.query.get("aggregation", "average").split(",")]
    interval = call.query.get("interval", "PT1M")
    steps = {"PT1M": 60.0, "PT5M": 300.0, "PT1H": 3600.0}
    if interval not in steps:
        raise Refusal(400, "BadRequest", f"Invalid time grain '{interval}'.")
    clauses = {}
    for clause in filter(None, re.split(r"\s+and\s+", call.query.get("$filter") or call.query.get("filter") or "")):
        match = re.match(r"(\w+) eq '([^']*)'$", clause.strip())
        if match is None:
            raise Refusal(400, "BadRequest", f"Invalid filter clause '{clause}'.")
        for metric in metrics:
            if match[1].lower() not in [d.lower() for d in metric.dimensions]:
                raise Refusal(
                    400,
                    "BadRequest",
                    f"Metric: {metric.name} does not support requested dimension combination: {match[1]}",
                )
        clauses[match[1].lower()] = match[2]
    top = call.query.get("top")
    if top is not None and not clauses:
        raise Refusal(400, "BadRequest", "top is valid only if a filter is specified.")
    begin, stop = _time(start), _time(end)
    if stop <= begin:
        raise Refusal(400, "BadRequest", "The end time must be after the start time.")
    limit = int(top) if top else 10 if clauses else None
    return Query(begin // 60 * 60, stop, steps[interval], metrics, aggregations, clauses, limit)


def _answer(cloud: Cloud, uri: str, query: Query) -> list[dict[str, Any]]:
    _, endpoint, deployment, _ = _resource(cloud, uri)
    out = []
    for metric in query.metrics:
        times = list(_grid(cloud, query))
        series: dict[tuple[str, ...], dict[float, dict[str, Any]]] = {}
        for at, fresh in times:
            values = (
                _values(cloud, endpoint, deployment, metric, at) if fresh and metric.name not in cloud.silent else {}
            )
            for labels, each in _grouped(metric, values, query.clauses).items():
                series.setdefault(labels, {})[at] = _point(at, metric, query.aggregations, each)
        if not query.clauses:
            series.setdefault((), {})
        shown = sorted(series.items())[: query.top]
        names = [d.lower() for d in metric.dimensions if d.lower() in query.clauses]
        out.append(
            {
                "id": f"{uri}/providers/Microsoft.Insights/metrics/{metric.name}",
                "type": "Microsoft.Insights/metrics",
                "name": {"value": metric.name, "localizedValue": metric.name},
                "displayDescription": metric.name,
                "unit": metric.unit,
                "errorCode": "Success",
                "timeseries": [
                    {
                        "metadatavalues": [
                            {"name": {"value": n, "localizedValue": n}, "value": v}
                            for n, v in zip(names, labels, strict=True)
                        ],
                        "data": [points.get(at, {"timeStamp": _iso(at)}) for at, _ in times],
                    }
                    for labels, points in shown
                ],
            }
        )
    return out


def _grid(cloud: Cloud, query: Query) -> Iterator[tuple[float, bool]]:
    """Each interval's start, and whether its data are there already."""
    at = query.start
    while at < query.end:
        yield at, at + query.step + cloud.lag_s <= cloud.clock()
        at += query.step


def _grouped(metric: Metric, values: Series, clauses: dict[str, str]) -> dict[tuple[str, ...], list[float]]:
    """Values by the dimensions that the filter names; those that it does not name are taken together."""
    found: dict[tuple[str, ...], list[float]] = {}
    for labels, value in values.items():
        named = dict(zip((d.lower() for d in metric.dimensions), labels, strict=True)) if labels else {}
        if value is not None and all(w in ("*", named.get(d)) for d, w in clauses.items()):
            found.setdefault(tuple(named[d.lower()] for d in metric.dimensions if d.lower() in clauses), []).append(
                value
            )
    return found


def _point(at: float, metric: Metric, aggregations: list[str], values: list[float]) -> dict[str, Any]:
    point: dict[str, Any] = {"timeStamp": _iso(at)}
    how = {"Average": sum(values) / len(values), "Maximum": max(values), "Minimum": min(values), "Total": sum(values)}
    for name in aggregations:
        if name in metric.aggregations:
            point[name.lower()] = how[name]
    return point


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def metrics(call: Call) -> Reply:
    namespace, _, _, region = _resource(call.cloud, call.names["resource"])
    start, _, end = call.query.get("timespan", "").partition("/")
    query = _query(call, namespace, start, end)
    return Reply(
        200,
        {
            "cost": 59,
            "timespan": call.query["timespan"],
            "interval": call.query.get("interval", "PT1M"),
            "namespace": namespace,
            "resourceregion": region,
            "value": _answer(call.cloud, f"/{call.names['resource'].lstrip('/')}", query),
        },
    )


def batch(call: Call) -> Reply:
    body = call.body
    if not isinstance(body, dict) or set(body) != {"resourceids"} or not isinstance(body["resourceids"], list):
        raise Refusal(400, "BadRequest", 'The body must be {"resourceids": [...]}.')
    if not 1 <= len(body["resourceids"]) <= 50:
        raise Refusal(400, "BadRequest", "The number of resource ids must be between 1 and 50.")
    namespace = call.query.get("metricnamespace", "").lower()
    if namespace not in METRICS:
        raise Refusal(400, "BadRequest", f"metricnamespace '{namespace}' is not known.")
    query = _query(call, namespace, call.query.get("starttime", ""), call.query.get("endtime", ""))
    values = []
    for uri in body["resourceids"]:
        kind, _, _, region = _resource(call.cloud, uri)
        if kind != namespace:
            raise Refusal(400, "BadRequest", f"{uri} is not of the namespace {namespace}.")
        values.append(
            {
                "starttime": call.query["starttime"],
                "endtime": call.query["endtime"],
                "interval": call.query.get("interval", "PT1M"),
                "namespace": namespace,
                "resourceregion": region,
                "resourceid": uri,
                "value": _answer(call.cloud, uri, query),
            }
        )
    return Reply(200, {"values": values})


def definitions(call: Call) -> Reply:
    uri = f"/{call.names['resource'].lstrip('/')}"
    namespace = _resource(call.cloud, uri)[0]
    found = [
        {
            "id": f"{uri}/providers/microsoft.insights/metricdefinitions/{m.name}",
            "resourceId": uri,
            "namespace": namespace,
            "name": {"value": m.name, "localizedValue": m.name},
            "unit": m.unit,
            "primaryAggregationType": m.aggregations[0],
            "supportedAggregationTypes": list(m.aggregations),
            "metricAvailabilities": [{"timeGrain": "PT1M", "retention": "P93D"}],
            "dimensions": [{"value": d, "localizedValue": d} for d in m.dimensions],
        }
        for m in METRICS[namespace].values()
    ]
    return Reply(200, {"value": found})


# -- autoscale settings ------------------------------------------------------------------------------------------------


def _setting(call: Call, row: dict[str, Any]) -> dict[str, Any]:
    at = f"/subscriptions/{call.cloud.subscription}/resourceGroups/{row['group']}/providers/microsoft.insights/autoscalesettings/{row['name']}"
    rest = {k: v for k, v in row.items() if k != "group"}
    return {**rest, "id": at, "type": "Microsoft.Insights/autoscaleSettings"}


def list_settings(call: Call) -> Reply:
    group = call.names.get("group")
    rows = [r for r in call.cloud.autoscale.values() if group is None or r["group"].lower() == group.lower()]
    return paged(call, [_setting(call, r) for r in rows], call.cloud.page)


def _named(call: Call) -> str:
    return f"{call.names['group']}/{call.names['name']}".lower()


def get_setting(call: Call) -> Reply:
    row = call.cloud.autoscale.get(_named(call))
    if row is None:
        raise Refusal(404, "ResourceNotFound", f"The Resource '{call.path}' was not found.")
    return Reply(200, _setting(call, row))


def put_setting(call: Call) -> Reply:
    body = call.body
    known = {"id", "name", "type", "location", "tags", "properties", "systemData"}
    if not isinstance(body, dict) or set(body) - known or not body.get("location"):
        raise Refusal(
            400, "InvalidRequestContent", "The autoscale setting needs location and properties, and nothing else."
        )
    properties = body.get("properties") or {}
    profiles = properties.get("profiles")
    if not isinstance(profiles, list) or not 1 <= len(profiles) <= 20:
        raise Refusal(400, "InvalidProfiles", "An autoscale setting has 1 to 20 profiles.")
    for profile in profiles:
        capacity = profile.get("capacity", {})
        if not all(
            isinstance(capacity.get(k), str) and capacity[k].isdigit() for k in ("minimum", "maximum", "default")
        ):
            raise Refusal(400, "InvalidCapacity", "capacity takes minimum, maximum and default, as strings.")
        least, most, usual = (int(capacity[k]) for k in ("minimum", "maximum", "default"))
        if not 1 <= least <= usual <= most:
            raise Refusal(
                400, "InvalidCapacity", f"minimum {least}, default {usual} and maximum {most} are out of order."
            )
        if not isinstance(profile.get("rules"), list):
            raise Refusal(400, "InvalidRules", "rules is required.")
    fresh = _named(call) not in call.cloud.autoscale
    row = {k: body[k] for k in ("location", "tags", "properties") if k in body}
    call.cloud.autoscale[_named(call)] = {"name": call.names["name"], "group": call.names["group"], **row}
    return Reply(201 if fresh else 200, _setting(call, call.cloud.autoscale[_named(call)]))


def delete_setting(call: Call) -> Reply:
    return Reply(200 if call.cloud.autoscale.pop(_named(call), None) else 204)


_A = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Insights/autoscalesettings"
_READ, _WRITE = "Microsoft.Insights/AutoscaleSettings/Read", "Microsoft.Insights/AutoscaleSettings/Write"

ROUTES: list[Route] = [
    route("GET", "/{+resource}/providers/Microsoft.Insights/metrics", "2018-01-01 2024-02-01", "Microsoft.Insights/Metrics/Read", metrics),
    route("GET", "/{+resource}/providers/Microsoft.Insights/metricDefinitions", "2018-01-01 2024-02-01",
          "Microsoft.Insights/MetricDefinitions/Read", definitions),
    route("POST", "/subscriptions/{subscription}/metrics:getBatch", "2024-02-01", "Microsoft.Insights/Metrics/Read", batch,
          audience="https://metrics.monitor.azure.com"),
    route("GET", "/subscriptions/{subscription}/providers/Microsoft.Insights/autoscalesettings", "2022-10-01", _READ, list_settings),
    route("GET", _A, "2022-10-01", _READ, list_settings),
    route("GET", f"{_A}/{{name}}", "2022-10-01", _READ, get_setting),
    route("PUT", f"{_A}/{{name}}", "2022-10-01", _WRITE, put_setting),
    route("DELETE", f"{_A}/{{name}}", "2022-10-01", "Microsoft.Insights/AutoscaleSettings/Delete", delete_setting),
]  # fmt: skip
