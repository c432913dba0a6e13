"""The source ``cloudwatch``: SageMaker variants, Bedrock models, EC2 instances and groups, minute by minute, minutes late.

All endpoints of an account and region are read together, up to 500 series with each question. A percentile is a number, and of several
variants only the least and the greatest bound it. What CloudWatch does not tell is unknown: it tells nothing of requests where none came.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, Self

from pydantic import Field, ValidationError, model_validator

from collectors.aws.client import AwsAccount, AwsClient, shared
from collectors.aws.errors import AwsError
from collectors.base import FleetMember, FleetQuery, SourceContext
from collectors.discovery import Support
from collectors.options import problems_of
from collectors.window import CollectError, Gauge, Range, Reading, Span

_MINUTE = 60.0
#: So far back is asked for what could not be read before.
_BACK_S = 3600.0
#: Series that one question may name.
_MOST = 500
QUANTILES = (0.5, 0.9, 0.95, 0.99)
_PERCENTILES = {q: f"p{q * 100:g}" for q in QUANTILES}
_SAGEMAKER, _MACHINES, _BEDROCK, _EC2 = "AWS/SageMaker", "/aws/sagemaker/Endpoints", "AWS/Bedrock", "AWS/EC2"


class Options(AwsAccount):
    """Settings of the source ``cloudwatch``: one of ``endpoint``, ``bedrock_model``, ``instance`` and ``group``."""

    endpoint: str | None = None
    """A SageMaker endpoint. Default: none."""
    variants: tuple[str, ...] = Field(default=("AllTraffic",), min_length=1)
    """Its production variants, which are added up. Default: the console's own name of the only one."""
    bedrock_model: str | None = None
    """A model's id, or the ARN of an inference profile or of provisioned throughput, as Bedrock's dimension ModelId has it. Default: none."""
    instance: str | None = Field(default=None, pattern=r"^i-[0-9a-f]+$")
    """An EC2 instance. Default: none."""
    group: str | None = None
    """An Auto Scaling group. Default: none."""
    cpus: int | None = Field(default=None, ge=1)
    """vCPUs of one instance of the endpoint: SageMaker tells 100 % for each of them. Default: unknown, and no use of the CPU is told."""
    gpus: int | None = Field(default=None, ge=1)
    """GPUs of one instance of the endpoint, likewise. Default: unknown, and no use of the GPU is told."""
    period_s: int | None = Field(default=None, ge=60, multiple_of=60)
    """Seconds of one interval. Default: 60, and 300 of EC2, which tells no finer without detailed monitoring."""
    lag_s: float = Field(default=180.0, ge=0, le=1800)
    """An interval is taken as it stands so long after its end: CloudWatch is one to three minutes late."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(v is not None for v in (self.endpoint, self.bedrock_model, self.instance, self.group)) > 1:
            raise ValueError("name one of endpoint, bedrock_model, instance and group, and not several")
        return self

    @property
    def step_s(self) -> int:
        return self.period_s or (300 if self.instance or self.group else 60)


SUPPORT = Support(
    title="Amazon CloudWatch, of SageMaker endpoints, Bedrock models and EC2",
    sees=(
        "requests, errors, throttling",
        "end-to-end P50, P90, P95, P99 as numbers, minutes late; TTFT of streams",
        "tokens of Bedrock's models",
        "CPU, memory, GPU",
    ),
    changes=(),
    verified="official SDK",
    how="real botocore against moto's server, which keeps the numbers; names and units by Amazon's documentation",
)


@dataclass(frozen=True, slots=True)
class _Series:
    """One series and one statistic of it."""

    namespace: str
    metric: str
    stat: str
    dimensions: tuple[tuple[str, str], ...]


Values = Mapping[_Series, Mapping[float, float]]
"""By series: the value by the interval's start."""


class CloudWatch:
    """All endpoints of one account and region that are read alike. See ``collectors.base.FleetCollector``."""

    source: ClassVar[str] = "cloudwatch"
    deadline_s: float | None = 120.0

    def __init__(self, client: AwsClient, step_s: int, lag_s: float) -> None:
        self._client = client
        self._step_s = step_s
        self._lag_s = lag_s
        self.interval_s: float | None = float(step_s)
        self.settles_s = lag_s + step_s
        self._next: dict[str, float] = {}
        """By endpoint: the first interval that was not read yet."""

    async def read_all(
        self, wanted: Sequence[FleetQuery], since: float | None
    ) -> AsyncIterator[tuple[str, Reading | Span | CollectError]]:
        """The intervals of each that have settled since it was last read; of one that was never read the newest of which anything is told,
        as nothing is told where no request came."""
        step = self._step_s
        end = math.floor((self._client.clock.now() - self._lag_s) / step) * step
        newest = end - step
        back = end - max(_BACK_S, step)
        by_start: dict[float, list[tuple[str, Options]]] = defaultdict(list)
        for one in wanted:
            first = min(newest, max(self._next.get(one.endpoint, back), back))
            by_start[first].append((one.endpoint, one.options["stated"]))
        for start, members in sorted(by_start.items()):
            series = list(dict.fromkeys(s for _, options in members for s in _series(options)))
            try:
                values = await self._ask(series, start, end)
            except AwsError as error:
                for name, _ in members:
                    yield name, error
                continue
            for name, options in members:
                moments = [start + step * number for number in range(round((end - start) / step))]
                spans = [_span(name, options, values, at, float(step)) for at in moments]
                known = [span for span in spans if span is not None]
                for span in known if name in self._next else known[-1:]:
                    yield name, span
                self._next[name] = end

    async def _ask(self, series: Sequence[_Series], start: float, end: float) -> Values:
        found: dict[_Series, dict[float, float]] = {one: {} for one in series}
        for first in range(0, len(series), _MOST):
            batch = series[first : first + _MOST]
            queries = [_query(f"q{number}", one, self._step_s) for number, one in enumerate(batch)]
            rows = await self._client.items(
                "cloudwatch",
                "GetMetricData",
                "MetricDataResults",
                MetricDataQueries=queries,
                StartTime=datetime.fromtimestamp(start, UTC),
                EndTime=datetime.fromtimestamp(end, UTC),
                ScanBy="TimestampAscending",
            )
            for row in rows:
                if row.get("StatusCode") in ("InternalError", "Forbidden"):
                    text = f"cloudwatch:GetMetricData: {row.get('Label')}: {row.get('StatusCode')}"
                    raise AwsError("denied" if row["StatusCode"] == "Forbidden" else "unreachable", text)
                kept = found[batch[int(str(row["Id"])[1:])]]
                for at, value in zip(row.get("Timestamps") or (), row.get("Values") or (), strict=False):
                    if value >= 0:
                        kept[at.timestamp()] = float(value)
        return found


def _query(id_: str, series: _Series, step_s: int) -> dict[str, Any]:
    metric = {
        "Namespace": series.namespace,
        "MetricName": series.metric,
        "Dimensions": [{"Name": name, "Value": value} for name, value in series.dimensions],
    }
    return {"Id": id_, "MetricStat": {"Metric": metric, "Period": step_s, "Stat": series.stat}}


# -- what is asked -----------------------------------------------------------------------------------------------------

_COUNTS = ("Invocations", "Invocation4XXErrors", "Invocation5XXErrors")
#: Machines' metrics to our names, and to the option that says how often 100 % one instance has.
_USES = {
    "CPUUtilization": ("cpu_usage", "cpus"),
    "MemoryUtilization": ("memory_usage", None),
    "GPUUtilization": ("gpu_usage", "gpus"),
    "GPUMemoryUtilization": ("gpu_memory_usage", "gpus"),
}
_BEDROCK_COUNTS = (
    "Invocations", "InvocationClientErrors", "InvocationServerErrors", "InvocationThrottles",
    "InputTokenCount", "OutputTokenCount", "CacheReadInputTokenCount", "CacheWriteInputTokenCount",
)  # fmt: skip
#: Bedrock's times are in milliseconds, SageMaker's in microseconds.
_BEDROCK_TIMES = {"e2e_s": "InvocationLatency", "ttft_s": "TimeToFirstToken"}


def _series(options: Options) -> list[_Series]:
    """All that is asked of one endpoint."""
    if options.endpoint is not None:
        return [s for variant in options.variants for s in _of_variant(options.endpoint, variant)]
    if options.bedrock_model is not None:
        at = (("ModelId", options.bedrock_model),)
        found = [_Series(_BEDROCK, name, "Sum", at) for name in _BEDROCK_COUNTS]
        return found + [
            _Series(_BEDROCK, name, stat, at) for name in _BEDROCK_TIMES.values() for stat in _PERCENTILES.values()
        ]
    at = (("InstanceId", options.instance),) if options.instance else (("AutoScalingGroupName", str(options.group)),)
    return [_Series(_EC2, "CPUUtilization", stat, at) for stat in ("Average", "Maximum")]


def _of_variant(endpoint: str, variant: str) -> list[_Series]:
    at = (("EndpointName", endpoint), ("VariantName", variant))
    found = [_Series(_SAGEMAKER, name, "Sum", at) for name in _COUNTS]
    found += [_Series(_SAGEMAKER, "ModelLatency", stat, at) for stat in ("Sum", *_PERCENTILES.values())]
    found += [_Series(_SAGEMAKER, "OverheadLatency", stat, at) for stat in ("Sum", "Maximum")]
    found += [_Series(_SAGEMAKER, "FirstChunkLatency", stat, at) for stat in _PERCENTILES.values()]
    return found + [_Series(_MACHINES, name, stat, at) for name in _USES for stat in ("Average", "Maximum")]


# -- what comes of it --------------------------------------------------------------------------------------------------


def _span(endpoint: str, options: Options, values: Values, at: float, step_s: float) -> Span | None:
    """One interval; None where nothing is known of it."""

    def told(series: _Series) -> float | None:
        return values.get(series, {}).get(at)

    if options.endpoint is not None:
        parts = [_variant(options, variant, told) for variant in options.variants]
        counts, gauges, quantiles = _merged([p for p in parts if p.known])
    elif options.bedrock_model is not None:
        counts, gauges, quantiles = _bedrock(options.bedrock_model, told)
    else:
        average, highest = (told(series) for series in _series(options))
        counts, gauges, quantiles = {}, {}, {}
        if average is not None:
            gauges["cpu_usage"] = _gauge(average / 100, None if highest is None else highest / 100)
    if not (counts or gauges or quantiles):
        return None
    return Span(endpoint, at, at + step_s, counts=counts, gauges=gauges, quantiles=quantiles)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one variant adds."""

    counts: Mapping[str, float]
    gauges: Mapping[str, Gauge]
    quantiles: Mapping[str, Mapping[float, Range]]

    @property
    def known(self) -> bool:
        return bool(self.counts or self.gauges or self.quantiles)


def _variant(options: Options, variant: str, told: Any) -> _Part:
    """Microseconds become seconds. A request takes the model's time and SageMaker's own on top: its quantile is at least the model's, and
    at most that with the interval's greatest overhead."""
    at = (("EndpointName", str(options.endpoint)), ("VariantName", variant))

    def one(metric: str, stat: str, namespace: str = _SAGEMAKER) -> float | None:
        found: float | None = told(_Series(namespace, metric, stat, at))
        return found

    names = dict(zip(_COUNTS, ("requests", "rejected", "errors"), strict=True))
    counts = {ours: n for theirs, ours in names.items() if (n := one(theirs, "Sum")) is not None}
    times = [one(name, "Sum") for name in ("ModelLatency", "OverheadLatency")]
    if all(t is not None for t in times):
        counts["e2e_total_s"] = sum(t for t in times if t is not None) / 1e6
    overhead = one("OverheadLatency", "Maximum")
    quantiles: dict[str, dict[float, Range]] = {}
    for q, stat in _PERCENTILES.items():
        model, first = one("ModelLatency", stat), one("FirstChunkLatency", stat)
        if model is not None and overhead is not None:
            quantiles.setdefault("e2e_s", {})[q] = Range(model / 1e6, (model + overhead) / 1e6)
        if first is not None:
            quantiles.setdefault("ttft_s", {})[q] = Range(first / 1e6, first / 1e6)
    gauges = {}
    for metric, (name, each) in _USES.items():
        many = 1 if each is None else getattr(options, each)
        average, highest = (one(metric, stat, _MACHINES) for stat in ("Average", "Maximum"))
        if average is not None and many:
            gauges[name] = _gauge(average / 100 / many, None if highest is None else highest / 100 / many)
    return _Part(counts, gauges, quantiles)


def _merged(
    parts: Sequence[_Part],
) -> tuple[dict[str, float], dict[str, Gauge], dict[str, dict[float, Range]]]:
    """Variants together: what one that served does not tell is not known of all."""
    served = [p for p in parts if p.counts.get("requests", 1) > 0 and (p.counts or p.quantiles)]
    names = {n for p in parts for n in p.counts}
    counts = {n: sum(p.counts[n] for p in served) for n in names if served and all(n in p.counts for p in served)}
    quantiles: dict[str, dict[float, Range]] = {}
    for name in {n for p in served for n in p.quantiles}:
        for q in QUANTILES:
            ranges = [p.quantiles.get(name, {}).get(q) for p in served]
            known = [r for r in ranges if r is not None]
            if len(known) == len(ranges):
                quantiles.setdefault(name, {})[q] = Range.merge(known)
    gauges = {}
    for name in {n for p in parts for n in p.gauges}:
        here = [p.gauges[name] for p in parts if name in p.gauges]
        mean = sum(g.mean for g in here) / len(here)
        gauges[name] = Gauge(mean, max(g.maximum for g in here), mean)
    return counts, gauges, quantiles


def _bedrock(model: str, told: Any) -> tuple[dict[str, float], dict[str, Gauge], dict[str, dict[float, Range]]]:
    """Bedrock counts what it served; refusals stand beside it, each with its own name. What had none has no number: a refusal that is not
    told while requests are is none. Tokens from the cache are not among the input's."""
    at = (("ModelId", model),)
    seen = {name: told(_Series(_BEDROCK, name, "Sum", at)) for name in _BEDROCK_COUNTS}
    counts: dict[str, float] = {}
    outcomes = {name: seen[name] for name in _BEDROCK_COUNTS[:4]}
    if any(n is not None for n in outcomes.values()):
        served, refused, failed, throttled = (n or 0.0 for n in outcomes.values())
        counts = {"requests": served + refused + failed + throttled}
        counts |= {"rejected": refused, "errors": failed, "throttled": throttled}
    if (read := seen["InputTokenCount"]) is not None:
        cached = seen["CacheReadInputTokenCount"]
        counts["prompt_tokens"] = read + (cached or 0.0) + (seen["CacheWriteInputTokenCount"] or 0.0)
        if cached is not None:
            counts["cached_prompt_tokens"] = cached
    if (written := seen["OutputTokenCount"]) is not None:
        counts["output_tokens"] = written
    quantiles: dict[str, dict[float, Range]] = {}
    for name, metric in _BEDROCK_TIMES.items():
        for q, stat in _PERCENTILES.items():
            value = told(_Series(_BEDROCK, metric, stat, at))
            if value is not None:
                quantiles.setdefault(name, {})[q] = Range(value / 1e3, value / 1e3)
    return counts, {}, quantiles


def _gauge(mean: float, highest: float | None) -> Gauge:
    return Gauge(mean, max(mean, highest if highest is not None else mean), mean)


def make(context: SourceContext) -> FleetMember:
    """The entry point. Raises CollectError ``settings``, ``credentials``."""
    try:
        options = Options(**context.options)
    except ValidationError as error:
        text = f"endpoint {context.endpoint}, cloudwatch: {problems_of(error, Options)}"
        raise CollectError("settings", text) from error
    if not (options.endpoint or options.bedrock_model or options.instance or options.group):
        text = "name one of endpoint, bedrock_model, instance and group"
        raise CollectError("settings", f"endpoint {context.endpoint}, cloudwatch: {text}")
    client = shared(context.sessions, AwsAccount.of(options), context.http.call, context.clock)
    key = ("cloudwatch", id(client), options.step_s, options.lag_s)
    fleet = context.sessions.get(key, lambda: CloudWatch(client, options.step_s, options.lag_s))
    return FleetMember(fleet, FleetQuery(context.endpoint, context.model, {"stated": options}))
