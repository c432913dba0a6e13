"""The one address in front of several replicas: a small reverse proxy in a process of its own.

Owns which replica a request goes to, and the count of requests in flight at each. It does not start, stop or judge replicas:
its backends stand in the file that a switch replaces atomically. It outlives Flyball, and answers ``GET /.flyball/router`` to
this host alone. Run: ``python -m actuators.vllm_local.router --listen HOST:PORT --serving FILE``. Standard library only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import json
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from actuators import wire

REPORT_PATH = "/.flyball/router"
CONNECT_TIMEOUT_S = 5.0
RETRY_AFTER_S = b"5"
_HOP_BY_HOP = (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade", b"expect")


@dataclass(slots=True)
class Backend:
    """One replica. A backend that no longer serves is kept until its last request has ended."""

    name: str
    url: str
    serving: bool = True
    in_flight: int = 0
    draining_since: float | None = None
    turn: int = 0
    """When it was last chosen: the least recent one goes first among equals."""

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 80


@dataclass(slots=True)
class Backends:
    """The backends, as the serving file says, with their requests in flight."""

    path: Path
    known: dict[str, Backend] = field(default_factory=dict)
    generation: int | None = None
    problem: str | None = None
    _seen: tuple[int, int, int] | None = None
    _turns: int = 0

    def refresh(self, now: float) -> None:
        """Read the file again if it was replaced. A file that cannot be understood changes nothing, and is reported."""
        try:
            stat = self.path.stat()
            seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if seen == self._seen:
                return
            data = json.loads(self.path.read_bytes())
            wanted = {str(name): str(url) for name, url in data["backends"].items()}
            generation = int(data["generation"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.problem = f"{self.path.name}: {error!r}"
            return
        self._seen, self.generation, self.problem = seen, generation, None
        for name, url in wanted.items():
            backend = self.known.setdefault(name, Backend(name, url))
            backend.url, backend.serving, backend.draining_since = url, True, None
        for name, backend in self.known.items():
            if name not in wanted and backend.serving:
                backend.serving, backend.draining_since = False, now
        self.known = {n: b for n, b in self.known.items() if b.serving or b.in_flight}

    def choose(self, tried: set[str]) -> Backend | None:
        """The serving backend with the fewest requests in flight that was not tried yet."""
        open_ = [b for b in self.known.values() if b.serving and b.name not in tried]
        if not open_:
            return None
        self._turns += 1
        chosen = min(open_, key=lambda b: (b.in_flight, b.turn))
        chosen.turn = self._turns
        return chosen

    def release(self, backend: Backend) -> None:
        backend.in_flight -= 1
        if not backend.serving and not backend.in_flight:
            self.known.pop(backend.name, None)

    def report(self, now: float) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "generation": self.generation,
            "problem": self.problem,
            "backends": {
                b.name: {
                    "url": b.url,
                    "serving": b.serving,
                    "in_flight": b.in_flight,
                    "draining_s": None if b.draining_since is None else round(now - b.draining_since, 3),
                }
                for b in self.known.values()
            },
        }


class Router:
    """Handles one client request: report, or relay to a backend."""

    def __init__(self, serving: Path) -> None:
        self.backends = Backends(serving)

    async def handle(self, request: wire.Request, writer: asyncio.StreamWriter) -> bool:
        now = asyncio.get_running_loop().time()
        self.backends.refresh(now)
        if request.path == REPORT_PATH and _is_this_host(writer):
            writer.write(wire.json_answer(200, self.backends.report(now)))
            return True
        backend, stream = await self._connect()
        if backend is None or stream is None:
            text = "no replica serves this endpoint at the moment; try again soon"
            writer.write(wire.error_answer(503, text, headers=[(b"retry-after", RETRY_AFTER_S)]))
            return True
        upstream_reader, upstream = stream
        try:
            return await _relay(request, writer, upstream_reader, upstream)
        finally:
            upstream.transport.abort()  # a whole answer was read to its end; before it, the replica must notice
            self.backends.release(backend)

    async def _connect(self) -> tuple[Backend | None, tuple[asyncio.StreamReader, asyncio.StreamWriter] | None]:
        """A connection to the least busy backend that accepts one; it counts as in flight from here."""
        tried: set[str] = set()
        while (backend := self.backends.choose(tried)) is not None:
            tried.add(backend.name)
            backend.in_flight += 1
            try:
                opening = asyncio.open_connection(*backend.address, limit=wire.MAX_HEAD)
                return backend, await asyncio.wait_for(opening, CONNECT_TIMEOUT_S)
            except OSError:  # TimeoutError is one
                self.backends.release(backend)
            except BaseException:
                self.backends.release(backend)
                raise
        return None, None


async def _relay(
    request: wire.Request,
    writer: asyncio.StreamWriter,
    upstream_reader: asyncio.StreamReader,
    upstream: asyncio.StreamWriter,
) -> bool:
    """Pass the request on and the answer back, unbuffered. False: the client's connection cannot carry another."""
    head = request.head
    forward = [*head.without(*_HOP_BY_HOP), (b"connection", b"close")]
    lines = [b" ".join((head.first[0], head.first[1], b"HTTP/1.1")), *(n + b": " + v for n, v in forward)]
    upstream.write(b"\r\n".join(lines) + b"\r\n\r\n")
    with contextlib.suppress(ConnectionError):  # a replica may answer before it has read all: its answer decides
        async for piece in request.raw_body(writer):
            upstream.write(piece)
            await upstream.drain()
    try:
        answer = await _final_head(upstream_reader)
    except (wire.BadMessage, ConnectionError) as error:
        writer.write(wire.error_answer(502, f"the replica did not answer: {error}", close=True))
        return False
    framed = answer.chunked or answer.length is not None
    status = int(answer.first[1])
    bare = request.method == b"HEAD" or status in (204, 304)
    again = head.keeps_alive and (framed or bare) and (request.body_read or not request.has_body)
    back = [*answer.without(*_HOP_BY_HOP), (b"connection", b"keep-alive" if again else b"close")]
    writer.write(wire.head_bytes(status, back, answer.first[2]))
    if bare:
        return again
    try:
        async for piece, _ in wire.read_body(upstream_reader, answer, None, until_close=True):
            writer.write(piece)
            if writer.transport.get_write_buffer_size() > wire.PIECE:
                await asyncio.wait_for(writer.drain(), wire.WRITE_TIMEOUT_S)
    except (wire.BadMessage, ConnectionError):
        # The replica died in the middle. What came is delivered, the end is not: the client sees a broken stream.
        if not framed:
            writer.transport.abort()
        return False
    return again


async def _final_head(reader: asyncio.StreamReader) -> wire.Head:
    while True:
        head = await wire.read_head(reader)
        if head is None:
            raise wire.TruncatedMessage("it closed the connection")
        if not (head.first[0].startswith(b"HTTP/1.") and head.first[1].isdigit() and len(head.first[1]) == 3):
            raise wire.BadMessage("its answer is not HTTP")
        if not head.first[1].startswith(b"1"):
            return head


def _is_this_host(writer: asyncio.StreamWriter) -> bool:
    peer, own = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
    return peer is not None and (ipaddress.ip_address(peer[0]).is_loopback or peer[0] == own[0])


async def serve(host: str, port: int, serving: Path) -> None:
    """Run until SIGTERM or SIGINT, then until the last request in flight has ended."""
    router = Router(serving)
    router.backends.refresh(asyncio.get_running_loop().time())
    server = await wire.start_server(router.handle, host=host, port=port)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    server.close()
    while any(b.in_flight for b in router.backends.known.values()):  # noqa: ASYNC110 - once, at the very end
        await asyncio.sleep(0.05)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="flyball-router", description=__doc__)
    parser.add_argument("--listen", required=True, help="HOST:PORT")
    parser.add_argument("--serving", required=True, type=Path, help="the file that names the backends")
    options = parser.parse_args(arguments)
    host, _, port = options.listen.rpartition(":")
    asyncio.run(serve(host.strip("[]"), int(port), options.serving))
    return 0


if __name__ == "__main__":
    sys.exit(main())
