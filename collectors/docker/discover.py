"""``flyball discover docker`` and ``flyball permissions docker``: containers and services that serve models."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel

from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, Support, options_of
from collectors.docker.client import DockerClient, DockerError, DockerSettings, shared
from collectors.engines import name_of_engine

_SOURCES = {"llama.cpp": "llamacpp", "llama-server": "llamacpp", "sglang": "sglang", "text-generation-inference": "tgi"}
_PORT = 8000


class DockerDiscoveryOptions(DockerSettings):
    """What ``flyball discover docker`` takes: the engine."""


class DockerSystem:
    """See ``collectors.discovery.System``."""

    name: ClassVar[str] = "docker"
    options: ClassVar[type[BaseModel]] = DockerDiscoveryOptions
    support: ClassVar[Support] = Support(
        title="Docker: a container, or a service of a swarm",
        sees=(
            "CPU and memory of what it may use",
            "limits, GPUs, arguments, health",
            "how many tasks of a service run",
        ),
        changes=(
            "CPU and memory of a running container, without a restart",
            "GPUs and an engine's limits, by another container in its place",
            "a service's replicas",
        ),
        verified="real part",
        how="a real Docker Engine 20.10, from discovery to the ledger and back, and a swarm of one; GPUs by its documentation",
    )

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        """Containers that run and name an engine, and services that do; a service's own containers are the service's."""
        options = options_of(DockerDiscoveryOptions, context.options, "docker")
        client = _client(context, options)
        for row in await client.get("/containers/json"):
            if "com.docker.swarm.service.id" in (row.get("Labels") or {}):
                continue
            container = await client.container(str(row["Id"]))
            if container is None:
                continue
            config = container.get("Config") or {}
            engine = name_of_engine((config.get("Image"), container.get("Path"), *(container.get("Args") or ())))
            if engine is not None:
                yield found(container, engine, options)
        for service in await _services(client):
            spec = service.get("Spec") or {}
            inner = (spec.get("TaskTemplate") or {}).get("ContainerSpec") or {}
            engine = name_of_engine((inner.get("Image"), *(inner.get("Command") or ()), *(inner.get("Args") or ())))
            if engine is not None:
                yield _service(service, engine, options)

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        """Docker knows no roles: who may use the socket may do everything."""
        stated: Mapping[str, Any] = context.options
        if entry is not None:
            actuator = entry.get("actuator") or {}
            of = actuator.get("options") if actuator.get("system") == self.name else None
            stated = dict(of or (entry.get("sources") or {}).get(self.name) or {})
            stated = {k: v for k, v in stated.items() if k in DockerSettings.model_fields and v is not None}
        client = _client(context, options_of(DockerDiscoveryOptions, stated, "docker"))
        try:
            await client.get("/containers/json")
        except DockerError as error:
            if error.kind != "denied":
                raise
            return [Permission(f"use {client.host}", "see", False, error.detail)]
        return [
            Permission(f"use {client.host}", "see", True),
            Permission(f"use {client.host} to change", "change", None, "Docker tells no roles"),
        ]

    def permissions(self) -> str:
        return _ROLE


async def _services(client: DockerClient) -> list[dict[str, Any]]:
    """Nothing where the engine is no manager of a swarm."""
    try:
        rows: list[dict[str, Any]] = await client.get("/services")
    except DockerError as error:
        if error.kind in ("swarm", "denied"):
            return []
        raise
    return rows


def found(container: Mapping[str, Any], engine: str, options: DockerSettings) -> DiscoveredEndpoint:
    """A container as an entry of the settings."""
    own = str(container.get("Name") or "").lstrip("/")
    host = {} if options.host == DockerSettings().host else {"host": options.host}
    url, seen = _address(container)
    settings: dict[str, Any] = {
        "name": re.sub(r"[^a-z0-9._-]+", "-", own.lower()).strip("-._")[:60] or "container",
        "url": url,
        "sources": {_SOURCES.get(engine, "vllm"): {}, "docker": {**host, "container": own}},
        "actuator": {"system": "docker", "options": {**host, "container": own}},
        "policy": {"min_replicas": 1, "max_replicas": 1},
        "mode": "observe",
    }
    limits = container.get("HostConfig") or {}
    cpus, memory = (limits.get("NanoCpus") or 0) / 1e9, (limits.get("Memory") or 0) / 1e9
    notes = [f"container {own}, {cpus or 'unlimited'} CPUs, {f'{memory:.3g}' if memory else 'unlimited'} GB"]
    if not seen:
        notes.append("no port is published, so correct the url")
    return DiscoveredEndpoint(settings["name"], settings, "; ".join(notes))


def _service(service: Mapping[str, Any], engine: str, options: DockerSettings) -> DiscoveredEndpoint:
    spec = service.get("Spec") or {}
    own, replicated = str(spec.get("Name")), (spec.get("Mode") or {}).get("Replicated") or {}
    host = {} if options.host == DockerSettings().host else {"host": options.host}
    ports = (service.get("Endpoint") or {}).get("Ports") or ()
    port = next((p.get("PublishedPort") for p in ports if p.get("PublishedPort")), _PORT)
    settings: dict[str, Any] = {
        "name": re.sub(r"[^a-z0-9._-]+", "-", own.lower()).strip("-._")[:60] or "service",
        "url": f"http://127.0.0.1:{port}",
        "sources": {_SOURCES.get(engine, "vllm"): {}},
        "actuator": {"system": "docker", "options": {**host, "service": own}},
        "mode": "observe",
    }
    note = f"service {own}, {replicated.get('Replicas', 'global')} replicas: one address for all, so its metrics are of one task at a time"
    return DiscoveredEndpoint(settings["name"], settings, note)


def _address(container: Mapping[str, Any]) -> tuple[str, bool]:
    """The published port, or the one that its arguments name on the host's own network."""
    ports = ((container.get("NetworkSettings") or {}).get("Ports") or {}).values()
    published = next((b.get("HostPort") for bound in ports for b in bound or () if b.get("HostPort")), None)
    if published is not None:
        return f"http://127.0.0.1:{published}", True
    words = [str(w) for w in container.get("Args") or ()]
    port = next((words[i + 1] for i, w in enumerate(words[:-1]) if w == "--port"), None)
    hosted = (container.get("HostConfig") or {}).get("NetworkMode") == "host"
    return f"http://127.0.0.1:{port or _PORT}", hosted and port is not None


def _client(context: DiscoveryContext, options: DockerSettings) -> DockerClient:
    return shared(context.sessions, DockerSettings(host=options.host), context.http, context.clock)


_ROLE = """\
# Docker has no roles: whoever may write to its socket is root on that host. On a host of the team's own:
usermod -aG docker flyball
# Less: a proxy before the socket that lets just these calls through, as option host=http://127.0.0.1:2375. To see:
#   GET /_ping /info /containers/json /containers/NAME/json /containers/NAME/stats /images/NAME/json /services /services/NAME /tasks
# To change, as far as it is wanted:
#   POST /containers/NAME/update                                                       CPU and memory
#   POST /containers/create /containers/NAME/{start,stop,rename}  DELETE /containers/NAME    GPUs and arguments
#   POST /services/NAME/update                                                         replicas
"""
