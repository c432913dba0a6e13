"""Tunes as the store has them: to go on with, and to show. Reads the database alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from actuators.shape import Shape
from agent.store import tunes
from agent.store.rows import TrialRow
from agent.tune.answer import answer
from agent.tune.request import TuneRequest
from analyzers.limit_search import Limit
from analyzers.tuning.choose import Trial, doubt

UNDER_WAY = "under way"


def trial_of(row: TrialRow, usd_per_hour: float | None) -> Trial:
    """``usd_per_hour``: US dollars of the whole shape; None: unknown."""
    body: Mapping[str, Any] = row["body"]
    return Trial(
        number=row["number"],
        name=row["name"],
        shape=Shape.from_dict(row["shape"]),
        usd_per_hour=usd_per_hour,
        state=row["state"],
        why=row["why"],
        promised=body.get("promised"),
        steps=list(body.get("steps", [])),
        limit=_limit(row, body.get("sure")),
        output_tokens=body.get("output_tokens"),
        busy_s=row["busy_s"] or 0.0,
    )


def _limit(row: TrialRow, sure: bool | None) -> Limit | None:
    return None if sure is None else Limit(row["limit_low"], row["limit_high"], sure)


def told(db: sa.Connection, identity: str) -> dict[str, Any] | None:
    """A tune as ``answer`` gives it: its result, or what is known of it so far. None: there is no such tune."""
    row = tunes.get(db, identity)
    if row is None:
        return None
    result: dict[str, Any] | None = row["result"]
    if result is not None:
        return result
    trials = [trial_of(r, r["body"].get("usd_per_hour")) for r in tunes.trials(db, identity)]
    ended = UNDER_WAY if row["state"] == "running" else str(row["state"])
    return answer(TuneRequest.from_dict(row["question"]), row, trials, ended, doubt(trials))


def brief(db: sa.Connection, row: tunes.Row) -> dict[str, Any]:
    """One line of a list."""
    found = told(db, row["id"])
    assert found is not None
    best = found["recommended"]
    return {
        "id": row["id"],
        "endpoint": row["endpoint"],
        "state": row["state"],
        "started_by": row["started_by"],
        "started_at": row["started_at"],
        "ended_at": row["ended_at"],
        "ended": found["ended"],
        "shapes": len(found["trials"]),
        "measured": sum(t["state"] == "done" for t in found["trials"]),
        "recommended": best and {k: best[k] for k in ("label", "carries_per_s", "cost_per_1k_output_tokens_usd")},
    }
