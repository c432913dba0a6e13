"""The system ``haproxy``: which servers of a backend are in rotation, with which weights and limits.

Changes go through the runtime API, are read back, and are lost by a reload: after a verdict of success they are written into HAProxy's file,
where the settings name it. A step compares before it writes, so that one under the same token is done once also where its answer was lost.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field

from actuators.base import (
    Actuator,
    ActuatorError,
    LiveState,
    Progress,
    Receipt,
    Step,
    SystemContext,
    Trouble,
    options_of,
)
from actuators.haproxy import planning
from actuators.haproxy.configtext import UneditableLine, server_of, with_servers
from actuators.haproxy.planning import BackendTerms
from actuators.shape import Operation, Plan, Shape
from actuators.textfile import read_text, replace_text
from actuators.writes import WriteCount
from collectors.haproxy.client import ADDRESS, NAME, BackendServer, HAProxyClient, HAProxyError, shared

_TROUBLE = {"denied": Trouble.DENIED, "missing": Trouble.DRIFT, "unreachable": Trouble.UNREACHABLE}
_SOON_S = 0.5
_STEPS = ("set", "ready", "drain", "maint", "persist")


class Options(BaseModel):
    """Settings of the system ``haproxy``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    socket: str = Field(default="/run/haproxy/admin.sock", pattern=rf"^(?:{ADDRESS.pattern})$")
    """The stats socket, of level admin where it is to be changed: a path on this host, or host:port. Default: Debian's."""
    backend: str | None = Field(default=None, pattern=rf"^{NAME.pattern}$")
    """The backend, or the `listen` section. Default: the endpoint's name."""
    config: Path | None = None
    """HAProxy's file, on this host. Default: none, and a reload loses what was changed."""
    scheme: Literal["http", "https"] = "http"
    """How each server's own metrics are read. Default: http."""
    ready_s: float = Field(default=120.0, gt=0)
    """Seconds until a server that comes into rotation is up. Default 120: its health checks have to pass."""
    drain_s: float = Field(default=600.0, gt=0)
    """Seconds until the requests of a server that leaves have ended; longer, and it stays. Default 600: a long answer takes minutes."""


class HAProxyBackend:
    """See ``actuators.base.Actuator``."""

    system: ClassVar[str] = planning.SYSTEM
    changes: ClassVar[Sequence[str]] = ("replicas", "engine.*")
    poll_s = 15.0

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.options = options_of(Options, context, "haproxy")
        self.backend = self.options.backend or context.endpoint
        self._writes = WriteCount(context.state_dir / "haproxy-writes.json")

    async def live(self) -> LiveState:
        servers = await self._servers()
        ready = [s for s in servers if s.ready]
        down = [f"{s.name} is {s.status}" for s in ready if not s.up]
        scheme = self.options.scheme
        detail = [*down, *self._lost_by_reload(servers)]
        return LiveState(
            planning.shape_of(servers),
            self._version(servers),
            ready=not down,
            serving=len(ready) - len(down),
            targets={s.name: f"{scheme}://{s.address}" for s in ready if s.up and s.address},
            detail="; ".join(detail),
        )

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        return planning.plan(self._terms(), await self._servers(), self._text(), live, wanted)

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        """To just those servers that were in rotation, which a count does not say; in the file too, where it was written already."""
        servers = await self._servers()
        there = {s.name for s in servers}
        names = [name for name in plan.undo.get("servers", ()) if name in there]
        back = planning.plan(self._terms(), servers, None, live, plan.before, names)
        written = any(receipt.handle.get("step") == "persist" for receipt in done)
        kept = planning.taken_back(plan) if written and self.options.config is not None else ()
        return replace(back, operations=(*back.operations, *kept))

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        _known(operation)
        if operation.name == "persist":
            path = self._path()
            for what in (path, path.parent):
                if not os.access(what, os.W_OK):
                    raise ActuatorError("DENIED", f"{what} may not be written", trouble=Trouble.DENIED)
            self._edited(operation)
            return
        self._unmoved(operation, await self._servers(), last)
        try:
            level = await self._client().level()
        except HAProxyError as error:
            self._raise(error)
        if level != "admin":
            text = f"{self.options.socket} is bound with level {level}: bind the stats socket with `level admin`"
            raise ActuatorError("DENIED", text, trouble=Trouble.DENIED)

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        _known(operation)
        handle = {"step": operation.name, "token": token}
        if operation.name == "persist":
            self._write(self._edited(operation))
            return Receipt(handle)
        servers = await self._servers()
        if not _is_so(operation, servers):
            self._unmoved(operation, servers, last)
            await self._change(operation, servers)
            self._writes.add()
        return Receipt(handle, leaves=self._version(await self._servers()))

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        _known(operation)
        if operation.name == "persist":
            written = self._edited(operation) == self._text()
            if written:
                return Step(Progress.DONE, f"{self.options.config} says the same")
            return Step(Progress.FAILED, f"somebody has set {self.options.config} back")
        servers = await self._servers()
        if not _is_so(operation, servers):
            return Step(Progress.FAILED, f"{self.backend}: somebody has set it back, or HAProxy was reloaded")
        if operation.name in ("set", "maint"):
            return Step(Progress.DONE, "read back")
        server = _named(servers, operation.args["server"])
        if operation.name == "ready":
            if server.up:
                return Step(Progress.DONE, f"{server.name} is {server.status}")
            return Step(Progress.PENDING, f"{server.name} is {server.status}", again_in_s=_SOON_S)
        if server.sessions == 0:
            return Step(Progress.DONE, f"{server.name} has no request any more")
        return Step(Progress.PENDING, f"{server.name} has {server.sessions} requests yet", again_in_s=_SOON_S)

    # inside

    def _client(self) -> HAProxyClient:
        return shared(self.context.sessions, self.options.socket)

    def _terms(self) -> BackendTerms:
        path = None if self.options.config is None else str(self._path())
        options = self.options
        return BackendTerms(self.context.endpoint, options.socket, self.backend, path, options.ready_s, options.drain_s)

    async def _servers(self) -> list[BackendServer]:
        try:
            servers = await self._client().servers(self.backend)
        except HAProxyError as error:
            self._raise(error)
        if not servers:
            text = f"HAProxy at {self.options.socket} has no backend {self.backend!r} with servers; set actuator.options.backend"
            raise ActuatorError("NO_BACKEND", text)
        return servers

    def _version(self, servers: Sequence[BackendServer]) -> str:
        return planning.version_of(servers, self._writes.value)

    def _unmoved(self, operation: Operation, servers: Sequence[BackendServer], last: Receipt | None) -> None:
        """Raises ``ActuatorError`` where somebody else wrote since the plan. Of a step of several writes a part may be done."""
        expected = last.leaves if last is not None and last.leaves is not None else operation.args.get("version")
        if expected is None or self._version(servers) == expected or self._begun(operation, servers, expected):
            return
        text = f"backend {self.backend}: somebody changed it meanwhile; plan again"
        raise ActuatorError("STALE_PLAN", text, trouble=Trouble.DRIFT)

    def _begun(self, operation: Operation, servers: Sequence[BackendServer], expected: str) -> bool:
        """Whether all that differs is what this very step has written already."""
        if operation.name != "set":
            return False
        was = operation.args["was"]
        wrote = [n for n, v in operation.args["values"].items() if _value(servers, n) == v and was.get(n) != v]
        before = [_with(server, {n: was[n] for n in wrote}) for server in servers]
        return bool(wrote) and self._version(before) == expected

    async def _change(self, operation: Operation, servers: Sequence[BackendServer]) -> None:
        client = self._client()
        try:
            if operation.name != "set":
                await client.set_state(self.backend, operation.args["server"], operation.name)
                return
            for name, value in operation.args["values"].items():
                limit, _, server = name.partition(".")
                if _value(servers, name) == value:
                    continue
                write = client.set_weight if limit == "weight" else client.set_maxconn
                await write(self.backend, server, value)
        except HAProxyError as error:
            self._raise(error)

    def _path(self) -> Path:
        """Where the file really is, through links."""
        if self.options.config is None:
            raise ActuatorError("NO_FILE", "actuator.options.config names no file any more: nothing can be written")
        return Path(os.path.realpath(self.options.config))

    def _text(self) -> str | None:
        """The file; None: none is named."""
        if self.options.config is None:
            return None
        try:
            return read_text(self._path())
        except (OSError, ValueError) as error:
            text = f"{self.options.config} cannot be read: {error}"
            raise ActuatorError("DENIED", text, trouble=Trouble.DENIED) from error

    def _edited(self, operation: Operation) -> str:
        try:
            return with_servers(self._text() or "", self.backend, operation.args["changes"])
        except UneditableLine as error:
            raise ActuatorError("STALE_PLAN", f"{self.options.config}: {error}", trouble=Trouble.DRIFT) from error

    def _write(self, text: str) -> None:
        """In one rename, with the mode and owner that the file has. Nothing where it says so already."""
        path = self._path()
        if text == self._text():
            return
        try:
            replace_text(path, text)
        except OSError as error:
            text = f"{path} cannot be written: {error}. Give Flyball the file's owner or group"
            raise ActuatorError("DENIED", text, trouble=Trouble.DENIED) from error

    def _lost_by_reload(self, servers: Sequence[BackendServer]) -> list[str]:
        """Where the file says otherwise than HAProxy runs."""
        text = self._text()
        if text is None:
            return []
        found = []
        for server in servers:
            try:
                stated = server_of(text, self.backend, server.name)
            except UneditableLine:
                continue
            out = not server.ready
            if stated.disabled != out:
                found.append(f"{server.name} would be {'out of' if stated.disabled else 'in'} rotation")
            if stated.weight is not None and stated.weight != server.weight:
                found.append(f"{server.name} would have the weight {stated.weight}")
        return (
            [f"a reload would change it, as {self.options.config} says otherwise: {', '.join(found)}"] if found else []
        )

    def _raise(self, error: HAProxyError) -> NoReturn:
        trouble = _TROUBLE.get(error.kind, Trouble.INVALID)
        raise ActuatorError(error.kind.upper(), error.detail, trouble=trouble) from error


def _known(operation: Operation) -> None:
    if operation.name not in _STEPS:
        raise ActuatorError("UNKNOWN_OPERATION", f"haproxy knows no step {operation.name!r}: plan again")


def _named(servers: Sequence[BackendServer], name: str) -> BackendServer:
    found = next((s for s in servers if s.name == name), None)
    if found is None:
        raise ActuatorError("STALE_PLAN", f"server {name} is gone; plan again", trouble=Trouble.DRIFT)
    return found


def _value(servers: Sequence[BackendServer], name: str) -> int:
    """0: no limit."""
    limit, _, server = name.partition(".")
    found = _named(servers, server)
    return found.weight if limit == "weight" else found.maxconn or 0


def _with(server: BackendServer, values: Mapping[str, Any]) -> BackendServer:
    """The server as if it had these values of ``weight.NAME`` and ``maxconn.NAME``."""
    weight = values.get(f"weight.{server.name}", server.weight)
    maxconn = values.get(f"maxconn.{server.name}", server.maxconn or 0)
    return replace(server, weight=weight, maxconn=maxconn or None)


def _is_so(operation: Operation, servers: Sequence[BackendServer]) -> bool:
    """Whether what the step writes is there already."""
    if operation.name == "set":
        return all(_value(servers, name) == value for name, value in operation.args["values"].items())
    server = _named(servers, operation.args["server"])
    match operation.name:
        case "ready":
            return server.ready
        case "drain":  # out altogether is no less
            return server.draining or not server.ready
        case "maint":
            return not server.ready and not server.draining
    raise AssertionError(operation.name)


def make(context: SystemContext) -> Actuator:
    """The entry point. Raises ActuatorError ``BAD_OPTIONS``."""
    return HAProxyBackend(context)
