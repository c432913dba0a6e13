"""vLLM's own ``/metrics``, versions 0.6 to 0.33, old and new spellings.

Owns the names and what they mean in Flyball's words. Adds nothing up over time: that is the window builder's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from collectors.base import Scope, ScrapeTarget, SourceContext
from collectors.discovery import Support
from collectors.exposition import Exposition, Labels, MetricsPage, SeriesList
from collectors.http import Http, check_clock
from collectors.pagesigns import told_apart
from collectors.prefixcache import PrefixCacheContext, PrefixCacheCount, cached_tokens
from collectors.series import added_up, histogram_of, share, summed
from collectors.text import clean
from collectors.window import CollectError, Histogram, Reading

_VERSION_TRIES = 3
_MAX_TARGETS = 4096
_MAX_ENGINES = 256

#: Canonical name to vLLM's, the preferred first: where a version exposes both, both count the same things.
_COUNTERS: Mapping[str, tuple[str, ...]] = {
    "prompt_tokens": ("vllm:prompt_tokens_total",),
    "output_tokens": ("vllm:generation_tokens_total",),
    "preemptions": ("vllm:num_preemptions_total",),
    "drafts": ("vllm:spec_decode_num_drafts_total",),
    "accepted_tokens": ("vllm:spec_decode_num_accepted_tokens_total",),
    # 0.17 and later count cached prompt tokens as such; before, they are what the prefix caches had.
    "cached_prompt_tokens": ("vllm:prompt_tokens_cached_total",),
}
#: By cache, the main one first: what its counters are called, the preferred first. The first name never counted blocks.
_PREFIX_CACHES: tuple[tuple[str, ...], ...] = (
    ("vllm:prefix_cache", "vllm:gpu_prefix_cache"),
    ("vllm:cpu_prefix_cache",),
)
_ENDINGS = ("_total", "")
_HISTOGRAMS: Mapping[str, tuple[str, ...]] = {
    "ttft_s": ("vllm:time_to_first_token_seconds",),
    # Until 0.11 the gap between tokens had the name of what is TPOT elsewhere.
    "itl_s": ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
    "tpot_s": ("vllm:request_time_per_output_token_seconds",),
    "e2e_s": ("vllm:e2e_request_latency_seconds",),
    "queue_s": ("vllm:request_queue_time_seconds", "vllm:time_in_queue_requests"),
    "prefill_s": ("vllm:request_prefill_time_seconds",),
    "prompt_length": ("vllm:request_prompt_tokens",),
    "output_length": ("vllm:request_generation_tokens",),
}
_KV_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_WAITING_BY_REASON = "vllm:num_requests_waiting_by_reason"
_SWAPPED = "vllm:num_requests_swapped"
_FINISHED = "vllm:request_success_total"  # in spite of its name with aborts and errors
_CONFIG = "vllm:cache_config_info"
_HTTP = "http_requests_total"
_STARTED = "process_start_time_seconds"
_CREATED = "vllm:generation_tokens_created"

_PLAIN = {name for names in _COUNTERS.values() for name in names} | {
    *(
        f"{name}_{part}{end}"
        for names in _PREFIX_CACHES
        for name in names
        for part in ("hits", "queries")
        for end in _ENDINGS
    ),
    *_KV_USAGE,
    *(_RUNNING, _WAITING, _WAITING_BY_REASON, _SWAPPED, _FINISHED, _CONFIG, _HTTP, _STARTED, _CREATED),
}
_NAMES = _PLAIN | {
    name + part for names in _HISTOGRAMS.values() for name in names for part in ("_bucket", "_sum", "_count")
}


SUPPORT = Support(
    title="vLLM's /metrics",
    sees=(
        "requests, errors, tokens",
        "TTFT, ITL, end-to-end, queue",
        "batch, KV cache, prefix cache",
        "version and limits",
    ),
    changes=(),
    verified="real part",
    how="a real vLLM server (CPU), and a recorded page of it",
)


class Options(BaseModel):
    """Settings of the ``vllm`` source."""

    model_config = ConfigDict(extra="forbid")

    url: str | None = Field(default=None, pattern=r"^https?://[^/\s?#]+(/[^\s?#]*)?$")
    """Address of the metrics where it is another than the endpoint's: another port, a side-car. Read once for the endpoint, however many
    replicas it has; its `api_key` is sent there only where scheme, host and port are the endpoint's. Default: each target's own address."""
    path: str = Field(default="/metrics", pattern=r"^/")
    """Where the metrics are, under that address. Default: vLLM's own."""
    timeout_s: float = Field(default=5.0, gt=0, le=60)
    """Seconds for one page, connecting included. Default 5: a third of the usual interval between reads."""
    max_series: int = Field(default=20_000, gt=0)
    """Refuse a page with more series of the wanted names. One engine has about 200: the default serves 100."""

    @model_validator(mode="after")
    def _base(self) -> Options:
        if self.url is not None:
            self.url = self.url.rstrip("/").removesuffix(self.path.rstrip("/"))
        return self

    def page_of(self, target: ScrapeTarget) -> tuple[str, Mapping[str, str]]:
        """The address of a target's metrics, and the headers that may be sent there."""
        if self.url is None:
            return target.url + self.path, target.headers
        same = _origin(self.url) == _origin(target.url)
        return self.url + self.path, target.headers if same else {}


def _origin(url: str) -> tuple[str, str]:
    scheme, _, rest = url.partition("://")
    return scheme.lower(), rest.partition("/")[0].lower()


class _Engine(NamedTuple):
    """Whose series it is. ``rank`` is None before the engine label came (0.8 and older)."""

    model: str
    rank: str | None


_EngineSeries = dict[str, SeriesList]


class VllmCollector:
    """One endpoint's vLLM servers."""

    source: ClassVar[str] = "vllm"
    interval_s: float | None = None
    settles_s = 0.0

    def __init__(self, context: SourceContext) -> None:
        self._context = context
        self._options = Options.model_validate(dict(context.options))
        self.scope: Scope = "replica" if self._options.url is None else "endpoint"
        self.deadline_s: float | None = 2 * self._options.timeout_s + 1  # the page, and now and then its version
        self._exposition = Exposition(_NAMES, max_series=self._options.max_series)
        self._versions: dict[str, _Version] = {}

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        """One Reading for each engine behind the address.

        Raises CollectError; besides the kinds of ``Http``: not_metrics, not_vllm, truncated, too_large, invalid_value,
        clock_skew, model_not_found.
        """
        url, headers = self._options.page_of(target)
        answer = await self._context.http.get(url, headers=headers, timeout_s=self._options.timeout_s)
        now = self._context.clock.now()
        check_clock(answer, now)
        samples = self._exposition.parse(answer.body, answer.headers.get("content-type", ""))
        version = None
        if any(name.startswith("vllm:") for name in samples):
            version = await self._version(target, _started_at(samples, samples))
        return readings_of(samples, target.name, self._context.model, now, version)

    async def _version(self, target: ScrapeTarget, started_at: float | None) -> str | None:
        """What ``/version`` says, asked once for each start; a server without it is tolerated."""
        known = self._versions.get(target.name)
        if known is None or known.started_at != started_at:
            known = _Version(None, 0, started_at)
        if known.text is None and known.tries < _VERSION_TRIES:
            text = await _fetch_version(self._context.http, target, self._options.timeout_s)
            known = _Version(text, known.tries + 1, started_at)
            if len(self._versions) >= _MAX_TARGETS:
                self._versions.clear()
            self._versions[target.name] = known
        return known.text


def make(context: SourceContext) -> VllmCollector:
    """The entry point. Raises pydantic's ValidationError on options that are not those of ``Options``."""
    return VllmCollector(context)


class _Version(NamedTuple):
    text: str | None
    tries: int
    started_at: float | None


async def _fetch_version(http: Http, target: ScrapeTarget, timeout_s: float) -> str | None:
    try:
        answer = await http.get(target.url + "/version", headers=target.headers, timeout_s=timeout_s, max_bytes=4096)
        version = json.loads(answer.body)["version"]
    except (CollectError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return clean(version) if isinstance(version, str) else None


def readings_of(
    samples: MetricsPage, target: str, model: str | None, at: float, version: str | None = None
) -> list[Reading]:
    """A page as readings, the lowest engine first. version: of the engine, where it is known.

    Raises CollectError: not_vllm, model_not_found, invalid_value, truncated, too_large.
    """
    by_engine = _by_engine(samples)
    wanted = sorted((e for e in by_engine if model is None or e.model == model), key=_order)
    if not wanted:
        there = ", ".join(sorted({e.model for e in by_engine})[:8])
        raise CollectError("model_not_found", f"the server has no model {model}; it has {there}")
    if len(wanted) > _MAX_ENGINES:
        raise CollectError("too_large", f"the page has {len(wanted)} engines, more than {_MAX_ENGINES}")
    several_models = len({e.model for e in wanted}) > 1
    readings = []
    for number, engine in enumerate(wanted):
        mine, config = by_engine[engine], _config_of(engine, by_engine, samples.get(_CONFIG, ()))
        gauges, facts = _gauges(mine), _facts(engine, config, version)
        # The HTTP layer counts for the whole server: once, with its first engine.
        counters = _counters(mine, samples.get(_HTTP, ()) if number == 0 else ())
        if "cached_prompt_tokens" not in counters:
            cached = _cached(mine, samples.help, counters.get("prompt_tokens"), gauges.get("running"), facts)
            counters |= {} if cached is None else {"cached_prompt_tokens": cached}
        readings.append(
            Reading(
                target=_target(target, engine, several_models),
                at=at,
                counters=counters,
                histograms=_histograms(mine),
                gauges=gauges,
                started_at=_started_at(samples, mine),
                facts=facts,
            )
        )
    return readings


def _by_engine(samples: MetricsPage) -> dict[_Engine, _EngineSeries]:
    """Each engine's own series. A label that some names do not have (it came with a version) means the only one that there is.

    Raises CollectError ``not_vllm``.
    """
    named = [(n, each) for n, each in samples.items() if n.startswith("vllm:") and n != _CONFIG]
    # Triton's backend for vLLM calls the label `model`.
    label = "model_name" if any("model_name" in labels for _, each in named for labels, _ in each) else "model"
    parts: dict[tuple[str | None, str | None], _EngineSeries] = {}
    for name, each in named:
        for labels, value in each:
            part = parts.setdefault((labels.get(label), labels.get("engine")), {})
            part.setdefault(name, []).append((labels, value))
    models = {model for model, _ in parts if model is not None}
    if not models:
        raise CollectError("not_vllm", _foreign(samples, bool(named)))
    by_engine = {_Engine(model, rank): part for (model, rank), part in parts.items() if model is not None}
    if len(models) == 1:
        (only,) = models
        for (model, rank), part in parts.items():
            if model is None:
                _add(by_engine.setdefault(_Engine(only, rank), {}), part, ())
    for model in models:
        ranked = sorted((e for e in by_engine if e.model == model and e.rank is not None), key=_order)
        rest = by_engine.pop(_Engine(model, None), None) if ranked else None
        if rest is not None:  # of several, what they share counts once, with the first
            _add(by_engine[ranked[0]], rest, [by_engine[e] for e in ranked])
    return by_engine


def _add(to: _EngineSeries, more: _EngineSeries, known: Sequence[_EngineSeries]) -> None:
    """The names that are not there yet."""
    for name, each in more.items():
        if name not in to and not any(name in one for one in known):
            to[name] = each


def _foreign(samples: MetricsPage, named: bool) -> str:
    if not named or re.search(rb'^vllm:\w+\{[^}\n]*\bserver="', samples.page, re.MULTILINE):
        return told_apart(samples.page, "vLLM's")
    return (
        "the page has vLLM's names but no model_name label, so nobody knows whose they are: a router or a relabelling took it away. "
        "Give the address of the vLLM server itself"
    )


def _config_of(engine: _Engine, by_engine: Collection[_Engine], configs: Sequence[tuple[Labels, float]]) -> Labels:
    """What it says of its cache: its own, else the only one, else one of the whole process; empty where that is not known."""
    theirs = [labels for labels, _ in configs if labels.get("model_name", engine.model) == engine.model]
    own = [labels for labels in theirs if labels.get("engine") == engine.rank]
    if not own and len(theirs) == 1 and len(by_engine) == 1:
        own = theirs
    if not own and all("engine" not in labels for labels in theirs):
        own = theirs
    return own[0] if own and all(dict(labels) == dict(own[0]) for labels in own) else {}


def _cached(
    samples: _EngineSeries,
    help_texts: Mapping[str, str],
    prompt_tokens: float | None,
    running: float | None,
    facts: Mapping[str, str],
) -> float | None:
    """Prompt tokens that the prefix caches had; None where that is not known."""
    counts = []
    for names in _PREFIX_CACHES:
        for name in names:
            hits, queries = (
                _first(summed(samples, f"{name}_{part}{end}") for end in _ENDINGS) for part in ("hits", "queries")
            )
            if hits is not None:
                texts = (help_texts.get(f"{name}_{part}{end}", "") for part in ("hits", "queries") for end in _ENDINGS)
                recent = name == _PREFIX_CACHES[0][0]
                counts.append(PrefixCacheCount(hits, queries, " ".join(texts), recent))
                break
    first_tokens = summed(samples, _HISTOGRAMS["ttft_s"][0] + "_count")
    context = PrefixCacheContext(
        prompt_tokens, first_tokens, running, _whole(facts.get("block_size", "")), facts.get("engine_version")
    )
    return cached_tokens(counts, context)


def _first(values: Iterable[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)


def _order(engine: _Engine) -> tuple[str, int, str]:
    rank = engine.rank or "0"
    return engine.model, _whole(rank) or 0, rank


def _whole(text: str) -> int | None:
    """A count as a label has it; None where it is something else: ``isdigit`` also takes superscripts, and ``int`` refuses 5,000 digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _target(target: str, engine: _Engine, several_models: bool) -> str:
    name = f"{target}@{engine.model}" if several_models else target
    return name if engine.rank in (None, "0") else f"{name}#{engine.rank}"


def _counters(samples: _EngineSeries, http: Iterable[tuple[Labels, float]]) -> dict[str, float]:
    counters: dict[str, float] = {}
    for name, spellings in _COUNTERS.items():
        for spelling in spellings:
            value = summed(samples, spelling)
            if value is not None:
                counters[name] = value
                break
    finished = summed(samples, _FINISHED)
    if finished is not None:
        failed = added_up(_HTTP, [value for labels, value in http if _is_failure(labels)])
        broken = summed(samples, _FINISHED, finished_reason="error") or 0.0
        if failed is not None:
            counters["requests"] = finished + failed
            counters["errors"] = broken + failed
    return counters


def _is_failure(labels: Labels) -> bool:
    return labels.get("status", "").startswith("5") and labels.get("handler", "").startswith("/v1/")


def _gauges(samples: _EngineSeries) -> dict[str, float]:
    gauges: dict[str, float] = {}
    running = summed(samples, _RUNNING)
    if running is not None:
        gauges["running"] = running
    # Requests that wait for something else than capacity (an adapter, a transfer) are no reason to grow.
    waiting = summed(samples, _WAITING_BY_REASON, reason="capacity")
    if waiting is None:
        waiting = summed(samples, _WAITING)
        swapped = summed(samples, _SWAPPED)  # v0 moved running sequences out to wait for memory
        waiting = waiting + swapped if waiting is not None and swapped is not None else waiting
    if waiting is not None:
        gauges["waiting"] = waiting
    usage = next((value for name in _KV_USAGE if (value := summed(samples, name)) is not None), None)
    if usage is not None:
        gauges["kv_usage"] = share("the KV cache's usage", usage)
    return gauges


def _histograms(samples: _EngineSeries) -> dict[str, Histogram]:
    histograms: dict[str, Histogram] = {}
    for name, spellings in _HISTOGRAMS.items():
        for spelling in spellings:
            if spelling + "_bucket" in samples:
                histogram = histogram_of(spelling, samples)
                if histogram is not None:
                    histograms[name] = histogram
                break
    return histograms


def _started_at(samples: _EngineSeries, mine: _EngineSeries) -> float | None:
    starts = {value for _, value in samples.get(_STARTED, ())}
    if len(starts) > 1:
        raise CollectError(
            "several_servers",
            f"the page is of {len(starts)} processes at once: give each server an address of its own, or read them through Prometheus",
        )
    for series in (samples.get(_STARTED), mine.get(_CREATED)):
        if series and math.isfinite(series[0][1]):
            return series[0][1]
    return None


def _facts(engine: _Engine, labels: Labels, version: str | None) -> dict[str, str]:
    facts = {"model": engine.model}
    version = version or labels.get("version")
    if version is not None:
        facts["engine_version"] = version
    for fact, label in (
        ("block_size", "block_size"),
        ("num_gpu_blocks", "num_gpu_blocks"),
        ("gpu_memory_utilization", "gpu_memory_utilization"),
        ("prefix_caching", "enable_prefix_caching"),
    ):
        if labels.get(label, "None") != "None":
            facts[fact] = labels[label]
    size, blocks = _whole(facts.get("block_size", "")), _whole(facts.get("num_gpu_blocks", ""))
    whole = _whole(labels.get("kv_cache_size_tokens", ""))  # exact also where layers share or skip the cache
    if whole is None and size is not None and blocks is not None:
        whole = size * blocks
    if whole is not None:
        facts["kv_tokens"] = str(whole)
    return facts
