"""The HTTP side of the stand-in: routes, tokens, api-versions, permissions, and faults. What an address means is in the other modules."""

from __future__ import annotations

import fnmatch
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.fakes.azure.cloud import Cloud, Refusal

_WHO = "11111111-2222-4333-8444-555555555555"


@dataclass
class Call:
    """One request, parsed."""

    cloud: Cloud
    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]
    base: str
    """The address under which the caller sees us."""
    names: dict[str, str] = field(default_factory=dict)


@dataclass
class Reply:
    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Route:
    method: str
    pattern: re.Pattern[str]
    versions: frozenset[str]
    action: str | None
    """What the caller must be allowed to do; None: nothing, or its own key."""
    handler: Callable[[Call], Reply]
    audience: str | None = "https://management.azure.com"


def route(
    method: str,
    path: str,
    versions: str,
    action: str | None,
    handler: Callable[[Call], Reply],
    audience: str | None = "https://management.azure.com",
) -> Route:
    """``path`` with ``{name}`` for one segment, and ``{+name}`` for several; case does not matter, as in ARM."""
    pattern = re.sub(r"\\\{\\\+(\w+)\\\}", r"(?P<\1>.+?)", re.escape(path))
    pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", pattern)
    return Route(
        method, re.compile(f"^{pattern}/?$", re.IGNORECASE), frozenset(versions.split()), action, handler, audience
    )


class FakeAzure:
    """Use as ``with FakeAzure(cloud) as azure``; ``azure.url`` is the base of ARM, of Azure Monitor and of scoring alike."""

    def __init__(self, cloud: Cloud | None = None) -> None:
        from tests.fakes.azure import compute, ml, monitor, openai  # the routes know the nouns of this module

        self.cloud = cloud or Cloud(time.time)
        self._routes: list[Route] = [*ml.ROUTES, *openai.ROUTES, *compute.ROUTES, *monitor.ROUTES]
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65536  # head and body in one packet: two would wait for each other's acknowledgement
            disable_nagle_algorithm = True

            def _serve(self) -> None:
                server.serve(self)

            do_GET = do_PUT = do_PATCH = do_POST = do_DELETE = _serve  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeAzure:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # -- one request ---------------------------------------------------------------------------------------------------

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        parts = urlsplit(handler.path)
        query = {k.lower(): v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        headers = {k.lower(): v for k, v in handler.headers.items()}
        with self.cloud.lock:
            path = unquote(parts.path)
            self.cloud.requests.append((handler.command, path))
            self.cloud.settle()
            fault = next((f for f in self.cloud.faults if f.hits(handler.command, handler.path)), None)
            try:
                if fault is not None:
                    fault.times -= 1
                    if not fault.after:
                        raise Refusal(fault.status, fault.code, fault.message, dict(fault.headers))
                body = _parsed(raw, headers)
                call = Call(self.cloud, handler.command, path, query, body, headers, self.url)
                reply = self._answer(call)
            except Refusal as refusal:
                reply = Reply(refusal.status, refusal.body, refusal.headers)
        if fault is not None and fault.after:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        _send(handler, reply)

    def _answer(self, call: Call) -> Reply:
        matched = [(r, m) for r in self._routes if (m := r.pattern.match(call.path))]
        if not matched:
            raise Refusal(404, "InvalidResourceType", f"The resource type of '{call.path}' could not be found.")
        found = next(((r, m) for r, m in matched if r.method == call.method), None)
        if found is None:
            text = f"The requested resource does not support http method '{call.method}'."
            raise Refusal(405, "MethodNotAllowed", text)
        at, match = found
        call.names = match.groupdict()
        if at.audience is not None:
            self._authorize(call, at)
        return at.handler(call)

    def _authorize(self, call: Call, at: Route) -> None:
        scheme, _, token = call.headers.get("authorization", "").partition(" ")
        audience = call.cloud.tokens.get(token)
        if scheme.lower() != "bearer" or audience is None:
            challenge = {
                "WWW-Authenticate": 'Bearer authorization_uri="https://login.windows.net/t", error="invalid_token"'
            }
            raise Refusal(401, "AuthenticationFailed", "Authentication failed.", challenge)
        if audience != at.audience:
            raise Refusal(
                401, "InvalidAuthenticationTokenAudience", f"The access token is for '{audience}', not '{at.audience}'."
            )
        version = call.query.get("api-version")
        if version is None:
            text = "The api-version query parameter (?api-version=) is required for all requests."
            raise Refusal(400, "MissingApiVersionParameter", text)
        if version not in at.versions:
            text = (
                f"The api-version '{version}' is invalid. The supported versions are '{','.join(sorted(at.versions))}'."
            )
            raise Refusal(400, "InvalidApiVersionParameter", text)
        subscription = re.match(r"/subscriptions/([^/]+)", call.path, re.IGNORECASE)
        if subscription and subscription[1].lower() != call.cloud.subscription:
            raise Refusal(404, "SubscriptionNotFound", f"The subscription '{subscription[1]}' could not be found.")
        if at.action is not None and not allowed(call.cloud, at.action):
            scope = call.path.partition("/providers/Microsoft.Insights")[0]
            raise Refusal(
                403,
                "AuthorizationFailed",
                f"The client '{_WHO}' with object id '{_WHO}' does not have authorization to perform action '{at.action}' over scope "
                f"'{scope}' or the scope is invalid. If access was recently granted, please refresh your credentials.",
            )


def allowed(cloud: Cloud, action: str) -> bool:
    def among(patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatch(action.lower(), p.lower()) for p in patterns)

    return among(cloud.actions) and not among(cloud.not_actions)


def _parsed(raw: bytes, headers: dict[str, str]) -> Any:
    if not raw:
        return None
    if not headers.get("content-type", "").startswith("application/json"):
        raise Refusal(
            415,
            "UnsupportedMediaType",
            "The content media type is not supported. Only 'application/json' is supported.",
        )
    try:
        return json.loads(raw)
    except ValueError:
        raise Refusal(
            400, "InvalidRequestContent", "The request content was invalid and could not be deserialized."
        ) from None


def _send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    data = b"" if reply.body is None else json.dumps(reply.body).encode()
    handler.send_response(reply.status)
    for name, value in {
        "x-ms-request-id": "r",
        "Content-Type": "application/json; charset=utf-8",
        **reply.headers,
    }.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    try:
        handler.wfile.write(data)
    except (BrokenPipeError, ConnectionResetError):
        handler.close_connection = True


def paged(call: Call, items: list[Any], size: int) -> Reply:
    """One page, and where the next one is."""
    start = int(call.query.get("$skiptoken") or call.query.get("$skip") or 0)
    body: dict[str, Any] = {"value": items[start : start + size]}
    if start + size < len(items):
        kept = "".join(f"&{k}={quote(v)}" for k, v in call.query.items() if k not in ("$skiptoken", "$skip"))
        body["nextLink"] = f"{call.base}{quote(call.path)}?$skipToken={start + size}{kept}"
    return Reply(200, body)
