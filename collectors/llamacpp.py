"""llama.cpp's own ``/metrics``, of a ``llama-server`` that was started with ``--metrics``.

Owns the names and what they mean in Flyball's words. The page tells no latencies, no requests and no model: times come from the probe
or from a proxy. Values have six digits, so beyond a million tokens they grow in steps, and what was generated counts when its request ends.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from collectors.base import Scope, ScrapeTarget, SourceContext
from collectors.discovery import Support
from collectors.door import check_number
from collectors.exposition import Exposition, MetricsPage
from collectors.http import Http, HttpStream, check_status
from collectors.pagesigns import told_apart
from collectors.series import share
from collectors.text import clean
from collectors.window import CollectError, Reading

_COUNTERS: Mapping[str, str] = {
    "cached_prompt_tokens": "llamacpp:prompt_tokens_cached_total",
    "output_tokens": "llamacpp:tokens_predicted_total",
}
#: Without the cached ones, which older servers do not count: of those the prompt's length is not known.
_PROCESSED = "llamacpp:prompt_tokens_total"
#: The averages beside them (tokens in a second, busy slots) are since the last page or the start: not of now, so left out.
_GAUGES: Mapping[str, str] = {
    "running": "llamacpp:requests_processing",
    "waiting": "llamacpp:requests_deferred",
    "kv_usage": "llamacpp:kv_cache_usage_ratio",  # older servers alone
}
_NAMES = {*_COUNTERS.values(), _PROCESSED, *_GAUGES.values()}
#: Changes with each start. By the host's clock since boot, in spite of its name: after a reboot it is less, so it is no ``started_at``.
_START = "process-start-time-unix"
_PROPS_TRIES = 3
_MAX_TARGETS = 4096
_MAX_PROPS = 1 << 20  # the chat template is in it

SUPPORT = Support(
    title="llama.cpp's /metrics",
    sees=("tokens, cached ones apart", "requests in slots and waiting", "build, slots and context"),
    changes=(),
    verified="real part",
    how="a real llama-server 0.7: its counters against its own answers, its slots, its refusal without `--metrics`",
)


class Options(BaseModel):
    """Settings of the ``llamacpp`` source."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(default="/metrics", pattern=r"^/")
    """Where the metrics are, under the target's address. Default: llama-server's own, there with its `--metrics`."""
    timeout_s: float = Field(default=5.0, gt=0, le=60)
    """Seconds for one page, connecting included. Default 5: a third of the usual interval between reads."""


@dataclass(frozen=True, slots=True)
class _Properties:
    """What ``/props`` said of one start of a server."""

    start: str | None
    facts: Mapping[str, str] = field(default_factory=dict)
    tries: int = 0


class LlamacppCollector:
    """One endpoint's llama.cpp servers."""

    source: ClassVar[str] = "llamacpp"
    interval_s: float | None = None
    settles_s = 0.0
    scope: Scope = "replica"

    def __init__(self, context: SourceContext) -> None:
        self._context = context
        self._options = Options.model_validate(dict(context.options))
        self.deadline_s: float | None = 2 * self._options.timeout_s + 1  # the page, and now and then its properties
        self._exposition = Exposition(_NAMES, max_series=1000)
        self._properties: dict[str, _Properties] = {}

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        """One Reading. It has no ``started_at``: a restart shows by counters that fall.

        Raises CollectError; besides the kinds of ``Http``: metrics_off, not_metrics, not_llamacpp, several_servers, truncated,
        too_large, invalid_value.
        """
        answer, body = await self._page(target)
        now = self._context.clock.now()
        samples = self._exposition.parse(body, answer.headers.get("content-type", ""))
        counters, gauges = values_of(samples)
        facts = await self._facts(target, answer.headers.get(_START))
        return [Reading(target.name, now, counters, gauges=gauges, facts=facts)]

    async def _page(self, target: ScrapeTarget) -> tuple[HttpStream, bytes]:
        url = target.url + self._options.path
        async with self._context.http.stream(
            "GET", url, headers=target.headers, timeout_s=self._options.timeout_s
        ) as answer:
            body = await answer.body()
        if answer.status in (404, 501):
            raise CollectError(
                "metrics_off",
                f"{self._options.path} answered {answer.status}: start llama-server with --metrics; "
                "where it was, check the address and the path",
            )
        check_status(answer.status, url, body)
        return answer, body

    async def _facts(self, target: ScrapeTarget, start: str | None) -> Mapping[str, str]:
        """What ``/props`` says, asked once for each start; a server without it is tolerated."""
        known = self._properties.get(target.name)
        if known is None or known.start != start:
            known = _Properties(start)
        if not known.facts and known.tries < _PROPS_TRIES:
            facts = await _fetch_facts(self._context.http, target, self._options.timeout_s)
            known = _Properties(start, facts, known.tries + 1)
            if len(self._properties) >= _MAX_TARGETS:
                self._properties.clear()
            self._properties[target.name] = known
        return known.facts


def make(context: SourceContext) -> LlamacppCollector:
    """The entry point. Raises pydantic's ValidationError on options that are not those of ``Options``."""
    return LlamacppCollector(context)


def values_of(samples: MetricsPage) -> tuple[dict[str, float], dict[str, float]]:
    """A page's counters and gauges.

    Raises CollectError: not_llamacpp, several_servers, invalid_value.
    """
    if not samples:
        raise CollectError("not_llamacpp", told_apart(samples.page, "llama.cpp's"))
    counters = _known(samples, _COUNTERS)
    processed, cached = _value(samples, _PROCESSED), counters.get("cached_prompt_tokens")
    if processed is not None and cached is not None:
        counters["prompt_tokens"] = processed + cached
    gauges = _known(samples, _GAUGES)
    if "kv_usage" in gauges:
        gauges["kv_usage"] = share("the KV cache's usage", gauges["kv_usage"])
    return counters, gauges


def _known(samples: MetricsPage, names: Mapping[str, str]) -> dict[str, float]:
    values = {name: _value(samples, theirs) for name, theirs in names.items()}
    return {name: value for name, value in values.items() if value is not None}


def _value(samples: MetricsPage, name: str) -> float | None:
    """The one value; None where there is none, or NaN. Raises CollectError."""
    series = samples.get(name, ())
    if len(series) > 1:
        raise CollectError(
            "several_servers", f"the page has {name} {len(series)} times: give each server an address of its own"
        )
    if not series or math.isnan(series[0][1]):
        return None
    check_number(name, series[0][1])
    return series[0][1]


async def _fetch_facts(http: Http, target: ScrapeTarget, timeout_s: float) -> dict[str, str]:
    try:
        answer = await http.get(
            target.url + "/props", headers=target.headers, timeout_s=timeout_s, max_bytes=_MAX_PROPS
        )
        said = json.loads(answer.body)
    except (CollectError, ValueError, RecursionError):
        return {}
    return facts_of(said) if isinstance(said, dict) else {}


def facts_of(properties: Mapping[str, Any]) -> dict[str, str]:
    """Of ``/props``, what is text or a count. ``context_tokens`` is one slot's. Of the model's path only the file: the rest is the host's."""
    settings = properties.get("default_generation_settings")
    path = properties.get("model_path")
    texts = {
        "engine_version": properties.get("build_info"),
        "model": properties.get("model_alias")
        or (path.replace("\\", "/").rpartition("/")[2] if isinstance(path, str) else None),
    }
    counts = {
        "slots": properties.get("total_slots"),
        "context_tokens": settings.get("n_ctx") if isinstance(settings, dict) else None,
    }
    facts = {name: clean(text) for name, text in texts.items() if isinstance(text, str) and text}
    return facts | {name: str(count) for name, count in counts.items() if type(count) is int and 0 < count < 10**12}
