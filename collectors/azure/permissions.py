"""What Flyball must be allowed to do on an online endpoint: the least role, and which part of it an identity has.

Azure tells what an identity may do at a place, without anything being tried.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from collectors.azure.client import PERMISSIONS_VERSION, AzureClient
from collectors.azure.names import DEPLOYMENTS, ENDPOINTS, ML, EndpointId
from collectors.discovery import Permission

#: Each action, what it is for, where it is needed, and the sentence for people.
ACTIONS: tuple[tuple[str, Literal["see", "change"], Literal["subscription", "workspace"], str], ...] = (
    ("Microsoft.Authorization/permissions/read", "see", "subscription", "say which permission lacks"),
    (
        "Microsoft.Resources/subscriptions/resources/read",
        "see",
        "subscription",
        "know what has changed, in one list for all",
    ),
    (f"{ML}/workspaces/read", "see", "subscription", "find workspaces"),
    (f"{ENDPOINTS}/read", "see", "workspace", "read endpoints and their traffic"),
    (f"{DEPLOYMENTS}/read", "see", "workspace", "read deployments: size, count, state"),
    (f"{ML}/locations/mfeOperationsStatus/read", "see", "subscription", "follow long operations"),
    (f"{ML}/locations/mfeOperationResults/read", "see", "subscription", "follow long operations"),
    (f"{ML}/locations/vmSizes/read", "see", "subscription", "know the VM sizes of a region, and their prices"),
    (f"{ML}/locations/usages/read", "see", "subscription", "know how many cores are free"),
    ("Microsoft.Insights/Metrics/Read", "see", "subscription", "read metrics, many endpoints with each question"),
    ("Microsoft.Insights/AutoscaleSettings/Read", "see", "subscription", "know who owns the count"),
    (f"{ENDPOINTS}/write", "change", "workspace", "move traffic"),
    (f"{DEPLOYMENTS}/write", "change", "workspace", "change the count, deploy another size"),
    (f"{DEPLOYMENTS}/delete", "change", "workspace", "delete the old deployment after the verdict"),
    ("Microsoft.Insights/AutoscaleSettings/Write", "change", "subscription", "tune an autoscaler's bounds"),
)


def role(subscription: str = "SUBSCRIPTION-ID") -> str:
    """The least role, as ``az role definition create --role-definition`` takes it; without the lines of ``change`` to observe only."""
    return json.dumps(
        {
            "Name": "Flyball",
            "Description": "Sees online endpoints and their metrics, and changes their size and count.",
            "Actions": [action for action, *_ in ACTIONS],
            "AssignableScopes": [f"/subscriptions/{subscription}"],
        },
        indent=2,
    )


async def permitted(client: AzureClient, endpoint: EndpointId | None) -> list[Permission]:
    """Each action with its verdict: of one endpoint, or without one of discovery alone. Raises ``AzureError``."""
    subscription = f"/subscriptions/{client.subscription}"
    scopes = {"subscription": await _granted(client, subscription)}
    if endpoint is not None:
        scopes["workspace"] = await _granted(client, endpoint.workspace_path)
    found = []
    for action, what_for, scope, why in ACTIONS:
        if scope not in scopes:
            continue
        granted = allows(scopes[scope], action)
        at = subscription if scope == "subscription" or endpoint is None else endpoint.workspace_path
        found.append(Permission(action, what_for, granted, "" if granted else f"needed on {at} to {why}"))
    return found


def allows(rows: Iterable[Mapping[str, Any]], action: str) -> bool:
    """Whether any role's actions hold it, and that role's exceptions do not."""

    def among(patterns: Sequence[str] | None) -> bool:
        return any(fnmatch.fnmatchcase(action.lower(), str(pattern).lower()) for pattern in patterns or ())

    return any(among(row.get("actions")) and not among(row.get("notActions")) for row in rows)


async def _granted(client: AzureClient, scope: str) -> list[dict[str, Any]]:
    return [
        row async for row in client.pages(f"{scope}/providers/Microsoft.Authorization/permissions", PERMISSIONS_VERSION)
    ]
