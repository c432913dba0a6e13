"""``flyball discover haproxy`` and ``flyball permissions haproxy``: each backend with servers, as an endpoint."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, Support, options_of
from collectors.haproxy.client import ADDRESS, BackendServer, shared
from collectors.window import CollectError

SOCKET = "/run/haproxy/admin.sock"


class BackendDiscoveryOptions(BaseModel):
    """What ``flyball discover haproxy`` takes: the stats socket, and where clients come in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    socket: str = Field(default=SOCKET, pattern=rf"^(?:{ADDRESS.pattern})$")
    """The stats socket: a path on this host, or host:port. Default: Debian's."""
    url: str = Field(default="http://127.0.0.1:80", pattern=r"^https?://[^/\s]+")
    """Where clients reach HAProxy: no backend tells it."""
    config: Path | None = None
    """HAProxy's file, on this host, for the entries. Default: none, and what is changed is lost by a reload."""


class HAProxySystem:
    """See ``collectors.discovery.System``."""

    name: ClassVar[str] = "haproxy"
    options: ClassVar[type[BaseModel]] = BackendDiscoveryOptions
    support: ClassVar[Support] = Support(
        title="a backend of HAProxy",
        sees=(
            "requests by outcome, sessions, queues, connection errors, retries",
            "the mean time of requests (no percentiles: read the servers' own metrics beside it)",
            "servers in rotation, and their own addresses",
        ),
        changes=(
            "how many servers are in rotation, by draining",
            "a server's weight and maxconn",
            "the same in its file, after the verdict, so that a reload keeps it",
        ),
        verified="real part",
        how="a real HAProxy 2.6, from discovery to the ledger and back; its answers to each level of the socket",
    )

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        options = options_of(BackendDiscoveryOptions, context.options, "haproxy")
        client = shared(context.sessions, options.socket)
        rows = await client.statistics()
        taken: set[str] = set()
        for backend in dict.fromkeys(row.proxy for row in rows if row.server not in ("FRONTEND", "BACKEND")):
            entry = found(backend, await client.servers(backend), options, taken)
            taken.add(entry.name)
            yield entry

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        """The socket's level, and of an endpoint that this system holds whether its file is within reach."""
        stated = dict(context.options)
        held = entry is None
        if entry is not None:
            actuator = entry.get("actuator") or {}
            held = actuator.get("system") == self.name
            source = dict((entry.get("sources") or {}).get(self.name) or {})
            of = dict(actuator.get("options") or {}) if held else source
            if "socket" not in of and not held:
                return []  # it is read by HTTP, which asks for nothing of this host
            stated = {k: v for k, v in of.items() if k in ("socket", "config") and v is not None}
        options = options_of(BackendDiscoveryOptions, stated, "haproxy")
        client = shared(context.sessions, options.socket)
        try:
            level = await client.level()
        except CollectError as error:
            if error.kind != "denied":
                raise
            return [Permission(f"connect to {options.socket}", "see", False, error.detail)]
        permissions = [Permission(f"connect to {options.socket}", "see", True)]
        if held:
            detail = f"{options.socket} is bound with level {level}: bind it, or another one, with `level admin`"
            permissions.append(Permission("stats socket level admin", "change", level == "admin", detail))
        if entry is None or not held or options.config is None:
            return permissions
        return [*permissions, *_file(options.config)]

    def permissions(self) -> str:
        return _ROLE


def _file(config: Path) -> list[Permission]:
    real = Path(os.path.realpath(config))
    who = f"as user id {os.geteuid()}"
    return [
        Permission(f"read {config}", "see", os.access(real, os.R_OK), who),
        Permission(f"write {config}", "change", os.access(real, os.W_OK), who),
        Permission(
            f"write {real.parent}", "change", os.access(real.parent, os.W_OK), "it is written beside and renamed"
        ),
    ]


def found(
    backend: str, servers: Sequence[BackendServer], options: BackendDiscoveryOptions, taken: set[str]
) -> DiscoveredEndpoint:
    """A backend as an entry of the settings."""
    own = re.sub(r"[^a-z0-9._-]+", "-", backend.lower()).strip("-")[:60] or "backend"
    name = own if own not in taken else next(n for i in range(2, 10_000) if (n := f"{own}-{i}") not in taken)
    held = {"socket": options.socket, "backend": backend}
    of_file = {} if options.config is None else {"config": str(options.config)}
    settings: dict[str, Any] = {
        "name": name,
        "url": options.url.rstrip("/"),
        "sources": {"vllm": {}, "haproxy": held},
        "actuator": {"system": "haproxy", "options": {**held, **of_file}},
        "policy": {"min_replicas": 1, "max_replicas": max(1, len(servers))},
        "mode": "observe",
    }
    ready = [s for s in servers if s.ready]
    notes = [
        f"{len(ready)} of {len(servers)} servers in rotation: {', '.join(s.name for s in ready) or 'none'}",
        "sources: vllm reads each server's own /metrics; without such servers take it out, and set `kind: vm`",
    ]
    if options.config is None:
        notes.append("a reload of HAProxy loses what is changed: name its file in the option config")
    return DiscoveredEndpoint(name, settings, "\n".join(notes))


_ROLE = f"""\
# In haproxy.cfg. To see, any level does:
global
  stats socket {SOCKET} mode 660 group flyball level user
# To change, `level admin`, in place of the line above. Leave it out for mode observe:
#  stats socket {SOCKET} mode 660 group flyball level admin

# So that a reload keeps what was changed (option `config`), Flyball's user writes the file and its folder:
#   chgrp flyball /etc/haproxy /etc/haproxy/haproxy.cfg
#   chmod g+w /etc/haproxy /etc/haproxy/haproxy.cfg
"""
