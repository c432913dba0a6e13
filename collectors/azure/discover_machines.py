"""``flyball discover azure-vm`` and its permissions: virtual machines, scale sets and AKS node pools, as entries of the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel

from collectors.azure.client import AKS_VERSION, COMPUTE_VERSION, AzureClient, shared
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
from collectors.azure.machines import COMPUTE, CONTAINERS, MachineId, MachineSize, machine_sizes
from collectors.azure.permissions import MACHINE_ROLE
from collectors.azure.retail import PRICES_URL, machine_price
from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, Support
from collectors.window import CollectError

#: What the actions on each kind begin with.
_PROVIDERS = {
    "vm": f"{COMPUTE}/virtualMachines/",
    "set": f"{COMPUTE}/virtualMachineScaleSets/",
    "pool": f"{CONTAINERS}/managedClusters/",
}


class MachineDiscoveryOptions(SubscriptionOptions):
    """What ``flyball discover azure-vm`` takes: the account, and which subscription."""

    group: str | None = None
    """Only of this resource group. Default: of all that can be seen."""
    tag: str | None = None
    """Only what has this tag; pools have the tags of their own. Default: all."""
    prices: bool = True
    """Whether Azure's public price list is asked for each size."""
    prices_url: str = PRICES_URL
    """The price list."""


class AzureMachineSystem:
    """See ``collectors.discovery.System``."""

    name: ClassVar[str] = "azure-vm"
    options: ClassVar[type[BaseModel]] = MachineDiscoveryOptions
    support: ClassVar[Support] = Support(
        title="machines of one's own cloud: virtual machines, scale sets, AKS node pools",
        sees=(
            "CPU and memory of machines and sets, minutes late; GPUs and pools by `prometheus` (node_exporter, DCGM)",
            "what serves by the model server's own source",
            "sizes, cores free, list prices",
        ),
        changes=(
            "a machine's size, in place or by leaving its hardware",
            "a scale set's count and size",
            "a pool's count or bounds; its size as a patch to make by hand",
        ),
        verified="official SDK",
        how="a strict stand-in of ARM that azure-mgmt-compute and azure-mgmt-containerservice drive too",
    )

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        options = options_in(MachineDiscoveryOptions, context, self.name)
        client = client_of(context, options)
        taken: set[str] = set()
        async for body, region in _all(client):
            id_ = MachineId.parse(str(body.get("id")))
            tags = (body.get("properties") or {}).get("tags") if id_.kind == "pool" else body.get("tags")
            if options.group is not None and id_.path.split("/")[4].lower() != options.group.lower():
                continue
            if options.tag is not None and options.tag not in (tags or {}):
                continue
            entry = found(id_, options, taken, await _note(context, client, options, id_, body, region))
            taken.add(entry.name)
            yield entry

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        """``entry``: an endpoint's settings, whose actuator or source names the resource."""
        if entry is None:
            options = options_in(MachineDiscoveryOptions, context, self.name)
            return await MACHINE_ROLE.permitted(client_of(context, options), None)
        stated = dict((entry.get("actuator") or {}).get("options") or (entry.get("sources") or {}).get(self.name) or {})
        try:
            id_, account = MachineId.parse(str(stated.get("resource", ""))), account_in(stated)
        except ValueError as error:
            raise CollectError("settings", f"{self.name}: {error}") from error
        client = shared(context.sessions, id_.subscription, account, context.http, context.clock)
        own = _PROVIDERS[id_.kind].lower()
        others = tuple(p.lower() for p in _PROVIDERS.values() if p.lower() != own)
        return [
            row for row in await MACHINE_ROLE.permitted(client, id_.path) if not row.name.lower().startswith(others)
        ]

    def permissions(self) -> str:
        return MACHINE_ROLE.definition()


async def _all(client: AzureClient) -> AsyncIterator[tuple[Mapping[str, Any], str]]:
    """Each with its region. What may not be listed is not there for us."""
    base = f"/subscriptions/{client.subscription}/providers"
    lists = (
        (f"{base}/{COMPUTE}/virtualMachines", COMPUTE_VERSION),
        (f"{base}/{COMPUTE}/virtualMachineScaleSets", COMPUTE_VERSION),
    )
    for path, version in lists:
        async for body in client.pages(path, version):
            yield body, str(body.get("location", "")).replace(" ", "").lower()
    async for cluster in client.pages(f"{base}/{CONTAINERS}/managedClusters", AKS_VERSION):
        async for pool in client.pages(f"{cluster.get('id')}/agentPools", AKS_VERSION):
            yield pool, str(cluster.get("location", "")).replace(" ", "").lower()


def found(id_: MachineId, options: SubscriptionOptions, taken: set[str], note: str) -> DiscoveredEndpoint:
    """A machine as an entry of the settings. Where its model answers is nothing that Azure tells."""
    name = free_name(id_.name, id_.path.split("/")[8 if id_.kind == "pool" else 4], taken)
    reached = access(options, id_.path)
    settings: dict[str, Any] = {
        "name": name,
        "url": f"http://{name}:8000",
        "api_key": key_reference(name),
        "sources": {"vllm": {}} if id_.kind == "pool" else {"vllm": {}, "azure-vm": reached},
        "actuator": {"system": "azure-vm", "options": dict(reached)},
        "mode": "observe",
    }
    return DiscoveredEndpoint(
        name, settings, f"{note}\nits address and what serves on it are not Azure's to tell: correct url and sources"
    )


async def _note(
    context: DiscoveryContext,
    client: AzureClient,
    options: MachineDiscoveryOptions,
    id_: MachineId,
    body: Mapping[str, Any],
    region: str,
) -> str:
    """What runs, and the line for `sizes`."""
    told = body.get("properties") or {}
    size = str(
        (told.get("hardwareProfile") or {}).get("vmSize") or told.get("vmSize") or (body.get("sku") or {}).get("name")
    )
    count = 1 if id_.kind == "vm" else told.get("count", (body.get("sku") or {}).get("capacity"))
    lines = [f"{count} x {size}, {region}"]
    known = await _size(context, client, region, size)
    if known is not None:
        price = ""
        if options.prices:
            try:
                usd = await machine_price(context.http, region, size, options.prices_url)
                price = "" if usd is None else f"usd_per_replica_hour: {usd:g}, "
            except AzureError as error:
                lines.append(f"prices: {error.detail}")
        lines.append(f"sizes: {{{size}: {{{price}cpus: {known.cores}}}}}")
    return "\n".join(lines)


async def _size(context: DiscoveryContext, client: AzureClient, region: str, size: str) -> MachineSize | None:
    try:
        return (await machine_sizes(context.sessions, client).sizes(region)).get(size)
    except AzureError as error:
        if error.kind != "denied":
            raise
        return None
