"""The one place where a recommendation is decided. Slack, the page and the command line all end here.

What is decided is a plan's hash at a revision, before its expiry, once. Every attempt is kept, refused ones too.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from agent.store import Store
from agent.store import recommendations as table
from collectors.clock import Clock

Action = Literal["approve", "reject", "snooze"]
ACTIONS: tuple[Action, ...] = ("approve", "reject", "snooze")
SNOOZE_S = 86_400.0


@dataclass(frozen=True, slots=True)
class ApprovalOutcome:
    """What came of an attempt to decide."""

    accepted: bool
    code: str
    """``accepted``, or why not: unknown, superseded, expired, decided, not_allowed, no_plan, by_hand, used, bad_token."""
    text: str
    recommendation_id: str | None = None


class ApprovalService:
    """Decides, within one transaction each."""

    def __init__(
        self, store: Store, clock: Clock, on_ruling: Callable[[ApprovalOutcome, str, str], None] | None = None
    ) -> None:
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
                    "digest": _digest(token),
                    "recommendation_id": row["id"],
                    "revision": row["revision"],
                    "plan_hash": row["plan_hash"],
                    "action": action,
                    "expires_at": row["expires_at"],
                }
                for action, token in issued.items()
            ],
        )
        return issued

    def redeem(self, token: str, *, action: str, actor: str, channel: str, allowed: bool) -> ApprovalOutcome:
        """Decide by a button's token. ``allowed``: whether this person is among the approvers; a refusal is kept as well."""
        now = self._clock.now()
        with self._store.write() as db:
            found = table.find_token(db, _digest(token))
            if found is None or found["action"] != action:
                ruling = ApprovalOutcome(False, "bad_token", "this button is not one of ours")
            elif not allowed:
                ruling = ApprovalOutcome(
                    False, "not_allowed", "you are not among the approvers", found["recommendation_id"]
                )
            elif found["used_at"] is not None:
                ruling = ApprovalOutcome(False, "used", "this button was pressed before", found["recommendation_id"])
            else:
                ruling = self._decide(
                    db, found["recommendation_id"], action, actor, channel, found["plan_hash"], now, found["revision"]
                )
                if ruling.accepted:
                    table.use_token(db, found["digest"], now)
            self._note(db, ruling, action, actor, channel, found["plan_hash"] if found else "", now)
        self._on_ruling(ruling, action, channel)
        return ruling

    def decide(
        self, identity: str, *, action: Action, actor: str, channel: str, plan_hash: str, snooze_s: float = SNOOZE_S
    ) -> ApprovalOutcome:
        """Decide by name, for the page and the command line: the caller says which plan it saw."""
        now = self._clock.now()
        with self._store.write() as db:
            ruling = self._decide(db, identity, action, actor, channel, plan_hash, now, None, snooze_s)
            self._note(db, ruling, action, actor, channel, plan_hash, now)
        self._on_ruling(ruling, action, channel)
        return ruling

    def _decide(
        self,
        db: sa.Connection,
        identity: str,
        action: str,
        actor: str,
        channel: str,
        plan_hash: str,
        now: float,
        revision: int | None,
        snooze_s: float = SNOOZE_S,
    ) -> ApprovalOutcome:
        row = table.get(db, identity)
        if row is None:
            return ApprovalOutcome(False, "unknown", f"no recommendation is called {identity}")
        full = str(row["id"])
        if row["state"] not in table.OPEN:
            return ApprovalOutcome(
                False, "decided", f"it is {row['state']} already ({row['state_by']}: {row['state_reason']})", full
            )
        if now >= row["expires_at"]:
            return ApprovalOutcome(
                False, "expired", "it has expired; a new one comes when it is still called for", full
            )
        if action == "approve" and not row["plan_hash"]:
            return ApprovalOutcome(
                False, "no_plan", "there is no plan: Flyball can only read this system; make the change yourself", full
            )
        if action == "approve" and row["plan"].get("by_hand"):
            return ApprovalOutcome(
                False, "by_hand", "somebody else owns what it would change: apply the patch of its plan by hand", full
            )
        if row["plan_hash"] != plan_hash or (revision is not None and row["revision"] != revision):
            return ApprovalOutcome(False, "superseded", "the plan has changed since; look at the new one", full)
        to = {"approve": "approved", "reject": "rejected", "snooze": "snoozed"}[action]
        moved = table.move(
            db,
            full,
            from_states=table.OPEN,
            to=to,
            now=now,
            by=actor,
            reason=f"{action} through {channel}",
            revision=row["revision"],
            decided_at=now,
            **(  # it can still be decided for as long as before, once it wakes
                {"snoozed_until": now + snooze_s, "expires_at": row["expires_at"] + snooze_s}
                if action == "snooze"
                else {}
            ),
        )
        if not moved:
            return ApprovalOutcome(False, "decided", "somebody else decided a moment ago", full)
        return ApprovalOutcome(True, "accepted", f"{to} by {actor}", full)

    def _note(
        self,
        db: sa.Connection,
        ruling: ApprovalOutcome,
        action: str,
        actor: str,
        channel: str,
        plan_hash: str,
        now: float,
    ) -> None:
        table.note_decision(
            db,
            recommendation_id=ruling.recommendation_id or "",
            action=action if action in ACTIONS else "unknown",
            actor=actor,
            channel=channel,
            plan_hash=plan_hash,
            accepted=ruling.accepted,
            reason=ruling.code,
            at=now,
        )


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
