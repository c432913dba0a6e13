"""Gets messages out of the outbox to Slack. An outage delays messages and decides nothing."""

from __future__ import annotations

import asyncio
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
from agent.slack.channel import Delivery, MessagePlace, SlackChannel
from agent.slack.receive import Reply
from agent.store import Store, changes, control, fleet, mutes, outbox, recommendations
from agent.store.control import Lead, LostLease
from agent.wayback import REVISION as WAY_BACK
from analyzers.guardrails import STAGES, rule_verdicts
from analyzers.policy import RuleVerdict
from collectors.clock import Clock
from collectors.http import Http

log = structlog.get_logger()

GIVE_UP_S = 86_400.0
#: A message of a recommendation that ended is rewritten for so long after it was sent.
REWRITE_S = 8 * 86_400.0
#: Findings that people are told of though nothing is proposed; the same one once in so long, however often it comes and goes.
NOTICED, NOTICE_S = ("breach", "contradiction", "regression"), 3600.0


#: After a message could not be made it is tried again so much later: what it tells of may have moved on by then.
_UNMADE_S = 300.0


@dataclass(frozen=True, slots=True)
class _Letter:
    """A message as it is to be posted now."""

    payload: dict[str, Any]
    replaces: MessagePlace | None = None
    """The message whose place it takes."""
    thread: MessagePlace | None = None
    """The message that it is a reply to."""


class Sender:
    """Delivers the outbox through the incoming webhook, or as the app itself."""

    def __init__(
        self, settings: Settings, store: Store, approvals: ApprovalService, http: Http, clock: Clock, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._store = store
        self._approvals = approvals
        self._http = http
        self._clock = clock
        self._metrics = metrics
        self._channel = None if settings.slack is None else SlackChannel(settings.slack, http)

    async def cycle(self, lead: Lead) -> int:
        """Send what is due, one at a time. Returns how many got out. Raises LostLease where ``lead`` is no longer the truth.

        One message that cannot be made costs no other its way out. Where nobody answers, the rest waits: a channel that is away is
        asked once a cycle, and not once a message.
        """
        slack, channel = self._settings.slack, self._channel
        if slack is None or channel is None:
            return 0
        sent = 0
        for item in await asyncio.to_thread(self._due, lead):
            try:
                letter = await asyncio.to_thread(self._letter, item, slack, lead)
            except (SQLAlchemyError, LostLease):
                raise  # the database's trouble or this leader's, and not this message's
            except Exception as error:  # the boundary around each message
                log.exception("message_not_made", subject=item["subject"], kind=item["kind"])
                unmade = Delivery(f"cannot be made: {type(error).__name__}: {error}", _UNMADE_S)
                await asyncio.to_thread(self._settle, item, unmade, lead)
                continue
            if letter is None:
                continue
            if letter.replaces is not None:
                delivery = await channel.update(letter.replaces, letter.payload)
            else:
                delivery = await channel.post(letter.payload, letter.thread)
            await asyncio.to_thread(self._settle, item, delivery, lead)
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
            for told in outbox.outdated(db, now - REWRITE_S):
                if told["message_ts"] is not None or self._decided_elsewhere(db, told):
                    outbox.put(
                        db, channel="slack", kind="decided", subject=told["subject"], revision=told["revision"], now=now
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

    def _decided_elsewhere(self, db: sa.Connection, told: outbox.Row) -> bool:
        """Whether a person decided it, and not in Slack: nothing in the channel shows it."""
        given = [
            d
            for d in recommendations.decisions(db, told["subject"])
            if d["accepted"] and d["revision"] == told["revision"]
        ]
        return bool(given) and given[-1]["channel"] != "slack"

    async def answer(self, reply: Reply) -> None:
        """Tell the people in the channel what came of a click. Best effort: the decision stands either way."""
        channel = self._channel
        if channel is None or reply.response_url is None:
            return
        if reply.ruling.accepted and reply.row is not None:
            payload = {
                "replace_original": True,
                **message.decided(reply.row, reply.user, reply.row["state"], self._page()),
            }
        else:
            payload = message.refused(reply.ruling.text)
        delivery = await channel.answer(reply.response_url, payload)
        if delivery.problem is not None:
            log.warning("slack_answer_failed", error=delivery.problem)

    def _letter(self, item: outbox.Row, slack: SlackSettings, lead: Lead) -> _Letter | None:
        """The message as it is now; None, and the item closed, where there is nothing to say any more."""
        now = self._clock.now()
        with control.leading(self._store, lead) as db:
            if item["kind"] == "change":
                change = changes.get(db, item["subject"])
                if change is not None and item["revision"] == WAY_BACK:
                    place = _place(outbox.place(db, "change", change["id"])) or _place(
                        outbox.place(db, "recommendation", change["recommendation_id"] or "")
                    )
                    return _Letter(message.way_back(change, self._page()), thread=place)
                if change is not None:
                    thread = _place(outbox.place(db, "recommendation", change["recommendation_id"] or ""))
                    payload = message.change(change, changes.ledger(db, change_id=change["id"]), self._page())
                    if thread is not None and change["state"] != "succeeded":
                        payload["reply_broadcast"] = True  # in the channel too: somebody must look
                    return _Letter(payload, thread=thread)
                outbox.sent(db, item["id"], now)
                return None
            if item["kind"] == "finding":
                muted, seen = mutes.standing(db, now), fleet.findings(db)
                heard = [f for f in seen if (f["endpoint"], f["code"]) not in muted]
                found = next((f for f in heard if f["key"] == item["subject"]), None)
                known = fleet.get(db, found["endpoint"]) if found is not None else None
                if found is not None:
                    return _Letter(message.finding(found, known["decision"] if known else None, self._page()))
                outbox.sent(db, item["id"], now)  # it has passed, or nobody wants to hear of it
                return None
            if item["kind"] == "report":
                return _Letter(message.report(outbox.reports(db, limit=1)[0], self._page()))
            if item["kind"] == "decided":
                return self._decided(db, item)
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
            tokens = self._tokens(db, row, rules) if slack.takes_clicks else None
            return _Letter(message.recommendation(row, tokens, self._page(), [v for v in rules if v.rule != "DOOR"]))

    def _decided(self, db: sa.Connection, item: outbox.Row) -> _Letter | None:
        row = recommendations.get(db, item["subject"])
        if row is None:
            outbox.sent(db, item["id"], self._clock.now())
            return None
        what = "superseded by a newer revision"
        if row["revision"] == item["revision"]:
            what = f"{row['state']} by {row['state_by']}"
            if row["decided_at"] is None:  # no person's word
                what += f": {row['state_reason']}"
        place = _place(outbox.place(db, "recommendation", row["id"], item["revision"]))
        return _Letter(message.decided(row, None, what, self._page()), replaces=place)

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

    def _settle(self, item: outbox.Row, delivery: Delivery, lead: Lead) -> None:
        now, problem, retry_s, place = self._clock.now(), delivery.problem, delivery.retry_s, delivery.place
        self._metrics.messages.labels("slack", "sent" if problem is None else "failed").inc()
        with control.leading(self._store, lead) as db:
            if problem is None:
                outbox.sent(db, item["id"], now, None if place is None else (place.channel, place.ts))
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


def _place(found: tuple[str, str] | None) -> MessagePlace | None:
    return None if found is None else MessagePlace(*found)
