"""Who may see and press what on the pages.

Three separate locks. The Host header must be one of ours (against DNS rebinding). Where a token is set, pages and API ask for it, as
a bearer or through the login cookie, which ends by itself. A POST from a page must carry a key that only our own pages tell, and
that no cookie can take the place of: a page on a sibling name may set cookies for us, but reads none of our pages. Health and Slack's
receiver have their own rules and pass by.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import deque
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

if TYPE_CHECKING:
    from starlette.middleware.base import RequestResponseEndpoint

from agent.settings import WebSettings
from collectors.clock import Clock

SESSION = "flyball_session"
#: Seconds until a login ends, on the server too.
SESSION_S = 86_400
#: After so many wrong tokens in so many seconds, from one address or from all together, none is looked at until they are that old.
WRONG_HERE, WRONG_AT_ALL, WRONG_S = 5, 30, 60.0
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

    def __init__(self, settings: WebSettings, clock: Clock) -> None:
        self._clock = clock
        self._token = settings.token.get_secret_value() if settings.token else None
        self._key = (self._token or secrets.token_urlsafe(32)).encode()
        self._wrong: deque[tuple[float, str]] = deque()
        """When and from where a wrong token came: monotonic seconds."""
        self._hosts = {settings.host, "127.0.0.1", "localhost", "[::1]", "::1"}
        if settings.public_url and (host := urlsplit(settings.public_url).hostname):
            self._hosts.add(host)
        self._any_host = settings.host in ("0.0.0.0", "::")  # noqa: S104  compared, not bound; the settings ask for a token there

    def session(self) -> str:
        """What the login cookie holds: when it ends, signed by the token, so that changing it ends all sessions."""
        return self._session(str(int(self._clock.now()) + SESSION_S))

    def _session(self, ends: str) -> str:
        return f"{ends}.{self._signed(f'flyball session {ends}')}"

    def _session_holds(self, given: str) -> bool:
        ends, _, _ = given.partition(".")
        in_time = ends.isascii() and ends.isdigit() and len(ends) < 16 and self._clock.now() < int(ends)
        return in_time and _same(given, self._session(ends))

    @property
    def asks(self) -> bool:
        """Whether there is something to log in with."""
        return self._token is not None

    def csrf(self) -> str:
        """What the forms of our own pages carry."""
        return self._signed("flyball form")

    def _signed(self, what: str) -> str:
        return hmac.new(self._key, what.encode(), hashlib.sha256).hexdigest()

    def form_is_ours(self, request: Request, given: str) -> bool:
        """Whether a form came from one of our own pages: it has their key, and no header says that another site sent it."""
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        foreign = site not in (None, "same-origin", "none")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            foreign = True
        return not foreign and _same(given, self.csrf())

    def too_many(self, address: str) -> bool:
        """Whether so many wrong tokens came lately that none is looked at now."""
        since = self._clock.monotonic() - WRONG_S
        while self._wrong and self._wrong[0][0] < since:
            self._wrong.popleft()
        return len(self._wrong) >= WRONG_AT_ALL or sum(who == address for _, who in self._wrong) >= WRONG_HERE

    def came_wrong(self, address: str) -> None:
        self._wrong.append((self._clock.monotonic(), address))

    def is_token(self, given: str) -> bool:
        return self._token is not None and _same(given, self._token)

    def allowed(self, request: Request) -> bool:
        """Whether the request carries the token, one way or the other."""
        if self._token is None:
            return True
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        return self.is_token(bearer) or self._session_holds(request.cookies.get(SESSION, ""))

    async def __call__(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """Let the request through, or answer in its place; either way with the headers that bind the browser."""
        response = self._refusal(request) or await call_next(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    def _refusal(self, request: Request) -> Response | None:
        path = request.scope["path"]  # what is routed by; the URL that it makes is also of the Host header
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


def local_path(to: str) -> str:
    """Where to go after the login: a path of ours, or the first page. Browsers read a backslash as a slash, and drop control characters."""
    plain = to.startswith("/") and not to.startswith(("//", "/\\")) and to.isprintable()
    return to if plain else "/"


def _same(a: str, b: str) -> bool:
    """Compared in constant time; bytes, since the comparison of text refuses what is not ASCII."""
    return hmac.compare_digest(a.encode("utf-8", "replace"), b.encode("utf-8", "replace"))
