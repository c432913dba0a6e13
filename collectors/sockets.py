"""Network streams whose every step ends by the request's own deadline, so that no request needs to be cancelled.

httpcore (1.0.9) keeps a connection's slot for good when the task that holds it is cancelled at some of its steps: one event loop that
stands still for a moment can cost all of them. An operation that times out is handled well. So the deadline of a request is set for
the task that carries it out, and each read, write and handshake gets what is left of it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, Protocol

#: When the request of this task must be over, by the event loop's clock.
UNTIL: ContextVar[float | None] = ContextVar("until", default=None)
#: Time for what is there already, once the deadline has passed.
_LEAST_S = 0.001


class NetworkStream(Protocol):
    """As httpcore has it."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes: ...
    async def write(self, buffer: bytes, timeout: float | None = None) -> None: ...
    async def aclose(self) -> None: ...
    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> NetworkStream: ...
    def get_extra_info(self, info: str) -> Any: ...


class BoundedStream:
    """A stream that never takes longer than its request may."""

    def __init__(self, stream: NetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._stream.read(max_bytes, _left(timeout))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, _left(timeout))

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> BoundedStream:
        return BoundedStream(await self._stream.start_tls(ssl_context, server_hostname, _left(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class BoundedBackend:
    """httpcore's way to the network, with streams that are bounded."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> BoundedStream:
        return BoundedStream(await self._backend.connect_tcp(host, port, _left(timeout), local_address, socket_options))

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> BoundedStream:
        return BoundedStream(await self._backend.connect_unix_socket(path, _left(timeout), socket_options))

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


def _left(timeout: float | None) -> float | None:
    until = UNTIL.get()
    if until is None:
        return timeout
    left = max(_LEAST_S, until - asyncio.get_running_loop().time())
    return left if timeout is None else min(timeout, left)
