"""Limits on who comes in: how many connections, and how long a head or a body may take. They hold before any lock is asked."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Connections at once. Each costs a descriptor, and reading the endpoints needs those too.
MAX_CONNECTIONS = 256
#: Seconds until a request's head must be there.
HEAD_S = 10.0
#: Seconds until a request's whole body must be there.
BODY_S = 15.0


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol, which alone would keep a silent connection for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head: asyncio.TimerHandle | None = None
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._head = self.loop.call_later(HEAD_S, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head is not None:
            self._head.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self._served and self._head is not None:
            self._head.cancel()  # a request is there; between two of them uvicorn's own limit holds
            self._head = None

    @property
    def _served(self) -> bool:
        """Whether a whole head has come. uvicorn declares ``cycle`` as if it were always there."""
        return getattr(self, "cycle", None) is not None

    def _too_slow(self) -> None:
        if not self._served:
            self.transport.abort()


class BodyDeadline:
    """An application whose requests' bodies come in time, or get 408."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        until, whole, begun = loop.time() + BODY_S, False, False

        async def bounded() -> Message:
            nonlocal whole
            if whole:
                return await receive()  # only its leaving is waited for now
            async with asyncio.timeout_at(until):
                message = await receive()
            whole = not message.get("more_body", False)
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, bounded, noted)
        except TimeoutError:
            if whole or begun:
                raise
            await send({"type": "http.response.start", "status": 408, "headers": [(b"connection", b"close")]})
            await send({"type": "http.response.body", "body": b"the body did not come in time\n"})


def allow_descriptors() -> None:
    """As many open files as this process may ask for: the soft limit of 1024 is below one large fleet."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted: Any = hard if hard != resource.RLIM_INFINITY else max(soft, 65_536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
