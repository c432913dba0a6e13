"""Posts to Slack: through the incoming webhook, or as the app itself where it has a bot token. Knows nothing of what it carries."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.settings import SlackSettings
from agent.slack.receive import allowed_url
from collectors.http import Http, HttpAnswer

#: What Slack will never take, however often it is tried. Source: Slack's lists of errors of incoming webhooks and of chat.postMessage.
PERMANENT = frozenset(
    ("invalid_payload", "no_text", "no_service", "no_active_hooks", "invalid_token", "channel_not_found",
     "channel_is_archived", "action_prohibited", "posting_to_general_channel_denied", "team_disabled",
     "user_not_found", "invalid_blocks", "invalid_auth", "not_authed", "account_inactive", "token_revoked", "missing_scope",
     "not_in_channel", "is_archived", "msg_too_long", "msg_blocks_too_long", "message_not_found", "cant_update_message",
     "restricted_action", "invalid_arguments", "not_allowed_token_type")
)  # fmt: skip
#: Slack's errors are such words.
_CODE = re.compile(r"[a-z_]{1,40}")
_AGAIN_S, _LIMITED_S = 60.0, 30.0


@dataclass(frozen=True, slots=True)
class MessagePlace:
    """Where a message stands, so that it can be changed or answered."""

    channel: str
    ts: str
    """Slack's time stamp: the message's name within its channel."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What came of one message."""

    problem: str | None
    retry_s: float | None = None
    """Seconds until another try; None: never."""
    away: bool = False
    """Whether the channel itself does not take anything just now."""
    place: MessagePlace | None = None
    """Where it stands now. None: a webhook does not tell."""


class SlackChannel:
    """The one channel that people are told in."""

    def __init__(self, settings: SlackSettings, http: Http) -> None:
        self._settings = settings
        self._http = http

    async def post(self, payload: Mapping[str, Any], thread: MessagePlace | None = None) -> Delivery:
        """thread: the message that this one is a reply to; a webhook cannot reply, and posts it as any other."""
        settings = self._settings
        if settings.bot_token is None:
            assert settings.webhook_url is not None
            return await self.answer(settings.webhook_url.get_secret_value(), payload)
        reply = {} if thread is None else {"thread_ts": thread.ts}
        return await self._call("chat.postMessage", {**payload, "channel": settings.channel_id, **reply})

    async def update(self, place: MessagePlace, payload: Mapping[str, Any]) -> Delivery:
        """Put another text in the message's place. Asks for a bot token."""
        return await self._call("chat.update", {**payload, "channel": place.channel, "ts": place.ts})

    async def answer(self, url: str, payload: Mapping[str, Any]) -> Delivery:
        """To a webhook, or to a click's ``response_url``."""
        if not allowed_url(url, self._settings):
            return Delivery("the webhook's host is not among slack.allow_hosts")
        answer = await self._sent(url, payload, {})
        if isinstance(answer, Delivery):
            return answer
        if answer.status == 200:
            return Delivery(None)
        return _refusal(answer, answer.body[:100].decode("ascii", "replace").strip())

    async def _call(self, method: str, payload: Mapping[str, Any]) -> Delivery:
        """A method of the Web API, which says 200 to what it refuses too."""
        token, url = self._settings.bot_token, f"{self._settings.api_url}/{method}"
        assert token is not None
        if not allowed_url(url, self._settings):
            return Delivery("the host of slack.api_url is not among slack.allow_hosts")
        answer = await self._sent(url, payload, {"Authorization": f"Bearer {token.get_secret_value()}"})
        if isinstance(answer, Delivery):
            return answer
        try:
            said = json.loads(answer.body)
            known = said if isinstance(said, dict) else {}
        except ValueError:
            known = {}
        if answer.status != 200 or known.get("ok") is not True:
            return _refusal(answer, str(known.get("error", "")))
        channel, ts = known.get("channel"), known.get("ts")
        place = MessagePlace(channel, ts) if isinstance(channel, str) and isinstance(ts, str) else None
        return Delivery(None, place=place)

    async def _sent(self, url: str, payload: Mapping[str, Any], headers: Mapping[str, str]) -> HttpAnswer | Delivery:
        try:
            return await self._http.call("POST", url, json=dict(payload), headers=headers, timeout_s=10.0)
        except (OSError, ValueError) as error:
            kind = str(error).partition(":")[0]  # the kind alone: the rest names the address, which is a secret
            return Delivery(kind, _LIMITED_S, away=True)


def _refusal(answer: HttpAnswer, said: str) -> Delivery:
    text = said if _CODE.fullmatch(said) else ""  # anything but a code may quote the address, which is a secret
    if answer.status == 429 or text in ("ratelimited", "rate_limited"):
        after = answer.headers.get("retry-after", "")
        return Delivery("rate limited", float(after) if after.isascii() and after.isdigit() else _LIMITED_S, away=True)
    permanent = text in PERMANENT or answer.status in (403, 404, 410)
    wait = None if permanent else _AGAIN_S
    problem = (
        f"HTTP {answer.status} {text}".rstrip() if answer.status != 200 else text or "an answer that is not Slack's"
    )
    return Delivery(problem, wait, away=answer.status >= 500)
