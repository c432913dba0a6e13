"""A tune as data: what was asked, each trial with what was promised and what came, and the shape to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent.tune.request import TuneRequest
from analyzers.tuning import choose
from analyzers.tuning.choose import Trial, at_limit

SCHEMA_VERSION = 1
#: The questions that everybody asks.
USERS = (10, 100)


def answer(
    asked: TuneRequest, row: Mapping[str, Any], trials: Sequence[Trial], ended: str, doubt: float
) -> dict[str, Any]:
    """Plain JSON. Times are seconds, money US dollars; None: unknown, or not measured."""
    best = choose.best(trials, asked.demand)
    spent = [t.spent_usd for t in trials if t.busy_s]
    told = [t for t in trials if t.state == "done" and t.promised and t.carries]
    return {
        "schema_version": SCHEMA_VERSION,
        "tune": row["id"],
        "endpoint": asked.endpoint,
        "ended": ended,
        "complete": ended == "done",
        "started_at": row["started_at"],
        "objective": [{"target": t.name, "limit": t.limit} for t in asked.objective.targets],
        "demand_per_s": asked.demand,
        "load": asked.as_dict()["load"],
        "spent": {
            "minutes": sum(t.busy_s for t in trials) / 60,
            "usd": None if any(s is None for s in spent) else sum(s for s in spent if s is not None),
        },
        "predictions": {
            "checked": len(told),
            "errors": [(t.promised or 0.0) / (t.carries or 1.0) - 1.0 for t in told],
            "doubt": doubt,
        },
        "recommended": None if best is None else _recommended(best, trials, asked),
        "trials": [_trial(t, asked) for t in trials],
    }


def _recommended(best: Trial, trials: Sequence[Trial], asked: TuneRequest) -> dict[str, Any]:
    carries, cost = best.carries or 0.0, best.cost_per_1k()
    if asked.demand is not None and carries < asked.demand:
        why = f"none carries {asked.demand:g} requests/s within the objective; this one carries most"
    elif asked.demand is not None and best.usd_per_hour is not None:
        why = f"the cheapest that carries {asked.demand:g} requests/s within the objective"
    elif asked.demand is not None:
        why = f"the fewest replicas that carry {asked.demand:g} requests/s within the objective; no price is known"
    elif cost is not None:
        why = "the least dollars per token at its limit"
    else:
        why = "the highest rate within the objective; no price is known"
    unsure = [] if best.limit is not None and best.limit.sure else ["its limit rests on few requests"]
    open_ = sum(t.state in ("planned", "skipped", "running") for t in trials)
    return {
        "name": best.name,
        "shape": best.shape.as_dict(),
        "label": best.shape.label(),
        "why": why,
        "notes": unsure + ([f"{open_} shapes were not tried"] if open_ else []),
        "carries_per_s": best.carries,
        "cost_per_1k_output_tokens_usd": cost,
    }


def _trial(trial: Trial, asked: TuneRequest) -> dict[str, Any]:
    limit, step = trial.limit, at_limit(trial)
    users = users_of(trial, asked.load.think_s)
    return {
        "number": trial.number + 1,
        "name": trial.name,
        "label": trial.shape.label(),
        "shape": trial.shape.as_dict(),
        "state": trial.state,
        "why": trial.why,
        "usd_per_hour": trial.usd_per_hour,
        "promised_per_s": trial.promised,
        "carries_per_s": trial.carries,
        "below_per_s": limit.high if limit is not None else None,
        "sure": limit.sure if limit is not None else None,
        "users": users,
        "serves": {str(n): _serves(n, trial, users, asked.load.think_s) for n in USERS},
        "cost_per_1k_output_tokens_usd": trial.cost_per_1k(),
        "targets": step["targets"] if step is not None else [],
        "at_limit": step["figures"] if step is not None else None,
        "server": step["server"] if step is not None else None,
        "busy_s": trial.busy_s,
        "spent_usd": trial.spent_usd,
        "steps": trial.steps,
    }


def users_of(trial: Trial, think_s: float) -> float | None:
    """How many users send as much as the shape carries, each waiting for its answer and thinking (Little's law). None: not measured."""
    step = at_limit(trial)
    if not trial.carries or step is None or step["figures"]["e2e_s"]["mean"] is None:
        return None
    return float(trial.carries * (step["figures"]["e2e_s"]["mean"] + think_s))


def _serves(n: int, trial: Trial, users: float | None, think_s: float) -> dict[str, Any]:
    """Whether ``n`` users are served within the objective, and what 1000 tokens cost then: the whole shape is paid for."""
    if trial.state != "done":
        return {"met": None, "cost_per_1k_output_tokens_usd": None}
    if users is None or n > users:
        none = trial.limit is not None and trial.limit.high == 0.0  # not even one is served
        return {"met": False if users is not None or none else None, "cost_per_1k_output_tokens_usd": None}
    alone = next((s["figures"]["e2e_s"]["mean"] for s in trial.steps if s["kind"] == "single"), None)
    step = at_limit(trial)
    if alone is None or step is None:
        return {"met": True, "cost_per_1k_output_tokens_usd": None}
    # An answer takes longer with more users: between one user's and that at the limit, by how many there are.
    whole = alone + (step["figures"]["e2e_s"]["mean"] - alone) * min(1.0, n / users)
    return {"met": True, "cost_per_1k_output_tokens_usd": trial.cost_per_1k(n / (whole + think_s))}
