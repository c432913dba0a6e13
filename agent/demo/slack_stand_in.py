"""Slack's side, played on this machine: takes the webhook's message and presses a button with a really signed request.

An emulation, and nothing but one: what it signs with, and how, is what Slack does. Source: Slack, "Verifying requests from Slack".
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from agent.clock import WallClock
from collectors.http import Http


class _Server(uvicorn.Server):
    """Leaves the signals to the demo."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class SlackStandIn:
    """Answers ``ok`` to the webhook, then acts as the user that presses a button of the message."""

    def __init__(
        self,
        http: Http,
        clock: WallClock,
        *,
        secret: str,
        user: str,
        press: str = "approve",
        leaves: Collection[str] = (),
    ) -> None:
        """leaves: endpoints whose proposals it leaves to somebody else."""
        self._http = http
        self._clock = clock
        self.secret = secret
        self._user = user
        self._press: str | None = press
        self._leaves = leaves
        self._presses: set[asyncio.Task[None]] = set()
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.actions_url = ""
        """Where clicks go: the app's Interactivity Request URL."""
        self.port = 0
        self.messages: list[dict[str, Any]] = []
        self.clicks: list[tuple[str, int]] = []
        """Action and the HTTP status that it was answered with."""
        self.answers: list[dict[str, Any]] = []
        """What was sent to the response_url."""

    async def start(self) -> None:
        routes = [
            Route("/services/T0DEMO/B0DEMO/{secret}", self._message, methods=["POST"]),
            Route("/actions/{message}", self._answer, methods=["POST"]),
        ]
        config = uvicorn.Config(Starlette(routes=routes), host="127.0.0.1", port=0, log_config=None, access_log=False)
        listening = socket.create_server(("127.0.0.1", 0))  # the port is known before the server runs
        self.port = listening.getsockname()[1]
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve([listening]))

    async def stop(self) -> None:
        for task in self._presses:
            task.cancel()
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving

    def rest(self) -> None:
        """Press nothing any more: what comes from now on is for somebody else."""
        self._press = None

    @property
    def webhook_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/services/T0DEMO/B0DEMO/{self.secret[:12]}"

    async def _message(self, request: Request) -> Response:
        message = await request.json()
        if not isinstance(message, dict) or "text" not in message:
            return PlainTextResponse("no_text", 400)
        self.messages.append(message)
        button = None if self._press is None else _button(message, self._press)
        if button is not None and str(message["text"]).partition(":")[0] not in self._leaves:
            task = asyncio.create_task(self._click(button, len(self.messages)))
            self._presses.add(task)
            task.add_done_callback(self._presses.discard)
        return PlainTextResponse("ok")

    async def _answer(self, request: Request) -> Response:
        self.answers.append(await request.json())
        return PlainTextResponse("ok")

    async def _click(self, button: Mapping[str, Any], number: int) -> None:
        await self._clock.sleep(1.0)  # a person reads it first
        payload = {
            "type": "block_actions",
            "user": {"id": self._user, "username": "demo", "team_id": "T0DEMO"},
            "api_app_id": "A0DEMO",
            "team": {"id": "T0DEMO"},
            "channel": {"id": "C0DEMO"},
            "container": {"message_ts": f"{self._clock.now():.6f}", "channel_id": "C0DEMO"},
            "response_url": f"http://127.0.0.1:{self.port}/actions/{number}",
            "actions": [
                {"action_id": button["action_id"], "value": button["value"], "action_ts": f"{self._clock.now():.6f}"}
            ],
        }
        body, headers = signed(payload, self.secret, self._clock.now())
        answer = await self._http.request("POST", self.actions_url, content=body, headers=headers)
        self.clicks.append((str(button["action_id"]), answer.status))


def signed(payload: Mapping[str, Any], secret: str, now: float) -> tuple[bytes, dict[str, str]]:
    """The body and headers of an interaction request, as Slack makes them."""
    body = urlencode({"payload": json.dumps(payload)}).encode()
    stamp = str(int(now))
    digest = hmac.new(secret.encode(), b"v0:" + stamp.encode() + b":" + body, hashlib.sha256).hexdigest()
    return body, {
        "Content-Type": "application/x-www-form-urlencoded",
        "X-Slack-Request-Timestamp": stamp,
        "X-Slack-Signature": f"v0={digest}",
    }


def _button(message: Mapping[str, Any], press: str) -> Mapping[str, Any] | None:
    for block in message.get("blocks", []):
        for element in block.get("elements", []) if block.get("type") == "actions" else []:
            if element.get("action_id") == f"flyball_{press}":
                found: Mapping[str, Any] = element
                return found
    return None
