"""A LiteLLM proxy's ``/metrics``: requests, tokens, times and what the proxy charged; whose they are, by a label that requests carry; and
how long each deployment of the model took.

Owns the names and what they mean in Flyball's words. Left out: the time from a request to its end divided by its tokens, which LiteLLM calls
latency per output token and which holds the first one; and its queue, which is the proxy's own and not the engine's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from collectors.base import Scope, ScrapeTarget, SourceContext
from collectors.door import check_histogram, check_number
from collectors.exposition import Exposition, Labels, MetricsPage
from collectors.metrics import tagged
from collectors.pagesigns import told_apart
from collectors.text import clean
from collectors.window import CollectError, Histogram, Reading

_REQUESTS = "litellm_proxy_total_requests_metric_total"
_TOKENS: Mapping[str, str] = {
    "prompt_tokens": "litellm_input_tokens_metric_total",
    "cached_prompt_tokens": "litellm_input_cached_tokens_metric_total",
    "output_tokens": "litellm_output_tokens_metric_total",
}
_SPEND = "litellm_spend_metric_total"
#: In seconds. The first is of all requests, as the client sees them; the second of streamed ones alone, from the proxy on.
_TIMES: Mapping[str, str] = {
    "e2e_s": "litellm_request_total_latency_metric",
    "ttft_s": "litellm_llm_api_time_to_first_token_metric",
}
_STATE = "litellm_deployment_state"
_STATES = {0.0: "healthy", 1.0: "partial outage", 2.0: "outage"}
_STARTED = "process_start_time_seconds"
_NAMES = {
    *(_REQUESTS, *_TOKENS.values(), _SPEND, _STATE, _STARTED),
    *(name + part for name in _TIMES.values() for part in ("_bucket", "_sum", "_count")),
}
#: What stands in a label that a request did not carry.
_NOBODY = ("", "None")
#: Tags that are told apart; what comes beyond is counted in the whole alone. A tag may be made up by a client.
MOST_TAGS = 200
#: Deployments likewise: one without an id of its own gets another with each change of its limits.
MOST_DEPLOYMENTS = 50
_MOST_TAG = 100


class Options(BaseModel):
    """Settings of the ``litellm`` source."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    path: str = Field(default="/metrics/", pattern=r"^/")
    """Where the metrics are, under the endpoint's address. Default: LiteLLM's own, there with its callback `prometheus`."""
    key: SecretStr | None = None
    """The proxy's master key, by reference, where its metrics ask for it. Default: the endpoint's `api_key`."""
    model: str | None = None
    """Of the models that clients ask the proxy for, the one that counts. Default: the endpoint's `model`; without one, all."""
    tag: Literal["team_alias", "team", "end_user", "user", "api_key_alias"] = "team_alias"
    """The label by which cost is told apart. Default: the team's name."""
    timeout_s: float = Field(default=5.0, gt=0, le=60)
    """Seconds for one page, connecting included. Default 5: a third of the usual interval between reads."""
    max_series: int = Field(default=100_000, gt=0)
    """Refuse a page with more series of the wanted names: LiteLLM has one for each key, user and team, 18 of each time. The default serves
    some thousand keys; leave labels out by the proxy's `prometheus_metrics_config` beyond that."""


class LiteLLMCollector:
    """One endpoint's proxy."""

    source: ClassVar[str] = "litellm"
    interval_s: float | None = None
    settles_s = 0.0
    scope: Scope = "endpoint"

    def __init__(self, context: SourceContext) -> None:
        self._context = context
        self._options = Options.model_validate(dict(context.options))
        self.deadline_s: float | None = self._options.timeout_s + 1
        self._exposition = Exposition(_NAMES, max_series=self._options.max_series)
        self._tags: set[str] = set()
        self._deployments: set[str] = set()

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        """One Reading. Raises CollectError; besides the kinds of ``Http``: not_metrics, not_litellm, truncated, too_large, invalid_value."""
        options = self._options
        own = {} if options.key is None else {"Authorization": f"Bearer {options.key.get_secret_value()}"}
        answer = await self._context.http.get(
            target.url + options.path, headers={**target.headers, **own}, timeout_s=options.timeout_s
        )
        now = self._context.clock.now()
        page = self._exposition.parse(answer.body, answer.headers.get("content-type", ""))
        counters = self.counters(page)
        started = page.get(_STARTED)
        return [
            Reading(
                target.name,
                now,
                counters,
                self.times(page),
                started_at=started[0][1] if started else None,
                facts=_states(page, self._deployments),
            )
        ]

    def counters(self, page: MetricsPage) -> dict[str, float]:
        """Of one page. What it does not tell is left out: a proxy that served nothing yet tells no tokens. Raises CollectError."""
        if not page and b"litellm_" not in page.page:
            raise CollectError("not_litellm", told_apart(page.page, "the LiteLLM proxy's"))
        found: dict[str, float] = {}
        for labels, value in self._mine(page, _REQUESTS):
            for name in (
                "requests",
                "errors",
                "throttled",
                "rejected",
            ):  # each carries its status: what has no series has none
                found.setdefault(name, 0.0)
            _add(found, "requests", value)
            outcome = _outcome(labels.get("status_code", ""))
            if outcome is not None:
                _add(found, outcome, value)
        for name, theirs in _TOKENS.items():
            for labels, value in self._mine(page, theirs):
                _add(found, name, value)
                tag = self._tag(labels)
                if tag is not None:
                    _add(found, tagged(name, tag), value)
        for _, value in self._mine(page, _SPEND):
            _add(found, "billed_usd", value)
        return found

    def times(self, page: MetricsPage) -> dict[str, Histogram]:
        """``e2e_s`` and ``ttft_s`` over all deployments, and of each one under its name: ``e2e_s@own``. Raises CollectError."""
        found: dict[str, Histogram] = {}
        for name, theirs in _TIMES.items():
            parts: dict[str, dict[float, float]] = {}
            sums: dict[str, float] = {}
            for labels, value in self._mine(page, theirs + "_bucket"):
                for whose in self._whose(name, labels):
                    counts = parts.setdefault(whose, {})
                    edge = _edge(labels.get("le", ""))
                    counts[edge] = counts.get(edge, 0.0) + value
            for labels, value in self._mine(page, theirs + "_sum"):
                for whose in self._whose(name, labels):
                    sums[whose] = sums.get(whose, 0.0) + value
            for whose, counts in parts.items():
                edges = sorted(counts)
                if whose not in sums or len(edges) < 2 or edges[-1] != math.inf:
                    continue  # half of a histogram
                found[whose] = Histogram(tuple(edges[:-1]), tuple(counts[edge] for edge in edges), sums[whose])
                check_histogram(whose, found[whose])
        return found

    def _whose(self, name: str, labels: Labels) -> tuple[str, ...]:
        """A time counts for the whole, and for the deployment that took it."""
        deployment = clean(labels.get("model_id", ""), _MOST_TAG)
        if deployment in _NOBODY:
            return (name,)
        if deployment not in self._deployments and len(self._deployments) >= MOST_DEPLOYMENTS:
            return (name,)
        self._deployments.add(deployment)
        return name, tagged(name, deployment)

    def _mine(self, page: MetricsPage, name: str) -> Iterable[tuple[Labels, float]]:
        """The series of the model that is asked for. Raises CollectError on a value that cannot be."""
        model = self._options.model or self._context.model
        for labels, value in page.get(name, ()):
            if model is None or labels.get("requested_model") == model:
                if math.isnan(value):
                    continue
                check_number(name, value)
                yield labels, value

    def _tag(self, labels: Labels) -> str | None:
        """Whose it is. None: nobody's, or of one too many."""
        tag = clean(labels.get(self._options.tag, ""), _MOST_TAG)
        if tag in _NOBODY:
            return None
        if tag not in self._tags and len(self._tags) >= MOST_TAGS:
            return None
        self._tags.add(tag)
        return tag


def _edge(text: str) -> float:
    """Raises CollectError."""
    try:
        return float(text)
    except ValueError as error:
        raise CollectError("invalid_value", f"a bucket's bound is {text[:40]!r}, which is no number") from error


def _states(page: MetricsPage, deployments: Collection[str]) -> dict[str, str]:
    """How the proxy judges each deployment that answered for the model: from its failures, so only after requests."""
    return {
        f"deployment {one}": _STATES[value]
        for labels, value in page.get(_STATE, ())
        if (one := clean(labels.get("model_id", ""), _MOST_TAG)) in deployments and value in _STATES
    }


def _add(found: dict[str, float], name: str, value: float) -> None:
    found[name] = found.get(name, 0.0) + value


def _outcome(status: str) -> str | None:
    """What a status counts as beside a request. None: it was served."""
    if status == "429":
        return "throttled"
    return {"4": "rejected", "5": "errors"}.get(status[:1])


def make(context: SourceContext) -> LiteLLMCollector:
    """The entry point. Raises pydantic's ValidationError on options that are not those of ``Options``."""
    return LiteLLMCollector(context)
