"""OpenAI's admin API: projects, their models' rate limits, and what was used minute by minute. Source: OpenAI's API specification.

It tells no latency, and nothing of calls that were refused: those are seen where they are made.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    rows,
    whole,
)
from collectors.modelapis.usage import MINUTE, UsageCollector
from collectors.sessions import Sessions

URL = "https://api.openai.com"
_ORGANIZATION = "/v1/organization"
#: Minutes of a page at most.
_MINUTES = 1440


class OpenAISettings(AdminSettings):
    """Which organization of OpenAI's."""

    url: str = Field(default=URL, pattern=r"^https?://[^/\s]+$")
    """The API's address. Default: OpenAI's."""
    project: str | None = None
    """The project's id, `proj_...`. Default: the whole organization, where only usage is read."""


class Options(OpenAISettings):
    """Settings of the ``openai-api`` source."""

    model: str | None = None
    """The model, as the usage report has it. Default: the endpoint's."""


class OpenAIAdmin:
    """Raises ``ModelApiError`` and nothing else."""

    def __init__(self, settings: OpenAISettings, http: HttpCall) -> None:
        self._admin = AdminClient(settings.url, settings, http, lambda key: {"authorization": f"Bearer {key}"})
        self.url = self._admin.url

    async def projects(self) -> list[Body]:
        """Those that are active."""
        return [p for p in await self._every(f"{_ORGANIZATION}/projects") if p.get("status") == "active"]

    async def rate_limits(self, project: str) -> list[ModelRateLimit]:
        path = f"{_ORGANIZATION}/projects/{quote(project, safe='')}/rate_limits"
        return [_limit(row) for row in await self._every(path)]

    async def set_rate_limit(self, project: str, limit: str, fields: Body) -> None:
        path = f"{_ORGANIZATION}/projects/{quote(project, safe='')}/rate_limits/{quote(limit, safe='')}"
        await self._admin.post(path, fields)

    async def used(self, project: str | None, start: float, end: float) -> dict[str, float]:
        """Tokens by model over whole days, so that models that nobody uses are passed by."""
        found: dict[str, float] = {}
        for bucket in await self._buckets(project, None, start, end, "1d", 31):
            for row in rows(bucket, "results"):
                model = str(row.get("model") or "")
                found[model] = found.get(model, 0.0) + whole(row, "input_tokens") + whole(row, "output_tokens")
        return {model: tokens for model, tokens in found.items() if model and tokens > 0}

    async def minutes(self, project: str | None, model: str | None, start: float, end: float) -> list[UsageMinute]:
        """Also those in which nothing was used, as the report tells them."""
        return [
            UsageMinute(float(whole(bucket, "start_time")), _counts(rows(bucket, "results"), model))
            for bucket in await self._buckets(project, model, start, end, "1m", _MINUTES)
        ]

    async def _buckets(
        self, project: str | None, model: str | None, start: float, end: float, width: str, limit: int
    ) -> list[Body]:
        query: dict[str, str | list[str]] = {
            "start_time": str(int(start)),
            "end_time": str(int(end)),
            "bucket_width": width,
            "limit": str(limit),
            "group_by": ["model"],
        }
        query |= {} if project is None else {"project_ids": [project]}
        query |= {} if model is None else {"models": [model]}
        found: list[Body] = []
        page = ""
        for _ in range(MOST_PAGES):
            body = await self._admin.get(
                f"{_ORGANIZATION}/usage/completions", {**query, **({"page": page} if page else {})}
            )
            found += rows(body)
            page = str(body.get("next_page") or "")
            if not body.get("has_more") or not page:
                return found
        raise ModelApiError("invalid", f"the usage has more than {MOST_PAGES} pages, so probably a loop")

    async def _every(self, path: str) -> list[Body]:
        found: list[Body] = []
        after: Mapping[str, str] = {}
        for _ in range(MOST_PAGES):
            body = await self._admin.get(path, {"limit": "100", **after})
            found += rows(body)
            if not body.get("has_more") or not body.get("last_id"):
                return found
            after = {"after": str(body["last_id"])}
        raise ModelApiError("invalid", f"{path} has more than {MOST_PAGES} pages, so probably a loop")


def _limit(row: Body) -> ModelRateLimit:
    tokens, requests = row.get("max_tokens_per_1_minute"), row.get("max_requests_per_1_minute")
    return ModelRateLimit(
        str(row.get("id")),
        str(row.get("model")),
        tokens if isinstance(tokens, int) else None,
        requests if isinstance(requests, int) else None,
    )


def _counts(results: list[Body], model: str | None) -> dict[str, float]:
    """An exact model alone: OpenAI's filter is by family in places."""
    names = {
        "requests": "num_model_requests",
        "prompt_tokens": "input_tokens",
        "cached_prompt_tokens": "input_cached_tokens",
        "output_tokens": "output_tokens",
    }
    of = [row for row in results if model is None or row.get("model") == model]
    return {ours: sum(whole(row, theirs) for row in of) for ours, theirs in names.items()}


def shared(sessions: Sessions, settings: OpenAISettings, http: HttpCall) -> OpenAIAdmin:
    """The one client of an organization."""
    key: Any = None if settings.key is None else settings.key.get_secret_value()
    return sessions.get(("openai-api", settings.url, key, settings.key_file), lambda: OpenAIAdmin(settings, http))


def make(context: SourceContext) -> UsageCollector:
    """The entry point. Raises pydantic's ValidationError on options that are not those of ``Options``."""
    options = Options.model_validate(dict(context.options))
    client = shared(context.sessions, options, context.http.call)
    model = options.model or context.model

    async def report(start: float, end: float) -> list[UsageMinute]:
        return await client.minutes(options.project, model, start, end)

    facts = {} if model is None else {"model": model}
    return UsageCollector("openai-api", context.clock, max(options.lag_s, MINUTE), report, facts)
