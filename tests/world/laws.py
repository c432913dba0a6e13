"""What must hold in every world, whatever went wrong in it. Each line is read from the database and from what the system really did."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from actuators.shape import Plan
from agent.store import audit, recommendations
from tests.world.world import World


def assert_lawful(world: World) -> None:
    """Approved, one at a time, each step once, every end in the ledger, and the audit chain whole."""
    with world.store.read() as db:
        assert audit.verify(db) is None
        decisions = {c["id"]: recommendations.decisions(db, c["recommendation_id"]) for c in world.changes()}
    for change in world.changes():
        if change["purpose"] == "schedule":
            _assert_scheduled(world, change, bool(decisions[change["id"]]))
            continue
        approved = {d["plan_hash"] for d in decisions[change["id"]] if d["action"] == "approve" and d["accepted"]}
        assert change["approved_by"] == "policy" or approved == {change["plan_hash"]}
        assert Plan.from_dict(change["plan"]).hash == change["plan_hash"]
        assert change["created_at"] < world.recommendation(change["recommendation_id"])["expires_at"]
    for name in world.systems:
        _assert_one_at_a_time(world, name)
        _assert_each_step_once(world, name)
        for change in world.changes(name):
            if change["finished_at"] is not None:
                _assert_ended_well(world, name, change["id"])


def _assert_scheduled(world: World, change: Mapping[str, Any], decided: bool) -> None:
    """A step of a schedule that a person approved, and within it."""
    plan = Plan.from_dict(change["plan"])
    schedule = Plan.from_dict(world.recommendation(change["recommendation_id"])["plan"]).after.schedule
    assert decided
    assert schedule is not None
    assert plan.hash == change["plan_hash"]
    assert plan.after == plan.before.with_(replicas=plan.after.replicas)
    assert plan.after.replicas is not None
    assert schedule.least <= plan.after.replicas <= schedule.most


def _assert_one_at_a_time(world: World, name: str) -> None:
    for first, second in pairwise(world.changes(name)):
        assert first["finished_at"] is not None
        assert first["finished_at"] <= second["created_at"]


def _assert_each_step_once(world: World, name: str) -> None:
    """What the system did is what the plans say, in order, each step once: the intents were written before."""
    executed = world.systems[name].executed
    assert len({token for token, _ in executed}) == len(executed)
    intended = {row["token"]: row for c in world.changes(name) for row in world.journal(c["id"])}
    for token, operation in executed:
        assert token in intended, "a step that was never written down"
        assert intended[token]["operation"]["args"] == dict(operation.args)
    for change in world.changes(name):
        plans = {"apply": Plan.from_dict(change["plan"])}
        if change["rollback_plan"] is not None:
            plans["rollback"] = Plan.from_dict(change["rollback_plan"])
        for direction, plan in plans.items():
            done = [o for token, o in executed if token.startswith(f"{change['id']}:{direction}:")]
            assert done == list(plan.operations)[: len(done)]


def _assert_ended_well(world: World, name: str, identity: str) -> None:
    change = next(c for c in world.changes(name) if c["id"] == identity)
    assert change["state"] in ("succeeded", "rolled_back", "failed")
    if change["purpose"] == "schedule":
        return
    assert world.recommendation(change["recommendation_id"])["state"] == change["state"]
    rows = world.ledger(identity)
    assert rows, "a change ended without a row in the ledger"
    if rows and change["outcome"] is None:
        assert all(row["observed"] is None and not row["comparable"] for row in rows)
