"""Anthropic's admin API: workspaces, rate limits, and the tokens that were used minute by minute. Source: Anthropic's API reference.

It tells neither how many calls there were nor how long they took: those are seen where they are made. Limits cannot be changed through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from pydantic import Field

from collectors.base import SourceContext
from collectors.http import HttpCall
from collectors.modelapis.client import (
    MOST_PAGES,
    AdminClient,
    AdminSettings,
    Body,
    ModelApiError,
    ModelRateLimit,
    UsageMinute,
    moment,
    rows,
    whole,
)
from collectors.modelapis.usage import MINUTE, UsageCollector
from collectors.sessions import Sessions

URL = "https://api.anthropic.com"
_ORGANIZATION = "/v1/organizations"
_VERSION = "2023-06-01"
#: Minutes of a page at most.
_MINUTES = 1440


class AnthropicSettings(AdminSettings):
    """Which organization of Anthropic's."""

    url: str = Field(default=URL, pattern=r"^https?://[^/\s]+$")
    """The API's address. Default: Anthropic's."""
    workspace: str | None = None
    """The workspace's id, `wrkspc_...`. Default: the whole organization."""


class Options(AnthropicSettings):
    """Settings of the ``anthropic-api`` source."""

    model: str | None = None
    """The model, as the usage report has it. Default: the endpoint's."""


class AnthropicAdmin:
    """Raises ``ModelApiError`` and nothing else."""

    def __init__(self, settings: AnthropicSettings, http: HttpCall) -> None:
        self._admin = AdminClient(settings.url, settings, http, _headers)
        self.url = self._admin.url

    async def workspaces(self) -> list[Body]:
        """Those that are not archived."""
        found: list[Body] = []
        after: Mapping[str, str] = {}
        for _ in range(MOST_PAGES):
            body = await self._admin.get(f"{_ORGANIZATION}/workspaces", {"limit": "100", **after})
            found += [w for w in rows(body) if not w.get("archived_at")]
            if not body.get("has_more") or not body.get("last_id"):
                return found
            after = {"after_id": str(body["last_id"])}
        raise ModelApiError("invalid", f"the workspaces have more than {MOST_PAGES} pages, so probably a loop")

    async def rate_limits(self, workspace: str | None) -> list[ModelRateLimit]:
        """One for each model: a workspace's own where it has one, else the organization's."""
        found = {limit.model: limit for limit in await self._limits(f"{_ORGANIZATION}/rate_limits")}
        if workspace is not None:
            path = f"{_ORGANIZATION}/workspaces/{quote(workspace, safe='')}/rate_limits"
            for own in await self._limits(path):
                of = found.get(own.model)
                tokens = own.tokens_per_minute or (of.tokens_per_minute if of else None)
                requests = own.requests_per_minute or (of.requests_per_minute if of else None)
                found[own.model] = ModelRateLimit(own.id, own.model, tokens, requests)
        return list(found.values())

    async def _limits(self, path: str) -> list[ModelRateLimit]:
        found: list[ModelRateLimit] = []
        for row in await self._pages(path, {}):
            values = {str(each.get("type")): each.get("value") for each in rows(row, "limits")}
            tokens, requests = values.get("input_tokens_per_minute"), values.get("requests_per_minute")
            told = [value if isinstance(value, int) else None for value in (tokens, requests)]
            group = str(row.get("id") or row.get("group") or "")
            found += [ModelRateLimit(group, str(model), *told) for model in row.get("models") or ()]
        return found

    async def used(self, start: float, end: float) -> dict[tuple[str | None, str], float]:
        """Tokens by workspace (None: the default one) and model, over whole days."""
        found: dict[tuple[str | None, str], float] = {}
        query = {"starting_at": moment(start), "ending_at": moment(end), "bucket_width": "1d", "limit": "31"}
        for bucket in await self._pages(
            f"{_ORGANIZATION}/usage_report/messages", {**query, "group_by[]": ["workspace_id", "model"]}
        ):
            for row in rows(bucket, "results"):
                counts = _counts([row])
                key = (row.get("workspace_id"), str(row.get("model") or ""))
                found[key] = found.get(key, 0.0) + counts["prompt_tokens"] + counts["output_tokens"]
        return {key: tokens for key, tokens in found.items() if key[1] and tokens > 0}

    async def minutes(self, workspace: str | None, model: str | None, start: float, end: float) -> list[UsageMinute]:
        """Also those in which nothing was used, as the report tells them."""
        query: dict[str, str | list[str]] = {
            "starting_at": moment(start),
            "ending_at": moment(end),
            "bucket_width": "1m",
            "limit": str(_MINUTES),
        }
        query |= {} if workspace is None else {"workspace_ids[]": [workspace]}
        query |= {} if model is None else {"models[]": [model]}
        found = await self._pages(f"{_ORGANIZATION}/usage_report/messages", query)
        return [UsageMinute(_start(bucket), _counts(rows(bucket, "results"))) for bucket in found]

    async def _pages(self, path: str, query: Mapping[str, str | list[str]]) -> list[Body]:
        found: list[Body] = []
        page = ""
        for _ in range(MOST_PAGES):
            body = await self._admin.get(path, {**query, **({"page": page} if page else {})})
            found += rows(body)
            page = str(body.get("next_page") or "")
            if not page:
                return found
        raise ModelApiError("invalid", f"{path} has more than {MOST_PAGES} pages, so probably a loop")


def _headers(key: str) -> dict[str, str]:
    return {"x-api-key": key, "anthropic-version": _VERSION}


def _start(bucket: Body) -> float:
    text = str(bucket.get("starting_at"))
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise ModelApiError("invalid", f"a bucket of the usage begins at {text!r}") from error


def _counts(results: list[Body]) -> dict[str, float]:
    """What was written into the cache was read by the model too."""
    prompt = cached = output = 0.0
    for row in results:
        created = row.get("cache_creation") or {}
        written = sum(whole(created, name) for name in created if name.endswith("input_tokens"))
        read = whole(row, "cache_read_input_tokens")
        prompt += whole(row, "uncached_input_tokens") + written + read
        cached += read
        output += whole(row, "output_tokens")
    return {"prompt_tokens": prompt, "cached_prompt_tokens": cached, "output_tokens": output}


def shared(sessions: Sessions, settings: AnthropicSettings, http: HttpCall) -> AnthropicAdmin:
    """The one client of an organization."""
    key: Any = None if settings.key is None else settings.key.get_secret_value()
    return sessions.get(("anthropic-api", settings.url, key, settings.key_file), lambda: AnthropicAdmin(settings, http))


def make(context: SourceContext) -> UsageCollector:
    """The entry point. Raises pydantic's ValidationError on options that are not those of ``Options``."""
    options = Options.model_validate(dict(context.options))
    client = shared(context.sessions, options, context.http.call)
    model = options.model or context.model

    async def report(start: float, end: float) -> list[UsageMinute]:
        return await client.minutes(options.workspace, model, start, end)

    facts = {} if model is None else {"model": model}
    return UsageCollector("anthropic-api", context.clock, max(options.lag_s, MINUTE), report, facts)
