"""Serverless endpoints of Machine Learning workspaces (models as a service): what is there, and the least role to see it.

Azure tells their model and their state. It tells no limit of theirs, and no metric of them is documented: their calls are seen where they
are made (the sources ``otlp`` and ``litellm``). Partners' models in Foundry accounts are others: the system ``azure-openai`` has those.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import BaseModel

from collectors.azure.client import ML_VERSION, shared
from collectors.azure.entries import (
    SubscriptionOptions,
    access,
    account_in,
    client_of,
    free_name,
    key_reference,
    options_in,
)
from collectors.azure.names import ML
from collectors.azure.permissions import MAAS_ROLE
from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, Support
from collectors.window import CollectError

_ID = re.compile(
    rf"^/subscriptions/([0-9a-f-]{{36}})/resourceGroups/([^/]+)/providers/{re.escape(ML)}/workspaces/([^/]+)/serverlessEndpoints/([^/]+)$",
    re.IGNORECASE,
)
_SHOWN = f"/subscriptions/…/resourceGroups/…/providers/{ML}/workspaces/…/serverlessEndpoints/…"


@dataclass(frozen=True, slots=True)
class ServerlessId:
    """Where a serverless endpoint is."""

    subscription: str
    group: str
    workspace: str
    name: str

    @classmethod
    def parse(cls, text: str) -> ServerlessId:
        """Raises ValueError where it is not the id of a serverless endpoint."""
        match = _ID.match(text.rstrip("/"))
        if match is None:
            raise ValueError(f"{text!r} is not the resource id of a serverless endpoint: {_SHOWN}")
        return cls(match[1].lower(), match[2], match[3], match[4])

    @property
    def workspace_path(self) -> str:
        return (
            f"/subscriptions/{self.subscription}/resourceGroups/{self.group}/providers/{ML}/workspaces/{self.workspace}"
        )

    @property
    def path(self) -> str:
        return f"{self.workspace_path}/serverlessEndpoints/{self.name}"


class ServerlessDiscoveryOptions(SubscriptionOptions):
    """What ``flyball discover azure-maas`` takes: the account, and which subscription."""

    workspace: str | None = None
    """Only of this workspace. Default: of all that can be seen."""


class AzureMaasSystem:
    """See ``collectors.discovery.System``."""

    name: ClassVar[str] = "azure-maas"
    options: ClassVar[type[BaseModel]] = ServerlessDiscoveryOptions
    support: ClassVar[Support] = Support(
        title="serverless endpoints of models as a service (Azure ML / AI Foundry)",
        sees=("model and state; its calls where they are made, by `otlp` or `litellm`",),
        changes=("nothing: it has no capacity. A patch with figures: how many endpoints, which limits before them",),
        verified="specification only",
        how="a strict stand-in of ARM, made after its specification",
    )

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        options = options_in(ServerlessDiscoveryOptions, context, self.name)
        client = client_of(context, options)
        taken: set[str] = set()
        async for workspace in client.pages(
            f"/subscriptions/{client.subscription}/providers/{ML}/workspaces", ML_VERSION
        ):
            if options.workspace is not None and workspace.get("name") != options.workspace:
                continue
            async for body in client.pages(f"{workspace.get('id')}/serverlessEndpoints", ML_VERSION):
                entry = found(body, options, taken)
                taken.add(entry.name)
                yield entry

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        """``entry``: an endpoint's settings, whose actuator names the resource."""
        if entry is None:
            options = options_in(ServerlessDiscoveryOptions, context, self.name)
            return await MAAS_ROLE.permitted(client_of(context, options), None)
        stated = dict((entry.get("actuator") or {}).get("options") or {})
        try:
            id_, account = ServerlessId.parse(str(stated.get("resource", ""))), account_in(stated)
        except ValueError as error:
            raise CollectError("settings", f"{self.name}: {error}") from error
        client = shared(context.sessions, id_.subscription, account, context.http, context.clock)
        return await MAAS_ROLE.permitted(client, id_.workspace_path)

    def permissions(self) -> str:
        return MAAS_ROLE.definition()


def model_of(body: Mapping[str, Any]) -> str:
    """The last part of the model's id in the catalogue: ``Mistral-large``."""
    told = ((body.get("properties") or {}).get("modelSettings") or {}).get("modelId")
    return str(told or "").rstrip("/").rpartition("/")[2]


def found(body: Mapping[str, Any], options: SubscriptionOptions, taken: set[str]) -> DiscoveredEndpoint:
    """A serverless endpoint as an entry of the settings."""
    id_ = ServerlessId.parse(str(body.get("id")))
    parts = urlsplit(str(((body.get("properties") or {}).get("inferenceEndpoint") or {}).get("uri") or ""))
    name = free_name(id_.name, id_.workspace, taken)
    settings: dict[str, Any] = {
        "name": name,
        "url": f"{parts.scheme}://{parts.netloc}",
        "model": model_of(body) or None,
        "api_key": key_reference(name),
        "sources": {"otlp": {}},
        "actuator": {"system": "azure-maas", "options": access(options, id_.path)},
        "kind": "quota",
        "objective": {"throttle_rate": 0.01, "error_rate": 0.01},
        "mode": "observe",
    }
    note = (
        f"{model_of(body)}, {(body.get('properties') or {}).get('endpointState', 'state unknown')}\n"
        "Azure tells no limit of it: state it, as its page in the catalogue has it: shape: {purchase: {amount: N, unit: tokens_per_minute}}"
    )
    return DiscoveredEndpoint(name, settings, note)
