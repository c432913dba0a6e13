"""A fleet's telemetry by one query for each metric: intervals of whole minutes, for every endpoint at once.

Owns which query serves whom, and how an answer becomes a Span. A series that is not there is unknown, never 0.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from string import Template
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from collectors.base import FleetMember, FleetQuery, SourceContext
from collectors.clock import Clock
from collectors.prometheus.client import Labels, PrometheusAccount, PrometheusClient, Series
from collectors.prometheus.presets import PRESETS, STEADY, Preset, Query, buckets
from collectors.sketch import Sketch
from collectors.tokengaps import output_of, tokens_per_gap
from collectors.window import CollectError, Gauge, Range, Reading, Span

#: With more values of a label than this, series are chosen by the label being there, and sorted out here.
_MOST_VALUES = 2_000
#: Intervals that are asked for at once after a pause; older ones stay gaps.
_MOST_INTERVALS = 30
_OVER: Mapping[str, str] = {"mean": "avg_over_time", "maximum": "max_over_time"}
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_LIVENESS = "5m"

PresetName = Literal["vllm", "sglang", "tgi", "llamacpp", "cadvisor", "dcgm", "knative"]


class OwnQuery(BaseModel):
    """One metric by PromQL of one's own."""

    model_config = ConfigDict(extra="forbid")

    promql: str = Field(min_length=1)
    """Evaluated at the end of each interval. ``$w`` is the interval (``60s``), ``$sel`` this endpoint's matchers. One series; of a
    histogram one for each ``le``."""
    kind: Literal["counter", "gauge", "histogram", "quantile"] = "counter"
    """counter: the increase within the interval. Default counter."""
    q: float | None = Field(default=None, gt=0, lt=1)
    """Of a quantile: its share, such as 0.95."""
    total: str | None = None
    """Of a histogram: PromQL of the increase of its sum. Without it, the mean is taken from the buckets."""


class Options(BaseModel):
    """Settings of the ``prometheus`` source. Endpoints with the same url and credentials are read together."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(default="http://127.0.0.1:9090", pattern=r"^https?://[^/]")
    """Base address of the store: Prometheus, VictoriaMetrics, Thanos, Mimir (with its path). Default: a Prometheus on this host."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Which series are this endpoint's: label to value, such as ``{job: vllm, namespace: prod}``. Default: ``job`` is the endpoint's name."""
    preset: tuple[PresetName, ...] = ("vllm",)
    """Whose names the series have. Several add to each other, such as ``[vllm, dcgm]``; the first one says who is alive. Empty: only
    ``queries``. Default: vLLM's."""
    queries: dict[str, OwnQuery] = Field(default_factory=dict)
    """PromQL of one's own, by metric; in place of the preset's."""
    step_s: float = Field(default=60.0, ge=10, le=3600)
    """Length of an interval in seconds. Default 60. At least twice the store's scrape interval, or some intervals have no sample."""
    delay_s: float = Field(default=30.0, ge=0, le=3600)
    """How long an interval's samples take to be in the store. Default 30 s: VictoriaMetrics hides what is newer."""
    timeout_s: float = Field(default=30.0, gt=0, le=300)
    """Seconds for one query. Default 30: a fleet's histograms take some."""
    token: SecretStr | None = None
    """Sent as a bearer token. Default none."""
    username: str | None = None
    """Of basic authentication. Default none."""
    password: SecretStr | None = None
    """Of basic authentication. Default none."""
    tenant: str | None = None
    """Sent as X-Scope-OrgID. Default none."""

    @field_validator("labels")
    @classmethod
    def _names(cls, labels: dict[str, str]) -> dict[str, str]:
        for name in labels:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a label")
        return labels

    @field_validator("url")
    @classmethod
    def _base(cls, url: str) -> str:
        return url.rstrip("/")


@dataclass(frozen=True, slots=True)
class _Member:
    """One endpoint: who it is by labels."""

    name: str
    labels: tuple[tuple[str, str], ...]
    options: Options

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(value for _, value in self.labels)


@dataclass(slots=True)
class _StoreAnswer:
    """What the store said of one endpoint and interval."""

    counts: dict[str, float] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)
    sketches: dict[str, Sketch] = field(default_factory=dict)
    quantiles: dict[str, dict[float, Range]] = field(default_factory=dict)
    alive: float | None = None
    """Targets with samples in the interval; None: no series at all."""
    lately: float | None = None
    """Targets with samples lately."""
    steady: bool = False
    """Whether its targets are the same at both ends of the interval, and none of them restarted."""

    def time_tokens(self) -> None:
        """Gaps between events become gaps between tokens."""
        output = output_of(self.counts, {name: (sketch.count, sketch.total) for name, sketch in self.sketches.items()})
        parts = 1.0 if output is None else tokens_per_gap(output, output)
        if parts != 1:
            self.sketches["itl_s"] = self.sketches["itl_s"].split(parts)

    def span(self, name: str, end: float, step_s: float) -> Span:
        share = min(1.0, (self.alive or 0.0) / self.lately) if self.lately else 1.0
        gauges = {m: Gauge(mean, max(mean, self.maxima.get(m, mean)), mean) for m, mean in self.means.items()}
        return Span(name, end - step_s, end, self.counts, self.sketches, gauges, self.quantiles, share=share)


#: By endpoint and end of the interval.
_Answers = dict[tuple[str, float], _StoreAnswer]


class PrometheusFleet:
    """All endpoints of one store that are read by one account, at one step."""

    source: ClassVar[str] = "prometheus"

    def __init__(self, client: PrometheusClient, clock: Clock, step_s: float, delay_s: float, timeout_s: float) -> None:
        self._client = client
        self._clock = clock
        self._step_s = step_s
        self._delay_s = delay_s
        self.interval_s: float | None = step_s
        self.deadline_s: float | None = 10 * timeout_s
        self.settles_s = delay_s + step_s / 2  # an interval is asked for when the cycle after its end comes
        self._window = f"{step_s:g}s"

    async def read_all(
        self, wanted: Sequence[FleetQuery], since: float | None
    ) -> AsyncIterator[tuple[str, Reading | Span | CollectError]]:
        """Every interval that ended and settled since then; the newest one in any case.

        Raises CollectError where the store cannot be read at all; what ails one group of endpoints or one query is yielded for each.
        """
        ends = self._ends(since)
        members = [_member(w) for w in wanted]
        groups: dict[tuple[Any, ...], list[_Member]] = defaultdict(list)
        for member in members:
            groups[tuple(name for name, _ in member.labels), member.options.preset].append(member)
        answers: _Answers = {}
        done = await asyncio.gather(*(self._group(g, ends, answers) for g in groups.values()), return_exceptions=True)
        errors = dict(await self._own(members, ends, answers))
        for group, error in zip(groups.values(), done, strict=True):
            if isinstance(error, CollectError):
                if len(groups) == 1:
                    raise error
                errors |= {member.name: error for member in group}
            elif error is not None:
                raise error
        for member in members:
            for end in ends:
                told = answers.get((member.name, end))
                if told is not None and told.alive:
                    yield member.name, told.span(member.name, end, self._step_s)
            if member.name in errors:
                yield member.name, errors[member.name]

    def _ends(self, since: float | None) -> list[float]:
        """When the intervals end that are to be asked for, oldest first."""
        last = (self._clock.now() - self._delay_s) // self._step_s * self._step_s
        if since is None:
            return [last]
        first = min(last, (since - self._delay_s) // self._step_s * self._step_s + self._step_s)
        number = min(_MOST_INTERVALS, round((last - first) / self._step_s) + 1)
        return [last - self._step_s * i for i in reversed(range(number))]

    async def _group(self, group: Sequence[_Member], ends: Sequence[float], answers: _Answers) -> None:
        """Endpoints that are told apart by the same labels and have the same presets."""
        presets = [PRESETS[name] for name in group[0].options.preset]
        if not presets:
            return
        queries = [(query, preset) for preset in presets for query in preset.queries]
        await self._alive(group, presets[0], ends, answers)
        there = [m for m in group if any((answers.get((m.name, end)) or _StoreAnswer()).alive for end in ends)]
        if there:
            first = [q for q, _ in queries if not q.adds]
            await asyncio.gather(*(self._metric(there, query, ends, answers) for query in first))
            for query in (q for q, _ in queries if q.adds):
                await self._metric(there, query, ends, answers)
            for member in there:
                for end in ends:
                    if (member.name, end) in answers:
                        answers[member.name, end].time_tokens()

    async def _alive(self, group: Sequence[_Member], preset: Preset, ends: Sequence[float], answers: _Answers) -> None:
        now = f"count by ($by) (count_over_time({preset.alive}{{$sel}}[$w]))"
        lately = f"count by ($by) (count_over_time({preset.alive}{{$sel}}[{_LIVENESS}]))"
        for template, name in ((now, "alive"), (lately, "lately")):
            for member, end, value in _assigned(group, await self._ask(group, template, ends), frozenset()):
                setattr(answers.setdefault((member, end), _StoreAnswer()), name, value)
        for member, end, _ in _assigned(group, await self._ask(group, STEADY, ends), frozenset()):
            answers.setdefault((member, end), _StoreAnswer()).steady = True

    async def _metric(self, group: Sequence[_Member], query: Query, ends: Sequence[float], answers: _Answers) -> None:
        """Ask for one metric; the next spelling only for those of whom the one before says nothing."""
        waiting = [m for m in group if query.metric not in m.options.queries]
        for template in query.templates:
            if not waiting:
                return
            if query.kind == "histogram":
                told = await self._histogram(waiting, query, template, ends, answers)
            elif query.kind == "gauge":
                told = await self._gauge(waiting, query, template, ends, answers)
            else:
                told = await self._count(waiting, query, template, ends, answers)
            waiting = [m for m in waiting if m.name not in told]

    async def _count(
        self, group: Sequence[_Member], query: Query, template: str, ends: Sequence[float], answers: _Answers
    ) -> set[str]:
        rows = list(_assigned(group, await self._ask(group, template, ends, query.lacks), query.lacks))
        found = {(name, end): value for name, end, value in rows if value >= 0}
        for (name, end), value in found.items():
            counts = answers.setdefault((name, end), _StoreAnswer()).counts
            if not query.adds:
                counts[query.metric] = value
            elif query.metric in counts:
                counts[query.metric] += value
        if query.adds == "must":
            for member in group:
                for end in ends:
                    if (member.name, end) not in found:
                        answers.setdefault((member.name, end), _StoreAnswer()).counts.pop(query.metric, None)
        return {name for name, _ in found}

    async def _gauge(
        self, group: Sequence[_Member], query: Query, template: str, ends: Sequence[float], answers: _Answers
    ) -> set[str]:
        names: set[str] = set()
        for how, function in _OVER.items():
            if how == "maximum" and "$over" not in template:
                continue
            series = await self._ask(group, template.replace("$over", function), ends)
            for name, end, value in _assigned(group, series, frozenset()):
                told = answers.setdefault((name, end), _StoreAnswer())
                (told.means if how == "mean" else told.maxima)[query.metric] = max(0.0, value)
                names.add(name)
        return names

    async def _histogram(
        self, group: Sequence[_Member], query: Query, name: str, ends: Sequence[float], answers: _Answers
    ) -> set[str]:
        steady = [m for m in group if all((answers.get((m.name, end)) or _StoreAnswer()).steady for end in ends)]
        moved = [m for m in group if m not in steady]
        names: set[str] = set()
        for several, templates in ((steady, buckets(name, steady=True)), (moved, buckets(name, steady=False))):
            if several:
                names |= await self._sketches(several, query.metric, templates, ends, answers)
        return names

    async def _sketches(
        self,
        group: Sequence[_Member],
        metric: str,
        templates: tuple[str, str],
        ends: Sequence[float],
        answers: _Answers,
    ) -> set[str]:
        edges = await self._ask(group, templates[0], ends)
        if not edges:
            return set()
        sums = await self._ask(group, templates[1], ends)
        totals = {(member, end): value for member, end, value in _assigned(group, sums, frozenset())}
        reached: dict[tuple[str, float], dict[float, float]] = defaultdict(dict)
        for member, labels, series in _owned(group, edges, frozenset()):
            edge = _edge(labels)
            for end, value in series.values.items():
                reached[member, end][edge] = value
        for key, counts in reached.items():
            # A count that fell is of a series that went away, so nobody knows what happened.
            sketch = sketch_of(counts, totals.get(key)) if min(counts.values()) >= 0 else None
            if sketch is not None:
                answers.setdefault(key, _StoreAnswer()).sketches[metric] = sketch
        return {member for member, _ in reached}

    async def _ask(
        self, group: Sequence[_Member], template: str, ends: Sequence[float], lacks: frozenset[str] = frozenset()
    ) -> list[Series]:
        names = [name for name, _ in group[0].labels if name not in lacks]
        if not names:
            return []  # nothing would tell the endpoints apart
        preset = PRESETS[group[0].options.preset[0]]
        query = Template(template).substitute(
            by=", ".join(names), sel=selector(group, lacks), alive=preset.alive, watch=preset.watch, w=self._window
        )
        return await self._client.range(query, ends[0], ends[-1], self._step_s)

    # -- PromQL of one's own -------------------------------------------------------------------------------------------

    async def _own(
        self, members: Sequence[_Member], ends: Sequence[float], answers: _Answers
    ) -> list[tuple[str, CollectError]]:
        """Each query for itself: one that the store does not take costs its endpoint that metric, and says so."""
        asked = [(member, metric, own) for member in members for metric, own in member.options.queries.items()]
        done = await asyncio.gather(
            *(self._own_metric(member, metric, own, ends, answers) for member, metric, own in asked),
            return_exceptions=True,
        )
        errors: list[tuple[str, CollectError]] = []
        for (member, metric, _), error in zip(asked, done, strict=True):
            if isinstance(error, CollectError):
                errors.append((member.name, CollectError(error.kind, f"queries.{metric}: {error.detail}")))
            elif error is not None:
                raise error
        return errors

    async def _own_metric(
        self, member: _Member, metric: str, own: OwnQuery, ends: Sequence[float], answers: _Answers
    ) -> None:
        series = await self._own_series(member, own.promql, ends)
        if own.kind == "histogram":
            totals = await self._own_series(member, own.total, ends) if own.total is not None else []
            for end in ends:
                counts = {_edge(s.labels): s.values[end] for s in series if end in s.values}
                sketch = sketch_of(counts, _only(totals, end)) if counts else None
                if sketch is not None:
                    answers.setdefault((member.name, end), _StoreAnswer(alive=1.0)).sketches[metric] = sketch
            return
        if len(series) > 1:
            raise CollectError("bad_query", f"it gives {len(series)} series; one is wanted: sum or average them")
        for end in ends:
            value = _only(series, end)
            if value is None:
                continue
            told = answers.setdefault((member.name, end), _StoreAnswer(alive=1.0))
            if own.kind == "quantile":
                told.quantiles.setdefault(metric, {})[own.q or 0.5] = Range(value, value)
            elif own.kind == "gauge":
                told.means[metric] = value
            else:
                told.counts[metric] = value

    async def _own_series(self, member: _Member, promql: str, ends: Sequence[float]) -> list[Series]:
        query = promql.replace("$sel", selector([member], frozenset())).replace("$w", self._window)
        return await self._client.range(query, ends[0], ends[-1], self._step_s)


def make(context: SourceContext) -> FleetMember:
    """The entry point. Raises pydantic's ValidationError on options that are not those of ``Options``."""
    options = Options.model_validate(dict(context.options))
    account = account_of(options)
    key = ("prometheus", account, options.step_s, options.delay_s, options.timeout_s)

    def made() -> PrometheusFleet:
        client = PrometheusClient(account, context.http.call, options.timeout_s)
        return PrometheusFleet(client, context.clock, options.step_s, options.delay_s, options.timeout_s)

    labels = options.labels or {"job": context.endpoint}
    wanted = FleetQuery(context.endpoint, context.model, {"options": options.model_copy(update={"labels": labels})})
    return FleetMember(context.sessions.get(key, made), wanted)


def account_of(options: Options) -> PrometheusAccount:
    token, password = options.token, options.password
    return PrometheusAccount(
        options.url,
        token.get_secret_value() if token else None,
        options.username,
        password.get_secret_value() if password else None,
        options.tenant,
    )


def selector(group: Sequence[_Member], lacks: frozenset[str]) -> str:
    """Matchers that choose the series of all of them, and maybe some more: the label sets are compared afterwards."""
    values: dict[str, set[str]] = defaultdict(set)
    for member in group:
        for name, value in member.labels:
            if name not in lacks:
                values[name].add(value)
    return ",".join(_matcher(name, wanted) for name, wanted in values.items())


def _matcher(name: str, wanted: set[str]) -> str:
    if len(wanted) == 1:
        return f"{name}={_quoted(next(iter(wanted)))}"
    if len(wanted) > _MOST_VALUES:
        return f'{name}!=""'
    return f"{name}=~{_quoted('|'.join(re.escape(value) for value in sorted(wanted)))}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def sketch_of(counts: Mapping[float, float], total: float | None) -> Sketch | None:
    """From the increases of buckets by their upper bound, which are cumulative. None where nothing is known, or nothing happened.

    ``total``: the increase of the sum; None: the buckets' middles stand in for it.
    """
    edges = sorted(counts)
    if len(edges) < 2 or edges[-1] != math.inf or edges[0] < 0:
        return None
    increments, before = [], 0.0
    for edge in edges:  # one's own PromQL may extrapolate each bucket alone, so that one lags behind the one below it
        increments.append(max(0.0, counts[edge] - before))
        before = max(before, counts[edge])
    if not any(increments):
        return None
    if total is None:
        lows = [0.0, *edges[:-1]]
        middles = [low if high == math.inf else (low + high) / 2 for low, high in zip(lows, edges, strict=True)]
        total = sum(n * middle for n, middle in zip(increments, middles, strict=True))
    return Sketch.from_histogram(edges[:-1], increments, max(0.0, total))


def _member(wanted: FleetQuery) -> _Member:
    options: Options = wanted.options["options"]
    return _Member(wanted.endpoint, tuple(sorted(options.labels.items())), options)


def _owned(
    group: Sequence[_Member], series: Iterable[Series], lacks: frozenset[str]
) -> Iterable[tuple[str, Labels, Series]]:
    """Whose each series is. Where labels are lacking, only what can be one endpoint's alone is anybody's."""
    names = [name for name, _ in group[0].labels if name not in lacks]
    owners: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for member in group:
        labels = dict(member.labels)
        owners[tuple(labels[name] for name in names)].append(member.name)
    for one in series:
        theirs = owners.get(tuple(one.labels.get(name, "") for name in names), [])
        if lacks and len(theirs) > 1:
            continue
        for owner in theirs:
            yield owner, one.labels, one


def _assigned(
    group: Sequence[_Member], series: Iterable[Series], lacks: frozenset[str]
) -> Iterable[tuple[str, float, float]]:
    """Endpoint, end of the interval, value."""
    for owner, _, one in _owned(group, series, lacks):
        for end, value in one.values.items():
            yield owner, end, value


def _edge(labels: Labels) -> float:
    try:
        edge = float(labels.get("le", ""))
    except ValueError as error:
        raise CollectError("invalid_value", f"a bucket's le is {labels.get('le')!r}, which is no number") from error
    if math.isnan(edge):
        raise CollectError("invalid_value", "a bucket's le is no number")
    return edge


def _only(series: Sequence[Series], end: float) -> float | None:
    return next((one.values[end] for one in series if end in one.values), None)
