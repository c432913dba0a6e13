"""``flyball discover azure-openai`` and its permissions: every model deployment of a subscription, as entries of the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import BaseModel

from collectors.azure.accounts import COGNITIVE, ModelAccount, ModelDeploymentId, ModelOffer, model_accounts
from collectors.azure.client import COGNITIVE_VERSION, AzureClient, shared
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
from collectors.azure.permissions import OPENAI_ROLE
from collectors.azure.retail import PRICES_URL, meter_prices
from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, Support
from collectors.window import CollectError


class ModelDiscoveryOptions(SubscriptionOptions):
    """What ``flyball discover azure-openai`` takes: the account, and which subscription."""

    account: str | None = None
    """Only of this account. Default: of all that can be seen."""
    prices: bool = True
    """Whether Azure's public price list is asked for the meters of each model."""
    prices_url: str = PRICES_URL
    """The price list."""


class AzureOpenAiSystem:
    """See ``collectors.discovery.System``."""

    name: ClassVar[str] = "azure-openai"
    options: ClassVar[type[BaseModel]] = ModelDiscoveryOptions
    support: ClassVar[Support] = Support(
        title="Azure OpenAI and Foundry model deployments: standard, global, data zone, provisioned",
        sees=(
            "requests, errors, throttling, spillover; tokens, cached ones apart",
            "mean times, minutes late (no percentiles)",
            "PTU utilisation",
            "sku, capacity, effective limits, quota, Azure's own capacity, list prices by meter",
        ),
        changes=("capacity: tokens a minute or PTU; another sku or version as a patch to make by hand",),
        verified="official SDK",
        how="a strict stand-in of ARM and Azure Monitor that azure-mgmt-cognitiveservices and azure-monitor-querymetrics drive too",
    )

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        options = options_in(ModelDiscoveryOptions, context, self.name)
        client = client_of(context, options)
        accounts = model_accounts(context.sessions, client)
        taken: set[str] = set()
        path = f"/subscriptions/{client.subscription}/providers/{COGNITIVE}/accounts"
        async for row in client.pages(path, COGNITIVE_VERSION):
            if options.account is not None and row.get("name") != options.account:
                continue
            account = await accounts.account(str(row.get("id")), fresh=True)
            for deployment in account.deployments:
                offer = await _told_offer(client, context, account, deployment)
                note = _note(account, deployment) + await _prices(context, options, offer)
                entry = found(account, deployment, options, taken, note)
                taken.add(entry.name)
                yield entry

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        """``entry``: an endpoint's settings, whose actuator or source names the resource."""
        if entry is None:
            options = options_in(ModelDiscoveryOptions, context, self.name)
            return await OPENAI_ROLE.permitted(client_of(context, options), None)
        stated = dict((entry.get("actuator") or {}).get("options") or (entry.get("sources") or {}).get(self.name) or {})
        try:
            id_, account = ModelDeploymentId.parse(str(stated.get("resource", ""))), account_in(stated)
        except ValueError as error:
            raise CollectError("settings", f"{self.name}: {error}") from error
        client = shared(context.sessions, id_.subscription, account, context.http, context.clock)
        return await OPENAI_ROLE.permitted(client, id_.account_path)

    def permissions(self) -> str:
        return OPENAI_ROLE.definition()


def found(
    account: ModelAccount, deployment: Mapping[str, Any], options: SubscriptionOptions, taken: set[str], note: str
) -> DiscoveredEndpoint:
    """A deployment as an entry of the settings. Callers name the deployment as the model."""
    own = str(deployment.get("name"))
    parts = urlsplit(str((account.body.get("properties") or {}).get("endpoint") or ""))
    name = free_name(own, account.path.rpartition("/")[2], taken)
    reached = access(options, f"{account.path}/deployments/{own}")
    provisioned = "provisioned" in str((deployment.get("sku") or {}).get("name", "")).lower()
    settings: dict[str, Any] = {
        "name": name,
        "url": f"{parts.scheme}://{parts.netloc}",
        "model": own,
        "api_key": key_reference(name),
        "sources": {"azure-openai": reached},
        "actuator": {"system": "azure-openai", "options": dict(reached)},
        "kind": "ptu" if provisioned else "quota",
        "objective": {"throttle_rate": 0.01, "error_rate": 0.01},
        "mode": "observe",
    }
    return DiscoveredEndpoint(name, settings, note)


def _note(account: ModelAccount, deployment: Mapping[str, Any]) -> str:
    told, sku = deployment.get("properties") or {}, deployment.get("sku") or {}
    model = told.get("model") or {}
    lines = [
        f"{model.get('name')} {model.get('version')} as {sku.get('name')}, capacity {sku.get('capacity')}, {account.region}"
    ]
    lines += [
        f"limit: {rule.get('count'):,g} {rule.get('key')}s in {rule.get('renewalPeriod')} s"
        for rule in told.get("rateLimits") or ()
        if isinstance(rule.get("count"), int | float)
    ]
    if told.get("spilloverDeploymentName"):
        lines.append(f"spills over to {told['spilloverDeploymentName']}: its prices per token are this endpoint's, too")
    return "\n".join(lines)


async def _told_offer(
    client: AzureClient, context: DiscoveryContext, account: ModelAccount, deployment: Mapping[str, Any]
) -> ModelOffer | None:
    """None where it may not be read."""
    model = (deployment.get("properties") or {}).get("model") or {}
    sku = str((deployment.get("sku") or {}).get("name", ""))
    try:
        return await model_accounts(context.sessions, client).offer(account.path, model, sku)
    except AzureError as error:
        if error.kind not in ("denied", "missing"):
            raise
        return None


async def _prices(context: DiscoveryContext, options: ModelDiscoveryOptions, offer: ModelOffer | None) -> str:
    """Lines of a note: whose meaning is for a person to read, since the meters' names are not spelt in one way."""
    if not options.prices or offer is None or not offer.meters:
        return ""
    try:
        told = await meter_prices(context.http, offer.meters, options.prices_url)
    except AzureError as error:
        return f"\nprices: {error.detail}"
    lines = [str(told[meter]) if meter in told else f"meter {meter}: its price is not known" for meter in offer.meters]
    return "\n" + "\n".join(lines)
