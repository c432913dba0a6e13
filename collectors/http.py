"""Every outbound request of Flyball: one client, one set of limits, one vocabulary of failures. The one owner of httpx.

A request ends within its deadline, whatever the server does: the deadline is for the whole exchange, not for each
read. A body ends at a size. Proxy settings of the environment are not used, cookies are not kept, compression is not
asked for (a small answer could unpack into a large one). Redirects stay on their host. It must not know what an
answer means.
"""

from __future__ import annotations

import asyncio
import email.utils
import errno
import http.cookiejar
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx

from collectors.sockets import UNTIL, BoundedBackend
from collectors.text import clean
from collectors.window import CollectError

T = TypeVar("T")

MAX_BYTES = 8 * 2**20
_MAX_REDIRECTS = 3
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
#: Below uvicorn's 5 s, so that a connection is not taken up just as the server closes it.
_KEEP_IDLE_S = 4.0
#: After its deadline a request that still goes on is cancelled after all.
_GRACE_S = 5.0
#: An answer older or newer than this is a stale cache's, or one of the two clocks is wrong: neither is fit to decide on.
_MAX_SKEW_S = 300.0
#: Kinds that mean that there was no answer at all.
#: What carries a secret in a request, and how short one cannot be: a word such as Bearer is none.
_SECRET_HEADERS = frozenset(
    ("authorization", "api-key", "x-api-key", "x-litellm-api-key", "x-nomad-token", "proxy-authorization")
)
_SHORTEST_SECRET = 7
_NO_ANSWER = frozenset(("down", "dns", "tls", "timeout"))


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    elapsed_s: float
    """From the call to the last byte, redirects included."""
    url: str
    """Where it came from in the end."""


class HttpCall(Protocol):
    """One request, and its answer of any status: ``Http.call``, as it is handed to those who know no client."""

    async def __call__(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        content: bytes | None = None,
        timeout_s: float = 10.0,
        max_bytes: int | None = None,
    ) -> HttpAnswer:
        """Raises OSError when there is no answer, ValueError when it is broken or larger than ``max_bytes``.

        content: the body's very bytes, for those that are signed; not beside ``json``.
        """


class HttpStream:
    """An answer that is read as it comes: ``async for stamp, chunk in stream``."""

    def __init__(
        self, response: httpx.Response, sent_at: float, monotonic: Callable[[], float], max_bytes: int
    ) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = dict(response.headers)
        self.sent_at = sent_at
        """When the first byte of the request was handed to the socket, by the client's monotonic clock."""
        self.opened_at = monotonic()
        """When the headers of the answer were there."""
        self._response = response
        self._monotonic = monotonic
        self._max_bytes = max_bytes

    async def __aiter__(self) -> AsyncIterator[tuple[float, bytes]]:
        """The monotonic time at which each chunk arrived, and the chunk. Raises CollectError ``too_large``."""
        size = 0
        async for chunk in self._response.aiter_raw():
            stamp = self._monotonic()
            size += len(chunk)
            if size > self._max_bytes:
                raise _too_large(str(self._response.url), self._max_bytes)
            yield stamp, chunk

    async def body(self) -> bytes:
        """All of it at once."""
        return _without_secrets(self._response, b"".join([chunk async for _, chunk in self]))


class Http:
    """A client with a pool of connections. Make one for each set of trust settings, and ``aclose`` it."""

    def __init__(
        self,
        *,
        ca_file: Path | None = None,
        tls: ssl.SSLContext | None = None,
        uds: Path | None = None,
        max_connections: int = 1000,
        max_bytes: int = MAX_BYTES,
        user_agent: str = "flyball",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``ca_file``: PEM of the authorities to trust instead of the system's. ``tls``: a ready context. ``uds``: a Unix
        socket that answers whatever host an address names.

        ``max_bytes``: the largest body that is read unless a call says otherwise. ``monotonic``: the clock of all
        stamps. Raises OSError when ``ca_file`` cannot be read.
        """
        self.monotonic = monotonic
        self._max_bytes = max_bytes
        transport = httpx.AsyncHTTPTransport(
            verify=tls or ssl.create_default_context(cafile=ca_file),
            trust_env=False,
            limits=httpx.Limits(
                max_connections=max_connections,
                max_keepalive_connections=max_connections,
                keepalive_expiry=_KEEP_IDLE_S,
            ),
            uds=None if uds is None else str(uds),
        )
        pool: Any = transport._pool  # httpx has no door for it
        pool._network_backend = BoundedBackend(pool._network_backend)
        self._client = httpx.AsyncClient(
            transport=transport,
            trust_env=False,
            headers={"user-agent": user_agent, "accept": "*/*", "accept-encoding": "identity"},
        )
        self._client.cookies.jar.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        self._going: set[asyncio.Task[Any]] = set()
        """Exchanges under way, those included that nobody waits for any more: they end by their own deadline."""

    async def aclose(self) -> None:
        for task in self._going:
            task.cancel()
        await asyncio.gather(*self._going, return_exceptions=True)
        await self._client.aclose()

    async def get(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
        max_bytes: int | None = None,
    ) -> HttpAnswer:
        """The whole answer to a GET. Raises CollectError on any failure, a status of 400 and above included."""
        return await self.request("GET", url, headers=headers, timeout_s=timeout_s, max_bytes=max_bytes)

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        content: bytes | None = None,
        form: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
        max_bytes: int | None = None,
    ) -> HttpAnswer:
        """The whole answer. Raises CollectError on any failure, a status of 400 and above included.

        Kinds: down, dns, tls, timeout, redirect, too_large, truncated, http_401, http_403, http_404, http_4xx,
        http_5xx, protocol.
        """
        body = {"json": json, "content": content, "data": form}
        answer = await self._exchange(method, url, headers, body, timeout_s, max_bytes or self._max_bytes)
        check_status(answer.status, answer.url, answer.body)
        return answer

    async def call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        content: bytes | None = None,
        timeout_s: float = 10.0,
        max_bytes: int | None = None,
    ) -> HttpAnswer:
        """The whole answer of any status. Raises OSError when there is none, ValueError when it is broken.

        For callers that judge the status themselves and do not know CollectError.
        """
        try:
            body = {"json": json, "content": content}
            return await self._exchange(method, url, headers, body, timeout_s, max_bytes or self._max_bytes)
        except CollectError as error:
            if error.kind in _NO_ANSWER:
                raise OSError(str(error)) from error
            raise ValueError(str(error)) from error

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        timeout_s: float = 60.0,
        max_bytes: int | None = None,
    ) -> AsyncIterator[HttpStream]:
        """An answer of any status, to be read as it comes. The deadline covers the block. Raises as ``request``.

        A redirect is not followed: it raises ``redirect``.
        """
        sent_at = self.monotonic()

        async def trace(event: str, _: Mapping[str, Any]) -> None:
            nonlocal sent_at
            if event == "http11.send_request_headers.started":
                sent_at = self.monotonic()

        async with _mapped(url, timeout_s):
            request = self._client.build_request(
                method, url, headers=headers, json=json, extensions={"trace": trace}, timeout=timeout_s
            )
            opening = self._begin(self._client.send(request, stream=True), timeout_s)
            try:
                await asyncio.wait({opening})
            except asyncio.CancelledError:
                opening.add_done_callback(self._unwanted)
                raise
            response = opening.result()
            try:
                if response.status_code in _REDIRECTS:
                    raise _redirect(url, "a streaming request is not sent on")
                _check_encoding(response)
                yield HttpStream(response, sent_at, self.monotonic, max_bytes or self._max_bytes)
            finally:
                await response.aclose()

    def _begin(self, work: Coroutine[Any, Any, T], timeout_s: float) -> asyncio.Task[T]:
        """A task that nobody cancels: it ends by its own deadline, and then its connection is in order (see ``sockets``)."""
        loop = asyncio.get_running_loop()

        async def bounded() -> T:
            UNTIL.set(loop.time() + timeout_s)
            return await work

        task = loop.create_task(bounded())
        backstop = loop.call_later(timeout_s + _GRACE_S, task.cancel)
        self._going.add(task)

        def over(task: asyncio.Task[T]) -> None:
            backstop.cancel()
            self._going.discard(task)
            if not task.cancelled():
                task.exception()  # whoever waited for it may have gone

        task.add_done_callback(over)
        return task

    def _unwanted(self, opening: asyncio.Task[httpx.Response]) -> None:
        """An answer that came when its caller had gone."""
        if not opening.cancelled() and opening.exception() is None:
            self._begin(opening.result().aclose(), _GRACE_S)

    async def _exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        body: Mapping[str, Any],
        timeout_s: float,
        max_bytes: int,
    ) -> HttpAnswer:
        async with _mapped(url, timeout_s):
            task = self._begin(self._follow(method, url, headers, body, timeout_s, max_bytes), timeout_s)
            await asyncio.wait({task})
            return task.result()

    async def _follow(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        body: Mapping[str, Any],
        timeout_s: float,
        max_bytes: int,
    ) -> HttpAnswer:
        """The answer, through redirects."""
        started = self.monotonic()
        at = url
        for _ in range(_MAX_REDIRECTS + 1):
            request = self._client.build_request(method, at, headers=headers, timeout=timeout_s, **body)
            response = await self._client.send(request, stream=True)
            try:
                if response.status_code in _REDIRECTS and "location" in response.headers:
                    at = _next(method, at, response.headers["location"])
                    continue
                _check_encoding(response)
                read = await _read(response, max_bytes)
            finally:
                await response.aclose()
            read = _without_secrets(response, read)
            return HttpAnswer(response.status_code, dict(response.headers), read, self.monotonic() - started, at)
        raise _redirect(url, f"more than {_MAX_REDIRECTS}, so probably a loop")


def _without_secrets(response: httpx.Response, body: bytes) -> bytes:
    """What a server says of a request that it refused, without the secrets that it was sent: it may quote them, and errors are kept."""
    if response.status_code < 400:
        return body
    sent = response.request.headers
    for name in _SECRET_HEADERS & sent.keys():
        for piece in (sent[name], *sent[name].split()):
            if len(piece) >= _SHORTEST_SECRET:
                body = body.replace(piece.encode(), b"***")
    return body


def check_status(status: int, url: str, body: bytes = b"") -> None:
    """Raises CollectError unless the status is 2xx."""
    if 200 <= status < 300:
        return
    said = " ".join(clean(body[:200].decode("utf-8", "replace")).split())
    detail = f"{_shown(url)} answered {status}" + (f": {said}" if said else "")
    if status in (401, 403):
        raise CollectError(f"http_{status}", f"{detail}. Check the credentials in this endpoint's headers")
    if status == 404:
        raise CollectError("http_404", f"{detail}. Check the address and its path")
    if 400 <= status < 600:
        raise CollectError(f"http_{status // 100}xx", detail)
    raise CollectError("protocol", f"{detail}, which is not an answer to this request")


def check_clock(answer: HttpAnswer, now: float) -> None:
    """Raises CollectError ``clock_skew`` when the answer's Date is more than five minutes from ``now``."""
    date = answer.headers.get("date")
    if date is None:
        return
    try:
        there = email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError, OSError):  # no date that can be: nothing to compare with
        return
    if abs(there - now) > _MAX_SKEW_S:
        raise CollectError(
            "clock_skew",
            f"the answer is dated {there - now:+.0f} s from our clock: a cache gives old pages, or a clock is wrong. "
            "Set both by NTP, and read past any cache",
        )


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    length = response.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > max_bytes):
        raise _too_large(str(response.url), max_bytes)
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(str(response.url), max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _check_encoding(response: httpx.Response) -> None:
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise CollectError("protocol", f"{_shown(str(response.url))} sent {encoding}, which was not asked for")


def _next(method: str, at: str, location: str) -> str:
    """Where a redirect leads, if it may be followed."""
    if method not in ("GET", "HEAD"):
        raise _redirect(at, f"a {method} is not sent on")
    old = urlsplit(at)
    try:
        there = urljoin(at, location)
        new = urlsplit(there)
        _port(new)
    except ValueError as error:
        raise _redirect(at, f"it leads to something that is not an address ({error})") from error
    if old.hostname != new.hostname or (old.scheme, new.scheme) not in (
        ("http", "http"),
        ("https", "https"),
        ("http", "https"),
    ):
        raise _redirect(at, f"it leads to {new.scheme}://{new.netloc}, another place, which was not configured")
    if old.scheme == new.scheme and _port(old) != _port(new):
        raise _redirect(at, f"it leads to port {new.port}, another server, which was not configured")
    if old.scheme != new.scheme and (_port(old), _port(new)) != (80, 443) and _port(old) != _port(new):
        raise _redirect(at, f"it leads to https on port {_port(new)}, another server, which was not configured")
    return there


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _redirect(url: str, why: str) -> CollectError:
    return CollectError("redirect", f"{_shown(url)} redirects: {why}. Configure the final address")


def _too_large(url: str, max_bytes: int) -> CollectError:
    return CollectError("too_large", f"{_shown(url)} sent more than {max_bytes} bytes")


@asynccontextmanager
async def _mapped(url: str, timeout_s: float) -> AsyncIterator[None]:
    """One deadline, and every failure as a CollectError."""
    _check_address(url)
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except (TimeoutError, httpx.TimeoutException) as error:
        raise CollectError("timeout", f"{_shown(url)} did not finish within {timeout_s:g} s") from error
    except httpx.TransportError as error:
        raise CollectError(*_judged(url, error)) from error


def _judged(url: str, error: httpx.TransportError) -> tuple[str, str]:
    """Kind and detail of a failure, from the chain of its causes."""
    where = _shown(url)
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
            text = "has no file descriptor left, which says nothing of the endpoint; raise LimitNOFILE or `ulimit -n`"
            return "no_descriptors", f"{where} was not asked: Flyball {text}"
        if isinstance(cause, ssl.SSLError):
            return "tls", f"{where}: {cause.reason or cause}. Trust its authority (ca_file), or correct the address"
        if isinstance(cause, socket.gaierror):
            return "dns", f"{where}: the name is not known"
    if isinstance(error, httpx.ConnectError):
        return "down", f"{where} refuses connections or cannot be reached"
    text = str(error)
    if isinstance(error, httpx.RemoteProtocolError) and "without sending complete" not in text:
        kind = "down" if "disconnected" in text else "protocol"
        return kind, f"{where}: {text}"
    if isinstance(error, httpx.LocalProtocolError | httpx.DecodingError):
        return "protocol", f"{where}: {text}"
    return "truncated", f"{where} broke off in the middle of its answer"


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        httpx.URL(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, httpx.InvalidURL):
        sound = False
    if not sound:
        raise CollectError("protocol", f"{url.partition('?')[0]!r} is no address such as http://host:port/path")


def _shown(url: str) -> str:
    """The address without what may be secret: user, password, query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
