"""Slack as Flyball meets it: an incoming webhook, the Web API's posts and updates, Socket Mode, and people who press buttons.

A stand-in after Slack's documentation: it keeps messages by their time stamps, refuses what Slack refuses (a token that is not one, a
channel that is none, an update of no message, more blocks than may be), sends a click to one open connection, and once more where it
is not acknowledged.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

BOT, APP, CHANNEL = "xoxb-0123456789-bot", "xapp-1-0123456789-app", "C0CHAN"
#: Slack's is three seconds.
ACK_S = 1.0


class FakeSlack:
    def __init__(self) -> None:
        self.port = 0
        self.messages: dict[str, dict[str, Any]] = {}
        """By time stamp: as it stands now."""
        self.posts: list[dict[str, Any]] = []
        """All posts and updates in order; ``method`` tells which."""
        self.answers: list[dict[str, Any]] = []
        """What was sent to a click's response_url."""
        self.opened = 0
        """Connections that were ever made."""
        self.refuses: str | None = None
        """What apps.connections.open answers in place of an address."""
        self.presses: tuple[str, str] | None = None
        """Action and user: somebody who presses such a button as soon as it is there."""
        self.sockets: list[WebSocket] = []
        self.acks: list[str] = []
        self._stamps = itertools.count(1)
        self._envelopes = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._acknowledged = asyncio.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def settings(self) -> dict[str, Any]:
        """Of an app with a bot, over Socket Mode."""
        return {
            "webhook_url": None, "signing_secret": None, "bot_token": BOT, "app_token": APP, "channel_id": CHANNEL,
            "api_url": f"http://{self.host}/api", "allow_hosts": [self.host],
        }  # fmt: skip

    @property
    def webhook(self) -> dict[str, Any]:
        return {"webhook_url": f"http://{self.host}/services/T0/B0/path", "allow_hosts": [self.host]}

    def press(self, ts: str, action: str, user: str, **changed: Any) -> bool:
        """Somebody presses a message's button. Whether the click was acknowledged."""
        button = next(b for b in _buttons(self.messages[ts]) if b["action_id"] == action)
        return self.send(self.click(ts, button, user) | changed)

    def click(self, ts: str, button: Mapping[str, Any], user: str) -> dict[str, Any]:
        return {
            "type": "block_actions",
            "user": {"id": user, "username": "somebody", "team_id": "T0TEAM"},
            "api_app_id": "A0APP",
            "team": {"id": "T0TEAM"},
            "channel": {"id": CHANNEL},
            "container": {"message_ts": ts, "channel_id": CHANNEL},
            "response_url": f"http://{self.host}/actions/{ts}",
            "actions": [{"action_id": button["action_id"], "value": button["value"], "action_ts": ts}],
        }

    def send(self, payload: Mapping[str, Any], times: int = 1) -> bool:
        """An envelope with this payload, over one of the open connections; ``times``: delivered so often, as after a lost acknowledgement."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(self._send(payload, times), self._loop).result(30)

    def say(self, text: str) -> None:
        """A frame of any kind, over all connections."""
        assert self._loop is not None
        for each in list(self.sockets):
            asyncio.run_coroutine_threadsafe(each.send_text(text), self._loop).result(30)

    async def _send(self, payload: Mapping[str, Any], times: int) -> bool:
        identity = f"envelope-{next(self._envelopes)}"
        for attempt in range(times):
            self._acknowledged.clear()
            envelope = {"type": "interactive", "envelope_id": identity, "payload": payload, "retry_attempt": attempt}
            await random.Random(attempt).choice(self.sockets).send_text(json.dumps(envelope))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._acknowledged.wait(), ACK_S * 10)
        return identity in self.acks

    # -- what it answers ---------------------------------------------------------------------------------------------------

    async def _hook(self, request: Request) -> Response:
        body = await request.json()
        if not isinstance(body, dict) or not body.get("text"):
            return PlainTextResponse("no_text", 400)
        self._keep({"method": "webhook", **body})
        return PlainTextResponse("ok")

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        self.answers.append(body)
        if body.get("replace_original"):
            self.messages[request.path_params["ts"]] = body
        return PlainTextResponse("ok")

    async def _api(self, request: Request) -> Response:
        method, given = request.path_params["method"], request.headers.get("authorization", "")
        if method == "apps.connections.open":
            if given != f"Bearer {APP}" or self.refuses:
                return JSONResponse({"ok": False, "error": self.refuses or "invalid_auth"})
            return JSONResponse({"ok": True, "url": f"ws://{self.host}/link/?ticket=1"})
        if given != f"Bearer {BOT}":
            return JSONResponse({"ok": False, "error": "invalid_auth"})
        body = await request.json()
        if body.get("channel") != CHANNEL:
            return JSONResponse({"ok": False, "error": "channel_not_found"})
        if not body.get("text") or len(body.get("blocks", ())) > 50:
            return JSONResponse({"ok": False, "error": "invalid_blocks"})
        if method == "chat.postMessage":
            if body.get("thread_ts", None) not in (None, *self.messages):
                return JSONResponse({"ok": False, "error": "thread_not_found"})
            return JSONResponse({"ok": True, "channel": CHANNEL, "ts": self._keep({"method": method, **body})})
        if method == "chat.update":
            if body.get("ts") not in self.messages:
                return JSONResponse({"ok": False, "error": "message_not_found"})
            self.posts.append({"method": method, **body})
            self.messages[body["ts"]] = body
            return JSONResponse({"ok": True, "channel": CHANNEL, "ts": body["ts"]})
        return JSONResponse({"ok": False, "error": "unknown_method"})

    def _keep(self, body: dict[str, Any]) -> str:
        ts = f"1700000000.{next(self._stamps):06d}"
        self.messages[ts] = body
        self.posts.append(body)
        if self.presses is not None:
            action, user = self.presses
            button = next((b for b in _buttons(body) if b["action_id"] == action), None)
            if button is not None:
                self._pressing = asyncio.create_task(self._send(self.click(ts, button, user), 1))
        return ts

    async def _link(self, link: WebSocket) -> None:
        await link.accept()
        self.opened += 1
        await link.send_text(json.dumps({"type": "hello", "num_connections": len(self.sockets) + 1}))
        self.sockets.append(link)
        try:
            while True:
                said = json.loads(await link.receive_text())
                self.acks.append(said["envelope_id"])
                self._acknowledged.set()
        except WebSocketDisconnect:
            pass
        finally:
            self.sockets.remove(link)

    async def serve(self, listening: socket.socket, ready: threading.Event, stop: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        routes = [
            Route("/services/{path:path}", self._hook, methods=["POST"]),
            Route("/actions/{ts}", self._answer, methods=["POST"]),
            Route("/api/{method}", self._api, methods=["POST"]),
            WebSocketRoute("/link/", self._link),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes), log_config=None, access_log=False, ws="websockets-sansio",
            headers=[("connection", "close")],  # no client's connection outlives its loop
        )  # fmt: skip
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listening]))
        ready.set()
        await asyncio.to_thread(stop.wait)
        server.should_exit = True
        for link in list(self.sockets):
            await link.close()
        await serving


@contextmanager
def fake_slack() -> Iterator[FakeSlack]:
    """One in a thread of its own."""
    fake, ready, stop = FakeSlack(), threading.Event(), threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))
    fake.port = listening.getsockname()[1]
    thread = threading.Thread(target=lambda: asyncio.run(fake.serve(listening, ready, stop)), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield fake
    finally:
        stop.set()
        thread.join(30)


def _buttons(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [e for b in message.get("blocks", ()) if b["type"] == "actions" for e in b["elements"]]
