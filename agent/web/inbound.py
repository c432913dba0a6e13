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
#: Bytes of a request's body. Forms and Slack's clicks are far below.
MAX_BODY = 1 << 20


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


class WholeBodies:
    """An application that only meets requests whose body has come, in time and within bounds.

    408 for those that are too slow, 413 for those that are too large; of one who leaves in the middle nobody hears.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(BODY_S):
                body = await _whole(receive)
        except TimeoutError:
            await _refuse(send, 408, b"the body did not come in time\n")
            return
        except ValueError:
            await _refuse(send, 413, b"the body is too large\n")
            return
        if body is None:
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()  # that it leaves is all that may still come
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)


async def _whole(receive: Receive) -> bytes | None:
    """None: it left. Raises ValueError where it is too large."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > MAX_BODY:
            raise ValueError(size)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def _refuse(send: Send, status: int, text: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": text})


def allow_descriptors() -> None:
    """As many open files as this process may ask for: the soft limit of 1024 is below one large fleet."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted: Any = hard if hard != resource.RLIM_INFINITY else max(soft, 65_536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
