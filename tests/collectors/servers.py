"""Real local servers for the collectors' tests: each writes the bytes that its test wants, on a port of the system's choice."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path

import pytest

#: The system's authorities, read once for the many clients of one test.
TRUST = ssl.create_default_context()


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        loaded = json.loads(self.body)
        assert isinstance(loaded, dict)
        return loaded


Handler = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Served:
    port: int
    scheme: str = "http"
    requests: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"


@contextmanager
def serve(handler: Handler, tls: ssl.SSLContext | None = None) -> Iterator[Served]:
    """A server in a thread of its own, so that a stuck client cannot stop it."""
    loop = asyncio.new_event_loop()
    served = Served(0, "https" if tls else "http")
    writers: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        try:
            request = await _request(reader)
            served.requests.append(request)
            await handler(request, writer)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            writers.discard(writer)  # one that has closed by itself must not be aborted any more
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()

    server = loop.run_until_complete(asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls))
    served.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield served
    finally:
        asyncio.run_coroutine_threadsafe(_stop(server, writers), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _stop(server: asyncio.Server, writers: set[asyncio.StreamWriter]) -> None:
    server.close()
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    for writer in writers:
        writer.transport.abort()
    closing = [asyncio.ensure_future(writer.wait_closed()) for writer in writers]
    if closing:
        await asyncio.wait(closing, timeout=5)
        await asyncio.gather(*(task for task in closing if task.done()), return_exceptions=True)
    for _ in range(5):  # TLS needs a few turns more to let go of its socket
        await asyncio.sleep(0)


async def _request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, body)


def head_of(status: str = "200 OK", kind: str = "text/plain", length: int | None = None, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", "connection: close"]
    if length is not None:
        lines.append(f"content-length: {length}")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answering(
    body: bytes | str, status: str = "200 OK", kind: str = "text/plain; version=0.0.4", **headers: str
) -> Handler:
    """One whole answer to whatever is asked."""
    data = body.encode() if isinstance(body, str) else body

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head_of(status, kind, len(data), **headers) + data)

    return handler


def dated(seconds: float) -> str:
    return formatdate(seconds, usegmt=True)


def streaming(
    events: Sequence[dict[str, object] | str],
    *,
    done: bool = True,
    cut: int | None = None,
    pause_s: float = 0.0,
    headers: str = "",
) -> Handler:
    """An event stream in chunked encoding; strings are sent as they are. ``cut``: break off after so many events. ``headers``: whole lines."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n"
            + headers.encode()
            + b"\r\n"
        )
        lines = [event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n" for event in events]
        for line in [*lines, *(["data: [DONE]\n\n"] if done else [])][:cut]:
            data = line.encode()
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
            if pause_s:
                await asyncio.sleep(pause_s)
        if cut is None:
            writer.write(b"0\r\n\r\n")

    return handler


def chat_events(tokens: int, *, prompt_tokens: int = 20) -> list[dict[str, object] | str]:
    """What vLLM sends for a chat completion: a role, the tokens, a finish reason, the usage."""
    return [
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        *({"choices": [{"delta": {"content": "w"}}]} for _ in range(tokens)),
        {"choices": [{"delta": {}, "finish_reason": "length"}]},
        {"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}},
    ]


@contextmanager
def certificate(folder: Path) -> Iterator[tuple[ssl.SSLContext, Path]]:
    """A server's TLS context with a certificate of its own, and that certificate for those who want to trust it."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
    ]
    command += ["2", "-subj", "/CN=flyball-test", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("the openssl command is not here, so no certificate can be made")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    yield context, cert
