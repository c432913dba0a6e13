"""HTTP/1.1 messages on asyncio streams: what the replica router and the emulated server both read and write.

Owns framing and its limits, nothing else. Standard library only, because both run as small processes of their own. Strict
where leniency would let two readers of one message disagree about where it ends (RFC 9112, sections 6.3 and 11.2).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

MAX_HEAD = 64 * 1024
PIECE = 64 * 1024
WHOLE_CHUNK = 4 * 1024
"""Chunks up to this size are passed on in one write: a streamed token is one packet."""
HEAD_TIMEOUT_S = 30.0
IDLE_TIMEOUT_S = 75.0
BODY_TIMEOUT_S = 60.0
"""Longest silence between two pieces of a request's body."""
WRITE_TIMEOUT_S = 120.0
"""Longest time that a client may leave its answer unread."""

Headers = list[tuple[bytes, bytes]]
Handler = Callable[["Request", asyncio.StreamWriter], Awaitable[bool]]
"""Answers one request; says whether the connection may carry another."""


class BadMessage(Exception):
    """The other side does not speak HTTP/1.1 as we need it. ``status`` is what a client is told."""

    def __init__(self, detail: str, status: int = 400) -> None:
        super().__init__(detail)
        self.status = status


class TruncatedMessage(BadMessage):
    """The message ended before it was complete."""


@dataclass(slots=True)
class Head:
    """The first line, split, and the headers with lower-case names."""

    first: tuple[bytes, bytes, bytes]
    headers: Headers

    def get(self, name: bytes) -> bytes | None:
        """The only value of a header; several are joined with a comma."""
        values = [v for n, v in self.headers if n == name]
        return b", ".join(values) if values else None

    def without(self, *names: bytes) -> Headers:
        return [(n, v) for n, v in self.headers if n not in names]

    @property
    def chunked(self) -> bool:
        return self.get(b"transfer-encoding") is not None

    @property
    def length(self) -> int | None:
        value = self.get(b"content-length")
        return None if value is None else int(value)

    @property
    def keeps_alive(self) -> bool:
        tokens = (self.get(b"connection") or b"").lower()
        return b"HTTP/1.1" in self.first and b"close" not in tokens


@dataclass(slots=True)
class Request:
    """A request whose body has not been read yet."""

    head: Head
    reader: asyncio.StreamReader
    body_read: bool = False

    @property
    def method(self) -> bytes:
        return self.head.first[0]

    @property
    def target(self) -> bytes:
        return self.head.first[1]

    @property
    def path(self) -> str:
        return self.target.split(b"?", 1)[0].decode("latin-1")

    @property
    def has_body(self) -> bool:
        return self.head.chunked or bool(self.head.length)

    async def raw_body(self, writer: asyncio.StreamWriter) -> AsyncIterator[bytes]:
        """The body in its own framing, piece by piece. Asks for it first where the client waits to be asked."""
        if self.has_body and (self.head.get(b"expect") or b"").lower() == b"100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        async for piece, _ in read_body(self.reader, self.head, BODY_TIMEOUT_S, until_close=False):
            yield piece
        self.body_read = True

    async def json(self, writer: asyncio.StreamWriter, limit: int = 4 * 1024 * 1024) -> Any:
        """The whole body as JSON. Raises ``BadMessage`` when it is too long, or not JSON."""
        if self.has_body and (self.head.get(b"expect") or b"").lower() == b"100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        whole = bytearray()
        async for _, data in read_body(self.reader, self.head, BODY_TIMEOUT_S, until_close=False):
            whole += data
            if len(whole) > limit:
                raise BadMessage(f"the body is longer than {limit} bytes", 413)
        self.body_read = True
        try:
            return json.loads(bytes(whole) or b"null")
        except (ValueError, RecursionError) as error:
            raise BadMessage(f"the body is not JSON: {error}") from None


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """The next message's head, or None when the other side closed instead. Raises ``BadMessage``, ``TruncatedMessage``."""
    try:
        text = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial.strip():
            raise TruncatedMessage("the head ended in the middle") from None
        return None
    except asyncio.LimitOverrunError:
        raise BadMessage(f"the head is longer than {MAX_HEAD} bytes", 431) from None
    lines = text[:-4].lstrip(b"\r\n").split(b"\r\n")
    first = lines[0].split(b" ", 2)
    if len(first) < 2 or b"\n" in lines[0]:
        raise BadMessage("the first line is not HTTP")
    headers: Headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip() or line[:1].isspace() or b"\n" in line or b"\r" in line:
            raise BadMessage("a header is malformed")
        headers.append((name.lower(), value.strip()))
    head = Head((first[0], first[1], first[2] if len(first) > 2 else b""), headers)
    _check_framing(head)
    return head


def _check_framing(head: Head) -> None:
    encoding, length = head.get(b"transfer-encoding"), head.get(b"content-length")
    if encoding is not None and (length is not None or encoding.lower() != b"chunked"):
        raise BadMessage("the transfer encoding is not plain chunked")
    if length is not None and not (length.isdigit() and len(length) < 19):
        raise BadMessage("the content length is not one number")


async def read_body(
    reader: asyncio.StreamReader, head: Head, timeout_s: float | None, *, until_close: bool
) -> AsyncIterator[tuple[bytes, bytes]]:
    """The body as it arrives: (in its own framing, without framing). Raises ``TruncatedMessage`` when it ends too early.

    ``until_close``: an answer without length runs to the end of the connection; a request without one has no body.
    """
    if head.chunked:
        async for piece in _read_chunks(reader, timeout_s):
            yield piece
        return
    left = head.length
    while left or (left is None and until_close):
        data = await asyncio.wait_for(reader.read(PIECE if left is None else min(left, PIECE)), timeout_s)
        if not data:
            if left is None:
                return
            raise TruncatedMessage(f"{left} bytes of the body are missing")
        if left is not None:
            left -= len(data)
        yield data, data


async def _read_chunks(reader: asyncio.StreamReader, timeout_s: float | None) -> AsyncIterator[tuple[bytes, bytes]]:
    while True:
        line = await _line(reader, timeout_s)
        digits = line.split(b";", 1)[0].strip()
        if not digits or len(digits) > 15 or digits.strip(b"0123456789abcdefABCDEF"):
            raise BadMessage("a chunk's size is not a number")
        left = int(digits, 16)
        if left == 0:
            while await _line(reader, timeout_s) != b"\r\n":  # trailers are dropped
                pass
            yield b"0\r\n\r\n", b""
            return
        while left > WHOLE_CHUNK:  # a long one is handed on as it comes
            data = await asyncio.wait_for(reader.read(min(left - WHOLE_CHUNK, PIECE)), timeout_s)
            if not data:
                raise TruncatedMessage("the body ended within a chunk")
            left -= len(data)
            yield line + data, data
            line = b""
        try:
            rest = await asyncio.wait_for(reader.readexactly(left + 2), timeout_s)
        except asyncio.IncompleteReadError:
            raise TruncatedMessage("the body ended within a chunk") from None
        if not rest.endswith(b"\r\n"):
            raise BadMessage("a chunk is longer than it says")
        yield line + rest, rest[:-2]


async def _line(reader: asyncio.StreamReader, timeout_s: float | None) -> bytes:
    try:
        return await asyncio.wait_for(reader.readuntil(b"\r\n"), timeout_s)
    except asyncio.IncompleteReadError:
        raise TruncatedMessage("the body ended between chunks") from None
    except asyncio.LimitOverrunError:
        raise BadMessage("a chunk's first line is too long") from None


def head_bytes(status: int, headers: Headers, reason: bytes | None = None) -> bytes:
    """A response's head, ready to be written."""
    phrase = reason if reason is not None else HTTPStatus(status).phrase.encode()
    lines = [b"HTTP/1.1 %d %s" % (status, phrase), *(n + b": " + v for n, v in headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def json_answer(status: int, value: Any, *, headers: Headers | None = None, close: bool = False) -> bytes:
    """A whole response with a JSON body."""
    return answer(status, b"application/json", json.dumps(value).encode(), headers=headers, close=close)


def answer(status: int, kind: bytes, body: bytes, *, headers: Headers | None = None, close: bool = False) -> bytes:
    """A whole response."""
    connection = b"close" if close else b"keep-alive"
    framing = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), (b"connection", connection)]
    return head_bytes(status, [*framing, *(headers or [])]) + body


def error_answer(status: int, message: str, *, headers: Headers | None = None, close: bool = False) -> bytes:
    """An error as OpenAI's API words it."""
    error = {"message": message, "type": HTTPStatus(status).phrase.replace(" ", ""), "param": None, "code": status}
    return json_answer(status, {"error": error}, headers=headers, close=close)


class _ClientProtocol(asyncio.StreamReaderProtocol):
    """Stops the connection's task the moment the client is gone, so that nobody works for a closed door."""

    task: asyncio.Task[None] | None = None

    def eof_received(self) -> bool | None:
        if self.task is not None:
            self.task.cancel()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.task is not None:
            self.task.cancel()
        super().connection_lost(exc)


async def start_server(
    handler: Handler, *, host: str | None = None, port: int | None = None, sock: Any = None
) -> asyncio.Server:
    """Serve ``handler``. A handler is cancelled when its client leaves."""
    loop = asyncio.get_running_loop()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = writer.transport.get_protocol()
        if not isinstance(protocol, _ClientProtocol):
            raise TypeError("the transport has changed its protocol")
        protocol.task = asyncio.current_task()
        try:
            await _converse(handler, reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            protocol.task = None

    def protocol() -> asyncio.StreamReaderProtocol:
        reader = asyncio.StreamReader(limit=MAX_HEAD, loop=loop)
        return _ClientProtocol(reader, connected, loop=loop)

    where = {"sock": sock} if sock is not None else {"host": host, "port": port}
    return await loop.create_server(protocol, backlog=1024, **where)


async def _converse(handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    timeout_s = HEAD_TIMEOUT_S
    try:
        while True:
            head = await asyncio.wait_for(read_head(reader), timeout_s)
            if head is None:
                break
            if head.first[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
                raise BadMessage("only HTTP/1.1 is spoken here", 505)
            request = Request(head, reader)
            again = await handler(request, writer)
            await asyncio.wait_for(writer.drain(), WRITE_TIMEOUT_S)
            if not (again and head.keeps_alive and (request.body_read or not request.has_body)):
                break
            timeout_s = IDLE_TIMEOUT_S
    except BadMessage as error:
        writer.write(error_answer(error.status, str(error), close=True))
    except TimeoutError:
        writer.transport.abort()
    except ConnectionError:
        pass  # the client has gone: there is nobody to tell
    finally:
        writer.close()
