"""``flyball discover ray-serve`` and ``flyball permissions ray-serve``: each application, as an endpoint."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import BaseModel

from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, Support, options_of
from collectors.rayserve.client import (
    APPLICATIONS,
    DashboardSettings,
    RayServeClient,
    ServeApplication,
    ServeState,
    shared,
)
from collectors.window import CollectError


class ServeDiscoveryOptions(DashboardSettings):
    """What ``flyball discover ray-serve`` takes: the dashboard, its token, and where the nodes' metrics are."""

    metrics: str | None = None
    """Address of a node's metrics, for the entries. Default: port 8080 of the dashboard's host."""


class RayServeSystem:
    """See ``collectors.discovery.System``."""

    name: ClassVar[str] = "ray-serve"
    options: ClassVar[type[BaseModel]] = ServeDiscoveryOptions
    support: ClassVar[Support] = Support(
        title="an application of Ray Serve",
        sees=(
            "requests by outcome and end-to-end time, at Serve's HTTP proxies",
            "the time within replicas, their load, the queue before them",
            "replicas that run, and what Serve says of those that do not",
        ),
        changes=(
            "replicas, by the external scaler where it is enabled, else by the application's configuration",
            "the bounds and the target of Serve's autoscaler",
            "max_ongoing_requests (max_concurrency)",
        ),
        verified="real part",
        how="a real Ray Serve 2.60 on one node, from discovery to the ledger and back; tokens and several nodes by its documentation",
    )

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        options = options_of(ServeDiscoveryOptions, context.options, "ray-serve")
        state = await _client(context, options).state()
        for application in state.applications.values():
            yield found(application, state, options)

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        """Ray knows no roles: whoever may read the dashboard may change everything."""
        stated: Mapping[str, Any] = context.options
        if entry is not None:
            actuator = entry.get("actuator") or {}
            of = actuator.get("options") if actuator.get("system") == self.name else None
            stated = dict(of or (entry.get("sources") or {}).get(self.name) or {})
            stated = {k: v for k, v in stated.items() if k in DashboardSettings.model_fields and v is not None}
        client = _client(context, options_of(ServeDiscoveryOptions, stated, "ray-serve"))
        try:
            await client.state()
        except CollectError as error:
            if error.kind != "denied":
                raise
            return [Permission(f"GET {APPLICATIONS}", "see", False, error.detail)]
        return [
            Permission(f"GET {APPLICATIONS}", "see", True),
            Permission(f"PUT {APPLICATIONS}", "change", None, "Ray tells no roles"),
        ]

    def permissions(self) -> str:
        return _ROLE


def found(application: ServeApplication, state: ServeState, options: ServeDiscoveryOptions) -> DiscoveredEndpoint:
    """An application as an entry of the settings. Secrets stand in it by reference only."""
    name = re.sub(r"[^a-z0-9._-]+", "-", application.name.lower()).strip("-")[:60] or "application"
    host = urlsplit(options.dashboard).hostname if state.host in ("0.0.0.0", "::") else state.host  # noqa: S104
    dashboard: dict[str, Any] = {"dashboard": options.dashboard}
    if options.token_file is not None:
        dashboard["token_file"] = str(options.token_file)
    elif options.token is not None:
        dashboard["token"] = "${RAY_AUTH_TOKEN}"  # noqa: S105
    which: dict[str, Any] = {"application": application.name}
    if application.ingress is not None:
        which["deployment"] = application.ingress
    metrics = {} if options.metrics is None else {"metrics": [options.metrics]}
    settings: dict[str, Any] = {
        "name": name,
        "url": f"http://{host}:{state.port}{(application.route or '').rstrip('/')}",
        "kind": "vm",
        "sources": {"ray-serve": {**dashboard, **which, **metrics}},
        "actuator": {"system": "ray-serve", "options": {**dashboard, **which}},
        "mode": "observe",
    }
    others = [d for d in application.deployments if d != application.ingress]
    notes = [f"{application.status}, {', '.join(application.deployments) or 'no deployment yet'}"]
    if others and application.ingress is not None:
        notes.append(
            f"{application.ingress} takes the requests; {', '.join(others)} can be changed as endpoints of their own"
        )
    if not application.declarative:
        notes.append(
            "it was deployed by a program (serve.run): it is only seen; deploy it by a configuration to change it"
        )
    elif application.external:
        notes.append("the external scaler is enabled: Flyball sets the replicas; let nobody else")
    return DiscoveredEndpoint(name, settings, "\n".join(notes))


def _client(context: DiscoveryContext, options: DashboardSettings) -> RayServeClient:
    own = DashboardSettings(**{name: getattr(options, name) for name in DashboardSettings.model_fields})
    return shared(context.sessions, own, context.http)


_ROLE = f"""\
# Ray has no roles: whoever reaches the dashboard may run any code on the cluster. To see and to change, Flyball needs
#   GET  {APPLICATIONS}
#   PUT  {APPLICATIONS}                                            (to change a configuration)
#   POST /api/v1/applications/NAME/deployments/NAME/scale    (where external_scaler_enabled is true)
# and each node's metrics. A proxy before the dashboard that lets just these through is the least role; with RAY_AUTH_MODE=token:
ray get-auth-token --generate > /etc/flyball/ray-token
chmod 600 /etc/flyball/ray-token            # option token_file
"""
