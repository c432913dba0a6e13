"""What Slack says when a button is pressed: is it really Slack, is it new, who is it, and which button.

A click comes as a signed request, or over the connection of Socket Mode, which is Slack's by the token that opened it. Fails closed: without
a signing secret or that token, or without approvers, nothing is accepted. A malformed request is refused, never an error of
ours; neither its body nor the secret is ever logged.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import structlog
from slack_sdk.signature import Clock as SlackClock
from slack_sdk.signature import SignatureVerifier

from agent.approvals import ApprovalOutcome, ApprovalService, digest
from agent.settings import Settings, SlackSettings
from agent.slack.message import TEST_ACTION
from agent.store import Store, audit, outbox, recommendations
from collectors.clock import Clock
from collectors.text import clean

log = structlog.get_logger()

MAX_BODY = 64 * 1024
#: Refused requests that need not be Slack's, and are written down in a minute; the others are counted.
MOST_STRANGE = 10
#: Slack's own window, and how long a signature is remembered: longer than the window, so that none can come twice.
WINDOW_S, REMEMBER_S = 300.0, 600.0
_STAMP = re.compile(r"[0-9]{1,15}")
_USER = re.compile(r"[A-Z0-9]{1,64}")
_ACTIONS = {"flyball_approve": "approve", "flyball_reject": "reject", "flyball_snooze": "snooze"}


class ClickError(Exception):
    """The request is not taken. ``status`` is the HTTP status, ``code`` is stable."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Reply:
    """What is said back, to the message's ``response_url``. ``row`` is the recommendation, where there is one."""

    ruling: ApprovalOutcome
    user: str
    response_url: str | None
    row: Mapping[str, Any] | None


class _SlackTime(SlackClock):
    """Slack's verifier asks this for the time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def now(self) -> float:
        return self._clock.now()


class ClickReceiver:
    """Verifies a click and hands it to the ApprovalService."""

    def __init__(self, settings: Settings, store: Store, approvals: ApprovalService, clock: Clock) -> None:
        self._settings = settings.slack
        self._allowed = settings.slack_users
        self._strange: deque[float] = deque()
        """When a refused request that need not be Slack's was written down."""
        self._store = store
        self._approvals = approvals
        self._clock = clock

    def click(self, headers: Mapping[str, str], body: bytes) -> Reply:
        """``headers`` with lower-case names, ``body`` as it came. Raises ``ClickError``, which stands in the audit."""
        try:
            return self._click(headers, body)
        except ClickError as refused:
            self._keep(refused, body)
            raise

    def press(self, envelope: str, payload: object) -> Reply:
        """A click over Socket Mode. Raises ``ClickError``, which stands in the audit."""
        try:
            if self._settings is None or self._settings.app_token is None or not self._allowed:
                raise ClickError(403, "not_configured")
            if not isinstance(payload, dict) or payload.get("type") != "block_actions":
                raise ClickError(400, "malformed")
            self._first_time(f"envelope:{envelope}")
            return self._redeem(self._settings, payload)
        except ClickError as refused:
            self._note(refused, _id(payload.get("user")) if isinstance(payload, dict) else None)
            raise

    def _keep(self, refused: ClickError, body: bytes) -> None:
        """A refused click, with whom it says it is of where it is really Slack's."""
        signed = refused.status == 403 and refused.code != "not_configured"
        self._note(refused, _id(_payload(body).get("user")) if signed else None)

    def _note(self, refused: ClickError, user: str | None) -> None:
        """user: whose click it was. None: it need not be Slack's, and so many a minute are written down at most."""
        now, who = self._clock.now(), user or "unknown"
        if user is None:
            while self._strange and self._strange[0] < now - 60.0:
                self._strange.popleft()
            if len(self._strange) >= MOST_STRANGE:
                return
            self._strange.append(now)
        with self._store.write() as db:
            audit.append(db, at=now, actor=f"slack:{clean(who)[:64]}", action="click_refused", subject=refused.code)

    def _click(self, headers: Mapping[str, str], body: bytes) -> Reply:
        settings = self._settings
        if settings is None or settings.signing_secret is None or not self._allowed:
            raise ClickError(403, "not_configured")
        if len(body) > MAX_BODY:
            raise ClickError(413, "too_large")
        self._verify(settings, headers, body)
        return self._redeem(settings, _payload(body))

    def _redeem(self, settings: SlackSettings, payload: Mapping[str, Any]) -> Reply:
        """A click that is Slack's."""
        self._pin(settings, payload)
        user, action, token = _press(payload)
        url = payload.get("response_url")
        back = url if isinstance(url, str) and allowed_url(url, settings) else None
        if action == TEST_ACTION:
            return self._tested(user, token, back)
        self._pin_message(payload, token)
        ruling = self._approvals.redeem(token, action=action, actor=f"slack:{user}", allowed=user in self._allowed)
        row = None
        if ruling.recommendation_id:
            with self._store.read() as db:
                row = recommendations.get(db, ruling.recommendation_id)
        return Reply(ruling, user, back, row)

    def _tested(self, user: str, token: str, back: str | None) -> Reply:
        """The click that `flyball slack test` waits for."""
        known = user in self._allowed
        said = "Flyball has it" if known else "Flyball has it, and you are not among the approvers"
        with self._store.write() as db:
            audit.append(
                db, at=self._clock.now(), actor=f"slack:{user}", action="slack_test", subject=clean(token)[:64],
                body={"approver": known},
            )  # fmt: skip
        return Reply(ApprovalOutcome(False, "tested", said), user, back, None)

    def _pin_message(self, payload: Mapping[str, Any], token: str) -> None:
        """A button works where it was sent, where that is known: in a message of the app's own."""
        container = payload.get("container")
        with self._store.read() as db:
            place = outbox.place_of_token(db, digest(token))
        if place is not None and place != (_text(container, "channel_id"), _text(container, "message_ts")):
            raise ClickError(403, "wrong_message")

    def _verify(self, settings: SlackSettings, headers: Mapping[str, str], body: bytes) -> None:
        stamp, signature = headers.get("x-slack-request-timestamp", ""), headers.get("x-slack-signature", "")
        if not _STAMP.fullmatch(stamp) or not signature.isascii():
            raise ClickError(401, "bad_signature")
        if abs(self._clock.now() - int(stamp)) > WINDOW_S:
            raise ClickError(401, "stale")
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ClickError(401, "bad_signature") from error
        secrets = [s for s in (settings.signing_secret, settings.previous_signing_secret) if s is not None]
        verifiers = [SignatureVerifier(s.get_secret_value(), _SlackTime(self._clock)) for s in secrets]
        if not any(v.is_valid(body=text, timestamp=stamp, signature=signature) for v in verifiers):
            raise ClickError(401, "bad_signature")
        self._first_time(f"{stamp}:{signature}")

    def _first_time(self, what: str) -> None:
        seen = hashlib.sha256(what.encode()).hexdigest()
        with self._store.write() as db:
            if not recommendations.first_time(db, seen, self._clock.now(), REMEMBER_S):
                raise ClickError(401, "replayed")

    def _pin(self, settings: SlackSettings, payload: Mapping[str, Any]) -> None:
        pins = (
            (settings.app_id, payload.get("api_app_id"), "wrong_app"),
            (settings.team_id, _id(payload.get("team")), "wrong_team"),
            (settings.team_id, _text(payload.get("user"), "team_id"), "wrong_team"),
            (settings.channel_id, _id(payload.get("channel")), "wrong_channel"),
            (settings.channel_id, _text(payload.get("container"), "channel_id"), "wrong_channel"),
        )
        for wanted, found, code in pins:
            if wanted is not None and found != wanted:
                raise ClickError(403, code)


def allowed_url(url: str, settings: SlackSettings) -> bool:
    """Whether a message may be sent there: a named host, over TLS; plain HTTP to a named loopback address alone."""
    try:
        parts = urlsplit(url)
    except ValueError:  # "http://[" is no address
        return False
    if parts.hostname is None or parts.username is not None:
        return False
    host = parts.hostname.lower()
    with_port = parts.netloc.lower()
    if host not in settings.allow_hosts and with_port not in settings.allow_hosts:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and host in ("127.0.0.1", "::1", "localhost"))


def _payload(body: bytes) -> Mapping[str, Any]:
    try:
        fields = parse_qs(body.decode("utf-8"), strict_parsing=True, max_num_fields=10)
        payload = json.loads(fields["payload"][0])
    except (ValueError, KeyError, RecursionError) as error:
        raise ClickError(400, "malformed") from error
    if not isinstance(payload, dict) or payload.get("type") != "block_actions":
        raise ClickError(400, "malformed")
    return payload


def _press(payload: Mapping[str, Any]) -> tuple[str, str, str]:
    """(user id, action, token) of the one button that was pressed."""
    user, actions = payload.get("user"), payload.get("actions")
    name = _id(user)
    if (
        name is None
        or not _USER.fullmatch(name)
        or not isinstance(actions, list)
        or len(actions) != 1
        or not isinstance(actions[0], dict)
    ):
        raise ClickError(400, "malformed")
    named, token = str(actions[0].get("action_id")), actions[0].get("value")
    action = TEST_ACTION if named == TEST_ACTION else _ACTIONS.get(named)
    if action is None or not isinstance(token, str) or not token or not token.isascii():
        raise ClickError(400, "malformed")
    return name, action, token


def _id(value: object) -> str | None:
    return _text(value, "id")


def _text(value: object, name: str) -> str | None:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, str) else None
