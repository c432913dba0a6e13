"""``flyball discover azure-ml`` and ``flyball permissions azure-ml``: every online endpoint of a subscription, as entries of the settings."""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from collectors.azure.client import ML_VERSION, AzureClient, shared
from collectors.azure.credentials import AzureAccount
from collectors.azure.errors import AzureError
from collectors.azure.inventory import EndpointState, inventory
from collectors.azure.names import ML, EndpointId
from collectors.azure.permissions import permitted, role
from collectors.azure.sizes import VmSize, size_catalogue
from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, Support
from collectors.window import CollectError


class DiscoveryOptions(AzureAccount):
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

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
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
                entry = found(state, options, taken, await _sizes(context, client, state.region))
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
            account = AzureAccount(**{k: v for k, v in stated.items() if k in AzureAccount.model_fields})
        except ValueError as error:
            raise CollectError("settings", f"azure-ml: {error}") from error
        return await permitted(shared(context.sessions, id_.subscription, account, context.http, context.clock), id_)

    def permissions(self) -> str:
        return role()


async def _sizes(context: DiscoveryContext, client: AzureClient, region: str) -> Mapping[str, VmSize]:
    """What the region offers; nothing where that may not be known."""
    try:
        return await size_catalogue(context.sessions, client).sizes(region)
    except AzureError as error:
        if error.kind != "denied":
            raise
        return {}


def found(
    state: EndpointState, account: AzureAccount, taken: set[str], sizes: Mapping[str, VmSize]
) -> DiscoveredEndpoint:
    """An endpoint as an entry of the settings. Secrets stand in it by reference only."""
    url = str((state.body.get("properties") or {}).get("scoringUri") or "")
    parts = urlsplit(url)
    name = _name(state.id, taken)
    stated = account.model_dump(mode="json", exclude_defaults=True, include=set(AzureAccount.model_fields))
    secrets = {k: f"${{AZURE_{k.upper()}}}" for k in ("client_secret", "token", "metrics_token") if stated.get(k)}
    access = {"resource": state.id.path, **stated, **secrets}
    settings: dict[str, Any] = {
        "name": name,
        "url": f"{parts.scheme}://{parts.netloc}",
        "api_key": f"${{{re.sub(r'[^A-Z0-9]+', '_', name.upper())}_KEY}}",
        "sources": {"azure-monitor": access},
        "actuator": {"system": "azure-ml", "options": dict(access)},
        "kind": "vm",
        "mode": "observe",
    }
    return DiscoveredEndpoint(name, settings, _note(state, sizes))


def _note(state: EndpointState, sizes: Mapping[str, VmSize]) -> str:
    """What runs, who owns its count, and the lines for `sizes`, since prices and vCPUs are not an endpoint's own."""
    lines = []
    for deployment in state.deployments:
        name, size = str(deployment.get("name")), (deployment.get("properties") or {}).get("instanceType")
        count = (deployment.get("sku") or {}).get("capacity")
        lines.append(f"{name}: {count} x {size}, {state.traffic.get(name, 0)} % of the traffic")
    if state.autoscale is None:
        lines.append("autoscale settings may not be read, so who owns the count is not known")
    elif state.autoscale:
        lines.append(f"autoscale setting {', '.join(str(s.get('name')) for s in state.autoscale)} owns the count")
    running = {(d.get("properties") or {}).get("instanceType") for d in state.deployments}
    for size in sorted((s for s in sizes.values() if s.name in running), key=lambda s: s.name):
        price = "" if size.usd_per_replica_hour is None else f"usd_per_replica_hour: {size.usd_per_replica_hour:g}, "
        lines.append(f"sizes: {{{size.name}: {{{price}cpus: {size.cores}}}}}")
    return "\n".join(lines)


def _name(id_: EndpointId, taken: set[str]) -> str:
    """The endpoint's own, with its workspace, or a number, where that is not enough to tell it apart."""
    own = re.sub(r"[^a-z0-9._-]+", "-", id_.name.lower())[:50]
    longer = re.sub(r"[^a-z0-9._-]+", "-", f"{id_.name}-{id_.workspace}".lower())[:60]
    names = itertools.chain((own, longer), (f"{longer}-{n}" for n in itertools.count(2)))
    return next(name for name in names if name not in taken)


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
    account = AzureAccount(**options.model_dump(include=set(AzureAccount.model_fields)))
    return shared(context.sessions, options.subscription.lower(), account, context.http, context.clock)
