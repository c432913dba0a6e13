"""Recommendations and what people said of them. Every change of state is one UPDATE that must touch one row."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from agent.store import audit, schema
from agent.store.rows import ApprovalRow, RecommendationRow, TokenRow, every, one
from agent.store.sql import upsert
from analyzers.guardrails import BY_POLICY

_T = schema.recommendations
_TOKENS = schema.tokens

#: States in which a recommendation can still be decided.
OPEN = ("proposed", "notified", "snoozed")
Row = RecommendationRow


def new_id() -> str:
    """Eight hex digits: short enough to type, and checked for being unique by the primary key."""
    return secrets.token_hex(4)


def insert(db: sa.Connection, row: Mapping[str, Any]) -> None:
    db.execute(sa.insert(_T).values(**row))
    _record(db, row["created_at"], row["requested_by"], "propose", row["id"], row)


def refresh(db: sa.Connection, identity: str, *, revision: int, now: float, values: Mapping[str, Any]) -> bool:
    """Give an open recommendation new figures and the next revision. False when it was decided meanwhile."""
    touched = db.execute(
        sa.update(_T)
        .where(_T.c.id == identity, _T.c.revision == revision, _T.c.state.in_(OPEN))
        .values(
            revision=revision + 1,
            refreshed_at=now,
            state=sa.case((_T.c.state == "notified", "proposed"), else_=_T.c.state),  # nobody was told of this revision
            **values,
        )
    ).rowcount
    return touched == 1


def move(
    db: sa.Connection,
    identity: str,
    *,
    from_states: Iterable[str],
    to: str,
    now: float,
    by: str,
    reason: str,
    revision: int | None = None,
    **values: Any,
) -> bool:
    """Change the state where it is still one of ``from_states`` (and the revision is the one seen). False: somebody was faster."""
    query = sa.update(_T).where(_T.c.id == identity, _T.c.state.in_(list(from_states)))
    if revision is not None:
        query = query.where(_T.c.revision == revision)
    touched = db.execute(query.values(state=to, state_by=by, state_reason=reason, **values)).rowcount
    if touched:
        _record(db, now, by, to, identity, {"reason": reason})
    return touched == 1


def get(db: sa.Connection, identity: str) -> Row | None:
    """By id, or by the only one that starts so."""
    rows = db.execute(sa.select(_T).where(_T.c.id.startswith(identity, autoescape=True)).limit(2)).mappings().all()
    return one(RecommendationRow, rows[0]) if len(rows) == 1 else None


def claim(db: sa.Connection, identity: str) -> Row | None:
    """See ``get``; until the transaction ends nobody else decides it, so that two who press at once are counted one after the other."""
    found = get(db, identity)
    if found is None:
        return None
    db.execute(sa.select(_T.c.id).where(_T.c.id == found["id"]).with_for_update())
    return get(db, found["id"])


def listed(
    db: sa.Connection, *, endpoint: str | None = None, states: Iterable[str] | None = None, limit: int = 100
) -> list[Row]:
    """Newest first."""
    query = sa.select(_T).order_by(_T.c.created_at.desc(), _T.c.id).limit(limit)
    if endpoint is not None:
        query = query.where(_T.c.endpoint == endpoint)
    if states is not None:
        query = query.where(_T.c.state.in_(list(states)))
    return every(RecommendationRow, db.execute(query).mappings())


def expire(db: sa.Connection, now: float) -> list[str]:
    """Close what was not decided in time; wake what was snoozed. Returns the ids that expired."""
    due = (
        db.execute(sa.select(_T.c.id).where(_T.c.state.in_([*OPEN, "approved"]), _T.c.expires_at <= now))
        .scalars()
        .all()
    )
    for identity in due:
        move(
            db,
            identity,
            from_states=[*OPEN, "approved"],
            to="expired",
            now=now,
            by="flyball",
            reason="not carried out in time",
        )
    awake = db.execute(sa.select(_T.c.id).where(_T.c.state == "snoozed", _T.c.snoozed_until <= now)).scalars().all()
    for identity in awake:
        move(db, identity, from_states=["snoozed"], to="proposed", now=now, by="flyball", reason="snooze is over")
        db.execute(sa.update(_T).where(_T.c.id == identity).values(revision=_T.c.revision + 1))  # it is sent once more
    return list(due)


def add_tokens(db: sa.Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    db.execute(sa.insert(_TOKENS), [dict(row) for row in rows])


def find_token(db: sa.Connection, digest: str) -> TokenRow | None:
    row = db.execute(sa.select(_TOKENS).where(_TOKENS.c.digest == digest)).mappings().one_or_none()
    return one(TokenRow, row)


def use_token(db: sa.Connection, digest: str, now: float) -> bool:
    """Spend it. False when it was spent before."""
    touched = db.execute(
        sa.update(_TOKENS).where(_TOKENS.c.digest == digest, _TOKENS.c.used_at.is_(None)).values(used_at=now)
    ).rowcount
    return touched == 1


def first_time(db: sa.Connection, signature: str, now: float, keep_s: float) -> bool:
    """Note a request's signature. False when it was seen before, within ``keep_s``."""
    seen = schema.seen_signatures
    db.execute(sa.delete(seen).where(seen.c.seen_at < now - keep_s))
    return upsert(db, seen, [{"signature": signature, "seen_at": now}], key=["signature"]) == 1


def note_decision(db: sa.Connection, **row: Any) -> None:
    """Keep an attempt to decide, accepted or refused."""
    db.execute(sa.insert(schema.approvals).values(**row))
    body = {k: row[k] for k in ("channel", "plan_hash", "accepted", "reason")}
    audit.append(
        db, at=row["at"], actor=row["actor"], action=row["action"], subject=row["recommendation_id"], body=body
    )


def approvers(db: sa.Connection, row: Row) -> frozenset[str]:
    """Who approved it as it is now: this plan, at this revision, under this policy. ``policy`` where that did."""
    if row["state_by"] == BY_POLICY and row["state"] == "approved":
        return frozenset((BY_POLICY,))
    given = schema.approvals
    query = sa.select(given.c.actor).where(
        given.c.recommendation_id == row["id"],
        given.c.action == "approve",
        given.c.accepted,
        given.c.plan_hash == row["plan_hash"],
        given.c.revision == row["revision"],
        given.c.policy_hash == row["policy_hash"],
    )
    return frozenset(db.execute(query).scalars())


def decisions(db: sa.Connection, identity: str) -> list[ApprovalRow]:
    table = schema.approvals
    query = sa.select(table).where(table.c.recommendation_id == identity).order_by(table.c.id)
    return every(ApprovalRow, db.execute(query).mappings())


def _record(db: sa.Connection, at: float, by: str, action: str, identity: str, body: Mapping[str, Any]) -> None:
    kept = {k: body[k] for k in ("endpoint", "plan_hash", "reason", "revision") if k in body}
    audit.append(db, at=at, actor=by, action=action, subject=identity, body=kept)
