"""``flyball discover azure-ml`` and ``flyball permissions azure-ml``: every online endpoint of a subscription, as entries of the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import BaseModel

from collectors.azure.client import ML_VERSION, AzureClient, shared
from collectors.azure.credentials import AzureAccount
from collectors.azure.entries import (
    SubscriptionOptions,
    access,
    account_in,
    client_of,
    free_name,
    key_reference,
    options_in,
)
from collectors.azure.errors import AzureError
from collectors.azure.inventory import EndpointState, inventory
from collectors.azure.names import ML, EndpointId
from collectors.azure.permissions import ML_ROLE
from collectors.azure.sizes import VmSize, size_catalogue
from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, Support
from collectors.window import CollectError


class DiscoveryOptions(SubscriptionOptions):
    """What ``flyball discover azure-ml`` takes: the account, and which subscription."""

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
        options = options_in(DiscoveryOptions, context, self.name)
        client = client_of(context, options)
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
            options = options_in(DiscoveryOptions, context, self.name)
            return await ML_ROLE.permitted(client_of(context, options), None)
        stated = dict(
            (entry.get("actuator") or {}).get("options") or (entry.get("sources") or {}).get("azure-monitor") or {}
        )
        try:
            id_ = EndpointId.parse(str(stated.get("resource", "")))
            account = account_in(stated)
        except ValueError as error:
            raise CollectError("settings", f"azure-ml: {error}") from error
        client = shared(context.sessions, id_.subscription, account, context.http, context.clock)
        return await ML_ROLE.permitted(client, id_.workspace_path)

    def permissions(self) -> str:
        return ML_ROLE.definition()


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
    name = free_name(state.id.name, state.id.workspace, taken)
    reached = access(account, state.id.path)
    settings: dict[str, Any] = {
        "name": name,
        "url": f"{parts.scheme}://{parts.netloc}",
        "api_key": key_reference(name),
        "sources": {"azure-monitor": reached},
        "actuator": {"system": "azure-ml", "options": dict(reached)},
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
