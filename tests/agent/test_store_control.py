"""Leases with fencing, the pause, the outbox, reports, and what is known of each endpoint."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
import sqlalchemy as sa

from agent.store import Store, audit, changes, control, fleet, outbox, schema
from agent.store.control import Lead, LostLease
from tests.agent.records import T0, finding, shape_row


def _run_out(db: sa.Connection) -> None:
    """As if every holder had been silent for as long as its lease lasts."""
    db.execute(sa.update(schema.leases).values(expires_at=1.0))


def test_a_lease_has_one_holder_and_its_epoch_grows_with_each_new_one(store: Store) -> None:
    with store.write() as db:
        assert control.leader(db, "leader") is None
        assert control.acquire(db, "leader", "a", 30.0) == Lead("leader", "a", 1)
        assert control.acquire(db, "leader", "b", 30.0) is None
        assert control.acquire(db, "leader", "a", 30.0) == Lead("leader", "a", 1)  # renewed: the same epoch
        assert (control.leader(db, "leader") or {})["holder"] == "a"
        _run_out(db)
        assert control.leader(db, "leader") is None
        assert control.acquire(db, "leader", "b", 30.0) == Lead("leader", "b", 2)
        assert control.acquire(db, "leader", "a", 30.0) is None
        assert control.acquire(db, "other", "a", 30.0) == Lead("other", "a", 1)


def test_it_is_the_databases_clock_that_counts(store: Store) -> None:
    """Whoever's own clock is ahead must not take over one that lives; there is no own clock to give."""
    with store.write() as db:
        before = time.time()
        control.acquire(db, "leader", "a", 30.0)
        until = (control.leader(db, "leader") or {})["expires_at"]
    assert before + 29.0 < until < time.time() + 31.0  # the test's machine is the database's


def test_who_lost_the_lease_writes_nothing(store: Store) -> None:
    with store.write() as db:
        first = control.acquire(db, "leader", "a", 30.0)
    assert first is not None
    with control.leading(store, first) as db:
        control.put(db, "key", 1, 1.0, "a")
    for wrong in (replace(first, holder="b"), replace(first, epoch=2), replace(first, lease="nothing")):
        with pytest.raises(LostLease), control.leading(store, wrong) as db:
            control.put(db, "key", 2, 1.0, "b")
    with store.write() as db:
        _run_out(db)
    with pytest.raises(LostLease, match="a no longer holds leader under epoch 1"), control.leading(store, first) as db:
        control.put(db, "key", 3, 1.0, "a")
    with store.write() as db:
        control.acquire(db, "leader", "b", 30.0)
        _run_out(db)
        again = control.acquire(db, "leader", "a", 30.0)  # back again, under a new epoch
    assert again == Lead("leader", "a", 3)
    with pytest.raises(LostLease), control.leading(store, first):
        pass
    with store.read() as db:
        assert (control.get(db, "key") or {})["value"] == 1


def test_nobody_takes_over_while_a_leader_writes(store: Store) -> None:
    """The lease is let run out in the middle of the transaction: the next one waits until it has ended."""
    with store.write() as db:
        lead = control.acquire(db, "leader", "a", 0.3)
    assert lead is not None
    taken: list[Lead | None] = []

    def take() -> None:
        while not taken:
            with store.write() as db:
                if (mine := control.acquire(db, "leader", "b", 30.0)) is not None:
                    taken.append(mine)

    with control.leading(store, lead) as db:
        control.put(db, "key", 1, 1.0, "a")
        thread = threading.Thread(target=take)
        thread.start()
        time.sleep(0.6)
        assert taken == []
    thread.join()
    assert taken == [Lead("leader", "b", 2)]


def test_a_lease_that_was_given_up_can_be_taken_at_once(store: Store) -> None:
    with store.write() as db:
        control.acquire(db, "leader", "a", 30.0)
        control.release(db, "leader", "b")  # not b's to give
        assert control.acquire(db, "leader", "b", 30.0) is None
        control.release(db, "leader", "a")
        assert control.acquire(db, "leader", "b", 30.0) == Lead("leader", "b", 2)


def test_of_many_at_once_one_takes_the_lease(store: Store) -> None:
    start, taken = threading.Barrier(5), list[Lead | None]()

    def take(name: str) -> None:
        start.wait()
        with store.write() as db:
            taken.append(control.acquire(db, "leader", name, 30.0))

    threads = [threading.Thread(target=take, args=(f"h{i}",)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [lead.epoch for lead in taken if lead is not None] == [1]


def test_a_lock_wider_than_an_endpoint_has_one_change(store: Store) -> None:
    with store.write() as db:
        assert changes.lock(db, ["account:a", "account:b"], "c1", 1) is None
        assert changes.lock(db, ["account:b"], "c1", 2) is None  # its own
        assert changes.lock(db, ["account:b", "account:c"], "c2", 2) == "account:b"
        changes.unlock(db, "c1")
        assert changes.lock(db, ["account:b"], "c2", 2) is None


def test_the_pause(store: Store) -> None:
    with store.write() as db:
        assert control.paused(db) is None
        assert not control.resume(db, now=1.0, by="cli:ann")
        control.pause(db, now=2.0, by="cli:ann", reason="holiday")
        control.pause(db, now=3.0, by="cli:bob", reason="still holiday")
        paused = control.paused(db)
        assert paused == {"key": "paused", "value": {"reason": "still holiday"}, "at": 3.0, "by": "cli:bob"}
        assert control.resume(db, now=4.0, by="cli:ann")
        assert control.paused(db) is None
        assert [e["action"] for e in audit.entries(db)] == ["resume", "pause", "pause"]


def test_a_message_is_queued_once_and_tried_until_it_is_out(store: Store) -> None:
    with store.write() as db:
        for new in (True, False):
            assert outbox.put(db, channel="slack", kind="recommendation", subject="a", revision=1, now=1.0) is new
        assert outbox.put(db, channel="slack", kind="recommendation", subject="a", revision=2, now=2.0)
        first, second = outbox.due(db, 2.0)
        assert (first["revision"], second["revision"]) == (1, 2)
        assert outbox.undelivered(db) == []
        outbox.failed(db, first["id"], error="timeout", retry_at=50.0)
        assert [m["id"] for m in outbox.due(db, 49.0)] == [second["id"]]
        assert [(m["attempts"], m["error"]) for m in outbox.undelivered(db)] == [(1, "timeout")]
        outbox.sent(db, first["id"], 51.0)
        outbox.failed(db, second["id"], error="no_service", retry_at=None)
        assert outbox.due(db, 1e12) == []
        assert [(m["state"], m["error"]) for m in outbox.undelivered(db)] == [("failed", "no_service")]


def test_a_report_of_the_same_span_takes_the_older_ones_place(store: Store) -> None:
    with store.write() as db:
        for path in ("a.html", "b.html"):
            outbox.add_report(db, start=0.0, end=7.0, now=8.0, path=path, summary={"spent_usd": 1.0})
        outbox.add_report(db, start=7.0, end=14.0, now=15.0, path="c.html", summary={})
        rows = outbox.reports(db)
        assert [r["path"] for r in rows] == ["c.html", "b.html"]
        assert (outbox.report(db, rows[1]["id"]) or {})["summary"] == {"spent_usd": 1.0}
        assert outbox.report(db, 999) is None


def test_an_endpoint_is_frozen_until_a_person_says_otherwise(store: Store) -> None:
    with store.write() as db:
        assert fleet.get(db, "chat") is None
        assert not fleet.unfreeze(db, "chat", now=1.0, by="cli:ann")
        fleet.saw_shape(db, "chat", shape_row())
        fleet.freeze(db, "chat", reason="rolled back", now=2.0, by="flyball")
        fleet.changed(db, "chat", 3.0)
        fleet.saw_shape(db, "chat", shape_row(T0 + 60, shape_version="v2"))  # what is live does not unfreeze it
        row = fleet.get(db, "chat")
        assert row is not None
        assert (row["frozen_because"], row["frozen_at"], row["last_change_at"]) == ("rolled back", 2.0, 3.0)
        assert (row["shape_version"], row["seen_at"]) == ("v2", T0 + 60)
        assert fleet.unfreeze(db, "chat", now=4.0, by="cli:ann")
        assert not fleet.unfreeze(db, "chat", now=5.0, by="cli:ann")
        assert [(e["action"], e["actor"]) for e in audit.entries(db, "chat")] == [
            ("unfreeze", "cli:ann"),
            ("freeze", "flyball"),
        ]


def test_findings_that_come_go_and_come_back(store: Store) -> None:
    idle, queue = finding(), finding(code="QUEUE_WAITING")
    with store.write() as db:
        assert fleet.found(db, "chat", [idle, queue], 10.0) == [idle, queue]
        assert fleet.found(db, "chat", [idle], 20.0) == []
        assert [f["code"] for f in fleet.findings(db, "chat")] == ["LOW_OCCUPANCY"]
        assert len(fleet.findings(db, "chat", active=False)) == 2
        assert fleet.found(db, "chat", [idle, queue], 30.0) == [queue]
        times = {f["code"]: (f["first_seen_at"], f["last_seen_at"]) for f in fleet.findings(db)}
        assert times == {"LOW_OCCUPANCY": (10.0, 30.0), "QUEUE_WAITING": (30.0, 30.0)}
        assert fleet.found(db, "other", [], 40.0) == []
        assert len(fleet.findings(db, "chat")) == 2  # another endpoint's analysis does not touch these


def test_sources_and_calibrations_keep_the_newest(store: Store) -> None:
    row = {
        "endpoint": "chat", "source": "vllm", "last_ok_at": None, "last_error_at": 1.0, "last_error": "timeout: slow",
        "failures": 1, "failures_in_a_row": 1, "next_try_at": 16.0,
    }  # fmt: skip
    with store.write() as db:
        fleet.source_health(db, [])
        fleet.source_health(db, [row])
        fleet.source_health(db, [row | {"last_ok_at": 20.0, "failures_in_a_row": 0}])
        assert [(s["last_ok_at"], s["failures"], s["failures_in_a_row"]) for s in fleet.sources(db, "chat")] == [
            (20.0, 1, 0)
        ]
        for at, key in ((1.0, "a"), (2.0, "b"), (3.0, "a")):
            fleet.keep_calibration(db, "chat", key=key, now=at, body={"at": at})
        assert (fleet.calibration(db, "chat") or {})["body"] == {"at": 3.0}
        assert (fleet.calibration(db, "chat", "b") or {})["body"] == {"at": 2.0}
        assert fleet.calibration(db, "nobody") is None


@pytest.mark.parametrize("value", [{"a": [1, None, "ä"]}, [], 0, "text"])
def test_single_values_come_back_as_they_were(store: Store, value: object) -> None:
    with store.write() as db:
        control.put(db, "key", value, 1.0, "me")
        assert (control.get(db, "key") or {})["value"] == value
