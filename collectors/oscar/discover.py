"""``flyball discover oscar`` and ``flyball permissions oscar``: each service, as an endpoint."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel

from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, Support, options_of
from collectors.jobs import BatchJob
from collectors.oscar.client import SERVICES, OscarClient, OscarError, OscarSettings, shared
from collectors.oscar.services import mode_of, section_of


class ServiceDiscoveryOptions(OscarSettings):
    """What ``flyball discover oscar`` takes: the cluster, and who asks."""


class OscarSystem:
    """See ``collectors.discovery.System``."""

    name: ClassVar[str] = "oscar"
    options: ClassVar[type[BaseModel]] = ServiceDiscoveryOptions
    support: ClassVar[Support] = Support(
        title="a service of OSCAR (AI4OS serverless)",
        sees=(
            "jobs: how many, how many failed, what each waited (cold start and queue) and ran",
            "jobs that run and wait now",
            "instances that serve, and why others do not",
        ),
        changes=(
            "least and most instances, of synchronous, exposed and KServe services",
            "CPU, memory and GPU",
        ),
        verified="official SDK",
        how="the stand-in of the tests is driven by OSCAR's own Python client (oscar-python 2.2); not tried with a real cluster yet",
    )

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        options = options_of(ServiceDiscoveryOptions, context.options, "oscar")
        for service in await _client(context, options).services():
            yield found(service, options)

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        """OSCAR knows the administrator, and each service's owner: whether a change would be allowed shows the service's owner alone."""
        stated: Mapping[str, Any] = context.options
        held, name = entry is None, None
        if entry is not None:
            actuator = entry.get("actuator") or {}
            held = actuator.get("system") == self.name
            of = dict((actuator.get("options") if held else (entry.get("sources") or {}).get(self.name)) or {})
            name = of.get("service") or entry.get("name")
            stated = {k: v for k, v in of.items() if k in OscarSettings.model_fields and v is not None}
        options = options_of(ServiceDiscoveryOptions, stated, "oscar")
        client = _client(context, options)
        path = SERVICES if name is None else f"{SERVICES}/{name}"
        try:
            await (client.services() if name is None else client.service(str(name)))
        except OscarError as error:
            if error.kind != "denied":
                raise
            return [Permission(f"GET {path}", "see", False, error.detail)]
        permissions = [Permission(f"GET {path}", "see", True)]
        if held:
            admin = options.password is not None
            detail = (
                "the administrator may" if admin else "only the service's owner may; OSCAR does not tell who a token is"
            )
            permissions.append(Permission(f"PUT {SERVICES}", "change", True if admin else None, detail))
        return permissions

    async def jobs(self, context: DiscoveryContext, of: str) -> list[BatchJob]:
        """See ``collectors.jobs.JobPlatform``: those of a service."""
        client = _client(context, options_of(ServiceDiscoveryOptions, context.options, "oscar"))
        return [
            BatchJob(j.name, j.created_at, j.started_at, j.finished_at, j.status == "Failed")
            for j in await client.jobs(of)
            if j.created_at is not None
        ]

    def permissions(self) -> str:
        return _ROLE


def found(service: Mapping[str, Any], options: ServiceDiscoveryOptions) -> DiscoveredEndpoint:
    """A service as an entry of the settings. Secrets stand in it by reference only."""
    own = str(service["name"])
    name = re.sub(r"[^a-z0-9._-]+", "-", own.lower()).strip("-")[:60] or "service"
    cluster: dict[str, Any] = {"cluster": options.cluster}
    if options.password is not None:
        cluster |= {"user": options.user, "password": "${OSCAR_PASSWORD}"}
    elif options.token_file is not None:
        cluster["token_file"] = str(options.token_file)
    elif options.token is not None:
        cluster["token"] = "${OSCAR_TOKEN}"  # noqa: S105
    mode = mode_of(service)
    paths = {"exposed": f"/system/services/{own}/exposed", "function": f"/run/{own}"}
    which = {**cluster, "service": own}
    scale = service.get(section_of(mode)) or {}
    settings: dict[str, Any] = {
        "name": name,
        "url": options.cluster + paths.get(mode, ""),
        "kind": "serverless",
        "sources": {"oscar": which},
        "actuator": {"system": "oscar", "options": which},
        "policy": {
            "min_replicas": int(scale.get("min_scale") or 0),
            "max_replicas": int(scale.get("max_scale") or 0) or 10,
        },
        "mode": "observe",
    }
    notes = [f"{mode}, {service.get('image') or 'no image'}"]
    if mode == "function":
        notes.append(
            "its jobs are seen one by one; calls of /run are not told: measure them at what stands in front, or by probe"
        )
    else:
        notes.append("OSCAR tells nothing of its requests: add the engine's own source, or probe")
    if (service.get("environment") or {}).get("secrets"):
        notes.append("it has secrets, which a change through the API would empty: it is only seen")
    return DiscoveredEndpoint(name, settings, "\n".join(notes))


def _client(context: DiscoveryContext, options: ServiceDiscoveryOptions) -> OscarClient:
    return shared(context.sessions, options, context.http)


_ROLE = f"""\
# OSCAR has no roles: the administrator (basic authentication) may do everything, an OIDC user sees what is his, shared with him or public,
# and changes what is his alone. The least that does is a token of the service's owner (option token_file), for
#   GET  {SERVICES}/NAME            GET {SERVICES}/NAME/deployment
#   GET  /system/logs/NAME                        (jobs: their times, and no text of them)
#   PUT  {SERVICES}                 (to change; leave it out for mode observe)
# A token of EGI Check-in lasts for an hour: let oidc-agent renew the file,
oidc-token --time 600 NAME > /etc/flyball/oscar-token && chmod 600 /etc/flyball/oscar-token        # every five minutes
"""
