"""Socket Mode: clicks come over a connection that Flyball opens, so that nothing of it need be reached from outside.

Slack sends each click to one of an app's open connections, whichever it likes: so the leader alone connects. Source: Slack, "Using Socket
Mode".
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from agent.settings import SlackSettings
from agent.slack.receive import MAX_BODY, ClickError, ClickReceiver, Reply, allowed_url
from agent.store.control import Lead
from collectors.clock import Clock
from collectors.http import Http

log = structlog.get_logger()

#: Between two tries to connect, at first and at most.
_FIRST_WAIT_S, _MOST_WAIT_S = 1.0, 60.0
#: Slack says hello, and pings, within this.
_PATIENCE_S = 60.0
_HOSTS = (".slack.com", ".slack-gov.com")


class SocketListener:
    """Keeps one connection while this process leads."""

    def __init__(
        self,
        settings: SlackSettings,
        receiver: ClickReceiver,
        answer: Callable[[Reply], Coroutine[Any, Any, None]],
        http: Http,
        clock: Clock,
        *,
        ca_file: Path | None = None,
    ) -> None:
        self._settings = settings
        self._receiver = receiver
        self._answer = answer
        self._http = http
        self._clock = clock
        self._ca_file = ca_file
        self._connection: asyncio.Task[None] | None = None
        self._answers: set[asyncio.Task[None]] = set()
        self._wait_s = _FIRST_WAIT_S
        self._again_at = 0.0
        """When to connect again: monotonic seconds."""
        self.problem: str | None = None
        """Why the last connection ended or did not come about."""
        self.connected = False

    async def cycle(self, lead: Lead | None) -> None:
        """Connect where this process leads and no connection stands; hang up where it does not lead."""
        if self._connection is not None and self._connection.done():
            self._settle(self._connection)
        if lead is None:
            await self.close()
        elif self._connection is None and self._clock.monotonic() >= self._again_at:
            self._connection = asyncio.create_task(self._listen())

    def _settle(self, ended: asyncio.Task[None]) -> None:
        self._connection, self.connected = None, False
        error = None if ended.cancelled() else ended.exception()
        if error is None:  # Slack asked for another connection
            self._wait_s, self._again_at = _FIRST_WAIT_S, 0.0
            return
        if not isinstance(error, (OSError, ValueError, WebSocketException, TimeoutError)):
            raise error
        self.problem = f"{type(error).__name__}: {str(error).partition(' ')[0]}"  # the rest may name the address, which holds a ticket
        log.warning("slack_socket_lost", why=self.problem, again_in_s=self._wait_s)
        self._again_at = self._clock.monotonic() + self._wait_s
        self._wait_s = min(2 * self._wait_s, _MOST_WAIT_S)

    async def close(self) -> None:
        for task in (*self._answers, *((self._connection,) if self._connection is not None else ())):
            task.cancel()
            await asyncio.wait([task])
        self._connection, self.connected = None, False

    async def _listen(self) -> None:
        """Until Slack asks for another connection. Raises OSError, ValueError, WebSocketException or TimeoutError."""
        url = await self._address()
        tls = ssl.create_default_context(cafile=self._ca_file) if url.startswith("wss:") else None
        async with connect(
            url, ssl=tls, proxy=None, max_size=MAX_BODY, open_timeout=20, ping_timeout=_PATIENCE_S
        ) as socket:
            while True:
                envelope = _object(await socket.recv())
                if envelope.get("type") == "hello":
                    self.connected, self.problem, self._wait_s = True, None, _FIRST_WAIT_S
                    log.info("slack_socket_open")
                elif envelope.get("type") == "disconnect":
                    return
                elif isinstance(envelope.get("envelope_id"), str):
                    await self._take(socket, envelope)

    async def _take(self, socket: ClientConnection, envelope: Mapping[str, Any]) -> None:
        """Acknowledge, then decide: Slack sends again what is not acknowledged within three seconds."""
        await socket.send(json.dumps({"envelope_id": envelope["envelope_id"]}))
        if envelope.get("type") != "interactive":
            return
        try:
            reply = await asyncio.to_thread(self._receiver.press, envelope["envelope_id"], envelope.get("payload"))
        except ClickError as refused:
            log.warning("click_refused", code=refused.code)
            return
        task = asyncio.create_task(self._answer(reply))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _address(self) -> str:
        """A fresh one, good for one connection."""
        token, url = self._settings.app_token, f"{self._settings.api_url}/apps.connections.open"
        assert token is not None
        if not allowed_url(url, self._settings):
            raise ValueError("slack.api_url: its host is not among slack.allow_hosts")
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"}
        said = _object((await self._http.call("POST", url, headers=headers, json={}, timeout_s=10.0)).body)
        address = said.get("url")
        if said.get("ok") is not True or not isinstance(address, str):
            raise ValueError(f"apps.connections.open: {str(said.get('error', 'no address'))[:40]}")
        return _checked(address, self._settings)


def _checked(address: str, settings: SlackSettings) -> str:
    """Slack's own hosts over TLS; of others those that the settings name, on this host without it. Raises ValueError."""
    parts = urlsplit(address)
    host = (parts.hostname or "").lower()
    named = parts.netloc.lower() in settings.allow_hosts or host in settings.allow_hosts
    if parts.scheme == "wss" and (host.endswith(_HOSTS) or named):
        return address
    if parts.scheme == "ws" and named and host in ("127.0.0.1", "::1", "localhost"):
        return address
    raise ValueError("apps.connections.open: an address that is not Slack's")


def _object(text: str | bytes) -> Mapping[str, Any]:
    """Raises ValueError."""
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found
