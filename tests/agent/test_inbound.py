"""Who comes in slowly, or in a crowd, costs the others nothing: over real sockets, against the real server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from agent.web import inbound
from tests.actuators.support import eventually, free_port

HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
SLOW = b"POST /slack/actions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel"


async def _health(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("well")


async def _slack(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


@asynccontextmanager
async def _server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(inbound, "HEAD_S", 0.5)
    monkeypatch.setattr(inbound, "BODY_S", 0.5)
    port = free_port()
    routes = [Route("/healthz", _health), Route("/slack/actions", _slack, methods=["POST"])]
    app = inbound.WholeBodies(Starlette(routes=routes))
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, http=inbound.BoundedProtocol)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    await eventually(lambda: server.started)
    try:
        yield port
    finally:
        server.should_exit = True
        await task


async def _ask(port: int, request: bytes) -> bytes:
    """All that is answered until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 30)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def test_a_silent_connection_and_half_a_head_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with _server(monkeypatch) as port:
            for beginning in (b"", b"GET /heal", b"GET /healthz HTTP/1.1\r\nhost: x\r\n"):
                assert await _ask(port, beginning) == b""
            assert (await _ask(port, HEALTH)).endswith(b"well")

    asyncio.run(story())


def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with _server(monkeypatch) as port:
            assert (await _ask(port, SLOW)).startswith(b"HTTP/1.1 408 ")
            whole = SLOW + b"lo\r\n0\r\n\r\n"
            answer = await _ask(port, whole.replace(b"host: x", b"host: x\r\nconnection: close"))
            assert answer.endswith(b"5")

    asyncio.run(story())


def test_a_body_without_end_is_cut_off_and_one_who_leaves_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inbound, "MAX_BODY", 1000)

    async def story() -> None:
        async with _server(monkeypatch) as port:
            chunk = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
            assert (await _ask(port, SLOW.partition(b"5\r\n")[0] + 2 * chunk)).startswith(b"HTTP/1.1 413 ")
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(SLOW)
            await writer.drain()
            writer.transport.abort()
            assert (await _ask(port, HEALTH)).endswith(b"well")

    asyncio.run(story())
    assert caplog.records == []


def test_a_crowd_of_slow_ones_is_bounded_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound, "MAX_CONNECTIONS", 20)

    async def story() -> None:
        async with _server(monkeypatch) as port:
            crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
            for one in crowd:
                with contextlib.suppress(OSError):
                    one.send(SLOW)

            async def well() -> bool:
                return (await _ask(port, HEALTH)).endswith(b"well")

            await eventually(well, 30.0)
            for one in crowd:
                one.close()

    asyncio.run(story())
