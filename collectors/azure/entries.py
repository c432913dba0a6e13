"""What the discoveries of Azure's systems share: whom they ask, and how an entry of the settings is written.

Secrets stand in it by reference only.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, Field

from collectors.azure.client import AzureClient, shared
from collectors.azure.credentials import AzureAccount
from collectors.discovery import DiscoveryContext, options_of
from collectors.window import CollectError

S = TypeVar("S", bound="SubscriptionOptions")


class SubscriptionOptions(AzureAccount):
    """What ``flyball discover`` takes of a system of Azure's: the account, and which subscription."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subscription: str = Field(default="", pattern=r"^([0-9a-fA-F-]{36})?$")
    """The subscription's id."""


def options_in(model: type[S], context: DiscoveryContext, system: str) -> S:
    """Raises CollectError ``settings``."""
    options = options_of(model, context.options, system)
    if not options.subscription:
        text = f"{system}: say which subscription: --option subscription=ID (`az account show --query id`)"
        raise CollectError("settings", text)
    return options


def client_of(context: DiscoveryContext, options: SubscriptionOptions) -> AzureClient:
    """Raises CollectError ``credentials``."""
    account = AzureAccount(**options.model_dump(include=set(AzureAccount.model_fields)))
    return shared(context.sessions, options.subscription.lower(), account, context.http, context.clock)


def account_in(stated: Mapping[str, Any]) -> AzureAccount:
    """Of the options of a source or an actuator. Raises ValueError."""
    return AzureAccount(**{k: v for k, v in stated.items() if k in AzureAccount.model_fields})


def access(account: AzureAccount, resource: str) -> dict[str, Any]:
    """The options of a source and an actuator."""
    stated = account.model_dump(mode="json", exclude_defaults=True, include=set(AzureAccount.model_fields))
    secrets = {k: f"${{AZURE_{k.upper()}}}" for k in ("client_secret", "token", "metrics_token") if stated.get(k)}
    return {"resource": resource, **stated, **secrets}


def key_reference(name: str) -> str:
    """Of an endpoint's own key."""
    return f"${{{re.sub(r'[^A-Z0-9]+', '_', name.upper())}_KEY}}"


def free_name(own: str, home: str, taken: Collection[str]) -> str:
    """Its own, with that of where it is, or a number, where that is not enough to tell it apart."""
    short = re.sub(r"[^a-z0-9._-]+", "-", own.lower())[:50]
    longer = re.sub(r"[^a-z0-9._-]+", "-", f"{own}-{home}".lower())[:60]
    names = itertools.chain((short, longer), (f"{longer}-{n}" for n in itertools.count(2)))
    return next(name for name in names if name not in taken)
