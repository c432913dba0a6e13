"""Recommendations and changes: each step forward is taken once, whoever tries, and the database keeps order."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from agent.store import Store, audit, changes, recommendations, schema
from tests.agent.records import T0, change_row, ledger_row, plan, recommendation_row


@pytest.fixture
def one(store: Store) -> Store:
    with store.write() as db:
        recommendations.insert(db, recommendation_row("aaaa0001"))
    return store


def _move(db: sa.Connection, to: str, *, revision: int | None = None) -> bool:
    return recommendations.move(
        db, "aaaa0001", from_states=recommendations.OPEN, to=to, now=T0 + 1, by="cli:ann", reason="x", revision=revision
    )


def test_a_recommendation_is_decided_once(one: Store) -> None:
    with one.write() as db:
        assert _move(db, "approved")
        assert not _move(db, "rejected")
        row = recommendations.get(db, "aaaa0001")
    assert row is not None
    assert (row["state"], row["state_by"], row["state_reason"]) == ("approved", "cli:ann", "x")
    with one.read() as db:
        assert [e["action"] for e in audit.entries(db, "aaaa0001")] == ["approved", "propose"]


def test_of_many_who_decide_at_once_one_does(one: Store) -> None:
    assert _race(one, lambda db, i: _move(db, ("approved", "rejected")[i % 2])) == 1


def _race(store: Store, act: Callable[[sa.Connection, int], bool], several: int = 6) -> int:
    """How many of those who act at once succeed."""
    start, won = threading.Barrier(several), list[bool]()

    def run(i: int) -> None:
        start.wait()
        with store.write() as db:
            won.append(act(db, i))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(several)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == several
    return sum(won)


def test_a_decision_for_an_older_revision_does_not_count(one: Store) -> None:
    with one.write() as db:
        assert recommendations.refresh(db, "aaaa0001", revision=1, now=T0 + 5, values={"saving_per_month": 1.0})
        assert not recommendations.refresh(db, "aaaa0001", revision=1, now=T0 + 6, values={})
        assert not _move(db, "approved", revision=1)
        assert _move(db, "approved", revision=2)
        assert not recommendations.refresh(db, "aaaa0001", revision=2, now=T0 + 7, values={})  # decided meanwhile
        row = recommendations.get(db, "aaaa0001")
    assert row is not None
    assert (row["revision"], row["refreshed_at"], row["saving_per_month"]) == (2, T0 + 5, 1.0)


def test_ids_can_be_shortened_while_they_are_unique(one: Store) -> None:
    with one.write() as db:
        recommendations.insert(db, recommendation_row("aaaa0002", now=T0 + 1))
        assert (recommendations.get(db, "aaaa0002") or {})["id"] == "aaaa0002"
        assert recommendations.get(db, "aaaa") is None
        assert recommendations.get(db, "zzzz") is None
        assert recommendations.get(db, "%") is None
        assert recommendations.get(db, "aaaa000_") is None
        assert [r["id"] for r in recommendations.listed(db)] == ["aaaa0002", "aaaa0001"]
        assert recommendations.listed(db, endpoint="other") == []
        assert recommendations.listed(db, states=["approved"]) == []


def test_what_is_not_decided_expires_and_what_is_snoozed_wakes(store: Store) -> None:
    with store.write() as db:
        recommendations.insert(db, recommendation_row("aaaa0001", expires_at=T0 + 10))
        recommendations.insert(db, recommendation_row("aaaa0002", state="approved", expires_at=T0 + 10))
        recommendations.insert(db, recommendation_row("aaaa0003", state="rejected", expires_at=T0 + 10))
        recommendations.insert(db, recommendation_row("aaaa0004", state="snoozed", snoozed_until=T0 + 5))
        assert recommendations.expire(db, T0 + 4) == []
        assert sorted(recommendations.expire(db, T0 + 10)) == ["aaaa0001", "aaaa0002"]
        assert recommendations.expire(db, T0 + 10) == []
        assert {r["id"][-1]: r["state"] for r in recommendations.listed(db)} == {
            "1": "expired",
            "2": "expired",
            "3": "rejected",
            "4": "proposed",
        }


def test_a_token_is_spent_once(one: Store) -> None:
    row = {
        "digest": "d", "recommendation_id": "aaaa0001", "revision": 1, "plan_hash": "h", "action": "approve",
        "expires_at": T0,
    }  # fmt: skip
    with one.write() as db:
        recommendations.add_tokens(db, [row])
        assert recommendations.find_token(db, "other") is None
        assert (recommendations.find_token(db, "d") or {})["used_at"] is None
    assert _race(one, lambda db, _: recommendations.use_token(db, "d", T0)) == 1
    with one.write() as db:
        assert not recommendations.use_token(db, "d", T0 + 1)
        assert (recommendations.find_token(db, "d") or {})["used_at"] == T0


def test_a_signature_is_new_once(store: Store) -> None:
    assert _race(store, lambda db, _: recommendations.first_time(db, "v0=abc", T0, 600.0)) == 1
    with store.write() as db:
        assert not recommendations.first_time(db, "v0=abc", T0 + 600, 600.0)
        assert recommendations.first_time(db, "v0=other", T0 + 600, 600.0)
        assert recommendations.first_time(
            db, "v0=abc", T0 + 600.1, 600.0
        )  # forgotten: it is too old to be taken anyway


def test_attempts_to_decide_are_kept_refused_ones_too(one: Store) -> None:
    with one.write() as db:
        for accepted, reason in ((False, "superseded"), (True, "accepted")):
            recommendations.note_decision(
                db, recommendation_id="aaaa0001", action="approve", actor="slack:U1", channel="slack", plan_hash="h",
                accepted=accepted, reason=reason, at=T0,
            )  # fmt: skip
        assert [d["reason"] for d in recommendations.decisions(db, "aaaa0001")] == ["superseded", "accepted"]
        assert audit.verify(db) is None


# -- changes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", schema.ACTIVE_CHANGE)
def test_the_database_refuses_a_second_change_on_one_endpoint(store: Store, state: str) -> None:
    with store.write() as db:
        assert changes.start(db, change_row("cccc0001", state=state))
        assert not changes.start(db, change_row("cccc0002"))
        assert changes.start(db, change_row("cccc0003", endpoint="other"))
        # the refusal left the transaction whole, and wrote nothing
        assert [e["subject"] for e in audit.entries(db)] == ["cccc0003", "cccc0001"]
    with store.write() as db:
        assert changes.move(db, "cccc0001", from_states=[state], to="failed", now=T0, reason="x")
        assert changes.start(db, change_row("cccc0002"))
        assert {c["id"] for c in changes.active(db)} == {"cccc0002", "cccc0003"}


def test_of_many_who_start_at_once_one_does(store: Store) -> None:
    assert _race(store, lambda db, i: changes.start(db, change_row(f"cccc000{i}"))) == 1
    with store.read() as db:
        assert len(changes.active(db)) == 1
        assert audit.verify(db) is None


def test_a_finished_change_cannot_become_active_beside_another(store: Store) -> None:
    with store.write() as db:
        changes.start(db, change_row("cccc0001", state="succeeded"))
        changes.start(db, change_row("cccc0002"))
    with pytest.raises(sa.exc.IntegrityError), store.write() as db:
        changes.move(db, "cccc0001", from_states=["succeeded"], to="rolling_back", now=T0, reason="x")
    with store.read() as db:
        assert (changes.get(db, "cccc0001") or {})["state"] == "succeeded"


def test_a_change_moves_from_where_it_is(store: Store) -> None:
    with store.write() as db:
        changes.start(db, change_row("cccc0001"))
        assert not changes.move(db, "cccc0001", from_states=["warming"], to="verifying", now=T0, reason="x")
        assert changes.move(db, "cccc0001", from_states=["applying"], to="warming", now=T0, reason="x", applied_at=T0)
        changes.update(db, "cccc0001", outcome={"code": "OBJECTIVE_MET"})
        row = changes.get(db, "cccc")
    assert row is not None
    assert (row["state"], row["applied_at"], row["outcome"]) == ("warming", T0, {"code": "OBJECTIVE_MET"})
    assert row["plan"] == plan().as_dict()
    assert row["rollback_plan"] is None
    assert row["rollback_requested"] is False


@pytest.mark.parametrize(
    ("state", "asked"), [("verifying", True), ("succeeded", True), ("failed", False), ("rolled_back", False)]
)
def test_a_rollback_is_asked_for_where_there_is_something_to_undo(store: Store, state: str, asked: bool) -> None:
    with store.write() as db:
        changes.start(db, change_row("cccc0001", state=state))
        assert changes.request_rollback(db, "cccc0001", now=T0, by="cli:ann") is asked
        assert (changes.get(db, "cccc0001") or {})["rollback_requested"] is asked


def test_the_journal_keeps_intents_and_what_came_of_them_in_order(store: Store) -> None:
    def intent(direction: str, step: int) -> dict[str, object]:
        return {
            "change_id": "cccc0001", "direction": direction, "step": step, "token": f"{direction}{step}",
            "operation": {"name": "scale"}, "epoch": 1, "intent_at": T0,
        }  # fmt: skip

    with store.write() as db:
        changes.intend(db, intent("apply", 0))
        changes.settle(db, "cccc0001", "apply", 0, state="done", detail="", epoch=1, done_at=T0 + 1)
        changes.intend(db, intent("apply", 1))
        changes.intend(db, intent("rollback", 0))
        found = [(j["direction"], j["step"], j["state"], j["done_at"]) for j in changes.journal(db, "cccc0001")]
        assert found == [
            ("apply", 0, "done", T0 + 1),
            ("apply", 1, "waiting", None),
            ("rollback", 0, "waiting", None),
        ]
        assert len(changes.journal(db, "cccc0001", "rollback")) == 1
    with pytest.raises(sa.exc.IntegrityError), store.write() as db:
        changes.intend(db, intent("apply", 1))  # one step is intended once


def test_the_ledger_says_how_good_the_promises_were(store: Store) -> None:
    with store.write() as db:
        changes.add_ledger(db, [])
        seen = [(0.1, True), (-0.3, True), (0.2, True), (9.0, False), (None, True)]
        rows = [ledger_row(f"c{i}", error=error, comparable=c, at=T0 + i) for i, (error, c) in enumerate(seen)]
        changes.add_ledger(db, rows)
        assert changes.measured_error(db, "chat") == {"ttft_p95_s": 0.2}
        assert changes.measured_error(db, "nobody") == {}
        assert [r["change_id"] for r in changes.ledger(db, since=T0 + 3)] == ["c4", "c3"]
        assert len(changes.ledger(db, change_id="c1")) == 1
    with pytest.raises(sa.exc.IntegrityError), store.write() as db:
        changes.add_ledger(db, [ledger_row("c1")])  # a verification is written once


def test_what_was_deployed_or_tried_is_no_change_of_the_reports(store: Store) -> None:
    with store.write() as db:
        for number, purpose in enumerate(("change", "deploy", "trial")):
            assert changes.start(db, change_row(f"cccc000{number}") | {"purpose": purpose})
            changes.move(db, f"cccc000{number}", from_states=["applying"], to="succeeded", now=T0, reason="")
        assert len(changes.listed(db)) == 3
        assert [c["id"] for c in changes.listed(db, purpose="change")] == ["cccc0000"]
