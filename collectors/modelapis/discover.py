"""``flyball discover openai-api``, ``flyball discover anthropic-api``: each model that a project or a workspace used, as an endpoint."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel

from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, Support, options_of
from collectors.modelapis.anthropic import AnthropicSettings
from collectors.modelapis.anthropic import shared as anthropic_admin
from collectors.modelapis.client import ModelApiError, ModelRateLimit
from collectors.modelapis.openai import OpenAISettings
from collectors.modelapis.openai import shared as openai_admin

_DAY_S = 86_400.0
#: Models that were used in so many days are found.
_DAYS = 7


class OpenAIDiscoveryOptions(OpenAISettings):
    """What ``flyball discover openai-api`` takes: the admin key, and which project."""


class AnthropicDiscoveryOptions(AnthropicSettings):
    """What ``flyball discover anthropic-api`` takes: the admin key, and which workspace."""


class OpenAIApiSystem:
    """See ``collectors.discovery.System``."""

    name: ClassVar[str] = "openai-api"
    options: ClassVar[type[BaseModel]] = OpenAIDiscoveryOptions
    support: ClassVar[Support] = Support(
        title="a project's use of one of OpenAI's models",
        sees=("calls and tokens by the minute, minutes late", "the project's rate limits", "the bill, by the day (`bill`)"),
        changes=("the project's tokens and requests a minute of a model",),
        verified="specification only",
        how="OpenAI's API specification, which the stand-in of the tests follows; no key was at hand",
    )  # fmt: skip

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        options = options_of(OpenAIDiscoveryOptions, context.options, self.name)
        client = openai_admin(context.sessions, options, context.http)
        end = context.clock.now() // _DAY_S * _DAY_S + _DAY_S
        for project in await client.projects():
            of = str(project["id"])
            if options.project not in (None, of):
                continue
            used = await client.used(of, end - _DAYS * _DAY_S, end)
            limits = await client.rate_limits(of) if used else []
            for model in sorted(used):
                yield _openai_entry(project, model, _of_model(limits, model), options)

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        stated, held = _stated(self.name, OpenAISettings, context, entry)
        options = options_of(OpenAIDiscoveryOptions, stated, self.name)
        client = openai_admin(context.sessions, options, context.http)
        found = [await _allowed("GET /v1/organization/projects", client.projects())]
        if options.project is not None:
            path = "/v1/organization/projects/{project}/rate_limits"
            found.append(await _allowed(f"GET {path}", client.rate_limits(options.project)))
            if held:
                found.append(Permission(f"POST {path}/{{id}}", "change", None, "shown by the first change alone"))
        return found

    def permissions(self) -> str:
        return _OPENAI_ROLE


class AnthropicApiSystem:
    """See ``collectors.discovery.System``."""

    name: ClassVar[str] = "anthropic-api"
    options: ClassVar[type[BaseModel]] = AnthropicDiscoveryOptions
    support: ClassVar[Support] = Support(
        title="a workspace's use of one of Anthropic's models",
        sees=("tokens by the minute, minutes late", "the rate limits", "the bill, by the day (`bill`)"),
        changes=(),
        verified="specification only",
        how="Anthropic's API reference, which the stand-in of the tests follows; no key was at hand",
    )

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        options = options_of(AnthropicDiscoveryOptions, context.options, self.name)
        client = anthropic_admin(context.sessions, options, context.http)
        end = context.clock.now() // _DAY_S * _DAY_S + _DAY_S
        names = {str(w["id"]): str(w.get("name") or w["id"]) for w in await client.workspaces()}
        used = await client.used(end - _DAYS * _DAY_S, end)
        for workspace, model in sorted(used, key=lambda key: (key[0] or "", key[1])):
            if options.workspace in (None, workspace):
                limits = await client.rate_limits(workspace)
                name = names.get(workspace or "", workspace or "default")
                yield _anthropic_entry(name, workspace, model, _of_model(limits, model), options)

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        stated, _ = _stated(self.name, AnthropicSettings, context, entry)
        options = options_of(AnthropicDiscoveryOptions, stated, self.name)
        client = anthropic_admin(context.sessions, options, context.http)
        return [
            await _allowed("GET /v1/organizations/workspaces", client.workspaces()),
            await _allowed("GET /v1/organizations/rate_limits", client.rate_limits(None)),
        ]

    def permissions(self) -> str:
        return _ANTHROPIC_ROLE


async def _allowed(name: str, call: Any) -> Permission:
    try:
        await call
    except ModelApiError as error:
        if error.kind != "denied":
            raise
        return Permission(name, "see", False, error.detail)
    return Permission(name, "see", True)


def _stated(
    system: str, model: type[BaseModel], context: DiscoveryContext, entry: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any], bool]:
    """The settings to ask with, and whether the endpoint is held by this system."""
    if entry is None:
        return context.options, True
    actuator = entry.get("actuator") or {}
    held = actuator.get("system") == system
    of = dict((actuator.get("options") if held else (entry.get("sources") or {}).get(system)) or {})
    return {k: v for k, v in of.items() if k in model.model_fields and v is not None}, held


def _of_model(limits: Sequence[ModelRateLimit], model: str) -> ModelRateLimit | None:
    """Its own, else that of the longest alias that it begins with: usage tells dated names."""
    found = [limit for limit in limits if model == limit.model or model.startswith(f"{limit.model}-")]
    return max(found, key=lambda limit: len(limit.model), default=None)


def _openai_entry(
    project: Mapping[str, Any], model: str, limit: ModelRateLimit | None, options: OpenAISettings
) -> DiscoveredEndpoint:
    admin = _reference(options, "OPENAI_ADMIN_KEY") | (
        {} if options.url == OpenAISettings().url else {"url": options.url}
    )
    which = {**admin, "project": str(project["id"])}
    name = _name(f"{project.get('name') or project['id']}-{model}")
    settings: dict[str, Any] = {
        "name": name,
        "url": options.url,
        "model": model,
        "kind": "quota",
        "sources": {"openai-api": {**which, "model": model}},
        "bill": {"vendor": "openai", "key": "${OPENAI_ADMIN_KEY}", "only": str(project["id"])},
        "mode": "observe",
    }
    if limit is not None:
        settings["actuator"] = {"system": "openai-api", "options": {**which, "model": limit.model}}
    return DiscoveredEndpoint(name, settings, _note(limit, "the bill is of the whole project"))


def _anthropic_entry(
    workspace_name: str, workspace: str | None, model: str, limit: ModelRateLimit | None, options: AnthropicSettings
) -> DiscoveredEndpoint:
    admin = _reference(options, "ANTHROPIC_ADMIN_KEY")
    admin |= {} if options.url == AnthropicSettings().url else {"url": options.url}
    which = {**admin, **({} if workspace is None else {"workspace": workspace})}
    name = _name(f"{workspace_name}-{model}")
    bill = {
        "vendor": "anthropic",
        "key": "${ANTHROPIC_ADMIN_KEY}",
        **({} if workspace is None else {"only": workspace}),
    }
    settings: dict[str, Any] = {
        "name": name,
        "url": options.url,
        "model": model,
        "kind": "quota",
        "sources": {"anthropic-api": {**which, "model": model}},
        "bill": bill,
        "mode": "observe",
    }
    if limit is not None and limit.tokens_per_minute:
        settings["shape"] = {"purchase": {"amount": limit.tokens_per_minute, "unit": "tokens_per_minute"}}
    more = "Anthropic tells no number of calls: add a source of them (a gateway's, or otlp)"
    return DiscoveredEndpoint(name, settings, _note(limit, more))


def _note(limit: ModelRateLimit | None, more: str) -> str:
    if limit is None:
        return f"no rate limit of this model is told\n{more}"
    told = (
        f"{limit.tokens_per_minute or 'unknown'} tokens and {limit.requests_per_minute or 'unknown'} requests a minute"
    )
    return f"{told} ({limit.model})\n{more}; latencies and refused calls are seen where calls are made: a gateway's source, otlp, or probe"


def _reference(options: OpenAISettings | AnthropicSettings, variable: str) -> dict[str, Any]:
    return {"key_file": str(options.key_file)} if options.key_file is not None else {"key": f"${{{variable}}}"}


def _name(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-")[:60] or "model"


_OPENAI_ROLE = """\
# An admin key of the organization (platform.openai.com, Settings, Admin keys), which is none of a project's keys. Restricted, it needs
#   Usage: read              GET  /v1/organization/usage/completions, /v1/organization/costs
#   Projects: read           GET  /v1/organization/projects, .../projects/ID/rate_limits
#   Projects: write          POST /v1/organization/projects/ID/rate_limits/ID     (to change; leave it out for mode observe)
export OPENAI_ADMIN_KEY=sk-admin-...        # or option key_file
"""
_ANTHROPIC_ROLE = """\
# An Admin API key of the organization (console.anthropic.com, Settings, Admin keys; only its admins can make one). It only reads:
#   GET /v1/organizations/workspaces, /v1/organizations/usage_report/messages, /v1/organizations/cost_report
#   GET /v1/organizations/rate_limits, /v1/organizations/workspaces/ID/rate_limits
export ANTHROPIC_ADMIN_KEY=sk-ant-admin-...        # or option key_file
"""
