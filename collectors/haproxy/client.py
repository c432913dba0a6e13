"""One client for each HAProxy: its runtime API over the stats socket, and what it refuses in one vocabulary.

One command on each connection, as the socket has it outside its interactive mode. An answer to a command that changes something is an empty
line where it was done; any word in it is a refusal.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from collectors.haproxy.statistics import StatisticsRow, rows_of_csv
from collectors.sessions import Sessions
from collectors.window import CollectError

_TIMEOUT_S = 10.0
_MAX_BYTES = 64 << 20
#: What HAProxy takes as the name of a proxy or a server: nothing that could end a command and begin another.
NAME = re.compile(r"[A-Za-z0-9_.:-]+")
ADDRESS = re.compile(r"/\S+|[^\s:/]+:[0-9]+|\[[0-9a-fA-F:]+\]:[0-9]+")
#: Bits of `srv_admin_state`: forced, inherited and unresolved maintenance, both kinds of draining. That the file says `disabled` (4)
#: stays set when the server is long ready.
_OUT = 0x01 | 0x02 | 0x08 | 0x10 | 0x20 | 0x40
_DRAINS = 0x08 | 0x10
#: Somebody else than the runtime API: a tracked server, or a name that is not resolved.
_NOT_OURS = 0x02 | 0x10 | 0x20 | 0x40


class HAProxyError(CollectError):
    """What HAProxy refused, or that it did not answer: denied, missing, unreachable, invalid."""


@dataclass(frozen=True, slots=True)
class BackendServer:
    """One server of a backend, as `show servers state` and `show stat` have it."""

    name: str
    address: str
    """``host:port``; empty: not resolved."""
    admin: int
    weight: int
    maxconn: int | None
    """None: no limit."""
    sessions: int
    """Now."""
    status: str
    """``UP``, ``UP 1/2``, ``DOWN``, ``MAINT``, ``DRAIN``, ``NOLB``, ``no check``."""
    backup: bool

    @property
    def ready(self) -> bool:
        """Whether it is meant to serve: in rotation, with a weight."""
        return not self.admin & _OUT and self.weight > 0

    @property
    def draining(self) -> bool:
        return bool(self.admin & _DRAINS)

    @property
    def ours(self) -> bool:
        """Whether the runtime API alone decides whether it is in rotation."""
        return not self.admin & _NOT_OURS

    @property
    def up(self) -> bool:
        return self.status.startswith("UP") or self.status == "no check"


class HAProxyClient:
    """Raises ``HAProxyError`` and nothing else."""

    def __init__(self, address: str) -> None:
        """``address``: the stats socket's path, or host:port where it is bound to one."""
        self.address = address

    async def statistics(self) -> list[StatisticsRow]:
        """Every frontend, backend and server."""
        try:
            return rows_of_csv(await self._ask("show stat"))
        except CollectError as error:
            if isinstance(error, HAProxyError):
                raise
            raise HAProxyError("invalid", f"{self.address}: {error.detail}") from error

    async def information(self) -> Mapping[str, str]:
        """Version, start, limits: `show info`, by name."""
        lines = (line.partition(": ") for line in (await self._ask("show info")).splitlines())
        return {name: value.strip() for name, colon, value in lines if colon}

    async def level(self) -> str:
        """What this socket may do: user, operator, admin."""
        return (await self._ask("show cli level")).strip()

    async def servers(self, backend: str) -> list[BackendServer]:
        """In the order of the file. Empty: no such backend, or none in it."""
        lines = (await self._ask(f"show servers state {_name(backend)}")).splitlines()
        if any("Can't find backend" in line for line in lines):
            return []
        head = next((line for line in lines if line.startswith("# be_id")), None)
        if head is None:
            raise HAProxyError("invalid", f"{self.address}: show servers state was answered {' '.join(lines)[:200]!r}")
        names = head.removeprefix("# ").split()
        states = [dict(zip(names, line.split(), strict=False)) for line in lines if line[:1].isdigit() and " " in line]
        seen = {row.server: row for row in await self.statistics() if row.proxy == backend}
        return [_server(state, seen[state["srv_name"]]) for state in states if state.get("srv_name") in seen]

    async def set_state(self, backend: str, server: str, state: str) -> None:
        """ready, drain or maint."""
        await self._change(f"set server {_name(backend)}/{_name(server)} state {state}")

    async def set_weight(self, backend: str, server: str, weight: int) -> None:
        """0 to 256, whatever the file says."""
        await self._change(f"set server {_name(backend)}/{_name(server)} weight {weight}")

    async def set_maxconn(self, backend: str, server: str, maxconn: int) -> None:
        """0: no limit. HAProxy itself would take a negative one without a word."""
        await self._change(f"set maxconn server {_name(backend)}/{_name(server)} {maxconn}")

    async def _change(self, command: str) -> None:
        said = (await self._ask(command)).strip()
        if said == "Permission denied":
            text = f"{self.address} does not take {command!r}: bind the stats socket with `level admin`"
            raise HAProxyError("denied", text)
        if said:
            kind = "missing" if said.startswith("No such") else "invalid"
            raise HAProxyError(kind, f"{command!r} was answered {said[:300]!r}")

    async def _ask(self, command: str) -> str:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return (await self._exchange(command)).decode("utf-8", "replace")
        except PermissionError as error:
            text = f"{self.address} may not be used by user id {os.geteuid()}: give it the socket's group"
            raise HAProxyError("denied", text) from error
        except (OSError, TimeoutError, ValueError) as error:
            text = f"{self.address}, the stats socket, does not answer {command!r}: {str(error) or 'timeout'}"
            raise HAProxyError("unreachable", text) from error

    async def _exchange(self, command: str) -> bytes:
        """Raises OSError, and ValueError on an answer without end."""
        if self.address.startswith("/"):
            reader, writer = await asyncio.open_unix_connection(self.address)
        else:
            host, _, port = self.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        try:
            writer.write(command.encode() + b"\n")
            await writer.drain()
            whole = bytearray()
            while piece := await reader.read(1 << 16):
                whole += piece
                if len(whole) > _MAX_BYTES:
                    raise ValueError(f"more than {_MAX_BYTES} bytes")
            if not whole:  # also one that has nothing to say ends with an empty line
                raise ConnectionResetError("it closed the connection without an answer")
            return bytes(whole)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def _name(text: str) -> str:
    if NAME.fullmatch(text) is None:
        raise HAProxyError("invalid", f"{text!r} is no name of a proxy or a server")
    return text


def _server(state: Mapping[str, str], seen: StatisticsRow) -> BackendServer:
    """Raises HAProxyError on an answer of another form."""
    try:
        address, port = state["srv_addr"], int(state["srv_port"])
        host = f"[{address}]" if ":" in address else address
        return BackendServer(
            state["srv_name"],
            "" if address == "-" or not port else f"{host}:{port}",
            int(state["srv_admin_state"]),
            int(state["srv_uweight"]),
            int(limit) if (limit := seen.number("slim")) else None,
            int(seen.number("scur") or 0),
            seen.text("status"),
            seen.number("bck") == 1,
        )
    except (KeyError, ValueError) as error:
        raise HAProxyError("invalid", f"show servers state has another form than is known: {error}") from error


def shared(sessions: Sessions, address: str) -> HAProxyClient:
    """The one client of a stats socket."""
    return sessions.get(("haproxy", address), lambda: HAProxyClient(address))
