"""A LiteLLM proxy's ``/metrics``: requests, tokens and what the proxy charged, and whose they are, by a label that requests carry.

Owns the names and what they mean in Flyball's words. The proxy's own latencies are left out: they hold the way to whichever model it chose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from collectors.base import Scope, ScrapeTarget, SourceContext
from collectors.discovery import Support
from collectors.door import check_number
from collectors.exposition import Exposition, Labels, MetricsPage
from collectors.metrics import tagged
from collectors.pagesigns import told_apart
from collectors.text import clean
from collectors.window import CollectError, Reading

_REQUESTS = "litellm_proxy_total_requests_metric_total"
_TOKENS: Mapping[str, str] = {
    "prompt_tokens": "litellm_input_tokens_metric_total",
    "cached_prompt_tokens": "litellm_input_cached_tokens_metric_total",
    "output_tokens": "litellm_output_tokens_metric_total",
}
_SPEND = "litellm_spend_metric_total"
_NAMES = {_REQUESTS, *_TOKENS.values(), _SPEND}
#: What stands in a label that a request did not carry.
_NOBODY = ("", "None")
#: Tags that are told apart; what comes beyond is counted in the whole alone. A tag may be made up by a client.
MOST_TAGS = 200
_MOST_TAG = 100

SUPPORT = Support(
    title="LiteLLM's /metrics",
    sees=(
        "requests by outcome",
        "tokens, cached ones apart, and by team, key, user or customer",
        "what the proxy charged",
    ),
    changes=(),
    verified="recorded answers",
    how="a recorded page of a real LiteLLM proxy 1.106",
)


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
        self._exposition = Exposition(_NAMES)
        self._tags: set[str] = set()

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        """One Reading. Raises CollectError; besides the kinds of ``Http``: not_metrics, not_litellm, truncated, too_large, invalid_value."""
        options = self._options
        own = {} if options.key is None else {"Authorization": f"Bearer {options.key.get_secret_value()}"}
        answer = await self._context.http.get(
            target.url + options.path, headers={**target.headers, **own}, timeout_s=options.timeout_s
        )
        now = self._context.clock.now()
        page = self._exposition.parse(answer.body, answer.headers.get("content-type", ""))
        return [Reading(target.name, now, self.counters(page))]

    def counters(self, page: MetricsPage) -> dict[str, float]:
        """Of one page. What it does not tell is left out: a proxy that served nothing yet tells no tokens. Raises CollectError."""
        if not page and b"litellm_" not in page.page:
            raise CollectError("not_litellm", told_apart(page.page, "the LiteLLM proxy's"))
        found: dict[str, float] = {}
        for labels, value in self._mine(page, _REQUESTS):
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
