"""A governor with Slack settings over one store, recommendations to decide, and clicks as Slack would sign them."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx

from agent.clock import VirtualClock
from agent.governor import Governor
from agent.settings import Settings
from agent.store import Store, outbox, recommendations
from agent.web.app import create_app
from collectors.http import Http
from tests.agent.records import T0, recommendation_row

SECRET, OLD_SECRET = "5e2f0c6b1f1e4a3d9b7a", "0ld0ld0ld0ld0ld0ld0l"
WEBHOOK = "https://hooks.slack.com/services/T0TEAM/B0HOOK/verysecretpath"
ADA, BOB = "U0ADA", "U0BOB"
SLACK: dict[str, Any] = {"webhook_url": WEBHOOK, "signing_secret": SECRET, "approvers": [ADA]}


@contextmanager
def governor(store: Store, folder: Path, *, mode: str = "approve", **slack: Any) -> Iterator[Governor]:
    """``slack``: fields over ``SLACK``; None takes one away."""
    fields = {k: v for k, v in {**SLACK, **slack}.items() if v is not None}
    endpoint = {"name": "chat", "url": "http://chat.invalid", "mode": mode, "objective": {"ttft_p95_s": 1.0}}
    settings = Settings(database=store.where, state_dir=folder / "state", slack=fields, endpoints=[endpoint])
    made = Governor(settings, store, VirtualClock(T0), holder="test", http=Http())
    yield made
    made.tracing.close()


def propose(store: Store, identity: str = "aaaa0001", **values: Any) -> dict[str, Any]:
    row = recommendation_row(identity, **values)
    with store.write() as db:
        recommendations.insert(db, row)
        outbox.put(db, channel="slack", kind="recommendation", subject=identity, revision=row["revision"], now=T0)
    return row


def tokens(made: Governor, identity: str = "aaaa0001") -> dict[str, str]:
    """The values of the buttons of one more message."""
    with made.store.write() as db:
        row = recommendations.get(db, identity)
        assert row is not None
        return {str(k): v for k, v in made.approvals.issue_tokens(db, row).items()}


def state(store: Store, identity: str = "aaaa0001") -> str:
    with store.read() as db:
        row = recommendations.get(db, identity)
    assert row is not None
    return str(row["state"])


def payload(token: str, action: str = "approve", *, user: str = ADA, **changed: Any) -> dict[str, Any]:
    return {
        "type": "block_actions",
        "user": {"id": user, "username": "ada", "team_id": "T0TEAM"},
        "api_app_id": "A0APP",
        "team": {"id": "T0TEAM"},
        "channel": {"id": "C0CHAN"},
        "container": {"message_ts": "1.2", "channel_id": "C0CHAN"},
        "response_url": "https://hooks.slack.com/actions/T0TEAM/1/x",
        "actions": [{"action_id": f"flyball_{action}", "block_id": "b", "value": token, "action_ts": "1.2"}],
    } | changed


def post(made: Governor, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
    """What the real application answers at ``/slack/actions``, its work afterwards included."""

    async def send() -> httpx.Response:
        app = httpx.ASGITransport(create_app(made))
        async with httpx.AsyncClient(transport=app, base_url="http://flyball.internal") as client:
            return await client.post("/slack/actions", content=body, headers=dict(headers))

    return asyncio.run(send())


def form(content: Mapping[str, Any]) -> bytes:
    return urlencode({"payload": json.dumps(content)}).encode()


def signed(body: bytes, *, at: float = T0, secret: str = SECRET) -> dict[str, str]:
    """The headers that Slack sends with ``body``."""
    stamp = str(int(at))
    digest = hmac.new(secret.encode(), b"v0:" + stamp.encode() + b":" + body, hashlib.sha256).hexdigest()
    return {
        "content-type": "application/x-www-form-urlencoded",
        "x-slack-request-timestamp": stamp,
        "x-slack-signature": f"v0={digest}",
    }
