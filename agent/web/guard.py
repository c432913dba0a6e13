"""Who may see and press what on the pages.

Three separate locks. The Host header must be one of ours (against DNS rebinding). Where a token is set, pages and API ask for it, as
a bearer or through the login cookie, which ends by itself. A POST from a page must carry a key that only our own pages tell, and
that no cookie can take the place of: a page on a sibling name may set cookies for us, but reads none of our pages. Health, Slack's
receiver and those of telemetry have their own rules and pass by.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

if TYPE_CHECKING:
    from starlette.middleware.base import RequestResponseEndpoint

from agent.settings import PersonSettings, WebSettings
from collectors.clock import Clock

SESSION = "flyball_session"
#: Whose the token in ``web.token`` is: nobody's in particular.
NOBODY = ""
#: Seconds until a login ends, on the server too.
SESSION_S = 86_400
#: After so many wrong tokens in so many seconds, from one address or from all together, none is looked at until they are that old.
WRONG_HERE, WRONG_AT_ALL, WRONG_S = 5, 30, 60.0
_OPEN = ("/healthz", "/readyz", "/slack/actions", "/login", "/static/")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """The locks of one set of web settings."""

    def __init__(
        self, settings: WebSettings, people: Sequence[PersonSettings], clock: Clock, receivers: Collection[str] = ()
    ) -> None:
        """``receivers``: paths whose senders show a token of their own."""
        self._clock = clock
        self._receivers = frozenset(receivers)
        self._tokens = {p.name: p.token.get_secret_value() for p in people if p.token is not None}
        """By person; of nobody in particular the one that all may share."""
        if settings.token is not None:
            self._tokens[NOBODY] = settings.token.get_secret_value()
        self._key = (self._tokens.get(NOBODY) or secrets.token_urlsafe(32)).encode()
        self._wrong: deque[tuple[float, str]] = deque()
        """When and from where a wrong token came: monotonic seconds."""
        self._hosts = {settings.host, "127.0.0.1", "localhost", "[::1]", "::1"}
        if settings.public_url and (host := urlsplit(settings.public_url).hostname):
            self._hosts.add(host)
        self._any_host = settings.host in ("0.0.0.0", "::")  # noqa: S104  compared, not bound; the settings ask for a token there

    def session(self, who: str) -> str:
        """What the login cookie holds: when it ends and whose it is, signed by that token, so that changing it ends its sessions."""
        return self._session(str(int(self._clock.now()) + SESSION_S), who)

    def _session(self, ends: str, who: str) -> str:
        return f"{ends}.{who}.{_signed(self._tokens[who].encode(), f'flyball session {ends} {who}')}"

    def _whose_session(self, given: str) -> str | None:
        ends, _, rest = given.partition(".")
        who, _, _ = rest.rpartition(".")
        in_time = ends.isascii() and ends.isdigit() and len(ends) < 16 and self._clock.now() < int(ends)
        return who if in_time and who in self._tokens and _same(given, self._session(ends, who)) else None

    @property
    def asks(self) -> bool:
        """Whether there is something to log in with."""
        return bool(self._tokens)

    def csrf(self) -> str:
        """What the forms of our own pages carry."""
        return _signed(self._key, "flyball form")

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

    def owner(self, token: str) -> str | None:
        """Whose token it is; None: nobody's. All are compared, so that time does not tell which."""
        found = [who for who, known in self._tokens.items() if _same(token, known)]
        return found[0] if found else None

    def caller(self, request: Request) -> str | None:
        """Who asks, by token or login: a person's name, or ``NOBODY``'s where nobody in particular may. None: whom we do not know."""
        if not self._tokens:
            return NOBODY
        bearer = self.owner(request.headers.get("authorization", "").removeprefix("Bearer "))
        return bearer if bearer is not None else self._whose_session(request.cookies.get(SESSION, ""))

    def actor(self, request: Request) -> str:
        """Who is to be named for what the request does: a person, or where it came from."""
        return self.caller(request) or f"page:{address_of(request)}"

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
        if path in self._receivers and request.method == "POST":
            return None
        if not path.startswith(_OPEN) and self.caller(request) is None:
            if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
                return RedirectResponse(f"/login?to={quote(path, safe='/')}", 303)
            return PlainTextResponse("A token is needed: Authorization: Bearer ...\n", 401)
        return None


def address_of(request: Request) -> str:
    """Where a request came from, as the connection tells it."""
    return request.client.host if request.client else "unknown"


def _signed(key: bytes, what: str) -> str:
    return hmac.new(key, what.encode(), hashlib.sha256).hexdigest()


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
