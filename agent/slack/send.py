"""Gets messages out of the outbox to Slack. An outage delays messages and decides nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError

from agent.approvals import ApprovalService
from agent.cases import case_of, guardrails_of
from agent.metrics import Metrics
from agent.settings import Settings, SlackSettings
from agent.slack import message
from agent.slack.receive import Reply, allowed_url
from agent.store import Store, changes, control, fleet, mutes, outbox, recommendations
from agent.store.control import Lead, LostLease
from analyzers.guardrails import STAGES, rule_verdicts
from analyzers.policy import RuleVerdict
from collectors.clock import Clock
from collectors.http import Http

log = structlog.get_logger()

#: What Slack will never take, however often it is tried. Source: Slack's list of incoming webhook errors.
PERMANENT = ("invalid_payload", "no_text", "no_service", "no_active_hooks", "invalid_token", "channel_not_found",
             "channel_is_archived", "action_prohibited", "posting_to_general_channel_denied", "team_disabled",
             "user_not_found", "invalid_blocks")  # fmt: skip
GIVE_UP_S = 86_400.0
#: Slack's errors are such words.
_CODE = re.compile(r"[a-z_]{1,40}")
#: Findings that people are told of though nothing is proposed; the same one once in so long, however often it comes and goes.
NOTICED, NOTICE_S = ("breach", "contradiction", "regression"), 3600.0


#: After a message could not be made it is tried again so much later: what it tells of may have moved on by then.
_UNMADE_S = 300.0


@dataclass(frozen=True, slots=True)
class _Delivery:
    """What came of one message."""

    problem: str | None
    retry_s: float | None
    """Seconds until another try; None: never."""
    away: bool = False
    """Whether the channel itself does not take anything just now."""


class Sender:
    """Delivers the outbox through the incoming webhook."""

    def __init__(
        self, settings: Settings, store: Store, approvals: ApprovalService, http: Http, clock: Clock, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._store = store
        self._approvals = approvals
        self._http = http
        self._clock = clock
        self._metrics = metrics

    async def cycle(self, lead: Lead) -> int:
        """Send what is due, one at a time. Returns how many got out. Raises LostLease where ``lead`` is no longer the truth.

        One message that cannot be made costs no other its way out. Where nobody answers, the rest waits: a channel that is away is
        asked once a cycle, and not once a message.
        """
        slack = self._settings.slack
        if slack is None:
            return 0
        sent = 0
        for item in await asyncio.to_thread(self._due, lead):
            try:
                payload = await asyncio.to_thread(self._payload, item, slack, lead)
            except (SQLAlchemyError, LostLease):
                raise  # the database's trouble or this leader's, and not this message's
            except Exception as error:  # the boundary around each message
                log.exception("message_not_made", subject=item["subject"], kind=item["kind"])
                await asyncio.to_thread(
                    self._settle, item, f"cannot be made: {type(error).__name__}: {error}", _UNMADE_S, lead
                )
                continue
            if payload is None:
                continue
            delivery = await self._post(slack.webhook_url.get_secret_value(), payload, slack)
            await asyncio.to_thread(self._settle, item, delivery.problem, delivery.retry_s, lead)
            sent += delivery.problem is None
            if delivery.away:
                break
        return sent

    def _due(self, lead: Lead) -> list[outbox.Row]:
        now = self._clock.now()
        with control.leading(self._store, lead) as db:
            for row in recommendations.listed(db, states=["proposed"]):  # one that woke from a snooze, too
                outbox.put(
                    db, channel="slack", kind="recommendation", subject=row["id"], revision=row["revision"], now=now
                )
            said = {row["endpoint"] for row in recommendations.listed(db, states=recommendations.OPEN)}
            muted = mutes.standing(db, now)
            for finding in fleet.findings(
                db
            ):  # in every mode: who only observes wants to hear of a breach all the more
                if finding["kind"] not in NOTICED or finding["endpoint"] in said:
                    continue
                if (finding["endpoint"], finding["code"]) not in muted:
                    revision = int(finding["first_seen_at"] // NOTICE_S)
                    outbox.put(db, channel="slack", kind="finding", subject=finding["key"], revision=revision, now=now)
            return outbox.due(db, now)

    async def answer(self, reply: Reply) -> None:
        """Tell the people in the channel what came of a click. Best effort: the decision stands either way."""
        slack = self._settings.slack
        if slack is None or reply.response_url is None:
            return
        if reply.ruling.accepted and reply.row is not None:
            payload = message.decided(reply.row, reply.user, reply.row["state"])
        else:
            payload = message.refused(reply.ruling.text)
        delivery = await self._post(reply.response_url, payload, slack)
        if delivery.problem is not None:
            log.warning("slack_answer_failed", error=delivery.problem)

    def _payload(self, item: outbox.Row, slack: SlackSettings, lead: Lead) -> dict[str, Any] | None:
        """The message as it is now; None, and the item closed, where there is nothing to say any more."""
        now = self._clock.now()
        with control.leading(self._store, lead) as db:
            if item["kind"] == "change":
                change = changes.get(db, item["subject"])
                if change is not None:
                    return message.change(change, changes.ledger(db, change_id=change["id"]), self._page())
                outbox.sent(db, item["id"], now)
                return None
            if item["kind"] == "finding":
                muted, seen = mutes.standing(db, now), fleet.findings(db)
                heard = [f for f in seen if (f["endpoint"], f["code"]) not in muted]
                found = next((f for f in heard if f["key"] == item["subject"]), None)
                known = fleet.get(db, found["endpoint"]) if found is not None else None
                if found is not None:
                    return message.finding(found, known["decision"] if known else None, self._page())
                outbox.sent(db, item["id"], now)  # it has passed, or nobody wants to hear of it
                return None
            if item["kind"] == "report":
                return message.report(item["subject"], outbox.reports(db, limit=1)[0], self._page())
            row = recommendations.get(db, item["subject"])
            endpoint = next(
                (e for e in self._settings.endpoints if row is not None and e.name == row["endpoint"]), None
            )
            if (
                row is None
                or endpoint is None
                or row["state"] not in (*recommendations.OPEN, "approved")
                or row["revision"] != item["revision"]
            ):
                outbox.sent(db, item["id"], now)
                return None
            known = fleet.get(db, row["endpoint"])
            case = case_of(db, row, now, known["shape_version"] if known is not None else None, door="slack")
            rules = rule_verdicts(case, guardrails_of(self._settings, row["endpoint"]))
            tokens = self._tokens(db, row, rules) if slack.signing_secret is not None else None
            return message.recommendation(row, tokens, self._page(), [v for v in rules if v.rule != "DOOR"])

    def _tokens(
        self, db: sa.Connection, row: recommendations.Row, rules: Sequence[RuleVerdict]
    ) -> dict[str, str] | None:
        """By button. None: nobody can decide it in Slack. Of a change of high risk only that which makes nothing happen."""
        if not self._settings.slack_users or row["state"] not in recommendations.OPEN or not row["plan_hash"]:
            return None
        broken = [v.rule for v in rules if v.rule in STAGES["approve"] and v.verdict == "no"]
        if any(rule != "DOOR" for rule in broken):
            return None
        tokens = self._approvals.issue_tokens(db, row)
        return {str(action): token for action, token in tokens.items() if action != "approve" or not broken}

    async def _post(self, url: str, payload: dict[str, Any], slack: SlackSettings) -> _Delivery:
        if not allowed_url(url, slack):
            return _Delivery("the webhook's host is not among slack.allow_hosts", None)
        try:
            answer = await self._http.call("POST", url, json=payload, timeout_s=10.0)
        except (OSError, ValueError) as error:
            kind = str(error).partition(":")[0]  # the kind alone: the rest names the address, which is a secret
            return _Delivery(kind, 30.0, away=True)
        if answer.status == 200:
            return _Delivery(None, None)
        said = answer.body[:100].decode("ascii", "replace").strip()
        text = said if _CODE.fullmatch(said) else ""  # anything but a code may quote the address, which is a secret
        if answer.status == 429:
            after = answer.headers.get("retry-after", "")
            return _Delivery("rate limited", float(after) if after.isascii() and after.isdigit() else 30.0, away=True)
        permanent = text in PERMANENT or answer.status in (403, 404, 410)
        return _Delivery(
            f"HTTP {answer.status} {text}".rstrip(), None if permanent else 60.0, away=answer.status >= 500
        )

    def _settle(self, item: outbox.Row, problem: str | None, retry_s: float | None, lead: Lead) -> None:
        now = self._clock.now()
        self._metrics.messages.labels("slack", "sent" if problem is None else "failed").inc()
        with control.leading(self._store, lead) as db:
            if problem is None:
                outbox.sent(db, item["id"], now)
                if item["kind"] == "recommendation":
                    recommendations.move(
                        db,
                        item["subject"],
                        from_states=["proposed"],
                        to="notified",
                        now=now,
                        by="flyball",
                        reason="sent to Slack",
                    )
                return
            late = now - item["created_at"] > GIVE_UP_S
            wait = None if retry_s is None or late else min(3600.0, retry_s * 2.0 ** min(7, item["attempts"]))
            outbox.failed(db, item["id"], error=problem, retry_at=None if wait is None else now + wait)
        log.warning("slack_failed", subject=item["subject"], error=problem, again_in_s=wait)

    def _page(self) -> str:
        web = self._settings.web
        return (web.public_url or f"http://{web.host}:{web.port}").rstrip("/")
