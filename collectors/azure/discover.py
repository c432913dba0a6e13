"""``flyball discover azure-ml`` and ``flyball permissions azure-ml``: every online endpoint of a subscription, as entries of the settings."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from collectors.azure.client import ML_VERSION, AzureClient, shared
from collectors.azure.credentials import Account
from collectors.azure.inventory import EndpointState, inventory
from collectors.azure.names import ML, EndpointId
from collectors.azure.permissions import permitted, role
from collectors.discovery import DiscoveryContext, Found, Permission, Support
from collectors.window import CollectError


class DiscoveryOptions(Account):
    """What ``flyball discover azure-ml`` takes: the account, and which subscription."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subscription: str = Field(default="", pattern=r"^([0-9a-fA-F-]{36})?$")
    """The subscription's id."""
    workspace: str | None = None
    """Only of this workspace. Default: of all that can be seen."""


class AzureMlSystem:
    """See ``collectors.discovery.System``."""

    name: ClassVar[str] = "azure-ml"
    options: ClassVar[type[BaseModel]] = DiscoveryOptions
    support: ClassVar[Support] = Support(
        title="Azure ML / AI Foundry managed online endpoints",
        sees=(
            "requests, errors, throttling",
            "end-to-end P50, P90, P95, P99, minutes late",
            "CPU, GPU and memory",
            "sizes, prices, quota",
        ),
        changes=("count", "VM size, by a second deployment with traffic in steps", "an autoscale setting's bounds"),
        verified="official SDK",
        how="a strict stand-in of ARM and Azure Monitor that Microsoft's own Python clients drive too",
    )

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[Found]:
        options = _options(context)
        client = _client(context, options)
        path = f"/subscriptions/{client.subscription}/providers/{ML}/workspaces"
        taken: set[str] = set()
        async for workspace in client.pages(path, ML_VERSION):
            if options.workspace is not None and workspace.get("name") != options.workspace:
                continue
            async for body in client.pages(f"{workspace.get('id')}/onlineEndpoints", ML_VERSION):
                state = await inventory(context.sessions, client).endpoint(
                    EndpointId.parse(str(body.get("id"))), fresh=True
                )
                entry = found(state, options, taken)
                taken.add(entry.name)
                yield entry

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        """``entry``: an endpoint's settings, whose actuator or source names the resource."""
        if entry is None:
            options = _options(context)
            return await permitted(_client(context, options), None)
        stated = dict(
            (entry.get("actuator") or {}).get("options") or (entry.get("sources") or {}).get("azure-monitor") or {}
        )
        try:
            id_ = EndpointId.parse(str(stated.get("resource", "")))
            account = Account(**{k: v for k, v in stated.items() if k in Account.model_fields})
        except ValueError as error:
            raise CollectError("settings", f"azure-ml: {error}") from error
        return await permitted(shared(context.sessions, id_.subscription, account, context.http, context.clock), id_)

    def permissions(self) -> str:
        return role()


def found(state: EndpointState, account: Account, taken: set[str]) -> Found:
    """An endpoint as an entry of the settings. Secrets stand in it by reference only."""
    url = str((state.body.get("properties") or {}).get("scoringUri") or "")
    parts = urlsplit(url)
    name = _name(state.id, taken)
    stated = account.model_dump(mode="json", exclude_defaults=True, include=set(Account.model_fields))
    secrets = {k: f"${{AZURE_{k.upper()}}}" for k in ("client_secret", "token", "metrics_token") if stated.get(k)}
    access = {"resource": state.id.path, **stated, **secrets}
    settings: dict[str, Any] = {
        "name": name,
        "url": f"{parts.scheme}://{parts.netloc}",
        "api_key": f"${{{re.sub(r'[^A-Z0-9]+', '_', name.upper())}_KEY}}",
        "sources": {"azure-monitor": access},
        "actuator": {"system": "azure-ml", "options": access},
        "mode": "observe",
    }
    shown = ", ".join(f"{n} {s} %" for n, s in state.traffic.items()) or "none has traffic"
    note = f"{len(state.deployments)} deployments, {shown}"
    if state.autoscale is None:
        note += "; autoscale settings may not be read"
    elif state.autoscale:
        note += f"; autoscale setting {', '.join(str(s.get('name')) for s in state.autoscale)} owns the count"
    return Found(name, settings, note)


def _name(id_: EndpointId, taken: set[str]) -> str:
    """The endpoint's own, with its workspace where that is not enough to tell it apart."""
    own = re.sub(r"[^a-z0-9._-]+", "-", id_.name.lower())[:63]
    return own if own not in taken else re.sub(r"[^a-z0-9._-]+", "-", f"{id_.name}-{id_.workspace}".lower())[:63]


def _options(context: DiscoveryContext) -> DiscoveryOptions:
    try:
        options = DiscoveryOptions(**context.options)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise CollectError("settings", f"azure-ml: {problems}") from error
    if not options.subscription:
        raise CollectError(
            "settings", "azure-ml: say which subscription: --option subscription=ID (`az account show --query id`)"
        )
    return options


def _client(context: DiscoveryContext, options: DiscoveryOptions) -> AzureClient:
    account = Account(**options.model_dump(include=set(Account.model_fields)))
    return shared(context.sessions, options.subscription.lower(), account, context.http, context.clock)
