"""The one place where a recommendation is decided. Slack, the page and the command line all end here.

What is decided is a plan's hash at a revision under a policy, before its expiry, once, by those whom ``analyzers.guardrails`` lets. Every
attempt is kept, refused ones too.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from agent.cases import case_of, guardrails_of
from agent.settings import Settings
from agent.store import Store
from agent.store import recommendations as table
from analyzers.guardrails import Door, forbidden, obstacle, rule_verdicts
from collectors.clock import Clock

Action = Literal["approve", "reject", "snooze"]
ACTIONS: tuple[Action, ...] = ("approve", "reject", "snooze")
SNOOZE_S = 86_400.0
#: What is said where a rule of the guardrails refuses; ``forbidden`` for any other.
_CODES = {
    "APPROVER": "not_allowed",
    "FOUR_EYES": "four_eyes",
    "DOOR": "wrong_door",
    "EXPIRY": "expired",
    "OWNER": "by_hand",
    "PLAN": "superseded",
    "POLICY": "superseded",
}


@dataclass(frozen=True, slots=True)
class ApprovalOutcome:
    """What came of an attempt to decide."""

    accepted: bool
    code: str
    """``accepted``, ``counted`` where more people must approve, or why not: unknown, superseded, expired, decided, not_allowed, four_eyes,
    wrong_door, counted_before, no_plan, by_hand, forbidden, used, bad_token."""
    text: str
    recommendation_id: str | None = None


@dataclass(frozen=True, slots=True)
class _Attempt:
    """Who wants to decide what, as he saw it. None: he did not say."""

    action: str
    actor: str
    channel: Door
    plan_hash: str
    revision: int | None = None
    policy_hash: str | None = None
    snooze_s: float = SNOOZE_S


class ApprovalService:
    """Decides, within one transaction each."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        clock: Clock,
        on_ruling: Callable[[ApprovalOutcome, str, str], None] | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._on_ruling = on_ruling or (lambda _ruling, _action, _channel: None)

    def issue_tokens(self, db: sa.Connection, row: table.Row) -> dict[Action, str]:
        """One opaque 128-bit token for each button of a message. Only its digest is kept, with all that it stands for."""
        issued: dict[Action, str] = {action: secrets.token_urlsafe(16) for action in ACTIONS}
        table.add_tokens(
            db,
            [
                {
                    "digest": digest(token),
                    "recommendation_id": row["id"],
                    "revision": row["revision"],
                    "plan_hash": row["plan_hash"],
                    "policy_hash": row["policy_hash"],
                    "action": action,
                    "expires_at": row["expires_at"],
                }
                for action, token in issued.items()
            ],
        )
        return issued

    def redeem(self, token: str, *, action: str, actor: str, allowed: bool) -> ApprovalOutcome:
        """Decide by a button's token in Slack. ``allowed``: whether this person may press any; a refusal is kept as well."""
        with self._store.write() as db:
            found = table.find_token(db, digest(token))
            attempt = _Attempt(
                action,
                self._settings.identity(actor),
                "slack",
                found["plan_hash"] if found is not None else "",
                found["revision"] if found is not None else None,
                found["policy_hash"] if found is not None else None,
            )
            if found is None or found["action"] != action:
                ruling = ApprovalOutcome(False, "bad_token", "this button is not one of ours")
            elif not allowed:
                text = "you are not among the approvers"
                ruling = ApprovalOutcome(False, "not_allowed", text, found["recommendation_id"])
            elif found["used_at"] is not None:
                ruling = ApprovalOutcome(False, "used", "this button was pressed before", found["recommendation_id"])
            else:
                ruling = self._decide(db, found["recommendation_id"], attempt)
                if ruling.code == "accepted":  # a quorum presses the same button
                    table.use_token(db, found["digest"], self._clock.now())
            self._note(db, ruling, attempt)
        self._on_ruling(ruling, action, attempt.channel)
        return ruling

    def decide(
        self, identity: str, *, action: Action, actor: str, channel: Door, plan_hash: str, snooze_s: float = SNOOZE_S
    ) -> ApprovalOutcome:
        """Decide by name, for the page and the command line: the caller says which plan it saw."""
        attempt = _Attempt(action, self._settings.identity(actor), channel, plan_hash, snooze_s=snooze_s)
        with self._store.write() as db:
            ruling = self._decide(db, identity, attempt)
            self._note(db, ruling, attempt)
        self._on_ruling(ruling, action, channel)
        return ruling

    def _decide(self, db: sa.Connection, identity: str, attempt: _Attempt) -> ApprovalOutcome:
        row, now = table.claim(db, identity), self._clock.now()
        if row is None:
            return ApprovalOutcome(False, "unknown", f"no recommendation is called {identity}")
        full = str(row["id"])

        def refused(code: str, text: str) -> ApprovalOutcome:
            return ApprovalOutcome(False, code, text, full)

        if row["state"] not in table.OPEN:
            return refused("decided", f"it is {row['state']} already ({row['state_by']}: {row['state_reason']})")
        if now >= row["expires_at"]:
            return refused("expired", "it has expired; a new one comes when it is still called for")
        if attempt.action == "approve" and not row["plan_hash"]:
            return refused("no_plan", "there is no plan: Flyball can only read this system; make the change yourself")
        if not _same(row, attempt):
            return refused("superseded", "the plan has changed since; look at the new one")
        objection = self._objection(db, row, attempt, now)
        if objection is not None:
            return refused(*objection)
        if attempt.action == "approve":
            before, quorum = table.approvers(db, row), guardrails_of(self._settings, row["endpoint"]).quorum
            if attempt.actor in before:
                return refused("counted_before", f"{attempt.actor} approved it already; {quorum} people must")
            if len(before) + 1 < quorum:
                text = f"{len(before) + 1} of {quorum} approvals"
                return ApprovalOutcome(True, "counted", text, full)
        return self._move(db, row, attempt, now)

    def _objection(self, db: sa.Connection, row: table.Row, attempt: _Attempt, now: float) -> tuple[str, str] | None:
        """The guardrails' code and text against deciding so; None: nothing stands against it."""
        try:
            rails = guardrails_of(self._settings, row["endpoint"])
        except KeyError:
            return "forbidden", "its endpoint is no longer in the settings"
        case = case_of(db, row, now, None, approver=attempt.actor, door=attempt.channel)
        verdicts = rule_verdicts(case, rails)
        if attempt.action != "approve":  # as easy as approving, and for the same people
            verdicts = tuple(v for v in verdicts if v.rule == "APPROVER")
        first = obstacle(verdicts, "approve")
        if first is None or first.verdict != "no":
            return None
        return _CODES.get(first.rule, "forbidden"), forbidden(verdicts, "approve") or first.text

    def _move(self, db: sa.Connection, row: table.Row, attempt: _Attempt, now: float) -> ApprovalOutcome:
        to = {"approve": "approved", "reject": "rejected", "snooze": "snoozed"}[attempt.action]
        later = (  # it can still be decided for as long as before, once it wakes
            {"snoozed_until": now + attempt.snooze_s, "expires_at": row["expires_at"] + attempt.snooze_s}
            if attempt.action == "snooze"
            else {}
        )
        moved = table.move(
            db,
            row["id"],
            from_states=table.OPEN,
            to=to,
            now=now,
            by=attempt.actor,
            reason=f"{attempt.action} through {attempt.channel}",
            revision=row["revision"],
            decided_at=now,
            **later,
        )
        if not moved:
            return ApprovalOutcome(False, "decided", "somebody else decided a moment ago", row["id"])
        return ApprovalOutcome(True, "accepted", f"{to} by {attempt.actor}", row["id"])

    def _note(self, db: sa.Connection, ruling: ApprovalOutcome, attempt: _Attempt) -> None:
        row = table.get(db, ruling.recommendation_id) if ruling.recommendation_id else None
        table.note_decision(
            db,
            recommendation_id=ruling.recommendation_id or "",
            action=attempt.action if attempt.action in ACTIONS else "unknown",
            actor=attempt.actor,
            channel=attempt.channel,
            plan_hash=attempt.plan_hash,
            revision=row["revision"] if row is not None else 0,
            policy_hash=row["policy_hash"] if row is not None else "",
            accepted=ruling.accepted,
            reason=ruling.code,
            at=self._clock.now(),
        )


def _same(row: table.Row, attempt: _Attempt) -> bool:
    """Whether what was seen is what is there."""
    return (
        row["plan_hash"] == attempt.plan_hash
        and attempt.revision in (None, row["revision"])
        and attempt.policy_hash in (None, row["policy_hash"])
    )


def digest(token: str) -> str:
    """What is kept of a button's token."""
    return hashlib.sha256(token.encode()).hexdigest()
