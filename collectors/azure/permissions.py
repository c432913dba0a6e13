"""What Flyball must be allowed to do on Azure's systems: the least role of each, and which part of it an identity has.

Azure tells what an identity may do at a place, without anything being tried.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from collectors.azure.accounts import ACCOUNTS, COGNITIVE
from collectors.azure.client import PERMISSIONS_VERSION, AzureClient
from collectors.azure.machines import COMPUTE, CONTAINERS
from collectors.azure.names import DEPLOYMENTS, ENDPOINTS, ML
from collectors.discovery import Permission

#: An action, what it is for, where it is needed, and the sentence for people.
RoleAction = tuple[str, Literal["see", "change"], Literal["subscription", "resource"], str]


@dataclass(frozen=True, slots=True)
class AzureRole:
    """The least that one system needs."""

    name: str
    description: str
    actions: tuple[RoleAction, ...]

    def definition(self, subscription: str = "SUBSCRIPTION-ID") -> str:
        """As ``az role definition create --role-definition`` takes it; without the actions of ``change`` to observe only."""
        return json.dumps(
            {
                "Name": self.name,
                "Description": self.description,
                "Actions": [action for action, *_ in self.actions],
                "AssignableScopes": [f"/subscriptions/{subscription}"],
            },
            indent=2,
        )

    async def permitted(self, client: AzureClient, resource: str | None) -> list[Permission]:
        """Each action with its verdict: at one resource's path, or without one of discovery alone. Raises ``AzureError``."""
        subscription = f"/subscriptions/{client.subscription}"
        scopes = {"subscription": await _granted(client, subscription)}
        if resource is not None:
            scopes["resource"] = await _granted(client, resource)
        found = []
        for action, what_for, scope, why in self.actions:
            if scope not in scopes:
                continue
            granted = allows(scopes[scope], action)
            at = subscription if scope == "subscription" or resource is None else resource
            found.append(Permission(action, what_for, granted, "" if granted else f"needed on {at} to {why}"))
        return found


_ASK: RoleAction = ("Microsoft.Authorization/permissions/read", "see", "subscription", "say which permission lacks")
_METRICS: RoleAction = (
    "Microsoft.Insights/Metrics/Read",
    "see",
    "subscription",
    "read metrics, many resources with each question",
)

ML_ROLE = AzureRole(
    "Flyball",
    "Sees online endpoints and their metrics, and changes their size and count.",
    (
        _ASK,
        (
            "Microsoft.Resources/subscriptions/resources/read",
            "see",
            "subscription",
            "know what has changed, in one list for all",
        ),
        (f"{ML}/workspaces/read", "see", "subscription", "find workspaces"),
        (f"{ENDPOINTS}/read", "see", "resource", "read endpoints and their traffic"),
        (f"{DEPLOYMENTS}/read", "see", "resource", "read deployments: size, count, state"),
        (f"{ML}/locations/mfeOperationsStatus/read", "see", "subscription", "follow long operations"),
        (f"{ML}/locations/mfeOperationResults/read", "see", "subscription", "follow long operations"),
        (f"{ML}/locations/vmSizes/read", "see", "subscription", "know the VM sizes of a region, and their prices"),
        (f"{ML}/locations/usages/read", "see", "subscription", "know how many cores are free"),
        _METRICS,
        ("Microsoft.Insights/AutoscaleSettings/Read", "see", "subscription", "know who owns the count"),
        (f"{ENDPOINTS}/write", "change", "resource", "move traffic"),
        (f"{DEPLOYMENTS}/write", "change", "resource", "change the count, deploy another size"),
        (f"{DEPLOYMENTS}/delete", "change", "resource", "delete the old deployment after the verdict"),
        ("Microsoft.Insights/AutoscaleSettings/Write", "change", "subscription", "tune an autoscaler's bounds"),
    ),
)

MAAS_ROLE = AzureRole(
    "Flyball for serverless endpoints",
    "Sees serverless endpoints.",
    (
        _ASK,
        (f"{ML}/workspaces/read", "see", "subscription", "find workspaces"),
        (f"{ML}/workspaces/serverlessEndpoints/read", "see", "resource", "read serverless endpoints: model, state"),
    ),
)

_VM, _SET, _POOL = (
    f"{COMPUTE}/virtualMachines",
    f"{COMPUTE}/virtualMachineScaleSets",
    f"{CONTAINERS}/managedClusters",
)
MACHINE_ROLE = AzureRole(
    "Flyball for machines",
    "Sees virtual machines, scale sets and node pools and their metrics, and changes their size and count.",
    (
        _ASK,
        (f"{COMPUTE}/skus/read", "see", "subscription", "know the sizes of a region"),
        (f"{COMPUTE}/locations/usages/read", "see", "subscription", "know how many cores are free"),
        (f"{COMPUTE}/locations/operations/read", "see", "subscription", "follow long operations"),
        (f"{CONTAINERS}/locations/operations/read", "see", "subscription", "follow long operations of pools"),
        _METRICS,
        ("Microsoft.Insights/AutoscaleSettings/Read", "see", "subscription", "know who owns a scale set's count"),
        (f"{_VM}/read", "see", "resource", "find machines, and read their size"),
        (f"{_VM}/instanceView/read", "see", "resource", "know whether a machine runs"),
        (f"{_VM}/vmSizes/read", "see", "resource", "know which sizes its hardware has"),
        (f"{_SET}/read", "see", "resource", "find scale sets, and read their size and count"),
        (f"{_SET}/virtualMachines/read", "see", "resource", "know which machines are what the set says"),
        (f"{_POOL}/read", "see", "resource", "find clusters"),
        (f"{_POOL}/agentPools/read", "see", "resource", "read pools: size, count, bounds"),
        (f"{_VM}/write", "change", "resource", "change a machine's size"),
        (f"{_VM}/deallocate/action", "change", "resource", "take a machine off its hardware"),
        (f"{_VM}/start/action", "change", "resource", "start it again"),
        (f"{_SET}/write", "change", "resource", "change a scale set's count and size"),
        (f"{_SET}/manualUpgrade/action", "change", "resource", "have its machines become what it says"),
        (f"{_POOL}/agentPools/write", "change", "resource", "change a pool's count or bounds"),
    ),
)

OPENAI_ROLE = AzureRole(
    "Flyball for Azure OpenAI",
    "Sees model deployments and their metrics, and changes their capacity.",
    (
        _ASK,
        (f"{ACCOUNTS}/read", "see", "subscription", "find accounts"),
        (f"{ACCOUNTS}/deployments/read", "see", "resource", "read deployments: sku, capacity, limits, state"),
        (f"{ACCOUNTS}/models/read", "see", "resource", "know which amounts a model may be given, and its quota's name"),
        (f"{COGNITIVE}/locations/usages/read", "see", "subscription", "know how much quota is free"),
        (f"{COGNITIVE}/locations/modelCapacities/read", "see", "subscription", "know what Azure itself has left"),
        (
            f"{COGNITIVE}/calculateModelCapacity/action",
            "see",
            "subscription",
            "know what a unit of provisioned throughput carries",
        ),
        (f"{COGNITIVE}/locations/operationResults/read", "see", "subscription", "follow long operations"),
        _METRICS,
        (f"{ACCOUNTS}/deployments/write", "change", "resource", "change a deployment's capacity"),
    ),
)


def allows(rows: Iterable[Mapping[str, Any]], action: str) -> bool:
    """Whether any role's actions hold it, and that role's exceptions do not."""

    def among(patterns: Sequence[str] | None) -> bool:
        return any(fnmatch.fnmatchcase(action.lower(), str(pattern).lower()) for pattern in patterns or ())

    return any(among(row.get("actions")) and not among(row.get("notActions")) for row in rows)


async def _granted(client: AzureClient, scope: str) -> list[dict[str, Any]]:
    return [
        row async for row in client.pages(f"{scope}/providers/Microsoft.Authorization/permissions", PERMISSIONS_VERSION)
    ]
