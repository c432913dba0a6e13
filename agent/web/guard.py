"""Who may see and press what on the pages.

Three separate locks. The Host header must be one of ours (against DNS rebinding). Where a token is set, pages and API ask for it, as
a bearer or through the login cookie. A POST from a page must carry the session's CSRF token. Health and Slack's receiver have
their own rules and pass by.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

if TYPE_CHECKING:
    from starlette.middleware.base import RequestResponseEndpoint

from agent.settings import WebSettings

SESSION, CSRF = "flyball_session", "flyball_csrf"
_OPEN = ("/healthz", "/readyz", "/slack/actions", "/login", "/static/")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """The locks of one set of web settings."""

    def __init__(self, settings: WebSettings) -> None:
        self._token = settings.token.get_secret_value() if settings.token else None
        self._hosts = {settings.host, "127.0.0.1", "localhost", "[::1]", "::1"}
        if settings.public_url and (host := urlsplit(settings.public_url).hostname):
            self._hosts.add(host)
        self._any_host = settings.host in ("0.0.0.0", "::")  # noqa: S104  compared, not bound; the settings ask for a token there

    def session(self) -> str:
        """What the login cookie holds: derived from the token, so that changing it ends all sessions."""
        key = (self._token or "").encode()
        return hmac.new(key, b"flyball session", hashlib.sha256).hexdigest()

    def is_token(self, given: str) -> bool:
        return self._token is not None and _same(given, self._token)

    def allowed(self, request: Request) -> bool:
        """Whether the request carries the token, one way or the other."""
        if self._token is None:
            return True
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        return self.is_token(bearer) or _same(request.cookies.get(SESSION, ""), self.session())

    async def __call__(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """Let the request through, or answer in its place; either way with the headers that bind the browser."""
        response = self._refusal(request) or await call_next(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    def _refusal(self, request: Request) -> Response | None:
        path = request.url.path
        host = _host_of(request)
        if not self._any_host and host not in self._hosts and path not in ("/healthz", "/readyz", "/slack/actions"):
            return PlainTextResponse("This is not a name of this page; set web.public_url\n", 421)
        if not path.startswith(_OPEN) and not self.allowed(request):
            if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
                return RedirectResponse(f"/login?to={quote(path, safe='/')}", 303)
            return PlainTextResponse("A token is needed: Authorization: Bearer ...\n", 401)
        return None


def _host_of(request: Request) -> str:
    """The name that the browser asked for, without the port; empty where it is none."""
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def csrf_of(request: Request) -> str:
    """This browser's token: the cookie's, or a new one that the caller must set."""
    return request.cookies.get(CSRF) or secrets.token_urlsafe(24)


def csrf_holds(request: Request, given: str) -> bool:
    """Whether a form came from one of our own pages."""
    cookie = request.cookies.get(CSRF, "")
    site = request.headers.get("sec-fetch-site", "same-origin")
    return bool(cookie) and _same(cookie, given) and site in ("same-origin", "none")


def local_path(to: str) -> str:
    """Where to go after the login: a path of ours, or the first page. Browsers read a backslash as a slash, and drop control characters."""
    plain = to.startswith("/") and not to.startswith(("//", "/\\")) and to.isprintable()
    return to if plain else "/"


def _same(a: str, b: str) -> bool:
    """Compared in constant time; bytes, since the comparison of text refuses what is not ASCII."""
    return hmac.compare_digest(a.encode("utf-8", "replace"), b.encode("utf-8", "replace"))
