"""``flyball discover litellm`` and ``flyball permissions litellm``: each model that a proxy serves, as an endpoint."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, Field, SecretStr

from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, Support, options_of
from collectors.litellm.client import (
    DEPLOYMENTS,
    KEY_VARIABLE,
    METRICS,
    ROUTER,
    LiteLLMClient,
    ProxyDeployment,
    ProxySettings,
    shared,
)

_SEES = (DEPLOYMENTS, ROUTER, METRICS)


class ProxyDiscoveryOptions(ProxySettings):
    """What ``flyball discover litellm`` takes: the proxy, and its key."""

    url: str = Field(default="http://127.0.0.1:4000", pattern=r"^https?://[^/\s]+")
    """The proxy's address, without `/v1`. Default: LiteLLM's own port on this host."""
    config: Path | None = None
    """The proxy's file, on this host, for the entries. Default: none, and the proxy is only seen."""


class LiteLLMSystem:
    """See ``collectors.discovery.System``."""

    name: ClassVar[str] = "litellm"
    options: ClassVar[type[BaseModel]] = ProxyDiscoveryOptions
    support: ClassVar[Support] = Support(
        title="a model group of a LiteLLM proxy",
        sees=(
            "requests by outcome",
            "end-to-end, and TTFT of streamed requests, also by deployment",
            "tokens, cached ones apart, and by team, key, user or customer",
            "what the proxy charged",
            "deployments, their weights and limits, the router's settings and fallbacks",
        ),
        changes=(
            "a deployment's weight, rpm, tpm, max_parallel_requests and order; fallbacks; the router's strategy, retries and cooldown: "
            "by the proxy's file and a restart",
            "a patch to make by hand, where Flyball may not restart it",
        ),
        verified="real part",
        how="a real LiteLLM proxy 1.106 without a database, from discovery to the ledger and back; its database and management API are not used",
    )

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        options = options_of(ProxyDiscoveryOptions, context.options, "litellm")
        groups: dict[str, list[ProxyDeployment]] = {}
        for one in await _client(context, options, options.url, {}).deployments():
            groups.setdefault(one.group, []).append(one)
        taken: set[str] = set()
        for group, deployments in groups.items():
            entry = found(group, deployments, options, taken)
            taken.add(entry.name)
            yield entry

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        """What the key may read; and of an endpoint that this system holds, whether file and command are within reach."""
        actuator = (entry or {}).get("actuator") or {}
        held = dict(actuator.get("options") or {}) if actuator.get("system") == self.name else {}
        url, headers = None, {}
        if entry is not None:
            source = dict((entry.get("sources") or {}).get(self.name) or {})
            held.setdefault("key", source.get("key"))
            url, key = str(entry["url"]), entry.get("api_key")
            headers = {} if key is None else {"Authorization": f"Bearer {_text(key)}"}
        own = {k: v for k, v in held.items() if k in (*ProxySettings.model_fields, "config") and v is not None}
        options = options_of(ProxyDiscoveryOptions, own if entry is not None else context.options, "litellm")
        client = _client(context, options, url or options.url, headers)
        only_source = entry is not None and actuator.get("system") != self.name
        seen = [await _page(client, path) for path in ((METRICS,) if only_source else _SEES)]
        if entry is None or only_source or options.config is None:
            return seen
        return [*seen, *_file(options.config)]

    def permissions(self) -> str:
        return _ROLE


def _text(key: Any) -> str:
    return key.get_secret_value() if isinstance(key, SecretStr) else str(key)


async def _page(client: LiteLLMClient, path: str) -> Permission:
    granted, detail = await client.allowed(path)
    return Permission(f"GET {path}", "see", granted, detail)


def _file(config: Path) -> list[Permission]:
    real = Path(os.path.realpath(config))
    needs = ((f"read {config}", "see", real, os.R_OK), (f"write {config}", "change", real, os.W_OK))
    permissions = [
        Permission(name, "see" if what_for == "see" else "change", os.access(at, mode), f"as user id {os.geteuid()}")
        for name, what_for, at, mode in needs
    ]
    text = "a file is written beside it and renamed, so that the proxy never reads half of it"
    return [*permissions, Permission(f"write {real.parent}", "change", os.access(real.parent, os.W_OK), text)]


def found(
    group: str, deployments: Sequence[ProxyDeployment], options: ProxyDiscoveryOptions, taken: set[str]
) -> DiscoveredEndpoint:
    """A model group as an entry of the settings. Secrets stand in it by reference only."""
    own = re.sub(r"[^a-z0-9._-]+", "-", group.lower()).strip("-")[:60] or "model"
    name = own if own not in taken else next(n for i in range(2, 10_000) if (n := f"{own}-{i}") not in taken)
    stored = any(d.stored for d in deployments)
    held = {} if options.config is None or stored else {"config": str(options.config)}
    if options.key_file is not None:
        held["key_file"] = str(options.key_file)
    settings: dict[str, Any] = {
        "name": name,
        "url": options.url.rstrip("/"),
        "model": group,
        "kind": "vm",
        "api_key": f"file:{options.key_file}" if options.key_file is not None else f"${{{KEY_VARIABLE}}}",
        "sources": {"litellm": {}},
        "actuator": {"system": "litellm", "options": held},
        "policy": {"min_replicas": len(deployments), "max_replicas": len(deployments)},
        "mode": "observe",
    }
    notes = [
        "; ".join(
            f"{d.id[:12]}: {d.params.get('model')} at {d.params.get('api_base') or 'its provider'}" for d in deployments
        )
    ]
    if stored:
        notes.append("it stands in the proxy's database: seen, and changed there by its API")
    elif options.config is None:
        notes.append("to change it, name the proxy's file and the command that restarts it: options config and restart")
    else:
        notes.append("to change it, name the command that restarts the proxy: option restart")
    if any(len(d.id) == 64 for d in deployments):
        notes.append("give each deployment a model_info.id: LiteLLM's own changes with its limits")
    return DiscoveredEndpoint(name, settings, "\n".join(notes))


def _client(
    context: DiscoveryContext, options: ProxyDiscoveryOptions, url: str, headers: Mapping[str, str]
) -> LiteLLMClient:
    settings = ProxySettings(key=options.key, key_file=options.key_file)
    return shared(context.sessions, url, settings, headers, context.http)


_ROLE = f"""\
# To see. A proxy without a database knows one key, its master key; Flyball sends GETs of {", ".join(_SEES)} with it.
# With a database: a key that may read those three.
export {KEY_VARIABLE}=...          # api_key: ${{{KEY_VARIABLE}}}

# To change: Flyball's user writes the file and its folder, and may restart the proxy. Leave it out for mode observe.
chgrp flyball /etc/litellm /etc/litellm/config.yaml
chmod g+w /etc/litellm /etc/litellm/config.yaml
cat > /etc/polkit-1/rules.d/50-flyball-litellm.rules <<'END'
polkit.addRule(function(action, subject) {{
  if (action.id == "org.freedesktop.systemd1.manage-units" && subject.user == "flyball" &&
      action.lookup("unit") == "litellm.service" && action.lookup("verb") == "restart") {{
    return polkit.Result.YES;
  }}
}});
END
"""
